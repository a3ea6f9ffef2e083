"""What `bkctl cluster up` writes about itself into the cluster's directory, for the commands after it.

`cluster.json` names the processes by pid and start time, so that a pid that the system gave to some
other process later is never signalled.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from bkctl.errors import CorruptDataError, NotFoundError

_FILE_NAME = "cluster.json"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process of this machine; `started` is its start time as psutil tells it, in seconds."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """None when there is no such process any more."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    @property
    def running(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            # The kernel counts start times in ticks of 10 ms; psutil's boot time may round them.
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send(self, signal_number: int) -> None:
        """Signal the process if it is still this one."""
        if self.running:
            try:
                os.kill(self.pid, signal_number)
            except ProcessLookupError:
                pass  # ended in between


@dataclass(frozen=True, slots=True)
class BookieState:
    """`process` None: not running; the port stays its own, because the cookie names it."""

    bookie_id: str
    port: int
    process: ProcessIdentity | None = None


@dataclass(frozen=True, slots=True)
class ClusterState:
    """`supervisor` None: the cluster is down. `temporary`: `cluster down` removes the directory."""

    metadata_uri: str
    bookies: tuple[BookieState, ...]
    supervisor: ProcessIdentity | None = None
    ready: bool = False
    temporary: bool = False
    context: str | None = None
    previous_context: str | None = None

    @property
    def running(self) -> bool:
        return self.supervisor is not None and self.supervisor.running

    def processes(self) -> list[ProcessIdentity]:
        return [bookie.process for bookie in self.bookies if bookie.process is not None]


def state_path(directory: Path) -> Path:
    return directory / _FILE_NAME


def directory_of(uri: str) -> Path:
    """Raises NotFoundError for a cluster that is not a local one."""
    if not uri.startswith("sqlite:///"):
        raise NotFoundError(f"{uri} is no local cluster; name its directory with --dir")
    return Path(uri.removeprefix("sqlite://").partition("?")[0]).parent


def write_state(directory: Path, state: ClusterState) -> None:
    new = directory / f"{_FILE_NAME}.new"
    new.write_text(json.dumps(asdict(state), indent=2) + "\n")
    os.replace(new, state_path(directory))


def read_state(directory: Path) -> ClusterState:
    """Raises NotFoundError when no local cluster lives in `directory`, CorruptDataError for damage."""
    path = state_path(directory)
    try:
        content = json.loads(path.read_bytes())
        bookies = tuple(
            BookieState(str(b["bookie_id"]), int(b["port"]), _identity(b["process"]))
            for b in content.pop("bookies")
        )
        supervisor = _identity(content.pop("supervisor"))
        return ClusterState(bookies=bookies, supervisor=supervisor, **content)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no local cluster in {directory}; start one with 'bkctl cluster up'") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"cannot read {path}: {error!r}; stop its processes by hand") from error


def _identity(content: dict[str, float] | None) -> ProcessIdentity | None:
    return None if content is None else ProcessIdentity(int(content["pid"]), float(content["started"]))


def stop_processes(processes: Sequence[ProcessIdentity], patience_s: float) -> int:
    """Ask them to end, and end those that have not after `patience_s`; how many had to be killed."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    alive = list(processes)
    while (alive := [process for process in alive if process.running]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in alive:
        process.send(signal.SIGKILL)
    return len(alive)
