"""A bookie that says what the test tells it to, on a real socket, and remembers what it heard."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from struct import unpack_from
from typing import Any

from bkctl.client.pool import BookiePool
from bkctl.formats import request_v2, request_v3
from bkctl.formats.frame import V3_FIRST_BYTE, FrameCutter
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.request_v2 import AddRequest, AddResponse, ReadRequest, ReadResponse
from bkctl.formats.result_code import ResultCode
from bkctl.types import Address, BookieId

B1 = BookieId("b1")


def kind_answer(request: Any) -> bytes | None:
    """Stores everything; the entry with id N is b"entry-N"; v3 requests succeed."""
    if isinstance(request, AddRequest):
        return AddResponse(0, *unpack_from(">qq", request.body)).encode()
    if isinstance(request, ReadRequest):
        entry = b"entry-%d" % request.entry_id
        return ReadResponse(0, request.ledger_id, request.entry_id, entry).encode()
    assert isinstance(request, pb.Request), request
    fields = {"body": b"v3"} if request.HasField("readRequest") else {}
    return request_v3.encode_response(request, ResultCode.EOK, **fields)


def silence(request: Any) -> bytes | None:
    return None


class FakeBookie:
    """`answer` gives the bytes for a decoded request, or None for silence."""

    def __init__(self) -> None:
        self.answer: Callable[[Any], bytes | None] = kind_answer
        self.requests: list[Any] = []
        self.connections: list[asyncio.Transport] = []  # all that were ever made
        self.chunks = 0  # how often bytes arrived
        self.port = 0

    async def listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def address(self, bookie_id: BookieId) -> Address:
        return Address("127.0.0.1", self.port)


class _Connection(asyncio.Protocol):
    def __init__(self, bookie: FakeBookie) -> None:
        self._bookie = bookie
        self._cutter = FrameCutter()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._bookie.connections.append(transport)

    def data_received(self, data: bytes) -> None:
        self._bookie.chunks += 1
        for body in self._cutter.cut(data):
            decode: Any = request_v3 if body[0] == V3_FIRST_BYTE else request_v2
            request = decode.decode_request(body)
            self._bookie.requests.append(request)
            answer = self._bookie.answer(request)
            if answer is not None:
                self._transport.write(answer)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[FakeBookie, BookiePool]]:
    """A bookie that listens, and a pool that knows it."""
    bookie = FakeBookie()
    server = await bookie.listen()
    pool = BookiePool(bookie.address, **settings)
    try:
        yield bookie, pool
    finally:
        await pool.close()
        server.close()
        for connection in bookie.connections:
            connection.abort()
        await asyncio.sleep(0)  # lets the transports close


async def until(condition: Callable[[], object]) -> None:
    """Waits until `condition` holds; the event loop decides when, not the clock."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)
