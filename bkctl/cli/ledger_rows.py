"""Ledger metadata as rows of output, for one ledger or for all of a cluster."""

import base64
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from bkctl.cli.render import Column, format_bytes
from bkctl.errors import NoSuchLedgerOnMetadataServerError
from bkctl.types import LedgerId, LedgerMetadata

if TYPE_CHECKING:
    from bkctl.metadata.ledgers import LedgerManager

_READS_AT_ONCE = 64  # of metadata; a store far away answers them together

LEDGER_COLUMNS = [
    Column("ledger_id"),
    Column("state"),
    Column("ensemble_size"),
    Column("write_quorum_size"),
    Column("ack_quorum_size"),
    Column("last_entry_id"),
    Column("length", text=format_bytes),
    Column("ctime"),
    Column("digest_type", wide=True),
    Column("format_version", wide=True),
    Column("custom_metadata", wide=True),
    Column("segments", wide=True, text=lambda segments: "; ".join(map(_segment_text, segments))),
]


def _segment_text(segment: dict[str, Any]) -> str:
    return f"{segment['first_entry_id']}: {', '.join(segment['ensemble'])}"


def ledger_row(ledger_id: LedgerId, metadata: LedgerMetadata) -> dict[str, Any]:
    """`last_entry_id` and `length` are None until the ledger is closed. Never the password."""
    closed = metadata.closed
    ctime_ms = metadata.created_ms if metadata.ctime_ms is None else metadata.ctime_ms
    return {
        "ledger_id": ledger_id,
        "state": metadata.state.name,
        "ensemble_size": metadata.ensemble_size,
        "write_quorum_size": metadata.write_quorum_size,
        "ack_quorum_size": metadata.ack_quorum_size,
        "digest_type": None if metadata.digest_type is None else metadata.digest_type.name,
        "last_entry_id": metadata.last_entry_id if closed else None,
        "length": metadata.length if closed else None,
        "ctime": None if ctime_ms is None else iso_time(ctime_ms),
        "format_version": metadata.format_version,
        "custom_metadata": {key: readable(value) for key, value in metadata.custom_metadata.items()},
        "segments": [
            {"first_entry_id": segment.first_entry_id, "ensemble": list(segment.ensemble)}
            for segment in metadata.segments
        ],
    }


def iso_time(time_ms: int) -> str:
    """Wall time in milliseconds since 1970 as ISO-8601 in UTC."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time_ms // 1000))}.{time_ms % 1000:03d}Z"


def readable(value: bytes) -> str:
    """Text when it is text, else `base64:…`."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(value).decode()


async def all_metadata(ledgers: "LedgerManager") -> AsyncIterator[list[tuple[LedgerId, LedgerMetadata]]]:
    """The metadata of every ledger, ascending, some at a time.

    Raises MetadataSerializationError for a damaged one.
    """
    import asyncio

    async def read(ledger_id: LedgerId) -> LedgerMetadata | None:
        try:
            return (await ledgers.read(ledger_id)).value
        except NoSuchLedgerOnMetadataServerError:
            return None  # deleted since it was listed

    async for ledger_ids in ledgers.ranges():
        for start in range(0, len(ledger_ids), _READS_AT_ONCE):
            some = ledger_ids[start : start + _READS_AT_ONCE]
            found = zip(some, await asyncio.gather(*map(read, some)), strict=True)
            yield [(ledger_id, metadata) for ledger_id, metadata in found if metadata is not None]
