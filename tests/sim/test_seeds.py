"""No invariant breaks in a hostile world, from many seeds; and known defects are found."""

from collections import Counter
from pathlib import Path

import pytest

from tests.sim.coverage import missing
from tests.sim.generator import PROFILES, plan_of
from tests.sim.mutants import MUTANTS, Mutant, breaks, holds, seeds_needed
from tests.sim.plan import parse
from tests.sim.shrink import shrink
from tests.sim.story import run

_SEEDS = {"a": 15, "b": 8, "c": 3}  # of each profile; `make sim` runs many more


@pytest.mark.parametrize("mode", _SEEDS)
@pytest.mark.parametrize("profile", PROFILES)
def test_no_invariant_breaks(profile: str, mode: str) -> None:
    for seed in range(_SEEDS[mode]):
        run(plan_of(seed, profile), mode=mode)


def test_the_stories_are_worth_telling() -> None:
    """There are ensemble changes, acknowledged entries, readers that read, and lost bookies."""
    stories = [run(plan_of(seed)) for seed in range(60)]
    assert sum(story.cluster.oracle.acked >= 0 for story in stories) > 30
    assert sum(len(story.cluster.oracle.latest.segments) > 1 for story in stories) > 5
    assert sum(story.world.covered["bookie crash"] > 0 for story in stories) > 15
    assert any(story.cluster.oracle.read for story in stories)
    assert any(not told for story in stories for told in story.cluster.oracle.outcomes.values())


def test_every_cell_of_the_state_tables_is_reached() -> None:
    """By the scenarios and some seeds; so is every hook and every fault."""
    covered: Counter[str] = Counter()
    for path in Path(__file__).parent.glob("scenarios/*.txt"):
        covered.update(run(parse(path.read_text())).world.covered)
    for seed in range(800):
        covered.update(run(plan_of(seed)).world.covered)
    assert missing(covered) == []


@pytest.mark.parametrize("mode", _SEEDS)
@pytest.mark.parametrize("seed", [3, 11, 29])
def test_the_same_seed_tells_the_same_story(seed: int, mode: str) -> None:
    first, second = (run(plan_of(seed), trace=True, mode=mode) for _ in range(2))
    assert first.world.story() == second.world.story()


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_a_plan_survives_as_text(seed: int) -> None:
    """So a seed that failed can be kept as a scenario."""
    plan = plan_of(seed)
    again = parse(plan.text())
    assert again.text() == plan.text()
    assert run(again, trace=True).world.story() == run(plan, trace=True).world.story()


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.fast], ids=lambda mutant: mutant.name)
def test_a_known_defect_is_found(mutant: Mutant) -> None:
    assert seeds_needed(mutant) is not None, f"{mutant.name} was not found: {mutant.defect}"


@pytest.mark.parametrize("name", ["M03", "M10"])
def test_a_failing_seed_shrinks_to_a_few_lines(name: str) -> None:
    (mutant,) = (m for m in MUTANTS if m.name == name)
    needed = seeds_needed(mutant)
    assert needed is not None
    small = shrink(plan_of(needed - 1, mutant.profile), lambda plan: breaks(plan, mutant))
    assert len(small.text().splitlines()) <= 10, small.text()
    assert breaks(parse(small.text()), mutant)


def test_a_plan_that_holds_is_not_shrunk() -> None:
    with pytest.raises(AssertionError, match="does not fail"):
        shrink(plan_of(1), lambda plan: not holds(plan))
