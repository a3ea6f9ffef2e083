"""A bookie's directories are found under either name, and their users are seen."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bkctl.errors import NotFoundError
from bkctl.offline.directories import BookieDirectories


def _made(path: Path) -> Path:
    (path / "current").mkdir(parents=True)
    return path


def test_directory_is_found_with_and_without_current(tmp_path: Path) -> None:
    journal, ledgers = _made(tmp_path / "j"), _made(tmp_path / "l")
    plain = BookieDirectories.of([str(journal)], [str(ledgers)])
    inner = BookieDirectories.of([str(journal / "current")], [str(ledgers / "current")])
    assert plain == inner
    assert plain.journals == ((journal / "current").resolve(),)
    assert plain.indexes == plain.ledgers


def test_own_index_directories_are_used(tmp_path: Path) -> None:
    ledgers, index = _made(tmp_path / "l"), _made(tmp_path / "i")
    directories = BookieDirectories.of([], [str(ledgers)], [str(index)])
    assert directories.indexes == ((index / "current").resolve(),)
    assert len(directories.everywhere()) == 2


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        BookieDirectories.of([str(tmp_path / "absent")], [])


def test_idle_directory_has_no_users(tmp_path: Path) -> None:
    assert BookieDirectories.of([], [str(_made(tmp_path / "l"))]).users() == []


def test_lock_on_the_directory_is_seen(tmp_path: Path) -> None:
    ledgers = _made(tmp_path / "l")
    descriptor = os.open(ledgers / "current", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        [line] = BookieDirectories.of([], [str(ledgers)]).users()
    finally:
        os.close(descriptor)
    assert line.endswith(f"in use by process {os.getpid()}")


def test_file_open_in_another_process_is_seen(tmp_path: Path) -> None:
    ledgers = _made(tmp_path / "l")
    (ledgers / "current" / "0.log").touch()
    script = f"f = open({str(ledgers / 'current' / '0.log')!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        lines = BookieDirectories.of([], [str(ledgers)]).users()
        other.communicate(b"\n")
    assert len(lines) == 1
    assert lines[0].endswith(f"in use by process {other.pid}")
