"""Java client → bkctl bookies: open ledgers, tailed, forced, fenced and recovered."""

import base64
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.bookies import wait_until
from tests.interop.apache import JavaClient, JavaDriver, JavaError
from tests.interop.bkctl_bookies import bkctl_bookies
from tests.interop.payload import digest, expected

_ENDLESS = 10_000_000


@pytest.fixture(scope="module")
def uri(new_cluster: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = new_cluster()
    with bkctl_bookies(uri, tmp_path_factory.mktemp("bkctl"), 3):
        yield uri


@pytest.fixture(scope="module", params=["v2", "v3"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def writer(driver: JavaDriver, uri: str, protocol: str) -> Iterator[JavaClient]:
    client = driver.client("writer", uri, useV2WireProtocol=protocol == "v2")
    yield client
    client.close()


@pytest.fixture(scope="module")
def reader(driver: JavaDriver, uri: str, protocol: str) -> Iterator[JavaClient]:
    client = driver.client("reader", uri, useV2WireProtocol=protocol == "v2")
    yield client
    client.close()


@pytest.fixture(scope="module")
def explicit(driver: JavaDriver, uri: str, protocol: str) -> Iterator[JavaClient]:
    """A writer that sends its last-add-confirmed by itself, every 50 ms."""
    client = driver.client("explicit", uri, useV2WireProtocol=protocol == "v2", explicitLacInterval=50)
    yield client
    client.close()


def opened(reader: JavaClient, ledger_id: int) -> dict[str, int]:
    """The ledger without recovery; its writer goes on."""
    found: dict[str, int] = reader.call("open", handle="r", id=ledger_id)
    assert str(found["state"]) == "OPEN"
    return found


def add(writer: JavaClient, count: int) -> None:
    done = writer.call("add", handle="w", count=count, size=100)
    assert (done["acked"], done["failed"]) == (count, 0), done


def recovered(reader: JavaClient, ledger_id: int) -> int:
    """The end that recovery found; what the ledger holds up to there is right."""
    found = reader.call("open", handle="rec", id=ledger_id, recovery=True)
    assert found["state"] == "CLOSED"
    end = int(found["last_entry_id"])
    assert found["length"] == (end + 1) * 100
    if end >= 0:
        read = reader.call("read", handle="rec", first=0, last=end)
        assert read["sha256"] == expected(0, end, 100)
    return end


@pytest.mark.parametrize("parallel", [False, True], ids=["in-turn", "parallel"])
@pytest.mark.parametrize("shape", [(3, 3, 2), (3, 2, 2)], ids=["3-3-2", "3-2-2"])
def test_long_poll_brings_every_entry_once(
    driver: JavaDriver, uri: str, shape: tuple[int, int, int], parallel: bool
) -> None:
    """Over v3; in v2 there is none: the Java client reads the last entry instead, without its body."""
    count = 200
    ensemble, write, ack = shape
    client, other = driver.client("poll-w", uri), driver.client("poll-r", uri)
    try:
        made = client.call("create", handle="w", ensemble=ensemble, write=write, ack=ack)
        add(client, 1)  # a ledger that no bookie knows yet cannot be polled
        opened(other, made["id"])
        client.call("start_adds", handle="w", count=count, size=100, outstanding=1)
        seen: list[tuple[int, bytes]] = []
        deadline = time.monotonic() + 60
        while len(seen) < count:
            assert time.monotonic() < deadline, seen[-1:]
            found = other.call("poll", handle="r", entry=len(seen), timeout_ms=1000, parallel=parallel)
            if found["entry"] is not None:
                assert found["lac"] >= len(seen)
                seen.append((len(seen), base64.b64decode(found["entry"])))
            elif ensemble == write:
                assert found["lac"] < len(seen), "the bookie that brings the news has the entry"
        assert client.call("wait_adds", handle="w")["acked"] == count
        assert digest(seen) == expected(0, count - 1, 100)
        client.call("close", handle="w")
    finally:
        client.close()
        other.close()


def test_ledger_that_no_bookie_knows_cannot_be_polled(driver: JavaDriver, uri: str) -> None:
    """As with Apache's bookies: ENOLEDGER (LongPollReadEntryProcessorV3), and the client throws."""
    client = driver.client("early", uri)
    try:
        made = client.call("create", handle="w")
        opened(client, made["id"])
        with pytest.raises(JavaError, match="BKNoSuchLedgerExistsException"):
            client.call("poll", handle="r", entry=0, timeout_ms=1000)
        client.call("close", handle="w")
    finally:
        client.close()


def test_long_poll_waits_its_time_for_nothing(driver: JavaDriver, uri: str) -> None:
    client = driver.client("patient", uri)
    try:
        made = client.call("create", handle="w")
        add(client, 5)
        lac = opened(client, made["id"])["lac"]
        began = time.monotonic()
        found = client.call("poll", handle="r", entry=lac + 1, timeout_ms=400)
        assert 0.4 <= time.monotonic() - began < 5
        assert (found["entry"], found["lac"]) == (None, lac)
        client.call("close", handle="w")
    finally:
        client.close()


def test_tailing_reader_misses_nothing_and_sees_nothing_twice(writer: JavaClient, reader: JavaClient) -> None:
    """By asking for the last-add-confirmed again and again, over both protocols."""
    count, outstanding = 3000, 5
    made = writer.call("create", handle="w")
    opened(reader, made["id"])
    writer.call("start_adds", handle="w", count=count, size=100, outstanding=outstanding)
    following, how = 0, "read"
    deadline = time.monotonic() + 60
    while following < count - outstanding:  # the LAC of the last ones has no add to travel with
        assert time.monotonic() < deadline, following
        lac = reader.call("read_lac", handle="r", how=how)
        how = "try" if how == "read" else "read"
        if lac >= following:
            found = reader.call("read", handle="r", first=following, last=lac)
            assert found["sha256"] == expected(following, lac, 100)
            following = lac + 1
    assert writer.call("wait_adds", handle="w")["acked"] == count
    assert writer.call("close", handle="w")["last_entry_id"] == count - 1


def test_unconfirmed_entries_are_read_while_the_ledger_is_open(
    writer: JavaClient, reader: JavaClient
) -> None:
    made = writer.call("create", handle="w", ack=3)
    add(writer, 20)
    assert opened(reader, made["id"])["lac"] <= 19
    found = reader.call("read", handle="r", first=0, last=19, how="unconfirmed")
    assert found["sha256"] == expected(0, 19, 100)
    add(writer, 1)  # nobody was fenced
    writer.call("close", handle="w")


def test_open_without_recovery_leaves_the_ledger_to_its_writer(
    writer: JavaClient, reader: JavaClient
) -> None:
    made = writer.call("create", handle="w")
    for _ in range(10):
        add(writer, 1)
    assert opened(reader, made["id"])["lac"] == 8  # each entry carries the one before it
    add(writer, 10)
    closed = writer.call("close", handle="w")
    assert (closed["state"], closed["last_entry_id"]) == ("CLOSED", 19)


def test_explicit_lac_reaches_another_client(explicit: JavaClient, reader: JavaClient) -> None:
    made = explicit.call("create", handle="w")
    add(explicit, 10)
    opened(reader, made["id"])

    def known() -> bool:
        return bool(reader.call("read_lac", handle="r", how="explicit") == 9)

    wait_until(known, "the explicit LAC is 9")
    read = reader.call("read", handle="r", first=0, last=9)
    assert read["sha256"] == expected(0, 9, 100)
    explicit.call("close", handle="w")


def test_explicit_lac_wakes_a_long_poll(driver: JavaDriver, uri: str) -> None:
    client = driver.client("woken", uri, explicitLacInterval=50)
    try:
        made = client.call("create", handle="w")
        add(client, 1)
        opened(client, made["id"])
        for n in range(1, 5):  # no second add that would carry the LAC
            client.call("start_adds", handle="w", count=1, size=100)
            found = client.call("poll", handle="r", entry=n, timeout_ms=4000)
            assert found["entry"] is not None, n
            assert found["lac"] == n
            assert client.call("wait_adds", handle="w")["acked"] == 1
        client.call("close", handle="w")
    finally:
        client.close()


def test_deferred_adds_are_confirmed_by_force(driver: JavaDriver, uri: str) -> None:
    client, other = driver.client("deferring", uri), driver.client("other", uri)
    try:
        made = client.call("create", handle="w", deferred=True)
        add(client, 100)
        assert client.call("handle", handle="w")["lac"] == -1
        assert opened(other, made["id"])["lac"] == -1
        client.call("force", handle="w")
        assert client.call("handle", handle="w")["lac"] == 99
        add(client, 1)  # carries it
        assert other.call("read_lac", handle="r") == 99
        assert other.call("read", handle="r", first=0, last=99)["sha256"] == expected(0, 99, 100)
        client.call("force", handle="w")
        assert client.call("close", handle="w")["last_entry_id"] == 100
    finally:
        client.close()
        other.close()


def test_deferred_adds_without_force_are_cut_by_close(driver: JavaDriver, uri: str) -> None:
    client = driver.client("careless", uri)
    try:
        client.call("create", handle="w", deferred=True)
        add(client, 10)
        assert client.call("close", handle="w")["last_entry_id"] == -1
    finally:
        client.close()


def test_force_of_a_ledger_that_syncs_anyway_succeeds(driver: JavaDriver, uri: str) -> None:
    client = driver.client("careful", uri)
    try:
        client.call("create", handle="w")
        client.call("force", handle="w")
        add(client, 10)
        client.call("force", handle="w")
        assert client.call("close", handle="w")["last_entry_id"] == 9
    finally:
        client.close()


def test_v2_has_neither_deferred_adds_nor_force(driver: JavaDriver, uri: str) -> None:
    """The Java client refuses both by itself, before anything is sent."""
    client = driver.client("old", uri, useV2WireProtocol=True)
    try:
        client.call("create", handle="w", deferred=True)
        done = client.call("add", handle="w", count=1, size=100)
        assert (done["acked"], done["error"]) == (0, "BKIllegalOpException")
        client.call("create", handle="w")
        add(client, 1)
        with pytest.raises(JavaError, match="BKIllegalOpException"):
            client.call("force", handle="w")
    finally:
        client.close()


@pytest.mark.parametrize("shape", [(3, 3, 2), (3, 2, 2), (3, 3, 3), (1, 1, 1)], ids=str)
def test_writer_is_fenced_by_a_recovering_reader(
    writer: JavaClient, reader: JavaClient, shape: tuple[int, int, int]
) -> None:
    """Both agree on the end, and nothing that was acknowledged is behind it."""
    ensemble, write, ack = shape
    made = writer.call("create", handle="w", ensemble=ensemble, write=write, ack=ack)
    writer.call("start_adds", handle="w", count=_ENDLESS, size=100, outstanding=200)
    wait_until(lambda: writer.call("handle", handle="w")["lac"] > 500, "500 entries are acknowledged")
    end = recovered(reader, made["id"])
    done = writer.call("wait_adds", handle="w")
    assert done["ended"]
    assert done["error"] == "BKLedgerFencedException"
    assert 500 < done["last_acked"] <= end
    assert done["acked"] == done["last_acked"] + 1
    late = writer.call("add", handle="w", count=1, size=100)
    assert late["error"] in ("BKLedgerClosedException", "BKLedgerFencedException")
    assert recovered(writer, made["id"]) == end


def test_recovery_finds_what_was_written_and_no_more(writer: JavaClient, reader: JavaClient) -> None:
    made = writer.call("create", handle="w")
    add(writer, 50)
    assert recovered(reader, made["id"]) == 49
    done = writer.call("add", handle="w", count=1, size=100)
    assert (done["acked"], done["error"]) == (0, "BKLedgerFencedException")
    assert recovered(reader, made["id"]) == 49


def test_recovery_of_an_empty_ledger_closes_it_empty(writer: JavaClient, reader: JavaClient) -> None:
    made = writer.call("create", handle="w")
    assert recovered(reader, made["id"]) == -1
    done = writer.call("add", handle="w", count=1, size=100)
    assert (done["acked"], done["error"]) == (0, "BKLedgerFencedException")


def test_recovery_with_the_password_fences_and_with_another_does_not(
    writer: JavaClient, reader: JavaClient
) -> None:
    password, wrong = (base64.b64encode(word).decode() for word in (b"right", b"wrong"))
    made = writer.call("create", handle="w", digest="MAC", password=password)
    add(writer, 10)
    with pytest.raises(JavaError, match="BKUnauthorizedAccessException"):
        reader.call("open", handle="r", id=made["id"], digest="MAC", password=wrong, recovery=True)
    add(writer, 10)
    found = reader.call("open", handle="r", id=made["id"], digest="MAC", password=password, recovery=True)
    assert (found["state"], found["last_entry_id"]) == ("CLOSED", 19)
    assert reader.call("read", handle="r", first=0, last=19)["sha256"] == expected(0, 19, 100)
