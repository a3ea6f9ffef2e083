"""Choosing bookies and substituting them."""

import pytest

from bkctl.errors import NotEnoughBookiesError, UnexpectedConditionError
from bkctl.quorum.ensemble import replace_bookies, with_ensemble
from bkctl.quorum.metadata_update import MetadataUpdate
from bkctl.quorum.placement import choose_ensemble, choose_replacements
from bkctl.types import BookieId, BookieIndex, EntryId, LedgerMetadata, MetadataState, Segment, Versioned

A, B, C, D = (BookieId(name) for name in "abcd")
I0, I1, I2 = BookieIndex(0), BookieIndex(1), BookieIndex(2)


def test_an_ensemble_takes_avoided_bookies_last() -> None:
    assert choose_ensemble([A, B, C, D], 3, avoid={A}) == (B, C, D)
    assert choose_ensemble([A, B, C], 3, avoid={A, C}) == (B, A, C)
    assert choose_ensemble([A, A, B], 2) == (A, B)
    with pytest.raises(NotEnoughBookiesError):
        choose_ensemble([A, A, B], 3)


def test_replacements_are_distinct_and_never_excluded() -> None:
    assert choose_replacements([A, B, C, D], [I2, I0], {A}) == {0: B, 2: C}
    assert choose_replacements([A, B, C, D], [I1], {A}, avoid={B}) == {1: C}
    assert choose_replacements([A, B], [I0, I1], {A}) == {0: B}
    assert choose_replacements([A], [I0], {A}) == {}


def test_only_a_failed_bookie_that_is_still_there_is_replaced() -> None:
    assert replace_bookies((A, B, C), {I1: B}, {I1: D}) == (A, D, C)
    assert replace_bookies((A, B, C), {I1: D}, {I1: D}) == (A, B, C)
    assert replace_bookies((A, B, C), {I1: B}, {I1: C}) == (A, B, C)


def test_a_new_ensemble_replaces_an_empty_last_segment_or_follows_it() -> None:
    segments = (Segment(EntryId(0), (A,)), Segment(EntryId(5), (B,)))
    assert with_ensemble(segments, EntryId(5), (C,)) == (segments[0], Segment(EntryId(5), (C,)))
    assert with_ensemble(segments, EntryId(8), (C,)) == (*segments, Segment(EntryId(8), (C,)))
    with pytest.raises(UnexpectedConditionError):
        with_ensemble(segments, EntryId(4), (C,))


def test_a_change_is_repeated_over_conflicts_until_it_is_there() -> None:
    """1. Refused: written again upon what is stored now.  2. Its own result is there: nothing to do."""

    def mark(metadata: LedgerMetadata) -> LedgerMetadata | None:
        if metadata.state is MetadataState.IN_RECOVERY:
            return None
        return metadata.with_state(MetadataState.IN_RECOVERY)

    metadata = LedgerMetadata(1, 1, 1, (Segment(EntryId(0), (A,)),))
    update = MetadataUpdate(Versioned(metadata, 0), mark)
    first = update.start()
    assert first is not None
    assert first.version == 0
    second = update.conflict(Versioned(metadata, 4))
    assert second is not None
    assert second.version == 4
    assert update.conflict(Versioned(second.metadata, 5)) is None
    assert update.current == Versioned(second.metadata, 5)
