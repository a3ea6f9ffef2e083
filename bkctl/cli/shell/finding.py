"""Which file of a bookie the old command lines mean, and how -o wants its payloads."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkctl.cli.bookie_options import bookie_directories
from bkctl.cli.offline_files import PayloadForm, find_file
from bkctl.cli.shell.settings import configuration, shell_settings
from bkctl.errors import BadInputError

if TYPE_CHECKING:
    from bkctl.offline.directories import BookieDirectories

Body = Annotated[bool, typer.Option("-m", "--msg", help="Also the body: digest and payload.")]


def configured_conf() -> Path:
    """Raises BadInputError when there is none."""
    conf = configuration()
    if conf is None:
        raise BadInputError("which bookie? give -conf FILE before the command, or set BOOKIE_CONF")
    return conf


def configured_directories() -> "BookieDirectories":
    """Raises as `configured_conf`, and NotFoundError when a directory is not there."""
    return bookie_directories(configured_conf(), None, None, None)


def with_id(text: str, suffix: str, base: int, named: Path | None) -> str:
    """An id as the new commands take it, from a bare number in `base`, or from the name of a file when
    directories are `named` (a configuration, or one directory); any other text as it is: a path.

    Raises BadInputError for a number when none are: nothing tells where the file may be.
    """
    if re.fullmatch("[0-9]{1,19}" if base == 10 else "[0-9a-fA-F]{1,16}", text):
        if named is None:
            configured_conf()
        return f"0x{int(text, base):x}"
    name = re.fullmatch(rf"([0-9a-f]{{1,16}})\.{suffix}", text)
    return text if name is None or named is None else f"0x{name[1]}"


def found_file(text: str, suffix: str, directories: Callable[[], Sequence[Path]]) -> tuple[Path, int]:
    """(path, id) of an entry log or a journal that `with_id` gave; ids are looked for in `directories`.

    Upstream takes the id from a path, and looks in the directories all the same.
    """
    is_id = text.startswith("0x")
    path = find_file(text, suffix, directories() if is_id else None, "-conf")
    match = re.fullmatch(rf"([0-9a-f]{{1,16}})\.{suffix}", path.name)
    if match is None:
        raise BadInputError(f"{path} is not called as entry logs (1a.log) and journals (1a.txn) are")
    return path, int(match[1], 16)


def payload_form(body: bool) -> PayloadForm | None:
    if not body:
        return None
    return PayloadForm.HEX if shell_settings().entry_format == "hex" else PayloadForm.TEXT
