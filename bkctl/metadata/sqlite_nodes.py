"""Nodes and their changes as rows: every function runs inside the caller's transaction.

Versions are those of ZooKeeper: per node from 0, one more per set. Every mutation also appends to
the `change` table, the feed from which other sessions fire their watches.
"""

import sqlite3
import time
from collections.abc import Sequence

from bkctl.errors import (
    BadVersionError,
    MetadataStoreError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from bkctl.metadata.api import ANY_VERSION, CreateOp, DeleteOp, EventKind, Node, Op, SetOp, Stat
from bkctl.metadata.session import Change
from bkctl.metadata.tree_rules import ancestors, parent_and_name

CHANGE_ROWS_MAX = 10_000  # a reader that fell behind further must re-read everything
_TRIM_EVERY = 256

_STAT = "version, 2 * created_children - child_count, child_count, ctime_ms, owner"


def get(connection: sqlite3.Connection, path: str) -> Node:
    row = connection.execute(f"SELECT data, {_STAT} FROM node WHERE path = ?", (path,)).fetchone()
    if row is None:
        raise NoNodeError(f"no metadata node {path}")
    return Node(row[0], Stat(*row[1:]))


def find(connection: sqlite3.Connection, path: str) -> Stat | None:
    row = connection.execute(f"SELECT {_STAT} FROM node WHERE path = ?", (path,)).fetchone()
    return None if row is None else Stat(*row)


def children(connection: sqlite3.Connection, path: str) -> tuple[list[str], Stat]:
    stat = _stat(connection, path)
    rows = connection.execute("SELECT name FROM node WHERE parent = ?", (path,))
    return [name for (name,) in rows], stat


def create(
    connection: sqlite3.Connection,
    op: CreateOp,
    owner: int,
    *,
    sequential: bool = False,
    parents: bool = False,
) -> str:
    """The path made. `owner` is the session of an ephemeral node, else 0."""
    if parents:
        for ancestor in ancestors(op.path):
            if find(connection, ancestor) is None:
                _insert(connection, ancestor, b"", 0)
    path = op.path
    if sequential:
        parent, _ = parent_and_name(path)
        row = connection.execute("SELECT created_children FROM node WHERE path = ?", (parent,)).fetchone()
        if row is None:
            raise NoNodeError(f"no metadata node {parent}")
        path += f"{row[0]:010d}"
    _insert(connection, path, op.data, owner)
    return path


def put(connection: sqlite3.Connection, op: SetOp) -> Stat:
    stat = _stat(connection, op.path)
    _check_version(op.path, stat.version, op.version)
    connection.execute("UPDATE node SET data = ?, version = version + 1 WHERE path = ?", (op.data, op.path))
    _log(connection, Change(EventKind.CHANGED, op.path))
    return _stat(connection, op.path)


def delete(connection: sqlite3.Connection, op: DeleteOp) -> None:
    parent, _ = parent_and_name(op.path)
    stat = _stat(connection, op.path)
    _check_version(op.path, stat.version, op.version)
    if stat.child_count:
        raise NotEmptyError(f"metadata node {op.path} has children")
    connection.execute("DELETE FROM node WHERE path = ?", (op.path,))
    connection.execute("UPDATE node SET child_count = child_count - 1 WHERE path = ?", (parent,))
    _log(connection, Change(EventKind.DELETED, op.path))


def multi(connection: sqlite3.Connection, ops: Sequence[Op], session_id: int) -> None:
    for op in ops:
        match op:
            case CreateOp():
                create(connection, op, session_id if op.ephemeral else 0)
            case SetOp():
                put(connection, op)
            case DeleteOp():
                delete(connection, op)


def delete_owned(connection: sqlite3.Connection, session_id: int) -> None:
    """The ephemeral nodes of a session that is over. They have no children."""
    rows = connection.execute("SELECT path FROM node WHERE owner = ?", (session_id,)).fetchall()
    for (path,) in rows:
        delete(connection, DeleteOp(path, ANY_VERSION))


def last_change(connection: sqlite3.Connection) -> int:
    (seq,) = connection.execute("SELECT max(seq) FROM change").fetchone()
    return int(seq)


def changes_after(connection: sqlite3.Connection, seq: int) -> tuple[list[Change] | None, int]:
    """What was committed after change number `seq`, oldest first, and the number of the last one.

    None instead of the changes: some of them were trimmed.
    """
    oldest, newest = connection.execute("SELECT min(seq), max(seq) FROM change").fetchone()
    if oldest > seq + 1:
        return None, newest
    rows = connection.execute("SELECT kind, path FROM change WHERE seq > ? ORDER BY seq", (seq,))
    return [Change(EventKind(kind), path) for kind, path in rows], newest


def _stat(connection: sqlite3.Connection, path: str) -> Stat:
    stat = find(connection, path)
    if stat is None:
        raise NoNodeError(f"no metadata node {path}")
    return stat


def _insert(connection: sqlite3.Connection, path: str, data: bytes, owner: int) -> None:
    if find(connection, path) is not None:
        raise NodeExistsError(f"metadata node {path} exists")
    parent, name = parent_and_name(path)
    if _stat(connection, parent).owner:
        raise MetadataStoreError(f"ephemeral metadata node {parent} cannot have children")
    connection.execute(
        "INSERT INTO node (path, parent, name, ctime_ms, owner, data) VALUES (?, ?, ?, ?, ?, ?)",
        (path, parent, name, time.time_ns() // 1_000_000, owner, data),
    )
    connection.execute(
        "UPDATE node SET created_children = created_children + 1, child_count = child_count + 1"
        " WHERE path = ?",
        (parent,),
    )
    _log(connection, Change(EventKind.CREATED, path))


def _log(connection: sqlite3.Connection, change: Change) -> None:
    cursor = connection.execute(
        "INSERT INTO change (kind, path) VALUES (?, ?)", (change.kind.value, change.path)
    )
    seq = cursor.lastrowid
    assert seq is not None  # an INSERT always sets it
    if seq % _TRIM_EVERY == 0:
        connection.execute("DELETE FROM change WHERE seq <= ?", (seq - CHANGE_ROWS_MAX,))


def _check_version(path: str, found: int, expected: int) -> None:
    if expected not in (ANY_VERSION, found):
        raise BadVersionError(f"metadata node {path} has version {found}, not {expected}")
