"""Both kinds of index are read alike, and what breaks them is told apart from what is not there."""

import shutil
from pathlib import Path

import pytest

from bkctl.errors import CorruptDataError, NotFoundError
from bkctl.formats import index as fmt
from bkctl.formats.index_file import HEADER_BYTES, index_file_path, slot_offset
from bkctl.offline.directories import BookieDirectories
from bkctl.offline.indexes import Index, entry_of, find_indexes
from tests.unit.offline.bookie_disks import DB, ENTRY_COUNTS, IDX, changed_ledgers, copied, flip


def indexes_of(*ledger_directories: Path) -> list[Index]:
    return find_indexes(BookieDirectories.of([], [str(path) for path in ledger_directories]))


def all_entries(index: Index) -> list[tuple[int, int, int]]:
    with index.locations() as locations:
        return [entry_of(record) for batch in locations.records() for record in batch]


@pytest.mark.parametrize(("disk", "kind"), [(DB, "db"), (IDX, "idx")])
def test_an_index_of_either_kind_tells_its_ledgers_and_entries(
    tmp_path: Path, disk: tuple[str, ...], kind: str
) -> None:
    [index] = indexes_of(copied(tmp_path, disk))
    assert index.kind == kind
    ledgers = dict(index.ledgers())
    entries = all_entries(index)
    assert (len(ledgers), len(entries)) == ENTRY_COUNTS[disk]
    assert {ledger_id for ledger_id, _, _ in entries} <= set(ledgers)
    with index.locations() as locations:
        for ledger_id, data in ledgers.items():
            assert ledger_id is not None
            assert index.ledger(ledger_id) == data
            ids = [entry_id for found, entry_id, _ in entries if found == ledger_id]
            assert ids == sorted(ids)
            assert locations.last_entry_id(ledger_id) == max(ids, default=-1)
            some = [entry_of(r)[1] for batch in locations.records(ledger_id, 1, 3) for r in batch]
            assert some == [i for i in ids if 1 <= i <= 3]
        assert locations.last_entry_id(999) == -1
        assert [batch for batch in locations.records(999) if batch] == []
    assert index.ledger(999) is None
    assert index.size_bytes() > 10_000


def test_both_kinds_in_one_directory_are_both_found(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    idx = copied(tmp_path / "other", IDX)
    shutil.copytree(idx / "0", current / "0")
    assert [index.kind for index in indexes_of(current)] == ["db", "idx"]


def test_a_bookie_that_stored_nothing_has_no_index_and_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("5\n")
    assert indexes_of(tmp_path) == []
    (tmp_path / "VERSION").unlink()
    (tmp_path / "ff").mkdir()
    with pytest.raises(NotFoundError, match="is no bookie's"):
        indexes_of(tmp_path)


@pytest.mark.parametrize("disk", [DB, IDX])
def test_entries_without_any_index_are_not_taken_for_an_empty_bookie(
    tmp_path: Path, disk: tuple[str, ...]
) -> None:
    current = copied(tmp_path, disk)
    for name in ("ledgers", "locations", "0"):
        shutil.rmtree(current / name, ignore_errors=True)
    with pytest.raises(CorruptDataError, match="has no index of the entries in"):
        indexes_of(current)
    for log in current.glob("*.log"):
        log.write_bytes(log.read_bytes()[:1024])
    assert indexes_of(current) == []


def test_t2_the_longer_key_of_a_rebuilt_ledger_wins(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    rebuilt = fmt.LedgerData(True, b"")
    with changed_ledgers(current) as ledgers:
        ledgers._database.put(fmt.rebuilt_ledger_key(1), fmt.pack_ledger_data(rebuilt))
        ledgers._database.put(fmt.STORAGE_FLAGS_KEY, fmt.pack_storage_flags(1))
    [index] = indexes_of(current)
    found = list(index.ledgers())
    assert len(found) == ENTRY_COUNTS[DB][0]
    assert dict(found)[1] == index.ledger(1) == rebuilt


def test_a_ledger_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    with changed_ledgers(current) as ledgers:
        ledgers._database.put(fmt.ledger_key(3), b"\xff\xff")
        ledgers._database.put(b"odd", b"")
    [index] = indexes_of(current)
    found = list(index.ledgers())
    assert [ledger_id for ledger_id, data in found if isinstance(data, CorruptDataError)] == [3, None]
    assert len(found) == ENTRY_COUNTS[DB][0] + 1


def test_holes_at_the_end_of_an_index_file_hide_no_entry(tmp_path: Path) -> None:
    path = tmp_path / index_file_path(0x1234)
    path.parent.mkdir(parents=True)
    header = b"BKLE" + (1).to_bytes(4, "big") + bytes(12)
    with path.open("wb") as file:
        file.write(header)
        for entry_id in (2, 20_000):  # more than one block apart
            file.seek(slot_offset(entry_id))
            file.write((1028 + entry_id).to_bytes(8, "big"))
        file.truncate(slot_offset(90_000) + 5)
    [index] = indexes_of(tmp_path)
    assert all_entries(index) == [(0x1234, 2, 1030), (0x1234, 20_000, 21_028)]
    with index.locations() as locations:
        assert locations.last_entry_id(0x1234) == 20_000


@pytest.mark.parametrize(
    ("at", "words"),
    [
        *[(at, "not an index file") for at in range(4)],
        *[(at, "version") for at in range(4, 8)],
        *[(at, "index file") for at in range(8, 12)],  # length of the master key, 20
        *[(at, "state bits") for at in range(32, 35)],
        *[(at, "index file") for at in range(36, 40)],  # length of the explicit LAC, 0
        (40, "behind its end"),
        (HEADER_BYTES - 1, "behind its end"),
    ],
)
def test_a_flipped_bit_in_the_header_of_an_index_file_is_found(tmp_path: Path, at: int, words: str) -> None:
    current = copied(tmp_path, IDX)
    path = current / index_file_path(0)
    flip(path, at, bit=1)
    [index] = indexes_of(current)
    error = dict(index.ledgers())[0]
    assert isinstance(error, CorruptDataError)
    assert str(path) in str(error)
    assert words in str(error)
    with pytest.raises(CorruptDataError, match=words):
        index.ledger(0)


def test_an_index_file_cut_within_its_header_is_damaged(tmp_path: Path) -> None:
    current = copied(tmp_path, IDX)
    path = current / index_file_path(0)
    for size in (0, 3, 10, 500):
        path.write_bytes(path.read_bytes()[:size])
        [index] = indexes_of(current)
        assert isinstance(dict(index.ledgers())[0], CorruptDataError)
        with index.locations() as locations:
            assert locations.last_entry_id(0) == -1


def test_an_index_file_in_the_wrong_place_is_told(tmp_path: Path) -> None:
    current = copied(tmp_path, IDX)
    (current / index_file_path(3)).rename(current / "0" / "4" / "3.idx")
    [index] = indexes_of(current)
    [(_, error)] = [item for item in index.ledgers() if item[0] is None]
    assert "not where a bookie looks for ledger 3" in str(error)
