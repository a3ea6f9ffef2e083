"""What the replication machines want done; a shell does it and reports back.

Machines are driven by method calls named after what happened (`stored`, `metadata_conflict`) and
return actions in the order in which they must be carried out.

Source: spec replication section 17.
"""

from dataclasses import dataclass

from bkctl.errors import BkctlError
from bkctl.types import BookieId, BookieIndex, EntryId, LedgerMetadata, Versioned


@dataclass(frozen=True, slots=True)
class SendAdds:
    """Send complete v2 add frames of some entries among first..last to one bookie.

    Every id of first..last is in `frames`, unless the ledger is striped.
    """

    bookie_id: BookieId
    first_entry_id: EntryId
    last_entry_id: EntryId
    frames: bytes


@dataclass(frozen=True, slots=True)
class Acked:
    """The adds first..last succeeded; comes once for each, in the order of the ids."""

    first_entry_id: EntryId
    last_entry_id: EntryId


@dataclass(frozen=True, slots=True)
class Failed:
    """The adds first..last failed; the entries may nevertheless appear after a recovery."""

    first_entry_id: EntryId
    last_entry_id: EntryId
    error: BkctlError


@dataclass(frozen=True, slots=True)
class ChooseReplacements:
    """Find a bookie for each index of `failed`, none of `exclude`; answer `replacements_chosen`."""

    failed: dict[BookieIndex, BookieId]
    exclude: frozenset[BookieId]


@dataclass(frozen=True, slots=True)
class EnsembleChanged:
    """From `first_entry_id` on, entries go to `ensemble`; `resent_to` gets all pending ones anew."""

    first_entry_id: EntryId
    ensemble: tuple[BookieId, ...]
    resent_to: tuple[BookieId, ...]


@dataclass(frozen=True, slots=True)
class WriteMetadata:
    """Compare-and-set; answer `metadata_written`, `metadata_conflict` or `metadata_failed`.

    Whoever does not know the outcome (lost reply) re-reads and reports a conflict: the machines
    recognise their own change.
    """

    metadata: LedgerMetadata
    version: int


@dataclass(frozen=True, slots=True)
class CloseDone:
    """The writer is through; `error` None: the ledger is closed at its last add confirmed."""

    error: BkctlError | None


@dataclass(frozen=True, slots=True)
class ForcePoint:
    """What a force covers: acknowledged entries up to `entry_id`, and the ledger's length there."""

    entry_id: EntryId
    length: int
    ensemble: tuple[BookieId, ...]


@dataclass(frozen=True, slots=True)
class FenceBookie:
    """Ask a bookie for its last entry and fence the ledger on it; answer `fenced`."""

    bookie_index: BookieIndex
    bookie_id: BookieId


@dataclass(frozen=True, slots=True)
class ReadForRecovery:
    """Read entries with the fencing and high-priority flags; answer `entry_read` for each."""

    bookie_index: BookieIndex
    bookie_id: BookieId
    entry_ids: tuple[EntryId, ...]


@dataclass(frozen=True, slots=True)
class RecoveryDone:
    """The ledger is closed, or only fenced if no more was asked for."""

    metadata: Versioned[LedgerMetadata]


@dataclass(frozen=True, slots=True)
class RecoveryOutdated:
    """The ledger's segments changed under the recovery: begin a new one from `current`."""

    current: Versioned[LedgerMetadata]


@dataclass(frozen=True, slots=True)
class RecoveryAborted:
    """The ledger is as it was, or IN_RECOVERY; trying again is safe."""

    error: BkctlError


Action = (
    SendAdds
    | Acked
    | Failed
    | ChooseReplacements
    | EnsembleChanged
    | WriteMetadata
    | CloseDone
    | FenceBookie
    | ReadForRecovery
    | RecoveryDone
    | RecoveryOutdated
    | RecoveryAborted
)
