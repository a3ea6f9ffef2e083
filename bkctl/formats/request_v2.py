"""Version 2 of the bookie protocol (and its ancestors 0 and 1): fixed binary packets.

Every packet starts with an i32 header: version (bits 31..24), opcode (23..16), flags (15..0). In
version 0 the whole number is the opcode. All numbers are big endian. Offsets in a frame body:

    add            4 master key (20)   24 the entry, to the end
    read           4 ledger id i64     12 entry id i64, -1: the last one    20 master key if fencing
    batch read     4 ledger id i64     12 first entry id i64                20 request id i64
                   28 count max i32    32 bytes max i64                     40 master key if fencing
    auth           4 protobuf AuthMessage, both directions
    response       4 rc i32            8 ledger id i64                      16 entry id i64
                   read: 24 the entry    batch read: 24 request id i64, then per entry i32 size, entry

The structs below include the length field of the frame, as the hot paths of client and server want
it; encode() gives a whole frame, the decode functions take a frame body.
Source: spec wire section 3; upstream BookieProtocol, BookieProtoEncoding.
"""

from dataclasses import dataclass
from struct import Struct, error

from bkctl.errors import CorruptDataError
from bkctl.formats.frame import LENGTH, LENGTH_BYTES, pack_frame

# The numbers below are on the wire: do not change.
VERSION = 2
VERSIONS = (0, 1, 2)  # any other: decoded, and answered with EBADVERSION

ADD_ENTRY = 1
READ_ENTRY = 2
AUTH = 3
BATCH_READ_ENTRY = 7

FENCING = 0x0001  # a read fences the ledger; the master key follows
RECOVERY_ADD = 0x0002  # accept although fenced
HIGH_PRIORITY = 0x0004

MASTER_KEY_BYTES = 20

HEADER = Struct(">I")
ADD_PREFIX = Struct(">iI20s")  # frame length, header, master key; then the entry
READ_REQUEST = Struct(">iIqq")  # frame length, header, ledger id, entry id
BATCH_READ_REQUEST = Struct(">iIqqqiq")  # ... request id, count max, bytes max
RESPONSE = Struct(">iIiqq")  # frame length, header, rc, ledger id, entry id
BATCH_READ_RESPONSE = Struct(">iIiqqq")  # ... request id; then per entry ENTRY_SIZE, entry
ENTRY_SIZE = Struct(">i")
assert (ADD_PREFIX.size, READ_REQUEST.size, BATCH_READ_REQUEST.size) == (28, 24, 44)
assert (RESPONSE.size, BATCH_READ_RESPONSE.size) == (28, 36)

ENTRY_IDS_BYTES = 16  # an add needs ledger and entry id; without LAC and length it gets EBADREQ


def pack_header(version: int, opcode: int, flags: int = 0) -> int:
    """The header of a packet as a number."""
    return opcode if version == 0 else version << 24 | opcode << 16 | flags


def unpack_header(header: int) -> tuple[int, int, int]:
    """(version, opcode, flags) of a header."""
    version = header >> 24
    return (0, header, 0) if version == 0 else (version, header >> 16 & 0xFF, header & 0xFFFF)


READ_HEADER = pack_header(VERSION, READ_ENTRY)


@dataclass(frozen=True, slots=True)
class AddRequest:
    """`body` is the entry, at least 16 bytes; its ids decide where it is stored."""

    flags: int
    master_key: bytes  # 20 bytes
    body: bytes
    version: int = VERSION

    def encode(self) -> bytes:
        header = pack_header(self.version, ADD_ENTRY, self.flags)
        length = ADD_PREFIX.size - LENGTH_BYTES + len(self.body)
        return ADD_PREFIX.pack(length, header, self.master_key) + self.body


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """`master_key` is there exactly if FENCING is set, from version 2 on."""

    flags: int
    ledger_id: int
    entry_id: int
    master_key: bytes | None = None
    version: int = VERSION

    def encode(self) -> bytes:
        key = self.master_key or b""
        header = pack_header(self.version, READ_ENTRY, self.flags)
        length = READ_REQUEST.size - LENGTH_BYTES + len(key)
        return READ_REQUEST.pack(length, header, self.ledger_id, self.entry_id) + key


