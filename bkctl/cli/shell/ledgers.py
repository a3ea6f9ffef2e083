"""The old commands that read ledgers and their metadata: listledgers, ledgermetadata, readledger."""

import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkctl.cli import confirm
from bkctl.cli.context import metadata_store
from bkctl.cli.event_loop import run
from bkctl.cli.ledger import list_ledgers, show
from bkctl.cli.ledger_read import RowSink, Sink, opened, pour
from bkctl.cli.ledger_rows import all_metadata
from bkctl.cli.shell.settings import (
    ShellSettings,
    cluster_uri,
    cluster_uri_to_change,
    new_form,
    shell_settings,
)
from bkctl.cli.shell.text import metadata_text, payload_lines, print_lines
from bkctl.errors import BadInputError
from bkctl.formats.bookie_id import parse as parse_bookie_id
from bkctl.types import BookieId, EntryId, LedgerId, LedgerMetadata

if TYPE_CHECKING:
    from bkctl.metadata.store import MetadataStore
    from bkctl.quorum.reads import Entry

LedgerIdOption = Annotated[
    str, typer.Option("-l", "--ledgerid", metavar="LEDGER", help="Ledger id, in the format asked for.")
]
Body = Annotated[bool, typer.Option("-m", "--msg", help="Also the body of the entries.")]

_INT64_MAX = 2**63 - 1


def listledgers(
    meta: Annotated[bool, typer.Option("-m", "--meta", help="Also the metadata.")] = False,
    bookie: Annotated[
        str | None, typer.Option("-bookieid", metavar="BOOKIE", help="Only those with entries on it.")
    ] = None,
) -> None:
    """List the ledgers, ascending by id."""
    bookie_id = None if bookie is None else parse_bookie_id(bookie)
    uri = cluster_uri()
    if new_form():
        list_ledgers(bookie=bookie)
    else:
        run(_list(uri, meta, bookie_id))


async def _list(uri: str, meta: bool, bookie_id: BookieId | None) -> None:
    from bkctl.quorum.fragments import belongs_on

    settings = shell_settings()
    async with metadata_store(uri) as store:
        async for found in _ledgers(store, ids_only=not meta and bookie_id is None):
            for ledger_id, metadata in found:
                if bookie_id is None or (metadata is not None and belongs_on(metadata, bookie_id)):
                    print_lines(_metadata_lines(ledger_id, metadata if meta else None, settings))


async def _ledgers(
    store: "MetadataStore", *, ids_only: bool
) -> AsyncIterator[list[tuple[LedgerId, LedgerMetadata | None]]]:
    if ids_only:
        async for ledger_ids in store.ledgers.ranges():
            yield [(ledger_id, None) for ledger_id in ledger_ids]
    else:
        async for found in all_metadata(store.ledgers):
            yield list(found)


def _metadata_lines(
    ledger_id: LedgerId, metadata: LedgerMetadata | None, settings: ShellSettings
) -> list[str]:
    head = f"ledgerID: {settings.ledger_id_text(ledger_id)}"
    return [head] if metadata is None else [head, metadata_text(metadata)]


def ledgermetadata(
    ledger: LedgerIdOption,
    dump_to: Annotated[
        Path | None, typer.Option("-dumptofile", metavar="FILE", help="Write the metadata there instead.")
    ] = None,
    restore_from: Annotated[
        str | None, typer.Option("-restorefromfile", metavar="FILE", help="bkctl does not have this yet.")
    ] = None,
    update: Annotated[bool, typer.Option("-update", help="bkctl does not have this yet.")] = False,
) -> None:
    """Show a ledger's metadata as it is stored, with its password."""
    if restore_from is not None or update:
        raise BadInputError("bkctl does not have 'ledgermetadata -restorefromfile' of bookkeeper shell yet")
    settings = shell_settings()
    ledger_id = settings.parse_ledger_id(ledger)
    uri = cluster_uri()
    if dump_to is None and new_form():
        show(str(ledger_id))
        return
    metadata = run(_metadata(uri, ledger_id))
    if dump_to is not None:
        _dump(metadata, dump_to)
    else:
        print_lines(_metadata_lines(ledger_id, metadata, settings))


