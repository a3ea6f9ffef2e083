"""The writer machine, event by event. Sources: spec replication sections 5-10, 15, 17.1."""

import pytest

from bkctl.errors import (
    AddEntryQuorumTimeoutError,
    BookieHandleNotAvailableError,
    BookKeeperError,
    DuplicateEntryIdError,
    IllegalOperationError,
    IncorrectParameterError,
    LedgerClosedError,
    LedgerFencedError,
    MetadataUnreachableError,
    MetadataVersionError,
    NotEnoughBookiesError,
    UnauthorizedAccessError,
    WriteError,
    WriteOnReadOnlyBookieError,
)
from bkctl.formats.entry import Digester, read_header
from bkctl.quorum.actions import (
    Acked,
    Action,
    ChooseReplacements,
    CloseDone,
    EnsembleChanged,
    Failed,
    SendAdds,
    WriteMetadata,
)
from bkctl.quorum.adds import LedgerAdds, WriterState
from bkctl.quorum.pending import entries_in
from bkctl.types import (
    BookieId,
    DigestType,
    EntryId,
    LedgerId,
    LedgerMetadata,
    MetadataState,
    Segment,
    Versioned,
)

A, B, C, D, E, F = (BookieId(name) for name in "abcdef")
LEDGER_ID = LedgerId(5)
DIGESTER = Digester(DigestType.CRC32, b"")
LOST = BookieHandleNotAvailableError("lost")


def _metadata(
    ensemble: tuple[BookieId, ...], write_quorum: int, ack_quorum: int
) -> Versioned[LedgerMetadata]:
    segments = (Segment(EntryId(0), ensemble),)
    return Versioned(LedgerMetadata(len(ensemble), write_quorum, ack_quorum, segments), 0)


def _writer(
    ensemble: tuple[BookieId, ...] = (A, B, C), write_quorum: int = 3, ack_quorum: int = 2, **options: object
) -> LedgerAdds:
    return LedgerAdds(LEDGER_ID, _metadata(ensemble, write_quorum, ack_quorum), DIGESTER, **options)  # type: ignore[arg-type]


def _add(writer: LedgerAdds, count: int = 1) -> list[Action]:
    return writer.add([b"payload"] * count)[1]


def _of(actions: list[Action], kind: type) -> list:
    return [action for action in actions if isinstance(action, kind)]


def _sent(actions: list[Action]) -> dict[BookieId, list[int]]:
    """Entry ids per bookie, from the bytes."""
    sent: dict[BookieId, list[int]] = {}
    for send in _of(actions, SendAdds):
        sent.setdefault(send.bookie_id, []).extend(e for e, _ in entries_in(send.frames))
    return sent


def _change(writer: LedgerAdds, **replacements: BookieId) -> list[Action]:
    """Play the store and the placement: `a=d` puts d where a was. The actions after the write."""
    index_of = {bookie_id: index for index, bookie_id in enumerate(writer.ensemble)}
    (write,) = writer.replacements_chosen({index_of[BookieId(k)]: b for k, b in replacements.items()})
    assert isinstance(write, WriteMetadata)
    return writer.metadata_written(write.version + 1)


def test_an_add_goes_to_the_write_set_and_carries_lac_and_length() -> None:
    writer = _writer()
    _add(writer, 2)
    writer.stored(A, 0, 1)
    assert writer.stored(B, 0, 0) == [Acked(0, 0)]
    actions = _add(writer)
    assert _sent(actions) == {A: [2], B: [2], C: [2]}
    ((_, body),) = entries_in(_of(actions, SendAdds)[0].frames)
    assert read_header(body) == (LEDGER_ID, 2, 0, 21)


def test_all_bookies_share_one_block_without_striping() -> None:
    blocks = {id(send.frames) for send in _of(_add(_writer(), 3), SendAdds)}
    assert len(blocks) == 1


def test_later_entries_wait_for_earlier_ones() -> None:
    """Striped: entry 1 is on both its bookies before entry 0 is."""
    writer = _writer(write_quorum=2)
    _add(writer, 2)
    assert writer.stored(B, 1, 1) == []
    assert writer.stored(C, 1, 1) == []
    assert writer.stored(A, 0, 0) == []
    assert writer.stored(B, 0, 0) == [Acked(0, 1)]


