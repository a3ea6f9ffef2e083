"""Delayed ensemble change: failed bookies that are kept while every entry can reach its ack quorum.

Source: spec replication section 6 (delayEnsembleChange); upstream PendingAddOp counts failures by entry.
Differs: a failure counts for everything that was sent to the bookie up to the entry that failed, so
that a change may come earlier, never later.
"""

from collections.abc import Collection

from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieId, BookieIndex


class ToleratedFailures:
    """Which bookies failed pending entries, and whether that can be borne."""

    def __init__(self, schedule: RoundRobinSchedule) -> None:
        self._schedule = schedule
        self._failed: dict[BookieIndex, tuple[BookieId, int]] = {}  # up to this entry

    def note(self, index: BookieIndex, bookie_id: BookieId, entry_id: int) -> None:
        """The bookie may lack every entry up to `entry_id` that it has not answered."""
        known = self._failed.get(index)
        if known is not None and known[0] == bookie_id:
            entry_id = max(entry_id, known[1])
        self._failed[index] = bookie_id, entry_id

    def pending(self, ensemble: tuple[BookieId, ...], acked: int) -> dict[BookieIndex, BookieId]:
        """Members that failed an entry beyond `acked`; all others are forgotten."""
        self._failed = {
            i: (b, last) for i, (b, last) in self._failed.items() if ensemble[i] == b and last > acked
        }
        return {index: bookie_id for index, (bookie_id, _) in self._failed.items()}

    def bearable(self, ensemble_size: int, gone: Collection[BookieIndex]) -> bool:
        """Whether every write set keeps an ack quorum without the indexes in `gone`."""
        live = [BookieIndex(index) for index in range(ensemble_size) if index not in gone]
        return self._schedule.every_write_set_has(self._schedule.ack_quorum_size, live)

    def clear(self) -> None:
        """All of them are being replaced."""
        self._failed.clear()
