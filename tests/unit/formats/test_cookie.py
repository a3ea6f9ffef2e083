"""Cookies beyond the golden vectors."""

import pytest

from bkctl.errors import BadInputError, CorruptDataError
from bkctl.formats.cookie import Cookie, decode, differences, make_cookie, split_directories

STORED = make_cookie("b:1", ["/j"], ["/l1", "/l2"], "id-1")


def test_every_field_that_differs_is_named() -> None:
    configured = make_cookie("b:2", ["/k"], ["/l1"], None, ["/i"])
    found = differences(configured, STORED, allow_expansion=False)
    assert [d.field for d in found] == ["bookieHost", "journalDir", "instanceId", "ledgerDirs", "indexDirs"]
    assert str(found[2]) == "instanceId: configured None, stored 'id-1'"


def test_expansion_adds_directories_and_takes_none_away() -> None:
    more = make_cookie("b:1", ["/j"], ["/l3", "/l2", "/l1"], "id-1")
    assert differences(more, STORED, allow_expansion=True) == []
    assert [d.field for d in differences(STORED, more, allow_expansion=True)] == ["ledgerDirs", "indexDirs"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"five\n",
        b"1\n",
        b"-5\n",
        b"9999999999999999\n",
        b"3\nb:1\n/j",
        b"5\n",
        b'5\nbookieHost: "b:1"\n',
        b'5\nbookieHost: "b:1" journalDir: 3',
        b"5\n" + b"#" * (1 << 20),
    ],
)
def test_a_broken_cookie_is_an_error_not_a_missing_one(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match="cookie"):
        decode(data)


@pytest.mark.parametrize("stored", ["", "x\t/a", "2\t/a", "/a", "1", "٣\t/a\t/b\t/c", "9" * 5000])
def test_directories_that_do_not_match_their_count_are_refused(stored: str) -> None:
    with pytest.raises(CorruptDataError):
        split_directories(stored)


def test_names_that_would_be_read_as_two_are_refused() -> None:
    with pytest.raises(BadInputError):
        make_cookie("b:1", ["/a,b"], ["/l"])
    with pytest.raises(BadInputError):
        make_cookie("b:1", ["/j"], ["/a\tb"])


def test_a_cookie_of_layout_2_never_fits() -> None:
    old = decode(b"2")
    assert old == Cookie("", "", "", layout_version=2)
    assert differences(STORED, old, allow_expansion=True)
