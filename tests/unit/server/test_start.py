"""A bookie starts on its own directories, with everything it acknowledged, or says why it does not."""

import asyncio
import logging
import shutil
import socket
from pathlib import Path

import pytest

from bkctl.errors import BookieStartError
from bkctl.formats import request_v2 as v2
from bkctl.formats.result_code import ResultCode
from bkctl.metadata.memory import MemoryStore
from bkctl.types import BookieId
from tests.unit.server.harness import Wire, add, entry, fence, metadata_store, read, running_bookie


def run(scenario: object) -> None:
    asyncio.run(scenario)  # type: ignore[arg-type]


async def refusal(directory: Path, metadata: MemoryStore, **overrides: str) -> str:
    with pytest.raises(BookieStartError) as caught:
        async with running_bookie(directory, metadata=metadata, **overrides):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def write_some(directory: Path, metadata: MemoryStore) -> None:
    async with running_bookie(directory, metadata=metadata) as server:
        wire = await Wire.to(server)
        for n in range(20):
            assert (await wire.ask(add(7, n, b"x" * n))).rc == 0
        assert (await wire.ask(fence(8))).rc == ResultCode.ENOENTRY.rc


async def check_some(directory: Path, metadata: MemoryStore) -> None:
    async with running_bookie(directory, metadata=metadata) as server:
        wire = await Wire.to(server)
        for n in range(20):
            assert (await wire.ask(read(7, n))).entry == entry(7, n, b"x" * n)
        assert (await wire.ask(read(7, -1))).entry == entry(7, 19, b"x" * 19)
        assert (await wire.ask(add(8, 0))).rc == ResultCode.EFENCED.rc
        wrong_key = v2.AddRequest(0, bytes(range(20)), entry(7, 20))
        assert (await wire.ask(wrong_key)).rc == ResultCode.EUA.rc  # compared with the stored key


def test_everything_is_there_after_an_orderly_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In entry logs and indexes: nothing is left to replay."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        metadata = MemoryStore()
        await write_some(tmp_path, metadata)
        assert not (tmp_path / "ledgers" / "current" / "DIRTY").exists()
        await check_some(tmp_path, metadata)
        await check_some(tmp_path, metadata)
        replayed = [m.split()[1] for m in caplog.messages if m.startswith("replayed")]
        assert replayed == ["0", "0", "0"]

    run(scenario())


def test_everything_acknowledged_is_there_after_a_crash(tmp_path: Path) -> None:
    """The directories as they are while the bookie still runs are those that a kill leaves."""

    async def scenario() -> None:
        metadata = MemoryStore()
        home, left = tmp_path / "bookie", tmp_path / "left"
        async with running_bookie(home, metadata=metadata) as server:
            wire = await Wire.to(server)
            for n in range(20):
                assert (await wire.ask(add(7, n, b"x" * n))).rc == 0
            assert (await wire.ask(fence(8))).rc == ResultCode.ENOENTRY.rc
            shutil.copytree(home, left)
        shutil.rmtree(home)
        left.rename(home)
        assert (home / "ledgers" / "current" / "DIRTY").exists()
        await check_some(home, metadata)

    run(scenario())


def test_a_bookie_that_is_killed_again_and_again_replays_each_record_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    home, left = tmp_path / "bookie", tmp_path / "left"

    async def killed_after(metadata: MemoryStore, entries: int) -> str:
        """Start, add, be killed; what the start said about its replay."""
        caplog.clear()
        async with running_bookie(home, metadata=metadata) as server:
            wire = await Wire.to(server)
            for n in range(entries):
                assert (await wire.ask(add(7, n))).rc == 0
            shutil.copytree(home, left)
        shutil.rmtree(home)
        left.rename(home)
        return next(m for m in caplog.messages if m.startswith("replayed"))

    async def scenario() -> None:
        metadata = MemoryStore()
        assert "replayed 0 records" in await killed_after(metadata, 20)
        assert "replayed 21 records" in await killed_after(metadata, 0)  # the entries and the ledger's key
        assert "replayed 0 records" in await killed_after(metadata, 0)
        async with running_bookie(home, metadata=metadata) as server:
            wire = await Wire.to(server)
            assert (await wire.ask(read(7, 19))).entry == entry(7, 19)

    run(scenario())


