"""Reads: from the caches at once, from disk by one hop of a pool thread per batch.

Entries that are not cached queue per peer; one task per peer takes them in batches, so a peer that
asks for much holds a bounded part of the pool and of memory.

Source: spec wire sections 3.4, 8.5, 8.7; spec storage 7.3, 7.4.
"""

import asyncio
import logging
import struct
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

from bkctl.errors import BookKeeperError, CorruptDataError, DataUnknownError, NoSuchEntryError, ReadError
from bkctl.formats.entry import HEADER as ENTRY_HEADER
from bkctl.formats.request_v2 import READ_HEADER, ReadResponse
from bkctl.formats.result_code import ResultCode, code_of_error
from bkctl.server.bookie import Bookie, Peer
from bkctl.server.storage.directory_storage import LedgerDescriptor

log = logging.getLogger(__name__)

LAST_ENTRY = -1
_READ = struct.Struct(">II16s")  # frame length, header, ledger id ‖ entry id
_ANSWER = struct.Struct(">IIi")  # frame length, header, rc
_READ_FRAME_BYTES = 24
_DISK_BATCH_COUNT_MAX = 32  # entries per hop: at 5 MiB each still bounded
_QUEUE_COUNT_MAX = 1024  # of one peer; more, and it is not read until the queue is shorter
_TASK_COUNT_MAX = 64  # answers of one peer that are worked on; a batch may hold 5 MiB
_MANY_READS, _MANY_TASKS = "many reads", "many tasks"  # why a peer is paused
_SEND_BYTES_MAX = 4 << 20  # of one run from the caches, before the socket is asked for its opinion

Answer = Callable[[bytes | BookKeeperError], None]
Wanted = tuple[int, int, Answer]  # ledger id, entry id or LAST_ENTRY, what to do with the entry


