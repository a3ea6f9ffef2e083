"""Metadata both ways: ledgers."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bkctl.errors import MetadataVersionError, NoSuchLedgerOnMetadataServerError
from bkctl.formats import ledger_metadata
from bkctl.types import (
    BookieId,
    DigestType,
    EntryId,
    LedgerId,
    LedgerMetadata,
    MetadataState,
    Segment,
    Versioned,
)
from tests.integration.bookies import wait_until
from tests.interop.apache import JavaClient, JavaDriver, JavaError
from tests.interop.stored import as_java, opened, rows, shown_by_java, stored_bytes

_ids = itertools.count(1_000)
_TOKEN = 0x0123456789ABCDEF
# 4.17 writes bytes 7 and 11 of text metadata as \a and \v, 4.18 in octal: both are read.
_BINARY = bytes(byte for byte in range(256) if byte not in (7, 11))


@pytest.fixture(scope="module")
def uri(new_cluster: Callable[..., str]) -> str:
    return new_cluster()


@pytest.fixture(scope="module")
def client(driver: JavaDriver, uri: str) -> Iterator[JavaClient]:
    client = driver.client("metadata", uri)
    yield client
    client.close()


def _bookies(*names: str) -> tuple[BookieId, ...]:
    return tuple(map(BookieId, names))


_SEGMENTS = (
    Segment(EntryId(0), _bookies("b1", "host-2.example:3181", "10.0.0.3:3181")),
    Segment(EntryId(1 << 40), _bookies("b1", "b4", "10.0.0.3:3181")),
)


def _content(format_version: int, state: str, digest: str, *, stored_ctime: bool = True) -> LedgerMetadata:
    """Two segments and, where the format has room for it, all else that a ledger may have."""
    metadata = LedgerMetadata(
        3, 3, 2, _SEGMENTS, digest_type=DigestType[digest], password=_BINARY, format_version=format_version,
        ctime_ms=1_700_000_000_123 if stored_ctime else None, custom_metadata={"raw": _BINARY},
    )  # fmt: skip
    if format_version == 1:
        metadata = LedgerMetadata(
            3, 3, 3, _SEGMENTS, digest_type=None, password=None, format_version=1, custom_metadata={}
        )
    if state == "CLOSED":
        return metadata.with_closed(EntryId((1 << 40) + 7), 1 << 50)
    return metadata.with_state(MetadataState[state])


_DIGESTS = {1: ("CRC32",), 2: ("CRC32", "MAC", "CRC32C", "DUMMY"), 3: ("CRC32", "MAC", "CRC32C", "DUMMY")}
_CONTENTS = [
    pytest.param(format_version, state, digest, id=f"format {format_version} {state} {digest}")
    for format_version, digests in _DIGESTS.items()
    for state in ("OPEN", "IN_RECOVERY", "CLOSED")
    for digest in digests
]


def _created_by_java(client: JavaClient, metadata: LedgerMetadata) -> tuple[LedgerId, dict[str, Any]]:
    ledger_id = LedgerId(next(_ids))
    return ledger_id, client.call("create_metadata", id=ledger_id, **as_java(metadata))


@pytest.mark.parametrize(("format_version", "state", "digest"), _CONTENTS)
async def test_both_write_the_same_bytes_for_the_same_content(
    client: JavaClient, uri: str, format_version: int, state: str, digest: str
) -> None:
    metadata = _content(format_version, state, digest)
    theirs, made = _created_by_java(client, metadata)
    ours = LedgerId(next(_ids))
    async with opened(uri) as store:
        await store.ledgers.create(metadata, ours, creator_token=max(made["creator_token"], 1))
        assert await stored_bytes(store, ours) == await stored_bytes(store, theirs)


@pytest.mark.parametrize(("format_version", "state", "digest"), _CONTENTS)
async def test_java_reads_every_field_of_what_bkctl_wrote(
    client: JavaClient, uri: str, format_version: int, state: str, digest: str
) -> None:
    metadata = replace(_content(format_version, state, digest), custom_metadata={})
    if format_version > 1:
        everything = {"a": bytes(range(256)), "": b"", "ключ": "значение".encode(), "\n\t\"'\\": b"\0"}
        metadata = replace(metadata, custom_metadata=everything, password=bytes(range(256)))
    ledger_id = LedgerId(next(_ids))
    async with opened(uri) as store:
        await store.ledgers.create(metadata, ledger_id, creator_token=_TOKEN)
    wanted = as_java(replace(metadata, creator_token=_TOKEN if format_version == 3 else 0))
    if format_version == 1:
        wanted["ctime_ms"] = -1  # Java knows none
    assert client.call("read_metadata", id=ledger_id) == wanted | {"version": 0}


@pytest.mark.parametrize(("format_version", "state", "digest"), _CONTENTS)
async def test_bkctl_reads_every_field_of_what_java_wrote(
    client: JavaClient, uri: str, format_version: int, state: str, digest: str
) -> None:
    metadata = replace(_content(format_version, state, digest), custom_metadata={})
    if format_version > 1:
        everything = {"a": bytes(range(256)), "": b"", "ключ": "значение".encode(), "\n\t\"'\\": b"\0"}
        metadata = replace(metadata, custom_metadata=everything, password=bytes(range(256)))
    ledger_id, made = _created_by_java(client, metadata)
    async with opened(uri) as store:
        found = await store.ledgers.read(ledger_id)
    assert found == Versioned(replace(metadata, creator_token=made["creator_token"]), 0)


@pytest.mark.parametrize("stored_ctime", [True, False], ids=["own ctime", "no ctime"])
@pytest.mark.parametrize(("format_version", "state", "digest"), _CONTENTS)
async def test_what_one_wrote_is_rewritten_by_the_other_byte_for_byte(
    client: JavaClient, uri: str, format_version: int, state: str, digest: str, stored_ctime: bool
) -> None:
    metadata = _content(format_version, state, digest, stored_ctime=stored_ctime)
    theirs, _ = _created_by_java(client, metadata)
    ours = LedgerId(next(_ids))
    async with opened(uri) as store:
        await store.ledgers.create(metadata, ours, creator_token=_TOKEN)
        by_us = await stored_bytes(store, ours)
        by_java = await stored_bytes(store, theirs)
        assert client.call("rewrite_metadata", id=ours)["version"] == 1
        found = await store.ledgers.read(theirs)
        assert (await store.ledgers.write(theirs, found.value, found.version)).version == 1
        assert await stored_bytes(store, ours) == by_us
        assert await stored_bytes(store, theirs) == by_java


async def _ledgers_of_every_kind(client: JavaClient, uri: str) -> list[LedgerId]:
    """Made by both, open to closed, in formats 2 and 3, with and without a creation time of their own."""
    made = []
    async with opened(uri) as store:
        for format_version, state, stored_ctime in itertools.product((2, 3), MetadataState, (True, False)):
            metadata = _content(format_version, state.name, "MAC", stored_ctime=stored_ctime)
            metadata = replace(metadata, custom_metadata={"raw": _BINARY, "text": "größer".encode()})
            ours = LedgerId(next(_ids))
            await store.ledgers.create(metadata, ours, creator_token=_TOKEN)
            made += [ours, _created_by_java(client, metadata)[0]]
    return made


def _said_by_java(client: JavaClient, ledger_id: LedgerId) -> dict[str, Any]:
    return {"ledger_id": ledger_id} | shown_by_java(client.call("read_metadata", id=ledger_id))


async def test_ledger_list_says_of_each_ledger_what_java_says(client: JavaClient, uri: str) -> None:
    made = await _ledgers_of_every_kind(client, uri)
    listed = {row["ledger_id"]: row for row in rows("ledger", "list", "-u", uri)}
    for ledger_id in made:
        assert listed[ledger_id] == _said_by_java(client, ledger_id)


@pytest.mark.parametrize("state", ["OPEN", "IN_RECOVERY", "CLOSED"])
async def test_ledger_show_says_what_java_says(client: JavaClient, uri: str, state: str) -> None:
    ledger_id, _ = _created_by_java(client, _content(3, state, "CRC32", stored_ctime=False))
    assert rows("ledger", "show", str(ledger_id), "-u", uri) == [_said_by_java(client, ledger_id)]


async def test_ledger_of_the_oldest_format_has_no_digest_for_either(client: JavaClient, uri: str) -> None:
    ledger_id, made = _created_by_java(client, _content(1, "CLOSED", "CRC32"))
    [row] = rows("ledger", "show", str(ledger_id), "-u", uri)
    said = {"ledger_id": ledger_id} | shown_by_java(made)
    assert row["digest_type"] is None
    # Java knows no creation time of such a ledger; ours is that of the store's node.
    assert {**row, "ctime": None} == {**said, "ctime": None}


async def test_change_of_the_other_side_makes_the_own_change_fail(client: JavaClient, uri: str) -> None:
    ledger_id, _ = _created_by_java(client, _content(3, "OPEN", "CRC32C"))
    async with opened(uri) as store:
        stale = await store.ledgers.read(ledger_id)
        client.call("rewrite_metadata", id=ledger_id)
        with pytest.raises(MetadataVersionError):
            await store.ledgers.write(ledger_id, stale.value, stale.version)
        fresh = await store.ledgers.read(ledger_id)
        await store.ledgers.write(ledger_id, fresh.value, fresh.version)
        with pytest.raises(JavaError, match="MetadataVersion"):
            client.call("rewrite_metadata", id=ledger_id, version=fresh.version)
        assert (await store.ledgers.read(ledger_id)).version == 2


async def test_java_hears_of_changes_and_of_the_deletion_by_bkctl(client: JavaClient, uri: str) -> None:
    metadata = _content(3, "OPEN", "CRC32C")
    ledger_id, made = _created_by_java(client, metadata)
    client.call("watch_metadata", id=ledger_id)

    def seen() -> list[Any]:
        told = client.call("seen_metadata", id=ledger_id)
        return [None if found is None else (found["version"], found["state"]) for found in told]

    steps: list[Any] = [(0, "OPEN"), (1, "IN_RECOVERY"), (2, "CLOSED")]
    wait_until(lambda: seen() == steps[:1], "Java reads what it watches")
    async with opened(uri) as store:
        found = await store.ledgers.read(ledger_id)
        assert found.value.creator_token == made["creator_token"]
        recovering = found.value.with_state(MetadataState.IN_RECOVERY)
        await store.ledgers.write(ledger_id, recovering, 0)
        await asyncio.to_thread(wait_until, lambda: seen() == steps[:2], "Java hears of the recovery")
        await store.ledgers.write(ledger_id, recovering.with_closed(EntryId(9), 900), 1)
        await asyncio.to_thread(wait_until, lambda: seen() == steps, "Java hears of the end")
        await store.ledgers.delete(ledger_id)
        await asyncio.to_thread(wait_until, lambda: seen() == [*steps, None], "Java hears of the deletion")
    with pytest.raises(JavaError) as refused:
        client.call("read_metadata", id=ledger_id)
    assert refused.value.code == -25


async def test_bkctl_hears_of_changes_and_of_the_deletion_by_java(client: JavaClient, uri: str) -> None:
    ledger_id = LedgerId(next(_ids))
    told: asyncio.Queue[Versioned[LedgerMetadata] | None] = asyncio.Queue()
    async with opened(uri) as store, asyncio.timeout(30):
        await store.ledgers.create(_content(3, "OPEN", "MAC"), ledger_id, creator_token=_TOKEN)
        await store.ledgers.watch(ledger_id, told.put_nowait)
        for version in (0, 1, 2):
            found = await told.get()
            assert found is not None
            assert (found.version, found.value.state) == (version, MetadataState.OPEN)
            if version < 2:
                client.call("rewrite_metadata", id=ledger_id)
        client.call("delete", id=ledger_id)
        assert await told.get() is None
        with pytest.raises(NoSuchLedgerOnMetadataServerError):
            await store.ledgers.read(ledger_id)


async def test_metadata_that_java_cannot_rewrite_is_never_written(client: JavaClient, uri: str) -> None:
    """Without password and digest type; Java itself makes such ledgers only in format 1."""
    bare = replace(_content(3, "OPEN", "CRC32C"), password=None, digest_type=None)
    with pytest.raises(Exception, match="without digest type and password"):
        ledger_metadata.encode(bare)
    with pytest.raises(JavaError):
        _created_by_java(client, bare)
