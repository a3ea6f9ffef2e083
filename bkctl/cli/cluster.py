"""`bkctl cluster`: clusters as a whole, and a local one for trying things."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bkctl.cli import confirm
from bkctl.cli.app import group
from bkctl.cli.context import (
    Context,
    changed_contexts,
    metadata_store,
    metadata_uri,
    metadata_uri_to_change,
)
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.options import global_options
from bkctl.cli.render import Column, emit
from bkctl.errors import BadInputError, BookieStartError, ConflictError, NotFoundError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from bkctl.cli.cluster_state import ClusterState
    from bkctl.cli.local_cluster import LocalCluster
    from bkctl.metadata.store import MetadataStore

app = group("Clusters as a whole, and a local one for trying things.")

_SUPERVISOR_PATIENCE_S = 20.0  # longer than it gives its bookies
_BOOKIE_PATIENCE_S = 15.0

T = TypeVar("T")


@app.command("up")
def up(
    bookies: Annotated[
        int | None,
        typer.Option("-n", "--bookies", min=1, max=100, help="How many; 3, or as many as DIR has."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="DIR", help="Where the data lives and stays; else a temporary directory."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Leave it running in the background.")
    ] = False,
    base_port: Annotated[
        int | None, typer.Option("--base-port", help="Take ports from this one on, else free ones.")
    ] = None,
    temporary: Annotated[bool, typer.Option("--temporary", hidden=True)] = False,
) -> None:
    """Start a cluster of bookies on this machine and keep it running until Ctrl-C.

    The metadata store is SQLite, in the same directory. A context (`-C NAME`, else `local`) is made
    current, so that the next commands work on this cluster. Bookies that die are started again.
    """
    if directory is None:
        directory, temporary = Path(tempfile.mkdtemp(prefix="bkctl-")), True
    directory = directory.absolute()
    try:
        state = _planned(directory, bookies, base_port, temporary)
        if detach:
            _start_detached(directory, state, base_port)
            temporary = False  # it goes with `cluster down`
        else:
            from bkctl.cli.event_loop import run

            run(_run_cluster(directory, state))
    finally:
        if temporary:
            shutil.rmtree(directory, ignore_errors=True)


@app.command("down")
def down(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="DIR", help="The cluster's directory; else that of the current context."
        ),
    ] = None,
) -> None:
    """Stop a local cluster. A temporary one is removed with its data."""
    from bkctl.cli.cluster_state import read_state, stop_processes, write_state

    directory = (directory or _directory_of(metadata_uri())).absolute()
    state = read_state(directory)
    supervisor = state.supervisor
    if supervisor is not None and not supervisor.running:
        confirm.note(f"process {supervisor.pid} is not the one that ran this cluster; it is left alone")
    killed = stop_processes([supervisor] if supervisor is not None else [], _SUPERVISOR_PATIENCE_S)
    killed += stop_processes(state.processes(), _BOOKIE_PATIENCE_S)  # those without a supervisor
    if killed:
        confirm.note(f"{killed} processes did not end in time and were killed")
    _leave_context(state)
    if state.temporary:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        bookies = tuple(replace(bookie, process=None) for bookie in state.bookies)
        write_state(directory, replace(state, bookies=bookies, supervisor=None, ready=False))


@app.command("status")
def status() -> None:
    """Summarise the cluster; exit code 10 when no bookie is writable or one is lost."""
    row = _run(_status(metadata_uri()))
    columns = ["state", "writable", "readonly", "lost", "ledgers", "open", "in_recovery", "closed"]
    wide = ["instance_id", "metadata_uri"]
    emit("ClusterStatus", [row], [Column(key) for key in columns] + [Column(key, wide=True) for key in wide])
    if row["state"] != "ok":
        raise typer.Exit(ExitCode.UNHEALTHY)


@app.command("init")
def init() -> None:
    """Create the cluster's metadata; one that is already there is left as it is."""
    row = _run(_init(metadata_uri_to_change()))
    if not row["created"]:
        confirm.note("the cluster was there already; nothing was changed")
    emit(
        "Cluster", [row], [Column("instance_id"), Column("layout"), Column("created"), Column("metadata_uri")]
    )


