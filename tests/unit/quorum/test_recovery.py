"""The recovery machine, event by event. Sources: spec replication sections 13, 15, 17.2."""

import pytest

from bkctl.errors import (
    BookieHandleNotAvailableError,
    BookKeeperError,
    DataUnknownError,
    LedgerRecoveryError,
    NoSuchEntryError,
    NoSuchLedgerError,
    NoSuchLedgerOnMetadataServerError,
    NotEnoughBookiesError,
    RequestTimeoutError,
    UnauthorizedAccessError,
    WriteError,
)
from bkctl.formats.entry import Digester, read_header
from bkctl.formats.request_v2 import HIGH_PRIORITY, RECOVERY_ADD
from bkctl.quorum.actions import (
    Action,
    ChooseReplacements,
    FenceBookie,
    ReadForRecovery,
    RecoveryAborted,
    RecoveryDone,
    RecoveryOutdated,
    SendAdds,
    WriteMetadata,
)
from bkctl.quorum.pending import entries_in
from bkctl.quorum.recovery import WINDOW_ENTRIES, LedgerRecovery, RecoveryState
from bkctl.types import (
    BookieId,
    BookieIndex,
    DigestType,
    EntryId,
    LedgerId,
    LedgerMetadata,
    MetadataState,
    Segment,
    Versioned,
)

A, B, C, D = (BookieId(name) for name in "abcd")
LEDGER_ID = LedgerId(5)
DIGESTER = Digester(DigestType.CRC32, b"")
LOST = BookieHandleNotAvailableError("lost")
NONE = NoSuchEntryError("none")
NO_LEDGER = NoSuchLedgerError("none")
OPEN = LedgerMetadata(3, 3, 2, (Segment(EntryId(0), (A, B, C)),))


def _entry(entry_id: int, lac: int) -> bytes:
    """Entries have 10 bytes each."""
    (body,), _ = DIGESTER.pack_entries(LEDGER_ID, entry_id, lac, 10 * entry_id, [b"0123456789"])
    return body


def _of(actions: list[Action], kind: type) -> list:
    return [action for action in actions if isinstance(action, kind)]


def _fencing(metadata: LedgerMetadata = OPEN, **options: bool) -> LedgerRecovery:
    """A recovery that has marked the metadata and asked all bookies of the last ensemble."""
    recovery = LedgerRecovery(LEDGER_ID, Versioned(metadata, 0), DIGESTER, **options)
    (write,) = recovery.start()
    assert write == WriteMetadata(metadata.with_state(MetadataState.IN_RECOVERY), 0)
    fences = recovery.metadata_written(1)
    assert fences == [FenceBookie(BookieIndex(i), b) for i, b in enumerate(metadata.last_segment.ensemble)]
    return recovery


def _reading(last_entry_id: int = 4, lac: int = 3) -> LedgerRecovery:
    """A recovery whose bookies A and B have entries up to `last_entry_id`."""
    recovery = _fencing()
    recovery.fenced(BookieIndex(0), _entry(last_entry_id, lac))
    recovery.fenced(BookieIndex(1), _entry(last_entry_id, lac))
    assert recovery.state is RecoveryState.REWRITING
    return recovery


def _read(recovery: LedgerRecovery, entry_id: int, *answers: bytes | BookKeeperError) -> list[Action]:
    """Answers of the bookies at 0, 1, ... for one entry."""
    actions: list[Action] = []
    for index, answer in enumerate(answers):
        actions += recovery.entry_read(BookieIndex(index), EntryId(entry_id), answer)
    return actions


def test_a_closed_ledger_is_left_alone() -> None:
    closed = Versioned(OPEN.with_closed(EntryId(7), 70), 3)
    assert LedgerRecovery(LEDGER_ID, closed, DIGESTER).start() == [RecoveryDone(closed)]


def test_a_ledger_that_is_marked_already_is_not_marked_again() -> None:
    marked = Versioned(OPEN.with_state(MetadataState.IN_RECOVERY), 3)
    assert len(_of(LedgerRecovery(LEDGER_ID, marked, DIGESTER).start(), FenceBookie)) == 3


