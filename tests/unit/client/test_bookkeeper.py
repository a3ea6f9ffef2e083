"""BookKeeper: creating, opening, recovering, deleting."""

import asyncio

import pytest

from bkctl.client.blocking import BlockingBookKeeper
from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.recovery import RecoveryProgress
from bkctl.client.settings import ClientSettings
from bkctl.errors import (
    BadInputError,
    ClientClosedError,
    IncorrectParameterError,
    LedgerExistsError,
    LedgerFencedError,
    LedgerRecoveryError,
    NoSuchLedgerOnMetadataServerError,
    NotEnoughBookiesError,
    UnauthorizedAccessError,
)
from bkctl.types import BookieId, DigestType, LedgerId, MetadataState
from tests.unit.client.fake_cluster import FakeCluster, payloads


async def test_a_new_ledger_is_metadata_only() -> None:
    cluster = FakeCluster(5)
    async with cluster.client() as client:
        ledger = await client.create_ledger(
            digest_type=DigestType.CRC32, password=b"pw", custom_metadata={"k": b"v"}
        )
        metadata = (await client.metadata.ledgers.read(ledger.ledger_id)).value
        assert metadata.state is MetadataState.OPEN
        assert (metadata.ensemble_size, metadata.write_quorum_size, metadata.ack_quorum_size) == (3, 3, 2)
        assert (metadata.digest_type, metadata.password) == (DigestType.CRC32, b"pw")
        assert metadata.custom_metadata == {"k": b"v"}
        assert len(set(metadata.last_segment.ensemble)) == 3
        assert not any(bookie.ledgers for bookie in cluster.bookies.values())


async def test_bad_quorums_and_ids_are_refused() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        with pytest.raises(IncorrectParameterError):
            await client.create_ledger(ensemble_size=2, write_quorum_size=3)
        with pytest.raises(IncorrectParameterError):
            await client.create_ledger(ledger_id=LedgerId(-1))
        with pytest.raises(NotEnoughBookiesError):
            await client.create_ledger(ensemble_size=4)
        ledger = await client.create_ledger(ledger_id=LedgerId(42))
        assert ledger.ledger_id == 42
        with pytest.raises(LedgerExistsError):
            await client.create_ledger(ledger_id=LedgerId(42))


async def test_ledgers_avoid_bookies_that_failed_lately() -> None:
    cluster = FakeCluster(4)
    async with cluster.client() as client:
        async with await client.create_ledger() as ledger:
            bad = ledger.metadata.last_segment.ensemble[0]
            cluster.bookies[bad].down = True
            await ledger.append(b"x")
            await ledger.append(b"y")
        for _ in range(10):
            ledger = await client.create_ledger()
            assert bad not in ledger.metadata.last_segment.ensemble


async def test_opening_fences_the_writer_and_closes_the_ledger_with_everything_acknowledged() -> None:
    cluster = FakeCluster(4)
    async with cluster.client() as client, cluster.client() as rival:
        ledger = await client.create_ledger(password=b"pw")
        await ledger.append_many(payloads(100))
        await ledger.append(b"the bookies know now")
        reader = await rival.open_ledger(ledger.ledger_id, b"pw")
        assert reader.closed
        assert reader.last_add_confirmed == 100
        assert [entry.payload async for entry in reader.entries()] == [
            *payloads(100),
            b"the bookies know now",
        ]
        with pytest.raises(LedgerFencedError):
            await ledger.append(b"too late")


async def test_opening_twice_and_at_once_gives_one_end() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, cluster.client() as one, cluster.client() as other:
        ledger = await client.create_ledger()
        await ledger.append_many(payloads(10))
        readers = await asyncio.gather(
            one.open_ledger(ledger.ledger_id),
            one.open_ledger(ledger.ledger_id),
            other.open_ledger(ledger.ledger_id),
        )
        assert {reader.last_add_confirmed for reader in readers} == {9}


async def test_a_wrong_password_opens_nothing() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        ledger = await client.create_ledger(password=b"right")
        for opener in (client.open_ledger, client.open_ledger_no_recovery, client.recover_ledger):
            with pytest.raises(UnauthorizedAccessError):
                await opener(ledger.ledger_id, b"wrong")
        await ledger.append(b"undisturbed")


async def test_what_is_not_there_cannot_be_opened_or_deleted() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        for method in (client.open_ledger, client.open_ledger_no_recovery, client.delete_ledger):
            with pytest.raises(NoSuchLedgerOnMetadataServerError):
                await method(LedgerId(77))


async def test_a_recovery_reports_what_it_found_and_how_far_it_is() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, cluster.client() as rival:
        ledger = await client.create_ledger(password=b"pw")
        await ledger.append_many(payloads(5))
        await ledger.append_many(payloads(5, 5))
        seen: list[RecoveryProgress] = []
        report = await rival.recover_ledger(ledger.ledger_id, on_progress=seen.append)
        assert (report.last_entry_id, report.entries_rewritten) == (9, 5)
        assert report.lac_by_bookie
        assert set(report.lac_by_bookie.values()) == {4}
        assert report.metadata.value.length == sum(map(len, payloads(10)))
        assert seen[-1] == RecoveryProgress("done", 5)
        again = await rival.recover_ledger(ledger.ledger_id)
        assert (again.last_entry_id, again.entries_rewritten, again.lac_by_bookie) == (9, 0, {})


