"""`bkctl shell OLDCOMMAND`: the old commands, and what stands before them."""

from pathlib import Path
from typing import Annotated, Any

import click
import typer

from bkctl.cli.render import Column, emit
from bkctl.cli.shell import cluster, disks, entry_logs, journals, ledgers
from bkctl.cli.shell.flags import OldCommand, ShellGroup
from bkctl.cli.shell.names import NEW_NAMES, new_name
from bkctl.cli.shell.settings import ENTRY_FORMATS, LEDGER_ID_FORMATS, ShellSettings, local_bookie_conf
from bkctl.errors import BadInputError

app = typer.Typer(
    cls=ShellGroup,
    help="Apache's `bookkeeper shell`: its commands that only read, under their old names.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for module in (cluster, ledgers, entry_logs, journals, disks):
    for name, command in module.COMMANDS.items():
        app.command(name, cls=OldCommand)(command)


def _keep_java_exit(ctx: typer.Context, value: bool) -> None:
    if value:
        ctx.find_root().obj.java_exit = True


@app.callback()
def shell(
    ctx: typer.Context,
    conf: Annotated[
        Path | None,
        typer.Option("-conf", metavar="FILE", help="Java's bk_server.conf; else BOOKIE_CONF."),
    ] = None,
    local_bookie: Annotated[
        str | None,
        typer.Option(
            "-localbookie", metavar="[HOST:PORT]", help="The configuration that `localbookie` wrote."
        ),
    ] = None,
    ledger_id_format: Annotated[
        str,
        typer.Option(
            "-ledgeridformat",
            metavar="hex|long|uuid",
            click_type=click.Choice(LEDGER_ID_FORMATS),
            help="How ledger ids are written.",
        ),
    ] = "long",
    entry_format: Annotated[
        str,
        typer.Option(
            "-entryformat",
            metavar="hex|string",
            click_type=click.Choice(ENTRY_FORMATS),
            help="How payloads are shown.",
        ),
    ] = "string",
    java_exit: Annotated[
        bool,
        typer.Option(
            "--java-exit", callback=_keep_java_exit, is_eager=True, help="Exit with 0 or 255, as Java does."
        ),
    ] = False,
) -> None:
    if conf is not None and local_bookie is not None:
        raise BadInputError("-conf and -localbookie exclude each other")
    if local_bookie is not None:
        conf = local_bookie_conf(local_bookie)
    ctx.obj = ShellSettings(conf, ledger_id_format, entry_format)


@app.command("help")
def show_help(
    old_name: Annotated[str | None, typer.Argument(metavar="[COMMAND]", help="An old command.")] = None,
) -> None:
    """List the old commands and what they are called now, or describe one."""
    ctx = click.get_current_context()
    parent = ctx.parent
    assert parent is not None
    group = parent.command
    assert isinstance(group, ShellGroup), group
    if old_name is not None and old_name not in NEW_NAMES:
        group.resolve_command(parent, [old_name])  # names the nearest one, unless it is `help`
    if old_name is not None and old_name in group.commands:
        group.commands[old_name].make_context(old_name, ["--help"], parent=parent)
    rows = [_row(ctx, group, name) for name in ([old_name] if old_name else NEW_NAMES)]
    emit("ShellCommandList", rows, [Column("command"), Column("here"), Column("new_name")])


def _row(ctx: click.Context, group: ShellGroup, old_name: str) -> dict[str, Any]:
    return {"command": old_name, "here": old_name in group.commands, "new_name": new_name(ctx, old_name)}
