"""The journal: what a bookie syncs before it answers. Files `<hex id>.txn`, big-endian throughout.

Header (numbers on disk: do not change):

    version 1      none, records from offset 0
    version 2-4    `BKLG` | version i32                         records from offset 8
    version 5-6    `BKLG` | version i32 | 504 zero bytes        records from offset 512

Record: `length i32 | ledgerId i64 | entryId i64 | rest`, length counting from the ledger id. No checksum.

    entry          entryId >= 0     rest of the client entry (so the body is the entry itself)
    ledger key     -0x1000          keyLength i32 | master key           from version 3
    fence          -0x2000          nothing                              from version 4
    explicit LAC   -0x8000          length i32 | bytes of the client     from version 6
    padding        -256 i32 instead of a length | padLength i32 | zeros  from version 5

From version 5 on every flush is padded to the journal's alignment, a multiple of 512. Behind the
data a file has zeros or ends: a length of 0 is the end of the data.

Source: spec storage section 4; upstream Journal, JournalChannel.
Differs: a record whose whole body is zero is dropped, not replayed. It is a length that reached the
disk without its body (never acknowledged), and would replace entry 0 of ledger 0. A record that a kill
tore in mid-write is the end of the data, too, where upstream takes zeros for the rest of it.
"""

import enum
import re
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

from bkctl.errors import CorruptDataError

MAGIC = b"BKLG"
VERSION_DEFAULT = 6
VERSIONS_WRITABLE = (4, 5, 6)
VERSION_EXPLICIT_LAC = 6
VERSION_PADDED = 5
HEADER_BYTES = 512
SECTOR_BYTES = 512  # alignments are multiples of it
PADDING_MASK = -256

# Far above any entry a bookie accepts (nettyMaxFrameSizeBytes, 5 MiB unless configured).
RECORD_BYTES_MAX = 128 * 1024 * 1024

_HEADER = struct.Struct(">4si")
_LENGTH = struct.Struct(">i")
_PADDING = struct.Struct(">ii")
_PREFIX = struct.Struct(">iqq")
_META = struct.Struct(">iqqi")  # length, ledger id, entry id, length of the value
_IDS = struct.Struct(">qq")
_LAC = struct.Struct(">q")
assert (_HEADER.size, _PADDING.size, _PREFIX.size, _META.size) == (8, 8, 20, 24)

_IDS_BYTES = _IDS.size
_ZEROS = bytes(64 * 1024)
_ZERO_LENGTH = bytes(_LENGTH.size)
_FILE_NAME = re.compile(r"([0-9a-f]{1,16})\.txn")


class RecordKind(enum.IntEnum):
    """The entry ids that mark a record as something else (ENTRY stands for all ids >= 0)."""

    ENTRY = 0
    LEDGER_KEY = -0x1000
    FENCE = -0x2000
    EXPLICIT_LAC = -0x8000
    UNKNOWN = -1  # any other negative id: a newer bookie's, skipped at replay


_META_KINDS = {
    kind.value: kind for kind in (RecordKind.LEDGER_KEY, RecordKind.FENCE, RecordKind.EXPLICIT_LAC)
}
_META_VERSION_MIN = {
    RecordKind.LEDGER_KEY: 3,
    RecordKind.FENCE: 4,
    RecordKind.EXPLICIT_LAC: VERSION_EXPLICIT_LAC,
}


class JournalRecord(NamedTuple):
    """One record; `body` begins with the two ids, `position` is the file offset of its length.

    `value`: the master key of LEDGER_KEY, the client's bytes of EXPLICIT_LAC, else empty.
    """

    kind: RecordKind
    ledger_id: int
    entry_id: int
    body: bytes
    position: int

    @property
    def value(self) -> bytes:
        if self.kind in (RecordKind.LEDGER_KEY, RecordKind.EXPLICIT_LAC):
            return self.body[_IDS_BYTES + _LENGTH.size :]
        return b""


class Stop(enum.Enum):
    """Why a scan stopped."""

    END_OF_FILE = "end of file"
    ZERO_LENGTH = "zero length"  # the usual end, in the zeros behind the data
    TORN = "torn record"  # a record or padding that the end of the file cuts off
    UNFINISHED = "unfinished record"  # one that nobody was told of, and that may lack its end
    BAD_RECORD = "bad record"  # bytes that no writer leaves behind


@dataclass(frozen=True, slots=True)
class ScanEnd:
    """Where a scan stopped and why.

    `position`: file offset of the first byte that is not part of a whole record. `scan_position`:
    what upstream calls the position of the scan, behind the last bytes it looked at; replay's mark.
    """

    stop: Stop
    position: int
    scan_position: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Scan:
    """Records of one piece of a file. `end` None: read on at `position`, `wanted_bytes` at least."""

    records: list[JournalRecord]
    position: int
    wanted_bytes: int
    end: ScanEnd | None


