"""Every defect that was ever reported of the protocol, as far as one world can tell of it, as a story.

A scenario ends as it says, in every mode; with the defect put back (`finds`) it ends otherwise.
"""

from pathlib import Path

import pytest

from tests.sim.cluster import MODES
from tests.sim.mutants import MUTANTS, breaks
from tests.sim.plan import parse
from tests.sim.story import ViolationError, run

SCENARIOS = sorted(Path(__file__).parent.glob("scenarios/*.txt"))
_MUTANTS = {mutant.name: mutant for mutant in MUTANTS}


def _name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", SCENARIOS, ids=_name)
def test_a_scenario_ends_as_it_says(path: Path) -> None:
    plan = parse(path.read_text())
    assert plan.expect
    run(plan)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("path", SCENARIOS, ids=_name)
def test_a_scenario_breaks_nothing_in_bytes_and_on_disks(path: Path, mode: str) -> None:
    """Messages take other times there, so it may end otherwise."""
    plan = parse(path.read_text())
    plan.expect.clear()
    run(plan, mode=mode)


@pytest.mark.parametrize("path", [p for p in SCENARIOS if "\nfinds" in p.read_text()], ids=_name)
def test_a_scenario_finds_its_defect(path: Path) -> None:
    plan = parse(path.read_text())
    for name in plan.finds:
        assert breaks(plan, _MUTANTS[name]), f"{name} goes unnoticed"


def test_a_wrong_expectation_is_noticed() -> None:
    plan = parse(SCENARIOS[0].read_text())
    plan.expect = ["closed at 99"]
    with pytest.raises(ViolationError, match="expect closed at 99: found closed at"):
        run(plan)
    plan.expect = ["fair weather"]
    with pytest.raises(ViolationError, match="no such expectation: fair weather"):
        run(plan)


@pytest.mark.parametrize("line", ["shape 3", "at noon crash b1", "set gravity=2", "once upon a time"])
def test_a_line_that_says_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        parse(line)
