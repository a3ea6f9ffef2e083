"""The (state, event) cells of spec replication section 17, and which of them stories have entered.

Programs count a cell under its name here in `World.covered`; `python -m tests.sim --coverage` prints
all of them, and what no story can reach with the reason.
"""

from collections import Counter
from typing import Any

from bkctl.errors import (
    BookKeeperError,
    LedgerFencedError,
    NotEnoughBookiesError,
    UnauthorizedAccessError,
)
from bkctl.quorum.actions import ChooseReplacements, RecoveryAborted, WriteMetadata
from bkctl.quorum.adds import LedgerAdds
from bkctl.quorum.lac import NEGATIVE
from bkctl.quorum.recovery import LedgerRecovery, RecoveryState

HOOKS = (
    "added", "recovery added", "synced", "fenced", "fence answered", "metadata sent", "metadata answered",
)  # fmt: skip
FAULTS = (
    "bookie crash", "bookie wiped", "bit rot", "bookie collects", "network drop", "metadata conflict",
    "metadata reply lost", "metadata request lost",
)  # fmt: skip

WRITER = [
    *(f"{state} Add" for state in ("OPEN", "CHANGING", "CLOSING", "CLOSED", "WITHDRAWN")),
    "OPEN AddOk", "OPEN AddOk of a bookie replaced", "CHANGING AddOk", "CHANGING AddOk of a bookie replaced",
    *(f"{state} AddErr, entry pending" for state in ("OPEN", "CHANGING")),
    *(f"{state} AddErr, entry acknowledged" for state in ("OPEN", "CHANGING")),
    "OPEN FENCED", "CHANGING FENCED",
    "OPEN bookie lost", "CHANGING bookie lost",
    "CHANGING CasOk, moved", "CHANGING CasOk, more have failed",
    "CHANGING CasConflict, OPEN, still needed", "CHANGING CasConflict, OPEN, done already",
    "CHANGING CasConflict, IN_RECOVERY", "CHANGING CasConflict, CLOSED",
    "CHANGING metadata fails", "CHANGING no bookie, goes on", "CHANGING no bookie, gives up",
    "OPEN Close", "CHANGING Close", "CLOSING CasOk", "CLOSING CasConflict, CLOSED there",
    "CLOSING CasConflict, CLOSED elsewhere", "CLOSING CasConflict, not closed", "CLOSING metadata fails",
    *(f"{state} reply" for state in ("CLOSING", "CLOSED", "WITHDRAWN")),
]  # fmt: skip
RECOVERY = [
    "start Meta(CLOSED)", "start Meta(OPEN)", "start Meta(IN_RECOVERY)",
    "MARKING CasOk", "MARKING CasConflict, OPEN", "MARKING CasConflict, IN_RECOVERY",
    "MARKING CasConflict, CLOSED", "MARKING metadata fails",
    "FENCING OK", "FENCING negative", "FENCING unknown", "FENCING covered",
    "FENCING all in, not covered",
    "REWRITING read OK", "REWRITING negative", "REWRITING unknown", "REWRITING end found, adds pending",
    "REWRITING end found, nothing pending", "REWRITING all in, undecided",
    "REWRITING AddOk", "REWRITING AddErr", "DRAINING AddOk", "DRAINING AddErr",
    "REWRITING bookies replaced", "DRAINING bookies replaced", "no bookie is left",
    "DRAINING last add complete", "DRAINING length read",
    "CLOSING CasOk", "CLOSING CasConflict, CLOSED", "CLOSING CasConflict, IN_RECOVERY, same segments",
    "CLOSING deleted or fails",
    "late FENCING reply", "late read reply", "late AddOk", "late AddErr",
]  # fmt: skip
READ = [
    "reply, verified", "reply, bad digest", "reply, negative", "reply, unknown", "next replica asked",
    "nobody left, failed", "SpecTimer, next asked", "SpecTimer, nobody left", "reply after the end",
]  # fmt: skip
LAC_READ = ["OK", "negative", "unknown", "covered", "all in, not covered", "reply after the end"]
TABLES = {"17.1": WRITER, "17.2": RECOVERY, "17.3": READ, "17.4": LAC_READ}

UNREACHABLE = {
    "17.1 EUA": "every program of a story has the ledger's password; tests/unit/quorum/test_adds.py",
    "17.1 IllegalOp": "a bookie of protocol version 2 only; tests/unit/quorum/test_adds.py",
    "17.1 QuorumTimeout": "this client has no add quorum timeout: late bookies are replaced one by one",
    "17.2 FENCING EUA": "every program of a story has the password; tests/unit/quorum/test_recovery.py",
    "17.2 CLOSING CasConflict, segments changed": "only re-replication does that: tests/unit/quorum",
    "17.3 parallel": "this client reads sequentially, recovery in parallel: see 17.2",
    "17.4 EUA": "reading a LAC needs no password; tests/unit/quorum/test_lac.py",
}


def counted(cell: str) -> str:
    """How a cell is named in `World.covered`."""
    return f"cell {cell}"


def note(
    covered: Counter[str],
    machine: Any,
    before: Any,
    event: str,
    arguments: tuple[Any, ...],
    actions: list[Any],
) -> None:
    """`machine` was in state `before` when `event` happened, and wants `actions`."""
    if isinstance(machine, LedgerAdds):
        cell = _of_writer(machine, before.name, event, arguments, actions)
        table = "17.1"
    elif isinstance(machine, LedgerRecovery):
        cell, table = _of_recovery(machine, before, event, arguments, actions), "17.2"
    else:
        return
    if cell is not None:
        covered[f"cell {table} {cell}"] += 1


