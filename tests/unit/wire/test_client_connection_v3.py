from collections.abc import Callable
from typing import Any

import pytest

from bkctl.errors import (
    BookKeeperError,
    CorruptDataError,
    DataUnknownError,
    LedgerFencedError,
    NoSuchEntryError,
    ReadError,
    UnauthorizedAccessError,
    WriteError,
)
from bkctl.formats.availability import Availability
from bkctl.formats.frame import FrameCutter
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.request_v3 import decode_request, encode, encode_refusal, encode_response
from bkctl.formats.result_code import ResultCode
from bkctl.wire.client_connection_v3 import ClientConnectionV3
from bkctl.wire.events import AddRefused, AddsStored, Answer, LongPollAnswer
from tests.shared_data import fixture_path

KEY = bytes(range(20))
Ask = Callable[[ClientConnectionV3], tuple[int, bytes]]


def _requests(frames: bytes) -> list[pb.Request]:
    return [decode_request(body) for body in FrameCutter().cut(frames)]


def _exchange(ask: Ask, code: ResultCode = ResultCode.EOK, **fields: Any) -> tuple[pb.Request, Any]:
    """The request that `ask` makes, and the value of the bookie's answer to it."""
    connection = ClientConnectionV3("b1")
    request_id, frame = ask(connection)
    (request,) = _requests(frame)
    (answer,) = connection.receive(encode_response(request, code, **fields))
    assert isinstance(answer, Answer)
    assert answer.request_id == request_id == request.header.txnId
    assert connection.receive(encode_response(request, code, **fields)) == []
    assert connection.ignored_count == 1
    return request, answer.value


def test_a_fencing_read() -> None:
    request, value = _exchange(lambda c: c.fencing_read(5, -1, KEY, high_priority=True), body=b"entry")
    assert value == b"entry"
    read = request.readRequest
    assert (read.ledgerId, read.entryId, read.masterKey, read.flag) == (
        5,
        -1,
        KEY,
        pb.ReadRequest.FENCE_LEDGER,
    )
    assert (request.header.priority, read.HasField("previousLAC")) == (100, False)


def test_a_long_poll_that_brings_an_entry() -> None:
    request, value = _exchange(lambda c: c.long_poll(5, 7, 250), entryId=8, body=b"entry", maxLAC=9)
    assert value == LongPollAnswer(8, b"entry", 9)
    read = request.readRequest
    assert (read.ledgerId, read.entryId, read.previousLAC, read.timeOut) == (5, -1, 7, 250)
    assert read.flag == pb.ReadRequest.ENTRY_PIGGYBACK


def test_a_long_poll_that_brings_none() -> None:
    assert _exchange(lambda c: c.long_poll(5, 7, 250), maxLAC=7)[1] == LongPollAnswer(-1, None, 7)
    assert _exchange(lambda c: c.long_poll(5, 7, 250), entryId=8)[1] == LongPollAnswer(-1, None, None)


def test_the_lac_of_a_bookie() -> None:
    request, value = _exchange(lambda c: c.read_lac(5), lacBody=b"lac", lastEntryBody=b"last")
    assert (request.readLacRequest.ledgerId, value) == (5, (b"lac", b"last"))
    assert _exchange(lambda c: c.read_lac(5), lastEntryBody=b"last")[1] == (None, b"last")
    assert isinstance(_exchange(lambda c: c.read_lac(5), ResultCode.ENOENTRY)[1], NoSuchEntryError)


def test_an_explicit_lac_alone_counts_although_the_bookie_answers_eio() -> None:
    assert _exchange(lambda c: c.read_lac(5), ResultCode.EIO, lacBody=b"lac")[1] == (b"lac", None)
    assert isinstance(_exchange(lambda c: c.read_lac(5), ResultCode.EIO)[1], ReadError)


def test_writing_the_lac_and_forcing_answer_nothing() -> None:
    request, value = _exchange(lambda c: c.write_lac(5, 9, KEY, b"packet"))
    write = request.writeLacRequest
    assert (write.ledgerId, write.lac, write.masterKey, write.body) == (5, 9, KEY, b"packet")
    assert value is None
    request, value = _exchange(lambda c: c.force_ledger(5))
    assert (request.forceLedgerRequest.ledgerId, value) == (5, None)


def test_the_entries_of_a_ledger() -> None:
    stored = Availability.of([0, 1, 2, 9])
    request, value = _exchange(lambda c: c.list_entries(5), availabilityOfEntriesOfLedger=stored.encode())
    assert (request.getListOfEntriesOfLedgerRequest.ledgerId, value) == (5, stored)


def test_a_malformed_list_of_entries_is_a_read_error() -> None:
    value = _exchange(lambda c: c.list_entries(5), availabilityOfEntriesOfLedger=b"short")[1]
    assert isinstance(value, ReadError)
    assert "availability of 5 bytes" in str(value)


