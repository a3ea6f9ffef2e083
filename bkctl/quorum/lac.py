"""Finding the last add confirmed of a ledger by asking its bookies.

Source: spec replication sections 1, 11, 17.4; upstream ReadLastConfirmedOp, PendingReadLacOp,
ReadLastConfirmedAndEntryOp. Differs: a LAC with a bad digest is no answer.
"""

import enum

from bkctl.errors import (
    BookKeeperError,
    NoSuchEntryError,
    NoSuchLedgerError,
    ReadError,
    UnauthorizedAccessError,
)
from bkctl.formats.entry import Digester
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import INVALID_ENTRY_ID, BookieIndex, EntryId, LedgerId

NEGATIVE = (NoSuchEntryError, NoSuchLedgerError)  # the bookie says for certain: not here


class Coverage(enum.Enum):
    PENDING = "pending"  # too few answers to decide
    COVERED = "covered"  # every ack quorum contains a bookie that answered
    FAILED = "failed"  # see `error`


class LacCoverage:
    """Collects one answer of each bookie of an ensemble until no ack quorum can be missed.

    Negative answers count as "LAC -1". `last_add_confirmed` is the largest LAC so far.
    """

    def __init__(self, schedule: RoundRobinSchedule) -> None:
        self._schedule = schedule
        self._valid: set[BookieIndex] = set()
        self._invalid: set[BookieIndex] = set()
        self.last_add_confirmed = INVALID_ENTRY_ID
        self.error: BookKeeperError | None = None

    def answered(self, index: BookieIndex, lac: EntryId) -> Coverage:
        """The bookie at `index` knows `lac`; -1: it knows of none."""
        self._valid.add(index)
        self.last_add_confirmed = max(self.last_add_confirmed, lac)
        return self.state

    def failed(self, index: BookieIndex, error: BookKeeperError) -> Coverage:
        """The bookie answered an error, or nothing in time."""
        if isinstance(error, NEGATIVE):
            return self.answered(index, INVALID_ENTRY_ID)
        self._invalid.add(index)
        if not isinstance(self.error, UnauthorizedAccessError):
            self.error = error
        return self.state

    @property
    def state(self) -> Coverage:
        if isinstance(self.error, UnauthorizedAccessError):
            return Coverage.FAILED
        if self._schedule.covers_ensemble(self._valid):
            return Coverage.COVERED
        if len(self._valid | self._invalid) == self._schedule.ensemble_size:
            return Coverage.FAILED
        return Coverage.PENDING


def lac_of_answer(
    digester: Digester, ledger_id: LedgerId, lac_packet: bytes | None, last_entry: bytes | None
) -> EntryId:
    """The LAC in an answer to READ_LAC: the larger of the explicit and the piggybacked one.

    Raises:
        DigestMatchError: a part of the answer is damaged.
        ReadError: the answer is empty.
    """
    lacs = []
    if lac_packet:
        lacs.append(digester.open_lac(lac_packet, ledger_id))
    if last_entry:
        lacs.append(digester.open_last_entry(last_entry, ledger_id).lac)
    if not lacs:
        raise ReadError(f"ledger {ledger_id}: the bookie answered without a LAC")
    return EntryId(max(lacs))


class TailPoll:
    """One long poll of all bookies for the entry after `previous_lac`.

    Ends with the first entry or advanced LAC, or when so many bookies have no news that no ack
    quorum can have any.
    """

    def __init__(self, schedule: RoundRobinSchedule, previous_lac: EntryId) -> None:
        self._coverage = LacCoverage(schedule)
        self._previous_lac = previous_lac

    def answered(self, index: BookieIndex, lac: EntryId) -> bool:
        """A bookie knows `lac`; whether the poll is over."""
        state = self._coverage.answered(index, lac)
        return lac > self._previous_lac or state is not Coverage.PENDING

    def failed(self, index: BookieIndex, error: BookKeeperError) -> bool:
        """A bookie answered an error, or nothing in time; whether the poll is over."""
        return self._coverage.failed(index, error) is not Coverage.PENDING

    @property
    def last_add_confirmed(self) -> EntryId:
        return self._coverage.last_add_confirmed

    @property
    def error(self) -> BookKeeperError | None:
        """Why the poll ended without any news; None: it did not fail."""
        return self._coverage.error if self._coverage.state is Coverage.FAILED else None
