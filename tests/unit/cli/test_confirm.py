"""Nothing risky happens unconfirmed, and nothing ever waits for an answer off a terminal."""

import io
from collections.abc import Callable, Iterator

import click
import pytest

from bkctl.cli import confirm
from bkctl.cli.options import GlobalOptions
from bkctl.errors import RefusedError


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


Typed = Callable[[str], Keyboard]


@pytest.fixture
def options() -> Iterator[GlobalOptions]:
    options = GlobalOptions()
    with click.Context(click.Command("bkctl"), obj=options):
        yield options


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Puts the process on a terminal where `text` is typed; the keyboard."""

    def at_terminal(text: str) -> Keyboard:
        keyboard = Keyboard(text)
        monkeypatch.setattr("sys.stdin", keyboard)
        monkeypatch.setattr("sys.stderr", Keyboard())
        return keyboard

    return at_terminal


def destroy(given: str | None) -> None:
    confirm.confirm_destruction("deletes 3 ledgers", what="the number of ledgers", expected="3", given=given)


def test_change_is_refused_off_a_terminal_and_says_how_to_confirm(options: GlobalOptions) -> None:
    with pytest.raises(RefusedError, match="fences ledger 7: not confirmed; add --yes"):
        confirm.confirm_change("fences ledger 7")


def test_change_runs_with_yes(options: GlobalOptions) -> None:
    options.yes = True
    confirm.confirm_change("fences ledger 7")


@pytest.mark.parametrize("answer", ["y\n", "Yes\n"])
def test_change_runs_when_the_answer_is_yes(options: GlobalOptions, typed: Typed, answer: str) -> None:
    typed(answer)
    confirm.confirm_change("fences ledger 7")


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "yes please\n"])
def test_change_needs_a_plain_yes(options: GlobalOptions, typed: Typed, answer: str) -> None:
    typed(answer)
    with pytest.raises(RefusedError, match="nothing was changed"):
        confirm.confirm_change("fences ledger 7")


def test_no_input_never_asks_even_on_a_terminal(options: GlobalOptions, typed: Typed) -> None:
    options.no_input = True
    keyboard = typed("y\n3\n")
    with pytest.raises(RefusedError, match="--yes"):
        confirm.confirm_change("fences ledger 7")
    with pytest.raises(RefusedError, match="--confirm 3"):
        destroy(None)
    assert keyboard.tell() == 0


def test_destruction_runs_with_the_right_value(options: GlobalOptions) -> None:
    destroy("3")


def test_destruction_is_refused_with_a_wrong_value(options: GlobalOptions) -> None:
    with pytest.raises(RefusedError, match="'4' is not the number of ledgers, 3"):
        destroy("4")


def test_yes_is_not_enough_for_destruction(options: GlobalOptions) -> None:
    options.yes = True
    with pytest.raises(RefusedError, match="--confirm 3"):
        destroy(None)


def test_destruction_runs_when_the_value_is_typed(options: GlobalOptions, typed: Typed) -> None:
    typed("3\n")
    destroy(None)


def test_destruction_is_refused_when_something_else_is_typed(options: GlobalOptions, typed: Typed) -> None:
    typed("y\n")
    with pytest.raises(RefusedError):
        destroy(None)


def test_notes_are_on_stderr_and_quiet_silences_them(
    options: GlobalOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    confirm.note("it was there already")
    options.quiet = True
    confirm.note("not said")
    assert capsys.readouterr() == ("", "it was there already\n")