@app.command("info")
def info() -> None:
    """Show the cluster's identity: instance id, ledger layout, metadata URI."""
    row = _run(_info(metadata_uri()))
    emit("Cluster", [row], [Column("instance_id"), Column("layout"), Column("metadata_uri")])


def _planned(directory: Path, count: int | None, base_port: int | None, temporary: bool) -> "ClusterState":
    """The cluster to start: what the directory says, with its ports, changed by what was asked for."""
    from bkctl.cli.cluster_state import BookieState, ClusterState, read_state
    from bkctl.cli.local_cluster import free_ports, ports_from

    directory.mkdir(parents=True, exist_ok=True)
    known: tuple[BookieState, ...] = ()
    try:
        old = read_state(directory)
        if old.running:
            raise ConflictError(f"the cluster in {directory} is running; stop it with 'bkctl cluster down'")
        if any(process.running for process in old.processes()):
            raise ConflictError(f"bookies of {directory} still run; end them with 'bkctl cluster down'")
        known = old.bookies
    except NotFoundError:
        pass
    count = count or len(known) or 3
    if base_port is not None and known:
        raise BadInputError(f"{directory} has bookies with ports of their own; leave --base-port away")
    ports = [bookie.port for bookie in known[:count]]
    missing = count - len(ports)
    ports += ports_from(base_port, missing) if base_port is not None else free_ports(missing)
    bookies = tuple(BookieState(f"127.0.0.1:{port}", port) for port in ports)
    uri = f"sqlite://{directory / 'metadata.db'}"
    return ClusterState(uri, bookies + known[count:], temporary=temporary)


async def _run_cluster(directory: Path, state: "ClusterState") -> None:
    """From the first bookie's start to the last one's end; a signal ends it in order, a second at once."""
    import asyncio

    from bkctl.cli.cluster_state import ProcessIdentity, write_state
    from bkctl.cli.local_cluster import LocalCluster

    cluster = LocalCluster(directory, [bookie.port for bookie in state.bookies], confirm.note)
    name, previous = _enter_context(state.metadata_uri)
    me = ProcessIdentity.of(os.getpid())
    state = replace(state, supervisor=me, context=name, previous_context=previous)

    def save(**changes: Any) -> None:
        nonlocal state
        bookies = tuple(bookie.state() for bookie in cluster.bookies)
        state = replace(state, bookies=bookies, **changes)
        write_state(directory, state)

    async def keep_running() -> None:
        await cluster.start()
        save(ready=True)
        _announce(directory, state)
        await cluster.supervise(save)

    save()
    work = asyncio.ensure_future(keep_running())
    stop_asked = _cancel_on_signals(work, cluster)
    try:
        await work
    except asyncio.CancelledError:
        if not stop_asked.is_set():
            raise
        confirm.note("stopping the bookies; once more to leave at once")
    finally:
        await cluster.stop()
        save(supervisor=None, ready=False)
        _leave_context(state)


def _cancel_on_signals(work: "asyncio.Future[None]", cluster: "LocalCluster") -> "asyncio.Event":
    """Cancel `work` at the first SIGINT or SIGTERM; at the second leave at once."""
    import asyncio

    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            cluster.kill()
            os._exit(ExitCode.INTERRUPTED)
        asked.set()
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return asked


def _announce(directory: Path, state: "ClusterState") -> None:
    row = {
        "context": state.context,
        "metadata_uri": state.metadata_uri,
        "directory": str(directory),
        "bookies": [bookie.bookie_id for bookie in state.bookies],
        "pid": None if state.supervisor is None else state.supervisor.pid,
    }
    emit(
        "LocalCluster",
        [row],
        [
            Column("context"),
            Column("metadata_uri"),
            Column("bookies"),
            Column("directory", wide=True),
            Column("pid", wide=True),
        ],
    )


