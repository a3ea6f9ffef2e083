"""Virtual time and chance: one heap of events, one root seed.

Times are whole microseconds. Each concern draws from a stream of its own, so that taking one fault
out of a story leaves what the others draw as it was.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable

US, MS, S = 1, 1_000, 1_000_000  # in microseconds


class World:
    """`trace`: every line of the story is kept, as (time, actor, text)."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.now = 0
        self.trace: list[tuple[int, str, str]] | None = [] if trace else None
        self.failure: BaseException | None = None  # of something that no caller would see
        self.covered: Counter[str] = Counter()  # hooks that fired, cells of state tables that were entered
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    def stream(self, concern: str) -> random.Random:
        return random.Random(f"{self.seed}/{concern}")

    def after(self, delay_us: int, event: Callable[[], None]) -> None:
        """`event` happens in `delay_us` microseconds; of two at one time, the first asked for is first."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay_us, self._sequence, event))

    def run(self, until: int, events_max: int = 200_000) -> None:
        """Until nothing happens before `until`. Raises AssertionError when it never becomes quiet (I14)."""
        events = self._events
        for _ in range(events_max):
            if not events or events[0][0] > until:
                self.now = max(self.now, until)
                return
            self.now, _sequence, event = heapq.heappop(events)
            event()
            if self.failure is not None:
                raise self.failure
        raise AssertionError(f"I14: no end in sight after {events_max} events")

    def tell(self, actor: str, text: str) -> None:
        if self.trace is not None:
            self.trace.append((self.now, actor, text))

    def story(self) -> str:
        """The trace as text, one line an event."""
        return "\n".join(f"{at / 1000:10.3f} ms  {actor:<12} {text}" for at, actor, text in self.trace or [])
