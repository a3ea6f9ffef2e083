"""One simulated TCP connection between a program and a bookie.

Bytes arrive in order, cut and joined anywhere, late; or the connection breaks, and what is on its way
is lost. While the link is cut nothing passes and nobody notices.
"""

from typing import TYPE_CHECKING, Any

from tests.sim.world import MS

if TYPE_CHECKING:
    from tests.sim.byte_carrier import ByteCarrier

_PIECES_MAX = 3


class SimTransport:
    """One end, as asyncio's transports: what bkctl.client.link and server.listener ask of them."""

    def __init__(self, connection: "SimConnection", side: int) -> None:
        self._connection = connection
        self._side = side
        self.protocol: Any = None
        self.closing = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closing:
            self._connection.carry(self._side, bytes(data))

    def writelines(self, parts: list[bytes | bytearray]) -> None:
        self.write(b"".join(parts))

    def abort(self) -> None:
        if not self.closing:
            self._connection.aborted(self._side)

    close = abort

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        if not self.reading:
            self.reading = True
            self._connection.world.after(0, lambda: self._connection.deliver(1 - self._side))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else "simulated"

    def setsockopt(self, *_option: int) -> None: ...


class SimConnection:
    """Side 0 is the program's, side 1 the bookie's. `carrier` forgets it once it is broken."""

    def __init__(self, carrier: "ByteCarrier", program: str, bookie_id: Any) -> None:
        self.world = carrier.world
        self.program = program
        self.bookie_id = bookie_id
        self.stuck = False  # cut off: nothing arrives any more
        self.broken = False
        self._carrier = carrier
        self._random = carrier.random
        self._node = carrier.cluster.bookies[bookie_id]
        self._life = self._node.life
        self.ends = (SimTransport(self, 0), SimTransport(self, 1))
        self._sent = (bytearray(), bytearray())  # from each side, not yet delivered
        self._delivered = [0, 0]  # bytes
        self._arrived = [0, 0]  # bytes that may be delivered
        self._last_at = [0, 0]

    def carry(self, side: int, data: bytes) -> None:
        """`data` leaves `side`; pieces of it arrive."""
        network, chance = self._carrier.cluster.network, self._random.random
        conditions, link = network.conditions, network.link(self.program, self.bookie_id)
        self._sent[side].extend(data)
        total = self._delivered[side] + len(self._sent[side])
        if not link.open or self.stuck:
            self.stuck = True
            return
        stalled = 0
        if chance() < conditions.drop:
            self.world.covered["network drop"] += 1
            if chance() < 0.5:
                self.break_(int(chance() * conditions.delay_us_max))
                return
            stalled = int(chance() * conditions.slow_us_max)
        for number in range(pieces := 1 + int(chance() * _PIECES_MAX)):
            delay = stalled + link.delay_us + int(chance() * conditions.delay_us_max)
            if chance() < conditions.slow:
                delay += int(chance() * conditions.slow_us_max)
            at = self._last_at[side] = max(self._last_at[side], self.world.now + delay)
            upto = total if number == pieces - 1 else total - int(chance() * len(data))
            self.world.after(at - self.world.now, lambda upto=upto: self._arrive(side, upto))  # type: ignore[misc]

    def _arrive(self, side: int, upto: int) -> None:
        if not self._carrier.cluster.network.link(self.program, self.bookie_id).open:
            self.stuck = True
        if not self.stuck:
            self._arrived[side] = max(self._arrived[side], upto)
            if side == 0:
                self._node.run(lambda: self.deliver(0))
            else:
                self.deliver(1)

    def deliver(self, side: int) -> None:
        """Hand over what has arrived from `side`."""
        end = self.ends[1 - side]
        count = self._arrived[side] - self._delivered[side]
        if count <= 0 or end.closing or not end.reading or end.protocol is None:
            return
        if side == 0 and (self._node.life != self._life or not self._node.up):
            return
        data = bytes(self._sent[side][:count])
        del self._sent[side][:count]
        self._delivered[side] += count
        if side == 0:
            _receive(end.protocol, data)
        else:
            end.protocol.data_received(data)

    # -- the end of it -------------------------------------------------------------------------------

    def aborted(self, side: int) -> None:
        self._lose(side, 0)
        if not self.stuck:
            self._lose(1 - side, int(self._random.random() * 2 * MS))

    def break_(self, delay_us: int) -> None:
        """Both ends notice, soon; nothing more arrives."""
        self.stuck = True
        for side in (0, 1):
            self._lose(side, delay_us)

    def crashed(self, answers_lost: bool) -> None:
        """The bookie is gone; the program may still get its last answers, and notices then."""
        self.ends[1].closing = True
        if self.stuck:
            return
        delay = max(0, self._last_at[1] - self.world.now) + int(self._random.random() * MS)
        if answers_lost:
            self.stuck = True
            delay = int(self._random.random() * MS)
        self._lose(0, delay)

    def _lose(self, side: int, delay_us: int) -> None:
        end = self.ends[side]

        def lost() -> None:
            if not getattr(end, "told", False):
                end.told = True  # type: ignore[attr-defined]
                end.closing = True
                self._carrier.forget(self)
                if end.protocol is not None and (side == 0 or self._node.life == self._life):
                    end.protocol.connection_lost(None)

        if delay_us == 0:
            end.closing = True
        self.world.after(delay_us, lost)


def _receive(protocol: Any, data: bytes) -> None:
    """As an event loop feeds an asyncio.BufferedProtocol."""
    while data:
        buffer = protocol.get_buffer(len(data))
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        protocol.buffer_updated(count)
