"""A whole bookie in the test's event loop, on a temp directory and a metadata tree in memory."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from bkctl.config import BookieSettings, load_bookie_settings
from bkctl.formats import request_v2 as v2
from bkctl.formats import request_v3 as v3
from bkctl.formats.entry import master_key
from bkctl.formats.frame import pack_frame
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.metadata.store import MetadataStore
from bkctl.server.lifecycle import BookieServer
from bkctl.server.storage.fs import Fs, OsFs

KEY = master_key(b"")
OTHER_KEY = master_key(b"other")


def settings_for(directory: Path, **overrides: str) -> BookieSettings:
    return load_bookie_settings(
        None,
        {
            "bookieId": "bookie-1",
            "bookiePort": "0",
            "advertisedAddress": "127.0.0.1",
            "allowLoopback": "true",
            "journalDirectories": str(directory / "journal"),
            "ledgerDirectories": str(directory / "ledgers"),
            "journalPreAllocSizeMB": "1",
            "dbStorage_writeCacheMaxSizeMb": "16",
            "diskUsageThreshold": "0.999",
            "diskUsageWarnThreshold": "0.999",
            **overrides,
        },
    )


async def metadata_store(store: MemoryStore) -> MetadataStore:
    """A session of its own on an initialised cluster."""
    return await MetadataStore.open("memory://", create=True, tree=MemoryTree(store))


@asynccontextmanager
async def running_bookie(
    directory: Path, *, metadata: MemoryStore | None = None, fs: Fs | None = None, **overrides: str
) -> AsyncIterator[BookieServer]:
    """A bookie that serves; stopped in order at the end, unless the test did it."""
    store = await metadata_store(metadata or MemoryStore())
    server = BookieServer(settings_for(directory, **overrides), store, fs or OsFs())
    try:
        await server.start()
        try:
            yield server
        finally:
            await server.stop()
            while Wire.opened:
                await Wire.opened.pop().close()
    finally:
        await store.close()


class Wire:
    """A raw connection: frames out, frames in; closed with the bookie at the latest."""

    opened: ClassVar[list["Wire"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._txn = 0

    @classmethod
    async def to(cls, server: BookieServer) -> "Wire":
        wire = cls(*await asyncio.open_connection(server.address.host, server.address.port))
        cls.opened.append(wire)
        return wire

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def frame(self, timeout_s: float = 5) -> bytes:
        """The next frame's body; EOFError-like IncompleteReadError when the peer closed."""
        async with asyncio.timeout(timeout_s):
            (length,) = struct.unpack(">i", await self._reader.readexactly(4))
            return await self._reader.readexactly(length)

    async def closed_by_peer(self) -> bool:
        try:
            async with asyncio.timeout(5):
                return not await self._reader.read()
        except ConnectionResetError:
            return True

    async def ask(self, request: Any) -> Any:
        """Send one v2 request and decode the answer."""
        self.send(request.encode())
        return v2.decode_response(await self.frame())

    async def ask_v3(self, operation: Any, *, priority: int = 0, **fields: Any) -> pb.Response:
        """Send one v3 request with these fields of its message and decode the answer."""
        self.send(self.v3_frame(operation, priority=priority, **fields))
        return v3.decode_response(await self.frame())

    def v3_frame(self, operation: Any, *, priority: int = 0, **fields: Any) -> bytes:
        self._txn += 1
        request = v3.new_request(operation, self._txn, priority=priority)
        message = getattr(request, v3.REQUEST_FIELD[operation])
        message.SetInParent()
        for name, value in fields.items():
            setattr(message, name, value)
        return pack_frame(request.SerializeToString())

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


def entry(ledger_id: int, entry_id: int, payload: bytes = b"payload", *, lac: int | None = None) -> bytes:
    """An entry with no digest (type DUMMY)."""
    lac = entry_id - 1 if lac is None else lac
    return struct.pack(">qqqq", ledger_id, entry_id, lac, len(payload) * (entry_id + 1)) + payload


def add(
    ledger_id: int,
    entry_id: int,
    payload: bytes = b"payload",
    *,
    key: bytes = KEY,
    flags: int = 0,
    lac: int | None = None,
) -> v2.AddRequest:
    return v2.AddRequest(flags, key, entry(ledger_id, entry_id, payload, lac=lac))


def read(ledger_id: int, entry_id: int) -> v2.ReadRequest:
    return v2.ReadRequest(0, ledger_id, entry_id)


def fence(ledger_id: int, entry_id: int = -1, *, key: bytes = KEY) -> v2.ReadRequest:
    return v2.ReadRequest(v2.FENCING, ledger_id, entry_id, key)
