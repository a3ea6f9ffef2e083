"""bkctl client and commands → Java bookies: ledgers that are open, and how they end."""

import asyncio

import pytest

from bkctl.client.reader import LedgerReader
from bkctl.errors import LedgerClosedError, LedgerFencedError
from bkctl.formats.entry import Digester, master_key
from bkctl.quorum.reads import Entry
from bkctl.types import DigestType, EntryId, LedgerId, MetadataState
from tests.interop.apache import JavaClient
from tests.interop.busy_writer import PATIENCE_S, SIZE, BusyWriter
from tests.interop.java_bookies import JavaCluster, payloads
from tests.interop.payload import digest, expected, payload


async def assert_holds(reader: LedgerReader, last: int) -> None:
    """Entries 0 to `last` and nothing more."""
    assert reader.last_add_confirmed == last
    entries = [(entry.entry_id, entry.payload) async for entry in reader.entries()]
    assert digest(entries) == expected(0, last, SIZE)


async def lac_reaches(reader: LedgerReader, entry_id: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await reader.read_last_add_confirmed() < entry_id:
            await asyncio.sleep(0.01)


# -- last add confirmed ------------------------------------------------------------------------------


async def test_last_entry_is_confirmed_by_explicit_lac_alone(cluster: JavaCluster, java: JavaClient) -> None:
    async with cluster.client(explicit_lac_interval_ms=20) as writing, cluster.client() as reading:
        writer = await writing.create_ledger()
        await writer.append_many(payloads(0, 9, SIZE))
        reader = await reading.open_ledger_no_recovery(writer.ledger_id)
        await lac_reaches(reader, 9)
        await assert_holds(reader, 9)
        java.call("open", handle="r", id=writer.ledger_id, recovery=False)
        assert java.call("read_lac", handle="r", how="explicit") == 9


async def test_written_lac_is_read_back_from_each_bookie(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        writer = await client.create_ledger(password=b"pw")
        await writer.append_many(payloads(0, 9, SIZE))
        digester = Digester(DigestType.CRC32C, b"pw")
        for bookie_id in cluster.bookie_ids:
            channel = client.pool.channel(bookie_id)
            packet, last = await channel.read_lac(writer.ledger_id)
            assert packet is None
            assert digester.open_last_entry(last or b"", writer.ledger_id).entry_id == 9
            lac = digester.pack_lac(writer.ledger_id, 7)
            await channel.write_lac(writer.ledger_id, 7, master_key(b"pw"), lac)
            packet, _ = await channel.read_lac(writer.ledger_id)
            assert digester.open_lac(packet or b"", writer.ledger_id) == 7


async def test_long_poll_ends_with_the_entry_as_soon_as_it_is_confirmed(cluster: JavaCluster) -> None:
    async with cluster.client() as writing, cluster.client() as reading:
        writer = await writing.create_ledger()
        await writer.add(payload(0, SIZE))
        reader = await reading.open_ledger_no_recovery(writer.ledger_id)
        for entry_id in range(5):
            poll = asyncio.create_task(reader.poll(EntryId(entry_id), 60_000))
            await asyncio.sleep(0.02)
            assert not poll.done()
            await writer.add(payload(entry_id + 1, SIZE))  # brings the news about its predecessor
            async with asyncio.timeout(PATIENCE_S):
                found = await poll
            assert found.last_add_confirmed == entry_id
            assert found.entry is not None
            assert found.entry.payload == payload(entry_id, SIZE)


async def test_long_poll_without_news_ends_in_time(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        writer = await client.create_ledger()
        await writer.add(b"entry")
        reader = await client.open_ledger_no_recovery(writer.ledger_id)
        began = asyncio.get_running_loop().time()
        assert await reader.poll(EntryId(0), 300) == (-1, None)
        assert 0.25 < asyncio.get_running_loop().time() - began < 5


async def test_open_ledger_is_followed_to_its_end(cluster: JavaCluster) -> None:
    async with cluster.client(explicit_lac_interval_ms=20) as writing, cluster.client() as reading:
        writer = await writing.create_ledger()
        reader = await reading.open_ledger_no_recovery(writer.ledger_id)
        seen: list[Entry] = []

        async def follow() -> None:
            async for entry in reader.tail():
                seen.append(entry)  # noqa: PERF401 -- looked at while it grows

        following = asyncio.create_task(follow())
        for start in range(0, 200, 20):
            await writer.append_many(payloads(start, start + 19, SIZE))
            async with asyncio.timeout(PATIENCE_S):
                while len(seen) < start + 20:  # confirmed, and seen while the ledger is open
                    await asyncio.sleep(0.005)
        await writer.close()
        async with asyncio.timeout(PATIENCE_S):
            await following
        assert digest((entry.entry_id, entry.payload) for entry in seen) == expected(0, 199, SIZE)


async def test_reader_that_does_not_recover_leaves_the_writer_alone(cluster: JavaCluster) -> None:
    async with cluster.client() as writing, cluster.client() as reading:
        writer = await writing.create_ledger()
        await writer.append_many(payloads(0, 99, SIZE))
        async with await reading.open_ledger_no_recovery(writer.ledger_id) as reader:
            assert not reader.closed
        await writer.append_many(payloads(100, 199, SIZE))
        await writer.close()
        await assert_holds(await reading.open_ledger(writer.ledger_id), 199)


# -- deferred sync -----------------------------------------------------------------------------------


async def test_deferred_adds_are_confirmed_by_force(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        writer = await client.create_ledger(deferred_sync=True)
        assert await writer.append_many(payloads(0, 499, SIZE)) == (0, 499)
        assert writer.last_add_confirmed == -1
        await writer.force()
        assert writer.last_add_confirmed == 499
        assert await writer.append_many(payloads(500, 599, SIZE)) == (500, 599)
        assert writer.last_add_confirmed == 499
        await writer.force()
        await writer.close()
        await assert_holds(await client.open_ledger(writer.ledger_id), 599)


async def test_force_of_an_ordinary_ledger_changes_nothing(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        async with await client.create_ledger() as writer:
            await writer.force()
            await writer.append_many(payloads(0, 9, SIZE))
            await writer.force()
        await assert_holds(await client.open_ledger(writer.ledger_id), 9)


# -- fencing and recovery ----------------------------------------------------------------------------


async def fenced(writing: BusyWriter) -> int:
    """The number of adds that were acknowledged before the fence."""
    acked, failure = await writing.ended()
    assert isinstance(failure, LedgerFencedError)
    with pytest.raises((LedgerFencedError, LedgerClosedError)):
        await writing.writer.add(b"after the fence")
    with pytest.raises(LedgerFencedError):
        await writing.writer.close()
    return acked


SHAPES = [(3, 3, 2), (3, 2, 2), (3, 3, 3), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
@pytest.mark.parametrize("count", [1, 300])
async def test_writer_is_fenced_by_a_recovering_reader_and_both_agree_on_the_end(
    cluster: JavaCluster, shape: tuple[int, int, int], count: int
) -> None:
    async with cluster.client() as first, cluster.client() as second:
        writing = await BusyWriter.start(first, *shape)
        await writing.acked(count)
        reader = await second.open_ledger(writing.writer.ledger_id)
        end = reader.last_add_confirmed
        assert await fenced(writing) - 1 <= end
        await assert_holds(reader, end)
        await assert_holds(await first.open_ledger(writing.writer.ledger_id), end)


async def test_our_writer_is_fenced_by_a_recovering_java_reader(
    cluster: JavaCluster, java: JavaClient
) -> None:
    async with cluster.client() as client:
        writing = await BusyWriter.start(client, 3, 3, 2)
        await writing.acked(300)
        ledger_id = writing.writer.ledger_id
        opened = await asyncio.to_thread(java.call, "open", handle="r", id=ledger_id, recovery=True)
        acked = await fenced(writing)
        end = opened["last_entry_id"]
        assert acked - 1 <= end
        await assert_holds(await client.open_ledger(ledger_id), end)
        assert java.call("read", handle="r", first=0, last=end)["sha256"] == expected(0, end, SIZE)


async def test_java_writer_is_fenced_by_our_recovering_reader(cluster: JavaCluster, java: JavaClient) -> None:
    ledger_id = LedgerId(java.call("create", handle="w")["id"])
    java.call("start_adds", handle="w", count=10_000_000, size=SIZE)
    async with cluster.client() as client:
        async with asyncio.timeout(PATIENCE_S):
            while java.call("handle", handle="w")["lac"] < 300:
                await asyncio.sleep(0.01)
        reader = await client.open_ledger(ledger_id)
        done = java.call("wait_adds", handle="w")
        assert done["error"] == "BKLedgerFencedException"
        assert done["last_acked"] <= reader.last_add_confirmed
        await assert_holds(reader, reader.last_add_confirmed)


async def test_fenced_ledger_is_in_recovery_until_it_is_recovered(cluster: JavaCluster) -> None:
    async with cluster.client() as first, cluster.client() as second:
        writing = await BusyWriter.start(first, 3, 3, 2)
        await writing.acked(100)
        ledger_id = writing.writer.ledger_id
        report = await second.fence_ledger(ledger_id)
        assert report.metadata.value.state is MetadataState.IN_RECOVERY
        acked = await fenced(writing)
        report = await second.recover_ledger(ledger_id)
        assert report.metadata.value.closed
        assert acked - 1 <= report.last_entry_id
        await assert_holds(await first.open_ledger(ledger_id), report.last_entry_id)


async def test_ledger_without_entries_is_recovered_to_an_empty_one(cluster: JavaCluster) -> None:
    async with cluster.client() as first, cluster.client() as second:
        writer = await first.create_ledger()
        reader = await second.open_ledger(writer.ledger_id)
        assert (reader.closed, reader.last_add_confirmed, reader.length) == (True, -1, 0)
        with pytest.raises(LedgerFencedError):
            await writer.add(b"late")


async def test_two_recoveries_at_once_agree_on_the_end(cluster: JavaCluster, java: JavaClient) -> None:
    async with cluster.client() as first, cluster.client() as second, cluster.client() as third:
        writing = await BusyWriter.start(first, 3, 2, 2)
        await writing.acked(300)
        ledger_id = writing.writer.ledger_id
        ours, theirs, java_end = await asyncio.gather(
            second.open_ledger(ledger_id),
            third.open_ledger(ledger_id),
            asyncio.to_thread(java.call, "open", handle="r", id=ledger_id, recovery=True),
        )
        end = ours.last_add_confirmed
        assert {end, theirs.last_add_confirmed, java_end["last_entry_id"]} == {end}
        assert await fenced(writing) - 1 <= end
        await assert_holds(theirs, end)
