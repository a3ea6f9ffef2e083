"""The client's side of one v2 connection to a bookie: requests → bytes, bytes → events. No I/O.

Laws:
- Adds leave no trace here: their frames are made elsewhere, their answers name ledger and entry. So
  there is no per-entry state, and losing the connection is for the senders to interpret.
- Answers to reads are matched by (ledger id, entry id), as v2 has nothing else; two reads of the
  same entry take the answers in the order of asking. Fencing reads therefore go over v3: here the
  answer to a plain read could pass for that of a fencing one.
- An answer that nobody waits for (asked and given up, or never asked) is counted and dropped.

Source: spec wire sections 3 and 10; upstream PerChannelBookieClient.
"""

import re
from collections.abc import Sequence
from itertools import chain, repeat
from struct import Struct

from bkctl.errors import BookKeeperError, ReadError, WriteError
from bkctl.formats.frame import FRAME_BYTES_MAX, LENGTH_BYTES, FrameCutter
from bkctl.formats.request_v2 import (
    ADD_ENTRY,
    HIGH_PRIORITY,
    READ_ENTRY,
    READ_HEADER,
    READ_REQUEST,
    RESPONSE,
    BatchReadRequest,
    BatchReadResponse,
    Response,
    decode_response,
    unpack_header,
)
from bkctl.formats.result_code import error_from_rc
from bkctl.wire.events import AddRefused, AddsStored, Answer, Event

# One or more good answers to adds of one ledger, each 28 bytes: the same length, header, rc 0 and
# ledger id, then some entry id. Matching runs in C, at 0.03 us per answer.
_ADD_RUN = re.compile(rb"(?s:(\x00\x00\x00\x18\x02\x01\x00\x00\x00\x00\x00\x00.{8}).{8}(?:\1.{8})*+)")
_ADD_ENTRY_ID = Struct(">20xq")
_ADD_LEDGER_ID = Struct(">12xq")
assert _ADD_ENTRY_ID.size == RESPONSE.size

_READ_REQUEST_LENGTH = READ_REQUEST.size - LENGTH_BYTES


class _PendingRead:
    """Reads asked together and answered together."""

    __slots__ = ("entry_ids", "ledger_id", "missing_count", "request_id", "results")

    def __init__(self, request_id: int, ledger_id: int, entry_ids: Sequence[int]) -> None:
        self.request_id = request_id
        self.ledger_id = ledger_id
        self.entry_ids = entry_ids
        self.results: list[bytes | BookKeeperError | None] = [None] * len(entry_ids)
        self.missing_count = len(entry_ids)


