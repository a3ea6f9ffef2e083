"""Damage in a journal is found where it is; what a crash leaves is no damage."""

from pathlib import Path

import pytest

from bkctl.formats import journal as fmt
from bkctl.formats.journal import RecordKind
from bkctl.formats.small_files import LogMark
from bkctl.offline.digests import KnownDigests
from bkctl.offline.journal_check import JournalReport, JournalState, verify
from bkctl.offline.journals import record_count, records
from bkctl.types import DigestType
from tests.unit.offline.made_files import (
    PASSWORD,
    entries_of,
    flipped,
    framed,
    journal_bytes,
    usual_journal,
)

USUAL = usual_journal()
RECORDS = 3 + 1 + 4 + 2 + 1  # entries and key, entries, fence and LAC, entry


def checked(
    directory: Path, data: bytes, *, is_last: bool = True, mark: LogMark | None = None
) -> JournalReport:
    path = directory / "1.txn"
    path.write_bytes(data)
    return verify(path, KnownDigests(), is_last=is_last, mark=mark)


def positions(directory: Path, data: bytes = USUAL) -> list[tuple[int, RecordKind, int]]:
    """(position, kind, bytes of the body) of each record."""
    path = directory / "whole.txn"
    path.write_bytes(data)
    return [(record.position, record.kind, len(record.body)) for record in records(path)]


def test_whole_journal_is_ok_and_every_digest_is_checked(tmp_path: Path) -> None:
    report = checked(tmp_path, USUAL)
    assert (report.state, report.version, report.records, report.entries) == (JournalState.OK, 6, RECORDS, 8)
    assert report.digests is not None
    assert (report.digests.good, report.digests.bad, report.digests.unknown) == (8, 0, 0)
    assert record_count(tmp_path / "1.txn") == RECORDS


@pytest.mark.parametrize("version", [4, 5, 6])
def test_each_version_is_checked(tmp_path: Path, version: int) -> None:
    data = journal_bytes([framed(entries_of(5, 3)), framed(entries_of(5, 3, first=3))], version=version)
    report = checked(tmp_path, data)
    assert (report.state, report.records) == (JournalState.OK, 6)
    at = positions(tmp_path, data)[1][0]
    report = checked(tmp_path, flipped(data, at + 60))
    assert (report.state, report.damages[0].position) == (JournalState.DAMAGED, at + 60)


# Offsets in an entry's record: length, ledger id, entry id, LAC, length, digest, payload.
@pytest.mark.parametrize("offset", [4, 11, 12, 19, 20, 27, 35, 36, 39, 40, 139])
@pytest.mark.parametrize("index", [1, 4])
def test_flipped_bit_of_an_entry_is_found_at_its_byte(tmp_path: Path, index: int, offset: int) -> None:
    at, kind, _ = positions(tmp_path)[index]
    assert kind is RecordKind.ENTRY
    report = checked(tmp_path, flipped(USUAL, at + offset))
    assert report.state is JournalState.DAMAGED
    assert report.damages[0].position == at + offset


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("bit", range(8))
def test_flipped_bit_of_a_length_points_to_its_record(tmp_path: Path, offset: int, bit: int) -> None:
    at = positions(tmp_path)[2][0]
    report = checked(tmp_path, flipped(USUAL, at + offset, bit))
    assert report.state is JournalState.DAMAGED
    assert report.damages[0].position == at
    assert report.damages[0].end > at + offset


@pytest.mark.parametrize(
    ("position", "state"), [(0, "damaged"), (3, "damaged"), (7, "unreadable"), (300, "damaged")]
)
def test_flipped_bit_of_the_header_is_found(tmp_path: Path, position: int, state: str) -> None:
    report = checked(tmp_path, flipped(USUAL, position))
    assert report.state == state
    if position == 300:
        assert [(d.position, d.end) for d in report.damages] == [(300, 301)]
        assert report.records == RECORDS
    if position == 7:
        assert report.error == "journal version 7 is not known: want 1 to 6"


@pytest.mark.parametrize("bit", [1, 2])
def test_header_that_says_an_older_version_is_found(tmp_path: Path, bit: int) -> None:
    report = checked(tmp_path, flipped(USUAL, 7, bit))
    assert (report.state, report.damages[0].position) == (JournalState.DAMAGED, 4)


def test_flipped_bit_of_padding_is_found(tmp_path: Path) -> None:
    at, _, body_bytes = positions(tmp_path)[3]
    padding_at = at + 4 + body_bytes
    zeros = checked(tmp_path, flipped(USUAL, padding_at + 9))
    assert (zeros.state, zeros.damages[0].position, zeros.records) == ("damaged", padding_at + 9, RECORDS)
    assert zeros.lost_bytes == 1
    for offset in range(8):  # the mask, and how long it is
        report = checked(tmp_path, flipped(USUAL, padding_at + offset))
        assert report.state is JournalState.DAMAGED
        assert padding_at <= report.damages[0].position <= padding_at + 8


