"""Every file in a bookie's directories, and what it is for.

Source: spec storage section 1; upstream BookieShell's listfilesondisc. Differs: upstream takes the
logs of RocksDB for entry logs.
"""

import enum
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log, journal, small_files
from bkctl.offline.cookies import VERSION_NAME
from bkctl.offline.directories import BookieDirectories


class FileType(enum.StrEnum):
    JOURNAL = "journal"
    ENTRYLOG = "entrylog"
    INDEX = "index"
    COOKIE = "cookie"
    MARK = "mark"  # how far the journal is done with, and the entry log id allocated last
    STATUS = "status"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class BookieFile:
    """`file_id`: the number that the name stands for: journal, entry log or ledger id."""

    path: Path
    type: FileType
    size_bytes: int
    file_id: int | None


_DATABASES = re.compile(r"metadata-cache|(ledgers|locations)(\.(TEMP|PREV|BACKUP)-.*)?")
_MARK = re.compile(r"lastMark(\.\d+)?")
_COMPACTION = re.compile(r"([0-9a-f]{1,8})\.log(\.compacting|\.[0-9a-f]{1,8}\.compacted)")
_INDEX_FILE = re.compile(r"[0-9a-f]{1,2}/[0-9a-f]{1,2}/([0-9a-f]{1,16})\.idx(?:\.rloc)?")
_STATUS_NAMES = (small_files.BOOKIE_STATUS_NAME, "DIRTY")


def bookie_files(directories: BookieDirectories) -> Iterator[BookieFile]:
    """Directory by directory, names ascending; what goes away meanwhile is left out. Raises OSError."""
    for directory in directories.everywhere():
        for path in _files_below(directory):
            relative = path.relative_to(directory).as_posix()
            try:
                size_bytes = path.lstat().st_size
            except FileNotFoundError:
                continue
            file_type, file_id = _type_and_id(relative)
            yield BookieFile(path, file_type, size_bytes, file_id)


def _type_and_id(relative: str) -> tuple[FileType, int | None]:
    """Of a file, by its path below `current`."""
    top, _, below = relative.partition("/")
    if below:
        match = _INDEX_FILE.fullmatch(relative)
        if match:
            return FileType.INDEX, int(match[1], 16)
        return FileType.INDEX if _DATABASES.fullmatch(top) else FileType.OTHER, None
    try:
        journal_id = journal.parse_file_name(top)
    except CorruptDataError:
        return FileType.OTHER, None
    if journal_id is not None:
        return FileType.JOURNAL, journal_id
    log_id = entry_log.parse_file_name(top)
    if log_id is None and (match := _COMPACTION.fullmatch(top)):
        log_id = int(match[1], 16)
    if log_id is not None:
        return FileType.ENTRYLOG, log_id
    if top == VERSION_NAME:
        return FileType.COOKIE, None
    if _MARK.fullmatch(top) or top == small_files.LAST_ID_NAME:
        return FileType.MARK, None
    return FileType.STATUS if top in _STATUS_NAMES else FileType.OTHER, None


def _files_below(directory: Path) -> Iterator[Path]:
    """Links are not followed."""
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path))
        else:
            yield Path(entry.path)
