"""The hot path of a bookie: runs of v2 ADD frames become records of the write cache.

A *run* is a sequence of complete ADD frames with the same packet header, master key and ledger, as a
pipelining writer sends them. One pass cuts it out of the receive buffer and copies each entry once,
as the record `size i32 | entry` that journal, write cache and entry log share.

Pure: buffers in, buffers and facts out. Source: spec wire section 3, spec storage 4.2 and 5.2.
"""

import struct
from typing import NamedTuple

# length i32 | packet header i32 | master key 20 + ledger id i64 | entry id i64 | LAC i64
_FRAME = struct.Struct(">II28s8sq")
_SIZE = struct.Struct(">I")

FRAME_HEAD_BYTES = _FRAME.size
_KEY_END = 28  # of a frame: length, packet header, master key; the entry begins here
_FRAME_BYTES_MIN = _KEY_END + 32  # an entry has a header of 32 bytes
_NEGATIVE = b"\x80"  # first byte of a negative big-endian id


class AddRun(NamedTuple):
    """`keys`: ledger id ‖ entry id of each entry, 16 bytes, in the order of arrival."""

    keys: list[bytes]
    end: int  # in the receive buffer: where the run stops
    used: int  # in the arena: end of the last record
    lac_max: int


def owner_of(buffer: bytearray, position: int) -> tuple[int, bytes, int]:
    """(frame length, master key ‖ ledger id, packet header) of the ADD frame at `position`.

    The caller has checked that FRAME_HEAD_BYTES are there.
    """
    length, header, owner, _entry, _lac = _FRAME.unpack_from(buffer, position)
    return length, owner, header


def take_add_run(
    buffer: bytearray,
    view: memoryview,
    position: int,
    end: int,
    owner: bytes,
    header: int,
    arena: memoryview,
    used: int,
    index: dict[bytes, int],
) -> AddRun:
    """Copy the run that starts at `position` into `arena` from `used` on; note each record in `index`.

    Stops before the first frame that is not of this run: another owner or header, incomplete,
    shorter than an entry header, with a negative entry id, or without room in the arena. Those are
    the caller's to judge; an empty run says that not even the first frame belongs to it.
    `view` is a memoryview of `buffer`; the master key of a frame that was taken is overwritten.
    """
    unpack, pack_size, capacity = _FRAME.unpack_from, _SIZE.pack_into, len(arena)
    ledger = owner[20:]
    keys: list[bytes] = []
    append = keys.append
    lac_max = -1
    last = end - _FRAME_BYTES_MIN
    while position <= last:
        length, head, own, entry, lac = unpack(buffer, position)
        stop = position + 4 + length
        if (
            own != owner
            or head != header
            or stop > end
            or length < _FRAME_BYTES_MIN - 4
            or entry >= _NEGATIVE
        ):
            break
        start = position + _KEY_END - 4  # the size takes the place of the key's last four bytes
        top = used + stop - start
        if top > capacity:
            break
        pack_size(buffer, start, length - 24)
        arena[used:top] = view[start:stop]
        key = ledger + entry
        index[key] = used
        append(key)
        if lac > lac_max:
            lac_max = lac
        used = top
        position = stop
    return AddRun(keys, position, used, lac_max)


def add_responses(header: int, keys: list[bytes]) -> bytes:
    """The OK answers to a run: 24-byte ADD responses that echo version and ids (spec wire 3.3)."""
    prefix = struct.pack(">III", 24, (header & 0xFF000000) | 0x00010000, 0)
    return prefix + prefix.join(keys)
