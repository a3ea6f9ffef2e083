"""The semantics of every wire operation (spec wire section 8, spec replication section 14)."""

import asyncio
import struct
from pathlib import Path

import pytest

from bkctl.formats import request_v2 as v2
from bkctl.formats import request_v3 as v3
from bkctl.formats.availability import Availability
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.result_code import ResultCode
from bkctl.metadata.memory import MemoryStore
from tests.unit.server.harness import KEY, OTHER_KEY, Wire, add, entry, fence, read, running_bookie

E = ResultCode


def run(scenario: object) -> None:
    asyncio.run(scenario)  # type: ignore[arg-type]


def test_an_added_entry_is_read_back_as_it_came(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            assert await wire.ask(add(7, 0)) == v2.AddResponse(0, 7, 0)
            assert await wire.ask(read(7, 0)) == v2.ReadResponse(0, 7, 0, entry(7, 0))
            assert await wire.ask(read(7, -1)) == v2.ReadResponse(0, 7, -1, entry(7, 0))

    run(scenario())


def test_pipelined_adds_are_answered_in_order_with_their_ids(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            wire.send(b"".join(add(ledger, n, b"x" * n).encode() for n in range(300) for ledger in (3, 4)))
            answers = [v2.decode_response(await wire.frame()) for _ in range(600)]
            for ledger in (3, 4):
                mine = [
                    a.entry_id for a in answers if isinstance(a, v2.AddResponse) and a.ledger_id == ledger
                ]
                assert mine == list(range(300))
            assert all(isinstance(a, v2.AddResponse) and a.rc == 0 for a in answers)

    run(scenario())


@pytest.mark.parametrize(
    ("request_", "rc"),
    [
        pytest.param(read(99, 0), E.ENOLEDGER, id="an unknown ledger"),
        pytest.param(read(7, 5), E.ENOENTRY, id="a missing entry"),
        pytest.param(read(7, -5), E.ENOENTRY, id="a negative entry id"),
        pytest.param(add(7, 1, key=OTHER_KEY), E.EUA, id="an add with the wrong master key"),
        pytest.param(fence(7, key=OTHER_KEY), E.EUA, id="a fence with the wrong master key"),
        pytest.param(add(-7, 1), E.EBADREQ, id="a negative ledger id"),
        pytest.param(add(7, -0x1000), E.EBADREQ, id="the entry id of a journal meta record"),
        pytest.param(v2.AddRequest(0, KEY, entry(7, 1)[:24]), E.EBADREQ, id="an entry without its header"),
        pytest.param(v2.AddRequest(0, KEY, entry(7, 1), version=9), E.EBADVERSION, id="an unknown version"),
        pytest.param(v2.ReadRequest(v2.FENCING, 7, -1, None, version=1), E.EUA, id="version 1 cannot fence"),
    ],
)
def test_a_refused_request_gets_its_code_and_harms_nobody(
    tmp_path: Path, request_: v2.AddRequest | v2.ReadRequest, rc: ResultCode
) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire, other = await Wire.to(server), await Wire.to(server)
            assert (await other.ask(add(7, 0))).rc == 0
            assert (await wire.ask(request_)).rc == rc.rc
            assert (await wire.ask(add(7, 1))).rc == 0  # the same connection goes on
            assert (await other.ask(read(7, 0))).entry == entry(7, 0)

    run(scenario())


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(struct.pack(">i", 5 << 20) + b"x", id="a frame over the limit"),
        pytest.param(struct.pack(">i", -1), id="a negative length"),
        pytest.param(struct.pack(">i", 0), id="an empty frame"),
        pytest.param(struct.pack(">iI", 4, 0x020B0000), id="an unknown opcode"),
        pytest.param(struct.pack(">iI", 4, 0x02040000), id="a reserved opcode"),
        pytest.param(struct.pack(">iI", 12, 0x02020000) + bytes(8), id="a read that is too short"),
        pytest.param(struct.pack(">i", 3) + b"\x0a\xff\xff", id="a broken v3 message"),
        pytest.param(
            struct.pack(">i", 8) + b"\x0a\x06\x08\x03\x10\x63\x18\x01", id="an unknown v3 operation"
        ),
    ],
)
def test_what_cannot_be_understood_closes_that_connection_only(tmp_path: Path, garbage: bytes) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire, other = await Wire.to(server), await Wire.to(server)
            assert (await other.ask(add(7, 0))).rc == 0
            wire.send(garbage)
            assert await wire.closed_by_peer()
            assert (await other.ask(read(7, 0))).entry == entry(7, 0)

    run(scenario())


