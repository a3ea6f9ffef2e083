"""The file of the embedded metadata store: made, opened and recognised; errors of SQLite become ours.

One database in WAL mode with `synchronous=FULL`: a CLOSED ledger that a power cut reopened would be
a broken promise. The file is told apart by inode, size and a random `meta.instance`, so that one
which was deleted, replaced or truncated is "lost", never "an empty cluster".

Source: spec metadata section 21, "SQLite realisation".
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bkctl.errors import (
    BadInputError,
    BkctlError,
    CorruptDataError,
    MetadataLostError,
    MetadataUnreachableError,
)

SCHEMA = 1
_APPLICATION_ID = 0x626B6374  # "bkct"
_TABLES = f"""
    PRAGMA application_id = {_APPLICATION_ID};
    PRAGMA auto_vacuum = NONE;
    BEGIN;
    CREATE TABLE meta (schema INTEGER NOT NULL, instance TEXT NOT NULL);
    CREATE TABLE node (
        path TEXT PRIMARY KEY,
        parent TEXT,
        name TEXT,
        version INTEGER NOT NULL DEFAULT 0,
        created_children INTEGER NOT NULL DEFAULT 0, -- ever; also the next sequence number
        child_count INTEGER NOT NULL DEFAULT 0,
        ctime_ms INTEGER NOT NULL,
        owner INTEGER NOT NULL, -- session of an ephemeral node, else 0
        data BLOB NOT NULL
    );
    CREATE UNIQUE INDEX node_by_parent ON node (parent, name);
    CREATE INDEX node_by_owner ON node (owner) WHERE owner != 0;
    CREATE TABLE session (
        id INTEGER PRIMARY KEY,
        pid INTEGER NOT NULL,
        boot_id TEXT NOT NULL,
        timeout_ms INTEGER NOT NULL,
        lock_inode INTEGER NOT NULL
    );
    -- The newest row is never trimmed, so `seq` never starts again.
    CREATE TABLE change (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, path TEXT NOT NULL);
    INSERT INTO change (seq, kind, path) VALUES (1, 'created', '/');
    INSERT INTO node (path, ctime_ms, owner, data) VALUES ('/', {{now_ms}}, 0, x'');
    INSERT INTO meta (schema, instance) VALUES ({SCHEMA}, lower(hex(randomblob(16))));
    COMMIT;
