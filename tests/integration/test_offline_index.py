"""Looking at the index and the cookies of a running bookie process, which works on meanwhile."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.bookies import BookieProcess, bkctl, bookies, wait_until

pytestmark = pytest.mark.slow

WRITE = ("-E", "1", "-Q", "1", "-A", "1")
SETTINGS = ("flushInterval=200", "logSizeLimit=65536", "dbStorage_writeCacheMaxSizeMb=4")


def written(uri: str, lines: int) -> None:
    content = b"".join(b"%d %s\n" % (i, b"x" * 100) for i in range(lines))
    assert bkctl("ledger", "write", *WRITE, "-u", uri, stdin=content).returncode == 0


def names_of(bookie: BookieProcess) -> set[str]:
    below = bookie.directory / "ledgers"
    return {str(path.relative_to(below)) for path in below.rglob("*") if path.suffix not in (".log", ".sst")}


@contextlib.contextmanager
def writing(uri: str) -> Iterator[None]:
    """Ledgers are written meanwhile."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            written(uri, 500)

    writer = threading.Thread(target=run)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def test_index_of_a_working_bookie_is_sound_and_undisturbed(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 1, SETTINGS) as (bookie,):
        place = ("-l", str(bookie.directory / "ledgers"))
        written(uri, 500)

        def flushed() -> bool:
            stats = bkctl("index", "stats", *place, "-o", "json")
            assert stats.returncode == 0, stats.stderr
            assert b"is in use by process" in stats.stderr
            return json.loads(stats.stdout)["items"][0]["entries"] >= 500  # type: ignore[no-any-return]

        wait_until(flushed, "the entries are in the index")
        before = {name for name in names_of(bookie) if "MANIFEST" not in name and "OPTIONS" not in name}
        with writing(uri):
            for _ in range(5):
                verified = bkctl("index", "verify", *place)
                assert verified.returncode == 0, (verified.stdout, verified.stderr)
                assert b"nothing wrong" in verified.stderr
        assert before <= names_of(bookie)
        assert not [name for name in names_of(bookie) if name.endswith((".tmp", ".dbtmp"))]
        files = json.loads(bkctl("bookie", "files", *place, "-o", "json").stdout)["items"]
        assert {"entrylog", "index", "cookie", "mark"} <= {row["type"] for row in files}
        assert bookie.stop() == 0


def test_cookie_diff_takes_what_bookie_start_takes(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 1) as (bookie,):
        options = [
            "-u", uri, "-p", "0", "--bookie-id", bookie.name, "--advertised-address", "127.0.0.1",
            "--set", "allowLoopback=true", "-j", str(bookie.directory / "journal"),
        ]  # fmt: skip
        same = bkctl("cookie", "diff", *options, "-l", str(bookie.directory / "ledgers"))
        assert same.returncode == 0, same.stderr
        other = bkctl(
            "cookie", "diff", *options, "-l", str(bookie.directory / "ledgers" / "."), "-l", str(tmp_path)
        )
        assert other.returncode == 8
        assert b"ledger_directories differs: configure ledgerDirectories=" in other.stderr
