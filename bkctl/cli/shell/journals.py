"""The old commands about journals: readjournal and lastmark."""

from pathlib import Path
from typing import Annotated

import typer

from bkctl.cli.bookie_options import bookie_directories
from bkctl.cli.journal import dump, mark
from bkctl.cli.shell.finding import (
    Body,
    configured_conf,
    configured_directories,
    found_file,
    payload_form,
    with_id,
)
from bkctl.cli.shell.settings import configuration, new_form, shell_settings
from bkctl.cli.shell.text import print_lines
from bkctl.errors import BadInputError


def readjournal(
    journal: Annotated[
        str, typer.Argument(metavar="JOURNAL", help="Journal file: its id in decimal, or its name.")
    ],
    directory: Annotated[
        str | None,
        typer.Option("-dir", metavar="DIR", help="Its directory; needed when the bookie has several."),
    ] = None,
    body: Body = False,
) -> None:
    """Show the records of a journal."""
    from bkctl.cli.shell.record_text import record_lines
    from bkctl.offline.journals import file_version, records

    conf = configuration()
    journal = with_id(journal, "txn", 10, conf if directory is None else Path(directory))
    if new_form():
        if directory is None:
            dump(journal, conf, payload=payload_form(body))
        else:
            dump(journal, journals=[directory], payload=payload_form(body))
        return
    settings = shell_settings()
    path, journal_id = found_file(journal, "txn", lambda: _directories(directory))
    version = file_version(path)
    print_lines([f"Scan journal {journal_id} ({journal_id:x}.txn)"])
    for count, record in enumerate(records(path)):
        if not count:
            print_lines([f"Journal Version : {version}"])
        print_lines(record_lines(record, settings, body=body))


def _directories(directory: str | None) -> tuple[Path, ...]:
    if directory is not None:
        return bookie_directories(None, [directory], None, None).journals
    found = configured_directories().journals
    if len(found) > 1:
        raise BadInputError(f"the bookie has {len(found)} journals; say with -dir which: {found[0]} …")
    return found


def lastmark() -> None:
    """Show where in its journals the bookie would begin to replay."""
    from bkctl.offline.journals import last_marks

    if new_form():
        mark(configured_conf())
        return
    print_lines(
        f"LastLogMark : Journal Id - {at.journal_id}({at.journal_id:x}.txn), Pos - {at.offset}"
        for at in last_marks(configured_directories()) or []
    )


COMMANDS = {command.__name__: command for command in (readjournal, lastmark)}