@dataclass(frozen=True, slots=True)
class BatchReadRequest:
    """Entries from `entry_id` on: at most `count_max` (no limit if <= 0) and `bytes_max` bytes."""

    flags: int
    ledger_id: int
    entry_id: int
    request_id: int
    count_max: int
    bytes_max: int
    master_key: bytes | None = None
    version: int = VERSION

    def encode(self) -> bytes:
        key = self.master_key or b""
        head = BATCH_READ_REQUEST.pack(
            BATCH_READ_REQUEST.size - LENGTH_BYTES + len(key),
            pack_header(self.version, BATCH_READ_ENTRY, self.flags),
            self.ledger_id,
            self.entry_id,
            self.request_id,
            self.count_max,
            self.bytes_max,
        )
        return head + key


@dataclass(frozen=True, slots=True)
class AuthPacket:
    """One step of authentication, the same form both ways; an answer is always a success step."""

    plugin_name: str
    payload: bytes
    version: int = VERSION

    def encode(self) -> bytes:
        from bkctl.formats.pb.wire_pb2 import AuthMessage

        message = AuthMessage(authPluginName=self.plugin_name, payload=self.payload)
        return pack_frame(HEADER.pack(pack_header(self.version, AUTH)) + message.SerializeToString())


@dataclass(frozen=True, slots=True)
class AddResponse:
    rc: int
    ledger_id: int
    entry_id: int
    version: int = VERSION

    def encode(self) -> bytes:
        header = pack_header(self.version, ADD_ENTRY)
        return RESPONSE.pack(RESPONSE.size - LENGTH_BYTES, header, self.rc, self.ledger_id, self.entry_id)


@dataclass(frozen=True, slots=True)
class ReadResponse:
    """`entry_id` is the one asked for, so -1 after "the last one"; `entry` is b"" unless rc is 0."""

    rc: int
    ledger_id: int
    entry_id: int
    entry: bytes = b""
    version: int = VERSION

    def encode(self) -> bytes:
        header = pack_header(self.version, READ_ENTRY)
        length = RESPONSE.size - LENGTH_BYTES + len(self.entry)
        return RESPONSE.pack(length, header, self.rc, self.ledger_id, self.entry_id) + self.entry


@dataclass(frozen=True, slots=True)
class BatchReadResponse:
    """`entries` follow each other from `entry_id` on; there are none unless rc is 0."""

    rc: int
    ledger_id: int
    entry_id: int
    request_id: int
    entries: tuple[bytes, ...] = ()
    version: int = VERSION

    def encode(self) -> bytes:
        size = ENTRY_SIZE.pack
        parts = [part for entry in self.entries for part in (size(len(entry)), entry)]
        head = BATCH_READ_RESPONSE.pack(
            BATCH_READ_RESPONSE.size - LENGTH_BYTES + sum(map(len, parts)),
            pack_header(self.version, BATCH_READ_ENTRY),
            self.rc,
            self.ledger_id,
            self.entry_id,
            self.request_id,
        )
        return b"".join([head, *parts])


Request = AddRequest | ReadRequest | BatchReadRequest | AuthPacket
Response = AddResponse | ReadResponse | BatchReadResponse | AuthPacket


