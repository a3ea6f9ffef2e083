"""Ledger metadata beyond the golden vectors."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError, MetadataSerializationError
from bkctl.formats import ledger_metadata
from bkctl.types import BookieId, DigestType, EntryId, LedgerMetadata, MetadataState, Segment

A, B, C = (BookieId(f"{name}:3181") for name in "abc")
PLAIN = LedgerMetadata(3, 2, 2, (Segment(EntryId(0), (A, B, C)),), password=b"secret")
HEADER = b"BookieMetadataFormatVersion\t"


@st.composite
def any_metadata(draw: st.DrawFn) -> LedgerMetadata:
    ensemble_size = draw(st.integers(1, 5))
    write_quorum_size = draw(st.integers(1, ensemble_size))
    bookie = st.from_regex(r"[a-z0-9.\-]{1,12}(:[0-9]{1,5})?", fullmatch=True).map(BookieId)
    ensemble = st.lists(bookie, min_size=ensemble_size, max_size=ensemble_size).map(tuple)
    starts = draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4, unique=True).map(sorted))
    closed = draw(st.booleans())
    format_version = draw(st.integers(2, 3))
    return LedgerMetadata(
        ensemble_size=ensemble_size,
        write_quorum_size=write_quorum_size,
        ack_quorum_size=draw(st.integers(1, write_quorum_size)),
        segments=tuple(Segment(EntryId(start), draw(ensemble)) for start in starts),
        state=MetadataState.CLOSED if closed else draw(st.sampled_from(list(MetadataState)[:2])),
        length=draw(st.integers(0, 2**63 - 1)) if closed else 0,
        last_entry_id=EntryId(draw(st.integers(-1, 2**63 - 1)) if closed else -1),
        digest_type=draw(st.sampled_from(DigestType)),
        password=draw(st.binary(max_size=20)),
        ctime_ms=draw(st.none() | st.integers(-1, 2**62)),
        custom_metadata=draw(st.dictionaries(st.text(max_size=10), st.binary(max_size=10), max_size=3)),
        creator_token=draw(st.integers(0, 2**63 - 2)) if format_version == 3 else 0,
        format_version=format_version,
    )


@settings(max_examples=100, deadline=None)
@given(any_metadata())
def test_whatever_is_written_is_read_back(metadata: LedgerMetadata) -> None:
    assert ledger_metadata.decode(ledger_metadata.encode(metadata)) == metadata


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"1\n", b"2\n", b"3\n"]), st.binary(max_size=60))
def test_any_body_is_read_or_refused(version: bytes, body: bytes) -> None:
    try:
        ledger_metadata.decode(HEADER + version + body)
    except CorruptDataError:
        pass


def test_length_and_last_entry_count_only_when_closed() -> None:
    untidy = replace(PLAIN, length=7, last_entry_id=EntryId(3))
    assert ledger_metadata.decode(ledger_metadata.encode(untidy)) == PLAIN
    closed = PLAIN.with_closed(EntryId(3), 7)
    assert ledger_metadata.decode(ledger_metadata.encode(closed)) == closed


@pytest.mark.parametrize(
    "change",
    [
        {"password": None},
        {"digest_type": None},
        {"ack_quorum_size": 3},
        {"ack_quorum_size": 0},
        {"segments": ()},
        {"segments": (Segment(EntryId(0), (A, B)),)},
        {"segments": (Segment(EntryId(0), (A, B, BookieId("c d"))),)},
        {"segments": PLAIN.segments * 2},
        {"format_version": 1, "custom_metadata": {"k": b"v"}},
        {"format_version": 1, "ack_quorum_size": 1},
        {"state": MetadataState.CLOSED, "length": -1},
    ],
)
def test_metadata_that_java_could_not_use_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(MetadataSerializationError):
        ledger_metadata.encode(replace(PLAIN, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"2\n3\n0\n",  # no segment
        b"2\n3\n0\n0\ta\tb\n",  # ensemble too small
        b"x\n3\n0\n0\ta\tb\tc\n",
        b"2\n3\n0\n0x0\ta\tb\tc\n",
        b"2\n3\n99999999999999999999\n0\ta\tb\tc\n",
        "2\n3\n0\n٣\ta\tb\tc\n".encode(),  # a digit, but not of ours
        b"2\n3\n0\n0\ta\tb\t\xff\n",
    ],
)
def test_broken_format_1_is_refused(body: bytes) -> None:
    with pytest.raises(CorruptDataError):
        ledger_metadata.decode(HEADER + b"1\n" + body)
