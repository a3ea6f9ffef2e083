"""`bkctl ledger` against real bookies: bytes in, the same bytes out; one writer; signals and pipes."""

import json
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command_line import CommandLine, eventually, interrupted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bkctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """With a cluster of three bookies as the current context."""
    command_line = CommandLine.below(tmp_path_factory.mktemp("ledger"))
    assert command_line.run("cluster", "up", "-d").returncode == 0
    yield command_line
    assert command_line.run("cluster", "down").returncode == 0


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test(bkctl: CommandLine) -> Iterator[None]:
    yield
    bkctl.end_all()


def written(bkctl: CommandLine, data: bytes, *arguments: str) -> str:
    return bkctl.run("ledger", "write", "-o", "name", *arguments, stdin=data).stdout.decode().strip()


def random_frames(seed: int) -> bytes:
    rng = random.Random(seed)
    sizes = [0, 1, 1 << 20, *(int(2 ** (14 * rng.random())) for _ in range(3000))]
    rng.shuffle(sizes)
    return b"".join(size.to_bytes(4, "big") + rng.randbytes(size) for size in sizes)


@pytest.mark.parametrize("digest", ["crc32c", "crc32", "mac", "dummy"])
def test_length_frames_come_back_byte_for_byte(bkctl: CommandLine, digest: str) -> None:
    data = random_frames(seed=1)
    ledger = written(bkctl, data, "--entry-per", "len", "--digest", digest, "-w", "2")
    assert bkctl.run("ledger", "read", ledger, "--raw", "--entry-per", "len").stdout == data


def test_lines_come_back_byte_for_byte(bkctl: CommandLine) -> None:
    data = b"".join(b"line %d \xff\r\n\n" % i for i in range(20_000))
    assert bkctl.run("ledger", "read", written(bkctl, data), "--raw").stdout == data


def test_files_are_entries(bkctl: CommandLine, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "empty")]
    for file, content in zip(files, (b"one\n", b"\x00" * 100_000, b""), strict=True):
        file.write_bytes(content)
    (row,) = bkctl.items("ledger", "write", "--entry-per", "file", *map(str, files))
    assert (row["entries"], row["payload_bytes"]) == (3, 100_004)
    result = bkctl.run("ledger", "read", str(row["ledger_id"]), "--raw", "--entry-per", "none")
    assert result.stdout == b"one\n" + b"\x00" * 100_000


def test_write_reports_what_it_stored(bkctl: CommandLine) -> None:
    (row,) = bkctl.items("ledger", "write", "--id", "0x7777", "--meta", "owner=me", stdin=b"a\nbc\n\nd")
    assert row == {
        "ledger_id": 0x7777,
        "state": "CLOSED",
        "entries": 4,
        "first_entry_id": 0,
        "last_entry_id": 3,
        "last_add_confirmed": 3,
        "payload_bytes": 4,
    }
    (shown,) = bkctl.items("ledger", "show", "0x7777")
    assert (shown["last_entry_id"], shown["length"], shown["custom_metadata"]) == (3, 4, {"owner": "me"})


def test_no_input_makes_an_empty_closed_ledger(bkctl: CommandLine) -> None:
    (row,) = bkctl.items("ledger", "write")
    assert (row["entries"], row["last_entry_id"], row["state"]) == (0, -1, "CLOSED")
    assert bkctl.run("ledger", "read", str(row["ledger_id"]), "--raw").stdout == b""


def test_ids_stream_as_lines_of_json(bkctl: CommandLine) -> None:
    lines = bkctl.run("ledger", "write", "--ids", stdin=b"a\nb\nc\n").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"entry_id": 0}, {"entry_id": 1}, {"entry_id": 2}]


def test_read_shows_text_as_text_and_the_rest_as_hex(bkctl: CommandLine) -> None:
    ledger = written(bkctl, b"caf\xc3\xa9\n\xff\x00\n")
    lines = bkctl.run("ledger", "read", ledger).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"entry_id": 0, "length": 5, "payload": "café"},
        {"entry_id": 1, "length": 2, "payload_hex": "ff00"},
    ]
    table = bkctl.run("ledger", "read", f"{ledger}:0", "--hex", "-o", "table").stdout.decode().splitlines()
    assert table[1].split() == ["0", "5", "-", "636166c3a9"]


def test_read_takes_ranges_and_refuses_what_is_not_there(bkctl: CommandLine) -> None:
    ledger = written(bkctl, b"".join(b"%d\n" % i for i in range(100)))
    assert bkctl.run("ledger", "read", f"{ledger}:5-7", "--raw").stdout == b"5\n6\n7\n"
    assert bkctl.run("ledger", "read", f"{ledger}:98-", "--raw").stdout == b"98\n99\n"
    beyond = bkctl.run("ledger", "read", f"{ledger}:50-100", "--raw")
    assert (beyond.returncode, beyond.stdout) == (3, b"")
    assert b"the last one is 99" in beyond.stderr
    assert bkctl.run("ledger", "read", "424242").returncode == 3


