"""`cluster down` ends what `cluster up` began, and never anything else."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bkctl.cli.cluster_state import (
    BookieState,
    ClusterState,
    ProcessIdentity,
    read_state,
    state_path,
    stop_processes,
    write_state,
)
from bkctl.errors import CorruptDataError, NotFoundError

Child = subprocess.Popen[bytes]

_SLEEPS = "print('up', flush=True); import time; time.sleep(60)"
_STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_SLEEPS}"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    code = getattr(request, "param", _SLEEPS)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def identity(child: Child) -> ProcessIdentity:
    found = ProcessIdentity.of(child.pid)
    assert found is not None
    return found


def test_state_reads_back(tmp_path: Path) -> None:
    process = ProcessIdentity.of(os.getpid())
    bookies = (BookieState("127.0.0.1:1", 1, process), BookieState("127.0.0.1:2", 2))
    state = ClusterState("sqlite:///x", bookies, process, ready=True, temporary=True, context="local")
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert read_state(tmp_path).running


def test_a_directory_without_cluster_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="bkctl cluster up"):
        read_state(tmp_path)
    with pytest.raises(NotFoundError):
        read_state(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bookies": [{}], "supervisor": null}', '{"bookies": 3}'])
def test_damaged_state_is_reported(tmp_path: Path, text: str) -> None:
    state_path(tmp_path).write_text(text)
    with pytest.raises(CorruptDataError, match=r"cluster\.json"):
        read_state(tmp_path)


def test_processes_are_ended(child: Child) -> None:
    assert stop_processes([identity(child)], patience_s=10) == 0
    assert child.wait() == -signal.SIGTERM


@pytest.mark.parametrize("child", [_STUBBORN], indirect=True)
def test_processes_that_do_not_end_in_time_are_killed(child: Child) -> None:
    assert stop_processes([identity(child)], patience_s=0.2) == 1
    assert child.wait() == -signal.SIGKILL


def test_a_pid_that_belongs_to_another_process_now_is_left_alone(child: Child) -> None:
    foreign = dataclasses.replace(identity(child), started=identity(child).started - 100)
    assert not foreign.running
    assert stop_processes([foreign], patience_s=1) == 0
    assert child.poll() is None


def test_a_process_that_is_gone_has_no_identity(child: Child) -> None:
    known = identity(child)
    child.kill()
    child.wait()
    assert ProcessIdentity.of(child.pid) is None
    assert not known.running
