"""What the drivers share: a session's state, its listeners and its armed watches."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from bkctl.errors import MetadataLostError
from bkctl.metadata.api import EventKind, MetadataTree, SessionState, Watcher, WatchEvent
from bkctl.metadata.tree_rules import parent_and_name


class Change(NamedTuple):
    """One committed change of a node: `kind` is CREATED, CHANGED or DELETED."""

    kind: EventKind
    path: str


T = TypeVar("T")


def _call(callback: Callable[[T], None], argument: T) -> None:
    """A callback that raises is the loop's to report, not the problem of whoever made the change."""
    try:
        callback(argument)
    except Exception as exc:
        context = {"message": f"metadata callback failed at {argument}", "exception": exc}
        asyncio.get_running_loop().call_exception_handler(context)


class WatchTable:
    """The armed one-shot watches of one session.

    As in ZooKeeper: `get` and `exists` arm the watch of a node's data, which its creation, change
    and deletion fire; `children` arms that of its child list, fired by a child that comes or goes
    and by the node's own deletion.
    """

    def __init__(self) -> None:
        self._data: dict[str, list[Watcher]] = {}
        self._children: dict[str, list[Watcher]] = {}

    def __bool__(self) -> bool:
        return bool(self._data or self._children)

    def arm_data(self, path: str, watcher: Watcher) -> None:
        self._data.setdefault(path, []).append(watcher)

    def arm_children(self, path: str, watcher: Watcher) -> None:
        self._children.setdefault(path, []).append(watcher)

    def fire(self, change: Change) -> None:
        """Fire and forget every watch that `change` concerns."""
        kind, path = change
        for watcher in self._data.pop(path, ()):
            _call(watcher, WatchEvent(kind, path))
        if kind is EventKind.DELETED:
            for watcher in self._children.pop(path, ()):
                _call(watcher, WatchEvent(kind, path))
        if kind is not EventKind.CHANGED:
            parent, _ = parent_and_name(path)
            self.fire_children(parent)

    def fire_children(self, path: str) -> None:
        """A child of `path` came or went."""
        for watcher in self._children.pop(path, ()):
            _call(watcher, WatchEvent(EventKind.CHILDREN, path))

    def fire_all(self, kind: EventKind | None = None) -> None:
        """Fire every watch: with `kind`, or else as if what it watches had changed."""
        tables = ((self._data, EventKind.CHANGED), (self._children, EventKind.CHILDREN))
        self._data, self._children = {}, {}
        for table, changed in tables:
            for path, watchers in table.items():
                for watcher in watchers:
                    _call(watcher, WatchEvent(kind or changed, path))

    def clear(self) -> None:
        self._data.clear()
        self._children.clear()


class SessionTree(MetadataTree):
    """A driver's session. Closing it is no loss: neither watches nor listeners are called then."""

    def __init__(self, session_timeout_ms: int) -> None:
        self._session_timeout_ms = session_timeout_ms
        self._state = SessionState.LOST
        self._lost_because = "the metadata session was not opened"
        self._closed = False
        self._listeners: list[Callable[[SessionState], None]] = []
        self._watches = WatchTable()

    @property
    def session_state(self) -> SessionState:
        return self._state

    @property
    def session_timeout_ms(self) -> int:
        return self._session_timeout_ms

    def on_session(self, listener: Callable[[SessionState], None]) -> None:
        self._listeners.append(listener)

    def _change_state(self, state: SessionState) -> None:
        if state is self._state:
            return
        self._state = state
        if state is SessionState.LOST:
            self._watches.fire_all(EventKind.LOST)
        for listener in tuple(self._listeners):
            _call(listener, state)

    def _lose(self, because: str) -> None:
        """The session is gone. `because` becomes the message of every later call."""
        if self._state is not SessionState.LOST:
            self._lost_because = because
            self._change_state(SessionState.LOST)

    def _mark_closed(self) -> None:
        self._closed = True
        self._state = SessionState.LOST
        self._lost_because = "the metadata session was closed"
        self._watches.clear()

    def _require_session(self) -> None:
        """Raises MetadataLostError unless there is a session, connected or suspended."""
        if self._state is SessionState.LOST:
            raise MetadataLostError(self._lost_because)

    def _require_not_closed(self) -> None:
        if self._closed:
            raise MetadataLostError(self._lost_because)
