"""How results reach stdout: one document shape, seven forms.

Rows are dicts that JSON can hold: snake_case keys, ids as numbers, sizes in bytes, times as ISO-8601
in UTC. As JSON they are `{"apiVersion":"bkctl/v1","kind":…,"items":[…]}`, the same for one row as
for a million. Every form but `yaml` and a sorted one is streamed: memory does not grow with the rows.
"""

import itertools
import json
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from bkctl.cli.options import GlobalOptions, Output, global_options
from bkctl.errors import BadInputError

Row = Mapping[str, Any]

_encode_json = json.JSONEncoder(separators=(",", ":")).encode

API_VERSION = "bkctl/v1"
_MEASURED_ROWS = 200  # column widths of a table are those of the first rows; later ones may overhang
_COLORS = {"red": 31, "green": 32, "yellow": 33}
_STATE_COLORS = {
    "rw": "green",
    "ro": "yellow",
    "lost": "red",
    "ok": "green",
    "failed": "red",
    "error": "red",
    "running": "green",
    "stopped": "red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A key of the rows as a column of tables; `wide` ones only show in `-o wide` and `--columns`.

    `text` makes the cell of the table from the value; the other forms carry the value itself.
    """

    key: str
    wide: bool = False
    text: Callable[[Any], str] | None = None

    def cell(self, row: Row) -> str:
        value = row.get(self.key)
        if value is None:
            return "-"
        if self.text is not None:
            return self.text(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, list | tuple):
            return ",".join(str(item) for item in value) or "-"
        if isinstance(value, Mapping):
            return ",".join(f"{key}={item}" for key, item in value.items()) or "-"
        return str(value)


def emit(
    kind: str,
    rows: Iterable[Row],
    columns: Sequence[Column],
    *,
    default: Output = Output.TABLE,
    stream: TextIO | None = None,
) -> None:
    """Write `rows` in the asked-for form; the first column is the name that `-o name` prints.

    Raises BadInputError for a column, filter or sort key that the rows do not have.
    """
    options = global_options()
    writer = RowWriter(kind, columns, options, default=default, stream=stream or sys.stdout)
    writer.write(rows)
    writer.end()


def format_bytes(count: int) -> str:
    """1536 -> '1.5 KiB'; for tables only."""
    size, unit, larger_units = float(count), "B", ["PiB", "TiB", "GiB", "MiB", "KiB"]
    while abs(size) >= 1024 and larger_units:
        size, unit = size / 1024, larger_units.pop()
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


class RowWriter:
    """Writes rows as they come: `write` any number of times, then `end`.

    When the command fails between the two, the output stays visibly incomplete.
    """

    def __init__(
        self,
        kind: str,
        columns: Sequence[Column],
        options: GlobalOptions,
        *,
        default: Output = Output.TABLE,
        stream: TextIO,
    ) -> None:
        self._kind = kind
        self._form = options.output or default
        self._columns = _shown_columns(columns, options, self._form)
        self._known = [column.key for column in columns]
        self._keys = [column.key for column in self._columns] if options.columns else None
        self._tests = [_row_test(expression, self._known) for expression in options.filters]
        self._sort = _sort_key(options.sort, self._known) if options.sort else None
        self._left = options.limit
        self._stream = stream
        self._held: list[Row] = []  # rows that wait: for sorting, yaml, or the measuring of widths
        self._started = False
        self._widths: list[int] = []
        self._color = use_color(stream, options.color)

    @property
    def full(self) -> bool:
        """Nothing more will be written (--limit)."""
        return self._left == 0

    def write(self, rows: Iterable[Row]) -> None:
        if self._tests:
            rows = (row for row in rows if all(test(row) for test in self._tests))
        if self._sort is not None:
            self._held.extend(rows)
            return
        if self._left is not None:
            rows = self._counted(rows)
        self._forward(rows)

    def end(self) -> None:
        if self._sort is not None:
            key, descending = self._sort
            rows: Iterable[Row] = sorted(self._held, key=key, reverse=descending)
            self._held = []
            self._forward(rows if self._left is None else itertools.islice(rows, self._left))
        if self._form is Output.YAML:
            self._write_yaml()
        elif self._form is Output.JSON:
            self._stream.write(("" if self._started else self._json_head()) + "]}\n")
        elif self._form in (Output.TABLE, Output.WIDE) and not self._started:
            self._write_table_head()
        elif self._form is Output.CSV and not self._started:
            self._write_csv([])
        self._stream.flush()

    def flush(self) -> None:
        """Show what came so far, for results that are followed live."""
        if self._form in (Output.TABLE, Output.WIDE) and self._held and not self._started:
            self._write_table_head()
        self._stream.flush()

    def _counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        assert self._left is not None
        iterator = iter(rows)
        while self._left > 0:
            row = next(iterator, None)
            if row is None:
                return
            self._left -= 1
            yield row

    def _forward(self, rows: Iterable[Row]) -> None:
        if self._form is Output.NAME:
            key = self._columns[0].key
            self._stream.writelines(f"{row[key]}\n" for row in rows)
        elif self._form is Output.JSON:
            for row in rows:
                self._stream.write((",\n" if self._started else self._json_head()) + self._json(row))
                self._started = True
        elif self._form is Output.JSONL:
            self._stream.writelines(self._json(row) + "\n" for row in rows)
        elif self._form is Output.CSV:
            self._write_csv(rows)
        elif self._form is Output.YAML:
            self._held.extend(rows)
        else:
            self._write_table(rows)

    def _picked(self, row: Row) -> Row:
        return row if self._keys is None else {key: row.get(key) for key in self._keys}

    def _json_head(self) -> str:
        return f'{{"apiVersion":"{API_VERSION}","kind":"{self._kind}","items":['

    def _json(self, row: Row) -> str:
        return _encode_json(self._picked(row))

    def _write_yaml(self) -> None:
        import yaml

        items = [dict(self._picked(row)) for row in self._held]
        document = {"apiVersion": API_VERSION, "kind": self._kind, "items": items}
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        yaml.dump(document, self._stream, Dumper=dumper, sort_keys=False, allow_unicode=True)

    def _write_csv(self, rows: Iterable[Row]) -> None:
        import csv

        writer = csv.writer(self._stream, lineterminator="\n")
        keys = self._keys or self._known
        if not self._started:
            writer.writerow(keys)
            self._started = True
        for row in rows:
            values = (row.get(key) for key in keys)
            writer.writerow([json.dumps(v) if isinstance(v, list | tuple | dict) else v for v in values])

    def _write_table(self, rows: Iterable[Row]) -> None:
        rows = iter(rows)
        if not self._started:
            self._held.extend(itertools.islice(rows, _MEASURED_ROWS - len(self._held)))
            if len(self._held) < _MEASURED_ROWS:
                return
            self._write_table_head()
        self._stream.writelines(self._table_line(self._cells(row), row) for row in rows)

    def _write_table_head(self) -> None:
        titles = [column.key.upper().replace("_", " ") for column in self._columns]
        lines = [self._cells(row) for row in self._held]
        self._widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        head = _padded(titles, self._widths)
        self._stream.write((f"\x1b[1m{head}\x1b[0m" if self._color else head) + "\n")
        self._stream.writelines(
            self._table_line(cells, row) for cells, row in zip(lines, self._held, strict=True)
        )
        self._held = []
        self._started = True

    def _cells(self, row: Row) -> list[str]:
        return [one_line(column.cell(row)) for column in self._columns]

    def _table_line(self, cells: list[str], row: Row) -> str:
        line = _padded(cells, self._widths)
        color = _STATE_COLORS.get(str(row.get("state", ""))) if self._color else None
        return f"{colored(line, color)}\n" if color else line + "\n"


def use_color(stream: TextIO, wish: str) -> bool:
    """`wish` is --color; NO_COLOR (no-color.org) turns `auto` off."""
    if wish != "auto":
        return wish == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colored(text: str, color: str) -> str:
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(map(str.ljust, cells, widths)).rstrip()


def one_line(text: str) -> str:
    """Data must not drive the terminal: control characters are shown escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _shown_columns(columns: Sequence[Column], options: GlobalOptions, form: Output) -> list[Column]:
    if not options.columns:
        return [column for column in columns if form is Output.WIDE or not column.wide]
    by_key = {column.key: column for column in columns}
    return [by_key[_known_key(name, list(by_key))] for name in options.columns]


def _known_key(name: str, known: Sequence[str]) -> str:
    key = name.lower().replace("-", "_").replace(" ", "_")
    if key not in known:
        raise BadInputError(f"no column '{name}' here; the columns are {', '.join(known)}")
    return key


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": lambda value, wanted: wanted in value,
}


