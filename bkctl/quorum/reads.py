"""Reading entries: which replica to ask, and whom next.

A RangeRead asks for a run of entries of one segment, grouped by bookie. Every entry is verified; an
entry that is missing, damaged or late is asked of its next replica. The range succeeds or fails as
one. A RecoveryRead decides whether one entry of an unclosed ledger may have been acknowledged.

Source: spec replication sections 2, 11, 13 R5, 17.3; upstream ReadOpBase, PendingReadOp.
"""

import enum
from collections.abc import Collection, Sequence
from typing import NamedTuple

from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    DigestMatchError,
)
from bkctl.formats.entry import HEADER, Digester
from bkctl.quorum.lac import NEGATIVE
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieIndex, EntryId, LedgerId


class Entry(NamedTuple):
    """`length` counts the ledger's payload bytes up to and including this entry."""

    entry_id: EntryId
    payload: bytes
    last_add_confirmed: EntryId  # of the writer when it sent the entry
    length: int


def first_error(before: BookKeeperError | None, error: BookKeeperError) -> BookKeeperError:
    """Which of an entry's errors to report: "no such entry" only if every replica says so."""
    if before is None or isinstance(before, NEGATIVE):
        return error
    if isinstance(before, BookieHandleNotAvailableError) and not isinstance(error, NEGATIVE):
        return error
    return before


Groups = dict[BookieIndex, list[EntryId]]  # what to ask of whom


class RangeRead:
    """Entries first..last of one segment.

    `start_index` rotates the order of the replicas, so that consecutive ranges of a ledger without
    striping go to different bookies; `avoid` names indexes to ask last.
    """

    def __init__(
        self,
        schedule: RoundRobinSchedule,
        digester: Digester,
        ledger_id: LedgerId,
        first_entry_id: EntryId,
        last_entry_id: EntryId,
        *,
        start_index: int = 0,
        avoid: Collection[BookieIndex] = (),
    ) -> None:
        assert 0 <= first_entry_id <= last_entry_id, (first_entry_id, last_entry_id)
        self._schedule = schedule
        self._digester = digester
        self._ledger_id = ledger_id
        self._first = first_entry_id
        self._bodies: list[bytes] = [b""] * (last_entry_id - first_entry_id + 1)  # empty: not read yet
        self._payloads: list[bytes] = [b""] * len(self._bodies)
        self._missing = len(self._bodies)
        self._start_index = start_index
        self._avoid = avoid
        self._asked: dict[int, int] = {}  # replicas asked, for entries beyond their first
        self._heard: dict[int, int] = {}  # of these: how many answered
        self._errors: dict[int, BookKeeperError] = {}
        self.error: BookKeeperError | None = None
        self.digest_mismatches: list[tuple[BookieIndex, EntryId]] = []

    @property
    def done(self) -> bool:
        """Whether all entries are there, or `error` says why they can't be had."""
        return self._missing == 0 or self.error is not None

    def entries(self) -> list[Entry]:
        """The entries in order, once done."""
        assert self._missing == 0
        headers = map(HEADER.unpack_from, self._bodies)
        return [
            Entry(EntryId(entry_id), payload, EntryId(lac), length)
            for (_, entry_id, lac, length), payload in zip(headers, self._payloads, strict=True)
        ]

    def _order(self, entry_id: int) -> list[BookieIndex]:
        write_set = list(self._schedule.write_set(EntryId(entry_id)))
        if not self._schedule.striped:
            size = self._schedule.ensemble_size
            write_set = [BookieIndex((self._start_index + i) % size) for i in range(size)]
        return sorted(write_set, key=lambda index: index in self._avoid)

    def start(self) -> Groups:
        """The first replica of each entry."""
        ids = [EntryId(self._first + i) for i in range(len(self._bodies))]
        if not self._schedule.striped:
            return {self._order(0)[0]: ids}
        groups: Groups = {}
        first_of = [self._order(entry_id)[0] for entry_id in range(self._schedule.ensemble_size)]
        for entry_id in ids:
            groups.setdefault(first_of[entry_id % len(first_of)], []).append(entry_id)
        return groups

    def answered(
        self, index: BookieIndex, entry_ids: Sequence[EntryId], answers: Sequence[bytes | BookKeeperError]
    ) -> Groups:
        """The bookie at `index` answered: a body or an error for each of `entry_ids`; what to ask next."""
        opened = self._open(entry_ids, answers)
        if len(entry_ids) == self._missing == len(self._bodies) and set(map(type, opened)) == {bytes}:
            self._bodies, self._payloads, self._missing = list(answers), list(opened), 0  # type: ignore[arg-type]
            return {}
        groups: Groups = {}
        for entry_id, body, payload in zip(entry_ids, answers, opened, strict=True):
            at = entry_id - self._first
            if self._bodies[at] or self.error is not None:
                continue
            if isinstance(payload, BookKeeperError):
                if isinstance(payload, DigestMatchError):
                    self.digest_mismatches.append((index, entry_id))
                self._fail(at, payload, groups)
            elif isinstance(body, bytes):
                self._bodies[at], self._payloads[at] = body, payload
                self._missing -= 1
        return groups

    def _open(
        self, entry_ids: Sequence[EntryId], answers: Sequence[bytes | BookKeeperError]
    ) -> Sequence[bytes | BookKeeperError]:
        bodies = [answer for answer in answers if isinstance(answer, bytes)]
        if len(bodies) == len(answers):
            return self._digester.open_entries(bodies, self._ledger_id, entry_ids)
        return [
            self._digester.open_entries([answer], self._ledger_id, [entry_id])[0]
            if isinstance(answer, bytes)
            else answer
            for entry_id, answer in zip(entry_ids, answers, strict=True)
        ]

    def _fail(self, at: int, error: BookKeeperError, groups: Groups) -> None:
        self._errors[at] = first_error(self._errors.get(at), error)
        self._heard[at] = self._heard.get(at, 0) + 1
        if self._heard[at] < self._asked.get(at, 1):
            return  # another replica was asked already
        if not self._ask_next(at, groups):
            self.error = self._errors[at]

    def _ask_next(self, at: int, groups: Groups) -> bool:
        asked = self._asked.get(at, 1)
        if asked == self._schedule.write_quorum_size:
            return False
        self._asked[at] = asked + 1
        entry_id = EntryId(self._first + at)
        groups.setdefault(self._order(entry_id)[asked], []).append(entry_id)
        return True

    def speculate(self) -> Groups:
        """No answer for a while: ask the next replica of each entry that nobody has answered yet."""
        groups: Groups = {}
        if self.error is None:
            for at, body in enumerate(self._bodies):
                if not body and at not in self._heard:
                    self._ask_next(at, groups)
        return groups


