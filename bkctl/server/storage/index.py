"""The RocksDB databases of a bookie: `locations`, `ledgers`, and the cache of entry logs' metadata.

The one home of rocksdict. What is known of it here (version 0.3.29):

- Raw mode and the options of the default column family are given on every open; otherwise keys
  carry type bytes, or options come from a file that lost the bloom filter.
- Single gets, writes and iterator steps hold the interpreter's lock; `get([...])`, `flush_wal` and
  `close` release it. So writes are not synced, batches are small, and `sync` follows in a worker.
- A batch is spent by writing it, and a live iterator keeps the database open after `close`.
- `items` and `keys` stop at a block that cannot be read as if it were the end: ask `status` there.

Every method may block. One handle may be used from several threads.

Source: spec storage sections 6 and 13; upstream KeyValueStorageRocksDB, EntryLocationIndex,
LedgerMetadataIndex.
"""

import errno
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    ChecksumType,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
)

from bkctl.errors import BookieStartError, CorruptDataError
from bkctl.formats import entry_log_metadata as log_metadata
from bkctl.formats import index as fmt
from bkctl.formats.entry_log_metadata import EntryLogMetadata

_FORMAT_VERSION = 5  # the newest table format that RocksDB 6.6 and upstream 4.12 can read
_BATCH_OPERATIONS = 4096  # one write holds the interpreter's lock for half a millisecond
_MIB = 1 << 20
_NOT_LINKED = ("LOCK", "LOG", "rocksdict-config.json")  # written on every open, through a link too
_OPEN_ATTEMPTS = 3  # of a database whose files may be replaced meanwhile
_OPEN_PAUSE_S = 0.1

LEDGERS_NAME = "ledgers"  # the directories of the two databases below `current`
LOCATIONS_NAME = "locations"
ENTRY_LOG_METADATA_NAME = "metadata-cache"  # below `current` of the ledger directory


def new_block_cache(size_bytes: int) -> Cache:
    """An LRU cache for the blocks and bloom filters of all `locations` of a process.

    It is cut into up to 64 shards, and a filter larger than a shard is read from disk by every
    get: at the file size of `_locations_options` a filter has 0.6 MB, so 64 MiB are the least.
    """
    return Cache(size_bytes)


class LocationsIndex:
    """Where each entry is: 16-byte entry keys to locations."""

    def __init__(self, path: Path, database: Rdict) -> None:
        self._path = path
        self._database = database

    @classmethod
    def open(cls, path: Path, block_cache: Cache) -> "LocationsIndex":
        """Raises BookieStartError: in use by another process, damaged, or not readable."""
        return cls(path, _open(path, _locations_options(block_cache)))

    def get(self, keys: Sequence[bytes]) -> list[int | None]:
        """The location of each key, None where there is none; raises OSError, CorruptDataError."""
        with _named(self._path):
            values: list[bytes | None] = self._database.get(list(keys)) or []
        return [None if value is None else fmt.unpack_location_value(value) for value in values]

    def put(self, keys: Sequence[bytes], locations: Sequence[int]) -> None:
        """Not durable before `sync`; raises OSError."""
        for first in range(0, len(keys), _BATCH_OPERATIONS):
            end = first + _BATCH_OPERATIONS
            batch = WriteBatch(raw_mode=True)
            put = batch.put
            for key, value in zip(
                keys[first:end], map(fmt.pack_location_value, locations[first:end]), strict=True
            ):
                put(key, value)
            with _named(self._path):
                self._database.write(batch)

    def delete_ledgers(self, ledger_ids: Collection[int]) -> None:
        """Forget every entry of these ledgers; not durable before `sync`; raises OSError."""
        batch = WriteBatch(raw_mode=True)
        for ledger_id in ledger_ids:
            batch.delete_range(*fmt.entry_key_range(ledger_id))
        with _named(self._path):
            self._database.write(batch)

    def sync(self) -> None:
        """Make everything written durable; raises OSError, and then nothing may be taken as durable."""
        with _named(self._path):
            self._database.flush_wal(True)

    def last_entry_id(self, ledger_id: int) -> int:
        """The highest entry id of the ledger, -1 when it has none; raises OSError, CorruptDataError."""
        first, end = fmt.entry_key_range(ledger_id)
        with _named(self._path):
            iterator = self._database.iter(_before(end))
            iterator.seek_to_last()
            if not iterator.valid():
                iterator.status()  # raises when that is an error, not the end
                return -1
            last: bytes = iterator.key()
        return fmt.entry_ids_of_keys([last])[0] if last >= first else -1

    def entry_ids(self, ledger_id: int) -> list[int]:
        """Every entry id of the ledger, ascending; raises OSError, CorruptDataError."""
        first, end = fmt.entry_key_range(ledger_id)
        with _named(self._path):
            keys = list(cast(Iterator[bytes], self._database.keys(from_key=first, read_opt=_before(end))))
            _check_end(self._database, keys[-1] if keys else first, _before(end))
        return fmt.entry_ids_of_keys(keys)

    def following(self, ledger_id: int, entry_id: int, count_max: int) -> list[tuple[int, int]]:
        """(entry id, location) of the entries next after `entry_id`; raises OSError, CorruptDataError."""
        first, end = fmt.entry_key(ledger_id, entry_id + 1), fmt.entry_key_range(ledger_id)[1]
        with _named(self._path):
            items = self._database.items(from_key=first, read_opt=_before(end))
            found = list(islice(cast(Iterator[tuple[bytes, bytes]], items), count_max))
            if len(found) < count_max:
                _check_end(self._database, found[-1][0] if found else first, _before(end))
        entry_ids = fmt.entry_ids_of_keys(key for key, _ in found)
        return [(i, fmt.unpack_location_value(value)) for i, (_, value) in zip(entry_ids, found, strict=True)]

    def records(self, first: bytes = b"", end: bytes | None = None) -> Iterator[list[tuple[bytes, bytes]]]:
        """(key, value) as stored of the entries from key `first` to before `end`, ascending, in batches.

        Raises OSError, CorruptDataError; what could be read before was yielded.
        """
        with _named(self._path):
            yield from _batches(self._database, first, end)

    def close(self) -> None:
        with _named(self._path):
            self._database.close()


