"""The simulated cluster of one story: bookies, network, metadata of one ledger, and the oracle.

Programs talk to it through `Cluster`; every request ends in exactly one answer or a timeout of the
program that asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    RequestTimeoutError,
)
from bkctl.formats.entry import Digester
from bkctl.quorum.actions import ChooseReplacements, SendAdds
from bkctl.quorum.pending import frames_in
from bkctl.quorum.placement import choose_replacements
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import (
    BookieId,
    BookieIndex,
    DigestType,
    EntryId,
    LedgerId,
    LedgerMetadata,
    Segment,
)
from tests.sim.bookie_node import BookieNode
from tests.sim.metadata_node import MetadataNode, Troubles
from tests.sim.network import Conditions, Network
from tests.sim.oracle import Oracle
from tests.sim.world import MS, S, World

LEDGER_ID = LedgerId(7)
DIGESTER = Digester(DigestType.CRC32C, b"password")


@dataclass(frozen=True, slots=True)
class Shape:
    """Ensemble, write quorum and ack quorum sizes, and how many bookies there are."""

    ensemble_size: int = 3
    write_quorum_size: int = 3
    ack_quorum_size: int = 2
    bookies: int = 6


@dataclass(slots=True)
class Settings:
    """Of the programs; times in microseconds."""

    request_timeout_us: int = 60 * MS
    deferred_sync: bool = False
    advanced: bool = False
    window_entries: int = 4  # that a recovery reads ahead
    conditions: Conditions = field(default_factory=Conditions)
    troubles: Troubles = field(default_factory=Troubles)
    sync_us_max: int = 3 * MS


class Cluster:
    def __init__(self, world: World, shape: Shape, settings: Settings) -> None:
        self.world = world
        self.settings = settings
        self.schedule = RoundRobinSchedule(
            shape.ensemble_size, shape.write_quorum_size, shape.ack_quorum_size
        )
        self.network = Network(world, settings.conditions)
        names = [BookieId(f"b{number}") for number in range(shape.bookies)]
        self.bookies = {name: BookieNode(world, name, sync_us_max=settings.sync_us_max) for name in names}
        self._random = world.stream("placement")
        ensemble = tuple(self._random.sample(names, shape.ensemble_size))
        metadata = LedgerMetadata(
            shape.ensemble_size,
            shape.write_quorum_size,
            shape.ack_quorum_size,
            (Segment(EntryId(0), ensemble),),
        )
        self.oracle = Oracle(self, metadata)
        self.metadata = MetadataNode(world, metadata, settings.troubles, self.oracle.metadata_changed)
        self.hook: Callable[[str], None] = lambda _name: None

    def heal(self) -> None:
        """Every bookie runs and has room, every message arrives in time."""
        self.network.mend()
        self.metadata.troubles = Troubles()
        for bookie in self.bookies.values():
            bookie.hook = lambda _name, _node: None
            bookie.sync_us_max = MS
            bookie.read_only = bookie.bookie.read_only = False
            bookie.restart()
            bookie.resume()
        self.hook = lambda _name: None
        self.settings.request_timeout_us = S

    # -- requests --------------------------------------------------------------------------------

    def ask(
        self,
        program: str,
        bookie_id: BookieId,
        request: Callable[[BookieNode, Callable[[object], None]], None],
        then: Callable[[object], None],
    ) -> None:
        """`request(node, reply)` runs at the bookie; `then` gets the first reply, or an error."""
        node = self.bookies[bookie_id]
        open_ = [True]

        def settle(answer: object) -> None:
            if open_[0]:
                open_[0] = False
                then(answer)

        def reply(answer: object) -> None:
            self.network.send(program, bookie_id, 1, lambda: settle(answer))

        self.network.send(program, bookie_id, 0, lambda: node.run(lambda: request(node, reply)))
        self.world.after(
            self.settings.request_timeout_us,
            lambda: settle(RequestTimeoutError(f"{bookie_id} did not answer")),
        )

    def add(
        self,
        program: str,
        action: SendAdds,
        stored: Callable[[BookieId, int, int], None],
        failed: Callable[[BookieId, int, BookKeeperError], None],
        gone: Callable[[BookieId, BookKeeperError], None],
    ) -> None:
        """Send the adds; answers come one by one, as long as they come, and after a timeout, too."""
        bookie_id = action.bookie_id
        node = self.bookies[bookie_id]
        count = sum(1 for _ in frames_in(action.frames))
        heard: set[int] = set()

        def answer(entry_id: int, error: BookKeeperError | None) -> None:
            def arrive() -> None:
                heard.add(entry_id)
                if error is None:
                    stored(bookie_id, entry_id, entry_id)
                else:
                    failed(bookie_id, entry_id, error)

            self.network.send(program, bookie_id, 1, arrive)

        def late() -> None:
            if len(heard) < count:
                gone(bookie_id, RequestTimeoutError(f"{bookie_id} did not answer all adds"))

        self.network.send(program, bookie_id, 0, lambda: node.run(lambda: node.add(action.frames, answer)))
        self.world.after(self.settings.request_timeout_us, late)
        if not node.up:  # the connection is refused at once
            lost = BookieHandleNotAvailableError(f"{bookie_id} is down")
            self.world.after(1, lambda: gone(bookie_id, lost))

    def replacements(self, action: ChooseReplacements) -> Mapping[BookieIndex, BookieId]:
        """As registered in the metadata store: a dead bookie may still be there, a full one is not."""
        candidates = [
            name
            for name, node in self.bookies.items()
            if not node.read_only and (node.up or self._random.random() < 0.1)
        ]
        self._random.shuffle(candidates)
        return choose_replacements(candidates, action.failed, action.exclude)
