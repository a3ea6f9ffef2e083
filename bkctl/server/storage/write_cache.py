"""The write cache: the entries of one ledger directory that are not in its entry logs yet.

One arena holds the entries as records `size i32 | entry`, in order of arrival: the bytes that the
journal and the entry log hold, too. The bookie copies a run of records to `view[used:]`, advances
`used`, and notes the position of each record under the entry's first 16 bytes (formats.index). A
second add of an entry replaces the first for readers; the bytes of the first stay until the flush.

All state changes on the event loop. The flush reads an arena that no longer changes.

Source: spec storage section 7.1; upstream WriteCache.
"""

import mmap
from itertools import chain
from struct import Struct

from bkctl.formats.index import ENTRY_KEY_BYTES, entry_ids_of_keys, ledger_key

_SIZE = Struct(">i")
_SIZE_BYTES = _SIZE.size
_SORT_KEYS = 16384
_BYTES_PER_ENTRY_MIN = 512  # a key costs 200 bytes beside the arena: small entries fill it early


class WriteCache:
    """One arena of `capacity` bytes; memory is taken from the system as it is first used.

    `index`: entry key -> position of the record in `view`. `last_entry`: ledger id -> highest
    entry id in this cache. Both are replaced, not emptied, when the cache is cleared.
    """

    __slots__ = ("capacity", "index", "last_entry", "used", "view")

    def __init__(self, capacity: int) -> None:
        arena = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # First touches cost 2.3 ms per MiB in pages of 4 KiB: large pages make that a tenth.
        arena.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(arena)
        self.capacity = capacity
        self.used = 0
        self.index: dict[bytes, int] = {}
        self.last_entry: dict[int, int] = {}

    def has_room(self, size_bytes: int) -> bool:
        """Whether records of `size_bytes` in all may be added."""
        return (
            self.used + size_bytes <= self.capacity
            and len(self.index) < self.capacity // _BYTES_PER_ENTRY_MIN
        )

    def put(self, ledger_id: int, entry_id: int, entry: bytes) -> bool:
        """Add one entry that begins with these ids; False when there is no room for it."""
        position = self.used
        end = position + _SIZE_BYTES + len(entry)
        if not self.has_room(end - position):
            return False
        _SIZE.pack_into(self.view, position, len(entry))
        self.view[position + _SIZE_BYTES : end] = entry
        self.used = end
        self.index[entry[:ENTRY_KEY_BYTES]] = position
        if entry_id > self.last_entry.get(ledger_id, -1):
            self.last_entry[ledger_id] = entry_id
        return True

    def entry_at(self, position: int) -> bytes:
        """A copy of the entry whose record stands at `position`."""
        start = position + _SIZE_BYTES
        return bytes(self.view[start : start + _SIZE.unpack_from(self.view, position)[0]])

    def entry_ids(self, ledger_id: int) -> list[int]:
        """The entry ids of a ledger, in no order; any thread may ask."""
        if ledger_id not in self.last_entry:
            return []
        prefix = ledger_key(ledger_id)
        # list() of a dict is one step of the interpreter: the event loop adds keys meanwhile.
        return entry_ids_of_keys(key for key in list(self.index) if key.startswith(prefix))

    def discard_ledger(self, ledger_id: int) -> None:
        """Forget the entries of a ledger; their bytes stay unused until `clear`."""
        if self.last_entry.pop(ledger_id, None) is not None:
            prefix = ledger_key(ledger_id)
            self.index = {key: at for key, at in self.index.items() if not key.startswith(prefix)}

    def clear(self) -> None:
        """Empty the cache; nobody may still read the arena."""
        self.used = 0
        self.index = {}
        self.last_entry = {}

    def sorted_records(self) -> tuple[list[bytes], list[int], list[int]]:
        """(keys, positions, sizes) of all records in (ledger, entry) order.

        A size counts the record's own size field. Sorting in steps of one comparison per key lets
        the event loop run in between: one sort of 240,000 keys would hold it up for 100 ms.
        """
        unsorted = list(self.index)
        runs = [sorted(unsorted[at : at + _SORT_KEYS]) for at in range(0, len(unsorted), _SORT_KEYS)]
        while len(runs) > 1:
            pairs = [runs[at : at + 2] for at in range(0, len(runs), 2)]
            runs = [sorted(chain.from_iterable(pair)) for pair in pairs]
        keys = runs[0] if runs else []
        index, view, unpack = self.index, self.view, _SIZE.unpack_from
        positions = [index[key] for key in keys]
        sizes = [_SIZE_BYTES + unpack(view, position)[0] for position in positions]
        return keys, positions, sizes