async def _metadata(uri: str, ledger_id: LedgerId) -> LedgerMetadata:
    async with metadata_store(uri) as store:
        return (await store.ledgers.read(ledger_id)).value


def _dump(metadata: LedgerMetadata, path: Path) -> None:
    """The bytes of the metadata store; an older file stays until the new one is whole."""
    from bkctl.formats.ledger_metadata import encode

    new = path.parent / f"{path.name}.new"
    try:
        new.write_bytes(encode(metadata))
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise BadInputError(f"cannot write {path}: {error.strerror}") from error


def readledger(
    ledger: LedgerIdOption,
    first: Annotated[
        int, typer.Option("-fe", "--firstentryid", metavar="ENTRY", min=0, max=_INT64_MAX, help="From; 0.")
    ] = 0,
    last: Annotated[
        int,
        typer.Option(
            "-le", "--lastentryid", metavar="ENTRY", min=-1, max=_INT64_MAX, help="To; -1: to the end."
        ),
    ] = -1,
    body: Body = False,
    recover: Annotated[
        bool, typer.Option("-r", "--force-recovery", help="Fence, recover and close the ledger first.")
    ] = False,
    bookie: Annotated[
        str | None, typer.Option("-b", "--bookie", metavar="BOOKIE", help="Only what this bookie stores.")
    ] = None,
) -> None:
    """Read entries; of an open ledger the confirmed ones.

    With -b whole entries from one bookie, unverified; exit code 9 when it lacks some.
    """
    from bkctl.cli.shell.stored_entries import read_stored

    ledger_id = shell_settings().parse_ledger_id(ledger)
    bookie_id = None if bookie is None else parse_bookie_id(bookie)
    if recover:
        uri = cluster_uri_to_change()
        confirm.confirm_change(
            f"fences, recovers and closes ledger {ledger_id}: whoever writes to it is stopped"
        )
    else:
        uri = cluster_uri()
    if bookie_id is not None:
        run(read_stored(uri, bookie_id, ledger_id, first, last, body=body, recover=recover))
        return
    sink: Sink = (
        RowSink(hexadecimal=shell_settings().entry_format == "hex")
        if new_form()
        else _TextSink(ledger_id, body)
    )
    run(_read(uri, ledger_id, EntryId(first), last, sink, recover=recover), busy=True)


class _TextSink:
    """Entries as upstream prints them; its `EntrySize` is the ledger's length up to the entry."""

    full = False

    def __init__(self, ledger_id: LedgerId, body: bool) -> None:
        self._settings = shell_settings()
        self._ledger_id = self._settings.ledger_id_text(ledger_id)
        self._body = body

    def write(self, entries: "Sequence[Entry]") -> None:
        print_lines(line for entry in entries for line in self._lines(entry))

    def _lines(self, entry: "Entry") -> Iterator[str]:
        yield f"--------- Lid={self._ledger_id}, Eid={entry.entry_id}, EntrySize={entry.length} ---------"
        if self._body:
            yield from payload_lines(entry.payload, self._settings)

    def flush(self) -> None:
        sys.stdout.flush()

    def end(self) -> None:
        self.flush()


async def _read(
    uri: str, ledger_id: LedgerId, first: EntryId, last: int, sink: Sink, *, recover: bool
) -> None:
    """To the last confirmed entry, also where `last` is behind it."""
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        if recover:
            await client.recover_ledger(ledger_id)
        reader = await opened(client, ledger_id, None)
        end = reader.last_add_confirmed
        await pour(reader, first, end if last < 0 else EntryId(min(last, end)), sink)


COMMANDS = {command.__name__: command for command in (listledgers, ledgermetadata, readledger)}
