"""Bookies of both kinds in one cluster."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.integration.bookies import BookieProcess, wait_until
from tests.interop.apache import DB_STORAGE, SORTED_STORAGE, Apache, JavaBookie, registered, running

Bookie = JavaBookie | BookieProcess

SESSION_MS = 3_000  # a dead bookie is out of the cluster so long after


def java_bookie(apache: Apache, uri: str, home: Path, name: str, storage: str = DB_STORAGE) -> JavaBookie:
    return JavaBookie(apache, uri, home / name, name, {"zkTimeout": SESSION_MS}, storage=storage)


def our_bookie(uri: str, home: Path, name: str) -> BookieProcess:
    return BookieProcess(uri, home / name, name, (f"zkTimeout={SESSION_MS}",))


@contextlib.contextmanager
def two_of_each(apache: Apache, uri: str, home: Path) -> Iterator[dict[str, Bookie]]:
    """Running: j1 and j2 of Apache's, one of each storage, b1 and b2 of ours; by name."""
    bookies: list[Bookie] = [
        java_bookie(apache, uri, home, "j1"),
        java_bookie(apache, uri, home, "j2", SORTED_STORAGE),
        our_bookie(uri, home, "b1"),
        our_bookie(uri, home, "b2"),
    ]
    with running(bookies):
        yield {bookie.name: bookie for bookie in bookies}
    assert_quiet(bookies)


def wait_gone(uri: str, name: str) -> None:
    """Until a bookie that was killed is out of the cluster."""
    wait_until(lambda: name not in asyncio.run(registered(uri)), f"{name} is gone", timeout_s=60)


def assert_quiet(bookies: Sequence[Bookie]) -> None:
    """None of ours logged a traceback."""
    for bookie in bookies:
        if isinstance(bookie, BookieProcess) and bookie.log.exists():
            log = bookie.log.read_text()
            assert "Traceback" not in log, f"{bookie.name}: {log[-4000:]}"
