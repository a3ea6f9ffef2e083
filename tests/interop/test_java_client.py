"""Java client → bkctl bookies: ledgers written and read, over either protocol."""

import base64
from collections.abc import Callable, Iterator

import pytest

from tests.integration.bookies import BookieProcess
from tests.interop.apache import JavaClient, JavaDriver, JavaError
from tests.interop.bkctl_bookies import bkctl_bookies
from tests.interop.payload import digest, expected, payload

DIGESTS = ["CRC32C", "CRC32", "MAC", "DUMMY"]
WAYS = ["sync", "callback", "async", "unconfirmed", "batch"]
SHAPES = [(1, 1, 1), (3, 2, 2), (3, 3, 2)]
PASSWORD = base64.b64encode(b"open sesame").decode()
WRONG = base64.b64encode(b"open cumin").decode()


@pytest.fixture(scope="module")
def bookies(
    new_cluster: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[BookieProcess]]]:
    uri = new_cluster()
    with bkctl_bookies(uri, tmp_path_factory.mktemp("bkctl"), 3) as started:
        yield uri, started


@pytest.fixture(scope="module")
def uri(bookies: tuple[str, list[BookieProcess]]) -> str:
    return bookies[0]


@pytest.fixture(scope="module", params=["v2", "v3"])
def client(request: pytest.FixtureRequest, driver: JavaDriver, uri: str) -> Iterator[JavaClient]:
    """Batch reads exist over v2 only; a v3 client that has them enabled throws before it sends anything
    (PerChannelBookieClient.batchReadEntries). Disabled, it reads the entries of a batch one by one."""
    v2 = request.param == "v2"
    client = driver.client(request.param, uri, useV2WireProtocol=v2, batchReadEnabled=v2)
    yield client
    client.close()


@pytest.fixture(scope="module")
def admin(driver: JavaDriver, uri: str) -> Iterator[JavaClient]:
    """A client of protocol v3, for what v2 has no request for."""
    client = driver.client("admin", uri)
    yield client
    client.close()


def written(client: JavaClient, count: int, size: int, **options: object) -> int:
    """The id of a closed ledger with `count` entries of `size` bytes."""
    client.call("create", handle="w", **options)
    done = client.call("add", handle="w", count=count, size=size)
    assert (done["acked"], done["failed"], done["last_acked"]) == (count, 0, count - 1), done
    closed = client.call("close", handle="w")
    assert (closed["last_entry_id"], closed["length"]) == (count - 1, count * size)
    return int(closed["id"])


@pytest.mark.parametrize(("count", "size"), [(2000, 100), (1000, 1024), (8, 1 << 20)])
@pytest.mark.parametrize("kind", DIGESTS)
def test_pipelined_adds_are_read_back(client: JavaClient, kind: str, count: int, size: int) -> None:
    ledger_id = written(client, count, size, digest=kind)
    opened = client.call("open", handle="r", id=ledger_id, digest=kind)
    assert (opened["state"], opened["lac"], opened["size"]) == ("CLOSED", count - 1, count * size)
    found = client.call("read", handle="r", first=0, last=count - 1)
    assert found["sha256"] == expected(0, count - 1, size)


@pytest.mark.parametrize("kind", DIGESTS)
def test_ledger_with_a_password_is_read_with_it(client: JavaClient, kind: str) -> None:
    ledger_id = written(client, 10, 100, digest=kind, password=PASSWORD)
    client.call("open", handle="r", id=ledger_id, digest=kind, password=PASSWORD)
    assert client.call("read", handle="r", first=0, last=9)["sha256"] == expected(0, 9, 100)


@pytest.mark.parametrize("how", WAYS)
def test_every_way_of_reading_finds_the_same_entries(client: JavaClient, how: str) -> None:
    ledger_id = written(client, 500, 300)
    client.call("open", handle="r", id=ledger_id)
    for first, last in [(0, 499), (17, 17), (490, 499)]:
        found = client.call("read", handle="r", first=first, last=last, how=how)
        assert found["sha256"] == expected(first, last, 300), (first, last)


def test_batch_read_ends_at_its_bytes(client: JavaClient) -> None:
    """Only over v2; what the Java client makes of a batch over v3 ends at its count."""
    ledger_id = written(client, 100, 1000)
    client.call("open", handle="r", id=ledger_id)
    found = client.call("read", handle="r", first=0, last=99, how="batch", batch_count=50, batch_bytes=10_500)
    assert found["sha256"] == expected(0, 99, 1000)
    # An entry takes 1000 + 4 bytes, 32 of header, 4 of digest; 10 of them and the answer's header fit.
    assert found["batches"] == (10 if client.name == "v2" else 2)


def test_batch_read_of_a_striped_ledger_finds_every_entry(client: JavaClient) -> None:
    ledger_id = written(client, 100, 300, ensemble=3, write=2, ack=2)
    client.call("open", handle="r", id=ledger_id)
    found = client.call("read", handle="r", first=0, last=99, how="batch", batch_count=30)
    assert found["sha256"] == expected(0, 99, 300)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_every_shape_of_a_ledger_is_read_back(client: JavaClient, shape: tuple[int, int, int]) -> None:
    ensemble, write, ack = shape
    ledger_id = written(client, 300, 200, ensemble=ensemble, write=write, ack=ack)
    opened = client.call("open", handle="r", id=ledger_id)
    assert len(opened["ensembles"]["0"]) == ensemble
    assert client.call("read", handle="r", first=0, last=299)["sha256"] == expected(0, 299, 200)


@pytest.mark.parametrize("kind", DIGESTS)
def test_empty_entries_are_entries(client: JavaClient, kind: str) -> None:
    ledger_id = written(client, 20, 0, digest=kind)
    client.call("open", handle="r", id=ledger_id, digest=kind)
    for how in WAYS:
        found = client.call("read", handle="r", first=0, last=19, how=how)
        assert (found["count"], found["bytes"]) == (20, 0), how
        assert found["sha256"] == expected(0, 19, 0), how


def test_ledger_without_entries_ends_before_its_first(client: JavaClient) -> None:
    client.call("create", handle="w")
    closed = client.call("close", handle="w")
    assert (closed["last_entry_id"], closed["length"]) == (-1, 0)
    opened = client.call("open", handle="r", id=closed["id"], recovery=True)
    assert (opened["state"], opened["lac"]) == ("CLOSED", -1)


def test_entries_may_arrive_in_any_order(client: JavaClient) -> None:
    ids = [n ^ 7 for n in range(200)]  # eight at a time, backwards
    client.call("create", handle="w", adv=True, ensemble=3, write=2, ack=2)
    done = client.call("add", handle="w", ids=ids, size=100)
    assert (done["acked"], done["failed"], done["last_acked"]) == (200, 0, 199)
    closed = client.call("close", handle="w")
    assert (closed["last_entry_id"], closed["length"]) == (199, 20_000)
    client.call("open", handle="r", id=closed["id"])
    assert client.call("read", handle="r", first=0, last=199)["sha256"] == expected(0, 199, 100)


def test_entry_id_is_taken_once(client: JavaClient) -> None:
    client.call("create", handle="w", adv=True)
    done = client.call("add", handle="w", ids=[1, 0, 2], size=100)
    assert (done["acked"], done["failed"]) == (3, 0)
    done = client.call("add", handle="w", ids=[1], size=7)
    assert (done["acked"], done["error"]) == (0, "BKDuplicateEntryIdException")
    closed = client.call("close", handle="w")
    client.call("open", handle="r", id=closed["id"])
    assert client.call("read", handle="r", first=0, last=2)["sha256"] == expected(0, 2, 100)


def test_ledger_ends_before_a_gap_in_its_ids(client: JavaClient) -> None:
    client.call("create", handle="w", adv=True)
    done = client.call("add", handle="w", ids=[0, 1, 5, 3], size=100, wait_s=1)
    assert (done["ended"], done["acked"]) == (False, 2)
    assert client.call("close", handle="w")["last_entry_id"] == 1


def test_ledger_takes_the_id_that_its_writer_chose(client: JavaClient) -> None:
    wanted = 7_000_000_000 + (client.name == "v3")
    assert client.call("create", handle="w", adv=True, id=wanted)["id"] == wanted
    assert client.call("add", handle="w", ids=[0, 1], size=50)["acked"] == 2
    client.call("close", handle="w")
    client.call("open", handle="r", id=wanted)
    assert client.call("read", handle="r", first=0, last=1)["sha256"] == expected(0, 1, 50)


def test_custom_metadata_come_back(client: JavaClient) -> None:
    custom = {
        "application": base64.b64encode(b"interop").decode(),
        "raw": base64.b64encode(bytes(9)).decode(),
    }
    created = client.call("create", handle="w", custom=custom)
    client.call("close", handle="w")
    assert client.call("open", handle="r", id=created["id"])["custom"] == custom


def test_deleted_ledger_cannot_be_opened(client: JavaClient) -> None:
    ledger_id = written(client, 10, 100)
    assert ledger_id in client.call("ledgers")
    client.call("delete", id=ledger_id)
    assert ledger_id not in client.call("ledgers")
    with pytest.raises(JavaError, match="BKNoSuchLedgerExistsOnMetadataServerException"):
        client.call("open", handle="r", id=ledger_id)


def test_wrong_password_opens_nothing(client: JavaClient) -> None:
    ledger_id = written(client, 10, 100, password=PASSWORD)
    with pytest.raises(JavaError, match="BKUnauthorizedAccessException"):
        client.call("open", handle="r", id=ledger_id, password=WRONG)


@pytest.mark.parametrize("protocol", ["v2", "v3"])
def test_bookies_refuse_a_fence_with_a_wrong_password(driver: JavaDriver, uri: str, protocol: str) -> None:
    """Ledger metadata of version 1 hold no password: the client cannot compare it, the bookies do."""
    client = driver.client("plain", uri, useV2WireProtocol=protocol == "v2", ledgerMetadataVersion=1)
    try:
        ledger_id = client.call("create", handle="w", password=PASSWORD)["id"]
        assert client.call("add", handle="w", count=10, size=100)["acked"] == 10
        with pytest.raises(JavaError, match="BKUnauthorizedAccessException"):
            client.call("open", handle="r", id=ledger_id, password=WRONG, recovery=True)
        assert client.call("add", handle="w", count=10, size=100)["acked"] == 10  # nobody was fenced
        assert client.call("close", handle="w")["last_entry_id"] == 19
    finally:
        client.close()


def test_entry_that_is_missing_is_no_entry(client: JavaClient) -> None:
    client.call("create", handle="w")
    assert client.call("add", handle="w", count=10, size=100)["acked"] == 10
    for first, last in [(10, 10), (5, 12)]:
        with pytest.raises(JavaError, match="BKNoSuchEntryException"):
            client.call("read", handle="w", first=first, last=last, how="unconfirmed")
    with pytest.raises(JavaError, match="BKReadException"):  # the client's own check
        client.call("read", handle="w", first=5, last=12)
    client.call("close", handle="w")


def test_bookies_tell_their_disk_space(client: JavaClient) -> None:
    found = client.call("bookie_info")
    assert sorted(found) == ["b1", "b2", "b3"]
    for space in found.values():
        assert 0 < space["free_bytes"] <= space["total_bytes"]


def test_bookie_lists_the_entries_of_a_whole_ledger(client: JavaClient, admin: JavaClient) -> None:
    ledger_id = written(client, 300, 100)
    for bookie in ("b1", "b2", "b3"):
        held = admin.call("entries_of", bookie=bookie, id=ledger_id)
        assert (held["count"], held["ids"]) == (300, list(range(300))), bookie


def test_bookie_lists_its_stripes_of_a_ledger(client: JavaClient, admin: JavaClient) -> None:
    ledger_id = written(client, 300, 100, ensemble=3, write=2, ack=2)
    ensemble = client.call("open", handle="r", id=ledger_id)["ensembles"]["0"]
    for index, bookie in enumerate(ensemble):
        stripes = [n for n in range(300) if index in (n % 3, (n + 1) % 3)]
        assert admin.call("entries_of", bookie=bookie, id=ledger_id)["ids"] == stripes, bookie


def test_bookie_lists_a_ledger_with_gaps(client: JavaClient, admin: JavaClient) -> None:
    ids = [0, 1, 2, 5, 6, 40, 41, 43, 45, 47, 49, 51, 52, 900]
    ledger_id = client.call("create", handle="w", adv=True, ack=3)["id"]
    done = client.call("add", handle="w", ids=ids, size=10, wait_s=1)
    assert done["acked"] == 3
    for bookie in ("b1", "b2", "b3"):
        assert admin.call("entries_of", bookie=bookie, id=ledger_id)["ids"] == ids, bookie
    client.call("close", handle="w")


def test_list_of_an_unknown_ledger_is_refused(admin: JavaClient) -> None:
    with pytest.raises(JavaError, match="BKNoSuchLedgerExistsException"):
        admin.call("entries_of", bookie="b1", id=123_456_789)


def test_entries_survive_a_restart_of_every_bookie(
    client: JavaClient, bookies: tuple[str, list[BookieProcess]]
) -> None:
    ledger_id = written(client, 300, 100, password=PASSWORD, digest="MAC")
    for bookie in bookies[1]:
        assert bookie.stop() == 0
    for bookie in bookies[1]:
        bookie.start()
    client.call("open", handle="r", id=ledger_id, password=PASSWORD, digest="MAC")
    for how in WAYS:
        found = client.call("read", handle="r", first=0, last=299, how=how)
        assert found["sha256"] == expected(0, 299, 100), how


def test_payload_bytes_are_those_that_were_given(client: JavaClient) -> None:
    ledger_id = written(client, 3, 257)
    client.call("open", handle="r", id=ledger_id)
    found = client.call("read", handle="r", first=0, last=2, entries=True)
    bodies = [base64.b64decode(body) for body in found["entries"]]
    assert bodies == [payload(n, 257) for n in range(3)]
    assert found["sha256"] == digest(enumerate(bodies))
