"""Metadata both ways: ledgers in use, changed by both."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bkctl.client.blocking import BlockingBookKeeper
from bkctl.errors import LedgerExistsError, NoSuchLedgerOnMetadataServerError
from bkctl.formats import ledger_metadata
from bkctl.types import DigestType, EntryId, LedgerId, MetadataState
from tests.integration.bookies import bkctl
from tests.interop.apache import JavaClient, JavaDriver, JavaError
from tests.interop.bkctl_bookies import bkctl_bookies
from tests.interop.payload import digest, expected, payload
from tests.interop.stored import opened, rows, shown_by_java, stored_bytes


@pytest.fixture(scope="module")
def uri(
    driver: JavaDriver, new_uri: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    uri = new_uri("longhierarchical")
    assert driver.call("init_cluster", uri=uri) is True
    home: Path = tmp_path_factory.mktemp("changes")
    with bkctl_bookies(uri, home, 3):
        yield uri


@pytest.fixture(scope="module")
def java(driver: JavaDriver, uri: str) -> Iterator[JavaClient]:
    client = driver.client("changes", uri)
    yield client
    client.close()


@pytest.fixture(scope="module")
def ours(uri: str) -> Iterator[BlockingBookKeeper]:
    with BlockingBookKeeper(uri) as client:
        yield client


def _said_by_java(java: JavaClient, ledger_id: int) -> dict[str, Any]:
    return {"ledger_id": ledger_id} | shown_by_java(java.call("read_metadata", id=ledger_id))


# -- deleted under a writer ----------------------------------------------------------------------


def test_bkctl_writer_learns_at_its_end_that_java_deleted_the_ledger(
    java: JavaClient, ours: BlockingBookKeeper
) -> None:
    writer = ours.create_ledger()
    writer.append(payload(0, 100))
    java.call("delete", id=writer.ledger_id)
    assert writer.append(payload(1, 100)) == 1  # writers do not watch their ledger, here or there
    with pytest.raises(NoSuchLedgerOnMetadataServerError):
        writer.close()
    with pytest.raises(NoSuchLedgerOnMetadataServerError):
        ours.open_ledger(writer.ledger_id)


def test_java_writer_learns_at_its_end_that_bkctl_deleted_the_ledger(java: JavaClient, uri: str) -> None:
    made = java.call("create", handle="w")
    java.call("add", handle="w", count=10)
    done = bkctl("ledger", "delete", str(made["id"]), "--confirm", "1", "-u", uri)
    assert done.returncode == 0, done.stderr
    assert java.call("add", handle="w", count=10)["acked"] == 10
    with pytest.raises(JavaError) as refused:
        java.call("close", handle="w")
    assert refused.value.code == -25
    with pytest.raises(JavaError) as gone:
        java.call("open", handle="r", id=made["id"])
    assert gone.value.code == -25


# -- changed by both -----------------------------------------------------------------------------


@pytest.mark.parametrize("format_version", [1, 2, 3])
def test_ledger_keeps_the_format_of_java_when_bkctl_recovers_it(
    driver: JavaDriver, uri: str, ours: BlockingBookKeeper, format_version: int
) -> None:
    """Format 1 has no password and no digest type: both sides fall back to "" and CRC32."""
    old = driver.client(f"format {format_version}", uri, ledgerMetadataVersion=format_version)
    made = old.call("create", handle="w", digest="CRC32", ack=3)
    old.call("add", handle="w", count=100, size=50)
    assert made["format"] == format_version
    done = bkctl("ledger", "recover", str(made["id"]), "--yes", "-u", uri)
    assert done.returncode == 0, done.stderr
    closed = old.call("open", handle="r", id=made["id"], digest="CRC32")
    assert (closed["state"], closed["format"]) == ("CLOSED", format_version)
    assert (closed["last_entry_id"], closed["length"]) == (99, 5000)
    assert old.call("read", handle="r", first=0, last=99)["sha256"] == expected(0, 99, 50)
    reader = ours.open_ledger(made["id"])
    assert digest((e.entry_id, bytes(e.payload)) for e in reader.read(EntryId(0), EntryId(99))) == expected(
        0, 99, 50
    )
    old.close()


@pytest.mark.parametrize("kind", ["CRC32", "MAC", "CRC32C", "DUMMY"])
async def test_java_closes_a_ledger_of_bkctl_and_keeps_all_else_that_it_is(
    java: JavaClient, uri: str, kind: str
) -> None:
    custom = {"raw": bytes(range(256))}
    with BlockingBookKeeper(uri) as client:
        writer = client.create_ledger(
            digest_type=DigestType[kind], password=b"\0\xff", custom_metadata=custom, ensemble_size=3,
            write_quorum_size=2, ack_quorum_size=2,
        )  # fmt: skip
        writer.append_many([payload(n, 10) for n in range(20)])
        before, ledger_id = writer.metadata, writer.ledger_id
        java.call("open", handle="r", id=ledger_id, digest=kind, password="AP8=", recovery=True)
    closed = replace(before.with_closed(EntryId(19), 200), creator_token=0)
    async with opened(uri) as store:
        assert (await store.ledgers.read(ledger_id)).value == closed
        assert await stored_bytes(store, ledger_id) == ledger_metadata.encode(closed)
    assert rows("ledger", "show", str(ledger_id), "-u", uri) == [_said_by_java(java, ledger_id)]


def test_ledger_that_bkctl_fenced_is_in_recovery_for_java_and_closed_by_it(
    java: JavaClient, uri: str
) -> None:
    made = java.call("create", handle="w")
    java.call("add", handle="w", count=7, size=3)
    done = bkctl("ledger", "fence", str(made["id"]), "--yes", "-u", uri)
    assert done.returncode == 0, done.stderr
    assert java.call("read_metadata", id=made["id"])["state"] == "IN_RECOVERY"
    assert rows("ledger", "show", str(made["id"]), "-u", uri) == [_said_by_java(java, made["id"])]
    closed = java.call("open", handle="r", id=made["id"], recovery=True)
    assert (closed["state"], closed["last_entry_id"], closed["length"]) == ("CLOSED", 6, 21)
    assert rows("ledger", "show", str(made["id"]), "-u", uri) == [_said_by_java(java, made["id"])]


async def test_writer_of_bkctl_closes_what_java_rewrote_in_between(java: JavaClient, uri: str) -> None:
    with BlockingBookKeeper(uri) as client:
        writer = client.create_ledger()
        writer.append(b"x")
        java.call("rewrite_metadata", id=writer.ledger_id)
        writer.close()
    found = java.call("read_metadata", id=writer.ledger_id)
    assert (found["state"], found["last_entry_id"], found["version"]) == ("CLOSED", 0, 2)


async def test_writer_of_java_closes_what_bkctl_rewrote_in_between(java: JavaClient, uri: str) -> None:
    made = java.call("create", handle="w")
    java.call("add", handle="w", count=3, size=5)
    ledger_id = LedgerId(made["id"])
    async with opened(uri) as store:
        found = await store.ledgers.read(ledger_id)
        await store.ledgers.write(ledger_id, found.value, found.version)
        java.call("close", handle="w")
        closed = await store.ledgers.read(ledger_id)
    assert (closed.value.state, closed.value.last_entry_id) == (MetadataState.CLOSED, 2)
    assert (closed.value.length, closed.version) == (15, 2)


# -- ids -----------------------------------------------------------------------------------------


def test_id_that_one_took_by_name_is_skipped_by_the_others_counter(
    java: JavaClient, ours: BlockingBookKeeper
) -> None:
    drawn = int(java.call("create", handle="a")["id"])
    taken = ours.create_ledger(ledger_id=LedgerId(drawn + 1))
    assert taken.ledger_id == drawn + 1
    assert java.call("create", handle="b")["id"] == drawn + 2
    java.call("create", handle="c", adv=True, id=drawn + 3)
    assert ours.create_ledger().ledger_id == drawn + 4


@pytest.mark.parametrize("ledger_id", [(1 << 31) + 7, (1 << 32) + 7, (1 << 63) - 7])
def test_ledger_with_a_given_long_id_is_written_by_one_and_read_by_the_other(
    java: JavaClient, ours: BlockingBookKeeper, ledger_id: int
) -> None:
    java.call("create", handle="w", adv=True, id=ledger_id)
    java.call("add", handle="w", ids=list(range(10)), size=10)
    java.call("close", handle="w")
    found = ours.open_ledger(LedgerId(ledger_id)).read(EntryId(0), EntryId(9))
    assert digest((e.entry_id, bytes(e.payload)) for e in found) == expected(0, 9, 10)
    with pytest.raises(LedgerExistsError):
        ours.create_ledger(ledger_id=LedgerId(ledger_id))
    with ours.create_ledger(ledger_id=LedgerId(ledger_id - 1)) as writer:
        writer.append_many([payload(n, 10) for n in range(10)])
    java.call("open", handle="r", id=ledger_id - 1)
    assert java.call("read", handle="r", first=0, last=9)["sha256"] == expected(0, 9, 10)
    with pytest.raises(JavaError, match="Exist"):
        java.call("create", handle="x", adv=True, id=ledger_id - 1)
    # The counter goes on where it was.
    drawn = int(java.call("create", handle="y")["id"])
    assert drawn < ledger_id - 1
    assert ours.create_ledger().ledger_id == drawn + 1
