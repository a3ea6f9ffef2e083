"""`bkctl cluster up`: a local cluster with a supervisor, in the foreground or detached, and its context."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from bkctl.cli import confirm
from bkctl.cli.cluster_state import (
    BookieState,
    ClusterState,
    ProcessIdentity,
    directory_of,
    read_state,
    write_state,
)
from bkctl.cli.context import Context, changed_contexts
from bkctl.cli.event_loop import termination_signals
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.local_cluster import LocalCluster, free_ports, ports_from
from bkctl.cli.options import global_options
from bkctl.cli.render import Column, emit
from bkctl.errors import BadInputError, BookieStartError, ConflictError, NotFoundError


def planned(directory: Path, count: int | None, base_port: int | None, *, temporary: bool) -> ClusterState:
    """The cluster to start: the bookies that the directory has, and as many more as are wanted.

    Raises ConflictError when it runs already, BadInputError when fewer are wanted than there are.
    """
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
    if count < len(known):
        raise BadInputError(f"{directory} has {len(known)} bookies, and their data; start all of them")
    if base_port is not None and known:
        raise BadInputError(f"{directory} has bookies with ports of their own; leave --base-port away")
    ports = [bookie.port for bookie in known]
    missing = count - len(ports)
    ports += ports_from(base_port, missing) if base_port is not None else free_ports(missing)
    bookies = tuple(BookieState(f"127.0.0.1:{port}", port) for port in ports)
    uri = f"sqlite://{directory / 'metadata.db'}"
    return ClusterState(uri, bookies, temporary=temporary)


async def run_cluster(directory: Path, state: ClusterState) -> None:
    """From the first bookie's start to the last one's end.

    Ctrl-C or SIGTERM ends the bookies in order; a second one kills them. Raises typer.Exit then.
    """
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
    signals = _Signals(work, cluster)
    try:
        await work
    except asyncio.CancelledError:
        if not signals.count:
            raise
        confirm.note("stopping the bookies; once more to leave at once")
    finally:
        await cluster.stop()
        save(supervisor=None, ready=False)
        leave_context(state)
    if signals.count > 1:
        raise typer.Exit(ExitCode.INTERRUPTED)


class _Signals:
    """Cancels the work at the first signal, kills the bookies at the second, is deaf to no third."""

    def __init__(self, work: asyncio.Future[None], cluster: LocalCluster) -> None:
        self.count = 0
        self._work = work
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._numbers = (signal.SIGINT, *termination_signals())
        for number in self._numbers:
            self._loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        self.count += 1
        if self.count == 1:
            self._work.cancel()
            return
        self._cluster.kill()
        for number in self._numbers:
            self._loop.remove_signal_handler(number)


def _announce(directory: Path, state: ClusterState) -> None:
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


def start_detached(directory: Path, state: ClusterState, base_port: int | None) -> None:
    """Run `cluster up` in the background and wait until it is ready. Raises BookieStartError."""
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


def leave_context(state: ClusterState) -> None:
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
        return not directory_of(context.metadata_uri).exists()
    except NotFoundError:
        return False
