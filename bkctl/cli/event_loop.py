"""Running a command's coroutine: --timeout, Ctrl-C and logging, once for all commands."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import typer

from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.options import GlobalOptions, global_options

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T], *, busy: bool = False) -> T:
    """Run `coroutine` to its end; `busy` for much network traffic (uvloop, slower to start).

    Ctrl-C and SIGTERM cancel it first, so that it may clean up; a second one leaves at once. Raises
    TimeoutError when --timeout passed, KeyboardInterrupt after Ctrl-C, typer.Exit after SIGTERM.
    """
    options = global_options()
    configure_logging(options)
    with asyncio.Runner(loop_factory=_uvloop_factory() if busy else None) as runner:
        return runner.run(_bounded(coroutine, options.timeout_s))


async def _bounded(coroutine: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None
    terminated = False

    def on_sigterm() -> None:
        nonlocal terminated
        terminated = True
        loop.remove_signal_handler(signal.SIGTERM)
        me.cancel()

    loop.add_signal_handler(signal.SIGTERM, on_sigterm)
    try:
        async with asyncio.timeout(timeout_s):
            return await coroutine
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(ExitCode.TERMINATED) from None
        raise


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
