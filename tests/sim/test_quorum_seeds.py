"""Writer and racing recoverers in a hostile world, from many seeds; see quorum_world."""

import pytest

from bkctl.quorum.actions import RecoveryDone
from bkctl.quorum.adds import WriterState
from tests.sim.quorum_world import Recoverer, World, Writer, check_end

SEEDS = range(300)
STEPS = 250


def run_story(seed: int) -> World:
    """A writer adds, loses bookies, may be killed, closed or recovered from under; then all heals."""
    world = World(seed)
    writer = Writer(world)
    recoverers: list[Recoverer] = []
    calm_steps = world.random.randint(0, STEPS)  # then others come to recover the ledger
    for step in range(STEPS):
        world.flip_bookies()
        choice = world.random.random()
        if choice < 0.25 and writer.open and len(world.in_flight) < 20:
            writer.add(world.random.randint(1, 4))
        elif choice < 0.2515:
            writer.kill()
        elif choice < 0.2525 and writer.open:
            writer.perform(writer.machine.close())
        elif choice < 0.275 and step > calm_steps and len(recoverers) < 4:
            recoverers.append(Recoverer(world))
        elif choice < 0.28 and recoverers:
            world.random.choice(recoverers).kill()
        elif choice < 0.3:
            world.retry(writer)
        elif world.in_flight:
            world.step()
    world.heal()
    world.retry(writer)
    world.settle()
    if writer.alive:
        assert writer.machine.state not in (WriterState.CHANGING, WriterState.CLOSING), "I14: stuck"
    if writer.open:
        assert all(e in world.outcomes for e in world.payloads), "I14: an add without outcome"
    last = Recoverer(world)
    world.settle()
    assert isinstance(last.outcome, RecoveryDone), ("I14", last.outcome)
    if writer.alive and writer.machine.state is not WriterState.OPEN:
        assert all(e in world.outcomes for e in world.payloads), "I9: an add without outcome"
    check_end(world)
    return world


@pytest.mark.parametrize("first", SEEDS[::50])
def test_no_acknowledged_entry_is_lost(first: int) -> None:
    for seed in range(first, first + 50):
        try:
            run_story(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


def test_the_stories_are_worth_telling() -> None:
    """The world must produce ensemble changes, acknowledged entries and several segments."""
    worlds = [run_story(seed) for seed in range(40)]
    assert sum(world.acked >= 0 for world in worlds) > 20
    assert sum(len(world.store.current.value.segments) > 1 for world in worlds) > 5
    assert any(not ok for world in worlds for ok in world.outcomes.values())


def test_the_same_seed_tells_the_same_story() -> None:
    first, second = run_story(11), run_story(11)
    assert first.store.current == second.store.current
    assert first.outcomes == second.outcomes
