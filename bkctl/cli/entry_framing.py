"""How entries lie in a byte stream, for `ledger write` and `ledger read --raw`.

    line   payload, newline; the newline is not part of the entry. What follows the last newline is an
           entry too, so the stream comes back with a newline added if it did not end in one
    len    length (4 bytes, big endian), payload; any bytes
    none   payload after payload; only for reading

Pure; the work per entry is done in C where it can be.
"""

import enum
from collections.abc import Sequence
from itertools import chain
from struct import Struct
from typing import Protocol

from bkctl.errors import BadInputError

_LENGTH = Struct(">I")


class Framing(enum.StrEnum):
    LINE = "line"
    LEN = "len"
    NONE = "none"
    FILE = "file"  # one file, one entry; only for writing


class Cutter(Protocol):
    """Cuts a stream into entries; `feed` and `finish` raise BadInputError."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The entries that `chunk` completes."""
        ...

    def finish(self) -> list[bytes]:
        """The stream is over: what is left."""
        ...


class LineCutter:
    def __init__(self, entry_bytes_max: int) -> None:
        self._entry_bytes_max = entry_bytes_max
        self._parts: list[bytes] = []  # of a line that has not ended yet
        self._part_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        lines = chunk.split(b"\n")
        if len(lines) > 1:
            lines[0] = b"".join([*self._parts, lines[0]])
            self._parts, self._part_bytes = [], 0
        rest = lines.pop()
        if rest:
            self._parts.append(rest)
            self._part_bytes += len(rest)
        if self._part_bytes > self._entry_bytes_max or (
            lines and max(map(len, lines)) > self._entry_bytes_max
        ):
            raise BadInputError(
                f"a line is longer than {self._entry_bytes_max} bytes, the most an entry holds"
            )
        return lines

    def finish(self) -> list[bytes]:
        return [b"".join(self._parts)] if self._parts else []


class LengthCutter:
    def __init__(self, entry_bytes_max: int) -> None:
        self._entry_bytes_max = entry_bytes_max
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        buffer = self._rest
        buffer += chunk
        entries = []
        start, end = 0, len(buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._entry_bytes_max:
                raise BadInputError(
                    f"a frame announces {length} bytes; an entry holds at most {self._entry_bytes_max}. "
                    "Is the input framed by 4-byte big-endian lengths?"
                )
            if end - start - _LENGTH.size < length:
                break
            start += _LENGTH.size
            entries.append(bytes(buffer[start : start + length]))
            start += length
        del buffer[:start]
        return entries

    def finish(self) -> list[bytes]:
        if self._rest:
            raise BadInputError(
                f"the input ends within a frame, {len(self._rest)} bytes after the last whole one"
            )
        return []


def framed(payloads: Sequence[bytes], framing: Framing) -> bytes:
    """`payloads` as a piece of the stream that the cutters read."""
    if framing is Framing.LINE:
        return b"\n".join([*payloads, b""])
    if framing is Framing.LEN:
        lengths = map(_LENGTH.pack, map(len, payloads))
        return b"".join(chain.from_iterable(zip(lengths, payloads, strict=True)))
    assert framing is Framing.NONE, framing
    return b"".join(payloads)
