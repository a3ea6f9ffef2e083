r"""The text form of protobuf messages, as znodes and cookies hold it.

Written: one field a line, two spaces a level, `name: value` or `name {`, strings in double quotes
with every byte outside 0x20-0x7E as `\ooo`. Read: everything that Java's readers accept (free
white space, comments, separators, both quotes, hex and octal numbers, lists); unknown fields are
skipped. Enums are read by name only.

Not protobuf's own text_format: its import costs more than the commands that need this, it writes
other escapes, and it refuses unknown fields.

Source: spec metadata section 2; protobuf TextFormat, LightProto TextFormat.
"""

import re
from typing import Any

from bkctl.errors import CorruptDataError
from bkctl.formats.message import MAX_MESSAGE_BYTES, Field, Kind, Message, Schema, as_text, present, put

MAX_DEPTH = 32

_ESCAPED_BYTES = {
    0x08: "\\b",
    0x09: "\\t",
    0x0A: "\\n",
    0x0C: "\\f",
    0x0D: "\\r",
    0x22: '\\"',
    0x27: "\\'",
    0x5C: "\\\\",
}
_WRITTEN = [
    _ESCAPED_BYTES.get(byte) or (chr(byte) if 0x20 <= byte <= 0x7E else f"\\{byte:03o}")
    for byte in range(256)
]

_BLANK = re.compile(rb"(?:[ \t\n\r\f\v]+|#[^\n]*)*")
_TOKEN = re.compile(
    rb"""(?P<word>[A-Za-z_][A-Za-z0-9_]*)
       |(?P<number>-?[ \t]*[0-9.][0-9A-Za-z_.+-]*)
       |(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
       |(?P<symbol>[{}<>:;,\[\]])""",
    re.VERBOSE,
)
_INTEGER = re.compile(rb"(-?)[ \t]*(?:0[xX]([0-9a-fA-F]{1,16})|0([0-7]{1,22})|(0|[1-9][0-9]{0,18}))")
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
    b"'": b"'",
    b'"': b'"',
    b"?": b"?",
}
_CLOSING = {b"{": b"}", b"<": b">"}


def write(schema: Schema, message: Message) -> str:
    """The text form, as Java 4.18 writes it. `message` must hold every required field."""
    lines: list[str] = []
    _write_fields(lines, schema, message, "")
    return "".join(lines)


def quote(data: bytes) -> str:
    """`data` as a string literal with its quotes."""
    return '"' + "".join(map(_WRITTEN.__getitem__, data)) + '"'


def _write_fields(lines: list[str], schema: Schema, message: Message, indent: str) -> None:
    schema.check_required(message)
    for field, value in present(schema, message):
        if field.schema is not None:
            lines.append(f"{indent}{field.name} {{\n")
            _write_fields(lines, field.schema, value, indent + "  ")
            lines.append(f"{indent}}}\n")
        else:
            lines.append(f"{indent}{field.name}: {_written_value(field, value)}\n")


def _written_value(field: Field, value: Any) -> str:
    match field.kind:
        case Kind.STRING:
            return quote(value.encode())
        case Kind.BYTES:
            return quote(value)
        case Kind.ENUM:
            return next(name for name, number in field.names.items() if number == value)
        case _:
            return str(value)


def parse(schema: Schema, data: bytes) -> Message:
    """Read the text form. Raises CorruptDataError with the line number."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise CorruptDataError(f"text of {len(data)} bytes, at most {MAX_MESSAGE_BYTES} are read")
    reader = _Reader(data)
    try:
        reader.advance()
        return _read_fields(reader, schema, end=b"", depth=0)
    except CorruptDataError as exc:
        line = data.count(b"\n", 0, reader.offset) + 1
        raise CorruptDataError(f"line {line}: {exc}") from None


class _Reader:
    """Tokens of `data`; `advance` makes the next one current: `kind` and `token`, empty at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next_offset = 0
        self.offset = 0
        self.kind = ""
        self.token = b""

    def advance(self) -> None:
        blank = _BLANK.match(self._data, self._next_offset)
        assert blank is not None
        self.offset = blank.end()
        match = _TOKEN.match(self._data, self.offset)
        if match is not None:
            self.kind, self.token = match.lastgroup or "", match.group()
            self._next_offset = match.end()
        elif self.offset == len(self._data):
            self.kind, self.token = "", b""
        else:
            raise CorruptDataError(f"cannot read {self._data[self.offset : self.offset + 20]!r}")

    def take(self, symbol: bytes) -> bool:
        """Step over `symbol` if it is the current token."""
        if self.token != symbol:
            return False
        self.advance()
        return True

    def fail(self, wanted: str) -> CorruptDataError:
        found = repr(self.token[:40].decode("latin-1")) if self.token else "the end"
        return CorruptDataError(f"{wanted} expected, found {found}")


