"""Our garbage collection on what Apache's bookie wrote; and Apache's bookie on what ours left."""

from collections.abc import Callable
from pathlib import Path

from bkctl.client.blocking import BlockingBookKeeper
from bkctl.formats import request_v2 as v2
from bkctl.formats.entry import HEADER
from bkctl.formats.result_code import ResultCode
from bkctl.offline.entry_logs import log_files
from bkctl.types import LedgerId
from tests.integration.bookies import wait_until
from tests.interop.apache import Apache, JavaDriver
from tests.interop.disks import KEY, Disks, ask_v2, check, closed_by_bkctl, closed_by_java, disks

_SETTINGS = {
    "logSizeLimit": 300_000,
    "gcWaitTime": 500,
    "minorCompactionInterval": 1,
    "minorCompactionThreshold": 0.5,
    "majorCompactionInterval": 2,
    "majorCompactionThreshold": 0.9,
    "compactionRateByEntries": 100_000,
    "gcEntryLogMetadataCacheEnabled": "true",  # Java goes on with the records that we wrote
}


def test_both_collect_each_others_logs_in_turn_and_keep_every_live_entry(
    apache: Apache, driver: JavaDriver, new_cluster: Callable[..., str], tmp_path: Path
) -> None:
    with disks(apache, driver, new_cluster(), tmp_path / "b1", settings=_SETTINGS) as held:
        dead: list[LedgerId] = []
        buried: list[int] = []  # by us, who remember that they were fenced
        for writer, collector in ((held.java, held.bkctl), (held.bkctl, held.java)) * 2:
            held.start(writer)
            check(held)
            with held.clients() as (java, ours):
                doomed = [closed_by_java(java), closed_by_bkctl(ours, entries=400)]
                held.kept += [closed_by_bkctl(ours, entries=100), closed_by_java(java)]
                doomed.append(closed_by_bkctl(ours, entries=300))
            for kept in doomed:
                _rc(held, v2.ReadRequest(v2.FENCING, kept.ledger_id, 0, KEY))
            held.stop()
            before = _log_bytes(held)
            with BlockingBookKeeper(held.uri) as ours:
                for kept in doomed:
                    ours.delete_ledger(LedgerId(kept.ledger_id))
                    dead.append(LedgerId(kept.ledger_id))
                    if collector is held.bkctl:
                        buried.append(kept.ledger_id)
            held.start(collector)
            goal = before - 900_000
            wait_until(lambda goal=goal: _log_bytes(held) < goal, "collection", 60)
            check(held)
            for ledger_id in dead:
                assert _rc(held, v2.ReadRequest(0, ledger_id, 0)) == ResultCode.ENOLEDGER.rc
            held.stop()
        held.start(held.bkctl)
        for buried_id in buried:
            late = v2.AddRequest(0, KEY, HEADER.pack(buried_id, 10_000, 9_999, 0) + bytes(30))
            assert _rc(held, late) == ResultCode.EFENCED.rc
        assert not [path for path in _currents(held) if list(path.glob("*.compact*"))]


def _rc(held: Disks, request: v2.AddRequest | v2.ReadRequest) -> int:
    (answer,) = ask_v2(held.address, request)
    assert not isinstance(answer, v2.AuthPacket)
    return answer.rc


def _currents(held: Disks) -> list[Path]:
    return [directory / "current" for directory in held.ledgers]


def _log_bytes(held: Disks) -> int:
    return sum(log.size_bytes for log in log_files(_currents(held)))
