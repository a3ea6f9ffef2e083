"""Usage of entry logs, and what a compaction may and may not do to them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bkctl.formats import entry_log as fmt
from bkctl.formats.entry_log_metadata import EntryLogMetadata
from bkctl.formats.index import entry_key
from bkctl.server.storage.compaction import Compacted
from bkctl.server.storage.directory_storage import DirectoryStorage
from bkctl.server.storage.entry_log import log_ids
from bkctl.server.storage.entry_log_usage import LogUsage, read_metadata
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.gc import (
    CompactionPace,
    CompactionStoppedError,
    DirectoryCollector,
    Threshold,
    compaction_plan,
)
from bkctl.server.storage.index import EntryLogMetadataIndex
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings

KEY = b"k" * 20
KIB = 1024


def entry_of(ledger_id: int, entry_id: int, mark: int = 0) -> bytes:
    return entry_key(ledger_id, entry_id) + bytes(16) + bytes([mark]) * 900


class Disk:
    """One ledger directory with its collector; logs take about seven entries."""

    def __init__(self, path: Path, fs: OsFs | None = None) -> None:
        self.current = path / "current"
        self.fs = fs or OsFs()
        self.storage = LedgerStorage(
            StorageSettings([path], [path], 512 * KIB, 0, entry_log_bytes_max=8 * KIB), self.fs
        )
        self.storage.open()
        self.directory: DirectoryStorage = self.storage.directories[0]
        self.stopped = threading.Event()
        self.thread = ThreadPoolExecutor(1, "storage-test")
        self.collector = DirectoryCollector(
            self.current,
            self.fs,
            self.directory,
            self.thread,
            open_metadata=lambda: EntryLogMetadataIndex.open(self.current / "metadata-cache"),
            pace=CompactionPace(0, by_bytes=False, stopped=self.stopped),
            log_bytes_max=8 * KIB,
        )

    def add(self, ledger_id: int, *entry_ids: int, mark: int = 0) -> None:
        for entry_id in entry_ids:
            if ledger_id not in self.directory.ledgers:
                self.directory.create_ledger(ledger_id, KEY)
            assert self.directory.active.put(ledger_id, entry_id, entry_of(ledger_id, entry_id, mark))

    def flush(self) -> None:
        assert self.directory.rotate()
        self.directory.flush()
        self.directory.release()

    def delete(self, *ledger_ids: int) -> None:
        for ledger_id in ledger_ids:
            self.directory.delete_ledger(ledger_id)
        self.flush()

    def refresh(self) -> None:
        closed = self.directory.closed_log_ids()
        assert closed is not None
        self.collector.refresh(closed, self.directory.stored_ledgers())

    def compact(self, ratio: float = 0.9, log_bytes: int = 0) -> list[Compacted]:
        self.refresh()
        list(self.collector.delete_dead())
        return list(self.collector.compact(Threshold(ratio, log_bytes=log_bytes)))

    def read(self, ledger_id: int, entry_id: int) -> bytes | Exception | None:
        cached = self.directory.cached_entry(ledger_id, entry_id)
        return cached if cached is not None else self.directory.load_entries([(ledger_id, entry_id)])[0]

    def logs(self) -> list[int]:
        return log_ids(self.current, self.fs)

    def usage(self, log_id: int) -> tuple[int, int]:
        assert self.collector.usage is not None
        usage = self.collector.usage.logs[log_id]
        return usage.total_bytes, usage.live_bytes

    def damaged(self) -> list[int]:
        assert self.collector.usage is not None
        return sorted(self.collector.usage.damaged)

    def overwrite(self, log_id: int, position: int, data: bytes) -> None:
        with open(self.current / fmt.file_name(log_id), "r+b") as file:
            file.seek(position)
            file.write(data)

    def close(self) -> None:
        self.collector.close()
        self.thread.shutdown()
        self.storage.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def mixed(disk: Disk) -> Disk:
    """Logs 0 to 3 closed, 4 open; ledger 1 has every second entry of 0 to 3, ledger 2 the others."""
    for entry_id in range(14):
        disk.add(1, entry_id)
        disk.add(2, entry_id)
        disk.flush()
    disk.add(3, *range(6))
    disk.flush()
    assert disk.directory.closed_log_ids() == [0, 1, 2, 3]
    return disk


RECORD = fmt.SIZE_BYTES + len(entry_of(0, 0))


def test_what_a_log_holds_comes_from_its_map_and_live_bytes_follow_the_ledgers(mixed: Disk) -> None:
    mixed.refresh()
    assert mixed.usage(0) == (7 * RECORD, 7 * RECORD)
    mixed.delete(2)
    mixed.refresh()
    assert mixed.usage(0) == (7 * RECORD, 4 * RECORD)
    mixed.delete(1)
    mixed.refresh()
    assert mixed.usage(0) == (7 * RECORD, 0)


def test_only_closed_logs_are_looked_at(mixed: Disk) -> None:
    mixed.delete(1, 2, 3)
    mixed.compact()
    assert mixed.logs() == [4]  # dead too, but it is written to
    mixed.add(5, 0)
    mixed.flush()
    assert mixed.read(5, 0) == entry_of(5, 0)


def test_a_deletion_that_is_not_durable_frees_nothing(mixed: Disk) -> None:
    for ledger_id in (1, 2):
        mixed.directory.delete_ledger(ledger_id)
    mixed.compact()
    assert mixed.logs() == [0, 1, 2, 3, 4]
    assert mixed.directory.rotate()
    mixed.compact()
    assert mixed.logs() == [0, 1, 2, 3, 4]


def test_no_log_counts_as_closed_while_a_flush_that_wrote_it_has_failed(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are in the log and not in the index: a compaction would take them for dead."""
    disk.add(1, *range(12))
    assert disk.directory.rotate()
    with monkeypatch.context() as patch:
        patch.setattr(disk.directory._locations, "put", refuse)
        with pytest.raises(OSError, match="no"):
            disk.directory.flush()
    assert disk.directory.closed_log_ids() is None
    disk.directory.flush()
    assert disk.directory.closed_log_ids() == [0]


