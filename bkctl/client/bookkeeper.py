"""The client of a BookKeeper cluster.

    async with await BookKeeper.connect("zk+hierarchical://zk1:2181/ledgers") as bk:
        async with await bk.create_ledger(password=b"secret") as ledger:
            entry_id = await ledger.add(b"hello")
        reader = await bk.open_ledger(ledger.ledger_id, b"secret")
        async for entry in reader.entries():
            print(entry.entry_id, entry.payload)

Source: spec replication sections 4 and 12; upstream BookKeeper, LedgerCreateOp, LedgerOpenOp.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypedDict
from weakref import WeakSet

from bkctl.client.bookies import BookieChooser
from bkctl.client.pool import BookiePool
from bkctl.client.reader import LedgerReader
from bkctl.client.recovery import OnProgress, RecoveryReport, RecoveryRun
from bkctl.client.settings import ClientSettings
from bkctl.client.writer import LedgerWriter, LedgerWriterAdv
from bkctl.errors import (
    BadInputError,
    BkctlError,
    ClientClosedError,
    IncorrectParameterError,
    LedgerRecoveryError,
    MetadataStoreError,
    NoSuchLedgerOnMetadataServerError,
    RequestTimeoutError,
    UnauthorizedAccessError,
)
from bkctl.formats.entry import Digester
from bkctl.metadata.ledgers import LedgerManager
from bkctl.metadata.store import MetadataStore
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import DigestType, EntryId, LedgerId, LedgerMetadata, Segment, Versioned

_CREATOR_TOKENS = (1 << 63) - 2


class _Shared(TypedDict):
    """What every ledger handle of a client uses."""

    pool: BookiePool
    ledgers: LedgerManager
    chooser: BookieChooser
    settings: ClientSettings


class BookKeeper:
    """One client: a session with the metadata store, connections to bookies, ledger handles.

    Use as async context manager, or `close`. Every method may raise MetadataStoreError.
    """

    def __init__(self, metadata: MetadataStore, pool: BookiePool, settings: ClientSettings) -> None:
        """Takes over an open `metadata` and `pool`; `connect` is the usual way."""
        self.metadata = metadata
        self.pool = pool
        self.settings = settings
        self._chooser = BookieChooser(metadata.registration, settings.quarantine_ms)
        self._shared: _Shared = {
            "pool": pool,
            "ledgers": metadata.ledgers,
            "chooser": self._chooser,
            "settings": settings,
        }
        self._writers: WeakSet[LedgerWriter] = WeakSet()
        self._readers: WeakSet[LedgerReader] = WeakSet()
        self._recoveries: dict[LedgerId, asyncio.Task[RecoveryReport]] = {}
        self._closed = False

    @classmethod
    async def connect(cls, metadata_uri: str, **settings: Any) -> Self:
        """A client of the cluster that `metadata_uri` names; `settings` are fields of ClientSettings.

        Raises BadInputError, NoClusterError, MetadataUnreachableError.
        """
        try:
            parsed = ClientSettings(**settings)
        except TypeError as error:
            raise BadInputError(f"unknown client setting: {error}") from None
        store = await MetadataStore.open(metadata_uri, session_timeout_ms=parsed.session_timeout_ms)
        pool = BookiePool(
            store.registration.resolve,
            frame_bytes_max=parsed.frame_bytes_max,
            connect_timeout_ms=parsed.connect_timeout_ms,
            read_timeout_ms=parsed.read_timeout_ms,
        )
        return cls(store, pool, parsed)

    # -- creating --------------------------------------------------------------------------------

    async def create_ledger(
        self,
        *,
        ensemble_size: int = 3,
        write_quorum_size: int = 3,
        ack_quorum_size: int = 2,
        digest_type: DigestType = DigestType.CRC32C,
        password: bytes = b"",
        custom_metadata: Mapping[str, bytes] | None = None,
        ledger_id: LedgerId | None = None,
        deferred_sync: bool = False,
    ) -> LedgerWriter:
        """A new ledger, open for writing; no bookie hears of it yet.

        `deferred_sync`: adds succeed before they are durable; see LedgerWriter.force.
        Raises IncorrectParameterError, NotEnoughBookiesError, LedgerExistsError (given id).
        """
        created, metadata = await self._create(
            RoundRobinSchedule(ensemble_size, write_quorum_size, ack_quorum_size),
            digest_type,
            password,
            custom_metadata,
            ledger_id,
        )
        digester = Digester(digest_type, password)
        writer = LedgerWriter(created, metadata, digester, deferred_sync=deferred_sync, **self._shared)
        self._writers.add(writer)
        return writer

    async def create_ledger_adv(
        self,
        *,
        ensemble_size: int = 3,
        write_quorum_size: int = 3,
        ack_quorum_size: int = 2,
        digest_type: DigestType = DigestType.CRC32C,
        password: bytes = b"",
        custom_metadata: Mapping[str, bytes] | None = None,
        ledger_id: LedgerId | None = None,
        deferred_sync: bool = False,
    ) -> LedgerWriterAdv:
        """As `create_ledger`, but the caller chooses the entry ids."""
        created, metadata = await self._create(
            RoundRobinSchedule(ensemble_size, write_quorum_size, ack_quorum_size),
            digest_type,
            password,
            custom_metadata,
            ledger_id,
        )
        digester = Digester(digest_type, password)
        writer = LedgerWriterAdv(
            created, metadata, digester, deferred_sync=deferred_sync, advanced=True, **self._shared
        )
        self._writers.add(writer)
        return writer

    async def _create(
        self,
        schedule: RoundRobinSchedule,
        digest_type: DigestType,
        password: bytes,
        custom_metadata: Mapping[str, bytes] | None,
        ledger_id: LedgerId | None,
    ) -> tuple[LedgerId, Versioned[LedgerMetadata]]:
        self._require_open()
        if ledger_id is not None and ledger_id < 0:
            raise IncorrectParameterError(f"ledger id {ledger_id}: must be 0 or more")
        ensemble = await self._chooser.ensemble(schedule.ensemble_size)
        metadata = LedgerMetadata(
            ensemble_size=schedule.ensemble_size,
            write_quorum_size=schedule.write_quorum_size,
            ack_quorum_size=schedule.ack_quorum_size,
            segments=(Segment(EntryId(0), ensemble),),
            digest_type=digest_type,
            password=password,
            ctime_ms=time.time_ns() // 1_000_000,
            custom_metadata=dict(custom_metadata or {}),
        )
        token = secrets.randbelow(_CREATOR_TOKENS) + 1
        return await self.metadata.ledgers.create(metadata, ledger_id, creator_token=token)

    # -- opening ---------------------------------------------------------------------------------

    async def open_ledger(self, ledger_id: LedgerId, password: bytes = b"") -> LedgerReader:
        """The ledger, for good: its writer is fenced and it is closed first, if it was not.

        Raises:
            NoSuchLedgerOnMetadataServerError, UnauthorizedAccessError (wrong password),
            LedgerRecoveryError, RequestTimeoutError: it could not be recovered (now).
        """
        metadata, digester = await self._read_metadata(ledger_id, password)
        if not metadata.value.closed:
            try:
                metadata = (await self._recover(ledger_id, metadata, digester)).metadata
            except (
                UnauthorizedAccessError,
                RequestTimeoutError,
                LedgerRecoveryError,
                MetadataStoreError,
                NoSuchLedgerOnMetadataServerError,
            ):
                raise
            except BkctlError as error:
                raise LedgerRecoveryError(f"ledger {ledger_id} could not be recovered: {error}") from error
        return self._reader(ledger_id, metadata, digester)

    async def open_ledger_no_recovery(self, ledger_id: LedgerId, password: bytes = b"") -> LedgerReader:
        """The ledger as it is; an open one is followed, and its writer is not disturbed.

        Raises as `open_ledger`; ReadError: too few bookies know its last add confirmed.
        """
        metadata, digester = await self._read_metadata(ledger_id, password)
        reader = self._reader(ledger_id, metadata, digester)
        await reader.follow()
        try:
            await reader.read_last_add_confirmed()
        except BaseException:
            await reader.close()
            raise
        return reader

    def _reader(
        self, ledger_id: LedgerId, metadata: Versioned[LedgerMetadata], digester: Digester
    ) -> LedgerReader:
        reader = LedgerReader(ledger_id, metadata, digester, **self._shared)
        self._readers.add(reader)
        return reader

    async def _read_metadata(
        self, ledger_id: LedgerId, password: bytes | None
    ) -> tuple[Versioned[LedgerMetadata], Digester]:
        """`password` None: that of the metadata, as administrators may."""
        self._require_open()
        metadata = await self.metadata.ledgers.read(ledger_id)
        stored = metadata.value.password
        if stored is not None and password is not None and password != stored:
            raise UnauthorizedAccessError(f"ledger {ledger_id}: wrong password")
        known = password if password is not None else stored
        return metadata, Digester(metadata.value.digest_type or DigestType.CRC32, known or b"")

    # -- administration --------------------------------------------------------------------------

    async def recover_ledger(
        self,
        ledger_id: LedgerId,
        password: bytes | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> RecoveryReport:
        """Fence and close a ledger; of a closed one, say where it ends.

        `password` None: the one in the metadata. Raises whatever made it impossible.
        """
        metadata, digester = await self._read_metadata(ledger_id, password)
        return await self._recover(ledger_id, metadata, digester, on_progress=on_progress)

    async def fence_ledger(
        self,
        ledger_id: LedgerId,
        password: bytes | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> RecoveryReport:
        """Stop a ledger's writer for good and leave the ledger IN_RECOVERY, to be recovered later."""
        metadata, digester = await self._read_metadata(ledger_id, password)
        return await self._recover(ledger_id, metadata, digester, on_progress=on_progress, fence_only=True)

    async def _recover(
        self,
        ledger_id: LedgerId,
        metadata: Versioned[LedgerMetadata],
        digester: Digester,
        *,
        on_progress: OnProgress | None = None,
        fence_only: bool = False,
    ) -> RecoveryReport:
        """Recoveries of one ledger by one client come one after the other."""
        while (running := self._recoveries.get(ledger_id)) is not None:
            await asyncio.wait([running])
        run = RecoveryRun(ledger_id, digester, fence_only=fence_only, on_progress=on_progress, **self._shared)
        task = asyncio.create_task(run.run(metadata), name=f"recover ledger {ledger_id}")
        self._recoveries[ledger_id] = task
        try:
            return await task
        finally:
            task.cancel()
            if self._recoveries.get(ledger_id) is task:
                del self._recoveries[ledger_id]

    async def delete_ledger(self, ledger_id: LedgerId) -> None:
        """Delete a ledger's metadata; bookies drop its entries when they collect garbage.

        Raises NoSuchLedgerOnMetadataServerError.
        """
        self._require_open()
        await self.metadata.ledgers.read(ledger_id)
        await self.metadata.ledgers.delete(ledger_id)

    # -- the end ---------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise ClientClosedError("the client is closed")

    async def close(self) -> None:
        """Abandon open handles, leaving their ledgers as they are, and close all connections."""
        self._closed = True
        for writer in list(self._writers):
            await writer.abort()
        for reader in list(self._readers):
            await reader.close()
        recoveries = list(self._recoveries.values())
        for task in recoveries:
            task.cancel()
        await asyncio.gather(*recoveries, return_exceptions=True)
        await self.pool.close()
        await self.metadata.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
