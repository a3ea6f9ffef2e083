"""A bookie does not start where it would not find the entries that are there."""

from pathlib import Path

import pytest

from bkctl.errors import BookieStartError
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings


def storage(directory: Path) -> LedgerStorage:
    settings = StorageSettings(
        [directory], [directory.with_name("index")], write_cache_bytes=1 << 20, read_cache_bytes=1 << 20
    )
    return LedgerStorage(settings, OsFs())


def opened(directory: Path) -> None:
    made = storage(directory)
    try:
        made.open()
    finally:
        made.close()


@pytest.mark.parametrize("where", ["ledgers", "index"])
@pytest.mark.parametrize("name", ["ff/0/ff00.idx", "0/7/7.idx", "0/7/7.idx.rloc"])
def test_index_files_of_another_storage_are_refused(tmp_path: Path, where: str, name: str) -> None:
    file = tmp_path / where / "current" / name
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(BookieStartError, match=f"{name} is an index of SortedLedgerStorage"):
        opened(tmp_path / "ledgers")
    assert not list(tmp_path.glob("*/current/locations"))


@pytest.mark.parametrize("lacking", ["ledgers", "locations"])
def test_entries_without_an_index_are_refused(tmp_path: Path, lacking: str) -> None:
    opened(tmp_path / "ledgers")
    (tmp_path / "ledgers" / "current" / "a.log").write_bytes(bytes(1025))
    opened(tmp_path / "ledgers")  # with its index it may start
    (tmp_path / "index" / "current" / lacking).rename(tmp_path / "lost")
    with pytest.raises(BookieStartError, match=r"a\.log has entries but .*/" + lacking + " has no index"):
        opened(tmp_path / "ledgers")


@pytest.mark.parametrize("size_bytes", [0, 1024])
def test_what_another_storage_left_empty_is_no_obstacle(tmp_path: Path, size_bytes: int) -> None:
    current = tmp_path / "ledgers" / "current"
    (current / "0" / "7").mkdir(parents=True)
    (current / "0" / "8").touch()
    (current / "1").touch()
    (current / "0.log").write_bytes(bytes(size_bytes))
    opened(tmp_path / "ledgers")