def _row_test(expression: str, known: Sequence[str]) -> Callable[[Row], bool]:
    match = re.fullmatch(r"\s*([\w -]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", expression, re.DOTALL)
    if match is None:
        raise BadInputError(f"cannot use filter '{expression}'; write COLUMN=value, !=, <, >, <=, >= or ~")
    key, sign, wanted = _known_key(match[1], known), match[2], match[3]
    compare = _COMPARISONS[sign]

    def test(row: Row) -> bool:
        value = row.get(key)
        if value is None or not wanted:  # `length=` asks for rows without one
            return sign in ("=", "!=") and compare("" if value is None else Column(key).cell(row), wanted)
        if isinstance(value, int | float) and not isinstance(value, bool) and sign != "~":
            return compare(value, _number(wanted, expression))
        return compare(value if isinstance(value, str) else Column(key).cell(row), wanted)

    return test


def _number(text: str, expression: str) -> float:
    try:
        return int(text, 16) if text.lower().startswith("0x") else float(text) if "." in text else int(text)
    except ValueError:
        raise BadInputError(f"filter '{expression}' compares a number with '{text}'") from None


def _sort_key(wish: str, known: Sequence[str]) -> tuple[Callable[[Row], Any], bool]:
    key = _known_key(wish.removeprefix("-"), known)

    def rank(row: Row) -> tuple[bool, float, str]:
        value = row.get(key)
        if isinstance(value, int | float):
            return (False, value, "")
        return (value is None, 0.0, str(value))

    return rank, wish.startswith("-")
