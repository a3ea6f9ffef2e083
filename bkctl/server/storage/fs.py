"""The disk as storage sees it: one small interface, so that tests can drop, tear and fail writes.

Everything below `server/storage` that touches files of its own goes through an `Fs`; RocksDB does
not. Laws for implementations:

- `write` and `write_all` put down every byte or raise; a caller never sees a short write.
- Nothing is durable before `fdatasync` or `fsync` of the file, and no name before `fsync_dir` of its
  directory. A failed sync may have lost the data for good: it must never be retried.
- An OSError stays an OSError: what it means is for the caller to say.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Buffer = bytes | bytearray | memoryview

_BUFFERS_PER_CALL = min(os.sysconf("SC_IOV_MAX"), 1024)


class Fs(Protocol):
    """Files by descriptor, names by path; every call may block and may raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        """A descriptor; `flags` are those of `os.open`, new files get mode 0o644."""

    def close(self, fd: int) -> None: ...

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """Up to `size_bytes` bytes; fewer only at the end of the file."""

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        """All of `data` at `offset`."""

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """All of `buffers`, one behind the other, from `offset` on; memoryviews must be of bytes."""

    def size(self, fd: int) -> int:
        """Length of the file in bytes."""

    def truncate(self, fd: int, size_bytes: int) -> None: ...

    def allocate(self, fd: int, offset: int, size_bytes: int) -> None:
        """Reserve blocks and extend the file with zeros up to `offset + size_bytes`."""

    def fdatasync(self, fd: int) -> None: ...

    def fsync(self, fd: int) -> None: ...

    def drop_cached(self, fd: int, offset: int, size_bytes: int) -> None:
        """Tell the kernel that these synced bytes will not be read soon."""

    def fsync_dir(self, path: Path) -> None:
        """Make creations, renames and deletions in the directory `path` durable."""

    def exists(self, path: Path) -> bool: ...

    def listdir(self, path: Path) -> list[str]:
        """Names in the directory, in ascending order."""

    def mkdir(self, path: Path) -> None:
        """Make the directory and its parents; it may exist."""

    def rename(self, old: Path, new: Path) -> None:
        """Replaces `new` atomically."""

    def link(self, old: Path, new: Path) -> None:
        """Give the file `old` a second name; raises FileExistsError."""

    def unlink(self, path: Path) -> None: ...

    def usable_bytes(self, path: Path) -> int:
        """Free space for an ordinary user on the file system of `path`."""

    def total_bytes(self, path: Path) -> int:
        """Size of the file system of `path`."""


class OsFs:
    """The operating system's files."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        data = os.pread(fd, size_bytes, offset)
        while 0 < len(data) < size_bytes:  # a signal or a limit of the kernel, or the end
            more = os.pread(fd, size_bytes - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        for first in range(0, len(buffers), _BUFFERS_PER_CALL):
            chunk = buffers[first : first + _BUFFERS_PER_CALL]
            size_bytes = sum(map(len, chunk))
            written = os.pwritev(fd, chunk, offset)
            if written < size_bytes:
                self.write(fd, memoryview(b"".join(chunk))[written:], offset + written)
            offset += size_bytes

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def allocate(self, fd: int, offset: int, size_bytes: int) -> None:
        os.posix_fallocate(fd, offset, size_bytes)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def drop_cached(self, fd: int, offset: int, size_bytes: int) -> None:
        os.posix_fadvise(fd, offset, size_bytes, os.POSIX_FADV_DONTNEED)

    def fsync_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def exists(self, path: Path) -> bool:
        return os.path.exists(path)

    def listdir(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: Path) -> None:
        os.makedirs(path, exist_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def usable_bytes(self, path: Path) -> int:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def total_bytes(self, path: Path) -> int:
        stat = os.statvfs(path)
        return stat.f_blocks * stat.f_frsize


def read_file(fs: Fs, path: Path, size_bytes_max: int) -> bytes:
    """The first `size_bytes_max` bytes of a small file.

    Raises:
        OSError: it cannot be read (FileNotFoundError when it is not there).
    """
    fd = fs.open(path, os.O_RDONLY)
    try:
        return fs.read(fd, size_bytes_max, 0)
    finally:
        fs.close(fd)


def write_file(fs: Fs, path: Path, data: Buffer, *, sync: bool) -> None:
    """Rewrite a small file in place, as upstream does with lastMark and lastId.

    Written first and cut afterwards, so that a crash never leaves the file empty: up to a sector it
    has the old bytes or the new ones. The name of a new file is made durable too.
    """
    existed = fs.exists(path)
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        fs.write(fd, data, 0)
        if fs.size(fd) > len(data):
            fs.truncate(fd, len(data))
        if sync:
            fs.fsync(fd)
    finally:
        fs.close(fd)
    if sync and not existed:
        fs.fsync_dir(path.parent)
