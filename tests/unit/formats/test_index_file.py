"""`.idx` files: what is refused, and slots cut off or empty."""

import struct

import pytest

from bkctl.errors import CorruptDataError
from bkctl.formats.index_file import IndexFileHeader, parse_index_file_header, parse_slots

HEADER = b"BKLE" + struct.pack(">ii", 1, 4) + b"keys" + struct.pack(">ii", 3, 16) + b"L" * 16


def test_a_header_is_read_and_other_state_bits_are_ignored() -> None:
    assert parse_index_file_header(HEADER) == IndexFileHeader(1, b"keys", True, b"L" * 16)


@pytest.mark.parametrize("size_bytes", range(len(HEADER)))
def test_a_header_cut_at_any_byte_is_refused(size_bytes: int) -> None:
    with pytest.raises(CorruptDataError, match="index file"):
        parse_index_file_header(HEADER[:size_bytes])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"BKLG" + bytes(1020), id="magic of a journal"),
        pytest.param(b"BKLE" + struct.pack(">i", 2) + bytes(1016), id="version 2"),
        pytest.param(b"BKLE" + struct.pack(">ii", 1, -1) + bytes(1012), id="negative key length"),
        pytest.param(b"BKLE" + struct.pack(">ii", 1, 2000) + bytes(4096), id="key beyond the header"),
        pytest.param(b"BKLE" + struct.pack(">iiii", 1, 0, 0, 15) + bytes(1004), id="LAC of 15 bytes"),
    ],
)
def test_a_bad_header_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        parse_index_file_header(data)


def test_empty_slots_and_a_slot_cut_off_are_no_entries() -> None:
    data = struct.pack(">qqq", 0, 1 << 32 | 1028, 2 << 32 | 2048)
    assert list(parse_slots(data + bytes(7), 100)) == [(101, 1 << 32 | 1028), (102, 2 << 32 | 2048)]
    assert list(parse_slots(data[:-1], 0)) == [(1, 1 << 32 | 1028)]
    assert list(parse_slots(b"", 5)) == []
