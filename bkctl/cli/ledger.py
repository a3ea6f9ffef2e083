"""`bkctl ledger`: create, look at, fence, recover and delete ledgers."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkctl.cli import confirm, ledger_read, ledger_write
from bkctl.cli.app import group
from bkctl.cli.arguments import (
    AckQuorumSize,
    CustomMetadata,
    Digest,
    EnsembleSize,
    LedgerArgument,
    PasswordFile,
    WriteQuorumSize,
    parse_ledger_id,
    read_password,
)
from bkctl.cli.context import metadata_store, metadata_uri, metadata_uri_to_change
from bkctl.cli.event_loop import run
from bkctl.cli.exit_codes import ExitCode
from bkctl.cli.ledger_rows import LEDGER_COLUMNS, all_metadata, ledger_row
from bkctl.cli.options import Output, global_options
from bkctl.cli.progress import progress
from bkctl.cli.render import Column, Row, RowWriter, emit
from bkctl.errors import BadInputError, BkctlError, NoSuchLedgerError
from bkctl.types import BookieId, DigestType, LedgerId, LedgerMetadata, MetadataState

if TYPE_CHECKING:
    from bkctl.client.bookkeeper import BookKeeper
    from bkctl.formats.entry import Digester

app = group("Ledgers: create, write, read, fence, recover, delete.")
app.command("write")(ledger_write.write)
app.command("read")(ledger_read.read)
app.command("tail")(ledger_read.tail)


@app.command("create")
def create(
    ensemble: EnsembleSize = None,
    write_quorum: WriteQuorumSize = None,
    ack_quorum: AckQuorumSize = None,
    digest: Digest = "crc32c",
    meta: CustomMetadata = None,
    ledger_id: Annotated[
        str | None, typer.Option("--id", metavar="LEDGER", help="Its id; else a new one.")
    ] = None,
    password_file: PasswordFile = None,
) -> None:
    """Create an open, empty ledger, for one `bkctl ledger write LEDGER` to fill."""
    wanted = ledger_write.NewLedger.parse(
        ensemble, write_quorum, ack_quorum, digest, meta, ledger_id, read_password(password_file)
    )
    emit("Ledger", [run(_create(metadata_uri_to_change(), wanted))], LEDGER_COLUMNS)


@app.command("list")
def list_ledgers(
    state: Annotated[
        str | None,
        typer.Option("--state", metavar="open|in_recovery|closed", help="Only those in this state."),
    ] = None,
    bookie: Annotated[
        str | None, typer.Option("--bookie", metavar="BOOKIE", help="Only those with entries on this bookie.")
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Only how many there are.")] = False,
) -> None:
    """List the ledgers, ascending by id."""
    wanted = _wanted(state, bookie)
    if count:
        row = {"count": run(_count(metadata_uri(), wanted))}
        emit("LedgerCount", [row], [Column("count")])
        return
    run(_list(metadata_uri(), wanted))


@app.command("show")
def show(ledger: LedgerArgument) -> None:
    """Show a ledger's metadata."""
    row = run(_show(metadata_uri(), parse_ledger_id(ledger)))
    emit("Ledger", [row], LEDGER_COLUMNS)


@app.command("lac")
def lac(ledger: LedgerArgument, password_file: PasswordFile = None) -> None:
    """Show the last add confirmed as each bookie of the ledger sees it.

    Exit code 9 when some bookies did not answer, 6 when none did.
    """
    rows = run(_lac(metadata_uri(), parse_ledger_id(ledger), read_password(password_file)))
    columns = [Column(key) for key in ("bookie_id", "state", "lac", "explicit_lac", "last_entry_id", "error")]
    emit("LastAddConfirmedList", rows, columns)
    failed = sum(row["state"] == "error" for row in rows)
    if failed:
        raise typer.Exit(ExitCode.UNREACHABLE if failed == len(rows) else ExitCode.PARTIAL)


