"""Checkpoints: move what the caches hold to entry logs and indexes, then let go of old journals.

    marks of the journals  ->  rotate every directory  ->  flush each  ->  lastMark  ->  delete journals

Laws:

1. The marks are taken before the rotation, in the same step of the event loop. What was journaled
   before a mark was in a cache or a ledger's state before it was appended: so the flush carries it.
2. A mark is persisted only when every directory has flushed since it was taken. A directory that
   still holds a failed flush is flushed first, before new marks are taken.
3. An arena is used again only when the journals have written what they were given of it.
4. A crash between any two steps costs replay, never data: each step only adds copies of what the
   journal still holds, until lastMark says that it need not be read.

Source: spec storage section 7.2; upstream SyncThread, CheckpointSourceList.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from bkctl.formats.small_files import LogMark
from bkctl.server.storage.fs import Fs
from bkctl.server.storage.journal import write_last_mark
from bkctl.server.storage.ledger_storage import LedgerStorage

_JOURNAL_POLL_SECONDS = 0.001


class CheckpointedJournal(Protocol):
    """What a checkpoint needs of a journal; see server.storage.journal.Journal."""

    @property
    def appended(self) -> int: ...

    @property
    def written(self) -> int: ...

    def mark(self) -> LogMark: ...

    def delete_before(self, mark: LogMark) -> list[int]: ...


class Checkpointer:
    """Runs the checkpoints of one bookie, one at a time."""

    def __init__(self, storage: LedgerStorage, journals: Sequence[CheckpointedJournal], fs: Fs) -> None:
        self._storage = storage
        self._journals = journals
        self._fs = fs
        self._lock = asyncio.Lock()
        self._appended = [0 for _ in journals]  # when the directories were last rotated

    async def checkpoint(self, rotated: Callable[[], None] | None = None) -> None:
        """Make durable in entry logs and indexes everything that the journals have synced so far.

        `rotated` is called once the write caches have room again. A cancelled checkpoint is finished
        by the next one.

        Raises:
            OSError, CorruptDataError: a directory could not flush, or no directory took the mark.
                Nothing is lost, the marks stay; the next checkpoint tries again.
        """
        async with self._lock:
            await self._flush()
            marks = [journal.mark() for journal in self._journals]
            self._appended = [journal.appended for journal in self._journals]
            for directory in self._storage.directories:
                frozen = directory.rotate()
                assert frozen, "rotated only when clean"
            if rotated is not None:
                rotated()
            await self._flush()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._storage.threads[0], self._persist, marks)

    async def _flush(self) -> None:
        """Flush and release every directory that was rotated; one that fails stays as it is."""
        loop = asyncio.get_running_loop()
        directories = [
            (directory, loop.run_in_executor(thread, directory.flush))
            for directory, thread in zip(self._storage.directories, self._storage.threads, strict=True)
            if directory.flushing is not None
        ]
        results = await asyncio.gather(*(flushed for _, flushed in directories), return_exceptions=True)
        while any(j.written < count for j, count in zip(self._journals, self._appended, strict=True)):
            await asyncio.sleep(_JOURNAL_POLL_SECONDS)  # nearly always done long before the flush
        for (directory, _), result in zip(directories, results, strict=True):
            if result is None:
                directory.release()
        for result in results:
            if result is not None:
                raise result

    def _persist(self, marks: Sequence[LogMark]) -> None:
        """Storage thread: lastMark first, then the journal files that it makes superfluous."""
        count = len(self._journals)
        for number, (journal, mark) in enumerate(zip(self._journals, marks, strict=True)):
            write_last_mark(self._fs, self._storage.current_directories, number, count, mark)
            journal.delete_before(mark)
