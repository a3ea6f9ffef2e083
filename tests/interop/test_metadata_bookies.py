"""Metadata both ways: bookies, their registrations and cookies."""

import asyncio
import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bkctl.client.bookkeeper import BookKeeper
from bkctl.errors import BadVersionError
from bkctl.formats import cookie as cookie_format
from bkctl.formats.service_info import BookieServiceInfo, Endpoint
from bkctl.metadata.registration import BookieSets, RegistrationManager
from bkctl.types import BookieId
from tests.integration.bookies import BookieProcess, bkctl, wait_until
from tests.interop.apache import Apache, JavaBookie, JavaClient, JavaDriver, JavaError, running
from tests.interop.bkctl_bookies import assert_no_traceback
from tests.interop.stored import opened, rows, stored_tree


@dataclass(frozen=True, slots=True)
class Mixed:
    """A cluster with a writable and a read-only bookie of each kind, and lost ones, of whom only a
    cookie is there. `bookies` are those that run, by their ids: bkctl-rw, java-ro and so on."""

    uri: str
    home: Path
    client: JavaClient
    bookies: dict[str, JavaBookie | BookieProcess]


_LOST = ("bkctl-lost", "java-lost")


@pytest.fixture(scope="module")
def mixed(
    apache: Apache,
    driver: JavaDriver,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mixed]:
    uri = new_cluster()
    home = tmp_path_factory.mktemp("mixed")
    ours = [
        BookieProcess(uri, home / "bkctl-rw", "bkctl-rw", ledgers=2),
        BookieProcess(uri, home / "bkctl-ro", "bkctl-ro", ["forceReadOnlyBookie=true"]),
    ]
    forced = {"readOnlyModeEnabled": "true", "forceReadOnlyBookie": "true"}
    theirs = [
        JavaBookie(apache, uri, home / "java-rw", "java-rw", ledgers=2),
        JavaBookie(apache, uri, home / "java-ro", "java-ro", forced),
    ]
    everyone: list[JavaBookie | BookieProcess] = [*theirs, *ours]
    with running(everyone):
        for name in _LOST:
            text = _cookie_text(name, driver.call("instance_id", uri=uri))
            driver.call("write_cookie", uri=uri, bookie=name, cookie=text)
        client = driver.client("mixed", uri)
        yield Mixed(uri, home, client, {bookie.name: bookie for bookie in everyone})
        client.close()
    assert_no_traceback(ours)


def _cookie_text(name: str, instance_id: str, journals: Sequence[str] = ("/d/journal",)) -> str:
    cookie = cookie_format.make_cookie(name, journals, ["/d/ledgers-1", "/d/ledgers-2"], instance_id)
    return cookie_format.encode(cookie).decode()


# -- registrations -------------------------------------------------------------------------------


def test_bookie_list_says_of_each_bookie_what_java_says(mixed: Mixed) -> None:
    said = mixed.client.call("bookies")
    registered = {*said["writable"], *said["readonly"]}
    states = dict.fromkeys(said["all"], "lost") | dict.fromkeys(said["readonly"], "ro")
    states |= dict.fromkeys(said["writable"], "rw")
    assert states == {
        "bkctl-rw": "rw", "java-rw": "rw", "bkctl-ro": "ro", "java-ro": "ro", "bkctl-lost": "lost",
        "java-lost": "lost",
    }  # fmt: skip
    found = rows("bookie", "list", "-u", mixed.uri)
    assert {row["bookie_id"]: row["state"] for row in found} == states
    assert [row["bookie_id"] for row in found] == sorted(states)
    for row in found:
        if row["bookie_id"] in registered:
            info = mixed.client.call("service_info", bookie=row["bookie_id"])
            [endpoint] = info["endpoints"]
            assert row["address"] == f"{endpoint['host']}:{endpoint['port']}"
            assert (row["endpoints"], row["properties"]) == (info["endpoints"], info["properties"])


@pytest.mark.parametrize("name", ["bkctl-rw", "bkctl-ro", "java-rw", "java-ro"])
def test_bookie_is_found_by_both_at_the_address_where_it_listens(mixed: Mixed, name: str) -> None:
    [endpoint] = mixed.client.call("service_info", bookie=name)["endpoints"]
    assert f"{endpoint['host']}:{endpoint['port']}" == mixed.bookies[name].address
    assert (endpoint["id"], endpoint["protocol"]) == ("bookie", "bookie-rpc")
    [row] = rows("bookie", "show", name, "-u", mixed.uri)
    assert row["address"] == mixed.bookies[name].address
    assert row["state"] == name.split("-")[1]
    assert row["endpoints"] == [endpoint]


