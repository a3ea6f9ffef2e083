"""Recorded sessions between the Java client and a Java bookie: cut, decoded, encoded again."""

import json
from typing import Any

import pytest

from bkctl.formats import request_v2, request_v3
from bkctl.formats.frame import V3_FIRST_BYTE, FrameCutter, pack_frame
from tests.shared_data import fixture_path

SESSIONS = sorted(path.stem for path in fixture_path("wire").glob("*.json"))
PIECE_BYTES = 7  # a size that divides no frame, so that every frame is put together from pieces


def _streams(session: str) -> list[tuple[str, dict[str, Any], bytes]]:
    description = json.loads(fixture_path("wire", f"{session}.json").read_text())
    return [
        (direction, connection[direction], fixture_path("wire", connection[direction]["file"]).read_bytes())
        for connection in description["connections"]
        for direction in ("c2b", "b2c")
    ]


def _encoded_again(direction: str, body: bytes) -> bytes:
    """The frame that our encoder makes of what our decoder read in `body`."""
    if body[0] != V3_FIRST_BYTE:
        decode = request_v2.decode_request if direction == "c2b" else request_v2.decode_response
        return decode(body).encode()
    if direction == "c2b":
        request = request_v3.decode_request(body)
        frame = request_v3.encode(request)
        assert request_v3.decode_request(frame[4:]) == request
    else:
        response = request_v3.decode_response(body)
        frame = request_v3.encode(response)
        assert request_v3.decode_response(frame[4:]) == response
    assert len(frame) == len(body) + 4  # Java may order the fields in another way
    return pack_frame(body)


def test_all_sessions_are_there() -> None:
    assert len(SESSIONS) == 23
    frames = sum(len(side["frames"]) for name in SESSIONS for _, side, _ in _streams(name))
    assert frames == 308


@pytest.mark.parametrize("session", SESSIONS)
def test_frames_are_cut_where_the_recording_says(session: str) -> None:
    for _, side, stream in _streams(session):
        cutter = FrameCutter()
        bodies = [
            body
            for start in range(0, len(stream), PIECE_BYTES)
            for body in cutter.cut(stream[start : start + PIECE_BYTES])
        ]
        assert bodies == [
            stream[frame["offset"] + 4 : frame["offset"] + 4 + frame["length"]] for frame in side["frames"]
        ]
        assert cutter.pending_bytes == 0


@pytest.mark.parametrize("session", SESSIONS)
def test_frames_survive_decoding_and_encoding(session: str) -> None:
    for direction, _, stream in _streams(session):
        frames = [_encoded_again(direction, body) for body in FrameCutter().cut(stream)]
        assert b"".join(frames) == stream
