"""Cookies: what ties a bookie id to its directories and its cluster.

The same bytes are in the metadata store and in the file `VERSION` of every `current` directory.
Line 1 is the layout version in decimal; then, by version:

    2     nothing
    3     three lines: bookie id, journal directories, ledger directories
    4, 5  CookieFormat in text form (indexDirs since 5)

Directories are kept as they are stored: journal directories joined with `,`; ledger and index
directories as a count and the directories, joined with TAB.

Source: spec storage section 2, spec metadata section 10; upstream Cookie.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bkctl.errors import BadInputError, CorruptDataError
from bkctl.formats import text_format
from bkctl.formats.message import Field, Kind, Schema

LAYOUT_VERSION = 5  # written; do not change
OLDEST_LAYOUT_VERSION = 3  # older ones are parsed, but never accepted
MAX_COOKIE_BYTES = 1 << 20

_FIRST_LINE = re.compile(rb"([0-9]{1,9})(?:\n|\Z)")
_COOKIE = Schema(
    Field(1, "bookieHost", Kind.STRING, required=True),
    Field(2, "journalDir", Kind.STRING, required=True),
    Field(3, "ledgerDirs", Kind.STRING, required=True),
    Field(4, "instanceId", Kind.STRING),
    Field(5, "indexDirs", Kind.STRING),
)


@dataclass(frozen=True, slots=True)
class Cookie:
    """`instance_id`, `index_dirs` None: not in the cookie; index directories are the ledger ones then."""

    bookie_id: str
    journal_dirs: str
    ledger_dirs: str
    instance_id: str | None = None
    index_dirs: str | None = None
    layout_version: int = LAYOUT_VERSION

    @property
    def effective_index_dirs(self) -> str:
        return self.index_dirs or self.ledger_dirs


@dataclass(frozen=True, slots=True)
class CookieDifference:
    """One field in which a stored cookie does not match the one built from the configuration."""

    field: str
    configured: str | None
    stored: str | None

    def __str__(self) -> str:
        return f"{self.field}: configured {self.configured!r}, stored {self.stored!r}"


def make_cookie(
    bookie_id: str,
    journal_dirs: Sequence[str],
    ledger_dirs: Sequence[str],
    instance_id: str | None = None,
    index_dirs: Sequence[str] = (),
) -> Cookie:
    """The cookie of this configuration; directories as configured, not resolved.

    Raises BadInputError for a directory whose name the format cannot hold.
    """
    for name in journal_dirs:
        if "," in name or "\n" in name:
            raise BadInputError(f"journal directory {name!r}: a cookie cannot hold ',' or a line end")
    for name in (*ledger_dirs, *index_dirs):
        if "\t" in name or "\n" in name:
            raise BadInputError(f"directory {name!r}: a cookie cannot hold a tab or a line end")
    return Cookie(
        bookie_id=bookie_id,
        journal_dirs=",".join(journal_dirs),
        ledger_dirs=_joined(ledger_dirs),
        instance_id=instance_id or None,
        index_dirs=_joined(index_dirs) if index_dirs else None,
    )


def _joined(directories: Sequence[str]) -> str:
    return "\t".join([str(len(directories)), *directories])


def split_directories(stored: str) -> list[str]:
    """The directories of `ledger_dirs` or `index_dirs`. Raises CorruptDataError."""
    count, *directories = stored.split("\t")
    if not count.isascii() or not count.isdigit() or count[:9] != count or int(count) != len(directories):
        raise CorruptDataError(f"cookie directories {stored[:80]!r}: count and names do not match")
    return directories


def encode(cookie: Cookie) -> bytes:
    """The stored bytes, in the cookie's own layout version (3 or later).

    Upstream writes a layout 3 cookie with a 5 in front of it, which nobody can read; this does not.
    """
    if cookie.layout_version < OLDEST_LAYOUT_VERSION:
        raise BadInputError(f"a cookie of layout version {cookie.layout_version} is not written")
    if cookie.layout_version == OLDEST_LAYOUT_VERSION:
        body = f"{cookie.bookie_id}\n{cookie.journal_dirs}\n{cookie.ledger_dirs}\n"
    else:
        body = text_format.write(
            _COOKIE,
            {
                "bookieHost": cookie.bookie_id,
                "journalDir": cookie.journal_dirs,
                "ledgerDirs": cookie.ledger_dirs,
                "instanceId": cookie.instance_id,
                "indexDirs": cookie.index_dirs,
            },
        )
    return f"{cookie.layout_version}\n{body}".encode()


def decode(data: bytes) -> Cookie:
    """Read stored bytes of any layout version from 2 on. Raises CorruptDataError."""
    first_line = _FIRST_LINE.match(data)
    if first_line is None or len(data) > MAX_COOKIE_BYTES:
        raise CorruptDataError("cookie does not begin with its layout version")
    layout_version = int(first_line[1])
    body = data[first_line.end() :]
    if layout_version < 2:
        raise CorruptDataError(f"cookie has layout version {layout_version}")
    if layout_version == 2:
        return Cookie("", "", "", layout_version=2)
    if layout_version == OLDEST_LAYOUT_VERSION:
        lines = body.decode("utf-8", "replace").split("\n")
        if len(lines) < 3:
            raise CorruptDataError(f"cookie of layout 3 has {len(lines)} lines below its version, not 3")
        return Cookie(lines[0], lines[1], lines[2], layout_version=3)
    try:
        fields = text_format.parse(_COOKIE, body)
    except CorruptDataError as exc:
        raise CorruptDataError(f"cookie: {exc}") from exc
    return Cookie(
        bookie_id=fields["bookieHost"],
        journal_dirs=fields["journalDir"],
        ledger_dirs=fields["ledgerDirs"],
        instance_id=fields.get("instanceId") or None,
        index_dirs=fields.get("indexDirs") or None,
        layout_version=layout_version,
    )


def differences(configured: Cookie, stored: Cookie, *, allow_expansion: bool) -> list[CookieDifference]:
    """Every field in which `stored` does not fit `configured`; an empty list: the bookie may start.

    `allow_expansion`: ledger and index directories may have been added, and their order is free.
    Journal directories never change. Raises CorruptDataError (directories that cannot be split).
    """
    if stored.layout_version < OLDEST_LAYOUT_VERSION:
        return [CookieDifference("layoutVersion", str(configured.layout_version), str(stored.layout_version))]
    pairs = [
        ("bookieHost", configured.bookie_id, stored.bookie_id),
        ("journalDir", configured.journal_dirs, stored.journal_dirs),
        ("instanceId", configured.instance_id, stored.instance_id),
    ]
    found = [CookieDifference(*pair) for pair in pairs if pair[1] != pair[2]]
    directories = [
        ("ledgerDirs", configured.ledger_dirs, stored.ledger_dirs),
        ("indexDirs", configured.effective_index_dirs, stored.effective_index_dirs),
    ]
    for field, ours, theirs in directories:
        if allow_expansion:
            fits = set(split_directories(ours)) >= set(split_directories(theirs))
        else:
            fits = ours == theirs
        if not fits:
            found.append(CookieDifference(field, ours, theirs))
    return found
