"""Reads that race with flushes: whatever moves from a cache to the index meanwhile is found."""

import asyncio
from types import SimpleNamespace
from typing import Any

from bkctl.server.reads import LAST_ENTRY, Reads
from tests.sim.storage_node import InlineExecutor

ENTRY = b"entry 0"


class _FlushedMeanwhile:
    """Entry 0 is in a cache; a flush ends while the index is asked for it."""

    def __init__(self) -> None:
        self._cache = {(7, 0): ENTRY}

    def cached_last_entry(self, _ledger_id: int) -> int:
        return 0

    def load_last_entry_id(self, _ledger_id: int) -> int:
        return -1

    def cached_entry(self, ledger_id: int, entry_id: int) -> bytes | None:
        return self._cache.get((ledger_id, entry_id))

    def load_entries(self, wanted: list[tuple[int, int]]) -> list[Any]:
        self._cache.clear()
        return [None for _ in wanted]


def test_the_last_entry_is_found_while_it_is_flushed() -> None:
    """Also by whoever asks first since a start, when only the index knows which one is the last."""
    directory = _FlushedMeanwhile()
    descriptor = SimpleNamespace(ledger_id=7, directory=directory, last_entry_id=None, limbo=False)
    reads = Reads(SimpleNamespace(ledger=lambda _ledger_id: descriptor), InlineExecutor())  # type: ignore[arg-type]
    assert asyncio.run(reads.load([(7, LAST_ENTRY)])) == [ENTRY]
