"""Modes B and C: requests travel as the bytes that ship, over connections that split, join and break.

On the program's side are bkctl.client's pool, channels and links with both protocol versions; on the
bookie's the listener's Connection and its dispatch. asyncio runs in virtual time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from bkctl.client.channel import BookieChannel
from bkctl.client.pool import BookiePool
from bkctl.errors import BookieHandleNotAvailableError, BookKeeperError, CorruptDataError
from bkctl.formats.entry import LAC_HEADER
from bkctl.formats.frame import FrameCutter
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.request_v2 import HIGH_PRIORITY, RECOVERY_ADD
from bkctl.formats.request_v3 import encode
from bkctl.quorum.actions import SendAdds
from bkctl.quorum.lac import lac_of_answer
from bkctl.quorum.pending import entries_in
from bkctl.types import Address, BookieId, EntryId
from tests.sim.connection import SimConnection
from tests.sim.event_loop import SimLoop
from tests.sim.world import MS

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.programs import Program

Then = Callable[[Any], None]


class ByteCarrier:
    """The same interface as ObjectCarrier."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.random = self.world.stream("connections")
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self._loop = loop
        self._loop.connect = self._connect
        self._pools: dict[str, BookiePool] = {}
        self._v3_adds: dict[str, bool] = {}  # as a client of protocol version 3 does it
        self._connections: dict[SimConnection, None] = {}

    def _channel(self, program: "Program", bookie_id: BookieId) -> BookieChannel:
        name = program.name
        pool = self._pools.get(name)
        if pool is None:

            async def resolve(bookie: BookieId) -> Address:
                return Address(f"{name}/{bookie}", 3181)

            timeout_ms = max(1, self.cluster.settings.request_timeout_us // MS)
            pool = self._pools[name] = BookiePool(
                resolve, connect_timeout_ms=timeout_ms, read_timeout_ms=timeout_ms
            )
            self._v3_adds[name] = self.random.random() < 0.3
        return pool.channel(bookie_id)

    def _call(self, answer: Awaitable[Any], then: Then, read: Callable[[Any], Any] = lambda a: a) -> None:
        async def call() -> None:
            try:
                value = read(await answer)
            except BookKeeperError as error:
                value = error
            then(value)

        self._loop.create_task(call())

    # -- requests ------------------------------------------------------------------------------------

    def add(self, program: "Program", action: SendAdds, *, deferred: bool) -> None:
        channel = self._channel(program, action.bookie_id)
        ledger_id, key = self.cluster.bookies[action.bookie_id].ledger_id, self.cluster.digester.master_key
        channel.attach(ledger_id, program)
        if not deferred and not self._v3_adds[program.name]:
            channel.send_adds(ledger_id, action.frames)
            return
        flags = int.from_bytes(action.frames[6:8], "big")
        for entry_id, body in entries_in(action.frames):
            if deferred:
                channel.send_deferred_adds(ledger_id, entry_id, [body], key)
            else:
                link = channel._open_v3()
                link.add_ledger_ids.add(ledger_id)
                frames = link.machine.deferred_adds(ledger_id, entry_id, [body], key)
                link.send(_durable_add(frames, flags))

    def read(self, program: "Program", bookie_id: BookieId, entry_ids: Sequence[EntryId], then: Then) -> None:
        channel = self._channel(program, bookie_id)
        ledger_id = self.cluster.bookies[bookie_id].ledger_id
        whole = entry_ids[-1] - entry_ids[0] == len(entry_ids) - 1
        if not whole or self.random.random() < 0.5:
            self._call(channel.read_entries(ledger_id, entry_ids), then)
            return

        async def in_batches() -> list[bytes | BookKeeperError]:
            found: list[bytes | BookKeeperError] = []
            while len(found) < len(entry_ids):
                rest = len(entry_ids) - len(found)
                try:
                    found += await channel.batch_read(ledger_id, entry_ids[len(found)], rest, 5 << 20)
                except BookieHandleNotAvailableError:
                    raise
                except BookKeeperError as error:
                    found.append(error)
            return found

        self._call(in_batches(), then)

    def fencing_read(self, program: "Program", bookie_id: BookieId, entry_id: int, then: Then) -> None:
        channel = self._channel(program, bookie_id)
        key = self.cluster.digester.master_key
        ledger_id = self.cluster.bookies[bookie_id].ledger_id
        self._call(channel.read_entry(ledger_id, entry_id, fence_key=key, high_priority=entry_id >= 0), then)

    def read_lac(self, program: "Program", bookie_id: BookieId, then: Then) -> None:
        channel = self._channel(program, bookie_id)
        ledger_id = self.cluster.bookies[bookie_id].ledger_id
        digester = self.cluster.digester
        self._call(
            channel.read_lac(ledger_id), then, lambda answer: lac_of_answer(digester, ledger_id, *answer)
        )

    def long_poll(
        self, program: "Program", bookie_id: BookieId, previous_lac: int, timeout_us: int, then: Then
    ) -> None:
        channel = self._channel(program, bookie_id)
        ledger_id = self.cluster.bookies[bookie_id].ledger_id
        polled = channel.long_poll(ledger_id, previous_lac, timeout_us // MS)
        self._call(polled, then, lambda a: (-1 if a.max_lac is None else a.max_lac, a.body))

    def write_lac(self, program: "Program", bookie_id: BookieId, lac: EntryId, then: Then) -> None:
        channel = self._channel(program, bookie_id)
        ledger_id = self.cluster.bookies[bookie_id].ledger_id
        digester = self.cluster.digester
        body = digester.pack_lac(ledger_id, lac)
        assert LAC_HEADER.unpack_from(body) == (ledger_id, lac)
        self._call(channel.write_lac(ledger_id, lac, digester.master_key, body), then)

    def force(self, program: "Program", bookie_id: BookieId, then: Then) -> None:
        channel = self._channel(program, bookie_id)
        self._call(channel.force_ledger(self.cluster.bookies[bookie_id].ledger_id), then)

    # -- connections ---------------------------------------------------------------------------------

    async def _connect(self, factory: Callable[[], Any], host: str) -> Any:
        """Raises ConnectionRefusedError; waits for ever while the link is cut."""
        program, bookie = host.rsplit("/", 1)
        bookie_id = BookieId(bookie)
        network, node = self.cluster.network, self.cluster.bookies[bookie_id]
        await asyncio.sleep(self.random.random() * network.conditions.delay_us_max / 1e6)
        if not network.link(program, bookie_id).open:
            self.world.covered["connect into a cut link"] += 1
            await self._loop.create_future()
        if not node.up:
            raise ConnectionRefusedError(f"nobody listens at {bookie}")
        connection = SimConnection(self, program, bookie_id)
        self._connections[connection] = None
        client, server = connection.ends
        server.protocol = node.accept(lambda _connection: None)
        server.protocol.connection_made(server)
        client.protocol = factory()
        client.protocol.connection_made(client)
        return client, client.protocol

    def forget(self, connection: SimConnection) -> None:
        self._connections.pop(connection, None)

    def _of(self, program: str | None, bookie_id: str | None) -> list[SimConnection]:
        return [
            c for c in self._connections if program in (None, c.program) and bookie_id in (None, c.bookie_id)
        ]

    def crashed(self, bookie_id: BookieId) -> None:
        answers_lost = self.random.random() < 0.5
        for connection in self._of(None, bookie_id):
            connection.crashed(answers_lost)

    def cut(self, program: str, bookie_id: BookieId) -> None:
        for connection in self._of(program, bookie_id):
            connection.stuck = True

    def joined(self, program: str, bookie_id: BookieId) -> None:
        for connection in self._of(program, bookie_id):
            if connection.stuck:
                connection.break_(int(self.random.random() * MS))

    def killed(self, program: "Program") -> None:
        for connection in self._of(program.name, None):
            connection.ends[0].abort()

    def heal(self) -> None:
        for connection in self._of(None, None):
            if connection.stuck:
                connection.break_(int(self.random.random() * MS))
        for pool in self._pools.values():
            for channel in pool._channels.values():
                channel._read_timeout_ms = self.cluster.HEALED_TIMEOUT_US // MS
                channel._connect_timeout_ms = self.cluster.HEALED_TIMEOUT_US // MS

    def close(self) -> None:
        self._loop.cancel_tasks()


def _durable_add(frames: bytes, flags: int) -> bytes:
    """A deferred add as one that is answered once it is durable, with the flags of a v2 frame."""
    (body,) = FrameCutter(5 << 20).cut(frames)
    request = pb.Request.FromString(body)
    if not request.HasField("addRequest"):
        raise CorruptDataError("no add")
    request.addRequest.ClearField("writeFlags")
    if flags & RECOVERY_ADD:
        request.addRequest.flag = pb.AddRequest.RECOVERY_ADD
    if flags & HIGH_PRIORITY:
        request.header.priority = 1
    return encode(request)
