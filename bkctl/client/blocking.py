"""BookKeeper without asyncio, for scripts: the same objects, whose methods wait.

    with BlockingBookKeeper("sqlite:///var/lib/bkctl/metadata.db") as bk:
        with bk.create_ledger() as ledger:
            ledger.append(b"hello")
        for entry in bk.open_ledger(ledger.ledger_id).entries():
            print(entry.payload)

One background thread runs the event loop. For throughput pass many payloads to `append_many`.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.reader import FIRST_ENTRY_ID, LedgerReader
from bkctl.client.recovery import RecoveryReport
from bkctl.client.writer import LedgerWriter
from bkctl.errors import ClientClosedError
from bkctl.quorum.adds import Payload
from bkctl.quorum.reads import Entry
from bkctl.types import EntryId, LedgerId, LedgerMetadata

READ_CHUNK_ENTRIES = 1_000

T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bkctl client", daemon=True)
        self._thread.start()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine`, run on the loop; an interrupted wait cancels it."""
        if self._loop.is_closed():
            coroutine.close()
            raise ClientClosedError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self.wait(self._loop.shutdown_asyncgens())  # over there: this thread may run a loop of its own
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingLedgerWriter:
    """See LedgerWriter."""

    def __init__(self, loop: _Loop, writer: LedgerWriter) -> None:
        self._loop = loop
        self._writer = writer

    @property
    def ledger_id(self) -> LedgerId:
        return self._writer.ledger_id

    @property
    def metadata(self) -> LedgerMetadata:
        return self._writer.metadata

    @property
    def last_add_confirmed(self) -> EntryId:
        return self._writer.last_add_confirmed

    def append(self, payload: Payload) -> EntryId:
        """Add an entry; its id, once an ack quorum stores it."""
        return self._loop.wait(self._writer.add(payload))

    def append_many(self, payloads: Sequence[Payload]) -> tuple[EntryId, EntryId]:
        """Add entries with consecutive ids; the first and the last id, once all are stored."""

        async def add() -> tuple[EntryId, EntryId]:
            await self._writer.wait_writable()
            return await self._writer.append_many(payloads)

        return self._loop.wait(add())

    def force(self) -> None:
        self._loop.wait(self._writer.force())

    def close(self) -> None:
        self._loop.wait(self._writer.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.wait(self._writer.__aexit__(kind, error, trace))


class BlockingLedgerReader:
    """See LedgerReader."""

    def __init__(self, loop: _Loop, reader: LedgerReader) -> None:
        self._loop = loop
        self._reader = reader

    @property
    def ledger_id(self) -> LedgerId:
        return self._reader.ledger_id

    @property
    def metadata(self) -> LedgerMetadata:
        return self._reader.metadata

    @property
    def last_add_confirmed(self) -> EntryId:
        return self._reader.last_add_confirmed

    @property
    def closed(self) -> bool:
        return self._reader.closed

    def read(self, first: EntryId, last: EntryId) -> list[Entry]:
        return self._loop.wait(self._reader.read(first, last))

    def entries(self, first: EntryId = FIRST_ENTRY_ID, last: EntryId | None = None) -> Iterator[Entry]:
        """Entries first..last (None: the last confirmed now), fetched chunk by chunk."""
        last = self.last_add_confirmed if last is None else last
        for start in range(first, last + 1, READ_CHUNK_ENTRIES):
            end = min(last, start + READ_CHUNK_ENTRIES - 1)
            yield from self.read(EntryId(start), EntryId(end))

    def read_last_add_confirmed(self) -> EntryId:
        return self._loop.wait(self._reader.read_last_add_confirmed())

    def close(self) -> None:
        self._loop.wait(self._reader.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BlockingBookKeeper:
    """See BookKeeper; `settings` are fields of ClientSettings."""

    def __init__(self, metadata_uri: str, **settings: Any) -> None:
        self._loop = _Loop()
        try:
            self._client = self._loop.wait(BookKeeper.connect(metadata_uri, **settings))
        except BaseException:
            self._loop.stop()
            raise

    def create_ledger(self, **options: Any) -> BlockingLedgerWriter:
        """`options` as BookKeeper.create_ledger."""
        return BlockingLedgerWriter(self._loop, self._loop.wait(self._client.create_ledger(**options)))

    def open_ledger(self, ledger_id: LedgerId, password: bytes = b"") -> BlockingLedgerReader:
        reader = self._loop.wait(self._client.open_ledger(ledger_id, password))
        return BlockingLedgerReader(self._loop, reader)

    def open_ledger_no_recovery(self, ledger_id: LedgerId, password: bytes = b"") -> BlockingLedgerReader:
        reader = self._loop.wait(self._client.open_ledger_no_recovery(ledger_id, password))
        return BlockingLedgerReader(self._loop, reader)

    def recover_ledger(self, ledger_id: LedgerId, password: bytes | None = None) -> RecoveryReport:
        return self._loop.wait(self._client.recover_ledger(ledger_id, password))

    def fence_ledger(self, ledger_id: LedgerId, password: bytes | None = None) -> RecoveryReport:
        return self._loop.wait(self._client.fence_ledger(ledger_id, password))

    def delete_ledger(self, ledger_id: LedgerId) -> None:
        self._loop.wait(self._client.delete_ledger(ledger_id))

    def close(self) -> None:
        """As BookKeeper.close; then end the thread. Idempotent."""
        try:
            self._loop.wait(self._client.close())
        except ClientClosedError:
            return
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
