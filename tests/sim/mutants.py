"""Known defects, put back on purpose: proof that the simulator would find them.

Each is a patch that only tests can apply, with the profile that finds it fastest and the number of
seeds within which it must be found. M: spec replication section 15; S: found by this simulator.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from bkctl.errors import NoSuchEntryError
from bkctl.formats import journal as journal_format
from bkctl.quorum.actions import WriteMetadata
from bkctl.quorum.adds import LedgerAdds, WriterState
from bkctl.quorum.metadata_update import MetadataUpdate
from bkctl.quorum.pending import PendingAdds
from bkctl.quorum.reads import RecoveryRead
from bkctl.quorum.recovery import LedgerRecovery
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.server.bookie import Bookie
from bkctl.server.storage.directory_storage import DirectoryStorage
from bkctl.types import EntryId, MetadataState, Versioned
from tests.sim import oracle
from tests.sim.bookie_node import BookieNode, SimJournal
from tests.sim.generator import plan_of
from tests.sim.plan import Plan
from tests.sim.programs import Recoverer
from tests.sim.story import ViolationError, run


@contextmanager
def _reads_without_fence() -> Iterator[None]:
    init = Recoverer.__init__

    def unfenced(self: Recoverer, *arguments: object) -> None:
        init(self, *arguments)  # type: ignore[arg-type]
        self.fences = False

    with patch.object(Recoverer, "__init__", unfenced):
        yield


@contextmanager
def _no_floor() -> Iterator[None]:
    begin = LedgerRecovery._begin_rewriting

    def without(self: LedgerRecovery) -> object:
        last = self._metadata.value.last_segment.first_entry_id
        if self._coverage.last_add_confirmed >= last - 1:
            return begin(self)
        actions = begin(self)
        self._frozen_lac = EntryId(self._coverage.last_add_confirmed)
        self._pending = PendingAdds(self._schedule, self.ensemble, self._frozen_lac, self._digester)
        self._reads.clear()
        del actions
        return self._read_ahead()

    with patch.object(LedgerRecovery, "_begin_rewriting", without):
        yield


@contextmanager
def _acks_while_changing() -> Iterator[None]:
    def stored(self: LedgerAdds, bookie_id: object, first: int, last: int) -> object:
        self._pending.store(bookie_id, first, last)  # type: ignore[arg-type]
        if self.state not in (WriterState.OPEN, WriterState.CHANGING):
            return []
        acked = self._pending.drain()
        if acked is None:
            return []
        self._confirm(acked.last_entry_id)
        return [acked]

    with patch.object(LedgerAdds, "stored", stored):
        yield


@contextmanager
def _drains_between_resets() -> Iterator[None]:
    def replace(self: PendingAdds, ensemble: object, resend: object) -> object:
        self._set_ensemble(ensemble)  # type: ignore[arg-type]
        indexes = sorted(resend)  # type: ignore[call-overload]
        drained = []
        for index in indexes:
            acked = self.drain()  # before every index was reset
            drained += [acked] if acked else []
            self._acks.reset(index)
        blocks = [self._blocks[first].tail(self.acked + 1) for first in sorted(self._blocks)]
        sends = [self._send(block, index) for index in indexes for block in blocks]
        return [*drained, *(send for send in sends if send is not None)]

    with patch.object(PendingAdds, "replace", replace):
        yield


@contextmanager
def _negative_before_durable() -> Iterator[None]:
    fence = Bookie.fence

    def hasty(self: Bookie, ledger_id: int, key: bytes, then: Callable[[], None]) -> object:
        descriptor = fence(self, ledger_id, key, lambda: None)
        then()
        return descriptor

    with patch.object(Bookie, "fence", hasty):
        yield


@contextmanager
def _fence_without_key() -> Iterator[None]:
    journal = Bookie._journal

    def keyless(self: Bookie, descriptor: Any, parts: Any, token: Any, *, deferred: bool = False) -> None:
        if parts == (journal_format.fence_record(descriptor.ledger_id),) and not descriptor.key_journaled:
            self._journal_of(descriptor.ledger_id).append(parts, token)
        else:
            journal(self, descriptor, parts, token, deferred=deferred)

    with patch.object(Bookie, "_journal", keyless):
        yield


@contextmanager
def _one_negative_suffices() -> Iterator[None]:
    with patch.object(RoundRobinSchedule, "entry_coverage", 1):
        yield


@contextmanager
def _acks_before_sync() -> Iterator[None]:
    append = SimJournal.append

    def early(self: SimJournal, parts: object, token: object, *, deferred: bool = False) -> None:
        append(self, parts, token, deferred=True)  # type: ignore[arg-type]

    with patch.object(SimJournal, "append", early):
        yield


@contextmanager
def _lac_not_frozen() -> Iterator[None]:
    rewrite = LedgerRecovery._rewrite

    def advancing(self: LedgerRecovery, entry_id: EntryId, body: bytes) -> object:
        frozen, self._frozen_lac = self._frozen_lac, EntryId(entry_id - 1)
        try:
            return rewrite(self, entry_id, body)
        finally:
            self._frozen_lac = frozen

    with patch.object(LedgerRecovery, "_rewrite", advancing):
        yield


@contextmanager
def _coverage_counted() -> Iterator[None]:
    def covers(self: RoundRobinSchedule, answered: object) -> bool:
        return len(answered) >= self.write_quorum_size - self.ack_quorum_size + 1  # type: ignore[arg-type]

    with patch.object(RoundRobinSchedule, "covers_ensemble", covers):
        yield


@contextmanager
def _any_error_is_negative() -> Iterator[None]:
    failed = RecoveryRead.failed

    def read_failed(self: RecoveryRead, index: object, _error: object) -> None:
        failed(self, index, NoSuchEntryError("taken for a negative"))  # type: ignore[arg-type]

    with patch.object(RecoveryRead, "failed", read_failed):
        yield


@contextmanager
def _close_overwrites() -> Iterator[None]:
    conflict = MetadataUpdate.conflict

    def overwrite(self: MetadataUpdate, current: object) -> object:
        if current.value.closed and self.change.__name__ == "_as_closed":  # type: ignore[attr-defined]
            machine = self.change.__self__  # type: ignore[attr-defined]
            if isinstance(machine, LedgerAdds):
                wanted = machine.metadata.with_closed(machine.last_add_confirmed, machine._confirmed_length)
                return WriteMetadata(wanted, current.version)  # type: ignore[attr-defined]
        return conflict(self, current)  # type: ignore[arg-type]

    with patch.object(MetadataUpdate, "conflict", overwrite):
        yield


@contextmanager
def _keeps_acks_of_replaced() -> Iterator[None]:
    replace = PendingAdds.replace

    def keeping(self: PendingAdds, ensemble: object, resend: object) -> object:
        with patch.object(type(self._acks), "reset", lambda _self, _index: None):
            return replace(self, ensemble, resend)  # type: ignore[arg-type]

    with patch.object(PendingAdds, "replace", keeping):
        yield


@contextmanager
def _fence_not_atomic() -> Iterator[None]:
    """Two handles of one ledger, each with a lock: adds that are under way pass beside the fence."""

    def read(self: BookieNode, ledger_id: int, entry_id: int, key: bytes, answer: Any) -> None:
        self.world.after(self.sync_delay(), lambda: answer(self.read(ledger_id, entry_id)))
        self.world.after(4 * self.sync_delay(), lambda: self.bookie.fence(ledger_id, key, lambda: None))

    with patch.object(BookieNode, "fencing_read", read):
        yield


@contextmanager
def _commits_midway() -> Iterator[None]:
    """A recovery stores its new ensembles at once, and reads from them."""
    take = Recoverer._take

    def committing(self: Recoverer, machine: Any, event: Any, arguments: tuple[Any, ...]) -> None:
        take(self, machine, event, arguments)
        store = self.cluster.metadata
        current = store.current
        if event.__name__ != "replacements_chosen" or not self.alive or current is None:
            return
        if current.value.state is MetadataState.IN_RECOVERY and current.version == machine._metadata.version:
            changed = current.value.with_segments(machine._segments)
            machine._metadata = store.current = Versioned(changed, current.version + 1)
            if machine._update is not None:
                machine._update.current = machine._metadata
            store._observe(current.value, changed)

    legal = {*oracle._LEGAL, (MetadataState.IN_RECOVERY, MetadataState.IN_RECOVERY)}
    with patch.object(Recoverer, "_take", committing), patch.object(oracle, "_LEGAL", legal):
        yield


@contextmanager
def _starts_empty() -> Iterator[None]:
    """A bookie whose disks were lost starts as if it were new: neither cookie nor limbo."""

    def wipe(self: BookieNode) -> None:
        self.crash()
        self.journal = SimJournal(self, b"")

    with patch.object(BookieNode, "wipe", wipe):
        yield


@contextmanager
def _forgets_fence_of_deleted() -> Iterator[None]:
    delete = DirectoryStorage.delete_ledger

    def forgetting(self: DirectoryStorage, ledger_id: int) -> None:
        delete(self, ledger_id)
        self.tombstones.discard(ledger_id)
        self._buried.discard(ledger_id)

    with patch.object(DirectoryStorage, "delete_ledger", forgetting):
        yield


@contextmanager
def _force_behind_close() -> Iterator[None]:
    """A force succeeds although the ledger was closed before the entries that it made durable."""

    def forced(self: LedgerAdds, point: Any) -> None:
        if point.entry_id > self.last_add_confirmed:
            self._confirm(point.entry_id)
            self._confirmed_length = point.length

    with patch.object(LedgerAdds, "forced", forced):
        yield


@contextmanager
def _deferred_survives_loss() -> Iterator[None]:
    """A bookie that was lost between its early answer and the force counts on."""
    failed = LedgerAdds.bookie_failed

    def ignoring(self: LedgerAdds, bookie_id: Any, error: Any) -> Any:
        index = self._index_of(bookie_id)
        if index is None or self._pending.first_outstanding(index) is None:
            return []
        return failed(self, bookie_id, error)

    with patch.object(LedgerAdds, "bookie_failed", ignoring):
        yield


@dataclass(frozen=True, slots=True)
class Mutant:
    """`fast`: found within a second or two, so tried in every run of the tests."""

    name: str
    defect: str
    patch: Callable[[], AbstractContextManager[None]]
    profile: str | None  # None: any seed
    seeds_max: int
    fast: bool = False


MUTANTS = [
    Mutant("M01", "recovery reads without fence (2614)", _reads_without_fence, "lost fence", 4000),
    Mutant("M02", "no floor before the last segment (2615)", _no_floor, None, 3000),
    Mutant("M03", "acknowledges while the ensemble changes (1591)", _acks_while_changing, None, 500, True),
    Mutant("M04", "drains between resets (3005)", _drains_between_resets, "two failures", 500, True),
    Mutant(
        "M05",
        "stores ensembles during a recovery (BOOKKEEPER-355)",
        _commits_midway,
        "failing recovery",
        2000,
    ),
    Mutant("M06", "a fencing read is answered too early", _negative_before_durable, "crash at fence", 3000),
    Mutant("M07", "journals a fence without its key", _fence_without_key, "crash at fence", 3000),
    Mutant("M08", "one negative answer suffices (2908)", _one_negative_suffices, None, 500, True),
    Mutant("M09", "acknowledges before the sync", _acks_before_sync, None, 100, True),
    Mutant("M10", "a bookie starts with its disks lost", _starts_empty, "wiped", 500, True),
    Mutant("M11", "fence and add are not atomic (4701)", _fence_not_atomic, "lost fence", 3000),
    Mutant(
        "M13", "the fence is deleted with the ledger (4462)", _forgets_fence_of_deleted, "deleted", 1000, True
    ),
    Mutant("M14", "the LAC of a recovery advances", _lac_not_frozen, None, 1000, True),
    Mutant("M15", "coverage is counted, not windowed", _coverage_counted, "deaf fence", 500, True),
    Mutant("M16", "any error counts as a negative answer", _any_error_is_negative, None, 2000),
    Mutant("M17", "a close overwrites an end (BOOKKEEPER-584)", _close_overwrites, None, 1000, True),
    Mutant("M18", "answers of a replaced bookie count on", _keeps_acks_of_replaced, None, 1000, True),
    Mutant("S01", "a force succeeds behind the close", _force_behind_close, "deferred", 1000, True),
    Mutant("S02", "a deferred add outlives its bookie", _deferred_survives_loss, "deferred", 2000),
]


def holds(plan: Plan, mode: str = "a") -> bool:
    """Whether the story of `plan` breaks nothing."""
    try:
        run(plan, mode=mode)
    except ViolationError:
        return False
    return True


def breaks(plan: Plan, mutant: Mutant, mode: str = "a") -> bool:
    """Whether the mutant, and it alone, breaks something."""
    with mutant.patch():
        broken = not holds(plan, mode)
    return broken and holds(plan, mode)


def seeds_needed(mutant: Mutant, mode: str = "a") -> int | None:
    """How many seeds it takes until an invariant breaks; None: more than the budget."""
    with mutant.patch():
        for seed in range(mutant.seeds_max):
            if not holds(plan_of(seed, mutant.profile), mode):
                return seed + 1
    return None
