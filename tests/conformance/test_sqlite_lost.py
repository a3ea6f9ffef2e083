"""A store whose file is gone, another, broken or full is an error, never an empty cluster."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bkctl.errors import BadInputError, CorruptDataError, MetadataLostError, MetadataUnreachableError
from bkctl.metadata.api import EventKind, SessionState
from bkctl.metadata.sqlite import SqliteTree
from bkctl.metadata.sqlite_database import SCHEMA
from tests.conformance.tree_drivers import Events


async def _made(path: Path) -> SqliteTree:
    tree = SqliteTree(path, create=True)
    await tree.open()
    await tree.create("/ledgers/L1", b"metadata", parents=True)
    return tree


def _another_cluster(path: Path) -> Path:
    async def make() -> None:
        await (await _made(path)).close()

    asyncio.run(make())
    return path


def _delete(path: Path) -> None:
    path.unlink()


def _delete_all(path: Path) -> None:
    for file in path.parent.glob(path.name + "*"):
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()


def _replace(path: Path) -> None:
    os.replace(path.with_name("another.db"), path)


def _restore(path: Path) -> None:
    """Another cluster's backup, put into the same file by SQLite itself."""
    source, target = sqlite3.connect(path.with_name("another.db")), sqlite3.connect(path)
    source.backup(target)
    source.close()
    target.close()


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


TROUBLES = [_delete, _delete_all, _replace, _restore, _truncate, _empty]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    _another_cluster(tmp_path / "another.db")
    return tmp_path / "metadata.db"


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_file_that_is_gone_or_another_is_lost(path: Path, trouble: Callable[[Path], None]) -> None:
    tree, other = await _made(path), SqliteTree(path)
    await other.open()
    trouble(path)
    for session in (tree, other):
        with pytest.raises(MetadataLostError, match=str(path)):
            await session.children("/ledgers")
        assert session.session_state is SessionState.LOST
        with pytest.raises(MetadataLostError):
            await session.create("/new")
        await session.close()


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_watch_tells_of_it_without_being_asked(path: Path, trouble: Callable[[Path], None]) -> None:
    tree = await _made(path)
    events = Events()
    await tree.children("/ledgers", events)
    trouble(path)
    assert (await events.first()).kind is EventKind.LOST
    await tree.close()


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_session_does_not_move_into_another_store(
    path: Path, trouble: Callable[[Path], None]
) -> None:
    tree = await _made(path)
    await tree.create("/mine", ephemeral=True)
    trouble(path)
    with pytest.raises(MetadataLostError):
        await tree.sync("/")
    with pytest.raises((MetadataLostError, MetadataUnreachableError), match=str(path)):
        await tree.reopen()
    assert tree.session_state is SessionState.LOST
    await tree.close()
    if trouble in (_delete, _delete_all):
        assert not path.exists()  # `create` is for the first time only


async def test_a_file_put_back_can_be_opened_again(path: Path) -> None:
    tree = await _made(path)
    await tree.create("/mine", ephemeral=True)
    session_id = tree.session_id
    path.rename(path.with_name("away.db"))
    with pytest.raises(MetadataLostError):
        await tree.get("/ledgers/L1")
    path.with_name("away.db").rename(path)
    await tree.reopen()
    assert tree.session_id != session_id
    assert (await tree.get("/ledgers/L1")).data == b"metadata"
    assert await tree.exists("/mine") is None
    await tree.close()


async def _refused(tree: SqliteTree, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        await tree.open()
    assert tree.session_state is SessionState.LOST
    await tree.close()


@pytest.mark.parametrize("name", ["missing.db", "missing/metadata.db"])
async def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    await _refused(SqliteTree(path), MetadataUnreachableError, f"no metadata database at {path}")
    assert not path.exists()


async def test_a_store_is_not_made_in_a_missing_directory(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "metadata.db"
    await _refused(SqliteTree(path, create=True), MetadataUnreachableError, str(path))


@pytest.mark.parametrize("create", [False, True])
async def test_an_empty_file_is_no_store(tmp_path: Path, create: bool) -> None:
    """Emptied by accident or by a full disk: making a new cluster of it would delete the old one's data."""
    path = tmp_path / "metadata.db"
    path.touch()
    await _refused(SqliteTree(path, create=create), CorruptDataError, "empty")
    assert path.stat().st_size == 0


@pytest.mark.parametrize("content", [b"not a database", bytes(100_000), b"SQLite format 3\0" + bytes(5000)])
async def test_a_file_of_something_else_is_no_store(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(content)
    await _refused(SqliteTree(path, create=True), CorruptDataError, str(path))
    assert path.read_bytes() == content


async def test_a_directory_is_no_store(tmp_path: Path) -> None:
    await _refused(SqliteTree(tmp_path), BadInputError, "directory")


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE meta (schema INTEGER, instance TEXT)")
    connection.close()
    await _refused(SqliteTree(path, create=True), BadInputError, "not of a BookKeeper cluster")


async def test_a_newer_schema_is_refused(path: Path) -> None:
    await (await _made(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET schema = schema + 1")
    connection.commit()
    connection.close()
    await _refused(SqliteTree(path), BadInputError, f"schema {SCHEMA + 1}")


async def test_a_store_of_which_tables_are_missing_is_corrupt(path: Path) -> None:
    await (await _made(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE meta")
    connection.close()
    await _refused(SqliteTree(path), CorruptDataError, str(path))


async def test_a_read_only_file_is_refused_in_words() -> None:
    """Root may write anything, so root becomes nobody for the attempt."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "metadata.db")
        await (await _made(path)).close()
        path.chmod(0o444)
        os.chmod(directory, 0o755)
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)
        try:
            await _refused(SqliteTree(path), MetadataUnreachableError, "may not read and write")
        finally:
            os.seteuid(uid)


_FILL = """
import asyncio, resource, sys
from bkctl.errors import MetadataUnreachableError
from bkctl.metadata.sqlite import SqliteTree

async def main(path):
    tree = SqliteTree(path)
    await tree.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    made = 0
    try:
        for made in range(100):
            await tree.create(f"/full-{made}", bytes(20_000))
    except MetadataUnreachableError as exc:
        print(exc)
    names, stat = await tree.children("/")
    assert len(names) == stat.child_count == made + 1, (names, stat, made)
    await tree.close()

asyncio.run(main(sys.argv[1]))
"""


async def test_a_full_disk_refuses_writes_and_loses_nothing(path: Path) -> None:
    await (await _made(path)).close()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FILL, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    tree = SqliteTree(path)
    await tree.open()
    assert (await tree.get("/ledgers/L1")).data == b"metadata"
    await tree.create("/after")
    await tree.close()


def test_of_many_that_make_a_store_one_does(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    program = (
        "import asyncio, sys; from bkctl.metadata.sqlite import SqliteTree\n"
        "async def main():\n"
        "    tree = SqliteTree(sys.argv[1], create=True)\n"
        "    await tree.open()\n"
        "    print(await tree.create('/n-', sequential=True))\n"
        "    await tree.close()\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", program, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    made = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert made == [f"/n-{number:010d}" for number in range(6)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metadata.db"]
