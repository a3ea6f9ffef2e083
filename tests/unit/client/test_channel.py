"""The pool's channels against a scripted bookie on a real socket, on both event loops."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from bkctl.client.channel import BookieChannel
from bkctl.client.pool import BookiePool
from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    ClientClosedError,
    IllegalOperationError,
    LedgerFencedError,
    MetadataUnreachableError,
    NoSuchEntryError,
    RequestTimeoutError,
    WriteOnReadOnlyBookieError,
)
from bkctl.formats import request_v3
from bkctl.formats.availability import Availability
from bkctl.formats.entry import Digester
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.request_v2 import (
    AddRequest,
    AddResponse,
    BatchReadRequest,
    BatchReadResponse,
    ReadRequest,
    ReadResponse,
)
from bkctl.formats.result_code import ResultCode
from bkctl.types import Address, BookieId, DigestType
from bkctl.wire.events import LongPollAnswer
from tests.unit.client.fake_bookie import B1, FakeBookie, kind_answer, serving, silence, until

DIGESTER = Digester(DigestType.CRC32C, b"")
Body = Callable[[], Coroutine[Any, Any, None]]


class Sink:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.failed: list[tuple[int, BookKeeperError]] = []
        self.lost: list[BookKeeperError] = []

    def adds_stored(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> None:
        assert bookie_id == B1
        self.stored += range(first_entry_id, last_entry_id + 1)

    def add_failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> None:
        self.failed.append((entry_id, error))

    def channel_lost(self, bookie_id: BookieId, error: BookKeeperError) -> None:
        self.lost.append(error)


def _adds(ledger_id: int, first: int, count: int) -> list[Any]:
    parts, _ = DIGESTER.pack_adds(ledger_id, first, -1, 0, [b"payload"] * count)
    return parts


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    def run_it(body: Body) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(body(), 20))

    return run_it


Run = Callable[[Body], None]


def test_connections_open_on_first_use_and_are_shared(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            channel = pool.channel(B1)
            assert pool.channel(B1) is channel
            await asyncio.sleep(0)
            assert bookie.connections == []
            assert await channel.read_entry(1, 5) == b"entry-5"
            assert await channel.read_last(1) == b"entry--1"
            assert len(bookie.connections) == 1
            await channel.force_ledger(1)
            await channel.write_lac(1, 3, b"key", b"packet")
            assert len(bookie.connections) == 2

    run(body)


def test_adds_sent_while_connecting_arrive_once_connected(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            channel, sink = pool.channel(B1), Sink()
            channel.attach(1, sink)
            parts = _adds(1, 0, 10)
            channel.send_adds(1, parts)
            channel.send_adds(1, b"".join(_adds(1, 10, 10)))
            assert channel.outstanding_bytes == 2 * len(b"".join(parts))
            await until(lambda: len(sink.stored) == 20)
            assert sink.stored == list(range(20))
            assert channel.outstanding_bytes == 0
            assert bookie.requests[0] == AddRequest(0, DIGESTER.master_key, b"".join(parts[1:4]))
            assert len(bookie.connections) == 1

    run(body)


def test_all_sends_of_one_turn_of_the_loop_leave_together(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            channel, sink = pool.channel(B1), Sink()
            channel.attach(1, sink)
            await channel.read_entry(1, 0)
            before = bookie.chunks
            for entry_id in range(50):
                channel.send_adds(1, _adds(1, entry_id, 1))
            await until(lambda: len(sink.stored) == 50)
            assert bookie.chunks == before + 1

    run(body)


def test_answers_go_to_the_sink_of_their_ledger_while_it_is_attached(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            channel, one, two, gone = pool.channel(B1), Sink(), Sink(), Sink()
            for ledger_id, sink in ((1, one), (2, two), (3, gone)):
                channel.attach(ledger_id, sink)
                channel.send_adds(ledger_id, _adds(ledger_id, 10 * ledger_id, 2))
            channel.detach(3)
            successor = Sink()
            channel.attach(3, successor)
            await until(lambda: one.stored and two.stored)
            assert (one.stored, two.stored, gone.stored) == ([10, 11], [20, 21], [])
            bookie.connections[0].abort()
            await until(lambda: one.lost and two.lost)
            assert gone.lost == successor.lost == []  # the successor has sent nothing

    run(body)


def test_two_writers_of_a_ledger_need_two_channels(run: Run) -> None:
    """A v2 answer cannot tell them apart; a recovery must not count a writer's adds."""

    async def body() -> None:
        async with serving() as (_, pool):
            channel, writer, recovery = pool.channel(B1), Sink(), Sink()
            channel.attach(1, writer)
            channel.attach(1, writer)
            with pytest.raises(IllegalOperationError, match="ledger 1 is already being written"):
                channel.attach(1, recovery)
            other = pool.channel(B1, recovery=True)
            other.attach(1, recovery)
            channel.send_adds(1, _adds(1, 0, 1))
            other.send_adds(1, _adds(1, 7, 1))
            await until(lambda: writer.stored and recovery.stored)
            assert (writer.stored, recovery.stored) == ([0], [7])

    run(body)


