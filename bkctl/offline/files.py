"""Reading a bookie's files, and nothing but reading: descriptors are opened O_RDONLY only."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bkctl.errors import BadInputError, NotFoundError
from bkctl.server.storage.fs import OsFs

Read = Callable[[int, int], bytes]
"""`read(position, size_bytes)`: the bytes there, fewer only at the end of the file."""

_WINDOW_BYTES = 1 << 20


def file_status(path: Path) -> os.stat_result:
    """Of a regular file; raises NotFoundError, BadInputError for anything but a file, OSError."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no file {path}") from None
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise BadInputError(f"{path} is {what}; name a file")
    return status


@contextmanager
def opened(path: Path) -> Iterator[tuple[Read, int]]:
    """(read, size in bytes) of a regular file; raises as `file_status` does."""
    size_bytes = file_status(path).st_size
    fs = OsFs()
    fd = fs.open(path, os.O_RDONLY)
    try:
        yield lambda position, size: fs.read(fd, size, position), size_bytes
    finally:
        fs.close(fd)


def data_end(read: Read, start: int, file_bytes: int) -> int:
    """Behind the last byte that is not zero; `start` when all from there on are zeros."""
    while file_bytes > start:
        at = max(start, file_bytes - _WINDOW_BYTES)
        kept = read(at, file_bytes - at).rstrip(b"\0")
        if kept:
            return at + len(kept)
        file_bytes = at
    return start


def next_nonzero(read: Read, position: int, file_bytes: int) -> int | None:
    """Position of the first byte from `position` on that is not zero."""
    while position < file_bytes:
        data = read(position, min(_WINDOW_BYTES, file_bytes - position))
        rest = data.lstrip(b"\0")
        if rest:
            return position + len(data) - len(rest)
        if not data:
            return None
        position += len(data)
    return None
