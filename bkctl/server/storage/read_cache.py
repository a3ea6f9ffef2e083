"""The read cache: entries that were read from disk, and the ones read ahead behind them.

Two generations of a dict: new entries go to the young one; when it is half the limit it becomes the
old one, and what was old is dropped. Upstream's ring of segments forgets in the same order.

Source: spec storage section 7.3; upstream ReadCache.
"""

import threading
from collections.abc import Collection, Iterable, Mapping

from bkctl.formats.index import LEDGER_KEY_BYTES, ledger_key


class ReadCache:
    """Entry keys to entries, bounded by the bytes of the entries. Any thread may call anything."""

    def __init__(self, size_bytes_max: int) -> None:
        self._generation_bytes_max = size_bytes_max // 2
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._young_bytes = 0
        self._lock = threading.Lock()  # of writers; a reader sees one dict, then the other
        self.epoch = 0  # counts discards: who read the index before one must not add after it

    def get(self, key: bytes) -> bytes | None:
        entry = self._young.get(key)
        return entry if entry is not None else self._old.get(key)

    def add(self, entries: Mapping[bytes, bytes], epoch: int) -> None:
        """Take over `entries`, unless something was discarded since `epoch` was read.

        More than half the limit at once is not kept.
        """
        size_bytes = sum(map(len, entries.values()))
        with self._lock:
            if epoch != self.epoch or size_bytes > self._generation_bytes_max:
                return
            if self._young_bytes + size_bytes > self._generation_bytes_max:
                self._old, self._young, self._young_bytes = self._young, {}, 0
            self._young.update(entries)
            self._young_bytes += size_bytes

    def discard(self, keys: Iterable[bytes], ledger_ids: Collection[int]) -> None:
        """Forget these entries and all entries of these ledgers: the index has others by now."""
        prefixes = {ledger_key(ledger_id) for ledger_id in ledger_ids}
        with self._lock:
            self.epoch += 1
            for generation in (self._young, self._old):
                stale = generation.keys() & keys
                if prefixes:
                    stale.update(key for key in generation if key[:LEDGER_KEY_BYTES] in prefixes)
                for key in stale:
                    del generation[key]
