"""Writing to a ledger: the asyncio shell around `quorum.adds`.

All appends of one turn of the event loop leave as one batch. Nothing here costs per entry but the
future of a single `append`; `append_many` has one future per call.
"""

import asyncio
import logging
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from types import TracebackType
from typing import Any, Self

from bkctl.client.bookies import BookieChooser
from bkctl.client.channel import BookieChannel
from bkctl.client.late import LateBookies, OldestAdd
from bkctl.client.pool import BookiePool
from bkctl.client.settings import ClientSettings
from bkctl.client.tasks import SlowActions
from bkctl.errors import (
    BkctlError,
    BookKeeperError,
    ClientClosedError,
    IllegalOperationError,
    IncorrectParameterError,
    LedgerClosedError,
    RequestTimeoutError,
    TooManyRequestsError,
    UnexpectedConditionError,
)
from bkctl.formats.entry import Digester
from bkctl.metadata.ledgers import LedgerManager
from bkctl.quorum.actions import (
    Acked,
    Action,
    ChooseReplacements,
    CloseDone,
    EnsembleChanged,
    Failed,
    SendAdds,
    WriteMetadata,
)
from bkctl.quorum.adds import LedgerAdds, Payload, WriterState
from bkctl.quorum.pending import entries_in
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieId, EntryId, LedgerId, LedgerMetadata, Versioned

BLOCK_ENTRIES_MAX = 1_000  # packed, sent and resent as one
BLOCK_BYTES_MAX = 1024 * 1024
RETRY_S_MAX = 30  # between attempts with bookies that failed and have no replacement
_LAG_POLL_MS = 10

log = logging.getLogger(__name__)

Outcome = asyncio.Future[Any]


