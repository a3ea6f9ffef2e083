"""The journal of a bookie: what is appended is synced in groups, by one thread per journal directory.

Laws:

- A token completes after the fdatasync that covers its bytes; a deferred one after they reached the
  file. Tokens complete in the order of their appends within a call of `completed`.
- One group is in flight at a time: so after a crash only the last group of a file can be torn.
- A failed write or sync is final. The kernel may have dropped the pages and marked them clean, so a
  second fdatasync that succeeds would prove nothing: `failed` is called once, nothing completes any more.
- A file is never appended to after its journal stopped, and never deleted from the mark on.

Source: spec storage 4; upstream Journal, JournalChannel.
Differs: no waiting for a group to grow (upstream: journalMaxGroupWaitMSec). While one group is written
and synced the next one gathers, so groups grow with the load by themselves.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bkctl.errors import BookieStartError, CorruptDataError
from bkctl.formats import journal as journal_format
from bkctl.formats import small_files
from bkctl.formats.journal import JournalRecord, RecordKind, Scan, ScanEnd, Stop
from bkctl.formats.small_files import ZERO_MARK, LogMark
from bkctl.server.storage.fs import Buffer, Fs, read_file, write_file

log = logging.getLogger(__name__)

Token = Any  # the caller's; handed back as it came

_MIB = 1024 * 1024

# How a file grows. Measured on ext4 over a virtual disk, write + fdatasync: small groups want latency,
# large ones MB/s. Zeros 4 MiB at a time have the same p50 as 1 MiB, and a p99 of up to 9.8 ms.
#                                       posix_fallocate   zeros 1 MiB ahead   plain growth
#   one append of 1 KiB at a time, p50       271 us            210 us
#   32 outstanding, p50 / p99            433 / 1,958       261 / 1,597
#   200 outstanding, p50 / p99           999 / 2,244       749 / 2,058
#   groups of 512 KiB, write + sync    820-939 MB/s       701-708 MB/s       341-416 MB/s
#   groups of 4 MiB, write + sync  1,324-1,626 MB/s  (4 MiB: 303-495)       504-522 MB/s
_ZEROED_GROUP_BYTES_MAX = 256 * 1024
_ZEROS = bytes(_MIB)

# More parts than one system call takes are joined: beside a busy event loop each further call waits
# for the interpreter's lock. Fewer are not: passing 512 parts of 1 KiB costs 36 us, joining them 33 us.
_PARTS_MAX = 1024

# Synced pages are dropped from the page cache, which nobody reads. A file that grows over fresh pages
# took 1.31 us CPU per KiB (groups of 4 MiB: 545 MB/s, p99 22 ms); with pages recycled this way 0.35 us
# (1,391 MB/s, p99 4.7 ms). Upstream: journalRemoveFromPageCache.
_CACHED_BYTES_MAX = 8 * _MIB

_READ_BYTES = 4 * _MIB  # replay reads that much at a time


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """What a bookie's configuration says about one journal; upstream's key behind each."""

    directory: Path  # holds the `.txn` files: `current/` of an element of journalDirectories
    size_bytes_max: int = 2048 * _MIB  # a file beyond it is followed by the next: journalMaxSizeMB
    preallocate_bytes: int = 16 * _MIB  # journalPreAllocSizeMB
    alignment_bytes: int = journal_format.SECTOR_BYTES  # a multiple of 512: journalAlignmentSize
    backups_max: int = 5  # files kept behind the mark: journalMaxBackups
    sync_data: bool = True  # False: tokens complete when written; journalSyncData
    write_format: int = journal_format.VERSION_DEFAULT  # 4 to 6: journalFormatVersionToWrite
    group_bytes_max: int = 4 * _MIB  # a group takes no further append from here on
    sync_interval_ms: int = 1000  # with sync_data False: journalPageCacheFlushIntervalMSec


class _Append(NamedTuple):
    parts: Sequence[Buffer]
    size_bytes: int
    token: Token | None
    deferred: bool


class _JournalFile:
    """The file that is written now. Its name and header are durable before its first record."""

    def __init__(self, settings: JournalSettings, fs: Fs, journal_id: int) -> None:
        self._settings = settings
        self._fs = fs
        self._fd = fs.open(
            Path(settings.directory, journal_format.file_name(journal_id)),
            os.O_RDWR | os.O_CREAT | os.O_EXCL,
        )
        self.journal_id = journal_id
        self.position = journal_format.data_start(settings.write_format)
        self._reserved = self.position  # beyond it the file has no blocks yet
        self._cached_from = 0
        try:
            fs.write(self._fd, journal_format.header(settings.write_format), 0)
            self._reserve(1)
            fs.fsync(self._fd)
            fs.fsync_dir(settings.directory)
        except OSError:
            self.close()
            raise

    @property
    def mark(self) -> LogMark:
        return LogMark(self.journal_id, self.position)

    def write(self, parts: list[Buffer], size_bytes: int) -> None:
        """Append `parts` (`size_bytes` together) and the padding of the flush."""
        if self._settings.write_format >= journal_format.VERSION_PADDED:
            padding = journal_format.padding_record(
                self.position + size_bytes, self._settings.alignment_bytes
            )
            parts.append(padding)
            size_bytes += len(padding)
        self._reserve(size_bytes)
        if len(parts) > _PARTS_MAX:
            parts = [b"".join(parts)]
        self._fs.write_all(self._fd, parts, self.position)
        self.position += size_bytes

    def sync(self) -> None:
        self._fs.fdatasync(self._fd)

    def drop_cached(self) -> None:
        """After a sync: spare the page cache what is behind."""
        if self.position - self._cached_from >= _CACHED_BYTES_MAX:
            self._fs.drop_cached(self._fd, self._cached_from, self.position - self._cached_from)
            self._cached_from = self.position

    def close(self) -> None:
        self._fs.close(self._fd)

    def _reserve(self, group_bytes: int) -> None:
        """See to blocks for the next group; what is reserved reads as zeros, the end of the data."""
        missing_bytes = self.position + group_bytes - self._reserved
        if missing_bytes <= 0:
            return
        if group_bytes <= _ZEROED_GROUP_BYTES_MAX:
            zeros = memoryview(_ZEROS)[: max(self._settings.preallocate_bytes, missing_bytes)]
            self._fs.write(self._fd, zeros, self._reserved)
            self._reserved += len(zeros)
        else:
            size_bytes = max(self._settings.preallocate_bytes, missing_bytes)
            self._fs.allocate(self._fd, self._reserved, size_bytes)
            self._reserved += size_bytes


class Journal:
    """One journal directory and the thread that writes it.

    `append`, `mark` and the counters belong to the event loop and never block; `completed` and
    `failed` are called from the journal's thread.

    Args:
        completed: takes the tokens of a group in append order, once after its sync (maybe none) and,
            when there are deferred ones, once before with those.
        failed: takes the error that ended the journal; called at most once, then nothing completes.
    """

    def __init__(
        self,
        settings: JournalSettings,
        fs: Fs,
        *,
        completed: Callable[[list[Token]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._fs = fs
        self._completed = completed
        self._failed = failed
        self._queue: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._file: _JournalFile
        self._mark = ZERO_MARK
        self._unsynced = False  # something was written behind the mark
        self._synced_s = 0.0  # monotonic
        self._appended_bytes = 0  # each counter has one writing thread
        self._done_bytes = 0
        self.appended = 0  # calls of append
        self.written = 0  # of them, written to the file: their buffers may be used again

    @property
    def queued_bytes(self) -> int:
        """Bytes appended whose group is not done: what back-pressure looks at."""
        return self._appended_bytes - self._done_bytes

    def mark(self) -> LogMark:
        """Every record before it is durable. From `start` on it names an existing file."""
        return self._mark

    def start(self, now_ms: int) -> None:
        """Open the next file and start the thread; `now_ms` (wall time) names the very first file.

        Raises:
            OSError: the file cannot be made.
            CorruptDataError: a `.txn` file that is no journal lies in the directory.
        """
        assert self._thread is None, "started twice"
        ids = journal_ids(self._fs, self._settings.directory)
        self._open_file(ids[-1] + 1 if ids else now_ms + 1)
        self._mark = self._file.mark
        name = f"journal {self._settings.directory}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def append(self, parts: Sequence[Buffer], token: Token | None, *, deferred: bool = False) -> None:
        """Queue whole records, in order; buffers must stay as they are until `written` counts this call.

        Args:
            parts: journal bytes, any number of records; () asks for nothing but the token after a
                sync of everything before (force ledger).
            token: completes after the sync; None when nobody waits.
            deferred: the token completes already after the write.
        """
        size_bytes = sum(map(len, parts))
        self.appended += 1
        self._appended_bytes += size_bytes
        self._queue.put(_Append(parts, size_bytes, token, deferred))

    def stop(self) -> None:
        """Write and sync what is queued, end the thread. Nothing may be appended afterwards."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def delete_before(self, mark: LogMark) -> list[int]:
        """Delete the oldest files before the one of `mark`, so that backups_max of them remain.

        `mark` must have been persisted to lastMark. Returns the ids deleted. Blocks on the disk.
        """
        old_ids = [i for i in journal_ids(self._fs, self._settings.directory) if i < mark.journal_id]
        deleted = old_ids[: max(0, len(old_ids) - self._settings.backups_max)]
        for journal_id in deleted:
            self._fs.unlink(Path(self._settings.directory, journal_format.file_name(journal_id)))
        return deleted

    # -- the journal's thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            running = True
            while running:
                appends, running = self._take()
                self._commit(appends, last=not running)
        except BaseException as error:  # whatever it is, no acknowledgement may follow
            self._failed(error)
        finally:
            self._file.close()

    def _take(self) -> tuple[list[_Append], bool]:
        """The next group, and whether more may come. Empty when only a sync is due."""
        timeout_s = self._settings.sync_interval_ms / 1000 if self._unsynced else None
        try:
            append = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return [], True
        group: list[_Append] = []
        size_bytes = 0
        while append is not None:
            group.append(append)
            size_bytes += append.size_bytes
            if size_bytes >= self._settings.group_bytes_max or self._queue.empty():
                return group, True
            append = self._queue.get()
        return group, False

    def _commit(self, group: list[_Append], *, last: bool) -> None:
        """Write, sync as far as asked for, complete; then change the file when it is full."""
        settings = self._settings
        size_bytes = sum(append.size_bytes for append in group)
        early: list[Token] = []  # need no sync
        late: list[Token] = []
        for append in group:
            if append.token is not None:
                needs_sync = not append.parts or (settings.sync_data and not append.deferred)
                (late if needs_sync else early).append(append.token)
        if size_bytes:
            self._file.write([part for append in group for part in append.parts], size_bytes)
            self._unsynced = True
        self.written += len(group)
        if early:
            self._completed(early)
        full = self._file.position > settings.size_bytes_max
        if self._unsynced and (settings.sync_data or late or full or last or self._sync_is_due()):
            self._file.sync()
            self._unsynced = False
            self._synced_s = time.monotonic()
            self._mark = self._file.mark
        self._done_bytes += size_bytes
        if group:
            self._completed(late)
        if not self._unsynced:
            self._file.drop_cached()
        if full and not last:
            old_file = self._file
            self._open_file(old_file.journal_id + 1)
            old_file.close()

    def _sync_is_due(self) -> bool:
        return (time.monotonic() - self._synced_s) * 1000 >= self._settings.sync_interval_ms

    def _open_file(self, journal_id: int) -> None:
        self._file = _JournalFile(self._settings, self._fs, journal_id)


