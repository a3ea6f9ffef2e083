"""bkctl client and commands → Java bookies."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bkctl.client.blocking import BlockingBookKeeper
from tests.interop.apache import DB_STORAGE, SORTED_STORAGE, Apache, JavaBookie, running
from tests.interop.payload import digest, expected, payload


@pytest.fixture(scope="module", params=[DB_STORAGE, SORTED_STORAGE], ids=["db", "sorted"])
def uri(
    request: pytest.FixtureRequest,
    apache: Apache,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    uri = new_cluster()
    home: Path = tmp_path_factory.mktemp("java")
    names = ("b1", "b2", "b3")
    with running([JavaBookie(apache, uri, home / name, name, storage=request.param) for name in names]):
        yield uri


@pytest.mark.parametrize("kind", ["CRC32C", "CRC32", "MAC", "DUMMY"])
def test_pipelined_adds_are_read_back(uri: str, kind: str) -> None:
    from bkctl.types import DigestType

    with BlockingBookKeeper(uri) as client:
        with client.create_ledger(digest_type=DigestType[kind], password=b"pw") as writer:
            first, last = writer.append_many([payload(n, 100) for n in range(2000)])
            assert (first, last) == (0, 1999)
            ledger_id = writer.ledger_id
        with client.open_ledger(ledger_id, b"pw") as reader:
            entries = reader.read(0, 1999)
    assert digest((e.entry_id, bytes(e.payload)) for e in entries) == expected(0, 1999, 100)
