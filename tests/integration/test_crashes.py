"""Every bookie is killed in the middle of a pipelined write, again and again: nothing acknowledged is lost.

BKCTL_CRASH_ROUNDS (3) says how often; `make torture` runs 50.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bkctl.client.bookkeeper import BookKeeper
from bkctl.errors import BkctlError
from tests.integration.bookies import BookieProcess, bookies
from tests.zookeeper_server import ZooKeeperServer

ROUNDS = int(os.environ.get("BKCTL_CRASH_ROUNDS", "3"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 30 * ROUNDS)]


def payload(seed: int, number: int) -> bytes:
    return random.Random(f"{seed}/{number}").randbytes(number % 700)


async def write_until_killed(client: BookKeeper, seed: int, kill: Callable[[], None]) -> tuple[int, int]:
    """Append until the bookies are gone; (ledger id, number of acknowledged entries)."""
    ledger = await client.create_ledger()
    await ledger.append_many(
        [payload(seed, number) for number in range(50)]
    )  # so that there is something to lose
    acked = 50
    killing = asyncio.get_running_loop().run_in_executor(None, kill)
    pending: list[asyncio.Future[tuple[int, int]]] = []
    number = 50
    try:
        while True:
            await ledger.wait_writable()
            pending.append(ledger.append_many([payload(seed, number + n) for n in range(50)]))
            number += 50
            await asyncio.sleep(0)
            if killing.done():
                break
    except BkctlError:
        pass
    await killing
    for done in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(done, BaseException):
            assert isinstance(done, BkctlError), done
        else:
            acked = max(acked, done[1] + 1)
    return ledger.ledger_id, acked


async def one_round(
    uri: str, seed: int, running: Sequence[BookieProcess], between: Callable[[], None]
) -> int:
    delay_s = random.Random(seed).uniform(0.02, 0.6)

    def kill() -> None:
        time.sleep(delay_s)
        for bookie in running:
            bookie.kill()

    async with await BookKeeper.connect(uri, add_timeout_ms=1000) as client:
        ledger_id, acked = await write_until_killed(client, seed, kill)
    between()
    for bookie in running:
        bookie.start(wait=False)
    for bookie in running:
        bookie.wait_ready()
    async with await BookKeeper.connect(uri) as client:
        reader = await client.open_ledger(ledger_id)
        assert reader.last_add_confirmed >= acked - 1, f"seed {seed}: acknowledged entries are lost"
        count = 0
        async for entry in reader.entries():
            assert entry.entry_id == count
            assert entry.payload == payload(seed, count), f"seed {seed}: entry {count} differs"
            count += 1
        assert count == reader.last_add_confirmed + 1
    return acked


def test_no_acknowledged_entry_is_lost_when_all_bookies_are_killed(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 3) as running:
        acked = [asyncio.run(one_round(uri, seed, running, lambda: None)) for seed in range(ROUNDS)]
    print(f"{ROUNDS} rounds, acknowledged entries per round: {acked}")


@pytest.mark.zookeeper
def test_nor_when_zookeeper_is_restarted_in_between(
    tmp_path: Path, zookeeper_server: ZooKeeperServer
) -> None:
    uri = f"zk+hierarchical://{zookeeper_server.hosts}/crashes"

    def restart() -> None:
        zookeeper_server.kill()
        zookeeper_server.start()

    with bookies(uri, tmp_path, 3, settings=["zkTimeout=4000"]) as running:
        acked = [asyncio.run(one_round(uri, seed, running, restart)) for seed in range(ROUNDS)]
    print(f"{ROUNDS} rounds, acknowledged entries per round: {acked}")
