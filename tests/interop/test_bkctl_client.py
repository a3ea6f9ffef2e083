"""bkctl client and commands → Java bookies: adds and reads."""

import base64
import shutil
from collections.abc import Sequence
from typing import Any

import pytest

from bkctl.client.blocking import BlockingBookKeeper
from bkctl.client.channel import BookieChannel
from bkctl.errors import (
    DigestMatchError,
    DuplicateEntryIdError,
    IncorrectParameterError,
    NoSuchEntryError,
    NoSuchLedgerError,
    NoSuchLedgerOnMetadataServerError,
    NotEnoughBookiesError,
    ReadError,
    RequestTimeoutError,
    UnauthorizedAccessError,
)
from bkctl.formats.entry import Digester, master_key
from bkctl.formats.frame import FRAME_BYTES_MAX
from bkctl.quorum.reads import Entry
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import DigestType, EntryId, LedgerId
from tests.interop.apache import JavaClient
from tests.interop.java_bookies import JavaCluster, payloads
from tests.interop.payload import digest, expected, payload

KIB = 1024
MIB = 1024 * KIB
SHAPES = [(1, 1, 1), (2, 1, 1), (3, 2, 1), (3, 2, 2), (3, 3, 1), (3, 3, 2), (3, 3, 3)]
ABSENT = LedgerId(1 << 40)


def digest_of(entries: Sequence[Entry]) -> str:
    return digest((entry.entry_id, entry.payload) for entry in entries)


def written(cluster: JavaCluster, count: int, size: int, **options: Any) -> LedgerId:
    """A closed ledger of `count` entries."""
    with BlockingBookKeeper(cluster.uri) as client, client.create_ledger(**options) as writer:
        assert writer.append_many(payloads(0, count - 1, size)) == (0, count - 1)
        return writer.ledger_id


@pytest.mark.parametrize("password", [b"", b"secret"], ids=["no-password", "password"])
@pytest.mark.parametrize("kind", ["CRC32C", "CRC32", "MAC", "DUMMY"])
def test_pipelined_adds_are_read_back_by_us_and_by_java(
    cluster: JavaCluster, java: JavaClient, kind: str, password: bytes
) -> None:
    ledger_id = written(cluster, 2000, 100, digest_type=DigestType[kind], password=password)
    with BlockingBookKeeper(cluster.uri) as client, client.open_ledger(ledger_id, password) as reader:
        assert digest_of(reader.read(EntryId(0), EntryId(1999))) == expected(0, 1999, 100)
    secret = base64.b64encode(password).decode()
    opened = java.call("open", handle="r", id=ledger_id, digest=kind, password=secret)
    assert (opened["state"], opened["lac"], opened["size"]) == ("CLOSED", 1999, 200_000)
    assert java.call("read", handle="r", first=0, last=1999)["sha256"] == expected(0, 1999, 100)


@pytest.mark.parametrize("kind", DigestType)
async def test_wrong_password_is_refused_by_client_bookie_and_digest(
    cluster: JavaCluster, kind: DigestType
) -> None:
    async with cluster.client() as client:
        async with await client.create_ledger(digest_type=kind, password=b"right") as writer:
            await writer.add(b"entry")
        ledger_id = writer.ledger_id
        for opening in (client.open_ledger, client.open_ledger_no_recovery, client.recover_ledger):
            with pytest.raises(UnauthorizedAccessError):
                await opening(ledger_id, b"wrong")
        for bookie_id in writer.metadata.last_segment.ensemble:
            channel = client.pool.channel(bookie_id)
            with pytest.raises(UnauthorizedAccessError):
                await channel.read_entry(ledger_id, 0, fence_key=master_key(b"wrong"))
            packet = Digester(kind, b"wrong").pack_lac(ledger_id, 0)
            with pytest.raises(UnauthorizedAccessError):
                await channel.write_lac(ledger_id, 0, master_key(b"wrong"), packet)
            body = await channel.read_entry(ledger_id, 0)
        if kind is DigestType.MAC:  # the other digests do not depend on the password
            with pytest.raises(DigestMatchError):
                Digester(kind, b"wrong").open_entry(body, ledger_id, 0)


@pytest.mark.parametrize(
    ("size", "count"), [(0, 300), (1, 1000), (KIB, 3000), (MIB, 24)], ids=["0", "1", "1KiB", "1MiB"]
)
async def test_entries_of_any_size_are_read_back(cluster: JavaCluster, size: int, count: int) -> None:
    async with cluster.client() as client:
        async with await client.create_ledger() as writer:
            outcomes = [writer.append(body) for body in payloads(0, count - 1, size)]
            assert [await outcome for outcome in outcomes] == list(range(count))
        reader = await client.open_ledger(writer.ledger_id)
        assert (reader.last_add_confirmed, reader.length) == (count - 1, count * size)
        entries = [entry async for entry in reader.entries()]
    assert digest_of(entries) == expected(0, count - 1, size)


