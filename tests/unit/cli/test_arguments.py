"""How ledger ids, ranges, quorums and passwords are spelled."""

from pathlib import Path

import pytest

from bkctl.cli.arguments import (
    LedgerRange,
    Replication,
    chosen_replication,
    parse_custom_metadata,
    parse_digest,
    parse_ledger_id,
    parse_ledger_range,
    read_password,
)
from bkctl.errors import BadInputError
from bkctl.types import DigestType, EntryId, LedgerId


@pytest.mark.parametrize(
    ("text", "ledger_id"),
    [
        ("0", 0),
        ("42", 42),
        ("0x2a", 42),
        ("0X2A", 42),
        ("00000000-0000-0000-0000-00000000002a", 42),
        ("9223372036854775807", 2**63 - 1),
        ("007", 7),
    ],
)
def test_ledger_ids(text: str, ledger_id: int) -> None:
    assert parse_ledger_id(text) == ledger_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "forty",
        "0x",
        "4 2",
        "9223372036854775808",
        "10000000-0000-0000-0000-00000000002a",
        "٤٢",
        "1_000",
    ],
)
def test_what_is_no_ledger_id_is_refused(text: str) -> None:
    with pytest.raises(BadInputError):
        parse_ledger_id(text)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("0x2a", 0, None), ("42:7", 7, 7), ("42:0-99", 0, 99), ("42:5-", 5, None), ("42:9-9", 9, 9)],
)
def test_ranges(text: str, first: int, last: int | None) -> None:
    expected = LedgerRange(LedgerId(42), EntryId(first), None if last is None else EntryId(last))
    assert parse_ledger_range(text) == expected


@pytest.mark.parametrize(
    "text", ["42:", "42:9-5", "42:-5", "42:a", "42:0-9223372036854775808", "x:1", "42:1-2-3"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(BadInputError):
        parse_ledger_range(text)


@pytest.mark.parametrize(
    ("given", "bookies", "expected"),
    [
        ((None, None, None), 5, (3, 3, 2)),
        ((None, None, None), 2, (2, 2, 2)),
        ((None, None, None), 0, (1, 1, 1)),
        ((5, None, None), 9, (5, 5, 3)),
        ((None, 2, None), 9, (3, 2, 2)),
        ((None, 4, 2), 9, (4, 4, 2)),
        ((3, 2, 1), 9, (3, 2, 1)),
    ],
)
def test_quorums_that_are_not_given_follow(
    given: tuple[int | None, ...], bookies: int, expected: tuple[int, int, int]
) -> None:
    assert chosen_replication(*given, bookies) == Replication(*expected)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("given", [(2, 3, 2), (3, 2, 3), (1, None, 2)])
def test_quorums_that_exceed_each_other_are_refused(given: tuple[int | None, ...]) -> None:
    with pytest.raises(BadInputError, match="E >= Qw >= Qa"):
        chosen_replication(*given, 3)  # type: ignore[arg-type]


def test_digests_by_name() -> None:
    assert parse_digest("CRC32C") is DigestType.CRC32C
    assert parse_digest("hmac") is parse_digest("mac") is DigestType.MAC
    with pytest.raises(BadInputError, match="crc32c"):
        parse_digest("md5")


def test_custom_metadata_keeps_what_follows_the_first_equals_sign() -> None:
    assert parse_custom_metadata(["a=b=c", "empty=", "bytes=\udcff"]) == {
        "a": b"b=c",
        "empty": b"",
        "bytes": b"\xff",
    }
    assert parse_custom_metadata(None) == {}


@pytest.mark.parametrize("pair", ["a", "=b", ""])
def test_custom_metadata_needs_key_and_value(pair: str) -> None:
    with pytest.raises(BadInputError):
        parse_custom_metadata([pair])


def test_password_comes_from_the_file_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_password(None) is None
    monkeypatch.setenv("BKCTL_LEDGER_PASSWORD", "from env")
    assert read_password(None) == b"from env"
    file = tmp_path / "password"
    for content, password in [
        (b"secret\n", b"secret"),
        (b"a b\r\n", b"a b"),
        (b"\n\n", b"\n"),
        (b"\xff", b"\xff"),
    ]:
        file.write_bytes(content)
        assert read_password(file) == password


def test_password_files_must_be_there_and_small(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot read"):
        read_password(tmp_path / "none")
    (tmp_path / "big").write_bytes(b"x" * 5000)
    with pytest.raises(BadInputError, match="longer"):
        read_password(tmp_path / "big")
