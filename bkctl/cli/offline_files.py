"""What `bkctl journal` and `bkctl entrylog` share: naming files, passwords, payloads, what damage looks like.

A file is named by its path or by its id. A plain number is a decimal id, `0x1a` a hexadecimal one;
`1a.log` or `1a.txn`, as files are called, is the file of that path when there is one, else the id in
hexadecimal. (Java's `readlog` and `readjournal` take a number for decimal, its `readlogmetadata` for
hexadecimal.) A file that is called like a number is named `./17`.
"""

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli.arguments import parse_ledger_id, parse_ledger_range, read_password
from bkctl.cli.bookie_options import bookie_directories
from bkctl.cli.confirm import note
from bkctl.cli.render import Column, Row
from bkctl.errors import BadInputError, CorruptDataError, NotFoundError

if TYPE_CHECKING:
    from bkctl.offline.damage import Damage
    from bkctl.offline.digests import KnownDigests
    from bkctl.offline.directories import BookieDirectories
    from bkctl.offline.entry_logs import Wanted

PasswordFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="A ledger's password, for entries with MAC digests; repeatable. Else BKCTL_LEDGER_PASSWORD.",
    ),
]
LedgerOption = Annotated[
    str | None, typer.Option("--ledger", metavar="LEDGER", help="Only this ledger: 42, 0x2a, or a UUID.")
]
EntryOption = Annotated[
    str | None, typer.Option("--entry", metavar="ENTRIES", help="Only these entries: 7, 0-99, 100-.")
]


class PayloadForm(enum.StrEnum):
    HEX = "hex"
    TEXT = "text"


Payload = Annotated[
    PayloadForm | None,
    typer.Option("--payload", metavar="hex|text", help="Show payloads; text escapes what is no UTF-8."),
]

_PREVIEW_CHARS = 64
PAYLOAD_COLUMN = Column(
    "payload", text=lambda text: text if len(text) <= _PREVIEW_CHARS else text[: _PREVIEW_CHARS - 1] + "…"
)
DAMAGE_COLUMNS = [
    Column("digests_good"),
    Column("digests_bad"),
    Column("digests_unknown"),
    Column("damage_position"),
    Column("damage"),
    Column("lost_bytes"),
    Column("damage_count", wide=True),
    Column(
        "damages",
        wide=True,
        text=lambda damages: "; ".join(f"{d['position']}: {d['detail']}" for d in damages),
    ),
    Column("error"),
]


def named_directories(
    conf: Path | None,
    journals: list[str] | None = None,
    ledgers: list[str] | None = None,
) -> "BookieDirectories | None":
    """None when no option names one; raises as `bookie_directories` does."""
    if conf is None and not journals and not ledgers:
        return None
    return bookie_directories(conf, journals, ledgers, None)


def find_file(text: str, suffix: str, directories: Sequence[Path] | None, option: str) -> Path:
    """The file that is meant by a path, an id or a name; see the top of this module.

    Raises NotFoundError, and BadInputError when an id stands in several directories or in none named.
    """
    is_name = re.fullmatch(rf"[0-9a-f]{{1,16}}\.{suffix}", text) is not None
    if is_name and directories is not None and not Path(text).exists():
        number = int(text.removesuffix(f".{suffix}"), 16)
    elif re.fullmatch(r"[0-9]{1,20}", text):
        number = int(text)
    elif re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", text):
        number = int(text, 16)
    else:
        return _path(text)
    name = f"{number:x}.{suffix}"
    if directories is None:
        raise BadInputError(
            f"'{text}' is the id of {name}; add {option} DIR or -c FILE, or name it by its path"
        )
    found = [directory / name for directory in directories if (directory / name).exists()]
    if not found:
        raise NotFoundError(f"no {name} (id {number}) in {', '.join(map(str, directories))}")
    if len(found) > 1:
        raise BadInputError(f"'{text}' is in several directories; name one of {', '.join(map(str, found))}")
    return found[0]


