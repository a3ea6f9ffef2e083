"""What all interop tests share: the jars, one ZooKeeper, one driver; each test has a root of its own."""

import itertools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bkctl import __version__
from tests.integration.bookies import bkctl
from tests.interop import matrix
from tests.interop.apache import Apache, JavaClient, JavaDriver, resolve
from tests.interop.java_bookies import STORAGES, JavaCluster, java_bookies
from tests.zookeeper_server import ZooKeeperServer

_roots = itertools.count(1)


@pytest.fixture(scope="session")
def apache() -> Apache:
    try:
        found = resolve()
    except AssertionError as error:
        pytest.exit(str(error), returncode=1)
    _facts.update(
        {
            "Apache BookKeeper": found.version,
            "Java": found.java_version(),
            "bkctl": __version__,
            "Python": platform.python_version(),
        }
    )
    return found


@pytest.fixture(scope="session")
def zookeeper(apache: Apache) -> Iterator[ZooKeeperServer]:
    server = ZooKeeperServer(apache.class_path)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def driver(apache: Apache, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JavaDriver]:
    driver = JavaDriver(apache, tmp_path_factory.mktemp("driver") / "driver.log")
    try:
        yield driver
    finally:
        driver.close()


@pytest.fixture(scope="session")
def new_uri(zookeeper: ZooKeeperServer) -> Callable[..., str]:
    """`new_uri(layout="hierarchical")`: the URI of a cluster that nobody has made yet."""

    def uri(layout: str = "hierarchical") -> str:
        return f"zk+{layout}://{zookeeper.hosts}/interop-{next(_roots)}"

    return uri


@pytest.fixture(scope="session")
def new_cluster(new_uri: Callable[..., str]) -> Callable[..., str]:
    """As `new_uri`, initialised by bkctl."""

    def uri(layout: str = "hierarchical") -> str:
        made = new_uri(layout)
        done = bkctl("cluster", "init", "-u", made)
        assert done.returncode == 0, done.stderr
        return made

    return uri


_outcomes: list[tuple[str, str, bool]] = []
_facts: dict[str, str] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call" or report.failed:
        _outcomes.append((item.module.__name__.rpartition(".")[2], item.originalname, report.passed))


def pytest_sessionfinish() -> None:
    if "Apache BookKeeper" in _facts:
        matrix.record(_facts.pop("Apache BookKeeper"), _facts, _outcomes)


@pytest.fixture(scope="module", params=STORAGES)
def cluster(
    request: pytest.FixtureRequest,
    apache: Apache,
    new_cluster: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[JavaCluster]:
    """Java bookies of one storage, then of the other."""
    home: Path = tmp_path_factory.mktemp("java")
    with java_bookies(apache, new_cluster(), home, request.param) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def java(cluster: JavaCluster, driver: JavaDriver) -> Iterator[JavaClient]:
    """A Java client of that cluster."""
    client = driver.client("java", cluster.uri)
    yield client
    client.close()
