"""Which entries of a ledger a bookie stores, as runs: the answer to a list-of-entries request.

    offset     size  field
    0          i32   format version, 0
    4          i32   N, number of groups
    8          56    zero
    64+24k     i64   first id of the group's first run
    +8         i64   first id of its last run
    +16        i32   entries per run
    +20        i32   distance between the starts of runs; 0 if there is one run

Encoders write one group per run, as Java's does; readers take groups of several runs.
Source: spec wire section 6; upstream AvailabilityOfEntriesOfLedger.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct, iter_unpack
from typing import NamedTuple

from bkctl.errors import CorruptDataError

HEADER = Struct(">ii56x")
GROUP = Struct(">qqii")
assert (HEADER.size, GROUP.size) == (64, 24)

FORMAT_VERSION = 0
RUN_ENTRIES_MAX = 2**31 - 1  # entries per run are an i32


class Group(NamedTuple):
    """Runs of `size` entries starting at `first`, `first + period`, ..., `last`."""

    first: int
    last: int
    size: int
    period: int

    @property
    def entry_count(self) -> int:
        runs = 1 if self.last == self.first else (self.last - self.first) // self.period + 1
        return runs * self.size


@dataclass(frozen=True, slots=True)
class Availability:
    """`groups` ascend and do not overlap."""

    groups: tuple[Group, ...] = ()

    @classmethod
    def of(cls, entry_ids: Iterable[int]) -> "Availability":
        """From ids in ascending order; repeated ones count once."""
        groups: list[Group] = []
        first = after = -1  # the open run is first..after-1
        for entry_id in entry_ids:
            if entry_id == after and after - first < RUN_ENTRIES_MAX:
                after += 1
            elif entry_id >= after:
                if after > first:
                    groups.append(Group(first, first, after - first, 0))
                first, after = entry_id, entry_id + 1
            else:
                assert entry_id >= first, (entry_id, first)  # ids must not descend
        if after > first:
            groups.append(Group(first, first, after - first, 0))
        return cls(tuple(groups))

    @classmethod
    def decode(cls, data: bytes) -> "Availability":
        """Raises:
        CorruptDataError: newer version, wrong size, or groups that make no sense or overlap.
        """
        if len(data) < HEADER.size:
            raise CorruptDataError(f"availability of {len(data)} bytes: shorter than its header")
        version, count = HEADER.unpack_from(data)
        if version > FORMAT_VERSION:
            raise CorruptDataError(f"availability has version {version}; {FORMAT_VERSION} is known")
        if count < 0 or len(data) != HEADER.size + count * GROUP.size:
            raise CorruptDataError(f"availability of {len(data)} bytes cannot hold {count} groups")
        groups = sorted(map(Group._make, iter_unpack(GROUP.format, data[HEADER.size :])))
        after = 0
        for group in groups:
            _check(group, after)
            after = group.last + group.size
        return cls(tuple(groups))

    def encode(self) -> bytes:
        head = HEADER.pack(FORMAT_VERSION, len(self.groups))
        return head + b"".join(GROUP.pack(*group) for group in self.groups)

    @property
    def entry_count(self) -> int:
        return sum(group.entry_count for group in self.groups)

    def __contains__(self, entry_id: int) -> bool:
        index = bisect_right(self.groups, entry_id, key=_first) - 1
        if index < 0:
            return False
        group = self.groups[index]
        distance = entry_id - group.first
        if group.last == group.first:
            return distance < group.size
        return entry_id < group.last + group.size and distance % group.period < group.size

    def __iter__(self) -> Iterator[int]:
        """The ids, ascending."""
        for first, last, size, period in self.groups:
            for start in range(first, last + 1, period or 1):
                yield from range(start, start + size)


def _first(group: Group) -> int:
    return group.first


def _check(group: Group, after: int) -> None:
    first, last, size, period = group
    ascending = after <= first <= last
    one_run = last == first
    if not (ascending and size > 0 and (one_run or (period >= size and (last - first) % period == 0))):
        raise CorruptDataError(f"availability has a wrong group after entry {after - 1}: {group}")
