"""LedgerWriter over scripted bookies."""

import asyncio

import pytest

from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.settings import ClientSettings
from bkctl.client.writer import BLOCK_ENTRIES_MAX, LedgerWriter
from bkctl.errors import (
    AddEntryQuorumTimeoutError,
    ClientClosedError,
    DuplicateEntryIdError,
    IllegalOperationError,
    IncorrectParameterError,
    LedgerClosedError,
    LedgerFencedError,
    NotEnoughBookiesError,
    TooManyRequestsError,
    WriteError,
)
from bkctl.formats.entry import read_header
from bkctl.types import EntryId, MetadataState
from tests.unit.client.fake_cluster import FakeCluster, payloads


async def _metadata_state(client: BookKeeper, ledger: LedgerWriter) -> MetadataState:
    return (await client.metadata.ledgers.read(ledger.ledger_id)).value.state


async def test_appends_of_one_turn_of_the_loop_leave_as_one_block() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        futures = [ledger.append(payload) for payload in payloads(5)]
        assert await asyncio.gather(*futures) == [0, 1, 2, 3, 4]
        assert all(bookie.blocks == [[0, 1, 2, 3, 4]] for bookie in cluster.bookies.values())
        assert ledger.last_add_confirmed == 4


async def test_append_and_append_many_keep_the_order_of_the_calls() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        one, many, other = ledger.append(b"0"), ledger.append_many([b"1", b"2"]), ledger.append(b"3")
        assert (await one, await many, await other) == (0, (1, 2), 3)
        bodies = next(iter(cluster.bookies.values())).ledgers[ledger.ledger_id]
        assert [body[-1:] for body in bodies.values()] == [b"0", b"1", b"2", b"3"]


async def test_a_huge_batch_is_cut_into_blocks() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        assert await ledger.append_many([b"x"] * (BLOCK_ENTRIES_MAX + 1)) == (0, BLOCK_ENTRIES_MAX)
        assert [len(block) for block in next(iter(cluster.bookies.values())).blocks] == [BLOCK_ENTRIES_MAX, 1]


async def test_striped_entries_go_to_their_write_set_only() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger(write_quorum_size=2)
        await ledger.append_many(payloads(6))
        ensemble = ledger.metadata.last_segment.ensemble
        for entry_id in range(6):
            wanted = {ensemble[entry_id % 3], ensemble[(entry_id + 1) % 3]}
            assert cluster.holders(ledger.ledger_id, entry_id) == wanted
        await ledger.close()


async def test_close_stores_the_end_and_later_adds_are_refused() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger()
        await ledger.append_many([b"abc", b"de"])
        await ledger.close()
        metadata = (await client.metadata.ledgers.read(ledger.ledger_id)).value
        assert (metadata.state, metadata.last_entry_id, metadata.length) == (MetadataState.CLOSED, 1, 5)
        with pytest.raises(LedgerClosedError):
            ledger.append(b"late")
        await ledger.close()


async def test_close_waits_for_adds_that_were_made_before() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger()
        future = ledger.append(b"just now")
        await ledger.close()
        assert await future == 0
        assert ledger.metadata.last_entry_id == 0


async def test_an_entry_that_does_not_fit_a_frame_is_refused_alone() -> None:
    cluster = FakeCluster(3)
    async with cluster.client(frame_bytes_max=1000) as client, await client.create_ledger() as ledger:
        before = ledger.append(b"small")
        with pytest.raises(IncorrectParameterError, match="fit a frame"):
            ledger.append(bytes(1000))
        with pytest.raises(IncorrectParameterError, match="fit a frame"):
            ledger.append_many([b"small", bytes(1000)])
        with pytest.raises(IncorrectParameterError, match="no payload"):
            ledger.append_many([])
        assert await before == 0


def test_what_may_be_outstanding_fits_the_queue_of_a_java_bookie() -> None:
    """Twice, so that two ledgers that share a thread of the bookie do not overrun it."""
    assert 2 * ClientSettings().outstanding_entries_max <= 10_000


@pytest.mark.parametrize("limit", [{"outstanding_entries_max": 4}, {"outstanding_bytes_max": 60}])
async def test_outstanding_adds_are_bounded_by_count_and_bytes(limit: dict[str, int]) -> None:
    """1. Bookies are silent: at the bound appends are refused.  2. They answer: there is room again."""
    cluster = FakeCluster(3)
    async with cluster.client(**limit) as client:
        ledger = await client.create_ledger()
        for bookie in cluster.bookies.values():
            bookie.silent = True
        ledger.append_many(payloads(4))
        with pytest.raises(TooManyRequestsError, match="wait_writable"):
            ledger.append(b"one too many")
        await asyncio.sleep(0)
        room = asyncio.create_task(ledger.wait_writable())
        await asyncio.sleep(0.01)
        assert not room.done()
        for bookie in cluster.bookies.values():
            bookie.silent = False
        for bookie_id in cluster.bookies:
            ledger.adds_stored(bookie_id, 0, 3)
        await room
        assert await ledger.append(b"now") == 4


