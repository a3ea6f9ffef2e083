"""`bkctl entrylog`: a bookie's entry logs, looked at without its process."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkctl.cli.app import group
from bkctl.cli.arguments import parse_digest
from bkctl.cli.bookie_options import ConfFile, Ledgers, bookie_directories
from bkctl.cli.confirm import note
from bkctl.cli.entry_framing import Framing
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.extraction import file_of_entries, write_files, write_stream
from bkctl.cli.offline_files import (
    DAMAGE_COLUMNS,
    ENTRY_COLUMNS,
    PAYLOAD_COLUMN,
    EntryOption,
    LedgerOption,
    PasswordFiles,
    Payload,
    PayloadForm,
    damage_cells,
    entry_cells,
    find_file,
    known_digests,
    named_directories,
    raise_damage,
    verified,
    wanted_entries,
)
from bkctl.cli.options import Output, global_options
from bkctl.cli.render import Column, Row, RowWriter, emit, format_bytes
from bkctl.errors import BadInputError, CorruptDataError

if TYPE_CHECKING:
    from bkctl.formats.entry_log import ScannedEntry
    from bkctl.offline.digests import KnownDigests
    from bkctl.offline.entry_logs import LogFile, Wanted

app = group("Entry logs on this machine: list, ledgers, entries, damage, extraction. Read-only.")

_LOG_HELP = "A path, or with -l or -c an id: 26 (decimal), 0x1a, 1a.log."
LogArgument = Annotated[str, typer.Argument(metavar="LOG", help=_LOG_HELP)]


@app.command("list")
def list_logs(conf: ConfFile = None, ledgers: Ledgers = None) -> None:
    """List the entry logs. `ledgers`: how many the ledgers map of a sealed log holds.

    Exit code 9 when a header cannot be read.
    """
    from bkctl.offline.entry_logs import log_files

    directories = bookie_directories(conf, None, ledgers, None)
    rows = [_log_row(log) for log in log_files(directories.ledgers)]
    emit("EntryLogList", rows, _LOG_COLUMNS)
    if any(row["error"] for row in rows):
        raise typer.Exit(ExitCode.PARTIAL)


_LOG_COLUMNS = [
    Column("log_id"),
    Column("name"),
    Column("size", text=format_bytes),
    Column("sealed"),
    Column("ledgers"),
    Column("error"),
    Column("path"),
    Column("version", wide=True),
    Column("ledgers_map_position", wide=True),
]


def _log_row(log: "LogFile") -> Row:
    header = log.header
    return {
        "log_id": log.log_id,
        "name": log.path.name,
        "size": log.size_bytes,
        "sealed": log.sealed,
        "ledgers": header.ledgers_count if header and log.sealed else None,
        "error": log.error,
        "path": str(log.path),
        "version": header.version if header else None,
        "ledgers_map_position": header.ledgers_map_offset if header and log.sealed else None,
    }


@app.command("show")
def show(log: LogArgument, conf: ConfFile = None, ledgers: Ledgers = None) -> None:
    """Show the ledgers in a log and their bytes, size fields included; a note tells what the header says.

    The log is named by its path or, with -l or -c, by its id: 26 (decimal), 0x1a or 1a.log.
    `source`: the ledgers map, or for a log without a readable one a scan of its entries.
    """
    path = _log_path(log, conf, ledgers)
    found, source, sizes = ledger_sizes(path)
    if found.header is not None:
        seal = (
            f"sealed, ledgers map at byte {found.header.ledgers_map_offset}" if found.sealed else "not sealed"
        )
        note(f"{path}: version {found.header.version}, {found.size_bytes} bytes, {seal}")
    rows = [
        {"ledger_id": i, "bytes": sizes[i], "source": source, "log_id": found.log_id} for i in sorted(sizes)
    ]
    emit("EntryLogLedgerList", rows, _LEDGER_COLUMNS)


_LEDGER_COLUMNS = [
    Column("ledger_id"),
    Column("bytes"),
    Column("source"),
    Column("log_id", wide=True),
]


def ledger_sizes(path: Path) -> "tuple[LogFile, str, dict[int, int]]":
    """The log, "map" or "scan", and what that tells: ledger id -> bytes. Raises CorruptDataError, OSError."""
    from bkctl.offline.entry_logs import log_file, read_ledgers_map, scanned_ledgers
    from bkctl.offline.files import opened

    found = log_file(path)
    if found.error is not None:
        raise CorruptDataError(f"{path}: {found.error}")
    if found.header is None:
        note(f"{path} is empty: allocated ahead, or never written")
        return found, "map", {}
    try:
        if found.sealed:
            with opened(path) as (read, size_bytes):
                return found, "map", read_ledgers_map(read, size_bytes, found.header)
    except CorruptDataError as error:
        note(f"{path}: {error}; the entries are scanned instead")
    return found, "scan", scanned_ledgers(path)


@app.command("dump")
def dump(
    log: LogArgument,
    conf: ConfFile = None,
    ledgers: Ledgers = None,
    ledger: LedgerOption = None,
    entries: EntryOption = None,
    first: Annotated[
        int, typer.Option("--from", min=0, metavar="POSITION", help="From this position on.")
    ] = 0,
    last: Annotated[
        int | None, typer.Option("--to", min=0, metavar="POSITION", help="Up to this position, included.")
    ] = None,
    payload: Payload = None,
    password_files: PasswordFiles = None,
) -> None:
    """Show the entries of a log, one row each; on a terminal as a table, else as lines of JSON.

    The log is named by its path or, with -l or -c, by its id: 26 (decimal), 0x1a or 1a.log.
    `position` is that of a location in the index: of the entry itself, four bytes behind its size field
    (Java's `readlog` shows that of the size field). Exit code 7 at damage; an entry that the end of the
    file cuts off is not shown.
    """
    from bkctl.offline import entry_logs

    wanted, known = wanted_entries(ledger, entries), known_digests(password_files)
    path = _log_path(log, conf, ledgers)
    default = Output.TABLE if sys.stdout.isatty() else Output.JSONL
    columns = [*_ENTRY_COLUMNS, PAYLOAD_COLUMN] if payload else _ENTRY_COLUMNS
    writer = RowWriter("EntryLogEntryList", columns, global_options(), default=default, stream=sys.stdout)
    try:
        writer.write(_entry_rows(entry_logs.entries(path), wanted, (first, last), known, payload))
    except CorruptDataError as error:
        writer.flush()
        raise CorruptDataError(f"{path}: {error}; 'bkctl entrylog verify' tells what is behind it") from error
    writer.end()


_ENTRY_COLUMNS = [
    Column("position"),
    Column("size"),
    Column("ledger_id"),
    Column("entry_id"),
    *ENTRY_COLUMNS,
]


def _entry_rows(
    found: "Iterator[ScannedEntry]",
    wanted: "Wanted",
    positions: tuple[int, int | None],
    known: "KnownDigests",
    payload: PayloadForm | None,
) -> Iterator[Row]:
    first, last = positions
    for entry in found:
        if last is not None and entry.position > last:
            return
        if entry.position >= first and wanted.holds(entry.ledger_id, entry.entry_id):
            yield {
                "position": entry.position,
                "size": len(entry.entry),
                "ledger_id": entry.ledger_id,
                "entry_id": entry.entry_id,
                **entry_cells(entry.ledger_id, entry.entry_id, entry.entry, known, payload),
            }


@app.command("verify")
def verify(
    logs: Annotated[list[str] | None, typer.Argument(metavar="[LOG]...", help=_LOG_HELP)] = None,
    every: Annotated[bool, typer.Option("--all", help="All logs of the ledger directories.")] = False,
    conf: ConfFile = None,
    ledgers: Ledgers = None,
    password_files: PasswordFiles = None,
) -> None:
    """Check every entry, its digest as far as that can be told, and the ledgers map against the entries.

    Logs are named by their paths or, with -l or -c, by their ids: 26 (decimal), 0x1a or 1a.log.
    A log that is not sealed may end in a torn entry, after a crash: not damage. `digests_unknown`: MAC
    without its password, DUMMY, or nothing of the ledger fits. Exit code 7 for damage.
    """
    from bkctl.offline.files import file_status

    if bool(logs) == every:
        raise BadInputError("name logs to verify, or give --all with -l DIR or -c FILE")
    known = known_digests(password_files)
    directories = named_directories(conf, None, ledgers)
    if logs:
        paths = [find_file(log, "log", directories.ledgers if directories else None, "-l") for log in logs]
    elif directories is None:
        raise BadInputError("no ledger directories named; add -l DIR or -c FILE")
    else:
        from bkctl.offline.entry_logs import log_files

        paths = [log.path for log in log_files(directories.ledgers)]
    for path in paths:
        file_status(path)
    failures: list[Row] = []
    emit("EntryLogVerification", verified(paths, lambda p: _verify_row(p, known), failures), _VERIFY_COLUMNS)
    raise_damage(failures, len(paths))


_VERIFY_COLUMNS = [
    Column("path"),
    Column("state"),
    Column("sealed"),
    Column("entries"),
    Column("ledgers"),
    *DAMAGE_COLUMNS,
    Column("entries_behind"),
    Column("lost_by_ledger", wide=True),
]


def _verify_row(path: Path, known: "KnownDigests") -> Row:
    from bkctl.offline.entry_log_check import verify

    report = verify(path, known)
    digests = report.digests
    return {
        "path": str(path),
        "state": str(report.state),
        "sealed": report.sealed,
        "entries": report.entries,
        "ledgers": report.ledgers,
        "digests_good": digests.good if digests else 0,
        "digests_bad": digests.bad if digests else 0,
        "digests_unknown": digests.unknown if digests else 0,
        **damage_cells(report.damages, report.damage_count, report.lost_bytes, report.error),
        "entries_behind": report.entries_behind,
        "lost_by_ledger": {str(ledger_id): size for ledger_id, size in report.lost_by_ledger.items()},
    }


@app.command("extract")
def extract(
    log: LogArgument,
    ledger: Annotated[
        str, typer.Option("--ledger", metavar="LEDGER", help="The ledger: 42, 0x2a, or a UUID.")
    ],
    entries: EntryOption = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE|DIR",
            help="A new file; or a directory that is there: one file per entry. Else stdout.",
        ),
    ] = None,
    entry_per: Annotated[
        Framing,
        typer.Option(
            "--entry-per",
            metavar="len|line|none",
            help="As in `ledger write`. len: a 4-byte big-endian length before each; line: a newline after "
            "each; none: one after the other.",
        ),
    ] = Framing.LEN,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Entries as they are stored, header and digest included, unchecked."),
    ] = False,
    digest: Annotated[
        str | None,
        typer.Option(
            "--digest", metavar="crc32c|crc32|mac|dummy", help="If entries cannot tell: DUMMY, MAC."
        ),
    ] = None,
    conf: ConfFile = None,
    ledgers: Ledgers = None,
    password_files: PasswordFiles = None,
) -> None:
    """Write the payloads of a ledger's entries, ascending and each once, as `ledger write` reads them.

    Only payloads that fit their digest are written, and nothing at all when one does not: exit code 7.
    No file is overwritten.
    """
    from bkctl.formats.entry import Digester
    from bkctl.offline import entry_logs

    wanted, known = wanted_entries(ledger, entries), known_digests(password_files)
    assert wanted.ledger_id is not None
    digester = None
    if digest is not None:
        digester = Digester(parse_digest(digest), known.passwords[0])
    path = _log_path(log, conf, ledgers)
    per_file = file_of_entries(to, path, entry_per)
    groups = entry_logs.extract(path, wanted, known, digester, whole=whole)
    if per_file:
        assert to is not None
        count = write_files(to, wanted.ledger_id, groups)
    else:
        count = write_stream(to, groups, entry_per)
    note(f"{count} {'entries' if count != 1 else 'entry'} of ledger {wanted.ledger_id} written")


def _log_path(log: str, conf: Path | None, ledgers: list[str] | None) -> Path:
    directories = named_directories(conf, None, ledgers)
    return find_file(log, "log", directories.ledgers if directories else None, "-l")