def test_the_disks_of_a_bookie() -> None:
    request, value = _exchange(lambda c: c.bookie_info(), totalDiskCapacity=100, freeDiskSpace=40)
    assert (request.getBookieInfoRequest.requested, value) == (3, (100, 40))


def test_an_entry_that_is_not_there_is_an_error() -> None:
    assert isinstance(_exchange(lambda c: c.fencing_read(5, 1, KEY))[1], ReadError)


@pytest.mark.parametrize(
    ("ask", "code", "error"),
    [
        (lambda c: c.fencing_read(5, 1, KEY), ResultCode.EUNKNOWNLEDGERSTATE, DataUnknownError),
        (lambda c: c.fencing_read(5, 1, KEY), ResultCode.EBADREQ, ReadError),
        (lambda c: c.write_lac(5, 9, KEY, b""), ResultCode.EIO, WriteError),
        (lambda c: c.force_ledger(5), ResultCode.EBADREQ, WriteError),
        (lambda c: c.bookie_info(), ResultCode.EIO, ReadError),
    ],
)
def test_errors_are_those_of_the_operation(ask: Ask, code: ResultCode, error: type[BookKeeperError]) -> None:
    value = _exchange(ask, code)[1]
    assert type(value) is error
    assert str(value).startswith("bookie b1")
    assert code.name in str(value)


def test_an_unauthenticated_client_hears_so_although_the_inner_message_is_missing() -> None:
    connection = ClientConnectionV3("b1")
    _, frame = connection.read_lac(5)
    (answer,) = connection.receive(encode_refusal(_requests(frame)[0], ResultCode.EUA))
    assert isinstance(answer, Answer)
    assert isinstance(answer.value, UnauthorizedAccessError)


def test_deferred_adds_are_reported_as_runs() -> None:
    connection = ClientConnectionV3("b1")
    frames = connection.deferred_adds(5, 10, [b"a", b"b", b"c", b"d"], KEY)
    requests = _requests(frames)
    assert [request.addRequest.entryId for request in requests] == [10, 11, 12, 13]
    assert {request.addRequest.writeFlags for request in requests} == {1}
    assert [request.addRequest.body for request in requests] == [b"a", b"b", b"c", b"d"]
    codes = [ResultCode.EOK, ResultCode.EOK, ResultCode.EFENCED, ResultCode.EOK]
    stream = b"".join(encode_response(*pair) for pair in zip(requests, codes, strict=True))
    stored, refused, after = connection.receive(stream)
    assert (stored, after) == (AddsStored(5, 10, 11), AddsStored(5, 13, 13))
    assert isinstance(refused, AddRefused)
    assert (refused.ledger_id, refused.entry_id) == (5, 12)
    assert isinstance(refused.error, LedgerFencedError)


def test_deferred_adds_answered_out_of_order_are_runs_of_their_own() -> None:
    connection = ClientConnectionV3("b1")
    ten, eleven, twelve = _requests(connection.deferred_adds(5, 10, [b"a", b"b", b"c"], KEY))
    (other,) = _requests(connection.deferred_adds(6, 12, [b"d"], KEY))
    stream = b"".join(encode_response(r, ResultCode.EOK) for r in (ten, twelve, eleven, other))
    assert connection.receive(stream) == [
        AddsStored(5, 10, 10),
        AddsStored(5, 12, 12),
        AddsStored(5, 11, 11),
        AddsStored(6, 12, 12),
    ]


def test_answers_that_nobody_waits_for_are_counted() -> None:
    connection = ClientConnectionV3("b1")
    forgotten, frame = connection.read_lac(5)
    connection.forget(forgotten)
    connection.forget(forgotten)
    assert connection.receive(encode_response(_requests(frame)[0], ResultCode.EOK, lacBody=b"")) == []
    request_id, frame = connection.read_lac(5)
    (request,) = _requests(frame)
    other_operation = pb.Response(header=request.header, status="EOK")
    other_operation.header.operation = pb.START_TLS
    assert connection.receive(encode(other_operation)) == []
    assert connection.ignored_count == 2
    assert connection.receive(encode_response(request, ResultCode.EOK, lacBody=b"x")) == [
        Answer(request_id, (b"x", None))
    ]


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x03abc"])
def test_what_is_no_response_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        ClientConnectionV3("b1").receive(data)


def test_a_recorded_session_of_a_java_bookie_is_understood() -> None:
    """`v3-bookie-info`: one request; the disk was that of the machine."""
    recorded = fixture_path("wire", "v3-bookie-info.conn1.c2b.bin").read_bytes()
    connection = ClientConnectionV3("java")
    for _ in range(_requests(recorded)[0].header.txnId):
        request_id, frame = connection.bookie_info()
    assert frame == recorded
    (answer,) = connection.receive(fixture_path("wire", "v3-bookie-info.conn1.b2c.bin").read_bytes())
    assert isinstance(answer, Answer)
    assert answer.request_id == request_id
    total, free = answer.value
    assert 0 < free < total