def test_answers_for_entries_never_sent_mean_nothing() -> None:
    writer = _writer()
    _add(writer)
    assert writer.stored(A, 0, 2**63 - 1) == []
    assert writer.stored(B, 5, 9) == []
    assert writer.stored(B, 0, 0) == [Acked(0, 0)]


def test_a_failed_bookie_is_replaced_and_pending_entries_follow() -> None:
    """1. Entry 0 acked.  2. C fails for entry 1.  3. Nothing is acked while the metadata is written.
    4. From entry 1 on D takes C's place and gets it; then acks count again."""
    writer = _writer()
    _add(writer, 2)
    writer.stored(A, 0, 0)
    assert writer.stored(B, 0, 0) == [Acked(0, 0)]
    (choose,) = writer.failed(C, 1, WriteError("disk"))
    assert choose == ChooseReplacements({2: C}, frozenset({A, B, C}))
    (write,) = writer.replacements_chosen({2: D})
    assert write.metadata.segments == (Segment(0, (A, B, C)), Segment(1, (A, B, D)))
    assert writer.stored(A, 1, 1) == writer.stored(B, 1, 1) == []
    actions = writer.metadata_written(1)
    assert [type(action) for action in actions] == [EnsembleChanged, SendAdds, Acked]
    assert _sent(actions) == {D: [1]}
    assert actions[-1] == Acked(1, 1)


def test_an_ensemble_is_replaced_in_place_if_its_segment_has_no_acknowledged_entry() -> None:
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    _change(writer, c=D)
    assert writer.metadata.segments == (Segment(0, (A, B, D)),)


def test_a_resend_repeats_the_same_bytes() -> None:
    """The LAC in them is that of the first sending, whatever was acknowledged since."""
    writer = _writer()
    first = _of(_add(writer, 3), SendAdds)[0].frames
    writer.stored(A, 0, 0)
    writer.stored(B, 0, 0)
    writer.failed(C, 1, LOST)
    (again,) = _of(_change(writer, c=D), SendAdds)
    assert (again.first_entry_id, again.last_entry_id) == (1, 2)
    assert first.endswith(again.frames)


def test_late_answers_of_a_replaced_bookie_mean_nothing() -> None:
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    _change(writer, c=D)
    assert writer.stored(C, 0, 0) == writer.failed(C, 0, LOST) == []
    assert writer.stored(A, 0, 0) == []
    assert writer.stored(D, 0, 0) == [Acked(0, 0)]


def test_a_failure_of_an_acknowledged_entry_waits_for_the_next_add() -> None:
    writer = _writer()
    _add(writer)
    writer.stored(A, 0, 0)
    writer.stored(B, 0, 0)
    assert writer.failed(C, 0, LOST) == []
    actions = _add(writer)
    assert _sent(actions) == {A: [1], B: [1]}
    assert _of(actions, ChooseReplacements) == [ChooseReplacements({2: C}, frozenset({A, B, C}))]
    assert _sent(_change(writer, c=D)) == {D: [1]}


def test_a_lost_connection_counts_for_everything_unanswered() -> None:
    writer = _writer()
    _add(writer, 2)
    writer.stored(C, 0, 1)
    assert writer.bookie_failed(C, LOST) == []
    assert _of(writer.bookie_failed(A, LOST), ChooseReplacements)


def test_failures_during_a_change_are_part_of_it() -> None:
    """1. C fails.  2. B fails while the metadata is written.  3. One more write, then both are resent."""
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    writer.replacements_chosen({2: D})
    assert writer.failed(B, 0, LOST) == []
    assert writer.failed(C, 0, LOST) == []
    (choose,) = writer.metadata_written(1)
    assert choose == ChooseReplacements({1: B}, frozenset({A, B, C, D}))
    (write,) = writer.replacements_chosen({1: E})
    assert write.metadata.segments == (Segment(0, (A, E, D)),)
    assert _sent(writer.metadata_written(2)) == {E: [0], D: [0]}
    assert writer.state is WriterState.OPEN


def test_1591_nothing_is_acknowledged_on_an_ensemble_that_the_metadata_does_not_name() -> None:
    writer = _writer(ack_quorum=3)
    _add(writer)
    writer.stored(A, 0, 0)
    writer.failed(C, 0, LOST)
    assert writer.stored(B, 0, 0) == writer.stored(C, 0, 0) == []
    writer.replacements_chosen({2: D})
    assert writer.stored(D, 0, 0) == []
    assert not _of(writer.metadata_written(1), Acked)


