"""The writer of a ledger: pipelined adds, ordered acknowledgement, ensemble changes, close.

    OPEN ──bookie failure──▶ CHANGING ──metadata written, all pending adds moved──▶ OPEN
      │                         │
      ├── close, terminal error ┴──▶ CLOSING ──metadata written or refused──▶ CLOSED
      └── fenced, or metadata IN_RECOVERY ──▶ WITHDRAWN

Laws:
- Ids are handed out and pending adds join the current ensemble in one step.
- Nothing is acknowledged while the ensemble changes: entries above the LAC belong to the new
  segment from the instant its metadata is stored, and must be on its bookies before they count.
- The ensemble never changes here before the metadata store has accepted it.
- A fenced writer withdraws and leaves the metadata to whoever fenced it.
- Every add gets exactly one outcome; successes come in the order of the ids.

Pure: no clock, no socket. Source: spec replication sections 5, 6, 7, 9, 10, 17.1, 18; upstream
LedgerHandle, PendingAddOp. A failed bookie is replaced at once when an unacknowledged entry needs it,
otherwise when the next add is made; with `delay_ensemble_change` as late as possible. Differs: a
bookie for which there is no replacement is left out while every write set keeps an ack quorum without
it, as with upstream's delayed ensemble change.
"""

import enum
from collections.abc import Callable, Collection, Mapping, Sequence

from bkctl.errors import (
    AddEntryQuorumTimeoutError,
    BkctlError,
    BookKeeperError,
    DuplicateEntryIdError,
    IllegalOperationError,
    IncorrectParameterError,
    LedgerClosedError,
    LedgerFencedError,
    MetadataVersionError,
    NotEnoughBookiesError,
    UnauthorizedAccessError,
    WriteError,
    WriteOnReadOnlyBookieError,
)
from bkctl.formats.entry import Digester
from bkctl.formats.frame import FRAME_BYTES_MAX
from bkctl.quorum.actions import (
    Action,
    ChooseReplacements,
    CloseDone,
    EnsembleChanged,
    ForcePoint,
    WriteMetadata,
)
from bkctl.quorum.ensemble import differing_indexes, replace_bookies, with_ensemble
from bkctl.quorum.metadata_update import MetadataUpdate
from bkctl.quorum.pending import PendingAdds
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.quorum.tolerated import ToleratedFailures
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    BookieIndex,
    EntryId,
    LedgerId,
    LedgerMetadata,
    MetadataState,
    Versioned,
)

Payload = bytes | bytearray | memoryview

# One such answer ends the ledger handle; every other failure is the bookie's alone.
_TERMINAL = (UnauthorizedAccessError, IllegalOperationError)


class WriterState(enum.Enum):
    OPEN = "open"
    CHANGING = "changing"  # the ensemble; acknowledgements wait
    CLOSING = "closing"
    CLOSED = "closed"
    WITHDRAWN = "withdrawn"  # fenced


