"""Metadata both ways: clusters, their layouts, URIs and ledger ids."""

import asyncio
import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bkctl.client.blocking import BlockingBookKeeper
from bkctl.errors import BadInputError, IncorrectParameterError, LedgerExistsError, NoClusterError
from bkctl.formats import layout as layout_format
from bkctl.formats import service_uri
from bkctl.formats.ledger_path import ManagerType
from bkctl.metadata.api import ANY_VERSION
from bkctl.metadata.cluster import nuke_cluster
from bkctl.metadata.ledger_ids import LedgerIdGenerator
from bkctl.metadata.store import MetadataStore
from bkctl.types import BookieId, EntryId, LedgerId, LedgerMetadata, Segment
from tests.integration.bookies import BookieProcess, bkctl
from tests.interop.apache import Apache, JavaBookie, JavaClient, JavaDriver, JavaError, running
from tests.interop.bkctl_bookies import assert_no_traceback
from tests.interop.payload import digest, expected, payload
from tests.interop.stored import as_java, opened, rows, stored_tree
from tests.zookeeper_server import ZooKeeperServer, free_port

LAYOUTS = ["hierarchical", "longhierarchical", "flat"]
_tokens = itertools.count(1)
_METADATA = LedgerMetadata(1, 1, 1, (Segment(EntryId(0), (BookieId("b1"),)),), ctime_ms=1_700_000_000_123)


@contextlib.contextmanager
def _java(driver: JavaDriver, uri: str) -> Iterator[JavaClient]:
    client = driver.client(uri, uri)
    try:
        yield client
    finally:
        client.close()


async def _initialise(uri: str) -> None:
    """As `cluster init`, without a process."""
    store = await MetadataStore.open(uri, create=True)
    await store.close()


async def _create(store: MetadataStore, ledger_id: int) -> None:
    await store.ledgers.create(_METADATA, LedgerId(ledger_id), creator_token=next(_tokens))


def _create_by_java(client: JavaClient, ledger_id: int) -> None:
    client.call("create_metadata", id=ledger_id, **as_java(_METADATA))


async def _cluster_with(new_uri: Callable[..., str], layout: str) -> str:
    """Also with a layout that no URI can name."""
    uri = new_uri("null")
    await _initialise(uri)
    async with opened(uri) as store:
        data = layout_format.encode(layout_format.layout_of(ManagerType(layout)))
        await store.tree.set(f"{store.root}/LAYOUT", data, ANY_VERSION)
    return uri


async def _ranges(store: MetadataStore) -> list[list[LedgerId]]:
    return [ledger_ids async for ledger_ids in store.ledgers.ranges()]


