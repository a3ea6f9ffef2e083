"""A checkpoint may be cut short or fail at any step: what was acknowledged is never lost."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats import journal as journal_format
from bkctl.formats.index import entry_key
from bkctl.formats.small_files import LogMark
from bkctl.server.storage.checkpoint import Checkpointer
from bkctl.server.storage.fs import Fs
from bkctl.server.storage.index import LedgersIndex, LocationsIndex
from bkctl.server.storage.journal import Journal, JournalSettings, journal_ids, read_last_marks, replay
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings
from tests.unit.server.storage.faulty_fs import FaultyFs

KEY = b"k" * 20
KIB = 1024


def entry_of(ledger_id: int, entry_id: int, size: int = 100, mark: int = 0) -> bytes:
    return entry_key(ledger_id, entry_id) + bytes(16) + bytes([mark, ledger_id % 256, entry_id % 256]) * size


class Bookie:
    """Storage and one journal, used as a bookie uses them."""

    def __init__(self, root: Path, fs: Fs, directory_count: int) -> None:
        self.directories = [root / f"ledgers{i}" for i in range(directory_count)]
        settings = StorageSettings(
            self.directories, self.directories, 512 * KIB, 64 * KIB, entry_log_bytes_max=4 * KIB
        )
        self.storage = LedgerStorage(settings, fs)
        self.storage.open()
        self._fs = fs
        self.currents = self.storage.current_directories
        self.journal_directory = root / "journal" / "current"
        fs.mkdir(self.journal_directory)
        for records in replay(self.journal_directory, fs, read_last_marks(fs, self.currents, 0, 1)):
            self.storage.replay(records)
        self.storage.flush_all()
        self._synced = asyncio.Event()
        loop = asyncio.get_running_loop()
        journal_settings = JournalSettings(
            self.journal_directory, size_bytes_max=KIB, preallocate_bytes=4 * KIB, backups_max=0
        )
        self.journal = Journal(
            journal_settings,
            fs,
            completed=lambda tokens: loop.call_soon_threadsafe(self._completed, tokens),
            failed=lambda error: loop.call_soon_threadsafe(self._synced.set),
        )
        self.journal.start(now_ms=1000)
        self.checkpointer = Checkpointer(self.storage, [self.journal], fs)

    def _completed(self, tokens: list[Any]) -> None:
        if tokens:
            self._synced.set()

    async def acknowledged(self) -> None:
        """Return once everything that was journaled so far is durable there, and its thread is idle.

        The second token comes after the journal has changed a full file: a step of its thread that
        must not meet a failure meant for the checkpoint.
        """
        for _ in range(2):
            self._synced.clear()
            self.journal.append((), "token")
            await asyncio.wait_for(self._synced.wait(), timeout=10)

    def _journal(self, *records: bytes) -> None:
        self.journal.append(records, None)

    def add(self, entry: bytes) -> None:
        ledger_id, entry_id = (int.from_bytes(entry[at : at + 8], "big") for at in (0, 8))
        descriptor = self.storage.ledger(ledger_id) or self.storage.directory_for(ledger_id).create_ledger(
            ledger_id, KEY
        )
        cache = descriptor.directory.active
        start = cache.used
        assert cache.put(ledger_id, entry_id, entry)
        key = journal_format.ledger_key_record(ledger_id, KEY)
        self._journal(key, bytes(cache.view[start : cache.used]))

    def fence(self, ledger_id: int) -> None:
        descriptor = self.storage.ledger(ledger_id)
        assert descriptor is not None
        descriptor.directory.set_fenced(descriptor)
        self._journal(journal_format.fence_record(ledger_id))

    def set_explicit_lac(self, ledger_id: int, packet: bytes) -> None:
        descriptor = self.storage.ledger(ledger_id)
        assert descriptor is not None
        descriptor.directory.set_explicit_lac(descriptor, packet)
        self._journal(journal_format.explicit_lac_record(ledger_id, packet))

    def read(self, ledger_id: int, entry_id: int) -> bytes | Exception | None:
        directory = self.storage.directory_for(ledger_id)
        entry = directory.cached_entry(ledger_id, entry_id)
        return entry if entry is not None else directory.load_entries([(ledger_id, entry_id)])[0]

    def mark_on_disk(self) -> LogMark:
        return read_last_marks(self._fs, self.currents, 0, 1)

    def close(self) -> None:
        self.journal.stop()
        self.storage.close()


@contextmanager
def opened(root: Path, fs: Fs, directory_count: int = 1) -> Iterator[Bookie]:
    bookie = Bookie(root, fs, directory_count)
    try:
        yield bookie
    finally:
        bookie.close()


async def fill(bookie: Bookie) -> None:
    """Two rounds with a checkpoint in between, so that there is something to go back to."""
    for entry_id in range(8):
        for ledger_id in (1, 2, 3):
            bookie.add(entry_of(ledger_id, entry_id))
    await bookie.acknowledged()
    await bookie.checkpointer.checkpoint()
    for entry_id in range(8, 14):
        for ledger_id in (1, 2, 4):
            bookie.add(entry_of(ledger_id, entry_id))
    bookie.add(entry_of(1, 3, mark=7))  # again, with other bytes
    bookie.fence(2)
    bookie.fence(3)  # a ledger without new entries
    bookie.set_explicit_lac(1, entry_key(1, 13) + b"digest")
    await bookie.acknowledged()


def check(bookie: Bookie) -> None:
    for ledger_id, entry_ids in ((1, range(14)), (2, range(14)), (3, range(8)), (4, range(8, 14))):
        for entry_id in entry_ids:
            mark = 7 if (ledger_id, entry_id) == (1, 3) else 0
            assert bookie.read(ledger_id, entry_id) == entry_of(ledger_id, entry_id, mark=mark)
        directory = bookie.storage.directory_for(ledger_id)
        assert directory.load_entry_ids(ledger_id) == list(entry_ids)
        descriptor = bookie.storage.ledger(ledger_id)
        assert descriptor is not None
        assert descriptor.fenced is (ledger_id in (2, 3))
        assert descriptor.master_key == KEY
        assert descriptor.explicit_lac == (entry_key(1, 13) + b"digest" if ledger_id == 1 else None)


@pytest.fixture
def fs(monkeypatch: pytest.MonkeyPatch) -> FaultyFs:
    """A disk whose steps include the writes of RocksDB, which are not forced either."""
    disk = FaultyFs()

    def with_step(method: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any) -> Any:
            disk.step()
            return method(*args)

        return stepped

    for index, names in (
        (LocationsIndex, ("put", "delete_ledgers", "sync")),
        (LedgersIndex, ("write", "sync")),
    ):
        for name in names:
            method = getattr(index, name) if name != "sync" else lambda self: None
            monkeypatch.setattr(index, name, with_step(method))
    return disk


def fingerprint(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_a_crash_between_any_two_steps_loses_nothing(tmp_path: Path, fs: FaultyFs) -> None:
    """Come up on the disk as a kill and as a power loss before each step of a checkpoint leave it."""
    root = tmp_path / "bookie"
    images: list[Path] = []
    seen: list[dict[str, bytes]] = []
    steps = 0

    def take_images() -> None:
        nonlocal steps
        steps += 1
        killed, lost = tmp_path / f"killed-{steps}", tmp_path / f"lost-{steps}"
        shutil.copytree(root, killed)
        fs.power_loss_image(root, lost)
        for image in (killed, lost):
            found = fingerprint(image)
            if found not in seen:
                seen.append(found)
                images.append(image)

    with opened(root, fs) as bookie:
        await fill(bookie)
        fs.before_step = take_images
        await bookie.checkpointer.checkpoint()
        take_images()
        fs.before_step = lambda: None
    assert steps > 20, "the steps of a checkpoint were not seen"
    assert len(images) > 20
    for image in images:
        with opened(image, fs) as bookie:
            check(bookie)


async def test_a_checkpoint_that_fails_at_any_step_moves_no_mark_and_loses_nothing(
    tmp_path: Path, fs: FaultyFs
) -> None:
    """One bookie, one failure per checkpoint, each one step later; two directories, one of them fails."""
    expected = {}
    failures = 0
    with opened(tmp_path, fs, directory_count=2) as bookie:
        bookie.storage.threads = (bookie.storage.threads[0],) * 2  # one step at a time
        for fail_at in range(1, 80):
            for ledger_id in (1, 2):
                entry = entry_of(ledger_id, fail_at)
                bookie.add(entry)
                expected[ledger_id, fail_at] = entry
            bookie.set_explicit_lac(1, entry_key(1, fail_at))
            await bookie.acknowledged()
            steps = 0

            def fail() -> None:
                nonlocal steps
                steps += 1
                if steps == fail_at:  # noqa: B023  # called within this turn only
                    raise OSError("injected")

            mark_before = bookie.mark_on_disk()
            fs.before_step = fail
            try:
                await bookie.checkpointer.checkpoint()
                failed = False
            except OSError:
                failed = True
            fs.before_step = lambda: None
            clean = all(directory.flushing is None for directory in bookie.storage.directories)
            assert clean or bookie.mark_on_disk() == mark_before, "the mark passed a failed flush"
            failures += failed
            if steps < fail_at:
                break
        else:
            raise AssertionError("a checkpoint has more steps than expected")
        assert failures > 15
        await bookie.checkpointer.checkpoint()
        assert all(directory.flushing is None for directory in bookie.storage.directories)
    with opened(tmp_path, fs, directory_count=2) as bookie:
        for (ledger_id, entry_id), entry in expected.items():
            assert bookie.read(ledger_id, entry_id) == entry
        descriptor = bookie.storage.ledger(1)
        assert descriptor is not None
        assert descriptor.explicit_lac == entry_key(1, fail_at)


async def test_t1_a_checkpoint_without_entries_still_carries_fence_key_and_explicit_lac(
    tmp_path: Path, fs: FaultyFs
) -> None:
    """1. Entries, checkpoint. 2. Fence and LAC alone, checkpoint. 3. A restart that replays nothing."""
    with opened(tmp_path, fs) as bookie:
        bookie.add(entry_of(5, 0))
        await bookie.acknowledged()
        await bookie.checkpointer.checkpoint()
        bookie.fence(5)
        bookie.set_explicit_lac(5, b"packet")
        bookie.storage.directory_for(6).create_ledger(6, KEY)
        await bookie.acknowledged()
        mark = bookie.journal.mark()
        await bookie.checkpointer.checkpoint()
        assert bookie.mark_on_disk() == mark
    with opened(tmp_path, fs) as bookie:
        descriptor, created = bookie.storage.ledger(5), bookie.storage.ledger(6)
        assert descriptor is not None
        assert created is not None
        assert (descriptor.fenced, descriptor.explicit_lac, created.master_key) == (True, b"packet", KEY)


async def test_t1_a_checkpoint_without_new_entries_first_carries_what_failed_before(
    tmp_path: Path, fs: FaultyFs
) -> None:
    with opened(tmp_path, fs) as bookie:
        bookie.add(entry_of(5, 0))
        await bookie.acknowledged()

        def fail() -> None:
            raise OSError("injected")

        fs.before_step = fail
        with pytest.raises(OSError, match="injected"):
            await bookie.checkpointer.checkpoint()
        fs.before_step = lambda: None
        assert bookie.read(5, 0) == entry_of(5, 0)  # from the cache that could not be flushed
        await bookie.checkpointer.checkpoint()
        assert bookie.mark_on_disk() == bookie.journal.mark()
        (location,) = bookie.storage.directories[0]._locations.get([entry_key(5, 0)])
        assert location is not None


async def test_journals_behind_the_mark_are_deleted_and_the_mark_names_one_that_exists(
    tmp_path: Path, fs: FaultyFs
) -> None:
    with opened(tmp_path, fs) as bookie:
        for _ in range(3):
            await fill(bookie)
            await bookie.checkpointer.checkpoint()
            mark = bookie.mark_on_disk()
            assert journal_ids(fs, bookie.journal_directory)[0] == mark.journal_id
            assert mark == bookie.journal.mark()


async def test_room_is_announced_before_the_flush_ends_and_adds_go_on(tmp_path: Path, fs: FaultyFs) -> None:
    with opened(tmp_path, fs) as bookie:
        directory = bookie.storage.directories[0]
        bookie.add(entry_of(1, 0))
        await bookie.acknowledged()

        def rotated() -> None:
            assert directory.active.used == 0
            assert directory.flushing is not None
            bookie.add(entry_of(1, 1))

        await bookie.checkpointer.checkpoint(rotated)
        assert directory.active.last_entry == {1: 1}
        assert [bookie.read(1, entry_id) for entry_id in (0, 1)] == [entry_of(1, 0), entry_of(1, 1)]


class SlowJournal:
    """A journal that has not yet written what it was given."""

    appended = 3
    written = 2

    def mark(self) -> LogMark:
        return LogMark(7, 512)

    def delete_before(self, mark: LogMark) -> list[int]:
        return []


async def test_an_arena_is_not_used_again_before_the_journals_wrote_it(tmp_path: Path, fs: FaultyFs) -> None:
    with opened(tmp_path, fs) as bookie:
        directory = bookie.storage.directories[0]
        bookie.add(entry_of(1, 0))
        journal = SlowJournal()
        checkpointer = Checkpointer(bookie.storage, [journal], fs)
        checkpoint = asyncio.create_task(checkpointer.checkpoint())
        await asyncio.sleep(0.05)
        assert directory.flushing is not None
        assert not directory.rotate()
        journal.written = 3
        await checkpoint
        assert directory.flushing is None


async def test_a_cancelled_checkpoint_is_finished_by_the_next(tmp_path: Path, fs: FaultyFs) -> None:
    with opened(tmp_path, fs) as bookie:
        bookie.add(entry_of(1, 0))
        await bookie.acknowledged()
        checkpoint = asyncio.create_task(bookie.checkpointer.checkpoint())
        await asyncio.sleep(0)
        checkpoint.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checkpoint
        await bookie.checkpointer.checkpoint()
        assert bookie.storage.directories[0].flushing is None
        assert bookie.mark_on_disk() == bookie.journal.mark()
        assert bookie.read(1, 0) == entry_of(1, 0)
