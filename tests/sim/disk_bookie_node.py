"""Mode C: a bookie with its whole storage on a simulated disk: journal, entry logs, indexes, checkpoints.

A crash is a power loss: the disk keeps what was synced, and of the rest what a drawn `Loss` says. A
restart is the real one, and everything that was durable must be there (B5).
"""

import asyncio
import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bkctl.formats import index as index_format
from bkctl.formats import journal as journal_format
from bkctl.formats.entry import HEADER
from bkctl.server.storage.checkpoint import Checkpointer
from bkctl.server.storage.gc import CompactionPace, DirectoryCollector, Threshold
from bkctl.server.storage.journal import JournalSettings, read_last_marks, replay
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings
from tests.sim.bookie_node import NEIGHBOURS_KEY, BookieNode
from tests.sim.disk import (
    Disk,
    Loss,
    SimEntryLogMetadataIndex,
    SimFs,
    SimLedgersIndex,
    SimLocationsIndex,
)
from tests.sim.storage_node import InlineExecutor, SteppedJournal
from tests.sim.world import MS

_JOURNAL_DIRECTORY = Path("/journal/current")
_LEDGERS = "/ledgers"
_CACHE_BYTES = 8 << 10  # two arenas: a few dozen entries fill one
_ENTRY_LOG_BYTES_MAX = 1800  # the header alone has 1024
_CHECKPOINT_US_MAX = 80 * MS
_COLLECTION = 0.1  # how often a checkpoint is followed by one
_NEIGHBOURS = 0.4  # how often before a checkpoint
_ALIVE_MAX = 0.95


class DiskJournal(SteppedJournal):
    """Its thread, in steps of virtual time: a group is written and synced some time after it was begun."""

    node: "DiskBookieNode"
    busy = False

    def append(self, parts: Sequence[Any], token: Any | None, *, deferred: bool = False) -> None:
        super().append(parts, token, deferred=deferred)
        self.node.unsynced.append(b"".join(parts))
        if not self.busy:
            self.busy = True
            self.node.world.after(self.node.sync_delay(), self._work)

    def _work(self) -> None:
        node = self.node
        self.busy = False
        if node.journal is not self or not node.up:
            return  # of a life before
        group, node.unsynced = node.unsynced, []
        try:
            self.step()
        except OSError:
            node.world.covered["journal fails"] += 1
            node.leave()
            return
        assert not self._unsynced
        node.keep(group)
        if node.unsynced and not self.busy:
            self.busy = True
            node.world.after(node.sync_delay(), self._work)


class _Nobody:
    """Asks, and does not listen."""

    closed = False
    version2 = True

    def send(self, _data: bytes) -> None: ...

    def pause(self, _reason: str) -> None: ...

    def resume(self, _reason: str) -> None: ...


