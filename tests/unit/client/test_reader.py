"""LedgerReader over scripted bookies."""

import asyncio
from contextlib import aclosing

import pytest

from bkctl.errors import (
    BookieHandleNotAvailableError,
    DigestMatchError,
    IncorrectParameterError,
    NoSuchEntryError,
    ReadError,
)
from bkctl.types import EntryId, LedgerId
from tests.unit.client.fake_cluster import FakeCluster, payloads

LAST = EntryId(99)


async def _closed_ledger(cluster: FakeCluster, count: int = 100, **options: int) -> LedgerId:
    async with cluster.client() as client:
        async with await client.create_ledger(**options) as ledger:
            await ledger.append_many(payloads(count))
        return ledger.ledger_id


def _damage(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize("write_quorum_size", [3, 2, 1])
async def test_what_was_written_is_read_back_in_order(write_quorum_size: int) -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster, write_quorum_size=write_quorum_size, ack_quorum_size=1)
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        entries = [entry async for entry in reader.entries()]
        assert [entry.entry_id for entry in entries] == list(range(100))
        assert [entry.payload for entry in entries] == payloads(100)
        assert entries[-1].length == reader.length == sum(map(len, payloads(100)))
        assert (await reader.read(EntryId(7), EntryId(9))) == entries[7:10]
        assert [entry async for entry in reader.entries(EntryId(90))] == entries[90:]


async def test_reads_are_split_where_segments_begin() -> None:
    """A bookie fails in the middle: both segments are read, each from its own bookies."""
    cluster = FakeCluster(4)
    async with cluster.client() as client:
        async with await client.create_ledger() as ledger:
            await ledger.append_many(payloads(10))
            gone = cluster.bookies[ledger.metadata.last_segment.ensemble[0]]
            gone.down = True
            await ledger.append_many(payloads(10, 10))
            await ledger.append_many(payloads(10, 20))
        assert len(ledger.metadata.segments) == 2
        reader = await client.open_ledger(ledger.ledger_id)
        assert [entry.payload async for entry in reader.entries()] == payloads(30)


async def test_a_batch_is_asked_of_one_bookie_at_once_and_batches_go_round() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster, 2000)
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        assert len(await reader.read(EntryId(0), EntryId(1999))) == 2000
        assert all(bookie.reads for bookie in cluster.bookies.values())
        asked = sorted(ids for bookie in cluster.bookies.values() for ids in bookie.reads)
        assert [(ids[0], ids[-1]) for ids in asked[:4]] == [(0, 15), (16, 515), (416, 515), (516, 1015)]


async def test_bookies_that_know_no_batch_reads_are_asked_entry_by_entry() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster)
    for bookie in cluster.bookies.values():
        bookie.before_4_17 = True
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        assert [entry.payload async for entry in reader.entries()] == payloads(100)


async def test_an_entry_with_a_bad_digest_is_read_from_another_replica(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster)
    for number, bookie in enumerate(cluster.bookies.values()):
        for entry_id in range(number, 100, 3):  # each entry is damaged on one bookie
            bookie.ledgers[ledger_id][entry_id] = _damage(bookie.ledgers[ledger_id][entry_id])
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        assert [entry.payload async for entry in reader.entries()] == payloads(100)
    assert "bad digest" in caplog.text


async def test_an_entry_that_is_damaged_everywhere_is_a_digest_error() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster)
    for bookie in cluster.bookies.values():
        bookie.ledgers[ledger_id][50] = _damage(bookie.ledgers[ledger_id][50])
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        with pytest.raises(DigestMatchError):
            await reader.read(EntryId(0), LAST)
        assert len(await reader.read(EntryId(51), LAST)) == 49


async def test_reads_survive_bookies_that_are_down() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster)
    for bookie in list(cluster.bookies.values())[:2]:
        bookie.down = True
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        assert len(await reader.read(EntryId(0), LAST)) == 100


async def test_no_such_entry_is_reported_only_if_every_replica_says_so() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster)
    for bookie in cluster.bookies.values():
        del bookie.ledgers[ledger_id][5]
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        with pytest.raises(NoSuchEntryError):
            await reader.read(EntryId(5), EntryId(5))
        next(iter(cluster.bookies.values())).down = True
        with pytest.raises(BookieHandleNotAvailableError):
            await reader.read(EntryId(5), EntryId(5))


async def test_a_silent_bookie_is_not_waited_for() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster)
    next(iter(cluster.bookies.values())).silent = True
    async with cluster.client(speculative_read_timeout_ms=20) as client:
        reader = await client.open_ledger(ledger_id)
        async with asyncio.timeout(3):
            assert len(await reader.read(EntryId(0), LAST)) == 100


async def test_ranges_are_checked() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster, 3)
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        for first, last in ((-1, 0), (2, 1)):
            with pytest.raises(IncorrectParameterError):
                await reader.read(EntryId(first), EntryId(last))
        with pytest.raises(ReadError, match="not confirmed"):
            await reader.read(EntryId(0), EntryId(3))
        with pytest.raises(NoSuchEntryError):
            await reader.read_unconfirmed(EntryId(0), EntryId(3))


