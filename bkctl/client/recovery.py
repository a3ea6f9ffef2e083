"""Fencing and recovering a ledger: the asyncio shell around `quorum.recovery`."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bkctl.client.bookies import BookieChooser
from bkctl.client.channel import BookieChannel
from bkctl.client.late import LateBookies
from bkctl.client.pool import BookiePool
from bkctl.client.settings import ClientSettings
from bkctl.client.tasks import SlowActions
from bkctl.errors import (
    BkctlError,
    BookKeeperError,
    LedgerRecoveryError,
    RequestTimeoutError,
    UnexpectedConditionError,
)
from bkctl.formats.entry import Digester
from bkctl.metadata.ledgers import LedgerManager
from bkctl.quorum.actions import (
    Action,
    ChooseReplacements,
    FenceBookie,
    ReadForRecovery,
    RecoveryAborted,
    RecoveryDone,
    RecoveryOutdated,
    SendAdds,
    WriteMetadata,
)
from bkctl.quorum.recovery import LedgerRecovery
from bkctl.types import INVALID_ENTRY_ID, BookieId, EntryId, LedgerId, LedgerMetadata, Versioned

ATTEMPTS_MAX = 10  # when the ledger's segments change under the recovery

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a recovery or a fence found.

    `lac_by_bookie`: of each bookie of the last ensemble that answered, its last add confirmed (-1:
    it has no entry) or its error. `entries_rewritten` above the last add confirmed.
    """

    ledger_id: LedgerId
    metadata: Versioned[LedgerMetadata]
    lac_by_bookie: dict[BookieId, EntryId | BookKeeperError]
    entries_rewritten: int

    @property
    def last_entry_id(self) -> EntryId:
        """The end of the ledger, if it is closed; else -1."""
        return self.metadata.value.last_entry_id if self.metadata.value.closed else INVALID_ENTRY_ID


@dataclass(frozen=True, slots=True)
class RecoveryProgress:
    """Where a recovery is; `phase` is one of RecoveryState's values."""

    phase: str
    entries_rewritten: int


OnProgress = Callable[[RecoveryProgress], None]