# -- clusters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_both_initialise_a_cluster_with_the_same_nodes(
    driver: JavaDriver, new_uri: Callable[..., str], layout: str
) -> None:
    ours, theirs = new_uri(layout), new_uri(layout)
    assert bkctl("cluster", "init", "-u", ours).returncode == 0
    assert driver.call("init_cluster", uri=theirs) is True
    found = []
    for uri in (ours, theirs):
        async with opened(uri) as store:
            nodes = await stored_tree(store, store.root)
        assert len(nodes.pop("/INSTANCEID")) == 36
        found.append(nodes)
    assert found[0] == found[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("maker", ["bkctl", "java"])
async def test_cluster_of_one_side_is_that_of_the_other(
    driver: JavaDriver, new_uri: Callable[..., str], maker: str, layout: str
) -> None:
    uri = new_uri(layout)
    if maker == "bkctl":
        assert bkctl("cluster", "init", "-u", uri).returncode == 0
    else:
        assert driver.call("init_cluster", uri=uri) is True
    [row] = rows("cluster", "info", "-u", uri)
    assert row == {
        "instance_id": driver.call("instance_id", uri=uri),
        "layout": layout,
        "metadata_uri": uri,
    }
    with _java(driver, uri) as client:
        _create_by_java(client, 3)
        async with opened(uri) as store:
            await _create(store, 4)
            assert client.call("ledgers") == [3, 4]
            assert await _ranges(store) == [[3, 4]]
            client.call("delete", id=4)
            await store.ledgers.delete(LedgerId(3))
            assert client.call("ledgers") == []
            assert await _ranges(store) == []


def test_cluster_is_initialised_once_whoever_comes_second(
    driver: JavaDriver, new_uri: Callable[..., str]
) -> None:
    ours, theirs = new_uri(), new_uri()
    rows("cluster", "init", "-u", ours)
    driver.call("init_cluster", uri=theirs)
    for uri in (ours, theirs):
        instance_id = driver.call("instance_id", uri=uri)
        assert driver.call("init_cluster", uri=uri) is False
        [row] = rows("cluster", "init", "-u", uri)
        assert (row["created"], row["instance_id"]) == (False, instance_id)
        assert driver.call("instance_id", uri=uri) == instance_id


def test_java_shell_initialises_a_cluster_for_bkctl(
    apache: Apache, new_uri: Callable[..., str], tmp_path: Path
) -> None:
    uri = new_uri("longhierarchical")
    (tmp_path / "bk.conf").write_text(f"metadataServiceUri={uri}\n")
    shell = apache.java("org.apache.bookkeeper.bookie.BookieShell", "-conf", str(tmp_path / "bk.conf"))
    done = subprocess.run([*shell, "initnewcluster"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows("cluster", "info", "-u", uri)[0]["layout"] == "longhierarchical"
    assert rows("cluster", "init", "-u", uri)[0]["created"] is False


@pytest.mark.parametrize("maker", ["bkctl", "java"])
async def test_both_forget_a_cluster_that_the_other_nuked(
    driver: JavaDriver, new_uri: Callable[..., str], maker: str
) -> None:
    uri = new_uri()
    if maker == "bkctl":
        await _initialise(uri)
    else:
        driver.call("init_cluster", uri=uri)
    with _java(driver, uri) as client:
        _create_by_java(client, 1 << 40)
    async with opened(uri) as store:
        await nuke_cluster(store.tree, store.root, instance_id=driver.call("instance_id", uri=uri))
        assert await store.tree.exists(store.root) is None
    with pytest.raises(NoClusterError):
        await MetadataStore.open(uri)
    assert driver.call("init_cluster", uri=uri) is True
    async with opened(uri) as store:
        assert await _ranges(store) == []


@pytest.mark.parametrize(
    ("maker", "layout"), [("bkctl", "longhierarchical"), ("bkctl", "flat"), ("java", "flat")]
)
def test_cluster_of_one_side_serves_bookies_of_the_other_and_both_clients(
    apache: Apache, driver: JavaDriver, new_uri: Callable[..., str], tmp_path: Path, maker: str, layout: str
) -> None:
    uri = new_uri(layout)
    bookie: JavaBookie | BookieProcess
    if maker == "bkctl":
        rows("cluster", "init", "-u", uri)
        bookie = JavaBookie(apache, uri, tmp_path, "b1")
    else:
        driver.call("init_cluster", uri=uri)
        bookie = BookieProcess(uri, tmp_path, "b1")
    with running([bookie]), _java(driver, uri) as java, BlockingBookKeeper(uri) as ours:
        one = {"ensemble_size": 1, "write_quorum_size": 1, "ack_quorum_size": 1}
        with ours.create_ledger(**one) as writer:
            writer.append_many([payload(n, 10) for n in range(10)])
        java.call("open", handle="r", id=writer.ledger_id)
        assert java.call("read", handle="r", first=0, last=9)["sha256"] == expected(0, 9, 10)
        made = java.call("create", handle="w", ensemble=1, write=1, ack=1)
        java.call("add", handle="w", count=10, size=10)
        found = ours.open_ledger(made["id"]).read(EntryId(0), EntryId(9))
        assert digest((e.entry_id, bytes(e.payload)) for e in found) == expected(0, 9, 10)
        assert java.call("ledgers") == [writer.ledger_id, made["id"]]
    if isinstance(bookie, BookieProcess):
        assert_no_traceback([bookie])


# -- URIs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "zk://h1/ledgers",
        "zk://h1:2181/a/b/ledgers",
        "zk+null://h1:2181/ledgers",
        "zk+hierarchical://h1:2181;h2:2182;h3/ledgers",
        "zk+longhierarchical://h1:2181,h2:2182/l",
        "zk+flat://127.0.0.1:2181/x-y_z.1",
        "ZK+Hierarchical://h1:2181/Ledgers",
        "zk://[::1]:2181/ledgers",
    ],
)
def test_uri_means_the_same_to_both(driver: JavaDriver, uri: str) -> None:
    java = driver.call("parse_uri", uri=uri)
    ours = service_uri.parse(uri)
    manager = None if ours.manager is None else layout_format.layout_of(ours.manager).factory
    assert (ours.servers, ours.root, manager) == (java["servers"], java["root"], java["factory"])


@pytest.mark.parametrize("uri", ["zk+legacyhierarchical://h1/ledgers", "zk+other://h1/l", "zk:///ledgers"])
def test_uri_that_java_refuses_is_refused(driver: JavaDriver, uri: str) -> None:
    with pytest.raises(JavaError):
        driver.call("parse_uri", uri=uri)
    with pytest.raises(BadInputError):
        service_uri.parse(uri)


def test_in_process_metastore_is_refused_in_one_line() -> None:
    """Java's zk+ms keeps ledgers in the memory of one process: there is nothing to share."""
    refused = bkctl("cluster", "info", "-u", "zk+ms://127.0.0.1:2181/ledgers")
    assert refused.returncode == 2
    assert refused.stderr.decode().count("\n") == 1
    assert "hierarchical" in refused.stderr.decode()


@pytest.mark.parametrize("layout", [*LAYOUTS, "legacyhierarchical"])
@pytest.mark.parametrize("scheme", ["zk", "zk+null"])
async def test_uri_without_a_manager_takes_that_of_the_cluster(
    driver: JavaDriver, new_uri: Callable[..., str], scheme: str, layout: str
) -> None:
    uri = (await _cluster_with(new_uri, layout)).replace("zk+null", scheme)
    with _java(driver, uri) as client:
        async with opened(uri) as store:
            assert store.layout.manager is ManagerType(layout)
            await _create(store, 123_456_789)
            _create_by_java(client, 1_234_567_890)
            assert await _ranges(store) == client.call("ledger_ranges")
            assert client.call("ledgers") == [123_456_789, 1_234_567_890]


@pytest.mark.parametrize("layout", ["longhierarchical", "flat"])
def test_uri_that_names_another_manager_is_refused_by_both(
    driver: JavaDriver, new_cluster: Callable[..., str], layout: str
) -> None:
    uri = new_cluster("hierarchical").replace("hierarchical", layout)
    refused = bkctl("ledger", "list", "-u", uri)
    assert refused.returncode == 2
    assert "uses the ledger manager hierarchical" in refused.stderr.decode()
    with pytest.raises(JavaError):
        driver.client("refused", uri)


@pytest.mark.parametrize("maker", ["bkctl", "java"])
async def test_root_may_be_several_levels_deep(
    driver: JavaDriver, new_uri: Callable[..., str], maker: str
) -> None:
    top = new_uri()
    uri = f"{top}/tenants/b/ledgers"
    if maker == "bkctl":
        rows("cluster", "init", "-u", uri)
    else:
        with pytest.raises(JavaError):  # Java makes no parents: somebody else has to
            driver.call("init_cluster", uri=uri)
        await _initialise(f"{top}/tenants/b")
        assert driver.call("init_cluster", uri=uri) is True
    with _java(driver, uri) as client:
        _create_by_java(client, 1)
        async with opened(uri) as store:
            await _create(store, 1 << 33)
            assert client.call("ledger_ranges") == await _ranges(store) == [[1], [1 << 33]]


async def test_server_that_is_down_is_passed_over_by_both(
    driver: JavaDriver, zookeeper: ZooKeeperServer, new_uri: Callable[..., str]
) -> None:
    uri = new_uri()
    await _initialise(uri)
    several = uri.replace(
        zookeeper.hosts, f"127.0.0.1:{free_port()};{zookeeper.hosts};127.0.0.1:{free_port()}"
    )
    with _java(driver, several) as client:
        _create_by_java(client, 5)
        assert [row["ledger_id"] for row in rows("ledger", "list", "-u", several)] == [5]


# -- ledger ids ----------------------------------------------------------------------------------

_BOUNDARIES = [(1 << 31) - 2, (1 << 31) - 1, 1 << 31, (1 << 32) + 5, 1 << 62, (1 << 63) - 1]


@pytest.mark.parametrize("layout", ["hierarchical", "longhierarchical"])
async def test_ids_of_up_to_63_bits_given_by_either_are_found_and_listed_by_both(
    driver: JavaDriver, new_uri: Callable[..., str], layout: str
) -> None:
    uri = new_uri(layout)
    await _initialise(uri)
    given = [ledger_id - offset for ledger_id in _BOUNDARIES for offset in (0, 1_000_000)]
    with _java(driver, uri) as client:
        async with opened(uri) as store:
            for position, ledger_id in enumerate(given):
                if position % 2:
                    await _create(store, ledger_id)
                else:
                    _create_by_java(client, ledger_id)
            for ledger_id in given:
                assert client.call("read_metadata", id=ledger_id)["state"] == "OPEN"
                await store.ledgers.read(LedgerId(ledger_id))
                with pytest.raises(LedgerExistsError):
                    await _create(store, ledger_id)
                with pytest.raises(JavaError, match="Exist"):
                    _create_by_java(client, ledger_id)
            assert client.call("ledgers") == sorted(given)
            assert await _ranges(store) == client.call("ledger_ranges")
            for position, ledger_id in enumerate(given):
                if position % 2:
                    client.call("delete", id=ledger_id)
                else:
                    await store.ledgers.delete(LedgerId(ledger_id))
            # Both also take away the parents that have become empty.
            assert not {name for name in (await store.tree.children(store.root))[0] if name.isdigit()}


@pytest.mark.parametrize("layout", ["flat", "legacyhierarchical"])
async def test_id_that_java_would_cut_off_is_refused_by_bkctl(
    new_uri: Callable[..., str], layout: str
) -> None:
    async with opened(await _cluster_with(new_uri, layout)) as store:
        with pytest.raises(IncorrectParameterError):
            await _create(store, 12_345_678_901)


def _generator(store: MetadataStore) -> LedgerIdGenerator:
    return LedgerIdGenerator(store.tree, store.root, store.layout.manager)


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_ids_drawn_in_turns_go_on_where_the_other_stopped(
    driver: JavaDriver, new_uri: Callable[..., str], layout: str
) -> None:
    uri = new_uri(layout)
    await _initialise(uri)
    drawn: list[int] = []
    async with opened(uri) as store:
        generator = _generator(store)
        for turn in range(6):
            if turn % 2:
                drawn += driver.call("draw_ids", uri=uri, count=20)
            else:
                drawn += [await generator.next() for _ in range(20)]
    assert drawn == list(range(drawn[0], drawn[0] + 120))


@pytest.mark.parametrize("long", [False, True], ids=["short ids", "long ids"])
@pytest.mark.parametrize("layout", ["hierarchical", "longhierarchical"])
async def test_ids_drawn_at_the_same_time_are_given_once(
    driver: JavaDriver, new_uri: Callable[..., str], layout: str, long: bool
) -> None:
    uri = new_uri(layout)
    await _initialise(uri)
    count = 500

    async def draw(generator: LedgerIdGenerator) -> list[LedgerId]:
        return [await generator.next() for _ in range(count // 4)]

    async with opened(uri) as store:
        if long:
            await store.tree.create(f"{store.root}/idgen-long")
        theirs, *ours = await asyncio.gather(
            asyncio.to_thread(driver.call, "draw_ids", uri=uri, count=count),
            *(draw(_generator(store)) for _ in range(4)),
        )
    drawn: list[Any] = [*theirs, *(ledger_id for some in ours for ledger_id in some)]
    assert len(set(drawn)) == 2 * count
    first = (1 << 32) if long else 0
    assert (min(drawn), max(drawn)) == (first, first + 2 * count - 1)


async def test_ids_become_long_for_both_once_one_switched(
    driver: JavaDriver, new_uri: Callable[..., str]
) -> None:
    uri = new_uri()
    await _initialise(uri)
    async with opened(uri) as store:
        assert await _generator(store).next() == 0
        assert driver.call("draw_ids", uri=uri, count=1) == [1]
        await store.tree.create(f"{store.root}/idgen-long")  # as when the short ones have run out
        assert driver.call("draw_ids", uri=uri, count=2) == [1 << 32, (1 << 32) + 1]
        assert await _generator(store).next() == (1 << 32) + 2
        # As when all with these high bits are gone.
        await store.tree.create(f"{store.root}/idgen-long/HOB-0000000002")
        assert await _generator(store).next() == 2 << 32
        assert driver.call("draw_ids", uri=uri, count=1) == [(2 << 32) + 1]
