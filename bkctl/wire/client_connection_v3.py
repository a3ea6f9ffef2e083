"""The client's side of one v3 connection to a bookie: requests → bytes, bytes → events. No I/O.

Everything that v2 cannot say: fencing, explicit LAC, long polls, deferred sync and force, entry
lists, disk sizes. Answers are matched by (txn id, operation), so they cannot be mistaken; an answer
that nobody waits for is counted and dropped. Every method returns the request id and the frame.

Source: spec wire sections 4, 8 and 10; upstream PerChannelBookieClient.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bkctl.errors import BookKeeperError, CorruptDataError, ReadError, WriteError
from bkctl.formats.availability import Availability
from bkctl.formats.frame import FRAME_BYTES_MAX, FrameCutter
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.request_v3 import (
    FREE_DISK_SPACE,
    HIGH_PRIORITY,
    TOTAL_DISK_CAPACITY,
    decode_response,
    encode,
    encode_deferred_add,
    new_request,
    status_of,
)
from bkctl.formats.result_code import ResultCode, error_from_status
from bkctl.wire.events import AddRefused, AddsStored, Answer, Event, LongPollAnswer


class _Pending(NamedTuple):
    operation: int
    ledger_id: int
    entry_id: int
    read: Callable[[pb.Response], Any]  # the value of a good answer


class ClientConnectionV3:
    """`peer` names the bookie in errors."""

    def __init__(self, peer: str, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._peer = peer
        self._cutter = FrameCutter(frame_bytes_max)
        self._txn_count = 0
        self._pending: dict[int, _Pending] = {}
        self.ignored_count = 0

    def deferred_adds(
        self, ledger_id: int, first_entry_id: int, bodies: Sequence[bytes], master_key: bytes
    ) -> bytes:
        """Frames of consecutive adds answered before they are durable; the answers are
        AddsStored and AddRefused."""
        frames = []
        for entry_id, body in enumerate(bodies, first_entry_id):
            txn_id = self._expect(pb.ADD_ENTRY, ledger_id, entry_id, _nothing)
            frames.append(encode_deferred_add(txn_id, ledger_id, entry_id, master_key, body))
        return b"".join(frames)

    def fencing_read(
        self, ledger_id: int, entry_id: int, master_key: bytes, *, high_priority: bool = False
    ) -> tuple[int, bytes]:
        """Fences the ledger, then reads; -1 is the last entry. The answer is the whole entry."""
        txn_id = self._expect(pb.READ_ENTRY, ledger_id, entry_id, _read_body)
        request = new_request(pb.READ_ENTRY, txn_id, priority=HIGH_PRIORITY if high_priority else 0)
        read = request.readRequest
        read.ledgerId = ledger_id
        read.entryId = entry_id
        read.masterKey = master_key
        read.flag = pb.ReadRequest.FENCE_LEDGER
        return txn_id, encode(request)

    def long_poll(self, ledger_id: int, previous_lac: int, timeout_ms: int) -> tuple[int, bytes]:
        """Waits on the bookie for a LAC beyond `previous_lac`. The answer is a LongPollAnswer."""
        txn_id = self._expect(pb.READ_ENTRY, ledger_id, -1, _read_long_poll)
        request = new_request(pb.READ_ENTRY, txn_id)
        read = request.readRequest
        read.ledgerId = ledger_id
        read.entryId = -1
        read.previousLAC = previous_lac
        read.timeOut = timeout_ms
        read.flag = pb.ReadRequest.ENTRY_PIGGYBACK
        return txn_id, encode(request)

    def read_lac(self, ledger_id: int) -> tuple[int, bytes]:
        """The answer is (LAC packet or None, whole last entry or None), at least one of them."""
        txn_id = self._expect(pb.READ_LAC, ledger_id, -1, _read_lac_bodies)
        request = new_request(pb.READ_LAC, txn_id)
        request.readLacRequest.ledgerId = ledger_id
        return txn_id, encode(request)

    def write_lac(self, ledger_id: int, lac: int, master_key: bytes, body: bytes) -> tuple[int, bytes]:
        """`body` is a LAC packet. The answer is None."""
        txn_id = self._expect(pb.WRITE_LAC, ledger_id, -1, _nothing)
        request = new_request(pb.WRITE_LAC, txn_id)
        write = request.writeLacRequest
        write.ledgerId = ledger_id
        write.lac = lac
        write.masterKey = master_key
        write.body = body
        return txn_id, encode(request)

    def force_ledger(self, ledger_id: int) -> tuple[int, bytes]:
        """Makes durable what was answered before. The answer is None."""
        txn_id = self._expect(pb.FORCE_LEDGER, ledger_id, -1, _nothing)
        request = new_request(pb.FORCE_LEDGER, txn_id)
        request.forceLedgerRequest.ledgerId = ledger_id
        return txn_id, encode(request)

    def list_entries(self, ledger_id: int) -> tuple[int, bytes]:
        """The answer is an Availability. Java's DbLedgerStorage never answers."""
        txn_id = self._expect(pb.GET_LIST_OF_ENTRIES_OF_LEDGER, ledger_id, -1, _read_availability)
        request = new_request(pb.GET_LIST_OF_ENTRIES_OF_LEDGER, txn_id)
        request.getListOfEntriesOfLedgerRequest.ledgerId = ledger_id
        return txn_id, encode(request)

    def bookie_info(self) -> tuple[int, bytes]:
        """The answer is (total, free) bytes over all ledger directories."""
        txn_id = self._expect(pb.GET_BOOKIE_INFO, -1, -1, _read_disk_bytes)
        request = new_request(pb.GET_BOOKIE_INFO, txn_id)
        request.getBookieInfoRequest.requested = TOTAL_DISK_CAPACITY | FREE_DISK_SPACE
        return txn_id, encode(request)

    def forget(self, request_id: int) -> None:
        """Nobody waits for this answer any more."""
        self._pending.pop(request_id, None)

    def receive(self, chunk: bytes) -> list[Event]:
        """What the bookie has answered, in the order of arrival.

        Raises:
            CorruptDataError: these are no v3 responses; the connection must be closed.
        """
        events: list[Event] = []
        for body in self._cutter.cut(chunk):
            response = decode_response(body)
            txn_id = response.header.txnId
            pending = self._pending.get(txn_id)
            if pending is None or pending.operation != response.header.operation:
                self.ignored_count += 1  # this includes AUTH and START_TLS: we ask for neither
                continue
            del self._pending[txn_id]
            value = self._value(pending, response)
            if pending.operation != pb.ADD_ENTRY:
                events.append(Answer(txn_id, value))
            elif value is None:
                _append_stored(events, pending.ledger_id, pending.entry_id)
            else:
                events.append(AddRefused(pending.ledger_id, pending.entry_id, value))
        return events

    def _expect(
        self, operation: int, ledger_id: int, entry_id: int, read: Callable[[pb.Response], Any]
    ) -> int:
        self._txn_count += 1
        self._pending[self._txn_count] = _Pending(operation, ledger_id, entry_id, read)
        return self._txn_count

    def _value(self, pending: _Pending, response: pb.Response) -> Any:
        """What the answer says: a value of the operation, or a BookKeeperError."""
        status = status_of(response)
        default = WriteError if pending.operation in _WRITES else ReadError
        where = f"bookie {self._peer}"
        if pending.operation != pb.GET_BOOKIE_INFO:
            where += f", ledger {pending.ledger_id} entry {pending.entry_id}"
        # A bookie that has an explicit LAC but no entry answers EIO; the packet is good all the same.
        lac_alone = status == ResultCode.EIO.status and response.readLacResponse.HasField("lacBody")
        if status != ResultCode.EOK.status and not lac_alone:
            return error_from_status(status, default, where)
        try:
            return pending.read(response)
        except (CorruptDataError, BookKeeperError) as error:
            return default(f"{where}: {error}")


