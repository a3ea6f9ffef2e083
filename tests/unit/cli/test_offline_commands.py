"""`bkctl journal` and `bkctl entrylog`: rows, exit codes, one line for each bad input, nothing written."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bkctl.cli.entry_framing import LengthCutter
from bkctl.formats import entry_log, small_files
from bkctl.formats.small_files import LogMark
from bkctl.types import DigestType
from tests.unit.cli.conftest import Bkctl
from tests.unit.offline.made_files import (
    PASSWORD,
    entries_of,
    flipped,
    framed,
    journal_bytes,
    log_bytes,
    tree_hash,
    usual_journal,
    usual_log,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A bookie's directories: journals 0x10, 0x11, 0x1a; logs 0 (sealed), 1a (not); must stay as they are."""
    home = tmp_path / "bookie"
    journal, ledgers = home / "j" / "current", home / "l" / "current"
    journal.mkdir(parents=True)
    ledgers.mkdir(parents=True)
    for name in ("10", "11", "1a"):
        (journal / f"{name}.txn").write_bytes(usual_journal())
    (ledgers / "0.log").write_bytes(usual_log())
    (ledgers / "1a.log").write_bytes(usual_log(sealed=False))
    (ledgers / "lastMark").write_bytes(small_files.encode_last_mark(LogMark(0x11, 512)))
    return home


@pytest.fixture
def unchanged(home: Path) -> Iterator[Path]:
    before = tree_hash(home)
    yield home
    assert tree_hash(home) == before


def items(bkctl: Bkctl, *arguments: str) -> list[dict[str, Any]]:
    result = bkctl(*arguments, "-o", "json")
    assert result.code == 0, result.err
    return json.loads(result.out)["items"]  # type: ignore[no-any-return]


def refused(bkctl: Bkctl, code: int, *arguments: str) -> str:
    """The one line on stderr of a command that fails."""
    result = bkctl(*arguments)
    assert result.code == code, (result.code, result.err)
    [line] = result.err.splitlines()
    assert line.startswith("bkctl: ")
    return line


def test_journals_are_listed_with_their_place_at_the_mark(bkctl: Bkctl, unchanged: Path) -> None:
    rows = items(bkctl, "journal", "list", "-j", f"{unchanged}/j", "-l", f"{unchanged}/l", "--records")
    assert [(row["name"], row["journal_id"], row["mark"]) for row in rows] == [
        ("10.txn", 16, "before"),
        ("11.txn", 17, "at"),
        ("1a.txn", 26, "after"),
    ]
    assert [(row["version"], row["records"]) for row in rows] == [(6, 11)] * 3
    assert rows[0]["size"] == len(usual_journal())
    assert items(bkctl, "journal", "list", "-j", f"{unchanged}/j")[0]["mark"] is None


def test_marks_are_shown_as_each_ledger_directory_has_them(bkctl: Bkctl, home: Path) -> None:
    other = home / "m" / "current"
    other.mkdir(parents=True)
    directories = ["-l", f"{home}/l", "-l", f"{home}/m", "-j", f"{home}/j"]
    rows = items(bkctl, "journal", "mark", *directories)
    assert [(r["journal_id"], r["name"], r["position"], r["counts"], r["state"]) for r in rows] == [
        (17, "11.txn", 512, True, "ok"),
        (None, None, None, False, "missing"),
    ]
    assert rows[0]["file_exists"] is True
    (other / "lastMark").write_bytes(b"short")
    assert "lastMark has 5 bytes" in refused(bkctl, 7, "journal", "mark", *directories, "-q")


def test_records_are_dumped_with_what_they_are(bkctl: Bkctl, unchanged: Path) -> None:
    rows = items(bkctl, "journal", "dump", "17", "-j", f"{unchanged}/j", "--payload", "hex")
    assert [row["kind"] for row in rows] == [
        "ledger_key", "entry", "entry", "entry", "entry", "entry", "entry", "entry",
        "fence", "explicit_lac", "entry",
    ]  # fmt: skip
    assert (rows[0]["position"], rows[0]["size"], rows[0]["entry_id"]) == (512, 40, None)
    first = rows[1]
    assert (first["ledger_id"], first["entry_id"], first["lac"], first["length"]) == (5, 0, -1, 100)
    assert (first["payload_bytes"], first["digest"]) == (100, "CRC32C")
    assert bytes.fromhex(first["payload"]) == entries_of(5, 1)[0][36:]
    assert rows[9]["lac"] == 3


