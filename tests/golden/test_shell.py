"""The text of `bkctl shell` against what Apache BookKeeper's own shell printed.

`shell-4.17.3.json` holds the output of 4.17.3 on the golden bookie directories, line by line. The files
in `shell/with-attributes` are of 4.18, which prints the same values as attributes of log lines.
"""

import asyncio
import base64
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bkctl.errors import NodeExistsError
from bkctl.formats import service_uri
from bkctl.metadata.api import ANY_VERSION
from bkctl.metadata.store import make_tree
from tests.shared_data import DATA, fixture_path

with warnings.catch_warnings():
    # typer 0.25 imports names that Click 8.5 calls deprecated.
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)
    from bkctl.__main__ import main

RUNS = json.loads((DATA / "shell-4.17.3.json").read_text())["runs"]


Shell = Callable[..., list[str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Runs `bkctl shell` with these arguments, which must succeed: the lines of its output."""
    for name in ("BKCTL_METADATA_URI", "BKCTL_CONTEXT", "BOOKIE_CONF"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> list[str]:
        code = main(["shell", "-q", *arguments])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return captured.out.split("\n")[:-1]

    return run


def conf_of(disks: Path, directory: Path) -> str:
    conf = directory / "bk_server.conf"
    conf.write_text(f"journalDirectories={disks}/journal\nledgerDirectories={disks}/ledgers\n")
    return str(conf)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['disks']}: {run['command']}")
def test_offline_commands_print_what_4_17_printed(shell: Shell, tmp_path: Path, run: dict[str, Any]) -> None:
    disks = fixture_path(run["disks"])
    expected = [line.replace("DISKS", str(disks)) for line in run["lines"]]
    found = shell("-conf", conf_of(disks, tmp_path), *run["command"].split())
    if re.search("readlogmetadata|listfilesondisc", run["command"]):
        # upstream lists ledgers in the order of a hash map, and files by when they were made
        assert (found[:1], Counter(found)) == (expected[:1], Counter(expected))
    else:
        assert found == expected


def test_what_is_no_entry_in_a_journal_is_told_apart(shell: Shell, tmp_path: Path) -> None:
    """Upstream shows an explicit LAC as an entry with a senseless LAC; all else is as 4.18 printed it."""
    conf = conf_of(fixture_path("bookies-clean", "b1"), tmp_path)
    found = "\n".join(shell("-conf", conf, "readjournal", "1a2054c4bd8.txn"))
    path = fixture_path("shell", "with-attributes", "offline-readjournal-msg.txt")
    logged = path.read_text(errors="replace")
    head = r"--------- Lid=(\d+), Eid=(-?\d+), ByteOffset=(\d+), EntrySize=(\d+) ---------"
    heads = [(entry, size, ledger, at) for ledger, entry, at, size in re.findall(head, found)]
    entry = r"Entry \{entryId=(-?\d+), entrySize=(\d+), ledgerId=(\d+), position=(\d+)\}"
    assert heads == re.findall(entry, logged)
    assert len(heads) > 700
    keys = re.findall(r"MasterKey \{.*masterKey=([0-9a-f]+)", logged)
    assert re.findall(r"MasterKey:      ([0-9a-f]+)", found) == keys
    fences = re.findall("Entry {entryId=-8192, entrySize", logged)
    assert found.count("Type:           META\nFenced\n\n") == len(fences) == 2
    assert re.findall(r"Eid=-32768.*\nType:           META\nExplicitLac:    (-?\d+)\n", found) == ["6"]


# -- metadata ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Apache's znodes while its three bookies ran, registrations included."""
    uri = f"sqlite://{tmp_path_factory.mktemp('golden')}/metadata.db"

    async def fill() -> None:
        tree = make_tree(service_uri.parse(uri), create=True)
        await tree.open()
        for node in json.loads(fixture_path("zk", "tree-running.json").read_text()):
            if node["path"].startswith("/ledgers"):
                data = base64.b64decode(node["data"] or "")
                try:
                    await tree.create(node["path"], data, parents=True)
                except NodeExistsError:
                    await tree.set(node["path"], data, ANY_VERSION)
        await tree.close()

    asyncio.run(fill())
    return uri


def logged(name: str) -> list[str]:
    """The lines of a recorded run without the command, the log's time and level, and the exit code."""
    lines = fixture_path("shell", "with-attributes", name).read_text().splitlines()
    return [re.sub(r"^[0-9:,]{12} INFO  ", "", line) for line in lines[1:-1]]


@pytest.mark.parametrize(
    ("ledger_id", "name"),
    [(4, "4-custom"), (6, "6-ensemble-change"), (9, "9-open"), (17, "17-v1")],
)
def test_ledger_metadata_reads_as_upstream_writes_it(
    shell: Shell, uri: str, ledger_id: int, name: str
) -> None:
    (head, line) = logged(f"ledgermetadata-{name}.txt")
    assert head == f"ledgerID {{ledgerId={ledger_id}}}"
    metadata = line.removeprefix("log entry {metadata=").removesuffix("}")
    found = shell("ledgermetadata", "-ledgerid", str(ledger_id), "-u", uri)
    assert found == [f"ledgerID: {ledger_id}", metadata]


def test_all_ledgers_with_their_metadata_are_listed(shell: Shell, uri: str) -> None:
    expected = []
    for line in logged("listledgers-meta.txt"):
        match = re.fullmatch(r"log entry \{ledgerId=(\d+), metadata=(.*)\}", line)
        assert match is not None, line
        expected += [f"ledgerID: {match[1]}", match[2]]
    assert shell("listledgers", "-meta", "-u", uri) == expected
    assert shell("listledgers", "-u", uri) == expected[::2]
    assert len(expected) == 38


@pytest.mark.parametrize(("flag", "name"), [("-a", "all"), ("-rw", "rw")])
def test_bookies_are_listed_with_address_and_host_name(shell: Shell, uri: str, flag: str, name: str) -> None:
    head, *lines = logged(f"listbookies-{name}.txt")
    expected = [line.removeprefix("bookie {bookieAddr=").removesuffix("}") for line in lines]
    found = shell("listbookies", flag, "-u", uri)
    assert found[0] == head.removesuffix(" {}")
    # The name of 127.0.0.1 is a matter of the machine.
    assert [line.rpartition(", ")[0] for line in found[1:]] == [line.rpartition(", ")[0] for line in expected]


def test_a_cookie_is_shown_between_rulers(shell: Shell, uri: str) -> None:
    assert shell("cookie_get", "127.0.0.1:3181", "-u", uri) == logged("cookie_get.txt")


def test_the_instance_id_is_shown_with_the_metadata_uri(shell: Shell, uri: str) -> None:
    (line,) = logged("whatisinstanceid.txt")
    match = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", line)
    assert match is not None
    assert shell("whatisinstanceid", "-u", uri) == [f"Metadata Service Uri: {uri} InstanceId: {match[0]}"]