def test_a_closed_ledger_takes_no_more(bkctl: CommandLine) -> None:
    result = bkctl.run("ledger", "write", written(bkctl, b"a\n"), stdin=b"b\n")
    assert result.returncode == 8
    assert b"is CLOSED and takes no more entries" in result.stderr


def test_a_created_ledger_has_exactly_one_writer(bkctl: CommandLine) -> None:
    (created,) = bkctl.items("ledger", "create", "--meta", "k=v")
    ledger = str(created["ledger_id"])
    rivals = [bkctl.start("ledger", "write", ledger, "-o", "json") for _ in range(3)]
    for number, rival in enumerate(rivals):
        assert rival.stdin is not None
        rival.stdin.write(b"from %d\n" % number)
    outcomes = [(rival.communicate(timeout=60), rival.returncode) for rival in rivals]
    assert sorted(code for _, code in outcomes) == [0, 8, 8]
    winner = next(number for number, (_, code) in enumerate(outcomes) if code == 0)
    assert bkctl.run("ledger", "read", ledger, "--raw").stdout == b"from %d\n" % winner
    assert bkctl.items("ledger", "show", ledger)[0]["custom_metadata"] == {"k": "v"}


def test_an_open_ledger_that_had_a_writer_takes_no_second_one(bkctl: CommandLine) -> None:
    ledger = written(bkctl, b"a\n", "--keep-open")
    result = bkctl.run("ledger", "write", ledger, stdin=b"b\n")
    assert result.returncode == 8
    assert b"has or had a writer" in result.stderr


def test_too_few_bookies_are_unreachable(bkctl: CommandLine) -> None:
    result = bkctl.run("ledger", "write", "-E", "4", stdin=b"a\n")
    assert result.returncode == 6
    assert result.stderr.count(b"\n") == 1


def test_a_wrong_password_is_not_authorised(bkctl: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("secret\n")
    (tmp_path / "wrong").write_text("guess\n")
    ledger = written(bkctl, b"a\n", "--password-file", str(tmp_path / "right"))
    assert bkctl.run("ledger", "read", ledger, "--password-file", str(tmp_path / "wrong")).returncode == 5
    assert bkctl.run("ledger", "read", ledger, "--raw").stdout == b"a\n"


def writing(bkctl: CommandLine, ledger_id: int, *arguments: str) -> "subprocess.Popen[bytes]":
    """A writer that has stored `first` and waits for more on its stdin."""
    process = bkctl.start("ledger", "write", "--ids", "--id", str(ledger_id), *arguments)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"first\n")
    process.stdin.flush()
    assert process.stdout.readline() == b'{"entry_id":0}\n'
    return process


def test_fence_stops_a_running_writer_and_recover_closes_its_ledger(bkctl: CommandLine) -> None:
    writer = writing(bkctl, 9001)
    refused = bkctl.run("ledger", "fence", "9001")
    assert refused.returncode == 4
    assert b"--yes" in refused.stderr
    (fenced,) = bkctl.items("ledger", "fence", "9001", "--yes")
    assert fenced["state"] == "IN_RECOVERY"
    _, err = writer.communicate(b"second\n", timeout=60)
    assert writer.returncode == 8
    assert b"fenced" in err.lower()
    (recovered,) = bkctl.items("ledger", "recover", "9001", "--yes")
    assert (recovered["state"], recovered["last_entry_id"]) == ("CLOSED", 0)
    assert bkctl.run("ledger", "read", "9001", "--raw").stdout == b"first\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_writing_closes_the_ledger_at_what_is_stored(
    bkctl: CommandLine, number: int, code: int
) -> None:
    ledger = str(9200 + number)
    status, _, err = interrupted(writing(bkctl, int(ledger)), number)
    assert (status, err) == (code, f"ledger {ledger}: stored up to entry 0 before it stopped\n".encode())
    (shown,) = bkctl.items("ledger", "show", ledger)
    assert (shown["state"], shown["last_entry_id"]) == ("CLOSED", 0)


def test_lac_shows_what_each_bookie_knows(bkctl: CommandLine) -> None:
    writer = writing(bkctl, 9003)
    rows = bkctl.items("ledger", "lac", "9003")
    assert len(rows) == 3
    assert {row["last_entry_id"] for row in rows if row["state"] == "ok"} == {0}
    assert sum(row["state"] == "ok" for row in rows) >= 2
    writer.communicate(timeout=60)
    assert bkctl.run("ledger", "lac", "99999").returncode == 3


def test_tail_follows_a_writer_until_the_ledger_is_closed(bkctl: CommandLine) -> None:
    writer = writing(bkctl, 9004)
    tail = bkctl.start("ledger", "tail", "9004", "--raw")
    assert tail.stdout is not None
    assert tail.stdout.readline() == b"first\n"  # although no later entry confirms it
    writer.communicate(b"second\nthird\n", timeout=60)
    assert tail.communicate(timeout=60)[0] == b"second\nthird\n"
    assert tail.returncode == 0


