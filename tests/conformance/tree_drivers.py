"""The three drivers of the metadata tree, behind one face for the conformance tests."""

import abc
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient

from bkctl.metadata.api import MetadataTree, WatchEvent
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.metadata.sqlite import SqliteTree
from bkctl.metadata.sqlite_database import Database
from bkctl.metadata.sqlite_session import end_session
from bkctl.metadata.zookeeper import ZooKeeperTree
from tests.zookeeper_server import ZooKeeperServer

PATIENCE_S = 10.0


async def eventually(check: Callable[[], Awaitable[Any]], what: str) -> Any:
    """The first true answer of `check`."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := await check()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)
    return answer


class Events(list[WatchEvent]):
    """A watcher that keeps what it hears."""

    def __call__(self, event: WatchEvent) -> None:
        self.append(event)

    async def first(self) -> WatchEvent:
        async def heard() -> bool:
            return bool(self)

        await eventually(heard, "an event")
        return self[0]


class Driver(abc.ABC):
    """One store; sessions with it."""

    session_timeout_ms = 10_000

    @abc.abstractmethod
    def tree(self) -> MetadataTree:
        """A session that is not open yet."""

    @abc.abstractmethod
    async def lose_session(self, tree: MetadataTree) -> None:
        """Make the store declare the session lost; it must have an ephemeral node."""

    @asynccontextmanager
    async def sessions(self, count: int) -> AsyncIterator[list[Any]]:
        trees = [self.tree() for _ in range(count)]
        try:
            for tree in trees:
                await tree.open()
            yield trees
        finally:
            for tree in trees:
                await tree.close()


class MemoryDriver(Driver):
    def __init__(self) -> None:
        self._store = MemoryStore()

    def tree(self) -> MetadataTree:
        return MemoryTree(self._store)

    async def lose_session(self, tree: MetadataTree) -> None:
        assert isinstance(tree, MemoryTree)
        tree.expire_session()


class SqliteDriver(Driver):
    def __init__(self, directory: Path) -> None:
        self.path = directory / "metadata.db"

    def tree(self) -> MetadataTree:
        return SqliteTree(self.path, create=True, session_timeout_ms=self.session_timeout_ms)

    async def lose_session(self, tree: MetadataTree) -> None:
        database = Database(self.path, create=False, busy_timeout_ms=5_000)
        end_session(database, tree.session_id)
        database.close()


class ZooKeeperDriver(Driver):
    def __init__(self, server: ZooKeeperServer, root: str) -> None:
        self._hosts = f"{server.hosts}{root}"
        client = KazooClient(server.hosts)
        client.start()
        client.create(root)
        client.stop()
        client.close()

    def tree(self) -> MetadataTree:
        return ZooKeeperTree(self._hosts, session_timeout_ms=self.session_timeout_ms)

    async def lose_session(self, tree: MetadataTree) -> None:
        assert isinstance(tree, ZooKeeperTree)
        assert tree._client is not None
        client_id = tree._client.client_id

        def close_as_its_owner() -> None:
            client = KazooClient(self._hosts, client_id=client_id)
            client.start()
            client.stop()
            client.close()

        await asyncio.to_thread(close_as_its_owner)