async def test_registrations_of_both_kinds_are_the_same_but_for_the_port(mixed: Mixed) -> None:
    async with opened(mixed.uri) as store:
        nodes = await stored_tree(store, f"{store.root}/available")
    for mode in ("", "/readonly"):
        suffix = "ro" if mode else "rw"
        published = []
        for kind in ("bkctl", "java"):
            name = f"{kind}-{suffix}"
            port = int(mixed.bookies[name].address.split(":")[1])
            written = nodes[f"{mode}/{name}"]
            varint = bytes([port & 0x7F | 0x80, port >> 7 & 0x7F | 0x80, port >> 14])
            assert varint[: 3 if port >> 14 else 2] in written
            published.append((len(written), written.replace(varint, b"PORT")))
        assert published[0] == published[1]


_ENDPOINTS: list[dict[str, Any]] = [
    {"id": "bookie", "protocol": "bookie-rpc", "host": "bk-1.example", "port": 3181,
     "auth": ["sasl", "other"], "extensions": ["tls"]},
    {"id": "httpserver", "protocol": "http", "host": "0.0.0.0", "port": 65535, "auth": [], "extensions": []},
]  # fmt: skip


@pytest.mark.parametrize("state", ["rw", "ro"])
async def test_everything_that_one_publishes_is_read_by_the_other(
    driver: JavaDriver, new_cluster: Callable[..., str], state: str
) -> None:
    uri = new_cluster()
    properties = {"autoRecovery": "grün"}
    published: dict[str, Any] = {"endpoints": _ENDPOINTS, "properties": properties}
    info = BookieServiceInfo(tuple(_endpoint(shown) for shown in _ENDPOINTS), properties)
    async with opened(uri) as store:
        registration = RegistrationManager(store.tree, store.root)
        await registration.register(BookieId("ours"), info, readonly=state == "ro")
        driver.call("register_bookie", uri=uri, bookie="theirs", readonly=state == "ro", **published)
        client = driver.client(uri, uri)
        for name in ("ours", "theirs"):
            assert client.call("service_info", bookie=name) == published
        nodes = await stored_tree(store, f"{store.root}/available")
        parent = "/readonly" if state == "ro" else ""
        assert nodes[f"{parent}/ours"] == nodes[f"{parent}/theirs"]
        found = rows("bookie", "list", "-u", uri)
        assert [(row["bookie_id"], row["state"]) for row in found] == [("ours", state), ("theirs", state)]
        for row in found:
            assert {key: row[key] for key in published} == published
            assert row["address"] == "bk-1.example:3181"
        driver.call("leave", bookie="theirs")
        await registration.unregister()
        client.close()
        assert rows("bookie", "list", "-u", uri) == []


def _endpoint(shown: dict[str, Any]) -> Endpoint:
    return Endpoint(**shown | {"auth": tuple(shown["auth"]), "extensions": tuple(shown["extensions"])})


@pytest.mark.parametrize("name", ["bkctl-rw", "java-rw"])
def test_disk_space_of_a_bookie_is_the_same_for_both(mixed: Mixed, name: str) -> None:
    said = mixed.client.call("bookie_info")[name]
    [row] = rows("bookie", "show", name, "-u", mixed.uri)
    here = shutil.disk_usage(mixed.home)
    assert row["total_bytes"] == said["total_bytes"] == here.total  # two directories, one disk
    for free_bytes in (row["free_bytes"], said["free_bytes"]):
        assert abs(free_bytes - here.free) < here.total / 50  # others use the disk meanwhile


def test_cluster_status_counts_what_java_counts(mixed: Mixed) -> None:
    bookies = mixed.client.call("bookies")
    ids = mixed.client.call("ledgers")
    states = Counter(mixed.client.call("read_metadata", id=ledger_id)["state"] for ledger_id in ids)
    done = bkctl("cluster", "status", "-u", mixed.uri, "-o", "json")
    assert done.returncode == 10, done.stderr.decode()  # some are lost
    [row] = json.loads(done.stdout)["items"]
    lost = set(bookies["all"]) - {*bookies["writable"], *bookies["readonly"]}
    assert (row["state"], row["lost"]) == ("unhealthy", len(lost))
    assert (row["writable"], row["readonly"]) == (len(bookies["writable"]), len(bookies["readonly"]))
    assert (row["ledgers"], row["open"]) == (len(ids), states["OPEN"])
    assert (row["in_recovery"], row["closed"]) == (states["IN_RECOVERY"], states["CLOSED"])