def _of_writer(
    machine: LedgerAdds, state: str, event: str, arguments: tuple[Any, ...], actions: list[Any]
) -> str | None:
    if state not in ("OPEN", "CHANGING") and event in ("stored", "failed", "bookie_failed"):
        return f"{state} reply"
    match event:
        case "stored":
            known = arguments[0] in machine._pending.index_of
            return f"{state} AddOk" + ("" if known else " of a bookie replaced")
        case "failed":
            if isinstance(arguments[2], LedgerFencedError):
                return f"{state} FENCED"
            pending = arguments[1] > machine._pending.acked
            return f"{state} AddErr, entry " + ("pending" if pending else "acknowledged")
        case "bookie_failed":
            return f"{state} bookie lost"
        case "close":
            return f"{state} Close"
        case "replacements_chosen":
            if arguments[0] or state != "CHANGING":
                return None
            gave_up = machine.state.name not in ("OPEN", "CHANGING")
            return "CHANGING no bookie, " + ("gives up" if gave_up else "goes on")
        case "metadata_written" if state == "CHANGING":
            again = any(isinstance(action, ChooseReplacements) for action in actions)
            return "CHANGING CasOk, " + ("more have failed" if again else "moved")
        case "metadata_written" if state == "CLOSING":
            return "CLOSING CasOk"
        case "metadata_failed":
            return f"{state} metadata fails" if state in ("CHANGING", "CLOSING") else None
        case "metadata_conflict":
            return _of_conflict(state, arguments[0].value, machine, actions)
    return None


def _of_conflict(state: str, current: Any, machine: LedgerAdds, actions: list[Any]) -> str | None:
    if state == "CHANGING" and current.state.name == "OPEN":
        needed = any(isinstance(action, WriteMetadata) for action in actions)
        return "CHANGING CasConflict, OPEN, " + ("still needed" if needed else "done already")
    if state == "CHANGING":
        return f"CHANGING CasConflict, {current.state.name}"
    if state == "CLOSING" and current.closed:
        there = current.last_entry_id == machine.last_add_confirmed
        return "CLOSING CasConflict, CLOSED " + ("there" if there else "elsewhere")
    return "CLOSING CasConflict, not closed" if state == "CLOSING" else None


def _of_recovery(
    machine: LedgerRecovery, before: Any, event: str, arguments: tuple[Any, ...], actions: list[Any]
) -> str | None:
    after, state = machine.state, before.name
    aborted = next((a for a in actions if isinstance(a, RecoveryAborted)), None)
    if aborted is not None and isinstance(aborted.error, NotEnoughBookiesError):
        return "no bookie is left"
    match event:
        case "fenced":
            if before is not RecoveryState.FENCING:
                return "late FENCING reply"
            if after is not before:
                return "FENCING all in, not covered" if aborted else "FENCING covered"
            return "FENCING " + _kind(arguments[1])
        case "entry_read":
            return _of_entry_read(machine, before, after, arguments, aborted)
        case "stored" if before is RecoveryState.DRAINING and after is RecoveryState.CLOSING:
            return "DRAINING last add complete"
        case "stored" | "failed" | "bookie_failed":
            what = "AddOk" if event == "stored" else "AddErr"
            busy = before in (RecoveryState.REWRITING, RecoveryState.DRAINING)
            return f"{state} {what}" if busy else f"late {what}"
        case "replacements_chosen" if before in (RecoveryState.REWRITING, RecoveryState.DRAINING):
            return f"{state} bookies replaced"
        case "metadata_written":
            return f"{state} CasOk"
        case "metadata_failed":
            return "MARKING metadata fails" if before is RecoveryState.MARKING else "CLOSING deleted or fails"
        case "metadata_conflict":
            same = ", same segments" if state == "CLOSING" and not arguments[0].value.closed else ""
            return f"{state} CasConflict, {arguments[0].value.state.name}{same}"
    return None


def _of_entry_read(
    machine: LedgerRecovery, before: Any, after: Any, arguments: tuple[Any, ...], aborted: object
) -> str:
    if before is RecoveryState.DRAINING:
        return "late read reply" if after is before else "DRAINING length read"
    if before is not RecoveryState.REWRITING:
        return "late read reply"
    if after is RecoveryState.CLOSING:
        return "REWRITING end found, nothing pending"
    if after is RecoveryState.DRAINING:
        return "REWRITING end found, adds pending"
    if aborted is not None:
        return "REWRITING all in, undecided"
    kind = _kind(arguments[2])
    return "REWRITING " + ("read OK" if kind == "OK" else kind)


def _kind(answer: Any) -> str:
    if isinstance(answer, NEGATIVE):
        return "negative"
    assert not isinstance(answer, UnauthorizedAccessError)
    return "unknown" if isinstance(answer, BookKeeperError) else "OK"


def table(covered: Counter[str]) -> list[tuple[str, int]]:
    """Every reachable cell, hook and fault with its count."""
    rows = [
        (f"{name} {cell}", covered[counted(f"{name} {cell}")])
        for name, cells in TABLES.items()
        for cell in cells
    ]
    rows += [(f"hook {hook}", covered[f"hook {hook}"]) for hook in HOOKS]
    return rows + [(f"fault {fault}", covered[fault]) for fault in FAULTS]


def missing(covered: Counter[str]) -> list[str]:
    """What was never reached."""
    return [what for what, count in table(covered) if not count]