def test_a_refused_add_reaches_the_sink_as_the_error_of_its_code(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = lambda request: AddResponse(105, 1, 4).encode()
            channel, sink = pool.channel(B1), Sink()
            channel.attach(1, sink)
            channel.send_adds(1, _adds(1, 4, 1))
            await until(lambda: sink.failed)
            ((entry_id, error),) = sink.failed
            assert (entry_id, type(error)) == (4, WriteOnReadOnlyBookieError)

    run(body)


def test_deferred_adds_and_their_force_use_the_v3_connection(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            channel, sink = pool.channel(B1), Sink()
            channel.attach(1, sink)
            bodies, _ = DIGESTER.pack_entries(1, 0, -1, 0, [b"a", b"b", b"c"])
            channel.send_deferred_adds(1, 0, bodies, DIGESTER.master_key)
            await until(lambda: sink.stored == [0, 1, 2])
            await channel.force_ledger(1)
            assert [request.addRequest.body for request in bookie.requests[:3]] == bodies
            assert len(bookie.connections) == 1
            bookie.connections[0].abort()
            await until(lambda: sink.lost)
            await channel.force_ledger(1)
            assert len(bookie.connections) == 2

    run(body)


def test_reads_of_a_batch_give_each_its_entry_or_error(run: Run) -> None:
    def answer(request: Any) -> bytes | None:
        if request.entry_id == 3:
            return ReadResponse(2, 1, 3).encode()
        return kind_answer(request)

    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = answer
            channel = pool.channel(B1)
            assert await channel.read_entries(1, []) == []
            assert bookie.connections == []
            values = await channel.read_entries(1, range(2, 5))
            assert (values[0], values[2]) == (b"entry-2", b"entry-4")
            assert isinstance(values[1], NoSuchEntryError)
            assert bookie.chunks == 1
            with pytest.raises(NoSuchEntryError, match="bookie b1, ledger 1 entry 3: ENOENTRY"):
                await channel.read_entry(1, 3)

    run(body)


def test_a_batch_read_is_limited_to_what_fits_a_frame(run: Run) -> None:
    def answer(request: Any) -> bytes | None:
        assert isinstance(request, BatchReadRequest)
        return BatchReadResponse(0, 1, 5, request.request_id, (b"five", b"six")).encode()

    async def body() -> None:
        async with serving(frame_bytes_max=1000) as (bookie, pool):
            bookie.answer = answer
            assert await pool.channel(B1).batch_read(1, 5, 10, 1 << 40) == [b"five", b"six"]
            assert bookie.requests[0].bytes_max == 1000

    run(body)


def test_fencing_goes_over_v3_and_plain_reads_over_v2(run: Run) -> None:
    """A v2 answer names no request: a plain read's could pass for the fencing one's."""

    async def body() -> None:
        async with serving() as (bookie, pool):
            channel = pool.channel(B1)
            plain, fencing = await asyncio.gather(channel.read_last(1), channel.read_last(1, fence_key=b"k"))
            assert (plain, fencing) == (b"entry--1", b"v3")
            assert await channel.read_entry(1, 4, fence_key=b"k", high_priority=True) == b"v3"
            (v2,) = (request for request in bookie.requests if isinstance(request, ReadRequest))
            assert v2 == ReadRequest(0, 1, -1)
            last, entry = (request for request in bookie.requests if isinstance(request, pb.Request))
            assert (last.readRequest.entryId, last.readRequest.masterKey) == (-1, b"k")
            assert (entry.readRequest.entryId, entry.header.priority) == (4, 100)

    run(body)


def test_the_other_v3_requests_give_their_values(run: Run) -> None:
    fields = {
        "readRequest": {"entryId": 8, "body": b"entry", "maxLAC": 9},
        "readLacRequest": {"lacBody": b"lac", "lastEntryBody": b"last"},
        "getBookieInfoRequest": {"totalDiskCapacity": 100, "freeDiskSpace": 40},
        "getListOfEntriesOfLedgerRequest": {
            "availabilityOfEntriesOfLedger": Availability.of([1, 2]).encode()
        },
    }

    def answer(request: pb.Request) -> bytes:
        name = request_v3.REQUEST_FIELD[request.header.operation]
        return request_v3.encode_response(request, ResultCode.EOK, **fields[name])

    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = answer
            channel = pool.channel(B1)
            assert await channel.long_poll(1, 7, 100) == LongPollAnswer(8, b"entry", 9)
            assert await channel.read_lac(1) == (b"lac", b"last")
            assert await channel.bookie_info() == (100, 40)
            assert list(await channel.list_entries(1)) == [1, 2]

    run(body)


def test_errors_of_v3_requests_are_raised(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = lambda request: request_v3.encode_response(request, ResultCode.EFENCED)
            with pytest.raises(LedgerFencedError):
                await pool.channel(B1).write_lac(1, 3, b"key", b"packet")

    run(body)


def test_a_lost_connection_fails_what_was_outstanding_and_the_next_request_reconnects(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = silence
            channel, sink, idle = pool.channel(B1), Sink(), Sink()
            channel.attach(1, sink)
            channel.attach(2, idle)
            channel.send_adds(1, _adds(1, 0, 3))
            reads = [asyncio.ensure_future(channel.read_entry(1, entry_id)) for entry_id in range(3)]
            await until(lambda: len(bookie.requests) == 6)
            bookie.connections[0].abort()
            errors = await asyncio.gather(*reads, return_exceptions=True)
            assert {type(error) for error in errors} == {BookieHandleNotAvailableError}
            assert len(set(map(id, errors))) == 3
            assert [type(error) for error in sink.lost] == [BookieHandleNotAvailableError]
            assert (sink.stored, sink.failed, idle.lost) == ([], [], [])
            bookie.answer = kind_answer
            channel.send_adds(1, _adds(1, 0, 3))
            await until(lambda: sink.stored == [0, 1, 2])
            assert len(bookie.connections) == 2

    run(body)


def test_a_sink_may_send_again_as_soon_as_it_hears_of_the_loss(run: Run) -> None:
    class Stubborn(Sink):
        def channel_lost(self, bookie_id: BookieId, error: BookKeeperError) -> None:
            super().channel_lost(bookie_id, error)
            channel.send_adds(1, _adds(1, 0, 3))

    async def body() -> None:
        nonlocal channel
        async with serving() as (bookie, pool):
            bookie.answer = silence
            channel, sink = pool.channel(B1), Stubborn()
            channel.attach(1, sink)
            channel.send_adds(1, _adds(1, 0, 3))
            await until(lambda: len(bookie.requests) == 3)
            bookie.answer = kind_answer
            bookie.connections[0].abort()
            await until(lambda: sink.stored)
            assert (sink.stored, len(sink.lost)) == ([0, 1, 2], 1)
            channel.detach(1)

    channel: BookieChannel
    run(body)


def test_one_attempt_to_connect_serves_a_burst_and_fails_it_together(run: Run) -> None:
    async def body() -> None:
        attempts = 0

        async def resolve(bookie_id: BookieId) -> Address:
            nonlocal attempts
            attempts += 1
            await asyncio.sleep(0.01)
            raise MetadataUnreachableError(f"cannot resolve {bookie_id}")

        pool = BookiePool(resolve)
        channel, sink = pool.channel(B1), Sink()
        channel.attach(1, sink)
        channel.send_adds(1, _adds(1, 0, 3))
        reads = [channel.read_entry(1, 0), channel.read_entries(1, [1, 2]), channel.batch_read(1, 0, 1, 1)]
        errors = await asyncio.gather(*reads, return_exceptions=True)
        assert {str(error) for error in errors} == {"bookie b1: cannot resolve b1"}
        assert {type(error) for error in errors} == {BookieHandleNotAvailableError}
        assert (len(sink.lost), attempts) == (1, 1)
        with pytest.raises(BookieHandleNotAvailableError):
            await channel.read_entry(1, 0)
        assert attempts == 2
        await pool.close()

    run(body)


def test_a_bookie_that_is_not_there_is_not_available(run: Run) -> None:
    async def body() -> None:
        bookie = FakeBookie()
        (await bookie.listen()).close()
        await asyncio.sleep(0)
        pool = BookiePool(bookie.address)
        with pytest.raises(BookieHandleNotAvailableError, match=r"bookie b1: .*[Cc]onnect"):
            await pool.channel(B1).bookie_info()
        await pool.close()

    run(body)


def test_connecting_has_a_time_limit(run: Run) -> None:
    async def body() -> None:
        async def never(bookie_id: BookieId) -> Address:
            await asyncio.sleep(60)
            raise AssertionError

        pool = BookiePool(never, connect_timeout_ms=20)
        with pytest.raises(BookieHandleNotAvailableError, match="no connection within 20 ms"):
            await pool.channel(B1).read_entry(1, 0)
        await pool.close()

    run(body)


def test_a_request_without_an_answer_times_out_and_the_connection_stays(run: Run) -> None:
    async def body() -> None:
        async with serving(read_timeout_ms=30) as (bookie, pool):
            bookie.answer = silence
            channel = pool.channel(B1)
            requests = [channel.read_entry(1, 0), channel.read_entries(1, [0, 1]), channel.force_ledger(1)]
            errors = await asyncio.gather(*requests, return_exceptions=True)
            assert {type(error) for error in errors} == {RequestTimeoutError}
            bookie.answer = kind_answer
            assert await channel.read_entry(1, 0) == b"entry-0"
            assert len(bookie.connections) == 2

    run(body)


def test_requests_made_one_after_the_other_time_out_one_after_the_other(run: Run) -> None:
    async def body() -> None:
        async with serving(read_timeout_ms=30) as (bookie, pool):
            bookie.answer = silence
            channel = pool.channel(B1)
            for _ in range(2):  # the timer stops in between
                first = asyncio.ensure_future(channel.read_entry(1, 0))
                await asyncio.sleep(0.015)
                second = asyncio.ensure_future(channel.read_entry(1, 1))
                with pytest.raises(RequestTimeoutError):
                    await first
                with pytest.raises(RequestTimeoutError):
                    await second

    run(body)


def test_an_answer_that_comes_too_late_is_not_taken_for_that_of_the_next_request(run: Run) -> None:
    held: list[pb.Request] = []

    def answer(request: pb.Request) -> bytes | None:
        held.append(request)
        if len(held) == 1:
            return None
        late = request_v3.encode_response(held[0], ResultCode.EOK, lacBody=b"late")
        return late + request_v3.encode_response(request, ResultCode.EOK, lacBody=b"new")

    async def body() -> None:
        async with serving(read_timeout_ms=30) as (bookie, pool):
            bookie.answer = answer
            channel = pool.channel(B1)
            with pytest.raises(RequestTimeoutError):
                await channel.read_lac(1)
            assert await channel.read_lac(1) == (b"new", None)

    run(body)


def test_a_long_poll_may_last_longer_than_a_read(run: Run) -> None:
    async def body() -> None:
        async with serving(read_timeout_ms=30) as (bookie, pool):
            bookie.answer = silence
            channel = pool.channel(B1)
            started = asyncio.get_running_loop().time()
            with pytest.raises(RequestTimeoutError):
                await channel.long_poll(1, 0, 100)
            lasted = asyncio.get_running_loop().time() - started
            assert round(lasted, 3) >= 0.13  # 100 + 30 ms; the clock ticks in ms, floats do not

    run(body)


def test_a_cancelled_read_leaves_the_others_alone(run: Run) -> None:
    """Speculative reads are cancelled all the time."""

    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = silence
            channel = pool.channel(B1)
            slow = asyncio.ensure_future(channel.read_entry(1, 0))
            await until(lambda: bookie.requests)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            bookie.answer = kind_answer
            assert await channel.read_entry(1, 0) == b"entry-0"

    run(body)


@pytest.mark.parametrize("garbage", [b"\x7f\xff\xff\xff", b"\0\0\0\x01\xff", bytes(4)])
def test_bad_data_closes_the_connection_with_a_clear_error(run: Run, garbage: bytes) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = lambda request: garbage
            channel, sink = pool.channel(B1), Sink()
            channel.attach(1, sink)
            channel.send_adds(1, _adds(1, 0, 1))
            with pytest.raises(BookieHandleNotAvailableError, match="b1: closed after bad data: "):
                await channel.read_entry(1, 0)
            assert len(sink.lost) == 1
            await until(lambda: bookie.connections[0].is_closing())
            bookie.answer = kind_answer
            assert await channel.read_entry(1, 0) == b"entry-0"

    run(body)


def test_closing_fails_everything_and_closes_the_sockets(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            bookie.answer = silence
            channel, sink = pool.channel(B1), Sink()
            channel.attach(1, sink)
            channel.send_adds(1, _adds(1, 0, 1))
            requests = [
                asyncio.ensure_future(channel.read_entry(1, 0)),
                asyncio.ensure_future(channel.read_lac(1)),
            ]
            await until(lambda: len(bookie.requests) == 3)
            await pool.close()
            errors = await asyncio.gather(*requests, return_exceptions=True)
            assert [type(error) for error in (*errors, *sink.lost)] == [ClientClosedError] * 3
            await until(lambda: all(connection.is_closing() for connection in bookie.connections))
            with pytest.raises(ClientClosedError):
                channel.send_adds(1, _adds(1, 0, 1))
            with pytest.raises(ClientClosedError):
                await channel.bookie_info()
            with pytest.raises(ClientClosedError):
                pool.channel(B1)

    run(body)


def test_closing_while_connecting_waits_for_nobody(run: Run) -> None:
    async def body() -> None:
        async def never(bookie_id: BookieId) -> Address:
            await asyncio.sleep(60)
            raise AssertionError

        pool = BookiePool(never)
        read = asyncio.ensure_future(pool.channel(B1).read_entry(1, 0))
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(ClientClosedError):
            await read
        unused = BookiePool(never)
        unused.channel(B1).send_adds(1, b"")
        await unused.close()

    run(body)


def test_bytes_that_the_bookie_does_not_take_are_outstanding(run: Run) -> None:
    async def body() -> None:
        async with serving() as (bookie, pool):
            channel, sink = pool.channel(B1), Sink()
            channel.attach(1, sink)
            await channel.read_entry(1, 0)
            bookie.connections[0].pause_reading()
            block = b"".join(_adds(1, 0, 1))
            count = (32 << 20) // len(block)  # more than the socket buffers hold
            channel.send_adds(1, block * count)
            await asyncio.sleep(0.01)
            assert 0 < channel.outstanding_bytes <= len(block) * count
            bookie.connections[0].abort()
            await until(lambda: sink.lost)
            assert channel.outstanding_bytes == 0

    run(body)