def test_a_truncated_frame_is_dropped_with_its_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire, other = await Wire.to(server), await Wire.to(server)
            wire.send(add(7, 0).encode()[:-3])
            await wire.close()
            assert (await other.ask(read(7, 0))).rc == E.ENOLEDGER.rc

    run(scenario())


def test_a_fence_stops_adds_but_not_those_of_a_recovery(tmp_path: Path) -> None:
    """1. An entry. 2. The fence answers with it. 3. Adds: EFENCED. 4. Recovery adds go on. 5. Fence again."""

    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            assert (await wire.ask(add(7, 0))).rc == 0
            assert (await wire.ask(fence(7))).entry == entry(7, 0)
            assert (await wire.ask(add(7, 1))).rc == E.EFENCED.rc
            assert (await wire.ask(add(7, 1, flags=v2.RECOVERY_ADD | v2.HIGH_PRIORITY))).rc == 0
            assert (await wire.ask(fence(7))).entry == entry(7, 1)
            assert (await wire.ask(add(7, 2, key=OTHER_KEY))).rc == E.EUA.rc  # the key before the fence

    run(scenario())


def test_fencing_an_unknown_ledger_creates_it_fenced_for_ever(tmp_path: Path) -> None:
    """Replication B2, B3: the negative answer comes after the fence and its key are durable."""

    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            assert (await wire.ask(fence(7))).rc == E.ENOENTRY.rc
            assert (await wire.ask(add(7, 0))).rc == E.EFENCED.rc
            journal = next((tmp_path / "journal" / "current").glob("*.txn")).read_bytes()
            key_record = struct.pack(">iqqi", 40, 7, -0x1000, 20) + KEY
            fence_record = struct.pack(">iqq", 16, 7, -0x2000)
            assert 0 < journal.index(key_record) < journal.index(fence_record)

    run(scenario())


def test_an_entry_added_twice_succeeds_and_the_last_one_is_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            assert [(await wire.ask(add(7, 0, p))).rc for p in (b"first", b"second")] == [0, 0]
            assert (await wire.ask(read(7, 0))).entry == entry(7, 0, b"second")

    run(scenario())


def test_a_batch_read_counts_bytes_as_upstream_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            for n in range(10):
                await wire.ask(add(7, n))
            size = len(entry(7, 0)) + 4
            for count, limit, expected in (
                (10, 1 << 20, 10),
                (3, 1 << 20, 3),
                (0, 36 + 4 * size, 4),
                (5, 1, 1),
            ):
                answer = await wire.ask(v2.BatchReadRequest(0, 7, 0, 55, count, limit))
                assert (answer.rc, answer.request_id) == (0, 55)
                assert answer.entries == tuple(entry(7, n) for n in range(expected))
            answer = await wire.ask(v2.BatchReadRequest(0, 7, 8, 56, 10, 1 << 20))
            assert len(answer.entries) == 2  # fewer than asked is normal
            assert (await wire.ask(v2.BatchReadRequest(0, 7, 10, 57, 1, 100))).rc == E.ENOENTRY.rc

    run(scenario())


def test_auth_without_a_provider_says_that_it_is_disabled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            answer = await wire.ask_v3(pb.AUTH, authPluginName="sasl", payload=b"x")
            assert (answer.status, answer.authResponse.authPluginName) == (pb.EOK, "AuthDisabledPlugin")
            assert await wire.ask(v2.AuthPacket("sasl", b"x")) == v2.AuthPacket("AuthDisabledPlugin", b"")

    run(scenario())


