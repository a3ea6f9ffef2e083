"""Copies of disks that Apache BookKeeper wrote, to be damaged, and proof that looking changes nothing."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from bkctl.server.storage.index import LedgersIndex, LocationsIndex, new_block_cache
from tests.shared_data import fixture_path

DB = ("bookies-clean", "b1", "ledgers")
IDX = ("bookie-sorted", "ledgers")
ENTRY_COUNTS = {DB: (19, 715), IDX: (9, 2181)}  # ledgers, entries


def copied(tmp_path: Path, disk: tuple[str, ...]) -> Path:
    """The `current` of a copy."""
    shutil.copytree(fixture_path(*disk), tmp_path / "ledgers")
    return tmp_path / "ledgers" / "current"


@contextlib.contextmanager
def untouched(directory: Path) -> Iterator[None]:
    """Names, sizes and times below `directory` are the same afterwards."""
    before = _listing(directory)
    yield
    assert _listing(directory) == before


def _listing(directory: Path) -> list[tuple[str, int, int, int]]:
    paths = sorted([directory, *directory.rglob("*")])
    return [(str(path), (s := path.lstat()).st_size, s.st_mtime_ns, s.st_ino) for path in paths]


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file; `at` may count from its end."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@contextlib.contextmanager
def changed_locations(current: Path) -> Iterator[LocationsIndex]:
    locations = LocationsIndex.open(current / "locations", new_block_cache(8 << 20))
    yield locations
    locations.close()


@contextlib.contextmanager
def changed_ledgers(current: Path) -> Iterator[LedgersIndex]:
    ledgers = LedgersIndex.open(current / "ledgers")
    yield ledgers
    ledgers.close()