class DiskBookieNode(BookieNode):
    """`entries`: what is durable, by ledger and entry id."""

    def _boot(self, _journal: bytes) -> None:
        self.life += 1
        self._requests = None
        if self.life == 1:
            self.disk = Disk()
            self.entries: dict[tuple[int, int], bytes] = {}
            self.neighbour = self.ledger_id + 1
            self.deleted_neighbours: set[int] = set()
        self.unsynced: list[bytes] = []
        self._checkpointing = False
        fs = SimFs(self.disk)
        storage = self.storage = LedgerStorage(  # type: ignore[assignment]
            StorageSettings(
                [_LEDGERS],
                [_LEDGERS],
                write_cache_bytes=_CACHE_BYTES,
                read_cache_bytes=0,
                entry_log_bytes_max=_ENTRY_LOG_BYTES_MAX,
                index_cache_bytes=1 << 10,
            ),
            fs,
            open_indexes=self._open_indexes,  # type: ignore[arg-type]  # of the simulation
        )
        fs.mkdir(_JOURNAL_DIRECTORY)
        storage.open()
        storage.threads = (InlineExecutor(),)  # type: ignore[assignment]
        for records in replay(_JOURNAL_DIRECTORY, fs, read_last_marks(fs, storage.current_directories, 0, 1)):
            storage.replay(records)
        storage.flush_all()
        self.journal = journal = self._new_journal(fs)
        journal.start(1000)
        self.bookie = self.make_bookie()
        self.bookie.read_only = self.read_only
        for descriptor in storage.directories[0].ledgers.values():
            descriptor.key_journaled = True
        self._checkpointer = Checkpointer(storage, [journal], fs)
        self._check_durable()
        self._checkpoint_later()

    def _new_journal(self, fs: SimFs) -> Any:
        def completed(tokens: list[Any]) -> None:
            self.completed(journal, tokens)  # type: ignore[arg-type]

        journal = DiskJournal(
            JournalSettings(
                directory=_JOURNAL_DIRECTORY, size_bytes_max=2048, preallocate_bytes=1024, backups_max=0
            ),
            fs,
            completed=completed,
            failed=lambda error: None,
        )
        journal.node = self
        return journal

    def _open_indexes(self, index_current: Path, _block_cache: object) -> tuple[Any, Any]:
        ledgers = SimLedgersIndex(self.disk, index_current / "ledgers")
        return ledgers, SimLocationsIndex(self.disk, index_current / "locations")

    # -- what is durable -----------------------------------------------------------------------------

    def keep(self, group: list[bytes]) -> None:
        data = b"".join(group)
        for record in journal_format.scan_records(data, 0, 6, at_end_of_file=True).records:
            if (
                record.kind is journal_format.RecordKind.ENTRY
                and record.ledger_id not in self.deleted_neighbours
            ):
                self.entries[record.ledger_id, record.entry_id] = record.body

    def _check_durable(self) -> None:
        """After a restart: what was durable is there; what else survived is durable now."""
        (directory,) = self.storage.directories
        wanted = list(self.entries)
        for ids, found in zip(wanted, directory.load_entries(wanted), strict=True):
            assert isinstance(found, bytes), f"B5: {self.bookie_id} lost the durable entry {ids}: {found}"
        for ledger_id in self.fence_answered if self.life > 1 else ():
            descriptor = directory.ledgers.get(ledger_id)
            fenced = descriptor is not None and descriptor.fenced
            assert fenced or self.storage.fenced_and_deleted(ledger_id), f"B2: {self.bookie_id} unfenced"
        for ledger_id in directory.ledgers:
            ids = [(ledger_id, entry_id) for entry_id in directory.load_entry_ids(ledger_id)]
            for key, body in zip(ids, directory.load_entries(ids), strict=True):
                assert isinstance(body, bytes), f"B4: {self.bookie_id} cannot read entry {key}: {body}"
                self.entries.setdefault(key, body)  # which may have been damaged since

    @property
    def durable_entries(self) -> dict[tuple[int, int], bytes]:
        return self.entries

    def collect(self) -> None:
        super().collect()
        if self.collected:
            self.entries = {key: body for key, body in self.entries.items() if key[0] != self.ledger_id}
            self.unsynced.clear()  # nothing of it is to be expected after a restart

    # -- life and death ------------------------------------------------------------------------------

    def crash(self) -> None:
        if self.up:
            self.world.tell(self.bookie_id, "loses power")
            self.world.covered["bookie crash"] += 1
            self.up = False
            loss = self._random.choice(list(Loss))
            self.world.covered[f"disk keeps {loss.value}"] += 1
            self.disk = self.disk.after_power_loss(loss, self._random)
            self._waiting.clear()

    def restart(self) -> None:
        if not self.up and not self.wiped:
            self.world.tell(self.bookie_id, "is back")
            self.up = True
            self.paused = False
            self._boot(b"")

    def fail_disk(self) -> None:
        """The next sync, or the one after, reports an error, once."""
        if not self.up:
            return  # the operator sees to it before the start
        left = [self._random.randint(1, 3)]

        def fail(kind: str, name: str) -> None:
            left[0] -= kind == "sync"
            if left[0] == 0 and kind == "sync":
                raise OSError(errno.EIO, "a simulated disk fails", name)

        self.disk.operation = fail

    # -- checkpoints ---------------------------------------------------------------------------------

    def request_checkpoint(self) -> None:
        if not self._checkpointing:
            self._checkpointing = True
            asyncio.get_running_loop().create_task(self._checkpoint(self.bookie.room_again))

    def _write_neighbours(self) -> None:
        """Another ledger's entries lie between those of the story; an older one is deleted."""
        self.neighbour += 1
        for entry_id in range(2):
            body = HEADER.pack(self.neighbour, entry_id, -1, 0) + bytes(100)
            self.bookie.add_entry(
                _Nobody(), NEIGHBOURS_KEY, body, b"", recovery=True, high_priority=True, deferred_sync=False
            )
        old = self.neighbour - self._random.randint(1, 2)
        if old > self.ledger_id and self.storage.ledger(old) is not None:
            self.bookie.delete_ledger(old)
            self.entries = {key: body for key, body in self.entries.items() if key[0] != old}
            self.deleted_neighbours.add(old)

    async def _checkpoint(self, rotated: Callable[[], None]) -> None:
        life = self.life
        try:
            await self._checkpointer.checkpoint(rotated)
            self.world.covered["checkpoint"] += 1
        except OSError:  # tried again by the next one
            self.world.covered["checkpoint fails"] += 1
        if self.life == life and self.up:
            self._checkpointing = False
            self.hook("checkpoint", self)
            if self.background and self._random.random() < _COLLECTION:
                self._collect_logs()

    def _collect_logs(self) -> None:
        """Entry logs of which nothing is alive go, and those of which little is are compacted."""
        (directory,), fs = self.storage.directories, SimFs(self.disk)
        (current,) = self.storage.current_directories
        closed = directory.closed_log_ids()
        if closed is None:
            return
        collector = DirectoryCollector(
            current,
            fs,
            directory,
            self.storage.threads[0],
            open_metadata=lambda: SimEntryLogMetadataIndex(self.disk, current / "metadata-cache"),  # type: ignore[arg-type,return-value]
            pace=CompactionPace(0, by_bytes=False, stopped=threading.Event()),
            log_bytes_max=_ENTRY_LOG_BYTES_MAX,
        )
        try:
            collector.refresh(closed, directory.stored_ledgers())
            for _log_id in collector.delete_dead():
                self.world.covered["entry log deleted"] += 1
            for _done in collector.compact(Threshold(_ALIVE_MAX)):
                self.world.covered["entry log compacted"] += 1
        except OSError:  # tried again by the next one
            self.world.covered["collection fails"] += 1

    def _checkpoint_later(self) -> None:
        life = self.life

        def now() -> None:
            if self.life == life and self.up and self.background:
                if self._random.random() < _NEIGHBOURS:
                    self._write_neighbours()
                self.request_checkpoint()
                self._checkpoint_later()

        self.world.after(MS + int(self._random.random() * _CHECKPOINT_US_MAX), now)

    # -- damage --------------------------------------------------------------------------------------

    def rot(self, entry_id: int) -> bool:
        if not self.up or self.durable_entry(self.ledger_id, entry_id) is None or self.unsynced:
            return False
        (directory,) = self.storage.directories
        key = index_format.entry_key(self.ledger_id, entry_id)
        for cache in (directory.active, directory.flushing):
            position = cache.index.get(key) if cache is not None else None
            if cache is not None and position is not None:
                size = int.from_bytes(cache.view[position : position + 4])
                cache.view[position + 4 + size - 1] ^= 0x10
                return True
        return self._rot_on_disk(key, entry_id)

    def _rot_on_disk(self, key: bytes, entry_id: int) -> bool:
        (body,) = self.storage.directories[0].load_entries([(self.ledger_id, entry_id)])
        if isinstance(body, bytes):
            for path, file in self.disk.names.items():
                at = file.data.find(body) if path.suffix == ".log" else -1
                if at >= 0:
                    file.data[at + len(body) - 1] ^= 0x10
                    file.durable = bytes(file.data[: len(file.durable)])
                    return True
        return False
