"""Write sets and coverage."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.errors import IncorrectParameterError
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieIndex, EntryId


@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 2, 3), (3, 3, 0), (0, 0, 0)])
def test_sizes_must_fit_into_each_other(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(IncorrectParameterError):
        RoundRobinSchedule(*sizes)


@pytest.mark.parametrize("entry_id", [0, 7, 2**31 - 1, 2**31, 2**63 - 1])
def test_write_sets_go_round_the_ensemble_for_every_id(entry_id: int) -> None:
    """Upstream's index to send to turns negative near 2**31."""
    write_set = RoundRobinSchedule(5, 3, 2).write_set(EntryId(entry_id))
    assert write_set == tuple((entry_id + i) % 5 for i in range(3))


@given(st.integers(1, 7), st.data())
def test_the_next_stored_entry_is_the_first_whose_write_set_has_the_index(
    size: int, data: st.DataObject
) -> None:
    quorum = data.draw(st.integers(1, size))
    index = BookieIndex(data.draw(st.integers(0, size - 1)))
    entry_id = data.draw(st.integers(0, 2**40))
    schedule = RoundRobinSchedule(size, quorum, 1)
    found = schedule.next_stored(index, entry_id)
    wanted = next(e for e in range(entry_id, entry_id + size + 1) if index in schedule.write_set(EntryId(e)))
    assert found == wanted


def test_coverage_is_by_windows_and_not_by_count() -> None:
    """E=4, Qw=2, Qa=2: two opposite bookies meet every ack quorum; BP-46's count asks for three."""
    schedule = RoundRobinSchedule(4, 2, 2)
    assert schedule.covers_ensemble({0, 2})
    assert schedule.covers_ensemble({1, 3})
    assert not schedule.covers_ensemble({0, 1})


def test_a_covered_ensemble_meets_every_possible_ack_quorum() -> None:
    """The definition, for all small sizes: an entry acked by Qa bookies has one that answered."""
    for size in range(1, 6):
        for quorum, acks in product(range(1, size + 1), repeat=2):
            if acks > quorum:
                continue
            schedule = RoundRobinSchedule(size, quorum, acks)
            for answered in (set(c) for n in range(size + 1) for c in combinations(range(size), n)):
                met = all(
                    answered & set(ack_quorum)
                    for entry_id in range(size)
                    for ack_quorum in combinations(schedule.write_set(EntryId(entry_id)), acks)
                )
                assert schedule.covers_ensemble(answered) == met, (schedule, answered)
