"""Seven forms of one result, and what --columns, --sort, --filter and --limit do to it."""

import csv
import io
import json
from typing import Any

import pytest
import yaml

from bkctl.cli.options import GlobalOptions, Output
from bkctl.cli.render import Column, RowWriter, format_bytes, use_color
from bkctl.errors import BadInputError

COLUMNS = [
    Column("ledger_id"),
    Column("state"),
    Column("length", text=format_bytes),
    Column("segments", wide=True),
]
ROWS: list[dict[str, Any]] = [
    {"ledger_id": 7, "state": "CLOSED", "length": 2048, "segments": ["a", "b"]},
    {"ledger_id": 10, "state": "OPEN", "length": None, "segments": []},
    {"ledger_id": 9, "state": "CLOSED", "length": 5, "segments": ["c"]},
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(rows: list[dict[str, Any]], stream: io.StringIO | None = None, **options: Any) -> str:
    stream = stream or io.StringIO()
    writer = RowWriter("LedgerList", COLUMNS, GlobalOptions(**options), stream=stream)
    writer.write(rows)
    writer.end()
    return stream.getvalue()


def ids(**options: Any) -> list[int]:
    return [
        json.loads(line)["ledger_id"] for line in shown(ROWS, output=Output.JSONL, **options).splitlines()
    ]


def test_json_is_one_document() -> None:
    assert json.loads(shown(ROWS, output=Output.JSON)) == {
        "apiVersion": "bkctl/v1",
        "kind": "LedgerList",
        "items": ROWS,
    }


def test_json_without_rows_is_still_a_document() -> None:
    assert json.loads(shown([], output=Output.JSON))["items"] == []


def test_yaml_is_the_same_document_as_json() -> None:
    assert yaml.safe_load(shown(ROWS, output=Output.YAML)) == json.loads(shown(ROWS, output=Output.JSON))


def test_jsonl_has_a_row_per_line() -> None:
    assert [json.loads(line) for line in shown(ROWS, output=Output.JSONL).splitlines()] == ROWS


def test_name_prints_only_the_ids() -> None:
    assert shown(ROWS, output=Output.NAME) == "7\n10\n9\n"


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(shown(ROWS, output=Output.CSV))))
    assert rows[0] == {"ledger_id": "7", "state": "CLOSED", "length": "2048", "segments": '["a", "b"]'}
    assert rows[1]["length"] == ""


def test_csv_without_rows_has_its_head() -> None:
    assert shown([], output=Output.CSV) == "ledger_id,state,length,segments\n"


def test_table_is_aligned_and_has_no_colour_off_a_terminal() -> None:
    assert shown(ROWS).splitlines() == [
        "LEDGER ID  STATE   LENGTH",
        "7          CLOSED  2.0 KiB",
        "10         OPEN    -",
        "9          CLOSED  5 B",
    ]


def test_wide_shows_all_columns() -> None:
    assert shown(ROWS, output=Output.WIDE).splitlines()[1] == "7          CLOSED  2.0 KiB  a,b"


def test_table_of_nothing_is_its_head() -> None:
    assert shown([]) == "LEDGER ID  STATE  LENGTH\n"


def test_a_long_table_streams_after_the_rows_that_set_its_widths() -> None:
    stream = io.StringIO()
    writer = RowWriter("LedgerList", COLUMNS, GlobalOptions(), stream=stream)
    writer.write({"ledger_id": i, "state": "OPEN", "length": 0} for i in range(199))
    assert stream.getvalue() == ""
    writer.write({"ledger_id": i, "state": "OPEN", "length": 0} for i in range(199, 1000))
    assert stream.getvalue().count("\n") == 1001
    writer.end()
    assert stream.getvalue().count("\n") == 1001


def test_flush_shows_the_rows_that_came_so_far() -> None:
    stream = io.StringIO()
    writer = RowWriter("LedgerList", COLUMNS, GlobalOptions(), stream=stream)
    writer.write(ROWS[:1])
    writer.flush()
    assert stream.getvalue().count("\n") == 2
    writer.write(ROWS[1:])
    writer.end()
    assert stream.getvalue().count("\n") == 4


def test_control_characters_of_data_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in shown([{"ledger_id": 1, "state": "\x1b[2Jwiped\nout", "length": 0}])


def test_columns_choose_and_order_in_every_form() -> None:
    columns = ("state", "Ledger-ID")
    assert shown(ROWS, columns=columns).splitlines()[:2] == ["STATE   LEDGER ID", "CLOSED  7"]
    assert (
        shown(ROWS, columns=columns, output=Output.JSONL).splitlines()[0]
        == '{"state":"CLOSED","ledger_id":7}'
    )
    assert shown(ROWS, columns=columns, output=Output.CSV).splitlines()[0] == "state,ledger_id"


def test_unknown_columns_are_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInputError, match="ledger_id, state, length, segments"):
        shown(ROWS, columns=("colour",))


def test_sort_orders_numbers_as_numbers_and_missing_values_last() -> None:
    assert ids(sort="ledger_id") == [7, 9, 10]
    assert ids(sort="-ledger_id") == [10, 9, 7]
    assert ids(sort="length") == [9, 7, 10]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("state=CLOSED", [7, 9]),
        ("state != CLOSED", [10]),
        ("state~LOSE", [7, 9]),
        ("ledger_id>7", [10, 9]),
        ("ledger_id>=0x9", [10, 9]),
        ("ledger_id<=7", [7]),
        ("length<100", [9]),
        ("segments~b", [7]),
        ("length=", [10]),
        ("length!=", [7, 9]),
    ],
)
def test_filter_keeps_the_rows_where_it_holds(expression: str, expected: list[int]) -> None:
    assert ids(filters=(expression,)) == expected


def test_all_filters_must_hold() -> None:
    assert ids(filters=("state=CLOSED", "ledger_id>7")) == [9]


@pytest.mark.parametrize("expression", ["", "state", "=x", "colour=red", "ledger_id>many"])
def test_filters_that_make_no_sense_are_refused(expression: str) -> None:
    with pytest.raises(BadInputError):
        ids(filters=(expression,))


def test_limit_counts_after_filter_and_sort() -> None:
    assert ids(limit=2) == [7, 10]
    assert ids(limit=1, filters=("state=OPEN",)) == [10]
    assert ids(limit=2, sort="ledger_id") == [7, 9]


def test_limit_tells_when_it_is_full() -> None:
    writer = RowWriter("LedgerList", COLUMNS, GlobalOptions(limit=2), stream=io.StringIO())
    writer.write(ROWS[:1])
    assert not writer.full
    writer.write(ROWS[1:])
    assert writer.full


def test_colour_is_for_terminals_and_respects_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert use_color(Terminal(), "auto")
    assert not use_color(io.StringIO(), "auto")
    assert use_color(io.StringIO(), "always")
    assert not use_color(Terminal(), "never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color(Terminal(), "auto")


def test_lost_bookies_are_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown([{"ledger_id": 1, "state": "lost", "length": 0}], stream=Terminal())
    assert "\x1b[31m" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 40, "5.0 TiB"),
        (3 << 60, "3072.0 PiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
