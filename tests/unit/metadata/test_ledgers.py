"""Ledger metadata in the tree: identity of a create, compare-and-set, complete listings, watches."""

import asyncio
from dataclasses import replace

import pytest

from bkctl.errors import (
    CorruptDataError,
    IncorrectParameterError,
    LedgerExistsError,
    LedgerIdOverflowError,
    MetadataLostError,
    MetadataSerializationError,
    MetadataUnreachableError,
    MetadataVersionError,
    NoNodeError,
    NoSuchLedgerOnMetadataServerError,
)
from bkctl.formats import ledger_metadata
from bkctl.formats.layout import DEFAULT_LAYOUT, layout_of
from bkctl.formats.ledger_path import ManagerType, ledger_path
from bkctl.metadata import follow, ledgers
from bkctl.metadata.api import ANY_VERSION
from bkctl.metadata.ledgers import LedgerManager
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.types import EntryId, LedgerId, LedgerMetadata, MetadataState, Versioned
from tests.unit.metadata.world import METADATA, ROOT, FlakyTree, cluster, session, settle, until

SEQUENCE_END = (1 << 31) - 1


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "RETRY_DELAY_MS", 1)
    monkeypatch.setattr(follow, "RETRY_DELAY_MS", 1)


async def manager_of(
    manager: ManagerType = ManagerType.HIERARCHICAL,
) -> tuple[MemoryStore, MemoryTree, LedgerManager]:
    store, tree = await cluster(manager)
    return store, tree, LedgerManager(tree, ROOT, layout_of(manager))


def path_of(ledger_id: int, manager: ManagerType = ManagerType.HIERARCHICAL) -> str:
    return ledger_path(ROOT, manager, LedgerId(ledger_id))


async def listed(manager: LedgerManager) -> list[LedgerId]:
    return [ledger_id async for ids in manager.ranges() for ledger_id in ids]


async def test_new_ledgers_count_from_0_and_leave_no_id_nodes() -> None:
    _, tree, manager = await manager_of()
    for expected in range(3):
        ledger_id, created = await manager.create(METADATA, creator_token=7)
        assert ledger_id == expected
        assert created == Versioned(replace(METADATA, creator_token=7), 0)
        assert await manager.read(ledger_id) == created
    assert (await tree.children(f"{ROOT}/idgen"))[0] == []


async def test_what_is_read_says_when_the_store_made_it_and_does_not_write_that_back() -> None:
    _, tree, manager = await manager_of()
    await manager.create(METADATA, creator_token=7)
    stored = await tree.get(path_of(0))
    found = await manager.read(LedgerId(0))
    assert found.value.created_ms == stored.stat.ctime_ms > 0
    await manager.write(LedgerId(0), found.value, found.version)
    assert (await tree.get(path_of(0))).data == stored.data


async def test_an_id_that_is_taken_is_skipped_when_drawn_and_refused_when_asked_for() -> None:
    _, _, manager = await manager_of()
    await manager.create(METADATA, LedgerId(0), creator_token=1)
    ledger_id, _ = await manager.create(METADATA, creator_token=2)
    assert ledger_id == 1
    with pytest.raises(LedgerExistsError):
        await manager.create(METADATA, LedgerId(0), creator_token=2)


async def test_a_create_whose_reply_was_lost_is_recognised() -> None:
    _, tree, manager = await manager_of()
    tree.fail_next_reply()
    ledger_id, created = await manager.create(METADATA, LedgerId(5), creator_token=99)
    assert (ledger_id, created.version) == (5, 0)
    assert await manager.read(LedgerId(5)) == created


async def test_a_drawn_ledger_survives_lost_replies_of_draw_and_create() -> None:
    store, _ = await cluster()
    tree = FlakyTree(store)
    await tree.open()
    manager = LedgerManager(tree, ROOT, DEFAULT_LAYOUT)
    ledger_id, created = await manager.create(METADATA, creator_token=99)
    assert await listed(manager) == [ledger_id] == [1]  # 0 went with the draw whose reply was lost
    assert await manager.read(ledger_id) == created