@pytest.mark.parametrize(("size", "ack_quorum"), [(6, 2), (4, 1)])
def test_3005_4097_4194_no_add_is_acknowledged_before_all_were_moved(size: int, ack_quorum: int) -> None:
    """Upstream drains while it takes acks back: an entry whose only copy was on the replaced bookie
    was acknowledged because an earlier one, untouched by the change, completed the order.
    """
    ensemble = tuple(BookieId(f"b{i}") for i in range(size))
    writer = _writer(ensemble, 2, ack_quorum)
    _add(writer, 4)
    for entry_id in (1, 2):  # entry 0 is not stored yet, so these wait
        for index in (entry_id, entry_id + 1):
            writer.stored(ensemble[index % size], entry_id, entry_id)
    writer.failed(ensemble[3 % size], 3, LOST)  # holds entry 2
    writer.stored(ensemble[0], 0, 0)
    writer.stored(ensemble[1], 0, 0)
    (write,) = writer.replacements_chosen({3: BookieId("new")})
    actions = writer.metadata_written(write.version + 1)
    kinds = [type(action) for action in actions]
    assert kinds.index(Acked) > max(i for i, kind in enumerate(kinds) if kind is SendAdds)
    (acked,) = _of(actions, Acked)
    assert acked.last_entry_id == (2 if ack_quorum == 1 else 1)
    assert _sent(actions)[BookieId("new")] == [2, 3]


def test_4459_a_bookie_that_keeps_its_place_does_not_hang_the_writer() -> None:
    """No bookie is there to replace C: the others acknowledge, and C is left out until it is back."""
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    assert writer.replacements_chosen({}) == []
    writer.stored(A, 0, 0)
    assert writer.stored(B, 0, 0) == [Acked(0, 0)]
    assert _sent(_add(writer)) == {A: [1], B: [1]}
    assert writer.failed(C, 1, LOST) == []
    assert _sent(writer.retry([A, B, C])) == {C: [1]}
    assert _sent(_add(writer)) == {A: [2], B: [2], C: [2]}
    assert writer.metadata.segments == (Segment(0, (A, B, C)),)


def test_an_absent_bookie_is_replaced_once_there_is_another() -> None:
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    writer.replacements_chosen({})
    assert writer.retry([A, B]) == []
    (choose,) = writer.retry([A, B, D])
    assert choose.failed == {2: C}
    assert _sent(_change(writer, c=D)) == {D: [0]}
    assert not writer.absent


def test_1857_a_change_whose_result_is_already_stored_ends() -> None:
    """Its reply was lost: the store shows our own change."""
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    (write,) = writer.replacements_chosen({2: D})
    assert _sent(writer.metadata_conflict(Versioned(write.metadata, 1))) == {D: [0]}
    assert writer.state is WriterState.OPEN


def test_1886_a_conflict_with_re_replication_of_an_older_segment_keeps_both_changes() -> None:
    writer = _writer()
    _add(writer)
    writer.stored(A, 0, 0)
    writer.stored(B, 0, 0)
    _add(writer)
    writer.failed(C, 1, LOST)
    _change(writer, c=D)
    writer.stored(A, 1, 1)
    writer.stored(B, 1, 1)
    _add(writer)
    writer.failed(B, 2, LOST)
    writer.replacements_chosen({1: F})
    replicated = writer.metadata.with_segments((Segment(0, (A, B, E)), Segment(1, (A, B, D))))
    (write,) = writer.metadata_conflict(Versioned(replicated, 7))
    assert write.version == 7
    assert write.metadata.segments == (*replicated.segments, Segment(2, (A, F, D)))


@pytest.mark.parametrize(
    ("state", "error", "then"),
    [
        (MetadataState.IN_RECOVERY, LedgerFencedError, WriterState.WITHDRAWN),
        (MetadataState.CLOSED, LedgerClosedError, WriterState.CLOSED),
    ],
)
def test_a_change_that_finds_the_ledger_taken_ends_the_writer(
    state: MetadataState, error: type[BookKeeperError], then: WriterState
) -> None:
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    writer.replacements_chosen({2: D})
    actions = writer.metadata_conflict(Versioned(writer.metadata.with_state(state), 3))
    (failed,) = _of(actions, Failed)
    assert isinstance(failed.error, error)
    assert not _of(actions, WriteMetadata)
    assert writer.state is then


