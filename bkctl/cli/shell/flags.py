"""The command lines of BookieShell: flags such as `-rw`, `-ledgerid` and `--ledgerid` alike.

Java's parser takes one or two hyphens before short and long names alike, never joins short flags,
and takes the word behind a flag with a value for the value, unless it is a flag itself (`-le -1`
is a value). Click would read `-bookieid B` as `-b ookieid B`; here it is an unknown flag.

Source: upstream BookieShell (commons-cli's BasicParser).
"""

from collections import deque
from collections.abc import Sequence

import click
from typer.core import TyperCommand

from bkctl.cli.app import BkctlGroup
from bkctl.cli.confirm import note
from bkctl.cli.shell.names import NEW_NAMES, new_name
from bkctl.errors import BadInputError

OPTIONAL_VALUE = "localbookie"  # takes the next word only if that is host:port
_JOINABLE = frozenset("vqy")  # flags of every bkctl command, as in -vv


class OldCommand(TyperCommand):
    """A command under its old name, with its old flags; says once what it is called now."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, respelled(self, ctx, args))
        except click.UsageError as error:
            usage = " ".join(self.collect_usage_pieces(ctx))
            reason = error.format_message().rstrip(".")
            raise click.UsageError(f"{reason}; usage: {ctx.command_path} {usage}", ctx=ctx) from error

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The old flags by name, without those that every command of bkctl has."""
        own = (parameter for parameter in self.params if parameter.expose_value)
        return [piece for parameter in own for piece in _usage_pieces(ctx, parameter)]

    def invoke(self, ctx: click.Context) -> object:
        result = super().invoke(ctx)  # one that fails has its own line to say
        name = new_name(ctx, str(self.name))
        if name is not None:
            note(f"'bkctl {name}' does this now")
        return result


class ShellGroup(BkctlGroup):
    """The group of the old commands; knows those that it does not have."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, respelled(self, ctx, args, to_first_word=True))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in NEW_NAMES and args[0] not in self.commands:
            raise BadInputError(where_it_went(ctx, args[0]))
        return super().resolve_command(ctx, args)


def where_it_went(ctx: click.Context, old_name: str) -> str:
    """What to say of an old command that is not here."""
    name = new_name(ctx, old_name)
    if name is None:
        return f"bkctl does not have '{old_name}' of bookkeeper shell yet"
    return f"'{old_name}' of bookkeeper shell is 'bkctl {name}' now; see 'bkctl {name} --help'"


def respelled(
    command: click.Command, ctx: click.Context, words: Sequence[str], *, to_first_word: bool = False
) -> list[str]:
    """`words` with each flag as it is declared, for Click; `to_first_word`: the rest as it is.

    Raises click.UsageError for a flag that the command does not have, or that lacks its value.
    """
    by_name = {
        spelling.lstrip("-"): (spelling, parameter)
        for parameter in command.get_params(ctx)
        if isinstance(parameter, click.Option)
        for spelling in parameter.opts
    }
    rest = deque(words)
    found: list[str] = []
    while rest:
        word = rest.popleft()
        if word == "--" or (to_first_word and not _is_flag(word)):
            return [*found, word, *rest]
        name, equals, value = _bare(word).partition("=")
        if not _is_flag(word) or _is_joined(word):
            found.append(word)
        elif name not in by_name:
            raise click.UsageError(f"no such flag '{word}'", ctx=ctx)
        else:
            spelling, option = by_name[name]
            found.append(spelling)
            if option.is_flag or option.count:
                if equals:
                    raise click.UsageError(f"flag '{spelling}' takes no value", ctx=ctx)
            elif equals:
                found.append(value)
            elif name == OPTIONAL_VALUE:
                found.append(rest.popleft() if rest and ":" in rest[0] else "")
            elif not rest or (_is_flag(rest[0]) and _bare(rest[0]) in by_name):
                raise click.UsageError(f"flag '{word}' needs a value", ctx=ctx)
            else:
                found.append(rest.popleft())
    return found


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _is_joined(word: str) -> bool:
    return word[:2] != "--" and len(word) > 2 and set(word[1:]) <= _JOINABLE


def _bare(word: str) -> str:
    return word[2:] if word.startswith("--") else word[1:]


def _usage_pieces(ctx: click.Context, parameter: click.Parameter) -> list[str]:
    if not isinstance(parameter, click.Option):
        return parameter.get_usage_pieces(ctx)
    takes_value = not (parameter.is_flag or parameter.count)
    piece = parameter.opts[0] + (f" {parameter.make_metavar(ctx)}" if takes_value else "")
    return [piece if parameter.required else f"[{piece}]"]