"""


class Database:
    """One connection with the store's file. Used by one thread at a time; must not cross a fork.

    Raises on opening: MetadataUnreachableError (no such file, no access, locked), CorruptDataError
    (not a database), BadInputError (another program's database, or a newer schema).
    """

    def __init__(self, path: Path, *, create: bool, busy_timeout_ms: int) -> None:
        self.path = path
        if create and not path.exists():
            with self._ours(CorruptDataError):
                self._create()
        self._inode, self._size_bytes = self._stat(MetadataUnreachableError)
        if path.is_dir():
            raise BadInputError(f"{path}: a directory, not a metadata database")
        if self._size_bytes == 0:
            raise CorruptDataError(f"{path}: not a metadata database: the file is empty")
        if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            raise MetadataUnreachableError(f"{path}: this user may not read and write the metadata database")
        uri = f"file:{quote(str(path))}?mode=rw"
        with self._ours(CorruptDataError):
            self.connection = sqlite3.connect(
                uri, uri=True, timeout=busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False
            )
        try:
            with self._ours(CorruptDataError):
                self.instance = self._recognise()
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One snapshot of the store."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One atomic, durable change; an exception undoes it."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def data_version(self) -> int:
        """A number that changes when another connection, of any process, has committed."""
        self.check_same_file()
        with self._ours(MetadataLostError):
            return int(self._value("PRAGMA data_version"))

    def check_same_file(self) -> None:
        """Raises MetadataLostError when `path` is not what was opened. Nothing here shrinks the file."""
        inode, size_bytes = self._stat(MetadataLostError)
        if inode != self._inode:
            raise MetadataLostError(f"{self.path}: the metadata database was replaced by another file")
        self._check_not_truncated(self._size_bytes, size_bytes)
        self._size_bytes = size_bytes

    def check_continues(self, before: "Database") -> None:
        """Raises MetadataLostError unless this is the store that `before` was, with all its bytes."""
        if self.instance != before.instance:
            raise MetadataLostError(f"{self.path}: the file now holds another cluster's metadata")
        self._check_not_truncated(before._size_bytes, self._size_bytes)

    def _check_not_truncated(self, before_bytes: int, now_bytes: int) -> None:
        if now_bytes < before_bytes:
            raise MetadataLostError(
                f"{self.path}: the metadata database was truncated from {before_bytes} to {now_bytes} bytes"
            )

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        self.check_same_file()
        with self._ours(MetadataLostError):
            self.connection.execute(begin)
            try:
                if self._read_instance() != self.instance:
                    raise MetadataLostError(f"{self.path}: the database now holds another cluster")
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def _stat(self, missing: type[BkctlError]) -> tuple[tuple[int, int], int]:
        try:
            stat = os.stat(self.path)
        except OSError as exc:
            raise missing(f"no metadata database at {self.path}: {exc.strerror}") from exc
        return (stat.st_dev, stat.st_ino), stat.st_size

    def _recognise(self) -> str:
        self.connection.execute("PRAGMA synchronous = FULL")
        if self._value("PRAGMA application_id") != _APPLICATION_ID:
            raise BadInputError(f"{self.path}: a SQLite database, but not of a BookKeeper cluster")
        schema = self._value("SELECT schema FROM meta")
        if schema != SCHEMA:
            raise BadInputError(
                f"{self.path}: metadata schema {schema}, this bkctl knows {SCHEMA}; use a newer one"
            )
        return self._read_instance()

    def _read_instance(self) -> str:
        return str(self._value("SELECT instance FROM meta"))

    def _value(self, sql: str) -> Any:
        row = self.connection.execute(sql).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"no answer to {sql}")
        return row[0]

    def _create(self) -> None:
        """Appear complete or not at all, and only if nothing else did: whoever links first wins."""
        draft = self.path.with_name(f".{self.path.name}.{os.urandom(8).hex()}")
        try:
            connection = sqlite3.connect(draft, isolation_level=None)
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                if mode != "wal":
                    raise BadInputError(f"{self.path}: this file system has no shared memory for SQLite")
                connection.executescript(_TABLES.format(now_ms=time.time_ns() // 1_000_000))
            finally:
                connection.close()  # moves the log into the file, and removes it
            try:
                os.link(draft, self.path)
            except FileExistsError:
                return
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def _ours(self, broken: type[BkctlError]) -> Iterator[None]:
        """`broken` is raised when the content is not (or no longer) that of a metadata database."""
        try:
            yield
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if code == sqlite3.SQLITE_READONLY_DBMOVED:
                raise MetadataLostError(f"{self.path}: the metadata database was moved away") from exc
            if code & 0xFF in _STORE_TROUBLE:
                raise MetadataUnreachableError(f"{self.path}: {_STORE_TROUBLE[code & 0xFF]} ({exc})") from exc
            raise broken(f"{self.path}: not a sound metadata database: {exc}") from exc
        except OSError as exc:
            raise MetadataUnreachableError(f"{self.path}: {exc.strerror or exc}") from exc


_STORE_TROUBLE = {
    sqlite3.SQLITE_BUSY: "the metadata database stayed locked by another process",
    sqlite3.SQLITE_LOCKED: "the metadata database stayed locked by another process",
    sqlite3.SQLITE_FULL: "the metadata database cannot grow, the disk is full",
    sqlite3.SQLITE_READONLY: "the metadata database is read-only",
    sqlite3.SQLITE_PERM: "the metadata database cannot be accessed",
    sqlite3.SQLITE_CANTOPEN: "the metadata database cannot be opened",
    sqlite3.SQLITE_IOERR: "the metadata database cannot be read or written",
    sqlite3.SQLITE_NOMEM: "out of memory for the metadata database",
    sqlite3.SQLITE_INTERRUPT: "interrupted",
}
