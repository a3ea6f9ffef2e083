"""`bkctl ledger read` and `tail`: entries out of a ledger, streamed."""

import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from bkctl.cli.arguments import (
    LedgerArgument,
    LedgerRange,
    PasswordFile,
    parse_ledger_id,
    parse_ledger_range,
    read_password,
)
from bkctl.cli.context import metadata_uri
from bkctl.cli.entry_framing import Framing, framed
from bkctl.cli.event_loop import run
from bkctl.cli.options import Output, global_options
from bkctl.cli.render import Column, Row, RowWriter
from bkctl.errors import BadInputError, NoSuchEntryError
from bkctl.types import EntryId, LedgerId

if TYPE_CHECKING:
    from bkctl.client.bookkeeper import BookKeeper
    from bkctl.client.reader import LedgerReader
    from bkctl.quorum.reads import Entry

RangeArgument = Annotated[
    str,
    typer.Argument(
        metavar="LEDGER[:ENTRIES]", help="Ledger id and entries: 42, 42:7, 42:0-99, 42:100- (to the end)."
    ),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="The payloads as they were written, nothing else; see --entry-per.")
]
EntryPer = Annotated[
    Framing,
    typer.Option(
        "--entry-per",
        metavar="line|len|none",
        help="With --raw. line: a newline after each entry; len: a 4-byte big-endian length before each; "
        "none: one after the other.",
    ),
]
Hex = Annotated[bool, typer.Option("--hex", help="Payloads in hexadecimal, also when they are text.")]

_PREVIEW_CHARS = 64
_GROUP = 512  # entries per write to stdout

_COLUMNS = [
    Column("entry_id"),
    Column("length"),
    Column("payload", text=lambda text: _preview(text)),
    Column("payload_hex", text=lambda text: _preview(text)),
]


def read(
    ledger: RangeArgument,
    raw: Raw = False,
    entry_per: EntryPer = Framing.LINE,
    hexadecimal: Hex = False,
    password_file: PasswordFile = None,
) -> None:
    """Read entries; of an open ledger the confirmed ones, without disturbing its writer.

    On a terminal as a table, else as lines of JSON with `payload` (text) or `payload_hex`; with
    `--raw` exactly the bytes that `bkctl ledger write` took with the same `--entry-per`.
    """
    sink = _sink(raw, entry_per, hexadecimal)
    run(_read(metadata_uri(), parse_ledger_range(ledger), read_password(password_file), sink), busy=True)


def tail(
    ledger: LedgerArgument,
    count: Annotated[
        int, typer.Option("-n", min=0, metavar="N", help="Begin with the last N confirmed entries.")
    ] = 10,
    first: Annotated[
        int | None, typer.Option("--from", min=0, metavar="ENTRY", help="Begin with this entry instead.")
    ] = None,
    raw: Raw = False,
    entry_per: EntryPer = Framing.LINE,
    hexadecimal: Hex = False,
    password_file: PasswordFile = None,
) -> None:
    """Follow a ledger: its entries as they are confirmed, until it is closed."""
    sink = _sink(raw, entry_per, hexadecimal)
    run(_tail(metadata_uri(), parse_ledger_id(ledger), read_password(password_file), first, count, sink))


class Sink(Protocol):
    """Takes entries to stdout."""

    @property
    def full(self) -> bool: ...

    def write(self, entries: "Sequence[Entry]") -> None: ...

    def flush(self) -> None: ...

    def end(self) -> None: ...


class RawSink:
    """Payloads as bytes."""

    full = False

    def __init__(self, framing: Framing) -> None:
        self._framing = framing

    def write(self, entries: "Sequence[Entry]") -> None:
        sys.stdout.buffer.write(framed([entry.payload for entry in entries], self._framing))

    def flush(self) -> None:
        sys.stdout.buffer.flush()

    def end(self) -> None:
        self.flush()


class RowSink:
    """Entries as rows of the asked-for form."""

    def __init__(self, *, hexadecimal: bool) -> None:
        default = Output.TABLE if sys.stdout.isatty() else Output.JSONL
        self._rows = RowWriter("EntryList", _COLUMNS, global_options(), default=default, stream=sys.stdout)
        self._hexadecimal = hexadecimal

    @property
    def full(self) -> bool:
        return self._rows.full

    def write(self, entries: "Sequence[Entry]") -> None:
        self._rows.write(self._row(entry) for entry in entries)

    def flush(self) -> None:
        self._rows.flush()

    def end(self) -> None:
        self._rows.end()

    def _row(self, entry: "Entry") -> Row:
        row: dict[str, Any] = {"entry_id": entry.entry_id, "length": len(entry.payload)}
        if not self._hexadecimal:
            try:
                return row | {"payload": entry.payload.decode()}
            except UnicodeDecodeError:
                pass
        return row | {"payload_hex": entry.payload.hex()}


def _sink(raw: bool, framing: Framing, hexadecimal: bool) -> Sink:
    if framing is Framing.FILE:
        raise BadInputError("entries are not read into files; take --entry-per line, len or none")
    if not raw:
        return RowSink(hexadecimal=hexadecimal)
    if hexadecimal:
        raise BadInputError("--raw and --hex exclude each other")
    return RawSink(framing)


def _preview(text: str) -> str:
    return text if len(text) <= _PREVIEW_CHARS else text[: _PREVIEW_CHARS - 1] + "…"


async def opened(client: "BookKeeper", ledger_id: LedgerId, password: bytes | None) -> "LedgerReader":
    """The ledger as it is, its writer undisturbed; `password` None: that of the metadata."""
    if password is None:
        password = (await client.metadata.ledgers.read(ledger_id)).value.password or b""
    return await client.open_ledger_no_recovery(ledger_id, password)


async def _read(uri: str, wanted: LedgerRange, password: bytes | None, sink: Sink) -> None:
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        reader = await opened(client, wanted.ledger_id, password)
        end = reader.last_add_confirmed
        last = end if wanted.last is None else wanted.last
        if last > end:
            raise NoSuchEntryError(
                f"ledger {wanted.ledger_id} has no confirmed entry {last}; the last one is {end}"
            )
        await pour(reader, wanted.first, last, sink)


async def pour(reader: "LedgerReader", first: EntryId, last: EntryId, sink: Sink) -> None:
    """Entries first..last (confirmed; none if last < first) into `sink`, to its end or until it is full."""
    group: list[Entry] = []
    async with aclosing(reader.entries(first, last)) as entries:
        async for entry in entries:
            group.append(entry)
            if len(group) >= _GROUP:
                sink.write(group)
                group = []
                if sink.full:
                    break
    sink.write(group)
    sink.end()


async def _tail(
    uri: str, ledger_id: LedgerId, password: bytes | None, first: int | None, count: int, sink: Sink
) -> None:
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        reader = await opened(client, ledger_id, password)
        if first is None:
            first = max(0, reader.last_add_confirmed + 1 - count)
        async with aclosing(reader.tail(EntryId(first))) as entries:
            async for entry in entries:
                sink.write([entry])
                sink.flush()
                if sink.full:
                    break
        sink.end()
