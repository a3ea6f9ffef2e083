"""Running a command's coroutine: --timeout, Ctrl-C and logging, once for all commands."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from bkctl.cli.options import GlobalOptions, global_options

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T], *, busy: bool = False) -> T:
    """Run `coroutine` to its end; `busy` for much network traffic (uvloop, slower to start).

    Raises TimeoutError when --timeout passed, KeyboardInterrupt after Ctrl-C (the coroutine is
    cancelled first and may clean up).
    """
    options = global_options()
    configure_logging(options)
    with asyncio.Runner(loop_factory=_uvloop_factory() if busy else None) as runner:
        return runner.run(_bounded(coroutine, options.timeout_s))


async def _bounded(coroutine: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
    async with asyncio.timeout(timeout_s):
        return await coroutine


def configure_logging(options: GlobalOptions) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbose, 2)]
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.ERROR if options.quiet else level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # The driver's own words repeat what our one-line errors say.
    logging.getLogger("kazoo").setLevel(logging.WARNING if options.verbose else logging.CRITICAL)


def _uvloop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop
