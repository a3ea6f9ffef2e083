"""`readledger -b`: the entries of a ledger as one bookie stores them."""

import sys
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import typer

from bkctl.cli.confirm import note
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.options import global_options
from bkctl.cli.render import Column, Row, RowWriter
from bkctl.cli.shell.settings import new_form, shell_settings
from bkctl.cli.shell.text import netty_lines, print_lines
from bkctl.errors import BookKeeperError, NoSuchEntryError
from bkctl.formats.entry import read_header
from bkctl.types import BookieId, LedgerId

if TYPE_CHECKING:
    from bkctl.client.channel import BookieChannel

_COLUMNS = [
    Column("entry_id"),
    Column("size_bytes"),
    Column("last_add_confirmed"),
    Column("entry_hex", wide=True),
]
_GROUP = 8  # entries on their way at once, each of up to a frame

Stored = tuple[int, bytes | BookKeeperError]


async def read_stored(
    uri: str, bookie_id: BookieId, ledger_id: LedgerId, first: int, last: int, *, body: bool, recover: bool
) -> None:
    """Whole entries, unverified, to the last one that the bookie has; `last` -1: all of them.

    The ledger's metadata may be gone. Upstream stops before `last`; this does not.
    Raises what the first entry failed with when none could be read.
    """
    from bkctl.client.bookkeeper import BookKeeper

    failure: tuple[int, BookKeeperError] | None = None  # the first
    found = count = 0
    async with await BookKeeper.connect(uri) as client:
        if recover:
            await client.recover_ledger(ledger_id)
        channel = client.pool.channel(bookie_id)
        end = read_header(await channel.read_last(ledger_id)).entry_id
        if first > end:
            raise NoSuchEntryError(f"ledger {ledger_id}: the last entry on bookie {bookie_id} is {end}")
        writer = RowWriter("StoredEntryList", _COLUMNS, global_options(), stream=sys.stdout)
        async for entry_id, entry in _entries(channel, ledger_id, first, end if last < 0 else min(last, end)):
            count += 1
            if isinstance(entry, BookKeeperError):
                failure = failure or (entry_id, entry)
                continue
            found += 1
            if new_form():
                writer.write([_row(entry_id, entry)])
                if writer.full:
                    break
            else:
                print_lines(_lines(ledger_id, entry_id, entry, body))
        if failure is not None and not found:
            raise failure[1]
        if new_form():
            writer.end()
    if failure is not None:
        lost = f"{count - found} of {count} entries could not be read from bookie {bookie_id}"
        note(f"{lost}; entry {failure[0]}: {failure[1]}")
        raise typer.Exit(ExitCode.PARTIAL)


async def _entries(
    channel: "BookieChannel", ledger_id: LedgerId, first: int, last: int
) -> AsyncIterator[Stored]:
    for start in range(first, last + 1, _GROUP):
        ids = range(start, min(start + _GROUP, last + 1))
        for stored in zip(ids, await channel.read_entries(ledger_id, ids), strict=True):
            yield stored


def _row(entry_id: int, entry: bytes) -> Row:
    return {
        "entry_id": entry_id,
        "size_bytes": len(entry),
        "last_add_confirmed": read_header(entry).lac,
        "entry_hex": entry.hex(),
    }


def _lines(ledger_id: LedgerId, entry_id: int, entry: bytes, body: bool) -> Iterator[str]:
    yield f"--------- Lid={shell_settings().ledger_id_text(ledger_id)}, Eid={entry_id} ---------"
    if body:
        yield "Data: " + "\n".join(netty_lines(entry))
