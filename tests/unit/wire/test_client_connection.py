from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.errors import (
    BookKeeperError,
    CorruptDataError,
    LedgerFencedError,
    NoSuchEntryError,
    NoSuchLedgerError,
    ReadError,
    WriteError,
)
from bkctl.formats.frame import FrameCutter
from bkctl.formats.request_v2 import (
    HIGH_PRIORITY,
    AddResponse,
    AuthPacket,
    BatchReadRequest,
    BatchReadResponse,
    ReadRequest,
    ReadResponse,
    decode_request,
)
from bkctl.wire.client_connection import ClientConnectionV2
from bkctl.wire.events import AddRefused, AddsStored, Answer, Event
from tests.shared_data import fixture_path


def _stored(ledger_id: int, *entry_ids: int) -> bytes:
    return b"".join(AddResponse(0, ledger_id, entry_id).encode() for entry_id in entry_ids)


def _requests(frames: bytes) -> list[Any]:
    return [decode_request(body) for body in FrameCutter().cut(frames)]


def _seen(events: list[Event]) -> list[Any]:
    """Runs as single entries, and errors by their type, to compare whatever the chunks were."""
    seen: list[Any] = []
    for event in events:
        if isinstance(event, AddsStored):
            ids = range(event.first_entry_id, event.last_entry_id + 1)
            seen += [(event.ledger_id, entry_id) for entry_id in ids]
        elif isinstance(event, AddRefused):
            seen.append((event.ledger_id, event.entry_id, type(event.error)))
        else:
            seen.append(event)
    return seen


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_consecutive_good_adds_are_one_run(count: int) -> None:
    connection = ClientConnectionV2("b1")
    assert connection.receive(_stored(7, *range(50, 50 + count))) == [AddsStored(7, 50, 49 + count)]


def test_a_run_ends_where_ids_jump_and_where_the_ledger_changes() -> None:
    """Ids of a striped ledger jump; ids may also come again or out of order."""
    connection = ClientConnectionV2("b1")
    assert connection.receive(_stored(1, 0, 1, 3, 4, 6) + _stored(2, 7, 8) + _stored(1, 8, 8, 5)) == [
        AddsStored(1, 0, 1),
        AddsStored(1, 3, 4),
        AddsStored(1, 6, 6),
        AddsStored(2, 7, 8),
        AddsStored(1, 8, 8),
        AddsStored(1, 8, 8),
        AddsStored(1, 5, 5),
    ]


def test_an_entry_id_that_looks_like_the_start_of_an_answer_does_not_shift_the_run() -> None:
    ids = [0x0000001802010000, 0x0000001802010001, 0]
    assert _seen(ClientConnectionV2("b1").receive(_stored(0x1802010000, *ids))) == [
        (0x1802010000, entry_id) for entry_id in ids
    ]


def test_a_refused_add_stands_between_two_runs() -> None:
    connection = ClientConnectionV2("b1")
    before, refused, after = connection.receive(
        _stored(1, 0, 1) + AddResponse(104, 1, 2).encode() + _stored(1, 3)
    )
    assert (before, after) == (AddsStored(1, 0, 1), AddsStored(1, 3, 3))
    assert isinstance(refused, AddRefused)
    assert (refused.ledger_id, refused.entry_id) == (1, 2)
    assert isinstance(refused.error, LedgerFencedError)
    assert str(refused.error) == "bookie b1, ledger 1 entry 2: EFENCED"


def test_general_codes_of_an_add_are_write_errors() -> None:
    (refused,) = ClientConnectionV2("b1").receive(AddResponse(101, 1, 2).encode())
    assert isinstance(refused, AddRefused)
    assert type(refused.error) is WriteError


def test_reads_are_asked_in_one_piece_and_answered_in_the_order_of_asking() -> None:
    connection = ClientConnectionV2("b1")
    request_id, frames = connection.read_entries(5, [3, -1, 4], high_priority=True)
    assert _requests(frames) == [ReadRequest(HIGH_PRIORITY, 5, entry_id) for entry_id in (3, -1, 4)]
    assert connection.receive(ReadResponse(0, 5, 4, b"four").encode()) == []
    assert connection.receive(ReadResponse(2, 5, -1).encode()) == []
    (answer,) = connection.receive(ReadResponse(0, 5, 3, b"three").encode())
    assert isinstance(answer, Answer)
    assert answer.request_id == request_id
    assert (answer.value[0], answer.value[2]) == (b"three", b"four")
    assert isinstance(answer.value[1], NoSuchEntryError)
    assert connection.ignored_count == 0


def test_reads_of_one_entry_take_the_answers_in_the_order_of_asking() -> None:
    connection = ClientConnectionV2("b1")
    first, _ = connection.read_entries(5, [1])
    twice, _ = connection.read_entries(5, [1, 1])
    response = [ReadResponse(0, 5, 1, text).encode() for text in (b"a", b"b", b"c", b"d")]
    assert connection.receive(response[0]) == [Answer(first, [b"a"])]
    assert connection.receive(response[1]) == []
    assert connection.receive(response[2]) == [Answer(twice, [b"b", b"c"])]
    assert connection.receive(response[3]) == []
    assert connection.ignored_count == 1


def test_a_forgotten_read_leaves_its_answer_to_the_next() -> None:
    connection = ClientConnectionV2("b1")
    given_up, _ = connection.read_entries(5, [1, 1, 2])
    waiting, _ = connection.read_entries(5, [1])
    connection.forget(given_up)
    connection.forget(given_up)
    assert connection.receive(ReadResponse(0, 5, 2, b"late").encode()) == []
    assert connection.receive(ReadResponse(0, 5, 1, b"x").encode()) == [Answer(waiting, [b"x"])]
    assert connection.ignored_count == 1


