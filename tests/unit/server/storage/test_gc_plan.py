"""Which ledgers are garbage."""

import pytest

from bkctl.errors import CorruptDataError
from bkctl.server.storage.gc_plan import GarbagePlan
from bkctl.types import LedgerId


def plan(*local: int) -> GarbagePlan:
    return GarbagePlan(map(LedgerId, local))


def ids(*numbers: int) -> list[LedgerId]:
    return list(map(LedgerId, numbers))


def test_whatever_is_listed_anywhere_lives() -> None:
    garbage = plan(0, 1, 5, 9)
    garbage.add_range(ids(0, 2))
    garbage.add_range(ids(5))
    assert garbage.finish() == [1, 9]


def test_an_empty_listing_makes_everything_garbage() -> None:
    assert plan(3, 1).finish() == [1, 3]


@pytest.mark.parametrize("numbers", [(2, 1), (5, 5), (4,), (3, 9)])
def test_a_listing_out_of_order_is_refused(numbers: tuple[int, ...]) -> None:
    garbage = plan(1)
    garbage.add_range(ids(3, 4))
    with pytest.raises(CorruptDataError, match="is listed after"):
        garbage.add_range(ids(*numbers))
