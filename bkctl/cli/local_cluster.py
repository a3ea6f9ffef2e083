"""A cluster on this machine: bookie processes around one SQLite metadata store in a directory.

    DIR/metadata.db          the metadata store
    DIR/bookie-N/            journal/ and ledgers/ of bookie N, from 1
    DIR/bookie-N.log         what it says
    DIR/cluster.json         who runs (bkctl.cli.cluster_state)

Each bookie runs in its own session, so Ctrl-C at the terminal reaches only the process here,
which then stops the bookies in order.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bkctl.cli.cluster_state import BookieState, ProcessIdentity
from bkctl.errors import BadInputError, BookieStartError

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
_RESTART_DELAY_S_MIN = 0.5
_RESTART_DELAY_S_MAX = 30.0
_PROVEN_AFTER_S = 30.0  # a bookie that ran this long gets the shortest delay again


class LocalBookie:
    """One bookie process; may be started again after its end."""

    def __init__(self, number: int, directory: Path, port: int, metadata_uri: str) -> None:
        self.number = number
        self.port = port
        self.bookie_id = f"127.0.0.1:{port}"
        self.log_path = directory / f"bookie-{number}.log"
        self._data = directory / f"bookie-{number}"
        self._metadata_uri = metadata_uri
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    def state(self) -> BookieState:
        identity = None if self.pid is None else ProcessIdentity.of(self.pid)
        return BookieState(self.bookie_id, self.port, identity)

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "bkctl", "bookie", "start"),
            *("--port", str(self.port), "--advertised-address", "127.0.0.1"),
            *("--journal", str(self._data / "journal"), "--ledgers", str(self._data / "ledgers")),
            *("--metadata-uri", self._metadata_uri, "--set", "allowLoopback=true"),
        ]

    async def start(self) -> float:
        """Start it and wait until it is ready; how long that took, in seconds.

        Raises BookieStartError when it ends before, or is not ready in time.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._ready()
        except TimeoutError:
            await self.stop()
            raise BookieStartError(
                f"bookie {self.bookie_id} was not ready after {READY_TIMEOUT_S:g} s; see {self.log_path}", 1
            ) from None
        except asyncio.CancelledError:
            self.signal(signal.SIGKILL)
            raise
        self._drain = asyncio.create_task(self._copy_output())
        return time.monotonic() - began

    async def _ready(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if line.startswith(b"ready "):
                return
        code = await self._process.wait()
        raise BookieStartError(
            f"bookie {self.bookie_id} did not start ({ending(code)}): {self._last_words()}", 1
        )

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log_path.read_bytes()[-4096:].decode(errors="replace").split("\n")
            for line in reversed(lines):
                if line.strip():
                    return line.strip()
        return f"see {self.log_path}"

    async def _copy_output(self) -> None:
        """What it prints after being ready goes to its log."""
        assert self._process is not None
        assert self._process.stdout is not None
        with self.log_path.open("ab", buffering=0) as log:
            while line := await self._process.stdout.readline():
                log.write(line)

    async def wait(self) -> int:
        """Its exit status, negative for a signal, when it ended."""
        assert self._process is not None, "not started"
        return await self._process.wait()

    def signal(self, number: int) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self) -> bool:
        """Ask it to end, kill it after STOP_TIMEOUT_S; whether it ended by itself."""
        if self._process is None:
            return True
        self.signal(signal.SIGTERM)
        willing = True
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            willing = False
            self.signal(signal.SIGKILL)
            await self._process.wait()
        if self._drain is not None:
            await self._drain
        return willing


class LocalCluster:
    """`report` gets a line for a person at every event worth one."""

    def __init__(self, directory: Path, ports: list[int], report: Callable[[str], None]) -> None:
        self.directory = directory
        self.metadata_uri = f"sqlite://{directory / 'metadata.db'}"
        self.bookies = [
            LocalBookie(number, directory, port, self.metadata_uri) for number, port in enumerate(ports, 1)
        ]
        self._report = report

    async def init_metadata(self) -> None:
        """Create the metadata store, or leave it alone when it is there."""
        from bkctl.metadata.store import MetadataStore

        store = await MetadataStore.open(self.metadata_uri, create=True)
        await store.close()

    async def start(self) -> None:
        """Start all bookies. Raises BookieStartError; those that run already go on running."""
        await self.init_metadata()
        try:
            async with asyncio.TaskGroup() as tasks:
                for bookie in self.bookies:
                    tasks.create_task(self._start(bookie))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _start(self, bookie: LocalBookie) -> None:
        took_s = await bookie.start()
        self._report(f"bookie {bookie.bookie_id} ready after {took_s:.1f} s (pid {bookie.pid})")

    async def supervise(self, changed: Callable[[], None]) -> None:
        """Restart bookies that die, for ever; `changed` is called when a process came or went."""
        async with asyncio.TaskGroup() as tasks:
            for bookie in self.bookies:
                tasks.create_task(self._supervise(bookie, changed))

    async def _supervise(self, bookie: LocalBookie, changed: Callable[[], None]) -> None:
        delay_s = _RESTART_DELAY_S_MIN
        while True:
            began = time.monotonic()
            code = await bookie.wait()
            changed()
            if time.monotonic() - began > _PROVEN_AFTER_S:
                delay_s = _RESTART_DELAY_S_MIN
            self._report(f"bookie {bookie.bookie_id} ended ({ending(code)}); restarting it in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RESTART_DELAY_S_MAX)
            with contextlib.suppress(BookieStartError):  # its end is reported above, in the next turn
                await self._start(bookie)
                changed()

    async def stop(self) -> None:
        """End all bookies in order; those that do not end in time are killed."""
        willing = await asyncio.gather(*(bookie.stop() for bookie in self.bookies))
        for bookie, by_itself in zip(self.bookies, willing, strict=True):
            if not by_itself:
                self._report(f"bookie {bookie.bookie_id} did not end in {STOP_TIMEOUT_S:g} s and was killed")

    def kill(self) -> None:
        """End all bookies at once; their journals make that safe."""
        for bookie in self.bookies:
            bookie.signal(signal.SIGKILL)


def ending(code: int) -> str:
    """An exit status in words; negative ones are signals."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def free_ports(count: int) -> list[int]:
    """TCP ports on the loopback interface that nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def ports_from(base_port: int, count: int) -> list[int]:
    """`count` ports from `base_port` on. Raises BadInputError when they do not exist."""
    if not 0 < base_port <= 65536 - count:
        raise BadInputError(f"no room for {count} ports from {base_port} on")
    return list(range(base_port, base_port + count))
