"""The entry logs of one ledger directory: append in order, force, read by location, scan.

Source: spec storage sections 5.3-5.7; upstream EntryLogManagerBase, EntryLoggerAllocator,
DefaultEntryLogger. Differs: nothing is allocated ahead, so no 0-byte log is left behind, and after a
failed write or force the log is not written any more: the kernel may have dropped its pages, so
entries that were not forced are written again, to a new log.
"""

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, compress, pairwise
from operator import add, ne
from pathlib import Path
from typing import NamedTuple

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log as fmt
from bkctl.formats import small_files
from bkctl.formats.index import LEDGER_KEY_BYTES
from bkctl.server.storage.fs import Fs, read_file, write_file

SIZE_BYTES_MAX = 1 << 30  # the largest logSizeLimit that upstream allows
_WRITE_RECORDS = 1024  # records per write: bounds what is held in lists
_OPEN_FILES_MAX = 64
_ENTRY_GUESS_BYTES = 4096  # read for an entry of unknown size
# Synced in steps: one sync of a whole flush makes the journal, on the same disk, wait behind all of it.
# p99 of adds with 1,000 outstanding: 75 ms for one sync of 64 MiB, 34 in steps of 4 MiB, 29 in steps of 1.
_SYNC_BYTES = 1 << 20
_CACHED_BYTES = 64 << 20  # of the newest log, for readers that follow closely
_AFTER_ANY_ENTRY = b"\x7f" + b"\xff" * 7  # as the second half of an entry key


