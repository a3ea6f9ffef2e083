"""What Apache's own shell said of its files, and what is told here of the same files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats.entry import read_header
from bkctl.formats.journal import RecordKind
from bkctl.formats.small_files import LogMark
from bkctl.offline import entry_log_check, entry_logs, journal_check, journals
from bkctl.offline.digests import KnownDigests
from bkctl.offline.directories import BookieDirectories
from tests.shared_data import fixture_path

PASSWORD = b"golden-pw"
CLEAN = ("bookies-clean", "b1")
KILLED = ("bookie1-sigkill", "b1")
ATTRIBUTES = re.compile(r"^\d\d:\d\d:\d\d,\d{3} INFO  (?P<message>.*?) \{(?P<pairs>[^{}]*)\}$", re.MULTILINE)


def said(name: str) -> list[tuple[str, dict[str, str]]]:
    """(message, attributes) of each line that the shell logged."""
    text = fixture_path("shell", "with-attributes", name).read_text(errors="replace")
    return [
        (match["message"], dict(pair.split("=", 1) for pair in match["pairs"].split(", ") if pair))
        for match in ATTRIBUTES.finditer(text)
    ]


def directories_of(bookie: tuple[str, ...]) -> BookieDirectories:
    home = fixture_path(*bookie)
    return BookieDirectories.of([str(home / "journal")], [str(home / "ledgers")])


@pytest.mark.parametrize(
    ("bookie", "file", "output", "count"),
    [
        (CLEAN, "1a2054c4bd8.txn", "offline-readjournal-msg.txt", 738),
        (KILLED, "1a2054c4bda.txn", "sigkill-readjournal-msg.txt", 129),
    ],
)
def test_readjournal_and_the_records_told_here_agree(
    bookie: tuple[str, ...], file: str, output: str, count: int
) -> None:
    found = list(journals.records(fixture_path(*bookie, "journal", "current", file)))
    assert len(found) == count
    lines = said(output)
    shown = [
        tuple(int(pairs[key]) for key in ("position", "entrySize", "ledgerId", "entryId"))
        for message, pairs in lines
        if message == "Entry" and "position" in pairs
    ]
    assert [(r.position, len(r.body), r.ledger_id, r.entry_id) for r in found] == shown
    # The shell takes an explicit LAC for an entry, and shows a LAC of 85899345920 in it.
    lacs = [
        int(pairs["lastAddConfirmed"])
        for _, pairs in lines
        if "lastAddConfirmed" in pairs and int(pairs["entryId"]) >= 0
    ]
    assert [read_header(r.body).lac for r in found if r.kind is RecordKind.ENTRY] == lacs
    keys = [pairs["masterKey"] for _, pairs in lines if "masterKey" in pairs]
    assert [r.value.hex() for r in found if r.kind is RecordKind.LEDGER_KEY] == keys
    assert ("Journal Version", {"journalVersion": "6"}) in lines


def test_readlog_and_the_entries_told_here_agree() -> None:
    lines = said("offline-readlog-0-ledger0.txt")
    shown = [
        tuple(int(pairs[key]) for key in ("position", "entrySize", "ledgerId", "entryId"))
        for message, pairs in lines
        if message == "Entry" and "position" in pairs
    ]
    found = [e for e in entry_logs.entries(log_path(0)) if e.ledger_id == 0]
    # The shell shows where the size field is, a location where the entry is: four bytes behind.
    assert [(e.position - 4, len(e.entry), e.ledger_id, e.entry_id) for e in found] == shown
    assert len(shown) == 10


@pytest.mark.parametrize(("log_id", "sealed"), [(0, True), (1, False)])
def test_readlogmetadata_and_the_ledgers_told_here_agree(log_id: int, sealed: bool) -> None:
    lines = said(f"offline-readlogmetadata-{log_id}.txt")
    shown = {int(pairs["ledgerId"]): int(pairs["size"]) for _, pairs in lines if "size" in pairs}
    total = next(int(pairs["totalSize"]) for _, pairs in lines if "totalSize" in pairs)
    assert entry_logs.scanned_ledgers(log_path(log_id)) == shown
    assert sum(shown.values()) == total
    log = entry_logs.log_file(log_path(log_id))
    assert log.sealed is sealed
    if sealed:
        assert log.header is not None
        data = log.path.read_bytes()
        found = entry_logs.read_ledgers_map(
            lambda position, size: data[position : position + size], len(data), log.header
        )
        assert found == shown


@pytest.mark.parametrize(
    ("bookie", "output"), [(CLEAN, "offline-lastmark.txt"), (KILLED, "sigkill-lastmark.txt")]
)
def test_lastmark_and_the_mark_told_here_agree(bookie: tuple[str, ...], output: str) -> None:
    text = fixture_path("shell", "with-attributes", output).read_text()
    match = re.search(r"Journal Id - (\d+)\(([0-9a-f]+)\.txn\), Pos - (\d+)", text)
    assert match is not None
    shown = LogMark(int(match[1]), int(match[3]))
    if bookie == CLEAN:  # the copy was made after the orderly stop that followed
        assert [m.counts for m in journals.recorded_marks(directories_of(bookie))] == [True]
        assert journals.last_marks(directories_of(bookie)) >= [shown]  # type: ignore[operator]
    else:
        assert journals.last_marks(directories_of(bookie)) == [shown]


def log_path(log_id: int) -> Path:
    return fixture_path(*CLEAN, "ledgers", "current", f"{log_id:x}.log")


def protected() -> dict[int, dict[str, Any]]:
    """The ledgers of the cluster whose digests can be told, with `golden-pw` at hand."""
    ledgers = [
        ledger
        for name in ("expected.json", "expected-sigkill.json")
        for ledger in json.loads(fixture_path(name).read_text())
    ]
    return {ledger["ledgerId"]: ledger for ledger in ledgers if ledger["digestType"] != "DUMMY"}


@pytest.mark.parametrize("bookie", [("bookies-clean", b) for b in ("b1", "b2", "b3")] + [KILLED])
def test_every_file_of_apache_is_whole_and_its_digests_are_recognised(bookie: tuple[str, ...]) -> None:
    known, directories, ledgers = KnownDigests([PASSWORD]), directories_of(bookie), protected()
    for journal in journals.journal_files(directories.journals):
        report = journal_check.verify(journal.path, known, is_last=journals.is_youngest(journal.path))
        assert (report.state, report.damages) == ("ok", [])
    for log in entry_logs.log_files(directories.ledgers):
        checked = entry_log_check.verify(log.path, known)
        assert (checked.state, checked.damages) == ("ok", [])
        unprotected = sum(e.ledger_id not in ledgers for e in entry_logs.entries(log.path))
        assert checked.digests is not None
        assert (checked.digests.bad, checked.digests.unknown) == (0, unprotected)
        for entry in entry_logs.entries(log.path):
            digester = known.get(entry.ledger_id)
            expected = ledgers.get(entry.ledger_id)
            assert (digester and digester.digest_type.name) == (expected and expected["digestType"])
