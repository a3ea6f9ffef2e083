"""`bkctl bench`: how fast, and how late, adds and reads are.

Entries go out in batches, as a busy program would send them; the time of a batch counts for each of
its entries. CPU is that of this process alone, the client.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli.app import group
from bkctl.cli.arguments import (
    AckQuorumSize,
    Digest,
    EnsembleSize,
    LedgerArgument,
    PasswordFile,
    WriteQuorumSize,
    parse_ledger_id,
    read_password,
)
from bkctl.cli.context import metadata_uri, metadata_uri_to_change
from bkctl.cli.event_loop import run
from bkctl.cli.histogram import Histogram
from bkctl.cli.ledger_read import opened
from bkctl.cli.ledger_write import NewLedger
from bkctl.cli.progress import progress
from bkctl.cli.render import Column, Row, emit
from bkctl.errors import BadInputError, NoSuchEntryError
from bkctl.types import EntryId, LedgerId

if TYPE_CHECKING:
    import asyncio

    from bkctl.client.reader import LedgerReader
    from bkctl.client.writer import LedgerWriter

app = group("Load, and how the cluster bears it.")

_NS_PER_S = 1_000_000_000
_SAMPLE_INTERVAL_S = 0.25

Size = Annotated[int, typer.Option("--size", min=0, metavar="BYTES", help="Payload of an entry.")]
Batch = Annotated[
    int | None,
    typer.Option("--batch", min=1, metavar="N", help="Entries per batch; a tenth of --outstanding."),
]

_TIMES = ("p50_ms", "p99_ms", "p999_ms", "max_ms")


def _columns(rate: str, cpu: str) -> list[Column]:
    shown = [Column("ledger_id"), Column("entries"), Column("seconds", text=_decimal)]
    shown += [Column(rate, text=lambda value: f"{value:,.0f}"), Column("mb_per_s", text=_decimal)]
    shown += [Column(key, text=_decimal) for key in (*_TIMES, cpu)]
    wide = ("entry_bytes", "ensemble_size", "write_quorum_size", "ack_quorum_size", "batch", "outstanding")
    return shown + [Column(key, wide=True) for key in wide]


def _decimal(value: float) -> str:
    return f"{value:.2f}"


@app.command("write")
def write(
    size: Size = 1024,
    entries: Annotated[
        int | None,
        typer.Option("-n", "--entries", min=1, metavar="N", help="How many, in place of --seconds."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, metavar="S", help="How long.")] = 10.0,
    outstanding: Annotated[
        int,
        typer.Option("--outstanding", min=1, metavar="N", help="Entries sent and not yet stored, at most."),
    ] = 2000,
    batch: Batch = None,
    ensemble: EnsembleSize = None,
    write_quorum: WriteQuorumSize = None,
    ack_quorum: AckQuorumSize = None,
    digest: Digest = "crc32c",
    keep: Annotated[bool, typer.Option("--keep", help="Do not delete the ledger at the end.")] = False,
    password_file: PasswordFile = None,
) -> None:
    """Add entries to a new ledger for a while; the ledger is deleted at the end."""
    wanted = NewLedger.parse(
        ensemble, write_quorum, ack_quorum, digest, None, None, read_password(password_file)
    )
    load = Load(entries, None if entries else seconds, outstanding, _batch(batch, outstanding))
    row = run(_write(metadata_uri_to_change(), wanted, size, load, keep), busy=True)
    emit("BenchWrite", [row], _columns("adds_per_s", "cpu_us_per_add"))


@app.command("read")
def read(
    ledger: LedgerArgument,
    entries: Annotated[
        int | None, typer.Option("-n", "--entries", min=1, metavar="N", help="The first N; all of them.")
    ] = None,
    outstanding: Annotated[
        int,
        typer.Option(
            "--outstanding", min=1, metavar="N", help="Entries asked for and not yet here, at most."
        ),
    ] = 1000,
    batch: Batch = None,
    password_file: PasswordFile = None,
) -> None:
    """Read a ledger from its first entry on."""
    password = read_password(password_file)
    load = Load(entries, None, outstanding, _batch(batch, outstanding))
    row = run(_read(metadata_uri(), parse_ledger_id(ledger), password, load), busy=True)
    emit("BenchRead", [row], _columns("reads_per_s", "cpu_us_per_read"))


class Measurement:
    """Latencies, and the clock and CPU of this process from `__init__` to `result`."""

    def __init__(self) -> None:
        self.latencies = Histogram()
        self._began_ns = time.perf_counter_ns()
        self._cpu_began_ns = time.process_time_ns()

    @property
    def seconds(self) -> float:
        return (time.perf_counter_ns() - self._began_ns) / _NS_PER_S

    def record(self, sent_ns: int, count: int) -> None:
        self.latencies.record(time.perf_counter_ns() - sent_ns, count)

    def result(self, payload_bytes: int, rate: str, cpu: str) -> dict[str, Any]:
        count, seconds = self.latencies.count, self.seconds
        cpu_ns = time.process_time_ns() - self._cpu_began_ns
        percents = (50, 99, 99.9, 100)
        times = {
            key: round(self.latencies.percentile_ns(percent) / 1e6, 3)
            for key, percent in zip(_TIMES, percents, strict=True)
        }
        return {
            "entries": count,
            "seconds": round(seconds, 3),
            rate: round(count / seconds, 1),
            "mb_per_s": round(payload_bytes / seconds / 1e6, 2),
            **times,
            cpu: round(cpu_ns / 1000 / count, 2) if count else None,
        }


@dataclass(frozen=True, slots=True)
class Load:
    """Ends after `entries` or `seconds`, whichever is given; at most `outstanding` entries in flight."""

    entries: int | None
    seconds: float | None
    outstanding: int
    batch: int

    def counts(self, measurement: Measurement) -> Iterator[int]:
        """Sizes of the batches, until it is enough."""
        sent = 0
        while self.seconds is None or measurement.seconds < self.seconds:
            count = self.batch if self.entries is None else min(self.batch, self.entries - sent)
            if count == 0:
                return
            sent += count
            yield count


def _batch(wish: int | None, outstanding: int) -> int:
    """Raises BadInputError for a batch that never fits."""
    if wish is not None and wish > outstanding:
        raise BadInputError(f"a batch of {wish} is more than {outstanding} outstanding entries")
    return wish or max(1, outstanding // 10)


async def _write(uri: str, wanted: NewLedger, size: int, load: Load, keep: bool) -> Row:
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        writer = await wanted.create(client)
        try:
            measurement = await _add(writer, os.urandom(size), load)
            row = measurement.result(writer.length, "adds_per_s", "cpu_us_per_add")
            await writer.close()
        finally:
            if not keep:
                await client.delete_ledger(writer.ledger_id)
        metadata = writer.metadata
        return {
            "ledger_id": writer.ledger_id,
            **row,
            "entry_bytes": size,
            "ensemble_size": metadata.ensemble_size,
            "write_quorum_size": metadata.write_quorum_size,
            "ack_quorum_size": metadata.ack_quorum_size,
            "batch": load.batch,
            "outstanding": load.outstanding,
        }


async def _add(writer: "LedgerWriter", payload: bytes, load: Load) -> Measurement:
    """Raises what an add failed with."""
    measurement = Measurement()
    window = Window(load, measurement)
    with _shown_progress("adding", load, measurement) as show:
        for count in load.counts(measurement):
            await writer.wait_writable()
            await window.add(writer.append_many([payload] * count), count)
            show()
        await window.finish()
    return measurement


async def _read(uri: str, ledger_id: LedgerId, password: bytes | None, load: Load) -> Row:
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        reader = await opened(client, ledger_id, password)
        available = reader.last_add_confirmed + 1
        if available == 0:
            raise NoSuchEntryError(f"ledger {ledger_id} has no confirmed entries to read")
        load = replace(load, entries=min(load.entries or available, available))
        measurement, payload_bytes = await _read_all(reader, load)
        return {
            "ledger_id": ledger_id,
            **measurement.result(payload_bytes, "reads_per_s", "cpu_us_per_read"),
            "entry_bytes": payload_bytes // max(measurement.latencies.count, 1),
            "ensemble_size": reader.metadata.ensemble_size,
            "write_quorum_size": reader.metadata.write_quorum_size,
            "ack_quorum_size": reader.metadata.ack_quorum_size,
            "batch": load.batch,
            "outstanding": load.outstanding,
        }


async def _read_all(reader: "LedgerReader", load: Load) -> tuple[Measurement, int]:
    """The measurement, and how many bytes of payload came. Raises what a read failed with."""
    import asyncio

    measurement = Measurement()
    window = Window(load, measurement)
    payload_bytes = 0

    async def read_batch(first: int, last: int) -> None:
        nonlocal payload_bytes
        found = await reader.read(EntryId(first), EntryId(last))
        payload_bytes += sum(len(entry.payload) for entry in found)

    first = 0
    with _shown_progress("reading", load, measurement) as show:
        for count in load.counts(measurement):
            await window.add(asyncio.ensure_future(read_batch(first, first + count - 1)), count)
            first += count
            show()
        await window.finish()
    return measurement, payload_bytes


class Window:
    """Holds the batches in flight to `load.outstanding` entries, and measures each."""

    def __init__(self, load: Load, measurement: Measurement) -> None:
        self._room = load.outstanding
        self._measurement = measurement
        self._in_flight: deque[tuple[asyncio.Future[Any], int]] = deque()

    async def add(self, future: "asyncio.Future[Any]", count: int) -> None:
        """Raises what an earlier batch failed with."""
        sent_ns = time.perf_counter_ns()
        future.add_done_callback(lambda done: self._done(done, sent_ns, count))
        self._in_flight.append((future, count))
        self._room -= count
        while self._in_flight and (self._room < count or self._in_flight[0][0].done()):
            await self._oldest()

    async def finish(self) -> None:
        import asyncio

        while self._in_flight:
            await self._oldest()
        await asyncio.sleep(0)  # the last ones may be done, but not measured yet

    async def _oldest(self) -> None:
        future, count = self._in_flight.popleft()
        await future
        self._room += count

    def _done(self, future: "asyncio.Future[Any]", sent_ns: int, count: int) -> None:
        if not future.cancelled() and future.exception() is None:
            self._measurement.record(sent_ns, count)


@contextlib.contextmanager
def _shown_progress(title: str, load: Load, measurement: Measurement) -> Iterator[Callable[[], None]]:
    """Yields `show()`, which draws only now and then."""
    next_s = 0.0
    with progress(title, load.entries or load.seconds) as update:

        def show() -> None:
            nonlocal next_s
            seconds, count = measurement.seconds, measurement.latencies.count
            if seconds >= next_s:
                next_s = seconds + _SAMPLE_INTERVAL_S
                update(count if load.entries else seconds, f"{count / seconds:,.0f}/s")

        yield show
