"""bkctl client and commands → Java bookies: the commands."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bkctl.cli.exit_codes import ExitCode
from bkctl.types import DigestType
from tests.integration.command_line import CommandLine, eventually
from tests.interop.apache import JavaClient
from tests.interop.busy_writer import SIZE
from tests.interop.java_bookies import JavaCluster, payloads
from tests.interop.payload import digest, expected

ENTRIES = 3000


class Commands:
    """`bkctl ARGUMENTS` on one cluster."""

    def __init__(self, command_line: CommandLine, uri: str) -> None:
        self._command_line = command_line
        self._uri = uri

    def run(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes]:
        """Exit code and stdout."""
        done = self._command_line.run(*arguments, "-u", self._uri, stdin=stdin)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stdout

    def items(self, *arguments: str, stdin: bytes = b"") -> list[dict[str, Any]]:
        return self._command_line.items(*arguments, "-u", self._uri, stdin=stdin)

    def item(self, *arguments: str, stdin: bytes = b"") -> dict[str, Any]:
        [item] = self.items(*arguments, stdin=stdin)
        return item

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        return self._command_line.start(*arguments, "-u", self._uri)


@pytest.fixture
def bkctl(cluster: JavaCluster, tmp_path: Path) -> Iterator[Commands]:
    command_line = CommandLine.below(tmp_path)
    yield Commands(command_line, cluster.uri)
    command_line.end_all()


def frames(last: int, size: int = SIZE) -> bytes:
    """Entries 0 to `last` as `--entry-per len` frames them."""
    return b"".join(len(body).to_bytes(4, "big") + body for body in payloads(0, last, size))


def bodies_of(rows: list[dict[str, Any]]) -> list[tuple[int, bytes]]:
    return [
        (row["entry_id"], row["payload"].encode() if "payload" in row else bytes.fromhex(row["payload_hex"]))
        for row in rows
    ]


def test_cluster_info_and_status_count_java_bookies(cluster: JavaCluster, bkctl: Commands) -> None:
    info = bkctl.item("cluster", "info")
    assert (info["layout"], info["metadata_uri"]) == ("hierarchical", cluster.uri)
    bkctl.item("ledger", "write", stdin=b"entry\n")
    status = bkctl.item("cluster", "status")
    assert (status["state"], status["writable"], status["readonly"], status["lost"]) == ("ok", 3, 0, 0)
    assert status["instance_id"] == info["instance_id"]
    assert status["ledgers"] == status["open"] + status["in_recovery"] + status["closed"] > 0


def test_bookie_list_and_show_tell_what_java_bookies_publish(cluster: JavaCluster, bkctl: Commands) -> None:
    rows = bkctl.items("bookie", "list")
    assert [row["bookie_id"] for row in rows] == ["b1", "b2", "b3"]
    instance_id = bkctl.item("cluster", "info")["instance_id"]
    for row, bookie in zip(rows, cluster.bookies, strict=True):
        assert (row["state"], row["address"], row["cookie"]) == ("rw", bookie.address, True)
        shown = bkctl.item("bookie", "show", bookie.name)
        assert (shown["state"], shown["address"]) == ("rw", bookie.address)
        assert [e["protocol"] for e in shown["endpoints"]] == ["bookie-rpc"]
        assert 0 < shown["free_bytes"] < shown["total_bytes"]
        assert shown["cookie"]["instance_id"] == instance_id
        assert str(bookie.directory) in shown["cookie"]["ledger_directories"]
    assert bkctl.run("bookie", "show", "nobody")[0] == ExitCode.NOT_FOUND


@pytest.mark.parametrize("kind", DigestType, ids=lambda kind: kind.name)
def test_ledger_write_and_read_keep_every_byte_also_for_java(
    bkctl: Commands, java: JavaClient, tmp_path: Path, kind: DigestType
) -> None:
    password = tmp_path / "password"
    password.write_bytes(b"secret")
    options = ("--entry-per", "len", "--digest", kind.name.lower(), "--password-file", str(password))
    row = bkctl.item("ledger", "write", *options, "-w", "2", "-a", "2", stdin=frames(ENTRIES - 1))
    assert (row["state"], row["entries"], row["last_entry_id"]) == ("CLOSED", ENTRIES, ENTRIES - 1)
    assert row["payload_bytes"] == ENTRIES * SIZE
    ledger = str(row["ledger_id"])
    assert bkctl.run("ledger", "read", ledger, "--raw", "--entry-per", "len") == (0, frames(ENTRIES - 1))
    rows = bkctl.items("ledger", "read", f"{ledger}:100-199", "--hex")
    assert digest(bodies_of(rows)) == expected(100, 199, SIZE)
    secret = base64.b64encode(b"secret").decode()
    java.call("open", handle="r", id=row["ledger_id"], digest=kind.name, password=secret)
    read = java.call("read", handle="r", first=0, last=ENTRIES - 1)
    assert read["sha256"] == expected(0, ENTRIES - 1, SIZE)

    password.write_bytes(b"wrong")
    code, out = bkctl.run("ledger", "read", ledger, "--password-file", str(password))
    assert (code, out) == (ExitCode.NOT_AUTHORISED, b"")


def test_ledger_read_reads_what_java_wrote(bkctl: Commands, java: JavaClient) -> None:
    ledger_id = java.call("create", handle="w", write=2)["id"]
    assert java.call("add", handle="w", count=ENTRIES, size=SIZE)["acked"] == ENTRIES
    java.call("close", handle="w")
    got = bkctl.run("ledger", "read", str(ledger_id), "--raw", "--entry-per", "len")
    assert got == (0, frames(ENTRIES - 1))
    code, out = bkctl.run("ledger", "read", f"{ledger_id}:{ENTRIES}")
    assert (code, out) == (ExitCode.NOT_FOUND, b"")


def test_created_ledger_is_shown_listed_filled_and_deleted(bkctl: Commands) -> None:
    created = bkctl.item("ledger", "create", "-E", "3", "-w", "2", "-a", "1", "--meta", "owner=me")
    ledger = str(created["ledger_id"])
    assert created["state"] == "OPEN"
    assert bkctl.item("ledger", "write", ledger, stdin=b"one\ntwo\n")["state"] == "CLOSED"
    shown = bkctl.item("ledger", "show", ledger)
    sizes = (shown["ensemble_size"], shown["write_quorum_size"], shown["ack_quorum_size"])
    assert sizes == (3, 2, 1)
    assert (shown["state"], shown["last_entry_id"], shown["length"]) == ("CLOSED", 1, 6)
    assert shown["custom_metadata"] == {"owner": "me"}
    assert set(shown["segments"][0]["ensemble"]) == {"b1", "b2", "b3"}
    assert shown in bkctl.items("ledger", "list")
    assert bkctl.run("ledger", "delete", ledger)[0] == ExitCode.REFUSED
    assert bkctl.item("ledger", "delete", ledger, "--confirm", "1")["state"] == "ok"
    assert bkctl.run("ledger", "show", ledger)[0] == ExitCode.NOT_FOUND
    assert shown not in bkctl.items("ledger", "list")


def test_ledger_lac_shows_each_bookies_view(bkctl: Commands) -> None:
    row = bkctl.item("ledger", "write", "--entry-per", "len", "--keep-open", stdin=frames(9))
    assert (row["state"], row["last_add_confirmed"]) == ("OPEN", 9)
    rows = bkctl.items("ledger", "lac", str(row["ledger_id"]))
    assert {row["bookie_id"] for row in rows} == {"b1", "b2", "b3"}
    for row in rows:
        assert (row["state"], row["last_entry_id"], row["error"]) == ("ok", 9, None)


def test_ledger_tail_follows_a_java_writer_to_the_end(bkctl: Commands, java: JavaClient) -> None:
    ledger_id = java.call("create", handle="w")["id"]
    for _ in range(10):  # each confirms the one before
        java.call("add", handle="w", count=1, size=SIZE)
    tail = bkctl.start("ledger", "tail", str(ledger_id), "--from", "0", "--hex", "-o", "jsonl")
    assert tail.stdout is not None
    seen = [tail.stdout.readline() for _ in range(9)]  # while the ledger is open
    assert java.call("close", handle="w")["last_entry_id"] == 9
    out, err = tail.communicate(timeout=30)
    assert (tail.returncode, err) == (0, b"")
    rows = [json.loads(line) for line in [*seen, *out.splitlines()]]
    assert digest(bodies_of(rows)) == expected(0, 9, SIZE)


def test_ledger_fence_stops_a_java_writer_and_recover_closes(bkctl: Commands, java: JavaClient) -> None:
    ledger_id = java.call("create", handle="w")["id"]
    ledger = str(ledger_id)
    java.call("start_adds", handle="w", count=10_000_000, size=SIZE)
    eventually(lambda: java.call("handle", handle="w")["lac"] >= 300, "300 entries")
    assert bkctl.run("ledger", "fence", ledger)[0] == ExitCode.REFUSED
    fenced = bkctl.item("ledger", "fence", ledger, "--yes")
    assert (fenced["state"], fenced["errors"]) == ("IN_RECOVERY", {})
    done = java.call("wait_adds", handle="w")
    assert done["error"] == "BKLedgerFencedException"
    recovered = bkctl.item("ledger", "recover", ledger, "--yes")
    end = recovered["last_entry_id"]
    assert (recovered["state"], recovered["errors"]) == ("CLOSED", {})
    assert done["last_acked"] <= end
    assert bkctl.run("ledger", "read", ledger, "--raw", "--entry-per", "len") == (0, frames(end))
    assert java.call("open", handle="r", id=ledger_id)["last_entry_id"] == end


def test_bench_writes_to_and_reads_from_java_bookies(bkctl: Commands) -> None:
    row = bkctl.item("bench", "write", "-n", "5000", "--size", "1024", "--keep")
    assert (row["entries"], row["entry_bytes"], row["ensemble_size"]) == (5000, 1024, 3)
    assert row["adds_per_s"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    ledger = str(row["ledger_id"])
    assert bkctl.item("ledger", "show", ledger)["length"] == 5000 * 1024
    read = bkctl.item("bench", "read", ledger)
    assert (read["entries"], read["entry_bytes"]) == (5000, 1024)
    assert 0 < read["p50_ms"] <= read["max_ms"]
    gone = bkctl.item("bench", "write", "-n", "100")["ledger_id"]
    assert bkctl.run("ledger", "show", str(gone))[0] == ExitCode.NOT_FOUND
