"""Watermarks against a set per entry."""

from hypothesis import given
from hypothesis import strategies as st

from bkctl.quorum.acks import AckWatermarks
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import INVALID_ENTRY_ID, BookieIndex, EntryId


def _acks(ensemble_size: int, write_quorum_size: int, ack_quorum_size: int) -> AckWatermarks:
    schedule = RoundRobinSchedule(ensemble_size, write_quorum_size, ack_quorum_size)
    return AckWatermarks(schedule, INVALID_ENTRY_ID)


def test_the_second_of_two_acks_acknowledges() -> None:
    acks = _acks(3, 3, 2)
    acks.store(BookieIndex(0), 0, 9)
    assert acks.quorum_stored(EntryId(9)) == -1
    acks.store(BookieIndex(2), 0, 4)
    assert acks.quorum_stored(EntryId(9)) == 4


def test_answers_ahead_of_a_gap_wait_for_it() -> None:
    acks = _acks(1, 1, 1)
    acks.store(BookieIndex(0), 5, 6)
    acks.store(BookieIndex(0), 1, 4)
    assert acks.quorum_stored(EntryId(9)) == -1
    acks.store(BookieIndex(0), 0, 0)
    assert acks.quorum_stored(EntryId(9)) == 6


def test_a_replaced_bookie_takes_its_acks_back() -> None:
    acks = _acks(2, 2, 2)
    for index in (0, 1):
        acks.store(BookieIndex(index), 0, 9)
    acks.acked = EntryId(3)
    acks.reset(BookieIndex(1))
    assert acks.quorum_stored(EntryId(9)) == 3
    acks.store(BookieIndex(1), 4, 7)
    assert acks.quorum_stored(EntryId(9)) == 7


def test_a_gap_below_what_is_acknowledged_holds_nothing_back() -> None:
    """Index 2 never stored entry 0; entry 0 is acknowledged by the others: 1 and 2 count there."""
    acks = _acks(3, 3, 2)
    acks.store(BookieIndex(0), 0, 0)
    acks.store(BookieIndex(1), 0, 0)
    acks.acked = acks.quorum_stored(EntryId(2))
    acks.store(BookieIndex(2), 1, 2)
    acks.store(BookieIndex(0), 1, 2)
    assert acks.quorum_stored(EntryId(2)) == 2


@given(st.integers(1, 5), st.data())
def test_watermarks_say_what_sets_say(size: int, data: st.DataObject) -> None:
    """Any order of answers, with replacements in between; the model keeps a set per entry.

    Watermarks may lag the model only while an answer is missing below.
    """
    quorum = data.draw(st.integers(1, size))
    ack_quorum = data.draw(st.integers(1, quorum))
    schedule = RoundRobinSchedule(size, quorum, ack_quorum)
    acks = AckWatermarks(schedule, INVALID_ENTRY_ID)
    last = EntryId(data.draw(st.integers(0, 12)))
    stored: dict[int, set[int]] = {entry_id: set() for entry_id in range(last + 1)}
    answers = [(e, i) for e in range(last + 1) for i in schedule.write_set(EntryId(e))]
    for entry_id, index in data.draw(st.permutations(answers)):
        if data.draw(st.integers(0, 9)) == 0:
            acks.reset(index)
            for entry in range(acks.acked + 1, last + 1):
                stored[entry].discard(index)
        acks.store(index, entry_id, entry_id)
        stored[entry_id].add(index)
        acked = acks.quorum_stored(last)
        assert acked >= acks.acked
        for entry in range(acks.acked + 1, acked + 1):
            assert len(stored[entry]) >= ack_quorum
        acks.acked = acked
    for index in range(size):  # all that is missing arrives
        for entry_id in range(last + 1):
            if index in schedule.write_set(EntryId(entry_id)):
                acks.store(BookieIndex(index), entry_id, entry_id)
    assert acks.quorum_stored(last) == last
