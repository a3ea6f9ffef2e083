"""The metadata tree in memory: the reference driver, for tests and the simulator.

A MemoryStore is the shared state, a MemoryTree one session with it. Watches fire inside the write
that they see, so an event always arrives before a read can show the change. Between request, effect
and reply the event loop may run others, as with a real store.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field

from bkctl.errors import (
    BadVersionError,
    MetadataStoreError,
    MetadataUnreachableError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from bkctl.metadata.api import (
    ANY_VERSION,
    CreateOp,
    DeleteOp,
    EventKind,
    Node,
    Op,
    SessionState,
    SetOp,
    Stat,
    Watcher,
)
from bkctl.metadata.session import Change, SessionTree
from bkctl.metadata.tree_rules import ancestors, check_multi, check_path, check_write, parent_and_name


@dataclass(slots=True)
class _StoredNode:
    data: bytes
    owner: int
    ctime_ms: int
    version: int = 0
    created_children: int = 0  # over its whole life: the next sequence number
    children: set[str] = field(default_factory=set)

    def __copy__(self) -> "_StoredNode":
        return _StoredNode(
            self.data, self.owner, self.ctime_ms, self.version, self.created_children, set(self.children)
        )

    def stat(self) -> Stat:
        child_count = len(self.children)
        # ZooKeeper counts creates and reports creates plus deletes (spec section 3).
        child_version = 2 * self.created_children - child_count
        return Stat(self.version, child_version, child_count, self.ctime_ms, self.owner)


class MemoryStore:
    """The nodes, and the sessions to tell of changes. Every method is one atomic step."""

    def __init__(self) -> None:
        self._nodes = {"/": _StoredNode(b"", 0, _now_ms())}
        self._sessions: dict[int, Callable[[Sequence[Change]], None]] = {}
        self._last_session_id = 0

    def begin_session(self, on_changes: Callable[[Sequence[Change]], None]) -> int:
        """A new session id; `on_changes` is called inside every write, in the order of writes."""
        self._last_session_id += 1
        self._sessions[self._last_session_id] = on_changes
        return self._last_session_id

    def end_session(self, session_id: int) -> None:
        """Forget the session and delete its ephemeral nodes. Idempotent."""
        if self._sessions.pop(session_id, None) is None:
            return
        owned = [path for path, node in self._nodes.items() if node.owner == session_id]
        self._announce([self._delete(path, ANY_VERSION) for path in owned])

    def find(self, path: str) -> _StoredNode | None:
        return self._nodes.get(path)

    def create(self, op: CreateOp, owner: int, *, sequential: bool, parents: bool) -> str:
        missing = [ancestor for ancestor in ancestors(op.path) if parents and ancestor not in self._nodes]
        changes = [self._create(ancestor, b"", 0) for ancestor in missing]
        path = op.path
        if sequential:
            path += f"{self._node(parent_and_name(path)[0]).created_children:010d}"
        changes.append(self._create(path, op.data, owner))
        self._announce(changes)
        return path

    def set(self, op: SetOp) -> Stat:
        change = self._set(op.path, op.data, op.version)
        self._announce([change])
        return self._nodes[op.path].stat()

    def delete(self, op: DeleteOp) -> None:
        self._announce([self._delete(op.path, op.version)])

    def multi(self, ops: Sequence[Op], owner: int) -> None:
        touched = {path for op in ops for path in (op.path, op.path.rpartition("/")[0] or "/")}
        before = {path: copy(self._nodes.get(path)) for path in touched}
        changes: list[Change] = []
        try:
            for op in ops:
                match op:
                    case CreateOp():
                        changes.append(self._create(op.path, op.data, owner if op.ephemeral else 0))
                    case SetOp():
                        changes.append(self._set(op.path, op.data, op.version))
                    case DeleteOp():
                        changes.append(self._delete(op.path, op.version))
        except MetadataStoreError:
            for path, node in before.items():
                if node is None:
                    self._nodes.pop(path, None)
                else:
                    self._nodes[path] = node
            raise
        self._announce(changes)

    def _node(self, path: str) -> _StoredNode:
        node = self._nodes.get(path)
        if node is None:
            raise NoNodeError(f"no metadata node {path}")
        return node

    def _create(self, path: str, data: bytes, owner: int) -> Change:
        if path in self._nodes:
            raise NodeExistsError(f"metadata node {path} exists")
        parent_path, name = parent_and_name(path)
        parent = self._node(parent_path)
        if parent.owner:
            raise MetadataStoreError(f"ephemeral metadata node {parent_path} cannot have children")
        self._nodes[path] = _StoredNode(data, owner, _now_ms())
        parent.created_children += 1
        parent.children.add(name)
        return Change(EventKind.CREATED, path)

    def _set(self, path: str, data: bytes, version: int) -> Change:
        node = self._node(path)
        _check_version(path, node.version, version)
        node.data = data
        node.version += 1
        return Change(EventKind.CHANGED, path)

    def _delete(self, path: str, version: int) -> Change:
        parent_path, name = parent_and_name(path)
        node = self._node(path)
        _check_version(path, node.version, version)
        if node.children:
            raise NotEmptyError(f"metadata node {path} has children")
        del self._nodes[path]
        self._nodes[parent_path].children.remove(name)
        return Change(EventKind.DELETED, path)

    def _announce(self, changes: Sequence[Change]) -> None:
        for on_changes in tuple(self._sessions.values()):
            on_changes(changes)


def _check_version(path: str, found: int, expected: int) -> None:
    if expected not in (ANY_VERSION, found):
        raise BadVersionError(f"metadata node {path} has version {found}, not {expected}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryTree(SessionTree):
    """One session with `store`, which trees on one event loop may share; a store of its own if None.

    Tests may lose the session (`expire_session`), interrupt it (`suspend`, `resume`), or lose the
    reply of a write that has happened (`fail_next_reply`).
    """

    def __init__(self, store: MemoryStore | None = None, *, session_timeout_ms: int = 10_000) -> None:
        super().__init__(session_timeout_ms)
        self._store = MemoryStore() if store is None else store
        self._session_id = 0
        self._replies_to_fail = 0
        self._missed: list[Change] = []  # while suspended

    @property
    def session_id(self) -> int:
        return self._session_id

    async def open(self) -> None:
        await self.reopen()

    async def reopen(self) -> None:
        self._require_not_closed()
        if self._state is SessionState.LOST:
            self._session_id = self._store.begin_session(self._on_changes)
            self._change_state(SessionState.CONNECTED)

    async def close(self) -> None:
        self._mark_closed()
        self._store.end_session(self._session_id)

    def expire_session(self) -> None:
        """The store declares the session lost; its owner knows before its nodes vanish."""
        self._missed.clear()
        self._lose("the metadata session expired")
        self._store.end_session(self._session_id)

    def suspend(self) -> None:
        """The connection breaks: calls raise MetadataUnreachableError, events wait for `resume`."""
        assert self._state is SessionState.CONNECTED, self._state
        self._change_state(SessionState.SUSPENDED)

    def resume(self) -> None:
        """The connection is back, in the same session."""
        assert self._state is SessionState.SUSPENDED, self._state
        self._change_state(SessionState.CONNECTED)
        missed, self._missed = self._missed, []
        self._fire(missed)

    def fail_next_reply(self, count: int = 1) -> None:
        """The next `count` writes that succeed raise MetadataUnreachableError all the same."""
        self._replies_to_fail = count

    async def get(self, path: str, watcher: Watcher | None = None) -> Node:
        check_path(path)
        await self._request()
        found = self._store.find(path)
        if found is None:
            raise NoNodeError(f"no metadata node {path}")
        if watcher is not None:
            self._watches.arm_data(path, watcher)
        return Node(found.data, found.stat())

    async def exists(self, path: str, watcher: Watcher | None = None) -> Stat | None:
        check_path(path)
        await self._request()
        found = self._store.find(path)
        if watcher is not None:
            self._watches.arm_data(path, watcher)
        return None if found is None else found.stat()

    async def children(self, path: str, watcher: Watcher | None = None) -> tuple[list[str], Stat]:
        check_path(path)
        await self._request()
        found = self._store.find(path)
        if found is None:
            raise NoNodeError(f"no metadata node {path}")
        if watcher is not None:
            self._watches.arm_children(path, watcher)
        return list(found.children), found.stat()

    async def create(
        self,
        path: str,
        data: bytes = b"",
        *,
        ephemeral: bool = False,
        sequential: bool = False,
        parents: bool = False,
    ) -> str:
        check_write(path, data)
        owner = self._session_id if ephemeral else 0
        op = CreateOp(path, data, ephemeral)
        await self._request()
        made = self._store.create(op, owner, sequential=sequential, parents=parents)
        await self._write_reply()
        return made

    async def set(self, path: str, data: bytes, version: int) -> Stat:
        check_write(path, data)
        await self._request()
        stat = self._store.set(SetOp(path, data, version))
        await self._write_reply()
        return stat

    async def delete(self, path: str, version: int) -> None:
        check_path(path)
        await self._request()
        self._store.delete(DeleteOp(path, version))
        await self._write_reply()

    async def multi(self, ops: Sequence[Op]) -> None:
        check_multi(ops)
        await self._request()
        self._store.multi(ops, self._session_id)
        await self._write_reply()

    async def sync(self, path: str) -> None:
        check_path(path)
        await self._request()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        if self._state is SessionState.SUSPENDED:
            self._missed.extend(changes)
        else:
            self._fire(changes)

    def _fire(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._watches.fire(change)

    async def _request(self) -> None:
        self._require_session()
        await asyncio.sleep(0)
        self._require_session()
        if self._state is SessionState.SUSPENDED:
            raise MetadataUnreachableError("the metadata store cannot be reached: suspended")

    async def _write_reply(self) -> None:
        await asyncio.sleep(0)
        if self._replies_to_fail:
            self._replies_to_fail -= 1
            raise MetadataUnreachableError("the reply of the metadata store was lost: outcome unknown")