def test_the_tail_is_rewritten_and_the_ledger_closed_in_one_write() -> None:
    """1. LAC 3 is known, entry 4 is found.  2. Nobody has entry 5: the end.  3. Entry 4 is stored
    again by two: close."""
    recovery = _reading()
    (send, *_) = _of(_read(recovery, 4, _entry(4, 3)), SendAdds)
    ((_, body),) = entries_in(send.frames)
    assert read_header(body) == (LEDGER_ID, 4, 3, 50)
    assert int.from_bytes(send.frames[6:8]) == RECOVERY_ADD | HIGH_PRIORITY
    assert _read(recovery, 5, NONE, NO_LEDGER) == []
    assert recovery.stored(A, 4, 4) == []
    (write,) = recovery.stored(C, 4, 4)
    assert write == WriteMetadata(OPEN.with_state(MetadataState.IN_RECOVERY).with_closed(EntryId(4), 50), 1)
    (done,) = recovery.metadata_written(2)
    assert done.metadata == Versioned(write.metadata, 2)
    assert recovery.entries_rewritten == 1


def test_reads_go_to_the_whole_write_set_and_ahead_within_the_window() -> None:
    recovery = _fencing()
    recovery.fenced(BookieIndex(0), NONE)
    reads = recovery.fenced(BookieIndex(1), NO_LEDGER)
    assert sorted(read.bookie_id for read in reads) == [A, B, C]
    assert all(read.entry_ids == tuple(range(WINDOW_ENTRIES)) for read in reads)
    more = _of(_read(recovery, 0, _entry(0, -1)), ReadForRecovery)
    assert more == []  # entry 0 is not stored yet
    recovery.stored(A, 0, 0)
    (one, *_) = _of(recovery.stored(B, 0, 0), ReadForRecovery)
    assert one.entry_ids == (WINDOW_ENTRIES,)


def test_2614_an_entry_on_one_bookie_is_kept_whatever_the_others_say() -> None:
    recovery = _reading()
    assert _of(_read(recovery, 4, NONE, _entry(4, 3)), SendAdds)


def test_1067_enough_negatives_decide_without_the_last_bookie() -> None:
    recovery = _reading(last_entry_id=3, lac=2)
    _read(recovery, 3, _entry(3, 2))
    _read(recovery, 4, NONE, NONE)
    assert recovery.state is RecoveryState.DRAINING


@pytest.mark.parametrize("unknown", [LOST, RequestTimeoutError("late"), DataUnknownError("limbo")])
def test_bp46_an_unknown_answer_is_no_negative_one(unknown: BookKeeperError) -> None:
    """E=3, Qa=2: one negative and two unknown leave the ledger IN_RECOVERY."""
    recovery = _reading()
    (aborted,) = _read(recovery, 4, NONE, unknown, unknown)
    assert aborted == RecoveryAborted(unknown)


def test_a_damaged_entry_is_an_unknown_answer() -> None:
    damaged = _entry(4, 3)[:-1] + b"!"
    recovery = _reading()
    (aborted,) = _read(recovery, 4, damaged, NONE, damaged)
    assert isinstance(aborted, RecoveryAborted)


def test_a_bookie_that_answers_twice_counts_once() -> None:
    recovery = _reading()
    for _ in range(3):
        assert recovery.entry_read(BookieIndex(0), EntryId(4), NONE) == []
    assert recovery.state is RecoveryState.REWRITING


def test_2615_entries_of_earlier_segments_are_not_recovered_again() -> None:
    """The last segment is young, its bookies know of no LAC: reading begins where it begins."""
    metadata = OPEN.with_segments((Segment(EntryId(0), (A, B, C)), Segment(EntryId(10), (A, B, D))))
    recovery = _fencing(metadata)
    recovery.fenced(BookieIndex(0), _entry(2, 1))
    reads = recovery.fenced(BookieIndex(2), NONE)
    assert all(read.entry_ids[0] == 10 for read in _of(reads, ReadForRecovery))


