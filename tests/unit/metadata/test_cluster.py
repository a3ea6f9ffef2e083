"""Initialising, formatting and deleting a cluster."""

import re

import pytest

from bkctl.errors import BadInputError, CorruptDataError, NoClusterError, RefusedError
from bkctl.formats.cookie import make_cookie
from bkctl.formats.layout import DEFAULT_LAYOUT, layout_of
from bkctl.formats.ledger_path import ManagerType
from bkctl.metadata.api import ANY_VERSION, MetadataTree
from bkctl.metadata.cluster import format_cluster, init_cluster, nuke_cluster, read_instance_id, read_layout
from bkctl.metadata.cookies import CookieManager
from bkctl.metadata.ledgers import LedgerManager
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.types import LedgerId
from tests.unit.metadata.world import METADATA, ROOT, A, cluster, session

LONG_LAYOUT = layout_of(ManagerType.LONG_HIERARCHICAL)


async def fill(tree: MetadataTree) -> None:
    manager = LedgerManager(tree, ROOT, DEFAULT_LAYOUT)
    for number in (0, 10_000, 10**10):
        await manager.create(METADATA, LedgerId(number), creator_token=1)
    await manager.create(METADATA, creator_token=1)
    await CookieManager(tree, ROOT).create(A, make_cookie(A, ["/j"], ["/l"]))
    for path in ("underreplication/ledgers/0000/0000/0000/0001/urL0000000001", "underreplication/disable"):
        await tree.create(f"{ROOT}/{path}", parents=True)


async def names(tree: MetadataTree, path: str = ROOT) -> set[str]:
    return set((await tree.children(path))[0])


async def test_init_makes_what_upstream_makes_and_parents_too() -> None:
    tree = await session(MemoryStore())
    result = await init_cluster(tree, "/a/b/ledgers", LONG_LAYOUT)
    assert result.created
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", result.instance_id)
    assert await names(tree, "/a/b/ledgers") == {"available", "INSTANCEID", "LAYOUT"}
    assert await names(tree, "/a/b/ledgers/available") == {"readonly"}
    assert await read_layout(tree, "/a/b/ledgers") == LONG_LAYOUT
    assert await read_instance_id(tree, "/a/b/ledgers") == result.instance_id


async def test_init_again_changes_nothing() -> None:
    tree = await session(MemoryStore())
    first = await init_cluster(tree, ROOT, DEFAULT_LAYOUT)
    second = await init_cluster(tree, ROOT, DEFAULT_LAYOUT)
    assert (second.instance_id, second.created) == (first.instance_id, False)
    with pytest.raises(BadInputError, match="hierarchical, not longhierarchical"):
        await init_cluster(tree, ROOT, LONG_LAYOUT)


@pytest.mark.parametrize("missing", ["LAYOUT", "INSTANCEID", "available/readonly"])
async def test_init_completes_what_was_interrupted(missing: str) -> None:
    _, tree = await cluster()
    await tree.delete(f"{ROOT}/{missing}", ANY_VERSION)
    assert (await init_cluster(tree, ROOT, DEFAULT_LAYOUT)).created
    assert await read_layout(tree, ROOT) == DEFAULT_LAYOUT
    assert await read_instance_id(tree, ROOT) is not None
    assert await tree.exists(f"{ROOT}/available/readonly") is not None


async def test_an_unreadable_cluster_is_not_a_missing_one() -> None:
    _, tree = await cluster()
    await tree.set(f"{ROOT}/LAYOUT", b"rubbish", ANY_VERSION)
    await tree.set(f"{ROOT}/INSTANCEID", b"\x00\xff", ANY_VERSION)
    with pytest.raises(CorruptDataError, match="/ledgers/LAYOUT"):
        await read_layout(tree, ROOT)
    with pytest.raises(CorruptDataError, match="/ledgers/INSTANCEID"):
        await read_instance_id(tree, ROOT)


async def test_format_forgets_ledgers_and_cookies_and_is_a_new_cluster() -> None:
    _, tree = await cluster()
    await fill(tree)
    old_id = await read_instance_id(tree, ROOT)
    new_id = await format_cluster(tree, ROOT, LONG_LAYOUT)
    assert new_id == await read_instance_id(tree, ROOT) != old_id
    assert await read_layout(tree, ROOT) == LONG_LAYOUT
    assert await names(tree) == {"available", "INSTANCEID", "LAYOUT", "underreplication"}
    assert await names(tree, f"{ROOT}/underreplication") == {"disable"}  # a setting, kept as upstream does


async def test_nuke_leaves_nothing() -> None:
    _, tree = await cluster()
    await fill(tree)
    await nuke_cluster(tree, ROOT, instance_id=await read_instance_id(tree, ROOT))
    assert await tree.exists(ROOT) is None
    with pytest.raises(NoClusterError):
        await nuke_cluster(tree, ROOT, force=True)


async def test_nuke_needs_the_right_instance_id_or_force() -> None:
    _, tree = await cluster()
    with pytest.raises(RefusedError, match="instance id"):
        await nuke_cluster(tree, ROOT, instance_id="wrong")
    with pytest.raises(BadInputError):
        await nuke_cluster(tree, ROOT)
    with pytest.raises(BadInputError):
        await nuke_cluster(tree, ROOT, instance_id="wrong", force=True)
    await nuke_cluster(tree, ROOT, force=True)
    assert await tree.exists(ROOT) is None


@pytest.mark.parametrize("parent", ["available", "available/readonly"])
async def test_live_bookies_forbid_both(parent: str) -> None:
    store, tree = await cluster()
    await fill(tree)
    bookie: MemoryTree = await session(store)
    await bookie.create(f"{ROOT}/{parent}/{A}", ephemeral=True)
    before = await names(tree)
    with pytest.raises(RefusedError, match="1 bookies are registered"):
        await nuke_cluster(tree, ROOT, force=True)
    with pytest.raises(RefusedError, match="a:3181"):
        await format_cluster(tree, ROOT, DEFAULT_LAYOUT)
    assert await names(tree) == before
    await bookie.close()
    await nuke_cluster(tree, ROOT, force=True)


async def test_nuke_spares_what_bookkeeper_did_not_make() -> None:
    _, tree = await cluster()
    await fill(tree)
    await tree.create(f"{ROOT}/mine")
    with pytest.raises(RefusedError, match="/ledgers/mine"):
        await nuke_cluster(tree, ROOT, force=True)
    assert await tree.exists(f"{ROOT}/00/0000/L0000") is not None
