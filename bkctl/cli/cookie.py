"""`bkctl cookie`: what ties a bookie to its directories and its cluster."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli.app import group
from bkctl.cli.bookie_options import (
    AdvertisedAddress,
    BookieIdOption,
    ConfFile,
    Indexes,
    Journals,
    Ledgers,
    Port,
    Settings,
    load_settings,
)
from bkctl.cli.confirm import note
from bkctl.cli.context import metadata_store, metadata_uri
from bkctl.cli.event_loop import run
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.render import Column, Row, emit
from bkctl.errors import BadInputError, CorruptDataError, MetadataStoreError, NotFoundError

if TYPE_CHECKING:
    from bkctl.config import BookieSettings
    from bkctl.formats.cookie import Cookie
    from bkctl.offline.cookies import FieldComparison, Source
    from bkctl.types import BookieId, Versioned

app = group("Cookies: what ties a bookie to its directories and its cluster.")


def _directories_text(stored: str) -> str:
    """A cell for directories as a cookie holds them: count and names, joined with TAB."""
    return ",".join(stored.split("\t")[1:]) if "\t" in stored else stored


_COLUMNS = [
    Column("bookie_id"),
    Column("layout_version"),
    Column("journal_directories"),
    Column("ledger_directories", text=_directories_text),
    Column("index_directories", text=_directories_text),
    Column("instance_id"),
    Column("error", wide=True),
]


def _places_text(values: dict[str, str | None]) -> str:
    """A cell for the values of all directories: one value when they are all the same."""
    cells = {name: "-" if value is None else _directories_text(value) for name, value in values.items()}
    if len(set(cells.values())) == 1:
        return next(iter(cells.values()))
    return "; ".join(f"{name}: {cell}" for name, cell in cells.items())


_DIFF_COLUMNS = [
    Column("field"),
    Column("same"),
    Column("configured", text=_directories_text),
    Column("metadata", text=_directories_text),
    Column("directories", text=_places_text),
    Column("fix", wide=True),
]


@app.command("list")
def list_cookies() -> None:
    """List the cookies in the metadata store, one for each bookie that ever started.

    Exit code 9 when one of them cannot be read.
    """
    rows = run(_list(metadata_uri()))
    emit("CookieList", rows, _COLUMNS)
    damaged = [row for row in rows if row.get("error")]
    for row in damaged:
        note(str(row["error"]))
    if damaged:
        raise typer.Exit(ExitCode.PARTIAL)


@app.command("show")
def show(
    bookie: Annotated[
        str | None, typer.Argument(metavar="BOOKIE", help="Bookie id: its cookie in the metadata store.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="The cookie in this directory's VERSION file instead."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print the exact text.")] = False,
) -> None:
    """Show a cookie, of the metadata store or of a directory on this machine."""
    if (bookie is None) == (directory is None):
        raise BadInputError("which cookie? name a bookie, or a directory with --dir")
    if directory is not None:
        from bkctl.offline.cookies import read_version_bytes, version_path

        path = version_path(directory)
        where, data = str(path), read_version_bytes(path)
    else:
        assert bookie is not None
        where, data = f"the cookie of {bookie}", run(_stored(metadata_uri(), bookie)).value
    if raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    emit("Cookie", [_cookie_row(_decoded(data, where))], _COLUMNS)


@app.command("diff")
def diff(
    bookie: Annotated[
        str | None, typer.Argument(metavar="BOOKIE", help="Bookie id; else the one the configuration gives.")
    ] = None,
    conf: ConfFile = None,
    port: Port = None,
    journals: Journals = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    bookie_id: BookieIdOption = None,
    advertised_address: AdvertisedAddress = None,
    settings: Settings = None,
) -> None:
    """Compare the cookie that a configuration makes, those in its directories and that in the metadata store.

    Takes what `bookie start` takes. Exit code 0: the bookie may start; 8: it would refuse to, the fix
    is proposed; 7: a cookie cannot be read; 6: nothing is wrong, but the metadata store was not asked.
    """
    from bkctl.offline.cookies import compare, version_source

    if conf is None and not (journals and ledgers):
        raise BadInputError("no directories named; give -c FILE, or -j DIR and -l DIR")
    loaded = load_settings(
        conf, port, journals, ledgers, indexes, bookie_id, advertised_address, settings, without_metadata=True
    )
    identity = _identity(loaded, bookie if conf is None and port is None else None)
    stored, instance_id = run(_asked(loaded.metadata_uri, bookie or identity))
    names = dict.fromkeys(
        [*loaded.journal_directories, *loaded.ledger_directories, *loaded.index_directories]
    )
    directories = {name: version_source(name) for name in names}
    found = compare(_configured(loaded, identity, instance_id), stored, directories)
    emit("CookieComparison", map(_diff_row, found), _DIFF_COLUMNS)
    for field in found:
        if field.fix is not None:
            note(f"{field.field} differs: {field.fix}")
    sources = [*directories.values(), *([stored] if stored is not None else [])]
    if any(source.cookie is None and not source.absent for source in sources):
        raise typer.Exit(ExitCode.INTEGRITY)
    if not all(field.same for field in found):
        raise typer.Exit(ExitCode.CONFLICT)
    if stored is None:
        raise typer.Exit(ExitCode.UNREACHABLE)


def _identity(settings: "BookieSettings", otherwise: str | None) -> str:
    """The id that the settings give, or `otherwise` when they name none."""
    from bkctl.server.identity import bookie_address, bookie_id_of

    if settings.bookie_id or (otherwise and not settings.advertised_address):
        return settings.bookie_id or str(otherwise)
    return bookie_id_of(settings, bookie_address(settings, settings.port))


def _configured(settings: "BookieSettings", identity: str, instance_id: str | None) -> "Cookie":
    from bkctl.formats.cookie import make_cookie

    return make_cookie(
        identity,
        settings.journal_directories,
        settings.ledger_directories,
        instance_id,
        settings.index_directories,
    )


async def _list(uri: str) -> list[Row]:
    async with metadata_store(uri) as store:
        rows: list[Row] = []
        for bookie_id in await store.cookies.list():
            try:
                cookie = await store.cookies.read(bookie_id)
            except CorruptDataError as error:
                rows.append({"bookie_id": bookie_id, "error": str(error)})
                continue
            if cookie is not None:
                rows.append(_cookie_row(cookie.value) | {"bookie_id": bookie_id})
        return rows


async def _stored(uri: str, text: str) -> "Versioned[bytes]":
    from bkctl.formats import bookie_id as bookie_id_format

    bookie_id = bookie_id_format.parse(text)
    async with metadata_store(uri) as store:
        stored = await store.cookies.read_bytes(bookie_id)
    if stored is None:
        raise NotFoundError(f"bookie {bookie_id} has no cookie; see 'bkctl cookie list'")
    return stored


async def _asked(uri: str, text: str) -> "tuple[Source | None, str | None]":
    """(cookie in the metadata store, instance id of the cluster); (None, None): it cannot be asked."""
    from bkctl.formats import bookie_id as bookie_id_format
    from bkctl.metadata.cluster import read_instance_id
    from bkctl.offline.cookies import Source

    bookie_id: BookieId = bookie_id_format.parse(text)
    if not uri:
        note("no metadata store is named: compared without it; give -u URI, or metadataServiceUri")
        return None, None
    try:
        async with metadata_store(uri) as store:
            instance_id = await read_instance_id(store.tree, store.root)
            try:
                cookie = await store.cookies.read(bookie_id)
            except CorruptDataError as error:
                return Source(problem=f"cannot be read: {error}"), instance_id
            if cookie is None:
                return Source(problem="no cookie", absent=True), instance_id
            return Source(cookie.value), instance_id
    except MetadataStoreError as error:
        note(f"compared without the metadata store: {error}")
        return None, None


def _decoded(data: bytes, where: str) -> "Cookie":
    from bkctl.formats import cookie as cookie_format

    try:
        return cookie_format.decode(data)
    except CorruptDataError as error:
        raise CorruptDataError(f"{where}: {error}; --raw prints what is there") from error


def _cookie_row(cookie: "Cookie") -> dict[str, Any]:
    return {
        "bookie_id": cookie.bookie_id,
        "layout_version": cookie.layout_version,
        "journal_directories": cookie.journal_dirs,
        "ledger_directories": cookie.ledger_dirs,
        "index_directories": cookie.index_dirs,
        "instance_id": cookie.instance_id,
    }


def _diff_row(comparison: "FieldComparison") -> Row:
    return {
        "field": comparison.field,
        "same": comparison.same,
        "configured": comparison.configured,
        "metadata": comparison.stored,
        "directories": comparison.directories,
        "fix": comparison.fix,
    }