def test_without_an_ack_quorum_the_writer_closes_at_its_lac() -> None:
    writer = _writer()
    _add(writer)
    writer.stored(A, 0, 0)
    writer.stored(B, 0, 0)
    _add(writer)
    writer.failed(B, 1, LOST)
    writer.failed(C, 1, LOST)
    writer.replacements_chosen({})
    failed, write = writer.replacements_chosen({})
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, NotEnoughBookiesError)
    assert (failed.first_entry_id, failed.last_entry_id) == (1, 1)
    assert (write.metadata.closed, write.metadata.last_entry_id, write.metadata.length) == (True, 0, 7)
    with pytest.raises(LedgerClosedError):
        _add(writer)
    assert writer.metadata_written(1) == [CloseDone(None)]


def test_too_many_changes_end_the_writer() -> None:
    writer = _writer(ensemble_changes_max=1)
    _add(writer)
    writer.failed(C, 0, LOST)
    _change(writer, c=D)
    failed, _ = writer.failed(D, 0, LOST)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, WriteError)


def test_a_read_only_bookie_is_replaced_like_a_failed_one() -> None:
    writer = _writer()
    _add(writer)
    assert _of(writer.failed(C, 0, WriteOnReadOnlyBookieError("full")), ChooseReplacements)


@pytest.mark.parametrize("error", [UnauthorizedAccessError("key"), IllegalOperationError("v2")])
def test_some_errors_end_the_writer_and_close_the_ledger(error: BookKeeperError) -> None:
    writer = _writer()
    _add(writer, 3)
    failed, write = writer.failed(A, 1, error)
    assert failed == Failed(0, 2, error)
    assert isinstance(write, WriteMetadata)
    assert writer.state is WriterState.CLOSING


def test_a_fenced_writer_withdraws_without_a_metadata_write() -> None:
    fenced = LedgerFencedError("fenced")
    writer = _writer()
    _add(writer, 2)
    assert writer.failed(A, 0, fenced) == [Failed(0, 1, fenced)]
    assert writer.state is WriterState.WITHDRAWN
    assert writer.stored(A, 0, 1) == writer.stored(B, 0, 1) == writer.close() == []


def test_fenced_on_an_entry_already_acknowledged_withdraws_too() -> None:
    writer = _writer()
    _add(writer)
    writer.stored(A, 0, 0)
    writer.stored(B, 0, 0)
    assert writer.failed(C, 0, LedgerFencedError("fenced")) == []
    assert writer.state is WriterState.WITHDRAWN


def test_fenced_during_a_change_withdraws_and_its_result_is_ignored() -> None:
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    writer.replacements_chosen({2: D})
    assert _of(writer.failed(A, 0, LedgerFencedError("fenced")), Failed)
    assert writer.metadata_written(1) == []
    assert writer.state is WriterState.WITHDRAWN


def test_a_metadata_store_that_is_away_during_a_change_ends_the_writer() -> None:
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    writer.replacements_chosen({2: D})
    away = MetadataUnreachableError("away")
    failed, write = writer.metadata_failed(away)
    assert failed == Failed(0, 0, away)
    assert writer.metadata_failed(away) == [CloseDone(away)]
    assert isinstance(write, WriteMetadata)


def test_close_fails_what_is_pending_and_stores_lac_and_length() -> None:
    writer = _writer()
    writer.add([b"abc", b"de", b"f"])
    writer.stored(A, 0, 2)
    writer.stored(B, 0, 1)
    failed, write = writer.close()
    assert (failed.first_entry_id, failed.last_entry_id) == (2, 2)
    assert (write.metadata.last_entry_id, write.metadata.length) == (1, 5)
    assert writer.close() == []
    assert writer.metadata_written(1) == [CloseDone(None)]
    assert writer.length == 5


def test_close_during_a_change_waits_for_its_write() -> None:
    """Or the change could land after the close. Its ensemble may stay, without any entry."""
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    (change,) = writer.replacements_chosen({2: D})
    (failed,) = writer.close()
    assert isinstance(failed, Failed)
    (write,) = writer.metadata_written(1)
    assert write == WriteMetadata(change.metadata.with_closed(EntryId(-1), 0), 1)
    assert writer.metadata_written(2) == [CloseDone(None)]


