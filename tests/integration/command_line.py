"""The command line as scripts and people use it: real processes, signals, pipes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

COMMAND = [sys.executable, "-m", "bkctl"]
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class CommandLine:
    """`bkctl` with configuration and temporary directories of its own."""

    config: Path
    temporary: Path
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @classmethod
    def below(cls, directory: Path) -> "CommandLine":
        temporary = directory / "tmp"
        temporary.mkdir()
        return cls(directory / "config", temporary)

    @property
    def environment(self) -> dict[str, str]:
        own = {"XDG_CONFIG_HOME": str(self.config), "TMPDIR": str(self.temporary)}
        return {key: value for key, value in os.environ.items() if not key.startswith("BKCTL_")} | own

    def run(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=60,
            check=False,
        )

    def items(self, *arguments: str, stdin: bytes = b"") -> list[dict[str, Any]]:
        """The items of a command that must succeed, by way of `-o json`."""
        result = self.run(*arguments, "-o", "json", stdin=stdin)
        assert result.returncode == 0, result.stderr.decode()
        return json.loads(result.stdout)["items"]  # type: ignore[no-any-return]

    def start(self, *arguments: str, **settings: Any) -> "subprocess.Popen[bytes]":
        settings = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
        process = subprocess.Popen([*COMMAND, *arguments], env=self.environment, **settings)
        self.started.append(process)
        return process

    def end_all(self) -> None:
        """End what `start` began and a failed test left running, with its bookies."""
        for process in self.started:
            if process.poll() is None:
                kill(children(process.pid))
                process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()
            process.wait()
        self.started.clear()

    def left_behind(self) -> list[str]:
        """Temporary files and directories that are still there."""
        return [name for name in os.listdir(self.temporary) if name.startswith("bkctl")]


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_S} s: {what}"
        time.sleep(0.05)


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def interrupted(process: "subprocess.Popen[bytes]", number: int = signal.SIGINT) -> tuple[int, bytes, bytes]:
    """Signal a process; its exit status, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err
