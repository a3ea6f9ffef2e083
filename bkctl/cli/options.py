"""The options that every command takes, before and after its name.

`bkctl -o json ledger list` and `bkctl ledger list -o json` are the same call: the options below
are added to each command and group, and all of them store into the one GlobalOptions of the run.
"""

import dataclasses
import enum
from typing import Any

import click
from typer.core import TyperOption

_SHARED = "Options of every command"
_ROWS = "Output"


class Output(enum.StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    CSV = "csv"
    NAME = "name"


@dataclasses.dataclass(slots=True)
class GlobalOptions:
    """What was asked for on this command line; `output` None leaves the choice to the command."""

    context: str | None = None
    metadata_uri: str | None = None
    output: Output | None = None
    columns: tuple[str, ...] = ()
    sort: str | None = None
    filters: tuple[str, ...] = ()
    limit: int | None = None
    timeout_s: float | None = None
    yes: bool = False
    no_input: bool = False
    read_only: bool = False
    quiet: bool = False
    verbose: int = 0
    color: str = "auto"
    java_exit: bool = False  # `bkctl shell` only

    @property
    def machine_readable_errors(self) -> bool:
        return self.output in (Output.JSON, Output.JSONL)


def global_options() -> GlobalOptions:
    """Those of the running command."""
    options = click.get_current_context().find_root().obj
    assert isinstance(options, GlobalOptions), options
    return options


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a value that was given; the last one on the line counts, --filter collects."""
    if value is None or value is False or value == 0 or value == ():
        return
    options = ctx.find_root().obj
    if param.name == "output":
        value = Output(value)
    elif param.name == "columns":
        value = tuple(name.strip() for name in value.split(",") if name.strip())
    elif param.name == "filters":
        value = options.filters + tuple(value)
    setattr(options, str(param.name), value)


def _option(*declarations: str, panel: str = _SHARED, **settings: Any) -> TyperOption:
    # Eager: known before an argument is found wrong, so that the error has the asked-for form.
    return TyperOption(
        param_decls=list(declarations),
        callback=_store,
        expose_value=False,
        is_eager=True,
        rich_help_panel=panel,
        **settings,
    )


SHARED_OPTIONS: tuple[TyperOption, ...] = (
    _option("-C", "--context", metavar="NAME", help="The named cluster to work on; else BKCTL_CONTEXT."),
    _option(
        "-u",
        "--metadata-uri",
        metavar="URI",
        help="The cluster's metadata store, as sqlite:///abs/path.db or zk://h1:2181;h2:2181/ledgers; "
        "else BKCTL_METADATA_URI.",
    ),
    _option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Give up after this time, with exit code 124.",
    ),
    _option("-y", "--yes", is_flag=True, help="Do not ask before a risky change."),
    _option("--no-input", is_flag=True, help="Never prompt: refuse (exit code 4) instead."),
    _option("--read-only", is_flag=True, help="Refuse everything that changes the cluster."),
    _option("-q", "--quiet", is_flag=True, help="No notes and no progress on stderr."),
    _option("-v", "--verbose", count=True, help="Log to stderr; twice for details."),
    _option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        help="Colour in tables; auto: on a terminal, unless NO_COLOR is set.",
    ),
    _option(
        "-o",
        "--output",
        panel=_ROWS,
        type=click.Choice([str(form) for form in Output]),
        help="The form of the result; name: only the ids.",
    ),
    _option("--columns", panel=_ROWS, metavar="A,B,…", help="Only these columns, in this order."),
    _option("--sort", panel=_ROWS, metavar="COLUMN", help="Sort by this column; -COLUMN: descending."),
    _option(
        "--filter",
        "filters",
        panel=_ROWS,
        multiple=True,
        metavar="EXPR",
        help="Only rows where COLUMN=value, !=, <, >, <=, >=, or ~ (contains); repeatable, all must hold.",
    ),
    _option("--limit", panel=_ROWS, type=click.IntRange(min=1), metavar="N", help="At most this many rows."),
)


def add_shared_options(command: click.Command) -> click.Command:
    """`command`, and all commands below it, with the shared options added."""
    command.params.extend(SHARED_OPTIONS)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            add_shared_options(child)
    return command
