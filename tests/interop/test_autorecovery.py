"""Java's AutoRecovery with bkctl bookies."""

import asyncio
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bkctl.errors import NoNodeError
from bkctl.formats.underreplication import decode_check_time
from bkctl.metadata.store import MetadataStore
from bkctl.types import LedgerId
from tests.integration.bookies import BookieProcess, wait_until
from tests.interop.apache import Apache, JavaAutoRecovery, JavaDriver, running
from tests.interop.copies import assert_identical, assert_same_entries, copies_of, lac_of
from tests.interop.mixed import Bookie, assert_quiet, java_bookie, our_bookie, wait_gone
from tests.interop.payload import expected
from tests.interop.sides import SIZE, BkctlSide, JavaSide, Seen, Shape, Side

COUNT = 400
DIGESTS = ["CRC32C", "CRC32", "MAC", "DUMMY"]
REPAIR_S = 90.0
SETTINGS = {
    "auditorPeriodicBookieCheckInterval": 2,
    "auditorPeriodicPlacementPolicyCheckInterval": 0,
    "lostBookieRecoveryDelay": 0,
    "openLedgerRereplicationGracePeriod": 500,
    "lockReleaseOfFailedLedgerGracePeriod": 1_000,
    "rwRereplicateBackoffMs": 200,
    "zkTimeout": 10_000,
}
NO_CHECKS = {"auditorPeriodicCheckInterval": 0, "auditorReplicasCheckInterval": 0}


async def marked(uri: str) -> set[str]:
    """The nodes of ledgers that are marked as under-replicated, and their locks."""
    store = await MetadataStore.open(uri)
    try:
        found, parents = set(), [f"{store.root}/underreplication/{n}" for n in ("ledgers", "locks")]
        while parents:
            parent = parents.pop()
            try:
                names, _ = await store.tree.children(parent)
            except NoNodeError:
                continue
            found |= {name for name in names if name.startswith("urL")}
            parents += [f"{parent}/{name}" for name in names if not name.startswith("urL")]
        return found
    finally:
        await store.close()


async def check_time(uri: str, name: str) -> int:
    """When a periodic check last came to its end; -1: never."""
    store = await MetadataStore.open(uri)
    try:
        return decode_check_time((await store.tree.get(f"{store.root}/underreplication/{name}")).data)
    except NoNodeError:
        return -1
    finally:
        await store.close()


def wait_checked(uri: str, which: int) -> None:
    """Until one whole check has been made from now on: of all ledgers (0), of all replicas (1)."""
    name = ("checkallledgersctime", "replicascheckctime")[which]
    for _ in range(2):  # the first to end may have begun before
        now = time.time() * 1000
        wait_until(lambda now=now: asyncio.run(check_time(uri, name)) > now, name, REPAIR_S)


def members(side: BkctlSide, ledger_id: LedgerId) -> set[str]:
    """All bookies that the ledger's metadata names."""
    return {str(b) for segment in side.metadata(ledger_id).segments for b in segment.ensemble}


def close_all(sides: list[Side]) -> None:
    for side in sides:
        side.close()


@dataclass(frozen=True, slots=True)
class Repaired:
    """A cluster after b2 was killed and its ledgers were repaired; `target` took its place."""

    uri: str
    target: str
    ours: BkctlSide
    java: JavaSide
    closed: dict[LedgerId, tuple[Shape, int]]  # ledgers that were closed, with their last entries
    abandoned: dict[LedgerId, int]  # ledgers that nobody closed, with their last acknowledged entries