async def test_a_fence_stops_the_writer_and_leaves_the_ledger_to_be_recovered() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, cluster.client() as rival:
        ledger = await client.create_ledger()
        await ledger.append(b"before")
        report = await rival.fence_ledger(ledger.ledger_id)
        assert report.metadata.value.state is MetadataState.IN_RECOVERY
        assert report.last_entry_id == -1
        with pytest.raises(LedgerFencedError):
            await ledger.append(b"after")
        assert (await rival.recover_ledger(ledger.ledger_id)).last_entry_id == 0


async def test_a_recovery_replaces_a_bookie_that_is_down() -> None:
    cluster = FakeCluster(4)
    async with cluster.client() as client, cluster.client() as rival:
        ledger = await client.create_ledger()
        await ledger.append_many(payloads(10))
        down = ledger.metadata.last_segment.ensemble[1]
        cluster.bookies[down].down = True
        reader = await rival.open_ledger(ledger.ledger_id)
        assert reader.last_add_confirmed == 9
        assert [entry.payload async for entry in reader.entries()] == payloads(10)
        assert down not in reader.metadata.last_segment.ensemble
        assert len(cluster.holders(ledger.ledger_id, 9) - {down}) == 3


async def test_a_recovery_does_without_a_bookie_that_has_no_replacement() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, cluster.client() as rival:
        ledger = await client.create_ledger()
        await ledger.append_many(payloads(10))
        next(iter(cluster.bookies.values())).down = True
        reader = await rival.open_ledger(ledger.ledger_id)
        assert reader.last_add_confirmed == 9


async def test_a_recovery_that_cannot_know_the_end_fails_and_can_be_tried_again() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client, cluster.client() as rival:
        ledger = await client.create_ledger()
        await ledger.append_many(payloads(10))
        bookies = list(cluster.bookies.values())
        bookies[0].down = bookies[1].down = True
        with pytest.raises(LedgerRecoveryError):
            await rival.open_ledger(ledger.ledger_id)
        bookies[0].down = bookies[1].down = False
        assert (await rival.open_ledger(ledger.ledger_id)).last_add_confirmed == 9


async def test_a_silent_bookie_delays_a_recovery_but_does_not_stop_it() -> None:
    cluster = FakeCluster(4)
    async with cluster.client() as client, cluster.client(add_timeout_ms=50) as rival:
        ledger = await client.create_ledger()
        await ledger.append_many(payloads(10))
        silent = ledger.metadata.last_segment.ensemble[2]
        cluster.bookies[silent].silent = True
        async with asyncio.timeout(5):
            reader = await rival.open_ledger(ledger.ledger_id)
        assert reader.last_add_confirmed == 9


async def test_a_deleted_ledger_is_gone() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        async with await client.create_ledger() as ledger:
            await ledger.append(b"x")
        await client.delete_ledger(ledger.ledger_id)
        with pytest.raises(NoSuchLedgerOnMetadataServerError):
            await client.open_ledger(ledger.ledger_id)


async def test_a_closed_client_does_nothing() -> None:
    cluster = FakeCluster(3)
    async with cluster.client() as client:
        pass
    with pytest.raises(ClientClosedError):
        await client.create_ledger()
    with pytest.raises(ClientClosedError):
        await client.open_ledger(LedgerId(0))


async def test_settings_are_checked() -> None:
    with pytest.raises(BadInputError, match="add_timeout_ms: 0"):
        ClientSettings(add_timeout_ms=0)
    with pytest.raises(BadInputError, match="unknown client setting"):
        await BookKeeper.connect("memory://", no_such_setting=1)


def test_the_blocking_client_speaks_the_same_errors() -> None:
    with pytest.raises(BadInputError):
        BlockingBookKeeper("carrier-pigeon://roof")


async def test_the_blocking_client_ends_also_where_another_loop_runs() -> None:
    """As in a notebook, whose cells run within a loop."""
    with pytest.raises(BadInputError):
        BlockingBookKeeper("carrier-pigeon://roof")


def test_the_blocking_client_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster.__new__(FakeCluster)

    async def connect(uri: str, **settings: int) -> BookKeeper:
        FakeCluster.__init__(cluster, 3)
        stack = cluster.client(**settings)
        client = await stack.__aenter__()
        monkeypatch.setattr(client, "_test_stack", stack, raising=False)  # keeps it alive
        return client

    monkeypatch.setattr(BookKeeper, "connect", connect)
    with BlockingBookKeeper("fake://") as bk:
        with bk.create_ledger() as ledger:
            assert ledger.append(b"one") == 0
            assert ledger.append_many([b"two", b"three"]) == (1, 2)
            ledger.force()
        reader = bk.open_ledger(ledger.ledger_id)
        assert [entry.payload for entry in reader.entries()] == [b"one", b"two", b"three"]
        assert bk.recover_ledger(ledger.ledger_id).last_entry_id == 2
        bk.delete_ledger(ledger.ledger_id)
        with pytest.raises(NoSuchLedgerOnMetadataServerError):
            bk.open_ledger(ledger.ledger_id)
    with pytest.raises(ClientClosedError):
        bk.create_ledger()
    bk.close()
    assert BookieId("b1") in cluster.bookies
