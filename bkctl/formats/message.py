"""Protobuf messages of the metadata store: their field tables, and their binary form.

A `Schema` lists the fields of one message. It drives both forms that znodes and cookies use:
binary here, text in `text_format`. A message is a plain dict from field name to value:

    INT32, INT64, ENUM -> int    STRING -> str    BYTES -> bytes    MESSAGE -> dict
    repeated -> list (always there, maybe empty); any other absent field -> no key

Tables instead of generated classes: importing protobuf costs 27 ms of CPU, more than all else that
`bkctl bookie list` does, and the text form needs tables anyway, with Java's rules.

Source: protobuf encoding specification; spec metadata sections 2, 7, 9, 11.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import Any

from bkctl.errors import CorruptDataError

Message = dict[str, Any]

MAX_MESSAGE_BYTES = 16 << 20  # ZooKeeper itself stops at 1 MiB unless told otherwise

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types: do not change
_UINT64_MASK = (1 << 64) - 1


class Kind(enum.Enum):
    INT32 = "int32"
    INT64 = "int64"
    ENUM = "enum"
    STRING = "string"
    BYTES = "bytes"
    MESSAGE = "message"


class Field:
    """One line of a message definition. `names`: of an ENUM. `schema`: of a MESSAGE."""

    __slots__ = ("is_varint", "kind", "name", "names", "number", "repeated", "required", "schema", "tag")

    def __init__(
        self,
        number: int,
        name: str,
        kind: Kind,
        *,
        required: bool = False,
        repeated: bool = False,
        names: Mapping[str, int] | None = None,
        schema: "Schema | None" = None,
    ) -> None:
        assert (kind is Kind.ENUM) == (names is not None), name
        assert (kind is Kind.MESSAGE) == (schema is not None), name
        self.number, self.name, self.kind = number, name, kind
        self.required, self.repeated = required, repeated
        self.names = names or {}
        self.schema = schema
        self.is_varint = kind in (Kind.INT32, Kind.INT64, Kind.ENUM)
        self.tag = varint(number << 3 | (_VARINT if self.is_varint else _LENGTH_DELIMITED))


class Schema:
    """The fields of one message, in ascending field number (the order of writing)."""

    __slots__ = ("_repeated", "_required", "by_name", "by_number", "fields")

    def __init__(self, *fields: Field) -> None:
        assert [f.number for f in fields] == sorted({f.number for f in fields})
        self.fields = fields
        self.by_name = {field.name: field for field in fields}
        self.by_number = {field.number: field for field in fields}
        self._repeated = [field.name for field in fields if field.repeated]
        self._required = [field.name for field in fields if field.required]

    def empty(self) -> Message:
        return {name: [] for name in self._repeated}

    def check_required(self, message: Message) -> Message:
        """`message` itself. Raises CorruptDataError when a required field is absent."""
        for name in self._required:
            if name not in message:
                raise CorruptDataError(f"required field {name} is missing")
        return message


def put(message: Message, field: Field, value: Any) -> None:
    """Store a value that was read: append when repeated, else the last one wins."""
    if field.repeated:
        message[field.name].append(value)
    else:
        message[field.name] = value


def present(schema: Schema, message: Message) -> Iterator[tuple[Field, Any]]:
    """(field, value) for every value to write, in writing order, repeated fields one by one."""
    for field in schema.fields:
        value = message.get(field.name)
        if value is None:
            continue
        if field.repeated:
            for item in value:
                yield field, item
        else:
            yield field, value


def varint(number: int) -> bytes:
    """`number` (64 bits; negative as two's complement) in 1 to 10 bytes."""
    number &= _UINT64_MASK
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """(unsigned value, offset behind it). Raises CorruptDataError: cut off, or over 64 bits."""
    result = 0
    for shift in range(0, 70, 7):
        if offset >= len(data):
            raise CorruptDataError("varint is cut off")
        byte = data[offset]
        offset += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _UINT64_MASK, offset
    raise CorruptDataError("varint is longer than 10 bytes")


def encode(schema: Schema, message: Message) -> bytes:
    """The binary form. `message` must hold every required field."""
    schema.check_required(message)
    out = bytearray()
    for field, value in present(schema, message):
        out += field.tag
        if field.is_varint:
            out += varint(value)
            continue
        if field.schema is not None:
            value = encode(field.schema, value)
        elif field.kind is Kind.STRING:
            value = value.encode()
        out += varint(len(value))
        out += value
    return bytes(out)


def decode(schema: Schema, data: bytes) -> Message:
    """Read the binary form; unknown fields and enum numbers are skipped. Raises CorruptDataError."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise CorruptDataError(f"message of {len(data)} bytes, at most {MAX_MESSAGE_BYTES} are read")
    message = schema.empty()
    offset = 0
    while offset < len(data):
        tag = data[offset]
        if tag < 0x80:  # by far the most; a call less
            offset += 1
        else:
            tag, offset = read_varint(data, offset)
        wire_type = tag & 7
        field = schema.by_number.get(tag >> 3)
        if tag >> 3 == 0:
            raise CorruptDataError("field number 0")
        if wire_type == _VARINT:
            number, offset = read_varint(data, offset)
            if field is not None and field.is_varint:
                _put_number(message, field, number)
        elif wire_type == _LENGTH_DELIMITED:
            length, offset = read_varint(data, offset)
            chunk = data[offset : offset + length]
            offset += length
            if len(chunk) < length:
                raise CorruptDataError(f"field {tag >> 3} is cut off: {len(chunk)} of {length} bytes")
            if field is not None and not field.is_varint:
                put(message, field, _delimited_value(field, chunk))
        elif wire_type in (_FIXED64, _FIXED32):
            offset += 8 if wire_type == _FIXED64 else 4
            if offset > len(data):
                raise CorruptDataError(f"field {tag >> 3} is cut off")
        else:
            raise CorruptDataError(f"field {tag >> 3} has wire type {wire_type}")
    return schema.check_required(message)


def _put_number(message: Message, field: Field, number: int) -> None:
    bits = 64 if field.kind is Kind.INT64 else 32
    number &= (1 << bits) - 1
    if number >> (bits - 1):
        number -= 1 << bits
    if field.kind is Kind.ENUM and number not in field.names.values():
        return  # a number from the future counts as an unknown field
    put(message, field, number)


def _delimited_value(field: Field, chunk: bytes) -> Any:
    if field.schema is not None:
        return decode(field.schema, chunk)
    return as_text(field, chunk) if field.kind is Kind.STRING else chunk


def as_text(field: Field, data: bytes) -> str:
    """`data` of a STRING field. Raises CorruptDataError unless it is UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CorruptDataError(f"field {field.name} is not UTF-8") from None
