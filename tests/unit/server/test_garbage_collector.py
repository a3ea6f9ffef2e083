"""Which ledgers a bookie gives up, and what makes it give up none."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bkctl.config import load_bookie_settings
from bkctl.errors import BadInputError, MetadataLostError
from bkctl.formats import request_v2 as v2
from bkctl.formats import underreplication
from bkctl.formats.cookie import make_cookie
from bkctl.formats.ledger_path import ManagerType, ledger_path
from bkctl.formats.result_code import ResultCode
from bkctl.metadata.api import ANY_VERSION
from bkctl.metadata.cluster import read_instance_id
from bkctl.metadata.ledgers import LedgerManager
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.server.garbage_collector import Compaction, GarbageCollector, Phase
from bkctl.server.garbage_ledgers import GarbageLedgers, MetadataRate
from bkctl.server.lifecycle import BookieServer
from bkctl.types import BookieId, EntryId, LedgerId, LedgerMetadata, MetadataState, Segment
from tests.unit.server.harness import Wire, add, entry, fence, metadata_store, read, running_bookie

BOOKIE = BookieId("bookie-1")
RATE = MetadataRate(1e6, 2)


def metadata_of(*bookies: str, state: MetadataState = MetadataState.CLOSED) -> LedgerMetadata:
    segment = Segment(EntryId(0), tuple(map(BookieId, bookies)))
    return LedgerMetadata(len(bookies), len(bookies), 1, (segment,), state=state)


class World:
    """A bookie that serves, its metadata, and a connection."""

    def __init__(self, server: BookieServer, tree: MemoryTree, ledgers: LedgerManager, wire: Wire) -> None:
        self.server = server
        self.tree = tree
        self.ledgers = ledgers
        self.wire = wire

    @property
    def collector(self) -> GarbageCollector:
        return self.server.collector

    async def write(self, ledger_id: int, *, listed: bool = True, count: int = 3) -> None:
        if listed:
            await self.create(ledger_id)
        for entry_id in range(count):
            answer = await self.wire.ask(add(ledger_id, entry_id, b"x" * 1000))
            assert answer.rc == 0

    async def create(self, ledger_id: int, metadata: LedgerMetadata | None = None) -> None:
        metadata = metadata or metadata_of("bookie-1", state=MetadataState.OPEN)
        await self.ledgers.create(metadata, LedgerId(ledger_id), creator_token=7)

    async def delete(self, ledger_id: int) -> None:
        await self.ledgers.delete(LedgerId(ledger_id))

    def held(self) -> set[int]:
        return set(self.server.storage.directories[0].ledgers)

    async def flush(self) -> None:
        await self.server._checkpointer.checkpoint()

    @property
    def root(self) -> str:
        return self.server._store.root


@asynccontextmanager
async def world(tmp_path: Path, **overrides: str) -> AsyncIterator[World]:
    metadata = MemoryStore()
    async with running_bookie(tmp_path, metadata=metadata, logSizeLimit="8192", **overrides) as server:
        store = await metadata_store(metadata)
        try:
            yield World(server, store.tree, store.ledgers, await Wire.to(server))  # type: ignore[arg-type]
        finally:
            await store.close()


async def test_a_ledger_that_was_deleted_is_gone_and_its_disk_space_is_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(1, count=20)
        await w.flush()
        await w.write(2)
        await w.flush()
        await w.delete(1)
        assert await w.collector.run_now()
        assert w.held() == {2}
        status = w.collector.status()
        assert (status.phase, status.error, status.counters.deleted_ledgers) == (Phase.IDLE, None, 1)
        assert status.counters.deleted_logs == 3
        assert status.counters.reclaimed_bytes > 14_000
        assert (await w.wire.ask(read(1, 0))).rc == ResultCode.ENOLEDGER.rc
        assert await w.wire.ask(read(2, 2)) == v2.ReadResponse(0, 2, 2, entry(2, 2, b"x" * 1000))


async def test_a_major_compaction_copies_what_is_alive(tmp_path: Path) -> None:
    async with world(tmp_path, compactionRate="100000") as w:
        await w.create(1)
        await w.create(2)
        for entry_id in range(8):
            for ledger_id in (1, 2):
                await w.wire.ask(add(ledger_id, entry_id, bytes([ledger_id]) * 1000))
            await w.flush()
        await w.delete(1)
        assert await w.collector.run_now(major=True)
        status = w.collector.status()
        assert status.counters.major_compactions == 1
        assert status.counters.copied_entries == 6  # of two closed logs
        assert status.last_major_s is not None
        for entry_id in range(8):
            answer = await w.wire.ask(read(2, entry_id))
            assert answer == v2.ReadResponse(0, 2, entry_id, entry(2, entry_id, b"\2" * 1000))


async def test_an_old_writer_is_told_that_its_deleted_ledger_was_fenced(tmp_path: Path) -> None:
    """F34, upstream issue 4462: also after a restart."""
    metadata = MemoryStore()
    async with running_bookie(tmp_path, metadata=metadata) as server:
        wire = await Wire.to(server)
        assert (await wire.ask(add(5, 0))).rc == 0
        await wire.ask(fence(5))
        assert await server.collector.run_now()
        assert (await wire.ask(add(5, 1))).rc == ResultCode.EFENCED.rc
        assert server.storage.ledger(5) is None
    async with running_bookie(tmp_path, metadata=metadata) as server:
        wire = await Wire.to(server)
        assert (await wire.ask(add(5, 1))).rc == ResultCode.EFENCED.rc
        assert server.storage.ledger(5) is None
        recovery = add(5, 0, flags=v2.RECOVERY_ADD)  # a copy for a ledger that is to live here again
        assert (await wire.ask(recovery)).rc == 0
        assert (await wire.ask(add(5, 1))).rc == ResultCode.EFENCED.rc
        assert (await wire.ask(read(5, 0))).rc == 0


async def test_a_reader_that_waits_on_a_deleted_ledger_is_woken(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(1, listed=False)
        woken: list[bool] = []
        w.server.bookie.lac_waiters.add(1, (99, woken.append))
        await w.collector.run_now()
        assert woken == [False]


async def wrong_instance(w: World) -> None:
    await w.tree.set(f"{w.root}/INSTANCEID", b"another-cluster", ANY_VERSION)


async def formatted_anew(w: World) -> None:
    """Another cluster in the same place, where a new bookie has the same id."""
    await wrong_instance(w)
    cookie = await w.server._store.cookies.read(BOOKIE)
    assert cookie is not None
    other = replace(cookie.value, instance_id="another-cluster")
    await w.server._store.cookies.update(BOOKIE, other, ANY_VERSION)


async def no_cookie(w: World) -> None:
    await w.tree.delete(f"{w.root}/cookies/{BOOKIE}", ANY_VERSION)


async def lost_session(w: World) -> None:
    async def children(*_arguments: object) -> object:
        raise MetadataLostError("the session is gone")

    w.server._store.tree.children = children  # type: ignore[method-assign, assignment]


async def short_listing(w: World) -> None:
    original = w.server._store.tree.children

    async def children(path: str, watcher: object = None) -> object:
        names, stat = await original(path)
        return [name for name in names if name != "L0002"], stat

    w.server._store.tree.children = children  # type: ignore[method-assign, assignment]


async def unreadable_metadata(w: World) -> None:
    await short_listing(w)
    path = ledger_path(w.root, ManagerType.HIERARCHICAL, LedgerId(2))
    await w.tree.set(path, b"no metadata", ANY_VERSION)


async def stray_node(w: World) -> None:
    await w.tree.create(f"{w.root}/00/0000/stray")


@pytest.mark.parametrize(
    "trouble",
    [
        wrong_instance,
        formatted_anew,
        no_cookie,
        lost_session,
        short_listing,
        unreadable_metadata,
        stray_node,
    ],
)
async def test_where_the_metadata_leaves_a_doubt_nothing_is_deleted(
    tmp_path: Path, trouble: Callable[[World], object]
) -> None:
    async with world(tmp_path) as w:
        await w.write(2)
        await trouble(w)  # type: ignore[misc]
        await w.collector.run_now()
        assert w.held() == {2}
        status = w.collector.status()
        assert status.error is not None
        assert status.error.startswith("ledgers: ")


async def test_an_empty_listing_of_a_cluster_without_instance_id_is_not_believed(tmp_path: Path) -> None:
    store = await metadata_store(MemoryStore())
    await store.tree.delete(f"{store.root}/INSTANCEID", ANY_VERSION)
    await store.cookies.create(BOOKIE, make_cookie(BOOKIE, ["/j"], ["/l"], None))
    with pytest.raises(MetadataLostError, match="INSTANCEID"):
        async with aclosing(GarbageLedgers(store, BOOKIE, None, RATE).deleted([LedgerId(1)])) as groups:
            _ = [group async for group in groups]
    await store.close()


async def test_what_was_verified_before_a_failure_is_deleted_durably(tmp_path: Path) -> None:
    async with world(tmp_path, gcOverreplicatedLedgerMaxConcurrentRequests="1") as w:
        await w.write(1, listed=False)
        await w.write(2)
        await short_listing(w)
        await w.collector.run_now()
        assert w.held() == {2}
        assert w.collector.status().error is not None
        assert not w.server.storage.directories[0]._deleted


@pytest.mark.parametrize(
    ("metadata", "stays"),
    [
        (metadata_of("other"), False),
        (metadata_of("other", state=MetadataState.OPEN), True),
        (metadata_of("other", state=MetadataState.IN_RECOVERY), True),
        (metadata_of("bookie-1"), True),
        (
            replace(
                metadata_of("other"),
                segments=(
                    Segment(EntryId(0), (BOOKIE,)),
                    Segment(EntryId(2), (BookieId("other"),)),
                ),
            ),
            True,
        ),
    ],
    ids=["closed elsewhere", "open", "in recovery", "here", "here at first"],
)
async def test_a_closed_ledger_that_is_nowhere_on_this_bookie_is_given_up(
    tmp_path: Path, metadata: LedgerMetadata, stays: bool
) -> None:
    async with world(tmp_path, gcOverreplicatedLedgerWaitTime="1") as w:
        await w.write(3, listed=False)
        await w.create(3, metadata)
        await asyncio.sleep(0.01)
        await w.collector.run_now()
        assert w.collector.status().error is None
        assert (w.held() == {3}) is stays
        assert await w.tree.exists(underreplication.lock_path(w.root, LedgerId(3))) is None


async def test_a_ledger_that_is_being_replicated_stays(tmp_path: Path) -> None:
    async with world(tmp_path, gcOverreplicatedLedgerWaitTime="1") as w:
        await w.write(3, listed=False)
        await w.create(3, metadata_of("other"))
        path = underreplication.lock_path(w.root, LedgerId(3))
        await w.tree.create(path, b"", ephemeral=True, parents=True)
        await asyncio.sleep(0.01)
        await w.collector.run_now()
        assert w.held() == {3}
        assert await w.tree.exists(path) is not None


async def test_a_ledger_that_comes_back_under_its_lock_stays(tmp_path: Path) -> None:
    """The second look, once nobody else may replicate it, counts."""
    store = await metadata_store(MemoryStore())
    ledger_id, _ = await store.ledgers.create(metadata_of("other"), creator_token=7)
    create = store.tree.create

    async def moved_here(path: str, *arguments: object, **named: object) -> str:
        found = await store.ledgers.read(ledger_id)
        await store.ledgers.write(ledger_id, metadata_of("bookie-1"), found.version)
        return await create(path, *arguments, **named)  # type: ignore[arg-type]

    instance_id = await read_instance_id(store.tree, store.root)
    await store.cookies.create(BOOKIE, make_cookie(BOOKIE, ["/j"], ["/l"], instance_id))
    store.tree.create = moved_here  # type: ignore[method-assign, assignment]
    garbage = GarbageLedgers(store, BOOKIE, instance_id, RATE)
    async with aclosing(garbage.over_replicated([ledger_id])) as found:
        assert [ledger async for ledger in found] == []
    await store.close()


async def test_compactions_wait_while_disks_are_full_or_somebody_paused_them(tmp_path: Path) -> None:
    async with world(tmp_path, diskUsageWarnThreshold="0.8", diskUsageThreshold="0.9") as w:
        gc = w.collector
        w.server._disk_usage = 0.0
        gc.disks_are(0.85)
        assert gc.status().paused == {Compaction.MAJOR: ["disk full"]}
        await gc.run_now(force=True)
        assert (gc.status().counters.major_compactions, gc.status().counters.minor_compactions) == (0, 1)
        gc.disks_are(0.95)
        gc.pause(major=False)
        await gc.run_now(force=True)
        assert gc.status().counters.minor_compactions == 1
        gc.disks_are(0.5)
        assert gc.status().paused == {Compaction.MINOR: ["asked to"]}
        gc.resume()
        assert gc.status().paused == {}
        await gc.run_now(force=True)
        assert gc.status().counters.major_compactions == 1


async def test_a_pause_ends_a_compaction_that_runs_and_loses_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, compactionRate="1") as w:
        for entry_id in range(8):
            for ledger_id in (1, 2):
                if not entry_id:
                    await w.create(ledger_id)
                await w.wire.ask(add(ledger_id, entry_id, bytes([ledger_id]) * 1000))
            await w.flush()
        await w.delete(1)
        run = asyncio.create_task(w.collector.run_now(major=True))
        async with asyncio.timeout(10):
            while w.collector.status().current_log is None:
                await asyncio.sleep(0.01)
            assert (w.collector.status().phase, run.done()) == (Phase.COMPACTING, False)
            w.collector.pause()
            await run
        assert w.collector.status().counters.compacted_logs == 0
        for entry_id in range(8):
            answer = await w.wire.ask(read(2, entry_id))
            assert answer == v2.ReadResponse(0, 2, entry_id, entry(2, entry_id, b"\2" * 1000))


async def test_full_disks_force_a_run_if_the_settings_say_so(tmp_path: Path) -> None:
    async with world(tmp_path, isForceGCAllowWhenNoSpace="true") as w:
        await w.write(1, listed=False)
        w.collector.disks_are(0.9999)
        assert w.collector.status().paused == {}
        async with asyncio.timeout(10):
            while w.held():
                await asyncio.sleep(0.01)


async def test_one_run_at_a_time(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        first = asyncio.create_task(w.collector.run_now())
        await asyncio.sleep(0)
        assert not await w.collector.run_now()
        assert await first


async def test_runs_come_by_themselves(tmp_path: Path) -> None:
    async with world(tmp_path, gcWaitTime="20") as w:
        await w.write(1, listed=False)
        async with asyncio.timeout(10):
            while w.held() or not w.collector.status().counters.runs:
                await asyncio.sleep(0.01)


async def test_a_damaged_log_is_named_in_the_status(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(1, count=20)
        await w.flush()
        path = tmp_path / "ledgers" / "current" / "0.log"
        data = bytearray(path.read_bytes())
        data[:20] = data[1100:1120] = b"\xee" * 20
        data[-40:] = b"\xee" * 40
        data[1024:1044] = b"\xee" * 20
        path.write_bytes(bytes(data))
        await w.collector.run_now()
        assert list(w.collector.status().damaged) == [path]
        assert path.exists()


@pytest.mark.parametrize(
    "overrides",
    [
        {"minorCompactionThreshold": "0.8"},
        {"minorCompactionInterval": "86400"},
        {"minorCompactionInterval": "599"},
        {"majorCompactionThreshold": "1.5"},
    ],
)
def test_thresholds_that_contradict_each_other_are_refused(overrides: dict[str, str]) -> None:
    with pytest.raises(BadInputError):
        load_bookie_settings(None, overrides)


@pytest.mark.parametrize("key", ["minorCompactionThreshold", "majorCompactionInterval"])
def test_zero_or_less_turns_a_compaction_off(key: str) -> None:
    contradiction = {"minorCompactionInterval": "86400", "majorCompactionInterval": "86400"}
    load_bookie_settings(None, contradiction | {key: "-1"})
