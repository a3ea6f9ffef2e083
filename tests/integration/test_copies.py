"""An ack quorum is what an add waits for, not what a ledger is left with."""

import asyncio
import signal
from pathlib import Path

import pytest

from bkctl.client.bookkeeper import BookKeeper
from tests.integration.bookies import BookieProcess, bookies

pytestmark = pytest.mark.slow

COUNT = 20_000  # of 1 KiB: more than the sockets to one bookie hold


async def copies_after_close(uri: str, slow: BookieProcess) -> dict[str, int]:
    """Entries per bookie, once the client that wrote them has gone; `slow` stood still at the end."""
    async with await BookKeeper.connect(uri) as client:
        ledger = await client.create_ledger(ensemble_size=3, write_quorum_size=3, ack_quorum_size=2)
        await ledger.add(b"first")
        slow.signal(signal.SIGSTOP)
        while ledger.last_add_pushed < COUNT - 1:
            await ledger.wait_writable()
            done = ledger.append_many([bytes(1024)] * min(500, COUNT - 1 - ledger.last_add_pushed))
            await asyncio.sleep(0)
        await done
        asyncio.get_running_loop().call_later(0.2, slow.signal, signal.SIGCONT)
        await ledger.close()
    async with await BookKeeper.connect(uri) as client:
        ensemble = ledger.metadata.last_segment.ensemble
        found = {b: await client.pool.channel(b).list_entries(ledger.ledger_id) for b in ensemble}
        return {bookie_id: entries.entry_count for bookie_id, entries in found.items()}


def test_a_closed_ledger_has_every_copy_although_a_bookie_was_slow(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 3) as running:
        counts = asyncio.run(copies_after_close(uri, running[1]))
        assert set(counts.values()) == {COUNT}, counts
