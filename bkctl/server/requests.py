"""From frames to the bookie: which protocol version, which operation, which answer.

The two hot paths, plain v2 adds and reads, are taken in runs straight from the receive buffer;
everything else is decoded frame by frame.

Source: spec wire sections 2, 3, 8; upstream BookieRequestProcessor.
"""

from bkctl.errors import (
    BookKeeperError,
    IncorrectParameterError,
    ProtocolVersionError,
    UnauthorizedAccessError,
)
from bkctl.formats import request_v2 as v2
from bkctl.formats.entry import HEADER_BYTES, LAC_HEADER
from bkctl.formats.frame import LENGTH_BYTES, V3_FIRST_BYTE
from bkctl.formats.result_code import code_of_error
from bkctl.server.bookie import Bookie, Peer
from bkctl.server.reads import Reads, v2_rc
from bkctl.server.requests_v3 import RequestsV3

AUTH_DISABLED = "AuthDisabledPlugin"
_ADD_KINDS = (0x0201, 0x0101)  # version and opcode; version 0 has no flags and is decoded
_ADD_FRAME_BYTES_MIN = 28 + HEADER_BYTES
_READ_FRAME_BYTES = 24


class Requests:
    """Takes the requests of every connection of a bookie."""

    def __init__(self, bookie: Bookie, reads: Reads, v3: RequestsV3, *, batch_read_bytes_max: int) -> None:
        self._bookie = bookie
        self._reads = reads
        self._v3 = v3
        self._batch_read_bytes_max = batch_read_bytes_max

    def take(self, peer: Peer, buffer: bytearray, view: memoryview, start: int, stop: int, end: int) -> int:
        """Take the frame in `buffer[start:stop]`, and of a run the frames behind it up to `end`.

        Returns where it stopped; `start` itself when the peer was paused instead.

        Raises:
            CorruptDataError: the frame cannot be understood; the connection must be closed.
        """
        first = buffer[start + LENGTH_BYTES]
        if first == V3_FIRST_BYTE and not peer.version2:
            return stop if self._v3.take(peer, bytes(view[start + LENGTH_BYTES : stop])) else start
        peer.version2 = True
        size = stop - start
        if size >= _ADD_FRAME_BYTES_MIN and (first << 8 | buffer[start + 5]) in _ADD_KINDS:
            try:
                return self._bookie.take_adds(peer, buffer, view, start, end)
            except BookKeeperError as error:
                body = bytes(view[start + LENGTH_BYTES : start + _ADD_FRAME_BYTES_MIN])
                self._refuse_add(peer, v2.decode_request(body), error)
                return stop
        if size == _READ_FRAME_BYTES:
            taken = self._reads.take_reads(peer, buffer, start, end)
            if taken > start:
                return taken
        return (
            stop
            if self._take_one(peer, v2.decode_request(bytes(view[start + LENGTH_BYTES : stop])))
            else start
        )

    def _take_one(self, peer: Peer, request: v2.Request) -> bool:
        if isinstance(request, v2.AddRequest):
            return self._add(peer, request)
        if isinstance(request, v2.ReadRequest):
            self._read(peer, request)
        elif isinstance(request, v2.BatchReadRequest):
            self._reads.spawn(peer, self._batch_read(peer, request))
        else:
            peer.send(v2.AuthPacket(AUTH_DISABLED, b"").encode())
        return True

    def _add(self, peer: Peer, request: v2.AddRequest) -> bool:
        ledger_id, entry_id = LAC_HEADER.unpack_from(request.body)
        try:
            _check_version(request.version)
            if len(request.body) < HEADER_BYTES:
                raise IncorrectParameterError(f"entry of {len(request.body)} bytes")
            return self._bookie.add_entry(
                peer,
                request.master_key,
                request.body,
                v2.AddResponse(0, ledger_id, entry_id, request.version).encode(),
                recovery=bool(request.flags & v2.RECOVERY_ADD),
                high_priority=bool(request.flags & v2.HIGH_PRIORITY),
                deferred_sync=False,
            )
        except BookKeeperError as error:
            self._refuse_add(peer, request, error)
            return True

    def _refuse_add(self, peer: Peer, request: v2.Request, error: BookKeeperError) -> None:
        assert isinstance(request, v2.AddRequest)
        ledger_id, entry_id = LAC_HEADER.unpack_from(request.body)
        peer.send(v2.AddResponse(code_of_error(error).rc, ledger_id, entry_id, request.version).encode())

    def _read(self, peer: Peer, request: v2.ReadRequest) -> None:
        ledger_id, entry_id = request.ledger_id, request.entry_id

        def answer(result: bytes | BookKeeperError) -> None:
            rc, entry = (0, result) if isinstance(result, bytes) else (v2_rc(result), b"")
            peer.send(v2.ReadResponse(rc, ledger_id, entry_id, entry, request.version).encode())

        try:
            _check_version(request.version)
            if request.flags & v2.FENCING:
                then = lambda: self._reads.read(peer, ledger_id, entry_id, answer)  # noqa: E731
                self._bookie.fence(ledger_id, _fence_key(request), then)
            else:
                self._reads.read(peer, ledger_id, entry_id, answer)
        except BookKeeperError as error:
            answer(error)

    async def _batch_read(self, peer: Peer, request: v2.BatchReadRequest) -> None:
        rc = 0
        entries: tuple[bytes, ...] = ()
        try:
            _check_version(request.version)
            if request.flags & v2.FENCING:
                await self._reads.fenced(request.ledger_id, _fence_key(request))
            bytes_max = min(request.bytes_max, self._batch_read_bytes_max)
            entries = tuple(
                await self._reads.batch(request.ledger_id, request.entry_id, request.count_max, bytes_max)
            )
        except BookKeeperError as error:
            rc = v2_rc(error)
        await peer.writable()
        peer.send(
            v2.BatchReadResponse(
                rc, request.ledger_id, request.entry_id, request.request_id, entries, request.version
            ).encode()
        )


def _check_version(version: int) -> None:
    if version not in v2.VERSIONS:
        raise ProtocolVersionError(f"protocol version {version}")


def _fence_key(request: v2.ReadRequest | v2.BatchReadRequest) -> bytes:
    if request.master_key is None:
        raise UnauthorizedAccessError("fencing needs the ledger's master key")
    return request.master_key
