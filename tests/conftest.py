"""Fixtures and rules for all tests."""

import asyncio
import inspect
import signal
from collections.abc import Iterator

import pytest

from tests.zookeeper_server import ZooKeeperServer

# A test run in the background of a shell ignores SIGINT, and so would the programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine runs in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def zookeeper_server() -> Iterator[ZooKeeperServer]:
    """One running server for all tests; whoever stops it starts it again. Each test keeps to its own root."""
    server = ZooKeeperServer()
    try:
        server.start()
        yield server
    finally:
        server.close()
