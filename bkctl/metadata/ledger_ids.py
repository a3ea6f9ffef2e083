"""Drawing new ledger ids from the metadata tree.

Source: spec metadata section 6; upstream ZkLedgerIdGenerator, LongZkLedgerIdGenerator.
"""

from bkctl.errors import LedgerIdOverflowError, MetadataStoreError, NodeExistsError, NoNodeError
from bkctl.formats.ledger_id import (
    HOB_PREFIX,
    ID_PREFIX,
    high_order_bits,
    hob_name,
    long_ledger_id,
    short_ledger_id,
)
from bkctl.formats.ledger_path import ManagerType
from bkctl.metadata.api import ANY_VERSION, MetadataTree
from bkctl.types import LedgerId

_FIRST_HOB = 1
_KEPT_HOBS = 3  # older ones are deleted, as upstream does


class LedgerIdGenerator:
    """Ids of one cluster: short ones until they run out or the cluster has switched, then long ones."""

    def __init__(self, tree: MetadataTree, root: str, manager: ManagerType) -> None:
        self._tree = tree
        self._short_parent = root if manager is ManagerType.FLAT else f"{root}/idgen"
        self._long_parent = f"{root}/idgen-long"
        self._has_long_ids = manager in (ManagerType.HIERARCHICAL, ManagerType.LONG_HIERARCHICAL)
        self._uses_long_ids: bool | None = None  # not known yet
        self._hob: int | None = None

    async def next(self) -> LedgerId:
        """An id that this generator never gave before; a ledger with it may still exist.

        Raises LedgerIdOverflowError (managers without long ids), MetadataUnreachableError: call
        again, a number is lost at most.
        """
        if self._uses_long_ids is None:
            found = self._has_long_ids and await self._tree.exists(self._long_parent) is not None
            self._uses_long_ids = found
        if not self._uses_long_ids:
            ledger_id = short_ledger_id(await self._draw(self._short_parent, parents=True))
            if ledger_id is not None:
                return ledger_id
            if not self._has_long_ids:
                raise LedgerIdOverflowError(f"no ledger ids are left below {self._short_parent}")
            await self._create(self._long_parent)
            self._uses_long_ids = True
        return await self._next_long()

    async def _next_long(self) -> LedgerId:
        while True:
            if self._hob is None:
                self._hob = await self._newest_hob()
            try:
                name = await self._draw(f"{self._long_parent}/{hob_name(self._hob)}", parents=False)
            except NoNodeError:  # deleted as old by somebody who knows a newer one
                self._hob = None
                continue
            ledger_id = long_ledger_id(self._hob, name)
            if ledger_id is not None:
                return ledger_id
            await self._create(f"{self._long_parent}/{hob_name(self._hob + 1)}")
            self._hob = None

    async def _newest_hob(self) -> int:
        names, _ = await self._tree.children(self._long_parent)
        hobs = sorted(high_order_bits(name) for name in names if name.startswith(HOB_PREFIX))
        if not hobs:
            await self._create(f"{self._long_parent}/{hob_name(_FIRST_HOB)}")
            return _FIRST_HOB
        for old in hobs[:-_KEPT_HOBS]:
            await self._delete_quietly(f"{self._long_parent}/{hob_name(old)}", 0)
        return hobs[-1]

    async def _draw(self, parent: str, *, parents: bool) -> str:
        """The name of a new sequential node below `parent`, which is deleted again."""
        path = await self._tree.create(
            f"{parent}/{ID_PREFIX}", ephemeral=True, sequential=True, parents=parents
        )
        await self._delete_quietly(path, ANY_VERSION)
        return path.rpartition("/")[2]

    async def _create(self, path: str) -> None:
        try:
            await self._tree.create(path)
        except NodeExistsError:  # somebody else was first
            pass

    async def _delete_quietly(self, path: str, version: int) -> None:
        try:
            await self._tree.delete(path, version)
        except MetadataStoreError:  # what remains is empty, and goes with the session or the next time
            pass
