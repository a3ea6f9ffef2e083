"""The index of a bookie where it lies: RocksDB per ledger directory, or a tree of `.idx` files.

Both kinds are read alike: facts of ledgers, and records. A record is 24 bytes, the location of an entry
and then its key, so that the order of records is the order in which entries stand in the logs.

Source: spec storage sections 6 and 12; upstream LedgerMetadataIndex, EntryLocationIndex, FileInfo,
IndexPersistenceMgr.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from bkctl.errors import CorruptDataError, NotFoundError
from bkctl.formats import entry_log as log_format
from bkctl.formats import index as db_format
from bkctl.formats import index_file as idx_format
from bkctl.formats.index import LedgerData
from bkctl.offline.directories import BookieDirectories

if TYPE_CHECKING:
    from bkctl.server.storage.index import LocationsIndex

RECORD = Struct(">iI16s")  # entry log id, position of the entry, key of the entry
_IDS = Struct(">qqq")
assert RECORD.size == _IDS.size == 24

_BLOCK_BYTES = 64 << 10  # of slots, read at once
_MASTER_KEY_BYTES = 20  # SHA-1 of the password
_EXPLICIT_LAC_BYTES_MAX = 36  # ledger id, last add confirmed, and at most 20 bytes of digest
_HEX_DIRECTORY = re.compile(r"[0-9a-f]{1,2}")
_INDEX_FILE = re.compile(r"([0-9a-f]{1,16})\.idx")


class Locations(Protocol):
    """Where the entries are, as of one moment for RocksDB."""

    def records(
        self, ledger_id: int | None = None, first: int = 0, last: int | None = None
    ) -> Iterator[list[bytes]]:
        """Records of all ledgers or of one, there from entry `first` to `last`, in batches.

        Ledger by ledger, entries ascending. Raises OSError, CorruptDataError; what could be read
        before was yielded.
        """

    def last_entry_id(self, ledger_id: int) -> int:
        """-1 when there is none; raises OSError, CorruptDataError."""


class Index(Protocol):
    """One index of one directory. Every call looks anew; nothing is written."""

    kind: str
    """`db` (DbLedgerStorage) or `idx` (SortedLedgerStorage, InterleavedLedgerStorage)"""

    directory: Path
    log_directories: tuple[Path, ...]
    """Where the entry logs are that its locations mean."""

    def ledgers(self) -> Iterator[tuple[int | None, LedgerData | Exception]]:
        """Each ledger; in place of what cannot be read, why (its ledger None: it is not known).

        Raises OSError, CorruptDataError when nothing more can be read.
        """

    def ledger(self, ledger_id: int) -> LedgerData | None:
        """None: the index does not know the ledger. Raises OSError, CorruptDataError."""

    def locations(self) -> AbstractContextManager[Locations]:
        """Raises OSError, CorruptDataError: there is no readable index."""

    def size_bytes(self) -> int:
        """Length of its files."""


def find_indexes(directories: BookieDirectories) -> list[Index]:
    """Every index of a bookie; none for one that has stored nothing yet.

    Raises NotFoundError for a directory that holds nothing of a bookie, CorruptDataError for one with
    entries and no index of them.
    """
    found: list[Index] = []
    bare: list[tuple[Path, Path]] = []
    for position, directory in enumerate(directories.indexes):
        here: list[Index] = []
        if any((directory / name).is_dir() for name in ("ledgers", "locations")):
            here.append(DbIndex(directory, directories.ledgers[position]))
        if next(_index_files(directory), None) is not None:
            here.append(IdxIndex(directory, directories.ledgers))
        if not here and not (directory / "VERSION").exists():
            raise NotFoundError(f"{directory} is no bookie's: there is no index in it, and no VERSION")
        if not here:
            bare.append((directory, directories.ledgers[position]))
        found += here
    if not any(index.kind == "idx" for index in found):  # those may be in any directory
        for directory, log_directory in bare:
            _check_empty(directory, log_directory)
    return found


def _check_empty(directory: Path, log_directory: Path) -> None:
    for path in _files(log_directory):
        is_log = log_format.parse_file_name(path.name) is not None
        if is_log and _size_bytes(path) > log_format.HEADER_BYTES:
            raise CorruptDataError(
                f"{directory} has no index of the entries in {path}: neither RocksDB nor .idx files; "
                "name its index directory with -i, or mount it"
            )


def entry_of(record: bytes) -> tuple[int, int, int]:
    """(ledger id, entry id, location)"""
    location, ledger_id, entry_id = _IDS.unpack(record)
    return ledger_id, entry_id, location


class DbIndex:
    """The two RocksDBs of one directory; their locations mean the logs of one ledger directory."""

    kind = "db"

    def __init__(self, directory: Path, log_directory: Path) -> None:
        self.directory = directory
        self.log_directories: tuple[Path, ...] = (log_directory,)

    def ledgers(self) -> Iterator[tuple[int | None, LedgerData | Exception]]:
        pending: tuple[int | None, LedgerData | Exception] | None = None
        for key, value in self._ledger_records():
            ledger_id = _ledger_id(key)
            if isinstance(ledger_id, int) and ledger_id < 0:
                continue  # reserved
            if pending is not None and pending[0] != ledger_id:
                yield pending
            if isinstance(ledger_id, int):  # the longer key of a ledger comes later and wins (trap T2)
                pending = (ledger_id, _ledger_data(value))
            else:
                yield None, ledger_id
                pending = None
        if pending is not None:
            yield pending

    def ledger(self, ledger_id: int) -> LedgerData | None:
        found = None
        wanted = db_format.ledger_key(ledger_id)
        for key, value in self._ledger_records():
            if key[: db_format.LEDGER_KEY_BYTES] == wanted:
                found = db_format.unpack_ledger_data(value)
        return found

    @contextmanager
    def locations(self) -> Iterator[Locations]:
        from bkctl.server.storage.index import open_locations_offline

        with open_locations_offline(self.directory) as database:
            yield _DbLocations(self.directory, database)

    def size_bytes(self) -> int:
        files = (file for name in ("ledgers", "locations") for file in _files(self.directory / name))
        return sum(map(_size_bytes, files))

    def _ledger_records(self) -> Iterator[tuple[bytes, bytes]]:
        from bkctl.server.storage.index import open_ledgers_offline

        with open_ledgers_offline(self.directory) as database:
            for batch in database.records():
                yield from batch


class _DbLocations:
    def __init__(self, directory: Path, database: "LocationsIndex") -> None:
        self._directory = directory
        self._database = database
        self.last_entry_id = database.last_entry_id

    def records(
        self, ledger_id: int | None = None, first: int = 0, last: int | None = None
    ) -> Iterator[list[bytes]]:
        start, end = b"", None
        if ledger_id is not None:
            start, end = db_format.entry_key(ledger_id, first), db_format.entry_key_range(ledger_id)[1]
            if last is not None and last < db_format.ID_MAX:
                end = db_format.entry_key(ledger_id, last + 1)
        for batch in self._database.records(start, end):
            keys, values = zip(*batch, strict=True)
            if {*map(len, keys)} != {db_format.ENTRY_KEY_BYTES} or {*map(len, values)} != {8}:
                raise CorruptDataError(f"index {self._directory}/locations: a key or value of odd length")
            yield [value + key for key, value in batch]


class IdxIndex:
    """The `.idx` files of one directory; their locations mean the logs of all ledger directories."""

    kind = "idx"

    def __init__(self, directory: Path, log_directories: tuple[Path, ...]) -> None:
        self.directory = directory
        self.log_directories = log_directories

    def ledgers(self) -> Iterator[tuple[int | None, LedgerData | Exception]]:
        for ledger_id, path in _index_files(self.directory):
            if path != self.directory / idx_format.index_file_path(ledger_id):
                yield None, CorruptDataError(f"{path} is not where a bookie looks for ledger {ledger_id:d}")
                continue
            try:
                yield ledger_id, _idx_ledger(path, ledger_id)
            except FileNotFoundError:
                continue  # the ledger was deleted meanwhile
            except (OSError, CorruptDataError) as error:
                yield ledger_id, error

    def ledger(self, ledger_id: int) -> LedgerData | None:
        try:
            return _idx_ledger(self._path(ledger_id), ledger_id)
        except FileNotFoundError:
            return None

    def locations(self) -> AbstractContextManager[Locations]:
        return nullcontext(self)

    def records(
        self, ledger_id: int | None = None, first: int = 0, last: int | None = None
    ) -> Iterator[list[bytes]]:
        if ledger_id is not None:
            yield from _idx_records(self._path(ledger_id), ledger_id, first, last)
        else:
            for found_id, path in _index_files(self.directory):
                yield from _idx_records(path, found_id, 0, None)

    def last_entry_id(self, ledger_id: int) -> int:
        try:
            with open(self._path(ledger_id), "rb", buffering=0) as file:
                return _last_entry_id(file)
        except FileNotFoundError:
            return -1

    def size_bytes(self) -> int:
        return sum(_size_bytes(path) for _, path in _index_files(self.directory))

    def _path(self, ledger_id: int) -> Path:
        return self.directory / idx_format.index_file_path(ledger_id)


def _ledger_id(key: bytes) -> int | CorruptDataError:
    try:
        return db_format.unpack_ledger_key(key)
    except CorruptDataError as error:
        return error


def _ledger_data(value: bytes) -> LedgerData | CorruptDataError:
    try:
        return db_format.unpack_ledger_data(value)
    except CorruptDataError as error:
        return error


def _idx_ledger(path: Path, ledger_id: int) -> LedgerData:
    with open(path, "rb", buffering=0) as file:
        data = file.read(idx_format.HEADER_BYTES)
    try:
        header = idx_format.parse_index_file_header(data)
        _check_header(data, header, ledger_id)
    except CorruptDataError as error:
        raise CorruptDataError(f"{path}: {error}") from error
    return LedgerData(header.fenced, header.master_key, header.explicit_lac)


def _check_header(data: bytes, header: idx_format.IndexFileHeader, ledger_id: int) -> None:
    """A flipped bit may leave a header that parses, but hardly one that makes sense."""
    state_at = len(idx_format.MAGIC) + 8 + len(header.master_key)
    lac = header.explicit_lac or b""
    end = state_at + 4 + (len(lac) + 4 if header.version == 1 else 0)
    if len(data) < idx_format.HEADER_BYTES:
        raise CorruptDataError(f"index file ends within its header, at byte {len(data)}")
    if len(header.master_key) not in (0, _MASTER_KEY_BYTES):
        raise CorruptDataError(f"index file header with a master key of {len(header.master_key)} bytes")
    if int.from_bytes(data[state_at : state_at + 4], "big") > 1:
        raise CorruptDataError(f"index file header with unknown state bits at byte {state_at}")
    if lac and (len(lac) > _EXPLICIT_LAC_BYTES_MAX or int.from_bytes(lac[:8], "big") != ledger_id):
        raise CorruptDataError(f"index file header with an explicit LAC that is not of ledger {ledger_id}")
    if any(data[end:]):
        raise CorruptDataError(f"index file header with bytes behind its end at {end}")


def _last_entry_id(file: FileIO) -> int:
    """The entry of the last slot that is not empty, looked for from the end; -1 when there is none."""
    end = _slot_count(file)
    while end > 0:
        first = max(0, end - _BLOCK_BYTES // idx_format.SLOT_BYTES)
        file.seek(idx_format.slot_offset(first))
        data = file.read((end - first) * idx_format.SLOT_BYTES)
        if present := list(idx_format.parse_slots(data, first)):
            return present[-1][0]
        end = first
    return -1


def _idx_records(path: Path, ledger_id: int, first: int, last: int | None) -> Iterator[list[bytes]]:
    """The entries of one file; none when the file is not there."""
    pack = _IDS.pack
    try:
        with open(path, "rb", buffering=0) as file:
            end = _slot_count(file) if last is None else min(_slot_count(file), last + 1)
            while first < end:
                count = min(end - first, _BLOCK_BYTES // idx_format.SLOT_BYTES)
                file.seek(idx_format.slot_offset(first))
                data = file.read(count * idx_format.SLOT_BYTES)
                if not data:
                    return  # cut meanwhile
                yield [pack(location, ledger_id, i) for i, location in idx_format.parse_slots(data, first)]
                first += count
    except FileNotFoundError:
        return


def _slot_count(file: FileIO) -> int:
    size_bytes = os.fstat(file.fileno()).st_size
    return max(0, size_bytes - idx_format.HEADER_BYTES) // idx_format.SLOT_BYTES


def _index_files(directory: Path) -> Iterator[tuple[int, Path]]:
    """(ledger id, path) of each `.idx` file two directories below."""
    for high in _directories(directory):
        for low in _directories(high):
            for name in _names(low):
                match = _INDEX_FILE.fullmatch(name)
                if match and int(match[1], 16) <= db_format.ID_MAX:
                    yield int(match[1], 16), low / name


def _directories(parent: Path) -> list[Path]:
    names = (name for name in _names(parent) if _HEX_DIRECTORY.fullmatch(name))
    return [parent / name for name in names if (parent / name).is_dir()]


def _files(directory: Path) -> list[Path]:
    return [directory / name for name in _names(directory)]


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