def journal_ids(fs: Fs, directory: Path) -> list[int]:
    """Ids of the journal files in a directory, ascending.

    Raises:
        OSError: the directory cannot be read.
        CorruptDataError: a `.txn` file that is no journal lies in it.
    """
    ids = (journal_format.parse_file_name(name) for name in fs.listdir(directory))
    return sorted(i for i in ids if i is not None)


def replay(
    directory: Path, fs: Fs, mark: LogMark, *, skip_invalid: bool = False
) -> Iterator[list[JournalRecord]]:
    """The records of a journal from `mark` on, in order, in lists of up to some MiB.

    Records of kinds this version does not know are left out. `skip_invalid` (upstream's
    skipReplayJournalInvalidRecord): a damaged file ends where the damage begins, with a warning.

    Raises:
        BookieStartError: the file that the mark names is not there.
        CorruptDataError: damage that no crash explains.
        OSError: a file cannot be read.
    """
    ids = [i for i in journal_ids(fs, directory) if i >= mark.journal_id]
    if mark.journal_id > 0 and ids[:1] != [mark.journal_id]:
        name = journal_format.file_name(mark.journal_id)
        raise BookieStartError(
            f"journal file {name} is missing in {directory}, and lastMark names it: entries that only"
            " it held are lost here; bring it back, or format this bookie and re-replicate its ledgers"
        )
    for journal_id in ids:
        path = Path(directory, journal_format.file_name(journal_id))
        offset = mark.offset if journal_id == mark.journal_id else 0
        try:
            for scan in scan_file(fs, path, offset):
                unknown = [r for r in scan.records if r.kind is RecordKind.UNKNOWN]
                if unknown:
                    log.warning("%s: %d records of unknown kinds skipped", path, len(unknown))
                yield [r for r in scan.records if r.kind is not RecordKind.UNKNOWN]
                if scan.end is not None:
                    _judge_end(path, scan.end)
        except (CorruptDataError, OSError) as error:
            if not skip_invalid:
                raise
            log.warning("the rest of %s is skipped: %s", path, error)


