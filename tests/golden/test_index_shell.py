"""`bkctl index` and `bookie files` tell what Apache BookKeeper's shell told of the same disks."""

import re
from pathlib import Path

from bkctl.formats import cookie as cookie_format
from bkctl.offline.cookies import read_version
from bkctl.offline.directories import BookieDirectories
from bkctl.offline.index_check import IndexCheck
from bkctl.offline.indexes import entry_of, find_indexes
from bkctl.offline.inventory import FileType, bookie_files
from bkctl.server.storage.fs import OsFs
from tests.shared_data import fixture_path


def shell_output(name: str) -> str:
    return fixture_path("shell", "with-attributes", name).read_text()


def directories() -> BookieDirectories:
    home = fixture_path("bookies-clean", "b1")
    return BookieDirectories.of([str(home / "journal")], [str(home / "ledgers")])


def test_entries_are_where_the_shell_saw_them() -> None:
    lines = re.findall(r"entry (\d+)\t:\t\(log: (\d+), pos: (\d+)\)", shell_output("offline-ledger-0.txt"))
    assert len(lines) == 10
    [index] = find_indexes(directories())
    with index.locations() as locations:
        found = [entry_of(record) for batch in locations.records(0) for record in batch]
    ours = [(str(entry), str(location >> 32), str(location & 0xFFFFFFFF)) for _, entry, location in found]
    assert ours == lines


def test_consistency_check_passes_where_that_of_the_shell_passed() -> None:
    assert "Check passed" in shell_output("offline-localconsistencycheck.txt")
    check = IndexCheck(OsFs())
    indexes = find_indexes(directories())
    assert list(check.ledgers(indexes, directory_count=1)) == []
    assert list(check.locations(indexes[0])) == []
    assert (check.ledger_count, check.entry_count) == (19, 715)


def test_files_are_those_of_the_shell_but_for_logs_of_rocksdb() -> None:
    """Taken earlier in that bookie's life: it had one journal file then."""
    paths = re.findall(r"canonicalPath=/bkdata/b1/(\S+?)}", shell_output("listfilesondisc.txt"))
    home = fixture_path("bookies-clean", "b1")
    ours = {
        file.path.relative_to(home).as_posix()
        for file in bookie_files(directories())
        if file.type in (FileType.JOURNAL, FileType.ENTRYLOG)
    }
    theirs = {path for path in paths if Path(path).parent.name == "current"}
    assert len(paths) - len(theirs) == 2
    assert ours - theirs == {"journal/current/1a2054c4bd9.txn"}
    assert theirs <= ours


def test_cookie_is_the_text_that_the_shell_printed() -> None:
    text = shell_output("cookie_get.txt").split("---\n")[1]
    cookie, data = read_version(fixture_path("bookies-clean", "b1", "ledgers"))
    assert data.decode() == text.removesuffix("\n")
    assert cookie == cookie_format.decode(data)