async def test_an_empty_ledger_has_no_entries() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster, 1)
    async with cluster.client() as client:
        async with await client.create_ledger() as empty:
            pass
        reader = await client.open_ledger(empty.ledger_id)
        assert (reader.last_add_confirmed, reader.length, reader.closed) == (-1, 0, True)
        assert [entry async for entry in reader.entries()] == []
        assert ledger_id != empty.ledger_id


async def test_an_open_ledger_is_read_up_to_what_its_bookies_know_to_be_confirmed() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        await ledger.append_many(payloads(5))
        reader = await client.open_ledger_no_recovery(ledger.ledger_id)
        assert reader.last_add_confirmed == -1  # nobody has told the bookies yet
        await ledger.append(b"carries the LAC")
        assert await reader.read_last_add_confirmed() == 4
        assert [entry.payload for entry in await reader.read(EntryId(0), EntryId(4))] == payloads(5)
        assert (await reader.read_unconfirmed(EntryId(5), EntryId(5)))[0].payload == b"carries the LAC"
        assert not ledger.closed


async def test_a_lac_needs_answers_from_enough_bookies() -> None:
    """E=3, Qa=2: one silent bookie is none too many, two are."""
    cluster = FakeCluster(3)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        for payload in payloads(3):
            await ledger.append(payload)
        reader = await client.open_ledger_no_recovery(ledger.ledger_id)
        bookies = list(cluster.bookies.values())
        bookies[0].down = True
        assert await reader.read_last_add_confirmed() == 1
        bookies[1].down = True
        with pytest.raises(ReadError):
            await reader.read_last_add_confirmed()
        bookies[0].down = bookies[1].down = False


async def test_any_bookie_with_news_of_the_lac_is_enough_for_a_try() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        reader = await client.open_ledger_no_recovery(ledger.ledger_id)
        assert await reader.try_read_last_add_confirmed() == -1  # no bookie knows of the ledger
        for payload in payloads(3):
            await ledger.append(payload)
        bookies = list(cluster.bookies.values())
        bookies[0].down = bookies[1].down = True
        assert await reader.try_read_last_add_confirmed() == 1
        assert await reader.try_read_last_add_confirmed() == 1  # no news
        bookies[2].down = True
        with pytest.raises(ReadError):
            await reader.try_read_last_add_confirmed()
        for bookie in bookies:
            bookie.down = False


async def test_a_poll_waits_for_the_entry() -> None:
    """1. Nothing new: none after the timeout.  2. Entry 0 is confirmed by the next add: it comes along."""
    cluster = FakeCluster(3)
    async with cluster.client() as client, await client.create_ledger() as ledger:
        await ledger.append(b"zero")
        reader = await client.open_ledger_no_recovery(ledger.ledger_id)
        assert await reader.poll(EntryId(0), 10) == (-1, None)
        poll = asyncio.create_task(reader.poll(EntryId(0), 2_000))
        await asyncio.sleep(0.01)
        await ledger.append(b"one")
        lac, entry = await poll
        assert lac == 0
        assert entry is not None
        assert entry.payload == b"zero"
        assert (await reader.poll(EntryId(0), 0)).entry == entry


async def test_tail_follows_a_ledger_to_its_end() -> None:
    """Over an ensemble change, to the close by its writer."""
    cluster = FakeCluster(4)
    async with cluster.client() as client, cluster.client() as other:
        ledger = await client.create_ledger(write_quorum_size=2)
        reader = await other.open_ledger_no_recovery(ledger.ledger_id)

        async def follow() -> list[bytes]:
            return [entry.payload async for entry in reader.tail()]

        following = asyncio.create_task(follow())
        for number, payload in enumerate(payloads(30)):
            if number == 10:
                cluster.bookies[ledger.metadata.last_segment.ensemble[0]].down = True
            await ledger.append(payload)
            await asyncio.sleep(0)
        await ledger.close()
        async with asyncio.timeout(5):
            assert await following == payloads(30)
        assert reader.closed


async def test_tail_ends_when_the_ledger_is_deleted() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger()
        reader = await client.open_ledger_no_recovery(ledger.ledger_id)
        following = asyncio.create_task(anext(reader.tail(), None))
        await asyncio.sleep(0.01)
        await client.delete_ledger(ledger.ledger_id)
        async with asyncio.timeout(5):
            assert await following is None
        assert reader.deleted


async def test_leaving_an_iteration_early_leaves_no_task_behind() -> None:
    cluster = FakeCluster(3)
    ledger_id = await _closed_ledger(cluster, 2000)
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        before = len(asyncio.all_tasks())
        async with aclosing(reader.entries()) as entries:
            async for entry in entries:
                if entry.entry_id == 20:
                    break
        assert len(asyncio.all_tasks()) == before