def _judge_end(path: Path, end: ScanEnd) -> None:
    if end.stop is Stop.BAD_RECORD:
        raise CorruptDataError(
            f"{path} is damaged at byte {end.position}: {end.detail}; recover its ledgers from other"
            " bookies, or set skipReplayJournalInvalidRecord=true to go on without the rest of the file"
        )
    if end.stop in (Stop.TORN, Stop.UNFINISHED):
        log.info("%s ends in a record that was never acknowledged, at byte %d", path, end.position)


def scan_file(fs: Fs, path: Path, offset: int = 0) -> Iterator[Scan]:
    """Scan one journal file from `offset` (0: its first record) on; the last Scan alone has an `end`.

    An end that no crash explains has the stop BAD_RECORD: bytes that are no record, or further
    groups of records behind the end of the data.

    Raises:
        CorruptDataError: a version this code does not know, or an offset beyond the file.
        OSError: the file cannot be read.
    """
    fd = fs.open(path, os.O_RDONLY)
    try:
        if offset > fs.size(fd):
            raise CorruptDataError(f"{path} has {fs.size(fd)} bytes, but lastMark names byte {offset}")
        version = journal_format.parse_header(fs.read(fd, journal_format.HEADER_BYTES, 0))
        position = max(offset, journal_format.data_start(version))
        size_bytes = _READ_BYTES
        while True:
            data = fs.read(fd, size_bytes, position)
            at_end_of_file = len(data) < size_bytes
            scan = journal_format.scan_records(data, position, version, at_end_of_file=at_end_of_file)
            if scan.end is not None:
                break
            yield scan
            position, size_bytes = scan.position, max(_READ_BYTES, scan.wanted_bytes)
        yield replace(scan, end=_with_groups_behind(fs, fd, version, scan.end))
    finally:
        fs.close(fd)


