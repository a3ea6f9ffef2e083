"""`bkctl index` and `bkctl bookie files` on disks that Apache BookKeeper wrote, whole and damaged."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats import index as fmt
from tests.unit.cli.conftest import Bkctl, Result
from tests.unit.offline.bookie_disks import (
    DB,
    ENTRY_COUNTS,
    IDX,
    changed_ledgers,
    changed_locations,
    copied,
    flip,
    untouched,
)


def items(result: Result, code: int = 0) -> list[dict[str, Any]]:
    assert result.code == code, result.err
    return json.loads(result.out)["items"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("disk", "kind"), [(DB, "db"), (IDX, "idx")])
def test_stats_count_what_is_there(bkctl: Bkctl, tmp_path: Path, disk: tuple[str, ...], kind: str) -> None:
    current = copied(tmp_path, disk)
    with untouched(current):
        [row] = items(bkctl("index", "stats", "-l", str(current.parent), "-o", "json"))
    assert (row["kind"], row["ledgers"], row["entries"]) == (kind, *ENTRY_COUNTS[disk])
    assert (row["directory"], row["ledger_id_min"]) == (str(current), 0)
    assert row["ledger_id_max"] == (10_000_000_000 if kind == "db" else 8)
    assert (row["fenced"], row["entry_logs"]) == ((2, 2) if kind == "db" else (1, 1))


def test_show_tells_the_facts_of_a_ledger_and_the_key_on_demand_only(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    with changed_ledgers(current) as ledgers:
        known = ledgers.load()
        packet = fmt.entry_key(9, 6) + b"dig"
        ledgers.write(
            {9: fmt.LedgerData(True, known[9].master_key, packet, True), 77: fmt.LedgerData(False, b"")}, [3]
        )
    show = ("index", "show", "-l", str(current), "-o", "json")
    with untouched(current):
        [row] = items(bkctl(*show, "0x9"))
        assert row == {
            "ledger_id": 9, "directory": str(current), "kind": "db", "exists": True, "fenced": True,
            "limbo": True, "last_entry_id": 6, "explicit_lac": 6, "has_master_key": True,
        }  # fmt: skip
        [row] = items(bkctl(*show, "9", "--master-key"))
        assert row["master_key"] == known[9].master_key.hex()
        [row] = items(bkctl(*show, "77"))
        assert (row["exists"], row["last_entry_id"], row["explicit_lac"]) == (True, -1, None)
        assert row["has_master_key"] is False
        [row] = items(bkctl(*show, "3"))  # entries without a ledger
        assert (row["exists"], row["fenced"], row["last_entry_id"]) == (False, None, 9)


@pytest.mark.parametrize("disk", [DB, IDX])
def test_entries_are_listed_by_range(bkctl: Bkctl, tmp_path: Path, disk: tuple[str, ...]) -> None:
    show = ("index", "show", "0", "-l", str(copied(tmp_path, disk)), "--entries")
    for wanted, expected in (
        ("0-", range(10)),
        ("3-5", range(3, 6)),
        ("7", [7]),
        ("8-99", [8, 9]),
        ("50-", []),
    ):
        rows = items(bkctl(*show, wanted, "-o", "json"))
        assert [row["entry_id"] for row in rows] == list(expected)
        assert all(row["position"] == 1028 + 47 * row["entry_id"] for row in rows)
    for nonsense in ("5-3", "x", "-", "1-2-3"):
        result = bkctl(*show, nonsense)
        assert (result.code, result.err.count("\n")) == (2, 1)


def test_verify_of_a_sound_disk_says_so_and_lists_nothing(bkctl: Bkctl, tmp_path: Path) -> None:
    for number, disk in enumerate((DB, IDX)):
        current = copied(tmp_path / str(number), disk)
        with untouched(current):
            result = bkctl("index", "verify", "-l", str(current), "-o", "json")
        assert items(result) == []
        assert "nothing wrong: {} ledgers, {} entries".format(*ENTRY_COUNTS[disk]) in result.err


def test_verify_lists_damage_and_exits_7(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    with changed_locations(current) as locations, changed_ledgers(current) as ledgers:
        locations.put([fmt.entry_key(0, 4)], [1029])
        ledgers.write({}, [15])
        ledgers._database.put(fmt.ledger_key(2), b"\xff")
    verify = ("index", "verify", "-l", str(current), "-o", "json")
    with untouched(current):
        result = bkctl(*verify)
        rows = items(result, 7)
        assert [row["problem"] for row in rows] == ["unreadable_ledger", "entry_mismatch", "unknown_ledger"]
        assert rows[1] == {
            "problem": "entry_mismatch", "directory": str(current), "ledger_id": 0, "entry_id": 4,
            "log_id": 0, "position": 1029, "detail": rows[1]["detail"],
        }  # fmt: skip
        assert "3 wrong: " in result.err
        assert [row["ledger_id"] for row in items(bkctl(*verify, "--only", "ledgers"), 7)] == [2]
        assert [row["ledger_id"] for row in items(bkctl(*verify, "--only", "locations"), 7)] == [0, 15]
        assert len(items(bkctl(*verify, "--ledger", "0"), 7)) == 1
        assert items(bkctl(*verify, "--ledger", "1")) == []
        result = bkctl(*verify, "--limit", "1")
        assert len(items(result, 7)) == 1
        assert "stopped after --limit 1" in result.err
        assert bkctl(*verify, "--only", "everything").code == 2


def test_unknown_ledger_is_not_found(bkctl: Bkctl, tmp_path: Path) -> None:
    for number, disk in enumerate((DB, IDX)):
        current = str(copied(tmp_path / str(number), disk))
        for command in (("show", "999"), ("show", "999", "--entries", "0-"), ("verify", "--ledger", "999")):
            result = bkctl("index", *command, "-l", current)
            assert (result.code, result.out) == (3, "")
            assert "ledger 999" in result.err


@pytest.mark.parametrize("name", ["ledgers", "locations"])
@pytest.mark.parametrize("damage", ["MANIFEST-*", "CURRENT", "*.sst", "garbage", "block", "all"])
def test_a_broken_database_is_one_clear_line_and_nothing_is_written(
    bkctl: Bkctl, tmp_path: Path, name: str, damage: str
) -> None:
    current = copied(tmp_path, DB)
    database = current / name
    if damage == "garbage":
        (database / "CURRENT").write_text("garbage\n")
    elif damage == "block":
        [table] = database.glob("*.sst")
        flip(table, 100)
    elif damage == "all":
        for file in database.iterdir():
            file.unlink()
        database.rmdir()
    else:
        for file in database.glob(damage):
            file.unlink()
    with untouched(current):
        for command in (
            ("stats",),
            ("show", "0"),
            ("show", "0", "--entries", "0-"),
            ("verify", "--ledger", "0"),
        ):
            result = bkctl("index", *command, "-l", str(current))
            assert (result.code, result.out) == (7, ""), command
            assert result.err.count("\n") == 1
            assert str(database) in result.err
        rows = items(bkctl("index", "verify", "-l", str(current), "-o", "json"), 7)
        assert {row["problem"] for row in rows} == {"unreadable_index"}
        assert all(str(database) in row["detail"] for row in rows)


@pytest.mark.parametrize("command", [("index", "stats"), ("index", "verify"), ("index", "show", "0")])
def test_a_directory_that_is_no_bookies_is_not_found(
    bkctl: Bkctl, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        result = bkctl(*command, "-l", str(tmp_path / name))
        assert (result.code, result.out, result.err.count("\n")) == (3, "", 1)
        assert str(tmp_path / name) in result.err
    assert bkctl(*command).code == 2
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_directory_that_was_not_closed_in_order_is_told(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, ("bookie1-sigkill", "b1", "ledgers"))
    result = bkctl("index", "verify", "-l", str(current))
    assert result.code == 0
    assert "was not closed in order" in result.err


def test_verify_gives_up_after_the_timeout(bkctl: Bkctl, tmp_path: Path) -> None:
    assert bkctl("index", "verify", "-l", str(copied(tmp_path, DB)), "--timeout", "0.000001").code == 124


FILES = {
    "journal": {"1a.txn": 0x1A},
    "entrylog": {"0.log": 0, "1f.log": 31, "20.log.compacting": 32, "21.log.1f.compacted": 33},
    "index": {
        "ledgers/000004.log": None, "locations/CURRENT": None, "ledgers.TEMP-2020/x": None,
        "metadata-cache/000001.log": None, "0/a/a.idx": 10, "1/2/102.idx.rloc": 0x102,
    },
    "cookie": {"VERSION": None},
    "mark": {"lastMark": None, "lastMark.1": None, "lastId": None},
    "status": {"BOOKIE_STATUS": None, "DIRTY": None},
    "other": {"lost+found": None, "x.txn": None, "0/1/README": None},
}  # fmt: skip


def test_each_file_has_its_type_and_the_id_in_its_name(bkctl: Bkctl, tmp_path: Path) -> None:
    current = tmp_path / "b" / "current"
    for names in FILES.values():
        for name in names:
            (current / name).parent.mkdir(parents=True, exist_ok=True)
            (current / name).write_bytes(b"123")
    everything = items(bkctl("bookie", "files", "-l", str(tmp_path / "b"), "-o", "json"))
    assert len(everything) == sum(map(len, FILES.values()))
    for kind, names in FILES.items():
        rows = items(bkctl("bookie", "files", "-l", str(tmp_path / "b"), "--type", kind, "-o", "json"))
        assert {row["path"]: row["id"] for row in rows} == {str(current / n): i for n, i in names.items()}
        assert {(row["type"], row["size_bytes"]) for row in rows} == {(kind, 3)}
    assert bkctl("bookie", "files", "-l", str(tmp_path / "b"), "--type", "idx").code == 2
    assert bkctl("bookie", "files", "-j", str(tmp_path / "none")).code == 3


def test_termination_leaves_no_temporary_directory(
    bkctl: Bkctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    current = copied(tmp_path, DB)

    def killed(*_: object) -> Iterator[None]:
        assert len(list(temporary.iterdir())) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    monkeypatch.setattr("bkctl.offline.index_check.IndexCheck._confirmed", killed)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        bkctl("index", "verify", "-l", str(current))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert list(temporary.iterdir()) == []
