"""Running a command's coroutine: --timeout, signals and logging, once for all commands.

asyncio is imported when something runs, so that naming a command costs nothing.
"""

import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.options import GlobalOptions, global_options

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T], *, busy: bool = False) -> T:
    """Run `coroutine` to its end; `busy` for much network traffic (uvloop, slower to start).

    Ctrl-C, SIGTERM and SIGHUP cancel it, so that it may clean up; a second one leaves at once.
    Raises TimeoutError when --timeout passed, KeyboardInterrupt after Ctrl-C, typer.Exit after
    another signal.
    """
    import asyncio

    options = global_options()
    _configure_logging(options)
    with asyncio.Runner(loop_factory=_uvloop_factory() if busy else None) as runner:
        return runner.run(_bounded(coroutine, options.timeout_s))


def termination_signals() -> list[signal.Signals]:
    """Those that ask a process to end, beside Ctrl-C; SIGHUP only if it is not ignored (nohup)."""
    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if hangup_ignored else [signal.SIGTERM, signal.SIGHUP]


async def _bounded(coroutine: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
    import asyncio

    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None
    terminated = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal terminated
        terminated = True
        loop.remove_signal_handler(number)
        me.cancel()

    for number in termination_signals():
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with asyncio.timeout(timeout_s):
            return await coroutine
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(ExitCode.TERMINATED) from None
        raise


def _configure_logging(options: GlobalOptions) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbose, 2)]
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.ERROR if options.quiet else level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # The driver's own words repeat what our one-line errors say.
    logging.getLogger("kazoo").setLevel(logging.WARNING if options.verbose else logging.CRITICAL)


def _uvloop_factory() -> "Callable[[], asyncio.AbstractEventLoop]":
    import uvloop

    return uvloop.new_event_loop
