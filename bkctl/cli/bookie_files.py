"""`bkctl bookie files`: the files of a bookie on this machine."""

from typing import Annotated

import typer

from bkctl.cli.bookie_options import ConfFile, Indexes, Journals, Ledgers, bookie_directories
from bkctl.cli.render import Column, emit, format_bytes
from bkctl.errors import BadInputError

_COLUMNS = [
    Column("path"),
    Column("type"),
    Column("size_bytes", text=format_bytes),
    Column("id"),
]


def files(
    conf: ConfFile = None,
    journals: Journals = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="journal|entrylog|index|cookie|mark|status|other",
            help="Only files of this type.",
        ),
    ] = None,
) -> None:
    """List the files in a bookie's directories: what each is for, its size, and the id in its name.

    Apache BookKeeper's `listfilesondisc`.
    """
    from bkctl.offline.inventory import FileType, bookie_files

    if kind is not None and kind not in set(FileType):
        raise BadInputError(f"no type '{kind}'; there are {', '.join(FileType)}")
    rows = (
        {"path": str(file.path), "type": str(file.type), "size_bytes": file.size_bytes, "id": file.file_id}
        for file in bookie_files(bookie_directories(conf, journals, ledgers, indexes))
        if kind in (None, file.type)
    )
    emit("BookieFileList", rows, _COLUMNS)
