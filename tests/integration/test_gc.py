"""Ledgers are written, deleted, collected, while bookies are killed: space comes back, nothing else goes."""

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.writer import LedgerWriter
from bkctl.errors import BkctlError, LedgerFencedError, NoSuchLedgerError
from bkctl.types import LedgerId
from tests.integration.bookies import BookieProcess, bkctl, bookies, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = [
    "gcWaitTime=200",
    "minorCompactionInterval=1",
    "majorCompactionInterval=2",
    "majorCompactionThreshold=0.95",
    "compactionRate=20000",
    "logSizeLimit=262144",
    "flushInterval=100",
]
LEDGERS, ENTRIES = 9, 300


def payload(ledger: int, number: int) -> bytes:
    return random.Random(f"{ledger}/{number}").randbytes(500 + number)


def stored_bytes(bookie: BookieProcess) -> int:
    return sum(path.stat().st_size for path in (bookie.directory / "ledgers" / "current").glob("*.log"))


async def write(uri: str) -> list[LedgerId]:
    """Ledgers whose entries alternate in the logs."""
    async with await BookKeeper.connect(uri) as client:
        writers = [await client.create_ledger() for _ in range(LEDGERS)]
        for first in range(0, ENTRIES, 20):
            for number, writer in enumerate(writers):
                await writer.append_many([payload(number, n) for n in range(first, first + 20)])
            await asyncio.sleep(0.11)
        for writer in writers:
            await writer.close()
        return [writer.ledger_id for writer in writers]


async def delete(uri: str, ledger_ids: list[LedgerId]) -> None:
    async with await BookKeeper.connect(uri) as client:
        for ledger_id in ledger_ids:
            await client.delete_ledger(ledger_id)


async def check(uri: str, ledger_ids: dict[int, LedgerId]) -> None:
    async with await BookKeeper.connect(uri) as client:
        for number, ledger_id in ledger_ids.items():
            reader = await client.open_ledger(ledger_id)
            entries = [entry.payload async for entry in reader.entries()]
            assert entries == [payload(number, n) for n in range(ENTRIES)], f"ledger {ledger_id}"


def test_space_comes_back_and_live_entries_stay_under_kills(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    rng = random.Random(3)
    with bookies(uri, tmp_path, 3, SETTINGS) as running:
        ledger_ids = asyncio.run(write(uri))
        wait_until(lambda: min(map(stored_bytes, running)) > 1_400_000, "everything is flushed")
        before = [stored_bytes(bookie) for bookie in running]
        kept = {number: ledger_ids[number] for number in range(0, LEDGERS, 3)}
        asyncio.run(delete(uri, [i for i in ledger_ids if i not in kept.values()]))
        for _ in range(4):
            for bookie in running:
                time.sleep(rng.uniform(0.05, 0.6))
                bookie.kill()
                bookie.start()
            asyncio.run(check(uri, kept))
        wait_until(
            lambda: all(
                stored_bytes(bookie) < 0.5 * size for bookie, size in zip(running, before, strict=True)
            ),
            "the logs have less than half of their bytes",
            timeout_s=40,
        )
        asyncio.run(check(uri, kept))
        after = [stored_bytes(bookie) for bookie in running]
        for bookie in running:
            assert bookie.stop() == 0
            current = bookie.directory / "ledgers" / "current"
            checked = bkctl("index", "verify", "-l", str(current), "-o", "json")
            assert checked.returncode == 0, checked.stderr
            assert json.loads(checked.stdout)["items"] == []
        for bookie in running:
            bookie.start()
        asyncio.run(check(uri, kept))
        print(f"bytes of entry logs: {before} -> {after}")
        assert_no_trouble(running)


def assert_no_trouble(running: list[BookieProcess]) -> None:
    for bookie in running:
        log = bookie.log.read_text()
        assert "damaged" not in log, log[-2000:]
        assert "Traceback" not in log, log[-2000:]


async def fenced_and_deleted(uri: str, running: list[BookieProcess]) -> None:
    async with await BookKeeper.connect(uri) as old, await BookKeeper.connect(uri) as new:
        ledger: LedgerWriter = await old.create_ledger()
        await ledger.add(b"first")
        await new.recover_ledger(ledger.ledger_id)
        await new.delete_ledger(ledger.ledger_id)
        for bookie in ledger.metadata.last_segment.ensemble:
            async with asyncio.timeout(20):
                while True:
                    try:
                        await new.pool.channel(bookie).list_entries(ledger.ledger_id)
                    except NoSuchLedgerError:
                        break
                    await asyncio.sleep(0.1)
        with pytest.raises(LedgerFencedError):
            await ledger.add(b"late")
        for bookie in ledger.metadata.last_segment.ensemble:
            with pytest.raises(BkctlError):
                await new.pool.channel(bookie).list_entries(ledger.ledger_id)


def test_a_late_add_of_the_old_writer_is_refused_after_the_collection(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 3, SETTINGS) as running:
        asyncio.run(fenced_and_deleted(uri, running))
