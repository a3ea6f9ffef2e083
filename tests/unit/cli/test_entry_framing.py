"""What goes in comes out, for any bytes and however the stream is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.cli.entry_framing import Cutter, Framing, LengthCutter, LineCutter, framed
from bkctl.errors import BadInputError


def cut(cutter: Cutter, *chunks: bytes) -> list[bytes]:
    entries = [entry for chunk in chunks for entry in cutter.feed(chunk)]
    return entries + cutter.finish()


def chunks_of(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
def test_lines_come_back_with_a_newline_at_the_end(data: bytes, sizes: list[int]) -> None:
    entries = cut(LineCutter(1000), *chunks_of(data, sizes))
    expected = data if not data or data.endswith(b"\n") else data + b"\n"
    assert framed(entries, Framing.LINE) == expected
    assert not any(b"\n" in entry for entry in entries)


@given(st.lists(st.binary(max_size=40), max_size=10), st.lists(st.integers(1, 30), max_size=20))
def test_length_frames_carry_any_bytes(payloads: list[bytes], sizes: list[int]) -> None:
    stream = framed(payloads, Framing.LEN)
    assert cut(LengthCutter(1000), *chunks_of(stream, sizes)) == payloads


def test_empty_lines_are_empty_entries() -> None:
    assert cut(LineCutter(10), b"\n\na\n") == [b"", b"", b"a"]


def test_what_follows_the_last_newline_is_an_entry() -> None:
    assert cut(LineCutter(10), b"a\nb") == [b"a", b"b"]


def test_no_input_is_no_entry() -> None:
    assert cut(LineCutter(10)) == cut(LengthCutter(10)) == []


def test_framing_none_joins() -> None:
    assert framed([b"a", b"", b"bc"], Framing.NONE) == b"abc"


@pytest.mark.parametrize("chunks", [(b"12345678901\n",), (b"123456", b"789012"), (b"ok\n123456", b"78901\n")])
def test_a_line_beyond_the_limit_is_refused_before_its_end_is_awaited(chunks: tuple[bytes, ...]) -> None:
    cutter = LineCutter(10)
    for chunk in chunks[:-1]:
        cutter.feed(chunk)
    with pytest.raises(BadInputError, match="longer than 10 bytes"):
        cutter.feed(chunks[-1])


def test_an_announced_length_beyond_the_limit_is_refused_at_once() -> None:
    with pytest.raises(BadInputError, match="announces 11 bytes"):
        LengthCutter(10).feed(b"\0\0\0\x0b")


def test_a_line_and_a_frame_of_exactly_the_limit_pass() -> None:
    assert cut(LineCutter(10), b"1234567890\n") == [b"1234567890"]
    assert cut(LengthCutter(10), b"\0\0\0\x0a1234567890") == [b"1234567890"]


@pytest.mark.parametrize("rest", [b"\0", b"\0\0\0\x02", b"\0\0\0\x02a"])
def test_input_that_ends_within_a_frame_is_refused(rest: bytes) -> None:
    cutter = LengthCutter(10)
    assert cutter.feed(b"\0\0\0\x01x" + rest) == [b"x"]
    with pytest.raises(BadInputError, match=f"{len(rest)} bytes after"):
        cutter.finish()
