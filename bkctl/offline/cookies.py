"""The cookie files of a bookie's directories, compared with its configuration and the metadata store.

Source: spec storage section 2; upstream LegacyCookieValidation.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bkctl.errors import CorruptDataError, NotFoundError
from bkctl.formats import cookie as cookie_format
from bkctl.formats.cookie import Cookie

VERSION_NAME = "VERSION"


def read_version(directory: Path) -> tuple[Cookie, bytes]:
    """The cookie in a directory, or in its `current`, and its exact bytes.

    Raises NotFoundError: no such directory, or no VERSION in it; CorruptDataError; OSError.
    """
    path = version_path(directory)
    data = read_version_bytes(path)
    try:
        return cookie_format.decode(data), data
    except CorruptDataError as error:
        raise CorruptDataError(f"{path}: {error}") from error


def version_path(directory: Path) -> Path:
    """Of the file VERSION: in `current`, where there is one."""
    current = directory / "current"
    return (current if current.is_dir() else directory) / VERSION_NAME


def read_version_bytes(path: Path) -> bytes:
    """As `read_version`; more bytes than a cookie may have are not read."""
    try:
        with path.open("rb") as file:
            return file.read(cookie_format.MAX_COOKIE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        what = "no VERSION in" if path.parent.is_dir() else "no directory"
        raise NotFoundError(f"{what} {path.parent}; name a directory that a bookie has written") from None


@dataclass(frozen=True, slots=True)
class Source:
    """A cookie and where it is from; `problem` says why there is none: "no VERSION", "cannot be read: …".

    `absent`: there is none, rather than one that cannot be read.
    """

    cookie: Cookie | None = None
    problem: str = ""
    absent: bool = False


@dataclass(frozen=True, slots=True)
class FieldComparison:
    """One field of a cookie in every place; values are as stored, None where there is none.

    `same` False: a bookie would refuse to start. `fix`: what to do then, in words.
    """

    field: str
    configured: str | None
    stored: str | None
    directories: dict[str, str | None]
    same: bool
    fix: str | None = None


def version_source(name: str) -> Source:
    """The cookie of a configured directory. Raises OSError."""
    try:
        return Source(read_version(Path(name))[0])
    except NotFoundError:
        there = Path(name).is_dir()
        return Source(problem="no VERSION" if there else "no directory", absent=True)
    except CorruptDataError as error:
        return Source(problem=f"cannot be read: {error}")


def compare(
    configured: Cookie, stored: Source | None, directories: Mapping[str, Source]
) -> list[FieldComparison]:
    """Every field of a cookie, in the configuration, the metadata store and each directory.

    `stored` None: the metadata store cannot be asked; nothing is said of it, nor of the instance id
    in the configuration, which comes from there.
    """
    presence = {name: source.problem or "present" for name, source in directories.items()}
    stored_presence = None if stored is None else stored.problem or "present"
    fix = _presence_fix(configured.bookie_id, stored, directories)
    found = [FieldComparison("cookie", "present", stored_presence, dict(presence), fix is None, fix)]
    cookies = [source.cookie for source in (stored, *directories.values()) if source and source.cookie]
    for field, value_of in _FIELDS.items():
        if field == "index_directories" and not any(c.index_dirs for c in (configured, *cookies)):
            continue  # they are the ledger directories
        ours = None if field == "instance_id" and stored is None else value_of(configured)
        theirs = None if stored is None or stored.cookie is None else value_of(stored.cookie)
        on_disk = {
            name: value_of(source.cookie) if source.cookie else None for name, source in directories.items()
        }
        values = [value_of(cookie) for cookie in cookies]
        if ours is not None or (field == "instance_id" and stored is not None):
            values.append(ours)
        fix = _fix(field, ours, theirs, on_disk) if len(set(values)) > 1 else None
        found.append(FieldComparison(field, ours, theirs, on_disk, fix is None, fix))
    return [*found, _compare_layouts(configured, stored, directories)]


def _compare_layouts(
    configured: Cookie, stored: Source | None, directories: Mapping[str, Source]
) -> FieldComparison:
    """Layout versions may differ, but must not be too old."""

    def text(source: Source | None) -> str | None:
        return str(source.cookie.layout_version) if source and source.cookie else None

    sources = [source.cookie for source in (stored, *directories.values()) if source and source.cookie]
    old = any(cookie.layout_version < cookie_format.OLDEST_LAYOUT_VERSION for cookie in sources)
    fix = "a layout before 3 has to be upgraded by the Apache BookKeeper that wrote it" if old else None
    layouts = {name: text(source) for name, source in directories.items()}
    return FieldComparison(
        "layout_version", str(configured.layout_version), text(stored), layouts, not old, fix
    )


_FIELDS: dict[str, Callable[[Cookie], str | None]] = {
    "bookie_id": lambda cookie: cookie.bookie_id,
    "journal_directories": lambda cookie: cookie.journal_dirs,
    "ledger_directories": lambda cookie: cookie.ledger_dirs,
    "index_directories": lambda cookie: cookie.effective_index_dirs,
    "instance_id": lambda cookie: cookie.instance_id,
}
_KEYS = {
    "journal_directories": "journalDirectories",
    "ledger_directories": "ledgerDirectories",
    "index_directories": "indexDirectories",
}


def _presence_fix(bookie_id: str, stored: Source | None, directories: Mapping[str, Source]) -> str | None:
    damaged = [name for name, source in directories.items() if not source.cookie and not source.absent]
    absent = [name for name, source in directories.items() if source.absent]
    if damaged:
        return (
            f"write VERSION in {damaged[0]} anew, as another directory has it or "
            f"'bkctl cookie show {bookie_id} --raw' prints it"
        )
    if stored is not None and stored.cookie is None and not stored.absent:
        return f"the cookie of {bookie_id} in the metadata store is damaged: store the text of VERSION there"
    known = (stored is not None and stored.cookie is not None) or len(absent) < len(directories)
    if absent and known:
        return (
            f"{absent[0]} is missing, empty or foreign: mount the disk that belongs there; if its data is "
            "lost, recover the bookie's ledgers and start it with empty directories as a new one"
        )
    if stored is not None and stored.absent and known:
        return (
            f"the metadata store has no cookie of {bookie_id}: check that it is the right store and bookie; "
            "if the cookie was deleted, store the text of VERSION there"
        )
    return None


def _fix(field: str, ours: str | None, theirs: str | None, on_disk: Mapping[str, str | None]) -> str:
    """What to do about a field that is not the same everywhere."""
    written = {name: value for name, value in on_disk.items() if value is not None}
    if len(set(written.values())) > 1:
        usual = theirs or ours or next(iter(written.values()))
        name, value = next(item for item in written.items() if item[1] != usual)
        return (
            f"{name} says {_shown(value)} unlike the others: it may be another bookie's, or of another time"
        )
    stored = next(iter(written.values()), theirs)
    if field == "instance_id":
        return (
            f"the directories belong to cluster {stored} and the metadata store is cluster {ours or theirs}: "
            "use the metadata store of their cluster, or empty directories"
        )
    if theirs is not None and written and theirs != stored:
        return f"the metadata store has {_shown(theirs)}: is it the cookie of another bookie or time?"
    if field == "bookie_id":
        return f"configure bookieId={stored}, or the advertisedAddress and bookiePort that make it"
    return f"configure {_KEYS[field]}={_shown(stored)}{_directories_hint(field, ours, stored)}"


def _directories_hint(field: str, ours: str | None, stored: str | None) -> str:
    if ours is None or stored is None:
        return ""
    mine, theirs = ([os.path.normpath(name) for name in _names(field, text)] for text in (ours, stored))
    if mine == theirs:
        return ": the same directories, but spelled as they were, for cookies compare text"
    if sorted(mine) == sorted(theirs):
        return ": the same directories, but in their old order, for it decides where a ledger is"
    if set(mine) > set(theirs):
        return ": without what was added, for that would look for ledgers in other directories"
    return ", or put its directories back"


def _names(field: str, text: str) -> list[str]:
    if field == "journal_directories":
        return text.split(",")
    return text.split("\t")[1:]


def _shown(text: str | None) -> str:
    """Directories as they are configured: without their count, `,` between them."""
    if text is None:
        return "nothing"
    count, *names = text.split("\t")
    return ",".join(names) if names else count
