"""What happens in one story, written down: who does what when, and what each fault waits for.

A plan is text and back (`tests/sim/scenarios/*.txt`), so that a seed that failed can be read, cut
down and kept:

    # what it shows
    seed 17                                  for the delays
    shape 3/3/2 of 6
    ensemble b0 b1 b2                        any, if not given; then bookies are chosen in their order
    set network.drop=0.02 metadata.lost_reply=0.1
    at 12.5 crash b1                         milliseconds
    on b2 "fence answered" 1 crash           the first time that b2 comes to this point
    finds M03                                see mutants.py
    expect closed at 3                       see expectations.py
"""

import shlex
from dataclasses import dataclass, field, fields

from bkctl.types import BookieId
from tests.sim.cluster import Settings, Shape
from tests.sim.metadata_node import Troubles
from tests.sim.network import Conditions


@dataclass(frozen=True, slots=True)
class Act:
    """At `at_us`: one of the verbs of story.py with its words."""

    at_us: int
    verb: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(("at", f"{self.at_us / 1000:.3f}", self.verb, *self.words))


@dataclass(frozen=True, slots=True)
class Trap:
    """When `who` (a bookie, or `cluster`) comes to `hook` for the `count`th time, the verb happens."""

    who: str
    hook: str
    count: int
    verb: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(("on", self.who, shlex.quote(self.hook), str(self.count), self.verb, *self.words))


@dataclass(slots=True)
class Plan:
    seed: int
    shape: Shape
    settings: Settings = field(default_factory=Settings)
    acts: list[Act] = field(default_factory=list)
    traps: list[Trap] = field(default_factory=list)
    expect: list[str] = field(default_factory=list)
    profile: str = ""
    ensemble: tuple[BookieId, ...] = ()
    finds: tuple[str, ...] = ()  # mutants with which the story breaks an invariant or an expectation

    def text(self) -> str:
        """The plan as a scenario file holds it."""
        shape = self.shape
        lines = [
            f"seed {self.seed}",
            f"shape {shape.ensemble_size}/{shape.write_quorum_size}/{shape.ack_quorum_size}"
            f" of {shape.bookies}",
        ]
        if self.ensemble:
            lines.append("ensemble " + " ".join(self.ensemble))
        changed = [
            f"{whose}{name}={getattr(part, name)}"
            for whose, part, default in _parts(self.settings)
            for name in _plain(part)
            if getattr(part, name) != getattr(default, name)
        ]
        if changed:
            lines.append("set " + " ".join(changed))
        lines += [str(act) for act in self.acts]
        lines += [str(trap) for trap in self.traps]
        if self.finds:
            lines.append("finds " + " ".join(self.finds))
        lines += [f"expect {what}" for what in self.expect]
        return "\n".join(lines) + "\n"


def _parts(settings: Settings) -> list[tuple[str, object, object]]:
    return [
        ("", settings, Settings()),
        ("network.", settings.conditions, Conditions()),
        ("metadata.", settings.troubles, Troubles()),
    ]


def _plain(part: object) -> list[str]:
    """The names of its numbers and switches."""
    return [f.name for f in fields(part) if isinstance(getattr(part, f.name), bool | int | float)]  # type: ignore[arg-type]


def parse(text: str) -> Plan:
    """A plan from its text. Raises ValueError, with the line, for what cannot be understood."""
    plan = Plan(0, Shape())
    for number, line in enumerate(text.splitlines(), 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        try:
            _take(plan, words)
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {number}: {line!r}: {error}") from error
    return plan


def _take(plan: Plan, words: list[str]) -> None:
    match words[0]:
        case "seed":
            plan.seed = int(words[1])
        case "shape":
            sizes = [int(size) for size in words[1].split("/")]
            plan.shape = Shape(*sizes, bookies=int(words[3]))
        case "ensemble":
            plan.ensemble = tuple(BookieId(word) for word in words[1:])
        case "finds":
            plan.finds = tuple(words[1:])
        case "set":
            for pair in words[1:]:
                _set(plan.settings, *pair.split("="))
        case "at":
            plan.acts.append(Act(round(float(words[1]) * 1000), words[2], tuple(words[3:])))
        case "on":
            plan.traps.append(Trap(words[1], words[2], int(words[3]), words[4], tuple(words[5:])))
        case "expect":
            plan.expect.append(shlex.join(words[1:]))
        case other:
            raise ValueError(f"no such line: {other}")


def _set(settings: Settings, name: str, value: str) -> None:
    for whose, part, default in _parts(settings):
        plain = name.removeprefix(whose)
        if name.startswith(whose) and plain in _plain(part):
            kind = type(getattr(default, plain))
            setattr(part, plain, value == "True" if kind is bool else kind(value))
            return
    raise ValueError(f"no such setting: {name}")
