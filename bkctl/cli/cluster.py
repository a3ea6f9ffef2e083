"""`bkctl cluster`: clusters as a whole, and a local one for trying things."""

import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli import confirm
from bkctl.cli.app import group
from bkctl.cli.context import metadata_store, metadata_uri, metadata_uri_to_change
from bkctl.cli.event_loop import run
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.render import Column, emit

if TYPE_CHECKING:
    from bkctl.metadata.store import MetadataStore

app = group("Clusters as a whole, and a local one for trying things.")

_SUPERVISOR_PATIENCE_S = 20.0  # longer than it gives its bookies
_BOOKIE_PATIENCE_S = 15.0


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
    from bkctl.cli.cluster_up import planned, run_cluster, start_detached

    if directory is None:
        directory, temporary = Path(tempfile.mkdtemp(prefix="bkctl-")), True
    directory = directory.absolute()
    try:
        state = planned(directory, bookies, base_port, temporary=temporary)
        if detach:
            start_detached(directory, state, base_port)
            temporary = False  # it goes with `cluster down`
        else:
            run(run_cluster(directory, state))
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
    from bkctl.cli.cluster_state import directory_of, read_state, stop_processes, write_state
    from bkctl.cli.cluster_up import leave_context

    directory = (directory or directory_of(metadata_uri())).absolute()
    state = read_state(directory)
    supervisor = state.supervisor
    if supervisor is not None and not supervisor.running:
        confirm.note(f"its supervisor, process {supervisor.pid}, is gone; ending the bookies")
    killed = stop_processes([supervisor] if supervisor is not None else [], _SUPERVISOR_PATIENCE_S)
    killed += stop_processes(state.processes(), _BOOKIE_PATIENCE_S)  # those without a supervisor
    if killed:
        confirm.note(f"{killed} processes did not end in time and were killed")
    leave_context(state)
    if state.temporary:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        bookies = tuple(replace(bookie, process=None) for bookie in state.bookies)
        write_state(directory, replace(state, bookies=bookies, supervisor=None, ready=False))


@app.command("status")
def status() -> None:
    """Summarise the cluster; exit code 10 when no bookie is writable or one is lost."""
    row = run(_status(metadata_uri()))
    columns = ["state", "writable", "readonly", "lost", "ledgers", "open", "in_recovery", "closed"]
    wide = ["instance_id", "metadata_uri"]
    emit("ClusterStatus", [row], [Column(key) for key in columns] + [Column(key, wide=True) for key in wide])
    if row["state"] != "ok":
        raise typer.Exit(ExitCode.UNHEALTHY)


@app.command("init")
def init() -> None:
    """Create the cluster's metadata; one that is already there is left as it is."""
    row = run(_init(metadata_uri_to_change()))
    if not row["created"]:
        confirm.note("the cluster was there already; nothing was changed")
    emit(
        "Cluster", [row], [Column("instance_id"), Column("layout"), Column("created"), Column("metadata_uri")]
    )


@app.command("info")
def info() -> None:
    """Show the cluster's identity: instance id, ledger layout, metadata URI."""
    row = run(identity_row(metadata_uri()))
    emit("Cluster", [row], [Column("instance_id"), Column("layout"), Column("metadata_uri")])


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
    return {**await identity_row(text), "created": result.created}


async def identity_row(uri: str) -> dict[str, Any]:
    """`instance_id` (None: the cluster has none), `layout`, `metadata_uri`."""
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