def test_records_are_picked_by_ledger_entry_and_offset(bkctl: Bkctl, unchanged: Path) -> None:
    dump = ["journal", "dump", "0x1a", "-j", f"{unchanged}/j"]
    rows = items(bkctl, *dump)
    assert items(bkctl, *dump, "--from", str(rows[4]["position"])) == rows[4:]
    assert items(bkctl, *dump, "--ledger", "6") == [row for row in rows if row["ledger_id"] == 6]
    assert items(bkctl, *dump, "--entry", "1-2") == [row for row in rows if row["entry_id"] in (1, 2)]
    assert "beyond" in refused(bkctl, 2, *dump, "--from", "1000000")


@pytest.mark.parametrize("name", ["17", "0x11", "11.txn"])
def test_a_file_is_named_by_a_decimal_or_hexadecimal_id(bkctl: Bkctl, unchanged: Path, name: str) -> None:
    [row] = items(bkctl, "journal", "verify", name, "-j", f"{unchanged}/j")
    assert (Path(row["path"]).name, row["state"]) == ("11.txn", "ok")


def test_an_id_without_or_in_several_directories_is_refused(bkctl: Bkctl, home: Path) -> None:
    assert "add -l DIR" in refused(bkctl, 2, "entrylog", "dump", "0")
    assert "no 63.log (id 99)" in refused(bkctl, 3, "entrylog", "dump", "99", "-l", f"{home}/l")
    other = home / "m" / "current"
    other.mkdir(parents=True)
    (other / "0.log").write_bytes(b"")
    line = refused(bkctl, 2, "entrylog", "dump", "0", "-l", f"{home}/l", "-l", f"{home}/m")
    assert "several directories" in line


def test_damaged_journal_ends_with_7_and_says_where(bkctl: Bkctl, home: Path) -> None:
    file = home / "j" / "current" / "11.txn"
    file.write_bytes(flipped(usual_journal(), 600))
    before = tree_hash(home)
    result = bkctl("journal", "verify", "-j", f"{home}/j", "-o", "jsonl")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 7
    assert [row["state"] for row in rows] == ["ok", "damaged", "ok"]
    assert (rows[1]["damage_position"], rows[1]["digests_bad"], rows[1]["records_behind"]) == (600, 1, 9)
    assert rows[1]["damages"][0]["entry_id"] == 0
    assert f"1 of 3 files are damaged; first, {file} is damaged at byte 600" in result.err
    assert tree_hash(home) == before


def test_dump_shows_what_is_before_the_damage(bkctl: Bkctl, home: Path) -> None:
    file = home / "l" / "current" / "0.log"
    file.write_bytes(flipped(usual_log(), 1024 + 140, 7))
    for form in ("table", "jsonl"):
        result = bkctl("entrylog", "dump", str(file), "-o", form)
        assert (result.code, len(result.out.splitlines())) == (7, 1 + (form == "table"))
        assert "position 1164" in result.err


def test_torn_tail_is_no_failure(bkctl: Bkctl, home: Path) -> None:
    file = home / "j" / "current" / "1a.txn"
    file.write_bytes(usual_journal()[: 512 * 4 + 60])
    [row] = items(bkctl, "journal", "verify", str(file))
    assert row["state"] == "torn tail"
    (file.parent / "1b.txn").write_bytes(journal_bytes([]))
    assert "truncated" in refused(bkctl, 7, "journal", "verify", str(file))


