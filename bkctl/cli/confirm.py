"""Before something risky: what it would do, and somebody who wants it.

The classes of the commands (D0 reads, D1 adds only own things):
- D2 can be reverted: it runs, and a note says how to revert it.
- D3 changes what others rely on: shown as a plan, then `y/N` on a terminal, or --yes.
- D4 destroys: the id (or count) of what goes must be typed, or given with --confirm. --yes is not enough.
Off a terminal, or with --no-input, nothing is asked: the command is refused and says how to confirm it.
"""

import sys

from bkctl.cli.options import GlobalOptions, global_options
from bkctl.errors import RefusedError


def note(text: str) -> None:
    """A word to the person at stderr; not part of the result."""
    if not global_options().quiet:
        sys.stderr.write(f"{text}\n")


def confirm_change(plan: str) -> None:
    """Class D3. Raises RefusedError unless somebody agrees to `plan`."""
    options = global_options()
    if options.yes:
        return
    if not _may_ask(options):
        raise RefusedError(f"{plan}: not confirmed; add --yes to do it")
    sys.stderr.write(f"{plan}\nContinue? [y/N] ")
    if _answer().lower() not in ("y", "yes"):
        raise RefusedError("not confirmed; nothing was changed")


def confirm_destruction(plan: str, *, what: str, expected: str, given: str | None) -> None:
    """Class D4. `expected` must be typed or given (--confirm); `what` says what it is.

    Raises RefusedError otherwise.
    """
    if given is None:
        if not _may_ask(global_options()):
            raise RefusedError(f"{plan}: not confirmed; add --confirm {expected} ({what}) to do it")
        sys.stderr.write(f"{plan}\nType {what} to go on: ")
        given = _answer()
    if given != expected:
        raise RefusedError(f"{plan}: '{given}' is not {what}, {expected}; nothing was changed")


def _may_ask(options: GlobalOptions) -> bool:
    return not options.no_input and sys.stdin.isatty() and sys.stderr.isatty()


def _answer() -> str:
    sys.stderr.flush()
    return sys.stdin.readline().strip()
