"""One TCP connection to a bookie, from the first request for it until it is lost; never reused.

Requests may be sent while it is still connecting: they wait. All sends of one turn of the event
loop leave in one write. One coarse timer per link notices requests that are too late.
Source: spec wire section 10; upstream PerChannelBookieClient.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar, cast

from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    CorruptDataError,
    RequestTimeoutError,
)
from bkctl.types import Address
from bkctl.wire.events import AddRefused, AddsStored, Answer, Event

TIMER_MS_MAX = 500  # a request that is too late is noticed at most this much later


class Machine(Protocol):
    """What a link drives: a connection of bkctl.wire."""

    def receive(self, chunk: bytes) -> list[Event]: ...
    def forget(self, request_id: int) -> None: ...


M = TypeVar("M", bound=Machine)


class Link(asyncio.Protocol, Generic[M]):
    """`on_add` gets AddsStored and AddRefused; `on_lost` is called once, unless `close` was."""

    def __init__(
        self,
        machine: M,
        peer: str,
        resolve: Callable[[], Awaitable[Address]],
        *,
        connect_timeout_ms: int,
        on_add: Callable[[AddsStored | AddRefused], None],
        on_lost: Callable[["Link[M]", BookKeeperError], None],
    ) -> None:
        self.machine = machine
        self.add_ledger_ids: set[int] = set()  # who sent adds here: their answers come here or never
        self._peer = peer
        self._resolve = resolve
        self._connect_timeout_ms = connect_timeout_ms
        self._on_add = on_add
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._closed = self._loop.create_future()  # done when there is no socket any more
        self._unsent: list[bytes | bytearray] = []
        self._unsent_bytes = 0
        self._waiting: dict[int, tuple[asyncio.Future[Any], float]] = {}  # request id: answer, deadline
        self._timer: asyncio.TimerHandle | None = None
        self._connecting = self._loop.create_task(self._connect())
        self._connecting.add_done_callback(self._connect_done)

    @property
    def outstanding_bytes(self) -> int:
        """Bytes handed to `send` that the kernel has not taken yet."""
        buffered = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._unsent_bytes + buffered

    def send(self, data: bytes | bytearray) -> None:
        """Queues whole frames; `data` must not change any more."""
        if not self._unsent and self._transport is not None:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        self._unsent_bytes += len(data)

    async def answer(self, request_id: int, frames: bytes, timeout_ms: int) -> Any:
        """Sends a request and waits for its answer.

        Raises:
            BookKeeperError: the bookie's answer; RequestTimeoutError; BookieHandleNotAvailableError
                when the connection fails.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[request_id] = future, self._loop.time() + timeout_ms / 1000
        if self._timer is None:
            self._timer = self._loop.call_later(min(timeout_ms, TIMER_MS_MAX) / 1000, self._expire)
        self.send(frames)
        try:
            value = await future
        finally:
            if self._waiting.pop(request_id, None) is not None:  # cancelled or too late
                self.machine.forget(request_id)
        if isinstance(value, BookKeeperError):
            raise value
        return value

    async def close(self, error: BookKeeperError) -> None:
        """Everything outstanding fails with `error`; returns when the socket is gone."""
        self._connecting.cancel()
        self._lose(error, tell=False)
        await self._closed

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_ms / 1000):
                address = await self._resolve()
                await self._loop.create_connection(lambda: self, address.host, address.port)
        except Exception as failure:  # whatever went wrong: nobody may be left waiting
            reason = str(failure) or f"no connection within {self._connect_timeout_ms} ms"
            self._lose(BookieHandleNotAvailableError(f"bookie {self._peer}: {reason}"))

    def _connect_done(self, _task: asyncio.Task[None]) -> None:
        if self._transport is None:
            self._closed.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._lost:
            self._transport.abort()
        else:
            self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.machine.receive(data)
        except CorruptDataError as failure:
            self._lose(
                BookieHandleNotAvailableError(f"bookie {self._peer}: closed after bad data: {failure}")
            )
            return
        for event in events:
            if not isinstance(event, Answer):
                self._on_add(event)
            elif waiting := self._waiting.pop(event.request_id, None):
                _settle(waiting[0], event.value)

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f"connection lost: {exc}" if exc else "connection closed by the bookie"
        self._lose(BookieHandleNotAvailableError(f"bookie {self._peer}: {reason}"))
        self._closed.set_result(None)

    def _flush(self) -> None:
        if self._transport is None or not self._unsent:
            return
        if self._transport.is_closing():
            return  # uvloop raises on a write then; connection_lost is on its way
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if len(unsent) == 1:
            self._transport.write(unsent[0])
        else:
            self._transport.writelines(unsent)

    def _expire(self) -> None:
        """Fails what is too late, and comes back while somebody waits."""
        now = self._loop.time()
        waits = []
        for future, deadline in self._waiting.values():
            if deadline > now:
                waits.append(deadline - now)
            else:
                _settle(future, RequestTimeoutError(f"bookie {self._peer}: no answer in time"))
        self._timer = None
        if waits:
            self._timer = self._loop.call_later(min(*waits, TIMER_MS_MAX / 1000), self._expire)

    def _lose(self, error: BookKeeperError, *, tell: bool = True) -> None:
        if self._lost:
            return
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        for future, _ in self._waiting.values():
            _settle(future, type(error)(str(error)))  # each waiter raises its own
        if self._transport is not None:
            self._transport.abort()
        if tell:
            self._on_lost(self, error)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():  # its waiter may have been cancelled
        future.set_result(value)
