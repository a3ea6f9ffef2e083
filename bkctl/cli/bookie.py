"""`bkctl bookie`: run a bookie, and look at those of a cluster."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli import bookie_files, confirm
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
from bkctl.cli.context import metadata_store, metadata_uri
from bkctl.cli.event_loop import run
from bkctl.cli.options import global_options
from bkctl.cli.render import Column, Row, emit, format_bytes
from bkctl.errors import (
    BadInputError,
    BkctlError,
    BookieStartError,
    ConflictError,
    NotFoundError,
    RefusedError,
)

if TYPE_CHECKING:
    from bkctl.config import BookieSettings
    from bkctl.metadata.store import MetadataStore
    from bkctl.types import BookieId

app = group("Run a bookie, and look at those of a cluster.")
app.command("files")(bookie_files.files)

Confirm = Annotated[
    str | None,
    typer.Option("--confirm", metavar="ID", help="The bookie id once more, to go on without asking."),
]


@app.command("start")
def start(
    conf: ConfFile = None,
    port: Port = None,
    journals: Journals = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    bookie_id: BookieIdOption = None,
    advertised_address: AdvertisedAddress = None,
    settings: Settings = None,
    force_read_only: Annotated[
        bool, typer.Option("--force-read-only", help="Serve reads only, whatever the disks allow.")
    ] = False,
    pid_file: Annotated[
        Path | None, typer.Option("--pid-file", metavar="FILE", help="Write the pid there while running.")
    ] = None,
) -> None:
    """Run a bookie in the foreground until SIGTERM or Ctrl-C; a second one leaves at once.

    Prints `ready BOOKIE_ID at HOST:PORT` when it serves. Exit codes are those of Java's BookieServer.
    """
    from bkctl.daemon import EXIT_CONFIGURATION, run_bookie

    try:
        loaded = load_settings(
            conf, port, journals, ledgers, indexes, bookie_id, advertised_address, settings, force_read_only
        )
    except BadInputError as error:
        raise BookieStartError(str(error), EXIT_CONFIGURATION) from error
    if pid_file is not None:
        _take_pid_file(pid_file)
    try:
        code = run_bookie(loaded)
    finally:
        if pid_file is not None:
            pid_file.unlink(missing_ok=True)
    raise typer.Exit(code)


@app.command("init")
def init(
    conf: ConfFile = None,
    port: Port = None,
    journals: Journals = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    bookie_id: BookieIdOption = None,
    advertised_address: AdvertisedAddress = None,
    settings: Settings = None,
) -> None:
    """Check that a new bookie can start here: empty directories, no cookie, not registered.

    Nothing is written; the first start does that.
    """
    loaded = load_settings(conf, port, journals, ledgers, indexes, bookie_id, advertised_address, settings)
    identity = _identity(loaded)
    used = [directory for directory in _directories(loaded) if _has_content(directory)]
    if used:
        raise ConflictError(f"directories hold data: {', '.join(used)}; empty them or choose others")
    run(_check_unknown(loaded.metadata_uri, identity))
    row = {"bookie_id": identity, "directories": _directories(loaded), "state": "ok"}
    emit("BookieInit", [row], [Column("bookie_id"), Column("state"), Column("directories")])


@app.command("format")
def format_bookie(
    conf: ConfFile = None,
    port: Port = None,
    journals: Journals = None,
    ledgers: Ledgers = None,
    indexes: Indexes = None,
    bookie_id: BookieIdOption = None,
    advertised_address: AdvertisedAddress = None,
    settings: Settings = None,
    delete_cookie: Annotated[
        bool, typer.Option("--delete-cookie", help="Also delete the cookie in the metadata store.")
    ] = False,
    confirmed: Confirm = None,
) -> None:
    """Delete everything that a stopped bookie stores in its directories.

    The other copies of its entries are then all there is; Apache BookKeeper's `bookieformat`.
    """
    loaded = load_settings(conf, port, journals, ledgers, indexes, bookie_id, advertised_address, settings)
    identity = _identity(loaded)
    directories = [directory for directory in _directories(loaded) if Path(directory).exists()]
    if global_options().read_only:
        raise RefusedError("--read-only: nothing was changed")
    run(_check_stopped(loaded.metadata_uri, identity))
    with _locked(directories):
        confirm.confirm_destruction(
            f"deletes all entries of bookie {identity} in {', '.join(directories) or 'no directory'}",
            what="the bookie id",
            expected=identity,
            given=confirmed,
        )
        for directory in directories:
            _empty(Path(directory))
    if delete_cookie:
        run(_delete_cookie(loaded.metadata_uri, identity))
    row = {"bookie_id": identity, "emptied": directories, "cookie_deleted": delete_cookie}
    emit("BookieFormat", [row], [Column("bookie_id"), Column("emptied"), Column("cookie_deleted")])


_LIST_COLUMNS = [
    Column("bookie_id"),
    Column("state"),
    Column("address"),
    Column("properties", wide=True),
    Column("cookie", wide=True),
]


@app.command("list")
def list_bookies(
    writable: Annotated[bool, typer.Option("--rw", help="Those that take adds.")] = False,
    readonly: Annotated[bool, typer.Option("--ro", help="Those that only serve reads.")] = False,
    lost: Annotated[
        bool, typer.Option("--lost", help="Those with a cookie that are not registered.")
    ] = False,
) -> None:
    """List the bookies: registered ones, and lost ones whose cookie is still there."""
    wanted = {state for state, flag in (("rw", writable), ("ro", readonly), ("lost", lost)) if flag}
    rows = run(bookie_rows(metadata_uri(), wanted or {"rw", "ro", "lost"}))
    emit("BookieList", rows, _LIST_COLUMNS)


@app.command("show")
def show(bookie_id: Annotated[str, typer.Argument(metavar="BOOKIE", help="Bookie id.")]) -> None:
    """Show one bookie: state, endpoints, cookie, disk space as it tells."""
    row = run(_show(metadata_uri(), bookie_id))
    columns = [
        Column("bookie_id"),
        Column("state"),
        Column("address"),
        Column("free_bytes", text=format_bytes),
        Column("total_bytes", text=format_bytes),
        Column("endpoints", wide=True, text=lambda endpoints: ",".join(e["protocol"] for e in endpoints)),
        Column("properties", wide=True),
        Column("cookie", wide=True),
        Column("error", wide=True),
    ]
    emit("Bookie", [row], columns)


def _identity(settings: "BookieSettings") -> "BookieId":
    """The id that a bookie with these settings has. Raises BadInputError when only its start tells."""
    from bkctl.server.identity import bookie_address, bookie_id_of

    if settings.port == 0 and not settings.bookie_id:
        raise BadInputError("with port 0 only the start decides the bookie id; give --bookie-id")
    return bookie_id_of(settings, bookie_address(settings, settings.port))


def _directories(settings: "BookieSettings") -> list[str]:
    return [*settings.journal_directories, *settings.ledger_directories, *settings.index_directories]


def _has_content(directory: str) -> bool:
    """An empty `current` directory counts as nothing."""
    path = Path(directory)
    return path.exists() and any(
        any(child.iterdir()) if child.name == "current" and child.is_dir() else True
        for child in path.iterdir()
    )


@contextlib.contextmanager
def _locked(directories: list[str]) -> Iterator[None]:
    """As a running bookie locks them. Raises RefusedError when one does."""
    with contextlib.ExitStack() as stack:
        for directory in directories:
            current = Path(directory, "current")
            if current.is_dir():
                descriptor = os.open(current, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise RefusedError(f"{current} is in use by a bookie process; stop it first") from error
        yield


def _empty(directory: Path) -> None:
    import shutil

    for child in directory.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _take_pid_file(path: Path) -> None:
    """Raises ConflictError when the process that a pid file names runs."""
    import psutil

    try:
        pid = int(path.read_text().strip() or "0")
        if pid != os.getpid() and pid > 0 and psutil.pid_exists(pid):
            raise ConflictError(
                f"process {pid} runs, says {path}; stop it, or remove the file if it is no bookie"
            )
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ConflictError(f"{path} is no pid file; choose another or remove it") from error
    path.write_text(f"{os.getpid()}\n")


async def _check_unknown(uri: str, bookie_id: "BookieId") -> None:
    """Raises ConflictError when the cluster knows the bookie already."""
    async with metadata_store(uri) as store:
        if await _state(store, bookie_id) != "lost":
            raise ConflictError(f"bookie {bookie_id} is registered: it runs")
        if await store.cookies.read(bookie_id) is not None:
            raise ConflictError(f"bookie {bookie_id} has a cookie: it is not new, or its id was used before")


async def _check_stopped(uri: str, bookie_id: "BookieId") -> None:
    """Raises RefusedError when the bookie runs."""
    async with metadata_store(uri) as store:
        if await _state(store, bookie_id) != "lost":
            raise RefusedError(f"bookie {bookie_id} is registered: it runs; stop it first")


async def _delete_cookie(uri: str, bookie_id: "BookieId") -> None:
    async with metadata_store(uri) as store:
        cookie = await store.cookies.read(bookie_id)
        if cookie is not None:
            await store.cookies.delete(bookie_id, cookie.version)


async def _state(store: "MetadataStore", bookie_id: "BookieId") -> str:
    if bookie_id in await store.registration.writable():
        return "rw"
    return "ro" if bookie_id in await store.registration.readonly() else "lost"


async def bookie_rows(uri: str, wanted: set[str]) -> list[Row]:
    """The bookies in one of the states `wanted`: rw, ro, lost."""
    async with metadata_store(uri) as store:
        states = dict.fromkeys(await store.cookies.list(), "lost")
        with_cookie = set(states)
        states |= dict.fromkeys(await store.registration.readonly(), "ro")
        states |= dict.fromkeys(await store.registration.writable(), "rw")
        rows: list[Row] = []
        for bookie_id, state in sorted(states.items()):
            if state in wanted:
                row = await _registered(store, bookie_id) if state != "lost" else {}
                rows.append(
                    {"bookie_id": bookie_id, "state": state} | row | {"cookie": bookie_id in with_cookie}
                )
        return rows


async def _registered(store: "MetadataStore", bookie_id: "BookieId") -> dict[str, Any]:
    """What a registered bookie publishes; empty when it has just left."""
    try:
        info = await store.registration.service_info(bookie_id)
    except BkctlError as error:
        return {"address": None, "endpoints": [], "properties": {}, "error": str(error)}
    address = info.bookie_rpc_address
    return {
        "address": None if address is None else str(address),
        "endpoints": [
            {
                "id": e.id,
                "protocol": e.protocol,
                "host": e.host,
                "port": e.port,
                "auth": list(e.auth),
                "extensions": list(e.extensions),
            }
            for e in info.endpoints
        ],
        "properties": dict(info.properties),
    }


async def _show(uri: str, text: str) -> Row:
    from bkctl.client.bookkeeper import BookKeeper
    from bkctl.formats import bookie_id as bookie_id_format

    bookie_id = bookie_id_format.parse(text)
    async with await BookKeeper.connect(uri) as client:
        store = client.metadata
        cookie = await store.cookies.read(bookie_id)
        state = await _state(store, bookie_id)
        if state == "lost" and cookie is None:
            raise NotFoundError(f"no bookie {bookie_id}; see 'bkctl bookie list'")
        row: dict[str, Any] = {"bookie_id": bookie_id, "state": state}
        if state != "lost":
            row |= await _registered(store, bookie_id)
            try:
                row["total_bytes"], row["free_bytes"] = await client.pool.channel(bookie_id).bookie_info()
            except BkctlError as error:
                row["error"] = str(error)
        if cookie is not None:
            value = cookie.value
            row["cookie"] = {
                "journal_directories": value.journal_dirs,
                "ledger_directories": value.ledger_dirs,
                "index_directories": value.index_dirs,
                "instance_id": value.instance_id,
            }
        return row
