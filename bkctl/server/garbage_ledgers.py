"""Which ledgers of a bookie are garbage, as the metadata store has it. Where there is a doubt, none is.

Laws:

1. The store is the one that has this bookie's cookie, with the instance id that its directories have:
   before the listing and after it. A wrong root, or a store that was wiped, deletes nothing.
2. The listing is complete or an error ends the pass. A cluster of old, without an instance id, that
   lists no ledger at all is not believed.
3. Each ledger that is not listed is then asked for by itself, and goes only if there is none of it. One
   that is there after all means that the listing was short: the pass ends.

Source: spec storage section 8.1, spec metadata section 5; upstream ScanAndCompareGarbageCollector.
Differs: upstream believes the listing, unless verifyMetadataOnGC is set.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass

from bkctl.errors import (
    CorruptDataError,
    MetadataLostError,
    MetadataSerializationError,
    NodeExistsError,
    NoNodeError,
    NoSuchLedgerOnMetadataServerError,
)
from bkctl.formats import underreplication
from bkctl.metadata.api import ANY_VERSION
from bkctl.metadata.cluster import read_instance_id
from bkctl.metadata.store import MetadataStore
from bkctl.server.storage.gc_plan import GarbagePlan
from bkctl.types import BookieId, LedgerId, LedgerMetadata

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MetadataRate:
    """How hard the metadata store may be asked."""

    reads_per_second: float  # gcMetadataOpRateLimit
    reads_at_once: int  # gcOverreplicatedLedgerMaxConcurrentRequests


class GarbageLedgers:
    """Asks the metadata store; deletes nothing. Every coroutine may raise MetadataStoreError."""

    def __init__(
        self, store: MetadataStore, bookie_id: BookieId, instance_id: str | None, rate: MetadataRate
    ) -> None:
        """`instance_id`: of the cluster, as the cookies in the bookie's directories have it."""
        self._store = store
        self._bookie_id = bookie_id
        self._instance_id = instance_id
        self._rate = rate
        self._next_read_s = 0.0

    async def deleted(self, local: Collection[LedgerId]) -> AsyncGenerator[list[LedgerId], None]:
        """Those of `local` that the store does not have, in groups that are to be deleted at once.

        `local`: as of before the call. Raises MetadataLostError: it is not the store of this bookie;
        CorruptDataError: the listing leaves a doubt. What was yielded before is garbage all the same.
        """
        await self._require_own_store()
        plan = GarbagePlan(local)
        listed = 0
        async for ledger_ids in self._store.ledgers.ranges():
            listed += len(ledger_ids)
            plan.add_range(ledger_ids)
        await self._require_own_store()
        if local and not listed and self._instance_id is None:
            raise MetadataLostError(
                "the metadata store lists no ledger and has no INSTANCEID: it may be the wrong one"
            )
        garbage = plan.finish()
        for first in range(0, len(garbage), self._rate.reads_at_once):
            group = garbage[first : first + self._rate.reads_at_once]
            found = await asyncio.gather(*map(self._read, group))
            for ledger_id, metadata in zip(group, found, strict=True):
                if metadata is not None:
                    raise CorruptDataError(
                        f"ledger {ledger_id} is in the metadata store, which did not list it"
                    )
            yield group

    async def over_replicated(self, local: Collection[LedgerId]) -> AsyncGenerator[LedgerId, None]:
        """Closed ledgers of `local` that no ensemble has on this bookie, each under its replication lock.

        The lock is held until the next one is asked for; a ledger that somebody replicates is left out.
        """
        await self._require_own_store()
        ledger_ids = list(local)
        for first in range(0, len(ledger_ids), self._rate.reads_at_once):
            group = ledger_ids[first : first + self._rate.reads_at_once]
            found = await asyncio.gather(*map(self._is_elsewhere, group))
            for ledger_id, elsewhere in zip(group, found, strict=True):
                if elsewhere and await self._lock(ledger_id):
                    try:
                        if await self._is_elsewhere(ledger_id):
                            yield ledger_id
                    finally:
                        await self._unlock(ledger_id)

    async def _require_own_store(self) -> None:
        """Raises MetadataLostError unless this bookie belongs to the store."""
        instance_id = await read_instance_id(self._store.tree, self._store.root)
        cookie = await self._store.cookies.read(self._bookie_id)
        if cookie is None:
            raise MetadataLostError(
                f"{self._store.root} has no cookie of {self._bookie_id}: it may be the wrong metadata store"
            )
        if not (cookie.value.instance_id or None) == instance_id == self._instance_id:
            raise MetadataLostError(
                f"{self._store.root} is of cluster {instance_id}, the cookie of {self._bookie_id} there of"
                f" {cookie.value.instance_id}, the bookie of {self._instance_id}"
            )

    async def _read(self, ledger_id: LedgerId) -> LedgerMetadata | None:
        """None: there is no such ledger. Raises CorruptDataError: there is, and it cannot be read."""
        wait_s = self._reserve_read()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        try:
            return (await self._store.ledgers.read(ledger_id)).value
        except NoSuchLedgerOnMetadataServerError:
            return None
        except MetadataSerializationError as exc:
            raise CorruptDataError(f"metadata of ledger {ledger_id} cannot be read: {exc}") from exc

    def _reserve_read(self) -> float:
        """Seconds to wait before one read."""
        now = time.monotonic()
        at = max(self._next_read_s, now)
        self._next_read_s = at + 1 / self._rate.reads_per_second
        return at - now

    async def _is_elsewhere(self, ledger_id: LedgerId) -> bool:
        """Whether the ledger is closed and this bookie is in none of its ensembles."""
        try:
            metadata = await self._read(ledger_id)
        except CorruptDataError as exc:
            log.warning("ledger %d stays: %s", ledger_id, exc)
            return False
        return (
            metadata is not None
            and metadata.closed
            and all(self._bookie_id not in segment.ensemble for segment in metadata.segments)
        )

    async def _lock(self, ledger_id: LedgerId) -> bool:
        """Take the replication lock; False when somebody else has it."""
        path = underreplication.lock_path(self._store.root, ledger_id)
        data = underreplication.encode_bookie(str(self._bookie_id))
        try:
            await self._store.tree.create(path, data, ephemeral=True, parents=True)
        except NodeExistsError:
            return False
        return True

    async def _unlock(self, ledger_id: LedgerId) -> None:
        try:
            await self._store.tree.delete(
                underreplication.lock_path(self._store.root, ledger_id), ANY_VERSION
            )
        except NoNodeError:  # went with a lost session
            log.debug("the replication lock of ledger %d was gone", ledger_id)