def file_name(journal_id: int) -> str:
    assert 0 <= journal_id < 1 << 63, journal_id
    return f"{journal_id:x}.txn"


def parse_file_name(name: str) -> int | None:
    """The id in a journal file's name; None for the name of another file.

    Raises:
        CorruptDataError: it ends in `.txn` but is no journal's name (upstream refuses the directory).
    """
    if not name.endswith(".txn"):
        return None
    match = _FILE_NAME.fullmatch(name)
    if match is None or (journal_id := int(match[1], 16)) >= 1 << 63:
        raise CorruptDataError(f"{name!r} is not a journal file name: want <hex id>.txn; move it away")
    return journal_id


def header(version: int) -> bytes:
    """The first bytes of a new file."""
    assert version in VERSIONS_WRITABLE, version
    return _HEADER.pack(MAGIC, version).ljust(data_start(version), b"\0")


def data_start(version: int) -> int:
    """File offset of the first record."""
    if version >= VERSION_PADDED:
        return HEADER_BYTES
    return _HEADER.size if version > 1 else 0


def parse_header(data: bytes) -> int:
    """The version of a file that begins with `data` (8 bytes are enough).

    Raises:
        CorruptDataError: a version this code does not know.
    """
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        return 1
    version = int(_HEADER.unpack_from(data)[1])
    if not 1 <= version <= VERSION_DEFAULT:
        raise CorruptDataError(f"journal version {version} is not known: want 1 to {VERSION_DEFAULT}")
    return version


def ledger_key_record(ledger_id: int, master_key: bytes) -> bytes:
    return _meta_record(ledger_id, RecordKind.LEDGER_KEY, master_key)


def explicit_lac_record(ledger_id: int, explicit_lac: bytes) -> bytes:
    """`explicit_lac`: the bytes as the client sent them. Only for files of version 6."""
    return _meta_record(ledger_id, RecordKind.EXPLICIT_LAC, explicit_lac)


def fence_record(ledger_id: int) -> bytes:
    return _PREFIX.pack(_IDS_BYTES, ledger_id, RecordKind.FENCE)


def _meta_record(ledger_id: int, kind: RecordKind, value: bytes) -> bytes:
    return _META.pack(_IDS_BYTES + _LENGTH.size + len(value), ledger_id, kind, len(value)) + value


def padding_record(position: int, alignment_bytes: int) -> bytes:
    """The padding of a flush that ends at `position`: brings the file to a multiple of the alignment.

    Less than 8 bytes cannot hold the record; it then ends one block later.
    """
    gap_bytes = -position % alignment_bytes
    if gap_bytes == 0:
        return b""
    if gap_bytes < _PADDING.size:
        gap_bytes += alignment_bytes
    return _PADDING.pack(PADDING_MASK, gap_bytes - _PADDING.size).ljust(gap_bytes, b"\0")


def scan_records(
    data: bytes,
    position: int,
    version: int,
    *,
    at_end_of_file: bool,
    record_bytes_max: int = RECORD_BYTES_MAX,
) -> Scan:
    """Take the records out of `data`, the bytes of a file of `version` from offset `position` on.

    `at_end_of_file`: nothing follows `data`. Damage is reported as the end of the scan, never raised.
    """
    records: list[JournalRecord] = []
    at, item_bytes = 0, 0
    end: ScanEnd | None = None
    while end is None:
        at += item_bytes
        item_bytes = _LENGTH.size
        if at + item_bytes > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, at)
        if _IDS_BYTES <= length <= record_bytes_max:
            item_bytes += length
            next_bytes = 0 if at_end_of_file else _LENGTH.size  # they tell whether this is the last one
            if at + item_bytes + next_bytes > len(data):
                item_bytes += next_bytes
                break
            record = _record(data[at + _LENGTH.size : at + item_bytes], position + at)
            if version >= VERSION_PADDED and _is_unfinished(data, at + item_bytes, position):
                end = _end(Stop.UNFINISHED, position + at, "a record of a flush that was not finished")
                end = replace(end, scan_position=end.scan_position + item_bytes)
            elif record.entry_id < 0 and (damage := _meta_damage(record, version)):
                end = _end(Stop.BAD_RECORD, position + at, damage)
            elif record.ledger_id or record.entry_id or any(record.body):
                records.append(record)
        elif length == PADDING_MASK and version >= VERSION_PADDED:
            item_bytes = _padding_bytes(data, at)
            if not _PADDING.size <= item_bytes <= record_bytes_max:
                end = _end(Stop.BAD_RECORD, position + at, f"padding of {item_bytes} bytes")
            elif at + item_bytes > len(data):
                break
        elif length == 0:
            end = _end(Stop.ZERO_LENGTH, position + at)
        elif at + _PREFIX.size > len(data):
            break  # no record is that short, so these bytes were cut off whatever they are
        else:
            end = _end(Stop.BAD_RECORD, position + at, f"a record of {length} bytes")
    if end is None and at_end_of_file:
        stop = Stop.TORN if at < len(data) else Stop.END_OF_FILE
        end = ScanEnd(stop, position + at, position + len(data), f"{len(data) - at} bytes of the next record")
    return Scan(records, position + at, item_bytes, end)


