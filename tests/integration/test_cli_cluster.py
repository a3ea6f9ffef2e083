"""`bkctl cluster up` and `down`: a cluster on this machine that comes, stays, and goes without a trace."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.command_line import CommandLine, children, eventually, gone, interrupted, kill

pytestmark = pytest.mark.slow

Up = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def bkctl(tmp_path: Path) -> Iterator[CommandLine]:
    command_line = CommandLine.below(tmp_path)
    yield command_line
    command_line.end_all()


@pytest.fixture
def up(bkctl: CommandLine) -> Up:
    """Starts `cluster up` and waits until it is ready."""

    def start(*arguments: str) -> "subprocess.Popen[bytes]":
        process = bkctl.start("cluster", "up", "-o", "jsonl", *arguments)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b'{"context":'), process.communicate()
        return process

    return start


def test_ctrl_c_leaves_nothing_behind(bkctl: CommandLine, up: Up) -> None:
    assert bkctl.run("context", "add", "before", "sqlite:///nowhere.db").returncode == 0
    process = up("-n", "2")
    bookies = children(process.pid)
    assert len(bookies) == 2
    (status,) = bkctl.items("cluster", "status")
    assert (status["writable"], status["state"]) == (2, "ok")
    code, _, err = interrupted(process)
    assert code == 0
    assert b"stopping the bookies" in err
    assert gone(bookies)
    assert bkctl.left_behind() == []
    assert [(c["name"], c["current"]) for c in bkctl.items("context", "list")] == [("before", True)]


def test_ctrl_c_at_the_terminal_reaches_no_bookie(bkctl: CommandLine, up: Up) -> None:
    """The terminal signals the foreground process group; the supervisor ends its bookies in order."""
    process = up("-n", "2")
    groups = {os.getpgid(bookie.pid) for bookie in children(process.pid)}
    assert os.getpgid(process.pid) not in groups
    assert interrupted(process)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_are_as_good_as_ctrl_c(bkctl: CommandLine, up: Up, number: int) -> None:
    process = up("-n", "1")
    bookies = children(process.pid)
    assert interrupted(process, number)[0] == 0
    assert gone(bookies)
    assert bkctl.left_behind() == []


def test_a_second_ctrl_c_leaves_at_once(bkctl: CommandLine, up: Up) -> None:
    process = up("-n", "1")
    (bookie,) = children(process.pid)
    bookie.suspend()  # it cannot end in order
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    eventually(lambda: b"once more" in process.stderr.readline(), "it says that it stops")  # type: ignore[union-attr]
    assert interrupted(process)[0] == 130
    assert gone([bookie])
    assert bkctl.left_behind() == []


def test_a_bookie_that_dies_is_started_again(bkctl: CommandLine, up: Up) -> None:
    process = up("-n", "2")
    victim, other = children(process.pid)
    victim.kill()
    eventually(lambda: gone([victim]) and len(children(process.pid)) == 2, "there are two bookies again")
    eventually(
        lambda: {b["state"] for b in bkctl.items("bookie", "list")} == {"rw"}, "both bookies are registered"
    )
    assert other in children(process.pid)
    assert b"ended (SIGKILL); restarting it in 0.5 s" in interrupted(process)[2]


def test_a_directory_keeps_its_data_and_ports(bkctl: CommandLine, up: Up, tmp_path: Path) -> None:
    first = up("--dir", str(tmp_path / "c"), "-n", "2")
    (ledger,) = bkctl.items("ledger", "write", stdin=b"one\ntwo\n")
    before = bkctl.run("bookie", "list", "-o", "name").stdout
    assert bkctl.run("cluster", "up", "--dir", str(tmp_path / "c")).returncode == 8
    assert interrupted(first)[0] == 0
    assert bkctl.run("cluster", "up", "--dir", str(tmp_path / "c"), "-n", "1").returncode == 2
    second = up("--dir", str(tmp_path / "c"))
    assert bkctl.run("bookie", "list", "-o", "name").stdout == before
    assert bkctl.run("ledger", "read", str(ledger["ledger_id"]), "--raw").stdout == b"one\ntwo\n"
    assert interrupted(second)[0] == 0


def test_detached_clusters_run_until_down(bkctl: CommandLine) -> None:
    (cluster,) = bkctl.items("cluster", "up", "-d", "-n", "1")
    bookies = children(cluster["pid"])
    try:
        assert bkctl.run("bookie", "list", "-o", "name").stdout.decode().split() == cluster["bookies"]
        assert bkctl.run("cluster", "down").returncode == 0
        assert gone(bookies)
        assert bkctl.left_behind() == []
        again = bkctl.run("cluster", "down", "--dir", cluster["directory"])
        assert again.returncode == 3
        assert b"no local cluster" in again.stderr
    finally:
        kill(bookies)


def test_down_cleans_up_after_a_supervisor_that_was_killed(bkctl: CommandLine, up: Up) -> None:
    process = up("-n", "2")
    bookies = children(process.pid)
    process.kill()
    process.wait()
    assert not gone(bookies)
    result = bkctl.run("cluster", "down")
    assert result.returncode == 0
    assert b"is gone; ending the bookies" in result.stderr
    assert gone(bookies)
    assert bkctl.left_behind() == []


def test_down_leaves_a_foreign_process_with_the_same_pid_alone(bkctl: CommandLine, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            identity = {"pid": stranger.pid, "started": 1.0}
            state = {
                "metadata_uri": "sqlite:///x.db",
                "bookies": [{"bookie_id": "b", "port": 1, "process": identity}],
                "supervisor": identity,
            }
            (tmp_path / "cluster.json").write_text(json.dumps(state))
            assert bkctl.run("cluster", "down", "--dir", str(tmp_path)).returncode == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_port_that_is_taken_ends_the_start_and_leaves_nothing(bkctl: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for mode in ([], ["-d"]):
            result = bkctl.run("cluster", "up", "-n", "2", "--base-port", str(port - 1), *mode)
            assert result.returncode == 1
            assert f"port {port} cannot be used" in result.stderr.decode()
            assert bkctl.left_behind() == []


def test_a_context_of_another_cluster_is_not_overwritten(bkctl: CommandLine, tmp_path: Path) -> None:
    assert bkctl.run("context", "add", "prod", "zk://a:2181/ledgers").returncode == 0
    result = bkctl.run("cluster", "up", "-n", "1", "-C", "prod")
    assert result.returncode == 8
    assert b"'prod' names another cluster" in result.stderr
    assert bkctl.left_behind() == []
    assert bkctl.items("context", "list")[0]["metadata_uri"] == "zk://a:2181/ledgers"
