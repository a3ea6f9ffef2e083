"""The bytes of a ledger's metadata: format versions 1, 2 and 3.

All begin with `BookieMetadataFormatVersion`, TAB, the version in decimal, LF. Then

    1  lines: write quorum, ensemble size, length, one per segment (first entry id TAB bookie ...),
       and when not OPEN: last entry id (-102: IN_RECOVERY) TAB `CLOSED`, without LF
    2  LedgerMetadataFormat in text form
    3  one varint with its length, then LedgerMetadataFormat in binary form; the rest is ignored

A ledger keeps its format version for life; new ledgers get 3.

Source: spec metadata section 7; upstream LedgerMetadataSerDe, message LedgerMetadataFormat.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from bkctl.errors import CorruptDataError, MetadataSerializationError
from bkctl.formats import message, text_format
from bkctl.formats.bookie_id import is_bookie_id
from bkctl.formats.message import Field, Kind, Message, Schema
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    DigestType,
    EntryId,
    LedgerMetadata,
    MetadataState,
    Segment,
)

MAX_METADATA_BYTES = message.MAX_MESSAGE_BYTES

_HEADER = b"BookieMetadataFormatVersion\t"
_HEADER_LINE = re.compile(_HEADER + rb"([0-9]{1,9})\n")
_V1_IN_RECOVERY = -102  # in the place of the last entry id. Do not change
_V1_CLOSED = "CLOSED"
_V1_NUMBER = re.compile(r"-?[0-9]{1,19}")
_INT64_END = 1 << 63

_STATES = {state.name: int(state) for state in MetadataState}
_DIGEST_TYPES = {"CRC32": 1, "HMAC": 2, "CRC32C": 3, "DUMMY": 4}  # HMAC is what the API calls MAC

_SEGMENT = Schema(
    Field(1, "ensembleMember", Kind.STRING, repeated=True),
    Field(2, "firstEntryId", Kind.INT64, required=True),
)
_CUSTOM_ENTRY = Schema(Field(1, "key", Kind.STRING), Field(2, "value", Kind.BYTES))
LEDGER_METADATA = Schema(
    Field(1, "quorumSize", Kind.INT32, required=True),
    Field(2, "ensembleSize", Kind.INT32, required=True),
    Field(3, "length", Kind.INT64, required=True),
    Field(4, "lastEntryId", Kind.INT64),
    Field(5, "state", Kind.ENUM, required=True, names=_STATES),
    Field(6, "segment", Kind.MESSAGE, repeated=True, schema=_SEGMENT),
    Field(7, "digestType", Kind.ENUM, names=_DIGEST_TYPES),
    Field(8, "password", Kind.BYTES),
    Field(9, "ackQuorumSize", Kind.INT32),
    Field(10, "ctime", Kind.INT64),
    Field(11, "customMetadata", Kind.MESSAGE, repeated=True, schema=_CUSTOM_ENTRY),
    Field(12, "cToken", Kind.INT64),
)


def encode(metadata: LedgerMetadata) -> bytes:
    """The stored bytes, in the format version of `metadata`.

    Raises MetadataSerializationError for metadata that this format, or Java, could not hold.
    """
    try:
        _check(metadata)
    except CorruptDataError as exc:
        raise MetadataSerializationError(f"ledger metadata cannot be written: {exc}") from exc
    body = _FORMATS[metadata.format_version][0](metadata)
    return _HEADER + f"{metadata.format_version}\n".encode() + body


def decode(data: bytes) -> LedgerMetadata:
    """Read stored bytes of any format version. Raises CorruptDataError."""
    if len(data) > MAX_METADATA_BYTES:
        raise CorruptDataError(f"ledger metadata of {len(data)} bytes")
    header = _HEADER_LINE.match(data)
    if header is None:
        raise CorruptDataError("ledger metadata does not begin with its format version")
    format_version = int(header[1])
    if format_version not in _FORMATS:
        raise CorruptDataError(f"ledger metadata has format version {format_version}; 1 to 3 are known")
    metadata = _FORMATS[format_version][1](data[header.end() :])
    _check(metadata)
    return metadata


def _check(metadata: LedgerMetadata) -> None:
    """Raises CorruptDataError unless the sizes and segments fit together, as upstream's builder asks."""
    ack, write, ensemble = metadata.ack_quorum_size, metadata.write_quorum_size, metadata.ensemble_size
    if not 0 < ack <= write <= ensemble:
        raise CorruptDataError(f"quorum sizes do not fit: ensemble {ensemble}, write {write}, ack {ack}")
    if not metadata.segments:
        raise CorruptDataError("ledger metadata has no segment")
    previous = -1
    for segment in metadata.segments:
        if segment.first_entry_id <= previous:
            raise CorruptDataError(f"segment {segment.first_entry_id} follows segment {previous}")
        previous = segment.first_entry_id
        if len(segment.ensemble) != ensemble:
            raise CorruptDataError(
                f"segment {segment.first_entry_id} has {len(segment.ensemble)} bookies, not {ensemble}"
            )
        for bookie_id in segment.ensemble:
            if not is_bookie_id(bookie_id):
                raise CorruptDataError(f"{bookie_id[:80]!r} in an ensemble is not a bookie id")
    if metadata.closed and (metadata.length < 0 or metadata.last_entry_id < INVALID_ENTRY_ID):
        raise CorruptDataError(f"closed at entry {metadata.last_entry_id}, length {metadata.length}")


def _encode_v3(metadata: LedgerMetadata) -> bytes:
    body = message.encode(LEDGER_METADATA, _to_message(metadata) | {"cToken": metadata.creator_token})
    return message.varint(len(body)) + body


