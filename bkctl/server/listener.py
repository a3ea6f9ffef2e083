"""Sockets of a bookie: bytes in, requests to `Requests`, answers out, back-pressure.

One `Connection` per TCP connection owns its receive buffer; the hot paths read frames in place. Bounds:
a buffer holds one unfinished frame (at most the frame limit) or a batch of finished ones; a peer that
is paused, or does not read its answers, is not read from.

Source: spec wire sections 1 and 2; upstream BookieNettyServer.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast

from bkctl.errors import CorruptDataError
from bkctl.formats.frame import LENGTH, LENGTH_BYTES
from bkctl.server.requests import Requests

log = logging.getLogger(__name__)

_BUFFER_BYTES_MIN = 64 << 10  # of an idle connection
_BUFFER_BYTES_MAX = 1 << 20  # of a busy one, unless a single frame needs more
_UNSENT_BYTES_MAX = 8 << 20  # answers a peer has not read


class Connection(asyncio.BufferedProtocol):
    """One peer. `bookie.Peer` is its face towards the bookie."""

    def __init__(
        self, requests: Requests, frame_bytes_max: int, gone: Callable[["Connection"], None]
    ) -> None:
        self.closed = False
        self.version2 = False  # sticky once a v2 frame was seen (spec wire section 2)
        self._requests = requests
        self._frame_bytes_max = frame_bytes_max
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(_BUFFER_BYTES_MIN)
        self._view = memoryview(self._buffer)
        self._start = 0  # first byte not taken yet
        self._end = 0  # end of what was received
        self._wanted_bytes = LENGTH_BYTES  # nothing can be taken before this much is there
        self._pauses: set[str] = set()  # why the bookie takes nothing from this peer
        self._unsent: asyncio.Future[None] | None = None  # the peer does not read its answers
        self._taking = False
        self._filled = False

    # -- transport -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=_UNSENT_BYTES_MAX)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._wake_senders()
        self._gone(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for more bytes: the rest of the buffer. When that is short the content moves, or it grows."""
        held = self._end - self._start
        size = len(self._buffer)
        if held == 0:
            self._start = self._end = 0
        if self._filled or size < self._wanted_bytes:
            self._grow(max(min(2 * size, _BUFFER_BYTES_MAX), self._wanted_bytes, size))
        elif self._end == size or size - self._start < self._wanted_bytes:
            self._view[:held] = self._view[self._start : self._end]
            self._start, self._end = 0, held
        if self._end == len(self._buffer):  # complete frames that a pause kept from being taken
            self._grow(len(self._buffer) + _BUFFER_BYTES_MIN)
        return self._view[self._end :]

    def _grow(self, size: int) -> None:
        held = self._view[self._start : self._end]
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._view[: len(held)] = held
        self._start, self._end, self._filled = 0, len(held), False

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        size = len(self._buffer)
        self._filled = self._end == size < _BUFFER_BYTES_MAX  # a busy peer: read more at once
        if self._end - self._start >= self._wanted_bytes:
            self._take()

    def eof_received(self) -> bool:
        return False  # a half-received frame is dropped

    def pause_writing(self) -> None:
        self._unsent = asyncio.get_running_loop().create_future()
        self._steer_reading()

    def resume_writing(self) -> None:
        self._wake_senders()
        self._go_on()

    def _wake_senders(self) -> None:
        if self._unsent is not None:
            self._unsent.set_result(None)
            self._unsent = None

    # -- the face towards the bookie --------------------------------------------------------------

    def send(self, data: bytes) -> None:
        # uvloop raises on a write between its own closing and connection_lost.
        if not self.closed and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def writable(self) -> None:
        if self._unsent is not None:
            await self._unsent

    def pause(self, reason: str) -> None:
        self._pauses.add(reason)
        self._steer_reading()

    def resume(self, reason: str) -> None:
        self._pauses.discard(reason)
        if not self._pauses:
            self._go_on()

    def refuse(self, reason: str) -> None:
        """Drop the connection because of what it does."""
        if self._transport is not None:
            log.warning("closing a connection of %s: %s", self._transport.get_extra_info("peername"), reason)
        self.drop()

    def drop(self) -> None:
        """Close at once; what was asked and not answered is lost to the peer."""
        if not self.closed and self._transport is not None:
            self.closed = True
            self._transport.abort()

    # -- taking requests -------------------------------------------------------------------------

    def _go_on(self) -> None:
        if not self._taking:
            self._take()
        self._steer_reading()

    def _steer_reading(self) -> None:
        if self.closed or self._transport is None:
            return
        if self._pauses or self._unsent is not None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _take(self) -> None:
        """Take the complete frames of the buffer, as long as the peer is not paused."""
        self._taking = True
        try:
            while not (self._pauses or self._unsent is not None or self.closed):
                if not self._take_some():
                    break
        except CorruptDataError as error:
            self.refuse(str(error))
        finally:
            self._taking = False

    def _take_some(self) -> bool:
        """Take one frame, or a run of them; False when no complete frame is there."""
        start, end = self._start, self._end
        if end - start < LENGTH_BYTES:
            self._wanted_bytes = LENGTH_BYTES
            return False
        (length,) = LENGTH.unpack_from(self._buffer, start)
        if not 0 < length <= self._frame_bytes_max - LENGTH_BYTES:
            raise CorruptDataError(
                f"frame of {length} bytes; 1 to {self._frame_bytes_max - LENGTH_BYTES} are accepted"
            )
        stop = start + LENGTH_BYTES + length
        if stop > end:
            self._wanted_bytes = stop - start
            return False
        self._start = self._requests.take(self, self._buffer, self._view, start, stop, end)
        self._wanted_bytes = LENGTH_BYTES
        return True


class Listener:
    """Accepts connections on one port."""

    def __init__(self, requests: Requests, *, frame_bytes_max: int, connections_max: int) -> None:
        self._requests = requests
        self._frame_bytes_max = frame_bytes_max
        self._connections_max = connections_max
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def open(self, sock: socket.socket) -> None:
        """Accept connections on a bound, listening socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, sock=sock, backlog=1024)

    def _connection(self) -> Connection:
        connection = Connection(self._requests, self._frame_bytes_max, self.connections.discard)
        if len(self.connections) >= self._connections_max:
            asyncio.get_running_loop().call_soon(connection.refuse, "too many connections")
        self.connections.add(connection)
        return connection

    async def close(self) -> None:
        """Accept no more, drop the connections that are left."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.drop()
        if self._server is not None:
            await self._server.wait_closed()
