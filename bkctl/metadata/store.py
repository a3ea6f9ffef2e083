"""The metadata store of one cluster: from a service URI to managers that work.

Source: spec metadata sections 1 and 4; upstream MetadataDrivers, ZKMetadataDriverBase.
"""

import asyncio
import logging
from pathlib import Path

from bkctl.errors import MetadataStoreError, NoClusterError
from bkctl.formats import service_uri
from bkctl.formats.layout import DEFAULT_LAYOUT, Layout, layout_of
from bkctl.formats.service_uri import Driver, ServiceUri
from bkctl.metadata.api import MetadataTree, SessionState
from bkctl.metadata.bookie_nodes import no_cluster
from bkctl.metadata.cluster import init_cluster, read_layout, require_same_manager
from bkctl.metadata.cookies import CookieManager
from bkctl.metadata.ledgers import LedgerManager
from bkctl.metadata.registration import RegistrationClient

SESSION_TIMEOUT_MS = 10_000  # upstream's zkTimeout

_REOPEN_DELAY_MS = 1_000

log = logging.getLogger(__name__)


class MetadataStore:
    """A session with the store, kept up until `close`: after a lost session a new one is opened.

    The managers share the session. Watches go on over it; `RegistrationManager` registers again.
    """

    def __init__(self, uri: ServiceUri, tree: MetadataTree, layout: Layout) -> None:
        self.uri = uri
        self.tree = tree
        self.root = uri.root
        self.layout = layout
        self.ledgers = LedgerManager(tree, uri.root, layout)
        self.registration = RegistrationClient(tree, uri.root)
        self.cookies = CookieManager(tree, uri.root)
        self._reopening: asyncio.Task[None] | None = None
        tree.on_session(self._session_changed)

    @classmethod
    async def open(
        cls,
        uri: str,
        *,
        create: bool = False,
        session_timeout_ms: int = SESSION_TIMEOUT_MS,
        tree: MetadataTree | None = None,
    ) -> "MetadataStore":
        """Open the cluster that `uri` names; nothing is written, unless `create` makes what is missing.

        `tree`: an unopened tree to use in place of the one that `uri` names. Raises BadInputError,
        NoClusterError, MetadataUnreachableError, CorruptDataError.
        """
        parsed = service_uri.parse(uri)
        if tree is None:
            tree = make_tree(parsed, create=create, session_timeout_ms=session_timeout_ms)
        try:
            await tree.open()
            return cls(parsed, tree, await _settle_layout(tree, parsed, create=create))
        except BaseException:
            await tree.close()
            raise

    async def close(self) -> None:
        """End watches and session. Idempotent."""
        if self._reopening is not None:
            self._reopening.cancel()
        await self.ledgers.close()
        await self.registration.close()
        await self.tree.close()

    def _session_changed(self, state: SessionState) -> None:
        if state is SessionState.LOST and (self._reopening is None or self._reopening.done()):
            log.warning("the session with the metadata store is lost; opening a new one")
            self._reopening = asyncio.create_task(self._reopen(), name="reopen metadata session")

    async def _reopen(self) -> None:
        while self.tree.session_state is SessionState.LOST:
            try:
                await self.tree.reopen()
            except MetadataStoreError as exc:
                log.debug("no new session with the metadata store yet: %s", exc)
                await asyncio.sleep(_REOPEN_DELAY_MS / 1000)


def make_tree(
    uri: ServiceUri, *, create: bool = False, session_timeout_ms: int = SESSION_TIMEOUT_MS
) -> MetadataTree:
    """The unopened tree that `uri` names; `create` lets SQLite make its file.

    Drivers are imported here only: a command pays for the one that it uses.
    """
    match uri.driver:
        case Driver.SQLITE:
            from bkctl.metadata.sqlite import SqliteTree

            if not create and not Path(uri.path).exists():
                raise NoClusterError(f"no metadata store at {uri.path}: run `bkctl cluster init` first")
            return SqliteTree(uri.path, session_timeout_ms=session_timeout_ms, create=create)
        case Driver.ZOOKEEPER:
            from bkctl.metadata.zookeeper import ZooKeeperTree

            return ZooKeeperTree(uri.servers, session_timeout_ms=session_timeout_ms)
        case Driver.MEMORY:
            from bkctl.metadata.memory import MemoryTree

            return MemoryTree(session_timeout_ms=session_timeout_ms)


async def _settle_layout(tree: MetadataTree, uri: ServiceUri, *, create: bool) -> Layout:
    wanted = None if uri.manager is None else layout_of(uri.manager)
    found = await read_layout(tree, uri.root)
    if found is None and create:
        await init_cluster(tree, uri.root, wanted or DEFAULT_LAYOUT)
        found = await read_layout(tree, uri.root)
    if found is None:
        # Pulsar's driver keeps no LAYOUT: its ledgers are where the hierarchical manager has them.
        if uri.pulsar and await tree.exists(uri.root) is not None:
            return DEFAULT_LAYOUT
        raise no_cluster(uri.root)
    if wanted is not None and not uri.pulsar:
        require_same_manager(found, wanted, uri.root)
    return found
