"""`bkctl ledger write`: a stream of entries into a ledger, and out to the bookies in batches.

Memory is bounded: input is read only while the writer has room (its limits of outstanding entries
and bytes), a chunk at a time.
"""

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from bkctl.cli import confirm
from bkctl.cli.arguments import (
    AckQuorumSize,
    CustomMetadata,
    Digest,
    EnsembleSize,
    PasswordFile,
    WriteQuorumSize,
    chosen_replication,
    parse_custom_metadata,
    parse_digest,
    parse_ledger_id,
    read_password,
)
from bkctl.cli.context import metadata_uri_to_change
from bkctl.cli.entry_framing import Cutter, Framing, LengthCutter, LineCutter
from bkctl.cli.event_loop import run
from bkctl.cli.render import Column, Row, emit, format_bytes
from bkctl.errors import (
    BadInputError,
    BkctlError,
    ConflictError,
    LedgerClosedError,
    MetadataVersionError,
    UnauthorizedAccessError,
)
from bkctl.types import DigestType, LedgerId, LedgerMetadata, MetadataState, Versioned

if TYPE_CHECKING:
    from bkctl.client.bookkeeper import BookKeeper
    from bkctl.client.writer import LedgerWriter
    from bkctl.metadata.ledgers import LedgerManager

_UNCLAIMED = "bkctl.unclaimed"  # custom metadata of a ledger that no writer has taken yet
_LAC_INTERVAL_MS = 500  # when the input pauses, readers see the last entry after this time
_ENTRY_BYTES_MAX = 5 * 1024 * 1024 - 128  # what fits a bookie's frame, with header and digest


@dataclass(frozen=True, slots=True)
class NewLedger:
    """What the flags of `ledger create` and `ledger write` say; None: choose."""

    ensemble: int | None
    write_quorum: int | None
    ack_quorum: int | None
    digest_type: DigestType
    custom_metadata: dict[str, bytes]
    ledger_id: LedgerId | None
    password: bytes | None

    @classmethod
    def parse(
        cls,
        ensemble: int | None,
        write_quorum: int | None,
        ack_quorum: int | None,
        digest: str,
        meta: list[str] | None,
        ledger_id: str | None,
        password: bytes | None,
    ) -> "NewLedger":
        """Raises BadInputError."""
        return cls(
            ensemble,
            write_quorum,
            ack_quorum,
            parse_digest(digest),
            parse_custom_metadata(meta),
            None if ledger_id is None else parse_ledger_id(ledger_id),
            password,
        )

    async def create(self, client: "BookKeeper", *, unclaimed: bool = False) -> "LedgerWriter":
        """`unclaimed`: for a writer to come, that calls `claimed`, not for this writer."""
        writable = len(await client.metadata.registration.writable())
        sizes = chosen_replication(self.ensemble, self.write_quorum, self.ack_quorum, writable)
        return await client.create_ledger(
            ensemble_size=sizes.ensemble_size,
            write_quorum_size=sizes.write_quorum_size,
            ack_quorum_size=sizes.ack_quorum_size,
            digest_type=self.digest_type,
            password=self.password or b"",
            custom_metadata=self.custom_metadata | ({_UNCLAIMED: b""} if unclaimed else {}),
            ledger_id=self.ledger_id,
        )


@dataclass(frozen=True, slots=True)
class Input:
    """Where entries come from: stdin cut by `framing`, or one file per entry."""

    framing: Framing
    files: tuple[Path, ...]

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """Raises BadInputError for what cannot be cut or is too large."""
        if self.framing is Framing.FILE:
            for path in self.files:
                yield [_read_entry(path)]
            return
        from bkctl.cli.entry_stream import chunks_of

        cutter: Cutter = (LineCutter if self.framing is Framing.LINE else LengthCutter)(_ENTRY_BYTES_MAX)
        async for chunk in chunks_of(sys.stdin.fileno()):
            if entries := cutter.feed(chunk):
                yield entries
        if entries := cutter.finish():
            yield entries


def write(
    ledger: Annotated[
        str | None,
        typer.Argument(metavar="[LEDGER]", help="An open, empty ledger; else a new one is created."),
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE...]", help="With --entry-per file: the entries.")
    ] = None,
    ensemble: EnsembleSize = None,
    write_quorum: WriteQuorumSize = None,
    ack_quorum: AckQuorumSize = None,
    digest: Digest = "crc32c",
    meta: CustomMetadata = None,
    new_id: Annotated[
        str | None, typer.Option("--id", metavar="LEDGER", help="Id of the new ledger.")
    ] = None,
    entry_per: Annotated[
        Framing,
        typer.Option(
            "--entry-per",
            metavar="line|len|file",
            help="line: lines of stdin, without their newline; len: frames of stdin with a 4-byte big-endian "
            "length; file: each FILE is one entry.",
        ),
    ] = Framing.LINE,
    keep_open: Annotated[
        bool, typer.Option("--keep-open", help="Leave the ledger open; only recovery can close it then.")
    ] = False,
    ids: Annotated[
        bool, typer.Option("--ids", help="Print the id of each entry, as a line of JSON, once it is stored.")
    ] = False,
    password_file: PasswordFile = None,
) -> None:
    """Write entries from stdin (or files) to a new ledger, and close it.

    A ledger has one writer, so a closed ledger, or one with entries, cannot be written to.
    """
    wanted = NewLedger.parse(
        ensemble, write_quorum, ack_quorum, digest, meta, new_id, read_password(password_file)
    )
    words = [*([ledger] if ledger is not None else []), *map(str, files or [])]
    if entry_per is Framing.NONE:
        raise BadInputError("entries cannot be told apart with --entry-per none; take line or len")
    if entry_per is Framing.FILE:
        source, existing = Input(entry_per, tuple(Path(word) for word in words)), None
        if not words:
            raise BadInputError("which files? --entry-per file takes them as arguments")
    else:
        if len(words) > 1:
            raise BadInputError(f"'{words[1]}' is one argument too many; files go with --entry-per file")
        source, existing = Input(entry_per, ()), None if ledger is None else parse_ledger_id(ledger)
    if existing is not None and new_id is not None:
        raise BadInputError("--id is for a new ledger; leave it away, or the argument")
    uri = metadata_uri_to_change()
    row = run(_write(uri, wanted, existing, source, keep_open, sys.stdout if ids else None), busy=True)
    if not ids:
        emit("LedgerWrite", [row], _COLUMNS)


