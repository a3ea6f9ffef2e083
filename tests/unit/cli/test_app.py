"""The command tree: shared options, wrong verbs, errors as text and as JSON."""

import json

import click
import pytest

from bkctl import __version__
from bkctl.__main__ import main
from bkctl.cli.exit_codes import ExitCode
from tests.unit.cli.conftest import Bkctl


@pytest.mark.parametrize(
    "line", ["-o json version", "version -o json", "--output json version", "version --output=json"]
)
def test_shared_options_work_before_and_after_the_command(bkctl: Bkctl, line: str) -> None:
    result = bkctl(*line.split())
    assert result.code == 0
    document = json.loads(result.out)
    assert (document["apiVersion"], document["kind"]) == ("bkctl/v1", "Version")
    assert document["items"][0]["bkctl"] == __version__


def test_shared_options_work_between_noun_and_verb(bkctl: Bkctl) -> None:
    assert json.loads(bkctl("context", "-o", "json", "list").out)["items"] == []


def test_the_last_of_equal_options_counts(bkctl: Bkctl) -> None:
    assert bkctl("-o", "json", "version", "-o", "name").out == f"{__version__}\n"


def test_version_option_prints_the_version(bkctl: Bkctl) -> None:
    assert bkctl("--version").out == f"bkctl {__version__}\n"


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("ledger lst", "bkctl ledger list"),
        ("contxt list", "bkctl context"),
        ("cluster statsu", "bkctl cluster status"),
    ],
)
def test_a_wrong_verb_names_the_nearest_one(bkctl: Bkctl, line: str, nearest: str) -> None:
    result = bkctl(*line.split())
    assert result.code == ExitCode.USAGE
    assert f"did you mean '{nearest}'?" in result.err
    assert result.err.count("\n") == 1


def test_ls_and_rm_are_aliases(bkctl: Bkctl) -> None:
    assert bkctl("context", "ls", "-o", "json").code == 0
    assert bkctl("context", "rm", "nobody").code == ExitCode.NOT_FOUND
    assert "needs" in bkctl("ledger", "rm").err or bkctl("ledger", "rm").code == ExitCode.USAGE


@pytest.mark.parametrize(
    "line", ["ledger show", "version --nonsense", "-o nonsense version", "ledger list --limit 0"]
)
def test_wrong_usage_is_one_line_and_exit_code_2(bkctl: Bkctl, line: str) -> None:
    result = bkctl(*line.split())
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert result.err.startswith("bkctl: ")
    assert result.err.count("\n") == 1


def test_json_output_says_errors_also_as_json(bkctl: Bkctl) -> None:
    result = bkctl("context", "use", "nobody", "-o", "json")
    text, document = result.err.splitlines()
    assert text.startswith("bkctl: no context 'nobody'")
    assert json.loads(document) == {
        "apiVersion": "bkctl/v1",
        "kind": "Error",
        "error": "NotFoundError",
        "exit_code": 3,
        "message": text.removeprefix("bkctl: "),
    }


@pytest.mark.parametrize("words", ["ledger show forty-two -u sqlite:///none.db", "bench write --size much"])
def test_json_errors_know_the_form_that_follows_the_wrong_argument(bkctl: Bkctl, words: str) -> None:
    result = bkctl(*words.split(), "-o", "json")
    assert result.code == ExitCode.USAGE
    assert json.loads(result.err.splitlines()[1])["exit_code"] == ExitCode.USAGE


def test_every_command_shows_help(bkctl: Bkctl, capsys: pytest.CaptureFixture[str]) -> None:
    """Walks the whole tree: each command loads, and its help names the shared options."""
    from bkctl.cli.app import root_command

    root = root_command()
    seen = 0
    for name in root.list_commands(None):  # type: ignore[arg-type]
        command = root.load(name)
        assert command is not None
        for verb in getattr(command, "commands", {None: command}):
            words = [name] if verb is None else [name, verb]
            result = bkctl(*words, "--help")
            assert result.code == 0
            assert "--metadata-uri" in result.out
            seen += 1
    assert seen >= 28


def test_no_arguments_show_the_help_and_exit_with_2(bkctl: Bkctl) -> None:
    result = bkctl()
    assert result.code == ExitCode.USAGE
    assert "cluster" in result.out + result.err


def test_ctrl_c_exits_with_130_and_no_words(monkeypatch: pytest.MonkeyPatch, bkctl: Bkctl) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bkctl.cli.contexts.read_contexts", interrupted)
    result = bkctl("context", "list")
    assert (result.code, result.err) == (ExitCode.INTERRUPTED, "")


def test_timeout_exits_with_124(monkeypatch: pytest.MonkeyPatch, bkctl: Bkctl, uri: str) -> None:
    async def forever(_uri: str) -> None:
        import asyncio

        await asyncio.Event().wait()

    monkeypatch.setattr("bkctl.cli.cluster.identity_row", forever)
    result = bkctl("cluster", "info", "-u", uri, "--timeout", "0.05")
    assert result.code == ExitCode.TIMED_OUT
    assert "--timeout" in result.err


def test_which_cluster_is_asked_once_and_plainly(bkctl: Bkctl) -> None:
    result = bkctl("bookie", "list")
    assert result.code == ExitCode.USAGE
    assert result.err.startswith("bkctl: which cluster? give -u URI")


def test_main_takes_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bkctl", "version", "-o", "name"])
    assert main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_every_argument_and_option_has_help() -> None:
    def lacking(command: click.Command, path: str) -> list[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            names = command.list_commands(context)
            inner = ((name, command.get_command(context, name)) for name in names)
            return [text for name, sub in inner if sub for text in lacking(sub, f"{path} {name}")]
        shown = [p for p in command.params if not getattr(p, "hidden", False)]
        return [f"{path}: {p.name}" for p in shown if not getattr(p, "help", None)]

    from bkctl.cli.app import root_command

    assert lacking(root_command(), "bkctl") == []