def _read_fields(reader: _Reader, schema: Schema | None, end: bytes, depth: int) -> Message:
    """Fields up to `end`; schema None reads and forgets them."""
    if depth > MAX_DEPTH:
        raise CorruptDataError(f"nested deeper than {MAX_DEPTH} levels")
    message = schema.empty() if schema is not None else {}
    while reader.token != end:
        if reader.kind != "word":
            raise reader.fail("a field name")
        field = schema.by_name.get(reader.token.decode()) if schema is not None else None
        reader.advance()
        colon = reader.take(b":")
        if not colon and reader.token not in (b"{", b"<"):
            raise reader.fail("':'")
        if reader.token == b"[":
            _read_list(reader, message, field, depth)
        else:
            _read_value(reader, message, field, depth)
        if reader.token in (b",", b";"):
            reader.advance()
    if end:
        reader.advance()
    return schema.check_required(message) if schema is not None else message


def _read_list(reader: _Reader, message: Message, field: Field | None, depth: int) -> None:
    if field is not None and not field.repeated:
        raise reader.fail(f"one value for {field.name}")
    reader.advance()
    if reader.take(b"]"):
        return
    while True:
        _read_value(reader, message, field, depth)
        if reader.take(b"]"):
            return
        if not reader.take(b","):
            raise reader.fail("',' or ']'")


def _read_value(reader: _Reader, message: Message, field: Field | None, depth: int) -> None:
    if field is None:
        _skip_value(reader, depth)
    else:
        put(message, field, _value(reader, field, depth))


def _value(reader: _Reader, field: Field, depth: int) -> Any:
    if field.kind is Kind.MESSAGE:
        if reader.token not in (b"{", b"<"):
            raise reader.fail(f"'{{' of {field.name}")
        closing = _CLOSING[reader.token]
        reader.advance()
        return _read_fields(reader, field.schema, closing, depth + 1)
    if field.kind in (Kind.STRING, Kind.BYTES):
        data = _read_string(reader)
        return as_text(field, data) if field.kind is Kind.STRING else data
    if field.kind is Kind.ENUM:
        number = field.names.get(reader.token.decode("latin-1")) if reader.kind == "word" else None
        if number is None:
            raise reader.fail(f"a name of {field.name} ({', '.join(field.names)})")
        reader.advance()
        return number
    return _read_integer(reader, field)


def _skip_value(reader: _Reader, depth: int) -> None:
    if reader.token in (b"{", b"<"):
        closing = _CLOSING[reader.token]
        reader.advance()
        _read_fields(reader, None, closing, depth + 1)
    elif reader.kind == "string":
        _read_string(reader)
    elif reader.kind in ("word", "number"):
        reader.advance()
    else:
        raise reader.fail("a value")


def _read_integer(reader: _Reader, field: Field) -> int:
    match = _INTEGER.fullmatch(reader.token) if reader.kind == "number" else None
    if match is None:
        raise reader.fail(f"an integer for {field.name}")
    sign, hexadecimal, octal, decimal = match.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    if sign:
        number = -number
    bits = 63 if field.kind is Kind.INT64 else 31
    if not -(1 << bits) <= number < 1 << bits:
        raise reader.fail(f"a number of {bits + 1} bits for {field.name}")
    reader.advance()
    return number


def _read_string(reader: _Reader) -> bytes:
    """Adjacent literals are one string."""
    if reader.kind != "string":
        raise reader.fail("a string")
    parts = []
    while reader.kind == "string":
        parts.append(_ESCAPE.sub(_unescaped, reader.token[1:-1]))
        reader.advance()
    return b"".join(parts)


def _unescaped(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, code_point, simple = match.groups()
    if octal:
        number = int(octal, 8)
        if number > 0xFF:
            raise CorruptDataError(f"octal escape \\{octal.decode()} is more than a byte")
        return bytes([number])
    if hexadecimal:
        return bytes([int(hexadecimal, 16)])
    if code_point:
        try:
            return chr(int(code_point, 16)).encode()
        except UnicodeEncodeError:
            raise CorruptDataError(f"escape \\u{code_point.decode()} is half a character") from None
    if simple not in _SIMPLE_ESCAPES:
        raise CorruptDataError(f"unknown escape \\{simple.decode('latin-1')}")
    return _SIMPLE_ESCAPES[simple]
