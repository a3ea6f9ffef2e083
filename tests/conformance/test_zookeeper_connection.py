"""ZooKeeper's driver when the server is away. Source: spec section 21, "ZooKeeper realisation"."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bkctl.errors import BadInputError, MetadataUnreachableError
from bkctl.metadata.api import EventKind, SessionState, WatchEvent
from bkctl.metadata.zookeeper import ZooKeeperTree
from tests.conformance.tree_drivers import Events, ZooKeeperDriver, eventually
from tests.zookeeper_server import ZooKeeperServer

pytestmark = pytest.mark.zookeeper


@asynccontextmanager
async def _session(
    server: ZooKeeperServer, root: str, session_timeout_ms: int
) -> AsyncIterator[ZooKeeperTree]:
    """A session whose nodes are below `root`, which exists."""
    tree = ZooKeeperTree(server.hosts, session_timeout_ms=session_timeout_ms)
    await tree.open()
    await tree.create(root)
    try:
        yield tree
    finally:
        await tree.close()


async def test_a_restart_of_the_server_suspends_the_session_and_fires_its_watches(
    zookeeper_server: ZooKeeperServer,
) -> None:
    async with _session(zookeeper_server, "/restart", 20_000) as tree:
        states: list[SessionState] = []
        tree.on_session(states.append)
        await tree.create("/restart/mine", ephemeral=True)
        data, absent, listing = Events(), Events(), Events()
        await tree.get("/restart/mine", data)
        await tree.exists("/restart/absent", absent)
        await tree.children("/restart", listing)
        session_id = tree.session_id

        zookeeper_server.kill()

        async def suspended() -> bool:
            return tree.session_state is SessionState.SUSPENDED

        await eventually(suspended, "the session is suspended")
        assert data == []
        reading = asyncio.create_task(tree.get("/restart/mine"))  # waits, and is sent again
        await asyncio.to_thread(zookeeper_server.start)

        assert (await reading).stat.owner == session_id
        assert await data.first() == WatchEvent(EventKind.CHANGED, "/restart/mine")
        assert await absent.first() == WatchEvent(EventKind.CHANGED, "/restart/absent")
        assert await listing.first() == WatchEvent(EventKind.CHILDREN, "/restart")
        assert states == [SessionState.SUSPENDED, SessionState.CONNECTED]
        assert tree.session_id == session_id

        again = Events()
        await tree.get("/restart/mine", again)
        await tree.set("/restart/mine", b"", 0)
        assert await again.first() == WatchEvent(EventKind.CHANGED, "/restart/mine")
        assert (len(data), len(absent), len(listing)) == (1, 1, 1)


async def test_calls_to_a_server_that_is_gone_end_within_the_session_timeout(
    zookeeper_server: ZooKeeperServer,
) -> None:
    async with _session(zookeeper_server, "/gone", 1_000) as tree:
        zookeeper_server.kill()
        try:
            begin = time.monotonic()
            calls = (
                tree.get("/gone"),
                tree.create("/gone/x"),
                tree.set("/gone", b"", 0),
                tree.delete("/gone", 0),
                tree.sync("/gone"),
            )
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [MetadataUnreachableError] * len(calls)
            assert time.monotonic() - begin < 3
        finally:
            await asyncio.to_thread(zookeeper_server.start)


async def test_a_server_that_hangs_leaves_the_outcome_of_a_write_unknown(
    zookeeper_server: ZooKeeperServer,
) -> None:
    async with _session(zookeeper_server, "/hangs", 1_000) as tree:
        zookeeper_server.pause()
        try:
            begin = time.monotonic()
            with pytest.raises(MetadataUnreachableError):
                await tree.create("/hangs/x")
            assert time.monotonic() - begin < 3
        finally:
            zookeeper_server.resume()


@pytest.mark.parametrize("trouble", ["kill", "pause"])
async def test_closing_does_not_wait_for_a_server_that_is_gone(
    zookeeper_server: ZooKeeperServer, trouble: str
) -> None:
    tree = ZooKeeperTree(zookeeper_server.hosts, session_timeout_ms=30_000)
    await tree.open()
    if trouble == "kill":
        zookeeper_server.kill()
    else:
        zookeeper_server.pause()
    try:
        begin = time.monotonic()
        await tree.close()
        assert time.monotonic() - begin < 4
    finally:
        if trouble == "kill":
            await asyncio.to_thread(zookeeper_server.start)
        else:
            zookeeper_server.resume()


async def test_opening_without_a_server_ends_within_the_session_timeout() -> None:
    tree = ZooKeeperTree("127.0.0.1:1", session_timeout_ms=300)
    with pytest.raises(MetadataUnreachableError, match=r"127\.0\.0\.1:1 "):
        await tree.open()
    assert tree.session_state is SessionState.LOST
    await tree.close()


async def test_a_server_that_is_gone_is_passed_over(zookeeper_server: ZooKeeperServer) -> None:
    tree = ZooKeeperTree(f"127.0.0.1:1,{zookeeper_server.hosts}")
    await tree.open()
    assert await tree.exists("/") is not None
    await tree.close()


@pytest.mark.parametrize("hosts", ["", "host:port", "host:99999999", "[::1"])
async def test_a_host_list_that_is_none_is_bad_input(hosts: str) -> None:
    tree = ZooKeeperTree(hosts)
    with pytest.raises(BadInputError):
        await tree.open()
    await tree.close()


async def test_more_calls_than_may_be_in_flight_all_end(zookeeper_server: ZooKeeperServer) -> None:
    async with _session(zookeeper_server, "/flood", 10_000) as tree:
        stats = await asyncio.gather(*(tree.exists("/flood") for _ in range(2000)))
        assert all(stat is not None for stat in stats)


async def test_a_lost_session_is_not_replaced_behind_our_back(zookeeper_server: ZooKeeperServer) -> None:
    """kazoo would begin a new one by itself; only `reopen` may."""
    driver = ZooKeeperDriver(zookeeper_server, "/not-replaced")
    async with driver.sessions(1) as (tree,):
        await tree.create("/mine", ephemeral=True)
        await driver.lose_session(tree)

        async def no_connection_thread() -> bool:
            return not any("zk_loop" in thread.name for thread in threading.enumerate())

        await eventually(no_connection_thread, "the client ends")
        assert tree.session_state is SessionState.LOST
