"""A bookie's whole storage on a simulated disk: journal, caches, entry logs, indexes, checkpoints.

Every class is the one that ships. The journal's thread is driven by `step`, the storage threads work
at once when they are asked; so a run is the same every time, whatever the disk does.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from bkctl.errors import BookKeeperError
from bkctl.formats import index as index_format
from bkctl.formats.entry import HEADER, LAC_HEADER
from bkctl.server.bookie import Bookie
from bkctl.server.reads import absent
from bkctl.server.storage.checkpoint import Checkpointer
from bkctl.server.storage.gc import CompactionPace, DirectoryCollector, Threshold
from bkctl.server.storage.journal import (
    Journal,
    JournalSettings,
    journal_ids,
    read_last_marks,
    replay,
)
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings
from tests.sim.disk import (
    Disk,
    SimEntryLogMetadataIndex,
    SimFs,
    SimLedgersIndex,
    SimLocationsIndex,
)

KEY = bytes(range(20))


class InlineExecutor(Executor):
    """Does what it is told at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class SteppedJournal(Journal):
    """No thread: `step` does what the thread would do with what is queued now."""

    def start(self, now_ms: int) -> None:
        ids = journal_ids(self._fs, self._settings.directory)
        self._open_file(ids[-1] + 1 if ids else now_ms + 1)
        self._mark = self._file.mark

    def step(self) -> None:
        """Raises whatever ends the journal; a bookie leaves then."""
        if not self._queue.empty():
            appends, _ = self._take()
            self._commit(appends, last=False)

    def stop(self) -> None:
        self.step()


