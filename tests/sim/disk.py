"""A file system in memory that can lose power, and the bookie's two indexes upon the same terms.

What a program sees is what it wrote; what a power loss leaves is what was synced, and of the rest
whatever the chosen `Loss` says: writes since the last sync of a file, and names since the last sync
of its directory. Every call that changes something is counted, so that a test may lose power, or be
refused, at each of them in turn.

Source: bkctl.server.storage.fs (the laws), spec storage section 13 (the indexes).
"""

import enum
import errno
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bkctl.formats import entry_log_metadata as log_metadata
from bkctl.formats import index as fmt
from bkctl.formats.entry_log_metadata import EntryLogMetadata
from bkctl.server.storage.fs import Buffer

_SECTOR = 512
_DISK_BYTES = 1 << 40


class PowerLossError(BaseException):
    """Power is gone: no program lives to catch it."""


class Loss(enum.Enum):
    """What a power loss leaves of the writes that were not synced."""

    ALL = "none of them"
    NOTHING = "all of them"
    TAIL = "those before some moment"
    SOME = "any of them"
    TORN = "those before some moment, and sectors of the next one"


@dataclass(slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, bytes), (size, None)

    def apply(self, offset: int, data: bytes | None) -> None:
        """Write at `offset`; None: change the size to `offset`."""
        if data is None:
            del self.data[offset:]
            self.data.extend(bytes(offset - len(self.data)))
        else:
            self.data.extend(bytes(max(0, offset - len(self.data))))
            self.data[offset : offset + len(data)] = data

    def sync(self) -> None:
        self.durable = bytes(self.data)
        self.unsynced.clear()

    def survivor(self, loss: Loss, rng: random.Random) -> "_File":
        left = _File(bytearray(self.durable))
        count = len(self.unsynced)
        kept = {Loss.ALL: 0, Loss.NOTHING: count}.get(loss, rng.randint(0, count))
        for number, (offset, data) in enumerate(self.unsynced):
            if rng.random() < 0.5 if loss is Loss.SOME else number < kept:
                left.apply(offset, data)
            elif loss is Loss.TORN and number == kept and data is not None:
                for start in range(0, len(data), _SECTOR):
                    if rng.random() < 0.5:
                        left.apply(offset + start, data[start : start + _SECTOR])
        left.sync()
        return left


class Disk:
    """Counts what happens to it; `operation(kind, name)` is asked before every change.

    `operation` may raise OSError (the change does not happen), PowerLossError, or call `lose_power`.
    """

    def __init__(self) -> None:
        self.names: dict[Path, _File] = {}
        self.directories: set[Path] = {Path("/")}
        self.indexes: dict[Path, _Table] = {}
        self._durable_names: dict[Path, _File] = {}
        self._renamed: list[tuple[Path, dict[Path, _File | None]]] = []  # directory, what became of names
        self.operation: Callable[[str, str], None] = lambda _kind, _name: None
        self.operations = 0
        self.off = False

    def change(self, kind: str, name: object) -> None:
        """Something is about to change on this disk."""
        if self.off:
            raise PowerLossError
        self.operations += 1
        self.operation(kind, str(name))

    def lose_power(self) -> None:
        """Nothing changes from now on. Always raises PowerLossError."""
        self.off = True
        raise PowerLossError

    def name(self, directory: Path, changes: dict[Path, _File | None]) -> None:
        """Names appear (a file) or go away (None), durable with the directory's next sync."""
        for path, file in changes.items():
            if file is None:
                self.names.pop(path, None)
            else:
                self.names[path] = file
        self._renamed.append((directory, changes))

    def sync_names(self, directory: Path) -> None:
        left = []
        for where, changes in self._renamed:
            if where == directory:
                self._settle(self._durable_names, changes)
            else:
                left.append((where, changes))
        self._renamed = left

    @staticmethod
    def _settle(names: dict[Path, _File], changes: Mapping[Path, _File | None]) -> None:
        for path, file in changes.items():
            if file is None:
                names.pop(path, None)
            else:
                names[path] = file

    def after_power_loss(self, loss: Loss, rng: random.Random) -> "Disk":
        """The disk as it is found when power is back."""
        disk = Disk()
        names = dict(self._durable_names)
        kept = {Loss.ALL: 0, Loss.NOTHING: len(self._renamed)}.get(loss, rng.randint(0, len(self._renamed)))
        for _, changes in self._renamed[:kept]:  # a journaling file system keeps their order
            self._settle(names, changes)
        disk.directories = set(self.directories)
        survivors: dict[int, _File] = {}
        for path, file in names.items():
            disk.names[path] = survivors.setdefault(id(file), file.survivor(loss, rng))
        disk._durable_names = dict(disk.names)
        disk.indexes = {path: table.survivor(disk, loss, rng) for path, table in self.indexes.items()}
        return disk