class LedgersIndex:
    """What is known of each ledger besides its entries; loaded whole, reads never come here."""

    def __init__(self, path: Path, database: Rdict) -> None:
        self._path = path
        self._database = database
        self._rebuilt: set[int] = set()  # ledgers with a 16-byte key: see formats.index

    @classmethod
    def open(cls, path: Path) -> "LedgersIndex":
        """Raises BookieStartError: in use by another process, damaged, or not readable."""
        return cls(path, _open(path, _ledgers_options()))

    def load(self) -> dict[int, fmt.LedgerData]:
        """Every ledger, without the reserved negative ids; raises OSError, CorruptDataError."""
        ledgers: dict[int, fmt.LedgerData] = {}
        for key, value in chain.from_iterable(self.records()):
            ledger_id = fmt.unpack_ledger_key(key)
            if ledger_id < 0:
                continue
            if len(key) == fmt.ENTRY_KEY_BYTES:
                self._rebuilt.add(ledger_id)
            ledgers[ledger_id] = fmt.unpack_ledger_data(value)  # the longer key comes later and wins
        return ledgers

    def tombstones(self) -> list[int]:
        """The ledgers that were fenced when they were deleted, ascending; raises as `load`."""
        with _named(self._path):
            batches = _batches(self._database, *fmt.tombstone_key_range())
            return fmt.entry_ids_of_keys(key for key, _ in chain.from_iterable(batches))

    def records(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """(key, value) as stored, ascending, in batches; raises OSError, CorruptDataError."""
        with _named(self._path):
            yield from _batches(self._database)

    def write(
        self,
        changed: Mapping[int, fmt.LedgerData],
        deleted: Collection[int],
        buried: Collection[int] = (),
        exhumed: Collection[int] = (),
    ) -> None:
        """Store and forget ledgers, in one batch; not durable before `sync`; raises OSError.

        `buried`: leave a tombstone of each; `exhumed`: take it away. The 16-byte key of a rebuilt index
        goes in the same batch, else it would override (trap T2).
        """
        batch = WriteBatch(raw_mode=True)
        touched = self._rebuilt.intersection((*changed, *deleted))
        for ledger_id in touched:
            batch.delete(fmt.rebuilt_ledger_key(ledger_id))
        for ledger_id in deleted:
            batch.delete(fmt.ledger_key(ledger_id))
        for ledger_id, data in changed.items():
            assert ledger_id >= 0, ledger_id  # negative keys are reserved (trap T13)
            batch.put(fmt.ledger_key(ledger_id), fmt.pack_ledger_data(data))
        for ledger_id in buried:
            batch.put(fmt.tombstone_key(ledger_id), fmt.TOMBSTONE)
        for ledger_id in exhumed:
            batch.delete(fmt.tombstone_key(ledger_id))
        with _named(self._path):
            self._database.write(batch)
        self._rebuilt -= touched

    def sync(self) -> None:
        """Make everything written durable; raises OSError, and then nothing may be taken as durable."""
        with _named(self._path):
            self._database.flush_wal(True)

    def close(self) -> None:
        with _named(self._path):
            self._database.close()


class EntryLogMetadataIndex:
    """What each entry log holds, as upstream's optional `metadata-cache` keeps it: a cache, no more."""

    def __init__(self, path: Path, database: Rdict) -> None:
        self._path = path
        self._database = database

    @classmethod
    def open(cls, path: Path) -> "EntryLogMetadataIndex":
        """One that cannot be opened is made anew. Raises BookieStartError when that fails too."""
        try:
            return cls(path, _open(path, _ledgers_options()))
        except BookieStartError:
            shutil.rmtree(path, ignore_errors=True)
            return cls(path, _open(path, _ledgers_options()))

    def get(self, log_id: int) -> EntryLogMetadata | None:
        """None also for a record that cannot be read: the log tells the same. Raises OSError."""
        try:
            with _named(self._path):
                (value,) = self._database.get([log_metadata.pack_key(log_id)]) or [None]
            metadata = None if value is None else log_metadata.decode(value)
        except CorruptDataError:
            return None
        return metadata if metadata is not None and metadata.log_id == log_id else None

    def log_ids(self) -> list[int]:
        """Of all records; raises OSError, CorruptDataError."""
        with _named(self._path):
            keys = [key for key, _ in chain.from_iterable(_batches(self._database))]
        return [int.from_bytes(key, "big") for key in keys]

    def put(self, metadata: EntryLogMetadata) -> None:
        """Not durable before `sync`; raises OSError."""
        with _named(self._path):
            self._database.put(log_metadata.pack_key(metadata.log_id), log_metadata.encode(metadata))

    def delete(self, log_id: int) -> None:
        """Not durable before `sync`; raises OSError."""
        with _named(self._path):
            self._database.delete(log_metadata.pack_key(log_id))

    def sync(self) -> None:
        with _named(self._path):
            self._database.flush_wal(True)

    def close(self) -> None:
        with _named(self._path):
            self._database.close()


def open_indexes(index_current: Path, block_cache: Cache) -> tuple[LedgersIndex, LocationsIndex]:
    """Both databases of one index directory, made when missing.

    Raises BookieStartError: in use by another process, damaged, or not readable.
    """
    ledgers = LedgersIndex.open(index_current / LEDGERS_NAME)
    try:
        return ledgers, LocationsIndex.open(index_current / LOCATIONS_NAME, block_cache)
    except BaseException:
        ledgers.close()
        raise


OpenIndexes = Callable[[Path, Cache], tuple[LedgersIndex, LocationsIndex]]


@contextmanager
def open_offline(index_dir: Path) -> Iterator[tuple[LedgersIndex, LocationsIndex]]:
    """Both indexes below `index_dir` (a `current` directory), read-only and without any side effect.

    A running bookie is not disturbed: the databases are seen as they are now, logs replayed in
    memory. RocksDB writes into every directory it opens, so it gets one of symbolic links.

    Raises:
        CorruptDataError: there is no readable database, or files went on going away under a bookie.
    """
    with open_ledgers_offline(index_dir) as ledgers, open_locations_offline(index_dir) as locations:
        yield ledgers, locations


@contextmanager
def open_ledgers_offline(index_dir: Path) -> Iterator[LedgersIndex]:
    """As `open_offline`, the one index alone."""
    path = index_dir / LEDGERS_NAME
    with _linked(path, _ledgers_options()) as database:
        yield LedgersIndex(path, database)


@contextmanager
def open_locations_offline(index_dir: Path) -> Iterator[LocationsIndex]:
    """As `open_offline`, the one index alone."""
    path = index_dir / LOCATIONS_NAME
    with _linked(path, _locations_options(new_block_cache(8 * _MIB))) as database:
        yield LocationsIndex(path, database)


def _open(path: Path, options: Options) -> Rdict:
    try:
        return Rdict(str(path), options, {"default": options})
    except Exception as exc:  # rocksdict raises no narrower class
        raise BookieStartError(f"cannot open the index {path}: {exc}") from exc


@contextmanager
def _linked(path: Path, options: Options) -> Iterator[Rdict]:
    """The database at `path`, open read-only; a few attempts, as its owner may replace files."""
    with tempfile.TemporaryDirectory(prefix="bkctl-index-") as temporary:
        for attempt in range(_OPEN_ATTEMPTS):
            try:
                database = _open_links(path, Path(temporary, str(attempt), path.name), options)
                break
            except Exception as exc:  # rocksdict raises no narrower class
                if attempt == _OPEN_ATTEMPTS - 1 or "No such file" not in str(exc):
                    raise CorruptDataError(f"cannot read the index {path}: {_words(exc, path)}") from exc
                time.sleep(_OPEN_PAUSE_S)
        try:
            yield database
        finally:
            database.close()


def _open_links(path: Path, links: Path, options: Options) -> Rdict:
    links.mkdir(parents=True)
    for file in path.iterdir():
        if not file.name.startswith(_NOT_LINKED):
            (links / file.name).symlink_to(file.resolve())
    return Rdict(str(links), options, {"default": options}, AccessType.read_only(False))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """rocksdict's bare exceptions as CorruptDataError or OSError, with the database's path."""
    try:
        yield
    except (CorruptDataError, OSError):
        raise
    except Exception as exc:
        if str(exc).startswith("Corruption"):
            raise CorruptDataError(f"index {path}: {_words(exc, path)}") from exc
        raise OSError(errno.EIO, f"index {path}: {_words(exc, path)}") from exc


def _words(exc: Exception, path: Path) -> str:
    """RocksDB's message; a file is named where it is, not by its link."""
    return re.sub(rf"/\S*/{path.name}/(?=[^/\s]+)", f"{path}/", str(exc))


def _batches(
    database: Rdict, first: bytes = b"", end: bytes | None = None
) -> Iterator[list[tuple[bytes, bytes]]]:
    """(key, value) from key `first` to before `end`, all of them or an exception at the end."""
    items = cast(Iterator[tuple[bytes, bytes]], database.items(from_key=first or None, read_opt=_before(end)))
    last = first
    while batch := list(islice(items, _BATCH_OPERATIONS)):
        yield batch
        last = batch[-1][0]
    _check_end(database, last, _before(end))


def _check_end(database: Rdict, last: bytes, options: ReadOptions) -> None:
    """Raises unless the entries behind the key `last` have ended, rather than cannot be read."""
    iterator = database.iter(options)
    iterator.seek(last)
    if iterator.valid():
        iterator.next()
    iterator.status()


def _before(end: bytes | None) -> ReadOptions:
    """Iterators stop before `end`. A lower bound set first would be forgotten by rocksdict 0.3.29."""
    options = ReadOptions()
    if end is not None:
        options.set_iterate_upper_bound(end)
    return options


def _locations_options(block_cache: Cache) -> Options:
    """Upstream's, but for sizes: smaller buffers and files keep memory and bloom filters small."""
    table = _table_options(block_size=65536)
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)
    table.set_block_cache(block_cache)
    options = _options(table)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(16 * _MIB)
    options.set_max_write_buffer_number(4)
    options.set_level_zero_file_num_compaction_trigger(4)
    options.set_max_bytes_for_level_base(256 * _MIB)
    options.set_target_file_size_base(4 * _MIB)
    options.set_max_total_wal_size(512 * _MIB)
    options.set_delete_obsolete_files_period_micros(3_600_000_000)
    return options


def _ledgers_options() -> Options:
    options = _options(_table_options(block_size=4096))
    options.set_compression_type(DBCompressionType.snappy())
    options.set_write_buffer_size(4 * _MIB)
    options.set_max_write_buffer_number(2)
    return options


def _options(table: BlockBasedOptions) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_max_open_files(-1)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(30)
    options.set_log_file_time_to_roll(86400)
    return options


def _table_options(*, block_size: int) -> BlockBasedOptions:
    table = BlockBasedOptions()
    table.set_format_version(_FORMAT_VERSION)
    table.set_checksum_type(ChecksumType.xxhash())
    table.set_block_size(block_size)
    return table
