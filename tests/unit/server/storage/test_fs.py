"""The operating system's files: whole writes, small files that survive a crash."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from bkctl.server.storage.fs import OsFs, read_file, write_file


def written(path: Path, buffers: Sequence[bytes | memoryview], offset: int) -> bytes:
    fs = OsFs()
    fd = fs.open(path, os.O_RDWR | os.O_CREAT)
    fs.write_all(fd, buffers, offset)
    fs.close(fd)
    return path.read_bytes()


def test_more_buffers_than_one_call_takes_are_written(tmp_path: Path) -> None:
    buffers = [b"%05d" % i for i in range(3000)]
    assert written(tmp_path / "f", buffers, 3) == bytes(3) + b"".join(buffers)


@pytest.mark.parametrize("step", [1, 4, 7])
def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:step], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwrite(fd, b"".join(parts)[:step], at))
    assert written(tmp_path / "f", [b"abc", memoryview(b"defg"), b"", b"hijklm"], 0) == b"abcdefghijklm"


def test_short_reads_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 3), at))
    assert read_file(OsFs(), tmp_path / "f", 8) == b"01234567"
    assert read_file(OsFs(), tmp_path / "f", 80) == b"0123456789"


def test_a_small_file_is_rewritten_in_place_and_never_empty(tmp_path: Path) -> None:
    path = tmp_path / "lastId"
    seen: list[bytes] = []

    class Watching(OsFs):
        def truncate(self, fd: int, size_bytes: int) -> None:
            seen.append(path.read_bytes())
            super().truncate(fd, size_bytes)

    write_file(Watching(), path, b"long content\n", sync=True)
    write_file(Watching(), path, b"short\n", sync=True)
    assert path.read_bytes() == b"short\n"
    assert seen == [b"short\nontent\n"]


def test_the_name_of_a_new_small_file_is_durable(tmp_path: Path) -> None:
    calls: list[str] = []

    class Recording(OsFs):
        def fsync(self, fd: int) -> None:
            calls.append("fsync")

        def fsync_dir(self, path: Path) -> None:
            calls.append(f"fsync_dir {path.name}")

    for _ in range(2):
        write_file(Recording(), tmp_path / "lastMark", b"x", sync=True)
    write_file(Recording(), tmp_path / "other", b"x", sync=False)
    assert calls == ["fsync", f"fsync_dir {tmp_path.name}", "fsync"]


def test_allocated_space_reads_as_zeros(tmp_path: Path) -> None:
    fs = OsFs()
    fd = fs.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    fs.allocate(fd, 10, 100)
    assert fs.size(fd) == 110
    assert fs.read(fd, 200, 0) == bytes(110)
    fs.close(fd)


def test_space_and_names(tmp_path: Path) -> None:
    fs = OsFs()
    fs.mkdir(tmp_path / "a" / "b")
    fs.mkdir(tmp_path / "a" / "b")
    (tmp_path / "z").touch()
    fs.rename(tmp_path / "z", tmp_path / "c")
    assert fs.listdir(tmp_path) == ["a", "c"]
    fs.unlink(tmp_path / "c")
    assert (fs.exists(tmp_path / "a"), fs.exists(tmp_path / "c")) == (True, False)
    assert 0 < fs.usable_bytes(tmp_path) <= fs.total_bytes(tmp_path)
