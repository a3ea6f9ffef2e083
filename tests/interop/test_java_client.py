"""Java client → bkctl bookies."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.bookies import BookieProcess
from tests.interop.apache import JavaClient, JavaDriver, running
from tests.interop.payload import expected


@pytest.fixture(scope="module")
def uri(new_cluster: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = new_cluster()
    home: Path = tmp_path_factory.mktemp("bkctl")
    with running([BookieProcess(uri, home / name, name) for name in ("b1", "b2", "b3")]):
        yield uri


@pytest.fixture(scope="module", params=["v2", "v3"])
def client(request: pytest.FixtureRequest, driver: JavaDriver, uri: str) -> Iterator[JavaClient]:
    client = driver.client(request.param, uri, useV2WireProtocol=request.param == "v2")
    yield client
    client.close()


@pytest.mark.parametrize("digest", ["CRC32C", "CRC32", "MAC", "DUMMY"])
def test_pipelined_adds_are_read_back(client: JavaClient, digest: str) -> None:
    client.call("create", handle="w", digest=digest)
    done = client.call("add", handle="w", count=2000, size=100)
    assert (done["acked"], done["failed"]) == (2000, 0)
    closed = client.call("close", handle="w")
    assert closed["last_entry_id"] == 1999
    client.call("open", handle="r", id=closed["id"], digest=digest)
    assert client.call("read", handle="r", first=0, last=1999)["sha256"] == expected(0, 1999, 100)
