"""Mode A: requests reach a bookie as Python objects; every message is late, lost or doubled alone.

Stronger than TCP: no order, no connection. The same interface with bytes: byte_carrier.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bkctl.errors import BookieHandleNotAvailableError, BookKeeperError, RequestTimeoutError
from bkctl.quorum.actions import SendAdds
from bkctl.types import BookieId, EntryId
from tests.sim.bookie_node import BookieNode

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.programs import Program

Then = Callable[[Any], None]
Reply = Callable[[object], None]


class ObjectCarrier:
    """`then` is called once: with the answer, a BookKeeperError, or RequestTimeoutError."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self._senders: dict[BookieId, dict[str, Program]] = {}  # who sent adds, and hears of a crash
        self._unaware: dict[tuple[str, BookieId], Program] = {}  # cut off when the bookie crashed

    def _ask(
        self,
        program: "Program",
        bookie_id: BookieId,
        request: Callable[[BookieNode, Reply], None],
        then: Then,
        timeout_us: int = 0,
    ) -> None:
        cluster, name = self._cluster, program.name
        node, send = cluster.bookies[bookie_id], cluster.network.send
        open_ = [True]

        def settle(answer: object) -> None:
            if open_[0]:
                open_[0] = False
                then(answer)

        def reply(answer: object) -> None:
            send(name, bookie_id, 1, lambda: settle(answer))

        send(name, bookie_id, 0, lambda: node.run(lambda: request(node, reply)))
        cluster.world.after(
            timeout_us + cluster.settings.request_timeout_us,
            lambda: settle(RequestTimeoutError(f"{bookie_id} did not answer")),
        )

    def add(self, program: "Program", action: SendAdds, *, deferred: bool) -> None:
        """The program's `adds_stored`, `add_failed` and `channel_lost` hear what comes of it."""
        cluster, bookie_id = self._cluster, action.bookie_id
        node = cluster.bookies[bookie_id]
        self._senders.setdefault(bookie_id, {})[program.name] = program

        def answer(entry_id: int, error: BookKeeperError | None) -> None:
            if error is None:
                event = partial(program.adds_stored, bookie_id, entry_id, entry_id)
            else:
                event = partial(program.add_failed, bookie_id, entry_id, error)
            cluster.network.send(program.name, bookie_id, 1, event)

        def arrive() -> None:
            node.run(lambda: node.add(action.frames, answer, deferred=deferred))

        cluster.network.send(program.name, bookie_id, 0, arrive)
        if not node.up:
            self._lost(program, bookie_id, 1)

    def _lost(self, program: "Program", bookie_id: BookieId, delay_us: int) -> None:
        error = BookieHandleNotAvailableError(f"{bookie_id} is down")
        self._cluster.world.after(delay_us, lambda: program.channel_lost(bookie_id, error))

    def read(self, program: "Program", bookie_id: BookieId, entry_ids: Sequence[EntryId], then: Then) -> None:
        """The answer is a body or an error for each entry."""

        def at_bookie(node: BookieNode, reply: Reply) -> None:
            reply([node.read(node.ledger_id, entry_id) for entry_id in entry_ids])

        self._ask(program, bookie_id, at_bookie, then)

    def fencing_read(self, program: "Program", bookie_id: BookieId, entry_id: int, then: Then) -> None:
        key = self._cluster.digester.master_key
        self._ask(
            program,
            bookie_id,
            lambda node, reply: node.fencing_read(node.ledger_id, entry_id, key, reply),
            then,
        )

    def read_lac(self, program: "Program", bookie_id: BookieId, then: Then) -> None:
        self._ask(program, bookie_id, lambda node, reply: reply(node.lac(node.ledger_id)), then)

    def long_poll(
        self, program: "Program", bookie_id: BookieId, previous_lac: int, timeout_us: int, then: Then
    ) -> None:
        """The answer is (LAC, body of the entry after `previous_lac` or None)."""
        self._ask(
            program,
            bookie_id,
            lambda node, reply: node.long_poll(node.ledger_id, previous_lac, timeout_us, reply),
            then,
            timeout_us,
        )

    def write_lac(self, program: "Program", bookie_id: BookieId, lac: EntryId, then: Then) -> None:
        digester = self._cluster.digester

        def at_bookie(node: BookieNode, reply: Reply) -> None:
            body = digester.pack_lac(node.ledger_id, lac)
            node.write_lac(node.ledger_id, lac, digester.master_key, body, reply)

        self._ask(program, bookie_id, at_bookie, then)

    def force(self, program: "Program", bookie_id: BookieId, then: Then) -> None:
        """The answer is None once everything answered before is durable."""
        self._ask(program, bookie_id, lambda node, reply: node.force(node.ledger_id, reply), then)

    # -- connections, as far as a program notices them -----------------------------------------------

    def crashed(self, bookie_id: BookieId) -> None:
        for name, program in self._senders.pop(bookie_id, {}).items():
            if self._cluster.network.link(name, bookie_id).open:
                self._lost(program, bookie_id, 1)
            else:
                self._unaware[name, bookie_id] = program

    def cut(self, program: str, bookie_id: BookieId) -> None:
        """Only timers notice."""

    def joined(self, program: str, bookie_id: BookieId) -> None:
        if (unaware := self._unaware.pop((program, bookie_id), None)) is not None:
            self._lost(unaware, bookie_id, 1)

    def killed(self, program: "Program") -> None:
        """Nobody hears what it would be told."""

    def heal(self) -> None:
        for name, bookie_id in list(self._unaware):
            self.joined(name, bookie_id)

    def close(self) -> None: ...