def decode_request(body: bytes) -> Request:
    """The request in a frame body. Versions above 2 are decoded as 2: the caller checks `version`.

    Raises:
        CorruptDataError: unknown opcode, or too short; the connection is closed then.
    """
    try:
        version, opcode, flags = unpack_header(*HEADER.unpack_from(body))
        if opcode == ADD_ENTRY:
            entry = body[HEADER.size + MASTER_KEY_BYTES :]
            if len(entry) < ENTRY_IDS_BYTES:
                raise CorruptDataError(f"v2 add of {len(body)} bytes: no ledger and entry id")
            return AddRequest(flags, body[HEADER.size : HEADER.size + MASTER_KEY_BYTES], entry, version)
        if opcode == READ_ENTRY:
            ledger_id, entry_id = _READ_BODY.unpack_from(body)
            return ReadRequest(
                flags, ledger_id, entry_id, _fence_key(body, 20, version, flags), version=version
            )
        if opcode == BATCH_READ_ENTRY:
            ledger_id, entry_id, request_id, count_max, bytes_max = _BATCH_READ_BODY.unpack_from(body)
            key = _fence_key(body, 40, version, flags)
            return BatchReadRequest(
                flags, ledger_id, entry_id, request_id, count_max, bytes_max, key, version
            )
        if opcode == AUTH:
            return _decode_auth(body, version)
    except error as failure:
        raise CorruptDataError(f"v2 request of {len(body)} bytes: {failure}") from failure
    raise CorruptDataError(f"v2 request with unknown opcode {opcode}")


def decode_response(body: bytes) -> Response:
    """The response in a frame body.

    Raises:
        CorruptDataError: unknown opcode, too short, or entries that do not fill the frame.
    """
    try:
        version, opcode, _ = unpack_header(*HEADER.unpack_from(body))
        if opcode == AUTH:
            return _decode_auth(body, version)
        if opcode == ADD_ENTRY:
            rc, ledger_id, entry_id = _RESPONSE_BODY.unpack_from(body)
            return AddResponse(rc, ledger_id, entry_id, version)
        if opcode == READ_ENTRY:
            rc, ledger_id, entry_id = _RESPONSE_BODY.unpack_from(body)
            return ReadResponse(rc, ledger_id, entry_id, body[_RESPONSE_BODY.size :], version)
        if opcode == BATCH_READ_ENTRY:
            rc, ledger_id, entry_id, request_id = _BATCH_RESPONSE_BODY.unpack_from(body)
            entries = _split_entries(body, _BATCH_RESPONSE_BODY.size)
            return BatchReadResponse(rc, ledger_id, entry_id, request_id, entries, version)
    except error as failure:
        raise CorruptDataError(f"v2 response of {len(body)} bytes: {failure}") from failure
    raise CorruptDataError(f"v2 response with unknown opcode {opcode}")


_READ_BODY = Struct(">4xqq")
_BATCH_READ_BODY = Struct(">4xqqqiq")
_RESPONSE_BODY = Struct(">4xiqq")
_BATCH_RESPONSE_BODY = Struct(">4xiqqq")


def _fence_key(body: bytes, offset: int, version: int, flags: int) -> bytes | None:
    if not flags & FENCING or version < 2:
        return None
    key = body[offset : offset + MASTER_KEY_BYTES]
    if len(key) < MASTER_KEY_BYTES:
        raise CorruptDataError(f"v2 fencing request with {len(key)} of {MASTER_KEY_BYTES} master key bytes")
    return key


def _split_entries(body: bytes, offset: int) -> tuple[bytes, ...]:
    entries = []
    while offset < len(body):
        (size,) = LENGTH.unpack_from(body, offset)
        offset += LENGTH_BYTES
        if not 0 <= size <= len(body) - offset:
            raise CorruptDataError(f"batch read response: entry of {size} bytes at {offset} of {len(body)}")
        entries.append(body[offset : offset + size])
        offset += size
    return tuple(entries)


def _decode_auth(body: bytes, version: int) -> AuthPacket:
    from google.protobuf.message import DecodeError

    from bkctl.formats.pb.wire_pb2 import AuthMessage

    try:
        message = AuthMessage.FromString(body[HEADER.size :])
    except DecodeError as failure:
        raise CorruptDataError(f"v2 auth: {failure}") from failure
    # The runtime gives bytes for text that is no UTF-8.
    if not message.IsInitialized() or not isinstance(message.authPluginName, str):
        raise CorruptDataError("v2 auth: plugin name or payload is missing or malformed")
    return AuthPacket(message.authPluginName, message.payload, version)
