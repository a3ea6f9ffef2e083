"""What a bookie does with entries: add, fence, LAC, force. No sockets, no disk of its own.

Everything here runs on the event loop, so a fence and an add can never race (spec replication B1).
Laws of this file:
- An add is answered after the journal group that holds it was synced, unless it asked for deferred
  sync. Answers are prepared when the add arrives and released by the journal.
- A ledger key record precedes the first record of a ledger in the journal since this start; also
  for a fence, so that replay can always open the ledger (B3).
- A fencing read is answered after its fence record is durable, whatever the read itself says (B2).
- At a bound (write cache, journal queue) nothing is refused: the peer is not read until there is room.

Source: spec wire sections 8.2-8.7, spec replication section 14.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from bkctl.errors import (
    IncorrectParameterError,
    LedgerFencedError,
    NoSuchLedgerError,
    UnauthorizedAccessError,
    WriteOnReadOnlyBookieError,
)
from bkctl.formats import journal as journal_format
from bkctl.formats.entry import HEADER as ENTRY_HEADER
from bkctl.server.long_poll import LacWaiters
from bkctl.server.storage.directory_storage import LedgerDescriptor
from bkctl.server.storage.journal import Journal
from bkctl.server.storage.ledger_storage import LedgerStorage
from bkctl.wire.add_run import add_responses, owner_of, take_add_run

_RECOVERY_ADD = 0x0002
_HIGH_PRIORITY = 0x0004
_NO_ROOM = "no room"  # why a peer is paused
_ENTRY_ID_AT = 36  # in an ADD frame, the length field included


class Peer(Protocol):
    """The connection that asked."""

    closed: bool
    version2: bool  # sticky once a v2 frame was seen (spec wire section 2)

    def send(self, data: bytes) -> None: ...

    def drop(self) -> None:
        """Close the connection at once."""

    async def writable(self) -> None:
        """Return once the peer has read enough of what was sent, or has gone."""

    def pause(self, reason: str) -> None:
        """Take no further requests from this peer until `resume` for every reason."""

    def resume(self, reason: str) -> None: ...


Token = tuple[Peer, bytes] | tuple[None, Callable[[], None]]


class Bookie:
    """One bookie's ledgers.

    `request_checkpoint` is called when a write cache wants to be flushed. `explicit_lac_journaled`:
    False for journal formats before 6, which cannot hold explicit LACs; the next checkpoint keeps them.
    """

    def __init__(
        self,
        storage: LedgerStorage,
        journals: Sequence[Journal],
        *,
        queued_bytes_max: int,
        request_checkpoint: Callable[[], None],
        explicit_lac_journaled: bool = True,
    ) -> None:
        self.storage = storage
        self.lac_waiters = LacWaiters()
        self.read_only = False
        self.high_priority_writes = True  # recovery adds are taken while read-only
        self._journals = journals
        self._queued_bytes_max = queued_bytes_max
        self._request_checkpoint = request_checkpoint
        self._explicit_lac_journaled = explicit_lac_journaled
        self._paused: set[Peer] = set()
        self._fencing: dict[int, list[Callable[[], None]]] = {}  # ledger id -> who waits for its fence record

    # -- admission -------------------------------------------------------------------------------

    def ledger(self, ledger_id: int) -> LedgerDescriptor:
        """The ledger. Raises NoSuchLedgerError."""
        descriptor = self.storage.ledger(ledger_id)
        if descriptor is None:
            raise NoSuchLedgerError(f"no ledger {ledger_id} here")
        return descriptor

    def _opened(self, ledger_id: int, master_key: bytes) -> LedgerDescriptor:
        """The ledger, created with this key when unknown. Raises UnauthorizedAccessError.

        Compared with the *stored* key, also right after a restart (spec wire 8.3).
        """
        if ledger_id < 0:
            raise IncorrectParameterError(f"negative ledger id {ledger_id}")
        descriptor = self.storage.ledger(ledger_id)
        if descriptor is None:
            return self.storage.directory_for(ledger_id).create_ledger(ledger_id, master_key)
        if descriptor.master_key != master_key:
            if any(descriptor.master_key):
                raise UnauthorizedAccessError(f"wrong master key for ledger {ledger_id}")
            descriptor.directory.set_master_key(descriptor, master_key)  # a rebuilt index knows no keys
            descriptor.key_journaled = False
        return descriptor

    def _writable(
        self, ledger_id: int, master_key: bytes, *, recovery: bool, high_priority: bool
    ) -> LedgerDescriptor:
        if self.read_only and not (high_priority and self.high_priority_writes):
            raise WriteOnReadOnlyBookieError("this bookie is read-only")
        if not recovery and self.storage.fenced_and_deleted(ledger_id):
            raise LedgerFencedError(f"ledger {ledger_id} was fenced, and is deleted")
        descriptor = self._opened(ledger_id, master_key)
        if not recovery:
            if descriptor.fenced:
                raise LedgerFencedError(f"ledger {ledger_id} is fenced")
            if descriptor.limbo:
                raise UnauthorizedAccessError(
                    f"ledger {ledger_id} may have been fenced before a loss of data"
                )
        return descriptor

    def delete_ledger(self, ledger_id: int) -> None:
        """Forget a ledger that the metadata store no longer has here; who waits on it is told so."""
        self.storage.directory_for(ledger_id).delete_ledger(ledger_id)
        self.lac_waiters.wake(ledger_id)

    # -- adds ------------------------------------------------------------------------------------

    def take_adds(self, peer: Peer, buffer: bytearray, view: memoryview, position: int, end: int) -> int:
        """Take the run of v2 ADD frames at `position`; where it stopped.

        The first frame is complete and holds an entry header. The same position back means: no room
        now, the peer is paused and will be resumed.

        Raises:
            BookKeeperError: the first frame is refused, for this reason; the rest is untouched.
        """
        length, owner, header = owner_of(buffer, position)
        ledger_id = int.from_bytes(owner[20:], "big", signed=True)
        descriptor = self._writable(
            ledger_id,
            owner[:20],
            recovery=bool(header & _RECOVERY_ADD),
            high_priority=bool(header & _HIGH_PRIORITY),
        )
        if buffer[position + _ENTRY_ID_AT] & 0x80:
            raise IncorrectParameterError("negative entry id")
        cache = descriptor.directory.active
        if not cache.has_room(length - 20):  # the record: the frame without header and master key
            self._wait_for_room(peer, descriptor, length - 20)
            return position
        start = cache.used
        run = take_add_run(buffer, view, position, end, owner, header, cache.view, start, cache.index)
        keys = run.keys
        cache.used = run.used
        last_entry = cache.last_entry
        last_entry[ledger_id] = max(int.from_bytes(max(keys)[8:], "big"), last_entry.get(ledger_id, -1))
        self.raise_lac(descriptor, run.lac_max)
        records = cache.view[start : run.used]
        self._journal(descriptor, (records,), (peer, add_responses(header, keys)))
        self._watch_bounds(peer, descriptor)
        return run.end

    def add_entry(
        self,
        peer: Peer,
        master_key: bytes,
        entry: bytes,
        response: bytes,
        *,
        recovery: bool,
        high_priority: bool,
        deferred_sync: bool,
    ) -> bool:
        """Take one entry (header included); False when there is no room now and the peer is paused.

        `response` is sent once the entry is durable (written, with `deferred_sync`).

        Raises:
            BookKeeperError: the entry is refused.
        """
        ledger_id, entry_id, lac, _length = ENTRY_HEADER.unpack_from(entry)
        if entry_id < 0:
            raise IncorrectParameterError(f"negative entry id {entry_id}")
        descriptor = self._writable(ledger_id, master_key, recovery=recovery, high_priority=high_priority)
        cache = descriptor.directory.active
        start = cache.used
        if not cache.put(ledger_id, entry_id, entry):
            self._wait_for_room(peer, descriptor, len(entry) + 4)
            return False
        self.raise_lac(descriptor, lac)
        self._journal(
            descriptor,
            (cache.view[start : cache.used],),
            (peer, response),
            deferred=deferred_sync and not recovery,
        )
        self._watch_bounds(peer, descriptor)
        return True

    def raise_lac(self, descriptor: LedgerDescriptor, lac: int) -> None:
        if descriptor.max_lac is None or lac > descriptor.max_lac:
            descriptor.max_lac = lac
            self.lac_waiters.advanced(descriptor.ledger_id, lac)

    def _journal(
        self,
        descriptor: LedgerDescriptor,
        parts: tuple[bytes | memoryview, ...],
        token: Token,
        *,
        deferred: bool = False,
    ) -> None:
        if not descriptor.key_journaled:
            descriptor.key_journaled = True
            parts = (journal_format.ledger_key_record(descriptor.ledger_id, descriptor.master_key), *parts)
        self._journal_of(descriptor.ledger_id).append(parts, token, deferred=deferred)

    def _journal_of(self, ledger_id: int) -> Journal:
        return self._journals[ledger_id % len(self._journals)]

    # -- bounds ----------------------------------------------------------------------------------

    def _wait_for_room(self, peer: Peer, descriptor: LedgerDescriptor, record_bytes: int) -> None:
        if record_bytes > descriptor.directory.active.capacity:
            raise IncorrectParameterError(f"a record of {record_bytes} bytes does not fit the write cache")
        self._paused.add(peer)
        peer.pause(_NO_ROOM)
        self._request_checkpoint()

    def _watch_bounds(self, peer: Peer, descriptor: LedgerDescriptor) -> None:
        cache = descriptor.directory.active
        if cache.used * 2 > cache.capacity:
            self._request_checkpoint()
        if self._journal_of(descriptor.ledger_id).queued_bytes > self._queued_bytes_max:
            self._paused.add(peer)
            peer.pause(_NO_ROOM)

    def room_again(self) -> None:
        """A write cache was swapped, or a journal queue drained: hear the paused peers again."""
        paused, self._paused = self._paused, set()
        for peer in paused:
            peer.resume(_NO_ROOM)

    def completed(self, tokens: Sequence[Token]) -> None:
        """The journal synced (or, for deferred sync, wrote) these, in order."""
        by_peer: dict[Peer, list[bytes]] = {}
        for peer, answer in tokens:
            if peer is None:
                answer()  # type: ignore[operator]  # the union of Token: no peer, a callback
            else:
                by_peer.setdefault(peer, []).append(answer)  # type: ignore[arg-type]
        for peer, answers in by_peer.items():
            peer.send(answers[0] if len(answers) == 1 else b"".join(answers))
        if self._paused and all(j.queued_bytes * 2 <= self._queued_bytes_max for j in self._journals):
            self.room_again()

    # -- fence, LAC, force -----------------------------------------------------------------------

    def fence(self, ledger_id: int, master_key: bytes, then: Callable[[], None]) -> LedgerDescriptor:
        """Fence the ledger now; call `then` once the fence is durable. Creates an unknown ledger.

        Raises:
            UnauthorizedAccessError: the key is not the ledger's.
        """
        descriptor = self._opened(ledger_id, master_key)
        waiting = self._fencing.get(ledger_id)
        if waiting is not None:
            waiting.append(then)
        elif descriptor.fenced:
            then()
        else:
            descriptor.directory.set_fenced(descriptor)
            self._fencing[ledger_id] = [then]
            record = journal_format.fence_record(ledger_id)
            self._journal(descriptor, (record,), (None, lambda: self._fence_durable(ledger_id)))
            self.lac_waiters.wake(ledger_id)
        return descriptor

    def _fence_durable(self, ledger_id: int) -> None:
        for then in self._fencing.pop(ledger_id):
            then()

    def write_lac(
        self, ledger_id: int, lac: int, master_key: bytes, body: bytes, then: Callable[[], None]
    ) -> None:
        """Keep an explicit LAC; call `then` once it is durable. Fenced ledgers accept it.

        Raises:
            WriteOnReadOnlyBookieError, UnauthorizedAccessError.
        """
        if self.read_only:
            raise WriteOnReadOnlyBookieError("this bookie is read-only")
        descriptor = self._opened(ledger_id, master_key)
        descriptor.directory.set_explicit_lac(descriptor, body)
        record = journal_format.explicit_lac_record(ledger_id, body)
        self._journal(descriptor, (record,) if self._explicit_lac_journaled else (), (None, then))
        self.raise_lac(descriptor, lac)

    def force(self, ledger_id: int, then: Callable[[], None]) -> None:
        """Call `then` once everything queued before is synced. Unknown ledgers succeed, as upstream's."""
        self._journal_of(ledger_id).append((), (None, then))
