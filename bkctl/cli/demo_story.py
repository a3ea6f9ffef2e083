"""The acts of `bkctl demo`.

Three bookies, a ledger with a copy of each entry on two of them. One of the two is killed while
entries stream in, and the third takes its place. A second client fences the writer and closes the
ledger. The killed bookie comes back, and every entry is read from every bookie that must store it,
its digest and its content checked.
"""

import asyncio
import hashlib
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from bkctl.cli.cluster_state import ClusterState, write_state
from bkctl.cli.local_cluster import LocalBookie, LocalCluster, free_ports
from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.writer import LedgerWriter
from bkctl.errors import BkctlError, BookKeeperError, LedgerFencedError
from bkctl.formats.entry import Digester
from bkctl.types import BookieId, DigestType, EntryId, LedgerId

_PASSWORD = b"demo"
_DIGEST = DigestType.CRC32C
_ENTRY_BYTES = 1024
_BATCH = 50
_PAUSE_S = 0.004  # between batches: a stream, not a flood of a stranger's disk
_ENTRIES_PER_ACT = 5_000
_VERIFY_BATCH = 500
_ACT_TIMEOUT_S = 25.0


@dataclass(frozen=True, slots=True)
class Act:
    """`state` is ok or failed; `detail` says what was seen, or what did not hold."""

    title: str
    state: str
    seconds: float
    detail: str


async def tell(directory: Path, on_act: Callable[[Act], None], *, keep: bool) -> None:
    """Play all acts, up to the first that fails. The bookies end with it unless `keep`."""
    cluster = LocalCluster(directory, free_ports(3), lambda line: None)
    kept = False
    try:
        if await _played("three bookies start on this machine", _start(cluster), on_act):
            uri = cluster.metadata_uri
            async with await BookKeeper.connect(uri) as mine, await BookKeeper.connect(uri) as rival:
                await Story(cluster, mine, rival).play(on_act)
        if keep:
            bookies = tuple(bookie.state() for bookie in cluster.bookies)
            write_state(directory, ClusterState(cluster.metadata_uri, bookies, temporary=True))
            kept = True
    finally:
        if not kept:
            await cluster.stop()


async def _start(cluster: LocalCluster) -> str:
    await cluster.start()
    return ", ".join(bookie.bookie_id for bookie in cluster.bookies)


async def _played(title: str, act: Awaitable[str], on_act: Callable[[Act], None]) -> bool:
    """Whether the act held."""
    began = time.monotonic()
    state = "failed"
    try:
        async with asyncio.timeout(_ACT_TIMEOUT_S):
            detail = await act
        state = "ok"
    except TimeoutError:
        detail = f"not done after {_ACT_TIMEOUT_S:g} s"
    except BkctlError as error:
        detail = f"{type(error).__name__}: {error}"
    on_act(Act(title, state, time.monotonic() - began, detail))
    return state == "ok"