class SimFs:
    """`Fs` on a `Disk`; descriptors are its own."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._open: dict[int, tuple[_File, Path]] = {}
        self._next = 1000

    def open(self, path: Path, flags: int) -> int:
        path = Path(path)
        file = self.disk.names.get(path)
        if file is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self.disk.change("create", path)
            file = _File()
            self.disk.name(path.parent, {path: file})
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        if flags & os.O_TRUNC and file.data:
            self.disk.change("truncate", path)
            self._write(file, 0, None)
        self._next += 1
        self._open[self._next] = (file, path)
        return self._next

    @staticmethod
    def _write(file: _File, offset: int, data: bytes | None) -> None:
        file.apply(offset, data)
        file.unsynced.append((offset, data))

    def close(self, fd: int) -> None:
        del self._open[fd]

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        return bytes(self._open[fd][0].data[offset : offset + size_bytes])

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        file, path = self._open[fd]
        self.disk.change("write", path)
        self._write(file, offset, bytes(data))

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        self.write(fd, b"".join(bytes(buffer) for buffer in buffers), offset)

    def size(self, fd: int) -> int:
        return len(self._open[fd][0].data)

    def truncate(self, fd: int, size_bytes: int) -> None:
        file, path = self._open[fd]
        self.disk.change("truncate", path)
        self._write(file, size_bytes, None)

    def allocate(self, fd: int, offset: int, size_bytes: int) -> None:
        file, path = self._open[fd]
        if offset + size_bytes > len(file.data):
            self.disk.change("allocate", path)
            self._write(file, offset + size_bytes, None)

    def fdatasync(self, fd: int) -> None:
        file, path = self._open[fd]
        self.disk.change("sync", path)
        file.sync()

    fsync = fdatasync

    def drop_cached(self, fd: int, offset: int, size_bytes: int) -> None:
        """Nothing is cached here."""

    def fsync_dir(self, path: Path) -> None:
        self.disk.change("sync names", path)
        self.disk.sync_names(Path(path))

    def exists(self, path: Path) -> bool:
        path = Path(path)
        if path.name == "CURRENT" and path.parent in self.disk.indexes:
            return True  # RocksDB makes it durable when it makes the database
        return path in self.disk.names or path in self.disk.directories

    def listdir(self, path: Path) -> list[str]:
        path = Path(path)
        if path not in self.disk.directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(path))
        return sorted(name.name for name in self.disk.names if name.parent == path)

    def mkdir(self, path: Path) -> None:
        self.disk.directories.update((Path(path), *Path(path).parents))

    def rename(self, old: Path, new: Path) -> None:
        self.disk.change("rename", new)
        file = self.disk.names[Path(old)]
        self.disk.name(Path(new).parent, {Path(old): None, Path(new): file})

    def link(self, old: Path, new: Path) -> None:
        if Path(new) in self.disk.names:
            raise FileExistsError(errno.EEXIST, "exists", str(new))
        self.disk.change("link", new)
        self.disk.name(Path(new).parent, {Path(new): self.disk.names[Path(old)]})

    def unlink(self, path: Path) -> None:
        if Path(path) not in self.disk.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self.disk.change("unlink", path)
        self.disk.name(Path(path).parent, {Path(path): None})

    def usable_bytes(self, path: Path) -> int:
        return _DISK_BYTES // 2

    def total_bytes(self, path: Path) -> int:
        return _DISK_BYTES


class _Table:
    """A key-value store with a log: batches in order, durable with the next sync."""

    def __init__(self, disk: Disk, name: Path) -> None:
        self.disk = disk
        self.name = name
        self.values: dict[bytes, bytes] = {}
        self._durable: dict[bytes, bytes] = {}
        self._unsynced: list[Callable[[dict[bytes, bytes]], None]] = []

    def write(self, batch: Callable[[dict[bytes, bytes]], None]) -> None:
        self.disk.change("write", self.name)
        batch(self.values)
        self._unsynced.append(batch)

    def sync(self) -> None:
        self.disk.change("sync", self.name)
        self._durable = dict(self.values)
        self._unsynced.clear()

    def survivor(self, disk: Disk, loss: Loss, rng: random.Random) -> "_Table":
        left = _Table(disk, self.name)
        left.values = dict(self._durable)
        count = len(self._unsynced)
        # Its log ends at the first batch that was lost, whatever came behind.
        kept = {Loss.ALL: 0, Loss.NOTHING: count}.get(loss, rng.randint(0, count))
        for batch in self._unsynced[:kept]:
            batch(left.values)
        left._durable = dict(left.values)
        return left


def _table(disk: Disk, path: Path) -> _Table:
    return disk.indexes.setdefault(path, _Table(disk, path))


class SimLocationsIndex:
    """As bkctl.server.storage.index.LocationsIndex, on a `Disk`."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._table = _table(disk, path)

    def get(self, keys: Sequence[bytes]) -> list[int | None]:
        values = map(self._table.values.get, keys)
        return [None if value is None else fmt.unpack_location_value(value) for value in values]

    def put(self, keys: Sequence[bytes], locations: Sequence[int]) -> None:
        if keys:
            rows = dict(zip(keys, map(fmt.pack_location_value, locations), strict=True))
            self._table.write(lambda values: values.update(rows))

    def delete_ledgers(self, ledger_ids: Collection[int]) -> None:
        ranges = [fmt.entry_key_range(ledger_id) for ledger_id in ledger_ids]

        def delete(values: dict[bytes, bytes]) -> None:
            for key in [k for k in values if any(first <= k < end for first, end in ranges)]:
                del values[key]

        self._table.write(delete)

    def sync(self) -> None:
        self._table.sync()

    def _keys(self, ledger_id: int) -> list[bytes]:
        first, end = fmt.entry_key_range(ledger_id)
        return sorted(key for key in self._table.values if first <= key < end)

    def last_entry_id(self, ledger_id: int) -> int:
        return max(fmt.entry_ids_of_keys(self._keys(ledger_id)), default=-1)

    def entry_ids(self, ledger_id: int) -> list[int]:
        return fmt.entry_ids_of_keys(self._keys(ledger_id))

    def following(self, ledger_id: int, entry_id: int, count_max: int) -> list[tuple[int, int]]:
        keys = [k for k in self._keys(ledger_id) if k > fmt.entry_key(ledger_id, entry_id)][:count_max]
        values = (fmt.unpack_location_value(self._table.values[key]) for key in keys)
        return list(zip(fmt.entry_ids_of_keys(keys), values, strict=True))

    def close(self) -> None:
        """Nothing is held."""


