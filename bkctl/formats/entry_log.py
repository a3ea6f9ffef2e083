"""Entry logs: header, entries, ledgers map, scanning, names and ids.

    header[1024] | entry* | ledgers map (sealed logs only)

    header       `BKLO` | version i32 | ledgers map offset i64 | ledgers count i32 | zeros
    entry        size i32 | ledger id i64 | entry id i64 | ...         size counts what follows it
    ledgers map  batches of <= 10,000 ledgers, each shaped as an entry of ledger -1, entry -2:
                 size i32 | -1 i64 | -2 i64 | n i32 | n * (ledger id i64, bytes i64)

Integers are big-endian. A location is `log id << 32 | position`, and the position is that of the
ledger id: four bytes behind the size. Logs of upstream's direct-I/O writer parse alike: their header
is followed by a filler entry of ledger -1, and 0xF0 bytes pad to the next multiple of 4096.

Source: spec storage section 5; upstream DefaultEntryLogger, EntryLogMetadata.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct

from bkctl.errors import CorruptDataError

HEADER_BYTES = 1024
FIRST_POSITION = HEADER_BYTES
LOG_ID_MAX = 2**31 - 1
SIZE_BYTES = 4  # the size field in front of an entry
ENTRY_BYTES_MIN = 16  # the two ids

# The numbers below are on disks: do not change them.
_MAGIC = b"BKLO"
_VERSION = 1
_MAP_VERSION_MIN = 1  # version 0 knows no ledgers map
_MAP_LEDGER_ID = -1
_MAP_ENTRY_ID = -2
_MAP_BATCH_LEDGERS = 10_000
_PADDING_BYTE = 0xF0
_PADDING_ALIGNMENT = 4096

_HEADER = Struct(">4siqi")
_SEALED_AT = 8  # where offset and count of the ledgers map stand in the header
_SEAL = Struct(">qi")
_ENTRY_HEAD = Struct(">iqq")
_MAP_HEAD = Struct(">iqqi")
_MAP_PAIR = Struct(">qq")
assert _HEADER.size == 20
assert _ENTRY_HEAD.size == SIZE_BYTES + ENTRY_BYTES_MIN
assert _MAP_HEAD.size == 24

_NAME = re.compile(r"([0-9a-f]{1,8})\.log")
_COMPACTED_NAME = re.compile(r"([0-9a-f]{1,8})\.log\.[0-9a-f]{1,8}\.compacted")
_NOT_ZERO = re.compile(rb"[^\0]")
_SCAN_WINDOW_BYTES = 1 << 20

Read = Callable[[int, int], bytes]
"""`read(position, size_bytes)`: the bytes there, fewer only at the end of the file."""


@dataclass(frozen=True, slots=True)
class Header:
    """A log's header; `ledgers_map_offset` is 0 until the log is sealed."""

    version: int = _VERSION
    ledgers_map_offset: int = 0
    ledgers_count: int = 0


@dataclass(frozen=True, slots=True)
class ScannedEntry:
    """`position` is that of the entry bytes, as in a location."""

    ledger_id: int
    entry_id: int
    position: int
    entry: bytes


def pack_header() -> bytes:
    """The 1024 bytes at the start of a new log."""
    return _HEADER.pack(_MAGIC, _VERSION, 0, 0).ljust(HEADER_BYTES, b"\0")


def pack_seal(ledgers_map_offset: int, ledgers_count: int) -> tuple[bytes, int]:
    """What to write into the header of a log whose ledgers map is written: (bytes, position)."""
    return _SEAL.pack(ledgers_map_offset, ledgers_count), _SEALED_AT


def unpack_header(data: bytes) -> Header:
    """Raises CorruptDataError: too short, another magic, or a version from the future."""
    if len(data) < _HEADER.size:
        raise CorruptDataError(f"entry log header: {len(data)} bytes, need {_HEADER.size}")
    magic, version, offset, count = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise CorruptDataError(f"entry log header: magic {magic!r} is not {_MAGIC!r}")
    if not 0 <= version <= _VERSION:
        raise CorruptDataError(f"entry log header: version {version} is unknown")
    return Header(version, offset, count)


def pack_location(log_id: int, position: int) -> int:
    return log_id << 32 | position