class RecoveryRun:
    """One recovery, or fence only, by this client; call `run` once."""

    def __init__(
        self,
        ledger_id: LedgerId,
        digester: Digester,
        *,
        pool: BookiePool,
        ledgers: LedgerManager,
        chooser: BookieChooser,
        settings: ClientSettings,
        fence_only: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._ledger_id = ledger_id
        self._digester = digester
        self._pool = pool
        self._ledgers = ledgers
        self._chooser = chooser
        self._settings = settings
        self._fence_only = fence_only
        self._on_progress = on_progress
        self._progress: RecoveryProgress | None = None
        self._channels: dict[BookieId, BookieChannel] = {}

    async def run(self, metadata: Versioned[LedgerMetadata]) -> RecoveryReport:
        """Recover the ledger, whose metadata was just read.

        Raises:
            BkctlError: of whatever made it impossible; the ledger may be IN_RECOVERY, try again.
        """
        try:
            for _ in range(ATTEMPTS_MAX):
                outcome, machine = await self._attempt(metadata)
                if isinstance(outcome, RecoveryAborted):
                    raise outcome.error
                if isinstance(outcome, RecoveryDone):
                    return RecoveryReport(
                        self._ledger_id,
                        outcome.metadata,
                        machine.lac_by_bookie,
                        machine.entries_rewritten,
                    )
                log.info("ledger %d: its segments changed, recovering again", self._ledger_id)
                metadata = outcome.current
            raise LedgerRecoveryError(f"ledger {self._ledger_id}: its segments keep changing")
        finally:
            for channel in self._channels.values():
                channel.detach(self._ledger_id)

    async def _attempt(
        self, metadata: Versioned[LedgerMetadata]
    ) -> tuple[RecoveryDone | RecoveryAborted | RecoveryOutdated, LedgerRecovery]:
        self._machine = machine = LedgerRecovery(
            self._ledger_id,
            metadata,
            self._digester,
            fence_only=self._fence_only,
            frame_bytes_max=self._settings.frame_bytes_max,
        )
        self._outcome: asyncio.Future[RecoveryDone | RecoveryAborted | RecoveryOutdated] = (
            asyncio.get_running_loop().create_future()
        )
        self._slow = SlowActions(machine, self._ledger_id, self._ledgers, self._chooser, self._perform)
        self._late = LateBookies(self._settings.add_timeout_ms, machine.behind)
        self._slow.start(self._check_late())
        try:
            self._perform(machine.start)
            return await self._outcome, machine
        finally:
            await self._slow.cancel()

    # -- what bookies answer (AddSink) -----------------------------------------------------------

    def adds_stored(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> None:
        self._perform(partial(self._machine.stored, bookie_id, first_entry_id, last_entry_id))

    def add_failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> None:
        self._perform(partial(self._machine.failed, bookie_id, entry_id, error))

    def channel_lost(self, bookie_id: BookieId, error: BookKeeperError) -> None:
        self._perform(partial(self._machine.bookie_failed, bookie_id, error))

    async def _check_late(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for bookie_id in self._late.check(self._machine.admitted, loop.time()):
                error = RequestTimeoutError(
                    f"bookie {bookie_id}: recovery adds of ledger {self._ledger_id} unanswered "
                    f"for {self._settings.add_timeout_ms} ms"
                )
                self.channel_lost(bookie_id, error)
            await asyncio.sleep(self._late.interval_s)

    # -- actions ---------------------------------------------------------------------------------

    def _perform(self, step: Callable[[], list[Action]]) -> None:
        if self._outcome.done():
            return
        try:
            actions = step()
        except AssertionError as error:
            log.exception("ledger %d: a law of recovery is broken", self._ledger_id)
            actions = [
                RecoveryAborted(
                    UnexpectedConditionError(f"ledger {self._ledger_id}: internal error: {error}")
                )
            ]
        for action in actions:
            match action:
                case SendAdds():
                    self._send(action)
                case ReadForRecovery():
                    for entry_id in action.entry_ids:
                        self._slow.start(self._read(action, entry_id))
                case FenceBookie():
                    self._slow.start(self._fence(action))
                case ChooseReplacements():
                    self._slow.choose_replacements(action)
                case WriteMetadata():
                    self._slow.write_metadata(action)
                case RecoveryDone() | RecoveryAborted() | RecoveryOutdated():
                    self._outcome.set_result(action)
                case _:
                    raise AssertionError(f"not an action of a recovery: {action}")
        self._report()

    def _report(self) -> None:
        progress = RecoveryProgress(self._machine.state.value, self._machine.entries_rewritten)
        if self._on_progress is not None and progress != self._progress:
            self._progress = progress
            self._on_progress(progress)

    def _send(self, action: SendAdds) -> None:
        bookie_id = action.bookie_id
        try:
            if bookie_id not in self._channels:
                channel = self._pool.channel(bookie_id, recovery=True)
                channel.attach(self._ledger_id, self)
                self._channels[bookie_id] = channel
                # The time of a bookie that joins begins now, whatever others have been sent before.
                self._late.resent_to([bookie_id], asyncio.get_running_loop().time())
            self._channels[bookie_id].send_adds(self._ledger_id, action.frames)
        except BookKeeperError as error:
            asyncio.get_running_loop().call_soon(self._perform, partial(_abort, error))

    async def _fence(self, action: FenceBookie) -> None:
        answer: bytes | BookKeeperError
        try:
            channel = self._pool.channel(action.bookie_id, recovery=True)
            answer = await channel.read_last(self._ledger_id, fence_key=self._digester.master_key)
        except BookKeeperError as error:
            answer = error
        self._perform(partial(self._machine.fenced, action.bookie_index, answer))

    async def _read(self, action: ReadForRecovery, entry_id: EntryId) -> None:
        answer: bytes | BookKeeperError
        try:
            channel = self._pool.channel(action.bookie_id, recovery=True)
            answer = await channel.read_entry(
                self._ledger_id, entry_id, fence_key=self._digester.master_key, high_priority=True
            )
        except BookKeeperError as error:
            answer = error
        self._perform(partial(self._machine.entry_read, action.bookie_index, entry_id, answer))


def _abort(error: BkctlError) -> list[Action]:
    return [RecoveryAborted(error)]
