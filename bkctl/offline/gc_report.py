"""Why a bookie's entry logs are still there, and what other thresholds would give back.

Seen from the disk alone: a ledger counts as alive while the bookie's index has it. What the metadata
store has deleted since is found by the next collection, and only it.

Source: spec storage section 8; `server.storage.gc`, whose plan this is.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bkctl.errors import CorruptDataError
from bkctl.offline.directories import BookieDirectories
from bkctl.offline.entry_logs import LogFile
from bkctl.offline.indexes import find_indexes
from bkctl.server.storage.entry_log_usage import LogUsage, read_metadata
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.gc import Threshold, compaction_plan

_BUCKETS = 10


class Verdict(enum.StrEnum):
    """Which step of a collection the log is waiting for."""

    DEAD = "dead"  # nothing in it is alive: the next collection deletes it
    MINOR = "minor"  # the next minor compaction rewrites it
    MAJOR = "major"  # the next major compaction does
    ALIVE = "alive"  # too much of it is alive
    OPEN = "open"  # it is being written to
    DAMAGED = "damaged"  # left alone


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`log_bytes_max`: logSizeLimit; a ratio of 0 or less switches a compaction off."""

    minor: Threshold
    major: Threshold
    log_bytes_max: int


@dataclass(frozen=True, slots=True)
class LogReport:
    """`ledger_bytes`: ledger id -> bytes, of every ledger in the log; `error`: only when it is damaged."""

    log: LogFile
    usage: LogUsage
    ledger_bytes: Mapping[int, int]
    live_ledgers: frozenset[int]
    verdict: Verdict
    error: str | None = None

    @property
    def bucket(self) -> int:
        """Tenths of it that are alive, 0 to 9."""
        return min(_BUCKETS - 1, int(self.usage.ratio * _BUCKETS))


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a collection would do, taken alone; bytes of entries."""

    name: str
    ratio: float | None  # the threshold; None for dead logs
    logs: int
    reclaimed_bytes: int
    copied_bytes: int
    new_logs: int


def stored_ledgers(directories: BookieDirectories) -> dict[Path, set[int]]:
    """Ledger directory -> ids in the indexes of its entries; raises as `find_indexes`, OSError."""
    found: dict[Path, set[int]] = {directory: set() for directory in directories.ledgers}
    for index in find_indexes(directories):
        for ledger_id, data in index.ledgers():
            if ledger_id is None or isinstance(data, Exception):
                raise CorruptDataError(
                    f"{index.directory}: what is alive cannot be told, the index is damaged at"
                    f" ledger {ledger_id}: {data}"
                )
            for directory in index.log_directories:
                found[directory].add(ledger_id)
    return found


def explain(
    logs: Sequence[LogFile],
    stored: Mapping[Path, set[int]],
    thresholds: Thresholds,
    *,
    in_use: bool,
    only: Path | None = None,
) -> Iterator[LogReport]:
    """One report for each log, or for the one at `only`; `logs` ascend by id in each directory.

    `in_use`: a bookie runs, and writes to the newest log that is not sealed.
    """
    newest = {log.path.parent: log for log in logs if in_use and not log.sealed}
    for log in logs:
        if only is not None and not log.path.samefile(only):
            continue
        report = _report(log, stored[log.path.parent], thresholds)
        if report is not None:
            yield _reopened(report) if newest.get(log.path.parent) is log else report


def simulate(reports: Sequence[LogReport], thresholds: Thresholds) -> list[Step]:
    """Dead logs, a minor compaction, a major one; each as if it were the only one, after the dead."""
    whole = [report for report in reports if report.verdict not in (Verdict.OPEN, Verdict.DAMAGED)]
    dead = [report for report in whole if report.verdict is Verdict.DEAD]
    by_directory: dict[Path, dict[int, LogUsage]] = {}
    for report in whole:
        if report.verdict is not Verdict.DEAD and report.log.log_id is not None:
            by_directory.setdefault(report.log.path.parent, {})[report.log.log_id] = report.usage
    steps = [Step("dead", None, len(dead), sum(report.log.size_bytes for report in dead), 0, 0)]
    for name, threshold in (("minor", thresholds.minor), ("major", thresholds.major)):
        usages: list[LogUsage] = []
        new_logs = 0
        for logs in by_directory.values():
            plan = compaction_plan(logs, threshold, thresholds.log_bytes_max)
            new_logs += len(plan)
            usages += [logs[log_id] for group in plan for log_id in group]
        live_bytes = sum(usage.live_bytes for usage in usages)
        dead_bytes = sum(usage.total_bytes for usage in usages) - live_bytes
        steps.append(Step(name, threshold.ratio, len(usages), dead_bytes, live_bytes, new_logs))
    return steps


def _report(log: LogFile, stored: set[int], thresholds: Thresholds) -> LogReport | None:
    """None: the log went away meanwhile."""
    assert log.log_id is not None  # it was listed by its name
    try:
        metadata = read_metadata(OsFs(), log.path, log.log_id)
    except FileNotFoundError:
        return None
    except (CorruptDataError, OSError) as exc:
        return LogReport(log, LogUsage(0, 0), {}, frozenset(), Verdict.DAMAGED, str(exc))
    live = frozenset(stored.intersection(metadata.ledger_bytes))
    usage = LogUsage(metadata.total_bytes, sum(metadata.ledger_bytes[i] for i in live))
    return LogReport(log, usage, metadata.ledger_bytes, live, _verdict(usage, thresholds))


def _verdict(usage: LogUsage, thresholds: Thresholds) -> Verdict:
    if not usage.live_bytes:
        return Verdict.DEAD
    if thresholds.minor.usage_of(usage) < thresholds.minor.ratio:
        return Verdict.MINOR
    if thresholds.major.usage_of(usage) < thresholds.major.ratio:
        return Verdict.MAJOR
    return Verdict.ALIVE


def _reopened(report: LogReport) -> LogReport:
    return LogReport(
        report.log, report.usage, report.ledger_bytes, report.live_ledgers, Verdict.OPEN, report.error
    )