_WRITES = (pb.ADD_ENTRY, pb.WRITE_LAC, pb.FORCE_LEDGER)


def _append_stored(events: list[Event], ledger_id: int, entry_id: int) -> None:
    """Prolongs the run that the last event is, or starts one."""
    if events:
        last = events[-1]
        if isinstance(last, AddsStored) and (last.ledger_id, last.last_entry_id) == (ledger_id, entry_id - 1):
            events[-1] = last._replace(last_entry_id=entry_id)
            return
    events.append(AddsStored(ledger_id, entry_id, entry_id))


def _nothing(response: pb.Response) -> None:
    return None


def _read_body(response: pb.Response) -> bytes:
    if not response.readResponse.HasField("body"):
        raise ReadError("answered without an entry")
    return response.readResponse.body


def _read_long_poll(response: pb.Response) -> LongPollAnswer:
    answer = response.readResponse
    body = answer.body if answer.HasField("body") else None
    max_lac = answer.maxLAC if answer.HasField("maxLAC") else None
    return LongPollAnswer(answer.entryId if body is not None else -1, body, max_lac)


def _read_lac_bodies(response: pb.Response) -> tuple[bytes | None, bytes | None]:
    answer = response.readLacResponse
    return (
        answer.lacBody if answer.HasField("lacBody") else None,
        answer.lastEntryBody if answer.HasField("lastEntryBody") else None,
    )


def _read_availability(response: pb.Response) -> Availability:
    return Availability.decode(response.getListOfEntriesOfLedgerResponse.availabilityOfEntriesOfLedger)


def _read_disk_bytes(response: pb.Response) -> tuple[int, int]:
    answer = response.getBookieInfoResponse
    return answer.totalDiskCapacity, answer.freeDiskSpace