def _with_groups_behind(fs: Fs, fd: int, version: int, end: ScanEnd) -> ScanEnd:
    """`end`, or a BAD_RECORD there when whole groups of records follow it."""
    if end.stop is Stop.BAD_RECORD:
        return end
    position = end.position + -end.position % journal_format.SECTOR_BYTES
    while data := fs.read(fd, 2 * _READ_BYTES, position):
        found_at = journal_format.find_groups(data, version)
        if found_at is not None:
            detail = f"the data ends here, but further records begin at byte {position + found_at}"
            return replace(end, stop=Stop.BAD_RECORD, detail=detail)
        position += _READ_BYTES
    return end


def read_last_marks(fs: Fs, ledger_dirs: Sequence[Path], journal_index: int, journal_count: int) -> LogMark:
    """The highest mark in the `current` directories of a bookie's ledgers; (0, 0) when there is none.

    Directories without a readable mark are passed over.
    """
    marks = [ZERO_MARK]
    for ledger_dir in ledger_dirs:
        path = Path(ledger_dir, small_files.last_mark_name(journal_index, journal_count))
        try:
            data = read_file(fs, path, small_files.SMALL_FILE_BYTES_MAX)
            marks.append(small_files.decode_last_mark(data))
        except FileNotFoundError:
            pass  # a new directory
        except (OSError, CorruptDataError) as error:
            log.warning("%s is passed over: %s", path, error)
    return max(marks)


def write_last_mark(
    fs: Fs, ledger_dirs: Sequence[Path], journal_index: int, journal_count: int, mark: LogMark
) -> None:
    """Persist `mark` in every ledger directory given (the writable ones); durable on return.

    A mark that is not beyond the persisted one is dropped. A directory that fails is passed over.

    Raises:
        OSError: no directory took it; then journals must stay.
    """
    if mark <= read_last_marks(fs, ledger_dirs, journal_index, journal_count):
        return
    errors = []
    for ledger_dir in ledger_dirs:
        path = Path(ledger_dir, small_files.last_mark_name(journal_index, journal_count))
        try:
            write_file(fs, path, small_files.encode_last_mark(mark), sync=True)
        except OSError as error:
            log.warning("%s was not written: %s", path, error)
            errors.append(error)
    if len(errors) == len(ledger_dirs):
        raise errors[-1]
