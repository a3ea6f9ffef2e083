"""lastMark, lastId, BOOKIE_STATUS: what is refused, and how marks compare."""

import pytest

from bkctl.errors import CorruptDataError
from bkctl.formats import small_files
from bkctl.formats.small_files import BookieMode, BookieStatus, LogMark


def test_marks_compare_by_journal_then_offset() -> None:
    marks = [LogMark(2, 0), LogMark(1, 900), LogMark(1, 5)]
    assert sorted(marks) == marks[::-1]


@pytest.mark.parametrize("data", [b"", bytes(15), b"\xff" * 16, bytes(8) + b"\x80" + bytes(7)])
def test_a_bad_last_mark_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match="lastMark"):
        small_files.decode_last_mark(data)


def test_bytes_behind_a_last_mark_are_ignored() -> None:
    assert small_files.decode_last_mark(bytes(7) + b"\1" + bytes(20)) == LogMark(1, 0)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"-1\n", b"xyz\n", b"80000000\n", b"1ffffffff\n", b"1 2\n", b"\xff"]
)
def test_a_bad_last_id_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match="lastId"):
        small_files.decode_last_id(data)


def test_a_last_id_is_read_without_a_newline_and_in_upper_case() -> None:
    assert (small_files.decode_last_id(b"1F"), small_files.decode_last_id(b"7fffffff\n")) == (31, 2**31 - 1)


def test_a_status_of_three_fields_was_chosen_by_hand() -> None:
    status = small_files.decode_bookie_status(b"1,READ_ONLY,1700000000000\n")
    assert status == BookieStatus(BookieMode.READ_ONLY, 1700000000000, manual=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"2,READ_ONLY,1,true\n",
        b"1,CLOSED,1,true\n",
        b"1,READ_ONLY,x,true",
        b"1,READ_ONLY,1,yes",
        b"\xff,\n",
    ],
)
def test_a_bad_status_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match="BOOKIE_STATUS"):
        small_files.decode_bookie_status(data)
