"""A writer of ours that adds without pause, for tests that disturb it."""

import asyncio
from contextlib import suppress

from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.writer import LedgerWriter
from bkctl.errors import BkctlError
from bkctl.types import EntryId
from tests.interop.payload import payload

SIZE = 100  # of each entry; what they hold is payload.py's
PATIENCE_S = 60
_APPENDS_PER_TURN = 20


class BusyWriter:
    """Adds from its making on, until an add fails or `stop`."""

    def __init__(self, writer: LedgerWriter) -> None:
        self.writer = writer
        self._outcomes: list[asyncio.Future[EntryId]] = []
        self._stopped = False
        self._task = asyncio.create_task(self._write())

    @classmethod
    async def start(
        cls, client: BookKeeper, ensemble_size: int = 3, write_quorum_size: int = 3, ack_quorum_size: int = 2
    ) -> "BusyWriter":
        writer = await client.create_ledger(
            ensemble_size=ensemble_size,
            write_quorum_size=write_quorum_size,
            ack_quorum_size=ack_quorum_size,
        )
        return cls(writer)

    async def _write(self) -> None:
        with suppress(BkctlError):
            while not self._stopped:
                for _ in range(_APPENDS_PER_TURN):
                    await self.writer.wait_writable()
                    self._outcomes.append(self.writer.append(payload(len(self._outcomes), SIZE)))
                await asyncio.sleep(0.001)

    @property
    def acked_count(self) -> int:
        return self.writer.last_add_confirmed + 1

    async def acked(self, count: int) -> None:
        """Wait until so many adds are acknowledged."""
        async with asyncio.timeout(PATIENCE_S):
            while self.acked_count < count:
                assert not self._task.done(), f"the writer ended: {await self.ended()}"
                await asyncio.sleep(0.001)

    async def stop(self) -> tuple[int, BkctlError | None]:
        """The number of acknowledged adds, and the first failure, once each add has its outcome."""
        self._stopped = True
        return await self.ended()

    async def ended(self) -> tuple[int, BkctlError | None]:
        """As `stop`, for a writer that an add's failure ends."""
        async with asyncio.timeout(PATIENCE_S):
            await self._task
            results = await asyncio.gather(*self._outcomes, return_exceptions=True)
        acked = [result for result in results if not isinstance(result, BaseException)]
        assert acked == list(range(len(acked))), "in order, and none after the first failure"
        failure = results[len(acked)] if len(acked) < len(results) else None
        assert failure is None or isinstance(failure, BkctlError)
        return len(acked), failure
