"""Sessions of the embedded store: crash, hang, and what they leave. Source: spec section 21."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bkctl.errors import MetadataLostError, MetadataUnreachableError
from bkctl.metadata import sqlite_nodes, sqlite_session
from bkctl.metadata.api import EventKind, SessionState, WatchEvent
from bkctl.metadata.sqlite import SqliteTree
from bkctl.metadata.sqlite_database import Database
from bkctl.metadata.sqlite_session import SessionLease, end_session
from tests.conformance.tree_drivers import Events, eventually

_OWNER = """
import asyncio, subprocess, sys
from bkctl.errors import MetadataLostError
from bkctl.metadata.sqlite import SqliteTree

async def main(path, timeout_ms):
    tree = SqliteTree(path, session_timeout_ms=int(timeout_ms))
    await tree.open()
    await tree.create("/mine", ephemeral=True)
    print(tree.session_id, flush=True)
    while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if command == "state":
            print(tree.session_state.value, flush=True)
        elif command == "write":
            try:
                await tree.create("/written")
            except MetadataLostError:
                print("lost", flush=True)
        elif command == "child":
            print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Owner:
    """Another process, whose session owns /mine."""

    def __init__(self, path: Path, timeout_ms: int) -> None:
        command = [sys.executable, "-c", _OWNER, str(path), str(timeout_ms)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.session_id = int(self._answer())

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def owner_process(path: Path, timeout_ms: int) -> Iterator[Owner]:
    owner = Owner(path, timeout_ms)
    try:
        yield owner
    finally:
        owner.process.kill()
        owner.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.db"

    async def create() -> None:
        tree = SqliteTree(path, create=True)
        await tree.open()
        await tree.close()

    asyncio.run(create())
    return path


async def _gone(tree: SqliteTree, node: str = "/mine") -> None:
    async def gone() -> bool:
        return await tree.exists(node) is None

    await eventually(gone, f"{node} goes")


async def test_the_nodes_of_a_killed_process_go_at_once_and_are_an_event(path: Path) -> None:
    """The lease of a minute has nothing to do with it: the lock is free."""
    tree = SqliteTree(path)
    await tree.open()
    with owner_process(path, timeout_ms=60_000) as owner:
        events = Events()
        stat = await tree.exists("/mine", events)
        assert stat is not None
        assert stat.owner == owner.session_id
        owner.signal(signal.SIGKILL)
        assert await events.first() == WatchEvent(EventKind.DELETED, "/mine")
        assert await tree.exists("/mine") is None
    await tree.close()


async def test_whoever_opens_the_store_first_finds_no_node_of_a_killed_process(path: Path) -> None:
    with owner_process(path, timeout_ms=60_000) as owner:
        owner.signal(signal.SIGKILL)
        owner.process.wait()
        tree = SqliteTree(path)
        await tree.open()
        assert await tree.exists("/mine") is None
        await tree.close()
    assert list(path.with_name("metadata.db.sessions").iterdir()) == []


async def test_a_child_of_a_killed_process_does_not_keep_its_session(path: Path) -> None:
    tree = SqliteTree(path)
    await tree.open()
    with owner_process(path, timeout_ms=60_000) as owner:
        child = owner.ask("child")
        owner.signal(signal.SIGKILL)
        try:
            await _gone(tree)
        finally:
            os.kill(int(child), signal.SIGKILL)
    await tree.close()


async def test_a_process_stopped_for_longer_than_the_timeout_loses_its_session(path: Path) -> None:
    tree = SqliteTree(path)
    await tree.open()
    with owner_process(path, timeout_ms=600) as owner:
        owner.signal(signal.SIGSTOP)
        await _gone(tree)
        owner.signal(signal.SIGCONT)
        assert owner.ask("state") == "lost"
        assert owner.ask("write") == "lost"
        assert await tree.exists("/written") is None
    await tree.close()


async def test_a_process_stopped_for_less_than_the_timeout_keeps_its_session(path: Path) -> None:
    tree = SqliteTree(path)
    await tree.open()
    with owner_process(path, timeout_ms=10_000) as owner:
        owner.signal(signal.SIGSTOP)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert await tree.exists("/mine") is not None
            await asyncio.sleep(0.02)
        owner.signal(signal.SIGCONT)
        assert owner.ask("state") == "connected"
    assert tree.session_state is SessionState.CONNECTED
    await tree.close()


@pytest.mark.parametrize("failure", ["late", "error"])
async def test_the_owner_knows_before_its_nodes_go(
    path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """Its own deadline comes first; others wait a margin longer."""

    def fails(_: SessionLease) -> bool:
        if failure == "error":
            raise OSError(5, "Input/output error")
        return False

    monkeypatch.setattr(SessionLease, "_renew", fails)
    tree, other = SqliteTree(path, session_timeout_ms=400), SqliteTree(path)
    await tree.open()
    await other.open()
    states: list[SessionState] = []
    tree.on_session(states.append)
    await tree.create("/mine", ephemeral=True)
    while await other.exists("/mine") is not None:
        await asyncio.sleep(0.01)
    assert tree.session_state is SessionState.LOST

    async def told() -> bool:
        return SessionState.LOST in states

    await eventually(told, "the owner is told")
    assert states == [SessionState.SUSPENDED, SessionState.LOST]
    with pytest.raises(MetadataLostError):
        await tree.get("/")
    await tree.close()
    await other.close()


def test_a_renewal_that_ends_after_the_old_deadline_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reaper may have seen the old deadline pass while the process was stopped inside the renewal."""
    second_ns = 1_000_000_000
    now_ns = 100 * second_ns
    monkeypatch.setattr(sqlite_session, "time", SimpleNamespace(monotonic_ns=lambda: now_ns))
    lease = SessionLease(tmp_path / "sessions" / "1.lock", 30_000, lambda _: None)
    now_ns += 20 * second_ns
    assert lease._renew()
    now_ns += 29 * second_ns
    assert not lease.overdue

    def stopped_on_the_way(_: SessionLease) -> bool:
        nonlocal now_ns
        now_ns += 2 * second_ns
        return True

    monkeypatch.setattr(SessionLease, "_is_in_place", stopped_on_the_way)
    lease._renew()
    assert lease.overdue
    lease.end()


async def test_a_session_that_was_ended_writes_nothing_more(path: Path) -> None:
    """Ended and not told yet: the row in the same transaction decides."""
    tree = SqliteTree(path)
    await tree.open()
    await tree.create("/mine", ephemeral=True)
    database = Database(path, create=False, busy_timeout_ms=5_000)
    end_session(database, tree.session_id)
    database.close()
    with pytest.raises(MetadataLostError):
        await tree.create("/written")
    assert tree.session_state is SessionState.LOST
    await tree.reopen()
    assert await tree.exists("/written") is None
    await tree.close()


async def test_a_session_outlives_many_timeouts(path: Path) -> None:
    tree, other = SqliteTree(path, session_timeout_ms=500), SqliteTree(path)
    await tree.open()
    await other.open()
    await tree.create("/mine", ephemeral=True)
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert await other.exists("/mine") is not None
        await asyncio.sleep(0.05)
    assert tree.session_state is SessionState.CONNECTED
    await tree.close()
    await other.close()


@pytest.mark.parametrize("how", ["removed", "made anew"])
async def test_a_session_without_its_lock_file_ends_owner_first(path: Path, how: str) -> None:
    """Nobody can see a lock on a file that is not there: not alive for others, so not for the owner."""
    tree, other = SqliteTree(path, session_timeout_ms=400), SqliteTree(path)
    await tree.open()
    await other.open()
    await tree.create("/mine", ephemeral=True)
    (lock,) = path.with_name("metadata.db.sessions").iterdir()
    lock.rename(lock.with_suffix(".moved"))  # its inode stays in use
    if how == "made anew":
        lock.write_bytes(b"")
    while await other.exists("/mine") is not None:
        await asyncio.sleep(0.01)
    assert tree.session_state is SessionState.LOST
    await tree.reopen()
    await tree.create("/mine", ephemeral=True)
    await tree.close()
    await other.close()


async def test_a_session_of_another_boot_is_over(path: Path) -> None:
    with owner_process(path, timeout_ms=60_000):
        connection = sqlite3.connect(path)
        connection.execute("UPDATE session SET boot_id = 'before the power cut'")
        connection.commit()
        connection.close()
        tree = SqliteTree(path)
        await tree.open()
        assert await tree.exists("/mine") is None
        await tree.close()


async def test_who_only_reads_leaves_nothing_behind(path: Path) -> None:
    tree = SqliteTree(path)
    await tree.open()
    await tree.get("/")
    await tree.exists("/x", Events())
    await tree.create("/x")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM session").fetchone() == (0,)
    connection.close()
    await tree.close()
    assert [file.name for file in path.parent.iterdir()] == ["metadata.db"]


async def test_a_closed_session_leaves_no_row_and_no_lock(path: Path) -> None:
    tree = SqliteTree(path)
    await tree.open()
    await tree.create("/mine", ephemeral=True)
    await tree.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM session").fetchone() == (0,)
    connection.close()
    assert list(path.with_name("metadata.db.sessions").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if "lease" in thread.name]


async def test_who_fell_behind_the_change_feed_reads_everything_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_nodes, "CHANGE_ROWS_MAX", 10)
    monkeypatch.setattr(sqlite_nodes, "_TRIM_EVERY", 1)
    tree, other = SqliteTree(path), SqliteTree(path)
    await tree.open()
    await other.open()
    data, listing = Events(), Events()
    await tree.exists("/untouched", data)
    await tree.children("/", listing)
    go_on = threading.Event()
    tree._executor.submit(go_on.wait)  # its thread hangs
    await other.create("/dir")
    for number in range(20):
        await other.create(f"/dir/{number}")
    go_on.set()
    assert await data.first() == WatchEvent(EventKind.CHANGED, "/untouched")
    assert await listing.first() == WatchEvent(EventKind.CHILDREN, "/")
    assert tree.session_state is SessionState.CONNECTED
    again = Events()
    await tree.exists("/untouched", again)
    await other.create("/untouched")
    assert await again.first() == WatchEvent(EventKind.CREATED, "/untouched")
    await tree.close()
    await other.close()


async def test_a_store_that_stays_locked_is_unreachable_for_writers_only(path: Path) -> None:
    tree = SqliteTree(path, session_timeout_ms=400)
    await tree.open()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(MetadataUnreachableError, match="locked"):
        await tree.create("/x")
    assert await tree.exists("/x") is None
    blocker.execute("ROLLBACK")
    blocker.close()
    await tree.create("/x")
    await tree.close()
