"""The directories of a bookie on this machine, and who has them open.

Source: spec storage section 1; upstream LedgerDirsManager, BookieImpl.getCurrentDirectories.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bkctl.errors import NotFoundError

_CURRENT = "current"
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, slots=True)
class BookieDirectories:
    """`current` directories; `indexes` has one for each of `ledgers`."""

    journals: tuple[Path, ...]
    ledgers: tuple[Path, ...]
    indexes: tuple[Path, ...]

    @classmethod
    def of(
        cls, journals: Sequence[str], ledgers: Sequence[str], indexes: Sequence[str] = ()
    ) -> "BookieDirectories":
        """From configured names, with or without `current`.

        Raises NotFoundError when a directory is not there.
        """
        named = [tuple(_current(name) for name in names) for names in (journals, ledgers, indexes or ledgers)]
        return cls(*named)

    def everywhere(self) -> tuple[Path, ...]:
        """Each directory once."""
        return tuple(dict.fromkeys((*self.journals, *self.ledgers, *self.indexes)))

    def users(self) -> list[str]:
        """One line for each directory that a running process uses, as far as this process may see."""
        open_paths = dict(_open_paths())
        lines = []
        for directory in self.everywhere():
            pid = _lock_holder(directory) or next(
                (pid for path, pid in open_paths.items() if directory in path.parents), None
            )
            if pid is not None:
                lines.append(f"{directory} is in use by process {pid}")
        return lines


def _current(name: str) -> Path:
    path = Path(name)
    if path.name != _CURRENT and (path / _CURRENT).is_dir():
        path /= _CURRENT
    if not path.is_dir():
        raise NotFoundError(f"no bookie directory {name}; name one that a bookie has written")
    return path.resolve()


def _lock_holder(directory: Path) -> int | None:
    """The process that holds a lock on the directory (ours does) or on a RocksDB in it (both do)."""
    locked = dict(_locks())
    candidates = (directory, directory / "ledgers" / "LOCK", directory / "locations" / "LOCK")
    for path in candidates:
        try:
            status = path.stat()
        except OSError:
            continue
        holder = locked.get((status.st_dev, status.st_ino))
        if holder is not None:
            return holder
    return None


def _locks() -> Iterator[tuple[tuple[int, int], int]]:
    """((device, inode), process) of every lock of this machine; nothing where that is not told."""
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] != "->":  # "->" waits for the lock
            major, minor, inode = fields[5].split(":")
            yield (os.makedev(int(major, 16), int(minor, 16)), int(inode)), int(fields[4])


def _open_paths() -> Iterator[tuple[Path, int]]:
    """(path, process) of the files that other processes have open, as far as this one may see."""
    own = os.getpid()
    for pid in _numbers(Path("/proc")):
        if pid != own:
            for number in _numbers(Path(f"/proc/{pid}/fd")):
                try:
                    yield Path(os.readlink(f"/proc/{pid}/fd/{number}")), pid
                except OSError:
                    continue


def _numbers(directory: Path) -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir(directory) if name.isdigit()]
    except OSError:
        return ()
