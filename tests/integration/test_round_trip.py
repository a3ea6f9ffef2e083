"""What goes into `ledger write` comes out of `ledger read --raw`, byte for byte, whatever happens meanwhile.

BKCTL_ROUND_TRIP_ENTRIES (20,000) says how many entries; `make torture` sends a million.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.bookies import bkctl, bookies

ENTRIES = int(os.environ.get("BKCTL_ROUND_TRIP_ENTRIES", "20000"))
_CHUNK_ENTRIES = 1000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + ENTRIES // 100)]


def framed_entries(count: int, seed: int = 7) -> Iterator[bytes]:
    """Length frames of random entries, 0 B to 1 MiB: most are small, as in life, one in fifty is empty."""
    rng = random.Random(seed)
    bounds = rng.choices((0, 600, 8 << 10, 64 << 10, 1 << 20), (20, 880, 94, 5, 1), k=count)
    pool = rng.randbytes(4 << 20)
    for start in range(0, count, _CHUNK_ENTRIES):
        parts = []
        for number in range(start, min(start + _CHUNK_ENTRIES, count)):
            size = rng.randint(0, bounds[number])
            size = {0: 1 << 20, 1: 0, 2: 1}.get(number, size)  # the ends of the range are always there
            at = rng.randrange((4 << 20) - size)
            parts += (size.to_bytes(4, "big"), pool[at : at + size])
        yield b"".join(parts)


@pytest.mark.parametrize("striped", [False, True], ids=["three copies", "striped"])
def test_a_bookie_killed_and_restarted_meanwhile_changes_nothing(tmp_path: Path, striped: bool) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    count = 4 if striped else 3
    shape = ["-E", "3", "-Q", "2", "-A", "2"] if striped else ["-E", "3", "-Q", "3", "-A", "2"]
    with bookies(uri, tmp_path, count, ["journalMaxSizeMB=128", "journalMaxBackups=0"]) as running:
        command = [sys.executable, "-m", "bkctl", "ledger", "write", "-u", uri, *shape, "--entry-per", "len"]
        sent, killed = hashlib.sha256(), threading.Event()
        writer = subprocess.Popen([*command, "-o", "json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert writer.stdin is not None
        assert writer.stdout is not None

        def kill_and_restart() -> None:
            running[0].kill()
            running[0].start()
            killed.set()

        for number, chunk in enumerate(framed_entries(ENTRIES)):
            if number == (ENTRIES // _CHUNK_ENTRIES) // 3:
                threading.Thread(target=kill_and_restart).start()
            sent.update(chunk)
            writer.stdin.write(chunk)
        writer.stdin.close()
        (item,) = json.load(writer.stdout)["items"]
        assert writer.wait(60) == 0
        writer.stdout.close()
        assert killed.wait(60)
        assert item["entries"] == ENTRIES

        read_back = hashlib.sha256()
        command = [sys.executable, "-m", "bkctl", "ledger", "read", "-u", uri, str(item["ledger_id"])]
        with subprocess.Popen([*command, "--raw", "--entry-per", "len"], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            while chunk := reader.stdout.read(1 << 20):
                read_back.update(chunk)
        assert reader.returncode == 0
        assert read_back.hexdigest() == sent.hexdigest()
        shown = bkctl("ledger", "show", str(item["ledger_id"]), "-u", uri, "-o", "json")
        print(json.loads(shown.stdout)["items"][0])
