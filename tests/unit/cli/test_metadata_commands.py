"""The commands that need no bookie, against an SQLite metadata store."""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bkctl.cli.ledger_rows import iso_time
from bkctl.formats.cookie import make_cookie
from bkctl.formats.service_info import BookieServiceInfo, Endpoint
from bkctl.metadata.registration import RegistrationManager
from bkctl.metadata.store import MetadataStore
from bkctl.types import BookieId, EntryId, LedgerId, LedgerMetadata, MetadataState, Segment
from tests.unit.cli.conftest import Bkctl

ENSEMBLE = tuple(BookieId(f"10.0.0.{n}:3181") for n in (1, 2, 3))


def in_store(uri: str, work: Callable[[MetadataStore], Awaitable[None]]) -> None:
    async def run() -> None:
        store = await MetadataStore.open(uri)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


def ledger(state: MetadataState, **changes: Any) -> LedgerMetadata:
    segments = (Segment(EntryId(0), ENSEMBLE),)
    metadata = LedgerMetadata(3, 3, 2, segments, ctime_ms=1_700_000_000_123, password=b"secret", **changes)
    if state is MetadataState.CLOSED:
        return metadata.with_closed(EntryId(9), 2048)
    return metadata.with_state(state)


def create_ledgers(uri: str, states: list[MetadataState]) -> list[int]:
    ids: list[int] = []

    async def create(store: MetadataStore) -> None:
        for state in states:
            custom = {"application": b"pulsar", "raw": b"\xff"}
            ledger_id, _ = await store.ledgers.create(ledger(state, custom_metadata=custom), creator_token=7)
            ids.append(ledger_id)

    in_store(uri, create)
    return sorted(ids)


@pytest.fixture
def ledgers(uri: str) -> list[int]:
    """Ids of an open, an in-recovery and three closed ledgers."""
    return create_ledgers(uri, [MetadataState.OPEN, MetadataState.IN_RECOVERY] + [MetadataState.CLOSED] * 3)


def items(bkctl: Bkctl, *arguments: str) -> list[dict[str, Any]]:
    result = bkctl(*arguments, "-o", "json")
    assert result.code == 0, result.err
    return json.loads(result.out)["items"]  # type: ignore[no-any-return]