class StorageNode:
    """One life of a bookie on `disk`; `start` replays the journals as a start does.

    `acked`: (ledger id, entry id) -> entry, for every add that was answered; so for `fenced` and
    `explicit_lacs`.
    """

    def __init__(
        self, disk: Disk, *, journals: int = 1, ledgers: int = 1, entry_log_bytes_max: int = 4096
    ) -> None:
        self.disk = disk
        self.fs = SimFs(disk)
        self._journal_dirs = [Path(f"/journal-{number}/current") for number in range(journals)]
        self._ledger_dirs = [f"/ledgers-{number}" for number in range(ledgers)]
        self.acked: dict[tuple[int, int], bytes] = {}
        self.sent: dict[tuple[int, int], list[bytes]] = {}  # every copy, in order
        self.fenced: set[int] = set()
        self.deleting: set[int] = set()  # gone or not, until a checkpoint; then in `deleted`
        self.deleted: set[int] = set()
        self.explicit_lacs: dict[int, bytes] = {}
        self.storage = LedgerStorage(
            StorageSettings(
                self._ledger_dirs,
                self._ledger_dirs,
                write_cache_bytes=32 << 10,
                read_cache_bytes=0,
                entry_log_bytes_max=entry_log_bytes_max,
            ),
            self.fs,
            open_indexes=self._open_indexes,  # type: ignore[arg-type]  # of the simulation
        )

    def _open_indexes(self, index_current: Path, _block_cache: object) -> tuple[Any, Any]:
        ledgers = SimLedgersIndex(self.disk, index_current / "ledgers")
        return ledgers, SimLocationsIndex(self.disk, index_current / "locations")

    def start(self) -> None:
        """Raises what a start raises."""
        for directory in self._journal_dirs:
            self.fs.mkdir(directory)
        self.storage.open()
        self.storage.threads = tuple(InlineExecutor() for _ in self._ledger_dirs)  # type: ignore[assignment]
        current = self.storage.current_directories
        count = len(self._journal_dirs)
        for number, directory in enumerate(self._journal_dirs):
            mark = read_last_marks(self.fs, current, number, count)
            for records in replay(directory, self.fs, mark):
                self.storage.replay(records)
        self.storage.flush_all()
        self.journals = [
            SteppedJournal(
                JournalSettings(
                    directory=directory,
                    size_bytes_max=2048,
                    preallocate_bytes=1024,
                    backups_max=0,
                ),
                self.fs,
                completed=self._completed,
                failed=lambda error: None,
            )
            for directory in self._journal_dirs
        ]
        for journal in self.journals:
            journal.start(1000)
        self.bookie = Bookie(
            self.storage, self.journals, queued_bytes_max=1 << 30, request_checkpoint=lambda: None
        )
        self._checkpointer = Checkpointer(self.storage, self.journals, self.fs)
        for directory in self.storage.directories:
            for descriptor in directory.ledgers.values():
                descriptor.key_journaled = True

    def _completed(self, tokens: list[Any]) -> None:
        self.bookie.completed(tokens)

    # -- what a bookie is asked to do --------------------------------------------------------------

    def add(self, ledger_id: int, entry_id: int, payload: bytes) -> None:
        """Acknowledged, or not, by the next `sync`."""
        entry = HEADER.pack(ledger_id, entry_id, entry_id - 1, 0) + payload
        self.sent.setdefault((ledger_id, entry_id), []).append(entry)

        def durable() -> None:
            self.acked[ledger_id, entry_id] = entry

        peer = _Peer(durable)
        taken = self.bookie.add_entry(
            peer, KEY, entry, b"ok", recovery=False, high_priority=False, deferred_sync=False
        )
        assert taken, "no room: the test adds more than a cache holds"

    def fence(self, ledger_id: int) -> None:
        self.bookie.fence(ledger_id, KEY, lambda: self.fenced.add(ledger_id))

    def write_lac(self, ledger_id: int, lac: int) -> None:
        body = LAC_HEADER.pack(ledger_id, lac) + bytes(20)

        def durable() -> None:
            self.explicit_lacs[ledger_id] = body

        self.bookie.write_lac(ledger_id, lac, KEY, body, durable)

    def sync(self) -> None:
        for journal in self.journals:
            journal.step()

    def checkpoint(self) -> None:
        asyncio.run(self._checkpointer.checkpoint())

    def delete(self, *ledger_ids: int) -> None:
        """Final, and in `deleted`, with a checkpoint."""
        for ledger_id in ledger_ids:
            self.deleting.add(ledger_id)
            self.bookie.delete_ledger(ledger_id)
        self.checkpoint()
        self.deleted.update(ledger_ids)

    def collect(self, ratio: float) -> None:
        """Delete dead entry logs, and compact those of which less than `ratio` is alive."""
        for number, directory in enumerate(self.storage.directories):
            current = self.storage.current_directories[number]
            collector = DirectoryCollector(
                current,
                self.fs,
                directory,
                self.storage.threads[number],
                open_metadata=lambda current=current: SimEntryLogMetadataIndex(  # type: ignore[misc]
                    self.disk, current / "metadata-cache"
                ),
                pace=CompactionPace(0, by_bytes=False, stopped=threading.Event()),
                log_bytes_max=4096,
            )
            closed = directory.closed_log_ids()
            assert closed is not None
            collector.refresh(closed, directory.stored_ledgers())
            assert collector.usage is not None
            assert not collector.usage.damaged
            list(collector.delete_dead())
            for done in collector.compact(Threshold(ratio)):
                assert not done.damaged

    # -- what it holds -----------------------------------------------------------------------------

    def read(self, ledger_id: int, entry_id: int) -> bytes | BookKeeperError | Exception:
        descriptor = self.storage.ledger(ledger_id)
        if descriptor is None:
            return BookKeeperError(f"no ledger {ledger_id}")
        entry = descriptor.directory.cached(index_format.entry_key(ledger_id, entry_id))
        if entry is None:
            (loaded,) = descriptor.directory.load_entries([(ledger_id, entry_id)])
            return absent(descriptor, entry_id) if loaded is None else loaded
        return entry

    def close(self) -> None:
        with suppress(BaseException):
            self.storage.close()


class _Peer:
    closed = False
    version2 = True

    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered

    def send(self, _data: bytes) -> None:
        self._answered()

    def drop(self) -> None: ...

    async def writable(self) -> None: ...

    def pause(self, reason: str) -> None: ...

    def resume(self, reason: str) -> None: ...
