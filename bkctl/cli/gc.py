"""`bkctl gc`: what a bookie's garbage collection has to do, looked at on its disks."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkctl.cli.app import group
from bkctl.cli.bookie_options import ConfFile, Indexes, Ledgers, bookie_directories
from bkctl.cli.confirm import note
from bkctl.cli.offline_files import find_file
from bkctl.cli.render import Column, Row, emit, format_bytes
from bkctl.errors import BadInputError

if TYPE_CHECKING:
    from bkctl.offline.directories import BookieDirectories
    from bkctl.offline.gc_report import LogReport, Thresholds

app = group(
    "Garbage collection of a bookie on this machine: why is a log still here, what would go. Read-only."
)

_LogArgument = Annotated[
    str | None, typer.Argument(metavar="[LOG]", help="Only this log: 26 (decimal), 0x1a, 1a.log or a path.")
]
_Minor = Annotated[
    float | None, typer.Option("--minor", min=0, max=1, help="In place of minorCompactionThreshold, 0.2.")
]
_Major = Annotated[
    float | None, typer.Option("--major", min=0, max=1, help="In place of majorCompactionThreshold, 0.8.")
]

_LOG_COLUMNS = [
    Column("log_id"),
    Column("name"),
    Column("size_bytes", text=format_bytes),
    Column("live_bytes", text=format_bytes),
    Column("usage", text=lambda usage: f"{usage:.1%}"),
    Column("live_ledgers"),
    Column("waits_for"),
    Column("reason"),
    Column("bucket", wide=True),
    Column("ledgers", wide=True),
    Column("entry_bytes", wide=True),
    Column("path", wide=True),
]
_LEDGER_COLUMNS = [
    Column("ledger_id"),
    Column("bytes"),
    Column("share", text=lambda s: f"{s:.1%}"),
    Column("alive"),
]
_STEP_COLUMNS = [
    Column("step"),
    Column("threshold"),
    Column("logs"),
    Column("reclaimed_bytes", text=format_bytes),
    Column("copied_bytes", text=format_bytes),
    Column("new_logs"),
    Column("copied_per_reclaimed", text=lambda ratio: f"{ratio:.2f}"),
]


@app.command("explain")
def explain(
    log: _LogArgument = None, conf: ConfFile = None, ledgers: Ledgers = None, indexes: Indexes = None
) -> None:
    """Tell of each entry log what is alive in it, and which step of the collection it waits for.

    With LOG: its ledgers, the largest first; those that are alive keep it. A ledger is alive here while
    the bookie's index has it: what the metadata store deleted since then is found by the next collection.
    """
    directories = bookie_directories(conf, None, ledgers, indexes)
    path = None if log is None else find_file(log, "log", directories.ledgers or None, "-l")
    reports = _reports(directories, _thresholds(conf, None, None), path)
    if path is None:
        emit("GcLogList", [_log_row(report) for report in reports], _LOG_COLUMNS)
        return
    if not reports:
        raise BadInputError(f"{path} is not in a ledger directory of this bookie")
    row = _log_row(reports[0])
    note(f"{path}: {row['usage']:.1%} of {row['entry_bytes']} bytes are alive; {row['reason']}")
    emit("GcLogLedgerList", _ledger_rows(reports[0]), _LEDGER_COLUMNS)


@app.command("simulate")
def simulate(
    conf: ConfFile = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    minor: _Minor = None,
    major: _Major = None,
) -> None:
    """Tell what a collection would give back, and copy for it, with these thresholds.

    Each compaction is counted as if it were the only one. A threshold of 0 switches it off.
    """
    from bkctl.offline import gc_report

    directories = bookie_directories(conf, None, ledgers, indexes)
    thresholds = _thresholds(conf, minor, major)
    steps = gc_report.simulate(_reports(directories, thresholds, None), thresholds)
    rows: list[Row] = [
        {
            "step": step.name,
            "threshold": step.ratio,
            "logs": step.logs,
            "reclaimed_bytes": step.reclaimed_bytes,
            "copied_bytes": step.copied_bytes,
            "new_logs": step.new_logs,
            "copied_per_reclaimed": step.copied_bytes / step.reclaimed_bytes
            if step.reclaimed_bytes
            else None,
        }
        for step in steps
    ]
    emit("GcSimulation", rows, _STEP_COLUMNS)


def _thresholds(conf: Path | None, minor: float | None, major: float | None) -> "Thresholds":
    """Of the configuration, or the defaults, unless given."""
    from bkctl.config import load_bookie_settings
    from bkctl.offline.gc_report import Thresholds
    from bkctl.server.storage.gc import Threshold

    settings = load_bookie_settings(conf, {})
    log_bytes = settings.entry_log_bytes_max if settings.compaction_of_small_logs else 0
    ratios = (settings.minor_compaction_ratio, settings.major_compaction_ratio)
    intervals_s = (settings.minor_compaction_interval_s, settings.major_compaction_interval_s)
    found = [
        Threshold(ratio if interval_s > 0 else 0, log_bytes=log_bytes)
        for ratio, interval_s in zip(ratios, intervals_s, strict=True)
    ]
    for position, given in enumerate((minor, major)):
        if given is not None:
            found[position] = replace(found[position], ratio=given)
    return Thresholds(found[0], found[1], settings.entry_log_bytes_max)


def _reports(
    directories: "BookieDirectories", thresholds: "Thresholds", only: Path | None
) -> "list[LogReport]":
    from bkctl.offline import gc_report
    from bkctl.offline.entry_logs import log_files

    if not directories.ledgers:
        raise BadInputError("no ledger directories named; give -c FILE, or -l DIR")
    stored = gc_report.stored_ledgers(directories)
    logs = log_files(directories.ledgers)
    in_use = bool(directories.users())
    reports = gc_report.explain(logs, stored, thresholds, in_use=in_use, only=only)
    return list(reports)


def _log_row(report: "LogReport") -> Row:
    usage = report.usage
    return {
        "log_id": report.log.log_id,
        "name": report.log.path.name,
        "size_bytes": report.log.size_bytes,
        "live_bytes": usage.live_bytes,
        "usage": usage.ratio,
        "live_ledgers": len(report.live_ledgers),
        "waits_for": report.verdict.value,
        "reason": _reason(report),
        "bucket": report.bucket,
        "ledgers": len(report.ledger_bytes),
        "entry_bytes": usage.total_bytes,
        "path": str(report.log.path),
    }


def _reason(report: "LogReport") -> str:
    from bkctl.offline.gc_report import Verdict

    match report.verdict:
        case Verdict.DEAD:
            return "no ledger in it is alive: the next collection deletes it"
        case Verdict.MINOR:
            return "so little is alive that the next minor compaction rewrites it"
        case Verdict.MAJOR:
            return "the next major compaction rewrites it"
        case Verdict.ALIVE:
            return "too much is alive for the thresholds"
        case Verdict.OPEN:
            return "the bookie writes to it"
        case Verdict.DAMAGED:
            return f"damaged, and left alone: {report.error}"


def _ledger_rows(report: "LogReport") -> list[Row]:
    total_bytes = report.usage.total_bytes
    by_size = sorted(report.ledger_bytes.items(), key=lambda item: (-item[1], item[0]))
    return [
        {
            "ledger_id": ledger_id,
            "bytes": size_bytes,
            "share": size_bytes / total_bytes,
            "alive": ledger_id in report.live_ledgers,
        }
        for ledger_id, size_bytes in by_size
    ]