def fill(sides: list[Side]) -> tuple[dict[LedgerId, tuple[Shape, int]], dict[LedgerId, int]]:
    """Closed ledgers of each digest, striped, and empty; then one open ledger of each client."""
    closed, abandoned = {}, {}
    for side in sides:
        shapes = [(Shape(3, 3, 3, digest), COUNT) for digest in DIGESTS]
        for shape, count in [*shapes, (Shape(3, 2, 2), COUNT), (Shape(3, 3, 3), 0)]:
            ledger_id = side.create(shape)
            if count:
                side.add(count)
            side.close_ledger()
            closed[ledger_id] = shape, count - 1
    for side in sides:
        ledger_id = side.create(Shape(3, 3, 3))
        side.add(COUNT)
        abandoned[ledger_id] = COUNT - 1
    return closed, abandoned


@pytest.fixture(scope="module", params=["bkctl", "Java"])
def repaired(
    request: pytest.FixtureRequest,
    apache: Apache,
    driver: JavaDriver,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Repaired]:
    uri, home = new_cluster(), tmp_path_factory.mktemp("autorecovery")
    bookies: list[Bookie] = [our_bookie(uri, home, name) for name in ("b1", "b2", "b3")]
    target = our_bookie(uri, home, "b4") if request.param == "bkctl" else java_bookie(apache, uri, home, "j4")
    autorecovery = JavaAutoRecovery(apache, uri, home, SETTINGS | NO_CHECKS)
    with running(bookies):
        ours, java = BkctlSide(uri), JavaSide(driver, uri, "v3")
        v2 = JavaSide(driver, uri, "v2")
        closed, abandoned = fill([ours, java, v2])
        with running([target, autorecovery]):
            bookies[1].kill()
            wait_until(
                lambda: (
                    not any("b2" in members(ours, i) for i in [*closed, *abandoned])
                    and not asyncio.run(marked(uri))
                ),
                "every ledger is repaired",
                REPAIR_S,
            )
            yield Repaired(uri, target.name, ours, java, closed, abandoned)
        close_all([ours, java, v2])
    assert_quiet([*bookies, target])


def test_ledgers_of_a_dead_bookie_name_the_new_one_and_no_mark_is_left(repaired: Repaired) -> None:
    for ledger_id in [*repaired.closed, *repaired.abandoned]:
        assert members(repaired.ours, ledger_id) == {"b1", "b3", repaired.target}
    assert asyncio.run(marked(repaired.uri)) == set()


def test_repaired_ledgers_are_read_by_both_clients(repaired: Repaired) -> None:
    for ledger_id, (shape, end) in repaired.closed.items():
        whole = Seen(end, (end + 1) * SIZE, expected(0, end, SIZE))
        assert repaired.ours.see(ledger_id, shape.digest) == whole
        assert repaired.java.see(ledger_id, shape.digest) == whole


def test_repaired_copies_differ_from_the_first_ones_in_lac_and_digest_only(repaired: Repaired) -> None:
    # LedgerFragmentReplicator packs each entry anew, with the LAC of the closed ledger.
    for ledger_id, (shape, end) in repaired.closed.items():
        copies = copies_of(repaired.ours, ledger_id)
        assert len(copies) == end + 1
        assert_same_entries(copies, ledger_id, shape.digest)
        stayed = {e: {b: c for b, c in found.items() if b != repaired.target} for e, found in copies.items()}
        for found in copies.values():
            assert repaired.target not in found or lac_of(found[repaired.target]) == end
        if shape.write == 3:
            assert_identical(stayed, 2)


def test_abandoned_ledgers_are_closed_with_all_that_was_acknowledged(repaired: Repaired) -> None:
    for ledger_id, end in repaired.abandoned.items():
        whole = Seen(end, (end + 1) * SIZE, expected(0, end, SIZE))
        assert repaired.ours.see(ledger_id) == repaired.java.see(ledger_id) == whole
        assert_same_entries(copies_of(repaired.ours, ledger_id), ledger_id, "CRC32C")


@dataclass(frozen=True, slots=True)
class Checked:
    """A cluster of b1, b2 and b3; AutoRecovery is started by its tests."""

    apache: Apache
    uri: str
    home: Path
    ours: BkctlSide
    java: JavaSide
    bookies: dict[str, BookieProcess]

    def autorecovery(self, name: str, **checks: int) -> JavaAutoRecovery:
        """It reads every entry that it checks, not only the first and the last ones."""
        settings = SETTINGS | NO_CHECKS | {"auditorLedgerVerificationPercentage": 100} | checks
        return JavaAutoRecovery(self.apache, self.uri, self.home / name, settings)


