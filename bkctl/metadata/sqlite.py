"""The metadata tree in one SQLite file: the embedded store, one machine, any number of processes.

All work on the file is done by one thread per tree, in the order of the calls. What it reads of the
change feed travels with the answer, so events are always delivered before an answer that shows the
change. A session begins in the store with its first ephemeral node: a command that only reads takes
no lock and starts no heartbeat, and cannot expire.

Not to be used across a fork: neither SQLite's locks nor the session's lock survive one.

Source: spec metadata section 21.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from bkctl.errors import (
    BadInputError,
    CorruptDataError,
    MetadataLostError,
    MetadataStoreError,
    MetadataUnreachableError,
)
from bkctl.metadata import sqlite_nodes
from bkctl.metadata.api import CreateOp, DeleteOp, Node, Op, SessionState, SetOp, Stat, Watcher
from bkctl.metadata.session import Change, SessionTree
from bkctl.metadata.sqlite_database import Database
from bkctl.metadata.sqlite_session import Reaper, SessionLease, begin_session, end_session, require_session
from bkctl.metadata.tree_rules import check_multi, check_path, check_write

_POLL_MS = 75  # how late an event of another process may be
_REAP_INTERVAL_NS = 400_000_000

T = TypeVar("T")


@dataclass(slots=True)
class _Outcome(Generic[T]):
    """What a piece of work brings back to the event loop."""

    result: T | None = None
    error: Exception | None = None
    changes: Sequence[Change] | None = ()  # news of the feed; None: some were missed


class _Worker:
    """The side of the tree that runs on its thread: file, session row, position in the feed."""

    def __init__(
        self, path: Path, session_timeout_ms: int, on_lease: Callable[[int, SessionState], None]
    ) -> None:
        self._path = path
        self._timeout_ms = session_timeout_ms
        self._on_lease = on_lease
        self._database: Database | None = None
        self._session_id = 0
        self._feed_seq: int | None = None  # changes up to this one were delivered; None: no watch yet
        self._data_version = 0
        self._reap_at_ns = 0
        self.lease: SessionLease | None = None  # the event loop may look, not touch

    def connect(self, session_id: int, *, create: bool) -> _Outcome[None]:
        before = self._database
        try:
            database = Database(
                self._path, create=create and before is None, busy_timeout_ms=self._timeout_ms // 2
            )
        except (BadInputError, CorruptDataError) as exc:
            if before is None:
                raise
            raise MetadataLostError(str(exc)) from exc
        if before is not None:
            try:
                database.check_continues(before)
            except MetadataLostError:
                database.close()
                raise
            before.close()
        self._database, self._reaper = database, Reaper(database)
        self._session_id, self._feed_seq, self._reap_at_ns = session_id, None, 0
        self._ready()
        return _Outcome()

    def read(self, query: Callable[[sqlite3.Connection], T], *, follow: bool) -> _Outcome[T]:
        """`follow`: the answer comes with a watch, so from now on the feed is read."""
        outcome: _Outcome[T] = _Outcome()
        with self._ready().read() as connection:
            try:
                outcome.result = query(connection)
            except MetadataStoreError as exc:
                outcome.error = exc
            if follow and self._feed_seq is None:
                self._feed_seq = sqlite_nodes.last_change(connection)
            outcome.changes, seq = self._news(connection)
        self._feed_seq = seq
        return outcome

    def write(self, mutate: Callable[[sqlite3.Connection], T], *, ephemeral: bool) -> _Outcome[T]:
        """`ephemeral`: nodes will belong to the session, so from now on it exists in the store."""
        database = self._ready()
        if ephemeral and self.lease is None:
            on_state = partial(self._on_lease, self._session_id)
            self.lease = begin_session(database, self._session_id, self._timeout_ms, on_state)
        with database.write() as connection:
            if self.lease is not None:
                require_session(connection, self._session_id)
            outcome = _Outcome(mutate(connection))
            outcome.changes, seq = self._news(connection)
        self._feed_seq = seq  # only now: a write that failed has made no news
        return outcome

    def poll(self) -> _Outcome[None]:
        """See what others did: to the file, to our session, to the nodes."""
        database = self._ready()
        version = database.data_version()
        if version == self._data_version:
            return _Outcome()
        outcome: _Outcome[None] = _Outcome()
        with database.read() as connection:
            if self.lease is not None:
                require_session(connection, self._session_id)
            outcome.changes, seq = self._news(connection)
        self._feed_seq, self._data_version = seq, version
        return outcome

    def end_session(self) -> _Outcome[None]:
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.end()
            assert self._database is not None  # there was a session in it
            try:
                end_session(self._database, self._session_id)
            except (MetadataUnreachableError, MetadataLostError):
                pass  # the lock is free: whoever reaches the store next deletes the nodes
        return _Outcome()

    def close(self) -> _Outcome[None]:
        self.end_session()
        if self._database is not None:
            self._database.close()
        return _Outcome()

    def _ready(self) -> Database:
        """The database, after the duties that come before any access to it."""
        assert self._database is not None  # the tree lets no call through before connect
        if self.lease is not None and self.lease.overdue:
            raise MetadataLostError(_EXPIRED)
        if time.monotonic_ns() >= self._reap_at_ns:
            self._reap_at_ns = time.monotonic_ns() + _REAP_INTERVAL_NS
            try:
                if self._reaper.reap(self._session_id):
                    self._data_version = 0  # our own commits do not change it, but these are news
            except MetadataUnreachableError:
                pass  # a locked store or a full disk: somebody else will, or we the next time
        return self._database

    def _news(self, connection: sqlite3.Connection) -> tuple[Sequence[Change] | None, int | None]:
        if self._feed_seq is None:
            return (), None
        return sqlite_nodes.changes_after(connection, self._feed_seq)


class SqliteTree(SessionTree):
    """A session with the store in the file at `path`.

    `create` makes the file when there is none. `session_timeout_ms` is how long this process may
    hang before its ephemeral nodes go; when it dies they go at once. Opening raises
    MetadataUnreachableError (no file, no access), CorruptDataError or BadInputError (not ours).
    """

    def __init__(self, path: Path | str, *, session_timeout_ms: int = 10_000, create: bool = False) -> None:
        super().__init__(session_timeout_ms)
        self._create = create
        self._session_id = 0
        self._worker = _Worker(Path(path), session_timeout_ms, self._on_lease_thread)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="bkctl-metadata")
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_poll: asyncio.TimerHandle | None = None

    @property
    def session_id(self) -> int:
        return self._session_id

    @property
    def session_state(self) -> SessionState:
        """LOST from the very moment that the lease ran out, even if the loop was not told yet."""
        lease = self._worker.lease
        return SessionState.LOST if lease is not None and lease.overdue else self._state

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.reopen()

    async def reopen(self) -> None:
        async with self._opening:
            self._require_not_closed()
            if self.session_state is not SessionState.LOST:
                return
            self._lose(_EXPIRED)
            session_id = int.from_bytes(os.urandom(7)) + 1
            await self._submit(partial(self._worker.connect, session_id, create=self._create))
            self._session_id = session_id
            self._change_state(SessionState.CONNECTED)

    async def close(self) -> None:
        if not self._closed:
            self._mark_closed()
            if self._next_poll is not None:
                self._next_poll.cancel()
            if self._loop is not None:
                await self._submit(self._worker.close)
            self._executor.shutdown(wait=False)

    async def get(self, path: str, watcher: Watcher | None = None) -> Node:
        check_path(path)
        arm = None if watcher is None else partial(self._watches.arm_data, path, watcher)
        return await self._read(lambda connection: sqlite_nodes.get(connection, path), arm)

    async def exists(self, path: str, watcher: Watcher | None = None) -> Stat | None:
        check_path(path)
        arm = None if watcher is None else partial(self._watches.arm_data, path, watcher)
        return await self._read(lambda connection: sqlite_nodes.find(connection, path), arm)

    async def children(self, path: str, watcher: Watcher | None = None) -> tuple[list[str], Stat]:
        check_path(path)
        arm = None if watcher is None else partial(self._watches.arm_children, path, watcher)
        return await self._read(lambda connection: sqlite_nodes.children(connection, path), arm)

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
        mutate = partial(
            sqlite_nodes.create,
            op=CreateOp(path, data, ephemeral),
            owner=self._session_id if ephemeral else 0,
            sequential=sequential,
            parents=parents,
        )
        return await self._write(mutate, ephemeral=ephemeral)

    async def set(self, path: str, data: bytes, version: int) -> Stat:
        check_write(path, data)
        return await self._write(partial(sqlite_nodes.put, op=SetOp(path, data, version)))

    async def delete(self, path: str, version: int) -> None:
        check_path(path)
        await self._write(partial(sqlite_nodes.delete, op=DeleteOp(path, version)))

    async def multi(self, ops: Sequence[Op]) -> None:
        check_multi(ops)
        ephemeral = any(isinstance(op, CreateOp) and op.ephemeral for op in ops)
        mutate = partial(sqlite_nodes.multi, ops=tuple(ops), session_id=self._session_id)
        await self._write(mutate, ephemeral=ephemeral)

    async def sync(self, path: str) -> None:
        check_path(path)
        await self._read(lambda _: None, None)

    async def _read(self, query: Callable[[sqlite3.Connection], T], arm: Callable[[], None] | None) -> T:
        self._require_session()
        return await self._submit(partial(self._worker.read, query, follow=arm is not None), arm)

    async def _write(self, mutate: Callable[[sqlite3.Connection], T], *, ephemeral: bool = False) -> T:
        self._require_session()
        return await self._submit(partial(self._worker.write, mutate, ephemeral=ephemeral))

    def _submit(
        self, work: Callable[[], _Outcome[T]], arm: Callable[[], None] | None = None
    ) -> "asyncio.Future[T]":
        """Queue `work`; `arm` is called on the loop between the events before and after the answer."""
        assert self._loop is not None  # open comes first
        future: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                outcome = work()
            except Exception as exc:
                outcome = _Outcome(error=exc)
            self._call_loop(self._deliver, future, outcome, arm)

        self._executor.submit(run)
        return future

    def _call_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _deliver(
        self, future: "asyncio.Future[T]", outcome: _Outcome[Any], arm: Callable[[], None] | None
    ) -> None:
        if outcome.changes is None:
            self._watches.fire_all()
        else:
            for change in outcome.changes:
                self._watches.fire(change)
        error = outcome.error
        if isinstance(error, MetadataLostError):
            self._lose(str(error))
        if future.done():  # cancelled: whoever asked never learned of the watch
            return
        if error is None and arm is not None:
            if self._state is SessionState.LOST:
                error = MetadataLostError(self._lost_because)
            else:
                arm()
        if error is None:
            future.set_result(cast(T, outcome.result))
        else:
            future.set_exception(error)
        self._schedule_poll()

    def _schedule_poll(self) -> None:
        wanted = self._state is not SessionState.LOST and (self._watches or self._worker.lease is not None)
        if wanted and self._next_poll is None and self._loop is not None:
            self._next_poll = self._loop.call_later(_POLL_MS / 1000, self._poll)

    def _poll(self) -> None:
        polling = self._submit(self._worker.poll)
        polling.add_done_callback(self._on_polled)

    def _on_polled(self, polling: "asyncio.Future[None]") -> None:
        self._next_poll = None
        error = polling.exception()
        if error is not None and not isinstance(error, MetadataStoreError):
            raise error  # a defect: the loop reports it
        self._schedule_poll()

    def _lose(self, because: str) -> None:
        if self._state is not SessionState.LOST:
            super()._lose(because)  # the owner knows before its nodes go
            self._executor.submit(self._worker.end_session)

    def _on_lease_thread(self, session_id: int, state: SessionState) -> None:
        self._call_loop(self._on_lease, session_id, state)

    def _on_lease(self, session_id: int, state: SessionState) -> None:
        if session_id != self._session_id or self._state is SessionState.LOST:
            return
        if state is SessionState.LOST:
            self._lose(_EXPIRED)
        else:
            self._change_state(state)


_EXPIRED = "the metadata session expired: this process did not run for the session timeout"