def _start_detached(directory: Path, state: "ClusterState", base_port: int | None) -> None:
    """Run `cluster up` in the background and wait until it is ready. Raises BookieStartError."""
    from bkctl.cli.cluster_state import read_state

    options = global_options()
    command = [sys.executable, "-m", "bkctl", "cluster", "up", "--dir", str(directory)]
    command += ["--bookies", str(len(state.bookies))]
    command += ["--base-port", str(base_port)] if base_port is not None else []
    command += ["--context", options.context] if options.context else []
    command += ["--temporary"] if state.temporary else []
    with (directory / "cluster.log").open("w+b") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        while process.poll() is None:
            time.sleep(0.05)
            with contextlib.suppress(NotFoundError):
                state = read_state(directory)
                if state.ready and state.supervisor is not None and state.supervisor.pid == process.pid:
                    _announce(directory, state)
                    confirm.note(
                        f"it runs in the background; end it with: bkctl cluster down --dir {directory}"
                    )
                    return
        log.seek(0)
        words = log.read().decode(errors="replace").strip().split("\n")[-1]
        raise BookieStartError(words.removeprefix("bkctl: "), ExitCode.FAILED)


def _enter_context(uri: str) -> tuple[str, str | None]:
    """Make the local cluster's context current: its name, and the one that was current before.

    Raises ConflictError when the name that -C gives belongs to another cluster.
    """
    wanted = global_options().context
    with changed_contexts() as contexts:
        names = [wanted] if wanted else ["local", *(f"local-{number}" for number in range(2, 1000))]
        for name in names:
            other = contexts.by_name.get(name)
            if other is None or other.metadata_uri == uri or _gone(other):
                previous, contexts.current = contexts.current, name
                contexts.add(Context(name, uri))
                return name, previous if previous != name else None
    raise ConflictError(f"context '{wanted}' names another cluster; choose another -C NAME")


def _leave_context(state: "ClusterState") -> None:
    """Forget the context of a temporary cluster, and go back to the one before it."""
    if not state.temporary:
        return
    with changed_contexts() as contexts:
        context = contexts.by_name.get(state.context or "")
        if context is None or context.metadata_uri != state.metadata_uri:
            return
        was_current = contexts.current == context.name
        contexts.remove(context.name)
        if was_current and state.previous_context in contexts.by_name:
            contexts.current = state.previous_context


def _gone(context: Context) -> bool:
    """It names a local cluster whose files do not exist any more."""
    try:
        return not _directory_of(context.metadata_uri).exists()
    except NotFoundError:
        return False


def _directory_of(uri: str) -> Path:
    """Raises NotFoundError for a cluster that is not a local one."""
    if not uri.startswith("sqlite:///"):
        raise NotFoundError(f"{uri} is no local cluster; name its directory with --dir")
    return Path(uri.removeprefix("sqlite://").partition("?")[0]).parent


def _run(coroutine: "Coroutine[Any, Any, T]") -> "T":
    from bkctl.cli.event_loop import run

    return run(coroutine)


async def _init(text: str) -> dict[str, Any]:
    from bkctl.formats import service_uri
    from bkctl.formats.layout import DEFAULT_LAYOUT, layout_of
    from bkctl.metadata.cluster import init_cluster
    from bkctl.metadata.store import make_tree

    uri = service_uri.parse(text)
    tree = make_tree(uri, create=True)
    try:
        await tree.open()
        layout = DEFAULT_LAYOUT if uri.manager is None else layout_of(uri.manager)
        result = await init_cluster(tree, uri.root, layout)
    finally:
        await tree.close()
    return {**await _info(text), "created": result.created}


async def _info(uri: str) -> dict[str, Any]:
    async with metadata_store(uri) as store:
        return await _identity(store)


async def _identity(store: "MetadataStore") -> dict[str, Any]:
    from bkctl.metadata.cluster import read_instance_id

    return {
        "instance_id": await read_instance_id(store.tree, store.root),
        "layout": store.layout.manager.value,
        "metadata_uri": store.uri.text,
    }


async def _status(uri: str) -> dict[str, Any]:
    from bkctl.cli.ledger_rows import all_metadata

    async with metadata_store(uri) as store:
        writable = set(await store.registration.writable())
        readonly = set(await store.registration.readonly())
        lost = set(await store.cookies.list()) - writable - readonly
        counts = Counter[str]()
        async for found in all_metadata(store.ledgers):
            counts.update(metadata.state.name.lower() for _, metadata in found)
        return {
            "state": "ok" if writable and not lost else "unhealthy",
            "writable": len(writable),
            "readonly": len(readonly),
            "lost": len(lost),
            "ledgers": counts.total(),
            "open": counts["open"],
            "in_recovery": counts["in_recovery"],
            "closed": counts["closed"],
            **await _identity(store),
        }
