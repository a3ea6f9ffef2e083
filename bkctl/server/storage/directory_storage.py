"""One ledger directory and its index directory: caches, flush, reads, what is known of its ledgers.

Laws:

1. State in memory changes on the event loop only (methods marked "loop"); so a fence and an add
   cannot race. The storage thread runs `flush`, read threads run `load_*`.
2. `rotate` freezes everything that changed so far: entries, ledgers, deletions. `flush` makes that
   durable, in the order entry log, locations, ledgers. `release` lets go of it.
3. A flush that failed keeps its frozen part; nothing is frozen anew before it has succeeded. So what
   was journaled before a `rotate` is durable once the flush after it has succeeded, also when not a
   single entry was added (trap T1).
4. An entry is first in the active cache, then in the flushing one, then in the index. Whoever looks
   in this order misses nothing.
5. Locations change on the storage thread only: what a compaction copied is compared with the index and
   moved there without a flush or a deletion in between.
6. A ledger that was fenced when it was deleted comes back fenced, if it comes back: its old writer may
   still be there. The tombstone is written in the batch that deletes the ledger.

Source: spec storage section 7, spec replication B7; upstream SingleDirectoryDbLedgerStorage,
HandleFactoryImpl. Differs: upstream forgets at a restart, and after a week, what was fenced.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bkctl.errors import CorruptDataError, IllegalOperationError
from bkctl.formats import entry_log as entry_log_format
from bkctl.formats import index as fmt
from bkctl.server.storage.entry_log import EntryLogReader, EntryLogWriter, Wanted
from bkctl.server.storage.fs import Fs
from bkctl.server.storage.index import LedgersIndex, LocationsIndex
from bkctl.server.storage.read_cache import ReadCache
from bkctl.server.storage.write_cache import WriteCache

_READ_SPAN_BYTES = 256 * 1024  # entries this close are read at once, if
_READ_GAP_BYTES = 16 * 1024  # no gap between two of them is wider than this
_READ_AHEAD_BYTES = 128 * 1024
_EXPECTED_COUNT_MAX = 1024  # readers that are remembered
_TOMBSTONES_MAX = 100_000  # of a directory; beyond, a tenth goes, the lowest ids first: ids ascend with time


class LedgerDescriptor:
    """What a bookie knows of one ledger; changed on the event loop only.

    `explicit_lac` is the client's packet, `limbo` as in formats.index.LedgerData. `key_journaled`:
    the master key is in the journal or the index. `max_lac` and `last_entry_id` are None until
    loaded; -1 none. `waiters` belongs to the bookie.
    """

    __slots__ = (
        "directory",
        "explicit_lac",
        "fenced",
        "flushed_entry_id",
        "key_journaled",
        "last_entry_id",
        "ledger_id",
        "limbo",
        "master_key",
        "max_lac",
        "waiters",
    )

    def __init__(self, directory: "DirectoryStorage", ledger_id: int, data: fmt.LedgerData) -> None:
        self.directory = directory
        self.ledger_id = ledger_id
        self.master_key = data.master_key
        self.fenced = data.fenced
        self.explicit_lac = data.explicit_lac
        self.limbo = data.limbo
        self.key_journaled = False
        self.max_lac: int | None = None
        self.last_entry_id: int | None = None  # as the index had it when it was asked
        self.flushed_entry_id = -1  # highest one flushed since the start
        self.waiters: list[Any] | None = None

    @property
    def data(self) -> fmt.LedgerData:
        return fmt.LedgerData(self.fenced, self.master_key, self.explicit_lac, self.limbo)


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    """`ledger_dir` is a `current` directory that exists."""

    ledger_dir: Path
    write_cache_bytes: int  # both arenas together
    read_cache_bytes: int
    read_ahead_count: int  # entries, 0 for none
    entry_log_bytes_max: int


@dataclass(slots=True)
class _Frozen:
    """What one flush makes durable; `entries` once they are so in the entry log: keys, locations."""

    cache: WriteCache
    changed: dict[int, fmt.LedgerData]
    deleted: set[int]
    buried: set[int]  # of the deleted, those that leave a tombstone
    exhumed: list[int]  # whose tombstone goes
    entries: tuple[list[bytes], list[int]] | None = None
    durable: bool = False


class DirectoryStorage:
    """The storage of the ledgers of one ledger directory."""

    def __init__(
        self, settings: DirectorySettings, fs: Fs, *, ledgers: LedgersIndex, locations: LocationsIndex
    ) -> None:
        """The indexes stay the caller's to close. Raises OSError, CorruptDataError: they cannot be read."""
        self._ledgers = ledgers
        self._locations = locations
        self._directory = settings.ledger_dir
        self._fs = fs
        self._writer = EntryLogWriter(settings.ledger_dir, fs, log_bytes_max=settings.entry_log_bytes_max)
        self._reader = EntryLogReader(settings.ledger_dir, fs)
        self._read_ahead_count = settings.read_ahead_count
        self._expected: set[tuple[int, int]] = set()  # (ledger id, entry id) behind what was read
        self._read_cache = ReadCache(settings.read_cache_bytes)
        self.ledgers = {id_: LedgerDescriptor(self, id_, data) for id_, data in ledgers.load().items()}
        arena_bytes = settings.write_cache_bytes // 2
        self.active = WriteCache(arena_bytes)
        self.flushing: WriteCache | None = None
        self._spare = WriteCache(arena_bytes)
        self._changed: set[int] = set()
        self._deleted: set[int] = set()
        self.tombstones = set(ledgers.tombstones())  # ledgers that were fenced when they were deleted
        self._buried: set[int] = set()
        self._frozen: _Frozen | None = None

    # Ledgers

    def create_ledger(self, ledger_id: int, master_key: bytes) -> LedgerDescriptor:
        """Loop: a ledger that is not known here; `master_key` may be empty: unknown.

        It is fenced when it was so at its deletion.
        """
        assert ledger_id >= 0, ledger_id  # negative keys are reserved in the index (trap T13)
        assert ledger_id not in self.ledgers, ledger_id
        if self._pending_deletion(ledger_id):
            self._read_cache.discard((), [ledger_id])
        fenced = ledger_id in self.tombstones
        descriptor = LedgerDescriptor(self, ledger_id, fmt.LedgerData(fenced, master_key))
        self.ledgers[ledger_id] = descriptor
        self._changed.add(ledger_id)
        return descriptor

    def set_master_key(self, descriptor: LedgerDescriptor, master_key: bytes) -> None:
        """Loop: offer a key; one of no bytes or of zeros stands for "unknown" on either side.

        Raises IllegalOperationError: the ledger has another key.
        """
        if not any(descriptor.master_key):
            descriptor.master_key = master_key
            self._changed.add(descriptor.ledger_id)
        elif any(master_key) and master_key != descriptor.master_key:
            raise IllegalOperationError(f"ledger {descriptor.ledger_id} has another master key")

    def set_fenced(self, descriptor: LedgerDescriptor) -> None:
        """Loop: no more adds but those of a recovery."""
        descriptor.fenced = True
        self._changed.add(descriptor.ledger_id)

    def set_explicit_lac(self, descriptor: LedgerDescriptor, packet: bytes) -> None:
        """Loop: `packet` as the client sent it."""
        descriptor.explicit_lac = packet
        self._changed.add(descriptor.ledger_id)

    def delete_ledger(self, ledger_id: int) -> None:
        """Loop: forget a ledger and its entries; final with the next flush, undone by a crash before."""
        descriptor = self.ledgers.pop(ledger_id)
        if descriptor.fenced or descriptor.limbo:
            self.tombstones.add(ledger_id)
            self._buried.add(ledger_id)
        self.active.discard_ledger(ledger_id)
        self._changed.discard(ledger_id)
        self._deleted.add(ledger_id)

    def stored_ledgers(self) -> list[int]:
        """Loop: the ledgers here, and those whose deletion is not durable yet."""
        frozen = () if self._frozen is None else self._frozen.deleted
        return [*self.ledgers, *self._deleted, *frozen]

    # Reads

    def cached(self, key: bytes) -> bytes | None:
        """Loop: the entry whose first 16 bytes (ledger id, entry id) are `key`, if a cache has it."""
        position = self.active.index.get(key)
        if position is not None:
            return self.active.entry_at(position)
        if self.flushing is not None:
            position = self.flushing.index.get(key)
            if position is not None and fmt.unpack_ledger_key(key) not in self._deleted:
                return self.flushing.entry_at(position)
        return self._read_cache.get(key)

    def cached_entry(self, ledger_id: int, entry_id: int) -> bytes | None:
        """Loop: as `cached`, by the numbers."""
        return self.cached(fmt.entry_key(ledger_id, entry_id))

    def cached_last_entry(self, ledger_id: int) -> int:
        """Loop: the highest entry id that the caches hold or held since the start, -1 for none.

        The index may hold a higher one, so the last entry is the higher of both (trap T11); what
        `load_last_entry_id` found once stays valid, since the flushes after it are counted here.
        """
        descriptor = self.ledgers.get(ledger_id)
        flushed = -1 if descriptor is None else descriptor.flushed_entry_id
        if self.flushing is not None and ledger_id not in self._deleted:
            flushed = max(flushed, self.flushing.last_entry.get(ledger_id, -1))
        return max(flushed, self.active.last_entry.get(ledger_id, -1))

    def load_last_entry_id(self, ledger_id: int) -> int:
        """Any thread: the highest entry id in the index, -1 for none; raises OSError, CorruptDataError."""
        return -1 if self._pending_deletion(ledger_id) else self._locations.last_entry_id(ledger_id)

    def load_entry_ids(self, ledger_id: int) -> list[int]:
        """Any thread: every entry id of the ledger, ascending; raises OSError, CorruptDataError."""
        hidden = self._pending_deletion(ledger_id)
        entry_ids = set(self.active.entry_ids(ledger_id))
        flushing = self.flushing
        if flushing is not None and ledger_id not in self._deleted:
            entry_ids.update(flushing.entry_ids(ledger_id))
        if not hidden:
            entry_ids.update(self._locations.entry_ids(ledger_id))
        return sorted(entry_ids)

    def load_entries(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | Exception | None]:
        """Any thread: entries by (ledger id, entry id), for what `cached` does not have.

        None: no such entry here. OSError or CorruptDataError: it should be here and cannot be read,
        which must never be taken for "no such entry".
        """
        results = self._load(wanted)
        gone = [i for i, result in enumerate(results) if isinstance(result, FileNotFoundError)]
        if gone:  # a compaction deleted the log since the index was asked: now it names another
            for i, result in zip(gone, self._load([wanted[i] for i in gone]), strict=True):
                results[i] = result
        return results

    def _load(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | Exception | None]:
        hidden = {ledger_id for ledger_id, _ in wanted if self._pending_deletion(ledger_id)}
        results: list[bytes | Exception | None] = [None] * len(wanted)
        entries: dict[bytes, bytes] = {}
        epoch = self._read_cache.epoch
        try:
            locations = self._locations.get([fmt.entry_key(*ids) for ids in wanted])
            found = sorted(
                (location, i)
                for i, location in enumerate(locations)
                if location is not None and wanted[i][0] not in hidden
            )
            for span in _spans(found):
                near = [Wanted(location, *wanted[i]) for location, i in span]
                loaded = self._reader.near_entries(near + self._ahead(near))
                entries.update((e[: fmt.ENTRY_KEY_BYTES], e) for e in loaded if isinstance(e, bytes))
                for (_, i), entry in zip(span, loaded, strict=False):  # behind them: what was read ahead
                    results[i] = entry
        except (OSError, CorruptDataError) as exc:  # of the index
            return [exc] * len(wanted)
        self._read_cache.add(entries, epoch)
        return results

    def _ahead(self, near: Sequence[Wanted]) -> list[Wanted]:
        """What to read ahead, behind `near`, for a reader that goes on where the last read stopped.

        The index says which entries follow: an entry log may hold an older copy of one of them.
        """
        location_min, ledger_id, last_id = near[-1]
        location_max = near[0].location + _READ_AHEAD_BYTES
        ahead: list[Wanted] = []
        if (near[0].ledger_id, near[0].entry_id) in self._expected and self._read_ahead_count:
            for entry_id, location in self._locations.following(ledger_id, last_id, self._read_ahead_count):
                if entry_id != last_id + len(ahead) + 1 or not location_min < location < location_max:
                    break
                ahead.append(Wanted(location, ledger_id, entry_id))
                location_min = location
        if len(self._expected) >= _EXPECTED_COUNT_MAX:
            self._expected.clear()
        self._expected.add((ledger_id, last_id + len(ahead) + 1))
        return ahead

    def _pending_deletion(self, ledger_id: int) -> bool:
        """Whether the index still has entries of a ledger that was deleted."""
        frozen = self._frozen
        return ledger_id in self._deleted or (frozen is not None and ledger_id in frozen.deleted)

    # Flush

    def rotate(self) -> bool:
        """Loop: freeze what changed so far and go on with the other arena.

        False when the last frozen part was not released yet: the caller holds adds back until then.
        """
        if self._frozen is not None:
            return False
        changed = {ledger_id: self.ledgers[ledger_id].data for ledger_id in self._changed}
        exhumed: list[int] = []
        if len(self.tombstones) > _TOMBSTONES_MAX:
            exhumed = sorted(self.tombstones)[: -_TOMBSTONES_MAX * 9 // 10]
            self.tombstones.difference_update(exhumed)
        self._frozen = _Frozen(self.active, changed, self._deleted, self._buried, exhumed)
        self.flushing, self.active = self.active, self._spare
        self._changed, self._deleted, self._buried = set(), set(), set()
        return True

    def flush(self) -> None:
        """Storage thread: make the frozen part durable; may be called again after it failed.

        Raises OSError, CorruptDataError: nothing is lost, and nothing may be taken as durable.
        """
        frozen = self._frozen
        if frozen is None or frozen.durable:
            return
        if frozen.entries is None:
            keys, positions, sizes = frozen.cache.sorted_records()
            locations = self._writer.append(frozen.cache.view, keys, positions, sizes)
            self._writer.force()
            frozen.entries = keys, locations  # not written again when an index fails
        keys, locations = frozen.entries
        if frozen.deleted:
            # Before the entries: a ledger that was deleted and made anew keeps its new ones (trap T9).
            self._locations.delete_ledgers(frozen.deleted)
        self._locations.put(keys, locations)
        self._read_cache.discard(frozen.cache.index.keys(), frozen.deleted)
        if keys or frozen.deleted:
            self._locations.sync()
        if frozen.changed or frozen.deleted or frozen.exhumed:
            self._ledgers.write(frozen.changed, frozen.deleted, frozen.buried, frozen.exhumed)
            self._ledgers.sync()
        frozen.durable = True

    def release(self) -> None:
        """Loop: let go of what `flush` made durable; nobody may still read the flushed arena.

        Nothing happens when there is nothing frozen.
        """
        frozen = self._frozen
        if frozen is None:
            return
        assert frozen.durable, "release before a successful flush"
        for ledger_id, entry_id in frozen.cache.last_entry.items():
            descriptor = self.ledgers.get(ledger_id)
            if descriptor is not None and ledger_id not in self._deleted:
                descriptor.flushed_entry_id = max(descriptor.flushed_entry_id, entry_id)
        frozen.cache.clear()
        self._spare, self.flushing, self._frozen = frozen.cache, None, None

    # Entry logs: for the garbage collection

    def closed_log_ids(self) -> list[int] | None:
        """Storage thread: the logs that are complete and whose entries the index knows; raises OSError.

        None while it does not know all of them: a flush has written its entries and then failed.
        """
        frozen = self._frozen
        if frozen is not None and frozen.entries is not None and not frozen.durable:
            return None
        return self._writer.closed_ids()

    def take_log_id(self) -> int:
        """Storage thread: an id for a log that a compaction writes; raises OSError."""
        return self._writer.take_id()

    def locations(self, keys: Sequence[bytes]) -> list[int | None]:
        """Any thread: where the index has these entries; raises OSError, CorruptDataError."""
        return self._locations.get(keys)

    def move_entries(
        self, keys: Sequence[bytes], locations: Sequence[int], source_ids: Collection[int]
    ) -> int:
        """Storage thread: point the index to new places of entries, but only of those that it still has
        in one of the logs `source_ids`: neither deleted nor added again since. The number of them.

        Not durable before `sync_locations`. Raises OSError, CorruptDataError.
        """
        found = self._locations.get(keys)
        still = [i for i, old in enumerate(found) if old is not None and old >> 32 in source_ids]
        self._locations.put([keys[i] for i in still], [locations[i] for i in still])
        return len(still)

    def sync_locations(self) -> None:
        """Storage thread: make what was moved durable; raises OSError."""
        self._locations.sync()

    def delete_log(self, log_id: int) -> None:
        """Any thread: delete an entry log that nothing in the index needs; raises OSError."""
        with suppress(FileNotFoundError):
            self._fs.unlink(self._directory / entry_log_format.file_name(log_id))
        self._reader.forget(log_id)

    def close(self) -> None:
        """Close the entry logs as they are; what was not flushed is left to the journal."""
        self._writer.close()
        self._reader.close()


def _spans(found: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut ascending (location, index) pairs into groups that one read can fetch."""
    first = 0
    for i in range(1, len(found) + 1):
        if i < len(found):
            location = found[i][0]
            near = location - found[i - 1][0] <= _READ_GAP_BYTES
            # Locations of two logs are at least 2**31 apart: logs end before that.
            if near and location - found[first][0] <= _READ_SPAN_BYTES:
                continue
        yield found[first:i]
        first = i