def _is_unfinished(data: bytes, at: int, position: int) -> bool:
    """Whether the record that ends at `at` may lack its end: it ends in zeros, and then so does the data.

    A flush ends at a multiple of 512, if need be with padding. So this record is of a flush that did
    not come to its end, and nobody was told that it is stored.
    """
    return (
        data[at : at + _LENGTH.size] == _ZERO_LENGTH
        and data[at - 1] == 0
        and (position + at) % SECTOR_BYTES != 0
    )


def _record(body: bytes, position: int) -> JournalRecord:
    ledger_id, entry_id = _IDS.unpack_from(body)
    kind = RecordKind.ENTRY if entry_id >= 0 else _META_KINDS.get(entry_id, RecordKind.UNKNOWN)
    return JournalRecord(kind, ledger_id, entry_id, body, position)


def _meta_damage(record: JournalRecord, version: int) -> str:
    """What is wrong with a record that is no entry; "" when nothing is."""
    kind = record.kind
    if version < _META_VERSION_MIN.get(kind, 1):
        return f"a {kind.name} record in a file of version {version}"
    if kind in (RecordKind.LEDGER_KEY, RecordKind.EXPLICIT_LAC):
        value_bytes = len(record.body) - _IDS_BYTES - _LENGTH.size
        if value_bytes < 0 or _LENGTH.unpack_from(record.body, _IDS_BYTES)[0] != value_bytes:
            return f"a {kind.name} record whose inner length is wrong"
    return ""


def _padding_bytes(data: bytes, at: int) -> int:
    """Size of the padding record at `at`, its 8 bytes included."""
    if at + _PADDING.size > len(data):
        return _PADDING.size
    return _PADDING.size + int(_PADDING.unpack_from(data, at)[1])


def _end(stop: Stop, position: int, detail: str = "") -> ScanEnd:
    return ScanEnd(stop, position, position + _LENGTH.size, detail)


def find_groups(data: bytes, version: int) -> int | None:
    """Where in `data`, which begins at a multiple of 512 in a file, lies a whole group before another?

    Used behind the end of a scan. A crash tears only the last group, so two of them there mean that
    the bytes at the end of the scan were damaged later. One alone may be a part of the torn group
    itself, since sectors reach a disk in any order. None as well for versions without padding.
    """
    if version < VERSION_PADDED:
        return None
    for start in range(0, len(data), len(_ZEROS)):
        block = data[start : start + len(_ZEROS)]
        if block == _ZEROS[: len(block)]:
            continue  # nearly all there is: space that was reserved
        for at in range(start, start + len(block), SECTOR_BYTES):
            if data[at : at + _LENGTH.size] != _ZERO_LENGTH and _begins_two_groups(data, at):
                return at
    return None


def _begins_two_groups(data: bytes, at: int) -> bool:
    """Records, padding up to a sector's end, and a record: each plausible."""
    record_count, padded = 0, False
    while at + _PREFIX.size + _LAC.size <= len(data):
        length, ledger_id, entry_id = _PREFIX.unpack_from(data, at)
        if length == PADDING_MASK and record_count:
            padding_bytes = _padding_bytes(data, at)
            at += padding_bytes
            if padding_bytes < _PADDING.size or at % SECTOR_BYTES:
                return False
            record_count, padded = 0, True
            continue
        if not _IDS_BYTES <= length <= RECORD_BYTES_MAX or ledger_id < 0:
            return False
        if entry_id >= 0:
            lac = int(_LAC.unpack_from(data, at + _PREFIX.size)[0])
            plausible = length >= _IDS_BYTES + _LAC.size and -1 <= lac <= int(entry_id)
        else:
            plausible = entry_id in _META_KINDS
        if not plausible or padded:
            return plausible
        record_count += 1
        at += _LENGTH.size + length
    return False
