"""The simulated cluster of one story: bookies, network, metadata of one ledger, and the oracle.

Programs talk to it through `Cluster`; every request ends in exactly one answer or a timeout of the
program that asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bkctl.formats.entry import Digester
from bkctl.quorum.actions import ChooseReplacements
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
from tests.sim.object_carrier import ObjectCarrier
from tests.sim.oracle import Oracle
from tests.sim.world import MS, S, World

LEDGER_ID = LedgerId(7)
_PASSWORD = b"password"
DIGESTER = Digester(DigestType.CRC32C, _PASSWORD)
_DIGESTERS = (DIGESTER, Digester(DigestType.CRC32, _PASSWORD), Digester(DigestType.MAC, _PASSWORD))
_NO_DIGESTER = Digester(DigestType.DUMMY, _PASSWORD)  # sees no bit rot
MODES = ("a", "b", "c")


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
    speculative_us: int = 30 * MS  # a reader asks another replica after so long
    deferred_sync: bool = False
    advanced: bool = False
    delay_change: bool = False  # of the ensemble
    window_entries: int = 4  # that a recovery reads ahead
    conditions: Conditions = field(default_factory=Conditions)
    troubles: Troubles = field(default_factory=Troubles)
    sync_us_max: int = 3 * MS


class Cluster:
    """`mode`: "a" objects, "b" real bytes, "c" real storage, too. `ensemble`: the first one; None: any.

    `protect`: the story damages entries, so they have a digest.
    """

    HEALED_TIMEOUT_US = S

    def __init__(
        self,
        world: World,
        shape: Shape,
        settings: Settings,
        *,
        mode: str = "a",
        ensemble: tuple[BookieId, ...] = (),
        protect: bool = False,
    ) -> None:
        self.world = world
        self.settings = settings
        self.schedule = RoundRobinSchedule(
            shape.ensemble_size, shape.write_quorum_size, shape.ack_quorum_size
        )
        self.network = Network(world, settings.conditions)
        self.digester = DIGESTER
        if mode != "a":
            choice = world.stream("digest")
            self.digester = choice.choice((*_DIGESTERS, DIGESTER if protect else _NO_DIGESTER))
        names = [BookieId(f"b{number}") for number in range(shape.bookies)]
        self.bookies = {name: self._node(mode, name) for name in names}
        for name, node in self.bookies.items():
            node.leave = partial(self.crash, name)
        self._random = world.stream("placement")
        self._in_order = bool(ensemble)
        ensemble = ensemble or tuple(self._random.sample(names, shape.ensemble_size))
        metadata = LedgerMetadata(
            shape.ensemble_size,
            shape.write_quorum_size,
            shape.ack_quorum_size,
            (Segment(EntryId(0), ensemble),),
        )
        self.oracle = Oracle(self, metadata)
        self.metadata = MetadataNode(world, metadata, settings.troubles, self.oracle.metadata_changed)
        self.hook: Callable[[str], None] = lambda _name: None
        self.carrier: Any = ObjectCarrier(self)
        if mode != "a":
            from tests.sim.byte_carrier import ByteCarrier

            self.carrier = ByteCarrier(self)

    def _node(self, mode: str, name: BookieId) -> BookieNode:
        kind: type[BookieNode] = BookieNode
        if mode == "c":
            from tests.sim.disk_bookie_node import DiskBookieNode

            kind = DiskBookieNode
        return kind(self.world, name, LEDGER_ID, sync_us_max=self.settings.sync_us_max)

    def heal(self) -> None:
        """Every bookie runs and has room, every message arrives in time."""
        self.network.mend()
        self.metadata.troubles = Troubles()
        for bookie in self.bookies.values():
            bookie.hook = lambda _name, _node: None
            bookie.sync_us_max = MS
            bookie.read_only = bookie.bookie.read_only = False
            bookie.background = False
            bookie.restart()
            bookie.resume()
        self.carrier.heal()
        self.hook = lambda _name: None
        self.settings.request_timeout_us = self.HEALED_TIMEOUT_US

    def crash(self, bookie_id: BookieId) -> None:
        self._down(bookie_id, self.bookies[bookie_id].crash)

    def wipe(self, bookie_id: BookieId) -> None:
        self._down(bookie_id, self.bookies[bookie_id].wipe)

    def _down(self, bookie_id: BookieId, end: Callable[[], None]) -> None:
        was_up = self.bookies[bookie_id].up
        end()
        self.network.reset(bookie_id)
        if was_up:
            self.carrier.crashed(bookie_id)

    def cut(self, program: str, bookie_id: BookieId) -> None:
        self.network.cut(program, bookie_id)
        self.carrier.cut(program, bookie_id)

    def join(self, program: str, bookie_id: BookieId) -> None:
        self.network.link(program, bookie_id).open = True
        self.carrier.joined(program, bookie_id)

    def replacements(self, action: ChooseReplacements) -> Mapping[BookieIndex, BookieId]:
        """As registered in the metadata store: a dead bookie may still be there, a full one is not."""
        candidates = [
            name
            for name, node in self.bookies.items()
            if not node.read_only and (node.up or (not self._in_order and self._random.random() < 0.1))
        ]
        if not self._in_order:
            self._random.shuffle(candidates)
        return choose_replacements(candidates, action.failed, action.exclude)
