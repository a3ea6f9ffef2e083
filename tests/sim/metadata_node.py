"""The metadata store: one ledger's versioned value, slow, and silent at times.

It accepts what it is told to accept; whether that was legal is the oracle's question.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bkctl.types import LedgerMetadata, Versioned
from tests.sim.world import MS, World


@dataclass(slots=True)
class Troubles:
    """Probabilities per write."""

    lost_request: float = 0.0  # not applied; the program re-reads, or gives the store up
    lost_reply: float = 0.0  # applied or refused, the program re-reads
    delay_us_max: int = 3 * MS
    slow: float = 0.0
    slow_us_max: int = 300 * MS


class MetadataNode:
    """`observe(before, after)` sees every change as it becomes visible; after None: deleted."""

    def __init__(
        self,
        world: World,
        metadata: LedgerMetadata,
        troubles: Troubles,
        observe: Callable[[LedgerMetadata, LedgerMetadata | None], None],
    ) -> None:
        self._world = world
        self._random = world.stream("metadata")
        self.troubles = troubles
        self.current: Versioned[LedgerMetadata] | None = Versioned(metadata, 0)
        self._observe = observe
        self._watchers: list[Callable[[Versioned[LedgerMetadata] | None], None]] = []

    def _delay(self) -> int:
        troubles = self.troubles
        delay = int(self._random.random() * troubles.delay_us_max)
        if self._random.random() < troubles.slow:
            delay += int(self._random.random() * troubles.slow_us_max)
        return delay

    def write(
        self,
        metadata: LedgerMetadata,
        version: int,
        written: Callable[[int], None],
        conflict: Callable[[Versioned[LedgerMetadata] | None], None],
        failed: Callable[[], None],
    ) -> None:
        """Compare-and-set; exactly one of the three happens later."""
        chance = self._random.random
        lost_request = chance() < self.troubles.lost_request
        lost_reply = chance() < self.troubles.lost_reply

        def apply() -> None:
            if lost_request:
                self._world.covered["metadata request lost"] += 1
                reread = lambda: conflict(self.current)  # noqa: E731
                self._world.after(self._delay(), reread if chance() < 0.5 else failed)
                return
            current = self.current
            accepted = current is not None and current.version == version
            if accepted:
                assert current is not None
                self.current = Versioned(metadata, version + 1)
                self._observe(current.value, metadata)
                self._changed()
            if accepted and not lost_reply:
                self._world.after(self._delay(), lambda: written(version + 1))
            else:
                self._world.covered["metadata reply lost" if accepted else "metadata conflict"] += 1
                self._world.after(self._delay(), lambda: conflict(self.current))

        self._world.after(self._delay(), apply)

    def read(self, then: Callable[[Versioned[LedgerMetadata] | None], None]) -> None:
        self._world.after(self._delay(), lambda: self._world.after(self._delay(), _call(then, self)))

    def watch(self, changed: Callable[[Versioned[LedgerMetadata] | None], None]) -> None:
        """`changed` hears of the newest value some time after a change; changes may be joined."""
        self._watchers.append(changed)

    def delete(self) -> None:
        if self.current is not None:
            before, self.current = self.current.value, None
            self._observe(before, None)
            self._changed()

    def _changed(self) -> None:
        for changed in self._watchers:
            self._world.after(self._delay(), _call(changed, self))


def _call(then: Callable[[Versioned[LedgerMetadata] | None], None], node: MetadataNode) -> Callable[[], None]:
    return lambda: then(node.current)