# -- cookies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("journals", "ledgers", "indexes"),
    [
        (["/j"], ["/l"], None),
        (["/j2", "/j1"], ["/l2", "/l1", "/l3"], ["/i"]),
        (["data/journal"], ["relative/../ledgers"], ["/i 1", "/i'2"]),
        (['/with "quotes"'], ["/back\\slash", "/gr\u00f6\u00dfe"], None),
    ],
    ids=["one each", "several", "relative, blanks", "quotes, umlauts"],
)
@pytest.mark.parametrize("instance_id", [None, "0b5b5a5e-6f5c-4c3a-9a7e-1f2d3c4b5a69"])
def test_both_write_the_same_cookie(
    driver: JavaDriver,
    journals: list[str],
    ledgers: list[str],
    indexes: list[str] | None,
    instance_id: str | None,
) -> None:
    text = driver.call(
        "make_cookie", bookie="b-1", journals=journals, ledgers=ledgers, indexes=indexes,
        instance_id=instance_id,
    )  # fmt: skip
    cookie = cookie_format.make_cookie("b-1", journals, ledgers, instance_id, indexes or ())
    assert cookie_format.encode(cookie).decode() == text
    assert cookie_format.decode(text.encode()) == cookie


@pytest.mark.parametrize("name", ["bkctl-rw", "java-rw"])
async def test_cookie_is_the_same_for_both_in_the_store_and_in_every_directory(
    mixed: Mixed, driver: JavaDriver, name: str
) -> None:
    text = driver.call("cookie", uri=mixed.uri, bookie=name)
    async with opened(mixed.uri) as store:
        node = await store.tree.get(f"{store.root}/cookies/{name}")
        found = await store.cookies.read(BookieId(name))
    assert node.data.decode() == text
    assert found is not None
    assert cookie_format.encode(found.value) == node.data
    directories = [mixed.home / name / below for below in ("journal", "ledgers", "ledgers-2")]
    for directory in directories:
        assert (directory / "current" / "VERSION").read_bytes() == node.data
    [row] = rows("bookie", "show", name, "-u", mixed.uri)
    assert row["cookie"] == {
        "journal_directories": str(directories[0]),
        "ledger_directories": f"2\t{directories[1]}\t{directories[2]}",
        "index_directories": None,
        "instance_id": driver.call("instance_id", uri=mixed.uri),
    }


async def test_cookie_that_java_changed_is_read_and_not_overwritten_unseen(
    mixed: Mixed, driver: JavaDriver
) -> None:
    name = BookieId("java-lost")
    async with opened(mixed.uri) as store:
        stale = await store.cookies.read(name)
        assert stale is not None
        instance_id = driver.call("instance_id", uri=mixed.uri)
        changed = _cookie_text(name, instance_id, ["/elsewhere"])
        driver.call("write_cookie", uri=mixed.uri, bookie=name, cookie=changed)
        [row] = rows("bookie", "show", name, "-u", mixed.uri)
        assert row["cookie"]["journal_directories"] == "/elsewhere"
        with pytest.raises(BadVersionError):
            await store.cookies.update(name, stale.value, stale.version)
        fresh = await store.cookies.read(name)
        assert fresh is not None
        again = replace(fresh.value, journal_dirs="/there")
        await store.cookies.update(name, again, fresh.version)
    assert 'journalDir: "/there"' in driver.call("cookie", uri=mixed.uri, bookie=name)


def _start_of_ours(uri: str, name: str, journal: Path, ledgers: Sequence[Path]) -> tuple[int, str]:
    """The exit code and what was said, of a bookie that must not start."""
    directories = ["-j", str(journal), *(word for path in ledgers for word in ("-l", str(path)))]
    done = bkctl(
        "bookie", "start", "-u", uri, "-p", "0", "--bookie-id", name, "--advertised-address", "127.0.0.1",
        "--set", "allowLoopback=true", *directories,
    )  # fmt: skip
    return done.returncode, done.stderr.decode()


def test_bkctl_bookie_refuses_the_identity_of_a_java_bookie(mixed: Mixed, tmp_path: Path) -> None:
    code, said = _start_of_ours(mixed.uri, "java-rw", tmp_path / "journal", [tmp_path / "ledgers"])
    assert code == 5
    [line] = [line for line in said.splitlines() if "cookie" in line]
    assert "the cookie of java-rw in the metadata store is not of this bookie" in line
    assert str(mixed.home / "java-rw" / "journal") in line
    assert not list(tmp_path.rglob("VERSION"))


def test_bkctl_bookie_refuses_the_directories_of_a_java_bookie(mixed: Mixed) -> None:
    home = mixed.home / "java-rw"
    before = (home / "journal" / "current" / "VERSION").read_bytes()
    code, said = _start_of_ours(
        mixed.uri, "newcomer", home / "journal", [home / "ledgers", home / "ledgers-2"]
    )
    assert code == 5
    assert "bookieHost: configured 'newcomer', stored 'java-rw'" in said
    assert (home / "journal" / "current" / "VERSION").read_bytes() == before