@app.command("fence")
def fence(ledger: LedgerArgument, password_file: PasswordFile = None) -> None:
    """Stop the ledger's writer: its next add fails. The ledger is not closed; see `recover`."""
    ledger_id, uri = parse_ledger_id(ledger), metadata_uri_to_change()
    confirm.confirm_change(f"fences ledger {ledger_id}: whoever writes to it can add nothing more")
    row = run(_recovered(uri, ledger_id, read_password(password_file), fence_only=True))
    emit("LedgerFence", [row], _RECOVERY_COLUMNS)


@app.command("recover")
def recover(ledger: LedgerArgument, password_file: PasswordFile = None) -> None:
    """Fence the ledger, find its last entry, restore copies of the tail, and close it."""
    ledger_id, uri = parse_ledger_id(ledger), metadata_uri_to_change()
    confirm.confirm_change(f"fences, recovers and closes ledger {ledger_id}: whoever writes to it is stopped")
    row = run(_recovered(uri, ledger_id, read_password(password_file), fence_only=False))
    emit("LedgerRecovery", [row], _RECOVERY_COLUMNS)


@app.command("delete")
def delete(
    ledgers: Annotated[
        list[str], typer.Argument(metavar="LEDGER...", help="Ledger ids; - reads them from stdin.")
    ],
    confirmed: Annotated[
        str | None,
        typer.Option("--confirm", metavar="COUNT", help="How many ledgers go, to go on without asking."),
    ] = None,
) -> None:
    """Delete ledgers for good. Exit code 9 when some could not be deleted."""
    words = [word for ledger in ledgers for word in (sys.stdin.read().split() if ledger == "-" else [ledger])]
    ledger_ids = list(dict.fromkeys(map(parse_ledger_id, words)))
    if not ledger_ids:
        raise BadInputError("no ledger ids on stdin")
    uri = metadata_uri_to_change()
    shown = ", ".join(map(str, ledger_ids[:5])) + (", …" if len(ledger_ids) > 5 else "")
    confirm.confirm_destruction(
        f"deletes {len(ledger_ids)} ledger{'s' * (len(ledger_ids) > 1)} ({shown}) with all entries",
        what="the number of ledgers",
        expected=str(len(ledger_ids)),
        given=confirmed,
    )
    rows, errors = run(_delete(uri, ledger_ids))
    emit("LedgerDeletion", rows, [Column("ledger_id"), Column("state"), Column("error")])
    if errors:
        if len(ledger_ids) == 1:
            raise errors[0]
        raise typer.Exit(ExitCode.PARTIAL)


Wanted = Callable[[LedgerMetadata], bool]


def _wanted(state: str | None, bookie: str | None) -> Wanted | None:
    """None: all ledgers. Raises BadInputError."""
    from bkctl.formats.bookie_id import parse
    from bkctl.quorum.fragments import belongs_on

    if state is None and bookie is None:
        return None
    only = None if state is None else _parse_state(state)
    bookie_id = None if bookie is None else parse(bookie)
    return lambda metadata: (
        only in (None, metadata.state) and (bookie_id is None or belongs_on(metadata, bookie_id))
    )


def _parse_state(text: str) -> MetadataState:
    try:
        return MetadataState[text.upper().replace("-", "_")]
    except KeyError:
        raise BadInputError(f"no state '{text}'; there are open, in_recovery and closed") from None


async def _create(uri: str, wanted: "ledger_write.NewLedger") -> Row:
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        writer = await wanted.create(client, unclaimed=True)
        return ledger_row(writer.ledger_id, writer.metadata)


async def _lac(uri: str, ledger_id: LedgerId, password: bytes | None) -> list[Row]:
    from bkctl.client.bookkeeper import BookKeeper
    from bkctl.formats.entry import Digester

    async with await BookKeeper.connect(uri) as client:
        metadata = (await client.metadata.ledgers.read(ledger_id)).value
        known = password if password is not None else metadata.password
        digester = Digester(metadata.digest_type or DigestType.CRC32, known or b"")
        return [await _lac_row(client, ledger_id, b, digester) for b in metadata.last_segment.ensemble]


