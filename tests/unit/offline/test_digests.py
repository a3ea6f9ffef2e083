"""Digests are told from entries; one flipped bit is found by its CRC."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.formats.entry import DIGEST_BYTES, Digester
from bkctl.offline.digests import DigestCheck, KnownDigests, flipped_bit
from bkctl.types import DigestType
from tests.unit.offline.made_files import PASSWORD, entries_of, flipped


@pytest.mark.parametrize("digest", [DigestType.CRC32C, DigestType.CRC32])
@given(st.data())
def test_every_single_flipped_bit_is_located(digest: DigestType, data: st.DataObject) -> None:
    [entry] = entries_of(5, 1, digest, size=data.draw(st.integers(0, 300)))
    unused = range(32, 36) if digest is DigestType.CRC32 else range(0)  # the upper half of its 8 bytes
    byte = data.draw(st.integers(0, len(entry) - 1).filter(lambda i: i not in unused))
    bit = data.draw(st.integers(0, 7))
    assert flipped_bit(digest, flipped(entry, byte, bit)) == (byte, bit)


def test_more_than_one_flipped_bit_is_not_located() -> None:
    [entry] = entries_of(5, 1)
    assert flipped_bit(DigestType.CRC32C, flipped(flipped(entry, 50), 70)) is None
    assert flipped_bit(DigestType.MAC, flipped(entry, 50)) is None


@pytest.mark.parametrize("digest", DigestType)
def test_type_is_told_by_an_entry(digest: DigestType) -> None:
    [entry] = entries_of(5, 1, digest)
    digester = KnownDigests([b"another", PASSWORD]).recognise(5, 0, entry)
    assert (digester and digester.digest_type) == (None if digest is DigestType.DUMMY else digest)
    without = KnownDigests().recognise(5, 0, entry)
    assert (without is None) == (digest in (DigestType.DUMMY, DigestType.MAC))


@pytest.mark.parametrize("digest", DigestType)
def test_explicit_lac_is_judged_by_its_length(digest: DigestType) -> None:
    packet = Digester(digest, PASSWORD).pack_lac(5, 7)
    assert len(packet) == 16 + DIGEST_BYTES[digest]
    known = KnownDigests()
    assert known.lac_damage(5, packet) == ""
    known_type = known.get(5)
    assert (known_type and known_type.digest_type) == (None if digest is DigestType.MAC else digest)
    assert "no digest makes" in known.lac_damage(5, packet + b"x")
    if digest in (DigestType.CRC32C, DigestType.CRC32):
        assert "does not fit" in known.lac_damage(5, flipped(packet, 3))


def test_entries_before_the_first_good_one_are_judged_in_the_end() -> None:
    entries = entries_of(5, 3)
    entries[0] = flipped(entries[0], 60)
    check = DigestCheck(KnownDigests())
    check.check(5, [0, 1, 2], [1028, 1168, 1308], entries)
    assert (check.good, check.bad) == (2, 0)
    check.settle()
    assert (check.good, check.bad, check.unknown) == (2, 1, 0)
    assert [d.position for d in check.damages] == [1028 + 60]


def test_a_ledger_of_which_nothing_fits_is_unknown_not_bad() -> None:
    check = DigestCheck(KnownDigests())
    check.check(5, [0], [1028], [flipped(entries_of(5, 1)[0], 60)])
    check.check(6, [0], [2000], [b"ids only, short."])
    check.settle()
    assert (check.good, check.bad, check.unknown, check.damages) == (0, 0, 2, [])


def test_entry_with_a_flipped_ledger_id_is_given_back_to_its_ledger() -> None:
    entries = entries_of(5, 2)
    strayed = flipped(entries[1], 6, 3)
    check = DigestCheck(KnownDigests())
    check.check(int.from_bytes(strayed[:8], "big"), [1], [2000], [strayed])
    check.check(5, [0], [1028], entries[:1])
    check.settle()
    assert (check.good, check.bad, check.unknown) == (1, 1, 0)
    assert [(d.position, d.ledger_id) for d in check.damages] == [(2006, 5)]
