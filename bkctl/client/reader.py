"""Reading a ledger: the asyncio shell around `quorum.reads` and `quorum.lac`."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from bkctl.client.bookies import BookieChooser
from bkctl.client.pool import BookiePool
from bkctl.client.settings import ClientSettings
from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    IncorrectParameterError,
    ReadError,
    RequestTimeoutError,
    UnauthorizedAccessError,
)
from bkctl.formats.entry import Digester, read_header
from bkctl.metadata.ledgers import LedgerManager
from bkctl.quorum.lac import NEGATIVE, Coverage, LacCoverage, TailPoll, lac_of_answer
from bkctl.quorum.reads import Entry, Groups, RangeRead
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    BookieIndex,
    EntryId,
    LedgerId,
    LedgerMetadata,
    Versioned,
)

FIRST_ENTRY_ID = EntryId(0)
FIRST_BATCH_ENTRIES = 16  # before anything is known of the entries' size
POLL_TIMEOUT_MS = 2_000  # of one long poll while following a ledger
_TAIL_FAILURES_MAX = 5
_TAIL_RETRY_MS = 1_000

log = logging.getLogger(__name__)

T = TypeVar("T")


class PollResult(NamedTuple):
    """`entry` None: not there (yet); `last_add_confirmed` may have advanced all the same."""

    last_add_confirmed: EntryId
    entry: Entry | None


class LedgerReader:
    """A ledger to read, from BookKeeper.open_ledger or open_ledger_no_recovery.

    Of a ledger that is not closed, only confirmed entries are read; its metadata is followed. Use as
    async context manager, or `close`.
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
    ) -> None:
        self.ledger_id = ledger_id
        self._metadata = metadata
        self._digester = digester
        self._pool = pool
        self._ledgers = ledgers
        self._chooser = chooser
        self._settings = settings
        self._schedule = RoundRobinSchedule.of(metadata.value)
        self._lac = INVALID_ENTRY_ID
        self._entry_bytes = 0  # size of recent entries, for the size of batches
        self._batches = 0
        self._batch_reads = True  # until a bookie does not know them
        self._changed = asyncio.Event()  # the metadata did
        self._stop_following: Callable[[], None] | None = None
        self.deleted = False
        self._fold_metadata()

    @property
    def metadata(self) -> LedgerMetadata:
        """As last seen in the store."""
        return self._metadata.value

    @property
    def closed(self) -> bool:
        """Whether the ledger's end is final."""
        return self.metadata.closed

    @property
    def last_add_confirmed(self) -> EntryId:
        """The last entry that may be read; -1: none. Final if `closed`."""
        return self._lac

    @property
    def length(self) -> int:
        """Payload bytes of a closed ledger; 0 while it is open."""
        return self.metadata.length if self.closed else 0

    # -- metadata --------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Follow the ledger's metadata until it is closed or deleted, or this reader is closed."""
        if not self.closed and self._stop_following is None:
            self._stop_following = await self._ledgers.watch(self.ledger_id, self._metadata_changed)

    def _metadata_changed(self, metadata: Versioned[LedgerMetadata] | None) -> None:
        if metadata is None:
            self.deleted = True
        elif metadata.version > self._metadata.version:
            self._metadata = metadata
            self._fold_metadata()
        else:
            return
        self._changed.set()
        if self.closed or self.deleted:
            self._unfollow()

    def _fold_metadata(self) -> None:
        if self.closed:
            self._lac = self.metadata.last_entry_id
        else:  # entries of earlier segments were confirmed before the last segment began
            self._advance(EntryId(self.metadata.last_segment.first_entry_id - 1))

    def _advance(self, lac: EntryId) -> None:
        if not self.closed:
            self._lac = max(self._lac, lac)

    def _unfollow(self) -> None:
        if self._stop_following is not None:
            self._stop_following()
            self._stop_following = None

    # -- entries ---------------------------------------------------------------------------------

    async def read(self, first: EntryId, last: EntryId) -> list[Entry]:
        """Entries first..last, in order, all or an error.

        Raises:
            IncorrectParameterError: unless 0 <= first <= last.
            ReadError: `last` is not confirmed; or the error of an entry that no replica could give.
        """
        _check_range(first, last)
        if last > self._lac:
            raise ReadError(
                f"ledger {self.ledger_id}: entry {last} is not confirmed, the last one that is: {self._lac}"
            )
        return await self.read_unconfirmed(first, last)

    async def read_unconfirmed(self, first: EntryId, last: EntryId) -> list[Entry]:
        """As `read`, without regard to what is confirmed: such entries may vanish again."""
        _check_range(first, last)
        found: list[Entry] = []
        async with aclosing(self._batches_of(first, last)) as batches:
            async for batch in batches:
                found += batch
        return found

    async def entries(
        self,
        first: EntryId = FIRST_ENTRY_ID,
        last: EntryId | None = None,
    ) -> AsyncGenerator[Entry, None]:
        """Entries first..last (None: the last confirmed now), read ahead within bounds."""
        last = self._lac if last is None else last
        if last < first:
            return
        _check_range(first, last)
        if last > self._lac:
            raise ReadError(
                f"ledger {self.ledger_id}: entry {last} is not confirmed, the last one that is: {self._lac}"
            )
        async with aclosing(self._batches_of(first, last)) as batches:
            async for batch in batches:
                for entry in batch:
                    yield entry

    async def _batches_of(self, first: EntryId, last: EntryId) -> AsyncGenerator[list[Entry], None]:
        """Batches in order; some are on their way while one is consumed."""
        running: deque[asyncio.Task[list[Entry]]] = deque()
        next_id = first
        try:
            while next_id <= last or running:
                while next_id <= last and len(running) < self._settings.read_ahead_batches:
                    end = self._batch_end(next_id, last)
                    running.append(asyncio.create_task(self._read_batch(next_id, end)))
                    next_id = EntryId(end + 1)
                    if not self._entry_bytes:
                        break  # learn the size of entries first
                batch = await running[0]
                running.popleft()
                yield batch
        finally:
            await _cancel(running)

    def _batch_end(self, first: EntryId, last: EntryId) -> EntryId:
        """The last entry of the batch that begins at `first`: of one segment, of about the set size."""
        count = FIRST_BATCH_ENTRIES
        if self._entry_bytes:
            count = max(1, self._settings.read_batch_bytes // self._entry_bytes)
        end = min(last, first + min(count, self._settings.read_batch_entries) - 1)
        for segment in self.metadata.segments:
            if first < segment.first_entry_id <= end:
                return EntryId(segment.first_entry_id - 1)
        return EntryId(end)

    async def _read_batch(self, first: EntryId, last: EntryId) -> list[Entry]:
        ensemble = self.metadata.segment_at(first).ensemble
        quarantined = self._chooser.quarantined()
        read = RangeRead(
            self._schedule,
            self._digester,
            self.ledger_id,
            first,
            last,
            start_index=self._batches,
            avoid=[BookieIndex(index) for index, b in enumerate(ensemble) if b in quarantined],
        )
        self._batches += 1
        await self._run(read, ensemble)
        for index, entry_id in read.digest_mismatches:
            log.warning(
                "ledger %d entry %d: bad digest on bookie %s", self.ledger_id, entry_id, ensemble[index]
            )
        if read.error is not None:
            raise read.error
        entries = read.entries()
        self._entry_bytes = max(1, sum(len(entry.payload) for entry in entries) // len(entries))
        self._advance(max(entry.last_add_confirmed for entry in entries))
        return entries

    async def _run(self, read: RangeRead, ensemble: tuple[BookieId, ...]) -> None:
        running: set[asyncio.Task[Groups]] = set()

        async def ask(index: BookieIndex, entry_ids: list[EntryId]) -> Groups:
            return read.answered(index, entry_ids, await self._ask(ensemble[index], entry_ids))

        def start(groups: Groups) -> None:
            running.update(asyncio.create_task(ask(*group)) for group in groups.items())

        start(read.start())
        wait_s = self._settings.speculative_read_timeout_ms / 1000
        try:
            while not read.done:
                done, _ = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    start(read.speculate())
                    wait_s *= 2
                for task in done:
                    running.discard(task)
                    start(task.result())
        finally:
            await _cancel(running)

    async def _ask(self, bookie_id: BookieId, entry_ids: list[EntryId]) -> Sequence[bytes | BookKeeperError]:
        """A body or an error for each entry; runs by batch reads, as long as the bookies know them."""
        channel = self._pool.channel(bookie_id)
        found: list[bytes | BookKeeperError] = []
        refused = False
        if len(entry_ids) > 1 and entry_ids[-1] - entry_ids[0] == len(entry_ids) - 1 and self._batch_reads:
            try:
                while len(found) < len(entry_ids):
                    rest = len(entry_ids) - len(found)
                    limit = self._settings.frame_bytes_max
                    found += await channel.batch_read(self.ledger_id, entry_ids[len(found)], rest, limit)
                return found
            except BookieHandleNotAvailableError:  # it is down, or older than 4.17
                refused = True
            except BookKeeperError:  # of one entry: which one it is, single reads tell
                pass
        try:
            found += await channel.read_entries(self.ledger_id, entry_ids[len(found) :])
        except BookKeeperError as error:
            self._chooser.report_failure(bookie_id)
            return found + [error] * (len(entry_ids) - len(found))
        self._batch_reads = self._batch_reads and not refused
        return found

    # -- last add confirmed ----------------------------------------------------------------------

    async def read_last_add_confirmed(self) -> EntryId:
        """Ask the bookies. Raises ReadError, RequestTimeoutError, UnauthorizedAccessError."""
        if self.closed:
            return self._lac
        coverage = LacCoverage(self._schedule)
        async with aclosing(self._lac_answers()) as answers:
            async for index, lac in answers:
                if isinstance(lac, BookKeeperError):
                    coverage.failed(index, lac)
                else:
                    coverage.answered(index, lac)
                if coverage.state is not Coverage.PENDING:
                    break
        if coverage.state is not Coverage.COVERED:
            raise _read_failure(self.ledger_id, coverage.error)
        self._advance(coverage.last_add_confirmed)
        return self._lac

    async def try_read_last_add_confirmed(self) -> EntryId:
        """As `read_last_add_confirmed`, content with the first bookie that has news, or with any answer.

        A later entry may be confirmed already. Raises ReadError, RequestTimeoutError,
        UnauthorizedAccessError: no bookie answered.
        """
        if self.closed:
            return self._lac
        heard, failure = False, None
        async with aclosing(self._lac_answers()) as answers:
            async for _index, lac in answers:
                if not isinstance(lac, BookKeeperError):
                    if lac > self._lac:
                        self._advance(lac)
                        return self._lac
                    heard = True
                elif isinstance(lac, NEGATIVE):
                    heard = True
                else:
                    failure = lac
        if not heard:
            raise _read_failure(self.ledger_id, failure)
        return self._lac

    async def _lac_answers(self) -> AsyncGenerator[tuple[BookieIndex, EntryId | BookKeeperError], None]:
        """What the bookies of the last segment know of the LAC, as it comes."""
        ensemble = self.metadata.last_segment.ensemble

        async def ask(index: int) -> tuple[BookieIndex, EntryId | BookKeeperError]:
            try:
                answer = await self._pool.channel(ensemble[index]).read_lac(self.ledger_id)
                return BookieIndex(index), lac_of_answer(self._digester, self.ledger_id, *answer)
            except BookKeeperError as error:
                return BookieIndex(index), error

        async with aclosing(_as_completed([ask(index) for index in range(len(ensemble))])) as answers:
            async for answer in answers:
                yield answer

    async def poll(self, entry_id: EntryId, timeout_ms: int) -> PollResult:
        """Wait for `entry_id` to be confirmed, `timeout_ms` at most.

        Returns early, without the entry, when the last add confirmed or the metadata changed.
        Raises ReadError, RequestTimeoutError, UnauthorizedAccessError.
        """
        if entry_id < 0:
            raise IncorrectParameterError(f"entry {entry_id}: ids begin at 0")
        if entry_id <= self._lac:
            return PollResult(self._lac, (await self.read(entry_id, entry_id))[0])
        if self.closed or self.deleted:
            return PollResult(self._lac, None)
        self._changed.clear()
        poll = asyncio.create_task(self._poll_bookies(entry_id, timeout_ms))
        change = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait((poll, change), return_when=asyncio.FIRST_COMPLETED)
            entry = poll.result() if poll.done() else None
        finally:
            await _cancel((poll, change))
        return PollResult(self._lac, entry)

    async def _poll_bookies(self, entry_id: EntryId, timeout_ms: int) -> Entry | None:
        ensemble = self.metadata.last_segment.ensemble
        poll = TailPoll(self._schedule, EntryId(entry_id - 1))

        async def ask(index: int) -> tuple[BookieIndex, EntryId | BookKeeperError, Entry | None]:
            entry = None
            try:
                channel = self._pool.channel(ensemble[index])
                answer = await channel.long_poll(self.ledger_id, entry_id - 1, timeout_ms)
                if answer.body:
                    payload = self._digester.open_entry(answer.body, self.ledger_id, entry_id)
                    header = read_header(answer.body)
                    entry = Entry(entry_id, payload, EntryId(header.lac), header.length)
            except BookKeeperError as error:
                log.info("ledger %d: long poll of bookie %s: %s", self.ledger_id, ensemble[index], error)
                return BookieIndex(index), error, None
            lac = INVALID_ENTRY_ID if answer.max_lac is None else EntryId(answer.max_lac)
            return BookieIndex(index), lac, entry

        first = entry_id % len(ensemble)  # a bookie that stores the entry, if it can be told
        order = [(first + i) % len(ensemble) for i in range(len(ensemble))]
        async with aclosing(_as_completed([ask(index) for index in order])) as answers:
            async for index, lac, entry in answers:
                if isinstance(lac, BookKeeperError):
                    over = poll.failed(index, lac)
                else:
                    over = poll.answered(index, lac)
                    self._advance(lac)
                if entry is not None and self._lac >= entry_id:
                    return entry
                if over:
                    break
        if poll.error is not None:
            raise _read_failure(self.ledger_id, poll.error)
        return None

    async def tail(self, first: EntryId = FIRST_ENTRY_ID) -> AsyncGenerator[Entry, None]:
        """Entries from `first` on, as they are confirmed, until the ledger is closed or deleted."""
        await self.follow()
        next_id, failures = first, 0
        while not self.deleted:
            async with aclosing(self.entries(next_id)) as entries:
                async for entry in entries:
                    yield entry
                    next_id = EntryId(entry.entry_id + 1)
            if next_id <= self._lac:
                continue
            if self.closed:
                return
            try:
                polled = await self.poll(next_id, POLL_TIMEOUT_MS)
            except (ReadError, RequestTimeoutError) as error:
                failures += 1
                if failures == _TAIL_FAILURES_MAX:
                    raise
                log.info("ledger %d: long poll failed, trying again: %s", self.ledger_id, error)
                await asyncio.sleep(_TAIL_RETRY_MS / 1000)
                continue
            failures = 0
            if polled.entry is not None:
                yield polled.entry
                next_id = EntryId(next_id + 1)

    # -- the end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop following the metadata. The ledger stays as it is."""
        self._unfollow()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _check_range(first: EntryId, last: EntryId) -> None:
    if not 0 <= first <= last:
        raise IncorrectParameterError(f"entries {first}..{last}: need 0 <= first <= last")


def _read_failure(ledger_id: LedgerId, error: BookKeeperError | None) -> BookKeeperError:
    if isinstance(error, RequestTimeoutError | UnauthorizedAccessError):
        return error
    return ReadError(f"ledger {ledger_id}: too few bookies know its last add confirmed: {error}")


async def _as_completed(coroutines: list[Coroutine[Any, Any, T]]) -> AsyncGenerator[T, None]:
    """Results in the order in which they come; what still runs at the end is cancelled."""
    running = {asyncio.create_task(coroutine) for coroutine in coroutines}
    try:
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        await _cancel(running)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
