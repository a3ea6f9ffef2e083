"""The nodes below `underreplication`: marked ledgers, their locks, the auditor's election.

Source: spec metadata sections 11 and 12; upstream ZkLedgerUnderreplicationManager, ZkLedgerAuditorManager.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bkctl.errors import CorruptDataError
from bkctl.formats import message, text_format
from bkctl.formats.message import Field, Kind, Schema
from bkctl.types import LedgerId

NEVER_MS = -1  # a periodic check that never completed

_LEDGER_NODE = re.compile(r"urL([0-9]{10,19})")
_VOTE_NODE = re.compile(r"V_(-?[0-9]{10})")
_DELAY = re.compile(r"[0-9]{1,9}")

_LAYOUT = Schema(Field(1, "type", Kind.STRING, required=True), Field(2, "version", Kind.INT32, required=True))
_MARKED_LEDGER = Schema(Field(1, "replica", Kind.STRING, repeated=True), Field(2, "ctime", Kind.INT64))
_BOOKIE = Schema(Field(1, "bookieId", Kind.STRING))  # LockDataFormat and AuditorVoteFormat
_CHECK_TIME = Schema(Field(1, "ctime", Kind.INT64))  # CheckAllLedgersFormat and its two siblings

LAYOUT = text_format.write(_LAYOUT, {"type": "BASIC", "version": 1}).encode()


@dataclass(frozen=True, slots=True)
class UnderreplicatedLedger:
    """Bookie ids believed missing (none: only the placement is wrong), and when it was marked."""

    replicas: tuple[str, ...] = ()
    ctime_ms: int | None = None

    def with_missing(self, bookie_ids: Iterable[str], now_ms: int) -> "UnderreplicatedLedger | None":
        """With `bookie_ids` added and the time refreshed; None when all are there: nothing to write."""
        added = tuple(dict.fromkeys(b for b in bookie_ids if b not in self.replicas))
        return UnderreplicatedLedger(self.replicas + added, now_ms) if added else None


def encode_ledger(ledger: UnderreplicatedLedger) -> bytes:
    fields = {"replica": ledger.replicas, "ctime": ledger.ctime_ms}
    return text_format.write(_MARKED_LEDGER, fields).encode()


def decode_ledger(data: bytes) -> UnderreplicatedLedger:
    """Raises CorruptDataError."""
    fields = text_format.parse(_MARKED_LEDGER, data)
    return UnderreplicatedLedger(tuple(fields["replica"]), fields.get("ctime"))


def check_layout(data: bytes) -> None:
    """Raises CorruptDataError unless `underreplication/LAYOUT` is the one layout there is."""
    fields = text_format.parse(_LAYOUT, data)
    if fields != {"type": "BASIC", "version": 1}:
        raise CorruptDataError(f"underreplication layout is {fields['type']!r} version {fields['version']}")


def ledger_path(root: str, ledger_id: LedgerId) -> str:
    """Below `root`/underreplication/ledgers, whatever the root: that name is fixed."""
    digits = f"{ledger_id:016x}"
    groups = "/".join(digits[i : i + 4] for i in range(0, 16, 4))
    return f"{root}/underreplication/ledgers/{groups}/{_node_name(ledger_id)}"


def lock_path(root: str, ledger_id: LedgerId) -> str:
    return f"{root}/underreplication/locks/{_node_name(ledger_id)}"


def _node_name(ledger_id: LedgerId) -> str:
    return f"urL{ledger_id:010d}"


def ledger_id_of(node_name: str) -> LedgerId:
    """The ledger of a node or lock named `urL…`. Raises CorruptDataError for any other name."""
    match = _LEDGER_NODE.fullmatch(node_name)
    if match is None:
        raise CorruptDataError(f"{node_name!r} is not the node of an under-replicated ledger")
    return LedgerId(int(match[1]))


def encode_bookie(bookie: str) -> bytes:
    """A lock (`bookie` is the holder's host name, maybe empty) or a vote (a bookie id)."""
    return text_format.write(_BOOKIE, {"bookieId": bookie or None}).encode()


def decode_bookie(data: bytes) -> str:
    """The host name in a lock, or the bookie id in a vote. Raises CorruptDataError."""
    bookie: str = text_format.parse(_BOOKIE, data).get("bookieId", "")
    return bookie


def vote_order(children: Iterable[str]) -> list[str]:
    """The votes among `children` from first to last: the first is the auditor, each other one
    watches its predecessor."""
    votes = [(int(match[1]), name) for name in children if (match := _VOTE_NODE.fullmatch(name))]
    return [name for _, name in sorted(votes)]


def encode_check_time(ctime_ms: int) -> bytes:
    """The end of a complete periodic check. The one binary value below `underreplication`."""
    return message.encode(_CHECK_TIME, {"ctime": ctime_ms})


def decode_check_time(data: bytes) -> int:
    """In ms; NEVER_MS when the field is absent. Raises CorruptDataError."""
    ctime_ms: int = message.decode(_CHECK_TIME, data).get("ctime", NEVER_MS)
    return ctime_ms


def encode_recovery_delay(seconds: int) -> bytes:
    return str(seconds).encode()


def decode_recovery_delay(data: bytes) -> int:
    """`lostBookieRecoveryDelay` in seconds. Raises CorruptDataError."""
    text = data[:40].decode("latin-1")
    if not _DELAY.fullmatch(text):
        raise CorruptDataError(f"lostBookieRecoveryDelay is {text!r}, not a number of seconds")
    return int(text)