def unpack_location(location: int) -> tuple[int, int]:
    """(log id, position of the entry bytes); raises CorruptDataError for one that points at nothing."""
    log_id, position = location >> 32, location & 0xFFFF_FFFF
    if not (0 <= log_id <= LOG_ID_MAX and HEADER_BYTES + SIZE_BYTES <= position <= LOG_ID_MAX):
        raise CorruptDataError(f"entry location {location:#x} points at no place in an entry log")
    return log_id, position


def file_name(log_id: int) -> str:
    return f"{log_id:x}.log"


def parse_file_name(name: str) -> int | None:
    """The log id, or None when the file is no entry log."""
    match = _NAME.fullmatch(name)
    return int(match[1], 16) if match else None


def compacting_name(log_id: int) -> str:
    """The log that a transactional compaction is writing."""
    return f"{log_id:x}.log.compacting"


def compacted_name(log_id: int, source_id: int) -> str:
    """The finished log `log_id` that shall take the place of log `source_id`; both in hex (trap T3)."""
    return f"{log_id:x}.log.{source_id:x}.compacted"


def compacted_log_ids(names: Iterable[str]) -> list[int]:
    """The ids of logs whose transactional compaction has written `<hex id>.log.<hex source>.compacted`."""
    return [int(match[1], 16) for match in map(_COMPACTED_NAME.fullmatch, names) if match]


def next_log_id(log_ids: Iterable[int], compacted_ids: Iterable[int], last_id: int | None) -> int:
    """The id after the ones in use; `last_id` is what the file `lastId` says (spec storage 5.5).

    The caller still skips ids whose file exists.
    """
    taken = list(log_ids)
    recorded = last_id if last_id is not None and last_id > 0 else max(taken, default=-1)
    gap_start, _ = largest_gap([*taken, *compacted_ids])
    return following_log_id(max(recorded, gap_start - 1))


def following_log_id(log_id: int) -> int:
    return log_id + 1 if log_id < LOG_ID_MAX else 0


def largest_gap(ids: Iterable[int]) -> tuple[int, int]:
    """(start, end) of the first widest range of unused ids, end exclusive."""
    start, end = 0, 0
    low = 0
    for log_id in [*sorted(set(ids)), LOG_ID_MAX]:
        if log_id - low > end - start:
            start, end = low, log_id
        low = log_id + 1
    return start, end


def pack_ledgers_map(ledger_bytes: Mapping[int, int]) -> bytes:
    """The trailer of a sealed log: for each ledger the bytes of its entries, size fields included."""
    pairs = list(ledger_bytes.items())
    parts = []
    for first in range(0, len(pairs), _MAP_BATCH_LEDGERS):
        batch = pairs[first : first + _MAP_BATCH_LEDGERS]
        size = _MAP_HEAD.size - SIZE_BYTES + _MAP_PAIR.size * len(batch)
        parts.append(_MAP_HEAD.pack(size, _MAP_LEDGER_ID, _MAP_ENTRY_ID, len(batch)))
        parts.extend(_MAP_PAIR.pack(*pair) for pair in batch)
    return b"".join(parts)


def unpack_ledgers_map(data: bytes, header: Header) -> dict[int, int]:
    """The map that stands at `header.ledgers_map_offset`; `data` runs from there to the end of the file.

    Raises:
        CorruptDataError: the log is not sealed, or the map breaks its format; a scan tells the same.
    """
    if header.version < _MAP_VERSION_MIN or header.ledgers_map_offset == 0:
        raise CorruptDataError("entry log has no ledgers map")
    sizes: dict[int, int] = {}
    at = 0
    while len(data) - at >= SIZE_BYTES:
        if int.from_bytes(data[at : at + SIZE_BYTES], "big", signed=True) <= 0:
            break
        if len(data) - at < _MAP_HEAD.size:
            raise CorruptDataError("ledgers map: cut short")
        size, ledger_id, entry_id, count = _MAP_HEAD.unpack_from(data, at)
        end = at + SIZE_BYTES + size
        if (ledger_id, entry_id) != (_MAP_LEDGER_ID, _MAP_ENTRY_ID) or end > len(data):
            raise CorruptDataError("ledgers map: a batch is not one")
        if count < 0 or size != _MAP_HEAD.size - SIZE_BYTES + _MAP_PAIR.size * count:
            raise CorruptDataError(f"ledgers map: {count} ledgers do not make {size} bytes")
        sizes.update(_MAP_PAIR.iter_unpack(data[at + _MAP_HEAD.size : end]))
        at = end
    if not sizes or len(sizes) != header.ledgers_count:
        raise CorruptDataError(f"ledgers map: {len(sizes)} ledgers, the header says {header.ledgers_count}")
    return sizes


