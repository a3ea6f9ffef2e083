"""bkctl client and commands → Java bookies: bookies that die, hang or turn read-only."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bkctl.client.bookkeeper import BookKeeper
from bkctl.errors import TooManyRequestsError
from bkctl.types import LedgerId
from tests.interop.apache import Apache, JavaBookie
from tests.interop.busy_writer import PATIENCE_S, SIZE, BusyWriter
from tests.interop.java_bookies import STORAGES, JavaCluster, java_bookies, payloads
from tests.interop.payload import digest, expected

BOOKIES = 4
SETTINGS = {"zkTimeout": 4000}  # a dead bookie's registration goes so soon


@pytest.fixture(scope="module", params=STORAGES)
def cluster(
    request: pytest.FixtureRequest,
    apache: Apache,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[JavaCluster]:
    home: Path = tmp_path_factory.mktemp("java")
    with java_bookies(apache, new_cluster(), home, request.param, BOOKIES, SETTINGS) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _every_bookie_is_writable(cluster: JavaCluster) -> None:
    """One that was paused may still be on its way back."""

    async def wait() -> None:
        async with cluster.client() as client, asyncio.timeout(PATIENCE_S):
            while set(await client.metadata.registration.writable()) != set(cluster.bookie_ids):
                await asyncio.sleep(0.1)

    asyncio.run(wait())


async def restarted(bookies: list[JavaBookie]) -> None:
    """Wait until all of them, started already or not, are ready."""
    for bookie in bookies:
        if bookie.process is None:
            bookie.start(wait=False)
    for bookie in bookies:
        await asyncio.to_thread(bookie.wait_ready)


async def assert_holds(client: BookKeeper, ledger_id: LedgerId, acked: int) -> None:
    """Recovered or closed, the ledger has its first `acked` entries, and no others than were added."""
    reader = await client.open_ledger(ledger_id)
    end = reader.last_add_confirmed
    assert end >= acked - 1, "acknowledged entries are lost"
    entries = [(entry.entry_id, entry.payload) async for entry in reader.entries()]
    assert digest(entries) == expected(0, end, SIZE)


@pytest.mark.parametrize(("shape", "acked_max"), [((3, 3, 2), 0), ((3, 2, 2), 500), ((3, 3, 3), 20_000)])
async def test_killed_bookie_is_replaced_amid_pipelined_adds_and_nothing_is_lost(
    cluster: JavaCluster, shape: tuple[int, int, int], acked_max: int
) -> None:
    """Which bookie dies, and after how many acknowledged adds, is drawn; 0: before there is any."""
    seeded = random.Random(f"{cluster.storage} {shape}")
    async with cluster.client() as client:
        writing = await BusyWriter.start(client, *shape)
        await writing.acked(seeded.randint(0, acked_max))
        bookie = cluster.bookie(seeded.choice(writing.writer.metadata.last_segment.ensemble))
        bookie.kill()
        try:
            await writing.acked(writing.acked_count + 5000)
            acked, failure = await writing.stop()
            assert failure is None
            await writing.writer.close()
            metadata = writing.writer.metadata
            assert (metadata.last_entry_id, metadata.length) == (acked - 1, acked * SIZE)
            assert bookie.name not in metadata.last_segment.ensemble
            async with cluster.client() as second:  # the bookie is still away
                await assert_holds(second, writing.writer.ledger_id, acked)
        finally:
            async with asyncio.timeout(PATIENCE_S):  # or its old registration would pass for the new one
                while bookie.name in await client.metadata.registration.writable():
                    await asyncio.sleep(0.05)
            await restarted([bookie])


async def test_nothing_acknowledged_is_lost_when_all_bookies_are_killed_and_restarted(
    cluster: JavaCluster,
) -> None:
    async with cluster.client() as client:
        writing = await BusyWriter.start(client)
        await writing.acked(1234)
        for bookie in cluster.bookies:
            bookie.kill()
        acked, failure = await writing.ended()
        assert failure is not None
    await restarted(list(cluster.bookies))
    async with cluster.client() as client:
        await assert_holds(client, writing.writer.ledger_id, acked)
        again = await BusyWriter.start(client)
        await again.acked(1000)
        acked, failure = await again.stop()
        assert failure is None
        await assert_holds(client, again.writer.ledger_id, acked)


@contextlib.contextmanager
def paused(bookie: JavaBookie) -> Iterator[None]:
    assert bookie.process is not None
    bookie.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        bookie.process.send_signal(signal.SIGCONT)


async def test_bookie_that_hangs_for_a_moment_is_not_overrun_when_it_goes_on(cluster: JavaCluster) -> None:
    """All that waited comes at once, and a Java bookie refuses what its queue does not hold."""
    async with cluster.client(add_timeout_ms=1000 * PATIENCE_S) as client:
        count = client.settings.outstanding_entries_max
        writer = await client.create_ledger(ack_quorum_size=3)
        ensemble = writer.metadata.last_segment.ensemble
        with paused(cluster.bookie(ensemble[1])):
            outcomes = [
                writer.append_many(payloads(first, first + 99, SIZE)) for first in range(0, count, 100)
            ]
            with pytest.raises(TooManyRequestsError):
                writer.append(b"one more")
            await asyncio.sleep(0.1)  # it may be longer until all is sent: what is left comes after it
        assert (await outcomes[-1])[1] == count - 1
        await writer.close()
        assert writer.metadata.last_segment.ensemble == ensemble
        await assert_holds(client, writer.ledger_id, count)


async def test_paused_bookie_is_replaced_and_its_late_answers_change_nothing(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        writing = await BusyWriter.start(client, 3, 3, 3)
        await writing.acked(100)
        name = writing.writer.metadata.last_segment.ensemble[1]
        with paused(cluster.bookie(name)):
            async with asyncio.timeout(PATIENCE_S):
                while name in writing.writer.metadata.last_segment.ensemble:
                    await asyncio.sleep(0.01)
            await writing.acked(writing.acked_count + 1000)
        await writing.acked(writing.acked_count + 1000)
        acked, failure = await writing.stop()
        assert failure is None
        await writing.writer.close()
        await assert_holds(client, writing.writer.ledger_id, acked)


async def test_paused_bookie_is_read_around(cluster: JavaCluster) -> None:
    patient = {"speculative_read_timeout_ms": 100, "read_timeout_ms": 1000 * PATIENCE_S}
    async with cluster.client(**patient) as client, cluster.client(**patient) as fresh:
        async with await client.create_ledger(write_quorum_size=2) as writer:
            await writer.append_many(payloads(0, 999, SIZE))
        name = writer.metadata.last_segment.ensemble[0]
        with paused(cluster.bookie(name)):
            for reading in (client, fresh):  # connected to it before, or not
                async with asyncio.timeout(PATIENCE_S / 2):
                    await assert_holds(reading, writer.ledger_id, 1000)


async def test_recovery_goes_on_without_a_paused_bookie(cluster: JavaCluster) -> None:
    async with cluster.client() as first, cluster.client() as second:
        writing = await BusyWriter.start(first)
        await writing.acked(500)
        with paused(cluster.bookie(writing.writer.metadata.last_segment.ensemble[0])):
            report = await second.recover_ledger(writing.writer.ledger_id)
            acked, failure = await writing.ended()
            assert failure is not None
            assert report.last_entry_id >= acked - 1
        await assert_holds(first, writing.writer.ledger_id, acked)


async def test_bookie_that_turns_read_only_serves_reads_and_is_replaced_for_adds(
    cluster: JavaCluster, apache: Apache
) -> None:
    """Of an ensemble it is still part of. The last test here: the bookie stays read-only."""
    async with cluster.client() as client:
        async with await client.create_ledger(ensemble_size=BOOKIES) as before:
            await before.append_many(payloads(0, 999, SIZE))
        idle = await client.create_ledger(ack_quorum_size=3)  # no bookie has heard of it
        name = idle.metadata.last_segment.ensemble[0]
        cluster.bookie(name).kill()
        readonly = JavaBookie(
            apache,
            cluster.uri,
            cluster.bookie(name).directory,
            name,
            {**SETTINGS, "forceReadOnlyBookie": "true"},
            storage=STORAGES[cluster.storage],
        )
        try:
            await restarted([readonly])
            async with asyncio.timeout(PATIENCE_S):
                while name not in await client.metadata.registration.readonly():
                    await asyncio.sleep(0.1)
            assert await idle.append_many(payloads(0, 999, SIZE)) == (0, 999)
            await idle.close()
            assert name not in idle.metadata.last_segment.ensemble
            await assert_holds(client, idle.ledger_id, 1000)
            answers = await client.pool.channel(name).read_entries(before.ledger_id, range(1000))
            assert sum(isinstance(answer, bytes) for answer in answers) == 750
            for _ in range(10):
                writer = await client.create_ledger()
                assert name not in writer.metadata.last_segment.ensemble
        finally:
            readonly.kill()
