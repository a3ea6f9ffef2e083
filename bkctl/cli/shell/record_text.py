"""Entries and journal records as upstream's FormatUtil prints them."""

from collections.abc import Iterator

from bkctl.cli.shell.settings import ShellSettings
from bkctl.cli.shell.text import payload_lines
from bkctl.formats.entry import HEADER, HEADER_BYTES
from bkctl.formats.journal import JournalRecord, RecordKind


def entry_lines(position: int, entry: bytes, settings: ShellSettings, *, body: bool) -> Iterator[str]:
    """`position`: of the size field. The body begins with the digest, of whatever length that is."""
    if len(entry) < HEADER_BYTES:
        yield f"--------- ByteOffset={position}, EntrySize={len(entry)} ---------"
        yield from ("N/A. Corrupted.", "")
        return
    ledger_id, entry_id, lac, _ = HEADER.unpack_from(entry)
    yield _head(ledger_id, entry_id, position, len(entry), settings)
    yield "Type:           DATA"
    yield f"LastConfirmed:  {lac}"
    if body:
        yield from ("Data:", "", *payload_lines(entry[HEADER_BYTES:], settings))
    yield ""


def record_lines(record: JournalRecord, settings: ShellSettings, *, body: bool) -> Iterator[str]:
    """Upstream shows explicit LACs as if they were entries."""
    if record.kind is RecordKind.ENTRY:
        yield from entry_lines(record.position, record.body, settings, body=body)
        return
    yield _head(record.ledger_id, record.entry_id, record.position, len(record.body), settings)
    yield "Type:           META"
    if record.kind is RecordKind.LEDGER_KEY:
        yield f"MasterKey:      {record.value.hex()}"
    elif record.kind is RecordKind.FENCE:
        yield "Fenced"
    elif record.kind is RecordKind.EXPLICIT_LAC and len(record.value) >= 16:
        yield f"ExplicitLac:    {int.from_bytes(record.value[8:16], 'big', signed=True)}"
    yield ""


def _head(ledger_id: int, entry_id: int, position: int, size_bytes: int, settings: ShellSettings) -> str:
    ledger = settings.ledger_id_text(ledger_id)
    return f"--------- Lid={ledger}, Eid={entry_id}, ByteOffset={position}, EntrySize={size_bytes} ---------"