def _path(text: str) -> Path:
    """A file named by its path, with a note when a process has its directory open."""
    from bkctl.offline.directories import BookieDirectories
    from bkctl.offline.files import file_status

    path = Path(text)
    file_status(path)
    for user in BookieDirectories.of([str(path.parent)], []).users():
        note(f"{user}; what is shown may be behind what it knows")
    return path


def known_digests(password_files: list[Path] | None) -> "KnownDigests":
    """Raises BadInputError for a password file that cannot be read."""
    from bkctl.offline.digests import KnownDigests

    passwords = [read_password(path) for path in password_files or ()] or [read_password(None)]
    return KnownDigests([password for password in passwords if password is not None])


def wanted_entries(ledger: str | None, entries: str | None) -> "Wanted":
    """Raises BadInputError."""
    from bkctl.offline.entry_logs import Wanted

    ledger_id = None if ledger is None else parse_ledger_id(ledger)
    if entries is None:
        return Wanted(ledger_id)
    parsed = parse_ledger_range(f"{ledger or 0}:{entries}")
    return Wanted(ledger_id, parsed.first, parsed.last)


def payload_text(payload: bytes, form: PayloadForm) -> str:
    return payload.hex() if form is PayloadForm.HEX else payload.decode("utf-8", "backslashreplace")


def entry_cells(
    ledger_id: int, entry_id: int, entry: bytes, known: "KnownDigests", payload: PayloadForm | None
) -> Row:
    """What the header of an entry says; with its digest type unknown, the payload begins with the digest.

    Entries too short for a header have none of it.
    """
    from bkctl.formats.entry import HEADER_BYTES, read_header

    cells: dict[str, Any] = {"lac": None, "length": None, "digest": None, "payload_bytes": None}
    if len(entry) >= HEADER_BYTES:
        header = read_header(entry)
        digester = known.of(ledger_id, entry_id, entry)
        payload_at = HEADER_BYTES + (digester.digest_bytes if digester else 0)
        cells["lac"], cells["length"] = header.lac, header.length
        if digester is not None:
            cells["digest"] = digester.digest_type.name
            cells["payload_bytes"] = len(entry) - payload_at
        if payload is not None:
            cells["payload"] = payload_text(entry[payload_at:], payload)
    return cells


ENTRY_COLUMNS = [
    Column("lac"),
    Column("length"),
    Column("payload_bytes"),
    Column("digest", wide=True),
]


def damage_cells(
    damages: "Sequence[Damage]", damage_count: int, lost_bytes: int, error: str | None
) -> dict[str, Any]:
    first = damages[0] if damages else None
    return {
        "damage_position": first.position if first else None,
        "damage": first.detail if first else None,
        "lost_bytes": lost_bytes,
        "damage_count": damage_count,
        "damages": [
            {
                "position": damage.position,
                "end": damage.end,
                "detail": damage.detail,
                "ledger_id": damage.ledger_id,
                "entry_id": damage.entry_id,
            }
            for damage in damages
        ],
        "error": error,
    }


def verified(paths: Sequence[Path], verify: Callable[[Path], Row], failures: list[Row]) -> Iterable[Row]:
    """A row for each file, as `verify` makes it; those with trouble also go to `failures`.

    Raises OSError for the only file; among several it becomes a row of state `unreadable`.
    """
    for path in paths:
        try:
            row = verify(path)
        except OSError as error:
            if len(paths) == 1:
                raise
            row = {"path": str(path), "state": "unreadable", "error": error.strerror or str(error)}
        if row["state"] not in ("ok", "empty", "torn tail"):
            failures.append(row)
        yield row


def raise_damage(failures: Sequence[Row], count: int) -> None:
    """Raises CorruptDataError when there are failures, in one line."""
    if not failures:
        return
    first = failures[0]
    where = "" if first.get("damage_position") is None else f" at byte {first['damage_position']}"
    line = f"{first['path']} is {first['state']}{where}: {first.get('damage') or first.get('error')}"
    raise CorruptDataError(
        line if count == 1 else f"{len(failures)} of {count} files are damaged; first, {line}"
    )
