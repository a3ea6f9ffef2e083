"""What a scenario expects at its end, after everything was healed and the ledger recovered.

expect closed at 3               the last entry; -1: an empty ledger
expect acked 3                   the last entry that the writer was told is stored
expect refused 2                 so many adds failed
expect segments 2                of the final metadata
expect ensemble 2 b0 b3 b2       that of the segment that holds entry 2
expect writer withdrawn          its state, as bkctl.quorum.adds names it
expect close ok | NameOfError    what a close of the writer was told
expect recoverer1 done | hangs | NameOfError
expect reader1 read 3            so many entries before everything was healed
expect happened "bit rot"        a fault, a hook or a cell of a state table; see --coverage
expect deleted
"""

import shlex
from typing import TYPE_CHECKING

from bkctl.quorum.actions import RecoveryDone
from bkctl.types import EntryId

if TYPE_CHECKING:
    from tests.sim.story import Story


def check(story: "Story") -> None:
    """Raises AssertionError, with the line, for an expectation that is not met."""
    for line in story.plan.expect:
        words = shlex.split(line)
        found = _found(story, words)
        assert found == words, f"expect {line}: found {' '.join(found)}"


def _found(story: "Story", words: list[str]) -> list[str]:
    oracle, writer = story.cluster.oracle, story.writer
    match words:
        case ["closed", "at", _]:
            return ["closed", "at", "no end" if oracle.end is None else str(oracle.end[0])]
        case ["acked", _]:
            return ["acked", str(oracle.acked)]
        case ["refused", _]:
            return ["refused", str(sum(not told for told in oracle.outcomes.values()))]
        case ["segments", _]:
            return ["segments", str(len(oracle.latest.segments))]
        case ["ensemble", entry_id, *_]:
            return ["ensemble", entry_id, *oracle.latest.segment_at(EntryId(int(entry_id))).ensemble]
        case ["writer", _]:
            return ["writer", writer.machine.state.value]
        case ["close", _]:
            told = writer.close_error
            return ["close", told if isinstance(told, str) else type(told).__name__ if told else "ok"]
        case ["deleted"]:
            return ["deleted" if oracle.deleted else "not deleted"]
        case ["happened", what]:
            return ["happened" if story.world.covered[what] else "did not happen", what]
        case [name, _] if name.startswith("recoverer"):
            return [name, _outcome(story, name)]
        case [name, "read", _] if name.startswith("reader"):
            return [name, "read", str(story.read_before_healing[name])]
    raise AssertionError(f"no such expectation: {' '.join(words)}")


def _outcome(story: "Story", name: str) -> str:
    (outcome,) = (program.outcome for program in story.recoverers if program.name == name)
    if outcome is None:
        return "hangs"
    return "done" if isinstance(outcome, RecoveryDone) else type(outcome.error).__name__