def unpack_entry_size(window: bytes, at: int, ledger_id: int, entry_id: int) -> int:
    """Bytes of the entry whose size field stands at `at`; it must be the one asked for.

    Raises:
        CorruptDataError: the file ends there, the size is impossible, or another entry stands there.
    """
    if len(window) - at < _ENTRY_HEAD.size:
        raise CorruptDataError(f"entry {entry_id} of ledger {ledger_id}: the entry log ends before it")
    size, found_ledger_id, found_entry_id = _ENTRY_HEAD.unpack_from(window, at)
    if size < ENTRY_BYTES_MIN:
        raise CorruptDataError(f"entry {entry_id} of ledger {ledger_id}: size field {size}")
    if found_ledger_id != ledger_id or found_entry_id != entry_id:
        raise CorruptDataError(
            f"entry {entry_id} of ledger {ledger_id}: its place holds "
            f"entry {found_entry_id} of ledger {found_ledger_id}"
        )
    return int(size)


def scan(read: Read, file_bytes: int, *, entry_bytes_max: int = LOG_ID_MAX) -> Iterator[ScannedEntry]:
    """Every entry of a log in file order; padding is passed over. A torn last entry ends the scan of a
    log that was not sealed.

    Memory is bounded by `entry_bytes_max`. An empty file is a log without entries.

    Raises:
        CorruptDataError: at a size that no writer produces, or in a sealed log one that its end cuts
            off; the entries before it were yielded.
    """
    if file_bytes == 0:
        return
    sealed = unpack_header(read(0, HEADER_BYTES)).ledgers_map_offset > 0
    position, start, window = FIRST_POSITION, FIRST_POSITION, b""
    while file_bytes - position >= _ENTRY_HEAD.size:
        at = position - start
        if len(window) - at < _ENTRY_HEAD.size:
            start, window, at = position, read(position, _SCAN_WINDOW_BYTES), 0
            if len(window) < _ENTRY_HEAD.size:
                return
        size, ledger_id, entry_id = _ENTRY_HEAD.unpack_from(window, at)
        if size < ENTRY_BYTES_MIN:
            position = start + _after_padding(window, at, start)
            continue
        if position + SIZE_BYTES + size > file_bytes:
            if sealed:
                raise CorruptDataError(f"entry log position {position}: {size} bytes reach past its end")
            return
        if size > entry_bytes_max:
            raise CorruptDataError(f"entry log position {position}: an entry of {size} bytes")
        end = at + SIZE_BYTES + size
        if ledger_id >= 0:
            if end > len(window):
                start, window = position, read(position, max(SIZE_BYTES + size, _SCAN_WINDOW_BYTES))
                at, end = 0, SIZE_BYTES + size
                if end > len(window):
                    return
            yield ScannedEntry(ledger_id, entry_id, position + SIZE_BYTES, window[at + SIZE_BYTES : end])
        position += SIZE_BYTES + size


def _after_padding(window: bytes, at: int, start: int) -> int:
    """Index in `window` to go on at, when the size field at `at` belongs to no entry."""
    if window[at] == _PADDING_BYTE:
        position = start + at
        return at + _PADDING_ALIGNMENT - position % _PADDING_ALIGNMENT
    if window[at]:
        raise CorruptDataError(
            f"entry log position {start + at}: no entry begins with {window[at : at + 4].hex()}"
        )
    # Zeros: space that was reserved, or lost with the power. A size field may begin with zeros too,
    # so the next one can start up to three bytes before the first other byte.
    found = _NOT_ZERO.search(window, at)
    return max(at + 1, (found.start() if found else len(window)) - SIZE_BYTES + 1)
