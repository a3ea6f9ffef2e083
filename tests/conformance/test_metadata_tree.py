"""The laws of the metadata tree, held by every driver. Source: bkctl.metadata.api; spec section 21."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bkctl.errors import (
    BadInputError,
    BadVersionError,
    MetadataLostError,
    MetadataStoreError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from bkctl.metadata.api import (
    ANY_VERSION,
    CreateOp,
    DeleteOp,
    EventKind,
    MetadataTree,
    SessionState,
    SetOp,
    WatchEvent,
)
from tests.conformance.tree_drivers import (
    Driver,
    Events,
    MemoryDriver,
    SqliteDriver,
    ZooKeeperDriver,
    eventually,
)

_roots = (f"/test-{number}" for number in itertools.count())


@pytest.fixture(params=["memory", "sqlite", pytest.param("zookeeper", marks=pytest.mark.zookeeper)])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    if request.param == "memory":
        return MemoryDriver()
    if request.param == "sqlite":
        return SqliteDriver(tmp_path)
    return ZooKeeperDriver(request.getfixturevalue("zookeeper_server"), next(_roots))


# --- Nodes


async def test_what_is_not_there_is_no_node(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        assert await tree.exists("/no") is None
        for call in (
            tree.get("/no"),
            tree.children("/no"),
            tree.set("/no", b"", ANY_VERSION),
            tree.delete("/no", ANY_VERSION),
            tree.create("/no/child"),
            tree.create("/no/child-", sequential=True),
        ):
            with pytest.raises(NoNodeError):
                await call


async def test_the_root_is_always_there(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        assert (await tree.get("/")).data == b""
        assert await tree.exists("/") is not None
        with pytest.raises(NodeExistsError):
            await tree.create("/")
        with pytest.raises(NodeExistsError):
            await tree.create("/", parents=True)
        with pytest.raises(BadInputError):
            await tree.delete("/", ANY_VERSION)
        with pytest.raises(BadInputError):
            await tree.multi([DeleteOp("/")])


async def test_a_new_node_has_version_0_and_no_owner(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        assert await tree.create("/node", b"data") == "/node"
        await other.sync("/node")
        node = await other.get("/node")
        assert node.data == b"data"
        assert (node.stat.version, node.stat.child_version, node.stat.child_count, node.stat.owner) == (
            0,
            0,
            0,
            0,
        )
        assert 1_600_000_000_000 < node.stat.ctime_ms < 10_000_000_000_000
        assert await other.exists("/node") == node.stat
        assert await other.children("/node") == ([], node.stat)


async def test_create_is_exclusive(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/node", b"first")
        for session in (tree, other):
            with pytest.raises(NodeExistsError):
                await session.create("/node", b"second")
        assert (await tree.get("/node")).data == b"first"


async def test_set_compares_and_counts_versions(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/node", b"0")
        created = await tree.exists("/node")
        stat = await tree.set("/node", b"1", 0)
        assert stat.version == 1
        assert stat.ctime_ms == created.ctime_ms
        for stale in (0, 2):
            with pytest.raises(BadVersionError):
                await tree.set("/node", b"no", stale)
        assert (await tree.set("/node", b"2", ANY_VERSION)).version == 2
        node = await tree.get("/node")
        assert (node.data, node.stat.version) == (b"2", 2)


async def test_delete_compares(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/node")
        await tree.set("/node", b"", 0)
        with pytest.raises(BadVersionError):
            await tree.delete("/node", 0)
        await tree.delete("/node", 1)
        assert await tree.exists("/node") is None


async def test_a_node_made_again_starts_at_version_0(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/node")
        await tree.set("/node", b"", 0)
        await tree.delete("/node", ANY_VERSION)
        await tree.create("/node")
        assert (await tree.get("/node")).stat.version == 0


async def test_a_node_with_children_cannot_be_deleted(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/node/child", parents=True)
        with pytest.raises(NotEmptyError):
            await tree.delete("/node", 0)
        await tree.delete("/node/child", 0)
        await tree.delete("/node", 0)
        assert await tree.exists("/node") is None


async def test_child_version_counts_children_made_and_deleted(driver: Driver) -> None:
    """Source: spec section 3; what ZooKeeper reports as cversion."""
    async with driver.sessions(1) as (tree,):
        await tree.create("/node")
        for name in "abc":
            await tree.create(f"/node/{name}")
        await tree.set("/node/a", b"not the parent's matter", 0)
        await tree.create("/node/a/grandchild")
        await tree.delete("/node/b", 0)
        stat = await tree.exists("/node")
        assert (stat.version, stat.child_version, stat.child_count) == (0, 4, 2)


async def test_missing_parents_are_made_on_demand_only(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        with pytest.raises(NoNodeError):
            await tree.create("/a/b/c")
        assert await tree.exists("/a") is None
        assert await tree.create("/a/b/c", b"leaf", ephemeral=True, parents=True) == "/a/b/c"
        for parent in ("/a", "/a/b"):
            node = await tree.get(parent)
            assert (node.data, node.stat.owner) == (b"", 0)
        await tree.create("/a/b/d", parents=True)
        with pytest.raises(NodeExistsError):
            await tree.create("/a/b/d", parents=True)


async def test_parents_are_made_while_others_prune_them(driver: Driver) -> None:
    """Deleting a ledger prunes the directories that a new one is just being put into."""
    async with driver.sessions(2) as (tree, other):
        done = False

        async def prune() -> None:
            while not done:
                for path in ("/a/b/c", "/a/b", "/a"):
                    try:
                        await other.delete(path, ANY_VERSION)
                    except (NoNodeError, NotEmptyError):
                        pass
                await asyncio.sleep(0.001)

        pruning = asyncio.create_task(prune())
        for _ in range(30):
            try:
                await tree.create("/a/b/c", parents=True)
            except NodeExistsError:
                pass
        done = True
        await pruning


@pytest.mark.parametrize(
    "path",
    ["", "node", "/node/", "//node", "/a//b", "/.", "/a/../b", "/a\0", "/\x1f", "/\ud800", "/\U0001f600"],
)
async def test_a_path_that_one_store_refuses_is_refused_by_all(driver: Driver, path: str) -> None:
    async with driver.sessions(1) as (tree,):
        for call in (
            tree.get(path),
            tree.exists(path),
            tree.children(path),
            tree.create(path),
            tree.create(path, sequential=True),
            tree.set(path, b"", ANY_VERSION),
            tree.delete(path, ANY_VERSION),
            tree.multi([CreateOp(path)]),
            tree.sync(path),
        ):
            with pytest.raises(BadInputError):
                await call


async def test_odd_names_are_kept(driver: Driver) -> None:
    names = {
        "ü",
        "日本",
        "a b",
        "::1:3181",
        "..x",
        "%41",
        "'",
        '"; DROP TABLE node; --',
        "A",
        "a",
        "é",
        "e\u0301",
    }
    async with driver.sessions(2) as (tree, other):
        await tree.create("/odd")
        for name in names:
            assert await tree.create(f"/odd/{name}", name.encode()) == f"/odd/{name}"
        await other.sync("/odd")
        assert set((await other.children("/odd"))[0]) == names
        for name in names:
            assert (await other.get(f"/odd/{name}")).data == name.encode()


async def test_any_bytes_up_to_half_a_megabyte_are_kept(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        for number, data in enumerate([b"", b"\0", bytes(range(256)) * 2000]):
            await tree.create(f"/node-{number}", data)
            await tree.set(f"/node-{number}", data, 0)
            await other.sync("/")
            assert (await other.get(f"/node-{number}")).data == data


async def test_more_than_a_request_holds_is_refused_before_it_is_sent(driver: Driver) -> None:
    big = bytes(1024 * 1024)
    async with driver.sessions(1) as (tree,):
        await tree.create("/node")
        for call in (
            tree.create("/big", big),
            tree.set("/node", big, 0),
            tree.multi([SetOp("/node", big[: len(big) // 2]) for _ in range(2)]),
        ):
            with pytest.raises(BadInputError):
                await call
        assert (await tree.get("/node")).data == b""


# --- Children and sequences


async def test_a_thousand_children_are_all_listed(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/many")
        await asyncio.gather(*(tree.create(f"/many/child-{number}") for number in range(1000)))
        await other.sync("/many")
        names, stat = await other.children("/many")
        assert sorted(names) == sorted(f"child-{number}" for number in range(1000))
        assert stat.child_count == 1000


async def test_a_listing_is_complete_while_children_come_and_go(driver: Driver) -> None:
    """Children that are there throughout are never missing, and the Stat belongs to the list."""
    async with driver.sessions(2) as (tree, other):
        await tree.create("/list")
        lasting = {f"lasting-{number}" for number in range(20)}
        for name in lasting:
            await tree.create(f"/list/{name}")
        done = False

        async def churn() -> None:
            for number in itertools.count():
                if done:
                    return
                await tree.create(f"/list/fleeting-{number}")
                if number % 3 == 2:
                    await tree.delete(f"/list/fleeting-{number - 2}", 0)

        churning = asyncio.create_task(churn())
        await other.sync("/list")
        for _ in range(60):
            names, stat = await other.children("/list")
            assert lasting <= set(names)
            assert len(names) == len(set(names)) == stat.child_count
        done = True
        await churning


async def test_sequence_numbers_have_ten_digits_and_count_every_child_ever_made(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/seq")
        assert await tree.create("/seq/ID-", sequential=True) == "/seq/ID-0000000000"
        await tree.create("/seq/other")
        assert await tree.create("/seq/V_", sequential=True) == "/seq/V_0000000002"


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_sequence_numbers_are_never_used_again(driver: Driver, ephemeral: bool) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/seq")
        made = []
        for _ in range(5):
            made.append(await tree.create("/seq/ID-", sequential=True, ephemeral=ephemeral))
            await tree.delete(made[-1], ANY_VERSION)
        assert made == sorted(set(made))


async def test_sequence_numbers_are_unique_between_sessions(driver: Driver) -> None:
    async with driver.sessions(2) as trees:
        await trees[0].create("/seq")
        made = await asyncio.gather(
            *(tree.create("/seq/ID-", sequential=True) for _ in range(25) for tree in trees)
        )
        assert sorted(made) == [f"/seq/ID-{number:010d}" for number in range(50)]


async def test_a_sequence_below_missing_parents(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        assert await tree.create("/a/b/ID-", sequential=True, parents=True) == "/a/b/ID-0000000000"


# --- Races


async def test_one_of_many_creators_wins(driver: Driver) -> None:
    async with driver.sessions(2) as trees:
        for round_number in range(5):

            async def attempt(
                tree: MetadataTree, name: str, path: str = f"/race-{round_number}"
            ) -> str | None:
                try:
                    await tree.create(path, name.encode())
                except NodeExistsError:
                    return None
                return name

            outcomes = await asyncio.gather(
                *(attempt(tree, f"{number}-{i}") for number in range(8) for i, tree in enumerate(trees))
            )
            winners = [name for name in outcomes if name is not None]
            assert len(winners) == 1
            assert (await trees[0].get(f"/race-{round_number}")).data == winners[0].encode()


async def test_compare_and_set_loses_no_update(driver: Driver) -> None:
    async with driver.sessions(2) as trees:
        await trees[0].create("/counter", b"0")

        async def add_one(tree: MetadataTree) -> None:
            while True:
                node = await tree.get("/counter")
                try:
                    await tree.set("/counter", b"%d" % (int(node.data) + 1), node.stat.version)
                except BadVersionError:
                    continue
                return

        await asyncio.gather(*(add_one(tree) for _ in range(10) for tree in trees))
        await trees[0].sync("/counter")
        node = await trees[0].get("/counter")
        assert (node.data, node.stat.version) == (b"20", 20)


# --- Transactions


async def test_multi_does_all_and_later_operations_see_earlier_ones(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/old")
        await tree.multi(
            [
                CreateOp("/new", b"0"),
                CreateOp("/new/child", b"c", ephemeral=True),
                SetOp("/new", b"1", 0),
                SetOp("/new", b"2", 1),
                DeleteOp("/old", 0),
            ]
        )
        node = await tree.get("/new")
        assert (node.data, node.stat.version, node.stat.child_count) == (b"2", 2, 1)
        assert (await tree.get("/new/child")).stat.owner == tree.session_id
        assert await tree.exists("/old") is None


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (CreateOp("/there"), NodeExistsError),
        (CreateOp("/no/child"), NoNodeError),
        (SetOp("/no", b""), NoNodeError),
        (SetOp("/there", b"", 7), BadVersionError),
        (DeleteOp("/no"), NoNodeError),
        (DeleteOp("/there", 7), BadVersionError),
        (DeleteOp("/full"), NotEmptyError),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 3])
async def test_multi_does_nothing_when_one_operation_fails(
    driver: Driver, bad: Any, error: type[Exception], position: int
) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/there", b"before")
        await tree.create("/full/child", parents=True)
        before = [await tree.get(path) for path in ("/", "/there", "/full", "/full/child")]
        ops: list[Any] = [CreateOp("/new", b"x"), SetOp("/there", b"after", 0), DeleteOp("/full/child", 0)]
        if error is NotEmptyError:
            ops.pop()
        ops.insert(position, bad)
        if isinstance(bad, SetOp | DeleteOp) and bad.path == "/there" and position > 1:
            assert bad.version == 7  # still wrong after the set before it
        with pytest.raises(error):
            await tree.multi(ops)
        assert [await tree.get(path) for path in ("/", "/there", "/full", "/full/child")] == before
        assert await tree.exists("/new") is None


async def test_an_empty_multi_does_nothing(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.multi([])


async def test_nobody_sees_half_a_multi(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/dir/0", parents=True)
        moving = True

        async def move() -> None:
            for number in range(40):
                await tree.multi([CreateOp(f"/dir/{number + 1}"), DeleteOp(f"/dir/{number}")])
            nonlocal moving
            moving = False

        task = asyncio.create_task(move())
        await other.sync("/dir")
        while moving:
            names, _ = await other.children("/dir")
            assert len(names) == 1
        await task


# --- Visibility


async def test_after_sync_everything_committed_before_is_seen(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/node", b"0")
        for number in range(20):
            await tree.set("/node", b"%d" % number, number)
            await other.sync("/node")
            assert (await other.get("/node")).data == b"%d" % number


# --- Sessions and ephemeral nodes


async def test_a_session_begins_with_open_and_ends_with_close(driver: Driver) -> None:
    tree = driver.tree()
    assert tree.session_state is SessionState.LOST
    with pytest.raises(MetadataLostError):
        await tree.get("/")
    await tree.open()
    assert tree.session_state is SessionState.CONNECTED
    assert tree.session_id > 0
    await tree.close()
    await tree.close()
    assert tree.session_state is SessionState.LOST
    with pytest.raises(MetadataLostError):
        await tree.get("/")
    with pytest.raises(MetadataLostError):
        await tree.reopen()


async def test_a_tree_that_was_never_opened_can_be_closed(driver: Driver) -> None:
    await driver.tree().close()


async def test_sessions_have_different_ids(driver: Driver) -> None:
    async with driver.sessions(3) as trees:
        assert len({tree.session_id for tree in trees}) == 3


async def test_an_ephemeral_node_names_its_owner_and_goes_with_close(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/parent")
        await tree.create("/parent/mine", ephemeral=True)
        await tree.create("/parent/mine-", ephemeral=True, sequential=True)
        await tree.create("/parent/lasting")
        await tree.set("/parent/mine", b"new", 0)
        await other.sync("/parent")
        assert (await other.get("/parent/mine")).stat.owner == tree.session_id
        assert (await tree.exists("/parent/mine-0000000001")).owner == tree.session_id
        await tree.close()
        await other.sync("/parent")
        assert (await other.children("/parent"))[0] == ["lasting"]


async def test_an_ephemeral_node_can_be_deleted_by_anybody(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/mine", ephemeral=True)
        await other.delete("/mine", 0)
        await tree.sync("/")
        assert await tree.exists("/mine") is None


async def test_an_ephemeral_node_has_no_children(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/mine", ephemeral=True)
        with pytest.raises(MetadataStoreError):
            await tree.create("/mine/child")
        assert await tree.exists("/mine/child") is None


async def test_a_lost_session_takes_its_nodes_along_and_fires_every_watch(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/dir")
        await tree.create("/dir/mine", ephemeral=True)
        data, absent, listing = Events(), Events(), Events()
        await tree.get("/dir", data)
        await tree.exists("/absent", absent)
        await tree.children("/dir", listing)
        states: list[SessionState] = []
        tree.on_session(states.append)
        lost_id = tree.session_id

        await driver.lose_session(tree)

        assert (await data.first()).kind is EventKind.LOST
        assert await absent.first() == WatchEvent(EventKind.LOST, "/absent")
        # The list itself changed too, with the node that went: either may be told first.
        assert (await listing.first()).kind in (EventKind.LOST, EventKind.CHILDREN)
        assert tree.session_state is SessionState.LOST
        assert states[-1] is SessionState.LOST
        for call in (tree.get("/dir"), tree.create("/x"), tree.create("/x", ephemeral=True), tree.sync("/")):
            with pytest.raises(MetadataLostError):
                await call

        async def gone() -> bool:
            await other.sync("/")
            return await other.exists("/dir/mine") is None

        await eventually(gone, "the ephemeral node goes")

        await tree.reopen()
        assert tree.session_state is SessionState.CONNECTED
        assert states[-1] is SessionState.CONNECTED
        assert tree.session_id != lost_id
        await tree.create("/dir/mine", ephemeral=True)
        assert (await tree.exists("/dir/mine")).owner == tree.session_id
        await tree.set("/dir", b"", 0)
        await tree.create("/absent")
        assert (len(data), len(absent), len(listing)) == (1, 1, 1)


async def test_reopening_a_living_session_changes_nothing(driver: Driver) -> None:
    async with driver.sessions(1) as (tree,):
        await tree.create("/mine", ephemeral=True)
        session_id = tree.session_id
        await asyncio.gather(tree.reopen(), tree.reopen())
        assert tree.session_id == session_id
        assert await tree.exists("/mine") is not None


async def test_closing_is_no_loss(driver: Driver) -> None:
    """Whoever closes a tree is not told to read everything again."""
    async with driver.sessions(1) as (tree,):
        events: Events = Events()
        states: list[SessionState] = []
        await tree.create("/mine", ephemeral=True)
        await tree.get("/mine", events)
        tree.on_session(states.append)
        await tree.close()
        await asyncio.sleep(0.05)
        assert (events, states) == ([], [])


# --- Watches

Arm = Callable[[MetadataTree, Events], Any]
Act = Callable[[MetadataTree], Any]

CHANGES = [
    pytest.param(
        lambda tree, watcher: tree.exists("/absent", watcher),
        lambda tree: tree.create("/absent"),
        WatchEvent(EventKind.CREATED, "/absent"),
        id="exists-created",
    ),
    pytest.param(
        lambda tree, watcher: tree.exists("/dir", watcher),
        lambda tree: tree.set("/dir", b"", ANY_VERSION),
        WatchEvent(EventKind.CHANGED, "/dir"),
        id="exists-changed",
    ),
    pytest.param(
        lambda tree, watcher: tree.exists("/dir/child", watcher),
        lambda tree: tree.delete("/dir/child", ANY_VERSION),
        WatchEvent(EventKind.DELETED, "/dir/child"),
        id="exists-deleted",
    ),
    pytest.param(
        lambda tree, watcher: tree.get("/dir", watcher),
        lambda tree: tree.set("/dir", b"new", ANY_VERSION),
        WatchEvent(EventKind.CHANGED, "/dir"),
        id="get-changed",
    ),
    pytest.param(
        lambda tree, watcher: tree.get("/dir/child", watcher),
        lambda tree: tree.delete("/dir/child", ANY_VERSION),
        WatchEvent(EventKind.DELETED, "/dir/child"),
        id="get-deleted",
    ),
    pytest.param(
        lambda tree, watcher: tree.children("/dir", watcher),
        lambda tree: tree.create("/dir/second"),
        WatchEvent(EventKind.CHILDREN, "/dir"),
        id="children-created",
    ),
    pytest.param(
        lambda tree, watcher: tree.children("/dir", watcher),
        lambda tree: tree.delete("/dir/child", ANY_VERSION),
        WatchEvent(EventKind.CHILDREN, "/dir"),
        id="children-deleted",
    ),
    pytest.param(
        lambda tree, watcher: tree.children("/dir/child", watcher),
        lambda tree: tree.delete("/dir/child", ANY_VERSION),
        WatchEvent(EventKind.DELETED, "/dir/child"),
        id="children-of-deleted",
    ),
    pytest.param(
        lambda tree, watcher: tree.children("/", watcher),
        lambda tree: tree.create("/absent/below", parents=True),
        WatchEvent(EventKind.CHILDREN, "/"),
        id="children-of-root",
    ),
    pytest.param(
        lambda tree, watcher: tree.get("/dir", watcher),
        lambda tree: tree.multi([CreateOp("/absent"), SetOp("/dir", b"")]),
        WatchEvent(EventKind.CHANGED, "/dir"),
        id="multi",
    ),
]


@pytest.mark.parametrize("by", ["self", "other"])
@pytest.mark.parametrize(("arm", "act", "expected"), CHANGES)
async def test_a_watch_fires_once_after_every_kind_of_change(
    driver: Driver, arm: Arm, act: Act, expected: WatchEvent, by: str
) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/dir/child", parents=True)
        events = Events()
        await arm(tree, events)
        await act(tree if by == "self" else other)
        assert await events.first() == expected
        await other.create("/dir-2", parents=True)
        await other.set("/dir", b"again", ANY_VERSION)
        await tree.sync("/")
        assert events == [expected]


async def test_a_watch_hears_only_what_it_is_for(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/dir/child", parents=True)
        data, listing, fence = Events(), Events(), Events()
        await tree.get("/dir", data)
        await tree.children("/dir", listing)
        await tree.exists("/fence", fence)
        await other.set("/dir/child", b"", 0)
        await other.create("/dir/child/grandchild")
        await other.create("/fence")
        await fence.first()
        assert (data, listing) == ([], [])
        await other.create("/dir/second")
        await listing.first()
        assert data == []
        await other.set("/dir", b"", 0)
        await data.first()
        assert len(listing) == 1


async def test_a_read_that_finds_no_node_arms_no_watch(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        events, fence = Events(), Events()
        for call in (tree.get("/absent", events), tree.children("/absent", events)):
            with pytest.raises(NoNodeError):
                await call
        await tree.exists("/fence", fence)
        await other.create("/absent/child", parents=True)
        await other.create("/fence")
        await fence.first()
        assert events == []


async def test_every_watch_on_a_node_fires(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/node")
        watchers = [Events() for _ in range(3)]
        for watcher in watchers:
            await tree.get("/node", watcher)
        await other.set("/node", b"", 0)
        for watcher in watchers:
            assert await watcher.first() == WatchEvent(EventKind.CHANGED, "/node")


async def test_a_watcher_that_raises_harms_nobody(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        reported: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context["exception"])
        )

        def broken(_: WatchEvent) -> None:
            raise ZeroDivisionError

        events = Events()
        await tree.create("/node")
        await tree.get("/node", broken)
        await tree.get("/node", events)
        await other.set("/node", b"", 0)
        await events.first()
        assert [type(error) for error in reported] == [ZeroDivisionError]
        assert (await tree.get("/node")).stat.version == 1


async def test_ephemeral_nodes_that_go_are_events(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/available")
        await tree.create("/available/bookie", ephemeral=True)
        data, listing = Events(), Events()
        await other.get("/available/bookie", data)
        await other.children("/available", listing)
        await tree.close()
        assert await data.first() == WatchEvent(EventKind.DELETED, "/available/bookie")
        assert await listing.first() == WatchEvent(EventKind.CHILDREN, "/available")
        assert (await other.children("/available"))[0] == []


@pytest.mark.parametrize("by", ["self", "other"])
async def test_the_event_comes_before_a_read_shows_the_change(driver: Driver, by: str) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/node")
        for version in range(20):
            events = Events()
            await tree.get("/node", events)
            change = asyncio.create_task((tree if by == "self" else other).set("/node", b"", version))
            while (await tree.get("/node")).stat.version == version:
                pass
            assert events == [WatchEvent(EventKind.CHANGED, "/node")]
            await change


async def test_the_event_comes_before_a_read_shows_that_the_node_is_gone(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        for _ in range(20):
            await tree.create("/node")
            events = Events()
            await tree.get("/node", events)
            deletion = asyncio.create_task(other.delete("/node", 0))
            gone = False
            while not gone:
                try:
                    await tree.get("/node")
                except NoNodeError:
                    gone = True
            assert events == [WatchEvent(EventKind.DELETED, "/node")]
            await deletion


@pytest.mark.parametrize("what", ["data", "children"])
async def test_no_event_is_missed_between_read_and_next_read(driver: Driver, what: str) -> None:
    """Whoever reads again at every event ends up with the last state, however fast it changed."""
    async with driver.sessions(2) as (tree, other):
        await tree.create("/node")
        steps = 150

        async def write() -> None:
            for number in range(steps):
                if what == "data":
                    await other.set("/node", b"%d" % number, number)
                else:
                    await other.create(f"/node/{number}")
                if number % 7 == 0:
                    await asyncio.sleep(0.001)

        async def follow() -> None:
            while True:
                changed = asyncio.Event()
                watcher = lambda _, changed=changed: changed.set()  # noqa: E731 # one per turn
                if what == "data":
                    seen = (await tree.get("/node", watcher)).stat.version
                else:
                    seen = len((await tree.children("/node", watcher))[0])
                if seen == steps:
                    return
                await changed.wait()

        await asyncio.wait_for(asyncio.gather(write(), follow()), 30)


async def test_a_cancelled_read_leaves_no_watch_behind(driver: Driver) -> None:
    async with driver.sessions(2) as (tree, other):
        await tree.create("/node")
        events, fence = Events(), Events()
        reading = asyncio.create_task(tree.get("/node", events))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await tree.exists("/fence", fence)
        await other.set("/node", b"", 0)
        await other.create("/fence")
        await fence.first()
        assert events == []
        assert (await tree.get("/node")).stat.version == 1