async def test_formats_without_a_token_do_not_guess_after_a_lost_reply() -> None:
    _, tree, manager = await manager_of()
    tree.fail_next_reply()
    with pytest.raises(MetadataUnreachableError):
        await manager.create(replace(METADATA, format_version=2), LedgerId(5), creator_token=99)
    with pytest.raises(LedgerExistsError):
        await manager.create(replace(METADATA, format_version=2), LedgerId(5), creator_token=99)


async def test_racing_creators_get_different_ledgers() -> None:
    store, _, first = await manager_of()
    second = LedgerManager(await session(store), ROOT, DEFAULT_LAYOUT)
    tokens = range(1, 21)
    made = await asyncio.gather(
        *((first if token % 2 else second).create(METADATA, creator_token=token) for token in tokens)
    )
    assert sorted(ledger_id for ledger_id, _ in made) == list(range(20))
    for token, (ledger_id, _) in zip(tokens, made, strict=True):
        assert (await first.read(ledger_id)).value.creator_token == token


async def test_only_one_of_racing_creators_gets_an_explicit_id() -> None:
    _, _, manager = await manager_of()
    outcomes = await asyncio.gather(
        *(manager.create(METADATA, LedgerId(5), creator_token=token) for token in range(1, 6)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, LedgerExistsError) for outcome in outcomes) == 4


async def test_when_short_ids_run_out_long_ones_follow() -> None:
    store, tree, manager = await manager_of()
    await manager.create(METADATA, creator_token=1)
    counter = store.find(f"{ROOT}/idgen")
    assert counter is not None
    counter.created_children = SEQUENCE_END - 1
    drawn = [(await manager.create(METADATA, creator_token=1))[0] for _ in range(3)]
    assert drawn == [SEQUENCE_END - 1, 1 << 32, (1 << 32) + 1]

    other = LedgerManager(tree, ROOT, DEFAULT_LAYOUT)  # sees idgen-long, and does not go back
    counter.created_children = 17
    assert (await other.create(METADATA, creator_token=1))[0] == (1 << 32) + 2

    hob = store.find(f"{ROOT}/idgen-long/HOB-0000000001")
    assert hob is not None
    hob.created_children = SEQUENCE_END
    assert (await manager.create(METADATA, creator_token=1))[0] == 2 << 32
    assert await listed(manager) == [0, SEQUENCE_END - 1, *((1 << 32) + i for i in range(3)), 2 << 32]


async def test_only_the_newest_high_order_bits_are_kept() -> None:
    _, tree, manager = await manager_of(ManagerType.LONG_HIERARCHICAL)
    for hob in range(1, 6):
        await tree.create(f"{ROOT}/idgen-long/HOB-{hob:010d}", parents=True)
    assert (await manager.create(METADATA, creator_token=1))[0] == 5 << 32
    assert sorted((await tree.children(f"{ROOT}/idgen-long"))[0]) == [f"HOB-{i:010d}" for i in (3, 4, 5)]
    await tree.delete(f"{ROOT}/idgen-long/HOB-0000000005", ANY_VERSION)
    assert (await manager.create(METADATA, creator_token=1))[0] == 4 << 32


async def test_a_manager_without_long_ids_says_when_they_run_out() -> None:
    store, tree, manager = await manager_of(ManagerType.FLAT)
    root = store.find(ROOT)
    assert root is not None
    root.created_children = SEQUENCE_END
    with pytest.raises(LedgerIdOverflowError):
        await manager.create(METADATA, creator_token=1)
    with pytest.raises(IncorrectParameterError):
        await manager.create(METADATA, LedgerId(10**10), creator_token=1)
    assert await tree.exists(f"{ROOT}/idgen-long") is None


async def test_a_write_needs_the_version_that_was_read() -> None:
    _, _, manager = await manager_of()
    ledger_id, created = await manager.create(METADATA, creator_token=1)
    closed = created.value.with_closed(EntryId(4), 50)
    written = await manager.write(ledger_id, closed, created.version)
    assert written == await manager.read(ledger_id) == Versioned(closed, 1)
    with pytest.raises(MetadataVersionError):
        await manager.write(ledger_id, created.value, created.version)
    with pytest.raises(NoSuchLedgerOnMetadataServerError):
        await manager.write(LedgerId(77), closed, 0)