def test_bkctl_bookie_refuses_a_java_bookie_of_another_cluster(
    mixed: Mixed, new_cluster: Callable[..., str]
) -> None:
    home = mixed.home / "java-rw"
    code, said = _start_of_ours(
        new_cluster(), "java-rw", home / "journal", [home / "ledgers", home / "ledgers-2"]
    )
    assert code == 5
    assert "instanceId" in said


@pytest.mark.parametrize("what", ["identity", "directories"])
async def test_java_bookie_refuses_what_belongs_to_a_bkctl_bookie(
    apache: Apache, mixed: Mixed, tmp_path: Path, what: str
) -> None:
    name, home = ("bkctl-rw", tmp_path) if what == "identity" else ("newcomer", mixed.home / "bkctl-rw")
    async with opened(mixed.uri) as store:
        before = await stored_tree(store, f"{store.root}/cookies")
        bookie = JavaBookie(apache, mixed.uri, home, name, ledgers=2)
        bookie.start(wait=False)
        assert bookie.process is not None
        assert bookie.process.wait(timeout=60) not in (0, None)
        assert "InvalidCookieException" in bookie.log.read_text()
        assert await stored_tree(store, f"{store.root}/cookies") == before


# -- coming and going ----------------------------------------------------------------------------


def test_java_client_takes_up_bkctl_bookies_that_come_and_leaves_those_that_go(
    driver: JavaDriver, new_cluster: Callable[..., str], tmp_path: Path
) -> None:
    uri = new_cluster()
    first, second, third = bookies = [BookieProcess(uri, tmp_path / n, n) for n in ("b1", "b2", "b3")]
    client = driver.client("watching", uri)
    with running([first]):
        wait_until(lambda: _created(client, ensemble=1) == ["b1"], "Java uses the first bookie")
        assert _created(client, ensemble=2) is None
        with running([second]):
            wait_until(lambda: _created(client, ensemble=2) is not None, "Java uses the second bookie")
            client.call("add", handle="w", count=10, size=10)
            with running([third]):
                wait_until(lambda: _seen(client) == ["b1", "b2", "b3"], "Java sees the third bookie")
                second.stop()
                done = client.call("add", handle="w", count=10, size=10)
                assert (done["acked"], done["failed"]) == (10, 0)
                closed = client.call("close", handle="w")
                assert list(closed["ensembles"]) == ["0", "10"]
                assert sorted(closed["ensembles"]["10"]) == ["b1", "b3"]
                [row] = rows("ledger", "show", str(closed["id"]), "-u", uri)
                assert [s["ensemble"] for s in row["segments"]] == list(closed["ensembles"].values())
                wait_until(lambda: _seen(client) == ["b1", "b3"], "Java sees that the second has left")
    client.close()
    assert_no_traceback(bookies)


def _created(client: JavaClient, ensemble: int) -> list[str] | None:
    """The ensemble of a new ledger; None: there were not enough bookies."""
    try:
        made = client.call("create", handle="w", ensemble=ensemble, write=ensemble, ack=ensemble)
    except JavaError as error:
        if error.name != "BKNotEnoughBookiesException":
            raise
        return None
    found: list[str] = made["ensembles"]["0"]
    return found


def _seen(client: JavaClient) -> list[str]:
    found: list[str] = client.call("bookies")["writable"]
    return found


@contextlib.contextmanager
def _running_later(*bookies: JavaBookie) -> Iterator[None]:
    """The test starts and ends them; whoever is left at the end is killed."""
    try:
        yield
    finally:
        for bookie in bookies:
            if bookie.process is not None:
                bookie.kill()


async def test_bkctl_client_takes_up_java_bookies_that_come_and_leaves_those_that_go(
    apache: Apache, new_cluster: Callable[..., str], tmp_path: Path
) -> None:
    uri = new_cluster()
    first, second = (JavaBookie(apache, uri, tmp_path / n, n, {"zkTimeout": 2000}) for n in ("j1", "j2"))
    told: asyncio.Queue[BookieSets] = asyncio.Queue()

    async def until(writable: set[str]) -> None:
        async with asyncio.timeout(60):
            while (await told.get()).writable != writable:
                pass

    async with await BookKeeper.connect(uri) as client:
        await client.metadata.registration.watch_bookies(told.put_nowait)
        await until(set())
        with _running_later(first, second):
            await asyncio.to_thread(first.start)
            await until({"j1"})
            writer = await client.create_ledger(ensemble_size=1, write_quorum_size=1, ack_quorum_size=1)
            assert await writer.add(b"on the first") == 0
            await asyncio.to_thread(second.start)
            await until({"j1", "j2"})
            await asyncio.to_thread(first.kill)
            assert await writer.add(b"on the second") == 1
            await until({"j2"})
            await asyncio.to_thread(second.stop)
            await until(set())
        ensembles = [segment.ensemble for segment in writer.metadata.segments]
        assert ensembles == [("j1",), ("j2",)]