def refuse(*_arguments: object) -> None:
    raise OSError("no")


def test_a_restart_scans_nothing_again(mixed: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.refresh()
    mixed.delete(2)
    mixed.refresh()
    mixed.close()
    again = Disk(tmp_path)
    monkeypatch.setattr("bkctl.server.storage.entry_log_usage.read_metadata", refuse)
    closed = [0, 1, 2, 3]
    again.collector.refresh(closed, again.directory.stored_ledgers())
    assert again.usage(0) == (7 * RECORD, 4 * RECORD)
    assert again.damaged() == []
    again.close()


def test_a_record_of_another_file_under_the_same_id_is_not_believed(mixed: Disk) -> None:
    """It tells of a larger log, in which no ledger is alive: believed, the log would be deleted."""
    store = EntryLogMetadataIndex.open(mixed.current / "metadata-cache")
    store.put(EntryLogMetadata(0, 100 * KIB, 0, {}))
    store.put(EntryLogMetadata(77, 1, 0, {}))
    store.close()
    mixed.refresh()
    assert mixed.usage(0) == (7 * RECORD, 7 * RECORD)
    assert mixed.collector.usage is not None
    assert mixed.collector.usage.live_ledgers(77) == {}


def flip_header(disk: Disk) -> None:
    disk.overwrite(0, 0, b"XXXX")


def flip_map_offset(disk: Disk) -> None:
    disk.overwrite(0, 8, (fmt.FIRST_POSITION + 1).to_bytes(8, "big"))


def earlier_map_offset(disk: Disk) -> None:
    disk.overwrite(0, 8, (fmt.FIRST_POSITION + RECORD).to_bytes(8, "big"))


def flip_map_ledger(disk: Disk) -> None:
    """The map names a ledger that is not there in place of one that is: the sum is right."""
    position = fmt.FIRST_POSITION + 7 * RECORD + 24
    disk.overwrite(0, position, (99).to_bytes(8, "big"))


def shrink_map(disk: Disk) -> None:
    """The bytes of the ledger that lives are nearly nothing in the map."""
    mapped = read_metadata(disk.fs, disk.current / "0.log", 0).ledger_bytes
    position = fmt.FIRST_POSITION + 7 * RECORD + 24 + 16 * list(mapped).index(1) + 8
    disk.overwrite(0, position, (20).to_bytes(8, "big"))


def break_map(disk: Disk) -> None:
    disk.overwrite(0, fmt.FIRST_POSITION + 7 * RECORD, b"\xee" * 24)


@pytest.mark.parametrize(
    "damage", [flip_header, flip_map_offset, earlier_map_offset, flip_map_ledger, shrink_map, break_map]
)
def test_a_bad_header_or_map_does_not_cost_a_live_ledger(mixed: Disk, damage: Callable[[Disk], None]) -> None:
    """F21, upstream issue 4607: scanned instead, or left alone; never deleted while a ledger lives in it."""
    damage(mixed)
    mixed.delete(2)
    mixed.compact(ratio=0.1)
    assert 0 in mixed.logs()
    if damage is not earlier_map_offset:  # there the end of the entries is in doubt
        assert mixed.damaged() == []
        assert mixed.usage(0) == (7 * RECORD, 4 * RECORD)
    mixed.compact()
    assert [mixed.read(1, entry_id) for entry_id in range(14)] == [entry_of(1, n) for n in range(14)]


def test_the_scan_of_a_log_without_a_map_tells_the_same(mixed: Disk) -> None:
    path = mixed.current / "0.log"
    by_map = read_metadata(mixed.fs, path, 0)
    mixed.overwrite(0, 8, bytes(12))
    assert read_metadata(mixed.fs, path, 0) == by_map


@pytest.mark.parametrize("size_bytes", [0, 10, fmt.HEADER_BYTES])
def test_a_log_without_entries_is_deleted(disk: Disk, size_bytes: int) -> None:
    (disk.current / "7.log").write_bytes(bytes(size_bytes))
    disk.compact()
    assert disk.logs() == []


def test_live_entries_move_byte_for_byte_and_the_old_logs_go(mixed: Disk) -> None:
    mixed.delete(2)
    before = sum((mixed.current / fmt.file_name(i)).stat().st_size for i in mixed.logs())
    done = mixed.compact()
    assert sum(c.copied_entries for c in done) == 14
    after = sum((mixed.current / fmt.file_name(i)).stat().st_size for i in mixed.logs())
    assert before - after >= 12 * RECORD
    assert [mixed.read(1, n) for n in range(14)] == [entry_of(1, n) for n in range(14)]
    assert mixed.logs() == [4, 5, 6]  # four half-empty logs in two
    assert not list(mixed.current.glob("*compact*"))


def test_a_copy_is_a_sealed_log_that_compacts_like_any_other(mixed: Disk) -> None:
    mixed.delete(2)
    mixed.compact()
    metadata = read_metadata(mixed.fs, mixed.current / "5.log", 5)
    assert metadata.ledger_bytes == {1: 6 * RECORD}
    mixed.delete(1)
    mixed.compact()
    assert mixed.logs() == [4]


def test_entries_added_again_and_deleted_ledgers_win_over_their_copies(mixed: Disk) -> None:
    """T10: both happen between the copy and the change of the index."""
    compactor_move = mixed.directory.move_entries
    once = threading.Event()

    def move(*arguments: object) -> int:
        if not once.is_set():
            once.set()
            mixed.add(1, 0, mark=7)
            mixed.delete(2)
        return compactor_move(*arguments)  # type: ignore[arg-type]

    mixed.directory.move_entries = move  # type: ignore[method-assign]
    mixed.refresh()
    list(mixed.collector.compact(Threshold(1.01)))
    assert once.is_set()
    assert mixed.read(1, 0) == entry_of(1, 0, mark=7)
    assert mixed.directory.locations([entry_key(2, n) for n in range(14)]) == [None] * 14
    mixed.compact()
    assert [mixed.read(1, n) for n in range(14)] == [entry_of(1, n, 0 if n else 7) for n in range(14)]


def test_a_damaged_log_is_left_alone_and_keeps_no_other_from_being_compacted(mixed: Disk) -> None:
    mixed.overwrite(1, fmt.FIRST_POSITION + 2 * RECORD, bytes(RECORD))  # one entry is zeros now
    mixed.delete(2)
    mixed.compact()
    assert mixed.damaged() == [1]
    assert {0, 2, 3} & set(mixed.logs()) == set()
    assert 1 in mixed.logs()
    results = [mixed.read(1, n) for n in range(14)]
    assert sum(isinstance(result, Exception) for result in results) <= 1
    assert None not in results
    mixed.delete(1)
    mixed.compact()
    assert mixed.logs() == [4], "all its ledgers are gone: nothing is lost with it"


def test_what_cannot_be_scanned_is_left_alone(mixed: Disk) -> None:
    mixed.overwrite(0, 8, bytes(12))
    mixed.overwrite(0, fmt.FIRST_POSITION + RECORD, b"\xee" * 20)
    mixed.delete(1, 2)
    mixed.compact()
    assert mixed.damaged() == [0]
    assert mixed.logs() == [0, 4]


def test_a_compaction_that_was_cut_off_is_finished_by_the_index(mixed: Disk) -> None:
    """As a crash of this or of Apache's bookie leaves it: the finished copy under its marker alone."""
    mixed.delete(2)
    original = mixed.directory.move_entries

    def stop(*_arguments: object) -> int:
        raise CompactionStoppedError

    mixed.directory.move_entries = stop  # type: ignore[method-assign]
    mixed.refresh()
    with pytest.raises(CompactionStoppedError):
        list(mixed.collector.compact(Threshold(0.9)))
    markers = sorted(path.name for path in mixed.current.glob("*.compacted"))
    assert len(markers) == 2
    assert markers[0].startswith("5.log.")
    (mixed.current / "5.log").unlink()
    (mixed.current / "9.log.compacting").write_bytes(b"rest of another")
    mixed.directory.move_entries = original  # type: ignore[method-assign]
    mixed.refresh()
    assert not list(mixed.current.glob("*compact*"))
    assert 5 in mixed.logs()
    mixed.compact()
    assert [mixed.read(1, n) for n in range(14)] == [entry_of(1, n) for n in range(14)]
    assert {0, 1, 2, 3} & set(mixed.logs()) == set()


def test_a_reader_that_asked_the_index_before_the_log_went_finds_the_entry(mixed: Disk) -> None:
    mixed.delete(2)
    near_entries = mixed.directory._reader.near_entries
    first = threading.Event()

    def late(wanted: object) -> object:
        if not first.is_set():
            first.set()
            mixed.compact()
            mixed.directory._reader.close()
        return near_entries(wanted)  # type: ignore[arg-type]

    mixed.directory._reader.near_entries = late  # type: ignore[method-assign, assignment]
    assert mixed.directory.load_entries([(1, 0)]) == [entry_of(1, 0)]


def test_small_logs_are_put_together_when_asked_and_not_again_and_again(disk: Disk, tmp_path: Path) -> None:
    for life in range(4):  # each start leaves a small log
        disk.add(1, life)
        disk.add(2, life)
        disk.flush()
        disk.close()
        disk = Disk(tmp_path)
    disk.delete(2)
    assert sum(len(c.deleted_ids) for c in disk.compact(0.9, log_bytes=8 * KIB)) == 4
    assert len(disk.logs()) == 1
    assert disk.compact(0.9, log_bytes=8 * KIB) == []
    assert [disk.read(1, n) for n in range(4)] == [entry_of(1, n) for n in range(4)]
    disk.close()


def test_the_emptiest_logs_come_first_and_fit_one_log_together(mixed: Disk) -> None:
    mixed.delete(2)
    mixed.refresh()
    assert mixed.collector.usage is not None
    logs = mixed.collector.usage.logs
    plan = compaction_plan(logs, Threshold(0.9), 8 * KIB)
    assert sorted(i for group in plan for i in group) == [0, 1, 2, 3]
    shares = [mixed.usage(i)[1] / mixed.usage(i)[0] for group in plan for i in group]
    assert shares == sorted(shares)
    assert compaction_plan(logs, Threshold(0.3), 8 * KIB) == []


def test_one_small_log_is_not_written_again_alone() -> None:
    small = Threshold(0.9, log_bytes=1000)
    assert compaction_plan({1: LogUsage(100, 95)}, small, 1000) == []
    assert compaction_plan({1: LogUsage(100, 85)}, small, 1000) == [[1]]
    assert compaction_plan({1: LogUsage(100, 95), 2: LogUsage(100, 95)}, small, 1000) == [[1, 2]]
    assert compaction_plan({1: LogUsage(100, 95), 2: LogUsage(100, 95)}, Threshold(0.9), 1000) == []


def test_a_disk_without_room_for_the_copy_is_not_filled(mixed: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.delete(2)
    monkeypatch.setattr(mixed.fs, "usable_bytes", lambda _path: 1 << 20)
    assert mixed.compact() == []
    assert mixed.logs() == [0, 1, 2, 3, 4]


def test_a_stopped_compaction_leaves_everything_as_it_was(mixed: Disk) -> None:
    mixed.delete(2)
    mixed.refresh()
    mixed.stopped.set()
    with pytest.raises(CompactionStoppedError):
        list(mixed.collector.compact(Threshold(0.9)))
    mixed.stopped.clear()
    mixed.refresh()
    assert mixed.logs() == [0, 1, 2, 3, 4]
    assert not list(mixed.current.glob("*compact*"))


def test_the_pace_holds_entries_and_bytes_to_their_rates() -> None:
    waited: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            return False

    CompactionPace(100, by_bytes=False, stopped=Clock()).spend(50, 10**9)
    CompactionPace(1000, by_bytes=True, stopped=Clock()).spend(10**6, 250)
    assert waited == pytest.approx([0.5, 0.25], abs=0.05)


def test_tombstones_are_bounded_and_survive_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bkctl.server.storage.directory_storage._TOMBSTONES_MAX", 20)
    disk = Disk(tmp_path)
    for ledger_id in range(30):
        disk.directory.set_fenced(disk.directory.create_ledger(ledger_id, KEY))
    disk.directory.create_ledger(100, KEY)  # not fenced: leaves nothing
    disk.flush()
    disk.delete(*range(30), 100)
    assert disk.directory.tombstones == set(range(12, 30))
    disk.close()
    disk = Disk(tmp_path)
    assert disk.directory.tombstones == set(range(12, 30))
    assert disk.directory.ledgers == {}
    disk.close()