async def test_a_lost_reply_of_a_write_is_settled_by_reading_again() -> None:
    _, tree, manager = await manager_of()
    ledger_id, created = await manager.create(METADATA, creator_token=1)
    recovering = created.value.with_state(MetadataState.IN_RECOVERY)
    tree.fail_next_reply()
    with pytest.raises(MetadataUnreachableError):
        await manager.write(ledger_id, recovering, created.version)
    assert await manager.read(ledger_id) == Versioned(recovering, 1)


async def test_unreadable_metadata_is_an_error_with_its_path() -> None:
    _, tree, manager = await manager_of()
    await tree.create(path_of(3), b"rubbish", parents=True)
    with pytest.raises(MetadataSerializationError, match="/ledgers/00/0000/L0003: "):
        await manager.read(LedgerId(3))
    with pytest.raises(LedgerExistsError):
        await manager.create(METADATA, LedgerId(3), creator_token=1)
    with pytest.raises(NoSuchLedgerOnMetadataServerError):
        await manager.read(LedgerId(4))
    assert await listed(manager) == [3]


async def test_delete_prunes_empty_parents_and_is_repeatable() -> None:
    _, tree, manager = await manager_of()
    for number in (1, 2, 10_000, 10**10):
        await manager.create(METADATA, LedgerId(number), creator_token=1)
    for number in (1, 10_000, 10**10, 10**10):
        await manager.delete(LedgerId(number))
    assert await tree.exists(f"{ROOT}/00/0001") is None
    assert await tree.exists(f"{ROOT}/000") is None
    assert await listed(manager) == [2]


async def test_delete_leaves_parents_where_java_does() -> None:
    _, tree, manager = await manager_of(ManagerType.LEGACY_HIERARCHICAL)
    await manager.create(METADATA, LedgerId(1), creator_token=1)
    await manager.delete(LedgerId(1))
    assert (await tree.children(f"{ROOT}/00/0000"))[0] == []


async def test_a_listing_holds_every_ledger_that_was_there_all_along() -> None:
    store, _, manager = await manager_of()
    other = LedgerManager(await session(store), ROOT, DEFAULT_LAYOUT)
    lasting = {LedgerId(i * 3_333) for i in range(12)} | {LedgerId((1 << 31) - 2), LedgerId((1 << 31) - 1)}
    fleeting = [LedgerId(i * 3_333 + 1) for i in range(12)]
    for ledger_id in lasting:
        await manager.create(METADATA, ledger_id, creator_token=1)
    done = False

    async def churn() -> None:
        while not done:
            for ledger_id in fleeting:
                await other.create(METADATA, ledger_id, creator_token=2)
            for ledger_id in fleeting:
                await other.delete(ledger_id)

    churning = asyncio.create_task(churn())
    for _ in range(10):
        found = await listed(manager)
        assert lasting <= set(found) <= lasting | set(fleeting)
        assert found == sorted(set(found))
    done = True
    await churning


async def test_a_listing_never_mistakes_a_missing_cluster_for_an_empty_one() -> None:
    _, tree, manager = await manager_of()
    assert await listed(manager) == []
    await tree.set(f"{ROOT}/INSTANCEID", b"another", ANY_VERSION)
    with pytest.raises(MetadataLostError, match="another cluster"):
        await listed(manager)
    nowhere = LedgerManager(tree, "/elsewhere", DEFAULT_LAYOUT)
    with pytest.raises(MetadataLostError, match="/elsewhere is gone"):
        await listed(nowhere)


async def test_a_listing_that_is_interrupted_raises() -> None:
    _, tree, manager = await manager_of()
    for number in (1, 10_000, 20_000):
        await manager.create(METADATA, LedgerId(number), creator_token=1)
    found = manager.ranges()
    assert await anext(found) == [1]
    tree.suspend()
    with pytest.raises(MetadataUnreachableError):
        await anext(found)


