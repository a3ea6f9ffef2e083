"""Java client → bkctl bookies: bookies killed, paused and read-only while it writes."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bookies import BookieProcess, wait_until
from tests.interop.apache import Apache, JavaBookie, JavaClient, JavaDriver, running
from tests.interop.bkctl_bookies import assert_no_traceback, bkctl_bookies
from tests.interop.payload import expected

SIZE = 200
_ENDLESS = 10_000_000
_OUTSTANDING = 300
_SESSION = "zkTimeout=4000"  # a killed bookie may register again when its old session has ended
# A request that nobody answers fails after one second, give or take one.
_IMPATIENT = {"addEntryTimeoutSec": 1, "readEntryTimeoutSec": 1, "timeoutMonitorIntervalSec": 1}


@pytest.fixture(scope="module")
def cluster(
    new_cluster: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[BookieProcess]]]:
    """Four bookies, one more than an ensemble."""
    uri = new_cluster()
    with bkctl_bookies(uri, tmp_path_factory.mktemp("bkctl"), 4, [_SESSION]) as started:
        yield uri, started


@pytest.fixture
def bookies(cluster: tuple[str, list[BookieProcess]]) -> list[BookieProcess]:
    """All of them run, whatever the test before did to them."""
    start_all([bookie for bookie in cluster[1] if bookie.process is None])
    return cluster[1]


@pytest.fixture(scope="module", params=["v2", "v3"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(
    driver: JavaDriver, cluster: tuple[str, list[BookieProcess]], protocol: str
) -> Iterator[JavaClient]:
    with connected(driver, cluster[0], protocol) as client:
        yield client


@contextmanager
def connected(driver: JavaDriver, uri: str, protocol: str, **settings: object) -> Iterator[JavaClient]:
    name = " ".join([uri, protocol, *settings])
    client = driver.client(name, uri, useV2WireProtocol=protocol == "v2", **settings)
    try:
        yield client
    finally:
        client.close()


def start_all(bookies: list[BookieProcess]) -> None:
    for bookie in bookies:
        bookie.start(wait=False)
    for bookie in bookies:
        bookie.wait_ready()


def named(bookies: list[BookieProcess], name: str) -> BookieProcess:
    return next(bookie for bookie in bookies if bookie.name == name)


def ensembles(client: JavaClient) -> dict[int, list[str]]:
    found = client.call("handle", handle="w")["ensembles"]
    return {int(first): names for first, names in found.items()}


def start_pipeline(client: JavaClient, acknowledged: int, **options: object) -> int:
    """The id of a ledger with that many entries acknowledged at least, and the writer going on."""
    made = client.call("create", handle="w", **options)
    client.call("start_adds", handle="w", count=_ENDLESS, size=SIZE, outstanding=_OUTSTANDING)
    wait_acknowledged(client, acknowledged)
    return int(made["id"])


def wait_acknowledged(client: JavaClient, last: int) -> None:
    wait_until(lambda: client.call("handle", handle="w")["lac"] >= last, f"{last} is acknowledged", 30)


def end_pipeline(client: JavaClient) -> dict[str, Any]:
    """Close under the writer: what was acknowledged until then, without a gap."""
    client.call("close", handle="w")
    done: dict[str, Any] = client.call("wait_adds", handle="w")
    assert done["ended"]
    assert done["acked"] == done["last_acked"] + 1
    return done


def assert_readable(
    client: JavaClient, ledger_id: int, last_acked: int, *, recovery: bool = True, digest: str = "CRC32C"
) -> None:
    """All that was acknowledged is there, and all that is there is right."""
    opened = client.call("open", handle="r", id=ledger_id, recovery=recovery, digest=digest)
    end = opened["last_entry_id"]
    assert opened["state"] == "CLOSED"
    assert end >= last_acked
    for first in range(0, end + 1, 2000):
        last = min(first + 1999, end)
        read = client.call("read", handle="r", first=first, last=last)
        assert read["sha256"] == expected(first, last, SIZE), (first, last)


def last_ensemble(client: JavaClient) -> list[str]:
    found = ensembles(client)
    return found[max(found)]


def wait_replaced(client: JavaClient, victim: BookieProcess) -> None:
    """Until the writer goes on without `victim`, and acknowledges."""
    wait_until(lambda: victim.name not in last_ensemble(client), f"{victim.name} is replaced", 60)
    wait_acknowledged(client, max(ensembles(client)) + 500)


@pytest.mark.parametrize(
    ("write", "point"), [(3, 0), (2, 137), (3, 1500), (2, 4000)], ids=["first", "137", "1500", "4000"]
)
def test_killed_bookie_is_replaced_and_nothing_is_lost(
    client: JavaClient, bookies: list[BookieProcess], write: int, point: int
) -> None:
    ledger_id = start_pipeline(client, point, ensemble=3, write=write, ack=2)
    victim = named(bookies, ensembles(client)[0][point % 3])
    victim.kill()
    wait_replaced(client, victim)
    done = end_pipeline(client)
    assert_readable(client, ledger_id, done["last_acked"], recovery=False)


def test_bookies_killed_one_after_the_other_lose_nothing(
    driver: JavaDriver, cluster: tuple[str, Any], bookies: list[BookieProcess], protocol: str
) -> None:
    with connected(driver, cluster[0], protocol, throttle=3000) as client:  # it writes for a long time
        ledger_id = start_pipeline(client, 500)
        for n in range(2):
            victim = named(bookies, last_ensemble(client)[n])
            victim.kill()
            wait_replaced(client, victim)
            victim.start()
        done = end_pipeline(client)
        assert len(ensembles(client)) == 3
        assert_readable(client, ledger_id, done["last_acked"], recovery=False)


@pytest.mark.parametrize(("kind", "point"), [("CRC32C", 100), ("MAC", 2000)])
def test_what_was_acknowledged_survives_the_death_of_all_bookies(
    client: JavaClient, bookies: list[BookieProcess], kind: str, point: int
) -> None:
    ledger_id = start_pipeline(client, point, digest=kind)
    for bookie in bookies:
        bookie.signal(signal.SIGKILL)
    for bookie in bookies:
        bookie.kill()
    done = client.call("wait_adds", handle="w")
    assert done["ended"]
    assert done["error"] is not None
    start_all(bookies)
    assert done["last_acked"] >= point
    assert_readable(client, ledger_id, done["last_acked"], digest=kind)
    client.call("create", handle="w")  # the bookies are as good as before
    assert client.call("add", handle="w", count=100, size=SIZE)["acked"] == 100


def test_paused_bookie_is_replaced_and_does_no_harm_when_it_resumes(
    driver: JavaDriver, cluster: tuple[str, Any], bookies: list[BookieProcess], protocol: str
) -> None:
    with connected(driver, cluster[0], protocol, **_IMPATIENT) as client:
        # With fewer acks than copies the Java writer may hang for good: failures of entries that are
        # already acknowledged start a change that replaces nobody (apache/bookkeeper#4459).
        ledger_id = start_pipeline(client, 500, ack=3)
        victim = named(bookies, ensembles(client)[0][1])
        victim.signal(signal.SIGSTOP)
        try:
            wait_replaced(client, victim)
        finally:
            victim.signal(signal.SIGCONT)
        wait_acknowledged(client, client.call("handle", handle="w")["lac"] + 500)
        done = end_pipeline(client)
        assert_readable(client, ledger_id, done["last_acked"], recovery=False)


def test_short_pause_is_waited_for(client: JavaClient, bookies: list[BookieProcess]) -> None:
    ledger_id = start_pipeline(client, 500, ack=3)
    victim = named(bookies, ensembles(client)[0][0])
    victim.signal(signal.SIGSTOP)
    stopped_at = client.call("handle", handle="w")["lac"]
    time.sleep(0.5)  # the subject: nothing goes on without it, and nothing fails
    assert client.call("handle", handle="w")["lac"] <= stopped_at + _OUTSTANDING
    victim.signal(signal.SIGCONT)
    wait_acknowledged(client, stopped_at + 1000)
    assert list(ensembles(client)) == [0]
    done = end_pipeline(client)
    assert_readable(client, ledger_id, done["last_acked"], recovery=False)


@contextmanager
def read_only(uri: str, bookies: list[BookieProcess]) -> Iterator[None]:
    """The same bookies with the same disks, but read-only."""
    frozen = []
    for bookie in bookies:
        bookie.stop()
        frozen.append(
            BookieProcess(uri, bookie.directory, bookie.name, [_SESSION, "forceReadOnlyBookie=true"])
        )
    with running(frozen):
        yield


def test_read_only_bookie_is_replaced_and_still_read(
    client: JavaClient, cluster: tuple[str, Any], bookies: list[BookieProcess]
) -> None:
    made = client.call("create", handle="w", ensemble=1, write=1, ack=1)
    assert client.call("add", handle="w", count=100, size=SIZE)["acked"] == 100
    [name] = ensembles(client)[0]
    with read_only(cluster[0], [named(bookies, name)]):
        wait_until(lambda: client.call("bookies")["readonly"] == [name], "it is read-only")
        done = client.call("add", handle="w", count=100, size=SIZE)
        assert (done["acked"], done["failed"]) == (100, 0)
        assert list(ensembles(client)) == [0, 100]
        assert ensembles(client)[100] != [name]
        client.call("close", handle="w")
        assert_readable(client, made["id"], 199, recovery=False)


def test_ledger_is_recovered_from_read_only_bookies(
    client: JavaClient, cluster: tuple[str, Any], bookies: list[BookieProcess]
) -> None:
    """Recovery adds what it finds with high priority, which a read-only bookie takes."""
    made = client.call("create", handle="w")
    assert client.call("add", handle="w", count=100, size=SIZE)["acked"] == 100
    with read_only(cluster[0], bookies):
        assert_readable(client, made["id"], 99)


def outcome_of_an_entry_too_large(driver: JavaDriver, uri: str, protocol: str, limit: int) -> list[object]:
    """What the client sees, about frames of `limit` bytes, with one bookie that accepts no larger ones."""
    with connected(driver, uri, protocol, nettyMaxFrameSizeBytes=4 * limit) as client:
        client.call("create", handle="w", ensemble=1, write=1, ack=1)
        fits = client.call("add", handle="w", count=1, size=limit - 200)
        large = client.call("add", handle="w", count=1, size=limit)
        after = client.call("add", handle="w", count=1, size=10)
        end = client.call("close", handle="w")["last_entry_id"]
        client.call("create", handle="w", ensemble=1, write=1, ack=1)  # the bookie is well
        again = client.call("add", handle="w", count=1, size=limit - 200)
    errors = [done["error"] for done in (fits, large, after, again)]
    return [*errors, end]


def test_entry_over_the_frame_limit_fails_as_with_a_java_bookie(
    apache: Apache, driver: JavaDriver, new_cluster: Callable[..., str], tmp_path: Path, protocol: str
) -> None:
    limit = 64 << 10
    ours, theirs = new_cluster(), new_cluster()
    settings = {"nettyMaxFrameSizeBytes": limit}
    java = JavaBookie(apache, theirs, tmp_path / "java", "j1", settings)
    mine = BookieProcess(ours, tmp_path / "bkctl", "b1", [f"nettyMaxFrameSizeBytes={limit}"])
    with running([java, mine]):
        found = outcome_of_an_entry_too_large(driver, ours, protocol, limit)
        assert found == outcome_of_an_entry_too_large(driver, theirs, protocol, limit)
    assert found == [None, "BKNotEnoughBookiesException", "BKLedgerClosedException", None, 0]
    assert_no_traceback([mine])
