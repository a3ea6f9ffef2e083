"""Disks change hands: an Apache bookie's directories under ours, and back."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interop.apache import Apache, JavaDriver
from tests.interop.disks import check, disks, write, write_until_killed

_SMALL_FILES = {
    "journalMaxSizeMB": 1,
    "journalMaxBackups": 0,
    "journalAlignmentSize": 4096,
    "logSizeLimit": 300_000,
}
_FORMAT_5 = {"journalFormatVersionToWrite": 5, "fileInfoFormatVersionToWrite": 0}  # Java wants both
_LAYOUTS: dict[str, dict[str, Any]] = {
    "one directory of each kind, journal format 5": {"settings": _FORMAT_5},
    "two of each kind, indexes apart, small files": {"several": True, "settings": _SMALL_FILES},
}
_KILLS: dict[str, dict[str, Any]] = {
    "in the journal alone": {},
    "in the journals alone": {"several": True},
    "partly flushed, small files": {"settings": _SMALL_FILES, "flush_ms": 200},
}


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_everything_is_there_after_orderly_changes_of_hands(
    apache: Apache, driver: JavaDriver, new_cluster: Callable[..., str], tmp_path: Path, layout: str
) -> None:
    with disks(apache, driver, new_cluster(), tmp_path / "b1", **_LAYOUTS[layout]) as held:
        for bookie in (held.java, held.bkctl, held.java):
            held.start(bookie)
            check(held)
            write(held)
            held.stop()
        held.start(held.bkctl)
        check(held)


@pytest.mark.parametrize("case", _KILLS)
def test_everything_acknowledged_is_there_after_kills_in_the_middle_of_writing(
    apache: Apache, driver: JavaDriver, new_cluster: Callable[..., str], tmp_path: Path, case: str
) -> None:
    dice = random.Random(case)
    with disks(apache, driver, new_cluster(), tmp_path / "b1", **_KILLS[case]) as held:
        for bookie in (held.java, held.bkctl):
            held.start(bookie)
            check(held)
            write(held)
            if "flushed" in case:
                held.flush()
            write_until_killed(held, dice.randrange(500, 3000))
        held.start(held.java)
        check(held)