def test_directories_of_another_bookie_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        metadata = MemoryStore()
        await write_some(tmp_path, metadata)
        reason = await refusal(tmp_path, metadata, bookieId="bookie-2")
        assert "VERSION is not of this bookie" in reason
        assert "'bookie-2'" in reason
        await check_some(tmp_path, metadata)  # nothing was harmed

    run(scenario())


def test_a_wiped_directory_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        metadata = MemoryStore()
        await write_some(tmp_path, metadata)
        shutil.rmtree(tmp_path / "ledgers")
        assert "a disk is missing, empty or foreign" in await refusal(tmp_path, metadata)

    run(scenario())


def test_directories_without_their_stored_cookie_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        metadata = MemoryStore()
        await write_some(tmp_path, metadata)
        store = await metadata_store(metadata)
        await store.cookies.delete(BookieId("bookie-1"))
        await store.close()
        assert "has no cookie of it" in await refusal(tmp_path, metadata)

    run(scenario())


def test_a_first_start_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    """The files were stamped, the metadata store was not: nothing but the stamps is there."""

    async def scenario() -> None:
        metadata = MemoryStore()
        await write_some(tmp_path, metadata)
        store = await metadata_store(metadata)
        await store.cookies.delete(BookieId("bookie-1"))
        await store.close()
        for name in ("journal", "ledgers"):
            current = tmp_path / name / "current"
            version = (current / "VERSION").read_bytes()
            shutil.rmtree(current)
            current.mkdir()
            (current / "VERSION").write_bytes(version)
        async with running_bookie(tmp_path, metadata=metadata) as server:
            assert await server._store.cookies.read(BookieId("bookie-1")) is not None

    run(scenario())


def test_another_cluster_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        await write_some(tmp_path, MemoryStore())
        assert "instanceId" in await refusal(tmp_path, MemoryStore())

    run(scenario())


def test_a_new_bookie_takes_only_empty_directories(tmp_path: Path) -> None:
    async def scenario() -> None:
        current = tmp_path / "journal" / "current"
        current.mkdir(parents=True)
        (current / "1.txn").write_bytes(b"whose is this?")
        assert "not empty" in await refusal(tmp_path, MemoryStore())
        assert not (tmp_path / "ledgers" / "current" / "VERSION").exists()

    run(scenario())


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            reason = await refusal(tmp_path, MemoryStore(), bookiePort=str(port))
        assert f"port {port} cannot be used" in reason
        assert not (tmp_path / "journal").exists()

    run(scenario())


def test_directories_serve_one_process_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        metadata = MemoryStore()
        async with running_bookie(tmp_path, metadata=metadata):
            assert "in use by another bookie" in await refusal(tmp_path, metadata)

    run(scenario())


def test_a_loopback_address_needs_consent(tmp_path: Path) -> None:
    async def scenario() -> None:
        assert "allowLoopback" in await refusal(tmp_path, MemoryStore(), allowLoopback="false")

    run(scenario())


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "file").write_text("not a directory")
        reason = await refusal(tmp_path, MemoryStore(), ledgerDirectories=str(tmp_path / "file"))
        assert str(tmp_path / "file") in reason

    run(scenario())


@pytest.mark.parametrize("count", [2, 3])
def test_several_journals_and_ledger_directories(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        metadata = MemoryStore()
        directories = {
            "journalDirectories": ",".join(str(tmp_path / f"j{n}") for n in range(2)),
            "ledgerDirectories": ",".join(str(tmp_path / f"l{n}") for n in range(count)),
        }
        async with running_bookie(tmp_path, metadata=metadata, **directories) as server:
            wire = await Wire.to(server)
            for ledger in range(6):
                assert (await wire.ask(add(ledger, 0))).rc == 0
        async with running_bookie(tmp_path, metadata=metadata, **directories) as server:
            wire = await Wire.to(server)
            for ledger in range(6):
                assert (await wire.ask(read(ledger, 0))).entry == entry(ledger, 0)
            assert (tmp_path / "l0" / "current" / "lastMark.1").exists()

    run(scenario())
