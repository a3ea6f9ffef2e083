"""Recovering a ledger whose writer is gone: fence it, find its end, rewrite its tail, close it.

    MARKING ─▶ FENCING ─▶ REWRITING ─▶ DRAINING ─▶ CLOSING ─▶ DONE
                  │ (fence only)                              ▲
                  └───────────────────────────────────────────┘

Laws:
- The ensembles that are read are those of the metadata at the beginning, to the end.
- No metadata is written between FENCING and CLOSING: replaced bookies live in a local list until the
  one write that closes the ledger (BOOKKEEPER-355, -581).
- The last add confirmed that rewritten entries carry never advances: a recovery that loses the race
  to close must not publish entries beyond the final end.
- "I don't know" from a bookie is never taken for "I don't have it".
- Entries are rewritten in the order of their ids, from the last add confirmed on, without a gap.
- Any number of recoveries may run; exactly one closes the ledger, the others adopt its end.

Pure: no clock, no socket. Source: spec replication sections 13 and 17.2; upstream LedgerRecoveryOp.
Differs: reads go to the whole write set at once, and ahead of the adds; a bookie for which there is
no replacement does not abort the recovery while an ack quorum is left of every write set; the length
of an end that was not rewritten is read from that entry.
"""

import enum
from collections.abc import Mapping, Sequence

from bkctl.errors import (
    BkctlError,
    BookKeeperError,
    DigestMatchError,
    LedgerRecoveryError,
    NotEnoughBookiesError,
    UnauthorizedAccessError,
)
from bkctl.formats.entry import Digester, read_header
from bkctl.formats.frame import FRAME_BYTES_MAX
from bkctl.formats.request_v2 import HIGH_PRIORITY, RECOVERY_ADD
from bkctl.quorum.actions import (
    Action,
    ChooseReplacements,
    FenceBookie,
    ReadForRecovery,
    RecoveryAborted,
    RecoveryDone,
    RecoveryOutdated,
    WriteMetadata,
)
from bkctl.quorum.ensemble import replace_bookies, with_ensemble
from bkctl.quorum.lac import NEGATIVE, Coverage, LacCoverage
from bkctl.quorum.metadata_update import MetadataUpdate
from bkctl.quorum.pending import PendingAdds
from bkctl.quorum.reads import Recoverable, RecoveryRead
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    BookieIndex,
    EntryId,
    LedgerId,
    LedgerMetadata,
    MetadataState,
    Segment,
    Versioned,
)

WINDOW_ENTRIES = 64  # read ahead of, or rewritten but not yet stored after, the last stored entry


class RecoveryState(enum.Enum):
    MARKING = "marking"  # the metadata IN_RECOVERY
    FENCING = "fencing"
    REWRITING = "rewriting"  # the end is not known yet
    DRAINING = "draining"  # the end is known, adds or its length are on their way
    CLOSING = "closing"
    DONE = "done"  # or aborted, or outdated


class _SegmentsChangedError(Exception):
    """Somebody replaced bookies of the ledger's segments during the recovery."""