def test_flipped_sign_of_an_entry_id_is_an_unknown_kind(tmp_path: Path) -> None:
    at = positions(tmp_path)[1][0]
    report = checked(tmp_path, flipped(USUAL, at + 12, 7))
    assert report.state is JournalState.DAMAGED
    assert (report.damages[0].position, "unknown kind" in report.damages[0].detail) == (at, True)


def test_explicit_lac_is_checked_and_tells_the_digest(tmp_path: Path) -> None:
    at, _, body_bytes = next(p for p in positions(tmp_path) if p[1] is RecordKind.EXPLICIT_LAC)
    report = checked(tmp_path, flipped(USUAL, at + 4 + body_bytes - 1))
    assert (report.state, report.damages[0].position) == (JournalState.DAMAGED, at)


def test_another_master_key_of_a_ledger_is_damage(tmp_path: Path) -> None:
    keys = [fmt.ledger_key_record(5, bytes([n]) * 20) for n in (1, 1, 2)]
    report = checked(tmp_path, journal_bytes([[key] for key in keys]))
    assert [d.position for d in report.damages] == [1536]
    assert checked(tmp_path, journal_bytes([[key] for key in keys[:2]])).state is JournalState.OK


def test_what_is_behind_the_damage_is_told(tmp_path: Path) -> None:
    at = positions(tmp_path)[0][0]
    report = checked(tmp_path, flipped(USUAL, at, 7))
    assert report.state is JournalState.DAMAGED
    assert report.damages[0].position == at == 512
    assert report.damages[0].end == positions(tmp_path)[1][0]  # only the ledger key is lost
    assert (report.records_behind, report.ledgers_behind) == (RECORDS - 1, [5, 6])


def test_record_cut_by_the_end_of_the_last_file_is_a_torn_tail(tmp_path: Path) -> None:
    at = positions(tmp_path)[-1][0]
    assert checked(tmp_path, USUAL[: at + 50]).state is JournalState.TORN_TAIL
    assert checked(tmp_path, USUAL[: at + 50], is_last=False).state is JournalState.TRUNCATED
    assert checked(tmp_path, USUAL[: at + 50]).records == RECORDS - 1


def test_last_record_without_its_later_sectors_is_a_torn_tail(tmp_path: Path) -> None:
    data = journal_bytes([framed(entries_of(5, 2)), framed(entries_of(5, 1, first=2, size=3000))])
    at = positions(tmp_path, data)[-1][0]
    torn = data[: at + 1024] + bytes(512) + data[at + 1536 :]
    report = checked(tmp_path, torn)
    assert (report.state, report.damages[0].position) == (JournalState.TORN_TAIL, at)


def test_the_same_with_a_group_behind_it_is_damage(tmp_path: Path) -> None:
    data = journal_bytes(
        [
            framed(entries_of(5, 2)),
            framed(entries_of(5, 1, first=2, size=3000)),
            framed(entries_of(5, 2, first=3)),
        ]
    )
    at = positions(tmp_path, data)[2][0]
    assert checked(tmp_path, data[: at + 1024] + bytes(512) + data[at + 1536 :]).state is JournalState.DAMAGED


def test_data_that_ends_before_the_last_mark_is_damage(tmp_path: Path) -> None:
    end = len(USUAL) - 4096
    assert checked(tmp_path, USUAL, mark=LogMark(1, end)).state is JournalState.OK
    assert (
        checked(tmp_path, USUAL, mark=LogMark(1, end + 4)).state is JournalState.OK
    )  # upstream's, after a replay
    assert checked(tmp_path, USUAL, mark=LogMark(1, end + 512)).state is JournalState.DAMAGED


def test_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    assert checked(tmp_path, b"").state is JournalState.EMPTY


def test_mac_needs_the_password_to_be_good_or_bad(tmp_path: Path) -> None:
    data = journal_bytes(
        [framed(entries_of(5, 4, DigestType.MAC)), framed(entries_of(6, 2, DigestType.DUMMY))]
    )
    path = tmp_path / "1.txn"
    path.write_bytes(flipped(data, 512 + 100))
    for passwords, counts in (([], (0, 0, 6)), ([PASSWORD], (3, 1, 2))):
        digests = verify(path, KnownDigests(passwords), is_last=True).digests
        assert digests is not None
        assert (digests.good, digests.bad, digests.unknown) == counts
