"""`bkctl context`: named clusters."""

from typing import Annotated

import typer

from bkctl.cli import confirm
from bkctl.cli.app import group
from bkctl.cli.context import Context, changed_contexts, chosen_context, read_contexts
from bkctl.cli.options import global_options
from bkctl.cli.render import Column, Row, emit
from bkctl.errors import BadInputError, ConflictError

app = group("Named clusters, so that commands need no metadata URI.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the context.")]

_COLUMNS = [Column("name"), Column("current"), Column("metadata_uri"), Column("read_only")]


def _row(context: Context, current: str | None) -> Row:
    return {
        "name": context.name or None,
        "current": context.name == current,
        "metadata_uri": context.metadata_uri,
        "read_only": context.read_only,
    }


@app.command("list")
def list_contexts() -> None:
    """List the contexts."""
    contexts = read_contexts()
    rows = (_row(context, contexts.current) for context in contexts.by_name.values())
    emit("ContextList", rows, _COLUMNS)


@app.command("use")
def use_context(name: Name) -> None:
    """Make NAME the cluster that commands work on."""
    with changed_contexts() as contexts:
        contexts.get(name)
        previous, contexts.current = contexts.current, name
    back = f"; back with: bkctl context use {previous}" if previous and previous != name else ""
    confirm.note(f"commands now work on '{name}'{back}")


@app.command("add")
def add_context(
    name: Name,
    uri: Annotated[str, typer.Argument(metavar="URI", help="Metadata URI of the cluster.")],
    read_only: Annotated[
        bool, typer.Option("--protect", help="Refuse commands that change this cluster.")
    ] = False,
    use: Annotated[bool, typer.Option("--use", help="Also make it the current one.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a context of this name.")] = False,
) -> None:
    """Remember a cluster; the first one becomes the current one."""
    from bkctl.formats import service_uri

    service_uri.parse(uri)
    with changed_contexts() as contexts:
        if name in contexts.by_name and not replace:
            raise ConflictError(f"there is already a context '{name}'; add --replace to overwrite it")
        contexts.add(Context(name, uri, read_only))
        if use or contexts.current is None:
            contexts.current = name


@app.command("show")
def show_context(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the context; else the current one.")
    ] = None,
) -> None:
    """Show a context; without NAME the cluster that commands work on now."""
    contexts = read_contexts()
    context = chosen_context(global_options()) if name is None else contexts.get(name)
    emit("Context", [_row(context, contexts.current)], _COLUMNS)


@app.command("rm")
def remove_context(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of contexts.")],
) -> None:
    """Forget contexts; the clusters themselves stay as they are."""
    if not names:
        raise BadInputError("which context?")
    with changed_contexts() as contexts:
        for name in names:
            contexts.remove(name)