def test_v3_adds_and_reads_carry_the_greatest_lac(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            for n in range(3):
                answer = await wire.ask_v3(
                    pb.ADD_ENTRY, ledgerId=7, entryId=n, masterKey=KEY, body=entry(7, n)
                )
                assert (answer.status, answer.addResponse.entryId) == (pb.EOK, n)
            answer = await wire.ask_v3(pb.READ_ENTRY, ledgerId=7, entryId=0)
            assert (answer.readResponse.body, answer.readResponse.maxLAC) == (entry(7, 0), 1)
            answer = await wire.ask_v3(
                pb.READ_ENTRY, ledgerId=7, entryId=-1, masterKey=KEY, flag=pb.ReadRequest.FENCE_LEDGER
            )
            assert answer.readResponse.body == entry(7, 2)
            assert not answer.readResponse.HasField("maxLAC")
            answer = await wire.ask_v3(pb.READ_ENTRY, ledgerId=8, entryId=0)
            assert (answer.status, answer.readResponse.status) == (pb.ENOLEDGER, pb.ENOLEDGER)

    run(scenario())


def test_ids_that_contradict_the_entry_are_refused(tmp_path: Path) -> None:
    """Replication B9."""

    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            answer = await wire.ask_v3(pb.ADD_ENTRY, ledgerId=7, entryId=1, masterKey=KEY, body=entry(7, 0))
            assert answer.status == pb.EBADREQ
            assert (await wire.ask_v3(pb.READ_ENTRY, ledgerId=7, entryId=0)).status == pb.ENOLEDGER

    run(scenario())


def test_explicit_lac_is_kept_verbatim_and_raises_the_lac(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            answer = await wire.ask_v3(pb.READ_LAC, ledgerId=7)
            assert answer.status == pb.ENOENTRY  # also for an unknown ledger
            for n in range(3):
                await wire.ask_v3(pb.ADD_ENTRY, ledgerId=7, entryId=n, masterKey=KEY, body=entry(7, n))
            packet = struct.pack(">qq", 7, 2) + b"digest"
            answer = await wire.ask_v3(pb.WRITE_LAC, ledgerId=7, lac=2, masterKey=KEY, body=packet)
            assert (answer.status, answer.writeLacResponse.ledgerId) == (pb.EOK, 7)
            answer = await wire.ask_v3(pb.READ_LAC, ledgerId=7)
            assert (answer.readLacResponse.lacBody, answer.readLacResponse.lastEntryBody) == (
                packet,
                entry(7, 2),
            )
            assert (await wire.ask_v3(pb.READ_ENTRY, ledgerId=7, entryId=0)).readResponse.maxLAC == 2
            refused = await wire.ask_v3(pb.WRITE_LAC, ledgerId=7, lac=2, masterKey=OTHER_KEY, body=packet)
            assert refused.status == pb.EUA

    run(scenario())


def test_a_long_poll_is_woken_by_a_lac_advance_a_fence_and_its_timeout(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire, writer = await Wire.to(server), await Wire.to(server)
            await writer.ask(add(7, 0))

            def poll(previous_lac: int, timeout_ms: int) -> asyncio.Task[pb.Response]:
                fields = {"previousLAC": previous_lac, "timeOut": timeout_ms}
                return asyncio.create_task(
                    wire.ask_v3(
                        pb.READ_ENTRY, ledgerId=7, entryId=-1, flag=pb.ReadRequest.ENTRY_PIGGYBACK, **fields
                    )
                )

            waiting = poll(-1, 60_000)
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await writer.ask(add(7, 1))  # carries LAC 0
            answer = (await waiting).readResponse
            assert (answer.entryId, answer.body, answer.maxLAC) == (0, entry(7, 0), 0)
            assert answer.HasField("lacUpdateTimestamp")
            answer = (await poll(0, 30)).readResponse  # nothing new: not an error
            assert (answer.entryId, answer.maxLAC, answer.HasField("body")) == (-1, 0, False)
            waiting = poll(0, 60_000)
            await asyncio.sleep(0.05)
            await writer.ask(fence(7))
            assert (await waiting).readResponse.entryId == -1

    run(scenario())


def test_a_deferred_add_is_answered_and_force_makes_it_durable(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            answer = await wire.ask_v3(
                pb.ADD_ENTRY,
                ledgerId=7,
                entryId=0,
                masterKey=KEY,
                body=entry(7, 0),
                writeFlags=v3.DEFERRED_SYNC,
            )
            assert answer.status == pb.EOK
            assert (await wire.ask_v3(pb.FORCE_LEDGER, ledgerId=7)).forceLedgerResponse.ledgerId == 7
            assert (await wire.ask_v3(pb.FORCE_LEDGER, ledgerId=12345)).status == pb.EOK

    run(scenario())


def test_the_list_of_entries_has_a_group_per_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            for n in (0, 1, 2, 5, 9):
                await wire.ask_v3(pb.ADD_ENTRY, ledgerId=7, entryId=n, masterKey=KEY, body=entry(7, n))
            answer = await wire.ask_v3(pb.GET_LIST_OF_ENTRIES_OF_LEDGER, ledgerId=7)
            data = answer.getListOfEntriesOfLedgerResponse.availabilityOfEntriesOfLedger
            assert list(Availability.decode(data)) == [0, 1, 2, 5, 9]
            assert (await wire.ask_v3(pb.GET_LIST_OF_ENTRIES_OF_LEDGER, ledgerId=8)).status == pb.ENOLEDGER

    run(scenario())


def test_bookie_info_gives_only_what_was_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            both = (await wire.ask_v3(pb.GET_BOOKIE_INFO, requested=3)).getBookieInfoResponse
            assert both.totalDiskCapacity >= both.freeDiskSpace > 0
            one = (await wire.ask_v3(pb.GET_BOOKIE_INFO, requested=2)).getBookieInfoResponse
            assert (one.HasField("totalDiskCapacity"), one.HasField("freeDiskSpace")) == (False, True)

    run(scenario())


def test_unserved_v3_operations_and_start_tls_are_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            start_tls = v3.new_request(pb.START_TLS, 5)
            start_tls.startTLSRequest.SetInParent()
            for request in (v3.new_request(pb.RANGE_READ_ENTRY, 5), start_tls):
                wire.send(v3.encode(request))
                answer = pb.Response.FromString(await wire.frame())
                assert (answer.status, answer.header.txnId) == (pb.EBADREQ, 5)
            old = v3.new_request(pb.READ_LAC, 6)
            old.header.version = pb.VERSION_TWO
            old.readLacRequest.ledgerId = 1
            wire.send(v3.encode(old))
            assert pb.Response.FromString(await wire.frame()).status == pb.EBADVERSION

    run(scenario())


def test_a_read_only_bookie_serves_reads_fences_and_recovery_adds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_bookie(tmp_path) as server:
            wire = await Wire.to(server)
            await wire.ask(add(7, 0))
            server.bookie.read_only = True
            assert (await wire.ask(add(7, 1))).rc == E.EREADONLY.rc
            assert (await wire.ask(read(7, 0))).rc == 0
            assert (await wire.ask(fence(7))).rc == 0
            assert (await wire.ask(add(7, 1, flags=v2.RECOVERY_ADD))).rc == E.EREADONLY.rc
            assert (await wire.ask(add(7, 1, flags=v2.RECOVERY_ADD | v2.HIGH_PRIORITY))).rc == 0
            server.bookie.high_priority_writes = False
            assert (await wire.ask(add(7, 2, flags=v2.RECOVERY_ADD | v2.HIGH_PRIORITY))).rc == E.EREADONLY.rc

    run(scenario())


def test_more_reads_than_are_worked_on_at_once_are_all_answered(tmp_path: Path) -> None:
    """From disk: the bookie was restarted. The bounds per peer pause it and let it go on."""
    metadata = MemoryStore()

    async def scenario() -> None:
        async with running_bookie(tmp_path, metadata=metadata) as server:
            wire = await Wire.to(server)
            wire.send(b"".join(add(7, n).encode() for n in range(500)))
            for _ in range(500):
                await wire.frame()
        async with running_bookie(tmp_path, metadata=metadata) as server:
            wire = await Wire.to(server)
            wire.send(b"".join(read(7, n % 500).encode() for n in range(5000)))
            wire.send(b"".join(v2.BatchReadRequest(0, 7, n, n, 3, 1 << 20).encode() for n in range(400)))
            answers = [v2.decode_response(await wire.frame()) for _ in range(5400)]
            single = [a for a in answers if isinstance(a, v2.ReadResponse)]
            assert sorted(a.entry_id for a in single) == sorted([*range(500)] * 10)
            assert all(a.entry == entry(7, a.entry_id) for a in single)
            batches = [a for a in answers if isinstance(a, v2.BatchReadResponse)]
            assert {a.request_id: len(a.entries) for a in batches} == dict.fromkeys(range(400), 3)

    run(scenario())
