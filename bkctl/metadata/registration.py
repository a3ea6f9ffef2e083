"""Bookies that are there: a bookie's registration, and how clients find bookies.

Source: spec metadata section 9; upstream ZKRegistrationManager, ZKRegistrationClient.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from bkctl.errors import (
    BkctlError,
    BookieHandleNotAvailableError,
    BookieStartError,
    CorruptDataError,
    MetadataStoreError,
    MetadataUnreachableError,
    NodeExistsError,
    NoNodeError,
)
from bkctl.formats import service_info
from bkctl.formats.service_info import BookieServiceInfo
from bkctl.metadata.api import ANY_VERSION, MetadataTree, SessionState, Watcher
from bkctl.metadata.bookie_nodes import READONLY, list_bookies, no_cluster
from bkctl.metadata.follow import Followers, setter
from bkctl.types import Address, BookieId

WRITABLE_PARENT = "available"
READONLY_PARENT = f"{WRITABLE_PARENT}/{READONLY}"

# ZooKeeper looks for expired sessions once per tick, 2 s by default.
_EXPIRY_SLACK_MS = 2_000
_REGISTRATION_EXIT_CODE = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BookieSets:
    """For an instant a bookie may be in both while it changes: writable counts then."""

    writable: frozenset[BookieId]
    readonly: frozenset[BookieId]


class RegistrationClient:
    """Discovery. Every coroutine may raise MetadataStoreError, and CorruptDataError for bad nodes."""

    def __init__(self, tree: MetadataTree, root: str) -> None:
        self._tree = tree
        self._root = root
        self._followers = Followers()

    async def writable(self) -> list[BookieId]:
        """Sorted ids of the bookies registered as writable."""
        return await list_bookies(self._tree, self._root, WRITABLE_PARENT)

    async def readonly(self) -> list[BookieId]:
        """Sorted ids of the bookies registered as read-only."""
        return await list_bookies(self._tree, self._root, READONLY_PARENT)

    async def all(self) -> list[BookieId]:
        """Sorted ids of the bookies that have a cookie: dead ones too."""
        return await list_bookies(self._tree, self._root, "cookies")

    async def service_info(self, bookie_id: BookieId) -> BookieServiceInfo:
        """What the bookie published. Raises BookieHandleNotAvailableError: it is not registered."""
        for parent in (WRITABLE_PARENT, READONLY_PARENT):
            path = f"{self._root}/{parent}/{bookie_id}"
            try:
                node = await self._tree.get(path)
            except NoNodeError:
                continue
            try:
                return service_info.decode(node.data, bookie_id)
            except CorruptDataError as exc:
                raise CorruptDataError(f"{path}: {exc}") from exc
        raise BookieHandleNotAvailableError(f"bookie {bookie_id} is not registered: it is down, or unknown")

    async def resolve(self, bookie_id: BookieId) -> Address:
        """Where to connect to. Raises BookieHandleNotAvailableError."""
        address = (await self.service_info(bookie_id)).bookie_rpc_address
        if address is None:
            raise BookieHandleNotAvailableError(f"bookie {bookie_id} published no bookie-rpc endpoint")
        return address

    async def watch_bookies(self, listener: Callable[[BookieSets], None]) -> Callable[[], None]:
        """Tell `listener` both sets now and after every change; returns the function that ends it."""
        found: dict[str, frozenset[BookieId]] = {}
        told: BookieSets | None = None

        def follow(parent: str) -> Callable[[], None]:
            async def read(watcher: Watcher) -> bool:
                nonlocal told
                found[parent] = frozenset(await list_bookies(self._tree, self._root, parent, watcher))
                if len(found) == 2:
                    now = BookieSets(found[WRITABLE_PARENT], found[READONLY_PARENT])
                    if now != told:
                        told = now
                        listener(now)
                return True

            return self._followers.start(f"{self._root}/{parent}", read)

        cancels = [follow(WRITABLE_PARENT), follow(READONLY_PARENT)]

        def cancel() -> None:
            for each in cancels:
                each()

        return cancel

    async def close(self) -> None:
        """End all watches."""
        await self._followers.close()


@dataclass(slots=True)
class _Registration:
    bookie_id: BookieId
    data: bytes
    readonly: bool


class RegistrationManager:
    """Keeps one bookie registered, in every session that `tree` goes through.

    `on_failure` is called when a new session could not register it: the bookie must not go on.
    """

    def __init__(
        self, tree: MetadataTree, root: str, *, on_failure: Callable[[BkctlError], None] | None = None
    ) -> None:
        self._tree = tree
        self._root = root
        self._on_failure = on_failure
        self._registration: _Registration | None = None
        self._closed = False
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        tree.on_session(self._session_changed)

    async def register(self, bookie_id: BookieId, info: BookieServiceInfo, *, readonly: bool) -> None:
        """Register and stay registered until `unregister`.

        Waits for the node of an older session to go, for the session timeout at most; then raises
        BookieStartError (exit code 4). Raises NoClusterError, MetadataStoreError.
        """
        async with self._lock:
            registration = _Registration(bookie_id, service_info.encode(info), readonly)
            await self._settle(registration)
            self._registration = registration

    async def to_readonly(self) -> None:
        """Become read-only: first there, then no longer writable. Raises as `register`; call again then."""
        await self._change_mode(readonly=True)

    async def to_writable(self) -> None:
        """Become writable again. Raises as `register`; call again then."""
        await self._change_mode(readonly=False)

    async def unregister(self) -> None:
        """Leave at once, so that a restart need not wait for the session to expire."""
        await self.close()
        async with self._lock:
            registration, self._registration = self._registration, None
            if registration is not None:
                for readonly in (False, True):
                    await self._release(registration.bookie_id, readonly=readonly)

    async def close(self) -> None:
        """Stop renewing; the nodes go with the session."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _change_mode(self, *, readonly: bool) -> None:
        async with self._lock:
            assert self._registration is not None, "register first"
            self._registration.readonly = readonly  # a new session must come back in this mode
            await self._settle(self._registration)

    async def _settle(self, registration: _Registration) -> None:
        """Be in the one set, then leave the other: for an instant in both, never in none."""
        await self._hold(registration)
        await self._release(registration.bookie_id, readonly=not registration.readonly)

    def _path(self, bookie_id: BookieId, *, readonly: bool) -> str:
        return f"{self._root}/{READONLY_PARENT if readonly else WRITABLE_PARENT}/{bookie_id}"

    def _session_changed(self, state: SessionState) -> None:
        if state is SessionState.CONNECTED and self._registration is not None and not self._closed:
            task = asyncio.create_task(self._renew(), name="renew registration")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _renew(self) -> None:
        async with self._lock:
            if self._registration is None:
                return
            try:
                await self._settle(self._registration)
            except MetadataStoreError as exc:
                # Not connected any more: the next connection comes here again.
                log.warning("bookie %s could not register again: %s", self._registration.bookie_id, exc)
            except BookieStartError as exc:
                log.error("bookie %s could not register again: %s", self._registration.bookie_id, exc)
                if self._on_failure is not None:
                    self._on_failure(exc)

    async def _hold(self, registration: _Registration) -> None:
        """Make the ephemeral node, or find it made by this session (a reply may have been lost)."""
        path = self._path(registration.bookie_id, readonly=registration.readonly)
        loop = asyncio.get_running_loop()
        patience_ms = self._tree.session_timeout_ms + _EXPIRY_SLACK_MS
        deadline_s = loop.time() + patience_ms / 1000
        while True:
            gone = asyncio.Event()
            stat = await self._tree.exists(path, setter(gone))
            if stat is None:
                await self._try_create(path, registration.data)
            elif stat.owner == self._tree.session_id:
                return
            elif stat.owner == 0:
                raise BookieStartError(
                    f"{path} is a persistent node, so no bookie made it: delete it", _REGISTRATION_EXIT_CODE
                )
            else:
                log.info("waiting for the earlier session of bookie %s to expire", registration.bookie_id)
                try:
                    await asyncio.wait_for(gone.wait(), deadline_s - loop.time())
                except TimeoutError:
                    raise BookieStartError(
                        f"bookie {registration.bookie_id} is registered by another process "
                        f"(waited {patience_ms} ms for it to go)",
                        _REGISTRATION_EXIT_CODE,
                    ) from None

    async def _try_create(self, path: str, data: bytes) -> None:
        """Whatever happened, the caller looks at the node again."""
        try:
            await self._tree.create(path, data, ephemeral=True)
        except NodeExistsError:
            pass
        except NoNodeError:
            await self._create_parents(path)
        except MetadataUnreachableError as exc:
            log.info("registering again: %s", exc)

    async def _create_parents(self, path: str) -> None:
        """`available` and `available/readonly`, below a root that must be there."""
        names = path.removeprefix(self._root + "/").split("/")[:-1]
        for depth in range(1, len(names) + 1):
            try:
                await self._tree.create("/".join([self._root, *names[:depth]]))
            except NodeExistsError:
                pass
            except NoNodeError:
                raise no_cluster(self._root) from None

    async def _release(self, bookie_id: BookieId, *, readonly: bool) -> None:
        try:
            await self._tree.delete(self._path(bookie_id, readonly=readonly), ANY_VERSION)
        except NoNodeError:
            pass