def test_init_makes_a_cluster_once(bkctl: Bkctl, tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/new.db"
    (first,) = items(bkctl, "cluster", "init", "-u", uri)
    (again,) = items(bkctl, "cluster", "init", "-u", uri)
    assert (first["created"], again["created"]) == (True, False)
    assert first["instance_id"] == again["instance_id"]
    assert items(bkctl, "cluster", "info", "-u", uri) == [
        {"instance_id": first["instance_id"], "layout": "hierarchical", "metadata_uri": uri}
    ]


def test_a_missing_cluster_is_not_found_and_says_what_to_do(bkctl: Bkctl, tmp_path: Path) -> None:
    result = bkctl("ledger", "list", "-u", f"sqlite://{tmp_path}/none.db")
    assert result.code == 3
    assert "bkctl cluster init" in result.err
    assert not (tmp_path / "none.db").exists()


def test_list_shows_all_ledgers_ascending(bkctl: Bkctl, uri: str, ledgers: list[int]) -> None:
    rows = items(bkctl, "ledger", "list", "-u", uri)
    assert [row["ledger_id"] for row in rows] == ledgers
    assert bkctl("ledger", "list", "-u", uri, "-o", "name").out.split() == [str(i) for i in ledgers]


def test_list_by_state_and_count(bkctl: Bkctl, uri: str, ledgers: list[int]) -> None:
    for state, count in (("open", 1), ("in_recovery", 1), ("in-recovery", 1), ("CLOSED", 3)):
        assert items(bkctl, "ledger", "list", "-u", uri, "--state", state, "--count") == [{"count": count}]
        assert len(items(bkctl, "ledger", "list", "-u", uri, "--state", state)) == count
    assert items(bkctl, "ledger", "list", "-u", uri, "--count") == [{"count": 5}]
    assert bkctl("ledger", "list", "-u", uri, "--state", "ajar").code == 2


def test_list_reads_metadata_some_at_a_time_and_stops_at_its_limit(bkctl: Bkctl, uri: str) -> None:
    ids = create_ledgers(uri, [MetadataState.CLOSED] * 70)
    assert [row["ledger_id"] for row in items(bkctl, "ledger", "list", "-u", uri)] == ids
    for form in ("name", "jsonl"):
        assert len(bkctl("ledger", "list", "-u", uri, "--limit", "5", "-o", form).out.splitlines()) == 5


def test_show_tells_everything_but_the_password(bkctl: Bkctl, uri: str, ledgers: list[int]) -> None:
    (row,) = items(bkctl, "ledger", "show", hex(ledgers[-1]), "-u", uri)
    assert row == {
        "ledger_id": ledgers[-1],
        "state": "CLOSED",
        "ensemble_size": 3,
        "write_quorum_size": 3,
        "ack_quorum_size": 2,
        "digest_type": "CRC32C",
        "last_entry_id": 9,
        "length": 2048,
        "ctime": "2023-11-14T22:13:20.123Z",
        "format_version": 3,
        "custom_metadata": {"application": "pulsar", "raw": "base64:/w=="},
        "segments": [{"first_entry_id": 0, "ensemble": list(ENSEMBLE)}],
    }


def test_show_of_an_open_ledger_knows_no_end(bkctl: Bkctl, uri: str, ledgers: list[int]) -> None:
    (row,) = items(bkctl, "ledger", "show", str(ledgers[0]), "-u", uri)
    assert (row["state"], row["last_entry_id"], row["length"]) == ("OPEN", None, None)


def test_a_ledger_that_stores_no_creation_time_shows_when_the_store_made_it(bkctl: Bkctl, uri: str) -> None:
    async def create(store: MetadataStore) -> None:
        metadata = replace(ledger(MetadataState.OPEN), ctime_ms=None)
        await store.ledgers.create(metadata, LedgerId(5), creator_token=7)

    before = iso_time(time.time_ns() // 1_000_000)
    in_store(uri, create)
    (row,) = items(bkctl, "ledger", "show", "5", "-u", uri)
    assert before <= row["ctime"] <= iso_time(time.time_ns() // 1_000_000)
    assert items(bkctl, "ledger", "list", "-u", uri) == [row]


def test_show_of_an_unknown_ledger_is_not_found(bkctl: Bkctl, uri: str) -> None:
    assert bkctl("ledger", "show", "99", "-u", uri).code == 3


def test_delete_needs_the_count_and_deletes(bkctl: Bkctl, uri: str, ledgers: list[int]) -> None:
    words = ["ledger", "delete", str(ledgers[0]), str(ledgers[1]), str(ledgers[0]), "-u", uri]
    refused = bkctl(*words, "--yes")
    assert refused.code == 4
    assert "--confirm 2" in refused.err
    assert bkctl(*words, "--confirm", "3").code == 4
    assert items(bkctl, "ledger", "list", "-u", uri, "--count") == [{"count": 5}]
    rows = items(bkctl, *words, "--confirm", "2")
    assert [(row["ledger_id"], row["state"]) for row in rows] == [(i, "ok") for i in ledgers[:2]]
    assert items(bkctl, "ledger", "list", "-u", uri, "--count") == [{"count": 3}]


def test_delete_of_some_unknown_ledgers_is_partial(bkctl: Bkctl, uri: str, ledgers: list[int]) -> None:
    result = bkctl("ledger", "delete", "7777", str(ledgers[4]), "-u", uri, "--confirm", "2", "-o", "json")
    assert result.code == 9
    assert [row["state"] for row in json.loads(result.out)["items"]] == ["error", "ok"]
    assert bkctl("ledger", "delete", "7777", "-u", uri, "--confirm", "1").code == 3


@contextlib.contextmanager
def registered_bookies(uri: str) -> Iterator[None]:
    """Bookie 1 writable, 2 read-only, 3 lost, as long as this lasts; then all three are lost."""
    ready, over = threading.Event(), threading.Event()

    async def hold(store: MetadataStore) -> None:
        for bookie_id in ENSEMBLE:
            await store.cookies.create(bookie_id, make_cookie(bookie_id, ["/j"], ["/l"], "instance"))
        for bookie_id, readonly in ((ENSEMBLE[0], False), (ENSEMBLE[1], True)):
            host, _, port = bookie_id.partition(":")
            endpoint = Endpoint("bookie", host, int(port), "bookie-rpc", ("sasl",), ("tls",))
            info = BookieServiceInfo((endpoint,), {"version": "1"})
            manager = RegistrationManager(store.tree, store.root)
            await manager.register(bookie_id, info, readonly=readonly)
        ready.set()
        await asyncio.to_thread(over.wait)

    session = threading.Thread(target=in_store, args=(uri, hold))
    session.start()
    try:
        assert ready.wait(timeout=30)
        yield
    finally:
        over.set()
        session.join()


@pytest.fixture
def bookies(uri: str) -> Iterator[None]:
    with registered_bookies(uri):
        yield


@pytest.fixture
def lost_bookies(uri: str) -> None:
    with registered_bookies(uri):
        pass


def test_bookies_are_listed_by_state(bkctl: Bkctl, uri: str, bookies: None) -> None:
    rows = items(bkctl, "bookie", "list", "-u", uri)
    assert [(row["bookie_id"], row["state"], row.get("address")) for row in rows] == [
        (ENSEMBLE[0], "rw", "10.0.0.1:3181"),
        (ENSEMBLE[1], "ro", "10.0.0.2:3181"),
        (ENSEMBLE[2], "lost", None),
    ]
    for flag, bookie_id in (("--rw", ENSEMBLE[0]), ("--ro", ENSEMBLE[1]), ("--lost", ENSEMBLE[2])):
        assert bkctl("bookie", "list", flag, "-u", uri, "-o", "name").out == f"{bookie_id}\n"


def test_a_bookie_is_listed_with_everything_that_it_publishes(bkctl: Bkctl, uri: str, bookies: None) -> None:
    (row,) = items(bkctl, "bookie", "list", "--rw", "-u", uri)
    assert row["properties"] == {"version": "1"}
    assert row["endpoints"] == [
        {
            "id": "bookie",
            "protocol": "bookie-rpc",
            "host": "10.0.0.1",
            "port": 3181,
            "auth": ["sasl"],
            "extensions": ["tls"],
        }
    ]


def test_status_is_unhealthy_while_a_bookie_is_lost(bkctl: Bkctl, uri: str, bookies: None) -> None:
    result = bkctl("cluster", "status", "-u", uri, "-o", "json")
    assert result.code == 10
    (row,) = json.loads(result.out)["items"]
    assert (row["state"], row["writable"], row["readonly"], row["lost"]) == ("unhealthy", 1, 1, 1)


def init(uri: str, directory: Path, *more: str) -> list[str]:
    return [
        *(
            "-u",
            uri,
            "--bookie-id",
            ENSEMBLE[2],
            "--advertised-address",
            "127.0.0.1",
            "--set",
            "allowLoopback=true",
        ),
        *("-j", str(directory / "journal"), "-l", str(directory / "ledgers"), *more),
    ]


def test_bookie_init_accepts_a_new_bookie_and_writes_nothing(bkctl: Bkctl, uri: str, tmp_path: Path) -> None:
    (row,) = items(bkctl, "bookie", "init", *init(uri, tmp_path))
    assert (row["bookie_id"], row["state"]) == (ENSEMBLE[2], "ok")
    assert not (tmp_path / "ledgers").exists()


def test_bookie_init_refuses_directories_with_data(bkctl: Bkctl, uri: str, tmp_path: Path) -> None:
    (tmp_path / "ledgers" / "current").mkdir(parents=True)
    assert bkctl("bookie", "init", *init(uri, tmp_path)).code == 0
    (tmp_path / "ledgers" / "current" / "VERSION").touch()
    result = bkctl("bookie", "init", *init(uri, tmp_path))
    assert result.code == 8
    assert str(tmp_path / "ledgers") in result.err


def test_bookie_init_refuses_a_known_bookie(
    bkctl: Bkctl, uri: str, tmp_path: Path, lost_bookies: None
) -> None:
    result = bkctl("bookie", "init", *init(uri, tmp_path))
    assert result.code == 8
    assert "cookie" in result.err


def test_bookie_format_needs_the_bookie_id_and_empties_the_directories(
    bkctl: Bkctl, uri: str, tmp_path: Path, lost_bookies: None
) -> None:
    current = tmp_path / "ledgers" / "current"
    current.mkdir(parents=True)
    (current / "0.log").write_bytes(b"entries")
    refused = bkctl("bookie", "format", *init(uri, tmp_path, "--yes"))
    assert refused.code == 4
    assert f"--confirm {ENSEMBLE[2]}" in refused.err
    assert (current / "0.log").exists()
    words = init(uri, tmp_path, "--confirm", ENSEMBLE[2], "--delete-cookie")
    (row,) = items(bkctl, "bookie", "format", *words)
    assert row["cookie_deleted"] is True
    assert os.listdir(tmp_path / "ledgers") == []
    assert items(bkctl, "bookie", "list", "--lost", "-u", uri, "--filter", f"bookie_id={ENSEMBLE[2]}") == []


def test_bookie_format_refuses_while_the_bookie_is_registered(
    bkctl: Bkctl, uri: str, tmp_path: Path, bookies: None
) -> None:
    words = init(uri, tmp_path, "--bookie-id", ENSEMBLE[0], "--confirm", ENSEMBLE[0])
    result = bkctl("bookie", "format", *words)
    assert result.code == 4
    assert "stop it first" in result.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "journalDirectories"], "KEY=VALUE"),
        (["-p", "0"], "--bookie-id"),
        (["-c", "/nonexistent/bk.conf"], "bk.conf"),
        (["--set", "bookiePort=many"], "bookiePort"),
    ],
)
def test_bookie_settings_that_cannot_be_used_are_usage(
    bkctl: Bkctl, uri: str, flags: list[str], words: str
) -> None:
    result = bkctl("bookie", "init", "-u", uri, *flags)
    assert result.code == 2
    assert words in result.err
