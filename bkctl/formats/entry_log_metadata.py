"""What is still alive in an entry log, as the optional `metadata-cache` database keeps it.

    key    i64 log id
    value  i16 0 | i64 log id | i64 total bytes | i64 remaining bytes | i64 n | n x (i64 ledger id, i64 bytes)

Source: spec storage section 8.2; upstream EntryLogMetadata, PersistentEntryLogMetadataMap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

from bkctl.errors import CorruptDataError

_KEY = Struct(">q")
_HEAD = Struct(">hqqqq")
_LEDGER = Struct(">qq")
_FORMAT = 0  # do not change


@dataclass(frozen=True, slots=True)
class EntryLogMetadata:
    """Sizes in bytes, size fields of the entries included; `ledger_bytes`: ledger id -> its part."""

    log_id: int
    total_bytes: int
    remaining_bytes: int
    ledger_bytes: Mapping[int, int]


def pack_key(log_id: int) -> bytes:
    return _KEY.pack(log_id)


def encode(metadata: EntryLogMetadata) -> bytes:
    ledgers = metadata.ledger_bytes
    head = _HEAD.pack(_FORMAT, metadata.log_id, metadata.total_bytes, metadata.remaining_bytes, len(ledgers))
    return head + b"".join(_LEDGER.pack(*item) for item in ledgers.items())


def decode(value: bytes) -> EntryLogMetadata:
    """Raises CorruptDataError: another format, or a length that does not fit the count."""
    if len(value) < _HEAD.size:
        raise CorruptDataError(f"entry log metadata of {len(value)} bytes")
    version, log_id, total_bytes, remaining_bytes, count = _HEAD.unpack_from(value)
    if version != _FORMAT or len(value) != _HEAD.size + count * _LEDGER.size:
        raise CorruptDataError(f"entry log metadata of format {version}, {count} ledgers, {len(value)} bytes")
    ledgers = dict(_LEDGER.iter_unpack(value[_HEAD.size :]))
    return EntryLogMetadata(log_id, total_bytes, remaining_bytes, ledgers)
