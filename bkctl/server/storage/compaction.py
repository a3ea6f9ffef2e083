"""Compaction: live entries of old entry logs are written to a new one, then the old ones are deleted.

    copy to `<d>.log.compacting`  ->  seal, fsync  ->  link `<d>.log.<s>.compacted` for each source s
    ->  link `<d>.log`, sync the names  ->  point the index to the copies, sync it
    ->  unlink the markers  ->  delete the sources

Laws:

1. A source is deleted only when the index is durable without it (upstream issue 1534). A crash at any
   step leaves every entry at its old or its new place: what is `.compacting` is thrown away, for what is
   `.compacted` the index is brought up to date. A source that is left over compacts again, to nothing.
2. An entry is alive if the index has it at this very place. The index is changed only for entries that
   it still has in a source: one that was added again meanwhile, or whose ledger was deleted, stays as
   it is (trap T10).
3. A source that cannot be read to its end is damaged: nothing is deleted of it and no entry of it moves.

Several sources go to one log, so that years of compaction do not leave a file for each. All ids in
names are hexadecimal (trap T3).

Source: spec storage section 8.5; upstream TransactionalEntryLogCompactor. Differs: upstream compacts
log by log, and by default without this order of steps.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log as fmt
from bkctl.formats import index as index_format
from bkctl.formats.entry_log import ScannedEntry
from bkctl.server.storage.directory_storage import DirectoryStorage
from bkctl.server.storage.entry_log import seal
from bkctl.server.storage.entry_log_usage import EntryLogUsage, opened_log, scan_log
from bkctl.server.storage.fs import Fs

log = logging.getLogger(__name__)

_SLICE_ENTRIES = 1024  # looked up, written and moved at once: the storage thread and the lock wait so long
_SLICE_BYTES = 1 << 20
_SYNC_BYTES = 1 << 20  # as server.storage.entry_log
_CACHED_BYTES = 8 << 20  # read or written once: dropped from the page cache behind this many bytes

_COMPACTED = re.compile(r"([0-9a-f]{1,8})\.log\.([0-9a-f]{1,8})\.compacted")
_COMPACTING = re.compile(r"[0-9a-f]{1,8}\.log\.compacting")


_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Pace(Protocol):
    """How fast a compaction may go, and whether it must end."""

    def spend(self, entries: int, size_bytes: int) -> None:
        """Wait until this much may be copied; raises an exception of its own to end the work."""


@dataclass(slots=True)
class Compacted:
    """What one compaction did; `damaged`: source -> why it was left alone."""

    log_id: int | None = None  # None: nothing was alive
    copied_entries: int = 0
    copied_bytes: int = 0
    reclaimed_bytes: int = 0  # of the sources' files, less the new one
    deleted_ids: list[int] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)


class Compactor:
    """Compacts the logs of one directory, in a thread of its own; only one at a time."""

    def __init__(
        self,
        directory: Path,
        fs: Fs,
        storage: DirectoryStorage,
        storage_thread: Executor,
        usage: EntryLogUsage,
        pace: Pace,
    ) -> None:
        self._directory = directory
        self._fs = fs
        self._storage = storage
        self._storage_thread = storage_thread
        self._usage = usage
        self._pace = pace

    def recover(self) -> None:
        """Finish what a crash, or a pause, interrupted; raises OSError, CorruptDataError."""
        names = self._fs.listdir(self._directory)
        for name in filter(_COMPACTING.fullmatch, names):
            self._fs.unlink(self._directory / name)
        sources: dict[int, list[int]] = {}
        for match in filter(None, map(_COMPACTED.fullmatch, names)):
            sources.setdefault(int(match[1], 16), []).append(int(match[2], 16))
        for log_id, source_ids in sources.items():
            path = self._directory / fmt.file_name(log_id)
            if not self._fs.exists(path):
                self._fs.link(self._directory / fmt.compacted_name(log_id, source_ids[0]), path)
            self._fs.fsync_dir(self._directory)
            self._move(log_id, source_ids)
            self._unlink_markers(log_id, source_ids)
            # The sources stay: if they are empty now, the next compaction will find so.

    def compact(self, source_ids: Sequence[int]) -> Compacted:
        """Rewrite these closed logs, and delete them.

        Raises:
            OSError: nothing can be written. Nothing is lost; `recover` cleans up.
            CorruptDataError: the index cannot be read, or not the copy.
            Whatever the pace raises.
        """
        done = Compacted()
        log_id: int = self._on_storage_thread(self._storage.take_log_id)
        copy = _Copy(self._fs, self._directory / fmt.compacting_name(log_id), log_id)
        try:
            sources = [source for source in source_ids if self._copied(source, copy, done)]
            if sources and copy.entries:
                copy.finish()
                self._publish(log_id, sources)
                done.log_id = log_id
        finally:
            copy.close()
        if done.log_id is not None:
            self._move(log_id, sources)
            self._unlink_markers(log_id, sources)
            done.copied_entries, done.copied_bytes = copy.entries, copy.position - fmt.FIRST_POSITION
        self._unlink(self._directory / fmt.compacting_name(log_id))
        for source in sources:
            done.reclaimed_bytes += self.delete(source)
            done.deleted_ids.append(source)
        done.reclaimed_bytes -= done.copied_bytes
        return done

    def delete(self, log_id: int) -> int:
        """Delete a log that nothing is alive in; the bytes that its file had. Raises OSError."""
        with opened_log(self._fs, self._directory / fmt.file_name(log_id)) as (_, size_bytes):
            self._usage.forget(log_id)
        self._storage.delete_log(log_id)
        self._fs.fsync_dir(self._directory)
        return size_bytes

    def _copied(self, source: int, copy: "_Copy", done: Compacted) -> bool:
        """Copy what is alive in a source; False when it is damaged."""
        path = self._directory / fmt.file_name(source)
        entries = _slices_of(self._fs, path)
        while True:
            try:
                entries_slice = next(entries, None)
            except (CorruptDataError, OSError) as exc:
                done.damaged[source] = str(exc)
                self._usage.set_damaged(source, str(exc))
                log.error("%s is damaged and is left alone: %s", path, exc)
                return False
            if entries_slice is None:
                return True
            keys = [entry.entry[: index_format.ENTRY_KEY_BYTES] for entry in entries_slice]
            found = self._storage.locations(keys)
            alive = [
                entry
                for entry, location in zip(entries_slice, found, strict=True)
                if location == fmt.pack_location(source, entry.position)
            ]
            size_bytes = sum(len(entry.entry) for entry in alive)
            self._pace.spend(len(alive), size_bytes)
            copy.append(alive)

    def _publish(self, log_id: int, sources: Collection[int]) -> None:
        """Give the finished copy its names: the markers first, so that no crash loses what it is for."""
        compacting = self._directory / fmt.compacting_name(log_id)
        for source in sources:
            self._fs.link(compacting, self._directory / fmt.compacted_name(log_id, source))
        self._fs.link(compacting, self._directory / fmt.file_name(log_id))
        self._fs.fsync_dir(self._directory)

    def _move(self, log_id: int, source_ids: Collection[int]) -> None:
        """Point the index to the copies in `log_id` of entries that it has in the sources, durably."""
        sources = frozenset(source_ids)
        for entries in _slices_of(self._fs, self._directory / fmt.file_name(log_id)):
            self._pace.spend(0, 0)
            keys = [entry.entry[: index_format.ENTRY_KEY_BYTES] for entry in entries]
            locations = [fmt.pack_location(log_id, entry.position) for entry in entries]
            self._on_storage_thread(self._storage.move_entries, keys, locations, sources)
        self._on_storage_thread(self._storage.sync_locations)

    def _unlink_markers(self, log_id: int, sources: Collection[int]) -> None:
        for source in sources:
            self._unlink(self._directory / fmt.compacted_name(log_id, source))
        self._fs.fsync_dir(self._directory)

    def _unlink(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            self._fs.unlink(path)

    def _on_storage_thread(
        self, call: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs
    ) -> _Result:
        return self._storage_thread.submit(call, *given, **named).result()


class _Copy:
    """The log that a compaction writes; `position` is its end."""

    def __init__(self, fs: Fs, path: Path, log_id: int) -> None:
        """Raises OSError."""
        self._fs = fs
        self._ledger_bytes: dict[int, int] = {}
        self._synced = self._cached_from = 0
        self.log_id = log_id
        self.entries = 0
        self.position = fmt.FIRST_POSITION
        self._fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        fs.write(self._fd, fmt.pack_header(), 0)

    def append(self, entries: Sequence[ScannedEntry]) -> None:
        """Raises OSError; CorruptDataError: the sources hold more than they said."""
        if not entries:
            return
        buffers: list[bytes] = []
        start = self.position
        for entry in entries:
            size = len(entry.entry)
            buffers += size.to_bytes(fmt.SIZE_BYTES, "big"), entry.entry
            size += fmt.SIZE_BYTES
            self._ledger_bytes[entry.ledger_id] = self._ledger_bytes.get(entry.ledger_id, 0) + size
            self.position += size
        if self.position > fmt.LOG_ID_MAX:
            raise CorruptDataError("a compaction copied more than an entry log can hold")
        self._fs.write_all(self._fd, buffers, start)
        self.entries += len(entries)
        if self.position - self._synced >= _SYNC_BYTES:
            self._fs.fdatasync(self._fd)
            self._synced = self.position
            self._cached_from = _drop_behind(self._fs, self._fd, self._cached_from, self.position)

    def finish(self) -> None:
        """Seal the log and make it durable; raises OSError."""
        seal(self._fs, self._fd, self.position, self._ledger_bytes)
        self._fs.fsync(self._fd)

    def close(self) -> None:
        self._fs.close(self._fd)


def _slices_of(fs: Fs, path: Path) -> Iterator[list[ScannedEntry]]:
    """The entries of a log in slices; raises OSError, CorruptDataError as `scan_log`."""
    fd = fs.open(path, os.O_RDONLY)
    cached_from = 0
    try:
        entries = scan_log(lambda position, size: fs.read(fd, size, position), fs.size(fd))
        for entries_slice in _slices(entries):
            yield entries_slice
            cached_from = _drop_behind(fs, fd, cached_from, entries_slice[-1].position)
    finally:
        fs.close(fd)


def _slices(entries: Iterator[ScannedEntry]) -> Iterator[list[ScannedEntry]]:
    """Bounded by count and by bytes; an entry of any size goes alone."""
    found: list[ScannedEntry] = []
    size_bytes = 0
    for entry in entries:
        found.append(entry)
        size_bytes += len(entry.entry)
        if len(found) >= _SLICE_ENTRIES or size_bytes >= _SLICE_BYTES:
            yield found
            found, size_bytes = [], 0
    if found:
        yield found


def _drop_behind(fs: Fs, fd: int, cached_from: int, position: int) -> int:
    """Keep the last bytes before `position` cached; where they begin."""
    end = position - _CACHED_BYTES
    if end - cached_from < _CACHED_BYTES:
        return cached_from
    fs.drop_cached(fd, cached_from, end - cached_from)
    return end
