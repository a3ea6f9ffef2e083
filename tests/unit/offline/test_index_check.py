"""Every way in which a location may be wrong has its own answer, and a sound disk has none."""

from pathlib import Path

import pytest

from bkctl.formats import index as fmt
from bkctl.formats.entry_log import pack_location
from bkctl.formats.index_file import HEADER_BYTES, index_file_path, slot_offset
from bkctl.offline import index_check
from bkctl.offline.directories import BookieDirectories
from bkctl.offline.index_check import Finding, IndexCheck
from bkctl.offline.indexes import find_indexes
from bkctl.server.storage.fs import OsFs
from tests.unit.offline.bookie_disks import (
    DB,
    ENTRY_COUNTS,
    IDX,
    changed_ledgers,
    changed_locations,
    copied,
    flip,
    untouched,
)


def checked(
    current: Path, ledger_id: int | None = None, **settings: bool
) -> tuple[list[Finding], IndexCheck]:
    indexes = find_indexes(BookieDirectories.of([], [str(current)]))
    check = IndexCheck(OsFs(), ledger_id, **settings)
    with untouched(current):
        found = list(check.ledgers(indexes, directory_count=1))
        for index in indexes:
            found += check.locations(index)
    return found, check


def findings(current: Path, ledger_id: int | None = None) -> list[tuple[str, int | None, int | None]]:
    found, _ = checked(current, ledger_id)
    return sorted((f.problem, f.ledger_id, f.entry_id) for f in found)  # type: ignore[type-var]


@pytest.mark.parametrize("disk", [DB, IDX])
@pytest.mark.parametrize("piece", [1, 7, 1 << 18])
@pytest.mark.parametrize("in_use", [False, True])
def test_a_disk_of_apache_bookkeeper_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: tuple[str, ...], piece: int, in_use: bool
) -> None:
    monkeypatch.setattr(index_check, "_PIECE_RECORDS", piece)
    found, check = checked(copied(tmp_path, disk), in_use=in_use)
    assert found == []
    assert (check.ledger_count, check.entry_count) == ENTRY_COUNTS[disk]


@pytest.mark.parametrize("disk", [DB, IDX])
@pytest.mark.parametrize("piece", [1, 1 << 18])
def test_every_entry_of_a_log_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: tuple[str, ...], piece: int
) -> None:
    monkeypatch.setattr(index_check, "_PIECE_RECORDS", piece)
    current = copied(tmp_path, disk)
    indexes = find_indexes(BookieDirectories.of([], [str(current)]))
    with indexes[0].locations() as locations:
        inside = sum(record[:4] == bytes(4) for batch in locations.records() for record in batch)
    (current / "0.log").unlink()
    found, _ = checked(current)
    assert {f.problem for f in found} == {"missing_log"}
    assert len(found) == inside > 200
    assert {f.log_id for f in found} == {0}


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        (pack_location(0, 1029), "entry_mismatch"),
        (pack_location(0, 1075), "entry_mismatch"),  # the next entry
        (pack_location(0, 1 << 30), "entry_mismatch"),  # beyond the end
        (pack_location(0, 100), "bad_location"),
        (pack_location(0, 0), "bad_location"),
        (pack_location(7, 1028), "missing_log"),
        (pack_location(2**31 - 1, 1028), "missing_log"),
        (-1, "bad_location"),
        (1, "bad_location"),
    ],
)
@pytest.mark.parametrize("disk", [DB, IDX])
def test_a_location_that_is_not_the_entrys_is_found(
    tmp_path: Path, disk: tuple[str, ...], location: int, problem: str
) -> None:
    current = copied(tmp_path, disk)
    if disk == DB:
        with changed_locations(current) as locations:
            locations.put([fmt.entry_key(0, 0)], [location])
    else:
        with (current / index_file_path(0)).open("r+b") as file:
            file.seek(slot_offset(0))
            file.write(location.to_bytes(8, "big", signed=True))
    if disk == IDX and location == 0:
        assert findings(current) == []  # an absent entry is none: other copies tell
    else:
        assert findings(current) == [(problem, 0, 0)]
        assert findings(current, 0) == [(problem, 0, 0)]
    assert findings(current, 1) == []


