"""Journals of a bookie that need not run: which files there are, marks, records.

Source: spec storage sections 3.1 and 4; `formats.journal`, `server.storage.journal`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bkctl.errors import CorruptDataError
from bkctl.formats import journal as fmt
from bkctl.formats import small_files
from bkctl.formats.journal import JournalRecord, Stop
from bkctl.formats.small_files import LogMark
from bkctl.offline.directories import BookieDirectories
from bkctl.offline.files import opened
from bkctl.server.storage.fs import OsFs, read_file
from bkctl.server.storage.journal import journal_ids, read_last_marks, scan_file

_MARK_NAME = re.compile(r"lastMark(?:\.([0-9]{1,4}))?")


@dataclass(frozen=True, slots=True)
class JournalFile:
    """`version` and `error`: one of them is None. `journal`: which of the journal directories."""

    path: Path
    journal_id: int
    journal: int
    size_bytes: int
    allocated_bytes: int
    version: int | None
    error: str | None


def journal_files(directories: Sequence[Path]) -> list[JournalFile]:
    """The journal files, oldest first in each directory; raises OSError, CorruptDataError."""
    fs = OsFs()
    return [
        _journal_file(directory / fmt.file_name(journal_id), journal_id, index)
        for index, directory in enumerate(directories)
        for journal_id in journal_ids(fs, directory)
    ]


def _journal_file(path: Path, journal_id: int, journal: int) -> JournalFile:
    status, version, error = path.stat(), None, None
    try:
        version = file_version(path)
    except CorruptDataError as exc:
        error = str(exc)
    except OSError as exc:
        error = exc.strerror or str(exc)
    return JournalFile(path, journal_id, journal, status.st_size, status.st_blocks * 512, version, error)


def file_version(path: Path) -> int:
    """The version in a file's header; raises CorruptDataError, OSError, as `file_status` does."""
    with opened(path) as (read, _):
        return fmt.parse_header(read(0, fmt.HEADER_BYTES))


def record_count(path: Path) -> int:
    """Records up to the end of the data or to damage; reads the whole file."""
    return sum(len(scan.records) for scan in scan_file(OsFs(), path))


@dataclass(frozen=True, slots=True)
class RecordedMark:
    """What one ledger directory says of one journal; `mark` None: why, in `state`."""

    journal: int
    path: Path
    mark: LogMark | None
    state: str  # "ok", "missing", or what is wrong with the file
    counts: bool = False  # the highest of its journal: replay starts there


def recorded_marks(directories: BookieDirectories) -> list[RecordedMark]:
    """The last mark of each journal in each ledger directory.

    Without journal directories, as many journals as the files tell of.
    """
    count, fs = mark_count(directories), OsFs()
    marks = []
    for journal in range(count):
        name = small_files.last_mark_name(journal, count)
        highest = read_last_marks(fs, directories.ledgers, journal, count)
        for ledger_dir in directories.ledgers:
            path = ledger_dir / name
            try:
                mark = small_files.decode_last_mark(read_file(fs, path, small_files.SMALL_FILE_BYTES_MAX))
            except FileNotFoundError:
                marks.append(RecordedMark(journal, path, None, "missing"))
            except (OSError, CorruptDataError) as error:
                marks.append(RecordedMark(journal, path, None, str(error)))
            else:
                marks.append(RecordedMark(journal, path, mark, "ok", mark == highest))
    return marks


def mark_count(directories: BookieDirectories) -> int:
    """How many journals the bookie has."""
    if directories.journals:
        return len(directories.journals)
    names = (name for directory in directories.ledgers for name in os.listdir(directory))
    numbers = [int(match[1]) for match in map(_MARK_NAME.fullmatch, names) if match and match[1]]
    return max(numbers, default=0) + 1


def last_marks(directories: BookieDirectories) -> list[LogMark] | None:
    """The mark that counts, of each journal; None when no ledger directory is named."""
    if not directories.ledgers:
        return None
    fs, count = OsFs(), mark_count(directories)
    return [read_last_marks(fs, directories.ledgers, journal, count) for journal in range(count)]


def records(path: Path, offset: int = 0) -> Iterator[JournalRecord]:
    """The records from `offset` (0: the first) on; memory is that of a few MiB.

    Raises:
        CorruptDataError: damage, after the records before it; an unknown version.
        OSError: the file cannot be read.
    """
    for scan in scan_file(OsFs(), path, offset):
        yield from scan.records
        if scan.end is not None and scan.end.stop is Stop.BAD_RECORD:
            raise CorruptDataError(f"{path} is damaged at byte {scan.end.position}: {scan.end.detail}")


def is_youngest(path: Path) -> bool:
    """Whether no journal file with a higher id lies beside it."""
    own = fmt.parse_file_name(path.name) if path.suffix == ".txn" else None
    return own is None or own >= max(journal_ids(OsFs(), path.parent))
