import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError
from bkctl.formats.frame import FrameCutter
from bkctl.formats.request_v2 import (
    FENCING,
    AddRequest,
    AddResponse,
    AuthPacket,
    BatchReadRequest,
    BatchReadResponse,
    ReadRequest,
    ReadResponse,
    Request,
    Response,
    decode_request,
    decode_response,
    pack_header,
    unpack_header,
)

int64 = st.integers(-(2**63), 2**63 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
key = st.binary(min_size=20, max_size=20)
plain_flags = st.integers(0, 0xFFFF).map(lambda flags: flags & ~FENCING)
body = st.binary(min_size=16, max_size=60)

requests = (
    st.builds(AddRequest, st.integers(0, 0xFFFF), key, body, st.sampled_from([1, 2, 7]))
    | st.builds(ReadRequest, plain_flags, int64, int64)
    | st.builds(ReadRequest, st.just(FENCING), int64, int64, key)
    | st.builds(BatchReadRequest, plain_flags, int64, int64, int64, int32, int64)
    | st.builds(BatchReadRequest, st.just(FENCING), int64, int64, int64, int32, int64, key)
    | st.builds(AuthPacket, st.text(max_size=9), st.binary(max_size=9))
)
versions = st.sampled_from([0, 1, 2, 200])
responses = (
    st.builds(AddResponse, int32, int64, int64, versions)
    | st.builds(ReadResponse, int32, int64, int64, st.binary(max_size=60), versions)
    | st.builds(
        BatchReadResponse, int32, int64, int64, int64, st.lists(st.binary(max_size=9)).map(tuple), versions
    )
    | st.builds(AuthPacket, st.text(max_size=9), st.binary(max_size=9))
)


@given(requests)
def test_requests_round_trip(request: Request) -> None:
    (frame_body,) = FrameCutter().cut(request.encode())
    assert decode_request(frame_body) == request


@given(responses)
def test_responses_round_trip(response: Response) -> None:
    (frame_body,) = FrameCutter().cut(response.encode())
    assert decode_response(frame_body) == response


@given(st.integers(1, 255), st.integers(0, 255), st.integers(0, 0xFFFF))
def test_headers_round_trip(version: int, opcode: int, flags: int) -> None:
    assert unpack_header(pack_header(version, opcode, flags)) == (version, opcode, flags)


@given(st.binary(max_size=80) | st.tuples(st.sampled_from([1, 2, 3, 7]), st.binary(max_size=80)).map(
    lambda drawn: pack_header(2, drawn[0], 1).to_bytes(4) + drawn[1]))  # fmt: skip
def test_any_bytes_decode_or_are_corrupt(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            packet = decode(data)
        except CorruptDataError:
            continue
        assert isinstance(packet, Request | Response)


@given(requests, st.integers(0, 23))
def test_a_cut_off_request_is_corrupt(request: Request, kept: int) -> None:
    whole = request.encode()[4:]
    if isinstance(request, AddRequest):
        kept = min(kept, 4 + 20 + 15)
    elif isinstance(request, AuthPacket):
        kept = min(kept, 4 + 1)
    else:
        kept = min(kept, 19)
    with pytest.raises(CorruptDataError):
        decode_request(whole[:kept])


def test_a_fencing_read_needs_its_whole_master_key() -> None:
    whole = ReadRequest(FENCING, 1, -1, bytes(20)).encode()[4:]
    with pytest.raises(CorruptDataError, match="19 of 20 master key bytes"):
        decode_request(whole[:-1])


def test_bytes_after_a_read_are_ignored() -> None:
    request = ReadRequest(0, 1, 2)
    assert decode_request(request.encode()[4:] + bytes(20)) == request


def test_version_1_fences_without_a_master_key() -> None:
    request = ReadRequest(FENCING, 1, 2, version=1)
    assert decode_request(request.encode()[4:]) == request


@pytest.mark.parametrize("opcode", [0, 4, 5, 6, 8, 255])
def test_unknown_opcodes_are_corrupt(opcode: int) -> None:
    data = pack_header(2, opcode).to_bytes(4) + bytes(60)
    with pytest.raises(CorruptDataError, match=f"unknown opcode {opcode}"):
        decode_request(data)
    with pytest.raises(CorruptDataError, match=f"unknown opcode {opcode}"):
        decode_response(data)


@pytest.mark.parametrize("size", [-1, 5, 2**31 - 1])
def test_batch_entries_must_fill_the_frame(size: int) -> None:
    good = BatchReadResponse(0, 1, 2, 3, (b"good",)).encode()[4:]
    with pytest.raises(CorruptDataError, match=f"entry of {size} bytes"):
        decode_response(good + size.to_bytes(4, signed=True) + b"four")
    with pytest.raises(CorruptDataError):
        decode_response(good + b"\0\0")


@pytest.mark.parametrize("message", ["", "0a0173", "0a01ff1200", "0a05731200", "1200"])
def test_a_malformed_auth_message_is_corrupt(message: str) -> None:
    data = pack_header(2, 3).to_bytes(4) + bytes.fromhex(message)
    with pytest.raises(CorruptDataError, match="v2 auth"):
        decode_request(data)
    with pytest.raises(CorruptDataError, match="v2 auth"):
        decode_response(data)
