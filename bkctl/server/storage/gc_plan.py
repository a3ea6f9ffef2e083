"""Which ledgers of a bookie are garbage: those that the metadata store no longer knows.

Laws. An iterator that ends early or out of order would make a bookie delete live data, so
- ranges must ascend strictly, within and between them, else everything is refused;
- nothing is garbage before the iteration has ended without an error (`finish`);
- only ledgers that were on the bookie before the iteration began are looked at.

Source: spec metadata section 5; upstream ScanAndCompareGarbageCollector.
"""

from collections.abc import Iterable, Sequence

from bkctl.errors import CorruptDataError
from bkctl.types import LedgerId


class GarbagePlan:
    """Feed it every range of ledger ids of the metadata store, then `finish`."""

    def __init__(self, local_ledgers: Iterable[LedgerId]) -> None:
        self._unseen = set(local_ledgers)
        self._last_id = -1

    def add_range(self, ledger_ids: Sequence[LedgerId]) -> None:
        """The next range of live ledgers. Raises CorruptDataError unless ids ascend."""
        for ledger_id in ledger_ids:
            if ledger_id <= self._last_id:
                raise CorruptDataError(f"ledger {ledger_id} is listed after ledger {self._last_id}")
            self._last_id = ledger_id
        self._unseen.difference_update(ledger_ids)

    def finish(self) -> list[LedgerId]:
        """The garbage, ascending."""
        return sorted(self._unseen)
