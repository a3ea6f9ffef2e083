"""The old commands about a bookie's directories: listfilesondisc, and `ledger`, which reads the index."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkctl.cli.arguments import parse_ledger_id
from bkctl.cli.bookie_files import files
from bkctl.cli.index import show
from bkctl.cli.shell.finding import configured_conf, configured_directories
from bkctl.cli.shell.settings import new_form, shell_settings
from bkctl.cli.shell.text import print_lines
from bkctl.errors import NotFoundError
from bkctl.types import LedgerId

if TYPE_CHECKING:
    from bkctl.offline.indexes import Index


def listfilesondisc(
    journals: Annotated[bool, typer.Option("-txn", "--journal", help="Journals.")] = False,
    logs: Annotated[
        bool, typer.Option("-log", "--entrylog", help="Entry logs, and RocksDB's logs beside them.")
    ] = False,
    indexes: Annotated[bool, typer.Option("-idx", "--index", help="Index files of ledgers.")] = False,
) -> None:
    """List the files in a bookie's directories, oldest first; all three kinds if none is named."""
    kinds = {"journal": journals, "entrylog": logs, "index": indexes}
    chosen = [kind for kind, flag in kinds.items() if flag]
    if new_form():
        files(configured_conf(), kind=chosen[0] if len(chosen) == 1 else None)
        return
    directories = configured_directories()
    every = not chosen
    if journals or every:
        print_lines(["--------- Printing the list of Journal Files ---------"])
        print_lines([*_files(directories.journals, "txn"), ""])
    if logs or every:
        print_lines(["--------- Printing the list of EntryLog/Ledger Files ---------"])
        print_lines([*_files(directories.ledgers, "log"), ""])
    if indexes or every:
        print_lines(["--------- Printing the list of Index Files ---------"])
        print_lines(_files(directories.indexes, "idx"))


def _files(directories: Sequence[Path], suffix: str) -> list[str]:
    """By extension and at any depth, as upstream looks for them."""
    found = []
    for path in {path for directory in directories for path in directory.rglob(f"*.{suffix}")}:
        with suppress(FileNotFoundError):  # deleted meanwhile
            found.append((path.stat().st_mtime_ns, str(path)))
    return [path for _, path in sorted(found)]


def ledger(
    ledger_id: Annotated[str, typer.Argument(metavar="LEDGER", help="Ledger id, in decimal.")],
    meta: Annotated[bool, typer.Option("-m", "--meta", help="Also its facts, from .idx files only.")] = False,
) -> None:
    """Show where a bookie's index says that the entries of a ledger are."""
    from bkctl.offline.indexes import find_indexes

    wanted = parse_ledger_id(ledger_id)
    if new_form():
        show(str(wanted), configured_conf(), entries=None if meta else "0-", master_key=meta)
        return
    known = [index for index in find_indexes(configured_directories()) if index.ledger(wanted) is not None]
    if not known:
        raise NotFoundError(f"no directory of this bookie knows ledger {wanted}")
    for index in known:
        lines = _db_lines if index.kind == "db" else _idx_lines
        print_lines(lines(index, wanted, meta))


def _db_lines(index: "Index", ledger_id: LedgerId, _meta: bool) -> Iterator[str]:
    """Upstream shows no facts of the ledger here."""
    for entry_id, log_id, position in _places(index, ledger_id):
        yield f"entry {entry_id}\t:\t(log: {log_id}, pos: {position})"


def _idx_lines(index: "Index", ledger_id: LedgerId, meta: bool) -> Iterator[str]:
    from bkctl.formats.index_file import HEADER_BYTES, SLOT_BYTES, index_file_path

    data, path = index.ledger(ledger_id), index.directory / index_file_path(ledger_id)
    size_bytes = max(0, path.stat().st_size - HEADER_BYTES)
    title = f"===== LEDGER: {shell_settings().ledger_id_text(ledger_id)} ====="
    if meta and data is not None:
        odd = "(not aligned with 8, may be corrupted or under flushing now)"
        yield title
        yield f"master key  : {data.master_key.hex()}"
        yield f"size : {size_bytes}{odd}" if size_bytes % SLOT_BYTES else f"size         : {size_bytes}"
        yield f"entries      : {size_bytes // SLOT_BYTES}"
        yield f"isFenced     : {str(data.fenced).lower()}"
    yield title
    following = 0
    for entry_id, log_id, position in _places(index, ledger_id):
        yield from (f"entry {absent}\t:\tN/A" for absent in range(following, entry_id))
        yield f"entry {entry_id}\t:\t(log:{log_id}, pos: {position})"
        following = entry_id + 1
    yield from (f"entry {absent}\t:\tN/A" for absent in range(following, size_bytes // SLOT_BYTES))


def _places(index: "Index", ledger_id: LedgerId) -> Iterator[tuple[int, int, int]]:
    """(entry id, log id, position), also of a location that points at nothing."""
    from bkctl.offline.indexes import entry_of

    with index.locations() as locations:
        for batch in locations.records(ledger_id):
            for _, entry_id, location in map(entry_of, batch):
                yield entry_id, location >> 32, location & 0xFFFF_FFFF


COMMANDS = {command.__name__: command for command in (listfilesondisc, ledger)}
