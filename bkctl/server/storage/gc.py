"""Garbage collection in one ledger directory: dead logs are deleted, sparse ones are compacted.

Which ledgers are dead is decided elsewhere (server.garbage_ledgers) and durable before `refresh`: this
module never asks the metadata store. Everything here blocks, and runs in the thread of the collection;
one directory, and one log, that gives trouble does not keep the others from being collected.

Source: spec storage sections 8.2-8.4; upstream GarbageCollectorThread.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from bkctl.server.storage.compaction import Compacted, Compactor
from bkctl.server.storage.directory_storage import DirectoryStorage
from bkctl.server.storage.entry_log_usage import EntryLogMetadataStore, EntryLogUsage, LogUsage
from bkctl.server.storage.fs import Fs

log = logging.getLogger(__name__)

_SOURCES_MAX = 256  # of one compaction: as many markers
_SLICE_LEDGERS = 16384
_RESERVE_BYTES = 64 << 20  # of the disk, never taken by a copy


class CompactionStoppedError(Exception):
    """The bookie stops, or compactions were paused; what was begun is thrown away or finished later."""


class CompactionPace:
    """The rate of one compaction: `per_second` entries, or bytes if `by_bytes`; 0 is as fast as it goes.

    `stop` and the event that the pace was made with end it, also while it waits.
    """

    def __init__(self, per_second: float, *, by_bytes: bool, stopped: threading.Event) -> None:
        self._per_second = per_second
        self._by_bytes = by_bytes
        self._stopped = stopped
        self._next = time.monotonic()

    def spend(self, entries: int, size_bytes: int) -> None:
        """Wait until this much may be copied. Raises CompactionStoppedError."""
        if self._per_second > 0:
            now = time.monotonic()
            self._next = max(self._next, now) + (size_bytes if self._by_bytes else entries) / self._per_second
            self._stopped.wait(self._next - now)
        self.check()

    def check(self) -> None:
        if self._stopped.is_set():
            raise CompactionStoppedError


@dataclass(frozen=True, slots=True)
class Threshold:
    """Logs whose usage is below `ratio` are compacted, until `time_s_max` is over (0: no limit).

    `log_bytes`: of a log that is not small; with it a log's usage is of at least this size, so that
    small logs are compacted too, into few (useTargetEntryLogSizeForGc). 0: as it is.
    """

    ratio: float
    time_s_max: float = 0
    log_bytes: int = 0

    def usage_of(self, usage: LogUsage) -> float:
        if self.log_bytes and usage.ratio < 1:
            return usage.live_bytes / max(usage.total_bytes, self.log_bytes)
        return usage.ratio


class DirectoryCollector:
    """The garbage collection of one ledger directory. `current_log`: what is worked on, for a status."""

    def __init__(
        self,
        directory: Path,
        fs: Fs,
        storage: DirectoryStorage,
        storage_thread: Executor,
        *,
        open_metadata: Callable[[], EntryLogMetadataStore],
        pace: CompactionPace,
        log_bytes_max: int,
    ) -> None:
        """`open_metadata` is called in the collection's thread, with the first `refresh`."""
        self.directory = directory
        self.storage = storage
        self.storage_thread = storage_thread
        self.usage: EntryLogUsage | None = None
        self.current_log: int | None = None
        self._fs = fs
        self._open_metadata = open_metadata
        self._metadata: EntryLogMetadataStore | None = None
        self._pace = pace
        self._log_bytes_max = log_bytes_max
        self._compactor: Compactor

    def refresh(self, closed_ids: Collection[int], stored_ledgers: Sequence[int]) -> None:
        """Finish interrupted compactions, and see what is alive in the closed logs.

        `closed_ids` was asked for before `stored_ledgers`. Raises OSError, CorruptDataError,
        CompactionStoppedError.
        """
        if self.usage is None:
            self._metadata = self._open_metadata()
            self.usage = EntryLogUsage(self.directory, self._fs, self._metadata)
            self._compactor = Compactor(
                self.directory, self._fs, self.storage, self.storage_thread, self.usage, self._pace
            )
        known = set(self.usage.damaged)
        self._compactor.recover()
        stored: set[int] = set()
        for first in range(0, len(stored_ledgers), _SLICE_LEDGERS):  # the event loop runs in between
            stored.update(stored_ledgers[first : first + _SLICE_LEDGERS])
        self.usage.refresh(closed_ids, stored, self._pace.check)
        for log_id in self.usage.damaged.keys() - known:
            log.error(
                "%s/%x.log is damaged and is left alone: %s",
                self.directory, log_id, self.usage.damaged[log_id],
            )  # fmt: skip

    def delete_dead(self) -> Iterator[int]:
        """Delete the logs without a live ledger; yields the bytes that each of them had. Raises OSError."""
        assert self.usage is not None
        for log_id in [log_id for log_id, usage in self.usage.logs.items() if not usage.live_bytes]:
            yield self._compactor.delete(log_id)

    def compact(self, threshold: Threshold) -> Iterator[Compacted]:
        """Compact the logs below the threshold, emptiest first, several to one.

        Raises OSError, CorruptDataError: the index, or what was written, is in trouble.
        CompactionStoppedError.
        """
        assert self.usage is not None
        end = time.monotonic() + threshold.time_s_max
        logs = {i: usage for i, usage in self.usage.logs.items() if i not in self.usage.damaged}
        for sources in compaction_plan(logs, threshold, self._log_bytes_max):
            if threshold.time_s_max > 0 and time.monotonic() > end:
                return
            live_bytes = sum(logs[source].live_bytes for source in sources)
            usable = self._fs.usable_bytes(self.directory)
            if usable < live_bytes + _RESERVE_BYTES:
                log.warning(
                    "%s: no compaction: %d bytes to copy, %d free", self.directory, live_bytes, usable
                )
                return
            self.current_log = sources[0]
            try:
                yield self._compactor.compact(sources)
            finally:
                self.current_log = None

    def close(self) -> None:
        if self._metadata is not None:
            self._metadata.close()
            self._metadata = None
            self.usage = None


def compaction_plan(
    logs: Mapping[int, LogUsage], threshold: Threshold, log_bytes_max: int
) -> list[list[int]]:
    """Which logs are compacted together: emptiest first, and no more than what fits one log."""
    sparse = [log_id for log_id, usage in logs.items() if threshold.usage_of(usage) < threshold.ratio]
    groups: list[list[int]] = []
    group_bytes = 0
    for log_id in sorted(sparse, key=lambda i: (threshold.usage_of(logs[i]), i)):
        live_bytes = logs[log_id].live_bytes
        if not groups or group_bytes + live_bytes > log_bytes_max or len(groups[-1]) >= _SOURCES_MAX:
            groups.append([])
            group_bytes = 0
        groups[-1].append(log_id)
        group_bytes += live_bytes
    # Alone, a small log would only be written again and again.
    return [group for group in groups if len(group) > 1 or logs[group[0]].ratio < threshold.ratio]