class Reads:
    """Answers read requests of any protocol version."""

    def __init__(self, bookie: Bookie, pool: Executor) -> None:
        self._bookie = bookie
        self._pool = pool
        self._queues: dict[Peer, deque[Wanted]] = {}
        self._tasks: dict[asyncio.Task[None], Peer] = {}
        self._busy: Counter[Peer] = Counter()  # tasks of each peer

    # -- from the caches -------------------------------------------------------------------------

    def take_reads(self, peer: Peer, buffer: bytearray, position: int, end: int) -> int:
        """Take the run of plain v2 READ frames at `position`; where it stopped."""
        unpack, pack = _READ.unpack_from, _ANSWER.pack
        parts: list[bytes | memoryview] = []
        sent_bytes = 0
        ledger, directory = b"", None
        while position + _READ_FRAME_BYTES <= end and sent_bytes < _SEND_BYTES_MAX:
            length, header, key = unpack(buffer, position)
            if length != _READ_FRAME_BYTES - 4 or header != READ_HEADER:
                break
            position += _READ_FRAME_BYTES
            if key[:8] != ledger:
                ledger = key[:8]
                directory = self._bookie.storage.directory_for(int.from_bytes(ledger, "big"))
            assert directory is not None
            cache = directory.active
            record = cache.index.get(key)
            if record is not None:
                size = int.from_bytes(cache.view[record : record + 4], "big")
                parts += (pack(24 + size, READ_HEADER, 0), key, cache.view[record + 4 : record + 4 + size])
                sent_bytes += size
            else:
                self._read_v2(peer, key)
        if parts:
            peer.send(b"".join(parts))
        return position

    def _read_v2(self, peer: Peer, key: bytes) -> None:
        ledger_id, entry_id = struct.unpack(">qq", key)

        def answer(result: bytes | BookKeeperError) -> None:
            if isinstance(result, bytes):
                peer.send(ReadResponse(0, ledger_id, entry_id, result).encode())
            else:
                peer.send(ReadResponse(v2_rc(result), ledger_id, entry_id).encode())

        self.read(peer, ledger_id, entry_id, answer)

    def read(self, peer: Peer, ledger_id: int, entry_id: int, answer: Answer) -> None:
        """Call `answer` with the entry (header included) or with the reason why there is none."""
        try:
            descriptor = self._bookie.ledger(ledger_id)
            entry = self.cached(descriptor, entry_id)
        except BookKeeperError as error:
            answer(error)
            return
        if entry is not None:
            answer(entry)
            return
        queue = self._queues.get(peer)
        if queue is None:
            queue = self._queues[peer] = deque()
            self.spawn(peer, self._serve(peer, queue))
        queue.append((ledger_id, entry_id, answer))
        if len(queue) >= _QUEUE_COUNT_MAX:
            peer.pause(_MANY_READS)

    def cached(self, descriptor: LedgerDescriptor, entry_id: int) -> bytes | None:
        """The entry if a cache has it. Raises NoSuchEntryError when the ledger is known to be empty."""
        if entry_id == LAST_ENTRY:
            last = _last_entry_id(descriptor)
            if last is None:
                return None
            if last == LAST_ENTRY:
                raise absent(descriptor, entry_id)
            entry_id = last
        elif entry_id < 0:
            raise absent(descriptor, entry_id)
        return descriptor.directory.cached_entry(descriptor.ledger_id, entry_id)

    # -- from disk -------------------------------------------------------------------------------

    def spawn(self, peer: Peer, work: Coroutine[Any, Any, None]) -> None:
        """Answer `peer` beside the loop's other work; a peer with many such answers due must wait."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = peer
        task.add_done_callback(self._done)
        self._busy[peer] += 1
        if self._busy[peer] >= _TASK_COUNT_MAX:
            peer.pause(_MANY_TASKS)

    def _done(self, task: asyncio.Task[None]) -> None:
        peer = self._tasks.pop(task)
        self._busy[peer] -= 1
        if not self._busy[peer]:
            del self._busy[peer]
        if self._busy.get(peer, 0) < _TASK_COUNT_MAX:
            peer.resume(_MANY_TASKS)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request could not be answered: %r", error, exc_info=error)
            peer.drop()

    def close(self) -> None:
        """Answer nothing more."""
        for task in list(self._tasks):
            task.cancel()

    async def _serve(self, peer: Peer, queue: deque[Wanted]) -> None:
        try:
            while queue and not peer.closed:
                batch = [queue.popleft() for _ in range(min(len(queue), _DISK_BATCH_COUNT_MAX))]
                results = await self.load([(ledger_id, entry_id) for ledger_id, entry_id, _ in batch])
                for (_ledger_id, _entry_id, answer), result in zip(batch, results, strict=True):
                    answer(result)
                if len(queue) < _QUEUE_COUNT_MAX:
                    peer.resume(_MANY_READS)
                await peer.writable()
        finally:
            del self._queues[peer]

    async def load(self, wanted: list[tuple[int, int]]) -> list[bytes | BookKeeperError]:
        """Entries from disk, in the order asked; LAST_ENTRY allowed. Ledgers that are gone: the error."""
        loop = asyncio.get_running_loop()
        results: list[bytes | BookKeeperError] = []
        by_directory: dict[Any, list[tuple[int, int, int]]] = {}
        for number, (ledger_id, entry_id) in enumerate(wanted):
            results.append(NoSuchEntryError(f"no entry {entry_id} of ledger {ledger_id} here"))
            try:
                descriptor = self._bookie.ledger(ledger_id)
                real_id = await self.last_entry_id(descriptor) if entry_id == LAST_ENTRY else entry_id
                # Nobody has looked for the last entry in the caches, and a flush may move it to the index
                # while that is asked.
                cached = self.cached(descriptor, real_id) if entry_id == LAST_ENTRY else None
                if cached is not None:
                    results[number] = cached
                    continue
                if real_id >= 0:
                    by_directory.setdefault(descriptor.directory, []).append((number, ledger_id, real_id))
                results[number] = absent(descriptor, entry_id)
            except BookKeeperError as error:
                results[number] = error
        for directory, rows in by_directory.items():
            keys = [(ledger_id, entry_id) for _, ledger_id, entry_id in rows]
            found = await loop.run_in_executor(self._pool, directory.load_entries, keys)
            for (number, ledger_id, entry_id), entry in zip(rows, found, strict=True):
                cached = directory.cached_entry(ledger_id, entry_id) if entry is None else entry
                if isinstance(cached, Exception):
                    results[number] = ReadError(str(cached))
                elif cached is not None:
                    results[number] = cached
        return results

    async def entry(self, descriptor: LedgerDescriptor, entry_id: int) -> bytes:
        """One entry (or the last). Raises NoSuchEntryError, DataUnknownError, ReadError."""
        entry = self.cached(descriptor, entry_id)
        if entry is not None:
            return entry
        (result,) = await self.load([(descriptor.ledger_id, entry_id)])
        if isinstance(result, BookKeeperError):
            raise result
        return result

    async def last_entry_id(self, descriptor: LedgerDescriptor) -> int:
        """Highest entry id stored here, -1 if none. Raises ReadError."""
        directory = descriptor.directory
        if descriptor.last_entry_id is None:
            loop = asyncio.get_running_loop()
            load = directory.load_last_entry_id
            try:
                descriptor.last_entry_id = await loop.run_in_executor(self._pool, load, descriptor.ledger_id)
            except (OSError, CorruptDataError) as error:
                raise ReadError(f"last entry of ledger {descriptor.ledger_id}: {error}") from error
        last = _last_entry_id(descriptor)
        assert last is not None
        return last

    async def max_lac(self, descriptor: LedgerDescriptor) -> int:
        """The greatest LAC known for the ledger; after a restart that of its last entry, -1 if none."""
        if descriptor.max_lac is None:
            try:
                entry = await self.entry(descriptor, LAST_ENTRY)
                self._bookie.raise_lac(descriptor, ENTRY_HEADER.unpack_from(entry)[2])
            except NoSuchEntryError:
                self._bookie.raise_lac(descriptor, -1)
        lac = descriptor.max_lac
        assert lac is not None
        return lac

    async def entry_ids(self, ledger_id: int) -> list[int]:
        """Ids of the entries stored here, ascending. Raises NoSuchLedgerError, ReadError."""
        descriptor = self._bookie.ledger(ledger_id)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, descriptor.directory.load_entry_ids, ledger_id)
        except (OSError, CorruptDataError) as error:
            raise ReadError(f"entries of ledger {ledger_id}: {error}") from error

    async def fenced(self, ledger_id: int, master_key: bytes) -> None:
        """Fence the ledger; return once that is durable. Raises UnauthorizedAccessError."""
        durable = asyncio.Event()
        self._bookie.fence(ledger_id, master_key, durable.set)
        await durable.wait()

    # -- batches ---------------------------------------------------------------------------------

    async def batch(self, ledger_id: int, first_entry_id: int, count_max: int, bytes_max: int) -> list[bytes]:
        """Entries from `first_entry_id` on, at least one (spec wire 3.4).

        Raises:
            NoSuchLedgerError, NoSuchEntryError, DataUnknownError, ReadError: of the first entry.
        """
        descriptor = self._bookie.ledger(ledger_id)
        entries = [await self.entry(descriptor, first_entry_id)]
        entry_id = await self.last_entry_id(descriptor) if first_entry_id == LAST_ENTRY else first_entry_id
        total = 36 + len(entries[0]) + 4
        count = 1 + max(0, bytes_max - total) // (len(entries[0]) + 4)
        if count_max > 0:
            count = min(count, count_max)
        while len(entries) < count:
            entry_id += 1
            entry = descriptor.directory.cached_entry(ledger_id, entry_id)
            if entry is None:
                (loaded,) = await self.load([(ledger_id, entry_id)])  # read-ahead caches its neighbours
                if isinstance(loaded, BookKeeperError):
                    break
                entry = loaded
            total += len(entry) + 4
            if total > bytes_max:
                break
            entries.append(entry)
        return entries


def _last_entry_id(descriptor: LedgerDescriptor) -> int | None:
    """Highest entry id of index and caches (trap T11); None: the index was not asked yet."""
    indexed = descriptor.last_entry_id
    return (
        None
        if indexed is None
        else max(indexed, descriptor.directory.cached_last_entry(descriptor.ledger_id))
    )


def absent(descriptor: LedgerDescriptor, entry_id: int) -> BookKeeperError:
    """Why there is no such entry: a ledger in limbo may have held it (spec replication B4)."""
    what = f"entry {entry_id} of ledger {descriptor.ledger_id}"
    if descriptor.limbo:
        return DataUnknownError(f"{what} may have been lost here")
    return NoSuchEntryError(f"no {what} here")


def v2_rc(error: BookKeeperError) -> int:
    """The v2 result code of `error`; Java's v2 clients close the connection on an unknown 107."""
    code = code_of_error(error)
    return (ResultCode.EIO if code is ResultCode.EUNKNOWNLEDGERSTATE else code).rc
