"""The command tree: `bkctl NOUN VERB`.

A group's module is imported when the group is named on the command line, so `--version`, completion
and the commands of other groups do not pay for it.
"""

import difflib
import importlib
from typing import Any

import click
import typer
from typer.core import TyperGroup

from bkctl import __version__
from bkctl.cli.options import SHARED_OPTIONS, add_shared_options

_ALIASES = {"ls": "list", "rm": "delete"}

_MODULES = {
    "demo": "bkctl.cli.demo",
    "cluster": "bkctl.cli.cluster",
    "bookie": "bkctl.cli.bookie",
    "ledger": "bkctl.cli.ledger",
    "journal": "bkctl.cli.journal",
    "entrylog": "bkctl.cli.entrylog",
    "index": "bkctl.cli.index",
    "gc": "bkctl.cli.gc",
    "cookie": "bkctl.cli.cookie",
    "bench": "bkctl.cli.bench",
    "context": "bkctl.cli.contexts",
    "shell": "bkctl.cli.shell.app",
    "version": "bkctl.cli.version",
}


class BkctlGroup(TyperGroup):
    """A group that knows the aliases `ls` and `rm`, and names the nearest verb for a wrong one."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        names = self.list_commands(ctx)
        return self.load(cmd_name if cmd_name in names else _ALIASES.get(cmd_name, cmd_name))

    def load(self, name: str) -> click.Command | None:
        return self.commands.get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is not None:
            return command.name, command, args[1:]
        nearest = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
        hint = f"; did you mean '{ctx.command_path} {nearest[0]}'?" if nearest else ""
        raise click.UsageError(f"no such command '{ctx.command_path} {name}'{hint}", ctx=ctx)


class RootGroup(BkctlGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def load(self, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        command = typer.main.get_command(importlib.import_module(_MODULES[name]).app)
        command.name = name
        return add_shared_options(command)


def group(summary: str) -> typer.Typer:
    """A new command group."""
    return typer.Typer(
        cls=BkctlGroup,
        help=summary,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def single_command() -> typer.Typer:
    """A command directly below `bkctl`."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _print_version(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"bkctl {__version__}")
        ctx.exit()


def root_command() -> RootGroup:
    version = click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Print the version and leave.",
    )
    return RootGroup(
        name="bkctl",
        help="Apache BookKeeper's system as one binary: bookies, ledgers, clusters.",
        no_args_is_help=True,
        params=[version, *SHARED_OPTIONS],
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="markdown",
    )
