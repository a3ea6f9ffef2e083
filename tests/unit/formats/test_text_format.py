"""The text form: what must be read, what must be refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError
from bkctl.formats import text_format
from bkctl.formats.ledger_metadata import LEDGER_METADATA
from bkctl.formats.message import Field, Kind, Message, Schema
from tests.unit.formats.test_message import messages

INNER = Schema(Field(1, "name", Kind.STRING))
SCHEMA = Schema(
    Field(1, "text", Kind.STRING),
    Field(2, "raw", Kind.BYTES),
    Field(3, "small", Kind.INT32),
    Field(4, "number", Kind.INT64, repeated=True),
    Field(5, "color", Kind.ENUM, names={"RED": 1, "BLUE": 2}),
    Field(6, "inner", Kind.MESSAGE, repeated=True, schema=INNER),
)


def parse(text: str) -> Message:
    """Without the repeated fields that are empty."""
    return {name: value for name, value in text_format.parse(SCHEMA, text.encode()).items() if value != []}


@settings(max_examples=100, deadline=None)
@given(messages(LEDGER_METADATA))
def test_what_is_written_is_read_back(fields: Message) -> None:
    text = text_format.write(LEDGER_METADATA, fields)
    assert text.isascii()
    assert text_format.parse(LEDGER_METADATA, text.encode()) == fields


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# only a comment", {}),
        ("text: 'a' \"b\"\n'c'", {"text": "abc"}),
        ("text:'é'", {"text": "é"}),
        (r"raw: '\x41\x4\101\1\u00e9\?\v\a'", {"raw": b"A\x04A\x01\xc3\xa9?\x0b\x07"}),
        ("small: 0x1F; number: -0x1, number: 017", {"small": 31, "number": [-1, 15]}),
        ("number: [1, 2, 3] number: [] number: 4", {"number": [1, 2, 3, 4]}),
        ("number: - 9223372036854775808", {"number": [-(2**63)]}),
        ("color: BLUE", {"color": 2}),
        ("inner { name: 'a' } inner: < name: 'b' >", {"inner": [{"name": "a"}, {"name": "b"}]}),
        ("inner: [{name: 'a'}, <name: 'b'>]", {"inner": [{"name": "a"}, {"name": "b"}]}),
        ("text: 'a' text: 'b'", {"text": "b"}),
        ("new: 1.5e3 new { deep { x: [1, 'a'] } y: WORD } new: <> new: [{}] text: 'a'", {"text": "a"}),
    ],
)
def test_every_spelling_that_java_reads_is_read(text: str, expected: Message) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "text",
        "text 'a'",
        "text: a",
        "text: 'a",
        "text: 'a\nb'",
        r"text: '\q'",
        r"text: '\x'",
        r"text: '\400'",
        r"text: '\ud83d'",
        r"text: '\377'",
        "text: 7",
        "text: ['a']",
        "small: 2147483648",
        "small: -2147483649",
        "small: 1.0",
        "small: 089",
        "small: 99999999999999999999999999999999999999999999",
        "small: 'a'",
        "number: 9223372036854775808",
        "number: [1 2]",
        "number: [1",
        "color: 1",
        "color: GREEN",
        "inner: 1",
        "inner { name: 'a'",
        "inner { name: 'a' >",
        "}",
        "unknown:",
        "unknown: [",
        "\x00",
        "% text: 'a'",
    ],
)
def test_broken_text_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(CorruptDataError, match=r"^line "):
        parse(text)


def test_nesting_is_bounded() -> None:
    assert parse("unknown {" * 32 + "}" * 32) == {}
    with pytest.raises(CorruptDataError, match="nested deeper than 32"):
        parse("unknown {" * 33 + "}" * 33)


def test_the_error_names_the_line() -> None:
    with pytest.raises(CorruptDataError, match=r"^line 3: .* expected, found 'x'"):
        parse("text: 'a'\n# b\nsmall: x\n")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="textraw:;,'\"{}<>[]\\x01 \n#-", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except CorruptDataError:
        pass
