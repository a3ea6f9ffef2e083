"""Keys and values of a bookie's two RocksDB indexes, `ledgers` and `locations`.

    locations   ledger id i64, entry id i64  ->  location i64 (see formats.entry_log)
    ledgers     ledger id i64                ->  LedgerData (protobuf)
                -0xDEAD i64, ledger id i64   ->  LedgerData of a tombstone

Big-endian, so that the order of the bytes is the order of (ledger, entry). The same 16 bytes begin
every stored entry: they need not be packed again. Negative ledger ids are reserved in `ledgers`: one
key holds the flags of the storage. Tombstones remember ledgers that were fenced when they were deleted;
only bkctl writes them. Upstream passes over negative ids since 4.15, and before it takes all tombstones
for one ledger of a negative id that nobody asks for.

Source: spec storage section 6; upstream LedgerMetadataIndex, EntryLocationIndex.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

from google.protobuf.message import DecodeError

from bkctl.errors import CorruptDataError
from bkctl.formats.pb import storage_pb2

ENTRY_KEY_BYTES = 16
LEDGER_KEY_BYTES = 8
ID_MAX = 2**63 - 1

# The numbers below are on disks: do not change them.
STORAGE_FLAGS_KEY = (-0xEEFD).to_bytes(8, "big", signed=True)
FLAG_NEEDS_INTEGRITY_CHECK = 1
_TOMBSTONES_ID = -0xDEAD

_ENTRY_KEY = Struct(">qq")
_I64 = Struct(">q")
assert _ENTRY_KEY.size == ENTRY_KEY_BYTES

entry_key = _ENTRY_KEY.pack
"""(ledger id, entry id) -> the key of an entry in `locations`, and its first 16 bytes anywhere."""

ledger_key = _I64.pack
"""ledger id -> its key in `ledgers`."""


@dataclass(frozen=True, slots=True)
class LedgerData:
    """What a bookie remembers of a ledger besides its entries.

    `master_key` may be empty: unknown, the first one offered is taken. `explicit_lac` is the client's
    packet (ledger id, last add confirmed, digest). `limbo`: entries or a fence may have been lost.
    """

    fenced: bool
    master_key: bytes
    explicit_lac: bytes | None = None
    limbo: bool | None = None


def pack_ledger_data(data: LedgerData) -> bytes:
    message = storage_pb2.LedgerData(exists=True, fenced=data.fenced, masterKey=data.master_key)
    if data.explicit_lac is not None:
        message.explicitLac = data.explicit_lac
    if data.limbo is not None:
        message.limbo = data.limbo
    return message.SerializeToString(deterministic=True)


def unpack_ledger_data(value: bytes) -> LedgerData:
    """Raises CorruptDataError: not a LedgerData message, or a required field is missing."""
    try:
        message = storage_pb2.LedgerData.FromString(value)
    except DecodeError as exc:
        raise CorruptDataError(f"ledgers index: a value is no LedgerData: {exc}") from exc
    if not message.IsInitialized():
        raise CorruptDataError("ledgers index: a LedgerData lacks a required field")
    return LedgerData(
        message.fenced,
        message.masterKey,
        message.explicitLac if message.HasField("explicitLac") else None,
        message.limbo if message.HasField("limbo") else None,
    )


def rebuilt_ledger_key(ledger_id: int) -> bytes:
    """The 16-byte key that upstream's index rebuild writes; it overrides the 8-byte one (trap T2)."""
    return _ENTRY_KEY.pack(ledger_id, 0)


def unpack_ledger_key(key: bytes) -> int:
    """The ledger id; raises CorruptDataError unless the key has 8 or 16 bytes."""
    if len(key) not in (LEDGER_KEY_BYTES, ENTRY_KEY_BYTES):
        raise CorruptDataError(f"ledgers index: a key of {len(key)} bytes")
    return int(_I64.unpack_from(key)[0])


def tombstone_key(ledger_id: int) -> bytes:
    return _ENTRY_KEY.pack(_TOMBSTONES_ID, ledger_id)


def tombstone_key_range() -> tuple[bytes, bytes]:
    """(first, end exclusive) of the keys of all tombstones."""
    return _ENTRY_KEY.pack(_TOMBSTONES_ID, 0), _ENTRY_KEY.pack(_TOMBSTONES_ID + 1, 0)


TOMBSTONE = pack_ledger_data(LedgerData(fenced=True, master_key=b""))
"""What stands under the key of a tombstone."""


def unpack_storage_flags(value: bytes) -> int:
    """Raises CorruptDataError: not 8 bytes, or a bit that nobody defined."""
    if len(value) != _I64.size:
        raise CorruptDataError(f"ledgers index: storage flags of {len(value)} bytes")
    flags = int(_I64.unpack(value)[0])
    if flags & ~FLAG_NEEDS_INTEGRITY_CHECK:
        raise CorruptDataError(f"ledgers index: storage flags {flags:#x} are unknown")
    return flags


def pack_storage_flags(flags: int) -> bytes:
    return _I64.pack(flags)


pack_location_value = _I64.pack
"""location -> the value of an entry in `locations`."""


def entry_key_range(ledger_id: int) -> tuple[bytes, bytes]:
    """(first, end exclusive) of the keys of a ledger's entries."""
    return _ENTRY_KEY.pack(ledger_id, 0), _ENTRY_KEY.pack(ledger_id, ID_MAX)


def entry_ids_of_keys(keys: Iterable[bytes]) -> list[int]:
    """The entry ids of 16-byte keys, in their order."""
    return [entry_id for _, entry_id in _ENTRY_KEY.iter_unpack(b"".join(keys))]


def unpack_location_value(value: bytes) -> int:
    """Raises CorruptDataError: not 8 bytes."""
    if len(value) != _I64.size:
        raise CorruptDataError(f"locations index: a value of {len(value)} bytes")
    return int(_I64.unpack(value)[0])
