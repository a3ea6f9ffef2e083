"""Carrying out the slow actions of the replication machines: metadata writes, choice of bookies.

Source: spec replication sections 3 and 6.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from bkctl.client.bookies import BookieChooser
from bkctl.errors import BkctlError, MetadataLostError, MetadataUnreachableError, MetadataVersionError
from bkctl.metadata.ledgers import LedgerManager
from bkctl.quorum.actions import Action, ChooseReplacements, WriteMetadata
from bkctl.types import BookieId, BookieIndex, LedgerId, LedgerMetadata, Versioned

REREAD_ATTEMPTS = 10  # after a write whose outcome is unknown
REREAD_DELAY_MS = 1_000
_OUTCOME_UNKNOWN = (MetadataUnreachableError, MetadataLostError)

log = logging.getLogger(__name__)


class Machine(Protocol):
    """What LedgerAdds and LedgerRecovery have in common."""

    def replacements_chosen(self, chosen: Mapping[BookieIndex, BookieId]) -> list[Action]: ...
    def metadata_written(self, version: int) -> list[Action]: ...
    def metadata_conflict(self, current: Versioned[LedgerMetadata]) -> list[Action]: ...
    def metadata_failed(self, error: BkctlError) -> list[Action]: ...


class SlowActions:
    """Tasks that do what `machine` asks for; `perform` gets the actions that follow."""

    def __init__(
        self,
        machine: Machine,
        ledger_id: LedgerId,
        ledgers: LedgerManager,
        chooser: BookieChooser,
        perform: Callable[[Callable[[], list[Action]]], None],
    ) -> None:
        self._machine = machine
        self._ledger_id = ledger_id
        self._ledgers = ledgers
        self._chooser = chooser
        self._perform = perform
        self._tasks: set[asyncio.Task[None]] = set()

    def write_metadata(self, action: WriteMetadata) -> None:
        self.start(self._write(action))

    def choose_replacements(self, action: ChooseReplacements) -> None:
        self.start(self._choose(action))

    async def cancel(self) -> None:
        """End what is still running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run in the background, until it ends or `cancel`."""
        task = asyncio.create_task(coroutine, name=f"ledger {self._ledger_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _choose(self, action: ChooseReplacements) -> None:
        machine = self._machine
        try:
            chosen = await self._chooser.replacements(action.failed, action.exclude)
        except BkctlError as error:
            self._perform(partial(machine.metadata_failed, error))
        else:
            self._perform(partial(machine.replacements_chosen, chosen))

    async def _write(self, action: WriteMetadata) -> None:
        machine = self._machine
        try:
            stored = await self._ledgers.write(self._ledger_id, action.metadata, action.version)
        except (MetadataVersionError, *_OUTCOME_UNKNOWN) as error:
            log.info("ledger %d: reading its metadata again: %s", self._ledger_id, error)
            self._perform(await self._reread())
        except BkctlError as error:
            self._perform(partial(machine.metadata_failed, error))
        else:
            self._perform(partial(machine.metadata_written, stored.version))

    async def _reread(self) -> Callable[[], list[Action]]:
        """The event to report, after trying for a while."""
        attempt = 1
        while True:
            try:
                return partial(self._machine.metadata_conflict, await self._ledgers.read(self._ledger_id))
            except BkctlError as error:
                if attempt == REREAD_ATTEMPTS or not isinstance(error, _OUTCOME_UNKNOWN):
                    return partial(self._machine.metadata_failed, error)
                log.info("ledger %d: cannot read its metadata yet: %s", self._ledger_id, error)
            attempt += 1
            await asyncio.sleep(REREAD_DELAY_MS / 1000)