async def test_a_lagging_bookie_holds_the_writer_back_without_failing_it() -> None:
    cluster = FakeCluster(3)
    async with cluster.client(lagging_bytes_max=1000) as client, await client.create_ledger() as ledger:
        slow = cluster.bookies[ledger.metadata.last_segment.ensemble[2]]
        slow.unread = 1001
        await ledger.append(b"first")  # two others stored it
        room = asyncio.create_task(ledger.wait_writable())
        await asyncio.sleep(0.03)
        assert not room.done()
        slow.unread = 0
        await room
        assert ledger.ensemble_changes == 0


async def test_a_bookie_that_is_down_is_replaced_and_its_successor_gets_what_is_pending() -> None:
    cluster = FakeCluster(4)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        await ledger.append_many(payloads(2))
        before = ledger.metadata.last_segment.ensemble
        cluster.bookies[before[0]].down = True
        await ledger.append_many(payloads(3, 2))
        await ledger.append(b"after the change")
        after = ledger.metadata.last_segment
        assert before[0] not in after.ensemble
        assert after.first_entry_id == 2
        assert await ledger.append(b"more") == 6
        assert cluster.holders(ledger.ledger_id, 6) == set(after.ensemble)
        assert cluster.holders(ledger.ledger_id, 2) >= {after.ensemble[0]}


async def test_a_bookie_that_does_not_answer_in_time_is_replaced() -> None:
    cluster = FakeCluster(3)
    async with cluster.client(add_timeout_ms=50) as client:
        ledger = await client.create_ledger(ensemble_size=2, write_quorum_size=2, ack_quorum_size=2)
        silent = ledger.metadata.last_segment.ensemble[1]
        cluster.bookies[silent].silent = True
        assert await asyncio.wait_for(ledger.append(b"x"), 2) == 0
        assert silent not in ledger.metadata.last_segment.ensemble
        await ledger.close()


async def test_an_add_without_its_quorum_fails_when_the_caller_has_waited_long_enough() -> None:
    """However many bookies are to spare: each of them gets `add_timeout_ms` only."""
    cluster = FakeCluster(3)
    async with cluster.client(add_quorum_timeout_ms=60) as client:
        ledger = await client.create_ledger(ack_quorum_size=3)
        await ledger.append(b"stored")
        await asyncio.sleep(0.2)  # nothing is pending: no timeout
        cluster.bookies[ledger.metadata.last_segment.ensemble[1]].silent = True
        with pytest.raises(AddEntryQuorumTimeoutError):
            await asyncio.wait_for(ledger.append(b"waits"), 2)
        await ledger.close()
        assert ledger.metadata.last_entry_id == 0


async def test_with_a_delayed_change_one_lost_bookie_changes_nothing() -> None:
    cluster = FakeCluster(4)
    async with (
        cluster.client(delay_ensemble_change=True) as client,
        await client.create_ledger() as ledger,
    ):
        await ledger.append(b"everywhere")
        before = ledger.metadata.last_segment.ensemble
        cluster.bookies[before[0]].down = True
        await ledger.append_many(payloads(3))
        assert ledger.ensemble_changes == 0
        cluster.bookies[before[1]].down = True
        cluster.bookies[before[0]].down = False
        await ledger.append_many(payloads(3))
        assert ledger.metadata.last_segment.ensemble[2] == before[2]


async def test_without_a_spare_the_writer_goes_on_with_an_ack_quorum_and_takes_the_bookie_back() -> None:
    cluster = FakeCluster(3)
    async with cluster.client(add_timeout_ms=50) as client, await client.create_ledger() as ledger:
        down = cluster.bookies[ledger.metadata.last_segment.ensemble[0]]
        down.down = True
        await ledger.append_many(payloads(3))
        await ledger.append(b"with two copies")
        down.down = False
        down.blocks.clear()
        async with asyncio.timeout(5):
            while not down.blocks:
                await ledger.append(b"again")
                await asyncio.sleep(0.01)
        assert len(ledger.metadata.segments) == 1


async def test_without_an_ack_quorum_pending_adds_fail_and_the_ledger_is_closed_at_its_lac() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger(ack_quorum_size=3)
        await ledger.append(b"stored")
        cluster.bookies[ledger.metadata.last_segment.ensemble[0]].down = True
        with pytest.raises(NotEnoughBookiesError):
            await ledger.append(b"lost")
        await ledger.close()
        metadata = (await client.metadata.ledgers.read(ledger.ledger_id)).value
        assert (metadata.closed, metadata.last_entry_id, metadata.length) == (True, 0, 6)


