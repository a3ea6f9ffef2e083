"""Registration of bookies and their discovery."""

import asyncio

import pytest

from bkctl.errors import (
    BkctlError,
    BookieHandleNotAvailableError,
    BookieStartError,
    CorruptDataError,
    MetadataLostError,
    NoClusterError,
)
from bkctl.formats import cookie as cookie_format
from bkctl.formats.service_info import BOOKIE_RPC, BookieServiceInfo, Endpoint
from bkctl.metadata import follow, registration
from bkctl.metadata.api import ANY_VERSION
from bkctl.metadata.cookies import CookieManager
from bkctl.metadata.registration import BookieSets, RegistrationClient, RegistrationManager
from bkctl.types import Address, BookieId
from tests.unit.metadata.world import ROOT, A, B, FlakyTree, cluster, session, settle, until

INFO = BookieServiceInfo((Endpoint("bookie", "host-a", 3181, BOOKIE_RPC),))


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "RETRY_DELAY_MS", 1)
    monkeypatch.setattr(registration, "_EXPIRY_SLACK_MS", 1)


def sets(writable: str = "", readonly: str = "") -> BookieSets:
    return BookieSets(frozenset(map(BookieId, writable.split())), frozenset(map(BookieId, readonly.split())))


async def test_a_bookie_is_found_by_its_registration() -> None:
    store, tree = await cluster()
    client = RegistrationClient(tree, ROOT)
    bookie = await session(store)
    await RegistrationManager(bookie, ROOT).register(A, INFO, readonly=False)
    await RegistrationManager(bookie, ROOT).register(B, INFO, readonly=True)
    assert (await client.writable(), await client.readonly()) == ([A], [B])
    assert await client.service_info(B) == INFO
    assert await client.resolve(A) == Address("host-a", 3181)
    await bookie.close()
    assert (await client.writable(), await client.readonly()) == ([], [])
    with pytest.raises(BookieHandleNotAvailableError):
        await client.resolve(A)


async def test_all_bookies_are_those_with_a_cookie() -> None:
    _, tree = await cluster()
    client = RegistrationClient(tree, ROOT)
    assert await client.all() == []
    cookies = CookieManager(tree, ROOT)
    for bookie_id in (B, A):
        await cookies.create(bookie_id, cookie_format.make_cookie(bookie_id, ["/j"], ["/l"]))
    assert await client.all() == [A, B] == await cookies.list()


async def test_a_missing_cluster_is_no_empty_one() -> None:
    store, tree = await cluster()
    client = RegistrationClient(tree, "/elsewhere")
    for listing in (client.writable, client.readonly, client.all):
        with pytest.raises(NoClusterError, match="bkctl cluster init"):
            await listing()
    with pytest.raises(NoClusterError):
        await RegistrationManager(tree, "/elsewhere").register(A, INFO, readonly=True)
    assert store.find("/elsewhere") is None


async def test_bad_nodes_are_errors_with_their_path() -> None:
    _, tree = await cluster()
    client = RegistrationClient(tree, ROOT)
    await tree.create(f"{ROOT}/available/{A}", b"\xff")
    with pytest.raises(CorruptDataError, match="/ledgers/available/a:3181: "):
        await client.resolve(A)
    await tree.create(f"{ROOT}/available/no bookie")
    with pytest.raises(CorruptDataError, match="/ledgers/available/no bookie: "):
        await client.writable()


async def test_parents_that_another_driver_left_out_are_made() -> None:
    _, tree = await cluster()
    await tree.delete(f"{ROOT}/available/readonly", ANY_VERSION)
    await tree.delete(f"{ROOT}/available", ANY_VERSION)
    assert await RegistrationClient(tree, ROOT).writable() == []
    await RegistrationManager(tree, ROOT).register(A, INFO, readonly=True)
    assert await RegistrationClient(tree, ROOT).readonly() == [A]


async def test_changing_the_mode_never_leaves_both_sets() -> None:
    store, tree = await cluster()
    bookie = await session(store)
    manager = RegistrationManager(bookie, ROOT)
    await manager.register(A, INFO, readonly=False)
    seen: list[BookieSets] = []
    client = RegistrationClient(tree, ROOT)
    await client.watch_bookies(seen.append)
    await settle()
    await manager.to_readonly()
    await until(lambda: seen[-1] == sets(readonly=A))
    await manager.to_writable()
    await until(lambda: seen[-1] == sets(A))
    await manager.unregister()
    await until(lambda: seen[-1] == sets())
    assert seen[0] == sets(A)
    assert all(A in each.writable | each.readonly for each in seen[:-1])
    await client.close()