def test_close_while_replacements_are_looked_for_does_not_wait() -> None:
    writer = _writer()
    _add(writer)
    writer.failed(C, 0, LOST)
    assert _of(writer.close(), WriteMetadata)
    assert writer.replacements_chosen({2: D}) == []


def test_a_close_that_finds_its_own_end_succeeds_and_any_other_is_an_error() -> None:
    """The second is how a writer learns that another closed its ledger elsewhere (#4812)."""
    for last, length, error in ((-1, 0, type(None)), (4, 35, MetadataVersionError)):
        writer = _writer()
        writer.close()
        closed = writer.metadata.with_closed(EntryId(last), length)
        (done,) = writer.metadata_conflict(Versioned(closed, 9))
        assert isinstance(done.error, error)


def test_a_close_may_overtake_a_recovery() -> None:
    """The writer knows its exact end and has failed everything beyond it."""
    writer = _writer()
    writer.close()
    marked = Versioned(writer.metadata.with_state(MetadataState.IN_RECOVERY), 4)
    (write,) = writer.metadata_conflict(marked)
    assert (write.version, write.metadata.closed) == (4, True)


def test_an_abandoned_writer_writes_no_metadata() -> None:
    writer = _writer()
    _add(writer)
    timeout = AddEntryQuorumTimeoutError("late")
    assert writer.abandon(timeout) == [Failed(0, 0, timeout)]
    assert writer.close() == []


def test_a_delayed_change_waits_until_an_entry_cannot_reach_its_quorum() -> None:
    writer = _writer(delay_ensemble_change=True)
    _add(writer)
    assert writer.bookie_failed(C, LOST) == []
    assert _sent(_add(writer)) == {A: [1], B: [1], C: [1]}
    (change,) = writer.bookie_failed(B, LOST)
    assert change.failed == {1: B, 2: C}
    assert writer.state is WriterState.CHANGING


def test_a_delayed_change_forgets_failures_of_entries_that_are_acknowledged() -> None:
    writer = _writer(delay_ensemble_change=True)
    _add(writer)
    assert writer.failed(C, 0, LOST) == []
    writer.stored(A, 0, 0)
    assert writer.stored(B, 0, 0) == [Acked(0, 0)]
    _add(writer)
    assert writer.failed(B, 1, LOST) == []
    writer.stored(A, 1, 1)
    assert writer.stored(C, 1, 1) == [Acked(1, 1)]


def test_a_delayed_change_replaces_a_read_only_bookie_at_once() -> None:
    writer = _writer(delay_ensemble_change=True)
    _add(writer)
    (change,) = writer.failed(C, 0, WriteOnReadOnlyBookieError("full"))
    assert change.failed == {2: C}


def test_a_delayed_change_of_a_striped_ledger_looks_at_every_write_set() -> None:
    writer = _writer((A, B, C, D), 2, 1, delay_ensemble_change=True)
    _add(writer, 4)
    assert writer.bookie_failed(A, LOST) == []
    assert writer.bookie_failed(C, LOST) == []  # the opposite one
    (change,) = writer.bookie_failed(B, LOST)
    assert change.failed == {0: A, 1: B, 2: C}


@pytest.mark.parametrize("changing", [False, True])
def test_an_add_without_its_quorum_in_time_ends_the_writer(changing: bool) -> None:
    writer = _writer()
    _add(writer)
    writer.stored(A, 0, 0)
    if changing:
        writer.bookie_failed(B, LOST)
    failed, write = writer.quorum_timed_out()
    assert isinstance(failed.error, AddEntryQuorumTimeoutError)
    assert write.metadata.last_entry_id == -1
    assert writer.quorum_timed_out() == []


def test_deferred_adds_are_confirmed_by_a_force_and_never_change_the_ensemble() -> None:
    writer = _writer(deferred_sync=True)
    assert writer.force_point() is None
    writer.add([b"abc", b"de"])
    writer.stored(A, 0, 0)
    assert writer.stored(B, 0, 0) == [Acked(0, 0)]
    assert writer.last_add_confirmed == -1
    point = writer.force_point()
    assert point is not None
    assert (point.entry_id, point.length, point.ensemble) == (0, 3, (A, B, C))
    writer.stored(A, 1, 1)
    writer.stored(B, 1, 1)
    writer.forced(point)
    assert writer.last_add_confirmed == 0
    _add(writer)
    failed, write = writer.failed(C, 2, LOST)
    assert isinstance(failed.error, WriteError)
    assert (write.metadata.last_entry_id, write.metadata.length) == (0, 3)