@pytest.mark.parametrize("kind", DigestType)
async def test_largest_entry_of_a_frame_is_taken_and_a_larger_one_refused(
    cluster: JavaCluster, kind: DigestType
) -> None:
    """A client that allows more than the bookies do loses the ledger handle, not the ledger."""
    largest = Digester(kind, b"").payload_bytes_max()
    async with cluster.client() as client, cluster.client(frame_bytes_max=2 * FRAME_BYTES_MAX) as bold:
        async with await client.create_ledger(digest_type=kind) as writer:
            assert await writer.add(payload(0, largest)) == 0
            with pytest.raises(IncorrectParameterError):
                writer.append(payload(1, largest + 1))
            assert await writer.add(payload(1, 10)) == 1
        reader = await client.open_ledger(writer.ledger_id)
        entries = [entry.payload for entry in await reader.read(EntryId(0), EntryId(1))]
        assert entries == [payload(0, largest), payload(1, 10)]

        writer = await bold.create_ledger(digest_type=kind)
        assert await writer.add(payload(0, 10)) == 0
        with pytest.raises(NotEnoughBookiesError):  # each bookie drops the connection that brings it
            await writer.add(bytes(FRAME_BYTES_MAX))
        reader = await client.open_ledger(writer.ledger_id)
        assert [entry.payload for entry in await reader.read(EntryId(0), EntryId(0))] == [payload(0, 10)]


def test_single_entries_and_ranges_are_read_by_the_blocking_client(cluster: JavaCluster) -> None:
    ledger_id = written(cluster, 1200, 100)
    with BlockingBookKeeper(cluster.uri) as client, client.open_ledger(ledger_id) as reader:
        for first, last in ((0, 0), (7, 7), (1199, 1199), (0, 1199), (3, 1001)):
            read = reader.read(EntryId(first), EntryId(last))
            assert digest_of(read) == expected(first, last, 100)
        assert digest_of(list(reader.entries())) == expected(0, 1199, 100)


