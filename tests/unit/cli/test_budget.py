"""What a command may import and burn before it does its work.

CPU figures are the least of several runs, so that a busy machine does not fail them; the limits are
those of the design, doubled where other processes can slow each run down.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("rich", "textual", "grpc", "kazoo", "rocksdict", "google", "uvloop", "yaml", "psutil", "crc32c")
RUNS = 5


def imported_by(arguments: list[str], config: Path) -> set[str]:
    """The top-level names in sys.modules after the command."""
    code = (
        "import sys; from bkctl.__main__ import main; code = main(sys.argv[1:]); "
        "sys.stderr.write(' '.join({name.split('.')[0] for name in sys.modules})); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment(config),
        check=True,
    )
    return set(result.stderr.split())


def cpu_ms(arguments: list[str], config: Path) -> float:
    """The least CPU time of a command, user and system, of RUNS runs."""
    times = []
    command = [sys.executable, "-m", "bkctl", *arguments]
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    for _ in range(RUNS):
        pid = os.posix_spawn(sys.executable, command, environment(config), file_actions=quiet)
        _, status, usage = os.wait4(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        times.append((usage.ru_utime + usage.ru_stime) * 1000)
    return min(times)


def environment(config: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(config)}


@pytest.mark.parametrize(
    "words",
    ["--version", "context list -o json", "bookie list -o json", "bookie list", "ledger list -o jsonl"],
)
def test_metadata_commands_import_nothing_heavy(uri: str, tmp_path: Path, words: str) -> None:
    arguments = words.split() + (["-u", uri] if words.startswith(("bookie", "ledger")) else [])
    assert imported_by(arguments, tmp_path).isdisjoint(HEAVY)


@pytest.mark.parametrize("words", ["--version", "context list -o json"])
def test_commands_without_a_cluster_do_not_import_asyncio(tmp_path: Path, words: str) -> None:
    assert "asyncio" not in imported_by(words.split(), tmp_path)


def test_version_takes_less_than_200_ms_of_cpu(tmp_path: Path) -> None:
    assert cpu_ms(["--version"], tmp_path) < 200


def test_bookie_list_takes_less_than_400_ms_of_cpu(uri: str, tmp_path: Path) -> None:
    assert cpu_ms(["bookie", "list", "-o", "json", "-u", uri], tmp_path) < 400