def test_batch_reads_are_matched_by_request_id() -> None:
    connection = ClientConnectionV2("b1")
    read, _ = connection.read_entries(5, [1])
    first, frame = connection.batch_read(5, 1, 10, 1024)
    second, _ = connection.batch_read(5, 1, 10, 1024)
    assert _requests(frame) == [BatchReadRequest(0, 5, 1, first, 10, 1024)]
    assert len({read, first, second}) == 3
    assert connection.receive(BatchReadResponse(0, 5, 1, second, (b"b", b"c")).encode()) == [
        Answer(second, (b"b", b"c"))
    ]
    (failed,) = connection.receive(BatchReadResponse(1, 5, 1, first).encode())
    assert isinstance(failed, Answer)
    assert isinstance(failed.value, NoSuchLedgerError)


def test_a_batch_without_an_entry_is_an_error() -> None:
    connection = ClientConnectionV2("b1")
    request_id, _ = connection.batch_read(5, 1, 10, 1024)
    (answer,) = connection.receive(BatchReadResponse(0, 5, 1, request_id).encode())
    assert isinstance(answer, Answer)
    assert isinstance(answer.value, ReadError)


def test_answers_that_nobody_waits_for_are_counted() -> None:
    connection = ClientConnectionV2("b1")
    batch, _ = connection.batch_read(5, 1, 10, 1024)
    connection.forget(batch)
    late = [
        ReadResponse(0, 5, 1, b"x").encode(),
        BatchReadResponse(0, 5, 1, batch, (b"x",)).encode(),
        BatchReadResponse(0, 5, 1, 99, (b"x",)).encode(),
        AuthPacket("AuthDisabledPlugin", b"").encode(),
        AuthPacket("", b"").encode(),  # shorter than any other response
    ]
    assert connection.receive(b"".join(late)) == []
    assert connection.ignored_count == 5


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x50\x00\x00",
        b"\0\0\0\0",
        b"\0\0\0\x04\x02\x01\0\0",
        b"\0\0\0\x18\x02\x05\0\0" + bytes(20),
        b"\0\0\0\x19\x02\x07\0\0" + bytes(21),
    ],
)
def test_what_is_no_response_is_corrupt_whatever_came_before(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        ClientConnectionV2("b1").receive(data)
    with pytest.raises(CorruptDataError):
        ClientConnectionV2("b1").receive(_stored(1, 0, 1, 2) + data)


def test_the_frame_limit_holds_for_answers() -> None:
    connection = ClientConnectionV2("b1", frame_bytes_max=100)
    connection.read_entries(5, [1])
    with pytest.raises(CorruptDataError, match="limit is 96"):
        connection.receive(ReadResponse(0, 5, 1, bytes(73)).encode())


adds = st.builds(AddResponse, st.sampled_from([0, 0, 0, 101, 104]), st.integers(0, 2), st.integers(0, 9))
reads = st.builds(
    ReadResponse, st.sampled_from([0, 2]), st.just(0), st.integers(0, 3), st.binary(max_size=30)
)


@given(st.lists(adds | reads, max_size=30), st.lists(st.integers(1, 70), min_size=1, max_size=8))
def test_events_do_not_depend_on_how_the_stream_is_cut(
    responses: list[AddResponse | ReadResponse], sizes: list[int]
) -> None:
    stream = b"".join(response.encode() for response in responses)
    whole, pieces = ClientConnectionV2("b1"), ClientConnectionV2("b1")
    for connection in (whole, pieces):
        for entry_id in range(4):
            connection.read_entries(0, [entry_id])
    expected = _seen(whole.receive(stream))
    seen: list[Any] = []
    start = turn = 0
    while start < len(stream):
        size = sizes[turn % len(sizes)]
        seen += _seen(pieces.receive(stream[start : start + size]))
        start += size
        turn += 1
    assert _without_errors(seen) == _without_errors(expected)
    assert sum(isinstance(response, AddResponse) for response in responses) == sum(
        not isinstance(event, Answer) for event in expected
    )


def _without_errors(seen: list[Any]) -> list[Any]:
    """Errors of two connections are never equal: their types stand for them."""
    return [
        (event.request_id, [type(v) if isinstance(v, BookKeeperError) else v for v in event.value])
        if isinstance(event, Answer)
        else event
        for event in seen
    ]


def test_a_recorded_session_of_a_java_bookie_is_understood() -> None:
    """`v2-add-read`: entries 0..2 are added one by one, then read."""
    requests = _requests(fixture_path("wire", "v2-add-read.conn1.c2b.bin").read_bytes())
    asked = [request for request in requests if isinstance(request, ReadRequest)]
    assert [request.entry_id for request in asked] == [0, 1, 2]
    connection = ClientConnectionV2("java")
    request_id, _ = connection.read_entries(asked[0].ledger_id, [0, 1, 2])
    stored, answer = connection.receive(fixture_path("wire", "v2-add-read.conn1.b2c.bin").read_bytes())
    assert stored == AddsStored(asked[0].ledger_id, 0, 2)
    assert isinstance(answer, Answer)
    assert answer.request_id == request_id
    assert [entry[36:] for entry in answer.value] == [b"entry-0", b"entry-1", b"entry-2"]
