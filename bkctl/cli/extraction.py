"""Entries on their way out of an entry log: to stdout, to one new file, or to a file for each.

What fails leaves no file behind, and no file that was there is touched.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bkctl.cli.entry_framing import Framing, framed
from bkctl.errors import BadInputError, ConflictError, RefusedError

Groups = Iterable[tuple[list[int], list[bytes]]]  # (entry ids, payloads)

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def file_of_entries(to: Path | None, log: Path, framing: Framing) -> bool:
    """Whether each entry gets a file of its own: `to` is a directory.

    Raises BadInputError, RefusedError (`to` lies among the bookie's files), ConflictError (it exists).
    """
    per_file = to is not None and to.is_dir()
    if framing is Framing.FILE and not per_file:
        raise BadInputError("--entry-per file wants a directory that is there as --to")
    if to is None:
        return False
    directory = to if per_file else to.parent
    if not directory.is_dir():
        raise BadInputError(f"cannot write {to}: there is no directory {directory}")
    if directory.resolve() == log.resolve().parent and directory.resolve().name == "current":
        raise RefusedError(f"{directory} is the bookie's own directory; write somewhere else")
    if not per_file and os.path.lexists(to):
        raise ConflictError(f"{to} exists; nothing is overwritten, name another file")
    return per_file


def write_stream(to: Path | None, groups: Groups, framing: Framing) -> int:
    """All entries in one stream, stdout or a new file; how many."""
    if to is None:
        sys.stdout.flush()
        return _write_framed(sys.stdout.buffer.write, groups, framing)
    try:
        descriptor = os.open(to, _NEW_FILE, 0o644)
    except FileExistsError:
        raise ConflictError(f"{to} exists; nothing is overwritten, name another file") from None
    try:
        with open(descriptor, "wb") as file:
            return _write_framed(file.write, groups, framing)
    except BaseException:
        to.unlink()
        raise


def write_files(to: Path, ledger_id: int, groups: Groups) -> int:
    """A file `LEDGER-ENTRY.entry` for each entry, zero-padded to sort by entry id; how many."""
    made: list[Path] = []
    try:
        for entry_ids, payloads in groups:
            for entry_id, payload in zip(entry_ids, payloads, strict=True):
                path = to / f"{ledger_id}-{entry_id:019}.entry"
                try:
                    descriptor = os.open(path, _NEW_FILE, 0o644)
                except FileExistsError:
                    raise ConflictError(f"{path} exists; nothing is overwritten") from None
                made.append(path)
                with open(descriptor, "wb") as file:
                    file.write(payload)
    except BaseException:
        for path in made:
            path.unlink()
        raise
    return len(made)


def _write_framed(write: Callable[[bytes], object], groups: Groups, framing: Framing) -> int:
    count = 0
    for entry_ids, payloads in groups:
        if framing is Framing.LINE:
            for entry_id, payload in zip(entry_ids, payloads, strict=True):
                if b"\n" in payload:
                    raise BadInputError(f"entry {entry_id} contains a newline; take --entry-per len")
        write(framed(payloads, framing))
        count += len(payloads)
    return count