@pytest.fixture(scope="module")
def checked(
    apache: Apache,
    driver: JavaDriver,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Checked]:
    uri, home = new_cluster(), tmp_path_factory.mktemp("checked")
    bookies = [our_bookie(uri, home, f"b{n}") for n in (1, 2, 3, 4)]
    with running(bookies[:3]):
        ours, java = BkctlSide(uri), JavaSide(driver, uri, "v3")
        try:
            yield Checked(apache, uri, home, ours, java, {bookie.name: bookie for bookie in bookies})
        finally:
            close_all([ours, java])
            if bookies[3].process is not None:
                bookies[3].kill()
    assert_quiet(bookies)


def test_checks_of_all_ledgers_and_all_replicas_find_nothing_on_healthy_bookies(checked: Checked) -> None:
    fill([checked.ours, checked.java])
    both = checked.autorecovery("healthy", auditorPeriodicCheckInterval=1, auditorReplicasCheckInterval=1)
    with running([both]):
        wait_checked(checked.uri, 0)
        wait_checked(checked.uri, 1)
        assert asyncio.run(marked(checked.uri)) == set()
    log = both.log.read_text()
    assert "missing" not in log, log[-4000:]


def lose_second_half(checked: Checked, side: Side, victim: BookieProcess) -> LedgerId:
    """A closed ledger; the disks of `victim` come back from a copy made when half of it was written."""
    ledger_id = side.create(Shape(3, 3, 3))
    side.add(COUNT)
    copy = checked.home / f"copy of {victim.name}"
    victim.signal(signal.SIGSTOP)
    shutil.copytree(victim.directory, copy, ignore=shutil.ignore_patterns("bookie.log"))
    victim.signal(signal.SIGCONT)
    side.add(COUNT)
    side.close_ledger()
    victim.kill()
    for name in ("journal", "ledgers"):
        shutil.rmtree(victim.directory / name)
        shutil.copytree(copy / name, victim.directory / name)
    wait_gone(checked.uri, victim.name)
    victim.start()
    return ledger_id


def test_entries_that_a_bookie_lost_are_found_by_both_checks_and_written_to_another(checked: Checked) -> None:
    ours, victim = checked.ours, checked.bookies["b2"]
    ledger_id = lose_second_half(checked, ours, victim)
    whole = Seen(2 * COUNT - 1, 2 * COUNT * SIZE, expected(0, 2 * COUNT - 1, SIZE))
    assert checked.java.see(ledger_id) == whole, "the other two have it"
    held = checked.java.client.call("entries_of", bookie="b2", id=ledger_id)
    assert held["ids"] == list(range(COUNT))
    replicas = checked.autorecovery("replicas", auditorReplicasCheckInterval=1)
    with running([replicas]):
        wait_checked(checked.uri, 1)
    told = replicas.log.read_text()
    assert f"Ledger : {ledger_id} has following missing entries" in told, told[-4000:]
    assert f"following entries {list(range(COUNT, 2 * COUNT))} are missing in bookie: b2" in told
    checked.bookies["b4"].start()
    with running([checked.autorecovery("all", auditorPeriodicCheckInterval=1)]):
        wait_until(lambda: "b4" in members(ours, ledger_id), "b4 is in the place of b2", REPAIR_S)
        wait_until(lambda: not asyncio.run(marked(checked.uri)), "no mark is left", REPAIR_S)
    assert members(ours, ledger_id) == {"b1", "b3", "b4"}
    assert checked.java.see(ledger_id) == ours.see(ledger_id) == whole
    assert_same_entries(copies_of(ours, ledger_id), ledger_id, "CRC32C")
