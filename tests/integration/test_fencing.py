"""Two clients, one ledger: whoever recovers it stops the other, and all see one end."""

import asyncio
from pathlib import Path

import pytest

from bkctl.client.bookkeeper import BookKeeper
from bkctl.errors import BkctlError, LedgerClosedError, LedgerFencedError
from tests.integration.bookies import bookies

pytestmark = pytest.mark.slow


async def fence_a_busy_writer(uri: str) -> None:
    """1. A writes without pause. 2. B recovers. 3. A's adds fail, none is acknowledged later. 4. C agrees."""
    async with (
        await BookKeeper.connect(uri) as writer_client,
        await BookKeeper.connect(uri) as recoverer,
        await BookKeeper.connect(uri) as third,
    ):
        ledger = await writer_client.create_ledger()
        outcomes: list[asyncio.Future[int]] = []
        stop = asyncio.Event()

        async def keep_writing() -> None:
            while not stop.is_set():
                await ledger.wait_writable()
                for _ in range(20):
                    outcomes.append(ledger.append(b"entry %d" % len(outcomes)))
                await asyncio.sleep(0.002)

        writing = asyncio.create_task(keep_writing())
        await asyncio.sleep(0.5)
        reader = await recoverer.open_ledger(ledger.ledger_id)
        end = reader.last_add_confirmed
        assert reader.metadata.closed

        with pytest.raises((LedgerFencedError, LedgerClosedError)):
            await ledger.add(b"after the fence")  # the very next add
        stop.set()
        with pytest.raises(BkctlError):
            await writing
        results = await asyncio.gather(*outcomes, return_exceptions=True)
        acked = [r for r in results if not isinstance(r, BaseException)]
        refused = [r for r in results if isinstance(r, BaseException)]
        assert acked == list(range(len(acked))), "acknowledged in order, nothing after the first refusal"
        assert any(isinstance(r, LedgerFencedError) for r in refused)
        assert len(acked) - 1 <= end, "an acknowledged entry is behind the end"

        for client in (third, writer_client, recoverer):
            again = await client.open_ledger(ledger.ledger_id)
            assert again.last_add_confirmed == end
            entries = await again.read(0, end)
            assert [entry.payload for entry in entries] == [b"entry %d" % n for n in range(end + 1)]
        print(f"{len(acked)} acknowledged, {len(refused)} refused, closed at {end}")


@pytest.mark.parametrize("repetition", range(3))
def test_the_old_writer_is_fenced_and_all_readers_see_one_end(tmp_path: Path, repetition: int) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 3):
        asyncio.run(fence_a_busy_writer(uri))
