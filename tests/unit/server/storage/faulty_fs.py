"""A disk whose every change can be watched, and refused, and forgotten by a power loss."""

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from bkctl.server.storage.fs import Buffer, OsFs


class FaultyFs(OsFs):
    """Calls `before_step` before each change and each force of a storage thread (the journal's thread
    goes on undisturbed); it may raise OSError to make it fail.

    `power_loss_image` copies the files as a power loss at this moment would leave them. RocksDB
    writes past this class, so its files stay as they are. Forcing is only remembered, not done: no
    test waits for the real disk.
    """

    def __init__(self) -> None:
        self.before_step: Callable[[], None] = lambda: None
        self._paths: dict[int, Path] = {}
        self._forced: dict[Path, bytes] = {}  # contents, for files that were written through here
        self._named: dict[Path, bool] = {}  # whether the file's name is durable

    def step(self) -> None:
        if threading.current_thread().name.startswith("storage"):
            self.before_step()

    def power_loss_image(self, source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        for path, named in self._named.items():
            image = target / path.relative_to(source)
            if not named:
                image.unlink(missing_ok=True)
            elif image.exists():
                image.write_bytes(self._forced.get(path, b""))

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT and not path.exists():
            self.step()
            self._named[path] = False
        fd = super().open(path, flags)
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._paths.pop(fd, None)
        super().close(fd)

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        self.step()
        super().write(fd, data, offset)

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        data = b"".join(buffers)
        self.write(fd, data[: len(data) // 2], offset)
        self.write(fd, data[len(data) // 2 :], offset + len(data) // 2)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self.step()
        super().truncate(fd, size_bytes)

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def fsync(self, fd: int) -> None:
        self.step()
        self._forced[self._paths[fd]] = self._paths[fd].read_bytes()

    def fsync_dir(self, path: Path) -> None:
        self.step()
        self._named.update({file: True for file in self._named if file.parent == path})

    def link(self, old: Path, new: Path) -> None:
        self.step()
        super().link(old, new)
        self._named[new] = False
        self._forced[new] = self._forced.get(old, b"")

    def unlink(self, path: Path) -> None:
        self.step()
        super().unlink(path)
        self._named.pop(path, None)
