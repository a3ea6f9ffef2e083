"""`bkctl journal`: a bookie's journals, looked at without its process."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli.app import group
from bkctl.cli.bookie_options import ConfFile, Journals, Ledgers, bookie_directories
from bkctl.cli.exit_codes import ExitCode
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
    payload_text,
    raise_damage,
    verified,
    wanted_entries,
)
from bkctl.cli.options import Output, global_options
from bkctl.cli.render import Column, Row, RowWriter, emit, format_bytes
from bkctl.errors import BadInputError, CorruptDataError

if TYPE_CHECKING:
    from bkctl.formats.journal import JournalRecord
    from bkctl.offline.digests import KnownDigests
    from bkctl.offline.directories import BookieDirectories
    from bkctl.offline.entry_logs import Wanted
    from bkctl.offline.journals import JournalFile

app = group("Journals on this machine: list, marks, records, damage. Read-only.")

_FILE_HELP = "A path, or with -j or -c an id: 17 (decimal), 0x11, 11.txn."
FileArgument = Annotated[str, typer.Argument(metavar="FILE|ID", help=_FILE_HELP)]


@app.command("list")
def list_journals(
    conf: ConfFile = None,
    journals: Journals = None,
    ledgers: Ledgers = None,
    count_records: Annotated[
        bool, typer.Option("--records", help="Count records too; reads every file to its end.")
    ] = False,
) -> None:
    """List the journal files. `mark`: before, at or after the last mark, where ledger directories tell it."""
    from bkctl.offline.journals import journal_files, last_marks

    directories = bookie_directories(conf, journals, ledgers, None)
    if not directories.journals:
        raise BadInputError("no journal directories named; add -j DIR")
    marks = last_marks(directories)
    rows = []
    for file in journal_files(directories.journals):
        relation = None
        if marks is not None:
            at = marks[file.journal].journal_id
            relation = "before" if file.journal_id < at else "at" if file.journal_id == at else "after"
        rows.append(_file_row(file, relation, count_records=count_records))
    columns = [column for column in _FILE_COLUMNS if count_records or column.key != "records"]
    emit("JournalList", rows, columns)
    if any(row["error"] for row in rows):
        raise typer.Exit(ExitCode.PARTIAL)


_FILE_COLUMNS = [
    Column("journal_id"),
    Column("name"),
    Column("journal"),
    Column("version"),
    Column("size", text=format_bytes),
    Column("allocated_bytes", text=format_bytes),
    Column("records"),
    Column("mark"),
    Column("error"),
    Column("path", wide=True),
]


def _file_row(file: "JournalFile", relation: str | None, *, count_records: bool) -> Row:
    from bkctl.offline.journals import record_count

    row: dict[str, Any] = {
        "journal_id": file.journal_id,
        "name": file.path.name,
        "journal": file.journal,
        "path": str(file.path),
        "version": file.version,
        "size": file.size_bytes,
        "allocated_bytes": file.allocated_bytes,
        "mark": relation,
        "error": file.error,
    }
    if count_records:
        row["records"] = record_count(file.path) if file.error is None else None
    return row


@app.command("mark")
def mark(conf: ConfFile = None, journals: Journals = None, ledgers: Ledgers = None) -> None:
    """Show the last mark of each journal as each ledger directory has it; `counts`: a start uses this one.

    Exit code 7 when a lastMark cannot be read.
    """
    from bkctl.formats.journal import file_name
    from bkctl.offline.journals import recorded_marks

    directories = bookie_directories(conf, journals, ledgers, None)
    if not directories.ledgers:
        raise BadInputError("no ledger directories named; add -l DIR: they hold the marks")
    rows = []
    for recorded in recorded_marks(directories):
        at = recorded.mark
        exists = None
        if at is not None and directories.journals:
            exists = (directories.journals[recorded.journal] / file_name(at.journal_id)).exists()
        rows.append(
            {
                "journal": recorded.journal,
                "journal_id": at.journal_id if at else None,
                "name": file_name(at.journal_id) if at else None,
                "position": at.offset if at else None,
                "counts": recorded.counts,
                "file_exists": exists,
                "state": recorded.state,
                "path": str(recorded.path),
            }
        )
    emit("JournalMarkList", rows, _MARK_COLUMNS)
    broken = [row for row in rows if row["state"] not in ("ok", "missing")]
    if broken:
        raise CorruptDataError(f"{broken[0]['path']}: {broken[0]['state']}")


_MARK_COLUMNS = [
    Column("journal"),
    Column("journal_id"),
    Column("name"),
    Column("position"),
    Column("counts"),
    Column("file_exists"),
    Column("state"),
    Column("path"),
]


@app.command("dump")
def dump(
    file: FileArgument,
    conf: ConfFile = None,
    journals: Journals = None,
    offset: Annotated[
        int, typer.Option("--from", min=0, metavar="OFFSET", help="Begin with the record at this byte.")
    ] = 0,
    ledger: LedgerOption = None,
    entries: EntryOption = None,
    payload: Payload = None,
    password_files: PasswordFiles = None,
) -> None:
    """Show the records of a journal file, one row each; on a terminal as a table, else as lines of JSON.

    The file is named by its path or, with -j or -c, by its id: 26 (decimal), 0x1a or 1a.txn. `position`
    is that of the record's length field, `size` what the length says. Exit code 7 at damage.
    """
    from bkctl.offline.files import file_status
    from bkctl.offline.journals import records

    wanted, known = wanted_entries(ledger, entries), known_digests(password_files)
    directories = named_directories(conf, journals)
    path = find_file(file, "txn", directories.journals if directories else None, "-j")
    if offset > (size := file_status(path).st_size):
        raise BadInputError(f"--from {offset} is beyond the {size} bytes of {path}")
    default = Output.TABLE if sys.stdout.isatty() else Output.JSONL
    columns = [*_RECORD_COLUMNS, PAYLOAD_COLUMN] if payload else _RECORD_COLUMNS
    writer = RowWriter("JournalRecordList", columns, global_options(), default=default, stream=sys.stdout)
    try:
        writer.write(_record_rows(records(path, offset), wanted, known, payload))
    except CorruptDataError:
        writer.flush()
        raise
    writer.end()


_RECORD_COLUMNS = [
    Column("position"),
    Column("size"),
    Column("ledger_id"),
    Column("entry_id"),
    Column("kind"),
    *ENTRY_COLUMNS,
]


def _record_rows(
    found: "Iterator[JournalRecord]", wanted: "Wanted", known: "KnownDigests", payload: PayloadForm | None
) -> Iterator[Row]:
    """`--entry` leaves out the records that are no entries."""
    from bkctl.formats.entry import LAC_HEADER
    from bkctl.formats.journal import RecordKind

    only_entries = (wanted.first, wanted.last) != (0, None)
    for record in found:
        is_entry = record.kind is RecordKind.ENTRY
        if not wanted.holds(record.ledger_id, max(record.entry_id, 0)) or (only_entries and not is_entry):
            continue
        row: dict[str, Any] = {
            "position": record.position,
            "size": len(record.body),
            "ledger_id": record.ledger_id,
            "entry_id": record.entry_id if is_entry or record.kind is RecordKind.UNKNOWN else None,
            "kind": record.kind.name.lower(),
        }
        if is_entry:
            row |= entry_cells(record.ledger_id, record.entry_id, record.body, known, payload)
        else:
            row |= {"lac": None, "length": None, "digest": None, "payload_bytes": len(record.value)}
            if record.kind is RecordKind.EXPLICIT_LAC and len(record.value) >= LAC_HEADER.size:
                row["lac"] = LAC_HEADER.unpack_from(record.value)[1]
            if payload is not None:
                row["payload"] = payload_text(record.value, payload)
        yield row


@app.command("verify")
def verify(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE|ID]...", help=f"{_FILE_HELP} None: all of -j or -c.")
    ] = None,
    conf: ConfFile = None,
    journals: Journals = None,
    ledgers: Ledgers = None,
    password_files: PasswordFiles = None,
) -> None:
    """Check every record, and the digests of entries as far as they can be told.

    Files are named by their paths or, with -j or -c, by their ids: 26 (decimal), 0x1a or 1a.txn. None: all.
    A torn tail is what a crash leaves: not damage. `lost_bytes` cannot be read; what is behind the first
    damage (`records_behind`, `ledgers_behind`) may be whole, but a start of the bookie does not reach it.
    `digests_unknown`: MAC without its password, DUMMY, or nothing of the ledger fits. Exit code 7 for damage.
    """
    from bkctl.offline.files import file_status

    known = known_digests(password_files)
    directories = named_directories(conf, journals, ledgers)
    named = directories.journals if directories and directories.journals else None
    if files:
        paths = [find_file(text, "txn", named, "-j") for text in files]
    elif named is None:
        raise BadInputError("no journals named; name files, or give -j DIR or -c FILE")
    else:
        from bkctl.offline.journals import journal_files

        paths = [file.path for file in journal_files(named)]
    for path in paths:
        file_status(path)
    failures: list[Row] = []

    def check(path: Path) -> Row:
        return _verify_row(path, known, directories)

    emit("JournalVerification", verified(paths, check, failures), _VERIFY_COLUMNS)
    raise_damage(failures, len(paths))


_VERIFY_COLUMNS = [
    Column("path"),
    Column("state"),
    Column("version"),
    Column("records"),
    *DAMAGE_COLUMNS,
    Column("records_behind"),
    Column("entries", wide=True),
    Column("ledgers_behind", wide=True),
    Column("data_end", wide=True),
]


def _verify_row(path: Path, known: "KnownDigests", directories: "BookieDirectories | None") -> Row:
    from bkctl.offline.journal_check import verify
    from bkctl.offline.journals import is_youngest

    report = verify(path, known, is_last=is_youngest(path), mark=_mark_in(path, directories))
    digests = report.digests
    return {
        "path": str(path),
        "state": str(report.state),
        "version": report.version,
        "records": report.records,
        "entries": report.entries,
        "digests_good": digests.good if digests else 0,
        "digests_bad": digests.bad if digests else 0,
        "digests_unknown": digests.unknown if digests else 0,
        **damage_cells(report.damages, report.damage_count, report.lost_bytes, report.error),
        "records_behind": report.records_behind,
        "ledgers_behind": report.ledgers_behind,
        "data_end": report.data_end,
    }


def _mark_in(path: Path, directories: "BookieDirectories | None") -> Any:
    """The last mark of the file's journal, when it lies in this file."""
    from bkctl.formats.journal import file_name
    from bkctl.offline.journals import last_marks

    marks = last_marks(directories) if directories else None
    for directory, at in zip(directories.journals if directories else (), marks or (), strict=False):
        if path == directory / file_name(at.journal_id):
            return at
    return None
