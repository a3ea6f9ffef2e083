"""Whether a directory is one of DbLedgerStorage with its indexes: a bookie must not start on any other.

It would make new, empty indexes there, and answer "no such ledger" for everything that the old ones name.

Source: spec storage sections 1 and 12; upstream DbLedgerStorage, SortedLedgerStorage,
InterleavedLedgerStorage. Differs: upstream starts.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from bkctl.errors import BookieStartError
from bkctl.formats import entry_log as fmt
from bkctl.server.storage.fs import Fs
from bkctl.server.storage.index import LEDGERS_NAME, LOCATIONS_NAME

_HEX_DIRECTORY = re.compile(r"[0-9a-f]{1,2}")
_INDEX_FILE_SUFFIXES = (".idx", ".idx.rloc")  # the second: one that is being moved
_DATABASE_FILE = "CURRENT"  # every RocksDB database has it


def check_storage_kind(ledger_current: Path, index_current: Path, fs: Fs) -> None:
    """`ledger_current`, `index_current`: the `current` directories, which exist.

    Raises:
        BookieStartError: another storage wrote them, or they have entries and lack an index.
        OSError: a directory cannot be read.
    """
    for current in dict.fromkeys((index_current, ledger_current)):
        found = _index_file(current, fs)
        if found is not None:
            raise BookieStartError(
                f"{found} is an index of SortedLedgerStorage or InterleavedLedgerStorage, and bkctl would not"
                " find the entries it names; run 'bookkeeper shell convert-to-db-storage' first"
            )
    for name in (LEDGERS_NAME, LOCATIONS_NAME):
        if not fs.exists(index_current / name / _DATABASE_FILE):
            log = _log_with_entries(ledger_current, fs)
            if log is not None:
                raise BookieStartError(
                    f"{log} has entries but {index_current / name} has no index of them: it is lost, or"
                    " another ledger storage wrote them; bring it back, check indexDirectories, run"
                    " 'bookkeeper shell convert-to-db-storage', or format this bookie"
                )


def _index_file(current: Path, fs: Fs) -> Path | None:
    """One `.idx` file, two directories below `current`."""
    for directory in _hex_directories(current, fs):
        for below in _hex_directories(directory, fs):
            for name in _names(below, fs):
                if name.endswith(_INDEX_FILE_SUFFIXES):
                    return below / name
    return None


def _hex_directories(parent: Path, fs: Fs) -> list[Path]:
    return [parent / name for name in _names(parent, fs) if _HEX_DIRECTORY.fullmatch(name)]


def _names(directory: Path, fs: Fs) -> list[str]:
    with suppress(NotADirectoryError):
        return fs.listdir(directory)
    return []


def _log_with_entries(current: Path, fs: Fs) -> Path | None:
    for name in fs.listdir(current):
        if fmt.parse_file_name(name) is not None:
            descriptor = fs.open(current / name, os.O_RDONLY)
            try:
                if fs.size(descriptor) > fmt.FIRST_POSITION:
                    return current / name
            finally:
                fs.close(descriptor)
    return None
