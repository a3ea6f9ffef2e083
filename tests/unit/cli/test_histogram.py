"""Percentiles within 1 % of the truth, whatever the distribution."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.cli.histogram import Histogram


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=200), st.sampled_from([1, 50, 90, 99, 99.9, 100])
)
def test_percentiles_are_within_one_percent(values: list[int], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    rank = max(1, -(-len(values) * percent // 100))
    truth = sorted(values)[int(rank) - 1]
    assert abs(histogram.percentile_ns(percent) - truth) <= truth / 100


def test_small_values_are_exact() -> None:
    for value in range(128):
        histogram = Histogram()
        histogram.record(value)
        histogram.record(10_000)
        assert histogram.percentile_ns(50) == value


def test_a_batch_counts_for_each_of_its_entries() -> None:
    histogram = Histogram()
    histogram.record(100, count=99)
    histogram.record(10**9, count=1)
    assert histogram.count == 100
    assert histogram.percentile_ns(99) == 100
    assert histogram.percentile_ns(100) == histogram.max_ns == 10**9
    assert histogram.mean_ns == pytest.approx(10_000_099)


def test_an_empty_histogram_has_zeros() -> None:
    assert (Histogram().percentile_ns(99), Histogram().mean_ns, Histogram().max_ns) == (0, 0.0, 0)
