"""Following a value of the metadata tree: read it with a watch, pass it on, wait, read again.

Source: spec metadata sections 8 (listeners) and 9 (discovery client).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from bkctl.errors import BookKeeperError, CorruptDataError, MetadataStoreError
from bkctl.metadata.api import Watcher, WatchEvent

RETRY_DELAY_MS = 200  # as upstream, after a read that failed

log = logging.getLogger(__name__)

Read = Callable[[Watcher], Awaitable[bool]]
"""Read with the given watcher and pass the value on; False: there is nothing more to follow."""


class Followers:
    """The tasks that follow values for one manager; they end together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, what: str, read: Read) -> Callable[[], None]:
        """Follow until `read` says False or the returned function is called. `what`: for the log."""
        task = asyncio.create_task(_follow(what, read), name=f"follow {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancel() -> None:
            task.cancel()

        return cancel

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(what: str, read: Read) -> None:
    while True:
        changed = asyncio.Event()
        try:
            if not await read(setter(changed)):
                return
        except (CorruptDataError, BookKeeperError) as exc:
            log.warning("cannot use %s until it changes: %s", what, exc)
        except MetadataStoreError as exc:
            log.debug("reading %s again in %d ms: %s", what, RETRY_DELAY_MS, exc)
            await asyncio.sleep(RETRY_DELAY_MS / 1000)
            continue
        await changed.wait()


def setter(event: asyncio.Event) -> Watcher:
    """A watcher that sets `event`, whatever happened."""

    def watcher(_event: WatchEvent) -> None:
        event.set()

    return watcher
