"""Reading the last add confirmed. Sources: spec replication sections 1, 11, 17.4."""

import pytest

from bkctl.errors import DigestMatchError, NoSuchEntryError, ReadError, UnauthorizedAccessError
from bkctl.formats.entry import Digester
from bkctl.quorum.lac import Coverage, LacCoverage, TailPoll, lac_of_answer
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieIndex, DigestType, EntryId, LedgerId

LEDGER_ID = LedgerId(5)
DIGESTER = Digester(DigestType.CRC32, b"")
THREE = RoundRobinSchedule(3, 3, 2)
FAILURE = ReadError("io")


def _answers(coverage: LacCoverage, *answers: int | Exception) -> Coverage:
    for index, answer in enumerate(answers):
        if isinstance(answer, Exception):
            coverage.failed(BookieIndex(index), answer)  # type: ignore[arg-type]
        else:
            coverage.answered(BookieIndex(index), EntryId(answer))
    return coverage.state


def test_the_largest_lac_of_enough_bookies_counts() -> None:
    coverage = LacCoverage(THREE)
    assert _answers(coverage, 3) is Coverage.PENDING
    assert _answers(coverage, 3, 7) is Coverage.COVERED
    assert coverage.last_add_confirmed == 7


def test_no_such_entry_is_an_answer_and_an_error_is_none() -> None:
    assert _answers(LacCoverage(THREE), NoSuchEntryError("none"), 2) is Coverage.COVERED
    assert _answers(LacCoverage(THREE), FAILURE, 2) is Coverage.PENDING
    assert _answers(LacCoverage(THREE), FAILURE, 2, FAILURE) is Coverage.FAILED
    assert _answers(LacCoverage(THREE), FAILURE, 2, 1) is Coverage.COVERED


def test_one_bookie_counts_once() -> None:
    coverage = LacCoverage(THREE)
    for _ in range(3):
        assert coverage.answered(BookieIndex(1), EntryId(5)) is Coverage.PENDING


def test_a_wrong_key_fails_at_once() -> None:
    coverage = LacCoverage(THREE)
    assert coverage.failed(BookieIndex(0), UnauthorizedAccessError("key")) is Coverage.FAILED


def test_the_explicit_lac_may_be_ahead_of_the_last_entry() -> None:
    packet = DIGESTER.pack_lac(LEDGER_ID, 9)
    (entry,), _ = DIGESTER.pack_entries(LEDGER_ID, 9, 7, 0, [b"x"])
    assert lac_of_answer(DIGESTER, LEDGER_ID, packet, entry) == 9
    assert lac_of_answer(DIGESTER, LEDGER_ID, None, entry) == 7
    assert lac_of_answer(DIGESTER, LEDGER_ID, packet, None) == 9
    with pytest.raises(ReadError):
        lac_of_answer(DIGESTER, LEDGER_ID, None, None)
    with pytest.raises(DigestMatchError):
        lac_of_answer(DIGESTER, LEDGER_ID, packet[:-1] + b"!", entry)


def test_a_poll_ends_with_news_or_when_nobody_can_have_any() -> None:
    assert TailPoll(THREE, EntryId(4)).answered(BookieIndex(2), EntryId(5))
    poll = TailPoll(THREE, EntryId(4))
    assert not poll.answered(BookieIndex(0), EntryId(4))
    assert poll.answered(BookieIndex(1), EntryId(4))
    assert poll.error is None
    failing = TailPoll(THREE, EntryId(4))
    assert not failing.failed(BookieIndex(0), FAILURE)
    assert not failing.failed(BookieIndex(1), FAILURE)
    assert failing.answered(BookieIndex(2), EntryId(4))
    assert failing.error is FAILURE
