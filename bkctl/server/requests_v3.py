"""Version 3 requests: every operation of the protocol, answered always.

Where upstream goes silent (entry lists of DbLedgerStorage, unexpected errors) there is an answer here.
Source: spec wire sections 4 and 8; upstream the *V3 processors.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bkctl.errors import (
    BookKeeperError,
    IncorrectParameterError,
    NoSuchEntryError,
    NoSuchLedgerError,
    ProtocolVersionError,
    UnauthorizedAccessError,
)
from bkctl.formats import request_v3 as v3
from bkctl.formats.availability import Availability
from bkctl.formats.entry import HEADER_BYTES, LAC_HEADER
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.result_code import ResultCode, code_of_error
from bkctl.server.bookie import Bookie, Peer
from bkctl.server.reads import LAST_ENTRY, Reads

AUTH_DISABLED = "AuthDisabledPlugin"
_LONG_POLL_MS_MAX = 3_600_000

DiskSpace = Callable[[], tuple[int, int]]  # total and free bytes, over the ledger directories


class RequestsV3:
    """Takes decoded version 3 requests of every connection."""

    def __init__(self, bookie: Bookie, reads: Reads, disk_space: DiskSpace) -> None:
        self._bookie = bookie
        self._reads = reads
        self._disk_space = disk_space
        self._add_response = v3.AddResponseEncoder()
        self._operations: dict[int, Callable[[Peer, pb.Request], None]] = {
            pb.READ_ENTRY: self._read,
            pb.AUTH: self._auth,
            pb.WRITE_LAC: self._write_lac,
            pb.READ_LAC: self._later(self._read_lac),
            pb.GET_BOOKIE_INFO: self._later(self._info),
            pb.FORCE_LEDGER: self._force,
            pb.GET_LIST_OF_ENTRIES_OF_LEDGER: self._later(self._list),
        }

    def take(self, peer: Peer, body: bytes) -> bool:
        """Take one request; False when there is no room for it now and the peer is paused.

        Raises:
            CorruptDataError: not a request; the connection must be closed.
        """
        request = v3.decode_request(body)
        operation = request.header.operation
        known = operation == pb.ADD_ENTRY or operation in self._operations
        if not known:
            peer.send(v3.encode_refusal(request, ResultCode.EBADREQ))
            return True
        try:
            if request.header.version != pb.VERSION_THREE:
                raise ProtocolVersionError("only version 3 requests are taken in this form")
            if operation == pb.ADD_ENTRY:
                return self._add(peer, request)
            self._operations[operation](peer, request)
        except BookKeeperError as error:
            _refuse(peer, request, error)
        return True

    def _add(self, peer: Peer, request: pb.Request) -> bool:
        add = request.addRequest
        body = add.body
        if len(body) < HEADER_BYTES:
            raise IncorrectParameterError(f"entry of {len(body)} bytes")
        if LAC_HEADER.unpack_from(body) != (add.ledgerId, add.entryId):
            raise IncorrectParameterError("the ids of the request are not those of the entry")
        return self._bookie.add_entry(
            peer,
            add.masterKey,
            body,
            self._add_response.encode(request.header.txnId, ResultCode.EOK.status, add.ledgerId, add.entryId),
            recovery=add.HasField("flag") and add.flag == pb.AddRequest.RECOVERY_ADD,
            high_priority=request.header.priority > 0,
            deferred_sync=bool(add.writeFlags & v3.DEFERRED_SYNC),
        )

    # -- reads -----------------------------------------------------------------------------------

    def _read(self, peer: Peer, request: pb.Request) -> None:
        read = request.readRequest
        flag = read.flag if read.HasField("flag") else None
        if flag == pb.ReadRequest.FENCE_LEDGER:
            self._fencing_read(peer, request)
        elif read.HasField("previousLAC"):
            self._long_poll(peer, request)
        else:
            self._plain_read(peer, request)

    def _plain_read(self, peer: Peer, request: pb.Request) -> None:
        read = request.readRequest
        descriptor = self._bookie.storage.ledger(read.ledgerId)
        if descriptor is not None and descriptor.max_lac is None:  # the answer needs it
            self._reads.spawn(peer, self._answering(peer, request, self._load_lac_and_read))
            return

        def answer(result: bytes | BookKeeperError) -> None:
            if isinstance(result, bytes):
                assert descriptor is not None
                peer.send(v3.encode_response(request, ResultCode.EOK, body=result, maxLAC=descriptor.max_lac))
            else:
                _refuse(peer, request, result)

        self._reads.read(peer, read.ledgerId, read.entryId, answer)

    async def _load_lac_and_read(self, request: pb.Request) -> dict[str, Any]:
        descriptor = self._bookie.ledger(request.readRequest.ledgerId)
        max_lac = await self._reads.max_lac(descriptor)
        return {"body": await self._reads.entry(descriptor, request.readRequest.entryId), "maxLAC": max_lac}

    def _fencing_read(self, peer: Peer, request: pb.Request) -> None:
        read = request.readRequest
        if not read.HasField("masterKey"):
            raise UnauthorizedAccessError("fencing needs the ledger's master key")

        def answer(result: bytes | BookKeeperError) -> None:
            if isinstance(result, bytes):
                peer.send(v3.encode_response(request, ResultCode.EOK, body=result))
            else:
                _refuse(peer, request, result)

        then = lambda: self._reads.read(peer, read.ledgerId, read.entryId, answer)  # noqa: E731
        self._bookie.fence(read.ledgerId, read.masterKey, then)

    def _long_poll(self, peer: Peer, request: pb.Request) -> None:
        """Wait for a LAC beyond `previousLAC`, a fence or the timeout; then read (spec wire 8.6)."""
        read = request.readRequest
        descriptor = self._bookie.ledger(read.ledgerId)
        known = descriptor.max_lac  # None after a restart: loaded by the answer, which may bring no news
        if not read.HasField("timeOut") or known is None or known > read.previousLAC:
            self._reads.spawn(peer, self._answering(peer, request, self._polled))
            return

        def wake(advanced: bool) -> None:
            timer.cancel()
            update = {"lacUpdateTimestamp": int(time.time() * 1000)} if advanced else {}
            self._reads.spawn(peer, self._answering(peer, request, self._polled, **update))

        def expire() -> None:
            self._bookie.lac_waiters.remove(read.ledgerId, waiter)
            wake(False)

        waiter = (read.previousLAC, wake)
        timeout_ms = min(max(read.timeOut, 0), _LONG_POLL_MS_MAX)
        timer = asyncio.get_running_loop().call_later(timeout_ms / 1000, expire)
        self._bookie.lac_waiters.add(read.ledgerId, waiter)

    async def _polled(self, request: pb.Request) -> dict[str, Any]:
        read = request.readRequest
        if not (read.HasField("flag") and read.flag == pb.ReadRequest.ENTRY_PIGGYBACK):
            return await self._load_lac_and_read(request)
        if read.entryId != LAST_ENTRY:
            raise IncorrectParameterError("a piggy-backed entry is asked for with entry id -1")
        descriptor = self._bookie.ledger(read.ledgerId)
        max_lac = await self._reads.max_lac(descriptor)
        if max_lac > read.previousLAC:
            try:
                body = await self._reads.entry(descriptor, read.previousLAC + 1)
                return {"body": body, "entryId": read.previousLAC + 1, "maxLAC": max_lac}
            except NoSuchEntryError:
                pass  # striped elsewhere
        return {"maxLAC": max_lac}

    # -- the rest --------------------------------------------------------------------------------

    def _auth(self, peer: Peer, request: pb.Request) -> None:
        """A bookie without an auth provider says so, whatever it is asked (spec wire 9.1)."""
        response = pb.Response(header=request.header, status=pb.EOK)
        response.authResponse.authPluginName = AUTH_DISABLED
        response.authResponse.payload = b""
        peer.send(v3.encode(response))

    def _write_lac(self, peer: Peer, request: pb.Request) -> None:
        write = request.writeLacRequest
        if len(write.body) < LAC_HEADER.size:
            raise IncorrectParameterError(f"LAC packet of {len(write.body)} bytes")
        ledger_id, lac = LAC_HEADER.unpack_from(write.body)
        then = lambda: peer.send(v3.encode_response(request, ResultCode.EOK))  # noqa: E731
        self._bookie.write_lac(ledger_id, lac, write.masterKey, write.body, then)

    def _force(self, peer: Peer, request: pb.Request) -> None:
        then = lambda: peer.send(v3.encode_response(request, ResultCode.EOK))  # noqa: E731
        self._bookie.force(request.forceLedgerRequest.ledgerId, then)

    async def _read_lac(self, request: pb.Request) -> dict[str, Any]:
        try:
            descriptor = self._bookie.ledger(request.readLacRequest.ledgerId)
        except NoSuchLedgerError as error:
            raise NoSuchEntryError(str(error)) from error  # upstream's answer for an unknown ledger
        found = {}
        if descriptor.explicit_lac is not None:
            found["lacBody"] = descriptor.explicit_lac
        try:
            found["lastEntryBody"] = await self._reads.entry(descriptor, LAST_ENTRY)
        except NoSuchEntryError:
            if not found:
                raise
        return found

    async def _info(self, request: pb.Request) -> dict[str, Any]:
        asked = request.getBookieInfoRequest.requested
        total, free = self._disk_space()
        found = {}
        if asked & v3.TOTAL_DISK_CAPACITY:
            found["totalDiskCapacity"] = total
        if asked & v3.FREE_DISK_SPACE:
            found["freeDiskSpace"] = free
        return found

    async def _list(self, request: pb.Request) -> dict[str, Any]:
        ids = await self._reads.entry_ids(request.getListOfEntriesOfLedgerRequest.ledgerId)
        return {"availabilityOfEntriesOfLedger": Availability.of(ids).encode()}

    def _later(
        self, work: Callable[[pb.Request], Awaitable[dict[str, Any]]]
    ) -> Callable[[Peer, pb.Request], None]:
        return lambda peer, request: self._reads.spawn(peer, self._answering(peer, request, work))

    async def _answering(
        self,
        peer: Peer,
        request: pb.Request,
        work: Callable[[pb.Request], Awaitable[dict[str, Any]]],
        **more: Any,
    ) -> None:
        """Answer `request` with what `work` returns, or with its error."""
        try:
            found = await work(request)
            if "body" in found:
                found |= more
            await peer.writable()
            peer.send(v3.encode_response(request, ResultCode.EOK, **found))
        except BookKeeperError as error:
            _refuse(peer, request, error)


def _refuse(peer: Peer, request: pb.Request, error: BookKeeperError) -> None:
    peer.send(v3.encode_response(request, code_of_error(error)))
