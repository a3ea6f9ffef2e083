"""The two clients behind one interface, so that a test can say who writes and who reads or recovers.

Entries are those of `payload.py`, all of SIZE bytes.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from bkctl.client.bookkeeper import BookKeeper
from bkctl.client.writer import LedgerWriter
from bkctl.errors import BkctlError
from bkctl.types import DigestType, EntryId, LedgerId, LedgerMetadata
from tests.interop.apache import JavaClient, JavaDriver
from tests.interop.payload import digest, payload

SIZE = 100
OUTSTANDING = 1_000
_APPENDS_PER_TURN = 50
_WAIT_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a ledger; no three bookies of an ensemble of two kinds, two of each, are of one kind."""

    ensemble: int = 3
    write: int = 3
    ack: int = 2
    digest: str = "CRC32C"


class Seen(NamedTuple):
    """What a client sees of a closed ledger; `sha256` is `payload.digest` of all of its entries."""

    last_entry_id: int
    length: int
    sha256: str


class Outcome(NamedTuple):
    """What became of a pipeline: `error` is the class of the first failure, as the client names it."""

    sent: int
    acked: int
    last_acked: int
    error: str | None


class JavaSide:
    """A Java client with one ledger being written; `name` is that of its protocol."""

    def __init__(self, driver: JavaDriver, uri: str, protocol: str, **settings: object) -> None:
        self.name = f"Java {protocol}"
        v2 = protocol == "v2"
        self.client: JavaClient = driver.client(f"{uri} {protocol}", uri, useV2WireProtocol=v2, **settings)

    def create(self, shape: Shape = Shape(), **options: object) -> LedgerId:
        made = self.client.call(
            "create", handle="w", ensemble=shape.ensemble, write=shape.write, ack=shape.ack,
            digest=shape.digest, **options,
        )  # fmt: skip
        return LedgerId(made["id"])

    def add(self, count: int) -> None:
        done = self.client.call("add", handle="w", count=count, size=SIZE)
        assert (done["acked"], done["failed"]) == (count, 0), done

    def start_pipeline(self, outstanding: int = OUTSTANDING) -> None:
        """Add until something fails; `wait_pipeline` says what."""
        self.client.call("start_adds", handle="w", count=10_000_000, size=SIZE, outstanding=outstanding)

    def wait_pipeline(self) -> Outcome:
        done = self.client.call("wait_adds", handle="w", timeout_s=_WAIT_S)
        assert done["ended"], done
        return Outcome(done["sent"], done["acked"], done["last_acked"], done["error"])

    def last_add_confirmed(self) -> int:
        """Of the ledger being written."""
        return int(self.client.call("handle", handle="w")["lac"])

    def ensembles(self) -> dict[int, list[str]]:
        """Of the ledger being written, as its writer knows them."""
        found = self.client.call("handle", handle="w")["ensembles"]
        return {int(first): bookies for first, bookies in found.items()}

    def close_ledger(self) -> int:
        """The ledger's last entry."""
        return int(self.client.call("close", handle="w")["last_entry_id"])

    def recover(self, ledger_id: LedgerId, kind: str = "CRC32C") -> int:
        """Open the ledger for good; its end."""
        opened = self.client.call("open", handle="r", id=ledger_id, digest=kind, recovery=True)
        assert opened["state"] == "CLOSED", opened
        return int(opened["last_entry_id"])

    def see(self, ledger_id: LedgerId, kind: str = "CRC32C") -> Seen:
        opened = self.client.call("open", handle="r", id=ledger_id, digest=kind)
        assert opened["state"] == "CLOSED", opened
        end = opened["last_entry_id"]
        sha256 = digest(())
        if end >= 0:
            sha256 = self.client.call("read", handle="r", first=0, last=end, chunk=OUTSTANDING)["sha256"]
        self.client.call("close", handle="r")
        return Seen(end, opened["length"], sha256)

    def delete(self, ledger_id: LedgerId) -> None:
        self.client.call("delete", id=ledger_id)

    def close(self) -> None:
        self.client.close()