class SimLedgersIndex:
    """As bkctl.server.storage.index.LedgersIndex, on a `Disk`."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._table = _table(disk, path)

    def load(self) -> dict[int, fmt.LedgerData]:
        return {
            fmt.unpack_ledger_key(key): fmt.unpack_ledger_data(value)
            for key, value in self._table.values.items()
            if fmt.unpack_ledger_key(key) >= 0
        }

    def tombstones(self) -> list[int]:
        first, end = fmt.tombstone_key_range()
        return fmt.entry_ids_of_keys(sorted(key for key in self._table.values if first <= key < end))

    def write(
        self,
        changed: Mapping[int, fmt.LedgerData],
        deleted: Collection[int],
        buried: Collection[int] = (),
        exhumed: Collection[int] = (),
    ) -> None:
        rows = {fmt.ledger_key(ledger_id): fmt.pack_ledger_data(data) for ledger_id, data in changed.items()}
        rows |= {fmt.tombstone_key(ledger_id): fmt.TOMBSTONE for ledger_id in buried}
        gone = [fmt.ledger_key(ledger_id) for ledger_id in deleted]
        gone += [fmt.tombstone_key(ledger_id) for ledger_id in exhumed]

        def batch(values: dict[bytes, bytes]) -> None:
            for key in gone:
                values.pop(key, None)
            values.update(rows)

        self._table.write(batch)

    def sync(self) -> None:
        self._table.sync()

    def close(self) -> None:
        """Nothing is held."""


class SimEntryLogMetadataIndex:
    """As bkctl.server.storage.index.EntryLogMetadataIndex, on a `Disk`."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._table = _table(disk, path)

    def get(self, log_id: int) -> EntryLogMetadata | None:
        value = self._table.values.get(log_metadata.pack_key(log_id))
        return None if value is None else log_metadata.decode(value)

    def log_ids(self) -> list[int]:
        return sorted(int.from_bytes(key, "big") for key in self._table.values)

    def put(self, metadata: EntryLogMetadata) -> None:
        key, value = log_metadata.pack_key(metadata.log_id), log_metadata.encode(metadata)
        self._table.write(lambda values: values.update({key: value}))

    def delete(self, log_id: int) -> None:
        def delete(values: dict[bytes, bytes]) -> None:
            values.pop(log_metadata.pack_key(log_id), None)

        self._table.write(delete)

    def sync(self) -> None:
        self._table.sync()

    def close(self) -> None:
        """Nothing is held."""
