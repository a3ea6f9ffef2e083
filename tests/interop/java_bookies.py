"""Java's bookies for a test module, each of Java's storages in a cluster of its own."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bkctl.client.bookkeeper import BookKeeper
from bkctl.types import BookieId
from tests.interop.apache import DB_STORAGE, SORTED_STORAGE, Apache, JavaBookie, running
from tests.interop.payload import payload

STORAGES = {"db": DB_STORAGE, "sorted": SORTED_STORAGE}


@dataclass(frozen=True, slots=True)
class JavaCluster:
    """`storage` is a key of STORAGES."""

    uri: str
    storage: str
    bookies: tuple[JavaBookie, ...]

    def bookie(self, name: str) -> JavaBookie:
        return next(bookie for bookie in self.bookies if bookie.name == name)

    @property
    def bookie_ids(self) -> tuple[BookieId, ...]:
        return tuple(BookieId(bookie.name) for bookie in self.bookies)

    @contextlib.asynccontextmanager
    async def client(self, **settings: Any) -> AsyncIterator[BookKeeper]:
        """Our client of this cluster; `settings` are fields of ClientSettings."""
        async with await BookKeeper.connect(self.uri, **settings) as client:
            yield client


@contextlib.contextmanager
def java_bookies(
    apache: Apache,
    uri: str,
    home: Path,
    storage: str,
    count: int = 3,
    settings: Mapping[str, object] | None = None,
) -> Iterator[JavaCluster]:
    """Bookies b1, b2, ... of the cluster at `uri`, running; each has a directory below `home`."""
    bookies = tuple(
        JavaBookie(apache, uri, home / f"b{n}", f"b{n}", settings, storage=STORAGES[storage])
        for n in range(1, count + 1)
    )
    with running(bookies):
        yield JavaCluster(uri, storage, bookies)


def payloads(first: int, last: int, size: int) -> list[bytes]:
    """What entries `first` to `last` of `size` bytes hold."""
    return [payload(entry_id, size) for entry_id in range(first, last + 1)]