def _decode_v3(data: bytes) -> LedgerMetadata:
    length, start = message.read_varint(data, 0)
    if length > len(data) - start:
        raise CorruptDataError(f"ledger metadata is cut off: {len(data) - start} of {length} bytes")
    fields = message.decode(LEDGER_METADATA, data[start : start + length])
    return replace(_from_message(fields), creator_token=fields.get("cToken", 0))


def _encode_v2(metadata: LedgerMetadata) -> bytes:
    return text_format.write(LEDGER_METADATA, _to_message(metadata)).encode()


def _decode_v2(data: bytes) -> LedgerMetadata:
    return replace(_from_message(text_format.parse(LEDGER_METADATA, data)), format_version=2)


def _to_message(metadata: LedgerMetadata) -> Message:
    if metadata.password is None or metadata.digest_type is None:
        # Java reads such metadata, but then fails to recover or re-replicate the ledger.
        raise MetadataSerializationError("ledger metadata without digest type and password is not written")
    return {
        "quorumSize": metadata.write_quorum_size,
        "ensembleSize": metadata.ensemble_size,
        "length": metadata.length if metadata.closed else 0,
        "lastEntryId": metadata.last_entry_id if metadata.closed else INVALID_ENTRY_ID,
        "state": metadata.state,
        "segment": [
            {"ensembleMember": segment.ensemble, "firstEntryId": segment.first_entry_id}
            for segment in metadata.segments
        ],
        "digestType": metadata.digest_type,
        "password": metadata.password,
        "ackQuorumSize": metadata.ack_quorum_size,
        "ctime": metadata.ctime_ms,
        "customMetadata": [{"key": k, "value": v} for k, v in metadata.custom_metadata.items()],
    }


def _from_message(fields: Message) -> LedgerMetadata:
    password = fields.get("password")
    if password is not None and "digestType" not in fields:
        raise CorruptDataError("ledger metadata has a password, but no known digest type")
    state = MetadataState(fields["state"])
    closed = state is MetadataState.CLOSED
    return LedgerMetadata(
        ensemble_size=fields["ensembleSize"],
        write_quorum_size=fields["quorumSize"],
        ack_quorum_size=fields["ackQuorumSize"] if "ackQuorumSize" in fields else fields["quorumSize"],
        segments=tuple(
            Segment(EntryId(item["firstEntryId"]), tuple(map(BookieId, item["ensembleMember"])))
            for item in fields["segment"]
        ),
        state=state,
        length=fields["length"] if closed else 0,
        # Closed without a last entry id: 0, as upstream reads it.
        last_entry_id=EntryId(fields.get("lastEntryId", 0)) if closed else INVALID_ENTRY_ID,
        digest_type=None if password is None else DigestType(fields["digestType"]),
        password=password,
        ctime_ms=fields.get("ctime"),
        custom_metadata={item.get("key", ""): item.get("value", b"") for item in fields["customMetadata"]},
    )


def _encode_v1(metadata: LedgerMetadata) -> bytes:
    if metadata.ack_quorum_size != metadata.write_quorum_size or metadata.custom_metadata:
        raise MetadataSerializationError(
            "ledger metadata format 1 holds no ack quorum of its own and no custom metadata"
        )
    length = metadata.length if metadata.closed else 0
    lines = [str(metadata.write_quorum_size), str(metadata.ensemble_size), str(length)]
    lines += ["\t".join([str(segment.first_entry_id), *segment.ensemble]) for segment in metadata.segments]
    end = ""
    if metadata.state is not MetadataState.OPEN:
        last = metadata.last_entry_id if metadata.closed else _V1_IN_RECOVERY
        end = f"{last}\t{_V1_CLOSED}"
    return ("\n".join(lines) + "\n" + end).encode()


def _decode_v1(data: bytes) -> LedgerMetadata:
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        raise CorruptDataError("ledger metadata is not UTF-8") from None
    if len(lines) < 4:
        raise CorruptDataError(f"ledger metadata of {len(lines)} lines, at least 4 expected")
    write_quorum_size, ensemble_size, length = (_v1_number(line) for line in lines[:3])
    segments, state, last_entry_id = [], MetadataState.OPEN, int(INVALID_ENTRY_ID)
    for line in lines[3:]:
        if not line:
            break
        first, *words = line.split("\t")
        if words == [_V1_CLOSED]:
            last_entry_id, state = _v1_number(first), MetadataState.CLOSED
            if last_entry_id == _V1_IN_RECOVERY:
                state = MetadataState.IN_RECOVERY
            break
        segments.append(Segment(EntryId(_v1_number(first)), tuple(map(BookieId, words))))
    closed = state is MetadataState.CLOSED
    return LedgerMetadata(
        ensemble_size=ensemble_size,
        write_quorum_size=write_quorum_size,
        ack_quorum_size=write_quorum_size,
        segments=tuple(segments),
        state=state,
        length=length if closed else 0,
        last_entry_id=EntryId(last_entry_id) if closed else INVALID_ENTRY_ID,
        digest_type=None,
        password=None,
        format_version=1,
    )


def _v1_number(text: str) -> int:
    if not _V1_NUMBER.fullmatch(text) or not -_INT64_END <= int(text) < _INT64_END:
        raise CorruptDataError(f"{text[:40]!r} in ledger metadata is not a number")
    return int(text)


_FORMATS: dict[int, tuple[Callable[[LedgerMetadata], bytes], Callable[[bytes], LedgerMetadata]]] = {
    1: (_encode_v1, _decode_v1),
    2: (_encode_v2, _decode_v2),
    3: (_encode_v3, _decode_v3),
}
