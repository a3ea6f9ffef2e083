"""`bkctl gc explain` and `simulate` on a disk that Apache BookKeeper wrote, whole and damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats import entry_log as fmt
from tests.unit.cli.conftest import Bkctl, Result
from tests.unit.offline.bookie_disks import DB, IDX, changed_ledgers, copied, untouched


def items(result: Result, code: int = 0) -> list[dict[str, Any]]:
    assert result.code == code, result.err
    return json.loads(result.out)["items"]  # type: ignore[no-any-return]


def explained(bkctl: Bkctl, current: Path, *arguments: str) -> list[dict[str, Any]]:
    with untouched(current):
        return items(bkctl("gc", "explain", *arguments, "-l", str(current), "-o", "json"))


@pytest.mark.parametrize("disk", [DB, IDX])
def test_logs_whose_ledgers_all_live_stay(bkctl: Bkctl, tmp_path: Path, disk: tuple[str, ...]) -> None:
    current = copied(tmp_path, disk)
    rows = [row for row in explained(bkctl, current) if row["entry_bytes"]]
    assert rows
    for row in rows:
        assert (row["usage"], row["bucket"], row["waits_for"]) == (1, 9, "alive")
        assert row["live_bytes"] == row["entry_bytes"] <= row["size_bytes"] - fmt.HEADER_BYTES
        assert row["live_ledgers"] == row["ledgers"]


def test_a_log_waits_for_what_its_live_share_calls_for(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    log = max(explained(bkctl, current), key=lambda row: int(row["ledgers"]))
    ledgers = explained(bkctl, current, log["path"])
    assert sum(row["bytes"] for row in ledgers) == log["entry_bytes"]
    assert sum(row["share"] for row in ledgers) == pytest.approx(1)
    assert [row["bytes"] for row in ledgers] == sorted((row["bytes"] for row in ledgers), reverse=True)

    deleted: list[int] = []
    waits = {}
    for row in ledgers:
        deleted.append(row["ledger_id"])
        with changed_ledgers(current) as index:
            index.load()
            index.write({}, deleted)
        [now] = [r for r in explained(bkctl, current) if r["path"] == log["path"]]
        left = sum(r["bytes"] for r in ledgers if r["ledger_id"] not in deleted)
        assert now["live_bytes"] == left
        waits[now["usage"]] = now["waits_for"]
        alive = [r["ledger_id"] for r in explained(bkctl, current, log["path"]) if r["alive"]]
        assert not set(alive) & set(deleted)
    for usage, step in waits.items():
        expected = "dead" if not usage else "minor" if usage < 0.2 else "major" if usage < 0.8 else "alive"
        assert step == expected
    assert waits[0] == "dead"
    assert "major" in waits.values()


def test_a_damaged_log_is_named_and_the_others_are_told_all_the_same(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    count = len(explained(bkctl, current))
    (current / "77.log").write_bytes(fmt.pack_header() + b"\xee" * 100)
    rows = explained(bkctl, current)
    assert len(rows) == count + 1
    assert [row["name"] for row in rows if row["waits_for"] == "damaged"] == ["77.log"]
    assert "no entry begins" in rows[-1]["reason"]


def test_a_simulation_tells_what_thresholds_give_back(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    log = max(explained(bkctl, current), key=lambda row: int(row["ledgers"]))
    largest = explained(bkctl, current, log["path"])[0]
    with changed_ledgers(current) as index:
        index.load()
        index.write({}, [largest["ledger_id"]])
    simulate = ("gc", "simulate", "-l", str(current), "-o", "json")
    with untouched(current):
        dead, minor, major = items(bkctl(*simulate, "--minor", "0", "--major", "1"))
    assert (dead["step"], minor["step"], major["step"]) == ("dead", "minor", "major")
    assert (minor["logs"], minor["reclaimed_bytes"], minor["copied_per_reclaimed"]) == (0, 0, None)
    assert major["logs"] >= 1
    assert major["reclaimed_bytes"] >= largest["bytes"]
    assert major["copied_bytes"] >= log["entry_bytes"] - largest["bytes"]
    assert major["new_logs"] == 1
    _, _, none = items(bkctl(*simulate, "--major", "0"))
    assert none["logs"] == 0


def test_thresholds_come_from_the_configuration(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    conf = tmp_path / "bk_server.conf"
    conf.write_text(
        f"ledgerDirectories={current.parent}\njournalDirectories={tmp_path}\n"
        "minorCompactionInterval=-1\nmajorCompactionThreshold=0.7\n"
    )
    rows = items(bkctl("gc", "simulate", "-c", str(conf), "-o", "json"))
    assert [row["threshold"] for row in rows] == [None, 0, 0.7]


def test_what_is_wrong_is_said_in_one_line(bkctl: Bkctl, tmp_path: Path) -> None:
    current = copied(tmp_path, DB)
    for arguments, code in (
        (("explain", "99", "-l", str(current)), 3),
        (("explain",), 2),
        (("simulate", "-j", str(tmp_path)), 2),
        (("explain", "-l", str(tmp_path / "nowhere")), 3),
        (("simulate", "--minor", "2", "-l", str(current)), 2),
    ):
        result = bkctl("gc", *arguments)
        assert result.code == code, (arguments, result.err)
        assert result.err.count("\n") <= 2
        assert "Traceback" not in result.err