class ClientConnectionV2:
    """Adds, reads and batch reads. `peer` names the bookie in errors."""

    def __init__(self, peer: str, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._peer = peer
        self._cutter = FrameCutter(frame_bytes_max)
        self._request_count = 0
        self._reads: dict[tuple[int, int], list[tuple[_PendingRead, int]]] = {}
        self._pending: dict[int, _PendingRead | None] = {}  # by request id; None: a batch read
        self.ignored_count = 0

    def read_entries(
        self, ledger_id: int, entry_ids: Sequence[int], *, high_priority: bool = False
    ) -> tuple[int, bytes]:
        """Request id, and the frames to send. -1 asks for the last entry on the bookie.

        The answer is a list like `entry_ids`, which must not be empty: the whole entry, or the error.
        """
        assert entry_ids, ledger_id
        pending = _PendingRead(self._next_id(), ledger_id, entry_ids)
        self._pending[pending.request_id] = pending
        reads = self._reads
        for index, key in enumerate(zip(repeat(ledger_id), entry_ids)):
            if key in reads:
                reads[key].append((pending, index))
            else:
                reads[key] = [(pending, index)]
        header = READ_HEADER | HIGH_PRIORITY if high_priority else READ_HEADER
        columns = repeat(_READ_REQUEST_LENGTH), repeat(header), repeat(ledger_id), entry_ids
        return pending.request_id, b"".join(map(READ_REQUEST.pack, *columns))

    def batch_read(
        self, ledger_id: int, first_entry_id: int, count_max: int, bytes_max: int
    ) -> tuple[int, bytes]:
        """Request id, and the frame to send.

        The answer is a tuple of whole entries from `first_entry_id` on, at least one; `bytes_max`
        counts as spec wire section 3.4 says.
        """
        request_id = self._next_id()
        self._pending[request_id] = None
        request = BatchReadRequest(0, ledger_id, first_entry_id, request_id, count_max, bytes_max)
        return request_id, request.encode()

    def forget(self, request_id: int) -> None:
        """Nobody waits for this answer any more."""
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return
        for entry_id in set(pending.entry_ids):
            key = (pending.ledger_id, entry_id)
            kept = [waiter for waiter in self._reads.get(key, ()) if waiter[0] is not pending]
            if kept:
                self._reads[key] = kept
            else:
                self._reads.pop(key, None)

    def receive(self, chunk: bytes) -> list[Event]:
        """What the bookie has answered, in the order of arrival.

        Raises:
            CorruptDataError: these are no v2 responses; the connection must be closed.
        """
        events: list[Event] = []
        buffer = self._cutter.gather(chunk)
        start = 0
        while True:
            while run := _ADD_RUN.match(buffer, start):
                _append_runs(events, buffer, start, run.end())
                start = run.end()
            end = self._cutter.frame_end(buffer, start)
            if not end:
                break
            self._take_frame(events, buffer, start, end)
            start = end
        self._cutter.keep(buffer, start)
        return events

    def _next_id(self) -> int:
        self._request_count += 1
        return self._request_count

    def _take_frame(self, events: list[Event], buffer: bytes, start: int, end: int) -> None:
        """One frame that is no good answer to an add."""
        if end - start < RESPONSE.size:
            decode_response(buffer[start + LENGTH_BYTES : end])  # only AUTH may be so short
            self.ignored_count += 1
            return
        _, header, rc, ledger_id, entry_id = RESPONSE.unpack_from(buffer, start)
        opcode = unpack_header(header)[1]
        if opcode == READ_ENTRY:
            value: bytes | BookKeeperError = buffer[start + RESPONSE.size : end]
            if rc:
                value = error_from_rc(rc, ReadError, self._where(ledger_id, entry_id))
            self._take_read(events, ledger_id, entry_id, value)
        elif opcode == ADD_ENTRY and rc:
            error = error_from_rc(rc, WriteError, self._where(ledger_id, entry_id))
            events.append(AddRefused(ledger_id, entry_id, error))
        elif opcode == ADD_ENTRY:
            events.append(AddsStored(ledger_id, entry_id, entry_id))
        else:
            self._take_other(events, decode_response(buffer[start + LENGTH_BYTES : end]))

    def _take_read(
        self, events: list[Event], ledger_id: int, entry_id: int, value: bytes | BookKeeperError
    ) -> None:
        waiters = self._reads.get((ledger_id, entry_id))
        if waiters is None:
            self.ignored_count += 1
            return
        pending, index = waiters.pop(0)
        if not waiters:
            del self._reads[ledger_id, entry_id]
        pending.results[index] = value
        pending.missing_count -= 1
        if not pending.missing_count:
            del self._pending[pending.request_id]
            events.append(Answer(pending.request_id, pending.results))

    def _take_other(self, events: list[Event], response: Response) -> None:
        if not isinstance(response, BatchReadResponse) or response.request_id not in self._pending:
            self.ignored_count += 1
            return
        del self._pending[response.request_id]
        value: tuple[bytes, ...] | BookKeeperError = response.entries
        where = self._where(response.ledger_id, response.entry_id)
        if response.rc:
            value = error_from_rc(response.rc, ReadError, where)
        elif not response.entries:
            value = ReadError(f"{where}: batch read without an entry")
        events.append(Answer(response.request_id, value))

    def _where(self, ledger_id: int, entry_id: int) -> str:
        return f"bookie {self._peer}, ledger {ledger_id} entry {entry_id}"


def _append_runs(events: list[Event], buffer: bytes, start: int, end: int) -> None:
    """The good answers in buffer[start:end], all of one ledger, as runs of consecutive entry ids."""
    (ledger_id,) = _ADD_LEDGER_ID.unpack_from(buffer, start)
    ids = list(chain.from_iterable(_ADD_ENTRY_ID.iter_unpack(buffer[start:end])))
    first = ids[0]
    if ids == list(range(first, first + len(ids))):
        events.append(AddsStored(ledger_id, first, ids[-1]))
        return
    last = first
    for entry_id in ids[1:]:
        if entry_id != last + 1:
            events.append(AddsStored(ledger_id, first, last))
            first = entry_id
        last = entry_id
    events.append(AddsStored(ledger_id, first, last))