def payload_of(entry_id: int) -> bytes:
    """The content that the demo gives an entry, so that it can be checked without being kept."""
    return hashlib.sha256(b"bkctl demo %d" % entry_id).digest() * (_ENTRY_BYTES // 32)


def _must(held: bool, otherwise: str) -> None:
    if not held:
        raise BkctlError(otherwise)


@dataclass(slots=True)
class Stream:
    """Entries going into a ledger, until the writer is stopped from outside."""

    writer: LedgerWriter
    acknowledged: EntryId = field(default=EntryId(-1))
    error: BookKeeperError | None = None

    async def run(self) -> None:
        """Ends with the error that stopped it, in `error`."""
        pending: list[asyncio.Future[tuple[EntryId, EntryId]]] = []
        first = 0
        try:
            while True:
                await self.writer.wait_writable()
                pending.append(self.writer.append_many([payload_of(first + i) for i in range(_BATCH)]))
                first += _BATCH
                await asyncio.sleep(_PAUSE_S)
                while pending and pending[0].done():
                    _, self.acknowledged = pending.pop(0).result()
        except BookKeeperError as error:
            stopped = error
        for outcome in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(outcome, BookKeeperError):
                stopped = outcome  # the adds know the reason; `wait_writable` only that it is over
                break
            assert not isinstance(outcome, BaseException), outcome
            _, self.acknowledged = outcome
        self.error = stopped

    async def reaches(self, entry_id: int) -> None:
        """Wait until `entry_id` is acknowledged. Raises what stopped the stream before."""
        while self.acknowledged < entry_id:
            if self.error is not None:
                raise self.error
            await asyncio.sleep(_PAUSE_S)


class Story:
    """What happens once the bookies run; each act returns a line on what was seen."""

    def __init__(self, cluster: LocalCluster, mine: BookKeeper, rival: BookKeeper) -> None:
        self._cluster = cluster
        self._mine = mine
        self._rival = rival
        self._stream: Stream
        self._killed: BookieId
        self._end = EntryId(-1)

    async def play(self, on_act: Callable[[Act], None]) -> None:
        acts = (
            ("a writer streams entries to two of them", self._write),
            ("one of the two is killed, mid-write", self._kill),
            ("the third takes its place, and writing goes on", self._change),
            ("a second client fences the writer and closes the ledger", self._fence),
            ("a third client reads everything up to the same end", self._read),
            ("the killed bookie comes back and replays its journal", self._restart),
            ("every copy of every entry is verified", self._verify),
        )
        self._stream = Stream(
            await self._mine.create_ledger(
                ensemble_size=2,
                write_quorum_size=2,
                ack_quorum_size=2,
                digest_type=_DIGEST,
                password=_PASSWORD,
            )
        )
        writing = asyncio.create_task(self._stream.run())
        try:
            for title, act in acts:
                if not await _played(title, act(), on_act):
                    return
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    @property
    def _ledger_id(self) -> LedgerId:
        return self._stream.writer.ledger_id

    async def _write(self) -> str:
        await self._stream.reaches(_ENTRIES_PER_ACT)
        ensemble = " and ".join(self._stream.writer.metadata.last_segment.ensemble)
        lac = self._stream.writer.last_add_confirmed
        return f"ledger {self._ledger_id} on {ensemble}: LAC {lac:,}"

    async def _kill(self) -> str:
        self._killed = self._stream.writer.metadata.last_segment.ensemble[0]
        bookie = self._bookie(self._killed)
        pid = bookie.pid
        bookie.signal(signal.SIGKILL)
        await bookie.wait()
        return f"kill -9 {pid}: bookie {self._killed} is gone"

    async def _change(self) -> str:
        before = self._stream.acknowledged
        await self._stream.reaches(before + _ENTRIES_PER_ACT)
        metadata = (await self._mine.metadata.ledgers.read(self._ledger_id)).value
        segment = metadata.last_segment
        _must(len(metadata.segments) == 2, f"expected two segments, found {len(metadata.segments)}")
        _must(self._killed not in segment.ensemble, f"the ensemble still is {segment.ensemble}")
        ensemble = " and ".join(segment.ensemble)
        lac = self._stream.writer.last_add_confirmed
        return f"from entry {segment.first_entry_id:,} on {ensemble}; no add failed, LAC {lac:,}"

    async def _fence(self) -> str:
        reader = await self._rival.open_ledger(self._ledger_id, _PASSWORD)
        self._end = reader.last_add_confirmed
        while self._stream.error is None:
            await asyncio.sleep(_PAUSE_S)
        error, acknowledged = self._stream.error, self._stream.acknowledged
        _must(isinstance(error, LedgerFencedError), f"the writer ended with {error!r}, not with LedgerFenced")
        _must(
            acknowledged <= self._end,
            f"the writer was told that entry {acknowledged} is stored, the ledger ends at {self._end}",
        )
        _must(reader.closed, "the ledger is not closed")
        return f"closed at entry {self._end:,}; the writer: LedgerFenced after entry {acknowledged:,}"

    async def _read(self) -> str:
        async with await BookKeeper.connect(self._cluster.metadata_uri) as third:
            reader = await third.open_ledger(self._ledger_id, _PASSWORD)
            end = reader.last_add_confirmed
            _must(end == self._end, f"it sees the end at {end}, the second client saw {self._end}")
            count = 0
            async with aclosing(reader.entries()) as entries:
                async for entry in entries:
                    _must(entry.payload == payload_of(count), f"entry {count} has another content")
                    count += 1
            _must(count == end + 1, f"read {count} entries of {end + 1}")
        return f"{count:,} entries, each as it was written"

    async def _restart(self) -> str:
        took_s = await self._bookie(self._killed).start()
        return f"bookie {self._killed} serves again after {took_s:.1f} s"

    async def _verify(self) -> str:
        metadata = (await self._mine.metadata.ledgers.read(self._ledger_id)).value
        digester = Digester(_DIGEST, _PASSWORD)
        copies = 0
        ends = [segment.first_entry_id for segment in metadata.segments[1:]] + [self._end + 1]
        for segment, end in zip(metadata.segments, ends, strict=True):
            for bookie_id in segment.ensemble:
                await self._verify_copies(bookie_id, range(segment.first_entry_id, end), digester)
                copies += end - segment.first_entry_id
        _must(copies == 2 * (self._end + 1), f"verified {copies} copies of {self._end + 1} entries")
        return f"{copies:,} copies on their bookies: digest and content are right"

    async def _verify_copies(self, bookie_id: BookieId, entry_ids: range, digester: Digester) -> None:
        channel = self._mine.pool.channel(bookie_id)
        for start in range(entry_ids.start, entry_ids.stop, _VERIFY_BATCH):
            some = entry_ids[start - entry_ids.start :][:_VERIFY_BATCH]
            bodies = await channel.read_entries(self._ledger_id, some)
            for entry_id, body in zip(some, bodies, strict=True):
                if isinstance(body, BookKeeperError):
                    raise body
                payload = digester.open_entry(body, self._ledger_id, entry_id)
                _must(payload == payload_of(entry_id), f"entry {entry_id} on {bookie_id} has another content")

    def _bookie(self, bookie_id: BookieId) -> LocalBookie:
        return next(bookie for bookie in self._cluster.bookies if bookie.bookie_id == bookie_id)