def test_the_length_of_an_end_that_was_not_rewritten_is_read_from_its_segment() -> None:
    """1. The last segment is empty: the end is entry 9, of the segment before.  2. It is read there."""
    metadata = OPEN.with_segments((Segment(EntryId(0), (A, B, C)), Segment(EntryId(10), (A, B, D))))
    recovery = _fencing(metadata)
    recovery.fenced(BookieIndex(1), NONE)
    recovery.fenced(BookieIndex(2), NONE)
    reads = _read(recovery, 10, NONE, NONE)
    assert [(read.bookie_id, read.entry_ids) for read in reads] == [(A, (9,)), (B, (9,)), (C, (9,))]
    assert recovery.entry_read(BookieIndex(0), EntryId(9), LOST) == []
    (write,) = recovery.entry_read(BookieIndex(2), EntryId(9), _entry(9, 8))
    assert (write.metadata.last_entry_id, write.metadata.length) == (9, 100)


def test_a_confirmed_end_that_nobody_has_any_more_is_not_closed_over() -> None:
    metadata = OPEN.with_segments((Segment(EntryId(0), (A, B, C)), Segment(EntryId(10), (A, B, D))))
    recovery = _fencing(metadata)
    recovery.fenced(BookieIndex(1), NONE)
    recovery.fenced(BookieIndex(2), NONE)
    _read(recovery, 10, NONE, NONE)
    (aborted,) = _read(recovery, 9, NONE, NONE, LOST)
    assert isinstance(aborted.error, LedgerRecoveryError)


def test_an_empty_ledger_is_closed_without_entries() -> None:
    recovery = _fencing()
    recovery.fenced(BookieIndex(0), NO_LEDGER)
    recovery.fenced(BookieIndex(2), NO_LEDGER)
    (write,) = _read(recovery, 0, NONE, NONE)
    assert (write.metadata.last_entry_id, write.metadata.length) == (-1, 0)


def test_fencing_needs_an_answer_from_every_possible_ack_quorum() -> None:
    recovery = _fencing()
    assert recovery.fenced(BookieIndex(0), LOST) == []
    assert recovery.fenced(BookieIndex(1), NONE) == []
    assert recovery.state is RecoveryState.FENCING
    assert _of(recovery.fenced(BookieIndex(2), NONE), ReadForRecovery)
    failing = _fencing()
    failing.fenced(BookieIndex(0), LOST)
    assert failing.fenced(BookieIndex(1), LOST) == []
    assert failing.fenced(BookieIndex(2), NONE) == [RecoveryAborted(LOST)]


def test_a_damaged_answer_fences_but_gives_no_lac() -> None:
    recovery = _fencing()
    recovery.fenced(BookieIndex(0), _entry(9, 8)[:-1] + b"!")
    reads = recovery.fenced(BookieIndex(1), _entry(4, 3))
    assert reads[0].entry_ids[0] == 4
    assert recovery.lac_by_bookie[B] == 3
    assert isinstance(recovery.lac_by_bookie[A], BookKeeperError)


def test_bk135_a_wrong_password_stops_the_recovery() -> None:
    wrong = UnauthorizedAccessError("key")
    assert _fencing().fenced(BookieIndex(0), wrong) == [RecoveryAborted(wrong)]


def test_bk355_bk581_a_replaced_bookie_stays_local_until_the_close() -> None:
    """1. C fails while entry 4 is rewritten: D gets it; no metadata is written.  2. Reads still go to
    the old ensemble.  3. The close writes the new segment."""
    recovery = _reading()
    _read(recovery, 4, _entry(4, 3))
    (choose,) = recovery.failed(C, 4, WriteError("disk"))
    assert choose == ChooseReplacements({2: C}, frozenset({A, B, C}))
    actions = recovery.replacements_chosen({BookieIndex(2): D})
    assert not _of(actions, WriteMetadata)
    assert [send.bookie_id for send in _of(actions, SendAdds)] == [D]
    assert recovery.stored(A, 4, 4) == []
    reads = _of(recovery.stored(D, 4, 4), ReadForRecovery)
    assert sorted(read.bookie_id for read in reads) == [A, B, C]
    (write,) = _read(recovery, 5, NONE, NONE)
    assert write.metadata.segments == (Segment(0, (A, B, C)), Segment(4, (A, B, D)))


