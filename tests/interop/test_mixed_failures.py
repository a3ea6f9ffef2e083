"""Mixed ensembles: bookies of either kind die and are replaced by the other kind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.bookies import wait_until
from tests.interop.apache import Apache, JavaDriver, running
from tests.interop.copies import assert_same_entries, copies_of
from tests.interop.mixed import Bookie, assert_quiet, java_bookie, our_bookie, two_of_each, wait_gone
from tests.interop.payload import expected
from tests.interop.sides import SIZE, Seen, Shape, Side, Sides, clients, wait_acked

WRITERS = ["Java v2", "Java v3", "bkctl"]


@dataclass(frozen=True, slots=True)
class Five:
    """Three bookies of ours and two of Java's: any four of them are of both kinds."""

    uri: str
    bookies: dict[str, Bookie]
    sides: Sides


@pytest.fixture(scope="module")
def five(
    apache: Apache,
    driver: JavaDriver,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Five]:
    uri, home = new_cluster(), tmp_path_factory.mktemp("five")
    spare = our_bookie(uri, home, "b3")
    with two_of_each(apache, uri, home) as bookies, running([spare]), clients(driver, uri) as sides:
        yield Five(uri, {**bookies, "b3": spare}, sides)
    assert_quiet([spare])


@pytest.mark.parametrize("victim", ["Java", "bkctl"])
@pytest.mark.parametrize("writes", WRITERS)
def test_ledger_whose_bookie_was_killed_is_recovered_by_the_other_client(
    five: Five, writes: str, victim: str
) -> None:
    writer = five.sides.named(writes)
    ledger_id = writer.create(Shape(4, 3, 2))
    [ensemble] = writer.ensembles().values()
    killed = five.bookies[next(name for name in ensemble if name[0] == victim[0].lower())]
    writer.start_pipeline()
    wait_acked(writer, 500)
    killed.kill()
    try:
        end = five.sides.other(writer).recover(ledger_id)
        outcome = writer.wait_pipeline()
        assert outcome.error is not None
        assert outcome.last_acked <= end < outcome.sent
        whole = Seen(end, (end + 1) * SIZE, expected(0, end, SIZE))
        assert {side.see(ledger_id) for side in five.sides} == {whole}
    finally:
        wait_gone(five.uri, killed.name)
        killed.start()
    assert {side.see(ledger_id) for side in five.sides} == {whole}, "the bookie is back"


@pytest.fixture
def pair(
    apache: Apache, new_cluster: Callable[..., str], tmp_path: Path
) -> Iterator[tuple[str, dict[str, Bookie]]]:
    """b1 and j1 run; b2 waits to be started."""
    uri = new_cluster()
    bookies: list[Bookie] = [
        our_bookie(uri, tmp_path, "b1"),
        java_bookie(apache, uri, tmp_path, "j1"),
        our_bookie(uri, tmp_path, "b2"),
    ]
    with running(bookies[:2]):
        try:
            yield uri, {bookie.name: bookie for bookie in bookies}
        finally:
            if bookies[2].process is not None:
                bookies[2].kill()
    assert_quiet(bookies)


def change_ensemble_twice(uri: str, bookies: dict[str, Bookie], writer: Side) -> None:
    """Under a pipeline: b2 takes j1's place, then j1 takes b2's."""
    for dead, new in (("j1", "b2"), ("b2", "j1")):
        before = len(writer.ensembles())
        bookies[new].start()
        bookies[dead].kill()
        wait_until(lambda before=before: len(writer.ensembles()) > before, f"from {dead} to {new}")
        wait_acked(writer, max(writer.ensembles()) + 300)
        wait_gone(uri, dead)
    bookies["b2"].start()


@pytest.mark.parametrize("writes", WRITERS)
def test_ensemble_changes_from_a_java_bookie_to_a_bkctl_bookie_and_back(
    driver: JavaDriver, pair: tuple[str, dict[str, Bookie]], writes: str
) -> None:
    uri, bookies = pair
    with clients(driver, uri) as sides:
        writer = sides.named(writes)
        ledger_id = writer.create(Shape(2, 2, 2))
        writer.start_pipeline(outstanding=20)  # it goes on while a JVM starts
        wait_acked(writer, 300)
        change_ensemble_twice(uri, bookies, writer)
        members = [set(ensemble) for _, ensemble in sorted(writer.ensembles().items())]
        assert members == [{"b1", "j1"}, {"b1", "b2"}, {"b1", "j1"}]
        end = sides.other(writer).recover(ledger_id)
        outcome = writer.wait_pipeline()
        assert outcome.last_acked <= end < outcome.sent
        whole = Seen(end, (end + 1) * SIZE, expected(0, end, SIZE))
        assert {side.see(ledger_id) for side in sides} == {whole}
        assert_same_entries(copies_of(sides.ours, ledger_id), ledger_id, "CRC32C")
