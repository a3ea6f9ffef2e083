"""What a client may be told beside the metadata URI."""

from dataclasses import dataclass, fields

from bkctl.errors import BadInputError
from bkctl.formats.frame import FRAME_BYTES_MAX

_MIB = 1024 * 1024
_MAY_BE_ZERO = (
    "add_quorum_timeout_ms",
    "close_linger_ms",
    "ensemble_changes_max",
    "explicit_lac_interval_ms",
    "quarantine_ms",
)
# A Java bookie queues 10,000 adds per thread (maxPendingAddRequestsPerThread), of all its clients, and
# refuses more: what waits while it hangs, or is sent to a replacement, comes in one burst.
_OUTSTANDING_ENTRIES = 5_000


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Times in ms, 0 or more. In parentheses: the key of upstream's client.

    Raises:
        BadInputError: a value out of its bounds.
    """

    session_timeout_ms: int = 10_000  # with the metadata store (zkTimeout)
    connect_timeout_ms: int = 10_000  # (clientConnectTimeoutMillis)
    add_timeout_ms: int = 5_000  # then the bookie is replaced (addEntryTimeoutSec)
    read_timeout_ms: int = 5_000  # of one bookie's answer (readEntryTimeoutSec)
    speculative_read_timeout_ms: int = 2_000  # then another replica is asked, too (speculativeReadTimeout)
    close_linger_ms: int = 1_000  # a closing writer waits so long for copies beyond the ack quorum
    explicit_lac_interval_ms: int = 0  # 0: never (explicitLacInterval)
    quarantine_ms: int = 60_000  # a bookie that failed is chosen last for so long
    add_quorum_timeout_ms: int = 0  # of an add, then its handle fails; 0: never (addEntryQuorumTimeoutSec)
    delay_ensemble_change: bool = False  # replace a failed bookie as late as possible (delayEnsembleChange)
    ensemble_changes_max: int | None = None  # per ledger handle; None: no limit (maxNumEnsembleChanges)
    frame_bytes_max: int = FRAME_BYTES_MAX  # (nettyMaxFrameSizeBytes)
    outstanding_entries_max: int = _OUTSTANDING_ENTRIES  # adds of one handle without an outcome
    outstanding_bytes_max: int = 64 * _MIB  # the same in bytes
    lagging_bytes_max: int = 64 * _MIB  # unsent to one bookie that is slower than the others
    read_batch_entries: int = 500  # asked of one bookie at once
    read_batch_bytes: int = 1 * _MIB  # aimed at, from the sizes seen before
    read_ahead_batches: int = 4  # on their way while entries are iterated over

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or isinstance(value, bool):
                continue
            lowest = 0 if field.name in _MAY_BE_ZERO else 1
            if value < lowest:
                raise BadInputError(f"client setting {field.name}: {value} is less than {lowest}")