def test_a_bookie_without_replacement_is_done_without_while_an_ack_quorum_is_left() -> None:
    recovery = _reading()
    _read(recovery, 4, _entry(4, 3))
    _read(recovery, 5, NONE, NONE)
    recovery.bookie_failed(C, LOST)
    assert recovery.replacements_chosen({}) == []
    assert recovery.failed(C, 4, LOST) == []
    recovery.stored(A, 4, 4)
    recovery.failed(B, 4, LOST)
    (aborted,) = recovery.replacements_chosen({})
    assert isinstance(aborted.error, NotEnoughBookiesError)


def test_5d69fdd_the_lac_of_rewritten_entries_never_advances() -> None:
    recovery = _reading(last_entry_id=5)
    _read(recovery, 4, _entry(4, 3))
    recovery.stored(A, 4, 4)
    recovery.stored(B, 4, 4)
    (send, *_) = _of(_read(recovery, 5, _entry(5, 3)), SendAdds)
    ((_, body),) = entries_in(send.frames)
    assert read_header(body).lac == 3


def test_entries_after_the_first_that_is_absent_are_dropped() -> None:
    recovery = _reading()
    assert _of(_read(recovery, 6, _entry(6, 3)), SendAdds) == []
    _read(recovery, 4, _entry(4, 3))
    _read(recovery, 5, NONE, NONE)
    recovery.stored(A, 4, 4)
    (write,) = recovery.stored(B, 4, 4)
    assert write.metadata.last_entry_id == 4


def _closing() -> tuple[LedgerRecovery, WriteMetadata]:
    recovery = _reading()
    _read(recovery, 4, _entry(4, 3))
    _read(recovery, 5, NONE, NONE)
    recovery.stored(A, 4, 4)
    (write,) = recovery.stored(B, 4, 4)
    return recovery, write


def test_whoever_loses_the_race_adopts_the_end_of_the_winner() -> None:
    recovery, _ = _closing()
    rival = Versioned(recovery.metadata.with_closed(EntryId(3), 40), 9)
    assert recovery.metadata_conflict(rival) == [RecoveryDone(rival)]


def test_a_close_whose_reply_was_lost_is_recognised() -> None:
    recovery, write = _closing()
    stored = Versioned(write.metadata, 2)
    assert recovery.metadata_conflict(stored) == [RecoveryDone(stored)]


def test_bk584_segments_that_changed_meanwhile_are_not_overwritten() -> None:
    recovery, _ = _closing()
    current = Versioned(recovery.metadata.with_segments((Segment(EntryId(0), (A, B, D)),)), 6)
    assert recovery.metadata_conflict(current) == [RecoveryOutdated(current)]
    assert recovery.stored(A, 4, 4) == []


def test_a_conflict_without_a_change_writes_again() -> None:
    recovery, write = _closing()
    (again,) = recovery.metadata_conflict(Versioned(recovery.metadata, 5))
    assert again == WriteMetadata(write.metadata, 5)


def test_a_ledger_deleted_meanwhile_aborts() -> None:
    recovery, _ = _closing()
    gone = NoSuchLedgerOnMetadataServerError("gone")
    assert recovery.metadata_failed(gone) == [RecoveryAborted(gone)]


def test_a_conflict_while_marking_looks_again() -> None:
    recovery = LedgerRecovery(LEDGER_ID, Versioned(OPEN, 0), DIGESTER)
    recovery.start()
    (write,) = recovery.metadata_conflict(Versioned(OPEN, 1))
    assert write.version == 1
    closed = Versioned(OPEN.with_closed(EntryId(1), 20), 2)
    assert recovery.metadata_conflict(closed) == [RecoveryDone(closed)]


def test_fence_only_ends_when_enough_bookies_are_fenced() -> None:
    recovery = _fencing(fence_only=True)
    recovery.fenced(BookieIndex(0), NONE)
    (done,) = recovery.fenced(BookieIndex(1), NONE)
    assert done.metadata.value.state is MetadataState.IN_RECOVERY
