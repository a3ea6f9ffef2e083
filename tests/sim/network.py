"""Requests and answers between programs and bookies: late, lost, twice, out of order, cut off.

A link is one program's connection to one bookie. Between `cut` and `mend` nothing passes; both ends
notice, or (a partition) only the request timer does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.world import MS, World

Event = Callable[[], None]


@dataclass(slots=True)
class Conditions:
    """Probabilities per message; delays in microseconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # not delivered in the order of sending
    delay_us_max: int = 2 * MS
    slow: float = 0.0  # a message takes up to `slow_us_max`
    slow_us_max: int = 400 * MS


@dataclass(slots=True)
class _Link:
    open: bool = True
    epochs: list[int] = field(
        default_factory=lambda: [0, 0]
    )  # there and back: what was sent before a reset never arrives
    arrived: list[int] = field(
        default_factory=lambda: [0, 0]
    )  # when the last message arrives, there and back
    delay_us: int = 0  # of this link, on top


class Network:
    def __init__(self, world: World, conditions: Conditions) -> None:
        self._world = world
        self._random = world.stream("network")
        self.conditions = conditions
        self._links: dict[tuple[str, str], _Link] = {}

    def link(self, program: str, bookie: str) -> _Link:
        found = self._links.get((program, bookie))
        if found is None:
            found = self._links[program, bookie] = _Link()
        return found

    def send(self, program: str, bookie: str, back: int, deliver: Event) -> None:
        """Carry a message to the bookie (`back` 0) or from it (1); `deliver` happens never, once or twice."""
        world, conditions, chance = self._world, self.conditions, self._random.random
        link = self.link(program, bookie)
        if not link.open or chance() < conditions.drop:
            world.covered["network drop"] += 1
            return
        copies = 2 if chance() < conditions.duplicate else 1
        epoch = link.epochs[back]
        for _ in range(copies):
            delay = link.delay_us + int(chance() * conditions.delay_us_max)
            if chance() < conditions.slow:
                delay += int(chance() * conditions.slow_us_max)
            at = world.now + delay
            if chance() >= conditions.reorder:
                at = link.arrived[back] = max(link.arrived[back], at)

            def arrive() -> None:
                if link.epochs[back] == epoch and link.open:
                    deliver()

            world.after(at - world.now, arrive)

    def cut(self, program: str, bookie: str) -> None:
        link = self.link(program, bookie)
        link.open = False
        link.epochs = [epoch + 1 for epoch in link.epochs]

    def reset(self, bookie: str) -> None:
        """The bookie died: what is on its way there is lost; its last answers may still arrive."""
        answers_lost = self._random.random() < 0.5
        for (_, name), link in self._links.items():
            if name == bookie:
                link.epochs = [link.epochs[0] + 1, link.epochs[1] + answers_lost]

    def mend(self) -> None:
        """Everything passes again, at its usual pace."""
        self.conditions = Conditions()
        for link in self._links.values():
            link.open = True
            link.delay_us = 0
