"""The programs of a story: writer and recoverers, each around the machine that ships; see reader, too.

What an asyncio shell does in `bkctl.client`, these do in virtual time: they carry out actions and
report what came of them.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from bkctl.errors import (
    BkctlError,
    BookKeeperError,
    DuplicateEntryIdError,
    LedgerClosedError,
    MetadataUnreachableError,
    NoSuchLedgerOnMetadataServerError,
    RequestTimeoutError,
)
from bkctl.formats.request_v2 import RECOVERY_ADD
from bkctl.quorum.actions import (
    Acked,
    Action,
    ChooseReplacements,
    CloseDone,
    EnsembleChanged,
    Failed,
    FenceBookie,
    ForcePoint,
    ReadForRecovery,
    RecoveryAborted,
    RecoveryDone,
    RecoveryOutdated,
    SendAdds,
    WriteMetadata,
)
from bkctl.quorum.adds import LedgerAdds, WriterState
from bkctl.quorum.pending import entries_in, frames_in
from bkctl.quorum.recovery import LedgerRecovery
from bkctl.server.reads import LAST_ENTRY
from bkctl.types import BookieId, BookieIndex, EntryId, LedgerMetadata, Versioned
from tests.sim import coverage
from tests.sim.cluster import LEDGER_ID, Cluster


class Program:
    """After `kill` it neither hears nor says anything; while stopped it hears, and acts later."""

    machine: Any
    deferred = False  # its adds are answered before they are durable

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.alive = True
        self._stopped: list[Callable[[], None]] | None = None
        self._unheard: dict[BookieId, set[int]] = {}  # adds that were sent and not answered

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            self.world.tell(self.name, "is killed")
            self.cluster.carrier.killed(self)

    def stop(self) -> None:
        if self._stopped is None:
            self.world.tell(self.name, "is stopped")
            self._stopped = []

    def go_on(self) -> None:
        waiting, self._stopped = self._stopped or [], None
        for event in waiting:
            event()

    def hears(self, event: Callable[..., list[Action]], *arguments: Any) -> None:
        """`event` of the machine happened; a machine that was replaced meanwhile ignores it."""
        machine = self.machine
        if self._stopped is not None:
            self._stopped.append(lambda: self._take(machine, event, arguments))
        else:
            self._take(machine, event, arguments)

    def _take(self, machine: Any, event: Callable[..., list[Action]], arguments: tuple[Any, ...]) -> None:
        if self.alive and self.machine is machine:
            state = machine.state
            actions = event(*arguments)
            coverage.note(self.world.covered, machine, state, event.__name__, arguments, actions)
            self.perform(actions)

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendAdds():
                    self._send(action)
                case WriteMetadata():
                    self._write(action)
                case ChooseReplacements():
                    chosen: Mapping[BookieIndex, BookieId] = self.cluster.replacements(action)
                    self.world.after(1, partial(self.hears, self.machine.replacements_chosen, chosen))
                case EnsembleChanged():
                    self.world.tell(self.name, f"goes on with {' '.join(action.ensemble)}")
                case _:
                    self.happened(action)

    def happened(self, action: Action) -> None:
        raise AssertionError(action)

    def check_sent(self, flags: int, body: bytes) -> None:
        raise AssertionError

    def _send(self, action: SendAdds) -> None:
        for (start, _), (_, body) in zip(frames_in(action.frames), entries_in(action.frames), strict=True):
            self.check_sent(int.from_bytes(action.frames[start + 6 : start + 8], "big"), body)
        bookie_id = action.bookie_id
        entry_ids = [entry_id for entry_id, _ in entries_in(action.frames)]
        unheard = self._unheard.setdefault(bookie_id, set())
        unheard.update(entry_ids)

        def late() -> None:
            if not unheard.isdisjoint(entry_ids):
                error = RequestTimeoutError(f"{bookie_id} did not answer all adds")
                self.channel_lost(bookie_id, error)

        self.cluster.carrier.add(self, action, deferred=self.deferred)
        self.world.after(self.cluster.settings.request_timeout_us, late)

    # -- what bookies answer to adds (client.channel.AddSink) ----------------------------------------

    def adds_stored(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> None:
        self._unheard[bookie_id].difference_update(range(first_entry_id, last_entry_id + 1))
        self.hears(self.machine.stored, bookie_id, first_entry_id, last_entry_id)

    def add_failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> None:
        self._unheard[bookie_id].discard(entry_id)
        self.hears(self.machine.failed, bookie_id, entry_id, error)

    def channel_lost(self, bookie_id: BookieId, error: BookKeeperError) -> None:
        self.hears(self.machine.bookie_failed, bookie_id, error)

    def _write(self, action: WriteMetadata) -> None:
        machine = self.machine
        self.cluster.hook("metadata sent")

        def conflict(current: Versioned[LedgerMetadata] | None) -> None:
            if current is None:
                gone = NoSuchLedgerOnMetadataServerError("deleted")
                self.hears(machine.metadata_failed, gone)
            else:
                self.hears(machine.metadata_conflict, current)

        def written(version: int) -> None:
            self.cluster.hook("metadata answered")
            self.hears(machine.metadata_written, version)

        self.cluster.metadata.write(
            action.metadata,
            action.version,
            written,
            conflict,
            lambda: self.hears(machine.metadata_failed, MetadataUnreachableError("away")),
        )


class Writer(Program):
    machine: LedgerAdds

    def __init__(self, cluster: Cluster, name: str = "writer") -> None:
        super().__init__(cluster, name)
        assert cluster.metadata.current is not None
        settings = cluster.settings
        self.machine = LedgerAdds(
            LEDGER_ID,
            cluster.metadata.current,
            cluster.digester,
            advanced=settings.advanced,
            deferred_sync=settings.deferred_sync,
            delay_ensemble_change=settings.delay_change,
        )
        self.deferred = settings.deferred_sync
        self.close_error: BkctlError | str | None = "not closed"
        self._random = self.world.stream("payloads")

    @property
    def open(self) -> bool:
        return (
            self.alive
            and self._stopped is None
            and self.machine.state in (WriterState.OPEN, WriterState.CHANGING)
        )

    @property
    def closed(self) -> bool:
        """It may be asked to add, and refuses."""
        running = self.alive and self._stopped is None
        return running and self.machine.state not in (WriterState.OPEN, WriterState.CHANGING)

    def add(self, count: int) -> None:
        payloads = [self._random.randbytes(self._random.randint(0, 20)) for _ in range(count)]
        self.world.covered[f"cell 17.1 {self.machine.state.name} Add"] += 1
        first, actions = self.machine.add(payloads)
        self.world.tell(self.name, f"adds {first} to {first + count - 1}")
        self.cluster.oracle.added(first, payloads)
        self.perform(actions)

    def add_at(self, entry_id: int) -> None:
        """An add whose id the caller chooses."""
        payload = self._random.randbytes(self._random.randint(0, 20))
        if entry_id in self.cluster.oracle.payloads:
            with suppress(DuplicateEntryIdError):
                self.machine.add([payload], EntryId(entry_id))
                raise AssertionError(f"entry {entry_id} was taken twice")
            return
        self.world.tell(self.name, f"adds {entry_id}")
        self.cluster.oracle.added(entry_id, [payload])
        _, actions = self.machine.add([payload], EntryId(entry_id))
        self.perform(actions)

    def force(self) -> None:
        """Make durable what is acknowledged now, on every bookie."""
        point = self.machine.force_point()
        if point is None:
            return
        self.world.tell(self.name, f"forces up to {point.entry_id}")
        left = set(point.ensemble)

        def answered(bookie_id: BookieId, answer: object) -> None:
            if answer is not None or not self.alive:
                left.add(BookieId("an error"))
                return
            left.discard(bookie_id)
            if not left:
                self.hears(self._forced, point)

        for bookie_id in point.ensemble:
            self.cluster.carrier.force(self, bookie_id, partial(answered, bookie_id))

    def _forced(self, point: ForcePoint) -> list[Action]:
        before = self.machine.last_add_confirmed
        with suppress(LedgerClosedError):  # what its caller is told
            self.machine.forced(point)
        if self.machine.last_add_confirmed > before:
            self.world.tell(self.name, f"is told that all up to {point.entry_id} is durable")
            self.cluster.oracle.force_done(self.machine.last_add_confirmed)
        return []

    def tell_lac(self) -> None:
        """The explicit LAC, to the write set of its entry."""
        lac = self.machine.explicit_lac_due()
        if lac is not None:
            self.world.tell(self.name, f"tells that {lac} is confirmed")
            self.cluster.oracle.lac_sent(lac)
            for index in self.cluster.schedule.write_set(lac):
                self.cluster.carrier.write_lac(self, self.machine.ensemble[index], lac, lambda _answer: None)

    def add_in_vain(self) -> None:
        """The handle takes no more."""
        self.world.covered[f"cell 17.1 {self.machine.state.name} Add"] += 1
        with suppress(LedgerClosedError):
            self.machine.add([b"too late"])
            raise AssertionError(f"a writer that is {self.machine.state.value} takes an add")

    def close(self) -> None:
        self.world.tell(self.name, "closes the ledger")
        self.hears(self.machine.close)

    def retry(self) -> None:
        """Bookies without replacement are asked anew."""
        up = [name for name, node in self.cluster.bookies.items() if node.up]
        self.hears(self.machine.retry, up)

    def check_sent(self, flags: int, body: bytes) -> None:
        assert flags == 0
        self.cluster.oracle.sent_by_writer(body)

    def happened(self, action: Action) -> None:
        oracle = self.cluster.oracle
        match action:
            case Acked(first, last):
                self.world.tell(self.name, f"is told that {first} to {last} are stored")
                oracle.acknowledged(first, last)
            case Failed(first, last, error):
                self.world.tell(self.name, f"is told that {first} to {last} failed: {error}")
                oracle.refused(first, last)
            case CloseDone(error):
                assert self.close_error == "not closed", "I9: closed twice"
                self.close_error = error
                if error is None:
                    assert oracle.end is not None
                    assert oracle.end[0] == self.machine.last_add_confirmed, "I3: closed elsewhere"
            case _:
                raise AssertionError(action)


class Recoverer(Program):
    machine: LedgerRecovery

    def __init__(self, cluster: Cluster, name: str, *, fence_only: bool = False) -> None:
        super().__init__(cluster, name)
        self.fence_only = fence_only
        self.outcome: RecoveryDone | RecoveryAborted | None = None
        self.started = False
        self.world.tell(name, "begins")
        self.fences = True  # its reads carry the fencing flag
        cluster.metadata.read(self._begin)

    def _begin(self, metadata: Versioned[LedgerMetadata] | None) -> None:
        if not self.alive:
            return
        if metadata is None:
            self.outcome = RecoveryAborted(NoSuchLedgerOnMetadataServerError("deleted"))
            return
        self.started = True
        window = self.cluster.settings.window_entries
        self.machine = LedgerRecovery(
            LEDGER_ID, metadata, self.cluster.digester, fence_only=self.fence_only, window_entries=window
        )
        self.world.covered[f"cell 17.2 start Meta({metadata.value.state.name})"] += 1
        self.hears(self.machine.start)

    def check_sent(self, flags: int, body: bytes) -> None:
        assert flags & RECOVERY_ADD
        self.cluster.oracle.sent_by_recoverer(body)

    def happened(self, action: Action) -> None:
        machine = self.machine
        match action:
            case FenceBookie(index, bookie_id):
                self._read(bookie_id, LAST_ENTRY, partial(self.hears, machine.fenced, index))
            case ReadForRecovery(index, bookie_id, entry_ids):
                for entry_id in entry_ids:
                    self._read(bookie_id, entry_id, partial(self.hears, machine.entry_read, index, entry_id))
            case RecoveryOutdated(current):
                self._begin(current)
            case RecoveryDone() | RecoveryAborted():
                assert self.outcome is None
                self.outcome = action
                self.world.tell(self.name, f"ends: {_outcome_in_words(action)}")
                if isinstance(action, RecoveryDone) and self.fence_only:
                    self.cluster.oracle.fenced()
                elif isinstance(action, RecoveryDone):
                    metadata = action.metadata.value
                    assert self.cluster.oracle.end is not None
                    assert metadata.last_entry_id == self.cluster.oracle.end[0], "I3: another end"
            case _:
                raise AssertionError(action)

    def _read(self, bookie_id: BookieId, entry_id: int, then: Callable[[Any], None]) -> None:
        if self.fences or entry_id == LAST_ENTRY:
            self.cluster.carrier.fencing_read(self, bookie_id, entry_id, then)
        else:
            first = lambda answer: then(answer if isinstance(answer, BookKeeperError) else answer[0])  # noqa: E731
            self.cluster.carrier.read(self, bookie_id, [EntryId(entry_id)], first)


def _outcome_in_words(action: RecoveryDone | RecoveryAborted) -> str:
    if isinstance(action, RecoveryAborted):
        return f"given up, {action.error}"
    metadata = action.metadata.value
    return f"closed at {metadata.last_entry_id}" if metadata.closed else "fenced"
