"""What the closed entry logs of a directory hold, ledger by ledger, and how much of it is still stored.

Laws:

1. What a log holds is read from it once: from its ledgers map, if that accounts for every byte and for
   the ledgers at the start of the log; else by a scan. The map has no checksum, and a log whose map is
   believed wrongly is deleted with live entries in it (upstream issue 4607).
2. A log that can neither tell by map nor by scan is damaged: it is named, and left as it is.
3. What was read is kept in `metadata-cache`, in upstream's form (it does so with
   gcEntryLogMetadataCacheEnabled; here always), so that a restart scans nothing. The record of a log
   goes before the log does: an id that came back would find a stranger's.

Source: spec storage sections 5.3, 5.7, 8.2; upstream GarbageCollectorThread.extractMetaFromEntryLogs,
PersistentEntryLogMetadataMap.
"""

import os
from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log as fmt
from bkctl.formats.entry_log import Header, Read, ScannedEntry
from bkctl.formats.entry_log_metadata import EntryLogMetadata
from bkctl.server.storage.fs import Fs

_ENTRY_BYTES_MAX = 128 << 20  # far above what a bookie accepts
_MAP_BYTES_MAX = 256 << 20  # of ten million ledgers
_SAMPLE_BYTES = 64 << 10  # at the start of a log, to compare its ledgers with the map
_MAP_LEDGER_BYTES_MIN = fmt.SIZE_BYTES + fmt.ENTRY_BYTES_MIN  # one entry of two ids


class EntryLogMetadataStore(Protocol):
    """See server.storage.index.EntryLogMetadataIndex."""

    def get(self, log_id: int) -> EntryLogMetadata | None: ...

    def log_ids(self) -> list[int]: ...

    def put(self, metadata: EntryLogMetadata) -> None: ...

    def delete(self, log_id: int) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LogUsage:
    """Bytes of entries, size fields included; `live_bytes`: those of ledgers that are still stored."""

    total_bytes: int
    live_bytes: int

    @property
    def ratio(self) -> float:
        """0 for a log without entries."""
        return self.live_bytes / self.total_bytes if self.total_bytes else 0.0


