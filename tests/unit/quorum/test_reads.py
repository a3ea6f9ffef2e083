"""Reading ranges and recovery reads, event by event. Sources: spec replication sections 2, 11, 17.3."""

import pytest

from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    DigestMatchError,
    NoSuchEntryError,
    NoSuchLedgerError,
    ReadError,
    RequestTimeoutError,
)
from bkctl.formats.entry import Digester
from bkctl.quorum.reads import RangeRead, Recoverable, RecoveryRead, first_error
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieIndex, DigestType, EntryId, LedgerId

LEDGER_ID = LedgerId(5)
DIGESTER = Digester(DigestType.CRC32, b"")
LOST = BookieHandleNotAvailableError("lost")
NONE = NoSuchEntryError("none")
I0, I1, I2 = BookieIndex(0), BookieIndex(1), BookieIndex(2)


def _bodies(first: int, last: int) -> list[bytes]:
    payloads = [b"%d" % entry_id for entry_id in range(first, last + 1)]
    return DIGESTER.pack_entries(LEDGER_ID, first, -1, 0, payloads)[0]


def _range(write_quorum: int = 3, first: int = 0, last: int = 5, **options: object) -> RangeRead:
    schedule = RoundRobinSchedule(3, write_quorum, 1)
    return RangeRead(schedule, DIGESTER, LEDGER_ID, EntryId(first), EntryId(last), **options)  # type: ignore[arg-type]


def test_without_striping_a_range_is_asked_of_one_bookie() -> None:
    assert _range().start() == {0: [0, 1, 2, 3, 4, 5]}
    assert _range(start_index=4).start() == {1: [0, 1, 2, 3, 4, 5]}
    assert _range(start_index=4, avoid=[I1]).start() == {2: [0, 1, 2, 3, 4, 5]}


def test_a_striped_range_is_grouped_by_the_first_of_each_write_set() -> None:
    assert _range(2).start() == {0: [0, 3], 1: [1, 4], 2: [2, 5]}
    assert _range(2, avoid=[I1]).start() == {0: [0, 3], 2: [1, 2, 4, 5]}


def test_what_one_replica_lacks_is_asked_of_the_next() -> None:
    read = _range()
    read.start()
    bodies: list[bytes | BookKeeperError] = [*_bodies(0, 5)]
    bodies[2] = NONE
    bodies[4] = bodies[4][:-1] + b"!"  # type: ignore[index,operator]
    assert read.answered(I0, [EntryId(e) for e in range(6)], bodies) == {1: [2, 4]}
    assert read.digest_mismatches == [(0, 4)]
    assert read.answered(I1, [EntryId(2), EntryId(4)], [_bodies(2, 2)[0], LOST]) == {2: [4]}
    assert not read.done
    read.answered(I2, [EntryId(4)], _bodies(4, 4))
    assert read.done
    assert [entry.payload for entry in read.entries()] == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_range_fails_when_all_replicas_of_one_entry_failed() -> None:
    read = _range(last=0)
    read.start()
    assert read.answered(I0, [EntryId(0)], [NONE]) == {1: [0]}
    assert read.answered(I1, [EntryId(0)], [LOST]) == {2: [0]}
    assert read.answered(I2, [EntryId(0)], [NONE]) == {}
    assert read.done
    assert read.error is LOST


def test_speculation_asks_the_next_and_the_first_valid_answer_wins() -> None:
    """1. Bookie 0 is slow: 1 is asked, too.  2. Bookie 1 fails: 0 may still answer.  3. It does."""
    read = _range(last=1)
    read.start()
    assert read.speculate() == {1: [0, 1]}
    assert read.answered(I1, [EntryId(0), EntryId(1)], [LOST, LOST]) == {}
    read.answered(I0, [EntryId(0), EntryId(1)], _bodies(0, 1))
    assert read.done
    assert read.error is None


def test_late_answers_change_nothing() -> None:
    read = _range(last=0)
    read.start()
    read.speculate()
    read.answered(I0, [EntryId(0)], _bodies(0, 0))
    assert read.answered(I1, [EntryId(0)], [LOST]) == {}
    assert read.error is None


@pytest.mark.parametrize(
    ("before", "error", "reported"),
    [
        (None, NONE, NONE),
        (NONE, LOST, LOST),
        (NoSuchLedgerError("none"), LOST, LOST),
        (LOST, NONE, LOST),
        (LOST, RequestTimeoutError("late"), RequestTimeoutError),
        (ReadError("io"), DigestMatchError("bad"), ReadError),
    ],
)
def test_the_error_that_says_most_is_reported(
    before: BookKeeperError | None, error: BookKeeperError, reported: object
) -> None:
    found = first_error(before, error)
    assert found is reported or type(found) is reported


def test_a_recovery_read_is_decided_by_one_copy_or_by_enough_negatives() -> None:
    schedule = RoundRobinSchedule(5, 3, 2)
    found, absent, unknown = (RecoveryRead(schedule, EntryId(4)) for _ in range(3))
    found.failed(BookieIndex(4), NONE)
    found.found(I0, b"body")
    assert (found.state, found.body) == (Recoverable.FOUND, b"body")
    absent.failed(BookieIndex(4), NONE)
    absent.failed(BookieIndex(4), NONE)
    assert absent.state is Recoverable.PENDING
    absent.failed(I1, NoSuchLedgerError("none"))
    assert absent.state is Recoverable.ABSENT
    for index in (4, 0, 1):
        unknown.failed(BookieIndex(index), LOST if index else NONE)
    assert (unknown.state, unknown.error) == (Recoverable.UNKNOWN, LOST)