class LedgerRecovery:
    """One attempt; after RecoveryOutdated begin another. Every method returns the actions to carry out.

    At most `window_entries` are read ahead of the last one that is stored anew. `lac_by_bookie` and
    `entries_rewritten` tell what was found.
    """

    def __init__(
        self,
        ledger_id: LedgerId,
        metadata: Versioned[LedgerMetadata],
        digester: Digester,
        *,
        fence_only: bool = False,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        window_entries: int = WINDOW_ENTRIES,
    ) -> None:
        self.ledger_id = ledger_id
        self.state = RecoveryState.MARKING
        self.lac_by_bookie: dict[BookieId, EntryId | BookKeeperError] = {}
        self.entries_rewritten = 0
        self._digester = digester
        self._fence_only = fence_only
        self._frame_bytes_max = frame_bytes_max
        self._window_entries = window_entries
        self._schedule = RoundRobinSchedule.of(metadata.value)
        self._metadata = metadata
        self._update: MetadataUpdate | None = None
        self._coverage = LacCoverage(self._schedule)
        self._frozen_lac = INVALID_ENTRY_ID
        self._end: EntryId | None = None
        self._lengths: dict[EntryId, int] = {}  # of entries seen, by id
        self._reads: dict[EntryId, RecoveryRead] = {}
        self._segments: tuple[Segment, ...] = metadata.value.segments  # with local replacements
        self._pending: PendingAdds | None = None
        self._replacing: dict[BookieIndex, BookieId] = {}
        self._failed: dict[BookieIndex, BookieId] = {}
        self._excluded: set[BookieId] = set()

    @property
    def metadata(self) -> LedgerMetadata:
        """As last seen in the store."""
        return self._metadata.value

    @property
    def ensemble(self) -> tuple[BookieId, ...]:
        """Where rewritten entries go."""
        return self._segments[-1].ensemble

    # -- marking and fencing ---------------------------------------------------------------------

    def start(self) -> list[Action]:
        return self._write(MetadataUpdate(self._metadata, _in_recovery))

    def _freeze(self) -> list[Action]:
        """Fix the segments that are read from now on, and fence the last of them."""
        if self.metadata.closed:
            return self._finish(RecoveryDone(self._metadata))
        self.state = RecoveryState.FENCING
        self._segments = self.metadata.segments
        ensemble = self.metadata.last_segment.ensemble
        return [FenceBookie(BookieIndex(index), bookie_id) for index, bookie_id in enumerate(ensemble)]

    def fenced(self, index: BookieIndex, answer: bytes | BookKeeperError) -> list[Action]:
        """The bookie at `index` answered a FenceBookie: its last entry, or an error."""
        if self.state in (RecoveryState.CLOSING, RecoveryState.DONE):
            return []
        bookie_id = self.metadata.last_segment.ensemble[index]
        if isinstance(answer, bytes):
            try:
                header = self._digester.open_last_entry(answer, self.ledger_id)
            except DigestMatchError as error:  # fenced all the same, but its LAC is worth nothing
                lac: EntryId | BookKeeperError = error
            else:
                lac = EntryId(header.lac)
                self._lengths[EntryId(header.entry_id)] = header.length
        else:
            lac = INVALID_ENTRY_ID if isinstance(answer, NEGATIVE) else answer
        self.lac_by_bookie.setdefault(bookie_id, lac)
        if self.state is not RecoveryState.FENCING:
            return []
        if isinstance(answer, BookKeeperError):
            coverage = self._coverage.failed(index, answer)
        else:
            known = INVALID_ENTRY_ID if isinstance(lac, BookKeeperError) else lac
            coverage = self._coverage.answered(index, known)
        if coverage is Coverage.FAILED:
            assert self._coverage.error is not None
            return self._abort(self._coverage.error)
        return self._begin_rewriting() if coverage is Coverage.COVERED else []

    def _begin_rewriting(self) -> list[Action]:
        if self._fence_only:
            return self._finish(RecoveryDone(self._metadata))
        self.state = RecoveryState.REWRITING
        # Segments before the last one are complete, whatever a young last one says (#2615).
        before_last = self.metadata.last_segment.first_entry_id - 1
        self._frozen_lac = EntryId(max(self._coverage.last_add_confirmed, before_last))
        self._pending = PendingAdds(self._schedule, self.ensemble, self._frozen_lac, self._digester)
        return self._read_ahead()

    # -- reading ---------------------------------------------------------------------------------

    def _read_ahead(self) -> list[Action]:
        assert self._pending is not None
        first = max(self._reads, default=self._pending.last_pushed) + 1
        last = self._pending.acked + self._window_entries
        if self.state is not RecoveryState.REWRITING or first > last:
            return []
        return self._read([EntryId(entry_id) for entry_id in range(first, last + 1)])

    def _read(self, entry_ids: Sequence[EntryId]) -> list[Action]:
        wanted: dict[tuple[BookieIndex, BookieId], list[EntryId]] = {}
        for entry_id in entry_ids:
            self._reads[entry_id] = RecoveryRead(self._schedule, entry_id)
            ensemble = self.metadata.segment_at(entry_id).ensemble
            for index in self._schedule.write_set(entry_id):
                wanted.setdefault((index, ensemble[index]), []).append(entry_id)
        return [ReadForRecovery(index, bookie, tuple(ids)) for (index, bookie), ids in wanted.items()]

    def entry_read(
        self, index: BookieIndex, entry_id: EntryId, answer: bytes | BookKeeperError
    ) -> list[Action]:
        """The bookie at `index` answered for one entry of a ReadForRecovery."""
        read = self._reads.get(entry_id)
        if read is None:
            return []  # decided, or beyond the end
        if isinstance(answer, bytes):
            try:
                self._digester.open_entry(answer, self.ledger_id, entry_id)
            except DigestMatchError as error:
                read.failed(index, error)
            else:
                read.found(index, answer)
        else:
            read.failed(index, answer)
        if self.state is RecoveryState.DRAINING:
            return self._end_read(entry_id, read)
        return self._take_entries()

    def _take_entries(self) -> list[Action]:
        """Rewrite what is decided, in order; stop at the first entry that nobody can have acked."""
        assert self._pending is not None
        actions: list[Action] = []
        while self.state is RecoveryState.REWRITING:
            entry_id = EntryId(self._pending.last_pushed + 1)
            read = self._reads.get(entry_id)
            if read is None or read.state is Recoverable.PENDING:
                break
            if read.state is Recoverable.UNKNOWN:
                assert read.error is not None
                return self._abort(read.error)
            if read.state is Recoverable.ABSENT:
                return actions + self._end_found(EntryId(entry_id - 1))
            assert read.body is not None
            del self._reads[entry_id]
            try:
                actions += self._rewrite(entry_id, read.body)
            except BookKeeperError as error:
                return self._abort(error)
        return actions + self._read_ahead()

    def _rewrite(self, entry_id: EntryId, body: bytes) -> list[Action]:
        assert self._pending is not None
        payload = self._digester.open_entry(body, self.ledger_id, entry_id)
        length = read_header(body).length
        parts, after = self._digester.pack_adds(
            self.ledger_id,
            entry_id,
            self._frozen_lac,
            length - len(payload),
            [payload],
            flags=RECOVERY_ADD | HIGH_PRIORITY,
            frame_bytes_max=self._frame_bytes_max,
        )
        assert after == length
        self._lengths[entry_id] = length
        self.entries_rewritten += 1
        actions: list[Action] = []
        if self._failed and not self._replacing:
            actions += self._choose_replacements()
        return actions + list(self._pending.push(entry_id, parts, self._replacing.keys()))

    def _end_found(self, end: EntryId) -> list[Action]:
        self._end = end
        self._reads.clear()
        self.state = RecoveryState.DRAINING
        if end == INVALID_ENTRY_ID:
            self._lengths[end] = 0
        if end not in self._lengths:
            return self._read([end])
        return self._settle()

    def _end_read(self, entry_id: EntryId, read: RecoveryRead) -> list[Action]:
        """The last entry was confirmed before the recovery: only its length is missing."""
        if read.body is not None:
            del self._reads[entry_id]
            self._lengths[entry_id] = read_header(read.body).length
            return self._settle()
        if not read.exhausted:
            return []
        return self._abort(
            LedgerRecoveryError(f"ledger {self.ledger_id}: confirmed entry {entry_id} is lost: {read.error}")
        )

    # -- rewriting -------------------------------------------------------------------------------

    def stored(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> list[Action]:
        """A bookie stored its rewritten entries among first..last."""
        if self._pending is None:
            return []
        self._pending.store(bookie_id, first_entry_id, last_entry_id)
        return self._settle()

    def _settle(self) -> list[Action]:
        """Go on after entries were stored, bookies were replaced or the end was found."""
        assert self._pending is not None
        if self._replacing or self.state not in (RecoveryState.REWRITING, RecoveryState.DRAINING):
            return []
        self._pending.drain()
        if self.state is RecoveryState.REWRITING:
            return self._read_ahead()
        if self._end not in self._lengths or self._pending.acked < self._pending.last_pushed:
            return []
        assert self._pending.acked == self._end
        self.state = RecoveryState.CLOSING
        return self._write(MetadataUpdate(self._metadata, self._as_closed))

    def failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> list[Action]:
        """A bookie refused a rewritten entry, or it is unknown whether it stored it."""
        if self._pending is None or self.state not in (RecoveryState.REWRITING, RecoveryState.DRAINING):
            return []
        index = self._pending.index_of.get(bookie_id)
        if index is None or self._replacing.get(index) == bookie_id or bookie_id in self._excluded:
            return []
        if isinstance(error, UnauthorizedAccessError):
            return self._abort(error)
        self._failed[index] = bookie_id
        if self._replacing or self._pending.acked == self._pending.last_pushed:
            return []  # replaced after this change, or before the next add
        return self._choose_replacements()

    def bookie_failed(self, bookie_id: BookieId, error: BookKeeperError) -> list[Action]:
        """A bookie is gone or late: whatever was sent to it and not answered is unknown."""
        if self._pending is None or bookie_id not in self._pending.index_of:
            return []
        outstanding = self._pending.first_outstanding(self._pending.index_of[bookie_id])
        return [] if outstanding is None else self.failed(bookie_id, outstanding, error)

    def behind(self, admitted: int) -> list[BookieId]:
        """Bookies that have not stored all of the first `admitted` rewritten entries."""
        if self._pending is None or self._replacing:
            return []
        return [b for b in self._pending.behind(admitted) if b not in self._excluded]

    @property
    def admitted(self) -> int:
        """Entries rewritten so far; a mark for `behind`."""
        return self._pending.admitted if self._pending is not None else 0

    def _choose_replacements(self) -> list[Action]:
        self._replacing, self._failed = self._failed, {}
        self._excluded |= set(self._replacing.values())
        return [ChooseReplacements(dict(self._replacing), frozenset(self._excluded.union(self.ensemble)))]

    def replacements_chosen(self, chosen: Mapping[BookieIndex, BookieId]) -> list[Action]:
        """The answer to ChooseReplacements; an index that is missing keeps its bookie, and does without."""
        if self.state not in (RecoveryState.REWRITING, RecoveryState.DRAINING) or self._pending is None:
            return []
        first = EntryId(self._pending.acked + 1)
        ensemble = replace_bookies(self.ensemble, self._replacing, chosen)
        replaced = [index for index in self._replacing if ensemble[index] != self.ensemble[index]]
        if replaced:
            self._segments = with_ensemble(self._segments, first, ensemble)
        live = [BookieIndex(i) for i, bookie_id in enumerate(ensemble) if bookie_id not in self._excluded]
        if not self._schedule.every_write_set_has(self._schedule.ack_quorum_size, live):
            names = ", ".join(sorted(self._replacing.values()))
            return self._abort(NotEnoughBookiesError(f"no bookie is left to replace {names}"))
        self._replacing = {}
        actions: list[Action] = list(self._pending.replace(ensemble, replaced))
        if self._failed:
            return actions + self._choose_replacements()
        return actions + self._settle()

    # -- metadata --------------------------------------------------------------------------------

    def _write(self, update: MetadataUpdate) -> list[Action]:
        assert self.state in (RecoveryState.MARKING, RecoveryState.CLOSING), self.state
        self._update = update
        return self._proceed(update.start())

    def _proceed(self, write: WriteMetadata | None) -> list[Action]:
        return [write] if write is not None else self._update_done()

    def metadata_written(self, version: int) -> list[Action]:
        """The last WriteMetadata succeeded."""
        assert self._update is not None
        self._update.written(version)
        return self._update_done()

    def metadata_conflict(self, current: Versioned[LedgerMetadata]) -> list[Action]:
        """The last WriteMetadata was refused, or its outcome is unknown; the store holds `current`."""
        assert self._update is not None
        try:
            return self._proceed(self._update.conflict(current))
        except _SegmentsChangedError:
            return self._finish(RecoveryOutdated(current))

    def metadata_failed(self, error: BkctlError) -> list[Action]:
        """The metadata store, or the list of bookies, cannot be had; or the ledger was deleted."""
        return self._abort(error)

    def _update_done(self) -> list[Action]:
        update, self._update = self._update, None
        assert update is not None
        self._metadata = update.current
        if self.state is RecoveryState.MARKING:
            return self._freeze()
        return self._finish(RecoveryDone(self._metadata))

    def _as_closed(self, metadata: LedgerMetadata) -> LedgerMetadata | None:
        if metadata.closed:
            return None  # by us, by a rival or by the writer: its end is the end
        if metadata.state is not MetadataState.IN_RECOVERY or metadata.segments != self.metadata.segments:
            raise _SegmentsChangedError
        assert self._end is not None
        return metadata.with_segments(self._segments).with_closed(self._end, self._lengths[self._end])

    # -- the end ---------------------------------------------------------------------------------

    def _abort(self, error: BkctlError) -> list[Action]:
        return self._finish(RecoveryAborted(error))

    def _finish(self, outcome: RecoveryDone | RecoveryAborted | RecoveryOutdated) -> list[Action]:
        if self.state is RecoveryState.DONE:
            return []
        self.state = RecoveryState.DONE
        self._reads.clear()
        return [outcome]


def _in_recovery(metadata: LedgerMetadata) -> LedgerMetadata | None:
    if metadata.state is MetadataState.OPEN:
        return metadata.with_state(MetadataState.IN_RECOVERY)
    return None
