"""A small cluster in memory for the tests of the managers."""

import asyncio
import time
from collections.abc import Callable

from bkctl.errors import MetadataUnreachableError
from bkctl.formats.layout import layout_of
from bkctl.formats.ledger_path import ManagerType
from bkctl.metadata.cluster import init_cluster
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.types import BookieId, EntryId, LedgerMetadata, Segment

ROOT = "/ledgers"
A, B, C = (BookieId(f"{name}:3181") for name in "abc")
METADATA = LedgerMetadata(2, 2, 2, (Segment(EntryId(0), (A, B)),), password=b"pw")


class FlakyTree(MemoryTree):
    """Every other create that succeeds, the first one too, loses its reply."""

    next_is_lost = True

    async def create(self, path: str, data: bytes = b"", **options: bool) -> str:
        made = await super().create(path, data, **options)
        lost, self.next_is_lost = self.next_is_lost, not self.next_is_lost
        if lost:
            raise MetadataUnreachableError("the reply was lost")
        return made


async def session(store: MemoryStore, *, timeout_ms: int = 10_000) -> MemoryTree:
    tree = MemoryTree(store, session_timeout_ms=timeout_ms)
    await tree.open()
    return tree


async def cluster(manager: ManagerType = ManagerType.HIERARCHICAL) -> tuple[MemoryStore, MemoryTree]:
    store = MemoryStore()
    tree = await session(store)
    await init_cluster(tree, ROOT, layout_of(manager))
    return store, tree


async def settle() -> None:
    """Let every task run until it waits for something outside."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "never happened"
        await asyncio.sleep(0.005)
