"""The `.idx` file of InterleavedLedgerStorage and SortedLedgerStorage: one per ledger, read only here.

    0       `BKLE`
    4       version i32: 0 or 1
    8       key length i32 | master key
    ...     state bits i32: bit 0 = fenced
    ...     version 1: explicit LAC length i32 (0 = none, else >= 16) | its bytes
    to 1024 zeros
    1024    location i64 of entry 0, of entry 1, ...; 0 = absent; `entry log id << 32 | offset`

Big-endian. The file ends after whole pages of slots, or is cut.

Source: spec storage section 12; upstream FileInfo, IndexPersistenceMgr, LedgerEntryPage.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bkctl.errors import CorruptDataError

MAGIC = b"BKLE"
HEADER_BYTES = 1024
SLOT_BYTES = 8

_EXPLICIT_LAC_BYTES_MIN = 16
_FENCED_BIT = 1
_I32 = struct.Struct(">i")
_SLOT = struct.Struct(">q")
assert _SLOT.size == SLOT_BYTES


@dataclass(frozen=True, slots=True)
class IndexFileHeader:
    """`explicit_lac`: the bytes as the client sent them, None when there is none."""

    version: int
    master_key: bytes
    fenced: bool
    explicit_lac: bytes | None


def index_file_path(ledger_id: int) -> str:
    """Path of a ledger's file below `current/`."""
    assert ledger_id >= 0, ledger_id
    return f"{(ledger_id & 0xFF00) >> 8:x}/{ledger_id & 0xFF:x}/{ledger_id:x}.idx"


def parse_index_file_header(data: bytes) -> IndexFileHeader:
    """The header in the first 1024 bytes of the file.

    Raises:
        CorruptDataError: another magic or version, a length that does not fit, or too few bytes.
    """
    if not data.startswith(MAGIC):
        raise CorruptDataError(f"not an index file: it begins with {data[:4]!r}, want {MAGIC!r}")
    fields = memoryview(data)[:HEADER_BYTES]
    version, at = _i32(fields, len(MAGIC))
    if version not in (0, 1):
        raise CorruptDataError(f"index file version {version} is not known: want 0 or 1")
    master_key, at = _value(fields, at)
    state_bits, at = _i32(fields, at)
    explicit_lac = _value(fields, at)[0] if version == 1 else b""
    if 0 < len(explicit_lac) < _EXPLICIT_LAC_BYTES_MIN:
        raise CorruptDataError(f"index file with an explicit LAC of {len(explicit_lac)} bytes")
    return IndexFileHeader(version, master_key, bool(state_bits & _FENCED_BIT), explicit_lac or None)


def slot_offset(entry_id: int) -> int:
    """File offset of the location of an entry."""
    assert entry_id >= 0, entry_id
    return HEADER_BYTES + SLOT_BYTES * entry_id


def parse_slots(data: bytes, first_entry_id: int) -> Iterator[tuple[int, int]]:
    """(entry id, location) of every entry present in a piece of the file.

    `data`: the bytes from the slot of `first_entry_id` on; a slot cut off at the end is ignored.
    """
    whole_bytes = len(data) - len(data) % SLOT_BYTES
    slots = _SLOT.iter_unpack(memoryview(data)[:whole_bytes])
    for entry_id, (location,) in enumerate(slots, first_entry_id):
        if location:
            yield entry_id, location


def _i32(fields: memoryview, at: int) -> tuple[int, int]:
    """An int and the offset behind it."""
    if at + _I32.size > len(fields):
        raise CorruptDataError(f"index file header ends in the middle of a number, at byte {len(fields)}")
    return int(_I32.unpack_from(fields, at)[0]), at + _I32.size


def _value(fields: memoryview, at: int) -> tuple[bytes, int]:
    """Length-prefixed bytes and the offset behind them."""
    length, at = _i32(fields, at)
    if not 0 <= length <= len(fields) - at:
        raise CorruptDataError(f"index file header with a value of {length} bytes at byte {at}")
    return bytes(fields[at : at + length]), at + length
