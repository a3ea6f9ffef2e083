"""Carrying out a plan, and checking how it ends."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from bkctl.quorum.actions import RecoveryAborted, RecoveryDone
from bkctl.quorum.adds import WriterState
from bkctl.types import BookieId
from tests.sim.bookie_node import BookieNode
from tests.sim.cluster import Cluster
from tests.sim.event_loop import event_loop_of
from tests.sim.expectations import check
from tests.sim.plan import Plan, Trap
from tests.sim.programs import Program, Recoverer, Writer
from tests.sim.reader import Reader
from tests.sim.world import MS, S, World

_QUIET_US = 20 * S  # longer than any request timer


class ViolationError(AssertionError):
    """An invariant does not hold; the message has the plan and how to see the story."""


@dataclass(slots=True)
class Story:
    """A plan being carried out. Verbs are methods `do_…`; they ignore whoever is not there."""

    plan: Plan
    world: World
    mode: str = "a"
    cluster: Cluster = field(init=False)
    writer: Writer = field(init=False)
    recoverers: list[Recoverer] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    read_before_healing: dict[str, int] = field(default_factory=dict)
    reached: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        plan = self.plan
        damage = any(step.verb == "rot" for step in (*plan.acts, *plan.traps))
        self.cluster = Cluster(
            self.world,
            plan.shape,
            replace(plan.settings),  # healing changes it
            mode=self.mode,
            ensemble=plan.ensemble,
            protect=damage,
        )
        self.writer = Writer(self.cluster)
        for node in self.cluster.bookies.values():
            node.hook = self._bookie_at
        self.cluster.hook = lambda name: self._at("cluster", name)

    def tell(self) -> None:
        """From the first act to the last check. Raises AssertionError when an invariant is broken."""
        for act in self.plan.acts:
            self.world.after(act.at_us, lambda act=act: self._do(act.verb, act.words))  # type: ignore[misc]
        last_at = max((act.at_us for act in self.plan.acts), default=0)
        self.world.run(last_at + 200 * MS)
        self._end()

    def _do(self, verb: str, words: tuple[str, ...]) -> None:
        getattr(self, f"do_{verb}")(*words)

    def _bookie_at(self, hook: str, node: BookieNode) -> None:
        self._at(node.bookie_id, hook)

    def _at(self, who: str, hook: str) -> None:
        self.world.covered[f"hook {hook}"] += 1
        if self.plan.traps:
            self.reached[who, hook] += 1
            self.reached["any", hook] += 1
            for trap in self.plan.traps:
                if (
                    trap.hook == hook
                    and trap.who in (who, "any")
                    and self.reached[trap.who, hook] == trap.count
                ):
                    self._spring(trap, who)

    def _spring(self, trap: Trap, who: str) -> None:
        self.world.covered[f"trap {trap.hook} {trap.verb}"] += 1
        words = tuple(who if word == "it" else word for word in trap.words)
        # Not inside the step that reached the hook, but before anything else happens.
        self.world.after(0, lambda: self._do(trap.verb, words))

    # -- verbs -----------------------------------------------------------------------------------

    def do_add(self, count: str = "1") -> None:
        if self.writer.open:
            self.writer.add(int(count))
        elif self.writer.closed:
            self.writer.add_in_vain()

    def do_add_at(self, entry_id: str) -> None:
        if self.writer.open:
            self.writer.add_at(int(entry_id))

    def do_force(self) -> None:
        if self.writer.open:
            self.writer.force()

    def do_tell_lac(self) -> None:
        if self.writer.open:
            self.writer.tell_lac()

    def do_close(self) -> None:
        if self.writer.open:
            self.writer.close()

    def do_recover(self) -> None:
        self.recoverers.append(Recoverer(self.cluster, f"recoverer{len(self.recoverers) + 1}"))

    def do_fence(self) -> None:
        name = f"recoverer{len(self.recoverers) + 1}"
        self.recoverers.append(Recoverer(self.cluster, name, fence_only=True))

    def do_read(self, number: str = "1") -> None:
        if reader := self._reader(number):
            reader.step()

    def do_poll(self, number: str = "1") -> None:
        if reader := self._reader(number):
            reader.poll()

    def _reader(self, number: str) -> Reader | None:
        if len(self.readers) < int(number) and self.cluster.oracle.deleted:
            return None  # it finds nothing to open
        while len(self.readers) < int(number):
            self.readers.append(Reader(self.cluster, f"reader{len(self.readers) + 1}"))
        return self.readers[int(number) - 1]

    def do_delete(self) -> None:
        self.cluster.metadata.delete()

    def do_collect(self, bookie: str) -> None:
        if self.cluster.oracle.deleted:
            self._node(bookie).collect()

    def do_kill(self, name: str) -> None:
        self._program(name, lambda program: program.kill())

    def do_stop(self, name: str) -> None:
        self._program(name, lambda program: program.stop())

    def do_go_on(self, name: str) -> None:
        self._program(name, lambda program: program.go_on())

    def _program(self, name: str, action: Callable[[Program], None]) -> None:
        for program in (self.writer, *self.recoverers, *self.readers):
            if program.name == name:
                action(program)

    def do_retry(self) -> None:
        if self.writer.alive:
            self.writer.retry()

    def do_crash(self, bookie: str) -> None:
        self.cluster.crash(BookieId(bookie))

    def do_restart(self, bookie: str) -> None:
        self._node(bookie).restart()

    def do_pause(self, bookie: str) -> None:
        self.world.tell(bookie, "is paused")
        self._node(bookie).pause()

    def do_resume(self, bookie: str) -> None:
        self._node(bookie).resume()

    def do_fill(self, bookie: str) -> None:
        """Its disk is full: read-only from now on."""
        node = self._node(bookie)
        self.world.tell(bookie, "is read-only")
        node.read_only = node.bookie.read_only = True

    def do_fail_disk(self, bookie: str) -> None:
        self.world.tell(bookie, "has a disk that fails")
        self._node(bookie).fail_disk()

    def do_empty(self, bookie: str) -> None:
        node = self._node(bookie)
        node.read_only = node.bookie.read_only = False

    def do_cut(self, program: str, bookie: str) -> None:
        self.world.tell(program, f"is cut off from {bookie}")
        self.cluster.cut(program, BookieId(bookie))

    def do_join(self, program: str, bookie: str) -> None:
        self.cluster.join(program, BookieId(bookie))

    def do_slow(self, program: str, bookie: str, milliseconds: str) -> None:
        self.cluster.network.link(program, bookie).delay_us = int(float(milliseconds) * MS)

    def _may_damage(self, bookie: str) -> bool:
        """Fewer bookies than an ack quorum may lose what they hold; otherwise losses are no violation."""
        damaged = self.cluster.oracle.damaged
        if bookie not in damaged and len(damaged) >= self.cluster.schedule.ack_quorum_size - 1:
            return False
        damaged.add(bookie)
        return True

    def do_rot(self, bookie: str, entry_id: str) -> None:
        """A bit of one of its entries flips."""
        if self._may_damage(bookie) and self._node(bookie).rot(int(entry_id)):
            self.world.covered["bit rot"] += 1
            self.world.tell(bookie, f"keeps entry {entry_id} badly")

    def do_wipe(self, bookie: str) -> None:
        """Its disks are exchanged for empty ones, with the machine's name kept."""
        if self._may_damage(bookie):
            self.world.covered["bookie wiped"] += 1
            self.world.tell(bookie, "lost its disks")
            self.cluster.wipe(BookieId(bookie))

    def _node(self, bookie: str) -> BookieNode:
        return self.cluster.bookies[BookieId(bookie)]

    # -- the end ---------------------------------------------------------------------------------

    def _end(self) -> None:
        """Everything is healed; then every call returns, the ledger can be closed, and all is there."""
        cluster, writer = self.cluster, self.writer
        self.read_before_healing = {reader.name: reader.given for reader in self.readers}
        cluster.heal()
        for program in (writer, *self.recoverers, *self.readers):
            program.go_on()
        if writer.alive:
            writer.retry()
        self.world.run(self.world.now + _QUIET_US)
        if writer.alive:
            state = writer.machine.state
            assert state not in (WriterState.CHANGING, WriterState.CLOSING), (
                f"I14: the writer is {state.value}"
            )
            if not cluster.oracle.advanced:
                silent = cluster.oracle.payloads.keys() - cluster.oracle.outcomes.keys()
                assert not silent, f"I14: no outcome of the adds {sorted(silent)}"
        for program in self.recoverers:
            assert not program.alive or program.outcome is not None, f"I14: {program.name} hangs"
        if cluster.oracle.deleted:
            check(self)
            return
        last = Recoverer(cluster, "last")
        self.world.run(self.world.now + _QUIET_US)
        assert isinstance(last.outcome, RecoveryDone), f"I14: {_reason(last)}"
        cluster.oracle.check_end()
        self._read_all()
        check(self)

    def _read_all(self) -> None:
        oracle = self.cluster.oracle
        assert oracle.end is not None
        for number in (1, 2):
            reader = Reader(self.cluster, f"last reader {number}")
            for _ in range(2 + len(oracle.latest.segments)):
                reader.step()
                self.world.run(self.world.now + _QUIET_US)
            assert reader.given == oracle.end[0] + 1, (
                f"I1: {reader.name} got {reader.given} of {oracle.end[0] + 1}"
            )


def _reason(program: Recoverer) -> object:
    outcome = program.outcome
    return outcome.error if isinstance(outcome, RecoveryAborted) else "still recovering"


def run(plan: Plan, *, trace: bool = False, mode: str = "a") -> Story:
    """Carry `plan` out. Raises ViolationError."""
    world = World(plan.seed, trace=trace)
    try:
        with event_loop_of(world) if mode != "a" else nullcontext():
            story = Story(plan, world, mode)
            try:
                story.tell()
            finally:
                story.cluster.carrier.close()
    except Exception as error:
        if trace:
            raise ViolationError(f"{error!r}\n{world.story()}\n{plan.text()}") from error
        where = f"profile {plan.profile}, seed {plan.seed}, mode {mode}"
        raise ViolationError(f"{error!r}, {where}") from error
    return story
