"""The journal's promises: what completed is durable, in order; what was torn vanishes; replay."""

import errno
import itertools
import logging
import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bkctl.errors import BookieStartError, CorruptDataError
from bkctl.formats import journal as journal_format
from bkctl.formats.journal import JournalRecord, RecordKind, Stop
from bkctl.formats.small_files import ZERO_MARK, LogMark
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.journal import (
    Journal,
    JournalSettings,
    journal_ids,
    read_last_marks,
    replay,
    scan_file,
    write_last_mark,
)

NOW_MS = 0x1A2054C4BD7
WAIT_S = 10


def record(entry_id: int, payload: bytes = b"payload", ledger_id: int = 7) -> bytes:
    body = struct.pack(">qqqq", ledger_id, entry_id, entry_id - 1, 100) + payload
    return len(body).to_bytes(4) + body


class Disk(OsFs):
    """Records the order of writes, syncs and completions; stops, fails or forgets on demand."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.open_gate = threading.Event()  # writes of groups wait for it
        self.open_gate.set()
        self.at_gate = threading.Semaphore(0)
        self.data_synced = threading.Event()
        self.fail: dict[str, int] = {}  # call -> how often it still fails
        self.synced: dict[str, bytes] = {}  # file name -> its bytes at the last sync
        self._names: dict[int, Path] = {}

    def open(self, path: Path, flags: int) -> int:
        fd = super().open(path, flags)
        self._names[fd] = path
        return fd

    def _call(self, name: str) -> None:
        if self.fail.get(name, 0) > 0:
            self.fail[name] -= 1
            raise OSError(errno.EIO, f"{name} fails")
        self.events.append(name)

    def write_all(self, fd: int, buffers: Any, offset: int) -> None:
        self.at_gate.release()
        assert self.open_gate.wait(WAIT_S)
        self._call("write")
        super().write_all(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._call("fdatasync")
        super().fdatasync(fd)
        self._remember(fd)
        self.data_synced.set()

    def fsync(self, fd: int) -> None:
        self._call("fsync")
        super().fsync(fd)
        self._remember(fd)

    def fsync_dir(self, path: Path) -> None:
        self._call("fsync_dir")

    def _remember(self, fd: int) -> None:
        self.synced[self._names[fd].name] = self._names[fd].read_bytes()


class Running:
    """A journal on a Disk; collects what completes. Stops at the end of a `with`."""

    def __init__(self, directory: Path, disk: Disk | None = None, **settings: Any) -> None:
        self.disk = disk or Disk()
        self.groups: list[list[Any]] = []
        self.failures: list[BaseException] = []
        self._changed = threading.Condition()
        self.on_completed: Callable[[list[Any]], None] = lambda _tokens: None
        self.journal = Journal(
            JournalSettings(directory, **settings), self.disk, completed=self._completed, failed=self._failed
        )

    def _completed(self, tokens: list[Any]) -> None:
        self.on_completed(tokens)
        with self._changed:
            self.disk.events.append(tokens)
            self.groups.append(tokens)
            self._changed.notify_all()

    def _failed(self, error: BaseException) -> None:
        with self._changed:
            self.failures.append(error)
            self._changed.notify_all()

    def wait_for(self, token: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: token in self.tokens or self.failures, WAIT_S), token

    def wait_for_failure(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.failures, WAIT_S)

    @property
    def tokens(self) -> list[Any]:
        return [token for group in self.groups for token in group]

    def add(self, entry_id: int, payload: bytes = b"payload", **kwargs: Any) -> None:
        """Append one entry, alone in its group: wait until it completed."""
        self.journal.append([record(entry_id, payload)], entry_id, **kwargs)
        self.wait_for(entry_id)

    def hold(self) -> None:
        """Append entry 0 and keep the thread before its write: what follows forms the next group."""
        self.disk.open_gate.clear()
        self.journal.append([record(0)], 0)
        assert self.disk.at_gate.acquire(timeout=WAIT_S)

    def release(self) -> None:
        self.disk.open_gate.set()

    def __enter__(self) -> "Running":
        self.journal.start(NOW_MS)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.journal.stop()


def replayed(directory: Path, mark: LogMark = ZERO_MARK, **kwargs: Any) -> list[JournalRecord]:
    return [r for batch in replay(directory, OsFs(), mark, **kwargs) for r in batch]


def entry_ids(records: list[JournalRecord]) -> list[int]:
    return [r.entry_id for r in records]


def only_file(directory: Path) -> Path:
    (path,) = directory.glob("*.txn")
    return path


# -- groups -------------------------------------------------------------------------------------


def test_appends_during_a_sync_form_one_group_in_order(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.hold()
        for i in range(1, 50):
            running.journal.append([record(i)], i)
        running.release()
        running.wait_for(49)
        assert running.groups == [[0], list(range(1, 50))]
    assert entry_ids(replayed(tmp_path)) == list(range(50))


def test_a_token_completes_after_the_sync_of_its_bytes(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.disk.events.clear()
        running.add(0)
        running.add(1)
    assert running.disk.events[:6] == ["write", "fdatasync", [0], "write", "fdatasync", [1]]


def test_what_completed_survives_a_crash_that_drops_every_unsynced_byte(tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    directory = tmp_path / "journal"
    directory.mkdir()

    def crash(tokens: list[Any]) -> None:
        for name, data in running.disk.synced.items():
            (crashed / name).write_bytes(data)
        assert set(tokens) <= set(entry_ids(replayed(crashed)))

    with Running(directory, size_bytes_max=4096) as running:
        running.on_completed = crash
        for i in range(40):
            running.add(i, bytes(100 + 37 * i))
    assert running.failures == []
    assert len(journal_ids(OsFs(), crashed)) > 3


def test_a_group_is_bounded(tmp_path: Path) -> None:
    with Running(tmp_path, group_bytes_max=3000) as running:
        running.hold()
        for i in range(1, 10):
            running.journal.append([record(i, bytes(1000))], i)
        running.release()
        running.wait_for(9)
        assert running.groups == [[0], [1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_parts_of_many_records_and_views_are_written_as_they_are(tmp_path: Path) -> None:
    arena = bytearray(b"".join(record(i) for i in range(2000)))
    size_bytes = len(record(0))
    views = [memoryview(arena)[at : at + size_bytes] for at in range(0, len(arena), size_bytes)]
    with Running(tmp_path) as running:
        running.journal.append([*views[:1500], memoryview(arena)[1500 * size_bytes :]], "all")
        running.wait_for("all")
    assert entry_ids(replayed(tmp_path)) == list(range(2000))


def test_bytes_without_a_token_are_written_too(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.journal.append([journal_format.ledger_key_record(7, b"k" * 20)], None)
        running.journal.append([journal_format.fence_record(7)], "fence")
        running.wait_for("fence")
        assert running.tokens == ["fence"]
    key, fence = replayed(tmp_path)
    assert (key.kind, key.value, fence.kind) == (RecordKind.LEDGER_KEY, b"k" * 20, RecordKind.FENCE)


def test_a_deferred_token_completes_after_the_write_and_before_the_sync(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.hold()
        running.disk.events.clear()
        running.journal.append([record(1)], 1, deferred=True)
        running.journal.append([record(2)], 2)
        running.journal.append([record(3)], 3, deferred=True)
        running.release()
        running.wait_for(2)
    assert running.disk.events[3:] == ["write", [1, 3], "fdatasync", [2]]


def test_the_force_marker_completes_after_a_sync_of_everything_before(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.hold()
        running.disk.events.clear()
        running.journal.append([record(1)], 1, deferred=True)
        running.journal.append((), "force")
        running.release()
        running.wait_for("force")
        assert running.disk.events == ["write", "fdatasync", [0], "write", [1], "fdatasync", ["force"]]
        position = running.journal.mark()
        running.journal.append((), "force again")
        running.wait_for("force again")
        assert running.journal.mark() == position  # nothing was written, nothing was left to sync
        assert running.disk.events[7:] == [["force again"]]


def test_counters_follow_an_append_through_the_journal(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        journal = running.journal
        running.hold()
        assert (journal.appended, journal.written, journal.queued_bytes) == (1, 0, len(record(0)))
        journal.append([record(1), record(2)], 2)
        assert (journal.appended, journal.written, journal.queued_bytes) == (2, 0, 3 * len(record(0)))
        seen: list[int] = []
        running.on_completed = lambda _tokens: seen.append(journal.queued_bytes)
        running.release()
        running.wait_for(2)
        assert (journal.appended, journal.written, journal.queued_bytes) == (2, 2, 0)
        assert seen == [2 * len(record(0)), 0]  # a group is off the queue when its tokens complete


def test_stop_syncs_what_is_queued(tmp_path: Path) -> None:
    running = Running(tmp_path)
    running.journal.start(NOW_MS)
    for i in range(100):
        running.journal.append([record(i)], i)
    running.journal.stop()
    assert running.tokens == list(range(100))
    running.journal.stop()  # a second stop does nothing


# -- without sync -------------------------------------------------------------------------------


def test_without_sync_a_token_completes_when_written(tmp_path: Path) -> None:
    with Running(tmp_path, sync_data=False, sync_interval_ms=3_600_000) as running:
        running.journal._synced_s = float("inf")  # no sync is due
        running.disk.events.clear()
        start = running.journal.mark()
        running.add(0)
        running.add(1)
        assert running.disk.events == ["write", [0], [], "write", [1], []]
        assert running.journal.mark() == start  # nothing before the mark may be unsynced
        running.journal.append((), "force")
        running.wait_for("force")
        assert running.disk.events[6:] == ["fdatasync", ["force"]]
        assert running.journal.mark() > start


def test_without_sync_the_last_bytes_are_synced_after_the_interval(tmp_path: Path) -> None:
    with Running(tmp_path, sync_data=False, sync_interval_ms=20) as running:
        running.add(0)
        assert running.disk.data_synced.wait(WAIT_S)
    assert running.journal.mark().offset == 1024


def test_without_sync_stop_syncs_all_the_same(tmp_path: Path) -> None:
    with Running(tmp_path, sync_data=False, sync_interval_ms=3_600_000) as running:
        running.journal._synced_s = float("inf")  # no sync is due
        running.add(0)
        assert not running.disk.data_synced.is_set()
    assert running.disk.data_synced.is_set()
    assert running.journal.mark().offset == 1024


# -- files --------------------------------------------------------------------------------------


def test_the_first_file_is_named_by_the_clock_and_the_next_follow_on(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        with Running(tmp_path) as running:
            assert running.journal.mark() == LogMark(NOW_MS + count, 512)
        assert journal_ids(OsFs(), tmp_path) == [NOW_MS + i for i in range(1, count + 1)]


def test_an_existing_file_is_never_appended_to(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.add(0)
    before = only_file(tmp_path).read_bytes()
    with Running(tmp_path) as running:
        running.add(1)
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == before
    assert int(second.stem, 16) == int(first.stem, 16) + 1
    assert entry_ids(replayed(tmp_path)) == [0, 1]


def test_a_file_that_appears_under_the_next_name_is_not_written_over(tmp_path: Path) -> None:
    with Running(tmp_path, size_bytes_max=600) as running:
        foreign = journal_file(tmp_path, NOW_MS + 2, record(5))
        before = foreign.read_bytes()
        running.add(0)
        running.wait_for_failure()
    assert [type(error) for error in running.failures] == [FileExistsError]
    assert foreign.read_bytes() == before


def test_a_new_file_and_its_name_are_durable_before_its_first_record(tmp_path: Path) -> None:
    with Running(tmp_path, size_bytes_max=1024) as running:
        running.add(0)
        running.add(1)
        running.add(2)
    opened = ["fsync", "fsync_dir"]
    groups = [["write", "fdatasync", [i]] for i in range(3)]
    expected = [*opened, *groups[0], *groups[1], *opened, *groups[2]]
    assert running.disk.events[: len(expected)] == expected


def test_a_full_file_is_followed_by_the_next(tmp_path: Path) -> None:
    with Running(tmp_path, size_bytes_max=8192) as running:
        for i in range(60):
            running.add(i, bytes([i]) * 500)
            assert running.journal.mark().offset <= 8192 + 1024
    ids = journal_ids(OsFs(), tmp_path)
    assert ids == list(range(NOW_MS + 1, NOW_MS + 1 + len(ids)))
    assert len(ids) == 8
    assert entry_ids(replayed(tmp_path)) == list(range(60))


@pytest.mark.parametrize("alignment_bytes", [512, 4096])
def test_every_group_begins_at_the_alignment(tmp_path: Path, alignment_bytes: int) -> None:
    sizes = [*range(430, 480), 1000, 5000]
    with Running(tmp_path, alignment_bytes=alignment_bytes) as running:
        for i, size_bytes in enumerate(sizes):
            running.add(i, bytes([1]) * size_bytes)
            assert running.journal.mark().offset % alignment_bytes == 0
    positions = [r.position for r in replayed(tmp_path)]
    assert len(positions) == len(sizes)
    assert all(p % alignment_bytes == 0 for p in positions[1:])


def test_format_4_has_a_short_header_and_no_padding(tmp_path: Path) -> None:
    with Running(tmp_path, write_format=4) as running:
        for i in range(3):
            running.add(i)
        assert running.journal.mark().offset == 8 + 3 * len(record(0))
    data = only_file(tmp_path).read_bytes()
    assert data.startswith(b"BKLG\0\0\0\4" + record(0) + record(1) + record(2) + bytes(4))


@pytest.mark.parametrize("size_bytes", [100, 300_000])
def test_a_file_ends_in_zeros_behind_its_data(tmp_path: Path, size_bytes: int) -> None:
    """Both ways a file grows: zeros for small groups, allocation for large ones."""
    with Running(tmp_path) as running:
        for i in range(8):
            running.add(i, b"x" * size_bytes)
        end = running.journal.mark().offset
    data = only_file(tmp_path).read_bytes()
    assert len(data) > end
    assert not any(data[end:])
    *_, last = scan_file(OsFs(), only_file(tmp_path))
    assert last.end is not None
    assert (last.end.stop, last.end.position) == (Stop.ZERO_LENGTH, end)


@pytest.mark.parametrize("backups_max", [0, 1, 5])
def test_deletion_keeps_backups_and_everything_from_the_mark_on(tmp_path: Path, backups_max: int) -> None:
    for journal_id in range(1, 10):
        (tmp_path / journal_format.file_name(journal_id)).touch()
    (tmp_path / "VERSION").touch()
    journal = Running(tmp_path, backups_max=backups_max).journal
    assert journal.delete_before(LogMark(1, 10_000)) == []
    deleted = list(range(1, 8 - backups_max))
    assert journal.delete_before(LogMark(8, 0)) == deleted
    assert journal_ids(OsFs(), tmp_path) == [i for i in range(1, 10) if i not in deleted]
    assert (tmp_path / "VERSION").exists()


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_failure_ends_the_journal_even_when_the_disk_recovers(tmp_path: Path, call: str) -> None:
    with Running(tmp_path) as running:
        running.add(0)
        mark = running.journal.mark()
        running.disk.fail[call] = 1
        running.journal.append([record(1)], 1)
        running.journal.append([record(2)], 2)
        running.wait_for_failure()
        running.journal.append([record(3)], 3)
    assert running.tokens == [0]
    assert [type(error) for error in running.failures] == [OSError]
    assert running.journal.mark() == mark
    assert running.disk.events.count("fdatasync") == 1


def test_a_failing_roll_ends_the_journal_after_the_group_it_follows(tmp_path: Path) -> None:
    with Running(tmp_path, size_bytes_max=600) as running:
        running.disk.fail["fsync_dir"] = 1
        running.add(0)
        running.wait_for_failure()
        running.journal.append([record(1)], 1)
    assert running.tokens == [0]
    assert len(running.failures) == 1


def test_a_journal_that_cannot_open_its_file_does_not_start(tmp_path: Path) -> None:
    running = Running(tmp_path)
    running.disk.fail["fsync"] = 1
    with pytest.raises(OSError, match="fsync fails"):
        running.journal.start(NOW_MS)


# -- crashes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crash_case(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int, int]:
    """A journal file of groups of one entry, 0 to 5, and a last group of entries 6 to 9 over four
    sectors; where the last group begins, and where it ends."""
    directory = tmp_path_factory.mktemp("crash")
    with Running(directory) as running:
        for i in range(6):
            running.add(i, bytes([65 + i]) * 200)
        begin = running.journal.mark().offset
        running.journal.append([record(i, bytes([65 + i]) * 420) for i in range(6, 10)], "last")
        running.wait_for("last")
        end = running.journal.mark().offset
    assert (begin, end) == (512 + 6 * 512, 512 + 6 * 512 + 4 * 512)
    return only_file(directory).read_bytes(), begin, end


def replay_of(directory: Path, data: bytes, **kwargs: Any) -> list[JournalRecord]:
    directory.mkdir(exist_ok=True)
    (directory / "1.txn").unlink(missing_ok=True)
    (directory / "1.txn").write_bytes(data)
    return replayed(directory, **kwargs)


def test_a_file_cut_at_any_byte_of_the_last_group_keeps_whole_records_alone(
    tmp_path: Path, crash_case: tuple[bytes, int, int]
) -> None:
    data, begin, end = crash_case
    whole = replay_of(tmp_path / "j", data)
    assert entry_ids(whole) == list(range(10))
    for cut in range(end, begin - 1, -1):
        os.truncate(only_file(tmp_path / "j"), cut)
        expected = [r for r in whole if r.position + 4 + len(r.body) <= cut]
        assert replayed(tmp_path / "j") == expected
        assert len(expected) >= 6


def test_any_sectors_of_the_last_group_may_be_lost(
    tmp_path: Path, crash_case: tuple[bytes, int, int]
) -> None:
    """Sectors reach the disk in any order: acknowledged entries stay, and it is no damage."""
    data, begin, end = crash_case
    whole = replay_of(tmp_path / "j", data)
    sectors = range(begin, end, 512)
    for count in range(1, len(sectors) + 1):
        for lost in itertools.combinations(sectors, count):
            torn = bytearray(data)
            for at in lost:
                torn[at : at + 512] = bytes(512)
            found = replay_of(tmp_path / "j", bytes(torn))
            assert found[:6] == whole[:6]
            assert len(found) < 10 or lost[0] > whole[6].position


def test_damage_before_the_last_groups_is_told_from_a_torn_tail(
    tmp_path: Path, crash_case: tuple[bytes, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """A zeroed sector, or a length that leads nowhere, in mid-file must not shorten the replay silently."""
    data, _, _ = crash_case
    for group in range(4):
        at = 512 + 512 * group
        for damage in (
            bytes(512),
            (10_000_000).to_bytes(4),
            b"\x80\0\0\0",
            (8).to_bytes(4),
            (300).to_bytes(4),
        ):
            damaged = data[:at] + damage + data[at + len(damage) :]
            with pytest.raises(CorruptDataError, match="is damaged at byte"):
                replay_of(tmp_path / "j", damaged)
            with caplog.at_level(logging.WARNING):
                kept = replay_of(tmp_path / "j", damaged, skip_invalid=True)
            assert entry_ids(kept)[:group] == list(range(group))
            assert "is skipped" in caplog.text
            caplog.clear()


@pytest.mark.parametrize("length_first", [True, False], ids=["an entry", "a key, then an entry"])
def test_a_record_that_a_kill_tore_is_not_replayed(tmp_path: Path, length_first: bool) -> None:
    """Its file is zeros behind what was written: they must not be taken for the rest of the record."""
    complete = record(0, b"A" * 200)
    padding = journal_format.padding_record(512 + len(complete), 512)
    key = journal_format.ledger_key_record(0x12C, b"k" * 20)
    torn = record(7, b"B" * 400, ledger_id=0x12C) if length_first else key + record(7, ledger_id=0x12C)
    before = journal_format.header(6) + complete + padding
    for written in range(len(torn)):
        found = replay_of(tmp_path / "j", before + torn[:written] + bytes(4096))
        assert found[0].body == complete[4:]
        whole = not length_first and written >= len(key)
        assert [r.body for r in found[1:]] == ([key[4:]] if whole else []), written


def test_an_unfinished_record_is_told_at_any_end_of_what_is_read_at_once(tmp_path: Path) -> None:
    torn = record(1, b"A" * 100 + bytes(7))
    for more_bytes in range(6):
        first = record(0, b"A" * (4 * 2**20 - 2 * 24 - len(torn) - more_bytes))
        data = journal_format.header(6) + first + torn + bytes(4096)
        assert entry_ids(replay_of(tmp_path / "j", data)) == [0]


def test_the_last_record_of_a_finished_flush_may_end_in_zeros(tmp_path: Path) -> None:
    for size_bytes in range(440, 500):  # at the end of a sector there is nothing to pad
        last = record(0, b"A" * size_bytes + bytes(5))
        padding = journal_format.padding_record(512 + len(last), 512)
        data = journal_format.header(6) + last + padding + bytes(4096)
        assert entry_ids(replay_of(tmp_path / "j", data)) == [0]


def test_a_length_that_reached_the_disk_without_its_body_is_no_entry(tmp_path: Path) -> None:
    """Else zeros would replace entry 0 of ledger 0."""
    data = journal_format.header(6) + record(0, ledger_id=0) + (1060).to_bytes(4) + bytes(4096)
    (found,) = replay_of(tmp_path / "j", data)
    assert found.body == record(0, ledger_id=0)[4:]


@pytest.mark.parametrize("size_bytes", [0, 3, 4, 7, 8, 100, 511, 512])
def test_a_file_cut_in_its_header_is_empty(tmp_path: Path, size_bytes: int) -> None:
    assert replay_of(tmp_path / "j", journal_format.header(6)[:size_bytes]) == []
    assert replay_of(tmp_path / "j", bytes(size_bytes)) == []


# -- replay -------------------------------------------------------------------------------------


def journal_file(directory: Path, journal_id: int, *records: bytes, version: int = 6) -> Path:
    path = directory / journal_format.file_name(journal_id)
    path.write_bytes(journal_format.header(version) + b"".join(records) + bytes(2048))
    return path


def test_replay_begins_at_the_mark_and_goes_through_all_later_files(tmp_path: Path) -> None:
    for journal_id in (9, 10, 11, 16):  # in hexadecimal the order of names is another
        journal_file(tmp_path, journal_id, record(10 * journal_id), record(10 * journal_id + 1))
    mark = LogMark(10, 512 + len(record(0)))
    assert entry_ids(replayed(tmp_path, mark)) == [101, 110, 111, 160, 161]
    assert entry_ids(replayed(tmp_path)) == [90, 91, 100, 101, 110, 111, 160, 161]


def test_a_mark_before_the_data_means_the_first_record(tmp_path: Path) -> None:
    journal_file(tmp_path, 1, record(0))
    for offset in (0, 8, 512):
        assert entry_ids(replayed(tmp_path, LogMark(1, offset))) == [0]


def test_the_missing_file_of_the_mark_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(BookieStartError, match=r"a\.txn is missing"):
        replayed(tmp_path, LogMark(10, 512))
    journal_file(tmp_path, 9, record(0))
    journal_file(tmp_path, 11, record(0))
    with pytest.raises(BookieStartError, match=r"a\.txn is missing"):
        replayed(tmp_path, LogMark(10, 512), skip_invalid=True)


def test_a_mark_beyond_the_end_of_its_file_stops_the_start(tmp_path: Path) -> None:
    size_bytes = journal_file(tmp_path, 1, record(0)).stat().st_size
    assert replayed(tmp_path, LogMark(1, size_bytes)) == []
    with pytest.raises(CorruptDataError, match=f"has {size_bytes} bytes, but lastMark names"):
        replayed(tmp_path, LogMark(1, size_bytes + 1))


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_every_version_is_read(tmp_path: Path, version: int) -> None:
    header = {1: b"", 5: journal_format.header(5), 6: journal_format.header(6)}
    default = b"BKLG" + version.to_bytes(4)
    padded = journal_format.padding_record(512 + len(record(0)), 512) if version >= 5 else b""
    data = header.get(version, default) + record(0) + padded + record(1) + bytes(100)
    assert entry_ids(replay_of(tmp_path / "j", data)) == [0, 1]


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    data = b"BKLG" + (7).to_bytes(4) + bytes(504) + record(0)
    with pytest.raises(CorruptDataError, match="version 7 is not known"):
        replay_of(tmp_path / "j", data)
    assert replay_of(tmp_path / "j", data, skip_invalid=True) == []


def test_records_of_unknown_kinds_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = struct.pack(">iqq", 16, 7, -0x10000)
    data = journal_format.header(6) + record(0) + unknown + record(1) + bytes(64)
    assert entry_ids(replay_of(tmp_path / "j", data)) == [0, 1]
    assert "1 records of unknown kinds skipped" in caplog.text


@pytest.mark.parametrize(
    ("version", "bad"),
    [
        pytest.param(2, journal_format.ledger_key_record(7, b"k" * 20), id="ledger key in version 2"),
        pytest.param(3, journal_format.fence_record(7), id="fence in version 3"),
        pytest.param(5, journal_format.explicit_lac_record(7, bytes(20)), id="explicit LAC in version 5"),
        pytest.param(4, struct.pack(">ii", -256, 0) + bytes(64), id="padding in version 4"),
        pytest.param(6, struct.pack(">iqqi", 24, 7, -0x1000, 5) + b"abcd", id="key too short"),
        pytest.param(6, struct.pack(">iqqi", 24, 7, -0x8000, -1) + b"abcd", id="negative LAC length"),
        pytest.param(6, struct.pack(">iqq", 16, 7, -0x1000), id="no key length"),
        pytest.param(6, struct.pack(">ii", -256, -1) + bytes(64), id="negative padding"),
        pytest.param(6, struct.pack(">ii", -255, 0) + bytes(64), id="negative length"),
        pytest.param(6, struct.pack(">i", 15) + bytes(64), id="no room for ids"),
        pytest.param(6, struct.pack(">i", journal_format.RECORD_BYTES_MAX + 1) + bytes(64), id="too long"),
    ],
)
def test_bytes_that_no_writer_leaves_are_damage(tmp_path: Path, version: int, bad: bytes) -> None:
    header = journal_format.header(version) if version >= 4 else b"BKLG" + version.to_bytes(4)
    data = header + record(0) + bad + record(1)
    with pytest.raises(CorruptDataError, match=f"damaged at byte {len(header) + len(record(0))}: "):
        replay_of(tmp_path / "j", data)
    assert entry_ids(replay_of(tmp_path / "j", data, skip_invalid=True)) == [0]


def test_replay_goes_on_behind_a_skipped_file(tmp_path: Path) -> None:
    journal_file(tmp_path, 1, record(0), (3).to_bytes(4) + bytes(60))
    journal_file(tmp_path, 2, record(1))
    with pytest.raises(CorruptDataError):
        replayed(tmp_path)
    assert entry_ids(replayed(tmp_path, skip_invalid=True)) == [0, 1]


def test_records_larger_than_a_read_are_replayed(tmp_path: Path) -> None:
    sizes = [10, 9 << 20, 4 << 20, 100, 5 << 20]
    with Running(tmp_path) as running:
        for i, size_bytes in enumerate(sizes):
            running.add(i, b"x" * size_bytes)
    batches = list(replay(tmp_path, OsFs(), ZERO_MARK))
    assert [len(r.body) - 32 for batch in batches for r in batch] == sizes
    assert len(batches) > 3


def test_a_foreign_txn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "backup.txn").touch()
    with pytest.raises(CorruptDataError, match=r"'backup\.txn' is not a journal file name"):
        journal_ids(OsFs(), tmp_path)


def test_any_bytes_are_scanned_without_an_exception_of_python(tmp_path: Path) -> None:
    seeds = [b"\0", b"\1", b"\xff", b"BKLG", b"BKLG\0\0\0\6", b"\0\0\0\x10", b"\xff\xff\xff\0", record(0)]
    for count, (a, b) in itertools.product((1, 7, 200), itertools.permutations(seeds, 2)):
        for data in (a * count + b, journal_format.header(6) + a + b * count):
            try:
                found = replay_of(tmp_path / "j", data)
            except CorruptDataError:
                continue
            assert all(len(r.body) >= 16 for r in found)


# -- lastMark -----------------------------------------------------------------------------------


@pytest.fixture
def ledger_dirs(tmp_path: Path) -> list[Path]:
    directories = [tmp_path / name for name in ("l1", "l2", "l3")]
    for directory in directories:
        directory.mkdir()
    return directories


def test_the_highest_last_mark_counts(ledger_dirs: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    fs = OsFs()
    assert read_last_marks(fs, ledger_dirs, 0, 1) == ZERO_MARK
    write_last_mark(fs, ledger_dirs[1:2], 0, 1, LogMark(6, 512))
    write_last_mark(fs, ledger_dirs[2:], 0, 1, LogMark(5, 9000))
    assert read_last_marks(fs, ledger_dirs, 0, 1) == LogMark(6, 512)
    assert caplog.text == ""
    (ledger_dirs[1] / "lastMark").write_bytes(b"short")
    assert read_last_marks(fs, ledger_dirs, 0, 1) == LogMark(5, 9000)
    assert "l2/lastMark is passed over" in caplog.text


def test_a_last_mark_never_moves_backwards(ledger_dirs: list[Path]) -> None:
    fs = OsFs()
    for mark in (LogMark(5, 1024), LogMark(5, 512), LogMark(4, 9000), LogMark(5, 1024)):
        write_last_mark(fs, ledger_dirs, 0, 1, mark)
        assert [(d / "lastMark").read_bytes() for d in ledger_dirs] == [struct.pack(">qq", 5, 1024)] * 3


def test_each_of_several_journals_has_its_own_last_mark(ledger_dirs: list[Path]) -> None:
    fs = OsFs()
    for index in range(2):
        write_last_mark(fs, ledger_dirs, index, 2, LogMark(10 + index, 512))
    assert [read_last_marks(fs, ledger_dirs, i, 2) for i in range(2)] == [LogMark(10, 512), LogMark(11, 512)]
    assert sorted(p.name for p in ledger_dirs[0].iterdir()) == ["lastMark.0", "lastMark.1"]


def test_a_directory_that_fails_is_passed_over_unless_all_do(ledger_dirs: list[Path]) -> None:
    fs = OsFs()
    shutil.rmtree(ledger_dirs[0])
    write_last_mark(fs, ledger_dirs, 0, 1, LogMark(1, 512))
    assert read_last_marks(fs, ledger_dirs, 0, 1) == LogMark(1, 512)
    disk = Disk()
    disk.fail["fsync"] = 3
    with pytest.raises(OSError, match="fsync fails"):
        write_last_mark(disk, ledger_dirs[1:], 0, 1, LogMark(2, 512))
