"""Replacing bookies of the ensemble that a ledger is being written to.

Source: spec replication section 6.3, invariant I7; upstream EnsembleUtils.
"""

from collections.abc import Mapping

from bkctl.errors import UnexpectedConditionError
from bkctl.types import BookieId, BookieIndex, EntryId, Segment


def replace_bookies(
    ensemble: tuple[BookieId, ...],
    failed: Mapping[BookieIndex, BookieId],
    replacements: Mapping[BookieIndex, BookieId],
) -> tuple[BookieId, ...]:
    """The ensemble with each failed bookie that is still at its index replaced, where possible.

    A replacement that already is a member is not used: the bookies of an ensemble are distinct.
    """
    changed = list(ensemble)
    for index, bookie_id in replacements.items():
        if changed[index] == failed.get(index) and bookie_id not in changed:
            changed[index] = bookie_id
    return tuple(changed)


def with_ensemble(
    segments: tuple[Segment, ...], first_entry_id: EntryId, ensemble: tuple[BookieId, ...]
) -> tuple[Segment, ...]:
    """The segments when entries from `first_entry_id` on go to `ensemble`.

    Raises:
        UnexpectedConditionError: the last segment begins after `first_entry_id`, the lowest entry
            not yet acknowledged: somebody else wrote it.
    """
    last = segments[-1]
    if first_entry_id < last.first_entry_id:
        raise UnexpectedConditionError(
            f"the last segment begins at entry {last.first_entry_id}, but entry {first_entry_id} is not "
            "acknowledged yet: another program changed the ledger's metadata"
        )
    segment = Segment(first_entry_id, ensemble)
    if first_entry_id == last.first_entry_id:
        return (*segments[:-1], segment)
    return (*segments, segment)


def differing_indexes(before: tuple[BookieId, ...], after: tuple[BookieId, ...]) -> set[BookieIndex]:
    """Where two ensembles of one ledger differ."""
    pairs = enumerate(zip(before, after, strict=True))
    return {BookieIndex(index) for index, (old, new) in pairs if old != new}
