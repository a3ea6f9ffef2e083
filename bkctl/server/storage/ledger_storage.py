"""All ledger directories of a bookie, their threads, and the way back from the journal.

Each ledger directory is a unit of its own: entry logs, indexes, caches, storage thread. A ledger
belongs to one of them for good, by its id: so number and order of the directories must not change.

Source: spec storage sections 1, 4.7; upstream DbLedgerStorage, BookieImpl.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bkctl.errors import BadInputError, CorruptDataError
from bkctl.formats.journal import JournalRecord, RecordKind
from bkctl.server.storage.directory_storage import DirectorySettings, DirectoryStorage, LedgerDescriptor
from bkctl.server.storage.entry_log import SIZE_BYTES_MAX
from bkctl.server.storage.fs import Fs
from bkctl.server.storage.index import OpenIndexes, new_block_cache, open_indexes
from bkctl.server.storage.storage_kind import check_storage_kind

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Directories as configured: the data is in `current` below each; index i goes with ledger i."""

    ledger_directories: Sequence[str | Path]
    index_directories: Sequence[str | Path]
    write_cache_bytes: int  # of each ledger directory, two arenas of half of it
    read_cache_bytes: int  # of each ledger directory
    read_ahead_count: int = 100  # entries: dbStorage_readAheadCacheBatchSize
    entry_log_bytes_max: int = SIZE_BYTES_MAX  # logSizeLimit
    index_cache_bytes: int = 64 * _MIB  # of all directories together; less makes bloom filters miss it
    read_threads: int = 4

    def __post_init__(self) -> None:
        if not self.ledger_directories or len(self.ledger_directories) != len(self.index_directories):
            raise BadInputError("every ledger directory needs its index directory")
        if not 0 < self.entry_log_bytes_max <= SIZE_BYTES_MAX:
            raise BadInputError(f"logSizeLimit must be 1 to {SIZE_BYTES_MAX}, got {self.entry_log_bytes_max}")


class LedgerStorage:
    """The storage of one bookie. `open` first; methods that name no thread belong to the event loop.

    `directories` and `threads` (one worker each, for `flush` of the directory with the same index)
    and `read_pool` (for `load_*`) exist from `open` to `close`. `open_indexes` makes the indexes of one
    directory, on a disk that is not `fs`: a simulation brings both.
    """

    def __init__(
        self, settings: StorageSettings, fs: Fs, *, open_indexes: OpenIndexes = open_indexes
    ) -> None:
        self._settings = settings
        self._fs = fs
        self._open_indexes = open_indexes
        self._exits = ExitStack()
        self.directories: tuple[DirectoryStorage, ...] = ()
        self.threads: tuple[ThreadPoolExecutor, ...] = ()
        self.read_pool = ThreadPoolExecutor(settings.read_threads, "read")

    @property
    def current_directories(self) -> list[Path]:
        return [Path(directory, "current") for directory in self._settings.ledger_directories]

    def open(self) -> None:
        """Open or create every directory and load what is known of ledgers. Blocks.

        Raises:
            BookieStartError: an index is in use by another process, or cannot be opened; a directory
                is of another storage.
            OSError, CorruptDataError: a directory cannot be read.
        """
        settings = self._settings
        block_cache = new_block_cache(settings.index_cache_bytes)
        with ExitStack() as exits:
            directories = []
            for current, index_directory in zip(
                self.current_directories, settings.index_directories, strict=True
            ):
                index_current = Path(index_directory, "current")
                self._fs.mkdir(current)
                self._fs.mkdir(index_current)
                check_storage_kind(current, index_current, self._fs)
                ledgers, locations = self._open_indexes(index_current, block_cache)
                exits.callback(ledgers.close)
                exits.callback(locations.close)
                directory_settings = DirectorySettings(
                    ledger_dir=current,
                    write_cache_bytes=settings.write_cache_bytes,
                    read_cache_bytes=settings.read_cache_bytes,
                    read_ahead_count=settings.read_ahead_count,
                    entry_log_bytes_max=settings.entry_log_bytes_max,
                )
                directory = DirectoryStorage(
                    directory_settings, self._fs, ledgers=ledgers, locations=locations
                )
                exits.callback(directory.close)
                directories.append(directory)
            self.directories = tuple(directories)
            self.threads = tuple(
                exits.enter_context(ThreadPoolExecutor(1, f"storage-{number}"))
                for number in range(len(directories))
            )
            self._exits = exits.pop_all()

    def close(self) -> None:
        """End the threads and close every file as it is: what was not flushed is left to the journal."""
        self.read_pool.shutdown(cancel_futures=True)
        self._exits.close()

    def directory_for(self, ledger_id: int) -> DirectoryStorage:
        return self.directories[ledger_id % len(self.directories)]

    def ledger(self, ledger_id: int) -> LedgerDescriptor | None:
        """What is known of a ledger, None for one that this bookie has never seen or deleted."""
        return self.directory_for(ledger_id).ledgers.get(ledger_id)

    def fenced_and_deleted(self, ledger_id: int) -> bool:
        """Whether nothing is known of the ledger but that it was fenced when it was deleted."""
        directory = self.directory_for(ledger_id)
        return ledger_id in directory.tombstones and ledger_id not in directory.ledgers

    def replay(self, records: Sequence[JournalRecord]) -> None:
        """Take journal records over, in order, before anything else is served. Blocks when it flushes.

        Neither duplicates nor fences are looked at. Records of a ledger that nothing tells the key of
        are skipped: it was deleted. `flush_all` must follow the last of them.

        Raises:
            IllegalOperationError: a ledger's key differs from the stored one.
            CorruptDataError, BadInputError: a record of no possible ledger; one larger than the cache.
            OSError: a flush failed.
        """
        for kind, ledger_id, entry_id, body, value in (
            (record.kind, record.ledger_id, record.entry_id, record.body, record.value) for record in records
        ):
            if ledger_id < 0:
                raise CorruptDataError(f"journal record of ledger {ledger_id}")
            descriptor = self.ledger(ledger_id)
            if kind is RecordKind.LEDGER_KEY:
                if descriptor is None:
                    self.directory_for(ledger_id).create_ledger(ledger_id, value)
                else:
                    descriptor.directory.set_master_key(descriptor, value)
            elif descriptor is None:
                continue
            elif kind is RecordKind.ENTRY:
                self._replay_entry(descriptor, entry_id, body)
            elif kind is RecordKind.FENCE:
                descriptor.directory.set_fenced(descriptor)
            elif kind is RecordKind.EXPLICIT_LAC:
                descriptor.directory.set_explicit_lac(descriptor, value)

    def flush_all(self) -> None:
        """Make everything durable at once, without the threads: for the start. Raises OSError."""
        for directory in self.directories:
            _flush_now(directory)

    def _replay_entry(self, descriptor: LedgerDescriptor, entry_id: int, entry: bytes) -> None:
        directory = descriptor.directory
        if directory.active.put(descriptor.ledger_id, entry_id, entry):
            return
        _flush_now(directory)
        if not directory.active.put(descriptor.ledger_id, entry_id, entry):
            raise BadInputError(
                f"an entry of {len(entry)} bytes does not fit the write cache:"
                " raise dbStorage_writeCacheMaxSizeMb"
            )


def _flush_now(directory: DirectoryStorage) -> None:
    directory.rotate()
    directory.flush()
    directory.release()
