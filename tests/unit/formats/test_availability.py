from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError
from bkctl.formats.availability import Availability, Group


def _encoded(*groups: tuple[int, int, int, int], version: int = 0, count: int | None = None) -> bytes:
    head = pack(">ii56x", version, len(groups) if count is None else count)
    return head + b"".join(pack(">qqii", *group) for group in groups)


@given(st.sets(st.integers(0, 200)))
def test_round_trip_and_membership(ids: set[int]) -> None:
    availability = Availability.decode(Availability.of(sorted(ids)).encode())
    assert set(availability) == ids
    assert availability.entry_count == len(ids)
    assert {entry_id for entry_id in range(-2, 210) if entry_id in availability} == ids


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 9), st.integers(0, 9))
def test_periodic_groups_mean_their_runs(first: int, runs: int, size: int, gap: int) -> None:
    period = size + gap
    group = Group(first, first + (runs - 1) * period, size, period if runs > 1 else 0)
    ids = [first + run * period + i for run in range(runs) for i in range(size)]
    availability = Availability.decode(_encoded(group))
    assert list(availability) == ids
    assert availability.entry_count == len(ids)
    assert [entry_id for entry_id in range(ids[-1] + 20) if entry_id in availability] == ids


def test_ids_up_to_the_last_of_64_bits() -> None:
    last = 2**63 - 1
    availability = Availability.decode(Availability.of([0, last]).encode())
    assert last in availability
    assert last - 1 not in availability


def test_descending_ids_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        Availability.of([5, 3])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(63),
        bytes(65),
        _encoded(version=1),
        _encoded(count=-1),
        _encoded(count=1),
        _encoded((0, 0, 1, 0), count=2**31 - 1),
        _encoded((0, 0, 0, 0)),
        _encoded((0, 0, -1, 0)),
        _encoded((-1, -1, 1, 0)),
        _encoded((5, 3, 1, 1)),
        _encoded((0, 6, 1, 0)),
        _encoded((0, 6, 1, -2)),
        _encoded((0, 6, 3, 2)),
        _encoded((0, 6, 1, 4)),
        _encoded((0, 0, 3, 0), (2, 2, 1, 0)),
    ],
)
def test_bytes_that_make_no_sense_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match="availability"):
        Availability.decode(data)