class EntryLogWriter:
    """Appends records to the newest log; only the storage thread of the directory may use it.

    A log that existed before this object is never appended to (spec storage 5.4).
    """

    def __init__(self, directory: Path, fs: Fs, *, log_bytes_max: int) -> None:
        """Raises OSError."""
        assert 0 < log_bytes_max <= SIZE_BYTES_MAX, log_bytes_max
        self._directory = directory
        self._fs = fs
        self._log_bytes_max = log_bytes_max
        self._next_id = _first_id(directory, fs)
        self._log: _NewLog | None = None
        self._unforced: list[_NewLog] = []

    def append(
        self, arena: memoryview, keys: Sequence[bytes], positions: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """Write the records of `arena` that stand at `positions`; returns the location of each entry.

        `sizes` are those of whole records in bytes, `keys` the entry keys, ascending. Nothing is
        durable before `force`. Raises OSError; then no location of this call may be used.
        """
        locations: list[int] = []
        first = 0
        try:
            while first < len(keys):
                log = self._log_for(sizes[first])
                ends = list(accumulate(sizes[first : first + _WRITE_RECORDS], initial=log.position))
                count = max(1, bisect_right(ends, self._log_bytes_max) - 1)
                end = first + count
                buffers = _slices(arena, positions[first:end], sizes[first:end])
                self._fs.write_all(log.fd, buffers, log.position)
                base = fmt.pack_location(log.log_id, fmt.SIZE_BYTES)
                locations += [base + position for position in ends[:count]]
                _count_bytes(log.ledger_bytes, keys, sizes, first, end)
                log.position = ends[count]
                if log.position - log.synced_position >= _SYNC_BYTES:
                    self._fs.fdatasync(log.fd)
                    log.synced_position = log.position
                first = end
        except BaseException:
            self._abandon()
            raise
        return locations

    def force(self) -> None:
        """Make everything appended durable. Raises OSError; then it must be appended again."""
        if all(log.forced_position == log.position for log in self._unforced):
            return
        try:
            for log in self._unforced:
                self._fs.fsync(log.fd)
            self._fs.fsync_dir(self._directory)
        except BaseException:
            self._abandon()
            raise
        for log in self._unforced:
            self._spare_page_cache(log)
        for log in self._unforced[:-1]:  # the last one is still written to
            self._fs.close(log.fd)
        del self._unforced[:-1]
        self._unforced[0].forced_position = self._unforced[0].position

    def _spare_page_cache(self, log: "_NewLog") -> None:
        """Keep only the newest forced bytes cached: the pages go to what is written next.

        Fresh pages cost 2.1 us per entry of 1 KiB on the machine this was measured on, used ones 0.8.
        """
        end = log.position - _CACHED_BYTES
        if end - log.cached_from >= _CACHED_BYTES:
            self._fs.drop_cached(log.fd, log.cached_from, end - log.cached_from)
            log.cached_from = end

    def closed_ids(self) -> list[int]:
        """The logs that nothing is written to any more, ascending; raises OSError."""
        open_ids = {log.log_id for log in self._unforced}
        return [log_id for log_id in log_ids(self._directory, self._fs) if log_id not in open_ids]

    def take_id(self) -> int:
        """An id for a new log, noted in `lastId`; raises OSError."""
        log_id = self._next_id
        while self._fs.exists(self._directory / fmt.file_name(log_id)):
            log_id = fmt.following_log_id(log_id)
        data = small_files.encode_last_id(log_id)
        write_file(self._fs, self._directory / small_files.LAST_ID_NAME, data, sync=False)
        self._next_id = fmt.following_log_id(log_id)
        return log_id

    def close(self) -> None:
        """Let go of the files as they are: what was not forced may be lost, nothing is sealed."""
        logs, self._unforced, self._log = self._unforced, [], None
        for log in logs:
            self._fs.close(log.fd)

    def _abandon(self) -> None:
        """After a failure: go on with a new log, and take away those that no location points into.

        A flush that is tried again and again must not fill the disk with copies.
        """
        logs = self._unforced
        self.close()
        for log in logs:
            if not log.forced_position:
                with suppress(OSError):  # the failure that led here is the one to tell
                    self._fs.unlink(self._directory / fmt.file_name(log.log_id))

    def _log_for(self, size: int) -> "_NewLog":
        """The log that takes a record of `size` bytes; an empty log takes one of any size."""
        log = self._log
        if log and log.position > fmt.FIRST_POSITION and log.position + size > self._log_bytes_max:
            seal(self._fs, log.fd, log.position, log.ledger_bytes)
            log = None
        if log is None:
            log = self._log = self._create()
        return log

    def _create(self) -> "_NewLog":
        log_id = self.take_id()
        path = self._directory / fmt.file_name(log_id)
        log = _NewLog(log_id, self._fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self._unforced.append(log)
        self._fs.write(log.fd, fmt.pack_header(), 0)
        return log


class _NewLog:
    """A log being written: `position` is its end, `ledger_bytes` becomes the ledgers map.

    `forced_position`: where the durable entries of earlier flushes end, 0 when there are none.
    `synced_position`: what is before it was synced on the way. `cached_from`: where the bytes begin
    that the page cache may hold.
    """

    __slots__ = (
        "cached_from",
        "fd",
        "forced_position",
        "ledger_bytes",
        "log_id",
        "position",
        "synced_position",
    )

    def __init__(self, log_id: int, fd: int) -> None:
        self.log_id = log_id
        self.fd = fd
        self.position = fmt.FIRST_POSITION
        self.ledger_bytes: dict[int, int] = {}
        self.forced_position = 0
        self.synced_position = 0
        self.cached_from = 0


class Wanted(NamedTuple):
    """An entry to read, and where the index says it is."""

    location: int
    ledger_id: int
    entry_id: int


class EntryLogReader:
    """Reads logs by id, with a bounded number of files kept open. Any thread may use it."""

    def __init__(self, directory: Path, fs: Fs) -> None:
        self._directory = directory
        self._fs = fs
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    def entry(self, wanted: Wanted) -> bytes:
        """Raises OSError: the log cannot be read. CorruptDataError: the entry is not at its place."""
        (entry,) = self.near_entries([wanted])
        if isinstance(entry, Exception):
            raise entry
        return entry

    def near_entries(self, wanted: Sequence[Wanted]) -> list[bytes | Exception]:
        """Entries of one log, ascending and close together, with one read.

        In place of an entry that cannot be had: why (OSError, CorruptDataError).
        """
        first_location, last_location = wanted[0].location, wanted[-1].location
        try:
            log_id, position = fmt.unpack_location(first_location)
            start = position - fmt.SIZE_BYTES
            file = self._file(log_id)
            window = self._fs.read(file.fd, last_location - first_location + _ENTRY_GUESS_BYTES, start)
        except (OSError, CorruptDataError) as exc:
            return [exc] * len(wanted)
        entries: list[bytes | Exception] = []
        for location, ledger_id, entry_id in wanted:
            at = location - first_location
            try:
                size = fmt.unpack_entry_size(window, at, ledger_id, entry_id)
                end = at + fmt.SIZE_BYTES + size
                if end <= len(window):
                    entries.append(window[at + fmt.SIZE_BYTES : end])
                else:
                    entries.append(self._large_entry(file, start + at + fmt.SIZE_BYTES, size))
            except (OSError, CorruptDataError) as exc:
                entries.append(exc)
        return entries

    def scan(self, log_id: int) -> Iterator[fmt.ScannedEntry]:
        """Every entry of a log; raises OSError, CorruptDataError as formats.entry_log.scan does."""
        file = self._file(log_id)

        def read(position: int, size_bytes: int) -> bytes:
            return self._fs.read(file.fd, size_bytes, position)

        return fmt.scan(read, self._fs.size(file.fd))

    def forget(self, log_id: int) -> None:
        """Close a log that was deleted, once no read uses it: until then its space is not free."""
        with self._lock:
            self._files.pop(log_id, None)

    def close(self) -> None:
        """Close what no read still uses; the rest follows with the last of them."""
        with self._lock:
            self._files.clear()

    def _large_entry(self, file: "_File", position: int, size: int) -> bytes:
        if position + size > self._fs.size(file.fd):  # before memory is taken for a size from disk
            raise CorruptDataError(f"entry log ends within an entry of {size} bytes at position {position}")
        return self._fs.read(file.fd, size, position)

    def _file(self, log_id: int) -> "_File":
        with self._lock:
            file = self._files.get(log_id)
            if file is None:
                path = self._directory / fmt.file_name(log_id)
                file = self._files[log_id] = _File(self._fs, self._fs.open(path, os.O_RDONLY))
                if len(self._files) > _OPEN_FILES_MAX:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(log_id)
            return file


class _File:
    """A descriptor that is closed when the last thread that reads it lets go: its number is reused
    at once, so an earlier close would make that thread read another file."""

    __slots__ = ("_fs", "fd")

    def __init__(self, fs: Fs, fd: int) -> None:
        self._fs = fs
        self.fd = fd

    def __del__(self) -> None:
        self._fs.close(self.fd)


def seal(fs: Fs, fd: int, position: int, ledger_bytes: Mapping[int, int]) -> None:
    """Write the ledgers map of a log whose entries end at `position`; raises OSError."""
    fs.write(fd, fmt.pack_ledgers_map(ledger_bytes), position)
    fs.write(fd, *fmt.pack_seal(position, len(ledger_bytes)))


def log_ids(directory: Path, fs: Fs) -> list[int]:
    """The ids of the logs in a `current` directory, ascending; raises OSError."""
    ids = (fmt.parse_file_name(name) for name in fs.listdir(directory))
    return sorted(log_id for log_id in ids if log_id is not None)


def _first_id(directory: Path, fs: Fs) -> int:
    """The id of the next log in a directory (spec storage 5.5); raises OSError."""
    try:
        data = read_file(fs, directory / small_files.LAST_ID_NAME, small_files.SMALL_FILE_BYTES_MAX)
        last_id = small_files.decode_last_id(data)
    except (FileNotFoundError, CorruptDataError):
        last_id = None  # rewritten without force, so a crash may have emptied it; the names tell
    return fmt.next_log_id(log_ids(directory, fs), fmt.compacted_log_ids(fs.listdir(directory)), last_id)


def _slices(arena: memoryview, positions: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
    """The records as slices of the arena, neighbours as one."""
    ends = list(map(add, positions, sizes))
    breaks = compress(range(1, len(ends)), map(ne, positions[1:], ends))
    bounds = [0, *breaks, len(ends)]
    return [arena[positions[low] : ends[high - 1]] for low, high in pairwise(bounds)]


def _count_bytes(
    ledger_bytes: dict[int, int], keys: Sequence[bytes], sizes: Sequence[int], first: int, end: int
) -> None:
    """Add the sizes of the records [first, end) to the count of their ledgers; keys are ascending."""
    while first < end:
        ledger = keys[first][:LEDGER_KEY_BYTES]
        next_ledger = bisect_right(keys, ledger + _AFTER_ANY_ENTRY, first, end)
        ledger_id = int.from_bytes(ledger, "big")
        ledger_bytes[ledger_id] = ledger_bytes.get(ledger_id, 0) + sum(sizes[first:next_ledger])
        first = next_ledger
