"""Opening the metadata store of a cluster by its URI."""

import asyncio
from pathlib import Path

import pytest

from bkctl.errors import BadInputError, MetadataLostError, NoClusterError
from bkctl.formats.layout import DEFAULT_LAYOUT
from bkctl.formats.ledger_path import ManagerType
from bkctl.metadata import store as store_module
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.metadata.store import MetadataStore
from bkctl.types import LedgerId
from tests.unit.metadata.world import METADATA, ROOT, cluster, until


async def test_a_sqlite_cluster_is_made_once_and_found_again(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/m.db"
    with pytest.raises(NoClusterError, match="bkctl cluster init"):
        await MetadataStore.open(uri)
    assert list(tmp_path.iterdir()) == []  # looking leaves no trace
    made = await MetadataStore.open(uri, create=True)
    ledger_id, created = await made.ledgers.create(METADATA, creator_token=1)
    await made.close()
    await made.close()
    found = await MetadataStore.open(uri)
    assert await found.ledgers.read(ledger_id) == created
    assert (found.root, found.layout) == ("/ledgers", DEFAULT_LAYOUT)
    await found.close()
    with pytest.raises(NoClusterError, match="/other"):
        await MetadataStore.open(uri + "?root=/other")
    with pytest.raises(BadInputError, match="uses the ledger manager hierarchical"):
        await MetadataStore.open(uri.replace("sqlite:", "sqlite+flat:"))


async def test_the_manager_named_in_the_uri_is_what_a_new_cluster_gets() -> None:
    opened = await MetadataStore.open("memory+longhierarchical://", create=True)
    assert opened.layout.manager is ManagerType.LONG_HIERARCHICAL
    await opened.close()
    with pytest.raises(NoClusterError):
        await MetadataStore.open("memory://")


async def test_a_given_tree_is_used_and_closed_on_failure() -> None:
    store = MemoryStore()
    tree = MemoryTree(store)
    with pytest.raises(NoClusterError):
        await MetadataStore.open("memory://", tree=tree)
    with pytest.raises(MetadataLostError):
        await tree.get("/")
    assert store.find(ROOT) is None


async def test_pulsars_driver_needs_no_layout() -> None:
    store, tree = await cluster()
    await tree.delete(f"{ROOT}/LAYOUT", -1)
    uri = "metadata-store:zk:host:2181"
    opened = await MetadataStore.open(uri, tree=MemoryTree(store))
    assert opened.layout == DEFAULT_LAYOUT
    await opened.close()
    with pytest.raises(NoClusterError):
        await MetadataStore.open(uri, tree=MemoryTree())


async def test_a_lost_session_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_REOPEN_DELAY_MS", 1)
    store, _ = await cluster()
    tree = MemoryTree(store)
    opened = await MetadataStore.open("memory://", tree=tree)
    ledger_id, created = await opened.ledgers.create(METADATA, creator_token=1)
    seen = []
    await opened.ledgers.watch(ledger_id, seen.append)
    await until(lambda: bool(seen))
    for _ in range(2):
        before = tree.session_id
        tree.expire_session()
        while tree.session_id == before:
            await asyncio.sleep(0)
        assert await opened.ledgers.read(LedgerId(0)) == created
    await opened.close()
    assert seen == [created]