@pytest.mark.parametrize("entry_id", [0, 5, 9])
@pytest.mark.parametrize("bit", [0, 3, 33, 40, 62, 63])
def test_a_flipped_bit_in_a_slot_is_found(tmp_path: Path, entry_id: int, bit: int) -> None:
    current = copied(tmp_path, IDX)
    flip(current / index_file_path(0), slot_offset(entry_id) + 7 - bit // 8, bit % 8)
    assert [(ledger, entry) for _, ledger, entry in findings(current)] == [(0, entry_id)]


def test_a_flipped_bit_in_an_empty_slot_is_found(tmp_path: Path) -> None:
    current = copied(tmp_path, IDX)
    flip(current / index_file_path(0), slot_offset(100) + 6)
    assert findings(current) == [("bad_location", 0, 100)]


@pytest.mark.parametrize("at", [0, 3, 4, 11, 12, 19])
@pytest.mark.parametrize("disk", [DB, IDX])
def test_a_flipped_bit_in_the_head_of_an_entry_is_found(
    tmp_path: Path, disk: tuple[str, ...], at: int
) -> None:
    """Size, ledger id and entry id of entry 3 of ledger 0; a larger size is found when the file ends."""
    current = copied(tmp_path, disk)
    flip(current / "0.log", 1169 - 4 + at, 6)
    wrong = findings(current)
    assert wrong == ([] if at == 3 else [("entry_mismatch", 0, 3)])


def test_an_entry_log_that_ends_within_an_entry_is_found(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    with (current / "1.log").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 200_000)
    found, _ = checked(current)
    assert {(f.problem, f.log_id) for f in found} == {("entry_mismatch", 1)}
    assert sum("ends after" in f.detail for f in found) <= 1
    assert all("ends" in f.detail for f in found)


def test_an_entry_log_that_cannot_be_read_is_told_and_not_taken_for_missing(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    (current / "1.log").unlink()
    (current / "1.log").mkdir()
    found, _ = checked(current)
    assert {f.problem for f in found} == {"unreadable_log"}


def test_entries_of_an_unknown_ledger_are_counted_in_one_finding(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    with changed_ledgers(current) as ledgers:
        ledgers.write({}, [0, 15])
    found, _ = checked(current)
    assert [(f.problem, f.ledger_id, f.detail.split()[0]) for f in found] == [
        ("unknown_ledger", 0, "10"),
        ("unknown_ledger", 15, "600"),
    ]


def test_a_ledger_without_entries_is_fine(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    with changed_ledgers(current) as ledgers:
        ledgers.write({77: fmt.LedgerData(False, b"")}, [])
    assert findings(current) == []


def test_damage_in_one_database_does_not_hide_that_in_the_other(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    (current / "ledgers" / "CURRENT").write_text("garbage\n")
    (current / "0.log").unlink()
    found, check = checked(current)
    assert {f.problem for f in found} == {"unreadable_index", "missing_log"}
    assert ["whether the ledgers are known" in line for line in check.unchecked] == [True]


def test_the_last_entry_told_from_the_end_must_be_the_one_found_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_check, "_PIECE_RECORDS", 7)
    monkeypatch.setattr(
        "bkctl.server.storage.index.LocationsIndex.last_entry_id",
        lambda self, ledger_id: 3,
    )
    wrong = findings(copied(tmp_path, DB))
    assert {problem for problem, _, _ in wrong} == {"last_entry"}
    assert {ledger_id for _, ledger_id, _ in wrong} == {*range(19), 10_000_000_000} - {12, 14}


def test_what_a_bookie_changed_meanwhile_is_no_damage(tmp_path: Path) -> None:
    """1. The index is read. 2. Compaction moves the entries of a log. 3. Its file goes away."""
    current = copied(tmp_path, DB)
    [index] = find_indexes(BookieDirectories.of([], [str(current)]))
    check = IndexCheck(OsFs(), in_use=True)
    with index.locations() as locations:
        old = [record for batch in locations.records() for record in batch]
    moved = [record for record in old if record[:4] == bytes(4)]
    assert len(moved) > 200
    (current / "0.log").rename(current / "9.log")
    with changed_locations(current) as changed:
        keys = [record[8:] for record in moved]
        changed.put(keys, [pack_location(9, int.from_bytes(record[4:8], "big")) for record in moved])
    assert list(check._confirmed(index, old)) == []
    (current / "9.log").unlink()
    found, _ = checked(current, in_use=True)
    assert len(found) == len(moved)


def test_a_ledger_in_the_directory_of_another_is_misplaced(tmp_path: Path) -> None:
    one, two = copied(tmp_path / "1", DB), copied(tmp_path / "2", DB)
    with changed_ledgers(two) as ledgers:
        ledgers.write({}, [i for i in ledgers.load() if i % 2 == 0])
    indexes = find_indexes(BookieDirectories.of([], [str(one), str(two)]))
    check = IndexCheck(OsFs())
    wrong = list(check.ledgers(indexes, directory_count=2))
    assert {f.problem for f in wrong} == {"misplaced_ledger"}
    assert {f.ledger_id for f in wrong} == {1, 3, 5, 7, 9, 11, 13, 15, 17}
    assert {f.directory for f in wrong} == {one}
    assert str(two) in wrong[0].detail


def test_a_ledger_in_two_index_directories_is_told(tmp_path: Path) -> None:
    one, two = copied(tmp_path / "1", IDX), copied(tmp_path / "2", IDX)
    for ledger_id in range(8):
        (two / index_file_path(ledger_id)).unlink()
    indexes = find_indexes(BookieDirectories.of([], [str(one), str(two)]))
    [finding] = IndexCheck(OsFs()).ledgers(indexes, directory_count=2)
    assert (finding.problem, finding.ledger_id, finding.directory) == ("duplicate_ledger", 8, two)


def test_locations_of_index_files_mean_the_logs_of_all_directories(tmp_path: Path) -> None:
    one, two = copied(tmp_path / "1", IDX), tmp_path / "2" / "current"
    two.mkdir(parents=True)
    (one / "0.log").rename(two / "0.log")
    (two / "VERSION").write_bytes((one / "VERSION").read_bytes())
    check = IndexCheck(OsFs())
    for index in find_indexes(BookieDirectories.of([], [str(one), str(two)])):
        assert list(check.locations(index)) == []
    assert check.entry_count == ENTRY_COUNTS[IDX][1]
    assert HEADER_BYTES == 1024