_COLUMNS = [
    Column("ledger_id"),
    Column("state"),
    Column("entries"),
    Column("first_entry_id"),
    Column("last_entry_id"),
    Column("last_add_confirmed"),
    Column("payload_bytes", text=format_bytes),
]


async def claimed(
    ledgers: "LedgerManager", ledger_id: LedgerId, password: bytes | None
) -> Versioned[LedgerMetadata]:
    """Become the one and only writer of a ledger that `ledger create` made; its metadata.

    Two writers of one ledger would store different entries under one id. So `ledger create` leaves a
    mark in the metadata, and taking it away by compare-and-set is what makes a process the writer.
    Raises LedgerClosedError, ConflictError (it has or had a writer), UnauthorizedAccessError.
    """
    found = await ledgers.read(ledger_id)
    metadata = found.value
    if metadata.state is not MetadataState.OPEN:
        raise LedgerClosedError(
            f"ledger {ledger_id} is {metadata.state.name} and takes no more entries; write to a new one"
        )
    if _UNCLAIMED not in metadata.custom_metadata:
        raise ConflictError(
            f"ledger {ledger_id} has or had a writer, and a ledger has only one; write to a new one, or to "
            "one made with 'bkctl ledger create'"
        )
    if password is not None and password != (metadata.password or b""):
        raise UnauthorizedAccessError(f"ledger {ledger_id}: wrong password")
    rest = {key: value for key, value in metadata.custom_metadata.items() if key != _UNCLAIMED}
    try:
        return await ledgers.write(ledger_id, replace(metadata, custom_metadata=rest), found.version)
    except MetadataVersionError as error:
        raise ConflictError(
            f"another writer was faster to take ledger {ledger_id}; write to a new one"
        ) from error


def _writer_of(
    client: "BookKeeper", ledger_id: LedgerId, metadata: Versioned[LedgerMetadata]
) -> "LedgerWriter":
    from bkctl.client.bookies import BookieChooser
    from bkctl.client.writer import LedgerWriter
    from bkctl.formats.entry import Digester

    value = metadata.value
    return LedgerWriter(
        ledger_id,
        metadata,
        Digester(value.digest_type or DigestType.CRC32, value.password or b""),
        pool=client.pool,
        ledgers=client.metadata.ledgers,
        chooser=BookieChooser(client.metadata.registration, client.settings.quarantine_ms),
        settings=client.settings,
    )


async def _write(
    uri: str, wanted: NewLedger, existing: LedgerId | None, source: Input, keep_open: bool, ids: TextIO | None
) -> Row:
    from bkctl.cli.entry_stream import EntryAppender
    from bkctl.client.bookkeeper import BookKeeper

    async with await BookKeeper.connect(uri, explicit_lac_interval_ms=_LAC_INTERVAL_MS) as client:
        if existing is None:
            writer = await wanted.create(client)
        else:
            metadata = await claimed(client.metadata.ledgers, existing, wanted.password)
            writer = _writer_of(client, existing, metadata)
        appender = EntryAppender(writer, ids)
        try:
            async for payloads in source.batches():
                await appender.append(payloads)
            await appender.finish()
        except BaseException as error:
            if not isinstance(error, BkctlError) or isinstance(error, BadInputError):
                await writer.close()  # ours to end: what was written stays readable
            end = writer.last_add_confirmed
            stored = f"stored up to entry {end}" if end >= 0 else "nothing was stored"
            confirm.note(f"ledger {writer.ledger_id}: {stored} before it stopped")
            raise
        if not keep_open:
            await writer.close()
        return {
            "ledger_id": writer.ledger_id,
            "state": writer.metadata.state.name,
            "entries": appender.entries,
            "first_entry_id": appender.first,
            "last_entry_id": appender.last,
            "last_add_confirmed": writer.last_add_confirmed,
            "payload_bytes": writer.length,
        }


def _read_entry(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            payload = file.read(_ENTRY_BYTES_MAX + 1)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from error
    if len(payload) > _ENTRY_BYTES_MAX:
        raise BadInputError(f"{path} is larger than {_ENTRY_BYTES_MAX} bytes, the most an entry holds")
    return payload
