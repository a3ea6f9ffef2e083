"""Mixed ensembles: one client recovers in the middle of the other's pipeline."""

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bkctl.types import LedgerId
from tests.interop.apache import Apache, JavaDriver
from tests.interop.copies import assert_same_entries, copies_of
from tests.interop.mixed import two_of_each
from tests.interop.payload import expected
from tests.interop.sides import SIZE, Outcome, Shape, Side, Sides, clients, wait_acked

SHAPES = [Shape(3, 3, 2), Shape(4, 3, 2), Shape(4, 4, 3), Shape(4, 2, 2), Shape(2, 2, 1)]
DIGESTS = ["CRC32C", "CRC32", "MAC", "DUMMY"]
SEEDS = range(20)
RIVAL_SEEDS = range(10)
FENCED = {"BKLedgerFencedException", "LedgerFencedError"}


@pytest.fixture(scope="module")
def uri(
    apache: Apache, new_cluster: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    uri = new_cluster()
    with two_of_each(apache, uri, tmp_path_factory.mktemp("mixed")):
        yield uri


@pytest.fixture(scope="module")
def sides(uri: str, driver: JavaDriver) -> Iterator[Sides]:
    with clients(driver, uri) as made:
        yield made


def shape_of(seed: int) -> Shape:
    plain = SHAPES[seed % len(SHAPES)]
    return Shape(plain.ensemble, plain.write, plain.ack, DIGESTS[seed % len(DIGESTS)])


def start(writer: Side, seed: int) -> LedgerId:
    """A pipeline, up to a moment that the seed chooses: before its first answer, or far into it."""
    ledger_id = writer.create(shape_of(seed))
    rng = random.Random(seed)
    writer.start_pipeline()
    if seed % 5:
        wait_acked(writer, rng.randrange(2_000))
    time.sleep(rng.random() * 0.02)
    return ledger_id


def check_end(
    sides: Sides, ledger_id: LedgerId, seed: int, end: int, outcome: Outcome, *, java: bool
) -> None:
    """Nothing that was acknowledged is lost, nothing is made up, and everybody sees the same."""
    assert outcome.last_acked <= end < outcome.sent, (end, outcome)
    assert outcome.acked == outcome.last_acked + 1, "acknowledged in order, up to the first failure"
    kind = shape_of(seed).digest
    [seen] = {side.see(ledger_id, kind) for side in sides}
    assert (seen.last_entry_id, seen.sha256) == (end, expected(0, end, SIZE))
    length = (end + 1) * SIZE
    if java and seen.length != length:
        # LedgerRecoveryOp that finds nothing above the LAC takes the length from whichever entry
        # carried that LAC, although entries between are missing.
        assert length < seen.length <= outcome.sent * SIZE
    else:
        assert seen.length == length
    assert {side.recover(ledger_id, kind) for side in sides} == {end}, "an end is for ever"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("writes", "recovers"),
    [("Java v2", "bkctl"), ("Java v3", "bkctl"), ("bkctl", "Java v2"), ("bkctl", "Java v3")],
)
def test_writer_is_fenced_and_all_it_was_promised_is_kept(
    sides: Sides, writes: str, recovers: str, seed: int
) -> None:
    ledger_id = start(sides.named(writes), seed)
    end = sides.named(recovers).recover(ledger_id, shape_of(seed).digest)
    outcome = sides.named(writes).wait_pipeline()
    assert outcome.error in FENCED, outcome
    check_end(sides, ledger_id, seed, end, outcome, java=recovers != "bkctl")
    # A recovery sends an entry again with another LAC, and waits for an ack quorum of copies.
    shape = shape_of(seed)
    copies = copies_of(sides.ours, ledger_id)
    assert_same_entries(copies, ledger_id, shape.digest, missing_max=shape.write - shape.ack)


@pytest.mark.parametrize("seed", RIVAL_SEEDS)
@pytest.mark.parametrize("writes", ["Java v2", "Java v3", "bkctl"])
def test_two_recoverers_one_of_each_kind_find_one_end(sides: Sides, writes: str, seed: int) -> None:
    java = sides.v2 if seed % 2 else sides.v3
    ledger_id = start(sides.named(writes), seed)
    kind, ends = shape_of(seed).digest, {}

    def recover(side: Side, delay_s: float) -> None:
        time.sleep(delay_s)
        ends[side.name] = side.recover(ledger_id, kind)

    delay_s = random.Random(seed).random() * 0.01
    delays = (delay_s, 0.0) if seed % 3 else (0.0, delay_s)
    threads = [
        threading.Thread(target=recover, args=pair) for pair in zip((java, sides.ours), delays, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 2
    [end] = set(ends.values())
    outcome = sides.named(writes).wait_pipeline()
    assert outcome.error in FENCED, outcome
    check_end(sides, ledger_id, seed, end, outcome, java=True)