async def test_a_restart_waits_for_the_session_of_the_killed_process() -> None:
    store, _ = await cluster()
    killed = await session(store)
    await RegistrationManager(killed, ROOT).register(A, INFO, readonly=False)
    restarted = await session(store)
    registering = asyncio.create_task(RegistrationManager(restarted, ROOT).register(A, INFO, readonly=False))
    await settle()
    assert not registering.done()
    killed.expire_session()
    await registering
    stat = await restarted.exists(f"{ROOT}/available/{A}")
    assert stat is not None
    assert stat.owner == restarted.session_id


async def test_a_restart_gives_up_after_the_session_timeout() -> None:
    store, _ = await cluster()
    await RegistrationManager(await session(store), ROOT).register(A, INFO, readonly=False)
    second = RegistrationManager(await session(store, timeout_ms=10), ROOT)
    with pytest.raises(BookieStartError, match="registered by another process") as caught:
        await second.register(A, INFO, readonly=False)
    assert caught.value.exit_code == 4


async def test_a_persistent_registration_is_no_session_to_wait_for() -> None:
    _, tree = await cluster()
    await tree.create(f"{ROOT}/available/{A}")
    with pytest.raises(BookieStartError, match="persistent"):
        await RegistrationManager(tree, ROOT).register(A, INFO, readonly=False)


async def test_a_registration_whose_reply_was_lost_is_ours() -> None:
    store, tree = await cluster()
    flaky = FlakyTree(store)
    await flaky.open()
    await RegistrationManager(flaky, ROOT).register(A, INFO, readonly=False)
    assert await RegistrationClient(tree, ROOT).writable() == [A]


async def test_a_new_session_registers_again_in_the_same_mode() -> None:
    store, tree = await cluster()
    bookie = await session(store)
    manager = RegistrationManager(bookie, ROOT)
    await manager.register(A, INFO, readonly=False)
    await manager.to_readonly()
    bookie.expire_session()
    with pytest.raises(MetadataLostError):
        await manager.to_writable()
    assert await RegistrationClient(tree, ROOT).readonly() == []
    await bookie.reopen()
    await settle()
    assert await RegistrationClient(tree, ROOT).writable() == [A]  # the mode asked for last
    await manager.unregister()
    bookie.expire_session()
    await bookie.reopen()
    await settle()
    assert await RegistrationClient(tree, ROOT).writable() == []


async def test_a_bookie_that_cannot_register_again_is_told() -> None:
    store, _ = await cluster()
    bookie = await session(store, timeout_ms=10)
    failures: list[BkctlError] = []
    manager = RegistrationManager(bookie, ROOT, on_failure=failures.append)
    await manager.register(A, INFO, readonly=False)
    bookie.expire_session()
    await RegistrationManager(await session(store), ROOT).register(A, INFO, readonly=False)
    await bookie.reopen()
    await until(lambda: bool(failures))
    assert isinstance(failures[0], BookieStartError)
    await manager.close()


async def test_discovery_outlives_its_session() -> None:
    store, tree = await cluster()
    bookie = await session(store)
    manager = RegistrationManager(bookie, ROOT)
    client = RegistrationClient(tree, ROOT)
    seen: list[BookieSets] = []
    await client.watch_bookies(seen.append)
    await until(lambda: bool(seen))
    tree.expire_session()
    await manager.register(A, INFO, readonly=False)
    await settle()
    await tree.reopen()
    await until(lambda: seen[-1] == sets(A))
    assert seen == [sets(), sets(A)]  # nothing twice, and never "all gone" while the session was
    await client.close()


async def test_discovery_starts_before_the_first_bookie_and_can_be_cancelled() -> None:
    store, tree = await cluster()
    await tree.delete(f"{ROOT}/available/readonly", ANY_VERSION)
    await tree.delete(f"{ROOT}/available", ANY_VERSION)
    client = RegistrationClient(tree, ROOT)
    seen: list[BookieSets] = []
    cancel = await client.watch_bookies(seen.append)
    bookie = await session(store)
    await RegistrationManager(bookie, ROOT).register(A, INFO, readonly=False)
    await until(lambda: bool(seen) and seen[-1] == sets(A))
    cancel()
    told = len(seen)
    await bookie.close()
    await settle()
    assert len(seen) == told
