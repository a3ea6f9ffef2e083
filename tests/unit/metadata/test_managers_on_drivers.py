"""The managers above real stores: what they rely on holds there too."""

import asyncio
import itertools
from pathlib import Path

import pytest

from bkctl.errors import BookieHandleNotAvailableError, LedgerExistsError, MetadataVersionError, RefusedError
from bkctl.formats.cookie import make_cookie
from bkctl.formats.service_info import BOOKIE_RPC, BookieServiceInfo, Endpoint
from bkctl.metadata.cluster import nuke_cluster
from bkctl.metadata.registration import BookieSets, RegistrationManager
from bkctl.metadata.store import MetadataStore
from bkctl.types import Address, EntryId, LedgerId, LedgerMetadata, Versioned
from tests.conformance.tree_drivers import Driver, SqliteDriver, ZooKeeperDriver, eventually
from tests.unit.metadata.world import METADATA, A, until

INFO = BookieServiceInfo((Endpoint("bookie", "host-a", 3181, BOOKIE_RPC),))

_roots = (f"/managers-{number}" for number in itertools.count())


@pytest.fixture(params=["sqlite", pytest.param("zookeeper", marks=pytest.mark.zookeeper)])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    if request.param == "sqlite":
        return SqliteDriver(tmp_path)
    return ZooKeeperDriver(request.getfixturevalue("zookeeper_server"), next(_roots))


async def open_store(driver: Driver) -> MetadataStore:
    return await MetadataStore.open("memory:///ledgers", create=True, tree=driver.tree())


async def test_two_clients_share_ledgers(driver: Driver) -> None:
    first, second = await open_store(driver), await open_store(driver)
    made = await asyncio.gather(
        *(each.ledgers.create(METADATA, creator_token=1) for each in (first, second) * 5)
    )
    assert sorted(ledger_id for ledger_id, _ in made) == list(range(10))
    await first.ledgers.create(METADATA, LedgerId(10**10), creator_token=1)
    with pytest.raises(LedgerExistsError):
        await second.ledgers.create(METADATA, LedgerId(10**10), creator_token=2)
    assert [ids async for ids in second.ledgers.ranges()] == [list(range(10)), [10**10]]

    seen: list[Versioned[LedgerMetadata] | None] = []
    await first.ledgers.watch(LedgerId(0), seen.append)
    await until(lambda: len(seen) == 1)
    found = await second.ledgers.read(LedgerId(0))
    closed = await second.ledgers.write(LedgerId(0), found.value.with_closed(EntryId(1), 9), found.version)
    with pytest.raises(MetadataVersionError):
        await first.ledgers.write(LedgerId(0), found.value, found.version)
    await until(lambda: len(seen) == 2)
    for ledger_id in (*range(10), 10**10):
        await second.ledgers.delete(LedgerId(ledger_id))
    await until(lambda: len(seen) == 3)
    assert seen == [found, closed, None]
    assert [ids async for ids in first.ledgers.ranges()] == []
    assert (await first.tree.children("/ledgers"))[1].child_count == 4  # available, idgen and two values
    for each in (first, second):
        await each.close()


async def test_a_bookie_comes_back_with_its_new_session(driver: Driver) -> None:
    client, bookie = await open_store(driver), await open_store(driver)
    seen: list[BookieSets] = []
    await client.registration.watch_bookies(seen.append)
    registration = RegistrationManager(bookie.tree, bookie.root)
    await registration.register(A, INFO, readonly=False)
    await bookie.cookies.create(A, make_cookie(A, ["/j"], ["/l"], "id"))
    there = BookieSets(frozenset({A}), frozenset())
    await until(lambda: bool(seen) and seen[-1] == there)
    assert await client.registration.resolve(A) == Address("host-a", 3181)

    before = bookie.tree.session_id
    await driver.lose_session(bookie.tree)

    async def registered_again() -> bool:
        stat = await client.tree.exists(f"{client.root}/available/{A}")
        return stat is not None and stat.owner not in (0, before)

    await eventually(registered_again, "a new registration")
    with pytest.raises(RefusedError):
        await nuke_cluster(client.tree, client.root, force=True)

    await registration.unregister()
    await until(lambda: seen[-1] == BookieSets(frozenset(), frozenset()))
    with pytest.raises(BookieHandleNotAvailableError):
        await client.registration.resolve(A)
    assert await client.registration.all() == [A]
    await nuke_cluster(client.tree, client.root, force=True)
    assert await client.tree.exists(client.root) is None
    for each in (client, bookie):
        await each.close()
