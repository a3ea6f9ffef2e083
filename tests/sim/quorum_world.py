"""A small world for the replication machines: bookies are dicts, one list holds what is in flight.

Anything in flight may happen next, whatever its age; so requests overtake each other, answers come
after their sender gave up, and metadata writes succeed though their reply is lost. Bookies are down
at times and forget nothing. The invariants are those of spec replication section 16.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bkctl.errors import (
    BkctlError,
    BookieHandleNotAvailableError,
    BookKeeperError,
    LedgerFencedError,
    MetadataUnreachableError,
    NoSuchEntryError,
    NoSuchLedgerError,
)
from bkctl.formats.entry import Digester, read_header
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
from bkctl.quorum.pending import entries_in, frames_in
from bkctl.quorum.placement import choose_replacements
from bkctl.quorum.recovery import LedgerRecovery
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    DigestType,
    EntryId,
    LedgerId,
    LedgerMetadata,
    MetadataState,
    Segment,
    Versioned,
)

LEDGER_ID = LedgerId(7)
DIGESTER = Digester(DigestType.CRC32, b"password")


@dataclass
class Bookie:
    entries: dict[int, bytes] = field(default_factory=dict)
    known: bool = False
    fenced: bool = False
    up: bool = True

    def add(self, flags: int, entry_id: int, body: bytes) -> BookKeeperError | None:
        self.known = True
        if self.fenced and not flags & RECOVERY_ADD:
            return LedgerFencedError("fenced")
        self.entries[entry_id] = body
        return None

    def read_fencing(self, entry_id: int) -> bytes | BookKeeperError:
        missing = NoSuchEntryError("none") if self.known else NoSuchLedgerError("none")
        self.known = self.fenced = True
        if entry_id == INVALID_ENTRY_ID:
            entry_id = max(self.entries, default=INVALID_ENTRY_ID)
        return self.entries.get(entry_id, missing)


class Store:
    """The metadata of one ledger, and the rules of its changes (I3, I7, I8)."""

    def __init__(self, metadata: LedgerMetadata) -> None:
        self.current = Versioned(metadata, 0)

    def write(self, metadata: LedgerMetadata, version: int) -> bool:
        before = self.current.value
        if version != self.current.version:
            return False
        assert not before.closed, "I3: a closed ledger was changed"
        legal = {
            MetadataState.OPEN: set(MetadataState),
            MetadataState.IN_RECOVERY: {MetadataState.CLOSED},
        }
        assert metadata.state in legal[before.state], ("I8", before.state, metadata.state)
        firsts = [segment.first_entry_id for segment in metadata.segments]
        assert firsts == sorted(set(firsts)), ("I7", firsts)
        assert firsts[0] == 0
        assert all(len(set(s.ensemble)) == metadata.ensemble_size for s in metadata.segments), "I7"
        if metadata.closed:
            assert firsts[-1] <= metadata.last_entry_id + 1, "I7"
        self.current = Versioned(metadata, version + 1)
        return True


class World:
    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        ensemble_size = self.random.randint(1, 5)
        write_quorum_size = self.random.randint(1, ensemble_size)
        ack_quorum_size = self.random.randint(1, write_quorum_size)
        self.schedule = RoundRobinSchedule(ensemble_size, write_quorum_size, ack_quorum_size)
        count = ensemble_size + self.random.randint(0, 6)
        self.bookies = {BookieId(f"b{i}"): Bookie() for i in range(count)}
        ensemble = tuple(self.random.sample(sorted(self.bookies), ensemble_size))
        self.store = Store(
            LedgerMetadata(
                ensemble_size, write_quorum_size, ack_quorum_size, (Segment(EntryId(0), ensemble),)
            )
        )
        self.in_flight: list[Callable[[], None]] = []
        self.payloads: dict[int, bytes] = {}
        self.acked = INVALID_ENTRY_ID
        self.outcomes: dict[int, bool] = {}

    def step(self) -> None:
        """One thing in flight happens, sometimes the oldest, sometimes any."""
        at = 0 if self.random.random() < 0.5 else self.random.randrange(len(self.in_flight))
        self.in_flight.pop(at)()

    def chance(self, probability: float) -> bool:
        return self.faults and self.random.random() < probability

    def settle(self, limit: int = 20_000) -> None:
        """Until nothing is in flight. I14: it ends."""
        for _ in range(limit):
            if not self.in_flight:
                return
            self.step()
        raise AssertionError("I14: no end in sight")

    def retry(self, writer: "Writer") -> None:
        if writer.alive:
            writer.perform(writer.machine.retry([b for b in sorted(self.bookies) if self.bookies[b].up]))

    def flip_bookies(self) -> None:
        for bookie in self.bookies.values():
            if self.chance(0.004 if bookie.up else 0.05):
                bookie.up = not bookie.up

    def heal(self) -> None:
        self.faults = False
        for bookie in self.bookies.values():
            bookie.up = True

    # -- requests of an actor: `perform` takes the machine's answer ------------------------------

    def send_adds(self, action: SendAdds, actor: "Actor") -> None:
        def deliver() -> None:
            bookie = self.bookies[action.bookie_id]
            lost = BookieHandleNotAvailableError("down")
            if not bookie.up or self.chance(0.04):
                self.reply(lambda: actor.failed(action.bookie_id, action.first_entry_id, lost))
                return
            flags = [int.from_bytes(action.frames[s + 6 : s + 8]) for s, _ in frames_in(action.frames)]
            results = []
            for flag, (entry_id, body) in zip(flags, entries_in(action.frames), strict=True):
                actor.check_sent(flag, body)
                results.append((entry_id, bookie.add(flag, entry_id, body)))
            if self.chance(0.02):  # stored, but nobody hears of it
                self.reply(lambda: actor.failed(action.bookie_id, action.first_entry_id, lost))
                return
            for first, last, error in runs(results):
                if error is None:
                    self.reply(lambda first=first, last=last: actor.stored(action.bookie_id, first, last))
                else:
                    self.reply(lambda e=first, error=error: actor.failed(action.bookie_id, e, error))

        self.in_flight.append(deliver)

    def read_fencing(
        self, bookie_id: BookieId, entry_id: int, then: Callable[[bytes | BookKeeperError], None]
    ) -> None:
        def deliver() -> None:
            bookie = self.bookies[bookie_id]
            answer: bytes | BookKeeperError = BookieHandleNotAvailableError("down")
            if bookie.up and not self.chance(0.02):
                answer = bookie.read_fencing(entry_id)
                if self.chance(0.02):
                    answer = BookieHandleNotAvailableError("lost")
            self.reply(lambda: then(answer))

        self.in_flight.append(deliver)

    def write_metadata(self, action: WriteMetadata, actor: "Actor") -> None:
        def deliver() -> None:
            if self.chance(0.02):
                self.reply(lambda: actor.metadata_failed(MetadataUnreachableError("away")))
            elif not self.store.write(action.metadata, action.version) or self.chance(0.1):
                self.reply(lambda: actor.metadata_conflict(self.store.current))
            else:
                version = self.store.current.version
                self.reply(lambda: actor.metadata_written(version))

        self.in_flight.append(deliver)

    def choose_replacements(self, action: ChooseReplacements, actor: "Actor") -> None:
        def deliver() -> None:
            candidates = [b for b in self.bookies if self.bookies[b].up or self.chance(0.1)]
            self.random.shuffle(candidates)
            chosen = choose_replacements(candidates, action.failed, action.exclude)
            self.reply(lambda: actor.replacements_chosen(chosen))

        self.in_flight.append(deliver)

    def reply(self, event: Callable[[], None]) -> None:
        self.in_flight.append(event)


def runs(results: list[tuple[EntryId, BookKeeperError | None]]):
    """(first, last, error): successes joined as a connection joins them."""
    out: list[list] = []
    for entry_id, error in results:
        if out and error is None and out[-1][2] is None and out[-1][1] + 1 == entry_id:
            out[-1][1] = entry_id
        else:
            out.append([entry_id, entry_id, error])
    return [tuple(run) for run in out]


class Actor:
    """One program with one machine; after `kill` it neither hears nor says anything."""

    machine: LedgerAdds | LedgerRecovery

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True

    def kill(self) -> None:
        self.alive = False

    def _event(self, name: str):
        def happened(*args) -> None:
            if self.alive:
                self.perform(getattr(self.machine, name)(*args))

        return happened

    def stored(self, bookie_id: BookieId, first: int, last: int) -> None:
        self._event("stored")(bookie_id, first, last)

    def failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> None:
        if isinstance(error, BookieHandleNotAvailableError):
            self._event("bookie_failed")(bookie_id, error)
        else:
            self._event("failed")(bookie_id, entry_id, error)

    def metadata_written(self, version: int) -> None:
        self._event("metadata_written")(version)

    def metadata_conflict(self, current: Versioned[LedgerMetadata]) -> None:
        self._event("metadata_conflict")(current)

    def metadata_failed(self, error: BkctlError) -> None:
        self._event("metadata_failed")(error)

    def replacements_chosen(self, chosen) -> None:
        self._event("replacements_chosen")(chosen)

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendAdds():
                    self.world.send_adds(action, self)
                case WriteMetadata():
                    self.world.write_metadata(action, self)
                case ChooseReplacements():
                    self.world.choose_replacements(action, self)
                case EnsembleChanged():
                    pass
                case _:
                    self.happened(action)

    def happened(self, action: Action) -> None:
        raise NotImplementedError

    def check_sent(self, flags: int, body: bytes) -> None:
        raise NotImplementedError


class Writer(Actor):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.machine = LedgerAdds(LEDGER_ID, world.store.current, DIGESTER)
        self.close_error: BkctlError | str | None = "not closed"

    @property
    def open(self) -> bool:
        return self.alive and self.machine.state in (WriterState.OPEN, WriterState.CHANGING)

    def add(self, count: int) -> None:
        payloads = [self.world.random.randbytes(self.world.random.randint(0, 20)) for _ in range(count)]
        first, actions = self.machine.add(payloads)
        self.world.payloads.update(enumerate(payloads, first))
        self.perform(actions)

    def check_sent(self, flags: int, body: bytes) -> None:
        assert flags == 0
        header = read_header(body)
        assert header.lac <= self.world.acked, "I5: a LAC beyond what is acknowledged"
        sizes = [len(self.world.payloads[e]) for e in range(header.entry_id + 1)]
        assert header.length == sum(sizes), "I10"

    def happened(self, action: Action) -> None:
        world = self.world
        match action:
            case Acked(first, last):
                for entry_id in range(first, last + 1):
                    assert entry_id == world.acked + 1, "I9: successes come in order"
                    assert entry_id not in world.outcomes, "I9: one outcome for each add"
                    world.outcomes[entry_id] = True
                    world.acked = EntryId(entry_id)
                    self._check_replicated(entry_id)
            case Failed(first, last, _):
                for entry_id in range(first, last + 1):
                    assert entry_id not in world.outcomes, "I9: one outcome for each add"
                    world.outcomes[entry_id] = False
            case CloseDone(error):
                assert self.close_error == "not closed"
                self.close_error = error
                if error is None:
                    assert world.store.current.value.last_entry_id == self.machine.last_add_confirmed, "I3"
            case _:
                raise AssertionError(action)

    def _check_replicated(self, entry_id: int) -> None:
        """I6: the bookies that the metadata names now hold the entry."""
        metadata = self.world.store.current.value
        ensemble = metadata.segment_at(EntryId(entry_id)).ensemble
        named = [ensemble[i] for i in self.world.schedule.write_set(EntryId(entry_id))]
        held = sum(entry_id in self.world.bookies[b].entries for b in named)
        assert held >= self.world.schedule.ack_quorum_size, f"I6: entry {entry_id} is on {held} of {named}"
        if metadata.closed:
            assert entry_id <= metadata.last_entry_id, "I4: acknowledged beyond the end"


class Recoverer(Actor):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.outcome: RecoveryDone | RecoveryAborted | None = None
        self._begin(world.store.current)

    def _begin(self, metadata: Versioned[LedgerMetadata]) -> None:
        self.machine = LedgerRecovery(LEDGER_ID, metadata, DIGESTER)
        self.perform(self.machine.start())

    def check_sent(self, flags: int, body: bytes) -> None:
        assert flags & RECOVERY_ADD

    def happened(self, action: Action) -> None:
        world, machine = self.world, self.machine
        match action:
            case FenceBookie(index, bookie_id):

                def fenced(answer: bytes | BookKeeperError) -> None:
                    if self.alive and self.machine is machine:
                        self.perform(machine.fenced(index, answer))

                world.read_fencing(bookie_id, INVALID_ENTRY_ID, fenced)
            case ReadForRecovery(index, bookie_id, entry_ids):
                for entry_id in entry_ids:

                    def read(answer: bytes | BookKeeperError, entry_id: EntryId = entry_id) -> None:
                        if self.alive and self.machine is machine:
                            self.perform(machine.entry_read(index, entry_id, answer))

                    world.read_fencing(bookie_id, entry_id, read)
            case RecoveryOutdated(current):
                self._begin(current)
            case RecoveryDone() | RecoveryAborted():
                assert self.outcome is None
                self.outcome = action
            case _:
                raise AssertionError(action)


def check_end(world: World) -> None:
    """I1, I2, I4, I10: the closed ledger holds everything acknowledged, as the writer wrote it."""
    metadata = world.store.current.value
    assert metadata.closed, "I14: not closed"
    end = metadata.last_entry_id
    assert end >= world.acked, f"I1: acknowledged up to {world.acked}, closed at {end}"
    for entry_id in range(end + 1):
        ensemble = metadata.segment_at(EntryId(entry_id)).ensemble
        copies = [
            world.bookies[ensemble[i]].entries[entry_id]
            for i in world.schedule.write_set(EntryId(entry_id))
            if entry_id in world.bookies[ensemble[i]].entries
        ]
        assert len(copies) >= world.schedule.ack_quorum_size, f"I6: entry {entry_id} in {metadata}"
        for body in copies:
            payload = DIGESTER.open_entry(body, LEDGER_ID, entry_id)
            assert payload == world.payloads[entry_id], "I2"
    assert metadata.length == sum(len(world.payloads[e]) for e in range(end + 1)), "I10"
