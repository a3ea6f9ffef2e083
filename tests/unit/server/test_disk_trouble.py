"""A disk that is full or fails: nothing is acknowledged that is not durable, nothing is lost."""

import asyncio
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats.result_code import ResultCode
from bkctl.metadata.memory import MemoryStore
from bkctl.server import lifecycle
from bkctl.server.disk_monitor import DiskSpace
from bkctl.server.lifecycle import BookieServer
from bkctl.server.storage.fs import OsFs
from tests.unit.server.harness import Wire, add, entry, read, running_bookie


class FullFs(OsFs):
    """No space for files whose name ends with `suffix`, while `full`."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._fds: set[int] = set()
        self.full = False

    def open(self, path: Path, flags: int, *rest: Any) -> int:
        fd = super().open(path, flags, *rest)
        (self._fds.add if path.name.endswith(self._suffix) else self._fds.discard)(fd)
        return fd

    def write_all(self, fd: int, buffers: Sequence[Any], offset: int, **rest: Any) -> None:
        self._check(fd)
        super().write_all(fd, buffers, offset, **rest)

    def write(self, fd: int, data: Any, offset: int) -> None:
        self._check(fd)
        super().write(fd, data, offset)

    def _check(self, fd: int) -> None:
        if self.full and fd in self._fds:
            raise OSError(errno.ENOSPC, "No space left on device")


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_journal_that_cannot_write_acknowledges_nothing_and_stops_the_bookie(tmp_path: Path) -> None:
    async def scenario() -> None:
        metadata, fs = MemoryStore(), FullFs(".txn")
        async with running_bookie(tmp_path, metadata=metadata, fs=fs) as server:
            wire = await Wire.to(server)
            assert (await wire.ask(add(7, 0))).rc == 0
            fs.full = True
            wire.send(add(7, 1).encode())
            error = await asyncio.wait_for(server.failed, 10)
            assert isinstance(error, OSError)
        assert await wire.closed_by_peer()  # and no answer before
        fs.full = False
        async with running_bookie(tmp_path, metadata=metadata) as server:
            wire = await Wire.to(server)
            assert (await wire.ask(read(7, 0))).entry == entry(7, 0)
            assert (await wire.ask(add(7, 1))).rc == 0

    asyncio.run(scenario())


def test_a_full_entry_log_disk_makes_the_bookie_read_only_until_there_is_room(tmp_path: Path) -> None:
    """1. Added. 2. The flush fails: read-only, all is still read. 3. Room again: writable by itself."""

    async def registered(server: BookieServer) -> tuple[list[str], list[str]]:
        registration = server._store.registration
        return list(await registration.writable()), list(await registration.readonly())

    async def scenario() -> None:
        metadata, fs = MemoryStore(), FullFs(".log")
        async with running_bookie(tmp_path, metadata=metadata, fs=fs, flushInterval="50") as server:
            wire = await Wire.to(server)
            fs.full = True
            assert (await wire.ask(add(7, 0))).rc == 0
            await until(lambda: server.bookie.read_only)
            assert (await wire.ask(add(7, 1))).rc == ResultCode.EREADONLY.rc
            assert (await wire.ask(read(7, 0))).entry == entry(7, 0)
            assert await registered(server) == ([], ["bookie-1"])
            fs.full = False
            await until(lambda: not server.bookie.read_only)
            assert (await wire.ask(add(7, 1))).rc == 0
            assert await registered(server) == (["bookie-1"], [])
        async with running_bookie(tmp_path, metadata=metadata) as server:
            wire = await Wire.to(server)
            for n in range(2):
                assert (await wire.ask(read(7, n))).entry == entry(7, n)

    asyncio.run(scenario())


def test_a_full_disk_is_noticed_before_the_bookie_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = DiskSpace(100, 3, usage_max=0.97, usage_min=0.97, free_bytes_max=3)
    monkeypatch.setattr(lifecycle, "disk_space", lambda _directories: full)

    async def scenario() -> None:
        async with running_bookie(
            tmp_path, diskUsageThreshold="0.95", diskUsageWarnThreshold="0.9"
        ) as server:
            wire = await Wire.to(server)
            assert (await wire.ask(add(7, 0))).rc == ResultCode.EREADONLY.rc
            assert await server._store.registration.readonly() == ["bookie-1"]

    asyncio.run(scenario())
