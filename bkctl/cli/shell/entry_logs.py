"""The old commands about entry logs: readlog and readlogmetadata."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from bkctl.cli import entrylog
from bkctl.cli.shell.finding import Body, configured_directories, found_file, payload_form, with_id
from bkctl.cli.shell.settings import configuration, new_form, shell_settings
from bkctl.cli.shell.text import print_lines
from bkctl.formats.entry_log import SIZE_BYTES

if TYPE_CHECKING:
    from bkctl.formats.entry_log import ScannedEntry

_INT64_MAX = 2**63 - 1
_OUT_OF_RANGE = (
    "Probably the position range, you have provided is lesser than the LOGFILE_HEADER_SIZE (1024) "
    "or greater than the current log filesize."
)


def readlog(
    log: Annotated[str, typer.Argument(metavar="LOG", help="Entry log: its id in decimal, or its file.")],
    body: Body = False,
    ledger: Annotated[
        str | None, typer.Option("-l", "--ledgerid", metavar="LEDGER", help="Only entries of this ledger.")
    ] = None,
    entry_id: Annotated[
        int,
        typer.Option("-e", "--entryid", metavar="ENTRY", min=-1, max=_INT64_MAX, help="With -l: only this."),
    ] = -1,
    start: Annotated[
        int, typer.Option("-sp", "--startpos", metavar="BYTE", min=-1, help="From this byte on.")
    ] = -1,
    end: Annotated[
        int, typer.Option("-ep", "--endpos", metavar="BYTE", min=-1, help="With -sp: to this byte.")
    ] = -1,
) -> None:
    """Show the entries of an entry log, digests unchecked."""
    from bkctl.cli.shell.record_text import entry_lines

    settings = shell_settings()
    ledger_id = None if ledger is None else settings.parse_ledger_id(ledger)
    if (ledger_id is not None and start >= 0) or (ledger_id is None and entry_id >= 0) or end >= 0 > start:
        raise _usage("take -l, or -l and -e, or -sp, or -sp and -ep")
    if 0 <= end < start:
        raise _usage("-sp is behind -ep")
    conf = configuration()
    log = with_id(log, "log", 10, conf)
    if new_form():
        entrylog.dump(
            log,
            conf,
            ledger=None if ledger_id is None else str(ledger_id),
            entries=None if entry_id < 0 else str(entry_id),
            first=max(start, 0),
            last=None if end < 0 else end + SIZE_BYTES,
            payload=payload_form(body),
        )
        return
    path, log_id = found_file(log, "log", _directories)
    name = f"{log_id} ({log_id:x}.log)"
    one = f" EntryId {entry_id}" if entry_id >= 0 else ""
    if start >= 0:
        what = f" for PositionRange: {start} - {end}"
        nothing = f"Entry log {name} doesn't has any entry in the range {start} - {end}. {_OUT_OF_RANGE}"
    elif ledger_id is not None:
        what = f" for LedgerId {ledger_id} {one and f' for{one}'}"
        nothing = f"LedgerId {ledger_id} {one} is not available in the entry log {name}"
    else:
        what = nothing = ""
    print_lines([f"Scan entry log {name}{what}"])
    found = False
    for entry in _chosen_entries(path, ledger_id, entry_id, start, end):
        found = True
        print_lines(entry_lines(entry.position - SIZE_BYTES, entry.entry, settings, body=body))
    if not found and nothing:
        print_lines([nothing])


def _chosen_entries(
    path: Path, ledger_id: int | None, entry_id: int, start: int, end: int
) -> "Iterator[ScannedEntry]":
    from bkctl.offline.entry_logs import entries

    for entry in entries(path):
        if start >= 0:
            if 0 <= end < entry.position - SIZE_BYTES:
                return
            if entry.position + len(entry.entry) > start:
                yield entry
        elif ledger_id in (None, entry.ledger_id) and entry_id in (-1, entry.entry_id):
            yield entry
            if entry_id >= 0:
                return


def readlogmetadata(
    log: Annotated[str, typer.Argument(metavar="LOG", help="Entry log: its id in HEXADECIMAL, or its file.")],
) -> None:
    """Show how many bytes of which ledgers an entry log holds."""
    settings = shell_settings()
    conf = configuration()
    log = with_id(log, "log", 16, conf)
    if new_form():
        entrylog.show(log, conf)
        return
    path, log_id = found_file(log, "log", _directories)
    _, _, sizes = entrylog.ledger_sizes(path)
    total = sum(sizes.values())
    print_lines(
        [
            f"Print entryLogMetadata of entrylog {log_id} ({log_id:x}.log)",
            f"entryLogId: {log_id}, remaining size: {total}, total size: {total}, usage: {float(total > 0)}",
        ]
    )
    print_lines(
        f"--------- Lid={settings.ledger_id_text(ledger_id)}, TotalSizeOfEntriesOfLedger={size}  ---------"
        for ledger_id, size in sizes.items()
    )


def _directories() -> tuple[Path, ...]:
    return configured_directories().ledgers


def _usage(reason: str) -> click.UsageError:
    return click.UsageError(reason, ctx=click.get_current_context())


COMMANDS = {command.__name__: command for command in (readlog, readlogmetadata)}
