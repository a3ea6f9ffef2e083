"""Where an entry's replicas go, and how many answers decide something.

Source: spec replication section 1; BookKeeper client/RoundRobinDistributionSchedule.java.
Differs: upstream computes the index to send to in 32 bits, so near entry 2**31 it turns negative;
here it is exact for every entry id. Ensemble coverage uses the window rule, not a mere count.
"""

from collections.abc import Collection
from dataclasses import dataclass

from bkctl.errors import IncorrectParameterError
from bkctl.types import BookieIndex, EntryId, LedgerMetadata


@dataclass(frozen=True, slots=True)
class RoundRobinSchedule:
    """Stripes entries over an ensemble; all sizes count bookies and never change.

    Raises:
        IncorrectParameterError (-14): unless ensemble >= write quorum >= ack quorum >= 1.
    """

    ensemble_size: int
    write_quorum_size: int
    ack_quorum_size: int

    def __post_init__(self) -> None:
        if not self.ensemble_size >= self.write_quorum_size >= self.ack_quorum_size >= 1:
            raise IncorrectParameterError(
                f"need ensemble size >= write quorum >= ack quorum >= 1, got {self.ensemble_size}, "
                f"{self.write_quorum_size}, {self.ack_quorum_size}"
            )

    @classmethod
    def of(cls, metadata: LedgerMetadata) -> "RoundRobinSchedule":
        return cls(metadata.ensemble_size, metadata.write_quorum_size, metadata.ack_quorum_size)

    @property
    def striped(self) -> bool:
        """Whether some bookie of the ensemble lacks some entries."""
        return self.ensemble_size > self.write_quorum_size

    def write_set(self, entry_id: EntryId) -> tuple[BookieIndex, ...]:
        """Ensemble indexes (0-based) that store `entry_id`, in the order to send.

        >>> RoundRobinSchedule(ensemble_size=3, write_quorum_size=2, ack_quorum_size=2).write_set(2)
        (2, 0)
        """
        assert entry_id >= 0, entry_id  # -1 means "no entry yet"; it is stored nowhere
        replicas = range(self.write_quorum_size)
        return tuple(BookieIndex((entry_id + i) % self.ensemble_size) for i in replicas)

    def next_stored(self, index: BookieIndex, entry_id: int) -> int:
        """The first entry at or after `entry_id` that belongs on `index`."""
        distance = (index - entry_id) % self.ensemble_size
        return entry_id + max(0, distance - self.write_quorum_size + 1)

    @property
    def entry_coverage(self) -> int:
        """QC: so many members of a write set meet every possible ack quorum of the entry."""
        return self.write_quorum_size - self.ack_quorum_size + 1

    def covers_ensemble(self, answered: Collection[BookieIndex]) -> bool:
        """EC: whether no ack quorum of any entry fits into the members that did not answer."""
        return self.every_write_set_has(self.entry_coverage, answered)

    def every_write_set_has(self, count: int, indexes: Collection[BookieIndex]) -> bool:
        """Whether at least `count` of `indexes` are in the write set of every possible entry."""
        return all(
            sum(index in indexes for index in self.write_set(EntryId(entry_id))) >= count
            for entry_id in range(self.ensemble_size)
        )
