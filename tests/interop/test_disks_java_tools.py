"""Disks change hands: Apache's garbage collection and offline tools on what we wrote, and other storages."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bkctl.client.blocking import BlockingBookKeeper
from bkctl.formats import request_v2 as v2
from bkctl.formats.result_code import ResultCode
from bkctl.offline.entry_logs import entries, log_files, scanned_ledgers
from bkctl.offline.journals import records
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.journal import journal_ids, read_last_marks
from tests.integration.bookies import BookieProcess, wait_until
from tests.interop.apache import SORTED_STORAGE, Apache, JavaBookie, JavaDriver, running
from tests.interop.disks import (
    NAME,
    PASSWORD_TEXT,
    Disks,
    ask_v2,
    check,
    closed_by_bkctl,
    closed_by_java,
    disks,
    write,
)
from tests.interop.payload import expected

_GC: dict[str, dict[str, Any]] = {
    "copying into the newest log": {},
    "in transactions, with a metadata cache": {
        "useTransactionalCompaction": "true",
        "gcEntryLogMetadataCacheEnabled": "true",
    },
}
_GC_SETTINGS = {
    "logSizeLimit": 300_000,
    "gcWaitTime": 500,
    "minorCompactionInterval": 1,
    "minorCompactionThreshold": 0.5,
    "majorCompactionInterval": 2,
    "majorCompactionThreshold": 0.9,
    "compactionRateByEntries": 100_000,
}


# -- garbage collection ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", _GC)
def test_java_reclaims_logs_of_ours_and_keeps_every_live_entry(
    apache: Apache, driver: JavaDriver, new_cluster: Callable[..., str], tmp_path: Path, way: str
) -> None:
    settings = _GC_SETTINGS | _GC[way]
    with disks(apache, driver, new_cluster(), tmp_path / "b1", settings=settings) as held:
        for _ in range(2):
            held.start(held.bkctl)
            check(held)
            before = {log.path.name for log in _logs(held)}
            with BlockingBookKeeper(held.uri) as ours:
                dead = [closed_by_bkctl(ours, entries=700), closed_by_bkctl(ours)]
                held.kept.append(closed_by_bkctl(ours, entries=150))
            held.stop()
            written = {log.path.name for log in _logs(held)} - before
            assert len(written) > 4
            doomed = _logs_with(held, {kept.ledger_id for kept in dead})
            assert doomed
            with held.clients() as (java, _):
                for kept in dead:
                    java.call("delete", id=kept.ledger_id)
            held.start(held.java)
            wait_until(lambda gone=doomed: not _there(gone), "garbage collection", 60)  # type: ignore[misc]
            check(held)
            held.stop()
        held.start(held.bkctl)
        check(held)
        for kept in dead:
            (answer,) = ask_v2(held.address, v2.ReadRequest(0, kept.ledger_id, 0))
            assert answer.rc == ResultCode.ENOLEDGER.rc


def _logs(held: Disks) -> list[Any]:
    return log_files([directory / "current" for directory in held.ledgers])


def _logs_with(held: Disks, ledger_ids: set[int]) -> list[Path]:
    """The logs that have entries of these ledgers; each sealed one says the same in its map."""
    return [log.path for log in _logs(held) if ledger_ids & scanned_ledgers(log.path).keys()]


def _there(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


# -- Java's shell ---------------------------------------------------------------------------------

_LOGGING = """<Configuration><Appenders><Console name="out"><PatternLayout pattern="%m %X%n"/></Console>
</Appenders><Loggers><Root level="info"><AppenderRef ref="out"/></Root></Loggers></Configuration>"""
# 4.18 shows attributes, releases before it put them into the text.
_ENTRY = re.compile(
    r"Entry \{entryId=(?P<e>-?\d+), entrySize=(?P<s>\d+), ledgerId=(?P<l>\d+), position=\d+\}"
    r"|Lid=(?P<l2>\d+), Eid=(?P<e2>-?\d+), ByteOffset=\d+, EntrySize=(?P<s2>\d+)"
)
_LEDGER_SIZE = re.compile(r"\{ledgerId=(\d+), size=(\d+)\}|Lid=(\d+), TotalSizeOfEntriesOfLedger=(\d+)")
_MARK = re.compile(r"Journal Id - (\d+)\([0-9a-f]+\.txn\), Pos - (\d+)")


@pytest.fixture(scope="module")
def left_by_bkctl(
    apache: Apache,
    driver: JavaDriver,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Disks:
    """Directories that Java began and ours went on with, stopped in order."""
    home = tmp_path_factory.mktemp("left") / "b1"
    with disks(apache, driver, new_cluster(), home, settings={"logSizeLimit": 500_000}) as held:
        for bookie in (held.java, held.bkctl):
            held.start(bookie)
            write(held)
            held.stop()
    return held


def _shell(apache: Apache, held: Disks, *command: str) -> str:
    logging = held.java.directory / "log4j2.xml"
    logging.write_text(_LOGGING)
    held.java.write_conf()
    options = apache.java("org.apache.bookkeeper.bookie.BookieShell", "-conf", str(held.java.conf), *command)
    options.insert(1, f"-Dlog4j2.configurationFile={logging}")
    done = subprocess.run(options, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _entries_shown(text: str) -> list[tuple[int, int, int]]:
    """(ledger id, entry id, bytes) of each entry that readlog or readjournal shows."""
    return [
        (int(m["l"] or m["l2"]), int(m["e"] or m["e2"]), int(m["s"] or m["s2"]))
        for m in _ENTRY.finditer(text)
    ]


def test_java_shell_finds_the_indexes_that_we_left_sound(apache: Apache, left_by_bkctl: Disks) -> None:
    assert "Check passed" in _shell(apache, left_by_bkctl, "localconsistencycheck")
    shown = _shell(apache, left_by_bkctl, "check-db-ledgers-index")
    assert "Done checking DBStorage ledgers index" in shown


def test_java_shell_reads_our_last_mark(apache: Apache, left_by_bkctl: Disks) -> None:
    found = _MARK.search(_shell(apache, left_by_bkctl, "lastmark"))
    currents = [directory / "current" for directory in left_by_bkctl.ledgers]
    assert found is not None
    assert (int(found[1]), int(found[2])) == read_last_marks(OsFs(), currents, 0, 1)


def test_java_shell_reads_every_record_of_our_journals(apache: Apache, left_by_bkctl: Disks) -> None:
    directory = left_by_bkctl.journals[0] / "current"
    newest = journal_ids(OsFs(), directory)[-1]
    wanted = [(r.ledger_id, r.entry_id, len(r.body)) for r in records(directory / f"{newest:x}.txn")]
    assert len(wanted) > 800
    shown = _shell(apache, left_by_bkctl, "readjournal", f"{newest:x}.txn")
    assert _entries_shown(shown) == wanted


def test_java_shell_reads_every_entry_and_the_ledgers_map_of_our_logs(
    apache: Apache, left_by_bkctl: Disks
) -> None:
    log = [log for log in _logs(left_by_bkctl) if log.sealed][-1]
    shown = _shell(apache, left_by_bkctl, "readlog", f"{log.log_id:x}")
    wanted = [(e.ledger_id, e.entry_id, len(e.entry)) for e in entries(log.path)]
    assert _entries_shown(shown) == wanted
    shown = _shell(apache, left_by_bkctl, "readlogmetadata", f"{log.log_id:x}")
    sizes = {int(m[1] or m[3]): int(m[2] or m[4]) for m in _LEDGER_SIZE.finditer(shown)}
    assert sizes == scanned_ledgers(log.path)


# -- other storages -------------------------------------------------------------------------------


def test_bkctl_refuses_the_directories_of_sorted_ledger_storage(
    apache: Apache, driver: JavaDriver, new_cluster: Callable[..., str], tmp_path: Path
) -> None:
    """It must not start with empty indexes beside entries that are there; Java then still finds them all."""
    uri, home = new_cluster(), tmp_path / "b1"
    java = JavaBookie(apache, uri, home, NAME, {"zkTimeout": 2000}, storage=SORTED_STORAGE)
    ours = BookieProcess(uri, home, NAME)
    with running([java]):
        client = driver.client(f"sorted-{id(java)}", uri)
        kept = closed_by_java(client)
        client.close()
        java.stop()
    before = sorted(home.rglob("current/**"))
    # Java writes .idx files late: without one the entry logs alone give the storage away.
    why = r"(\.idx is an index of SortedLedgerStorage|\.log has entries but .* another ledger storage) .*\n"
    with (
        pytest.raises(AssertionError, match=rf"\nbkctl: the bookie does not start: .*{why}$"),
        running([ours]),
    ):
        pytest.fail("it started")
    assert sorted(home.rglob("current/**")) == before
    with running([java]):
        client = driver.client(f"sorted-{id(java)}", uri)
        client.call("open", handle="r", id=kept.ledger_id, password=PASSWORD_TEXT)
        found = client.call("read", handle="r", first=0, last=kept.last)
        assert found["sha256"] == expected(0, kept.last, kept.size)
        client.close()