@pytest.mark.parametrize(
    ("noun", "name", "data", "words"),
    [
        ("journal", "5.txn", b"BKLG\0\0\0\7" + bytes(600), "journal version 7 is not known"),
        ("entrylog", "5.log", b"BKLO\0\0\0\5" + bytes(1100), "version 5 is unknown"),
        ("entrylog", "5.log", b"BKLO", "4 bytes, need 20"),
        ("entrylog", "5.log", usual_log()[:2000], "not in the file"),
    ],
)
def test_unreadable_file_is_one_line_and_7(
    bkctl: Bkctl, tmp_path: Path, noun: str, name: str, data: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert words in refused(bkctl, 7, noun, "verify", str(path), "-o", "csv")


@pytest.mark.parametrize(("noun", "name"), [("journal", "5.txn"), ("entrylog", "5.log")])
@pytest.mark.parametrize("verb", ["verify", "dump"])
def test_what_is_no_file_is_one_line(bkctl: Bkctl, tmp_path: Path, noun: str, name: str, verb: str) -> None:
    assert "no file" in refused(bkctl, 3, noun, verb, str(tmp_path / name))
    assert "is a directory" in refused(bkctl, 2, noun, verb, str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(bkctl, 2, noun, verb, str(tmp_path / "pipe"))
    (tmp_path / name).touch()
    assert bkctl(noun, verb, str(tmp_path / name)).code == 0  # empty, and nothing wrong with that


@pytest.mark.parametrize(("noun", "name"), [("journal", "11.txn"), ("entrylog", "1a.log")])
def test_file_without_permission_is_one_line(
    bkctl: Bkctl, home: Path, monkeypatch: pytest.MonkeyPatch, noun: str, name: str
) -> None:
    real = os.open

    def denying(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **more)

    [file] = home.rglob(name)
    monkeypatch.setattr(os, "open", denying)
    assert "Permission denied" in refused(bkctl, 1, noun, "verify", str(file))
    assert "Permission denied" in refused(bkctl, 1, noun, "dump", str(file))
    every = ["-j", f"{home}/j"] if noun == "journal" else ["--all", "-l", f"{home}/l"]
    result = bkctl(noun, "verify", *every, "-o", "jsonl")
    states = [json.loads(line)["state"] for line in result.out.splitlines()]
    assert (result.code, states.count("unreadable"), states.count("ok")) == (7, 1, len(states) - 1)


def test_commands_without_names_say_what_to_name(bkctl: Bkctl, home: Path) -> None:
    assert "-j DIR" in refused(bkctl, 2, "journal", "list")
    assert "-j DIR" in refused(bkctl, 2, "journal", "list", "-l", f"{home}/l")
    assert "-l DIR" in refused(bkctl, 2, "journal", "mark", "-j", f"{home}/j")
    assert "-j DIR" in refused(bkctl, 2, "journal", "verify")
    assert "--all" in refused(bkctl, 2, "entrylog", "verify")
    assert "-l DIR" in refused(bkctl, 2, "entrylog", "verify", "--all")


def test_logs_are_listed_and_their_ledgers_shown(bkctl: Bkctl, unchanged: Path) -> None:
    rows = items(bkctl, "entrylog", "list", "-l", f"{unchanged}/l")
    assert [(row["log_id"], row["name"], row["sealed"], row["ledgers"]) for row in rows] == [
        (0, "0.log", True, 2),
        (26, "1a.log", False, None),
    ]
    for log, source in (("0", "map"), ("26", "scan")):
        shown = items(bkctl, "entrylog", "show", log, "-l", f"{unchanged}/l", "-q")
        assert [(row["ledger_id"], row["bytes"], row["source"]) for row in shown] == [
            (5, 3 * 140, source),
            (6, 2 * 144 + 3044, source),
        ]


def test_entries_are_dumped_and_picked(bkctl: Bkctl, unchanged: Path) -> None:
    dump = ["entrylog", "dump", "0", "-l", f"{unchanged}/l"]
    rows = items(bkctl, *dump)
    assert [(row["position"], row["ledger_id"], row["entry_id"]) for row in rows[:2]] == [
        (1028, 5, 0),
        (1168, 5, 1),
    ]
    assert (rows[4]["size"], rows[4]["payload_bytes"], rows[4]["lac"]) == (3040, 3000, 0)
    assert items(bkctl, *dump, "--from", "1168", "--to", "1308") == rows[1:3]
    assert items(bkctl, *dump, "--ledger", "6", "--entry", "1-") == rows[4:]


def test_verify_all_logs(bkctl: Bkctl, unchanged: Path) -> None:
    rows = items(bkctl, "entrylog", "verify", "--all", "-l", f"{unchanged}/l")
    assert [(row["state"], row["entries"], row["digests_good"]) for row in rows] == [("ok", 6, 6)] * 2


def test_extracted_entries_are_framed_as_ledger_write_reads_them(
    bkctl: Bkctl, unchanged: Path, tmp_path: Path
) -> None:
    to = tmp_path / "out"
    extract = ["entrylog", "extract", "0", "-l", f"{unchanged}/l", "--ledger", "6", "--to", str(to)]
    assert bkctl(*extract).code == 0
    payloads = LengthCutter(10_000).feed(to.read_bytes())
    assert [len(payload) for payload in payloads] == [100, 3000, 100]
    assert payloads[0] == entries_of(6, 1, DigestType.CRC32)[0][40:]
    assert "exists" in refused(bkctl, 8, *extract)
    assert LengthCutter(10_000).feed(to.read_bytes()) == payloads


def test_each_entry_goes_to_a_file_of_its_own_in_a_directory(
    bkctl: Bkctl, unchanged: Path, tmp_path: Path
) -> None:
    to = tmp_path / "out"
    to.mkdir()
    extract = ["entrylog", "extract", "0", "-l", f"{unchanged}/l", "--ledger", "5", "--to", str(to)]
    assert bkctl(*extract, "--entry", "1-2").code == 0
    assert sorted(os.listdir(to)) == [f"5-{n:019}.entry" for n in (1, 2)]
    assert (to / f"5-{1:019}.entry").read_bytes() == entries_of(5, 2)[1][36:]
    assert "exists" in refused(bkctl, 8, *extract)
    assert sorted(os.listdir(to)) == [f"5-{n:019}.entry" for n in (1, 2)]  # entry 0 is taken back


def test_nothing_is_extracted_next_to_the_log(bkctl: Bkctl, unchanged: Path) -> None:
    current = unchanged / "l" / "current"
    for to in (current, current / "new"):
        line = refused(
            bkctl, 4, "entrylog", "extract", str(current / "0.log"), "--ledger", "5", "--to", str(to)
        )
        assert "own directory" in line


def test_entry_that_does_not_fit_its_digest_is_not_extracted(
    bkctl: Bkctl, home: Path, tmp_path: Path
) -> None:
    file, to = home / "l" / "current" / "0.log", tmp_path / "out"
    file.write_bytes(flipped(usual_log(), 1168 + 100))
    extract = ["entrylog", "extract", str(file), "--ledger", "5", "--to", str(to)]
    assert "first entry 1" in refused(bkctl, 7, *extract)
    assert not to.exists()
    assert bkctl(*extract, "--entry", "2").code == 0
    to.unlink()
    assert bkctl(*extract, "--whole").code == 0
    assert len(LengthCutter(1000).feed(to.read_bytes())) == 3


def test_extraction_tells_what_it_needs(bkctl: Bkctl, tmp_path: Path) -> None:
    file, to, password = tmp_path / "7.log", tmp_path / "out", tmp_path / "password"
    password.write_bytes(PASSWORD)
    mac = entries_of(5, 3, DigestType.MAC)
    file.write_bytes(log_bytes([*mac, *entries_of(6, 2, DigestType.DUMMY), mac[1]]))
    extract = ["entrylog", "extract", str(file), "--to", str(to)]
    assert "--password-file" in refused(bkctl, 7, *extract, "--ledger", "5")
    assert bkctl(*extract, "--ledger", "5", "--password-file", str(password)).code == 0
    assert LengthCutter(1000).feed(to.read_bytes()) == [entry[52:] for entry in mac]  # each once
    to.unlink()
    assert bkctl(*extract, "--ledger", "6", "--digest", "dummy").code == 0
    to.unlink()
    assert "no such entry" in refused(bkctl, 3, *extract, "--ledger", "8")
    assert not to.exists()


def test_line_framing_refuses_a_newline_in_an_entry(bkctl: Bkctl, tmp_path: Path) -> None:
    file, to = tmp_path / "7.log", tmp_path / "out"
    file.write_bytes(log_bytes(entries_of(5, 1, size=20)))  # counts from 1 to 20, a newline among them
    line = refused(
        bkctl, 2, "entrylog", "extract", str(file), "--ledger", "5", "--to", str(to), "--entry-per", "line"
    )
    assert "--entry-per len" in line
    assert not to.exists()


def test_stored_frames_are_what_the_log_holds(bkctl: Bkctl, tmp_path: Path) -> None:
    file, to = tmp_path / "7.log", tmp_path / "out"
    entries = entries_of(5, 3)
    file.write_bytes(log_bytes(entries))
    assert bkctl("entrylog", "extract", str(file), "--ledger", "5", "--whole", "--to", str(to)).code == 0
    assert (
        to.read_bytes()
        == b"".join(framed(entries))
        == file.read_bytes()[entry_log.HEADER_BYTES :][: to.stat().st_size]
    )
