"""The small files of a ledger directory: lastMark, lastId, BOOKIE_STATUS.

    lastMark, lastMark.<i>   `journalId i64 | offset i64`, big-endian; .<i> is the journal's index and
                             used only when there is more than one journal
    lastId                   `%x` and a newline: the entry log id that was allocated last
    BOOKIE_STATUS            `1,<READ_ONLY|READ_WRITE>,<ms since epoch>,<true|false>` and a newline;
                             the last field says that an operator chose the mode, and may be missing

Source: spec storage section 3; upstream Journal.LastLogMark, EntryLoggerAllocator, BookieStatus.
"""

import enum
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

from bkctl.errors import CorruptDataError

LAST_ID_NAME = "lastId"
BOOKIE_STATUS_NAME = "BOOKIE_STATUS"
SMALL_FILE_BYTES_MAX = 4096  # more than any of them ever holds

_MARK = struct.Struct(">qq")
assert _MARK.size == 16

_LAST_ID = re.compile(rb"([0-9a-fA-F]{1,8})\s*")
_STATUS = re.compile(r"1,(READ_ONLY|READ_WRITE),(\d{1,19})(?:,(true|false))?\s*")


class LogMark(NamedTuple):
    """A position in a journal: every record before it is done with. Ordered by id, then offset."""

    journal_id: int
    offset: int


ZERO_MARK = LogMark(0, 0)


def last_mark_name(journal_index: int, journal_count: int) -> str:
    assert 0 <= journal_index < journal_count, (journal_index, journal_count)
    return "lastMark" if journal_count == 1 else f"lastMark.{journal_index}"


def encode_last_mark(mark: LogMark) -> bytes:
    return _MARK.pack(*mark)


def decode_last_mark(data: bytes) -> LogMark:
    """The mark in the first 16 bytes.

    Raises:
        CorruptDataError: fewer bytes, or a negative number.
    """
    if len(data) < _MARK.size:
        raise CorruptDataError(f"lastMark has {len(data)} bytes: want {_MARK.size}")
    mark = LogMark(*_MARK.unpack_from(data))
    if min(mark) < 0:
        raise CorruptDataError(f"lastMark names a negative position: {mark}")
    return mark


def encode_last_id(log_id: int) -> bytes:
    assert 0 <= log_id < 1 << 31, log_id
    return b"%x\n" % log_id


def decode_last_id(data: bytes) -> int:
    """The id of the entry log that was allocated last.

    Raises:
        CorruptDataError: not a hexadecimal number of 31 bits.
    """
    match = _LAST_ID.fullmatch(data)
    if match is None or (log_id := int(match[1], 16)) >= 1 << 31:
        raise CorruptDataError(f"lastId holds no entry log id: {data[:32]!r}")
    return log_id


class BookieMode(enum.Enum):
    READ_WRITE = "READ_WRITE"
    READ_ONLY = "READ_ONLY"


@dataclass(frozen=True, slots=True)
class BookieStatus:
    """The mode a bookie keeps over a restart; the newest `since_ms` (wall time) of all directories wins.

    `manual`: an operator chose the mode; the bookie does not leave READ_ONLY by itself then.
    """

    mode: BookieMode
    since_ms: int
    manual: bool


def encode_bookie_status(status: BookieStatus) -> bytes:
    manual = "true" if status.manual else "false"
    return f"1,{status.mode.value},{status.since_ms},{manual}\n".encode()


def decode_bookie_status(data: bytes) -> BookieStatus:
    """A line of three fields means a manual choice.

    Raises:
        CorruptDataError: another layout, or not such a line.
    """
    match = _STATUS.fullmatch(data.decode("ascii", "replace"))
    if match is None:
        raise CorruptDataError(f"BOOKIE_STATUS holds no status: {data[:64]!r}")
    mode, since_ms, manual = match.groups()
    return BookieStatus(BookieMode(mode), int(since_ms), manual != "false")
