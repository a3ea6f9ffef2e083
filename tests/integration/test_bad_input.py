"""What a running bookie process answers to bad input, and what the start of one says: one clear line each."""

import shutil
import socket
import struct
from pathlib import Path

import pytest

from tests.integration.bookies import BookieProcess, bkctl, bookies

pytestmark = pytest.mark.slow


def refused_start(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """(exit code, last line of stderr) of a bookie that must not start."""
    directories = ["-j", str(tmp_path / "journal"), "-l", str(tmp_path / "ledgers")]
    done = bkctl("bookie", "start", "--set", "allowLoopback=true", *directories, *arguments)
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stderr.decode().splitlines()[-1]


def test_a_bookie_says_in_one_line_why_it_does_not_start(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    assert bkctl("cluster", "init", "-u", uri).returncode == 0
    here = ["-u", uri, "--advertised-address", "127.0.0.1", "--bookie-id", "b"]

    assert refused_start(tmp_path, "-u", "foo://x")[1].startswith("bkctl: ")
    code, line = refused_start(tmp_path, "-u", f"sqlite://{tmp_path}/nowhere.db")
    assert (code, "bkctl cluster init" in line) == (3, True)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused_start(tmp_path, *here, "-p", port)
    assert (code, f"port {port}" in line) == (2, True)

    conf = tmp_path / "bk_server.conf"
    conf.write_text("bookiePort=many\n")
    code, line = refused_start(tmp_path, *here, "-c", str(conf))
    assert (code, f"{conf}:1" in line) == (1, True)

    conf.write_text("tlsProviderFactoryClass=x\n")
    code, line = refused_start(tmp_path, *here, "-c", str(conf))
    assert (code, f"{conf}:1: tlsProviderFactoryClass: TLS" in line) == (1, True)

    (tmp_path / "file").write_text("not a directory")
    code, line = refused_start(tmp_path, *here, "-p", "0", "-j", str(tmp_path / "file"))
    assert (code, str(tmp_path / "file") in line) == (5, True)


def test_an_unknown_key_is_a_warning_and_the_bookie_serves(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 1, ["jornalMaxSizeMB=1"]) as (bookie,):
        assert "did you mean journalMaxSizeMB?" in bookie.log.read_text()


def test_directories_of_another_bookie_are_refused_and_unharmed(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 2) as (one, two):
        one.stop()
        two.stop()
        other = BookieProcess(uri, one.directory, "bookie-2")
        other.start(wait=False)
        assert other.process is not None
        assert other.process.wait(30) == 5
        assert "is not of this bookie" in one.log.read_text()
        other.kill()
        one.start()
        two.start()


def test_garbage_on_the_wire_harms_no_other_client(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 1) as (bookie,):
        host, port = bookie.address.rsplit(":", 1)
        over = struct.pack(">i", 1 << 30)
        unknown = struct.pack(">iI", 4, 0x02FF0000)
        for garbage in (
            over,
            unknown,
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x00" * 100,
            b"\x0a" * 64,
            b"\xff" * 4096,
        ):
            with socket.create_connection((host, int(port)), timeout=10) as peer:
                peer.sendall(garbage)
                try:
                    assert peer.recv(1) == b""
                except ConnectionResetError:
                    pass
        shape = ["-E", "1", "-Q", "1", "-A", "1"]
        written = bkctl("ledger", "write", "-u", uri, *shape, "-o", "name", stdin=b"still\nthere\n")
        assert written.returncode == 0, written.stderr
        ledger_id = written.stdout.decode().strip()
        assert bkctl("ledger", "read", "-u", uri, ledger_id, "--raw").stdout == b"still\nthere\n"


def test_an_entry_over_the_maximum_is_refused_by_the_client(tmp_path: Path) -> None:
    uri = f"sqlite://{tmp_path}/metadata.db"
    with bookies(uri, tmp_path, 1):
        shape = ["-E", "1", "-Q", "1", "-A", "1"]
        done = bkctl("ledger", "write", "-u", uri, *shape, stdin=b"x" * (6 << 20) + b"\n")
        assert done.returncode == 2
        assert b"the most an entry holds" in done.stderr


def test_a_metadata_file_that_vanishes_is_lost_not_empty(tmp_path: Path) -> None:
    """The bookie keeps its data and never takes the absence for an empty cluster."""
    uri = f"sqlite://{tmp_path}/store/metadata.db"
    (tmp_path / "store").mkdir()
    with bookies(uri, tmp_path, 1) as (bookie,):
        shape = ["-E", "1", "-Q", "1", "-A", "1"]
        assert bkctl("ledger", "write", "-u", uri, *shape, stdin=b"kept\n").returncode == 0
        moved = tmp_path / "moved"
        shutil.move(tmp_path / "store", moved)
        done = bkctl("ledger", "list", "-u", uri)
        assert done.returncode in (3, 6)
        assert done.stdout == b""
        shutil.move(moved, tmp_path / "store")
        assert bookie.process is not None
        assert bookie.process.poll() is None