class Recoverable(enum.Enum):
    PENDING = "pending"  # too few answers to decide
    FOUND = "found"  # a replica holds the entry: it must be kept
    ABSENT = "absent"  # no ack quorum can hold the entry: it was never acknowledged
    UNKNOWN = "unknown"  # all answered, neither is certain


class RecoveryRead:
    """The answers of an entry's write set to a fencing read; "unknown" never counts as "absent"."""

    def __init__(self, schedule: RoundRobinSchedule, entry_id: EntryId) -> None:
        self._entry_coverage = schedule.entry_coverage
        self._unanswered = set(schedule.write_set(entry_id))
        self._negatives = 0
        self.body: bytes | None = None
        self.error: BookKeeperError | None = None

    def found(self, index: BookieIndex, body: bytes) -> None:
        """A replica holds the entry, verified."""
        self._unanswered.discard(index)
        if self.body is None:
            self.body = body

    def failed(self, index: BookieIndex, error: BookKeeperError) -> None:
        """A replica says it has no such entry, or nothing certain."""
        if index not in self._unanswered:
            return  # one bookie, one answer
        self._unanswered.discard(index)
        if isinstance(error, NEGATIVE):
            self._negatives += 1
        self.error = first_error(self.error, error)

    @property
    def exhausted(self) -> bool:
        """Whether the whole write set has answered."""
        return not self._unanswered

    @property
    def state(self) -> Recoverable:
        if self.body is not None:
            return Recoverable.FOUND
        if self._negatives >= self._entry_coverage:
            return Recoverable.ABSENT
        return Recoverable.PENDING if self._unanswered else Recoverable.UNKNOWN
