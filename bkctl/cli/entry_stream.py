"""A stream of entries on its way: chunks in from a descriptor, batches out to a ledger's writer."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from typing import TextIO

from bkctl.client.writer import LedgerWriter
from bkctl.errors import LedgerClosedError
from bkctl.types import INVALID_ENTRY_ID, EntryId

_CHUNK_BYTES = 256 * 1024


async def chunks_of(descriptor: int) -> AsyncIterator[bytes]:
    """What can be read there, as it comes."""
    waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    while True:
        if waits:
            try:
                await _readable(descriptor)
            except PermissionError:
                waits = False  # /dev/null and the like never wait
        await asyncio.sleep(0)  # let the bookies' answers in
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


async def _readable(descriptor: int) -> None:
    """Wait for something to read. Raises PermissionError where waiting makes no sense."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


class EntryAppender:
    """Appends batches, with as many outstanding as the writer allows, and counts what is stored."""

    def __init__(self, writer: LedgerWriter, ids: TextIO | None) -> None:
        self._writer = writer
        self._ids = ids
        self._latest: asyncio.Future[tuple[EntryId, EntryId]] | None = None
        self._error: BaseException | None = None  # of the first batch that failed
        self.first = INVALID_ENTRY_ID
        self.last = INVALID_ENTRY_ID
        self.entries = 0

    async def append(self, payloads: list[bytes]) -> None:
        """Raises what an earlier batch failed with."""
        try:
            await self._writer.wait_writable()
        except LedgerClosedError as error:
            self._error = self._error or error
        self._raise_failure()
        self._latest = self._writer.append_many(payloads)
        self._latest.add_done_callback(self._settled)

    async def finish(self) -> None:
        """Wait until all is stored. Raises what a batch failed with."""
        if self._latest is not None:
            await asyncio.wait([self._latest])  # batches end in the order in which they began
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise self._error

    def _settled(self, batch: "asyncio.Future[tuple[EntryId, EntryId]]") -> None:
        failure = asyncio.CancelledError() if batch.cancelled() else batch.exception()
        if failure is not None:
            self._error = self._error or failure
            return
        first, last = batch.result()
        self.first = first if self.first == INVALID_ENTRY_ID else self.first
        self.last = last
        self.entries += last - first + 1
        if self._ids is not None:
            try:
                self._ids.writelines(f'{{"entry_id":{entry_id}}}\n' for entry_id in range(first, last + 1))
                self._ids.flush()
            except OSError as error:  # who read them has left
                self._error = self._error or error
