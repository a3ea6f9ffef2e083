"""Fragments: the entries of one segment that one bookie stores, and the retry of failed repairs.

Source: spec metadata sections 13.7 and 15; upstream LedgerFragment, ReplicationWorker.
"""

from itertools import pairwise

from bkctl.types import INVALID_ENTRY_ID, BookieId, BookieIndex, EntryId, LedgerMetadata

_BACKOFF_STEPS = 5  # the delay doubles this often before it is the whole period


def stored_bounds(
    ensemble_size: int,
    write_quorum_size: int,
    bookie_index: BookieIndex,
    first_entry_id: EntryId,
    last_entry_id: EntryId,
) -> tuple[EntryId, EntryId]:
    """First and last entry in first..last (inclusive) that `bookie_index` stores; -1, -1 if none.

    Entry e is on the indexes (e + 0) .. (e + Qw - 1) modulo E.
    """

    def stores(entry_id: int) -> bool:
        return (bookie_index - entry_id) % ensemble_size < write_quorum_size

    # Whatever the index, it stores one of any `ensemble_size` entries in a row.
    ahead = range(first_entry_id, min(last_entry_id, first_entry_id + ensemble_size - 1) + 1)
    back = range(last_entry_id, max(first_entry_id, last_entry_id - ensemble_size + 1) - 1, -1)
    first = next(filter(stores, ahead), INVALID_ENTRY_ID)
    last = next(filter(stores, back), INVALID_ENTRY_ID)
    return EntryId(first), EntryId(last)


def belongs_on(metadata: LedgerMetadata, bookie_id: BookieId) -> bool:
    """Whether `bookie_id` is to store an entry of the ledger; of an open end, any may come.

    Source: upstream BookKeeperAdmin.areEntriesOfLedgerStoredInTheBookie.
    """
    ends = [EntryId(after.first_entry_id - 1) for _, after in pairwise(metadata.segments)]
    last = metadata.last_entry_id if metadata.closed else None
    for segment, end in zip(metadata.segments, [*ends, last], strict=True):
        if bookie_id not in segment.ensemble:
            continue
        index = BookieIndex(segment.ensemble.index(bookie_id))
        sizes = (metadata.ensemble_size, metadata.write_quorum_size)
        if end is None or stored_bounds(*sizes, index, segment.first_entry_id, end)[0] != INVALID_ENTRY_ID:
            return True
    return False


def failed_ledger_backoff_ms(failure_count: int, grace_period_ms: int) -> int:
    """How long to keep the lock of a ledger that could not be repaired; `failure_count` from 0."""
    assert failure_count >= 0, failure_count
    if failure_count >= _BACKOFF_STEPS:
        return grace_period_ms
    return (grace_period_ms >> _BACKOFF_STEPS) << failure_count