def test_a_force_that_ends_behind_the_close_is_refused() -> None:
    """Its entries are cut off: success would be a lie."""
    writer = _writer(deferred_sync=True)
    _add(writer)
    writer.stored(A, 0, 0)
    writer.stored(B, 0, 0)
    point = writer.force_point()
    assert point is not None
    (write,) = writer.close()
    with pytest.raises(LedgerClosedError, match="ends at entry -1"):
        writer.forced(point)
    assert writer.metadata_written(1) == [CloseDone(None)]
    assert (write.metadata.last_entry_id, writer.last_add_confirmed) == (-1, -1)


def test_a_bookie_lost_before_the_force_ends_a_deferred_writer() -> None:
    """It acknowledged what it had not synced; back again it would answer the force."""
    writer = _writer(deferred_sync=True)
    _add(writer)
    for bookie_id in (A, B, C):
        writer.stored(bookie_id, 0, 0)
    point = writer.force_point()
    assert point is not None
    (write,) = writer.bookie_failed(A, LOST)
    assert isinstance(writer.error, WriteError)
    assert write.metadata.last_entry_id == -1
    with pytest.raises(LedgerClosedError):
        writer.forced(point)


def test_a_bookie_lost_before_anything_was_acknowledged_ends_a_deferred_writer() -> None:
    """It has answered everything, others have not: their answers must not acknowledge what it lost."""
    writer = _writer((A, B), 2, 2, deferred_sync=True)
    _add(writer)
    writer.stored(A, 0, 0)
    failed, _ = writer.bookie_failed(A, LOST)
    assert isinstance(failed.error, WriteError)
    assert writer.stored(B, 0, 0) == []


def test_a_bookie_lost_after_the_force_is_no_matter() -> None:
    writer = _writer(deferred_sync=True)
    _add(writer)
    for bookie_id in (A, B, C):
        writer.stored(bookie_id, 0, 0)
    point = writer.force_point()
    assert point is not None
    writer.forced(point)
    assert writer.bookie_failed(A, LOST) == []
    assert writer.state is WriterState.OPEN


def test_an_advanced_writer_takes_any_id_once_and_a_gap_holds_back_the_rest() -> None:
    writer = _writer(advanced=True)
    _, actions = writer.add([b"two"], EntryId(2))
    assert _sent(actions) == {A: [2], B: [2], C: [2]}
    writer.stored(A, 2, 2)
    assert writer.stored(B, 2, 2) == []
    with pytest.raises(DuplicateEntryIdError):
        writer.add([b"two"], EntryId(2))
    with pytest.raises(IllegalOperationError):
        writer.add([b"x"])
    with pytest.raises(IncorrectParameterError):
        writer.add([b"x", b"y"], EntryId(7))
    for entry_id in (1, 0):
        writer.add([b"one"], EntryId(entry_id))
    writer.stored(A, 0, 1)
    assert writer.stored(B, 0, 1) == [Acked(0, 2)]
    with pytest.raises(DuplicateEntryIdError):
        writer.add([b"x"], EntryId(1))


def test_a_gap_of_the_caller_makes_no_bookie_late() -> None:
    writer = _writer(advanced=True)
    writer.add([b"five"], EntryId(5))
    for bookie_id in (A, B):
        writer.stored(bookie_id, 5, 5)
    assert writer.behind(writer.admitted) == [C]


def test_behind_names_who_has_not_stored_the_first_adds() -> None:
    writer = _writer()
    _add(writer, 4)
    mark = writer.admitted
    _add(writer, 4)
    writer.stored(A, 0, 7)
    writer.stored(B, 0, 3)
    writer.stored(C, 0, 2)
    assert writer.behind(mark) == [C]
    assert writer.behind(writer.admitted) == [B, C]


def test_the_explicit_lac_is_due_once_if_no_add_carried_it() -> None:
    writer = _writer()
    assert writer.explicit_lac_due() is None
    _add(writer)
    writer.stored(A, 0, 0)
    writer.stored(B, 0, 0)
    assert writer.explicit_lac_due() == 0
    assert writer.explicit_lac_due() is None
    _add(writer)
    writer.stored(A, 1, 1)
    writer.stored(B, 1, 1)
    _add(writer)
    assert writer.explicit_lac_due() is None
