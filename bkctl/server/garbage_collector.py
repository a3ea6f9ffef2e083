"""The collector of a bookie's garbage: when it runs, in which order, and what may hold it back.

One run: delete ledgers that the metadata store no longer has here -> checkpoint -> and then for each ledger
directory: finish interrupted compactions -> see what the entry logs hold -> delete dead logs -> compact.

A step that fails is told and left to the next run; it never stops the bookie. All that takes time is
done in one thread of its own, or on the storage thread in slices.

Source: spec storage section 8; upstream GarbageCollectorThread, GarbageCollectionStatus. Differs: one
listing of the metadata store serves all directories.
"""

import asyncio
import enum
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from bkctl.config import BookieSettings
from bkctl.errors import BkctlError
from bkctl.server.bookie import Bookie
from bkctl.server.garbage_ledgers import GarbageLedgers
from bkctl.server.storage.checkpoint import Checkpointer
from bkctl.server.storage.entry_log_usage import EntryLogMetadataStore
from bkctl.server.storage.fs import Fs
from bkctl.server.storage.gc import CompactionPace, CompactionStoppedError, DirectoryCollector, Threshold
from bkctl.types import LedgerId

log = logging.getLogger(__name__)

_FORCED_PAUSE_S = 60  # between runs that full disks force

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Phase(enum.StrEnum):
    """What a run is doing."""

    IDLE = "idle"
    DELETING_LEDGERS = "deleting ledgers"
    READING_LOGS = "reading entry logs"
    DELETING_LOGS = "deleting entry logs"
    COMPACTING = "compacting"


class Compaction(enum.StrEnum):
    MINOR = "minor"
    MAJOR = "major"


@dataclass(slots=True)
class GcCounters:
    """Since the start of the bookie."""

    runs: int = 0
    minor_compactions: int = 0
    major_compactions: int = 0
    deleted_ledgers: int = 0
    deleted_logs: int = 0
    compacted_logs: int = 0
    copied_entries: int = 0
    copied_bytes: int = 0
    reclaimed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GcStatus:
    """Times in seconds before now, None: never. `paused`: kind of compaction -> reasons.

    `damaged`: path of an entry log -> why it is left alone. `error`: of the last run, None if it had none.
    """

    phase: Phase
    compaction: Compaction | None
    current_log: Path | None
    counters: GcCounters
    last_run_s: float | None
    last_minor_s: float | None
    last_major_s: float | None
    paused: dict[Compaction, list[str]]
    damaged: dict[Path, str]
    error: str | None


@dataclass(slots=True)
class _Kind:
    """One kind of compaction; `last` on the loop's clock."""

    kind: Compaction
    threshold: Threshold
    interval_s: float
    last: float
    ran: float | None = None
    paused: set[str] = field(default_factory=set)

    @property
    def periodic(self) -> bool:
        return self.interval_s > 0 and self.threshold.ratio > 0


