"""The spelling of ledger ids, entry ranges, quorums, metadata and passwords on the command line."""

import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bkctl.errors import BadInputError
from bkctl.types import DigestType, EntryId, LedgerId

FIRST_ENTRY_ID = EntryId(0)

_INT64_MAX = 2**63 - 1
_PASSWORD_BYTES_MAX = 4096

LedgerArgument = Annotated[str, typer.Argument(metavar="LEDGER", help="Ledger id: 42, 0x2a, or a UUID.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="The ledger's password, without the newline at its end; else BKCTL_LEDGER_PASSWORD, else the "
        "one in the ledger's metadata (a new ledger: none).",
    ),
]
EnsembleSize = Annotated[
    int | None,
    typer.Option("-E", "--ensemble", min=1, help="Bookies per ledger; 3, or as many as there are."),
]
WriteQuorumSize = Annotated[
    int | None, typer.Option("-Q", "-w", "--write-quorum", min=1, help="Copies of each entry; as many as -E.")
]
AckQuorumSize = Annotated[
    int | None,
    typer.Option("-A", "-a", "--ack-quorum", min=1, help="Copies before an add is done; a majority."),
]
Digest = Annotated[
    str, typer.Option("--digest", metavar="crc32c|crc32|mac|dummy", help="How entries are protected.")
]
CustomMetadata = Annotated[
    list[str] | None, typer.Option("--meta", metavar="KEY=VALUE", help="Custom metadata; repeatable.")
]


@dataclass(frozen=True, slots=True)
class LedgerRange:
    """Entries `first`..`last` of a ledger, both included; `last` None: to the end."""

    ledger_id: LedgerId
    first: EntryId = FIRST_ENTRY_ID
    last: EntryId | None = None


def parse_ledger_id(text: str) -> LedgerId:
    """42, 0x2a, or the UUID form of BookieShell (high half zero). Raises BadInputError."""
    if re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]+", text):
        value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    elif re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        value = uuid.UUID(text).int
    else:
        raise BadInputError(f"'{text}' is no ledger id; write 42, 0x2a or a UUID")
    if value > _INT64_MAX:
        raise BadInputError(f"ledger id '{text}' is larger than 2^63-1")
    return LedgerId(value)


def parse_ledger_range(text: str) -> LedgerRange:
    """`42`, `42:7` (one entry), `42:0-99`, `42:100-` (to the end). Raises BadInputError."""
    ledger, colon, entries = text.partition(":")
    ledger_id = parse_ledger_id(ledger)
    if not colon:
        return LedgerRange(ledger_id)
    match = re.fullmatch(r"([0-9]{1,19})(?:(-)([0-9]{1,19})?)?", entries)
    if match is None:
        raise BadInputError(
            f"cannot use the entries '{entries}'; write {ledger}:0-99, {ledger}:7 or {ledger}:7-"
        )
    first = int(match[1])
    last = int(match[3]) if match[3] else None if match[2] else first
    if first > _INT64_MAX or (last is not None and not first <= last <= _INT64_MAX):
        raise BadInputError(f"entries '{entries}' are no range; the first comes before the last")
    return LedgerRange(ledger_id, EntryId(first), None if last is None else EntryId(last))


def parse_digest(text: str) -> DigestType:
    """Raises BadInputError for an unknown name."""
    by_name = {digest.name.lower(): digest for digest in DigestType} | {"hmac": DigestType.MAC}
    try:
        return by_name[text.lower()]
    except KeyError:
        raise BadInputError(f"no digest '{text}'; there are crc32c, crc32, mac and dummy") from None


def parse_custom_metadata(pairs: list[str] | None) -> dict[str, bytes]:
    """["k=v"] -> {"k": b"v"}. Raises BadInputError."""
    metadata = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise BadInputError(f"cannot use metadata '{pair}'; write KEY=VALUE")
        metadata[key] = os.fsencode(value)
    return metadata


def read_password(path: Path | None) -> bytes | None:
    """From the file, else from BKCTL_LEDGER_PASSWORD, else None. Raises BadInputError."""
    if path is None:
        text = os.environ.get("BKCTL_LEDGER_PASSWORD")
        return None if text is None else os.fsencode(text)
    try:
        with path.open("rb") as file:
            password = file.read(_PASSWORD_BYTES_MAX + 1)
    except OSError as error:
        raise BadInputError(f"cannot read the password file {path}: {error.strerror}") from error
    if len(password) > _PASSWORD_BYTES_MAX:
        raise BadInputError(f"the password file {path} is longer than {_PASSWORD_BYTES_MAX} bytes")
    return password.removesuffix(b"\n").removesuffix(b"\r")


@dataclass(frozen=True, slots=True)
class Replication:
    """E >= Qw >= Qa >= 1."""

    ensemble_size: int
    write_quorum_size: int
    ack_quorum_size: int


def chosen_replication(
    ensemble: int | None, write_quorum: int | None, ack_quorum: int | None, writable_bookies: int
) -> Replication:
    """What is not given follows: E is 3 or as many bookies as there are, Qw = E, Qa a majority of Qw.

    Raises BadInputError unless E >= Qw >= Qa.
    """
    if ensemble is None:
        ensemble = max(1, min(3, writable_bookies), write_quorum or 0, ack_quorum or 0)
    write_quorum = max(ensemble if write_quorum is None else write_quorum, 1)
    ack_quorum = write_quorum // 2 + 1 if ack_quorum is None else ack_quorum
    if not ensemble >= write_quorum >= ack_quorum:
        raise BadInputError(
            f"need E >= Qw >= Qa, not {ensemble}, {write_quorum}, {ack_quorum}; change -E, -w or -a"
        )
    return Replication(ensemble, write_quorum, ack_quorum)