@pytest.mark.parametrize(
    ("manager_type", "path"),
    [
        (ManagerType.HIERARCHICAL, f"{ROOT}/00/0000/X0001"),
        (ManagerType.HIERARCHICAL, f"{ROOT}/00/0000/L00001"),
        (ManagerType.HIERARCHICAL, f"{ROOT}/00/000"),
        (ManagerType.HIERARCHICAL, f"{ROOT}/000/0000/0000/0000/L0009"),  # belongs in short form
        (ManagerType.HIERARCHICAL, f"{ROOT}/99/9999/L9999"),  # belongs in long form
        (ManagerType.FLAT, f"{ROOT}/L12345678901"),
    ],
)
async def test_a_listing_raises_on_any_doubt(manager_type: ManagerType, path: str) -> None:
    _, tree, manager = await manager_of(manager_type)
    await manager.create(METADATA, LedgerId(9), creator_token=1)
    await tree.create(path, parents=True)
    with pytest.raises(CorruptDataError, match=path.rpartition("/")[2]):
        await listed(manager)


async def test_other_children_of_the_root_are_no_ledgers() -> None:
    _, tree, manager = await manager_of()
    await manager.create(METADATA, creator_token=1)
    for name in ("disableHealthCheck", "conf", "0", "0000", "ab", "L0000000005"):
        await tree.create(f"{ROOT}/{name}")
    assert await listed(manager) == [0]


async def test_a_watch_tells_every_state_until_the_deletion() -> None:
    _, _, manager = await manager_of()
    ledger_id, created = await manager.create(METADATA, creator_token=1)
    seen: list[Versioned[LedgerMetadata] | None] = []
    await manager.watch(ledger_id, seen.append)
    await settle()
    closed = await manager.write(ledger_id, created.value.with_closed(EntryId(0), 1), 0)
    await settle()
    await manager.delete(ledger_id)
    await settle()
    assert seen == [created, closed, None]
    await manager.close()


async def test_a_watch_that_was_cancelled_is_silent() -> None:
    _, _, manager = await manager_of()
    ledger_id, created = await manager.create(METADATA, creator_token=1)
    seen: list[Versioned[LedgerMetadata] | None] = []
    cancel = await manager.watch(ledger_id, seen.append)
    await settle()
    cancel()
    await manager.delete(ledger_id)
    await settle()
    assert seen == [created]


async def test_a_watch_outlives_its_session_and_misses_nothing() -> None:
    store, tree, manager = await manager_of()
    other = LedgerManager(await session(store), ROOT, DEFAULT_LAYOUT)
    ledger_id, created = await manager.create(METADATA, creator_token=1)
    seen: list[Versioned[LedgerMetadata] | None] = []
    await manager.watch(ledger_id, seen.append)
    await settle()
    tree.expire_session()
    await tree.reopen()
    await asyncio.sleep(0.05)
    assert seen == [created]  # read again, but not told again
    tree.expire_session()
    closed = await other.write(ledger_id, created.value.with_closed(EntryId(0), 1), 0)
    await settle()
    await tree.reopen()
    await until(lambda: len(seen) == 2)
    await other.delete(ledger_id)
    await until(lambda: len(seen) == 3)
    assert seen == [created, closed, None]
    await manager.close()


async def test_a_watch_waits_while_metadata_is_unreadable() -> None:
    _, tree, manager = await manager_of()
    ledger_id, created = await manager.create(METADATA, creator_token=1)
    seen: list[Versioned[LedgerMetadata] | None] = []
    await manager.watch(ledger_id, seen.append)
    await settle()
    await tree.set(path_of(ledger_id), b"rubbish", ANY_VERSION)
    await settle()
    await tree.set(path_of(ledger_id), ledger_metadata.encode(created.value), ANY_VERSION)
    await settle()
    assert seen == [created, Versioned(created.value, 2)]
    await manager.close()


async def test_a_parent_that_is_pruned_during_a_create_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, tree, manager = await manager_of()
    create, pruned = tree.create, [path_of(3)]

    async def racing_create(path: str, data: bytes = b"", **options: bool) -> str:
        if pruned:
            raise NoNodeError(pruned.pop())
        return await create(path, data, **options)

    monkeypatch.setattr(tree, "create", racing_create)
    _, created = await manager.create(METADATA, LedgerId(3), creator_token=1)
    assert await manager.read(LedgerId(3)) == created
