"""The order in which a bookie comes up and goes down.

Up: identity → directories locked → cookies → storage → replay → checkpoint → journals → port → registration.
Down: unregister → port → last checkpoint → garbage collection → journals → storage → clean mark. A kill at
any point costs only replay time: what was acknowledged is in the journal.

Source: spec storage section 11; upstream EmbeddedServer, BookieImpl.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from bkctl.config import MIB, BookieSettings
from bkctl.errors import BookieStartError, CorruptDataError, MetadataStoreError
from bkctl.formats import cookie as cookie_format
from bkctl.formats import journal as journal_format
from bkctl.formats.service_info import BOOKIE_RPC, BookieServiceInfo, Endpoint
from bkctl.metadata.registration import RegistrationManager
from bkctl.metadata.store import MetadataStore
from bkctl.server.bookie import Bookie, Token
from bkctl.server.disk_monitor import disk_space
from bkctl.server.garbage_collector import GarbageCollector
from bkctl.server.garbage_ledgers import GarbageLedgers, MetadataRate
from bkctl.server.identity import bookie_address, bookie_id_of, check_cookies, current_directories
from bkctl.server.listener import Listener
from bkctl.server.reads import Reads
from bkctl.server.requests import Requests
from bkctl.server.requests_v3 import RequestsV3
from bkctl.server.storage.checkpoint import Checkpointer
from bkctl.server.storage.fs import Fs
from bkctl.server.storage.index import ENTRY_LOG_METADATA_NAME, EntryLogMetadataIndex
from bkctl.server.storage.journal import Journal, JournalSettings, read_last_marks, replay
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings
from bkctl.types import Address, BookieId

log = logging.getLogger(__name__)

_CHECKPOINT_RETRY_MS = 1000
_DISK_FULL = "a ledger disk is full"
_CHECKPOINT_FAILS = "checkpoints fail"


class BookieServer:
    """One running bookie. `failed` completes with the reason when it can no longer serve."""

    def __init__(self, settings: BookieSettings, store: MetadataStore, fs: Fs) -> None:
        self._settings = settings
        self._store = store
        self._fs = fs
        self._exits = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checkpoint_wanted = asyncio.Event()
        self._disk_usage = 0.0  # of the fullest ledger disk
        # Why the bookie is read-only; empty: it is writable.
        self.read_only_reasons: set[str] = {"forceReadOnlyBookie"} if settings.force_read_only else set()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.bookie_id: BookieId
        self.address: Address
        self.bookie: Bookie
        self.reads: Reads
        self.storage: LedgerStorage
        self.listener: Listener
        self.collector: GarbageCollector

    # -- up --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring the bookie up, or leave nothing behind.

        Raises:
            BookieStartError, BadInputError: why it cannot start.
            MetadataStoreError: the metadata store cannot be used.
        """
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise

    async def _start(self) -> None:
        settings = self._settings
        sock = self._bind()
        self._exits.callback(sock.close)
        self.address = bookie_address(settings, sock.getsockname()[1])
        self.bookie_id = bookie_id_of(settings, self.address)
        self._lock_directories()
        await check_cookies(settings, self.bookie_id, self._store)
        loop = asyncio.get_running_loop()
        # In a thread: replaying a large journal takes seconds, and the metadata session must stay alive.
        journals = await loop.run_in_executor(None, self._open_storage, loop)
        self._serve(journals)
        # The mark moves behind what was replayed, so that a bookie that is killed again and again
        # replays each record once.
        await self._checkpointer.checkpoint()
        self._mark_dirty()
        await self.listener.open(sock)
        self._exits.push_async_callback(self.listener.close)
        await self._register()
        self._exits.push_async_callback(self._unregister)
        self._start_collector()
        self._spawn(self._checkpoint_regularly())
        self._spawn(self._watch_disks())

    def _bind(self) -> socket.socket:
        """The port, taken before anything else so that a second bookie fails at once and unharmed."""
        settings = self._settings
        host = settings.advertised_address if settings.advertised_address.startswith("127.") else ""
        try:
            return socket.create_server((host, settings.port), backlog=1024)
        except OSError as error:
            raise BookieStartError(
                f"port {settings.port} cannot be used: {error.strerror}; stop its owner or set bookiePort",
                2,
            ) from error

    def _lock_directories(self) -> None:
        """One process per directory, also for journals, which RocksDB's lock does not cover."""
        settings = self._settings
        for current in current_directories([*settings.journal_directories, *settings.ledger_directories]):
            descriptor = os.open(current, os.O_RDONLY | os.O_CLOEXEC)
            self._exits.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BookieStartError(f"{current} is in use by another bookie process") from error

    def _open_storage(self, loop: asyncio.AbstractEventLoop) -> list[Journal]:
        """Storage with everything that the journals hold, flushed; journals ready for new records."""
        settings = self._settings
        count = len(settings.ledger_directories)
        self.storage = LedgerStorage(
            StorageSettings(
                ledger_directories=[Path(d) for d in settings.ledger_directories],
                index_directories=[
                    Path(d) for d in settings.index_directories or settings.ledger_directories
                ],
                write_cache_bytes=settings.write_cache_mib * MIB // count,
                read_cache_bytes=settings.read_cache_mib * MIB // count,
                read_ahead_count=settings.read_ahead_count,
                entry_log_bytes_max=settings.entry_log_bytes_max,
            ),
            self._fs,
        )
        self.storage.open()
        self._exits.callback(self.storage.close)
        journal_currents = current_directories(settings.journal_directories)
        journals = []
        for number, directory in enumerate(journal_currents):
            self._replay(directory, number, len(journal_currents))
            journals.append(
                Journal(
                    self._journal_settings(directory),
                    self._fs,
                    completed=partial(_on_loop, loop, self._completed),
                    failed=partial(_on_loop, loop, self._fail),
                )
            )
        self.storage.flush_all()
        for journal in journals:
            journal.start(now_ms=int(time.time() * 1000))
            self._exits.callback(journal.stop)
        self._checkpointer = Checkpointer(self.storage, journals, self._fs)
        return journals

    def _completed(self, tokens: list[Token]) -> None:
        self.bookie.completed(tokens)

    def _replay(self, directory: Path, number: int, count: int) -> None:
        """Take over what journal `number` of `count` holds behind its mark."""
        mark = read_last_marks(self._fs, self.storage.current_directories, number, count)
        started_ns = time.monotonic_ns()
        records = 0
        for batch in replay(directory, self._fs, mark, skip_invalid=self._settings.journal_skip_invalid):
            self.storage.replay(batch)
            records += len(batch)
        took_ms = (time.monotonic_ns() - started_ns) // 10**6
        log.info("replayed %d records of %s in %d ms", records, directory, took_ms)

    def _journal_settings(self, directory: Path) -> JournalSettings:
        settings = self._settings
        return JournalSettings(
            directory=directory,
            size_bytes_max=settings.journal_size_mib_max * MIB,
            preallocate_bytes=settings.journal_preallocate_mib * MIB,
            alignment_bytes=settings.journal_alignment_bytes,
            backups_max=settings.journal_backups_max,
            sync_data=settings.journal_sync,
            write_format=settings.journal_format,
        )

    def _serve(self, journals: list[Journal]) -> None:
        settings = self._settings
        self.bookie = Bookie(
            self.storage,
            journals,
            queued_bytes_max=settings.queued_add_bytes_max,
            request_checkpoint=self._checkpoint_wanted.set,
            explicit_lac_journaled=settings.journal_format >= journal_format.VERSION_EXPLICIT_LAC,
        )
        self._look_at_disks()
        self.bookie.read_only = bool(self.read_only_reasons)
        if self.bookie.read_only:
            log.warning("the bookie starts read-only: %s", ", ".join(sorted(self.read_only_reasons)))
        self.reads = Reads(self.bookie, self.storage.read_pool)
        v3 = RequestsV3(self.bookie, self.reads, self._disk_space)
        requests = Requests(self.bookie, self.reads, v3, batch_read_bytes_max=settings.batch_read_bytes_max)
        self.listener = Listener(
            requests, frame_bytes_max=settings.frame_bytes_max, connections_max=settings.connections_max
        )

    def _mark_dirty(self) -> None:
        for current in current_directories(self._settings.ledger_directories):
            (current / "DIRTY").touch()

    def _disk_space(self) -> tuple[int, int]:
        space = disk_space(self._settings.ledger_directories)
        return space.total_bytes, space.free_bytes

    def _start_collector(self) -> None:
        settings = self._settings
        rate = MetadataRate(settings.gc_metadata_reads_per_s, settings.gc_over_replicated_at_once)
        cookie = cookie_format.decode((self.storage.current_directories[0] / "VERSION").read_bytes())
        self.collector = GarbageCollector(
            settings,
            self.bookie,
            GarbageLedgers(self._store, self.bookie_id, cookie.instance_id or None, rate),
            self._checkpointer,
            self._fs,
            open_metadata=lambda current: EntryLogMetadataIndex.open(current / ENTRY_LOG_METADATA_NAME),
        )
        self._exits.push_async_callback(self.collector.close)
        self._spawn(self.collector.run())

    # -- registration ----------------------------------------------------------------------------

    async def _register(self) -> None:
        address = self.address
        info = BookieServiceInfo((Endpoint("bookie", address.host, address.port, BOOKIE_RPC),))
        self._registration = RegistrationManager(self._store.tree, self._store.root, on_failure=self._fail)
        await self._registration.register(self.bookie_id, info, readonly=self.bookie.read_only)

    async def _unregister(self) -> None:
        try:
            await self._registration.unregister()
        except MetadataStoreError as error:
            log.warning("cannot unregister, the session's end will do it: %s", error)

    # -- while it runs ---------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The bookie cannot keep its promises any longer: answer nothing more, stop."""
        if not self.failed.done():
            log.error("the bookie stops: %s", error)
            self.failed.set_result(error)

    async def _checkpoint_regularly(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._checkpoint_wanted.wait(), self._settings.flush_interval_ms / 1000
                )
            self._checkpoint_wanted.clear()
            try:
                await self._checkpointer.checkpoint(rotated=self.bookie.room_again)
            except (OSError, CorruptDataError) as error:
                # Nothing is lost: the mark stays and the journal keeps every record.
                log.error("checkpoint failed, will be tried again: %s", error)
                self.read_only_reasons.add(_CHECKPOINT_FAILS)
                await self._settle_mode()
                await asyncio.sleep(_CHECKPOINT_RETRY_MS / 1000)
            else:
                self.read_only_reasons.discard(_CHECKPOINT_FAILS)
                await self._settle_mode()

    async def _watch_disks(self) -> None:
        while True:
            self.collector.disks_are(self._disk_usage)
            await asyncio.sleep(self._settings.disk_check_interval_ms / 1000)
            self._look_at_disks()
            await self._settle_mode()

    def _look_at_disks(self) -> None:
        """Note whether the ledger directories are too full for adds. A disk that is gone is fatal."""
        settings = self._settings
        try:
            space = disk_space(settings.ledger_directories)
        except OSError as error:
            self._fail(error)
            return
        self._disk_usage = space.usage_max
        usage = space.usage_max if settings.read_only_on_any_disk_full else space.usage_min
        self.bookie.high_priority_writes = space.free_bytes_max > settings.high_priority_bytes_min
        if usage <= settings.disk_usage_max:
            self.read_only_reasons.discard(_DISK_FULL)
        elif settings.read_only_mode_enabled:
            self.read_only_reasons.add(_DISK_FULL)
        else:
            self._fail(OSError(f"a disk is {usage:.1%} full and readOnlyModeEnabled=false"))

    async def _settle_mode(self) -> None:
        """Refuse or accept adds from now on, as the reasons say; then say so in the metadata store."""
        read_only = bool(self.read_only_reasons)
        if read_only == self.bookie.read_only:
            return
        self.bookie.read_only = read_only
        reasons = f"read-only: {', '.join(sorted(self.read_only_reasons))}" if read_only else "writable"
        log.warning("the bookie is now %s", reasons)
        try:
            await (self._registration.to_readonly() if read_only else self._registration.to_writable())
        except MetadataStoreError as error:
            log.warning("cannot announce it yet, a new session will: %s", error)

    # -- down ------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Leave in order. After `failed` nothing more is flushed: the journal has what was promised."""
        for task in list(self._tasks):
            task.cancel()
        clean = not self.failed.done()
        if clean:
            self.bookie.read_only = True
            await self._unregister()
            await self.listener.close()
            await self._checkpointer.checkpoint()
        self.reads.close()
        await self._exits.aclose()
        if clean:
            for current in current_directories(self._settings.ledger_directories):
                (current / "DIRTY").unlink(missing_ok=True)


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], argument: Any) -> None:
    """Hand a result of the journal's thread to the event loop, unless that has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, argument)
