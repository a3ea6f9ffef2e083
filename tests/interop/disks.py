"""One bookie's directories, in the hands of Apache's bookie or of ours, and what must be in them.

The cluster has this one bookie, E=1: what was acknowledged is here or it is lost.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bkctl.client.blocking import BlockingBookKeeper
from bkctl.client.bookkeeper import BookKeeper
from bkctl.errors import BkctlError
from bkctl.formats import request_v2 as v2
from bkctl.formats import request_v3 as v3
from bkctl.formats.availability import Availability
from bkctl.formats.entry import Digester, master_key
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.formats.result_code import ResultCode
from bkctl.metadata.store import MetadataStore
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.journal import read_last_marks, replay
from bkctl.types import INVALID_ENTRY_ID, BookieId, DigestType, EntryId, LedgerId
from tests.integration.bookies import BookieProcess, numbered, wait_until
from tests.interop.apache import Apache, JavaBookie, JavaClient, JavaDriver
from tests.interop.payload import digest, expected, payload

NAME = BookieId("b1")
PASSWORD = b"pw"
KEY, WRONG_KEY = master_key(PASSWORD), master_key(b"wrong")
PASSWORD_TEXT = "cHc="  # PASSWORD, as the driver wants it
_DIGESTER = Digester(DigestType.CRC32C, PASSWORD)
_BULK_ENTRIES = 1_000_000  # more than anybody writes before the kill
_READ_AT_ONCE = 5_000  # a Java bookie takes 10,000 reads at once, no more
_ONE = {"ensemble": 1, "write": 1, "ack": 1}
_ONE_OF_OURS = {"ensemble_size": 1, "write_quorum_size": 1, "ack_quorum_size": 1}


@dataclass(slots=True)
class Kept:
    """What one ledger must hold from now on: entries 0 to `last`, no more if `exact`."""

    ledger_id: int
    last: int
    size: int = 100
    exact: bool = True
    open: bool = False  # nobody recovered or closed it
    fenced: bool = False
    explicit_lac: bytes | None = None
    # Java's replay takes zeros for the rest of an entry that the kill tore (spec storage, trap T7). It was
    # never acknowledged, but with one bookie nobody can recover the ledger: its end stays unknown.
    end_unknown: bool = False


@dataclass(slots=True)
class Disks:
    """`java` and `bkctl` share directories, id and cluster; `held_by` runs, or nobody does."""

    java: JavaBookie
    bkctl: BookieProcess
    uri: str
    driver: JavaDriver
    journals: list[Path]
    ledgers: list[Path]
    kept: list[Kept] = field(default_factory=list)
    held_by: JavaBookie | BookieProcess | None = None

    @property
    def address(self) -> str:
        assert self.held_by is not None
        return self.held_by.address

    def start(self, bookie: JavaBookie | BookieProcess) -> None:
        bookie.start()
        self.held_by = bookie
        # A killed one is registered until its session ends.
        wait_until(lambda: asyncio.run(_resolved(self.uri)) == bookie.address, "its registration", 30)

    def stop(self) -> None:
        assert self.held_by is not None
        code = self.held_by.stop()
        assert code in (0, 143), code  # a JVM that SIGTERM ended in order says 128 + 15
        self.held_by = None

    def kill(self) -> None:
        assert self.held_by is not None
        self.held_by.kill()
        self.held_by = None

    def flush(self) -> None:
        """Until lastMark covers everything that was journaled."""
        if self.held_by is self.java:
            self.stop()
            self.start(self.java)
        wait_until(lambda: not self.unflushed_records(), "a flush of everything")

    def unflushed_records(self) -> int:
        currents = [directory / "current" for directory in self.ledgers]
        count = 0
        for number, directory in enumerate(self.journals):
            mark = read_last_marks(OsFs(), currents, number, len(self.journals))
            for batch in replay(directory / "current", OsFs(), mark):
                count += len(batch)
        return count

    @contextmanager
    def clients(self) -> Iterator[tuple[JavaClient, BlockingBookKeeper]]:
        java = self.driver.client(f"{self.java.name}-{id(self)}", self.uri)
        try:
            with BlockingBookKeeper(self.uri) as ours:
                yield java, ours
        finally:
            java.close()


async def _resolved(uri: str) -> str:
    store = await MetadataStore.open(uri)
    try:
        return str(await store.registration.resolve(NAME))
    except BkctlError:
        return ""
    finally:
        await store.close()


@contextmanager
def disks(
    apache: Apache,
    driver: JavaDriver,
    uri: str,
    home: Path,
    *,
    several: bool = False,
    settings: Mapping[str, object] | None = None,
    flush_ms: int = 600_000,
) -> Iterator[Disks]:
    """New directories; `several`: two of each kind, indexes apart. At the end nobody runs any more, and
    the log of our bookie tells of no surprise.

    `flush_ms` is for our bookie. Java's flushes when it stops, never beside adds: an add that is held up
    in WriteCache.put while that cache is flushed and cleared leaves its key there, with the place of
    another entry's bytes, and the next flush stores those as this entry.
    """
    count = 2 if several else 1
    shared = {"zkTimeout": 2_000, **(settings or {})}
    if several:
        shared["indexDirectories"] = ",".join(map(str, numbered(home, "index", count)))
    java_settings = {**shared, "flushInterval": 600_000}
    java = JavaBookie(apache, uri, home, NAME, java_settings, journals=count, ledgers=count)
    ours = [f"{key}={value}" for key, value in {**shared, "flushInterval": flush_ms}.items()]
    bkctl = BookieProcess(uri, home, NAME, ours, journals=count, ledgers=count)
    made = Disks(java, bkctl, uri, driver, numbered(home, "journal", count), numbered(home, "ledgers", count))
    try:
        yield made
    finally:
        for bookie in (java, bkctl):
            if bookie.process is not None:
                bookie.kill()
    if bkctl.log.exists():
        assert "Traceback" not in bkctl.log.read_text()


# -- what the two clients write -------------------------------------------------------------------


def write(disks: Disks) -> None:
    """Each client: a ledger left open with an explicit LAC, one fenced by the other client, a closed one.

    The closed ones are the last, one in each directory: Java forgets fences and LACs behind which it
    stores no entry before its next flush (spec storage, trap T1).
    """
    with disks.clients() as (java, ours):
        disks.kept += [_left_open_by_java(disks, java), _left_open_by_bkctl(disks, ours)]
        disks.kept += [_fenced_by_bkctl(java, ours), _fenced_by_java(java, ours)]
        disks.kept += [closed_by_java(java), closed_by_bkctl(ours)]


def _left_open_by_java(disks: Disks, java: JavaClient) -> Kept:
    ledger_id = java.call("create", handle="open", password=PASSWORD_TEXT, **_ONE)["id"]
    assert java.call("add", handle="open", count=20)["acked"] == 20
    return Kept(ledger_id, 19, open=True, explicit_lac=_write_lac(disks, ledger_id, 19))


def _left_open_by_bkctl(disks: Disks, ours: BlockingBookKeeper) -> Kept:
    writer = ours.create_ledger(password=PASSWORD, **_ONE_OF_OURS)
    writer.append_many([payload(n, 100) for n in range(20)])
    return Kept(writer.ledger_id, 19, open=True, explicit_lac=_write_lac(disks, writer.ledger_id, 19))


def _write_lac(disks: Disks, ledger_id: int, lac: int) -> bytes:
    packet = _DIGESTER.pack_lac(ledger_id, lac)
    request = v3.new_request(pb.WRITE_LAC, 1)
    request.writeLacRequest.ledgerId = ledger_id
    request.writeLacRequest.lac = lac
    request.writeLacRequest.masterKey = KEY
    request.writeLacRequest.body = packet
    assert ask_v3(disks.address, request).status == pb.EOK
    return packet


def _fenced_by_bkctl(java: JavaClient, ours: BlockingBookKeeper) -> Kept:
    ledger_id = java.call("create", handle="fenced", password=PASSWORD_TEXT, **_ONE)["id"]
    assert java.call("add", handle="fenced", count=5)["acked"] == 5
    with ours.open_ledger(ledger_id, PASSWORD) as reader:
        assert reader.last_add_confirmed == 4
    assert java.call("add", handle="fenced", count=1)["error"] == "BKLedgerFencedException"
    return Kept(ledger_id, 4, fenced=True)


def _fenced_by_java(java: JavaClient, ours: BlockingBookKeeper) -> Kept:
    writer = ours.create_ledger(password=PASSWORD, **_ONE_OF_OURS)
    writer.append_many([payload(n, 100) for n in range(5)])
    opened = java.call("open", handle="r", id=writer.ledger_id, password=PASSWORD_TEXT, recovery=True)
    assert opened["lac"] == 4
    return Kept(writer.ledger_id, 4, fenced=True)


def closed_by_java(java: JavaClient) -> Kept:
    ledger_id = java.call("create", handle="closed", password=PASSWORD_TEXT, **_ONE)["id"]
    assert java.call("add", handle="closed", count=800, size=1000)["acked"] == 800
    java.call("close", handle="closed")
    return Kept(ledger_id, 799, size=1000)


def closed_by_bkctl(ours: BlockingBookKeeper, *, entries: int = 800, size: int = 1000) -> Kept:
    with ours.create_ledger(password=PASSWORD, **_ONE_OF_OURS) as writer:
        writer.append_many([payload(n, size) for n in range(entries)])
        return Kept(writer.ledger_id, entries - 1, size=size)


def write_until_killed(disks: Disks, threshold: int) -> None:
    """Both clients write, pipelined; kill -9 once the Java client has more than `threshold` entries."""
    name = f"killed-{id(disks)}-{threshold}"
    java = disks.driver.client(name, disks.uri)
    try:
        ledger_id = java.call("create", handle="w", password=PASSWORD_TEXT, **_ONE)["id"]
        java.call("start_adds", handle="w", count=_BULK_ENTRIES, size=300, outstanding=500)

        def kill() -> None:
            wait_until(lambda: java.call("handle", handle="w")["lac"] > threshold, "bulk adds", 60)
            disks.kill()

        ours = asyncio.run(_write_until(disks.uri, kill))
        done = java.call("wait_adds", handle="w")
        assert done["ended"]
        assert done["failed"]
        disks.kept.append(Kept(ledger_id, done["last_acked"], size=300, exact=False))
        disks.kept.append(ours)
    finally:
        java.close()


async def _write_until(uri: str, kill: Callable[[], None]) -> Kept:
    """Our writer, as long as `kill` runs in its thread; how far its acknowledgements went."""
    async with await BookKeeper.connect(uri, add_timeout_ms=1000) as client:
        writer = await client.create_ledger(password=PASSWORD, **_ONE_OF_OURS)
        await writer.append_many([payload(n, 300) for n in range(10)])
        killing = asyncio.get_running_loop().run_in_executor(None, kill)
        pending: list[asyncio.Future[tuple[int, int]]] = []
        try:
            for first in range(10, _BULK_ENTRIES, 50):
                await writer.wait_writable()
                pending.append(writer.append_many([payload(first + n, 300) for n in range(50)]))
                await asyncio.sleep(0)
                if killing.done():
                    break
        except BkctlError:
            pass
        await killing
        last = 9
        for done in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(done, BaseException):
                assert isinstance(done, BkctlError), done
            else:
                last = max(last, done[1])
        return Kept(writer.ledger_id, last, size=300, exact=False, open=True)


# -- what must be there ---------------------------------------------------------------------------


def check(disks: Disks) -> None:
    """Everything kept is there: asked for on the wire, and read by each client."""
    for kept in disks.kept:
        kept.end_unknown |= not kept.exact and disks.held_by is disks.java
        check_bookie(disks, kept)
    with disks.clients() as (java, ours):
        for kept in disks.kept:
            if not kept.exact and not kept.end_unknown:
                _recover(java, ours, kept)
            opened = java.call("open", handle="r", id=kept.ledger_id, password=PASSWORD_TEXT)
            kept.open = opened["state"] != "CLOSED"
            assert kept.open or opened["last_entry_id"] >= kept.last, (kept, opened)
            if kept.explicit_lac is not None:
                assert java.call("read_lac", handle="r", how="explicit") == kept.last, kept
            _check_read_by_java(java, kept)
            if kept.end_unknown and kept.open:
                continue
            with ours.open_ledger_no_recovery(LedgerId(kept.ledger_id), PASSWORD) as reader:
                if kept.open:
                    reader.read_last_add_confirmed()
                assert reader.last_add_confirmed >= kept.last, kept
                entries = reader.read(EntryId(0), EntryId(kept.last))
            found = digest((e.entry_id, bytes(e.payload)) for e in entries)
            assert found == expected(0, kept.last, kept.size), kept


def _check_read_by_java(java: JavaClient, kept: Kept) -> None:
    how = "unconfirmed" if kept.open else "sync"
    for first in range(0, kept.last + 1, _READ_AT_ONCE):
        last = min(kept.last, first + _READ_AT_ONCE - 1)
        found = java.call("read", handle="r", first=first, last=last, how=how)
        assert found["sha256"] == expected(first, last, kept.size), kept


def _recover(java: JavaClient, ours: BlockingBookKeeper, kept: Kept) -> None:
    """Close what a kill left behind: nothing acknowledged is missing; from now on the end is known."""
    closed = java.call("ledger_metadata", id=kept.ledger_id)["state"] == "CLOSED"  # by its writer
    with ours.open_ledger(LedgerId(kept.ledger_id), PASSWORD) as reader:
        last = reader.last_add_confirmed
    kept.fenced = not closed
    assert last >= kept.last, (kept, last)
    kept.last, kept.open = last, False
    kept.exact = True


def check_bookie(disks: Disks, kept: Kept) -> None:
    """What the bookie itself says of a ledger: last entry, LAC, key, fence, list of entries."""
    ours = disks.held_by is disks.bkctl
    last, probe = ask_v2(
        disks.address,
        v2.ReadRequest(0, kept.ledger_id, INVALID_ENTRY_ID),
        _add(kept, WRONG_KEY),
    )
    assert isinstance(last, v2.ReadResponse)
    assert last.rc == 0, (kept, last)
    if not kept.end_unknown:
        header = _DIGESTER.open_last_entry(last.entry, kept.ledger_id)
        assert header.entry_id >= kept.last, kept
    # DbLedgerStorage answers EIO where it has not opened the ledger since the start (spec wire 8.3).
    refusals = [ResultCode.EUA.rc] if ours else [ResultCode.EUA.rc, ResultCode.EIO.rc]
    assert probe.rc in refusals, (kept, probe)
    if kept.fenced:
        (refused,) = ask_v2(disks.address, _add(kept, KEY))
        assert refused.rc == ResultCode.EFENCED.rc, (kept, refused)
    if kept.explicit_lac is not None:
        request = v3.new_request(pb.READ_LAC, 1)
        request.readLacRequest.ledgerId = kept.ledger_id
        answer = ask_v3(disks.address, request)
        assert (answer.status, answer.readLacResponse.lacBody) == (pb.EOK, kept.explicit_lac), kept
    if ours:  # DbLedgerStorage does not answer this
        request = v3.new_request(pb.GET_LIST_OF_ENTRIES_OF_LEDGER, 1)
        request.getListOfEntriesOfLedgerRequest.ledgerId = kept.ledger_id
        listed = ask_v3(disks.address, request).getListOfEntriesOfLedgerResponse
        found = list(Availability.decode(listed.availabilityOfEntriesOfLedger))
        assert found[: kept.last + 1] == list(range(kept.last + 1)), kept
        assert not kept.exact or len(found) >= kept.last + 1


def _add(kept: Kept, key: bytes) -> v2.AddRequest:
    """An entry far behind the end, which a good bookie refuses to take."""
    body = struct.pack(">qqqq", kept.ledger_id, kept.last + 1_000_000, kept.last, 1) + b"refuse me"
    return v2.AddRequest(0, key, body)


def ask_v2(address: str, *requests: v2.AddRequest | v2.ReadRequest) -> list[v2.Response]:
    return [v2.decode_response(_exchange(address, request.encode())) for request in requests]


def ask_v3(address: str, request: pb.Request) -> pb.Response:
    return v3.decode_response(_exchange(address, v3.encode(request)))


def _exchange(address: str, frame: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection, connection.makefile("rb") as answers:
        connection.sendall(frame)
        (length,) = struct.unpack(">i", answers.read(4))
        return answers.read(length)
