"""Latencies in a log-linear histogram: 0.8 % precision from 1 ns to hours, in a fixed array.

Each power of two is divided into 64 equal buckets, so a value is off by at most 1/128 of itself.
"""

_SUB_BITS = 6
_SUB_COUNT = 1 << _SUB_BITS
_BUCKETS = (64 - _SUB_BITS + 1) * _SUB_COUNT


class Histogram:
    """Counts of values in nanoseconds (0 to 2**64 - 1)."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.sum_ns = 0
        self.max_ns = 0

    def record(self, value_ns: int, count: int = 1) -> None:
        """`count` operations took `value_ns` each."""
        assert value_ns >= 0, value_ns
        assert count >= 0, count
        shift = max(value_ns.bit_length() - _SUB_BITS - 1, 0)
        self._counts[(shift << _SUB_BITS) + (value_ns >> shift)] += count
        self.count += count
        self.sum_ns += value_ns * count
        self.max_ns = max(self.max_ns, value_ns)

    @property
    def mean_ns(self) -> float:
        return self.sum_ns / self.count if self.count else 0.0

    def percentile_ns(self, percent: float) -> int:
        """The value that `percent` % of all operations do not exceed; 0 when there were none."""
        rank = self.count * percent / 100
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return min(_midpoint(bucket), self.max_ns)
        return self.max_ns


def _midpoint(bucket: int) -> int:
    if bucket < 2 * _SUB_COUNT:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return ((bucket - (shift << _SUB_BITS)) << shift) + (1 << shift >> 1)
