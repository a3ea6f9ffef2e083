"""The nouns that every layer shares: ids, quorum sizes, ledger metadata, versions.

Source: spec metadata sections 7 and 9, spec replication section 0.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, NewType, TypeVar

LedgerId = NewType("LedgerId", int)  # 64 bit, from 0
EntryId = NewType("EntryId", int)  # 64 bit, from 0
BookieId = NewType("BookieId", str)  # identity, never a resolved address
BookieIndex = NewType("BookieIndex", int)  # position in an ensemble, from 0

INVALID_ENTRY_ID = EntryId(-1)  # "no entry yet"; on the wire: "the last entry on this bookie"

T = TypeVar("T")


class DigestType(enum.IntEnum):
    """How entries are protected. The numbers are those of the stored metadata: do not change."""

    CRC32 = 1
    MAC = 2  # stored as HMAC
    CRC32C = 3
    DUMMY = 4


class MetadataState(enum.IntEnum):
    """Life of a ledger. The numbers are those of the stored metadata: do not change."""

    OPEN = 1
    IN_RECOVERY = 2
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries from `first_entry_id` up to the next segment share one ensemble."""

    first_entry_id: EntryId
    ensemble: tuple[BookieId, ...]


@dataclass(frozen=True, slots=True)
class LedgerMetadata:
    """One ledger as the metadata store holds it (spec metadata section 7).

    `length` (payload bytes) and `last_entry_id` mean something only when CLOSED.
    `password` None: the metadata names none (format 1), and no digest type either. `ctime_ms` None:
    its writer stored no creation time; then `created_ms`, when the store made the ledger's node, stands
    in for it. That is known of metadata that was read, and never written.
    """

    ensemble_size: int
    write_quorum_size: int
    ack_quorum_size: int
    segments: tuple[Segment, ...]
    state: MetadataState = MetadataState.OPEN
    length: int = 0
    last_entry_id: EntryId = INVALID_ENTRY_ID
    digest_type: DigestType | None = DigestType.CRC32C
    password: bytes | None = b""
    ctime_ms: int | None = None
    created_ms: int | None = field(default=None, compare=False)
    custom_metadata: Mapping[str, bytes] = field(default_factory=dict)
    creator_token: int = 0
    format_version: int = 3

    @property
    def closed(self) -> bool:
        return self.state is MetadataState.CLOSED

    @property
    def last_segment(self) -> Segment:
        return self.segments[-1]

    def segment_at(self, entry_id: EntryId) -> Segment:
        """The segment that stores `entry_id` (>= 0)."""
        assert entry_id >= 0, entry_id
        for segment in reversed(self.segments):
            if segment.first_entry_id <= entry_id:
                return segment
        raise AssertionError(f"no segment holds entry {entry_id}: {self.segments}")

    def with_state(self, state: MetadataState) -> "LedgerMetadata":
        return replace(self, state=state)

    def with_closed(self, last_entry_id: EntryId, length: int) -> "LedgerMetadata":
        return replace(self, state=MetadataState.CLOSED, last_entry_id=last_entry_id, length=length)

    def with_segments(self, segments: tuple[Segment, ...]) -> "LedgerMetadata":
        return replace(self, segments=segments)


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A value and the version of the store that it was read at, for compare-and-set."""

    value: T
    version: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where a bookie listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"
