"""The disks of a killed Apache bookie change hands: ours replays its journal and serves everything."""

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import Any

from bkctl.client.pool import BookiePool
from bkctl.errors import NodeExistsError
from bkctl.formats import cookie as cookie_format
from bkctl.formats.entry import Digester
from bkctl.metadata.api import ANY_VERSION
from bkctl.metadata.memory import MemoryStore, MemoryTree
from bkctl.types import Address, BookieId, DigestType
from tests.shared_data import fixture_path
from tests.unit.server.harness import running_bookie

BOOKIE_ID = BookieId("127.0.0.1:3181")


async def imported_tree() -> MemoryStore:
    """The znodes of Apache's cluster as they were when the bookie was killed, sessions ended."""
    store = MemoryStore()
    tree = MemoryTree(store)
    await tree.open()
    for node in json.loads(fixture_path("zk", "tree-at-sigkill.json").read_text()):
        if node["path"].startswith("/ledgers") and not node.get("ephemeral"):
            try:
                await tree.create(node["path"], base64.b64decode(node["data"] or ""), parents=True)
            except NodeExistsError:
                await tree.set(node["path"], base64.b64decode(node["data"] or ""), ANY_VERSION)
    await tree.close()
    return store


async def moved_to(home: Path, store: MemoryStore) -> None:
    """Cookies name directories as configured: rewrite them for the place where the copy lies."""
    shutil.copytree(fixture_path("bookie1-sigkill", "b1"), home)
    old = cookie_format.decode((home / "journal" / "current" / "VERSION").read_bytes())
    new = cookie_format.encode(
        cookie_format.make_cookie(
            BOOKIE_ID, [str(home / "journal")], [str(home / "ledgers")], old.instance_id
        )
    )
    for name in ("journal", "ledgers"):
        (home / name / "current" / "VERSION").write_bytes(new)
    tree = MemoryTree(store)
    await tree.open()
    await tree.set(f"/ledgers/cookies/{BOOKIE_ID}", new, ANY_VERSION)
    await tree.close()


async def readable_entries(server: Any, ledgers: list[dict[str, Any]]) -> dict[int, int]:
    """Per ledger, how many entries this bookie lists; each is read and its digest verified."""

    async def resolve(_bookie_id: BookieId) -> Address:
        return server.address

    pool, found = BookiePool(resolve), {}
    channel = pool.channel(BOOKIE_ID)
    for ledger in ledgers:
        ledger_id = ledger["ledgerId"]
        digester = Digester(DigestType[ledger["digestType"]], ledger["password"].encode())
        entry_ids = list(await channel.list_entries(ledger_id))
        for entry_id, body in zip(entry_ids, await channel.read_entries(ledger_id, entry_ids), strict=True):
            assert isinstance(body, bytes), body
            payload = digester.open_entry(body, ledger_id, entry_id)
            if ledger["payload"] == "entry-{i}":
                assert payload == b"entry-%d" % entry_id
        found[ledger_id] = len(entry_ids)
    await pool.close()
    return found


def test_a_killed_apache_bookie_is_taken_over_with_every_entry_and_fence(tmp_path: Path) -> None:
    ledgers = [
        ledger
        for name in ("expected.json", "expected-sigkill.json")
        for ledger in json.loads(fixture_path(name).read_text())
        if ledger["entriesWritten"]
    ]
    # Two ledgers do not have every entry here: the ensemble changed, or only two of three get each.
    everywhere = {
        x["ledgerId"]: x["entriesWritten"] for x in ledgers if x["name"] not in ("ensemble-change", "striped")
    }

    async def scenario() -> None:
        store = await imported_tree()
        home = tmp_path / "b1"
        await moved_to(home, store)
        for _ in range(2):  # the second start finds what the first one left
            async with running_bookie(home, metadata=store, bookieId=BOOKIE_ID) as server:
                found = await readable_entries(server, ledgers)
                assert {id_: found[id_] for id_ in everywhere} == everywhere
                assert found[13] == 8
                fenced = [id_ for id_, d in server.storage.directories[0].ledgers.items() if d.fenced]
                assert sorted(fenced) == [5, 12, 21]

    asyncio.run(scenario())
