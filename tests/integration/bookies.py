"""Real bookie processes on loopback, for tests: temp directories, ports chosen by the system."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

READY_S_MAX = 30
_BKCTL = [sys.executable, "-m", "bkctl"]


def bkctl(*arguments: str, stdin: bytes = b"", timeout_s: float = 60) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end."""
    return subprocess.run(
        [*_BKCTL, *arguments], input=stdin, capture_output=True, timeout=timeout_s, check=False
    )


def numbered(directory: Path, name: str, count: int) -> list[Path]:
    """`name` below `directory`, then `name-2` and so on."""
    return [directory / (name if n == 1 else f"{name}-{n}") for n in range(1, count + 1)]


class BookieProcess:
    """One bookie with its directory; may be killed and started again, on another port each time."""

    def __init__(
        self,
        uri: str,
        directory: Path,
        name: str,
        settings: Sequence[str] = (),
        *,
        journals: int = 1,
        ledgers: int = 1,
    ) -> None:
        self.name = name
        self.directory = directory
        self.log = directory / "bookie.log"
        self._command = [
            *_BKCTL, "bookie", "start", "-u", uri, "-p", "0", "--bookie-id", name,
            "--advertised-address", "127.0.0.1", "--set", "allowLoopback=true",
        ]  # fmt: skip
        for journal in numbered(directory, "journal", journals):
            self._command += ["-j", str(journal)]
        for ledger_directory in numbered(directory, "ledgers", ledgers):
            self._command += ["-l", str(ledger_directory)]
        for setting in ("journalPreAllocSizeMB=4", "dbStorage_writeCacheMaxSizeMb=64", *settings):
            self._command += ["--set", setting]
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self, *, wait: bool = True) -> None:
        assert self.process is None, f"{self.name} runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], READY_S_MAX)
        line = self.process.stdout.readline().decode() if ready else ""
        if not line.startswith("ready "):
            raise AssertionError(f"{self.name} is not ready: {line!r}\n{self.log.read_text()[-2000:]}")
        self.address = line.split(" at ")[1].strip()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        code = process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()
        return code


@contextlib.contextmanager
def bookies(
    uri: str, directory: Path, count: int, settings: Sequence[str] = ()
) -> Iterator[list[BookieProcess]]:
    """`count` running bookies on an initialised cluster; stopped at the end, however it ends."""
    made = bkctl("cluster", "init", "-u", uri)
    assert made.returncode == 0, made.stderr
    started = [
        BookieProcess(uri, directory / f"bookie-{n}", f"bookie-{n}", settings) for n in range(1, count + 1)
    ]
    try:
        for bookie in started:
            bookie.start(wait=False)
        for bookie in started:
            bookie.wait_ready()
        yield started
    finally:
        for bookie in started:
            if bookie.process is not None:
                bookie.kill()


def wait_until(condition: object, what: str, timeout_s: float = 15) -> None:
    """Poll `condition()` until it is true."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
