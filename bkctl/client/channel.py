"""The client's door to one bookie: a v2 connection for adds and reads, a v3 one for the rest.

Each opens on first use and again on the first use after it was lost: one attempt, shared by all
that ask meanwhile. Nothing is retried here.
Source: spec wire section 10.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from bkctl.client.link import Link, M
from bkctl.errors import BookKeeperError, ClientClosedError, IllegalOperationError
from bkctl.formats.availability import Availability
from bkctl.types import INVALID_ENTRY_ID, Address, BookieId
from bkctl.wire.client_connection import ClientConnectionV2
from bkctl.wire.events import AddRefused, AddsStored, LongPollAnswer

if TYPE_CHECKING:  # costs 30 ms, only when the first v3 connection opens
    from bkctl.wire.client_connection_v3 import ClientConnectionV3


class AddSink(Protocol):
    """Who adds to a ledger; called on the event loop."""

    def adds_stored(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> None:
        """These consecutive entries are stored; durable unless their sync was deferred."""

    def add_failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> None:
        """The bookie refused this entry."""

    def channel_lost(self, bookie_id: BookieId, error: BookKeeperError) -> None:
        """What became of the ledger's unanswered adds on this bookie, if any, is unknown."""


class BookieChannel:
    """Methods that wait raise the BookKeeperError of the bookie's answer, RequestTimeoutError after
    `read_timeout_ms`, BookieHandleNotAvailableError when the connection fails or is lost, and
    ClientClosedError after `close`.
    """

    def __init__(
        self,
        bookie_id: BookieId,
        resolve: Callable[[BookieId], Awaitable[Address]],
        *,
        frame_bytes_max: int,
        connect_timeout_ms: int,
        read_timeout_ms: int,
    ) -> None:
        self.bookie_id = bookie_id
        self._resolve = resolve
        self._frame_bytes_max = frame_bytes_max
        self._connect_timeout_ms = connect_timeout_ms
        self._read_timeout_ms = read_timeout_ms
        self._sinks: dict[int, AddSink] = {}  # by ledger id
        self._v2: Link[ClientConnectionV2] | None = None
        self._v3: Link[ClientConnectionV3] | None = None
        self._closed = False

    def attach(self, ledger_id: int, sink: AddSink) -> None:
        """`sink` gets the answers to adds of this ledger from now on.

        Raises:
            IllegalOperationError: another sink does. Answers name ledger and entry, not who asked: a
                recovery beside a writer needs a channel of its own (BookiePool.channel).
        """
        if self._sinks.setdefault(ledger_id, sink) is not sink:
            raise IllegalOperationError(
                f"bookie {self.bookie_id}: ledger {ledger_id} is already being written by this client"
            )

    def detach(self, ledger_id: int) -> None:
        """Answers to adds of this ledger are dropped from now on."""
        self._sinks.pop(ledger_id, None)
        for link in self._links():
            link.add_ledger_ids.discard(ledger_id)

    @property
    def outstanding_bytes(self) -> int:
        """Bytes that wait to be sent, for back-pressure."""
        return sum(link.outstanding_bytes for link in self._links())

    def send_adds(self, ledger_id: int, block: bytes | bytearray | list[Any]) -> None:
        """Sends complete v2 ADD frames, or the parts of them; the sink hears the results.

        `block` must not change any more. All sends of one turn of the event loop leave together.

        Raises:
            ClientClosedError: after `close`.
        """
        link = self._open_v2()
        link.add_ledger_ids.add(ledger_id)
        link.send(b"".join(block) if isinstance(block, list) else block)

    def send_deferred_adds(
        self, ledger_id: int, first_entry_id: int, bodies: Sequence[bytes], master_key: bytes
    ) -> None:
        """Sends consecutive entries that are answered before they are durable; see `force_ledger`.

        Raises:
            ClientClosedError: after `close`.
        """
        link = self._open_v3()
        link.add_ledger_ids.add(ledger_id)
        link.send(link.machine.deferred_adds(ledger_id, first_entry_id, bodies, master_key))

    async def read_entry(
        self, ledger_id: int, entry_id: int, *, fence_key: bytes | None = None, high_priority: bool = False
    ) -> bytes:
        """A whole entry; -1 is the last one on the bookie. With the master key, fences first."""
        if fence_key is not None:
            v3 = self._open_v3()
            request = v3.machine.fencing_read(ledger_id, entry_id, fence_key, high_priority=high_priority)
            return cast(bytes, await v3.answer(*request, self._read_timeout_ms))
        v2 = self._open_v2()
        request = v2.machine.read_entries(ledger_id, (entry_id,), high_priority=high_priority)
        (value,) = await v2.answer(*request, self._read_timeout_ms)
        if isinstance(value, BookKeeperError):
            raise value
        return cast(bytes, value)

    async def read_entries(self, ledger_id: int, entry_ids: Sequence[int]) -> list[bytes | BookKeeperError]:
        """Whole entries, or what the bookie says instead, in the order of `entry_ids`.

        Raises:
            BookKeeperError: no answer to the batch as a whole.
        """
        if not entry_ids:
            return []
        link = self._open_v2()
        request = link.machine.read_entries(ledger_id, entry_ids)
        return cast(list[bytes | BookKeeperError], await link.answer(*request, self._read_timeout_ms))

    async def batch_read(
        self, ledger_id: int, first_entry_id: int, count_max: int, bytes_max: int
    ) -> list[bytes]:
        """Whole entries from `first_entry_id` on, at least one, as many as the bookie has and the
        limits allow. Bookies before 4.17 close the connection."""
        link = self._open_v2()
        bytes_max = min(bytes_max, self._frame_bytes_max)
        request = link.machine.batch_read(ledger_id, first_entry_id, count_max, bytes_max)
        return list(await link.answer(*request, self._read_timeout_ms))

    async def read_last(self, ledger_id: int, *, fence_key: bytes | None = None) -> bytes:
        """The whole last entry on the bookie; see `read_entry`."""
        return await self.read_entry(ledger_id, INVALID_ENTRY_ID, fence_key=fence_key)

    async def read_lac(self, ledger_id: int) -> tuple[bytes | None, bytes | None]:
        """The explicit LAC packet and the whole last entry, at least one of them."""
        link = self._open_v3()
        answer = await link.answer(*link.machine.read_lac(ledger_id), self._read_timeout_ms)
        return cast(tuple[bytes | None, bytes | None], answer)

    async def write_lac(self, ledger_id: int, lac: int, master_key: bytes, body: bytes) -> None:
        """Stores an explicit LAC; `body` is its LAC packet."""
        link = self._open_v3()
        request = link.machine.write_lac(ledger_id, lac, master_key, body)
        await link.answer(*request, self._read_timeout_ms)

    async def long_poll(self, ledger_id: int, previous_lac: int, timeout_ms: int) -> LongPollAnswer:
        """Waits on the bookie, `timeout_ms` at most, until its LAC is beyond `previous_lac`."""
        link = self._open_v3()
        request = link.machine.long_poll(ledger_id, previous_lac, timeout_ms)
        return cast(LongPollAnswer, await link.answer(*request, timeout_ms + self._read_timeout_ms))

    async def force_ledger(self, ledger_id: int) -> None:
        """Makes all adds durable that the bookie has answered before."""
        link = self._open_v3()
        await link.answer(*link.machine.force_ledger(ledger_id), self._read_timeout_ms)

    async def list_entries(self, ledger_id: int) -> Availability:
        """Which entries of the ledger the bookie stores."""
        link = self._open_v3()
        answer = await link.answer(*link.machine.list_entries(ledger_id), self._read_timeout_ms)
        return cast(Availability, answer)

    async def bookie_info(self) -> tuple[int, int]:
        """Total and free bytes of the bookie's ledger directories."""
        link = self._open_v3()
        answer = await link.answer(*link.machine.bookie_info(), self._read_timeout_ms)
        return cast(tuple[int, int], answer)

    async def close(self) -> None:
        """Closes both connections; what is outstanding fails with ClientClosedError."""
        self._closed = True
        error = ClientClosedError(f"bookie {self.bookie_id}: the client was closed")
        links = self._links()
        self._v2 = self._v3 = None
        for link in links:
            self._tell_lost(link, error)
        for link in links:
            await link.close(error)

    def _links(self) -> list[Link[Any]]:
        return [link for link in (self._v2, self._v3) if link is not None]

    def _open_v2(self) -> Link[ClientConnectionV2]:
        if self._v2 is None:
            self._v2 = self._new_link(ClientConnectionV2(self.bookie_id, self._frame_bytes_max))
        return self._v2

    def _open_v3(self) -> "Link[ClientConnectionV3]":
        if self._v3 is None:
            from bkctl.wire.client_connection_v3 import ClientConnectionV3

            self._v3 = self._new_link(ClientConnectionV3(self.bookie_id, self._frame_bytes_max))
        return self._v3

    def _new_link(self, machine: M) -> Link[M]:
        if self._closed:
            raise ClientClosedError(f"bookie {self.bookie_id}: the client is closed")
        return Link(
            machine,
            self.bookie_id,
            lambda: self._resolve(self.bookie_id),
            connect_timeout_ms=self._connect_timeout_ms,
            on_add=self._add_answered,
            on_lost=self._link_lost,
        )

    def _add_answered(self, event: AddsStored | AddRefused) -> None:
        sink = self._sinks.get(event.ledger_id)
        if sink is None:
            return
        if isinstance(event, AddsStored):
            sink.adds_stored(self.bookie_id, event.first_entry_id, event.last_entry_id)
        else:
            sink.add_failed(self.bookie_id, event.entry_id, event.error)

    def _link_lost(self, link: Link[Any], error: BookKeeperError) -> None:
        if link is self._v2:
            self._v2 = None
        elif link is self._v3:
            self._v3 = None
        self._tell_lost(link, error)

    def _tell_lost(self, link: Link[Any], error: BookKeeperError) -> None:
        for ledger_id in list(link.add_ledger_ids):  # a sink may detach, or send again on a new link
            sink = self._sinks.get(ledger_id)
            if sink is not None:
                sink.channel_lost(self.bookie_id, error)
