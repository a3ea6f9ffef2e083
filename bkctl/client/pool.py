"""The channels of a client, one per bookie."""

from collections.abc import Awaitable, Callable

from bkctl.client.channel import BookieChannel
from bkctl.errors import ClientClosedError
from bkctl.formats.frame import FRAME_BYTES_MAX
from bkctl.types import Address, BookieId


class BookiePool:
    """`resolve` gives the address of a bookie, or raises; it is asked at every connect."""

    def __init__(
        self,
        resolve: Callable[[BookieId], Awaitable[Address]],
        *,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        connect_timeout_ms: int = 10_000,
        read_timeout_ms: int = 5_000,
    ) -> None:
        self._resolve = resolve
        self._frame_bytes_max = frame_bytes_max
        self._connect_timeout_ms = connect_timeout_ms
        self._read_timeout_ms = read_timeout_ms
        self._channels: dict[tuple[BookieId, bool], BookieChannel] = {}
        self._closed = False

    def channel(self, bookie_id: BookieId, *, recovery: bool = False) -> BookieChannel:
        """The channel to a bookie; never blocks, connections open on first use.

        Recoveries have channels of their own: the answer to an add names ledger and entry only, and
        must not be taken for that of a writer of the same ledger in this process.

        Raises:
            ClientClosedError: after `close`.
        """
        if self._closed:
            raise ClientClosedError(f"bookie {bookie_id}: the client is closed")
        key = bookie_id, recovery
        if key not in self._channels:
            self._channels[key] = BookieChannel(
                bookie_id,
                self._resolve,
                frame_bytes_max=self._frame_bytes_max,
                connect_timeout_ms=self._connect_timeout_ms,
                read_timeout_ms=self._read_timeout_ms,
            )
        return self._channels[key]

    async def close(self) -> None:
        """Closes every channel; what is outstanding fails with ClientClosedError."""
        self._closed = True
        for channel in self._channels.values():
            await channel.close()
