"""Caches, flush, reads and ledgers of one directory; the ways of the facade above several."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bkctl.errors import BadInputError, BookieStartError, CorruptDataError, IllegalOperationError
from bkctl.formats.index import entry_key
from bkctl.formats.journal import JournalRecord, RecordKind
from bkctl.server.storage.directory_storage import DirectoryStorage
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings
from bkctl.server.storage.read_cache import ReadCache
from bkctl.server.storage.write_cache import WriteCache
from tests.unit.server.storage.faulty_fs import FaultyFs

KEY = b"k" * 20
KIB = 1024


def entry_of(ledger_id: int, entry_id: int, text: bytes = b"payload") -> bytes:
    return entry_key(ledger_id, entry_id) + bytes(16) + text


def settings(path: Path, directories: int = 1) -> StorageSettings:
    paths = [path / f"d{i}" for i in range(directories)]
    return StorageSettings(paths, paths, 256 * KIB, 64 * KIB, entry_log_bytes_max=64 * KIB)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LedgerStorage]:
    storage = LedgerStorage(settings(tmp_path), FaultyFs())
    storage.open()
    yield storage
    storage.close()


@pytest.fixture
def directory(storage: LedgerStorage) -> DirectoryStorage:
    return storage.directories[0]


@pytest.fixture
def reopened(tmp_path: Path, storage: LedgerStorage) -> Iterator[Callable[[], DirectoryStorage]]:
    """Close without a flush and open again: what a crash leaves, when there is no journal."""
    opened: list[LedgerStorage] = [storage]

    def reopen() -> DirectoryStorage:
        opened[-1].close()
        opened.append(LedgerStorage(settings(tmp_path), FaultyFs()))
        opened[-1].open()
        return opened[-1].directories[0]

    yield reopen
    opened[-1].close()


def add(directory: DirectoryStorage, ledger_id: int, entry_id: int, text: bytes = b"payload") -> None:
    if ledger_id not in directory.ledgers:
        directory.create_ledger(ledger_id, KEY)
    assert directory.active.put(ledger_id, entry_id, entry_of(ledger_id, entry_id, text))


def flush(directory: DirectoryStorage) -> None:
    assert directory.rotate()
    directory.flush()
    directory.release()


def read(directory: DirectoryStorage, ledger_id: int, entry_id: int) -> bytes | Exception | None:
    cached = directory.cached_entry(ledger_id, entry_id)
    return cached if cached is not None else directory.load_entries([(ledger_id, entry_id)])[0]


def last_entry(directory: DirectoryStorage, ledger_id: int) -> int:
    return max(directory.load_last_entry_id(ledger_id), directory.cached_last_entry(ledger_id))


# Flush and read


def test_an_entry_is_readable_at_every_stage_of_its_way(directory: DirectoryStorage) -> None:
    """1. active cache  2. flushing cache  3. flushed but not released  4. disk  5. read cache."""
    add(directory, 1, 0)
    expected = entry_of(1, 0)
    assert directory.cached_entry(1, 0) == expected
    assert directory.rotate()
    assert directory.cached_entry(1, 0) == expected
    directory.flush()
    assert directory.cached_entry(1, 0) == expected
    directory.release()
    assert directory.cached_entry(1, 0) is None
    assert directory.load_entries([(1, 0)]) == [expected]
    assert directory.cached_entry(1, 0) == expected
    assert directory.load_entries([(1, 1), (2, 0)]) == [None, None]


def test_random_entries_survive_flush_and_reopen(
    directory: DirectoryStorage, reopened: Callable[[], DirectoryStorage]
) -> None:
    rng = random.Random(20)
    expected: dict[tuple[int, int], bytes] = {}
    for _ in range(4):
        for _ in range(200):
            ids = rng.randrange(5), rng.randrange(200)
            expected[ids] = rng.randbytes(rng.choice((0, 10, 100, 900)))
            add(directory, *ids, expected[ids])
        flush(directory)
        some = rng.sample(sorted(expected), 100)
        assert directory.load_entries(some) == [entry_of(*ids, expected[ids]) for ids in some]
    directory = reopened()
    for ids, text in expected.items():
        assert read(directory, *ids) == entry_of(*ids, text)
    for ledger_id in range(5):
        entry_ids = sorted(e for i, e in expected if i == ledger_id)
        assert directory.load_entry_ids(ledger_id) == entry_ids
        assert directory.load_last_entry_id(ledger_id) == entry_ids[-1]


def test_entry_ids_are_those_of_caches_and_index(directory: DirectoryStorage) -> None:
    for entry_id in (5, 1):
        add(directory, 1, entry_id)
    flush(directory)
    add(directory, 1, 3)
    directory.rotate()
    add(directory, 1, 9)
    add(directory, 2, 4)
    assert directory.load_entry_ids(1) == [1, 3, 5, 9]
    assert directory.load_entry_ids(2) == [4]
    assert directory.load_entry_ids(3) == []


def test_an_entry_added_again_replaces_the_one_on_disk_and_in_the_read_cache(
    directory: DirectoryStorage,
) -> None:
    """Also for read-ahead: the older copy still lies between its neighbours in the entry log."""
    for entry_id in range(6):
        add(directory, 1, entry_id, b"old")
    flush(directory)
    assert directory.load_entries([(1, 3)]) == [entry_of(1, 3, b"old")]
    add(directory, 1, 3, b"new")
    flush(directory)
    assert read(directory, 1, 3) == entry_of(1, 3, b"new")
    directory._read_cache.discard((), [1])
    assert [read(directory, 1, e) for e in range(6)] == [
        entry_of(1, e, b"new" if e == 3 else b"old") for e in range(6)
    ]


def test_sequential_reads_are_served_by_read_ahead(directory: DirectoryStorage) -> None:
    for entry_id in range(250):
        add(directory, 1, entry_id, bytes(100))
    flush(directory)
    loads = 0
    for entry_id in range(250):
        entry = directory.cached_entry(1, entry_id)
        if entry is None:
            loads += 1
            (loaded,) = directory.load_entries([(1, entry_id)])
            assert loaded == entry_of(1, entry_id, bytes(100))
    assert loads == 4  # entries 0, 1 (and 100 behind it), 102, 203


def test_the_index_says_that_it_is_there_but_the_log_is_unreadable_is_an_error_not_absence(
    directory: DirectoryStorage, tmp_path: Path, reopened: Callable[[], DirectoryStorage]
) -> None:
    """Spec replication B4: "absent" would let recovery cut off the ledger."""
    for entry_id in range(3):
        add(directory, 1, entry_id)
    flush(directory)
    directory = reopened()
    path = tmp_path / "d0" / "current" / "0.log"
    data = bytearray(path.read_bytes())
    data[1028 + 8 : 1028 + 16] = b"\1" * 8  # another entry id
    path.write_bytes(data)
    first, second, third = directory.load_entries([(1, 0), (1, 1), (1, 9)])
    assert isinstance(first, CorruptDataError)
    assert (second, third) == (entry_of(1, 1), None)
    directory = reopened()
    path.unlink()
    results = directory.load_entries([(1, 0), (1, 2), (1, 9)])
    assert [type(result) for result in results] == [FileNotFoundError, FileNotFoundError, type(None)]


def test_a_location_that_is_none_is_an_error_not_absence(directory: DirectoryStorage) -> None:
    directory.create_ledger(1, KEY)
    directory._locations.put([entry_key(1, 0), entry_key(1, 1)], [0, -1])
    assert [type(result) for result in directory.load_entries([(1, 0), (1, 1)])] == [CorruptDataError] * 2


def test_t11_the_last_entry_is_the_highest_of_caches_and_index(directory: DirectoryStorage) -> None:
    for entry_id in (7, 8, 9):
        add(directory, 1, entry_id)
    flush(directory)
    add(directory, 1, 3)  # a recovery add, below
    assert last_entry(directory, 1) == 9
    directory.rotate()
    add(directory, 1, 4)
    assert last_entry(directory, 1) == 9
    assert last_entry(directory, 2) == -1


def test_a_last_entry_loaded_before_a_flush_stays_right_after_it(directory: DirectoryStorage) -> None:
    """The index is asked once; flushes that overtake the answer are counted by the caches."""
    add(directory, 1, 5)
    loaded = directory.load_last_entry_id(1)
    assert loaded == -1
    flush(directory)
    assert max(loaded, directory.cached_last_entry(1)) == 5


# Ledgers


def test_what_is_known_of_a_ledger_survives_without_any_entry(
    directory: DirectoryStorage, reopened: Callable[[], DirectoryStorage]
) -> None:
    """Trap T1: a flush without entries carries the ledgers."""
    descriptor = directory.create_ledger(4, b"")
    flush(directory)
    directory.set_master_key(descriptor, KEY)
    directory.set_fenced(descriptor)
    directory.set_explicit_lac(descriptor, b"packet")
    flush(directory)
    found = reopened().ledgers[4]
    assert (found.master_key, found.fenced, found.explicit_lac, found.limbo) == (KEY, True, b"packet", None)


def test_changes_after_the_rotation_belong_to_the_next_flush(
    directory: DirectoryStorage, reopened: Callable[[], DirectoryStorage]
) -> None:
    descriptor = directory.create_ledger(4, KEY)
    directory.rotate()
    directory.set_fenced(descriptor)
    directory.flush()
    directory.release()
    directory = reopened()
    assert not directory.ledgers[4].fenced
    directory.set_fenced(directory.ledgers[4])
    flush(directory)
    assert reopened().ledgers[4].fenced


@pytest.mark.parametrize(
    ("stored", "offered", "after"),
    [
        (KEY, KEY, KEY),
        (KEY, b"", KEY),
        (KEY, bytes(20), KEY),
        (b"", KEY, KEY),
        (bytes(20), KEY, KEY),
        (b"", b"", b""),
        (KEY, b"x" * 20, None),
    ],
)
def test_the_rules_of_master_keys(
    directory: DirectoryStorage, stored: bytes, offered: bytes, after: bytes | None
) -> None:
    """Spec storage 6.2."""
    descriptor = directory.create_ledger(1, stored)
    if after is None:
        with pytest.raises(IllegalOperationError):
            directory.set_master_key(descriptor, offered)
        assert descriptor.master_key == stored
    else:
        directory.set_master_key(descriptor, offered)
        assert descriptor.master_key == after


def test_a_deleted_ledger_is_gone_from_caches_and_disk(
    directory: DirectoryStorage, reopened: Callable[[], DirectoryStorage]
) -> None:
    for ledger_id in (1, 2):
        add(directory, ledger_id, 0)
    flush(directory)
    for ledger_id in (1, 2):
        add(directory, ledger_id, 1)
    directory.rotate()
    for ledger_id in (1, 2):
        add(directory, ledger_id, 2)
    directory.delete_ledger(1)
    assert [read(directory, 1, e) for e in range(3)] == [None] * 3
    assert (last_entry(directory, 1), directory.load_entry_ids(1)) == (-1, [])
    directory.flush()
    directory.release()
    flush(directory)
    directory = reopened()
    assert set(directory.ledgers) == {2}
    assert directory.load_entry_ids(1) == []
    assert directory.load_entry_ids(2) == [0, 1, 2]


@pytest.mark.parametrize("rotate_at", [1, 2, 3])
def test_t9_a_deleted_ledger_made_anew_keeps_its_new_entries_and_none_of_the_old(
    directory: DirectoryStorage, reopened: Callable[[], DirectoryStorage], rotate_at: int
) -> None:
    """Rotated before the deletion, between deletion and new ledger, or after the new entries."""

    def rotate(step: int) -> None:
        if step == rotate_at:
            directory.rotate()

    def check(directory: DirectoryStorage) -> None:
        assert [read(directory, 1, e) for e in range(4)] == [None, entry_of(1, 1, b"new"), None, None]
        assert directory.load_entry_ids(1) == [1]
        assert last_entry(directory, 1) == 1
        assert directory.ledgers[1].fenced  # its old writer may still be there

    for entry_id in (0, 1, 2):
        add(directory, 1, entry_id, b"old")
    flush(directory)
    assert directory.load_entries([(1, 0), (1, 1)]) == [entry_of(1, 0, b"old"), entry_of(1, 1, b"old")]
    add(directory, 1, 3, b"old")
    directory.set_fenced(directory.ledgers[1])
    rotate(1)
    directory.delete_ledger(1)
    rotate(2)
    add(directory, 1, 1, b"new")
    rotate(3)
    check(directory)
    directory.flush()
    check(directory)
    directory.release()
    check(directory)
    flush(directory)
    check(directory)
    check(reopened())


# Failure and bounds


def test_a_failed_flush_keeps_everything_and_the_next_one_carries_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = OsFs()
    storage = LedgerStorage(settings(tmp_path), fs)
    storage.open()
    directory = storage.directories[0]
    add(directory, 1, 0)
    flush(directory)
    add(directory, 1, 1)
    directory.set_fenced(directory.ledgers[1])
    assert directory.rotate()

    def fail(fd: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(fs, "fsync", fail)
    for _ in range(5):
        with pytest.raises(OSError, match="no space"):
            directory.flush()
    # Tried again and again, it leaves no copies behind; the log with older entries stays.
    assert [path.name for path in (tmp_path / "d0" / "current").glob("*.log")] == ["0.log"]
    assert directory.cached_entry(1, 1) == entry_of(1, 1)
    assert directory.load_entry_ids(1) == [0, 1]
    assert directory.load_last_entry_id(1) == 0
    assert not directory.rotate(), "what failed must not be mixed with what came after"
    with pytest.raises(AssertionError):
        directory.release()
    monkeypatch.undo()
    directory.flush()
    directory.release()
    storage.close()
    storage = LedgerStorage(settings(tmp_path), fs)
    storage.open()
    assert storage.directories[0].load_entries([(1, 0), (1, 1)]) == [entry_of(1, 0), entry_of(1, 1)]
    assert storage.directories[0].ledgers[1].fenced
    # The file whose fsync failed is not trusted again: the entry is in a log of its own.
    assert len(list((tmp_path / "d0" / "current").glob("*.log"))) == 2
    storage.close()


def test_a_flush_that_only_an_index_failed_writes_no_entry_twice(
    directory: DirectoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(directory, 1, 0)
    assert directory.rotate()

    def fail() -> None:
        raise OSError("no space")

    monkeypatch.setattr(directory._ledgers, "sync", fail)
    for _ in range(3):
        with pytest.raises(OSError, match="no space"):
            directory.flush()
    monkeypatch.undo()
    directory.flush()
    directory.release()
    assert directory.load_entries([(1, 0)]) == [entry_of(1, 0)]
    assert (tmp_path / "d0" / "current" / "0.log").stat().st_size == 1024 + 4 + len(entry_of(1, 0))


def test_a_full_cache_takes_no_more_until_it_is_rotated(directory: DirectoryStorage) -> None:
    directory.create_ledger(1, KEY)
    count = 0
    while directory.active.put(1, count, entry_of(1, count, bytes(1000))):
        count += 1
    assert count == 128 * KIB // 1036
    assert not directory.active.has_room(1036)
    assert directory.rotate()
    assert directory.active.put(1, count, entry_of(1, count, bytes(1000)))
    assert not directory.rotate()


def test_the_last_entry_of_a_cache_is_the_highest_not_the_latest() -> None:
    cache = WriteCache(64 * KIB)
    for entry_id in (3, 9, 4):
        assert cache.put(1, entry_id, entry_of(1, entry_id))
    assert cache.last_entry == {1: 9}


def test_small_entries_fill_a_cache_by_their_number() -> None:
    """A key costs more memory than an entry of a few bytes."""
    cache = WriteCache(64 * KIB)
    count = 0
    while cache.put(1, count, entry_of(1, count, b"")):
        count += 1
    assert count == 64 * KIB // 512


def test_the_read_cache_forgets_the_oldest_and_keeps_to_its_bytes() -> None:
    cache = ReadCache(4000)
    keys = [entry_key(1, e) for e in range(100)]
    for key in keys:
        cache.add({key: key + bytes(84)}, cache.epoch)
    kept = [key for key in keys if cache.get(key) is not None]
    assert kept == keys[-len(kept) :]
    assert 20 <= len(kept) <= 40
    cache.add({entry_key(2, 0): bytes(2001)}, cache.epoch)
    assert cache.get(entry_key(2, 0)) is None
    stale = cache.epoch
    cache.discard([keys[-1]], [])
    assert (cache.get(keys[-1]), cache.get(keys[-2])) == (None, keys[-2] + bytes(84))
    cache.add({keys[-1]: b"read before the discard"}, stale)
    assert cache.get(keys[-1]) is None
    cache.discard((), [1])
    assert [key for key in keys if cache.get(key) is not None] == []


def test_records_are_sorted_by_ledger_and_entry_across_all_steps_of_the_sort() -> None:
    cache = WriteCache(64 << 20)
    ids = [(ledger_id, e) for ledger_id in range(7) for e in range(7000)]
    random.Random(3).shuffle(ids)
    for ledger_id, entry_id in ids:
        assert cache.put(ledger_id, entry_id, entry_of(ledger_id, entry_id))
    keys, positions, sizes = cache.sorted_records()
    assert keys == [entry_key(*pair) for pair in sorted(ids)]
    assert [cache.entry_at(position)[:16] for position in positions] == keys
    assert set(sizes) == {4 + len(entry_of(0, 0))}


# The facade


def test_ledgers_spread_over_directories_and_stay_there(tmp_path: Path) -> None:
    for _ in range(2):
        storage = LedgerStorage(settings(tmp_path, directories=3), OsFs())
        storage.open()
        for ledger_id in range(7):
            if storage.ledger(ledger_id) is None:
                add(storage.directory_for(ledger_id), ledger_id, 0)
            assert read(storage.directory_for(ledger_id), ledger_id, 0) == entry_of(ledger_id, 0)
        assert [sorted(d.ledgers) for d in storage.directories] == [[0, 3, 6], [1, 4], [2, 5]]
        storage.flush_all()
        storage.close()


def test_a_directory_is_laid_out_as_upstream_does(tmp_path: Path) -> None:
    storage = LedgerStorage(settings(tmp_path), OsFs())
    storage.open()
    add(storage.directories[0], 1, 0)
    storage.flush_all()
    storage.close()
    current = tmp_path / "d0" / "current"
    assert sorted(path.name for path in current.iterdir()) == ["0.log", "lastId", "ledgers", "locations"]
    assert (current / "lastId").read_bytes() == b"0\n"


def test_a_directory_in_use_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    storage = LedgerStorage(settings(tmp_path, directories=2), OsFs())
    storage.open()
    other = LedgerStorage(settings(tmp_path, directories=2), OsFs())
    with pytest.raises(BookieStartError):
        other.open()
    storage.close()
    other = LedgerStorage(settings(tmp_path, directories=2), OsFs())
    other.open()
    other.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger_directories": []},
        {"index_directories": []},
        {"entry_log_bytes_max": 0},
        {"entry_log_bytes_max": (1 << 30) + 1},
    ],
)
def test_settings_that_make_no_storage_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    given: dict[str, object] = {
        "ledger_directories": [tmp_path],
        "index_directories": [tmp_path],
        "write_cache_bytes": 1,
        "read_cache_bytes": 1,
    }
    with pytest.raises(BadInputError):
        StorageSettings(**(given | changes))  # type: ignore[arg-type]


def record(kind: RecordKind, ledger_id: int, entry_id: int = 0, value: bytes = b"") -> JournalRecord:
    if kind is RecordKind.ENTRY:
        return JournalRecord(kind, ledger_id, entry_id, entry_of(ledger_id, entry_id), 0)
    body = entry_key(ledger_id, kind.value)
    if kind in (RecordKind.LEDGER_KEY, RecordKind.EXPLICIT_LAC):
        body += len(value).to_bytes(4, "big") + value
    return JournalRecord(kind, ledger_id, kind.value, body, 0)


def test_replay_takes_every_kind_of_record_and_skips_deleted_ledgers(
    storage: LedgerStorage, directory: DirectoryStorage
) -> None:
    directory.create_ledger(3, b"")
    storage.replay(
        [
            record(RecordKind.ENTRY, 9),  # nothing tells its key: it was deleted
            record(RecordKind.FENCE, 9),
            record(RecordKind.LEDGER_KEY, 1, value=KEY),
            record(RecordKind.ENTRY, 1, 5),
        ]
    )
    storage.replay(
        [
            record(RecordKind.FENCE, 1),
            record(RecordKind.ENTRY, 1, 6),  # a fence keeps nothing out here
            record(RecordKind.EXPLICIT_LAC, 1, value=b"packet"),
            record(RecordKind.LEDGER_KEY, 3, value=KEY),
        ]
    )
    storage.flush_all()
    assert sorted(directory.ledgers) == [1, 3]
    descriptor = directory.ledgers[1]
    assert (descriptor.master_key, descriptor.fenced, descriptor.explicit_lac) == (KEY, True, b"packet")
    assert directory.ledgers[3].master_key == KEY
    assert directory.load_entry_ids(1) == [5, 6]
    with pytest.raises(IllegalOperationError):
        storage.replay([record(RecordKind.LEDGER_KEY, 1, value=b"x" * 20)])
    with pytest.raises(CorruptDataError):
        storage.replay([record(RecordKind.FENCE, -7)])


def test_replay_flushes_when_the_cache_is_full(storage: LedgerStorage, directory: DirectoryStorage) -> None:
    storage.replay([record(RecordKind.LEDGER_KEY, 1, value=KEY)])
    count = 1000
    storage.replay([record(RecordKind.ENTRY, 1, e) for e in range(count)])
    assert directory.load_last_entry_id(1) >= 511
    storage.flush_all()
    assert directory.load_entry_ids(1) == list(range(count))
    huge = JournalRecord(RecordKind.ENTRY, 1, 0, entry_of(1, 0, bytes(200 * KIB)), 0)
    with pytest.raises(BadInputError, match="dbStorage_writeCacheMaxSizeMb"):
        storage.replay([huge])