class LedgerWriter:
    """The one writer of a ledger, from BookKeeper.create_ledger.

    Adds succeed in the order of their ids. After a failed add the handle takes no more; the entry
    may nevertheless appear when the ledger is recovered. Use as async context manager, or `close`.
    """

    def __init__(
        self,
        ledger_id: LedgerId,
        metadata: Versioned[LedgerMetadata],
        digester: Digester,
        *,
        pool: BookiePool,
        ledgers: LedgerManager,
        chooser: BookieChooser,
        settings: ClientSettings,
        deferred_sync: bool = False,
        advanced: bool = False,
    ) -> None:
        self.ledger_id = ledger_id
        self._digester = digester
        self._pool = pool
        self._chooser = chooser
        self._settings = settings
        self._deferred_sync = deferred_sync
        self._adds = LedgerAdds(
            ledger_id,
            metadata,
            digester,
            advanced=advanced,
            deferred_sync=deferred_sync,
            ensemble_changes_max=settings.ensemble_changes_max,
            delay_ensemble_change=settings.delay_ensemble_change,
            frame_bytes_max=settings.frame_bytes_max,
        )
        self._payload_bytes_max = digester.payload_bytes_max(settings.frame_bytes_max)
        self._loop = asyncio.get_running_loop()
        self._slow = SlowActions(self._adds, ledger_id, ledgers, chooser, self._perform)
        self._channels: dict[BookieId, BookieChannel] = {}
        self._queue: list[Payload] = []  # of this turn of the event loop
        self._queue_bytes = 0
        self._queue_outcomes: list[tuple[int, Outcome, bool]] = []  # (payloads, future, single)
        self._outcomes: deque[tuple[int, Outcome, Any]] = deque()  # (last entry, future, result)
        self._room_waiters: list[asyncio.Future[None]] = []
        self._lagging = False
        self._closed: asyncio.Future[BkctlError | None] = self._loop.create_future()
        self._late = LateBookies(settings.add_timeout_ms, self._adds.behind)
        self._retry_s = self._late.interval_s
        self._retry_at = 0.0
        self._timer = self._loop.call_later(self._late.interval_s, self._check_late)
        self._quorum_timer: asyncio.TimerHandle | None = None
        if settings.add_quorum_timeout_ms:
            self._check_quorum(OldestAdd(settings.add_quorum_timeout_ms))
        self._lac_timer: asyncio.TimerHandle | None = None
        if settings.explicit_lac_interval_ms:
            self._schedule_lac()

    @property
    def metadata(self) -> LedgerMetadata:
        """As last seen in the store."""
        return self._adds.metadata

    @property
    def last_add_confirmed(self) -> EntryId:
        return self._adds.last_add_confirmed

    @property
    def last_add_pushed(self) -> EntryId:
        return self._adds.last_add_pushed

    @property
    def length(self) -> int:
        """Payload bytes of all adds that did not fail, pending ones included."""
        return self._adds.length

    @property
    def ensemble_changes(self) -> int:
        return self._adds.ensemble_changes

    @property
    def closed(self) -> bool:
        """Whether the handle takes no adds any more."""
        return self._adds.state not in (WriterState.OPEN, WriterState.CHANGING)

    # -- adding ----------------------------------------------------------------------------------

    def append(self, payload: Payload) -> "asyncio.Future[EntryId]":
        """Add an entry; the future gives its id once an ack quorum stores it.

        Raises:
            TooManyRequestsError: too much is outstanding; `await wait_writable()` first.
            LedgerClosedError: the handle is closed or failed.
            IncorrectParameterError: the payload does not fit a frame.
        """
        return self._enqueue((payload,), len(payload), single=True)

    def append_many(self, payloads: Sequence[Payload]) -> "asyncio.Future[tuple[EntryId, EntryId]]":
        """Add entries with consecutive ids; the future gives the first and the last id.

        They go out at once, however many: bookies may refuse more than some thousands.
        Raises as `append`. Fails as a whole if any of them fails.
        """
        if not payloads:
            raise IncorrectParameterError("no payload to add")
        sizes = list(map(len, payloads))
        if max(sizes) > self._payload_bytes_max:
            raise self._too_large(max(sizes))
        return self._enqueue(payloads, sum(sizes), single=False)

    async def add(self, payload: Payload) -> EntryId:
        """Add an entry and wait until an ack quorum stores it; waits for room first."""
        await self.wait_writable()
        return await self.append(payload)

    def _enqueue(self, payloads: Sequence[Payload], size: int, *, single: bool) -> Outcome:
        self._require_room()
        if single and size > self._payload_bytes_max:
            raise self._too_large(size)
        outcome: Outcome = self._loop.create_future()
        if not self._queue:
            self._loop.call_soon(self._flush)
        self._queue.extend(payloads)
        self._queue_bytes += size
        self._queue_outcomes.append((len(payloads), outcome, single))
        return outcome

    def _too_large(self, size: int) -> IncorrectParameterError:
        return IncorrectParameterError(
            f"entry of {size} bytes: at most {self._payload_bytes_max} fit a frame"
        )

    def _flush(self) -> None:
        """Hand what was appended in this turn of the loop to the machine, block by block."""
        queue, outcomes, size = self._queue, self._queue_outcomes, self._queue_bytes
        self._queue, self._queue_outcomes, self._queue_bytes = [], [], 0
        if not queue:
            return
        entry_id = self._adds.last_add_pushed + 1
        for count, outcome, single in outcomes:
            first, entry_id = EntryId(entry_id), entry_id + count
            result = first if single else (first, EntryId(entry_id - 1))
            self._outcomes.append((entry_id - 1, outcome, result))
        step = max(1, min(BLOCK_ENTRIES_MAX, len(queue) * BLOCK_BYTES_MAX // max(1, size)))
        try:
            for start in range(0, len(queue), step):
                block = queue[start : start + step]
                self._perform(partial(self._add, block))
        except BookKeeperError as error:  # closed since the append
            self._fail_outcomes(self._adds.error or error)
        self._lagging = self._is_lagging()

    def _add(self, payloads: Sequence[Payload], entry_id: EntryId | None = None) -> list[Action]:
        return self._adds.add(payloads, entry_id)[1]

    # -- room ------------------------------------------------------------------------------------

    async def wait_writable(self) -> None:
        """Wait until adds are taken. Raises LedgerClosedError."""
        while not self._has_room():
            waiter = self._loop.create_future()
            self._room_waiters.append(waiter)
            if self._lagging:  # nobody tells when a slow socket has taken more
                self._loop.call_later(_LAG_POLL_MS / 1000, self._wake_room)
            await waiter
        self._require_open()

    def _has_room(self) -> bool:
        if self.closed:
            return True  # for an error
        if self._lagging:
            self._lagging = self._is_lagging()
        settings, adds = self._settings, self._adds
        return (
            adds.pending_entries + len(self._queue) < settings.outstanding_entries_max
            and adds.pending_bytes + self._queue_bytes < settings.outstanding_bytes_max
            and not self._lagging
        )

    def _is_lagging(self) -> bool:
        limit = self._settings.lagging_bytes_max
        return any(
            self._channels[b].outstanding_bytes > limit for b in self._adds.ensemble if b in self._channels
        )

    def _require_open(self) -> None:
        if self.closed:
            reason = f": {self._adds.error}" if self._adds.error else ""
            raise LedgerClosedError(f"ledger {self.ledger_id} takes no more adds{reason}")

    def _require_room(self) -> None:
        self._require_open()
        if not self._has_room():
            raise TooManyRequestsError(
                f"ledger {self.ledger_id}: {self._adds.pending_entries} adds are outstanding; "
                "await wait_writable() before adding more"
            )

    def _wake_room(self) -> None:
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- what bookies answer (AddSink) -----------------------------------------------------------

    def adds_stored(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> None:
        self._perform(partial(self._adds.stored, bookie_id, first_entry_id, last_entry_id))

    def add_failed(self, bookie_id: BookieId, entry_id: int, error: BookKeeperError) -> None:
        self._perform(partial(self._adds.failed, bookie_id, entry_id, error))

    def channel_lost(self, bookie_id: BookieId, error: BookKeeperError) -> None:
        if isinstance(error, ClientClosedError):
            self._perform(partial(self._adds.abandon, error))
        else:
            self._perform(partial(self._adds.bookie_failed, bookie_id, error))

    def _check_late(self) -> None:
        now = self._loop.time()
        for bookie_id in self._late.check(self._adds.admitted, now):
            error = RequestTimeoutError(
                f"bookie {bookie_id}: adds of ledger {self.ledger_id} unanswered "
                f"for {self._settings.add_timeout_ms} ms"
            )
            self.channel_lost(bookie_id, error)
        if not self._adds.absent:
            self._retry_s = self._late.interval_s
        elif now >= self._retry_at:  # less and less often, for bookies that come and go
            self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)
            self._retry_at = now + self._retry_s
            self._slow.start(self._retry_absent())
        if not self.closed:
            self._timer = self._loop.call_later(self._late.interval_s, self._check_late)

    def _check_quorum(self, oldest: OldestAdd) -> None:
        if oldest.overdue(self._adds.last_add_pushed, self._adds.last_acked, self._loop.time()):
            self._perform(self._adds.quorum_timed_out)
        if not self.closed:
            self._quorum_timer = self._loop.call_later(oldest.interval_s, self._check_quorum, oldest)

    async def _retry_absent(self) -> None:
        try:
            writable = await self._chooser.writable()
        except BkctlError as error:
            log.info("ledger %d: cannot list bookies: %s", self.ledger_id, error)
            return
        self._perform(partial(self._adds.retry, writable))

    # -- actions ---------------------------------------------------------------------------------

    def _perform(self, step: Callable[[], list[Action]]) -> None:
        """Take a step of the machine and do what it says. A broken law fails this handle only."""
        try:
            actions = step()
        except AssertionError as error:
            log.exception("ledger %d: a law of the writer is broken", self.ledger_id)
            actions = self._adds.abandon(
                UnexpectedConditionError(f"ledger {self.ledger_id}: internal error: {error}")
            )
        for action in actions:
            match action:
                case SendAdds():
                    self._send(action)
                case Acked():
                    self._settle(action)
                case Failed():
                    self._fail_outcomes(action.error)
                case EnsembleChanged():
                    log.info(
                        "ledger %d: ensemble from entry %d: %s",
                        self.ledger_id,
                        action.first_entry_id,
                        action.ensemble,
                    )
                    self._late.resent_to(action.resent_to, self._loop.time())
                case ChooseReplacements():
                    self._slow.choose_replacements(action)
                case WriteMetadata():
                    self._slow.write_metadata(action)
                case CloseDone():
                    self._closed.set_result(action.error)
                case _:
                    raise AssertionError(f"not an action of a writer: {action}")
        if self.closed:
            self._release()

    def _send(self, action: SendAdds) -> None:
        channel = self._channels.get(action.bookie_id)
        try:
            if channel is None:
                channel = self._pool.channel(action.bookie_id)
                channel.attach(self.ledger_id, self)
                self._channels[action.bookie_id] = channel
            if not self._deferred_sync:
                channel.send_adds(self.ledger_id, action.frames)
                return
            for entry_id, body in entries_in(action.frames):
                channel.send_deferred_adds(self.ledger_id, entry_id, [body], self._digester.master_key)
        except BookKeeperError as error:  # the client was closed, or writes this ledger twice
            self._loop.call_soon(self._perform, partial(self._adds.abandon, error))

    def _settle(self, acked: Acked) -> None:
        outcomes, last = self._outcomes, acked.last_entry_id
        while outcomes and outcomes[0][0] <= last:
            _, outcome, result = outcomes.popleft()
            if not outcome.done():
                outcome.set_result(result)
        if self._room_waiters and (self._has_room() or not self._adds.pending_entries):
            self._wake_room()

    def _fail_outcomes(self, error: BkctlError) -> None:
        outcomes, self._outcomes = self._outcomes, deque()
        for _, outcome, _ in outcomes:
            if not outcome.done():
                outcome.set_exception(error)

    def _release(self) -> None:
        """The handle takes no more: let go of timers, channels and whoever waits."""
        self._timer.cancel()
        for timer in (self._lac_timer, self._quorum_timer):
            if timer is not None:
                timer.cancel()
        for channel in self._channels.values():
            channel.detach(self.ledger_id)
        self._channels.clear()
        self._wake_room()

    # -- force, explicit LAC ---------------------------------------------------------------------

    async def force(self) -> None:
        """Make every acknowledged add durable on every bookie, and confirm it.

        Raises:
            LedgerClosedError, or the first error of a bookie.
        """
        point = self._adds.force_point()
        if point is None:
            return
        await asyncio.gather(*(self._pool.channel(b).force_ledger(self.ledger_id) for b in point.ensemble))
        self._adds.forced(point)

    def _schedule_lac(self) -> None:
        interval_s = self._settings.explicit_lac_interval_ms / 1000
        self._lac_timer = self._loop.call_later(interval_s, self._tell_lac)

    def _tell_lac(self) -> None:
        lac = self._adds.explicit_lac_due()
        if lac is not None:
            body = self._digester.pack_lac(self.ledger_id, lac)
            for index in RoundRobinSchedule.of(self.metadata).write_set(lac):
                self._slow.start(self._tell_lac_to(self._adds.ensemble[index], lac, body))
        self._schedule_lac()

    async def _tell_lac_to(self, bookie_id: BookieId, lac: EntryId, body: bytes) -> None:
        try:
            await self._pool.channel(bookie_id).write_lac(
                self.ledger_id, lac, self._digester.master_key, body
            )
        except BookKeeperError as error:  # a hint only
            log.info("ledger %d: explicit LAC %d: %s", self.ledger_id, lac, error)

    # -- the end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for the outcome of what was added, then close the ledger at its last add confirmed.

        Raises:
            LedgerFencedError: another program recovers the ledger; it decides where it ends.
            MetadataVersionError: another program closed the ledger at another entry.
            MetadataStoreError: the ledger could not be closed; recovery will do it.
        """
        self._flush()
        await self._drained()
        await self._last_copies()
        self._perform(self._adds.close)
        if self._adds.state is WriterState.WITHDRAWN:
            assert self._adds.error is not None
            raise self._adds.error
        error = await asyncio.shield(self._closed)
        if error is not None:
            raise error

    async def _drained(self) -> None:
        """Until every add has its outcome: bookies that do not answer are replaced, or end the handle."""
        while self._adds.pending_entries and not self.closed:
            waiter = self._loop.create_future()
            self._room_waiters.append(waiter)
            await waiter

    async def _last_copies(self) -> None:
        """Give bookies beyond the ack quorum a moment: once the client is gone nobody sends to them."""
        deadline = self._loop.time() + self._settings.close_linger_ms / 1000
        while self._adds.behind(self._adds.admitted) and self._loop.time() < deadline:
            await asyncio.sleep(_LAG_POLL_MS / 1000)

    async def abort(self) -> None:
        """Fail what is pending and let go, leaving the ledger open; for a client that closes."""
        error = ClientClosedError(f"ledger {self.ledger_id}: the client was closed")
        self._perform(partial(self._adds.abandon, error))
        await self._slow.cancel()
        if not self._closed.done():
            self._closed.set_result(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except BkctlError:
            if error is None:
                raise


class LedgerWriterAdv(LedgerWriter):
    """A writer whose caller chooses the entry ids; see BookKeeper.create_ledger_adv.

    Adds are acknowledged in the order of their ids from 0, so a gap holds back all later ones, and
    `close` does not wait for them. A plain `add` or `append_many` is an IllegalOperationError.
    """

    def append(self, payload: Payload, entry_id: EntryId | None = None) -> "asyncio.Future[EntryId]":
        """Add an entry under `entry_id`.

        Raises as LedgerWriter.append, and DuplicateEntryIdError.
        """
        self._require_room()
        if len(payload) > self._payload_bytes_max:
            raise self._too_large(len(payload))
        self._perform(partial(self._add, (payload,), entry_id))
        assert entry_id is not None
        outcome: Outcome = self._loop.create_future()
        insort(self._outcomes, (entry_id, outcome, entry_id), key=itemgetter(0))
        if self.closed:  # the machine gave up at this add
            assert self._adds.error is not None
            self._fail_outcomes(self._adds.error)
        return outcome

    def append_many(self, payloads: Sequence[Payload]) -> "asyncio.Future[tuple[EntryId, EntryId]]":
        raise IllegalOperationError("the caller of this ledger chooses the entry ids, one by one")

    async def add(self, payload: Payload, entry_id: EntryId | None = None) -> EntryId:
        await self.wait_writable()
        return await self.append(payload, entry_id)

    async def _drained(self) -> None:
        return  # a gap may never be filled