async def test_entries_know_their_confirmed_predecessor_and_the_length_so_far(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        async with await client.create_ledger() as writer:
            for body in payloads(0, 9, 100):
                await writer.add(body)
        reader = await client.open_ledger(writer.ledger_id)
        entries = await reader.read(EntryId(0), EntryId(9))
    assert [entry.last_add_confirmed for entry in entries] == list(range(-1, 9))
    assert [entry.length for entry in entries] == [100 * (n + 1) for n in range(10)]


async def test_batch_read_gives_a_prefix_within_its_limits(cluster: JavaCluster) -> None:
    ledger_id = written(cluster, 500, 1000)
    async with cluster.client() as client:
        channel = client.pool.channel(cluster.bookie_ids[0])
        stored = await channel.read_entries(ledger_id, range(500))
        cost = len(stored[0]) + 4
        assert await channel.batch_read(ledger_id, 0, 100, MIB) == stored[:100]
        assert await channel.batch_read(ledger_id, 450, 100, MIB) == stored[450:]
        assert await channel.batch_read(ledger_id, 10, 100, 36 + 7 * cost) == stored[10:17]
        assert await channel.batch_read(ledger_id, 10, 100, 36 + 7 * cost - 1) == stored[10:16]
        assert await channel.batch_read(ledger_id, 10, 100, 1) == stored[10:11]
        assert await channel.batch_read(ledger_id, 0, 0, 10 * MIB) == stored
        with pytest.raises(NoSuchEntryError):
            await channel.batch_read(ledger_id, 500, 100, MIB)
        with pytest.raises(NoSuchLedgerError):
            await channel.batch_read(ABSENT, 0, 100, MIB)


async def test_ranges_are_read_by_batch_reads_alone(
    cluster: JavaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger_id = written(cluster, 3000, 100)

    async def refuse(*arguments: object, **options: object) -> Any:
        raise AssertionError("a read of a single entry")

    monkeypatch.setattr(BookieChannel, "read_entries", refuse)
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        assert digest_of([entry async for entry in reader.entries()]) == expected(0, 2999, 100)


async def test_unconfirmed_entries_are_read_on_request_alone(cluster: JavaCluster) -> None:
    """What the last entry confirms is all that a reader of an open ledger knows; here that is entry -1."""
    async with cluster.client() as client:
        writer = await client.create_ledger()
        await writer.append_many(payloads(0, 9, 100))
        reader = await client.open_ledger_no_recovery(writer.ledger_id)
        assert reader.last_add_confirmed == -1
        with pytest.raises(ReadError):
            await reader.read(EntryId(0), EntryId(9))
        assert digest_of(await reader.read_unconfirmed(EntryId(0), EntryId(9))) == expected(0, 9, 100)
        with pytest.raises(NoSuchEntryError):
            await reader.read_unconfirmed(EntryId(0), EntryId(10))


async def test_missing_entry_and_missing_ledger_are_told_apart(cluster: JavaCluster) -> None:
    ledger_id = written(cluster, 10, 100)
    async with cluster.client() as client:
        reader = await client.open_ledger(ledger_id)
        with pytest.raises(ReadError):
            await reader.read(EntryId(0), EntryId(10))
        with pytest.raises(NoSuchEntryError):
            await reader.read_unconfirmed(EntryId(10), EntryId(10))
        with pytest.raises(NoSuchLedgerOnMetadataServerError):
            await client.open_ledger(ABSENT)
        for bookie_id in cluster.bookie_ids:
            channel = client.pool.channel(bookie_id)
            with pytest.raises(NoSuchEntryError):
                await channel.read_entry(ledger_id, 10)
            with pytest.raises(NoSuchLedgerError):
                await channel.read_entry(ABSENT, 0)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
async def test_every_replication_puts_each_entry_on_its_write_set(
    cluster: JavaCluster, shape: tuple[int, int, int]
) -> None:
    schedule = RoundRobinSchedule(*shape)
    async with cluster.client() as client:
        sizes = dict(zip(("ensemble_size", "write_quorum_size", "ack_quorum_size"), shape, strict=True))
        async with await client.create_ledger(**sizes) as writer:
            await writer.append_many(payloads(0, 299, 100))
        reader = await client.open_ledger(writer.ledger_id)
        assert digest_of(await reader.read(EntryId(0), EntryId(299))) == expected(0, 299, 100)
        for index, bookie_id in enumerate(writer.metadata.last_segment.ensemble):
            answers = await client.pool.channel(bookie_id).read_entries(writer.ledger_id, range(300))
            has = [isinstance(answer, bytes) for answer in answers]
            assert has == [index in schedule.write_set(EntryId(n)) for n in range(300)]


async def test_advanced_writer_adds_out_of_order_and_is_acknowledged_in_order(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        writer = await client.create_ledger_adv()
        order = [n ^ 7 for n in range(1, 64)] + [63]  # each group of eight backwards, entry 7 left out
        late = [n for n in order if n != 7]
        outcomes = {n: writer.append(payload(n, 100), EntryId(n)) for n in dict.fromkeys(late)}
        assert await outcomes[6] == 6
        assert not any(outcomes[n].done() for n in range(8, 64))
        with pytest.raises(DuplicateEntryIdError):
            await writer.add(b"again", EntryId(3))
        outcomes[7] = writer.append(payload(7, 100), EntryId(7))
        assert [await outcomes[n] for n in range(64)] == list(range(64))
        await writer.close()
        reader = await client.open_ledger(writer.ledger_id)
        assert reader.last_add_confirmed == 63
        assert digest_of(await reader.read(EntryId(0), EntryId(63))) == expected(0, 63, 100)


async def test_chosen_id_and_custom_metadata_are_kept(cluster: JavaCluster, java: JavaClient) -> None:
    custom = {"application": b"test", "bytes": bytes(range(256)), "empty": b""}
    chosen = LedgerId((1 << 33) + 5)
    async with cluster.client() as client:
        async with await client.create_ledger(ledger_id=chosen, custom_metadata=custom) as writer:
            await writer.add(b"entry")
        assert writer.ledger_id == chosen
        reader = await client.open_ledger(chosen)
        assert (reader.metadata.custom_metadata, reader.metadata.closed) == (custom, True)
        assert [entry.payload async for entry in reader.entries()] == [b"entry"]
    shown = java.call("open", handle="r", id=chosen)["custom"]
    assert {key: base64.b64decode(value) for key, value in shown.items()} == custom


async def test_deleted_ledger_is_gone(cluster: JavaCluster) -> None:
    ledger_id = written(cluster, 10, 100)
    async with cluster.client() as client:
        await client.delete_ledger(ledger_id)
        with pytest.raises(NoSuchLedgerOnMetadataServerError):
            await client.open_ledger(ledger_id)
        with pytest.raises(NoSuchLedgerOnMetadataServerError):
            await client.delete_ledger(ledger_id)


async def test_bookie_tells_its_disk_space(cluster: JavaCluster) -> None:
    async with cluster.client() as client:
        for bookie in cluster.bookies:
            total, free = await client.pool.channel(bookie.name).bookie_info()
            disk = shutil.disk_usage(bookie.directory)
            assert total == disk.total
            assert abs(free - disk.free) < 10 * KIB * MIB  # others write meanwhile


async def test_bookie_lists_the_entries_it_stores(cluster: JavaCluster) -> None:
    """Java's DbLedgerStorage does not list: its bookies leave the request without an answer."""
    async with cluster.client(read_timeout_ms=300) as client:
        async with await client.create_ledger(write_quorum_size=2) as writer:
            await writer.append_many(payloads(0, 29, 100))
        schedule = RoundRobinSchedule(3, 2, 2)
        for index, bookie_id in enumerate(writer.metadata.last_segment.ensemble):
            channel = client.pool.channel(bookie_id)
            with pytest.raises(NoSuchLedgerError):
                await channel.list_entries(ABSENT)
            if cluster.storage == "db":
                with pytest.raises(RequestTimeoutError):
                    await channel.list_entries(writer.ledger_id)
                continue
            stored = [n for n in range(30) if index in schedule.write_set(EntryId(n))]
            assert list(await channel.list_entries(writer.ledger_id)) == stored
