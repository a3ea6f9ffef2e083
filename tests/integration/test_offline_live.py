"""Journals and entry logs of a running bookie: read as they are, with a note, and nothing is written."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bookies import bkctl, bookies, wait_until
from tests.unit.offline.made_files import tree_hash

pytestmark = pytest.mark.slow


def items(*arguments: str) -> tuple[list[dict[str, Any]], str]:
    """(rows, what was said on stderr) of a command that must succeed."""
    done = bkctl(*arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["items"], done.stderr.decode()


def test_a_running_bookie_is_looked_at_and_left_alone(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    settings = ["flushInterval=300"]  # ms
    with bookies(uri, tmp_path, 1, settings) as (bookie,):
        lines = b"".join(b"entry %d\n" % i for i in range(500))
        assert bkctl("ledger", "write", "-u", uri, "-E", "1", stdin=lines).returncode == 0
        home = bookie.directory
        journal, ledgers = ["-j", str(home / "journal")], ["-l", str(home / "ledgers")]

        def flushed() -> bool:
            logs, _ = items("entrylog", "list", *ledgers)
            marks, _ = items("journal", "mark", *journal, *ledgers)
            return bool(logs and logs[0]["size"] > 500 * 40 and marks[0]["journal_id"])

        wait_until(flushed, "the entries are in an entry log", 30)
        assert bookie.process is not None
        used_by = f"is in use by process {bookie.process.pid}"
        bookie.signal(signal.SIGSTOP)  # so that every change is ours
        before = tree_hash(home / "journal"), tree_hash(home / "ledgers")

        [row], said = items("journal", "verify", *journal)
        assert (row["state"], row["digests_good"], used_by in said) == ("ok", 500, True)
        [row], said = items("entrylog", "verify", "--all", *ledgers)
        assert (row["state"], row["digests_good"], used_by in said) == ("ok", 500, True)
        [row], said = items("entrylog", "verify", row["path"])  # named by its path: the note comes too
        assert used_by in said
        rows, _ = items("entrylog", "dump", "0", *ledgers, "--payload", "text")
        assert [r["payload"] for r in rows] == [f"entry {i}" for i in range(500)]
        rows, _ = items("journal", "list", *journal, *ledgers, "--records")
        assert (rows[0]["records"], rows[0]["mark"]) == (501, "at")
        extracted = bkctl("entrylog", "extract", "0", *ledgers, "--ledger", str(0), "--entry-per", "line")
        assert extracted.stdout == lines

        assert (tree_hash(home / "journal"), tree_hash(home / "ledgers")) == before
        bookie.signal(signal.SIGCONT)
        written = bkctl("ledger", "write", "-u", uri, "-E", "1", stdin=extracted.stdout)
        assert written.returncode == 0  # the bookie goes on
        bookie.stop()

        rows, said = items("journal", "verify", *journal)
        assert ({row["state"] for row in rows}, said) == ({"ok"}, "")


def test_extracted_entries_are_written_to_a_ledger_again(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 1) as (bookie,):
        payloads = b"\0\0\0\3a\nb\0\0\0\0\0\0\0\1\xff"
        framing = ["--entry-per", "len"]
        assert bkctl("ledger", "write", "-u", uri, "-E", "1", *framing, stdin=payloads).returncode == 0
        bookie.stop()
        log = bookie.directory / "ledgers" / "current" / "0.log"
        extracted = bkctl("entrylog", "extract", str(log), "--ledger", "0")
        assert extracted.stdout == payloads
        bookie.start()
        again = bkctl("ledger", "write", "-u", uri, "-E", "1", *framing, stdin=extracted.stdout)
        assert again.returncode == 0
        read = bkctl("ledger", "read", "1", "-u", uri, "--raw", *framing)
        assert read.stdout == payloads