class EntryLogUsage:
    """The closed logs of one directory. Everything blocks; one thread at a time.

    `logs`: log id -> usage. `damaged`: log id -> what cannot be read; not tried again before
    `retry_damaged`. A log may be in both: it can be deleted, not compacted.
    """

    def __init__(self, directory: Path, fs: Fs, store: EntryLogMetadataStore) -> None:
        self._directory = directory
        self._fs = fs
        self._store = store
        self._recorded: set[int] | None = None  # log ids in the store, until the first refresh
        self._stored_ledgers: AbstractSet[int] = frozenset()  # as of the last refresh
        self.logs: dict[int, LogUsage] = {}
        self.damaged: dict[int, str] = {}

    def refresh(
        self,
        closed_ids: Collection[int],
        stored_ledgers: AbstractSet[int],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over which logs are closed, and then which ledgers are stored: asked for in this order.

        `check` is called between two logs, and may raise to end the work; what was done is kept.
        Raises OSError: the cache of metadata cannot be written.
        """
        if self._recorded is None:
            self._recorded = set(self._store.log_ids())
        for log_id in (self._recorded | self.logs.keys()).difference(closed_ids):
            self.forget(log_id)
        deleted = any(ledger_id not in stored_ledgers for ledger_id in self._stored_ledgers)
        for log_id in sorted(closed_ids):
            known = log_id in self.logs
            if (known and not deleted) or (not known and log_id in self.damaged):
                continue
            check()
            found = self._store.get(log_id)
            metadata = found if found and self._fits_file(found) else self._read(log_id)
            if metadata is not None:
                self._take(found, metadata, stored_ledgers)
        self._store.sync()
        self._stored_ledgers = stored_ledgers

    def forget(self, log_id: int) -> None:
        """The log is gone, or about to go: its record goes first, durably. Raises OSError."""
        self._store.delete(log_id)
        self._store.sync()
        self.logs.pop(log_id, None)
        self.damaged.pop(log_id, None)
        if self._recorded is not None:
            self._recorded.discard(log_id)

    def retry_damaged(self) -> None:
        """Look at damaged logs again with the next refresh."""
        self.damaged.clear()

    def set_damaged(self, log_id: int, reason: str) -> None:
        """A log whose entries cannot be read is left alone from now on."""
        self.damaged[log_id] = reason

    def live_ledgers(self, log_id: int) -> dict[int, int]:
        """Ledger id -> bytes, as of the last refresh; raises OSError."""
        found = self._store.get(log_id)
        return {} if found is None else dict(found.ledger_bytes)

    def _take(
        self, found: EntryLogMetadata | None, metadata: EntryLogMetadata, stored: AbstractSet[int]
    ) -> None:
        live = {ledger: size for ledger, size in metadata.ledger_bytes.items() if ledger in stored}
        log_id, live_bytes = metadata.log_id, sum(live.values())
        if metadata is not found or len(live) != len(metadata.ledger_bytes):
            self._store.put(EntryLogMetadata(log_id, metadata.total_bytes, live_bytes, live))
        self.logs[log_id] = LogUsage(metadata.total_bytes, live_bytes)

    def _fits_file(self, metadata: EntryLogMetadata) -> bool:
        """Whether the record can be of this file: an id may have been used again behind our back."""
        try:
            with opened_log(self._fs, self._path(metadata.log_id)) as (_, file_bytes):
                held = sum(metadata.ledger_bytes.values())
                return held <= metadata.total_bytes <= max(0, file_bytes - fmt.FIRST_POSITION)
        except OSError:
            return False

    def _read(self, log_id: int) -> EntryLogMetadata | None:
        try:
            return read_metadata(self._fs, self._path(log_id), log_id)
        except (CorruptDataError, OSError) as exc:
            self.set_damaged(log_id, str(exc))
            return None

    def _path(self, log_id: int) -> Path:
        return self._directory / fmt.file_name(log_id)


@contextmanager
def opened_log(fs: Fs, path: Path) -> Iterator[tuple[Read, int]]:
    """(read, size in bytes) of a file; raises OSError."""
    fd = fs.open(path, os.O_RDONLY)
    try:
        yield lambda position, size_bytes: fs.read(fd, size_bytes, position), fs.size(fd)
    finally:
        fs.close(fd)


def read_metadata(fs: Fs, path: Path, log_id: int) -> EntryLogMetadata:
    """What a log holds, every ledger of it; raises OSError, CorruptDataError: it is damaged."""
    with opened_log(fs, path) as (read, file_bytes):
        try:
            ledger_bytes = _ledgers_map(read, file_bytes)
        except CorruptDataError:
            ledger_bytes = {}
            for entry in scan_log(read, file_bytes):
                size = fmt.SIZE_BYTES + len(entry.entry)
                ledger_bytes[entry.ledger_id] = ledger_bytes.get(entry.ledger_id, 0) + size
        total_bytes = sum(ledger_bytes.values())
        return EntryLogMetadata(log_id, total_bytes, total_bytes, ledger_bytes)


def scan_log(read: Read, file_bytes: int) -> Iterator[ScannedEntry]:
    """Every entry of a log, whatever became of its header and its ledgers map.

    Raises CorruptDataError: an entry is damaged; or the log was sealed, so that every byte of it was
    written, and there is a gap between two entries.
    """
    header, head = _header(read)
    # Logs of upstream's direct-I/O writer have a filler behind the header, and padding between entries.
    sealed = header.ledgers_map_offset > 0 and not _is_direct(read)
    end = fmt.FIRST_POSITION

    def read_log(position: int, size_bytes: int) -> bytes:
        return head if position == 0 else read(position, size_bytes)

    try:
        for entry in fmt.scan(read_log, file_bytes, entry_bytes_max=_ENTRY_BYTES_MAX):
            if sealed and entry.position - fmt.SIZE_BYTES != end:
                raise CorruptDataError(f"entry log position {end}: no entry up to {entry.position}")
            yield entry
            end = entry.position + len(entry.entry)
    except CorruptDataError:
        if end != header.ledgers_map_offset:  # else it is the map that is damaged: the entries are whole
            raise
    if sealed and end < header.ledgers_map_offset <= file_bytes:
        raise CorruptDataError(f"entry log position {end}: no entry up to {header.ledgers_map_offset}")


def _header(read: Read) -> tuple[Header, bytes]:
    """The header and its bytes; those of a log that was not sealed when they cannot be read."""
    head = read(0, fmt.HEADER_BYTES)
    try:
        return fmt.unpack_header(head), head
    except CorruptDataError:
        return Header(), fmt.pack_header()


def _is_direct(read: Read) -> bool:
    head = read(fmt.FIRST_POSITION, fmt.SIZE_BYTES + fmt.ENTRY_BYTES_MIN)
    return head[fmt.SIZE_BYTES :][:8] == b"\xff" * 8


def _ledgers_map(read: Read, file_bytes: int) -> dict[int, int]:
    """The ledgers map of a sealed log; raises CorruptDataError: there is none that can be believed."""
    header = fmt.unpack_header(read(0, fmt.HEADER_BYTES))
    offset = header.ledgers_map_offset
    if not fmt.FIRST_POSITION < offset < file_bytes or file_bytes - offset > _MAP_BYTES_MAX:
        raise CorruptDataError("entry log has no ledgers map")
    sizes = fmt.unpack_ledgers_map(read(offset, file_bytes - offset), header)
    if min(sizes) < 0 or min(sizes.values()) < _MAP_LEDGER_BYTES_MIN:
        raise CorruptDataError("ledgers map: an impossible ledger")
    if sum(sizes.values()) != offset - fmt.FIRST_POSITION:
        raise CorruptDataError("ledgers map: it does not account for the bytes of the log")
    sample_end = min(offset, fmt.FIRST_POSITION + _SAMPLE_BYTES)
    head = fmt.pack_header()
    for entry in fmt.scan(lambda at, size: read(at, size) if at else head, sample_end):
        if entry.ledger_id not in sizes:
            raise CorruptDataError(f"ledgers map: it lacks ledger {entry.ledger_id}")
    return sizes
