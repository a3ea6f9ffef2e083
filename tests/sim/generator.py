"""From a seed to a plan: who writes, recovers and reads, and what goes wrong.

Each seed takes a random few of the kinds of faults, never all: a world in which everything breaks
shows little. Profiles aim at what chance alone hardly ever meets.
"""

import random
from collections.abc import Callable

from tests.sim.cluster import Settings, Shape
from tests.sim.metadata_node import Troubles
from tests.sim.network import Conditions
from tests.sim.plan import Act, Plan, Trap
from tests.sim.world import MS

SHAPES = (
    (3, 3, 2), (3, 2, 2), (2, 2, 2), (4, 2, 2), (4, 2, 1),
    (5, 3, 2), (5, 5, 3), (6, 2, 2), (6, 3, 2), (1, 1, 1),
)  # fmt: skip
_HOOKS = ("added", "recovery added", "synced", "fenced", "fence answered", "checkpoint")
_STORY_US = 120 * MS

Profile = Callable[[random.Random, Plan], None]


def plan_of(seed: int, profile: str | None = None) -> Plan:
    """The plan of `seed`; every profile gets a share of the seeds unless one is named."""
    rng = random.Random(f"{seed}/plan")
    weights = [4 if name == "generic" else 1 for name in PROFILES]
    name = profile or rng.choices(list(PROFILES), weights)[0]
    size = rng.choice(SHAPES)
    plan = Plan(seed, Shape(*size, bookies=size[0] + rng.randint(1, 3)), profile=name)
    _base(rng, plan)
    PROFILES[name](rng, plan)
    plan.settings.delay_change = random.Random(f"{seed}/delay").random() < 0.15
    plan.acts.sort(key=lambda act: act.at_us)
    return plan


def _at(rng: random.Random, low: float = 0.0, high: float = 1.0) -> int:
    return int(_STORY_US * rng.uniform(low, high))


def _bookie(rng: random.Random, plan: Plan) -> str:
    return f"b{rng.randrange(plan.shape.bookies)}"


