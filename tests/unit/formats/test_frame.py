import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError
from bkctl.formats.frame import FrameCutter, pack_frame


@given(st.lists(st.binary(max_size=50), max_size=20), st.lists(st.integers(1, 60), min_size=1))
def test_pieces_of_any_size_give_the_same_frames(bodies: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(map(pack_frame, bodies))
    cutter = FrameCutter()
    cut: list[bytes] = []
    turn = 0
    while stream:
        size = sizes[turn % len(sizes)]
        cut += cutter.cut(stream[:size])
        stream = stream[size:]
        turn += 1
    assert cut == bodies
    assert cutter.pending_bytes == 0


def test_the_limit_counts_the_length_bytes() -> None:
    assert FrameCutter(100).cut(pack_frame(bytes(96))) == [bytes(96)]
    with pytest.raises(CorruptDataError, match="frame of 97 bytes"):
        FrameCutter(100).cut(pack_frame(bytes(97)))


def test_a_wrong_length_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(CorruptDataError, match="frame of 2147483647 bytes"):
        FrameCutter().cut(b"\x7f\xff\xff\xff")
    cutter = FrameCutter()
    assert cutter.cut(b"\xff\xff\xff") == []
    with pytest.raises(CorruptDataError, match="frame of -1 bytes"):
        cutter.cut(b"\xff")


def test_good_frames_before_a_wrong_length_do_not_hide_it() -> None:
    with pytest.raises(CorruptDataError):
        FrameCutter().cut(pack_frame(b"good") + b"\xff\xff\xff\xff")


def test_an_empty_frame_is_a_frame() -> None:
    assert FrameCutter().cut(bytes(8)) == [b"", b""]


def test_half_a_frame_stays_pending() -> None:
    cutter = FrameCutter()
    assert cutter.cut(pack_frame(b"whole") + b"\0\0\0\x0ahalf") == [b"whole"]
    assert cutter.pending_bytes == 8
    assert cutter.cut(b"") == []
    assert cutter.cut(b"and ha") == [b"halfand ha"]
    assert cutter.pending_bytes == 0


def test_a_large_frame_in_small_pieces_is_joined_once() -> None:
    """Joining at every piece would copy 2 GB here."""
    body = bytes(4 << 20)
    stream = pack_frame(body)
    cutter = FrameCutter()
    cut = [
        frame for start in range(0, len(stream), 4096) for frame in cutter.cut(stream[start : start + 4096])
    ]
    assert cut == [body]
