"""Runs of v2 ADD frames become records, byte for byte."""

import struct

import pytest

from bkctl.wire.add_run import add_responses, owner_of, take_add_run

KEY = bytes(range(20))
HEADER = 0x02010000


def frame(
    ledger_id: int, entry_id: int, lac: int, payload: bytes, *, key: bytes = KEY, header: int = HEADER
) -> bytes:
    entry = struct.pack(">qqqq", ledger_id, entry_id, lac, 0) + b"\xaa\xbb\xcc\xdd" + payload
    return struct.pack(">II", 24 + len(entry), header) + key + entry


def take(
    data: bytes, *, arena_bytes: int = 4096, used: int = 0
) -> tuple[list[bytes], int, bytes, int, dict[bytes, int]]:
    buffer = bytearray(data)
    arena = memoryview(bytearray(arena_bytes))
    index: dict[bytes, int] = {}
    _length, owner, header = owner_of(buffer, 0)
    run = take_add_run(buffer, memoryview(buffer), 0, len(buffer), owner, header, arena, used, index)
    return run.keys, run.end, bytes(arena[used : run.used]), run.lac_max, index


def test_a_run_becomes_contiguous_records_of_size_and_entry() -> None:
    frames = [frame(7, n, n - 1, b"x" * n) for n in range(5)]
    keys, end, records, lac_max, index = take(b"".join(frames), used=100)
    assert end == sum(map(len, frames))
    assert keys == [struct.pack(">qq", 7, n) for n in range(5)]
    assert records == b"".join(struct.pack(">I", len(f) - 28) + f[28:] for f in frames)
    assert lac_max == 3
    assert list(index.values()) == [100, 140, 181, 223, 266]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(frame(8, 1, 0, b"y"), id="another ledger"),
        pytest.param(frame(7, 1, 0, b"y", key=bytes(20)), id="another master key"),
        pytest.param(frame(7, 1, 0, b"y", header=0x02010002), id="another flag"),
        pytest.param(frame(7, 1, 0, b"y")[:-1], id="an incomplete frame"),
        pytest.param(frame(7, -3, 0, b"y"), id="a negative entry id"),
        pytest.param(struct.pack(">II", 55, HEADER) + KEY + bytes(32), id="shorter than an entry header"),
    ],
)
def test_a_run_stops_before(other: bytes) -> None:
    first = frame(7, 0, -1, b"x")
    keys, end, _records, _lac, _index = take(first + other)
    assert (len(keys), end) == (1, len(first))


def test_a_run_stops_where_the_arena_is_full() -> None:
    frames = [frame(7, n, -1, b"z" * 64) for n in range(4)]
    record_bytes = len(frames[0]) - 24
    keys, end, _records, _lac, index = take(b"".join(frames), arena_bytes=2 * record_bytes + 10)
    assert (len(keys), end, len(index)) == (2, 2 * len(frames[0]), 2)


def test_responses_echo_the_ids_and_the_version_of_the_request() -> None:
    keys = [struct.pack(">qq", 7, n) for n in range(3)]
    assert add_responses(0x01010006, keys) == b"".join(
        struct.pack(">IIIqq", 24, 0x01010000, 0, 7, n) for n in range(3)
    )