def test_tail_begins_with_the_last_entries_or_where_told(bkctl: CommandLine) -> None:
    ledger = written(bkctl, b"".join(b"%d\n" % i for i in range(100)))
    assert bkctl.run("ledger", "tail", ledger, "-n", "2", "--raw").stdout == b"98\n99\n"
    assert bkctl.run("ledger", "tail", ledger, "--from", "97", "--raw").stdout == b"97\n98\n99\n"


def test_ctrl_c_ends_a_tail_without_words(bkctl: CommandLine) -> None:
    writing(bkctl, 9005)
    tail = bkctl.start("ledger", "tail", "9005", "--raw")
    assert tail.stdout is not None
    assert tail.stdout.readline() == b"first\n"
    assert interrupted(tail) == (130, b"", b"")


def test_a_reader_that_leaves_the_pipe_is_no_error(bkctl: CommandLine) -> None:
    big = written(bkctl, b"".join(b"%d %s\n" % (i, b"x" * 1000) for i in range(5000)))
    reader = bkctl.start("ledger", "read", big, "--raw")
    assert reader.stdout is not None
    assert reader.stdout.readline().startswith(b"0 ")
    reader.stdout.close()
    assert reader.stderr is not None
    assert reader.stderr.read() == b""
    assert reader.wait(timeout=60) == 141


def test_timeout_ends_a_command_with_124(bkctl: CommandLine) -> None:
    ledger = written(bkctl, b"a\n", "--keep-open")
    result = bkctl.run("ledger", "tail", ledger, "--timeout", "0.5")
    assert result.returncode == 124
    assert b"--timeout" in result.stderr


def test_damaged_input_closes_the_ledger_and_says_so(bkctl: CommandLine) -> None:
    result = bkctl.run(
        "ledger", "write", "--id", "9100", "--entry-per", "len", stdin=b"\0\0\0\x01a\xff\xff\xff\xff"
    )
    assert result.returncode == 2
    assert b"announces 4294967295 bytes" in result.stderr
    assert bkctl.items("ledger", "show", "9100")[0]["state"] == "CLOSED"


def test_bench_measures_and_deletes_its_ledger(bkctl: CommandLine) -> None:
    before = bkctl.items("ledger", "list", "--count")
    (row,) = bkctl.items("bench", "write", "-n", "5000", "--size", "100")
    assert (row["entries"], row["entry_bytes"]) == (5000, 100)
    assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"] <= row["max_ms"] < row["seconds"] * 1000
    assert 5000 / row["adds_per_s"] == pytest.approx(row["seconds"], abs=0.000501)  # shown to the ms
    assert row["cpu_us_per_add"] > 0
    assert bkctl.items("ledger", "list", "--count") == before


def test_bench_deletes_its_ledger_when_interrupted(bkctl: CommandLine) -> None:
    (before,) = bkctl.items("ledger", "list", "--count")
    bench = bkctl.start("bench", "write", "--seconds", "50")
    eventually(
        lambda: bkctl.items("ledger", "list", "--count")[0]["count"] == before["count"] + 1,
        "the bench has a ledger",
    )
    assert interrupted(bench)[0] == 130
    assert bkctl.items("ledger", "list", "--count") == [before]


def test_bench_reads_a_ledger(bkctl: CommandLine) -> None:
    ledger = written(bkctl, b"".join(b"%0100d\n" % i for i in range(2000)))
    (row,) = bkctl.items("bench", "read", ledger)
    assert (row["entries"], row["entry_bytes"]) == (2000, 100)
    (part,) = bkctl.items("bench", "read", ledger, "-n", "10", "--outstanding", "1")
    assert part["entries"] == 10


def test_bookie_show_asks_the_bookie(bkctl: CommandLine) -> None:
    bookie_id = bkctl.items("bookie", "list", "--rw")[0]["bookie_id"]
    (row,) = bkctl.items("bookie", "show", bookie_id)
    assert (row["bookie_id"], row["state"], row["address"]) == (bookie_id, "rw", bookie_id)
    assert 0 < row["free_bytes"] <= row["total_bytes"]
    assert row["cookie"]["ledger_directories"].startswith("1\t/")
    assert bkctl.run("bookie", "show", "127.0.0.1:1").returncode == 3


def test_slow_input_is_stored_as_it_comes(bkctl: CommandLine) -> None:
    """Each line is stored when it is there, not when the pipe is full or closed."""
    writer = bkctl.start("ledger", "write", "--ids")
    assert writer.stdin is not None
    assert writer.stdout is not None
    timer = threading.Timer(60, writer.kill)
    timer.start()
    for number in range(3):
        writer.stdin.write(b"entry\n")
        writer.stdin.flush()
        assert json.loads(writer.stdout.readline()) == {"entry_id": number}
    writer.communicate(timeout=60)
    timer.cancel()