async def _lac_row(
    client: "BookKeeper", ledger_id: LedgerId, bookie_id: BookieId, digester: "Digester"
) -> Row:
    """`lac` is the larger of the explicit one and that in the last entry."""
    row: dict[str, Any] = {"bookie_id": bookie_id, "state": "ok", "lac": None}
    row |= {"explicit_lac": None, "last_entry_id": None, "error": None}
    try:
        packet, last_entry = await client.pool.channel(bookie_id).read_lac(ledger_id)
        if packet:
            row["explicit_lac"] = row["lac"] = digester.open_lac(packet, ledger_id)
        if last_entry:
            header = digester.open_last_entry(last_entry, ledger_id)
            row |= {"last_entry_id": header.entry_id, "lac": max(header.lac, row["explicit_lac"] or -1)}
    except NoSuchLedgerError:
        row["state"] = "no entries"
    except BkctlError as error:
        row |= {"state": "error", "error": str(error)}
    return row


async def _recovered(uri: str, ledger_id: LedgerId, password: bytes | None, *, fence_only: bool) -> Row:
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri) as client:
        recover = client.fence_ledger if fence_only else client.recover_ledger
        with progress(f"ledger {ledger_id}", None) as update:
            report = await recover(
                ledger_id,
                password,
                on_progress=lambda at: update(
                    at.entries_rewritten, f"{at.phase}: {at.entries_rewritten:,} entries"
                ),
            )
    lacs = report.lac_by_bookie.items()
    return {
        "ledger_id": ledger_id,
        "state": report.metadata.value.state.name,
        "last_entry_id": report.last_entry_id if report.metadata.value.closed else None,
        "entries_rewritten": report.entries_rewritten,
        "lac_by_bookie": {bookie_id: lac for bookie_id, lac in lacs if not isinstance(lac, BkctlError)},
        "errors": {bookie_id: str(lac) for bookie_id, lac in lacs if isinstance(lac, BkctlError)},
    }


_RECOVERY_COLUMNS = [
    Column("ledger_id"),
    Column("state"),
    Column("last_entry_id"),
    Column("entries_rewritten"),
    Column("lac_by_bookie"),
    Column("errors"),
]


async def _list(uri: str, wanted: Wanted | None) -> None:
    options = global_options()
    writer = RowWriter("LedgerList", LEDGER_COLUMNS, options, stream=sys.stdout)
    by_name = options.output is Output.NAME and not options.filters and not options.sort
    async with metadata_store(uri) as store:
        if by_name and wanted is None:
            async for ledger_ids in store.ledgers.ranges():
                writer.write({"ledger_id": ledger_id} for ledger_id in ledger_ids)
                if writer.full:
                    break
        else:
            async for found in all_metadata(store.ledgers):
                writer.write(ledger_row(i, m) for i, m in found if wanted is None or wanted(m))
                if writer.full:
                    break
    writer.end()


async def _count(uri: str, wanted: Wanted | None) -> int:
    async with metadata_store(uri) as store:
        if wanted is None:
            return sum([len(ledger_ids) async for ledger_ids in store.ledgers.ranges()])
        return sum([sum(wanted(m) for _, m in found) async for found in all_metadata(store.ledgers)])


async def _show(uri: str, ledger_id: LedgerId) -> Row:
    async with metadata_store(uri) as store:
        return ledger_row(ledger_id, (await store.ledgers.read(ledger_id)).value)


async def _delete(uri: str, ledger_ids: Sequence[LedgerId]) -> tuple[list[Row], list[BkctlError]]:
    rows: list[Row] = []
    errors: list[BkctlError] = []
    async with metadata_store(uri) as store:
        for ledger_id in ledger_ids:
            row: dict[str, Any] = {"ledger_id": ledger_id, "state": "ok", "error": None}
            try:
                await store.ledgers.read(ledger_id)  # deleting what is not there is no error below
                await store.ledgers.delete(ledger_id)
            except BkctlError as error:
                errors.append(error)
                row |= {"state": "error", "error": str(error)}
            rows.append(row)
    return rows, errors
