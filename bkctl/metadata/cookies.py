"""Cookies of bookies in the metadata tree.

Source: spec metadata section 10; upstream ZKRegistrationManager, AdminCommand.
"""

from bkctl.errors import CorruptDataError, NoNodeError
from bkctl.formats import cookie as cookie_format
from bkctl.formats.cookie import Cookie
from bkctl.metadata.api import ANY_VERSION, MetadataTree
from bkctl.metadata.bookie_nodes import list_bookies
from bkctl.types import BookieId, Versioned


class CookieManager:
    """Every coroutine may raise MetadataStoreError; after a lost reply, read again."""

    def __init__(self, tree: MetadataTree, root: str) -> None:
        self._tree = tree
        self._root = root

    async def read(self, bookie_id: BookieId) -> Versioned[Cookie] | None:
        """None: there is no cookie. Raises CorruptDataError for one that cannot be read."""
        stored = await self.read_bytes(bookie_id)
        if stored is None:
            return None
        try:
            return Versioned(cookie_format.decode(stored.value), stored.version)
        except CorruptDataError as exc:
            raise CorruptDataError(f"{self._path(bookie_id)}: {exc}") from exc

    async def read_bytes(self, bookie_id: BookieId) -> Versioned[bytes] | None:
        """The cookie as it is stored, be it readable or not."""
        try:
            node = await self._tree.get(self._path(bookie_id))
        except NoNodeError:
            return None
        return Versioned(node.data, node.stat.version)

    async def create(self, bookie_id: BookieId, cookie: Cookie) -> None:
        """Raises NodeExistsError."""
        await self._tree.create(self._path(bookie_id), cookie_format.encode(cookie), parents=True)

    async def update(self, bookie_id: BookieId, cookie: Cookie, version: int) -> Versioned[Cookie]:
        """Raises NoNodeError, BadVersionError. ANY_VERSION overwrites."""
        stat = await self._tree.set(self._path(bookie_id), cookie_format.encode(cookie), version)
        return Versioned(cookie, stat.version)

    async def delete(self, bookie_id: BookieId, version: int = ANY_VERSION) -> None:
        """Raises NoNodeError, BadVersionError."""
        await self._tree.delete(self._path(bookie_id), version)

    async def list(self) -> list[BookieId]:
        """Sorted ids of the bookies that have a cookie. Raises NoClusterError, CorruptDataError."""
        return await list_bookies(self._tree, self._root, "cookies")

    def _path(self, bookie_id: BookieId) -> str:
        return f"{self._root}/cookies/{bookie_id}"
