"""Running `bkctl` inside the test process, with a configuration directory of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bkctl.__main__ import main


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


Bkctl = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("BKCTL_METADATA_URI", "BKCTL_CONTEXT", "BKCTL_LEDGER_PASSWORD", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bkctl(capsys: pytest.CaptureFixture[str]) -> Bkctl:
    """Runs one command line: exit code, stdout, stderr."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def uri(tmp_path: Path, bkctl: Bkctl) -> str:
    """The metadata URI of a new, empty cluster."""
    uri = f"sqlite://{tmp_path}/metadata.db"
    assert bkctl("cluster", "init", "-u", uri).code == 0
    return uri