async def test_a_fenced_writer_withdraws_and_leaves_the_metadata_alone() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger()
        await ledger.append(b"mine")
        for bookie in cluster.bookies.values():
            bookie.fenced.add(ledger.ledger_id)
        with pytest.raises(LedgerFencedError):
            await ledger.append(b"too late")
        with pytest.raises(LedgerFencedError):
            await ledger.close()
        assert await _metadata_state(client, ledger) is MetadataState.OPEN
        with pytest.raises(LedgerClosedError, match="fenced"):
            ledger.append(b"never")


async def test_a_failed_add_fails_all_after_it_and_later_ones_are_refused() -> None:
    cluster = FakeCluster(1)
    async with cluster.client() as client:
        ledger = await client.create_ledger(ensemble_size=1, write_quorum_size=1, ack_quorum_size=1)
        cluster.bookies[ledger.metadata.last_segment.ensemble[0]].refuse = WriteError("disk")
        futures = [ledger.append(b"1"), ledger.append(b"2")]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(result, NotEnoughBookiesError) for result in results)
        with pytest.raises(LedgerClosedError):
            await ledger.add(b"3")


async def test_deferred_adds_count_as_confirmed_after_a_force_only() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger(deferred_sync=True)
        await ledger.force()
        await ledger.append_many([b"ab", b"cd"])
        assert ledger.last_add_confirmed == -1
        await ledger.force()
        assert ledger.last_add_confirmed == 1
        assert all(bookie.forced == [ledger.ledger_id] for bookie in cluster.bookies.values())
        await ledger.append(b"never forced")
        await ledger.close()
        assert (ledger.metadata.last_entry_id, ledger.metadata.length) == (1, 4)


async def test_a_force_fails_if_one_bookie_does() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger(deferred_sync=True)
        await ledger.append(b"x")
        cluster.bookies[ledger.metadata.last_segment.ensemble[1]].down = True
        with pytest.raises(Exception, match="down"):
            await ledger.force()
        assert ledger.last_add_confirmed == -1


async def test_the_explicit_lac_is_told_to_the_write_set_when_no_add_carries_it() -> None:
    cluster = FakeCluster(3)
    async with cluster.client(explicit_lac_interval_ms=10) as client:
        ledger = await client.create_ledger()
        await ledger.append(b"x")
        await asyncio.sleep(0.05)
        for bookie in cluster.bookies.values():
            assert bookie.explicit_lacs[ledger.ledger_id][8:16] == bytes(8)
        assert read_header(next(iter(cluster.bookies.values())).ledgers[ledger.ledger_id][0]).lac == -1
        await ledger.close()


async def test_the_caller_of_an_advanced_ledger_chooses_the_ids() -> None:
    """1. Entry 1 waits for entry 0.  2. Ids are used once.  3. A plain add is refused."""
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger_adv()
        one = ledger.append(b"one", EntryId(1))
        await asyncio.sleep(0.01)
        assert not one.done()
        with pytest.raises(DuplicateEntryIdError):
            ledger.append(b"again", EntryId(1))
        with pytest.raises(IllegalOperationError):
            ledger.append(b"plain")
        with pytest.raises(IllegalOperationError):
            ledger.append_many([b"plain"])
        assert await ledger.add(b"zero", EntryId(0)) == 0
        assert await one == 1
        hole = ledger.append(b"three", EntryId(3))
        await ledger.close()
        with pytest.raises(LedgerClosedError):
            await hole
        assert (ledger.metadata.last_entry_id, ledger.metadata.length) == (1, 7)


async def test_a_client_that_closes_fails_what_is_pending_and_leaves_the_ledger_open() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as other:
        async with cluster.client() as client:
            ledger = await client.create_ledger()
            for bookie in cluster.bookies.values():
                bookie.silent = True
            future = ledger.append(b"x")
        with pytest.raises(ClientClosedError):
            await future
        assert await _metadata_state(other, ledger) is MetadataState.OPEN


async def test_a_broken_law_fails_the_handle_and_not_the_program(caplog: pytest.LogCaptureFixture) -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger()
        for bookie in cluster.bookies.values():
            bookie.silent = True
        future = ledger.append(b"x")
        await asyncio.sleep(0)

        def broken() -> list[object]:
            raise AssertionError("two and two are five")

        ledger._perform(broken)
        with pytest.raises(Exception, match="two and two are five"):
            await future
        assert ledger.closed


async def test_the_context_manager_does_not_hide_the_error_of_its_body() -> None:
    cluster = FakeCluster(3)

    async def body(client: BookKeeper) -> None:
        async with await client.create_ledger() as ledger:
            for bookie in cluster.bookies.values():
                bookie.fenced.add(ledger.ledger_id)
            ledger.append(b"x").add_done_callback(lambda future: future.exception())
            await asyncio.sleep(0.01)
            raise ZeroDivisionError

    async with cluster.client() as client:
        with pytest.raises(ZeroDivisionError):
            await body(client)