class LedgerAdds:
    """The machine behind one writing handle of a new ledger.

    `advanced`: the caller chooses entry ids. `deferred_sync`: acknowledged adds are durable, and
    count as confirmed, only after a force. `ensemble_changes_max` None: no limit. `delay_ensemble_change`:
    a failed bookie is replaced only when an entry lacks its ack quorum otherwise, or the bookie is
    read-only.
    Every method returns the actions to carry out, in order.
    """

    def __init__(
        self,
        ledger_id: LedgerId,
        metadata: Versioned[LedgerMetadata],
        digester: Digester,
        *,
        advanced: bool = False,
        deferred_sync: bool = False,
        ensemble_changes_max: int | None = None,
        delay_ensemble_change: bool = False,
        frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> None:
        assert metadata.value.state is MetadataState.OPEN, metadata
        self.ledger_id = ledger_id
        self.state = WriterState.OPEN
        self._metadata = metadata
        self._digester = digester
        self._advanced = advanced
        self._deferred_sync = deferred_sync
        self._changes_max = ensemble_changes_max
        self._delay_change = delay_ensemble_change
        self._frame_bytes_max = frame_bytes_max
        self.ensemble_changes = 0
        self.last_add_confirmed = INVALID_ENTRY_ID
        self.length = 0  # payload bytes of all adds made, pending ones included
        self._confirmed_length = 0  # deferred sync only: length at the last add confirmed
        self._lac_sent = INVALID_ENTRY_ID  # carried by an add or an explicit LAC
        self._delayed: dict[BookieIndex, BookieId] = {}  # failed, but no pending add needs them
        self._failed: dict[BookieIndex, BookieId] = {}  # to be replaced next
        self._replacing: dict[BookieIndex, BookieId] = {}  # being replaced
        self.absent: dict[BookieIndex, BookieId] = {}  # failed without replacement: sent nothing, see `retry`
        self._excluded: set[BookieId] = set()  # failed since the running change began
        self._ensemble_before: tuple[BookieId, ...] = ()
        self._chosen: Mapping[BookieIndex, BookieId] = {}
        self._update: MetadataUpdate | None = None  # a metadata write is on its way
        self._error: BkctlError | None = None  # why the writer gave up
        self._schedule = RoundRobinSchedule.of(metadata.value)
        self._tolerated = ToleratedFailures(self._schedule)
        self._pending = PendingAdds(
            self._schedule,
            metadata.value.last_segment.ensemble,
            INVALID_ENTRY_ID,
            digester,
            advanced=advanced,
        )

    @property
    def metadata(self) -> LedgerMetadata:
        """As last seen in the store."""
        return self._metadata.value

    @property
    def ensemble(self) -> tuple[BookieId, ...]:
        return self._pending.ensemble

    @property
    def last_add_pushed(self) -> EntryId:
        return self._pending.last_pushed

    @property
    def last_acked(self) -> EntryId:
        """The last entry whose adder was told that it is stored."""
        return self._pending.acked

    @property
    def pending_entries(self) -> int:
        return self._pending.entries

    @property
    def pending_bytes(self) -> int:
        return self._pending.bytes

    @property
    def admitted(self) -> int:
        """Adds made so far; a mark for `behind`."""
        return self._pending.admitted

    def behind(self, admitted: int) -> list[BookieId]:
        """Bookies that have not stored all of the first `admitted` adds and are not being replaced."""
        if self.state is not WriterState.OPEN:
            return []
        failed = self._delayed.keys() | self.absent.keys()
        return [b for b in self._pending.behind(admitted) if self._index_of(b) not in failed]

    # -- adds ------------------------------------------------------------------------------------

    def add(
        self, payloads: Sequence[Payload], first_entry_id: EntryId | None = None
    ) -> tuple[EntryId, list[Action]]:
        """Add consecutive entries; the id of the first. `first_entry_id` belongs to advanced handles,
        which add one entry at a time.

        Raises:
            LedgerClosedError: closed, given up or fenced; nothing was added.
            DuplicateEntryIdError, IllegalOperationError: see spec section 9.
            IncorrectParameterError: no payload, or one that does not fit a frame.
        """
        if self.state not in (WriterState.OPEN, WriterState.CHANGING):
            raise LedgerClosedError(f"ledger {self.ledger_id} is not open for adds")
        first = self._admit(payloads, first_entry_id)
        parts, length = self._digester.pack_adds(
            self.ledger_id,
            first,
            self.last_add_confirmed,
            self.length,
            payloads,
            frame_bytes_max=self._frame_bytes_max,
        )
        self.length = length
        self._lac_sent = self.last_add_confirmed
        skip = self._delayed.keys() | self._failed.keys() | self._replacing.keys() | self.absent.keys()
        actions: list[Action] = list(self._pending.push(first, parts, skip))
        if self._delayed and self.state is WriterState.OPEN:
            self._failed |= self._delayed
            self._delayed.clear()
            actions += self._begin_change()
        return first, actions

    def _admit(self, payloads: Sequence[Payload], first_entry_id: EntryId | None) -> EntryId:
        if not payloads:
            raise IncorrectParameterError("no payload to add")
        if not self._advanced:
            if first_entry_id is not None:
                raise IllegalOperationError("this ledger chooses its entry ids itself")
            return EntryId(self._pending.last_pushed + 1)
        if first_entry_id is None:
            raise IllegalOperationError("the caller of this ledger chooses the entry ids")
        if first_entry_id <= self._pending.acked or self._pending.contains(first_entry_id):
            raise DuplicateEntryIdError(f"ledger {self.ledger_id} entry {first_entry_id} was added before")
        if len(payloads) != 1:
            raise IncorrectParameterError("one entry at a time when the caller chooses its id")
        return first_entry_id

    def stored(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> list[Action]:
        """A bookie answered OK to its entries among first..last, all durable unless syncs are deferred.

        A bookie that was replaced meanwhile is ignored; one that came back counts: it holds them.
        """
        self._pending.store(bookie_id, first_entry_id, last_entry_id)
        return self._drain() if self.state is WriterState.OPEN else []

    def _drain(self) -> list[Action]:
        assert self.state is WriterState.OPEN
        assert self._pending.ensemble == self.metadata.last_segment.ensemble
        acked = self._pending.drain()
        if acked is None:
            return []
        if not self._deferred_sync:
            self._confirm(acked.last_entry_id)
        return [acked]

    def _confirm(self, entry_id: EntryId) -> None:
        assert entry_id >= self.last_add_confirmed, (entry_id, self.last_add_confirmed)
        self.last_add_confirmed = entry_id

    # -- failures and ensemble changes -----------------------------------------------------------

    def failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> list[Action]:
        """A bookie refused one entry, or it is unknown whether it stored it."""
        if self.state not in (WriterState.OPEN, WriterState.CHANGING):
            return []
        if isinstance(error, LedgerFencedError):
            return self._withdraw(error)
        index = self._index_of(bookie_id)
        if index is None or index in self.absent:
            return []
        if isinstance(error, _TERMINAL):
            return self._give_up(error)
        if self._deferred_sync:
            return self._give_up(WriteError(f"bookie {bookie_id} failed under deferred sync: {error}"))
        if self.state is WriterState.CHANGING:
            if self._replacing.get(index) != bookie_id:
                self._failed[index] = bookie_id
            return []
        if self._delay_change:
            return self._tolerate(index, bookie_id, entry_id, error)
        if entry_id <= self._pending.acked:
            self._delayed[index] = bookie_id
            return []
        self._failed = {**self._delayed, index: bookie_id}
        self._delayed.clear()
        return self._begin_change()

    def _tolerate(
        self, index: BookieIndex, bookie_id: BookieId, entry_id: int, error: BookKeeperError
    ) -> list[Action]:
        """Delayed ensemble change: replace what failed once an entry can't reach its ack quorum."""
        self._tolerated.note(index, bookie_id, entry_id)
        failed = self._tolerated.pending(self.ensemble, self._pending.acked)
        gone = failed.keys() | self.absent.keys()
        if not isinstance(error, WriteOnReadOnlyBookieError) and (
            index not in failed or self._tolerated.bearable(len(self.ensemble), gone)
        ):
            return []
        self._failed = {**failed, index: bookie_id}
        self._tolerated.clear()
        return self._begin_change()

    def bookie_failed(self, bookie_id: BookieId, error: BookKeeperError) -> list[Action]:
        """A bookie is gone or late: whatever was sent to it and not answered is unknown.

        Under deferred sync that goes for what it answered, too: a bookie that comes back has lost what
        was not synced, and would answer a force all the same.
        """
        index = self._index_of(bookie_id)
        if self._deferred_sync and index is not None and self.last_add_pushed > self.last_add_confirmed:
            return self.failed(bookie_id, self.last_add_pushed, error)
        outstanding = self._pending.first_outstanding(index) if index is not None else None
        if outstanding is None:
            return []
        if self._delay_change or outstanding <= self._pending.acked < self._pending.last_pushed:
            outstanding = self._pending.last_pushed  # pending entries are among them
        return self.failed(bookie_id, outstanding, error)

    def _index_of(self, bookie_id: BookieId) -> BookieIndex | None:
        return self._pending.index_of.get(bookie_id)

    def _begin_change(self) -> list[Action]:
        assert self.state is WriterState.OPEN
        self.state = WriterState.CHANGING
        self._ensemble_before = self._pending.ensemble
        self._excluded.clear()
        return self._choose_replacements()

    def _choose_replacements(self) -> list[Action]:
        assert self.state is WriterState.CHANGING
        assert self._failed
        self.ensemble_changes += 1
        if self._changes_max is not None and self.ensemble_changes > self._changes_max:
            return self._give_up(WriteError(f"more than {self._changes_max} ensemble changes"))
        self._replacing |= self._failed
        self._failed.clear()
        self._excluded |= set(self._replacing.values())
        ensemble = self.metadata.last_segment.ensemble
        failed = {index: b for index, b in self._replacing.items() if ensemble[index] == b}
        return [ChooseReplacements(failed, frozenset(self._excluded.union(ensemble)))]

    def replacements_chosen(self, chosen: Mapping[BookieIndex, BookieId]) -> list[Action]:
        """The answer to ChooseReplacements; an index that is missing has no replacement."""
        if self.state is not WriterState.CHANGING or self._update is not None:
            return []  # given up meanwhile
        if not chosen:
            return self._change_stored()
        self._chosen = chosen
        return self._write(MetadataUpdate(self._metadata, self._with_replacements))

    def _with_replacements(self, metadata: LedgerMetadata) -> LedgerMetadata | None:
        if metadata.state is MetadataState.CLOSED:
            raise LedgerClosedError(f"ledger {self.ledger_id} was closed by another program")
        if metadata.state is MetadataState.IN_RECOVERY:
            raise LedgerFencedError(f"ledger {self.ledger_id} is being recovered by another program")
        before = metadata.last_segment.ensemble
        ensemble = replace_bookies(before, self._replacing, self._chosen)
        if ensemble == before:
            return None
        first = EntryId(self._pending.acked + 1)
        return metadata.with_segments(with_ensemble(metadata.segments, first, ensemble))

    def _change_stored(self) -> list[Action]:
        """The store holds the new ensemble: move every pending add to it, then acknowledge."""
        assert self.state is WriterState.CHANGING
        ensemble = self.metadata.last_segment.ensemble
        self._failed = {i: b for i, b in self._failed.items() if ensemble[i] == b}
        if self._failed:
            return self._choose_replacements()
        kept = {i: b for i, b in (self.absent | self._replacing).items() if ensemble[i] == b}
        live = [BookieIndex(i) for i in range(len(ensemble)) if BookieIndex(i) not in kept]
        if not self._schedule.every_write_set_has(self._schedule.ack_quorum_size, live):
            names = ", ".join(sorted(kept.values()))
            return self._give_up(NotEnoughBookiesError(f"no bookie is left to replace {names}"))
        self.absent, self._replacing = kept, {}
        self.state = WriterState.OPEN
        return self._move_to(ensemble, differing_indexes(self._ensemble_before, ensemble))

    def _move_to(self, ensemble: tuple[BookieId, ...], resend: Collection[BookieIndex]) -> list[Action]:
        """Send everything pending to the indexes in `resend`; only then acknowledge anything."""
        actions: list[Action] = []
        if resend:
            first = EntryId(self._pending.acked + 1)
            actions.append(EnsembleChanged(first, ensemble, tuple(ensemble[i] for i in sorted(resend))))
            actions += self._pending.replace(ensemble, resend)
        return [*actions, *self._drain()]

    def retry(self, writable: Collection[BookieId]) -> list[Action]:
        """Take back absent bookies that are `writable` now, or replace them; call it now and then."""
        if self.state is not WriterState.OPEN or not self.absent:
            return []
        back = {index for index, bookie_id in self.absent.items() if bookie_id in writable}
        self.absent = {index: b for index, b in self.absent.items() if index not in back}
        actions = self._move_to(self.ensemble, back) if back else []
        if self.absent and set(writable).difference(self.ensemble):
            self._failed |= self.absent
            self.absent = {}
            actions += self._begin_change()
        return actions

    # -- metadata --------------------------------------------------------------------------------

    def _write(self, update: MetadataUpdate) -> list[Action]:
        assert self._update is None
        self._update = update
        return self._proceed(update.start)

    def metadata_written(self, version: int) -> list[Action]:
        """The last WriteMetadata succeeded."""
        update = self._update
        assert update is not None
        update.written(version)
        return self._update_done()

    def metadata_conflict(self, current: Versioned[LedgerMetadata]) -> list[Action]:
        """The last WriteMetadata was refused, or its outcome is unknown; the store holds `current`."""
        update = self._update
        assert update is not None
        if self.state is WriterState.CHANGING or self._is_closing(update):
            return self._proceed(lambda: update.conflict(current))
        update.current = current
        return self._update_done()

    def metadata_failed(self, error: BkctlError) -> list[Action]:
        """The metadata store, or the list of bookies, cannot be had."""
        update, self._update = self._update, None
        if self.state is WriterState.CHANGING:
            return self._give_up(error)
        if self.state is WriterState.CLOSING:
            if update is not None and not self._is_closing(update):
                return self._start_close()
            return self._closed(error)
        return []

    def _proceed(self, step: Callable[[], WriteMetadata | None]) -> list[Action]:
        try:
            write = step()
        except BookKeeperError as error:
            return self._update_refused(error)
        return [write] if write is not None else self._update_done()

    def _update_done(self) -> list[Action]:
        update, self._update = self._update, None
        assert update is not None
        self._metadata = update.current
        if self.state is WriterState.CHANGING:
            return self._change_stored()
        if self.state is WriterState.CLOSING:
            return self._closed(None) if self._is_closing(update) else self._start_close()
        return []

    def _update_refused(self, error: BookKeeperError) -> list[Action]:
        update, self._update = self._update, None
        assert update is not None
        self._metadata = update.current
        if self.state is WriterState.CLOSING:
            return self._closed(error)
        return self._withdraw(error) if isinstance(error, LedgerFencedError) else self._give_up(error)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> list[Action]:
        """Fail what is pending and close the ledger at its last add confirmed; CloseDone follows.

        A second close joins the first. After WITHDRAWN there is nothing to close: see `error`.
        """
        if self.state in (WriterState.OPEN, WriterState.CHANGING):
            return self._give_up(LedgerClosedError(f"ledger {self.ledger_id} was closed"))
        return []

    def quorum_timed_out(self) -> list[Action]:
        """An add has waited for its ack quorum longer than its caller allows."""
        if self.state in (WriterState.OPEN, WriterState.CHANGING):
            entry_id = self._pending.acked + 1
            return self._give_up(
                AddEntryQuorumTimeoutError(
                    f"ledger {self.ledger_id} entry {entry_id}: no ack quorum has stored it in time"
                )
            )
        return []

    def abandon(self, error: BkctlError) -> list[Action]:
        """Fail what is pending and forget the ledger, leaving its metadata as it is."""
        if self.state in (WriterState.OPEN, WriterState.CHANGING):
            return self._withdraw(error)
        return []

    @property
    def error(self) -> BkctlError | None:
        """Why the handle takes no adds any more; None while it does."""
        return self._error

    def _withdraw(self, error: BkctlError) -> list[Action]:
        self.state = WriterState.WITHDRAWN
        return self._fail_pending(error)

    def _give_up(self, error: BkctlError) -> list[Action]:
        self.state = WriterState.CLOSING
        actions = self._fail_pending(error)
        # A running ensemble change must end first, or it could land after the close.
        return actions if self._update is not None else [*actions, *self._start_close()]

    def _fail_pending(self, error: BkctlError) -> list[Action]:
        self._error = error
        self.length -= self._pending.payload_bytes()
        if not self._deferred_sync:
            self._confirmed_length = self.length
        return list(self._pending.fail_all(error))

    def _start_close(self) -> list[Action]:
        return self._write(MetadataUpdate(self._metadata, self._as_closed))

    def _is_closing(self, update: MetadataUpdate) -> bool:
        return update.change == self._as_closed

    def _as_closed(self, metadata: LedgerMetadata) -> LedgerMetadata | None:
        last, length = self.last_add_confirmed, self._confirmed_length
        if metadata.closed:
            if (metadata.last_entry_id, metadata.length) == (last, length):
                return None
            raise MetadataVersionError(
                f"ledger {self.ledger_id} was closed by another program at entry {metadata.last_entry_id} "
                f"(length {metadata.length}); this writer's end is entry {last} (length {length})"
            )
        return metadata.with_closed(last, length)

    def _closed(self, error: BkctlError | None) -> list[Action]:
        assert self.state is WriterState.CLOSING
        self.state = WriterState.CLOSED
        self.length = self._confirmed_length
        return [CloseDone(error)]

    # -- force and explicit LAC ------------------------------------------------------------------

    def force_point(self) -> ForcePoint | None:
        """What a force called now must make durable on every bookie; None: nothing is acknowledged.

        Raises:
            LedgerClosedError
        """
        if self.state not in (WriterState.OPEN, WriterState.CHANGING):
            raise LedgerClosedError(f"ledger {self.ledger_id} is not open")
        if self._pending.acked == INVALID_ENTRY_ID:
            return None
        length = self.length - self._pending.payload_bytes()
        return ForcePoint(self._pending.acked, length, self._pending.ensemble)

    def forced(self, point: ForcePoint) -> None:
        """Every bookie of the ensemble has synced everything up to `point`.

        Raises:
            LedgerClosedError: too late, the ledger ends, or was closed, before `point`.
        """
        if point.entry_id > self.last_add_confirmed:
            if self.state not in (WriterState.OPEN, WriterState.CHANGING):
                raise LedgerClosedError(
                    f"ledger {self.ledger_id} ends at entry {self.last_add_confirmed}; the force up to "
                    f"entry {point.entry_id} came too late"
                )
            self._confirm(point.entry_id)
            self._confirmed_length = point.length

    def explicit_lac_due(self) -> EntryId | None:
        """The LAC to tell the bookies, if no add has carried it; call it once per interval."""
        if self.state is not WriterState.OPEN or self._lac_sent >= self.last_add_confirmed:
            return None
        self._lac_sent = self.last_add_confirmed
        return self.last_add_confirmed
