from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError
from bkctl.formats import request_v3
from bkctl.formats.frame import V3_FIRST_BYTE
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.result_code import ResultCode

HEADER = bytes.fromhex("0a06080310011803")  # version 3, READ_ENTRY, txn 3
READ = bytes.fromhex("a20604080a1014")  # ledger 10, entry 20


def _read(**fields: Any) -> pb.Request:
    request = request_v3.new_request(pb.READ_ENTRY, 3, priority=request_v3.HIGH_PRIORITY)
    request.readRequest.ledgerId, request.readRequest.entryId = 10, 20
    for name, value in fields.items():
        setattr(request.readRequest, name, value)
    return request


def test_fields_in_any_order_and_unknown_ones_are_accepted() -> None:
    unknown = bytes.fromhex("c8ff0301")  # field 8185, varint
    straight = request_v3.decode_request(HEADER + READ)
    assert (straight.readRequest.ledgerId, straight.readRequest.entryId) == (10, 20)
    turned = request_v3.decode_request(READ + unknown + HEADER)
    assert turned.readRequest == straight.readRequest
    assert turned.header == straight.header


def test_a_frame_starts_with_the_header_field() -> None:
    assert request_v3.encode(_read())[4] == V3_FIRST_BYTE


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "required"),
        (HEADER[:-1], "v3 message"),
        (READ, "required"),
        (HEADER, "without its readRequest"),
        (HEADER + bytes.fromhex("aa0604080a1014"), "required"),  # an add of two ids only
        (bytes.fromhex("0a060803100d1803"), "required"),  # operation 13
        (bytes.fromhex("0a06080410011803") + READ, "required"),  # version 4
        (bytes.fromhex("0a0608031005 1803 b206050a01ff1200"), "UTF-8"),
        (b"\x02\x02\0\0" + bytes(16), "v3 message"),
    ],
)
def test_what_is_no_request_is_corrupt(data: bytes, why: str) -> None:
    with pytest.raises(CorruptDataError, match=why):
        request_v3.decode_request(data)


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: HEADER + tail))
def test_any_bytes_decode_or_are_corrupt(data: bytes) -> None:
    for decode in (request_v3.decode_request, request_v3.decode_response):
        try:
            message = decode(data)
        except CorruptDataError:
            continue
        assert message.IsInitialized()


@pytest.mark.parametrize("operation", [pb.RANGE_READ_ENTRY, pb.RANGE_ADD_ENTRY, pb.BATCH_READ_ENTRY])
def test_operations_served_by_nobody_are_decoded_and_refused(operation: pb.OperationType) -> None:
    request = request_v3.new_request(operation, 8, priority=7)
    decoded = request_v3.decode_request(request_v3.encode(request)[4:])
    response = request_v3.decode_response(request_v3.encode_refusal(decoded, ResultCode.EBADREQ)[4:])
    assert response.header == request.header
    assert response.status == pb.EBADREQ
    assert len(response.ListFields()) == 2


@pytest.mark.parametrize("code", ResultCode)
def test_responses_carry_the_status_twice_and_the_ids_of_the_request(code: ResultCode) -> None:
    response = request_v3.decode_response(request_v3.encode_response(_read(), code)[4:])
    inner = response.readResponse
    assert (response.status, inner.status, inner.ledgerId, inner.entryId) == (
        code.status,
        code.status,
        10,
        20,
    )
    assert not response.header.HasField("priority")
    assert (response.header.version, response.header.operation, response.header.txnId) == (3, 1, 3)
    assert request_v3.status_of(response) == code.status


def test_a_piggybacked_entry_has_its_own_id() -> None:
    request = _read(entryId=-1, previousLAC=4, timeOut=100, flag=pb.ReadRequest.ENTRY_PIGGYBACK)
    frame = request_v3.encode_response(request, ResultCode.EOK, entryId=5, body=b"entry", maxLAC=5)
    inner = request_v3.decode_response(frame[4:]).readResponse
    assert (inner.entryId, inner.body, inner.maxLAC) == (5, b"entry", 5)
    assert not inner.HasField("lacUpdateTimestamp")


def test_a_field_that_the_response_has_not_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        request_v3.encode_response(_read(), ResultCode.EOK, lacBody=b"")


def test_every_operation_can_be_answered() -> None:
    for operation, field in request_v3.REQUEST_FIELD.items():
        request = request_v3.new_request(operation, 1)
        message = getattr(request, field)
        message.SetInParent()
        for descriptor in message.DESCRIPTOR.fields:
            if descriptor.is_required:
                setattr(message, descriptor.name, "" if descriptor.name == "authPluginName" else
                        b"" if descriptor.name in ("masterKey", "body", "payload") else 7)  # fmt: skip
        decoded = request_v3.decode_request(request_v3.encode(request)[4:])
        extra = {"authPluginName": "p", "payload": b""} if operation == pb.AUTH else {}
        response = request_v3.decode_response(
            request_v3.encode_response(decoded, ResultCode.EOK, **extra)[4:]
        )
        assert response.HasField(request_v3.RESPONSE_FIELD[operation])
        assert request_v3.status_of(response) == 0


def test_the_inner_status_counts_when_the_outer_one_is_good() -> None:
    response = pb.Response(status="EOK")
    response.header.CopyFrom(_read().header)
    response.readResponse.status = pb.ENOENTRY
    assert request_v3.status_of(response) == 403
    response.status = pb.EUA
    assert request_v3.status_of(response) == 502


def test_the_reused_add_response_is_that_of_the_general_encoder() -> None:
    encoder = request_v3.AddResponseEncoder()
    for txn_id, code in enumerate(ResultCode):
        frame = request_v3.encode_deferred_add(txn_id, 10, -txn_id, b"key", b"body")
        request = request_v3.decode_request(frame[4:])
        assert request.addRequest.writeFlags == request_v3.DEFERRED_SYNC
        expected = request_v3.encode_response(request, code)
        assert encoder.encode(txn_id, code.status, 10, -txn_id) == expected
