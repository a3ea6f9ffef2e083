"""The metadata tree in ZooKeeper, through kazoo: the one home of that library.

kazoo talks to the server on a thread of its own. Replies, watch events and session states are
handed to the event loop through one queue, in the order in which the server sent them; that order
is what makes "the event comes before a read shows the change" hold here too.

kazoo forgets its watches when a connection breaks. Ours stay: when the same session is back they
fire as if what they watch had changed, and when the session is lost they fire with LOST.

Reads are repeated after a lost connection, for as long as the session may live. Writes are not:
their outcome is unknown then, and only the caller can tell its own node from another's.

Source: spec metadata section 21, "ZooKeeper realisation".
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.states import EventType, KazooState, WatchedEvent, ZnodeStat
from kazoo.retry import KazooRetry

from bkctl.errors import (
    BadInputError,
    BadVersionError,
    BkctlError,
    MetadataLostError,
    MetadataStoreError,
    MetadataUnreachableError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from bkctl.metadata.api import (
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

_CLOSE_S = 2.0  # a server that is gone gets no longer; it ends the session by itself
_RETRY_S = 0.02
_PARENT_ATTEMPTS_MAX = 100  # others may prune the parents that we make
# kazoo wakes its thread through a socket pair that holds some 270 wake-ups, then blocks the loop.
_IN_FLIGHT_MAX = 128

_log = logging.getLogger(__name__ + ".kazoo")
_log.addHandler(logging.NullHandler())
_log.setLevel(logging.ERROR)  # it warns about every broken connection, which we report ourselves

_ERRORS: dict[type[Exception], tuple[type[BkctlError], str]] = {
    zk.NoNodeError: (NoNodeError, "no metadata node {path}"),
    zk.NodeExistsError: (NodeExistsError, "metadata node {path} exists"),
    zk.BadVersionError: (BadVersionError, "metadata node {path} has another version than the expected one"),
    zk.NotEmptyError: (NotEmptyError, "metadata node {path} has children"),
    zk.NoChildrenForEphemeralsError: (
        MetadataStoreError,
        "the parent of {path} is an ephemeral metadata node: it cannot have children",
    ),
    zk.NoAuthError: (MetadataStoreError, "ZooKeeper denies access to {path}"),
    zk.AuthFailedError: (MetadataStoreError, "ZooKeeper refused to authenticate this client"),
    zk.SessionExpiredError: (MetadataLostError, "the ZooKeeper session expired"),
    zk.ConnectionLoss: (MetadataUnreachableError, "the connection to ZooKeeper was lost at {path}"),
    zk.OperationTimeoutError: (MetadataUnreachableError, "ZooKeeper timed out at {path}"),
}


def _ours(exc: Exception, path: str) -> BkctlError:
    for kind in type(exc).__mro__:
        if kind in _ERRORS:
            error, text = _ERRORS[kind]
            return error(text.format(path=path))
    return MetadataStoreError(f"ZooKeeper answered {type(exc).__name__} at {path}")


def _stat(stat: ZnodeStat) -> Stat:
    return Stat(
        stat.version, stat.cversion, stat.numChildren, stat.ctime, _session_number(stat.ephemeralOwner)
    )


def _session_number(session_id: int) -> int:
    """kazoo reads a session id as signed; servers numbered 128 and more make negative ones."""
    return session_id & 0xFFFF_FFFF_FFFF_FFFF


class _LoopQueue:
    """What kazoo puts here runs on the event loop, in that order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def put(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop is closed: nobody listens any more


class _LoopHandler(SequentialThreadingHandler):  # type: ignore[misc] # kazoo ships no types
    """kazoo's way to run callbacks, without its two worker threads."""

    running = True  # callbacks always go through the queue

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.completion_queue = self.callback_queue = _LoopQueue(loop)
        self.on_next_result: Callable[[Any], None] | None = None

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def async_result(self) -> Any:
        """Linked before the request is sent: the reply, and an event right behind it, may come
        before the call that sends the request has returned."""
        result = super().async_result()
        callback, self.on_next_result = self.on_next_result, None
        if callback is not None:
            result.rawlink(callback)
        return result


class ZooKeeperTree(SessionTree):
    """A session with the servers `hosts`: "h1:2181,h2:2181", with "/chroot" behind it if wished.

    Opening raises MetadataUnreachableError when no server answered within the session timeout,
    BadInputError when `hosts` is not such a list. The timeout is what we ask for; a server whose
    limits are tighter (2 to 20 of its ticks) applies those.
    """

    def __init__(self, hosts: str, *, session_timeout_ms: int = 10_000) -> None:
        super().__init__(session_timeout_ms)
        self._hosts = hosts
        self._session_id = 0
        self._client: KazooClient | None = None
        self._opening = asyncio.Lock()
        self._settled = asyncio.Event()  # connected or lost: no use in waiting longer
        self._in_flight = asyncio.Semaphore(_IN_FLIGHT_MAX)

    @property
    def session_id(self) -> int:
        return self._session_id

    async def open(self) -> None:
        await self.reopen()

    async def reopen(self) -> None:
        async with self._opening:
            self._require_not_closed()
            if self._state is not SessionState.LOST:
                return
            self._settled.clear()
            self._client = client = self._new_client()
            try:
                client.start_async()
                async with asyncio.timeout(self._session_timeout_ms / 1000):
                    await self._settled.wait()
            except BaseException as exc:
                self._client = None
                _stop(client)
                if isinstance(exc, TimeoutError):
                    raise MetadataUnreachableError(
                        f"no ZooKeeper server answered at {self._hosts} within {self._session_timeout_ms} ms"
                    ) from exc
                raise
            self._require_session()

    async def close(self) -> None:
        if self._closed:
            return
        self._mark_closed()
        self._settled.set()
        client, self._client = self._client, None
        if client is not None:
            await asyncio.wait([_stop(client)], timeout=_CLOSE_S)

    async def get(self, path: str, watcher: Watcher | None = None) -> Node:
        check_path(path)
        arm = None if watcher is None else partial(self._watches.arm_data, path, watcher)
        watch = None if watcher is None else self._on_event
        data, stat = await self._read(path, lambda client: client.get_async(path, watch), arm)
        return Node(data, _stat(stat))

    async def exists(self, path: str, watcher: Watcher | None = None) -> Stat | None:
        check_path(path)
        arm = None if watcher is None else partial(self._watches.arm_data, path, watcher)
        watch = None if watcher is None else self._on_event
        stat = await self._read(path, lambda client: client.exists_async(path, watch), arm)
        return None if stat is None else _stat(stat)

    async def children(self, path: str, watcher: Watcher | None = None) -> tuple[list[str], Stat]:
        check_path(path)
        arm = None if watcher is None else partial(self._watches.arm_children, path, watcher)
        watch = None if watcher is None else self._on_event
        names, stat = await self._read(
            path, lambda client: client.get_children_async(path, watch, include_data=True), arm
        )
        return list(names), _stat(stat)

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
        try:
            return await self._create(path, data, ephemeral=ephemeral, sequential=sequential)
        except NoNodeError:
            if not parents:
                raise
        for _ in range(_PARENT_ATTEMPTS_MAX):
            # Sent together: little time is left for others to prune a parent before its child comes.
            *made, leaf = await asyncio.gather(
                *map(self._create, ancestors(path)),
                self._create(path, data, ephemeral=ephemeral, sequential=sequential),
                return_exceptions=True,
            )
            for outcome in made:
                if not isinstance(outcome, str | NodeExistsError | NoNodeError):
                    raise outcome
            if isinstance(leaf, str):
                return leaf
            if not isinstance(leaf, NoNodeError):
                raise leaf
        raise NoNodeError(f"the parents of {path} are deleted as fast as they are made")

    async def _create(
        self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequential: bool = False
    ) -> str:
        made = await self._write(
            path,
            lambda client: client.create_async(path, data, ephemeral=ephemeral, sequence=sequential),
        )
        return str(made)

    async def set(self, path: str, data: bytes, version: int) -> Stat:
        check_write(path, data)
        return _stat(await self._write(path, lambda client: client.set_async(path, data, version)))

    async def delete(self, path: str, version: int) -> None:
        check_path(path)
        parent_and_name(path)  # the root cannot be deleted
        await self._write(path, lambda client: client.delete_async(path, version))

    async def multi(self, ops: Sequence[Op]) -> None:
        check_multi(ops)
        if not ops:
            return

        def commit(client: KazooClient) -> None:
            transaction = client.transaction()
            for op in ops:
                match op:
                    case CreateOp():
                        transaction.create(op.path, op.data, ephemeral=op.ephemeral)
                    case SetOp():
                        transaction.set_data(op.path, op.data, op.version)
                    case DeleteOp():
                        parent_and_name(op.path)  # the root cannot be deleted
                        transaction.delete(op.path, op.version)
            transaction.commit_async()

        results = await self._write(ops[0].path, commit)
        for op, result in zip(ops, results, strict=False):
            # The ops around the one that failed answer "rolled back" and "inconsistent".
            if isinstance(result, Exception) and not isinstance(
                result, zk.RolledBackError | zk.RuntimeInconsistency
            ):
                raise _ours(result, op.path) from result

    async def sync(self, path: str) -> None:
        check_path(path)
        await self._read(path, lambda client: client.sync_async(path), None)

    async def _read(
        self, path: str, send: Callable[[KazooClient], object], arm: Callable[[], None] | None
    ) -> Any:
        """`arm` runs with the reply, before any later event is looked at."""
        try:
            async with asyncio.timeout(self._session_timeout_ms / 1000):
                while True:
                    try:
                        return await self._request(send, arm)
                    except zk.ConnectionLoss:
                        await asyncio.sleep(_RETRY_S)
        except TimeoutError as exc:
            raise self._unreachable(path) from exc
        except zk.KazooException as exc:
            raise _ours(exc, path) from exc

    async def _write(self, path: str, send: Callable[[KazooClient], object]) -> Any:
        try:
            async with asyncio.timeout(self._session_timeout_ms / 1000):
                return await self._request(send, None)
        except TimeoutError as exc:
            raise self._unreachable(path) from exc
        except zk.KazooException as exc:
            raise _ours(exc, path) from exc

    def _unreachable(self, path: str) -> MetadataUnreachableError:
        return MetadataUnreachableError(
            f"no answer from ZooKeeper at {self._hosts} for {path} within {self._session_timeout_ms} ms"
        )

    async def _request(self, send: Callable[[KazooClient], object], arm: Callable[[], None] | None) -> Any:
        self._require_session()
        async with self._in_flight:
            await self._settled.wait()
            self._require_session()
            client = self._client
            assert client is not None  # there is a session
            # Not while it connects: then nobody takes our wake-ups, see _IN_FLIGHT_MAX. Not in the
            # session that kazoo begins by itself after ours expired, before we heard of that.
            client_id = client.client_id
            if client_id is None or _session_number(client_id[0]) != self._session_id:
                raise zk.ConnectionLoss
            reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            client.handler.on_next_result = partial(self._on_reply, reply, arm)
            send(client)
            return await reply

    def _on_reply(self, reply: "asyncio.Future[Any]", arm: Callable[[], None] | None, result: Any) -> None:
        if reply.done():  # cancelled: whoever asked never learned of the watch
            return
        if not result.successful():
            reply.set_exception(result.exception)
        elif arm is not None and self._state is SessionState.LOST:
            reply.set_exception(MetadataLostError(self._lost_because))
        else:
            if arm is not None:
                arm()
            reply.set_result(result.value)

    def _new_client(self) -> KazooClient:
        handler = _LoopHandler(asyncio.get_running_loop())
        retry = KazooRetry(
            max_tries=-1, delay=0.05, backoff=2, max_jitter=0.4, max_delay=1.0, sleep_func=handler.sleep_func
        )
        try:
            client = KazooClient(
                self._hosts,
                timeout=self._session_timeout_ms / 1000,
                handler=handler,
                connection_retry=retry,
                logger=_log,
            )
        except (ValueError, zk.KazooException) as exc:
            raise BadInputError(f"not a list of ZooKeeper servers: {self._hosts!r}: {exc}") from exc

        def on_state(state: KazooState) -> None:  # on kazoo's thread
            client_id = client.client_id
            handler.completion_queue.put(partial(self._on_state, client, state, client_id))

        client.add_listener(on_state)
        return client

    def _on_state(self, client: KazooClient, state: KazooState, client_id: tuple[int, bytes] | None) -> None:
        if client is not self._client:
            return
        if state == KazooState.CONNECTED:
            assert client_id is not None  # kazoo sets it before it tells
            session_id = _session_number(client_id[0])
            if self._state is SessionState.LOST:
                self._session_id = session_id
            self._settled.set()
            came_back = self._state is SessionState.SUSPENDED
            self._change_state(SessionState.CONNECTED)
            if came_back:
                self._watches.fire_all()
        elif state == KazooState.SUSPENDED:
            self._settled.clear()
            self._change_state(SessionState.SUSPENDED)
        else:
            self._client = None
            _stop(client)  # it would begin a session that nobody asked for
            self._settled.set()
            self._lose("the ZooKeeper session expired")

    def _on_event(self, event: WatchedEvent) -> None:
        kind = _EVENT_KINDS.get(event.type)
        if kind is EventKind.CHILDREN:
            self._watches.fire_children(event.path)
        elif kind is not None:  # NONE is kazoo forgetting its watches; see _on_state
            self._watches.fire(Change(kind, event.path))


_EVENT_KINDS = {
    EventType.CREATED: EventKind.CREATED,
    EventType.CHANGED: EventKind.CHANGED,
    EventType.DELETED: EventKind.DELETED,
    EventType.CHILD: EventKind.CHILDREN,
}


def _stop(client: KazooClient) -> "asyncio.Future[None]":
    """End the client's session and thread, on a thread: this blocks while a server is unreachable."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not stopped.done():
            stopped.set_result(None)

    def stop() -> None:
        try:
            client.stop()
            client.close()
        except Exception as exc:  # kazoo raises whatever its dying thread left behind
            _log.debug("stopping the ZooKeeper client failed: %s", exc)
        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    threading.Thread(target=stop, name="bkctl-zookeeper-stop", daemon=True).start()
    return stopped
