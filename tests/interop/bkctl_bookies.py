"""Our bookies for a test module: three or four at once, their logs looked through at the end."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.integration.bookies import BookieProcess
from tests.interop.apache import running


def assert_no_traceback(bookies: Sequence[BookieProcess]) -> None:
    for bookie in bookies:
        log = bookie.log.read_text()
        assert "Traceback" not in log, f"{bookie.name}:\n{log[-3000:]}"


@contextlib.contextmanager
def bkctl_bookies(
    uri: str, home: Path, count: int, settings: Sequence[str] = ()
) -> Iterator[list[BookieProcess]]:
    """Bookies b1, b2, ... of the cluster at `uri`, running; each has a directory below `home`."""
    bookies = [BookieProcess(uri, home / f"b{n}", f"b{n}", settings) for n in range(1, count + 1)]
    with running(bookies):
        yield bookies
    assert_no_traceback(bookies)
