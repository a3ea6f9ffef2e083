"""`bkctl demo`: the whole story, and that it cleans up however it ends."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.command_line import CommandLine, children, gone, interrupted

pytestmark = pytest.mark.slow


@pytest.fixture
def bkctl(tmp_path: Path) -> Iterator[CommandLine]:
    command_line = CommandLine.below(tmp_path)
    yield command_line
    command_line.end_all()


def test_every_act_holds_and_nothing_is_left_behind(bkctl: CommandLine) -> None:
    acts = bkctl.items("demo")
    assert [act["state"] for act in acts] == ["ok"] * 8
    assert "LedgerFenced" in acts[4]["detail"]
    assert bkctl.left_behind() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_interrupted_cleans_up(bkctl: CommandLine, number: int, code: int) -> None:
    demo = bkctl.start("demo")
    assert demo.stdout is not None
    assert "three bookies" in demo.stdout.readline().decode()
    bookies = children(demo.pid)
    assert len(bookies) == 3
    status, _, err = interrupted(demo, number)
    assert (status, err) == (code, b"")
    assert gone(bookies)
    assert bkctl.left_behind() == []


def test_keep_leaves_a_cluster_for_cluster_down(bkctl: CommandLine) -> None:
    assert bkctl.run("demo", "--keep").returncode == 0
    (name,) = bkctl.left_behind()
    directory = bkctl.temporary / name
    uri = f"sqlite://{directory}/metadata.db"
    assert bkctl.items("cluster", "status", "-u", uri)[0]["writable"] == 3
    bookies = [p for p in psutil.process_iter() if str(directory) in " ".join(p.cmdline())]
    assert len(bookies) == 3
    assert bkctl.run("cluster", "down", "--dir", str(directory)).returncode == 0
    assert gone(bookies)
    assert bkctl.left_behind() == []
