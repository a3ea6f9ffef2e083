"""Metadata of ledgers in the tree: create, read, compare-and-set, delete, list, watch.

Source: spec metadata sections 5, 6 and 8; upstream AbstractZkLedgerManager.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from bkctl.errors import (
    BadVersionError,
    CorruptDataError,
    LedgerExistsError,
    MetadataLostError,
    MetadataSerializationError,
    MetadataStoreError,
    MetadataUnreachableError,
    MetadataVersionError,
    NodeExistsError,
    NoNodeError,
    NoSuchLedgerOnMetadataServerError,
)
from bkctl.formats import ledger_metadata
from bkctl.formats.layout import Layout
from bkctl.formats.ledger_path import ManagerType, Shape, check_creatable, ledger_path
from bkctl.metadata.api import ANY_VERSION, MetadataTree, Node, Watcher
from bkctl.metadata.follow import RETRY_DELAY_MS, Followers
from bkctl.metadata.ledger_ids import LedgerIdGenerator
from bkctl.types import LedgerId, LedgerMetadata, Versioned

_CREATE_ATTEMPTS = 3
_TOKEN_FORMAT_VERSION = 3  # the format that stores a creator token
_PRUNING_MANAGERS = (ManagerType.HIERARCHICAL, ManagerType.LONG_HIERARCHICAL)

LedgerListener = Callable[[Versioned[LedgerMetadata] | None], None]
"""Called on the event loop with newer and newer metadata; with None, once, when it is deleted."""


class LedgerManager:
    """The ledgers of one cluster. Every coroutine may raise MetadataStoreError."""

    def __init__(self, tree: MetadataTree, root: str, layout: Layout) -> None:
        self._tree = tree
        self._root = root
        self._manager = layout.manager
        self._ids = LedgerIdGenerator(tree, root, self._manager)
        self._followers = Followers()
        self._instance_id: bytes | None = None

    async def create(
        self, metadata: LedgerMetadata, ledger_id: LedgerId | None = None, *, creator_token: int
    ) -> tuple[LedgerId, Versioned[LedgerMetadata]]:
        """Create a ledger under a new id, or under `ledger_id`.

        `creator_token`: random, 0 < token < 2**63 - 1; by it a create whose reply was lost is known
        again. Raises LedgerExistsError (only with `ledger_id`), IncorrectParameterError.
        """
        assert 0 < creator_token < (1 << 63) - 1
        metadata = replace(metadata, creator_token=creator_token)
        if ledger_id is not None:
            check_creatable(self._manager, ledger_id)
            return ledger_id, await self._create_at(ledger_id, metadata)
        while True:
            new_id = await self._next_id()
            try:
                return new_id, await self._create_at(new_id, metadata)
            except LedgerExistsError:  # an explicit id, or the counter was reset
                continue

    async def read(self, ledger_id: LedgerId) -> Versioned[LedgerMetadata]:
        """Raises NoSuchLedgerOnMetadataServerError, MetadataSerializationError."""
        return await self._read(ledger_id, None)

    async def write(
        self, ledger_id: LedgerId, metadata: LedgerMetadata, version: int
    ) -> Versioned[LedgerMetadata]:
        """Replace the metadata that was read at `version`.

        Raises MetadataVersionError (somebody else was first: read again),
        NoSuchLedgerOnMetadataServerError, MetadataSerializationError, MetadataUnreachableError
        (it may have been written: read again and see whether the change is still needed).
        """
        assert version >= 0, version
        data = ledger_metadata.encode(metadata)
        try:
            stat = await self._tree.set(self._path(ledger_id), data, version)
        except BadVersionError as exc:
            raise MetadataVersionError(f"metadata of ledger {ledger_id} was changed: {exc}") from exc
        except NoNodeError:
            raise _no_such_ledger(ledger_id) from None
        return Versioned(metadata, stat.version)

    async def delete(self, ledger_id: LedgerId) -> None:
        """Delete the metadata, whatever its version; nothing there is success."""
        path = self._path(ledger_id)
        try:
            await self._tree.delete(path, ANY_VERSION)
        except NoNodeError:
            pass
        if self._manager in _PRUNING_MANAGERS:
            await self._prune(path)

    async def ranges(self) -> AsyncIterator[list[LedgerId]]:
        """All ledgers in ranges: disjoint, ascending, never empty; complete once the iteration ended.

        A ledger is listed if it was there from the call to the end. Whoever deletes what is not
        listed must wait for the end. Raises MetadataLostError (the cluster is gone, or another one),
        CorruptDataError (nodes that leave a doubt about what is a ledger).
        """
        await self._tree.sync(self._root)  # one is enough: a session never reads backwards in time
        await self._require_same_cluster()
        last_id = -1
        for shape in self._manager.shapes:
            async for ledger_ids in self._walk(shape, self._root, 0, ""):
                if ledger_ids[0] <= last_id:
                    raise CorruptDataError(f"ledger {ledger_ids[0]} is listed after ledger {last_id}")
                last_id = ledger_ids[-1]
                yield ledger_ids
        await self._require_same_cluster()

    async def watch(self, ledger_id: LedgerId, listener: LedgerListener) -> Callable[[], None]:
        """Tell `listener` the metadata now and after every change, over lost sessions too.

        Returns the function that ends it; after a deletion it has ended.
        """
        last_version = -1

        async def read(watcher: Watcher) -> bool:
            nonlocal last_version
            try:
                found = await self._read(ledger_id, watcher)
            except NoSuchLedgerOnMetadataServerError:
                listener(None)
                return False
            if found.version > last_version:
                last_version = found.version
                listener(found)
            return True

        return self._followers.start(f"metadata of ledger {ledger_id}", read)

    async def close(self) -> None:
        """End all watches."""
        await self._followers.close()

    def _path(self, ledger_id: LedgerId) -> str:
        return ledger_path(self._root, self._manager, ledger_id)

    async def _next_id(self) -> LedgerId:
        for _ in range(1, _CREATE_ATTEMPTS):
            try:
                return await self._ids.next()
            except MetadataUnreachableError:  # if a number was drawn, it is lost; there are enough
                await asyncio.sleep(RETRY_DELAY_MS / 1000)
        return await self._ids.next()

    async def _create_at(self, ledger_id: LedgerId, metadata: LedgerMetadata) -> Versioned[LedgerMetadata]:
        path, data = self._path(ledger_id), ledger_metadata.encode(metadata)
        has_token = metadata.format_version == _TOKEN_FORMAT_VERSION
        for attempt in range(1, _CREATE_ATTEMPTS + 1):
            try:
                await self._tree.create(path, data, parents=True)
                return Versioned(metadata, 0)
            except NodeExistsError:
                found = await self._recognise(ledger_id, metadata.creator_token) if has_token else None
                if found is None:
                    raise LedgerExistsError(f"ledger {ledger_id} exists") from None
                return found
            except NoNodeError:  # a parent was pruned by a deletion in between
                if attempt == _CREATE_ATTEMPTS:
                    raise
            except MetadataUnreachableError:  # created or not? the token tells, without one nobody can
                if attempt == _CREATE_ATTEMPTS or not has_token:
                    raise
                await asyncio.sleep(RETRY_DELAY_MS / 1000)
        raise AssertionError("unreachable")

    async def _recognise(self, ledger_id: LedgerId, creator_token: int) -> Versioned[LedgerMetadata] | None:
        """The stored metadata, if this creator wrote it."""
        try:
            found = await self.read(ledger_id)
        except (NoSuchLedgerOnMetadataServerError, MetadataSerializationError):
            return None
        return found if found.value.creator_token == creator_token else None

    async def _read(self, ledger_id: LedgerId, watcher: Watcher | None) -> Versioned[LedgerMetadata]:
        path = self._path(ledger_id)
        try:
            node: Node = await self._tree.get(path, watcher)
        except NoNodeError:
            raise _no_such_ledger(ledger_id) from None
        try:
            metadata = ledger_metadata.decode(node.data)
        except CorruptDataError as exc:
            raise MetadataSerializationError(f"{path}: {exc}") from exc
        return Versioned(replace(metadata, created_ms=node.stat.ctime_ms), node.stat.version)

    async def _prune(self, path: str) -> None:
        """Delete parents of `path` that are empty now. Their absence or presence harms nobody."""
        parent = path.rpartition("/")[0]
        while parent != self._root:
            try:
                await self._tree.delete(parent, ANY_VERSION)
            except NoNodeError:
                pass
            except MetadataStoreError:  # not empty, mostly
                return
            parent = parent.rpartition("/")[0]

    async def _walk(self, shape: Shape, path: str, depth: int, digits: str) -> AsyncIterator[list[LedgerId]]:
        """The ranges below `path`, whose names so far are `digits`."""
        try:
            names, _ = await self._tree.children(path)
        except NoNodeError:
            if depth == 0:
                raise MetadataLostError(f"{path} is gone from the metadata store") from None
            return  # pruned meanwhile
        pieces = sorted(name for name in names if shape.is_piece(depth, name))
        self._check_strays(path, depth, names, pieces)
        if depth < len(shape.digits) - 1:
            for piece in pieces:
                async for ledger_ids in self._walk(shape, f"{path}/{piece}", depth + 1, digits + piece):
                    yield ledger_ids
        elif pieces:
            ledger_ids = [LedgerId(int(digits + piece[1:])) for piece in pieces]
            for ledger_id, piece in ((ledger_ids[0], pieces[0]), (ledger_ids[-1], pieces[-1])):
                if self._path(ledger_id) != f"{path}/{piece}":
                    raise CorruptDataError(f"{path}/{piece} is not where ledger {ledger_id} belongs")
            yield ledger_ids

    def _check_strays(self, path: str, depth: int, names: list[str], pieces: list[str]) -> None:
        """Below the root level everything must be a ledger; at it, what looks like one must be one."""
        if len(names) == len(pieces):
            return
        for name in set(names).difference(pieces):
            if depth > 0 or (self._manager is ManagerType.FLAT and name[:1] == "L" and name[1:].isdigit()):
                raise CorruptDataError(f"{path}/{name} is not a ledger, but where ledgers are")

    async def _require_same_cluster(self) -> None:
        try:
            instance_id = (await self._tree.get(f"{self._root}/INSTANCEID")).data
        except NoNodeError:
            instance_id = b""  # clusters of old have none
        if self._instance_id is None:
            self._instance_id = instance_id
        elif self._instance_id != instance_id:
            raise MetadataLostError(f"{self._root} holds another cluster than before (INSTANCEID changed)")


def _no_such_ledger(ledger_id: LedgerId) -> NoSuchLedgerOnMetadataServerError:
    return NoSuchLedgerOnMetadataServerError(f"no such ledger: {ledger_id}")
