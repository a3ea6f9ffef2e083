"""A bookie that runs the server's own logic, with a journal that forgets what was not synced.

`bkctl.server.bookie.Bookie` decides about adds and fences; the write cache is the real one, and a
restart replays the journal's bytes through the real reader of records. Simulated are the disk (what
a crash leaves of unsynced writes) and time. With its whole storage: disk_bookie_node.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bkctl.errors import BookKeeperError, NoSuchLedgerError, WriteError
from bkctl.formats import index as index_format
from bkctl.formats import journal as journal_format
from bkctl.formats import request_v2 as v2
from bkctl.formats.entry import HEADER
from bkctl.formats.request_v2 import RECOVERY_ADD
from bkctl.formats.result_code import error_from_rc
from bkctl.quorum.lac import NEGATIVE
from bkctl.quorum.pending import entries_in, frames_in
from bkctl.server.bookie import Bookie
from bkctl.server.reads import LAST_ENTRY, Reads, absent
from bkctl.server.requests import Requests
from bkctl.server.requests_v3 import RequestsV3
from bkctl.server.storage.directory_storage import DirectoryStorage, LedgerDescriptor
from bkctl.server.storage.ledger_storage import LedgerStorage
from bkctl.server.storage.read_cache import ReadCache
from bkctl.server.storage.write_cache import WriteCache
from bkctl.types import BookieId, LedgerId
from tests.sim.storage_node import InlineExecutor
from tests.sim.world import MS, World

if TYPE_CHECKING:
    from bkctl.server.listener import Connection

_CACHE_BYTES = 128 << 10
_QUEUED_BYTES_MAX = 1 << 30
_FRAME_BYTES_MAX = 5 << 20
_KEY_AT = 8  # in an ADD frame, the length field included
_VERSION = 6


NEIGHBOURS_KEY = bytes(range(20))  # of ledgers that are not the story's


class SimJournal:
    """Groups are written and synced in steps of virtual time; `synced` is what survives a crash."""

    def __init__(self, node: "BookieNode", synced: bytes) -> None:
        self._node = node
        self.synced = b""
        self.entries: dict[tuple[int, int], bytes] = {}  # durable ones
        self._keep(synced)
        self._queue: list[tuple[bytes, Any]] = []
        self._writing: list[tuple[bytes, Any]] = []
        self.queued_bytes = 0

    def append(self, parts: Sequence[Any], token: Any, *, deferred: bool = False) -> None:
        self._queue.append((b"".join(parts), token))
        if deferred and token is not None:
            self._node.world.after(0, lambda: self._node.completed(self, [token]))
            self._queue[-1] = (self._queue[-1][0], None)
        if not self._writing:
            self._begin()

    def _begin(self) -> None:
        self._writing, self._queue = self._queue, []
        self._node.world.after(self._node.sync_delay(), self._sync)

    def _sync(self) -> None:
        if self._node.journal is not self:
            return  # of a life before
        group, self._writing = self._writing, []
        self._keep(b"".join(data for data, _ in group))
        self._node.completed(self, [token for _, token in group if token is not None])
        if self._queue and self._node.journal is self:
            self._begin()

    def _keep(self, data: bytes) -> None:
        self.synced += data
        for record in journal_format.scan_records(data, 0, _VERSION, at_end_of_file=True).records:
            if record.kind is journal_format.RecordKind.ENTRY:
                self.entries[record.ledger_id, record.entry_id] = record.body

    def survivors(self, keep: float) -> bytes:
        """What is on disk after a crash: everything synced, and of the rest a part of whole records."""
        unsynced = [data for data, _ in (*self._writing, *self._queue)]
        return self.synced + b"".join(unsynced[: int(keep * (len(unsynced) + 1))])


class _Directory(DirectoryStorage):
    """The real bookkeeping of ledgers and caches; the cache holds every entry, so nothing is flushed."""

    def __init__(self) -> None:
        self.ledgers = {}
        self.active = WriteCache(_CACHE_BYTES)
        self.flushing = None
        self._read_cache = ReadCache(0)
        self._changed = set()
        self._deleted = set()
        self.tombstones: set[int] = set()
        self._buried: set[int] = set()
        self._frozen = None

    def load_last_entry_id(self, _ledger_id: int) -> int:
        return -1

    def load_entries(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | Exception | None]:
        return [None] * len(wanted)


class _Storage(LedgerStorage):
    def __init__(self) -> None:
        self.directories = (_Directory(),)


class _HookedBookie(Bookie):
    """The bookie that ships, and a hook at each step that a fault may follow."""

    node: "BookieNode"

    def take_adds(self, peer: Any, buffer: bytearray, view: memoryview, position: int, end: int) -> int:
        recovery = int.from_bytes(buffer[position + 6 : position + 8]) & RECOVERY_ADD
        taken = super().take_adds(peer, buffer, view, position, end)
        if taken > position:
            self._taken(bool(recovery))
        return taken

    def add_entry(self, *arguments: Any, recovery: bool, **named: Any) -> bool:
        taken = super().add_entry(*arguments, recovery=recovery, **named)
        if taken and arguments[1] is not NEIGHBOURS_KEY:
            self._taken(recovery)
        return taken

    def _taken(self, recovery: bool) -> None:
        node = self.node
        assert recovery or not node.fence_answered, (
            f"I4: {node.bookie_id} takes an add after it told of its fence"
        )
        node.hook("recovery added" if recovery else "added", node)

    def fence(self, ledger_id: int, master_key: bytes, then: Callable[[], None]) -> LedgerDescriptor:
        node = self.node

        def durable() -> None:
            node.fence_answered.add(ledger_id)
            then()
            node.hook("fence answered", node)

        descriptor = super().fence(ledger_id, master_key, durable)
        node.hook("fenced", node)
        return descriptor


class _HonestReads(Reads):
    node: "BookieNode"

    def read(self, peer: Any, ledger_id: int, entry_id: int, answer: Any) -> None:
        held = self.node.holds(entry_id)  # what comes while it looks may be missed

        def check(result: bytes | BookKeeperError) -> None:
            self.node.check_negative(entry_id, result, held=held)
            answer(result)

        super().read(peer, ledger_id, entry_id, check)


class BookieNode:
    """`hook(name)` is called at each step that a fault may follow; see generator."""

    def __init__(
        self, world: World, bookie_id: BookieId, ledger_id: LedgerId, *, sync_us_max: int = 3 * MS
    ) -> None:
        self.world = world
        self.bookie_id = bookie_id
        self.ledger_id = ledger_id  # of the story
        self.sync_us_max = sync_us_max
        self.read_only = False
        self.up = True
        self.paused = False
        self.background = True  # checkpoints of its own accord
        self.wiped = False  # its cookie forbids a start
        self.collected = False  # it deleted the ledger
        self.life = 0  # counts starts
        self._requests: Requests | None = None
        self.hook: Callable[[str, BookieNode], None] = lambda _name, _node: None
        self.leave: Callable[[], None] = self.crash  # the process ends of its own accord
        self.fence_answered: set[int] = set()  # ledgers that a fencing read was answered for
        self._random = world.stream(f"disk {bookie_id}")
        self._waiting: list[Callable[[], None]] = []  # while paused
        self._boot(b"")

    def _boot(self, journal: bytes) -> None:
        self.life += 1
        self._requests = None
        self.journal = SimJournal(self, journal)
        self.storage = _Storage()
        self.bookie = self.make_bookie()
        self.bookie.read_only = self.read_only
        if journal:
            scan = journal_format.scan_records(journal, 0, _VERSION, at_end_of_file=True)
            assert not scan.end or scan.end.position == len(journal), scan.end
            self.storage.replay(scan.records)
            for descriptor in self.storage.directories[0].ledgers.values():
                descriptor.key_journaled = True

    def make_bookie(self) -> Bookie:
        bookie = _HookedBookie(
            self.storage,
            [self.journal],  # type: ignore[list-item]  # stands for the real one
            queued_bytes_max=_QUEUED_BYTES_MAX,
            request_checkpoint=self.request_checkpoint,
        )
        bookie.node = self
        return bookie

    def request_checkpoint(self) -> None:
        """Nothing is ever flushed here."""

    def accept(self, gone: Callable[["Connection"], None]) -> "Connection":
        """The server's end of a new connection (modes B and C)."""
        from bkctl.server.listener import Connection

        if self._requests is None:
            reads = _HonestReads(self.bookie, InlineExecutor())
            reads.node = self
            v3 = RequestsV3(self.bookie, reads, lambda: (1 << 40, 1 << 39))
            self._requests = Requests(self.bookie, reads, v3, batch_read_bytes_max=_FRAME_BYTES_MAX)
        return Connection(self._requests, _FRAME_BYTES_MAX, gone)

    def sync_delay(self) -> int:
        return 1 + int(self._random.random() * self.sync_us_max)

    def completed(self, journal: SimJournal, tokens: list[Any]) -> None:
        if self.journal is journal and self.up:
            self.hook("synced", self)
            if self.journal is journal and self.up:
                self.bookie.completed(tokens)

    # -- life and death --------------------------------------------------------------------------

    def crash(self) -> None:
        """Power loss: of what was not synced a random part is left, in the order of writing."""
        if self.up:
            self.world.tell(self.bookie_id, "crashes")
            self.world.covered["bookie crash"] += 1
            self.up = False
            keep = self._random.choice((0.0, self._random.random(), 1.0))
            # A journal of its own: nothing of this life completes any more.
            self.journal = SimJournal(self, self.journal.survivors(keep))
            self._waiting.clear()

    def fail_disk(self) -> None:
        """A write or a sync will fail: a bookie whose journal fails leaves."""
        if self.up:
            self.leave()

    def wipe(self) -> None:
        """Its disks are replaced by empty ones: the cookie in the metadata store forbids to start."""
        self.crash()
        self.wiped = True

    def collect(self) -> None:
        """Garbage collection finds that the metadata store has the ledger no longer."""
        if self.up and self.storage.ledger(self.ledger_id) is not None:
            self.world.tell(self.bookie_id, "deletes the ledger")
            self.world.covered["bookie collects"] += 1
            self.collected = True
            self.bookie.delete_ledger(self.ledger_id)
            self.request_checkpoint()

    def restart(self) -> None:
        if not self.up and not self.wiped:
            self.world.tell(self.bookie_id, "is back")
            self.up = True
            self.paused = False
            self._boot(self.journal.synced)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self.run(request)

    def run(self, request: Callable[[], None]) -> None:
        """A request arrived. A paused bookie takes it later, a dead one never."""
        if self.paused:
            self._waiting.append(request)
        elif self.up:
            request()

    # -- requests --------------------------------------------------------------------------------

    def add(
        self,
        frames: bytes,
        answer: Callable[[int, BookKeeperError | None], None],
        *,
        deferred: bool = False,
    ) -> None:
        """Whole v2 add frames; `answer(entry id, error or None)` once for each."""
        if deferred:
            self._add_deferred(frames, answer)
            return
        buffer = bytearray(frames)
        view = memoryview(buffer)
        peer = _Peer(answer)
        for start, end in list(frames_in(frames)):
            if start < peer.taken:
                continue
            try:
                peer.taken = self.bookie.take_adds(peer, buffer, view, start, len(buffer))
                assert peer.taken > start, "the write cache of a simulated bookie is full"
            except BookKeeperError as error:
                answer(HEADER.unpack_from(buffer, start + v2.ADD_PREFIX.size)[1], error)
                peer.taken = end

    def _add_deferred(self, frames: bytes, answer: Callable[[int, BookKeeperError | None], None]) -> None:
        key = frames[_KEY_AT : _KEY_AT + 20]
        for entry_id, body in entries_in(frames):
            response = v2.AddResponse(0, self.ledger_id, entry_id).encode()
            try:
                taken = self.bookie.add_entry(
                    _Peer(answer),
                    key,
                    body,
                    response,
                    recovery=False,
                    high_priority=False,
                    deferred_sync=True,
                )
                assert taken, "the write cache of a simulated bookie is full"
            except BookKeeperError as error:
                answer(entry_id, error)

    def read(self, ledger_id: int, entry_id: int) -> bytes | BookKeeperError:
        """A stored entry (LAST_ENTRY: the last one), or why there is none."""
        found = self._read(ledger_id, entry_id)
        self.check_negative(entry_id, found, held=self.holds(entry_id))
        return found

    def _read(self, ledger_id: int, entry_id: int) -> bytes | BookKeeperError:
        try:
            descriptor = self.bookie.ledger(ledger_id)
        except NoSuchLedgerError as error:
            return error
        if entry_id == LAST_ENTRY:
            entry_id = descriptor.directory.cached_last_entry(ledger_id)
        key = index_format.entry_key(ledger_id, entry_id)
        entry = descriptor.directory.cached(key) if entry_id >= 0 else None
        return absent(descriptor, entry_id) if entry is None else entry

    def holds(self, entry_id: int) -> bool:
        entries = self.durable_entries
        if entry_id >= 0:
            return (self.ledger_id, entry_id) in entries
        return any(ledger_id == self.ledger_id for ledger_id, _ in entries)

    def check_negative(self, entry_id: int, answer: bytes | BookKeeperError, *, held: bool) -> None:
        """A bookie never says that it lacks what it stores."""
        if held and not self.collected:
            assert not isinstance(answer, NEGATIVE), f"I12: {self.bookie_id} denies {entry_id}: {answer}"

    def fencing_read(
        self, ledger_id: int, entry_id: int, key: bytes, answer: Callable[[bytes | BookKeeperError], None]
    ) -> None:
        """Answered once the fence is durable."""

        try:
            self.bookie.fence(ledger_id, key, lambda: answer(self.read(ledger_id, entry_id)))
        except BookKeeperError as error:
            answer(error)

    def lac(self, ledger_id: int) -> int | BookKeeperError:
        """The largest LAC known here."""
        try:
            descriptor: LedgerDescriptor = self.bookie.ledger(ledger_id)
        except NoSuchLedgerError as error:
            return error
        if descriptor.max_lac is None:
            last = self.read(ledger_id, LAST_ENTRY)
            descriptor.max_lac = HEADER.unpack_from(last)[2] if isinstance(last, bytes) else -1
        return descriptor.max_lac

    def long_poll(
        self,
        ledger_id: int,
        previous_lac: int,
        timeout_us: int,
        answer: Callable[[tuple[int, bytes | None] | BookKeeperError], None],
    ) -> None:
        """As RequestsV3 does it: wait for a LAC beyond `previous_lac`, a fence or the timeout."""
        life = self.life

        def answer_now() -> None:
            if self.life != life or not self.up:
                return
            lac = self.lac(ledger_id)
            if isinstance(lac, BookKeeperError):
                answer(lac)
                return
            entry = self.read(ledger_id, previous_lac + 1) if lac > previous_lac else None
            answer((lac, entry if isinstance(entry, bytes) else None))

        lac = self.lac(ledger_id)
        if isinstance(lac, BookKeeperError) or lac > previous_lac:
            answer_now()
            return
        waiters, waits = self.bookie.lac_waiters, [True]

        def wake(_advanced: bool) -> None:
            waits.clear()
            self.world.after(0, answer_now)

        def expire() -> None:
            if waits:
                waiters.remove(ledger_id, waiter)
                wake(False)

        waiter = (previous_lac, wake)
        waiters.add(ledger_id, waiter)
        self.world.after(timeout_us, expire)

    def write_lac(
        self, ledger_id: int, lac: int, key: bytes, body: bytes, answer: Callable[[object], None]
    ) -> None:
        try:
            self.bookie.write_lac(ledger_id, lac, key, body, lambda: answer(None))
        except BookKeeperError as error:
            answer(error)

    def force(self, ledger_id: int, answer: Callable[[object], None]) -> None:
        self.bookie.force(ledger_id, lambda: answer(None))

    def rot(self, entry_id: int) -> bool:
        """A bit of a stored entry flips, until it is written anew; False: there is no such entry."""
        cache = self.storage.directories[0].active
        position = cache.index.get(index_format.entry_key(self.ledger_id, entry_id))
        if position is None or not self.up:
            return False
        size = int.from_bytes(cache.view[position : position + 4])
        cache.view[position + 4 + size - 1] ^= 0x10  # of the payload, or of the digest before an empty one
        return True

    # -- what is stored, for the oracle ----------------------------------------------------------

    @property
    def durable_entries(self) -> dict[tuple[int, int], bytes]:
        """By ledger and entry id, as a crash now would leave them for certain."""
        return self.journal.entries

    def durable_entry(self, ledger_id: int, entry_id: int) -> bytes | None:
        return self.durable_entries.get((ledger_id, entry_id))


class _Peer:
    """One request's connection: takes v2 answers to adds apart."""

    closed = False
    version2 = True

    def __init__(self, answer: Callable[[int, BookKeeperError | None], None]) -> None:
        self._answer = answer
        self.taken = 0

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), v2.RESPONSE.size):
            _, _, rc, _, entry_id = v2.RESPONSE.unpack_from(data, start)
            self._answer(entry_id, None if rc == 0 else error_from_rc(rc, WriteError, "add"))

    def drop(self) -> None:
        raise AssertionError("a bookie dropped a simulated connection")

    async def writable(self) -> None:
        raise AssertionError("not asked in a simulation")

    def pause(self, reason: str) -> None:
        raise AssertionError(f"a simulated bookie has no room: {reason}")

    def resume(self, reason: str) -> None: ...