class GarbageCollector:
    """Methods belong to the event loop. `run` is its task, `close` ends what its thread is doing."""

    def __init__(
        self,
        settings: BookieSettings,
        bookie: Bookie,
        garbage: GarbageLedgers,
        checkpointer: Checkpointer,
        fs: Fs,
        *,
        open_metadata: Callable[[Path], EntryLogMetadataStore],
        thread: Executor | None = None,
    ) -> None:
        """`open_metadata` opens the cache of entry logs' metadata of a ledger directory."""
        self._settings = settings
        self._bookie = bookie
        self._garbage = garbage
        self._checkpointer = checkpointer
        self._thread = thread or ThreadPoolExecutor(1, "gc")
        self._stop = threading.Event()
        self._closing = False
        self._lock = asyncio.Lock()
        self._forced_run: asyncio.Task[bool] | None = None
        self._forced_at = -_FORCED_PAUSE_S * 1.0
        self._phase = Phase.IDLE
        self._compaction: Compaction | None = None
        self._counters = GcCounters()
        self._error: str | None = None
        now = self._now()
        self._last_run: float | None = None
        self._last_over_replicated = now
        self._kinds = _kinds(settings, now)
        by_bytes = settings.compaction_by_bytes
        entries_per_s = settings.compaction_entries_per_s or settings.compaction_rate
        pace = CompactionPace(
            settings.compaction_bytes_per_s if by_bytes else entries_per_s,
            by_bytes=by_bytes,
            stopped=self._stop,
        )
        storage = bookie.storage
        self._directories = [
            DirectoryCollector(
                current,
                fs,
                directory,
                thread,
                open_metadata=partial(open_metadata, current),
                pace=pace,
                log_bytes_max=settings.entry_log_bytes_max,
            )
            for current, directory, thread in zip(
                storage.current_directories, storage.directories, storage.threads, strict=True
            )
        ]

    # -- when --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Collect every `gcWaitTime` ms, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.gc_wait_ms / 1000)
            await self._run_once(force=False, minor=False, major=False)

    async def run_now(self, *, minor: bool = False, major: bool = False, force: bool = False) -> bool:
        """Collect now, and compact as asked: `force` is whatever is not paused, major before minor.

        False: a run is under way already, and this one is not made.
        """
        if self._lock.locked():
            return False
        await self._run_once(force=force, minor=minor, major=major)
        return True

    def pause(self, *, minor: bool = True, major: bool = True, reason: str = "asked to") -> None:
        """Begin no compaction of these kinds until `resume`; one that runs ends soon, and loses nothing."""
        for kind in self._chosen(minor, major):
            self._kinds[kind].paused.add(reason)
            if self._compaction is kind:
                self._stop.set()

    def resume(self, *, minor: bool = True, major: bool = True, reason: str = "asked to") -> None:
        """Take a `pause` for the same reason back."""
        for kind in self._chosen(minor, major):
            self._kinds[kind].paused.discard(reason)

    def disks_are(self, usage: float) -> None:
        """How full the fullest disk is, 0 to 1: compactions need space before they give some back."""
        settings = self._settings
        full, almost_full = usage > settings.disk_usage_max, usage > settings.disk_usage_warn
        if not settings.gc_forced_when_full:
            for kind, now_full in ((Compaction.MINOR, full), (Compaction.MAJOR, almost_full)):
                change = self.pause if now_full else self.resume
                change(minor=kind is Compaction.MINOR, major=kind is Compaction.MAJOR, reason="disk full")
        elif almost_full and self._now() - self._forced_at >= _FORCED_PAUSE_S:
            self._forced_at = self._now()
            self._forced_run = asyncio.get_running_loop().create_task(self.run_now(force=True))

    def status(self) -> GcStatus:
        now = self._now()
        minor, major = self._kinds[Compaction.MINOR], self._kinds[Compaction.MAJOR]
        current = [
            d.directory / f"{d.current_log:x}.log" for d in self._directories if d.current_log is not None
        ]
        return GcStatus(
            phase=self._phase,
            compaction=self._compaction,
            current_log=current[0] if current else None,
            counters=self._counters,
            last_run_s=None if self._last_run is None else now - self._last_run,
            last_minor_s=None if minor.ran is None else now - minor.ran,
            last_major_s=None if major.ran is None else now - major.ran,
            paused={kind: sorted(state.paused) for kind, state in self._kinds.items() if state.paused},
            damaged={
                collector.directory / f"{log_id:x}.log": reason
                for collector in self._directories
                if collector.usage is not None
                for log_id, reason in list(collector.usage.damaged.items())
            },
            error=self._error,
        )

    async def close(self) -> None:
        """End what the thread is doing, at the next slice, and close the caches of metadata."""
        self._closing = True
        self._stop.set()
        if self._forced_run is not None:
            self._forced_run.cancel()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, partial(self._thread.shutdown, cancel_futures=True))
        for collector in self._directories:
            collector.close()

    # -- one run -----------------------------------------------------------------------------------

    async def _run_once(self, *, force: bool, minor: bool, major: bool) -> None:
        async with self._lock:
            self._error = None
            try:
                await self._attempt("ledgers", self._delete_ledgers)
                now = self._now()
                kind = self._due(now, force=force, minor=minor, major=major)
                for collector in self._directories:
                    if force and collector.usage is not None:
                        collector.usage.retry_damaged()
                    work = partial(self._collect_logs, collector, None if kind is None else kind.threshold)
                    self._compaction = None if kind is None else kind.kind
                    await self._attempt(str(collector.directory), work)
                if kind is not None:
                    self._count_compaction(kind, now)
            finally:
                self._phase, self._compaction = Phase.IDLE, None
                if not self._closing:
                    self._stop.clear()
            self._counters.runs += 1
            self._last_run = self._now()

    async def _attempt(self, what: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except CompactionStoppedError:
            log.info("the garbage collection of %s was stopped; the next run goes on", what)
        except (BkctlError, OSError) as error:
            self._error = f"{what}: {error}"
            log.error("garbage collection of %s failed, the next run tries again: %s", what, error)

    async def _delete_ledgers(self) -> None:
        """Delete them, and make that durable; also when the metadata store fails half-way."""
        self._phase = Phase.DELETING_LEDGERS
        before = self._counters.deleted_ledgers
        failure: BkctlError | None = None
        try:
            await self._delete_garbage()
        except BkctlError as error:
            failure = error
        deleted = self._counters.deleted_ledgers - before
        if deleted:
            log.info("deleted %d ledgers", deleted)
            await self._checkpointer.checkpoint(rotated=self._bookie.room_again)
        if failure is not None:
            raise failure

    async def _delete_garbage(self) -> None:
        async with aclosing(self._garbage.deleted(self._local_ledgers())) as groups:
            async for group in groups:
                for ledger_id in group:
                    await self._delete(ledger_id)
        wait_s = self._settings.gc_over_replicated_wait_ms / 1000
        if wait_s > 0 and self._now() - self._last_over_replicated >= wait_s:
            async with aclosing(self._garbage.over_replicated(self._local_ledgers())) as ledger_ids:
                async for ledger_id in ledger_ids:
                    await self._delete(ledger_id)
            self._last_over_replicated = self._now()

    def _local_ledgers(self) -> list[LedgerId]:
        directories = self._bookie.storage.directories
        return [LedgerId(ledger_id) for directory in directories for ledger_id in directory.ledgers]

    async def _delete(self, ledger_id: int) -> None:
        if self._bookie.storage.ledger(ledger_id) is None:
            return
        cached = ledger_id in self._bookie.storage.directory_for(ledger_id).active.last_entry
        self._bookie.delete_ledger(ledger_id)
        self._counters.deleted_ledgers += 1
        if cached:  # that took the time of a walk through the cache
            await asyncio.sleep(0)

    async def _collect_logs(self, collector: DirectoryCollector, threshold: Threshold | None) -> None:
        self._phase = Phase.READING_LOGS
        loop = asyncio.get_running_loop()
        closed = await loop.run_in_executor(collector.storage_thread, collector.storage.closed_log_ids)
        if closed is None:
            return  # the next checkpoint will settle it
        stored = collector.storage.stored_ledgers()  # after the logs: none of them has a newer ledger
        await self._in_thread(collector.refresh, closed, stored)
        self._phase = Phase.DELETING_LOGS
        await self._in_thread(self._delete_dead, collector)
        if threshold is not None:
            self._phase = Phase.COMPACTING
            await self._in_thread(self._compact, collector, threshold)

    async def _in_thread(
        self, call: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs
    ) -> _Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(call, *given, **named))

    def _delete_dead(self, collector: DirectoryCollector) -> None:
        for size_bytes in collector.delete_dead():
            self._counters.deleted_logs += 1
            self._counters.reclaimed_bytes += size_bytes

    def _compact(self, collector: DirectoryCollector, threshold: Threshold) -> None:
        for done in collector.compact(threshold):
            counters = self._counters
            counters.compacted_logs += len(done.deleted_ids)
            counters.copied_entries += done.copied_entries
            counters.copied_bytes += done.copied_bytes
            counters.reclaimed_bytes += done.reclaimed_bytes

    # -- compactions -------------------------------------------------------------------------------

    def _due(self, now: float, *, force: bool, minor: bool, major: bool) -> _Kind | None:
        """The compaction to run now, major before minor."""
        asked = {Compaction.MAJOR: force or major, Compaction.MINOR: force or minor}
        for name, wanted in asked.items():
            kind = self._kinds[name]
            allowed = kind.periodic or (
                wanted and self._settings.compaction_forced_allowed and 0 < kind.threshold.ratio < 1
            )
            if allowed and not kind.paused and (wanted or now - kind.last >= kind.interval_s):
                return kind
        return None

    def _count_compaction(self, kind: _Kind, now: float) -> None:
        kind.last = kind.ran = now
        if kind.kind is Compaction.MAJOR:
            self._kinds[Compaction.MINOR].last = now  # it did the work of both
            self._counters.major_compactions += 1
        else:
            self._counters.minor_compactions += 1

    @staticmethod
    def _chosen(minor: bool, major: bool) -> Sequence[Compaction]:
        return [*[Compaction.MINOR] * minor, *[Compaction.MAJOR] * major]

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _kinds(settings: BookieSettings, now: float) -> dict[Compaction, _Kind]:
    small = settings.entry_log_bytes_max if settings.compaction_of_small_logs else 0
    return {
        Compaction.MINOR: _Kind(
            Compaction.MINOR,
            Threshold(settings.minor_compaction_ratio, settings.minor_compaction_ms_max / 1000, small),
            settings.minor_compaction_interval_s,
            now,
        ),
        Compaction.MAJOR: _Kind(
            Compaction.MAJOR,
            Threshold(settings.major_compaction_ratio, settings.major_compaction_ms_max / 1000, small),
            settings.major_compaction_interval_s,
            now,
        ),
    }
