"""What entry N of S bytes holds in these tests, on both sides (`java/Payload.java`)."""

import hashlib
import struct
from collections.abc import Iterable
from functools import cache

_CYCLE = bytes((31 * j) % 256 for j in range(256))


def payload(entry_id: int, size: int) -> bytes:
    """Byte j is (31 j + entry_id) mod 256."""
    return (_shifted(entry_id % 256) * (size // 256 + 1))[:size]


@cache
def _shifted(by: int) -> bytes:
    return bytes((byte + by) % 256 for byte in _CYCLE)


def digest(entries: Iterable[tuple[int, bytes]]) -> str:
    """SHA-256 over id (8 bytes), size (4 bytes) and payload of each entry, in order."""
    total = hashlib.sha256()
    for entry_id, body in entries:
        total.update(struct.pack(">qi", entry_id, len(body)))
        total.update(body)
    return total.hexdigest()


def expected(first: int, last: int, size: int) -> str:
    """The digest of entries `first` to `last`, all of `size` bytes."""
    return digest((entry_id, payload(entry_id, size)) for entry_id in range(first, last + 1))
