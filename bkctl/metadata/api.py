"""The metadata tree: what bkctl needs of a store, whatever the store.

Paths, bytes and versions mean the same in every driver (memory, SQLite, ZooKeeper), so a cluster
can be copied from one to another node by node. Everything above this interface exists once.

Laws (one conformance suite holds every driver to them; spec metadata section 21):
- A value and its version are read as one. NoNodeError is never used for "unreachable".
- `children` is complete as of some instant after the call, or raises; it is never a short list.
- A watch is armed atomically with the read it belongs to, fires at most once, and fires for every
  later change, own changes included; events may merge. Losing the session fires all of them.
- An ephemeral node lives exactly as long as the session of its creator.
- A write that raises MetadataUnreachableError has an unknown outcome; the caller must re-read.
"""

import abc
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ANY_VERSION = -1


@dataclass(frozen=True, slots=True)
class Stat:
    """`owner` is the session id of an ephemeral node, 0 for a persistent one; `ctime_ms` wall time."""

    version: int
    child_version: int
    child_count: int
    ctime_ms: int
    owner: int


@dataclass(frozen=True, slots=True)
class Node:
    data: bytes
    stat: Stat


class EventKind(enum.Enum):
    CREATED = "created"
    CHANGED = "changed"
    DELETED = "deleted"
    CHILDREN = "children"
    LOST = "lost"  # the session is gone: re-read everything


@dataclass(frozen=True, slots=True)
class WatchEvent:
    kind: EventKind
    path: str


Watcher = Callable[[WatchEvent], None]  # called on the event loop; must not block


class SessionState(enum.Enum):
    CONNECTED = "connected"
    SUSPENDED = "suspended"  # stop guarded work; the session may still come back
    LOST = "lost"  # ephemeral nodes are gone; a new session must be opened


@dataclass(frozen=True, slots=True)
class CreateOp:
    path: str
    data: bytes = b""
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class SetOp:
    path: str
    data: bytes
    version: int = ANY_VERSION


@dataclass(frozen=True, slots=True)
class DeleteOp:
    path: str
    version: int = ANY_VERSION


Op = CreateOp | SetOp | DeleteOp


class MetadataTree(abc.ABC):
    """One session with a store. Every coroutine may raise MetadataUnreachableError or MetadataLostError.

    Paths are absolute, without a trailing slash. Sessions: `session_id` is positive and unique in
    the store; after LOST every call raises MetadataLostError until `reopen` made a new session.
    """

    @property
    @abc.abstractmethod
    def session_id(self) -> int: ...

    @property
    @abc.abstractmethod
    def session_state(self) -> SessionState: ...

    @property
    @abc.abstractmethod
    def session_timeout_ms(self) -> int: ...

    @abc.abstractmethod
    def on_session(self, listener: Callable[[SessionState], None]) -> None:
        """Call `listener` on the event loop at every change of the session's state."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect and begin a session."""

    @abc.abstractmethod
    async def reopen(self) -> None:
        """After LOST: begin a new session. Watches and ephemeral nodes of the old one are gone."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End the session; its ephemeral nodes go at once. Idempotent."""

    @abc.abstractmethod
    async def get(self, path: str, watcher: Watcher | None = None) -> Node:
        """The node at `path`. Raises NoNodeError (no watch is armed then)."""

    @abc.abstractmethod
    async def exists(self, path: str, watcher: Watcher | None = None) -> Stat | None:
        """Its Stat, or None; a watch is armed in both cases and fires on creation too."""

    @abc.abstractmethod
    async def children(self, path: str, watcher: Watcher | None = None) -> tuple[list[str], Stat]:
        """Names of the children, in no promised order, and the parent's Stat. Raises NoNodeError."""

    @abc.abstractmethod
    async def create(
        self,
        path: str,
        data: bytes = b"",
        *,
        ephemeral: bool = False,
        sequential: bool = False,
        parents: bool = False,
    ) -> str:
        """Create exclusively; the path made. Raises NodeExistsError, NoNodeError (no parent).

        `sequential` appends a 10-digit number that strictly increases over the parent's whole
        life. `parents` creates missing parents, persistent and empty.
        """

    @abc.abstractmethod
    async def set(self, path: str, data: bytes, version: int) -> Stat:
        """Compare-and-set. Raises NoNodeError, BadVersionError."""

    @abc.abstractmethod
    async def delete(self, path: str, version: int) -> None:
        """Compare-and-delete. Raises NoNodeError, BadVersionError, NotEmptyError."""

    @abc.abstractmethod
    async def multi(self, ops: Sequence[Op]) -> None:
        """All of `ops` or none. Raises the error of the first op that cannot be done."""

    @abc.abstractmethod
    async def sync(self, path: str) -> None:
        """Later reads by this session see everything that was committed before the call."""
