"""A cluster without sockets: metadata in memory, bookies that do what the test tells them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.settings import ClientSettings
from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    LedgerFencedError,
    NoSuchEntryError,
    NoSuchLedgerError,
)
from bkctl.formats.entry import read_header
from bkctl.formats.request_v2 import RECOVERY_ADD
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.metadata.store import MetadataStore
from bkctl.quorum.pending import entries_in, frames_in
from bkctl.types import BookieId, EntryId
from bkctl.wire.events import LongPollAnswer


class FakeBookie:
    """`silent`: answers nothing. `down`: connections fail. `refuse`: the answer to every add."""

    def __init__(self) -> None:
        self.ledgers: dict[int, dict[int, bytes]] = {}
        self.explicit_lacs: dict[int, bytes] = {}
        self.fenced: set[int] = set()
        self.forced: list[int] = []
        self.silent = False
        self.before_4_17 = False
        self.down = False
        self.refuse: BookKeeperError | None = None
        self.unread = 0  # bytes that the bookie does not take from its socket
        self.blocks: list[list[int]] = []  # entry ids of every block that arrived
        self.reads: list[list[int]] = []
        self.changed = asyncio.Event()

    def add(self, ledger_id: int, flags: int, entry_id: int, body: bytes) -> BookKeeperError | None:
        if self.refuse is not None:
            return self.refuse
        if ledger_id in self.fenced and not flags & RECOVERY_ADD:
            return LedgerFencedError("fenced")
        self.ledgers.setdefault(ledger_id, {})[entry_id] = body
        self.changed.set()
        self.changed = asyncio.Event()
        return None

    def read(self, ledger_id: int, entry_id: int) -> bytes | BookKeeperError:
        entries = self.ledgers.get(ledger_id)
        if entries is None:
            return NoSuchLedgerError("no such ledger")
        if entry_id == -1:
            entry_id = max(entries, default=-1)
        return entries.get(entry_id, NoSuchEntryError("no such entry"))

    def lac(self, ledger_id: int) -> int:
        return max((read_header(body).lac for body in self.ledgers.get(ledger_id, {}).values()), default=-1)


class FakeChannel:
    def __init__(self, bookie_id: BookieId, bookie: FakeBookie) -> None:
        self._bookie_id = bookie_id
        self._bookie = bookie
        self._sinks: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()

    def attach(self, ledger_id: int, sink: Any) -> None:
        assert self._sinks.setdefault(ledger_id, sink) is sink

    def detach(self, ledger_id: int) -> None:
        self._sinks.pop(ledger_id, None)

    @property
    def outstanding_bytes(self) -> int:
        return self._bookie.unread

    def send_adds(self, ledger_id: int, block: bytes) -> None:
        flags = [int.from_bytes(block[start + 6 : start + 8]) for start, _ in frames_in(block)]
        adds = [(f, *entry) for f, entry in zip(flags, entries_in(block), strict=True)]
        self._loop.call_soon(self._arrive, ledger_id, adds)

    def send_deferred_adds(
        self, ledger_id: int, first_entry_id: int, bodies: Sequence[bytes], master_key: bytes
    ) -> None:
        adds = [(0, entry_id, body) for entry_id, body in enumerate(bodies, first_entry_id)]
        self._loop.call_soon(self._arrive, ledger_id, adds)

    def _arrive(self, ledger_id: int, adds: list[tuple[int, int, bytes]]) -> None:
        bookie, sink = self._bookie, self._sinks.get(ledger_id)
        if bookie.down and sink is not None:
            sink.channel_lost(self._bookie_id, BookieHandleNotAvailableError("down"))
        if bookie.silent or bookie.down:
            return
        bookie.blocks.append([entry_id for _, entry_id, _ in adds])
        for flags, entry_id, body in adds:
            error = bookie.add(ledger_id, flags, entry_id, body)
            sink = self._sinks.get(ledger_id)
            if sink is not None and error is not None:
                sink.add_failed(self._bookie_id, entry_id, error)
            elif sink is not None:
                sink.adds_stored(self._bookie_id, entry_id, entry_id)

    async def _reached(self) -> None:
        await asyncio.sleep(0)
        if self._bookie.down:
            raise BookieHandleNotAvailableError("down")
        if self._bookie.silent:
            await asyncio.Event().wait()

    async def read_entries(self, ledger_id: int, entry_ids: Sequence[int]) -> list[bytes | BookKeeperError]:
        if not entry_ids:
            return []
        self._bookie.reads.append(list(entry_ids))
        await self._reached()
        return [self._bookie.read(ledger_id, entry_id) for entry_id in entry_ids]

    async def batch_read(
        self, ledger_id: int, first_entry_id: int, count_max: int, bytes_max: int
    ) -> list[bytes]:
        """Like a bookie: a prefix, here of at most 400 entries."""
        if self._bookie.before_4_17:
            raise BookieHandleNotAvailableError("connection closed by the bookie")
        self._bookie.reads.append(list(range(first_entry_id, first_entry_id + count_max)))
        await self._reached()
        found: list[bytes] = []
        for entry_id in range(first_entry_id, first_entry_id + min(count_max, 400)):
            answer = self._bookie.read(ledger_id, entry_id)
            if isinstance(answer, BookKeeperError):
                if not found:
                    raise answer
                break
            found.append(answer)
        return found

    async def read_entry(
        self, ledger_id: int, entry_id: int, *, fence_key: bytes | None = None, high_priority: bool = False
    ) -> bytes:
        await self._reached()
        answer = self._bookie.read(ledger_id, entry_id)
        if fence_key is not None:
            self._bookie.fenced.add(ledger_id)
            self._bookie.ledgers.setdefault(ledger_id, {})
        if isinstance(answer, BookKeeperError):
            raise answer
        return answer

    async def read_last(self, ledger_id: int, *, fence_key: bytes | None = None) -> bytes:
        return await self.read_entry(ledger_id, -1, fence_key=fence_key)

    async def read_lac(self, ledger_id: int) -> tuple[bytes | None, bytes | None]:
        await self._reached()
        last = self._bookie.read(ledger_id, -1)
        packet = self._bookie.explicit_lacs.get(ledger_id)
        if isinstance(last, BookKeeperError) and packet is None:
            raise last
        return packet, None if isinstance(last, BookKeeperError) else last

    async def write_lac(self, ledger_id: int, lac: int, master_key: bytes, body: bytes) -> None:
        await self._reached()
        self._bookie.explicit_lacs[ledger_id] = body

    async def long_poll(self, ledger_id: int, previous_lac: int, timeout_ms: int) -> LongPollAnswer:
        await self._reached()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while (lac := self._bookie.lac(ledger_id)) <= previous_lac:
                    await self._bookie.changed.wait()
        except TimeoutError:
            return LongPollAnswer(-1, None, lac)
        body = self._bookie.ledgers[ledger_id].get(previous_lac + 1)
        return LongPollAnswer(previous_lac + 1 if body else -1, body, lac)

    async def force_ledger(self, ledger_id: int) -> None:
        await self._reached()
        self._bookie.forced.append(ledger_id)


class FakePool:
    def __init__(self, bookies: dict[BookieId, FakeBookie]) -> None:
        self._bookies = bookies
        self._channels: dict[tuple[BookieId, bool], FakeChannel] = {}

    def channel(self, bookie_id: BookieId, *, recovery: bool = False) -> FakeChannel:
        key = bookie_id, recovery
        if key not in self._channels:
            self._channels[key] = FakeChannel(bookie_id, self._bookies[bookie_id])
        return self._channels[key]

    async def close(self) -> None:
        return


class FakeCluster:
    """Bookies b1, b2, ...; `client` makes clients of it, each with a session of its own."""

    def __init__(self, count: int) -> None:
        self.bookies = {BookieId(f"b{i}"): FakeBookie() for i in range(1, count + 1)}
        self._store = MemoryStore()

    async def _metadata(self) -> MetadataStore:
        return await MetadataStore.open("memory://", create=True, tree=MemoryTree(self._store))

    @asynccontextmanager
    async def client(self, **settings: Any) -> AsyncIterator[BookKeeper]:
        metadata = await self._metadata()
        for bookie_id in self.bookies:
            path = f"{metadata.root}/available/{bookie_id}"
            if await metadata.tree.exists(path) is None:
                await metadata.tree.create(path, parents=True)
        async with BookKeeper(metadata, FakePool(self.bookies), ClientSettings(**settings)) as client:
            yield client

    def holders(self, ledger_id: int, entry_id: int) -> set[BookieId]:
        return {b for b, bookie in self.bookies.items() if entry_id in bookie.ledgers.get(ledger_id, {})}


def payloads(count: int, first: int = 0) -> list[bytes]:
    return [b"payload of entry %d" % EntryId(first + i) for i in range(count)]
