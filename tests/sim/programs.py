"""The programs of a story: writer, recoverers, readers, each around the machine that ships.

What an asyncio shell does in `bkctl.client`, these do in virtual time: they carry out actions and
report what came of them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bkctl.errors import (
    BkctlError,
    BookKeeperError,
    MetadataUnreachableError,
    NoSuchLedgerOnMetadataServerError,
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
    ReadForRecovery,
    RecoveryAborted,
    RecoveryDone,
    RecoveryOutdated,
    SendAdds,
    WriteMetadata,
)
from bkctl.quorum.adds import LedgerAdds, WriterState
from bkctl.quorum.lac import Coverage, LacCoverage
from bkctl.quorum.pending import entries_in, frames_in
from bkctl.quorum.reads import RangeRead
from bkctl.quorum.recovery import LedgerRecovery
from bkctl.server.reads import LAST_ENTRY
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    BookieIndex,
    EntryId,
    LedgerMetadata,
    MetadataState,
    Versioned,
)
from tests.sim.bookie_node import BookieNode
from tests.sim.cluster import DIGESTER, LEDGER_ID, Cluster


class Program:
    """After `kill` it neither hears nor says anything; while stopped it hears, and acts later."""

    machine: Any

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.alive = True
        self._stopped: list[Callable[[], None]] | None = None

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            self.world.tell(self.name, "is killed")

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
            self.world.covered[f"{type(machine).__name__} {state.name} {event.__name__}"] += 1
            self.perform(event(*arguments))

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
        machine = self.machine
        self.cluster.add(
            self.name,
            action,
            lambda *run: self.hears(machine.stored, *run),
            lambda *error: self.hears(machine.failed, *error),
            lambda *error: self.hears(machine.bookie_failed, *error),
        )

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
            DIGESTER,
            advanced=settings.advanced,
            deferred_sync=settings.deferred_sync,
        )
        self.close_error: BkctlError | str | None = "not closed"
        self._random = self.world.stream("payloads")

    @property
    def open(self) -> bool:
        return (
            self.alive
            and self._stopped is None
            and self.machine.state in (WriterState.OPEN, WriterState.CHANGING)
        )

    def add(self, count: int) -> None:
        payloads = [self._random.randbytes(self._random.randint(0, 20)) for _ in range(count)]
        first, actions = self.machine.add(payloads)
        self.world.tell(self.name, f"adds {first} to {first + count - 1}")
        self.cluster.oracle.added(first, payloads)
        self.perform(actions)

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
                oracle.acknowledged(first, last, durable=not self.cluster.settings.deferred_sync)
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
            LEDGER_ID, metadata, DIGESTER, fence_only=self.fence_only, window_entries=window
        )
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
        def at_bookie(node: BookieNode, reply: Callable[[object], None]) -> None:
            if self.fences or entry_id == LAST_ENTRY:
                node.fencing_read(LEDGER_ID, entry_id, DIGESTER.master_key, reply)
            else:
                reply(node.read(LEDGER_ID, entry_id))

        self.cluster.ask(self.name, bookie_id, at_bookie, then)


def _outcome_in_words(action: RecoveryDone | RecoveryAborted) -> str:
    if isinstance(action, RecoveryAborted):
        return f"given up, {action.error}"
    metadata = action.metadata.value
    return f"closed at {metadata.last_entry_id}" if metadata.closed else "fenced"


class Reader(Program):
    """Opens without recovery and follows the LAC; reads what it may, and tells the oracle."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name)
        self.lac: EntryId = INVALID_ENTRY_ID
        self.given = 0  # entries read so far
        self.failures = 0
        assert cluster.metadata.current is not None
        self.metadata = cluster.metadata.current.value
        cluster.metadata.watch(self._watched)
        self.machine = self  # nothing replaces it

    @property
    def state(self) -> MetadataState:
        return self.metadata.state

    def _watched(self, metadata: Versioned[LedgerMetadata] | None) -> None:
        if metadata is not None:
            self.metadata = metadata.value

    def step(self) -> None:
        """Ask how far one may read, then read the next entries."""
        if not self.alive:
            return
        metadata = self.metadata
        if metadata.closed:
            self._learn(metadata.last_entry_id)
            self._read_on()
            return
        coverage = LacCoverage(self.cluster.schedule)
        for number, bookie_id in enumerate(metadata.last_segment.ensemble):
            self.cluster.ask(
                self.name,
                bookie_id,
                lambda node, reply: reply(node.lac(LEDGER_ID)),
                partial(self._lac_heard, coverage, BookieIndex(number)),
            )

    def _lac_heard(self, coverage: LacCoverage, index: BookieIndex, answer: Any) -> None:
        if coverage.state is not Coverage.PENDING or not self.alive:
            return
        state = (
            coverage.failed(index, answer)
            if isinstance(answer, BookKeeperError)
            else coverage.answered(index, answer)
        )
        if state is Coverage.COVERED:
            # As a handle does: closed metadata that came meanwhile bounds what bookies say.
            end = self.metadata.last_entry_id if self.metadata.closed else coverage.last_add_confirmed
            self._learn(max(self.lac, end))
            self._read_on()

    def _learn(self, lac: int) -> None:
        if lac != self.lac:
            self.world.tell(self.name, f"may read up to {lac}")
        self.cluster.oracle.lac_given(lac, self.lac)
        self.lac = EntryId(lac)

    def _read_on(self) -> None:
        if self.given > self.lac:
            return
        first = EntryId(self.given)
        metadata = self.metadata
        later = [s.first_entry_id for s in metadata.segments if s.first_entry_id > first]
        last = EntryId(min([self.lac, *(e - 1 for e in later)]))
        ensemble = metadata.segment_at(first).ensemble
        read = RangeRead(self.cluster.schedule, DIGESTER, LEDGER_ID, first, last)
        self._ask(read, ensemble, read.start())

    def _ask(self, read: RangeRead, ensemble: tuple[BookieId, ...], groups: Any) -> None:
        for index, entry_ids in groups.items():

            def at_bookie(node: BookieNode, reply: Any, entry_ids: list[EntryId] = entry_ids) -> None:
                reply([node.read(LEDGER_ID, entry_id) for entry_id in entry_ids])

            then = partial(self._answered, read, ensemble, index, entry_ids)
            self.cluster.ask(self.name, ensemble[index], at_bookie, then)

    def _answered(
        self, read: RangeRead, ensemble: tuple[BookieId, ...], index: BookieIndex, entry_ids: Any, answer: Any
    ) -> None:
        if read.done or not self.alive:
            return
        answers = [answer] * len(entry_ids) if isinstance(answer, BookKeeperError) else answer
        self._ask(read, ensemble, read.answered(index, entry_ids, answers))
        if not read.done:
            return
        if read.error is not None:
            self.failures += 1
            return
        for entry in read.entries():
            self.cluster.oracle.entry_given(entry.entry_id, entry.payload)
            self.given = max(self.given, entry.entry_id + 1)
