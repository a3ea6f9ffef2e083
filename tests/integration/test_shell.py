"""The old commands against running bookies: what they read, and what `readledger` does to a ledger."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.bookies import BookieProcess, bkctl, bookies

pytestmark = pytest.mark.slow

Cluster = tuple[str, list[BookieProcess]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ledgers 0 (on all three bookies, closed), 1 (each entry on two of three), 2 (open)."""
    directory = tmp_path_factory.mktemp("shell")
    uri = f"sqlite://{directory}/metadata.db"
    with bookies(uri, directory, 3) as running:
        for replication, more in (("333", []), ("322", []), ("333", ["--keep-open"])):
            e, w, a = replication
            words = ["ledger", "write", "-u", uri, "-E", e, "-w", w, "-a", a, *more]
            written = bkctl(*words, stdin=b"".join(b"entry-%d\n" % i for i in range(10)))
            assert written.returncode == 0, written.stderr
        yield uri, running


def shell(uri: str, *arguments: str, code: int = 0) -> list[str]:
    """The lines of stdout; the exit code must be `code`."""
    result = bkctl("shell", *arguments, "-u", uri)
    assert result.returncode == code, result.stderr
    return result.stdout.decode().split("\n")[:-1]


def test_bookies_are_listed_and_tell_their_disk_space(cluster: Cluster) -> None:
    uri, running = cluster
    head, *lines = shell(uri, "listbookies", "-rw")
    assert head == "ReadWrite Bookies :"
    places = [
        f"BookieID:{b.name}, IP:127.0.0.1, Port:{b.address.rpartition(':')[2]}, Hostname:" for b in running
    ]
    assert [line[: len(place)] for line, place in zip(lines, places, strict=True)] == places
    head, *told, free, total = shell(uri, "bookieinfo")
    assert head == "Free disk space info:"
    size = r"\d+(\(\d+(\.\d+)?[KMGT]B\))?"
    for line, place in zip(told, lines, strict=True):
        assert re.fullmatch(re.escape(place) + rf": \tFree: {size}\tTotal: {size}", line), line
    assert re.fullmatch(rf"Total free disk space in the cluster:\t{size}", free)
    numbers = [int(re.findall(r"Total: (\d+)", line)[0]) for line in told]
    assert total.startswith(f"Total disk capacity in the cluster:\t{sum(numbers)}(")


def test_a_bookie_that_does_not_answer_makes_bookieinfo_partial(cluster: Cluster) -> None:
    uri, running = cluster
    running[2].signal(signal.SIGSTOP)  # it stays registered
    try:
        lines = shell(uri, "bookieinfo", code=9)
        assert len(lines) == 5
        assert not any("BookieID:bookie-3" in line for line in lines)
    finally:
        running[2].signal(signal.SIGCONT)


def test_readledger_prints_entries_and_ends_at_the_last_confirmed(cluster: Cluster) -> None:
    """`EntrySize` is the length of the ledger up to the entry, as upstream prints it."""
    uri, _ = cluster
    lines = shell(uri, "readledger", "-l", "0", "-fe", "8", "-le", "500", "-m")
    assert lines == [
        "--------- Lid=0, Eid=8, EntrySize=63 ---------", "entry-8",
        "--------- Lid=0, Eid=9, EntrySize=70 ---------", "entry-9",
    ]  # fmt: skip
    assert len(shell(uri, "readledger", "-ledgerid", "1")) == 10
    assert len(shell(uri, "readledger", "-ledgerid", "1", "-le", "-1")) == 10
    assert shell(uri, "readledger", "-l", "0", "-fe", "50") == []
    assert shell(uri, "-entryformat", "hex", "readledger", "-l", "0", "-le", "0", "-msg")[1] == (
        "00000000 65 6E 74 72 79 2D 30                            entry-0"
    )
    shell(uri, "readledger", "-l", "77", code=3)


def test_readledger_of_one_bookie_prints_what_it_stores(cluster: Cluster) -> None:
    """Entry 9 too, which upstream leaves out."""
    uri, _ = cluster
    lines = shell(uri, "readledger", "-l", "0", "-b", "bookie-1", "-fe", "8", "-le", "9", "-m")
    assert [line for line in lines if "Lid" in line] == [
        "--------- Lid=0, Eid=8 ---------",
        "--------- Lid=0, Eid=9 ---------",
    ]
    assert "|00000000| 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 08 |................|" in lines
    assert sum("entry-9" in line for line in lines) == 1
    found = shell(uri, "readledger", "-l", "1", "-b", "bookie-1", code=9)
    assert 5 < len(found) < 8  # each bookie has two of three entries
    shell(uri, "readledger", "-l", "0", "-b", "bookie-1", "-fe", "10", code=3)
    shell(uri, "readledger", "-l", "77", "-b", "bookie-1", code=3)
    shell(uri, "readledger", "-l", "0", "-b", "nobody", code=6)


def test_readledger_disturbs_no_writer_unless_recovery_is_forced(cluster: Cluster) -> None:
    """1. A plain read leaves the ledger open.  2. -r without --yes is refused.  3. -r --yes closes it."""
    uri, _ = cluster
    assert len(shell(uri, "readledger", "-l", "2")) < 10  # the last adds are not confirmed to readers
    shell(uri, "readledger", "-l", "2", "-r", code=4)
    assert "state=OPEN" in shell(uri, "ledgermetadata", "-l", "2")[1]
    assert len(shell(uri, "readledger", "-l", "2", "-r", "--yes")) == 10
    assert "state=CLOSED, length=70, lastEntryId=9" in shell(uri, "ledgermetadata", "-l", "2")[1]


def test_the_disks_of_a_running_bookie_can_be_looked_at(cluster: Cluster) -> None:
    _, running = cluster
    home = running[0].directory
    conf = home / "shell.conf"
    conf.write_text(f"journalDirectories={home}/journal\nledgerDirectories={home}/ledgers\n")
    before = {path: path.stat().st_ino for path in Path(home).rglob("*")}
    result = bkctl("shell", "-conf", str(conf), "lastmark")
    assert re.fullmatch(rb"LastLogMark : Journal Id - \d+\([0-9a-f]+\.txn\), Pos - \d+\n", result.stdout)
    assert b"is in use by process" in result.stderr
    (journal,) = (home / "journal/current").glob("*.txn")
    shown = bkctl("shell", "-q", "-conf", str(conf), "readjournal", journal.name).stdout.decode()
    assert {f"Lid=0, Eid={i}," for i in range(10)} <= set(re.findall(r"Lid=0, Eid=\d+,", shown))
    assert {path: path.stat().st_ino for path in Path(home).rglob("*")}.keys() == before.keys()