def _base(rng: random.Random, plan: Plan) -> None:
    """A writer that adds a few entries, perhaps closes; timers shorter or longer than the story."""
    plan.settings = Settings(
        request_timeout_us=rng.choice((10, 40, 150, 1000)) * MS,
        conditions=Conditions(delay_us_max=rng.choice((1, 3, 10)) * MS),
        sync_us_max=rng.choice((1, 3, 15)) * MS,
        window_entries=rng.choice((1, 2, 4, 64)),
        speculative_us=rng.choice((5, 20, 100)) * MS,
    )
    entries = rng.choice((1, 2, 3, 4, 6, 8, 30))
    while entries > 0:
        count = min(entries, rng.randint(1, 4))
        plan.acts.append(Act(_at(rng, 0, 0.6), "add", (str(count),)))
        entries -= count
    if rng.random() < 0.3:
        plan.acts.append(Act(_at(rng, 0.3), "close"))
    for number in range(rng.randint(0, 2)):
        verb = rng.choice(("read", "read", "poll"))
        plan.acts += [Act(_at(rng), verb, (str(number + 1),)) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.2:
        plan.acts += [Act(_at(rng), "tell_lac") for _ in range(2)]


def _generic(rng: random.Random, plan: Plan) -> None:
    for _ in range(rng.randint(0, 3)):
        plan.acts.append(Act(_at(rng, 0.1), rng.choice(("recover", "recover", "recover", "fence"))))
    kinds = [kind for kind in _FAULTS if rng.random() < 0.35]
    for _ in range(rng.randint(0, 6) if kinds else 0):
        rng.choice(kinds)(rng, plan)


# -- kinds of faults -----------------------------------------------------------------------------


def _crash(rng: random.Random, plan: Plan) -> None:
    bookie, at = _bookie(rng, plan), _at(rng)
    plan.acts.append(Act(at, "crash", (bookie,)))
    if rng.random() < 0.7:
        plan.acts.append(Act(at + _at(rng, 0, 0.3), "restart", (bookie,)))


def _failing_disk(rng: random.Random, plan: Plan) -> None:
    bookie, at = _bookie(rng, plan), _at(rng)
    plan.acts.append(Act(at, "fail_disk", (bookie,)))
    plan.acts.append(Act(at + _at(rng, 0.1, 0.5), "restart", (bookie,)))


def _pause(rng: random.Random, plan: Plan) -> None:
    bookie, at = _bookie(rng, plan), _at(rng)
    plan.acts.append(Act(at, "pause", (bookie,)))
    plan.acts.append(Act(at + _at(rng, 0, 0.5), "resume", (bookie,)))


def _cut(rng: random.Random, plan: Plan) -> None:
    program = rng.choice(("writer", "recoverer1", "recoverer2", "reader1"))
    words, at = (program, _bookie(rng, plan)), _at(rng)
    plan.acts.append(Act(at, "cut", words))
    if rng.random() < 0.7:
        plan.acts.append(Act(at + _at(rng, 0, 0.4), "join", words))


def _slow(rng: random.Random, plan: Plan) -> None:
    program = rng.choice(("writer", "recoverer1", "recoverer2"))
    plan.acts.append(Act(0, "slow", (program, _bookie(rng, plan), str(rng.choice((5, 30, 120))))))


def _lossy(rng: random.Random, plan: Plan) -> None:
    conditions = plan.settings.conditions
    conditions.drop = rng.choice((0.0, 0.01, 0.05, 0.2))
    conditions.duplicate = rng.choice((0.0, 0.05, 0.3))
    conditions.reorder = rng.choice((0.0, 0.1, 0.5))
    conditions.slow = rng.choice((0.0, 0.05, 0.2))


def _metadata(rng: random.Random, plan: Plan) -> None:
    plan.settings.troubles = Troubles(
        lost_request=rng.choice((0.0, 0.05, 0.2)),
        lost_reply=rng.choice((0.0, 0.1, 0.5)),
        slow=rng.choice((0.0, 0.1, 0.4)),
    )


def _kill_program(rng: random.Random, plan: Plan) -> None:
    program = rng.choice(("writer", "recoverer1", "recoverer2"))
    plan.acts.append(Act(_at(rng, 0.1), "kill", (program,)))


def _stop_program(rng: random.Random, plan: Plan) -> None:
    program, at = rng.choice(("writer", "recoverer1")), _at(rng)
    plan.acts.append(Act(at, "stop", (program,)))
    plan.acts.append(Act(at + _at(rng, 0.1, 1.0), "go_on", (program,)))


def _full(rng: random.Random, plan: Plan) -> None:
    bookie, at = _bookie(rng, plan), _at(rng)
    plan.acts.append(Act(at, "fill", (bookie,)))
    if rng.random() < 0.5:
        plan.acts.append(Act(at + _at(rng, 0, 0.3), "empty", (bookie,)))


def _trap(rng: random.Random, plan: Plan) -> None:
    verb, words = rng.choice(
        (("crash", ("it",)), ("pause", ("it",)), ("cut", ("writer", "it")), ("fill", ("it",)))
    )
    plan.traps.append(Trap("any", rng.choice(_HOOKS), rng.randint(1, 12), verb, words))


def _metadata_trap(rng: random.Random, plan: Plan) -> None:
    verb, words = rng.choice(
        (("kill", ("recoverer1",)), ("stop", ("writer",)), ("crash", (_bookie(rng, plan),)), ("recover", ()))
    )
    hook = rng.choice(("metadata sent", "metadata answered"))
    plan.traps.append(Trap("cluster", hook, rng.randint(1, 3), verb, words))


def _retry(rng: random.Random, plan: Plan) -> None:
    plan.acts += [Act(_at(rng), "retry") for _ in range(3)]


_FAULTS = (
    _crash, _pause, _cut, _slow, _lossy, _metadata, _kill_program, _stop_program, _full, _trap,
    _metadata_trap, _retry, _failing_disk,
)  # fmt: skip


# -- profiles ------------------------------------------------------------------------------------


def _lost_fence(rng: random.Random, plan: Plan) -> None:
    """Slow ways from the writer to its bookies, an early recoverer that one bookie does not hear."""
    for bookie in range(plan.shape.bookies):
        if rng.random() < 0.6:
            plan.acts.append(Act(0, "slow", ("writer", f"b{bookie}", str(rng.choice((5, 15, 40))))))
    at = _at(rng, 0.02, 0.5)
    plan.acts.append(Act(at, "recover"))
    deaf = _bookie(rng, plan)
    plan.acts.append(Act(max(0, at - 1), "cut", ("recoverer1", deaf)))
    plan.acts.append(Act(at + _at(rng, 0.02, 0.2), "join", ("recoverer1", deaf)))
    plan.settings.request_timeout_us = rng.choice((150, 1000)) * MS


def _crash_at_fence(rng: random.Random, plan: Plan) -> None:
    """Bookies lose power after they answered a fencing read, and come back while the writer goes on."""
    plan.acts = [act for act in plan.acts if act.verb != "close"]
    at = _at(rng, 0.02, 0.3)
    plan.acts.append(Act(at, rng.choice(("recover", "recover", "fence"))))
    window = plan.settings.window_entries = rng.choice((1, 1, 2))
    plan.settings.sync_us_max = rng.choice((5, 15)) * MS
    plan.settings.conditions.delay_us_max = MS
    plan.settings.request_timeout_us = rng.choice((150, 1000)) * MS
    count = rng.randint(1, 2 + window)
    for bookie in range(plan.shape.bookies):
        if rng.random() < 0.8:
            plan.traps.append(Trap(f"b{bookie}", "fence answered", count, "crash", ("it",)))
        plan.acts.append(Act(at + rng.randint(5 * MS, 50 * MS), "restart", (f"b{bookie}",)))
    plan.acts += [Act(at + rng.randint(5 * MS, 90 * MS), "add", ("1",)) for _ in range(4)]


def _deaf_fence(rng: random.Random, plan: Plan) -> None:
    """A fence that several bookies of a striped ensemble do not hear of."""
    size = rng.choice(((4, 2, 1), (4, 2, 2), (6, 2, 2), (6, 3, 2), (5, 3, 2)))
    plan.shape = Shape(*size, bookies=size[0] + 1)
    plan.acts = [act for act in plan.acts if act.verb != "close"]
    at = _at(rng, 0.02, 0.4)
    plan.acts.append(Act(at, "fence"))
    for bookie in rng.sample(range(plan.shape.bookies), rng.randint(1, size[0] - 1)):
        plan.acts.append(Act(max(0, at - 1), "cut", ("recoverer1", f"b{bookie}")))
    plan.settings.request_timeout_us = 1000 * MS
    plan.acts += [Act(at + rng.randint(5 * MS, 60 * MS), "add", ("1",)) for _ in range(4)]


def _two_failures(rng: random.Random, plan: Plan) -> None:
    """Two bookies of a striped ensemble fail within one ensemble change."""
    size = rng.choice(((4, 2, 1), (4, 2, 2), (6, 2, 2), (6, 3, 2), (5, 3, 2)))
    plan.shape = Shape(*size, bookies=size[0] + 3)
    at = _at(rng, 0.05, 0.5)
    for bookie in rng.sample(range(plan.shape.bookies), rng.randint(2, 3)):
        plan.acts.append(Act(at + rng.randint(0, 8 * MS), "crash", (f"b{bookie}",)))
    plan.settings.troubles = Troubles(slow=0.3, slow_us_max=40 * MS)
    plan.acts += [Act(at + rng.randint(0, 20 * MS), "add", (str(rng.randint(1, 3)),)) for _ in range(4)]
    if rng.random() < 0.5:
        plan.acts.append(Act(_at(rng, 0.5), "recover"))


def _failing_recovery(rng: random.Random, plan: Plan) -> None:
    """Bookies fail while a recovery rewrites, a second recoverer comes."""
    at = _at(rng, 0.1, 0.5)
    if rng.random() < 0.7:
        plan.acts.append(Act(max(0, at - MS), "kill", ("writer",)))
    plan.acts += [Act(at, "recover"), Act(at + _at(rng, 0, 0.4), "recover")]
    for bookie in rng.sample(range(plan.shape.bookies), min(2, plan.shape.bookies)):
        when = at + rng.randint(0, 20 * MS)
        plan.acts.append(Act(when, "crash", (f"b{bookie}",)))
        if rng.random() < 0.6:
            plan.acts.append(Act(when + rng.randint(5 * MS, 40 * MS), "restart", (f"b{bookie}",)))
    if rng.random() < 0.5:
        plan.acts.append(Act(at + rng.randint(0, 40 * MS), "kill", ("recoverer1",)))


def _silent_metadata(rng: random.Random, plan: Plan) -> None:
    """Replies of the metadata store are lost, while bookies fail and recoverers race."""
    plan.settings.troubles = Troubles(lost_request=0.15, lost_reply=0.5, slow=0.3, slow_us_max=60 * MS)
    _crash(rng, plan)
    _crash(rng, plan)
    plan.acts += [Act(_at(rng, 0.2), "recover") for _ in range(rng.randint(1, 3))]


def _full_disks(rng: random.Random, plan: Plan) -> None:
    for _ in range(rng.randint(1, 3)):
        _full(rng, plan)
    _crash(rng, plan)
    if rng.random() < 0.7:
        plan.acts.append(Act(_at(rng, 0.2), "recover"))
    _retry(rng, plan)


def _tailing(rng: random.Random, plan: Plan) -> None:
    """Readers follow a writer that stops now and then; only explicit LACs tell of its last entries."""
    for number in range(rng.randint(1, 3)):
        words = (str(number + 1),)
        plan.acts += [Act(_at(rng), rng.choice(("poll", "poll", "read")), words) for _ in range(6)]
    plan.acts += [Act(_at(rng), "tell_lac") for _ in range(4)]
    if rng.random() < 0.6:
        plan.acts.append(Act(_at(rng, 0.3), "recover"))
    for _ in range(rng.randint(0, 3)):
        rng.choice((_crash, _pause, _cut, _slow, _lossy, _metadata))(rng, plan)


def _bit_rot(rng: random.Random, plan: Plan) -> None:
    """Entries of one bookie are damaged while they are read and recovered."""
    for _ in range(rng.randint(1, 2)):
        bookie = _bookie(rng, plan)
        plan.acts += [Act(_at(rng, 0.1), "rot", (bookie, str(rng.randint(0, 4)))) for _ in range(4)]
    plan.acts += [Act(_at(rng, 0.2), "read", (rng.choice(("1", "2")),)) for _ in range(6)]
    if rng.random() < 0.7:
        plan.acts.append(Act(_at(rng, 0.3), "recover"))
    for _ in range(rng.randint(0, 2)):
        rng.choice((_crash, _pause, _slow, _lossy))(rng, plan)


def _deferred(rng: random.Random, plan: Plan) -> None:
    """Adds are answered before they are durable; forces make them so, bookies lose power."""
    plan.settings.deferred_sync = True
    plan.settings.sync_us_max = rng.choice((3, 15)) * MS
    plan.acts += [Act(_at(rng), "force") for _ in range(rng.randint(1, 5))]
    for _ in range(rng.randint(0, 3)):
        rng.choice((_crash, _crash, _pause, _lossy, _trap))(rng, plan)
    if rng.random() < 0.6:
        plan.acts.append(Act(_at(rng, 0.3), "recover"))


def _advanced(rng: random.Random, plan: Plan) -> None:
    """The caller chooses the ids: in any order, perhaps with a gap, perhaps one of them twice."""
    plan.settings.advanced = True
    plan.acts = [act for act in plan.acts if act.verb != "add"]
    ids = list(range(rng.choice((1, 3, 6, 12))))
    if rng.random() < 0.3:
        ids.remove(rng.choice(ids))
    ids += rng.choices(ids, k=rng.randint(0, 1)) if ids else []
    rng.shuffle(ids)
    plan.acts += [Act(_at(rng, 0, 0.6), "add_at", (str(entry_id),)) for entry_id in ids]
    for _ in range(rng.randint(0, 4)):
        rng.choice((_crash, _pause, _cut, _slow, _lossy, _metadata, _stop_program, _full, _trap))(rng, plan)
    if rng.random() < 0.6:
        plan.acts.append(Act(_at(rng, 0.2), "recover"))


def _deleted(rng: random.Random, plan: Plan) -> None:
    """Somebody deletes the ledger under its writer, readers and recoverers."""
    at = _at(rng, 0.1, 0.9)
    plan.acts.append(Act(at, "delete"))
    for bookie in range(plan.shape.bookies):
        if rng.random() < 0.7:
            plan.acts.append(Act(at + _at(rng, 0, 0.5), "collect", (f"b{bookie}",)))
    plan.acts += [Act(at + _at(rng, 0, 0.5), "add", ("1",)) for _ in range(rng.randint(0, 3))]
    for _ in range(rng.randint(0, 2)):
        plan.acts.append(Act(_at(rng, 0.1), "recover"))
    for _ in range(rng.randint(0, 4)):
        rng.choice((_crash, _pause, _cut, _lossy, _metadata, _stop_program, _full, _trap))(rng, plan)


def _wiped(rng: random.Random, plan: Plan) -> None:
    """A bookie comes back with empty disks, or rather does not, while others fail and recoverers come."""
    at = _at(rng, 0.1, 0.8)
    bookie = _bookie(rng, plan)
    plan.acts += [Act(at, "wipe", (bookie,)), Act(at + MS, "restart", (bookie,))]
    plan.acts += [Act(at + rng.randint(0, 40 * MS), "recover") for _ in range(rng.randint(1, 2))]
    for _ in range(rng.randint(0, 3)):
        rng.choice((_crash, _pause, _cut, _slow, _kill_program, _full))(rng, plan)


PROFILES: dict[str, Profile] = {
    "generic": _generic,
    "lost fence": _lost_fence,
    "crash at fence": _crash_at_fence,
    "deaf fence": _deaf_fence,
    "two failures": _two_failures,
    "failing recovery": _failing_recovery,
    "silent metadata": _silent_metadata,
    "full disks": _full_disks,
    "tailing": _tailing,
    "bit rot": _bit_rot,
    "deferred": _deferred,
    "advanced": _advanced,
    "deleted": _deleted,
    "wiped": _wiped,
}
