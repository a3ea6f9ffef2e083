"""Sessions of the embedded metadata store: an ephemeral node lives as long as its creator's session.

A session is a row, and a file in `<database>.sessions/` that holds two proofs of life:
- a lock: an exclusive flock for as long as the process lives. Crash and kill -9 free it at once.
- a lease: 8 bytes with a deadline on the monotonic clock of this boot, moved on by a thread. It
  runs out when the whole process hangs or is stopped.

Any process may end a session whose lock is free or whose lease ran out. The owner looks at its own
lease first: it stops at the deadline, others wait a margin longer. A renewal that ends after the
old deadline does not count, so it makes no difference whether the reaper saw it.

The lock belongs to the open file, so closing another descriptor of the file does no harm; the
descriptor is closed on exec, but a forked child would keep it: never fork with an open tree. All
processes must see one boot, one file system and one directory: one machine.

Source: spec metadata section 21, "Ephemerals by lock", "Ephemerals by lease".
"""

import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bkctl.errors import MetadataLostError, MetadataUnreachableError
from bkctl.metadata import sqlite_nodes
from bkctl.metadata.api import SessionState
from bkctl.metadata.sqlite_database import Database

_DEADLINE = struct.Struct("<q")  # nanoseconds of the monotonic clock
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Tells boots apart; empty where the system does not say, and then only the lock shows a reboot."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _lock_path(database: Database, session_id: int) -> Path:
    return database.path.with_name(database.path.name + ".sessions") / f"{session_id}.lock"


class SessionLease:
    """The lock and the lease of this process's session; `on_state` is called on the lease's thread.

    `on_state` hears SUSPENDED and CONNECTED when renewals fail and succeed again, and LOST once.
    """

    def __init__(self, path: Path, timeout_ms: int, on_state: Callable[[SessionState], None]) -> None:
        self._path = path
        self._timeout_ns = timeout_ms * 1_000_000
        self._on_state = on_state
        self._stopped = threading.Event()
        path.parent.mkdir(exist_ok=True)
        self._deadline_ns = time.monotonic_ns() + self._timeout_ns
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(self._fd, _DEADLINE.pack(self._deadline_ns), 0)
            self.inode = os.fstat(self._fd).st_ino
        except OSError:
            os.close(self._fd)
            raise
        self._thread = threading.Thread(target=self._keep, name="bkctl-metadata-lease", daemon=True)
        self._thread.start()

    @property
    def overdue(self) -> bool:
        """Whether the session is over by our own clock; it never comes back from that."""
        return time.monotonic_ns() >= self._deadline_ns

    def end(self) -> None:
        """Stop renewing and free the lock. The file stays for whoever ends the session's row."""
        self._stopped.set()
        self._thread.join()
        os.close(self._fd)

    def _keep(self) -> None:
        while not self._stopped.wait(self._timeout_ns / 3e9):
            try:
                renewed = self._renew()
            except OSError:
                renewed = False
            if self.overdue:
                self._deadline_ns = 0  # for good, whatever the clock says
                self._on_state(SessionState.LOST)
                return
            self._on_state(SessionState.CONNECTED if renewed else SessionState.SUSPENDED)

    def _renew(self) -> bool:
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        if self.overdue or not self._is_in_place():
            return False
        os.pwrite(self._fd, _DEADLINE.pack(deadline_ns), 0)
        if not self.overdue:
            self._deadline_ns = deadline_ns
        return True

    def _is_in_place(self) -> bool:
        """Without our file at its path nobody can see the lock: as good as not renewed."""
        try:
            return os.stat(self._path).st_ino == self.inode
        except FileNotFoundError:
            return False


def begin_session(
    database: Database, session_id: int, timeout_ms: int, on_state: Callable[[SessionState], None]
) -> SessionLease:
    """Raises MetadataUnreachableError when the files of the session cannot be written."""
    path = _lock_path(database, session_id)
    try:
        lease = SessionLease(path, timeout_ms, on_state)
    except OSError as exc:
        raise MetadataUnreachableError(f"{path}: cannot begin a metadata session: {exc.strerror}") from exc
    try:
        with database.write() as connection:
            connection.execute(
                "INSERT INTO session (id, pid, boot_id, timeout_ms, lock_inode) VALUES (?, ?, ?, ?, ?)",
                (session_id, os.getpid(), boot_id(), timeout_ms, lease.inode),
            )
    except BaseException:
        lease.end()
        path.unlink(missing_ok=True)
        raise
    return lease


def require_session(connection: sqlite3.Connection, session_id: int) -> None:
    """Raises MetadataLostError when somebody ended the session."""
    if connection.execute("SELECT 1 FROM session WHERE id = ?", (session_id,)).fetchone() is None:
        raise MetadataLostError("the metadata session expired")


def end_session(database: Database, session_id: int) -> None:
    """Delete the session's row and its ephemeral nodes as one. Idempotent."""
    with database.write() as connection:
        row = connection.execute("SELECT 1 FROM session WHERE id = ?", (session_id,)).fetchone()
        if row is not None:
            sqlite_nodes.delete_owned(connection, session_id)
            connection.execute("DELETE FROM session WHERE id = ?", (session_id,))
    try:
        _lock_path(database, session_id).unlink()
    except OSError:
        pass  # nobody looks for the lock of a session without a row, and its name never comes again


@dataclass(frozen=True, slots=True)
class _SessionRow:
    id: int
    boot_id: str
    timeout_ms: int
    lock_inode: int


@dataclass
class Reaper:
    """Ends the sessions of others that are over."""

    database: Database
    _boot_id: str = field(default_factory=boot_id)
    _lock_missing_since_ns: dict[int, int] = field(default_factory=dict)

    def reap(self, own_session_id: int) -> bool:
        """Whether any was ended."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT id, boot_id, timeout_ms, lock_inode FROM session").fetchall()
        others = [_SessionRow(*row) for row in rows if row[0] != own_session_id]
        over = [row.id for row in others if self._is_over(row)]
        for session_id in over:
            end_session(self.database, session_id)
        return bool(over)

    def _is_over(self, row: _SessionRow) -> bool:
        if row.boot_id != self._boot_id:
            return True
        # The owner stops at its deadline; what it had begun by then gets a quarter more.
        now_ns, timeout_ns = time.monotonic_ns(), row.timeout_ms * 1_000_000
        margin_ns = timeout_ns // 4
        try:
            fd = os.open(_lock_path(self.database, row.id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = -1
        except OSError:
            return False  # of another user, out of descriptors: not for us to judge
        try:
            if fd < 0 or os.fstat(fd).st_ino != row.lock_inode:
                # Its owner notices at the next renewal and is lost a timeout after its last one.
                since_ns = self._lock_missing_since_ns.setdefault(row.id, now_ns)
                return now_ns > since_ns + timeout_ns + margin_ns
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lease = os.pread(fd, _DEADLINE.size, 0)
                if len(lease) < _DEADLINE.size:
                    return False  # damaged; the owner's next renewal mends it
                return bool(now_ns > _DEADLINE.unpack(lease)[0] + margin_ns)
            return True
        finally:
            if fd >= 0:
                os.close(fd)
