"""Which entries are stored by enough bookies to be acknowledged.

One watermark per ensemble index says "every entry of this index's stripe below it is stored", so a
run of answers costs the same as one answer. Answers ahead of a gap wait in a small heap.

Laws:
- Entries at or below `acked` are settled: no answer about them matters any more.
- `acked` only grows, one entry after the other, whatever the order of the answers.
- Replacing a bookie takes back what its predecessor stored above `acked`, for all entries at once:
  no entry can be acknowledged between the first and the last of them (upstream #3005, #4097, #4194).

Source: spec replication sections 1, 5, 6.6; upstream AckSetImpl and PendingAddOp keep a set per entry.
"""

from heapq import heappop, heappush

from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieIndex, EntryId

AHEAD_RUNS_MAX = 1 << 16  # of answers ahead of a gap, per bookie


class AckWatermarks:
    """Counts the answers of all pending adds of one ledger.

    Callers map a bookie to its index in the current ensemble, and drop answers of bookies that are
    not in it.
    """

    def __init__(self, schedule: RoundRobinSchedule, acked: EntryId) -> None:
        self._schedule = schedule
        self._striped = schedule.striped
        self._ack_rank = schedule.ensemble_size - schedule.ack_quorum_size
        self._ahead: list[list[tuple[int, int]]] = [[] for _ in range(schedule.ensemble_size)]
        self._stored_below = [
            schedule.next_stored(BookieIndex(index), acked + 1) for index in range(schedule.ensemble_size)
        ]
        self.acked = acked

    def watermark(self, index: BookieIndex) -> int:
        """The first entry of the stripe of `index` that is not known to be stored there."""
        return self._stored_below[index]

    def store(self, index: BookieIndex, first_entry_id: int, last_entry_id: int) -> None:
        """The bookie at `index` holds its entries among first..last (both included)."""
        mark, ahead = self._stored_below[index], self._ahead[index]
        # A gap that is acknowledged already is no gap.
        reached = max(mark, self._next_stored(index, self.acked + 1))
        if first_entry_id > reached:
            # Ignoring an answer is safe: the entry times out and goes to another bookie.
            if len(ahead) < AHEAD_RUNS_MAX:
                heappush(ahead, (first_entry_id, last_entry_id))
            return
        mark = self._next_stored(index, max(mark, last_entry_id + 1))
        while ahead and ahead[0][0] <= max(mark, reached):
            mark = self._next_stored(index, max(mark, heappop(ahead)[1] + 1))
        self._stored_below[index] = mark

    def reset(self, index: BookieIndex) -> None:
        """Another bookie sits at `index` now: it stores nothing above `acked`."""
        self._ahead[index].clear()
        self._stored_below[index] = self._schedule.next_stored(index, self.acked + 1)

    def lacks(self, index: BookieIndex, entry_id: int) -> bool:
        """Whether `entry_id` belongs on `index` and is not known to be stored there."""
        return (
            entry_id >= self._stored_below[index]
            and self._next_stored(index, entry_id) == entry_id
            and not any(first <= entry_id <= last for first, last in self._ahead[index])
        )

    def _next_stored(self, index: BookieIndex, entry_id: int) -> int:
        return self._schedule.next_stored(index, entry_id) if self._striped else entry_id

    def quorum_stored(self, last_pushed: EntryId) -> EntryId:
        """The highest id, at most `last_pushed`, up to which every entry has its ack quorum."""
        if not self._striped:
            return EntryId(max(self.acked, sorted(self._stored_below)[self._ack_rank] - 1))
        # Below the lowest watermark everything is everywhere; above it entries differ.
        size, marks = self._schedule.ensemble_size, self._stored_below
        write_quorum, ack_quorum = self._schedule.write_quorum_size, self._schedule.ack_quorum_size
        entry_id = max(self.acked + 1, min(marks))
        while entry_id <= last_pushed:
            stored = 0
            for step in range(entry_id, entry_id + write_quorum):
                stored += marks[step % size] > entry_id
            if stored < ack_quorum:
                break
            entry_id += 1
        return EntryId(max(self.acked, min(entry_id - 1, last_pushed)))
