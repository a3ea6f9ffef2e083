"""Damage in an entry log is found where it is; an entry cut by a crash is no damage."""

import tracemalloc
from pathlib import Path

import pytest

from bkctl.formats import entry_log as fmt
from bkctl.offline.digests import KnownDigests
from bkctl.offline.entry_log_check import LogReport, LogState, verify
from bkctl.offline.entry_logs import entries
from bkctl.types import DigestType
from tests.unit.offline.made_files import PASSWORD, entries_of, flipped, framed, log_bytes, usual_log

USUAL = usual_log()
MAP_AT = fmt.unpack_header(USUAL).ledgers_map_offset


def checked(directory: Path, data: bytes) -> LogReport:
    path = directory / "0.log"
    path.write_bytes(data)
    return verify(path, KnownDigests([PASSWORD]))


def sizes_at(directory: Path) -> list[int]:
    """Where the size field of each entry of the usual log stands."""
    path = directory / "whole.log"
    path.write_bytes(USUAL)
    return [entry.position - 4 for entry in entries(path)]


@pytest.mark.parametrize("sealed", [True, False])
def test_whole_log_is_ok_and_every_digest_is_checked(tmp_path: Path, sealed: bool) -> None:
    report = checked(tmp_path, usual_log(sealed=sealed))
    assert (report.state, report.sealed, report.entries, report.ledgers) == (LogState.OK, sealed, 6, 2)
    assert report.digests is not None
    assert (report.digests.good, report.digests.bad, report.digests.unknown) == (6, 0, 0)


# Offsets in an entry: ledger id, entry id, LAC, length, digest, payload; size field in front.
@pytest.mark.parametrize("offset", [4, 11, 12, 19, 20, 28, 36, 39, 50, 139])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_flipped_bit_of_an_entry_is_found_at_its_byte(tmp_path: Path, index: int, offset: int) -> None:
    at = sizes_at(tmp_path)[index]
    report = checked(tmp_path, flipped(USUAL, at + offset))
    assert report.state is LogState.DAMAGED
    assert report.damages[0].position == at + offset
    if offset in (4, 11):  # it is counted for another ledger
        [(ledger_id, lost_bytes)] = report.lost_by_ledger.items()
        assert (ledger_id, lost_bytes) == (5 if index < 3 else 6, report.damages[0].end - at)
    else:
        assert report.lost_by_ledger == {}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("bit", range(8))
def test_flipped_bit_of_a_size_points_to_its_entry(
    tmp_path: Path, offset: int, bit: int, sealed: bool
) -> None:
    at = sizes_at(tmp_path)[1]
    report = checked(tmp_path, flipped(usual_log(sealed=sealed), at + offset, bit))
    assert report.state is LogState.DAMAGED
    assert report.damages[0].position == at
    assert report.entries >= 4


@pytest.mark.parametrize("position", [0, 3, 20, 1023])
def test_flipped_bit_of_magic_or_zeros_is_found(tmp_path: Path, position: int) -> None:
    report = checked(tmp_path, flipped(USUAL, position))
    assert report.state is LogState.DAMAGED
    assert report.damages[0].position == (0 if position < 4 else position)
    assert report.entries == 6  # they are whole


def test_version_is_checked(tmp_path: Path) -> None:
    unknown = checked(tmp_path, flipped(USUAL, 7, 1))
    assert (unknown.state, unknown.error) == (LogState.UNREADABLE, "entry log header: version 3 is unknown")
    older = checked(tmp_path, flipped(USUAL, 7, 0))
    assert (older.state, older.damages[0].position) == (LogState.DAMAGED, 4)


@pytest.mark.parametrize(("position", "expected"), [(8, 8), (14, 8), (15, 8), (16, 16), (19, 16)])
def test_flipped_bit_of_the_maps_place_or_count_is_found(
    tmp_path: Path, position: int, expected: int
) -> None:
    report = checked(tmp_path, flipped(USUAL, position, 1))
    assert report.state is LogState.DAMAGED
    assert report.damages[0].position == expected
    assert report.entries == 6


@pytest.mark.parametrize("offset", range(24 + 2 * 16))
def test_flipped_bit_of_the_ledgers_map_is_found(tmp_path: Path, offset: int) -> None:
    report = checked(tmp_path, flipped(USUAL, MAP_AT + offset, 2))
    assert report.state is LogState.DAMAGED
    pair_at = MAP_AT + (0 if offset < 24 else 24 + (offset - 24) // 16 * 16)
    assert report.damages[0].position == pair_at
    assert report.entries == 6


def test_log_of_a_ledger_without_known_digest_is_held_to_its_map(tmp_path: Path) -> None:
    data = log_bytes([*entries_of(5, 3, DigestType.DUMMY), *entries_of(6, 3, DigestType.DUMMY)])
    assert checked(tmp_path, data).state is LogState.OK
    report = checked(tmp_path, flipped(data, 1024 + 4 + 6))
    assert (report.state, report.damages[0].position) == (LogState.DAMAGED, 1028)
    assert report.lost_by_ledger == {5: 136}


def test_sealed_log_that_is_cut_is_damaged(tmp_path: Path) -> None:
    for end in (MAP_AT + 30, MAP_AT, MAP_AT - 20, 1100, 1000, 19):
        assert checked(tmp_path, USUAL[:end]).state in (LogState.DAMAGED, LogState.UNREADABLE), end


def test_unsealed_log_that_is_cut_has_a_torn_tail(tmp_path: Path) -> None:
    data = usual_log(sealed=False)
    start = sizes_at(tmp_path)[-1]
    for end in (start + 4, start + 19, start + 100):
        report = checked(tmp_path, data[:end])
        assert (report.state, report.entries, report.damages[0].position) == (LogState.TORN_TAIL, 5, start)
    assert checked(tmp_path, data + bytes(9000)).state is LogState.OK  # reserved space


def test_zeros_between_entries_are_damage(tmp_path: Path) -> None:
    at = sizes_at(tmp_path)
    report = checked(tmp_path, USUAL[: at[1]] + bytes(at[3] - at[1]) + USUAL[at[3] :])
    assert report.state is LogState.DAMAGED
    assert (report.damages[0].position, report.damages[0].end) == (at[1], at[3])
    assert report.lost_by_ledger == {5: at[3] - at[1]}
    assert report.entries_behind == 3


def test_log_written_directly_is_ok(tmp_path: Path) -> None:
    filler = (3068).to_bytes(4, "big") + b"\xff" * 8 + bytes(3060)
    data = fmt.pack_header() + filler
    for first in (0, 3):
        data += b"".join(framed(entries_of(5, 3, first=first)))
        data += b"\xf0" * (-len(data) % 4096)
    report = checked(tmp_path, data + bytes(8192))
    assert (report.state, report.entries) == (LogState.OK, 6)
    report = checked(tmp_path, flipped(data, 4096 * 2 - 100))
    assert report.state is LogState.DAMAGED


def test_empty_log_is_said_to_be_empty(tmp_path: Path) -> None:
    assert checked(tmp_path, b"").state is LogState.EMPTY


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    block = b"".join(framed(entries_of(5, 32, size=32 * 1024)))
    with path.open("wb") as file:
        file.write(fmt.pack_header())
        for _ in range(128):
            file.write(block)
    assert path.stat().st_size > 128 << 20
    tracemalloc.start()
    try:
        report = verify(path, KnownDigests())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (report.state, report.entries) == (LogState.OK, 128 * 32)
    assert peak_bytes < 32 << 20