class BkctlSide:
    """Our client, on an event loop in a thread of its own."""

    name = "bkctl"

    def __init__(self, uri: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        settings = {"outstanding_entries_max": OUTSTANDING, **settings}
        self.client = self.run(BookKeeper.connect(uri, **settings))
        self.writer: LedgerWriter
        self._outcomes: list[asyncio.Future[EntryId]] = []
        self._pipeline: Any = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_WAIT_S)

    def create(self, shape: Shape = Shape(), *, deferred: bool = False) -> LedgerId:
        self.writer = self.run(
            self.client.create_ledger(
                ensemble_size=shape.ensemble,
                write_quorum_size=shape.write,
                ack_quorum_size=shape.ack,
                digest_type=DigestType[shape.digest],
                deferred_sync=deferred,
            )
        )
        return self.writer.ledger_id

    def add(self, count: int) -> None:
        async def add() -> None:
            first = self.writer.last_add_pushed + 1
            await self.writer.append_many([payload(n, SIZE) for n in range(first, first + count)])

        self.run(add())

    def start_pipeline(self, outstanding: int = OUTSTANDING) -> None:
        """Add until something fails; `wait_pipeline` says what."""
        self._outcomes = []
        self._pipeline = asyncio.run_coroutine_threadsafe(self._keep_adding(outstanding), self._loop)

    async def _keep_adding(self, outstanding: int) -> None:
        writer, entry_id = self.writer, self.writer.last_add_pushed + 1
        while not any(o.done() and o.exception() for o in self._outcomes[-OUTSTANDING:]):
            await writer.wait_writable()
            room = outstanding - (entry_id - 1 - writer.last_add_confirmed)
            for _ in range(min(room, _APPENDS_PER_TURN)):
                self._outcomes.append(writer.append(payload(entry_id, SIZE)))
                entry_id += 1
            await asyncio.sleep(0 if room > 0 else 0.001)

    def wait_pipeline(self) -> Outcome:
        try:
            self._pipeline.result(_WAIT_S)
        except BkctlError:
            pass  # the outcomes say it

        async def gather() -> list[Any]:
            return await asyncio.gather(*self._outcomes, return_exceptions=True)

        results = self.run(gather())
        acked = [r for r in results if not isinstance(r, BaseException)]
        failures = [r for r in results if isinstance(r, BaseException)]
        error = type(failures[0]).__name__ if failures else None
        return Outcome(len(results), len(acked), max(acked, default=-1), error)

    def last_add_confirmed(self) -> int:
        """Of the ledger being written."""
        return self.writer.last_add_confirmed

    def ensembles(self) -> dict[int, list[str]]:
        """Of the ledger being written, as its writer knows them."""
        return {s.first_entry_id: list(s.ensemble) for s in self.writer.metadata.segments}

    def close_ledger(self) -> int:
        """The ledger's last entry."""
        self.run(self.writer.close())
        return self.writer.metadata.last_entry_id

    def recover(self, ledger_id: LedgerId, kind: str = "CRC32C") -> int:
        """Open the ledger for good; its end."""
        reader = self.run(self.client.open_ledger(ledger_id))
        assert reader.closed
        return reader.last_add_confirmed

    def see(self, ledger_id: LedgerId, kind: str = "CRC32C") -> Seen:
        async def see() -> Seen:
            async with await self.client.open_ledger_no_recovery(ledger_id) as reader:
                assert reader.closed
                assert reader.metadata.digest_type is DigestType[kind]
                entries = [(e.entry_id, bytes(e.payload)) async for e in reader.entries()]
                assert len(entries) == reader.last_add_confirmed + 1
                return Seen(reader.last_add_confirmed, reader.length, digest(entries))

        return self.run(see())

    def delete(self, ledger_id: LedgerId) -> None:
        self.run(self.client.delete_ledger(ledger_id))

    def metadata(self, ledger_id: LedgerId) -> LedgerMetadata:
        async def read() -> LedgerMetadata:
            return (await self.client.metadata.ledgers.read(ledger_id)).value

        return self.run(read())

    def close(self) -> None:
        self.run(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Side = JavaSide | BkctlSide


@dataclass(frozen=True, slots=True)
class Sides:
    """Java's client with either protocol, and ours."""

    v2: JavaSide
    v3: JavaSide
    ours: BkctlSide

    def __iter__(self) -> Iterator[Side]:
        return iter((self.v2, self.v3, self.ours))

    def named(self, name: str) -> Side:
        return next(side for side in self if side.name == name)

    def other(self, side: Side) -> Side:
        """A client of the other kind."""
        return self.v3 if side is self.ours else self.ours


@contextlib.contextmanager
def clients(driver: JavaDriver, uri: str) -> Iterator[Sides]:
    sides = Sides(JavaSide(driver, uri, "v2"), JavaSide(driver, uri, "v3"), BkctlSide(uri))
    try:
        yield sides
    finally:
        for side in sides:
            side.close()


def wait_acked(writer: Side, entry_id: int) -> None:
    """Until the ledger being written has a last add confirmed of at least `entry_id`."""
    deadline = time.monotonic() + _WAIT_S
    while writer.last_add_confirmed() < entry_id:
        assert time.monotonic() < deadline, f"{writer.name}: entry {entry_id} is not acknowledged"
        time.sleep(0.002)
