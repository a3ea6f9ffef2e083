"""What the memory driver can do to its user on purpose, for the tests of others."""

import pytest

from bkctl.errors import BadVersionError, MetadataLostError, MetadataUnreachableError, NodeExistsError
from bkctl.metadata.api import CreateOp, EventKind, SessionState, WatchEvent
from bkctl.metadata.memory import MemoryStore, MemoryTree
from tests.conformance.tree_drivers import Events


async def test_a_lost_reply_leaves_the_write_done() -> None:
    tree = MemoryTree()
    await tree.open()
    tree.fail_next_reply(3)
    with pytest.raises(MetadataUnreachableError):
        await tree.create("/node", b"0")
    with pytest.raises(MetadataUnreachableError):
        await tree.set("/node", b"1", 0)
    with pytest.raises(MetadataUnreachableError):
        await tree.multi([CreateOp("/other")])
    node = await tree.get("/node")
    assert (node.data, node.stat.version) == (b"1", 1)
    await tree.delete("/other", 0)


async def test_only_replies_of_writes_that_succeed_are_lost() -> None:
    tree = MemoryTree()
    await tree.open()
    await tree.create("/node")
    tree.fail_next_reply()
    await tree.get("/node")
    with pytest.raises(NodeExistsError):
        await tree.create("/node")
    with pytest.raises(BadVersionError):
        await tree.set("/node", b"", 5)
    with pytest.raises(MetadataUnreachableError):
        await tree.delete("/node", 0)
    await tree.create("/node")


async def test_a_suspended_session_hears_of_everything_when_it_resumes() -> None:
    store = MemoryStore()
    tree, other = MemoryTree(store), MemoryTree(store)
    await tree.open()
    await other.open()
    states: list[SessionState] = []
    events = Events()
    tree.on_session(states.append)
    await tree.create("/mine", ephemeral=True)
    await tree.exists("/node", events)

    tree.suspend()
    await other.create("/node")
    for call in (tree.get("/node"), tree.create("/new")):
        with pytest.raises(MetadataUnreachableError):
            await call
    assert events == []
    assert await other.exists("/mine") is not None

    tree.resume()
    assert events == [WatchEvent(EventKind.CREATED, "/node")]
    assert states == [SessionState.SUSPENDED, SessionState.CONNECTED]
    assert await tree.exists("/new") is None


async def test_a_suspended_session_may_end() -> None:
    store = MemoryStore()
    tree, other = MemoryTree(store), MemoryTree(store)
    await tree.open()
    await other.open()
    await tree.create("/mine", ephemeral=True)
    known_when_gone: list[SessionState] = []
    await other.exists("/mine", lambda _: known_when_gone.append(tree.session_state))
    tree.suspend()
    tree.expire_session()
    assert known_when_gone == [SessionState.LOST]  # never before the owner could know
    assert await other.exists("/mine") is None
    with pytest.raises(MetadataLostError):
        await tree.get("/")
