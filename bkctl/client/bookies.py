"""Which bookies to use: the writable ones in random order, those that failed lately last.

Source: spec replication section 4 (quarantine), section 6.3.
"""

import asyncio
import random
from collections.abc import Mapping

from bkctl.metadata.registration import RegistrationClient
from bkctl.quorum.placement import choose_ensemble, choose_replacements
from bkctl.types import BookieId, BookieIndex


class BookieChooser:
    """Shared by all ledgers of a client, so that one learns from the failures of another."""

    def __init__(self, registration: RegistrationClient, quarantine_ms: int) -> None:
        self._registration = registration
        self._quarantine_ms = quarantine_ms
        self._failed_until: dict[BookieId, float] = {}  # on the clock of the loop

    def report_failure(self, bookie_id: BookieId) -> None:
        """Choose others first, for a while."""
        until = asyncio.get_running_loop().time() + self._quarantine_ms / 1000
        self._failed_until[bookie_id] = until

    def quarantined(self) -> set[BookieId]:
        now = asyncio.get_running_loop().time()
        self._failed_until = {b: until for b, until in self._failed_until.items() if until > now}
        return set(self._failed_until)

    async def ensemble(self, ensemble_size: int) -> tuple[BookieId, ...]:
        """Bookies for a new ledger. Raises NotEnoughBookiesError, MetadataStoreError."""
        return choose_ensemble(await self.writable(), ensemble_size, self.quarantined())

    async def replacements(
        self, failed: Mapping[BookieIndex, BookieId], exclude: frozenset[BookieId]
    ) -> dict[BookieIndex, BookieId]:
        """A bookie for as many of the indexes as there are. Raises MetadataStoreError."""
        for bookie_id in failed.values():
            self.report_failure(bookie_id)
        return choose_replacements(await self.writable(), failed, exclude, self.quarantined())

    async def writable(self) -> list[BookieId]:
        """All bookies registered as writable, in random order. Raises MetadataStoreError."""
        writable = await self._registration.writable()
        random.shuffle(writable)
        return writable
