"""Contexts, and the order in which a command finds its cluster."""

import json
import multiprocessing
from pathlib import Path

import pytest

from bkctl.cli.context import Context, changed_contexts, chosen_context, contexts_path, read_contexts
from bkctl.cli.options import GlobalOptions
from bkctl.errors import BadInputError, CorruptDataError, NotFoundError
from tests.unit.cli.conftest import Bkctl

PROD = "zk://a:2181;b:2181/ledgers"
TEST = "sqlite:///srv/test.db"


@pytest.fixture
def two(bkctl: Bkctl) -> Bkctl:
    assert bkctl("context", "add", "prod", PROD, "--protect").code == 0
    assert bkctl("context", "add", "test", TEST).code == 0
    return bkctl


def uri(**options: str) -> str:
    return chosen_context(GlobalOptions(**options)).metadata_uri  # type: ignore[arg-type]


def test_contexts_live_in_the_configuration_directory(two: Bkctl, tmp_path: Path) -> None:
    assert contexts_path() == tmp_path / "config" / "bkctl" / "contexts.json"
    assert json.loads(contexts_path().read_text())["contexts"]["prod"] == {
        "metadata_uri": PROD,
        "read_only": True,
    }


def test_the_first_context_becomes_current(two: Bkctl) -> None:
    rows = json.loads(two("context", "list", "-o", "json").out)["items"]
    assert [(row["name"], row["current"]) for row in rows] == [("prod", True), ("test", False)]


def test_use_changes_the_current_one_and_says_the_way_back(two: Bkctl) -> None:
    result = two("context", "use", "test")
    assert result.code == 0
    assert "bkctl context use prod" in result.err
    assert uri() == TEST


def test_flags_win_over_environment_over_current_context(two: Bkctl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert uri() == PROD
    monkeypatch.setenv("BKCTL_CONTEXT", "test")
    assert uri() == TEST
    monkeypatch.setenv("BKCTL_METADATA_URI", "sqlite:///env.db")
    assert uri() == "sqlite:///env.db"
    assert uri(context="prod") == PROD
    assert uri(context="prod", metadata_uri="sqlite:///flag.db") == "sqlite:///flag.db"


def test_no_cluster_at_all_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="which cluster"):
        uri()


def test_an_unknown_context_names_the_known_ones(two: Bkctl) -> None:
    with pytest.raises(NotFoundError, match="prod, test"):
        uri(context="dev")


def test_add_refuses_a_name_that_is_taken_unless_told_to_replace(two: Bkctl) -> None:
    result = two("context", "add", "test", "sqlite:///other.db")
    assert result.code == 8
    assert "--replace" in result.err
    assert two("context", "add", "test", "sqlite:///other.db", "--replace").code == 0
    assert read_contexts().by_name["test"].metadata_uri == "sqlite:///other.db"


@pytest.mark.parametrize(("name", "bad"), [("a b", TEST), ("", TEST), ("-x", TEST), ("ok", "http://nowhere")])
def test_add_refuses_unusable_names_and_uris(bkctl: Bkctl, name: str, bad: str) -> None:
    assert bkctl("context", "add", "--", name, bad).code == 2
    assert read_contexts().by_name == {}


def test_rm_of_the_current_context_leaves_none_current(two: Bkctl) -> None:
    assert two("context", "rm", "prod").code == 0
    assert read_contexts().current is None
    assert list(read_contexts().by_name) == ["test"]


def test_rm_of_one_unknown_name_removes_none(two: Bkctl) -> None:
    assert two("context", "rm", "test", "dev").code == 3
    assert set(read_contexts().by_name) == {"prod", "test"}


def test_show_tells_the_cluster_that_commands_work_on(two: Bkctl) -> None:
    assert json.loads(two("context", "show", "-o", "json").out)["items"][0]["metadata_uri"] == PROD
    assert json.loads(two("context", "show", "test", "-o", "json").out)["items"][0]["metadata_uri"] == TEST


def test_protected_contexts_refuse_changes_before_anything_is_opened(two: Bkctl) -> None:
    result = two("ledger", "delete", "1", "--confirm", "1")
    assert result.code == 4
    assert "read-only" in result.err


def test_read_only_refuses_changes_anywhere(bkctl: Bkctl, uri: str) -> None:
    assert bkctl("cluster", "init", "-u", uri, "--read-only").code == 4


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"current": null}', '{"current": null, "contexts": {"a": 1}}']
)
def test_a_damaged_file_is_reported_and_not_overwritten(bkctl: Bkctl, text: str) -> None:
    contexts_path().parent.mkdir(parents=True)
    contexts_path().write_text(text)
    with pytest.raises(CorruptDataError, match=r"contexts\.json"):
        read_contexts()
    assert bkctl("context", "add", "a", TEST).code == 7
    assert contexts_path().read_text() == text


def _add_some(start: int) -> None:
    for number in range(start, start + 10):
        with changed_contexts() as contexts:
            contexts.add(Context(f"c{number}", TEST))


def test_changes_of_two_processes_are_both_kept() -> None:
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_add_some, args=(start,)) for start in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(read_contexts().by_name) == 20
