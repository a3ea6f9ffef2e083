"""Whether an index is right: its ledgers can be read, and its locations point at their entries.

Locations are checked in pieces of bounded size, each sorted, so that every log is read forward; of an
entry only its size and ids are read.

Source: upstream InterleavedLedgerStorage.localConsistencyCheck, LedgersIndexCheckOp. Differs: upstream
does not check the locations of DbLedgerStorage at all.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log as log_format
from bkctl.formats.index import LEDGER_KEY_BYTES, ledger_key
from bkctl.offline.indexes import RECORD, Index, Locations, entry_of
from bkctl.server.storage.fs import Fs

_PIECE_RECORDS = 1 << 17  # sorted at once; 8 MiB, and two of them at a time
_WINDOW_BYTES = 64 << 10
_DENSE_RECORDS = 16  # so many records in a window are read with it, fewer one by one
_ENTRY_HEAD = Struct(">i16s")  # size, key
assert _ENTRY_HEAD.size == log_format.SIZE_BYTES + log_format.ENTRY_BYTES_MIN
_KEY_AT = 8  # in a record


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; fields that do not apply are None.

    `problem`: unreadable_index, unreadable_ledger, unknown_ledger, misplaced_ledger, duplicate_ledger,
    last_entry, bad_location, missing_log, unreadable_log, entry_mismatch.
    """

    problem: str
    directory: Path
    detail: str
    ledger_id: int | None = None
    entry_id: int | None = None
    log_id: int | None = None
    position: int | None = None


@dataclass(slots=True)
class IndexCheck:
    """Checks the indexes of a bookie, all of them or one ledger; the counts grow as it goes.

    `in_use`: a bookie works on the directories, so what looks wrong is looked up once more.
    `progress` is told the count of entries now and then, and may raise TimeoutError.
    """

    fs: Fs
    ledger_id: int | None = None
    in_use: bool = False
    progress: Callable[[int], None] = lambda count: None
    ledger_count: int = 0
    entry_count: int = 0
    unchecked: list[str] = field(default_factory=list)
    """What could not be checked, one line each."""

    def ledgers(self, indexes: Sequence[Index], *, directory_count: int) -> Iterator[Finding]:
        """`directory_count`: of the bookie, when all of them are given, else 0."""
        seen: dict[int, Path] = {}
        for index in indexes:
            try:
                for ledger_id, data in index.ledgers():
                    if self.ledger_id not in (None, ledger_id):
                        continue
                    self.ledger_count += 1
                    if isinstance(data, Exception):
                        yield Finding("unreadable_ledger", index.directory, str(data), ledger_id)
                    elif ledger_id is not None:
                        yield from self._misplaced(index, ledger_id, indexes, directory_count)
                    if ledger_id is not None and index.kind == "idx":
                        first = seen.setdefault(ledger_id, index.directory)
                        if first != index.directory:
                            yield Finding("duplicate_ledger", index.directory, f"also in {first}", ledger_id)
            except (OSError, CorruptDataError) as error:
                yield Finding("unreadable_index", index.directory, str(error))

    def locations(self, index: Index) -> Iterator[Finding]:
        known = self._known_ledgers(index)
        unknown: dict[bytes, int] = {}
        last_entries = _LastEntries()
        try:
            with index.locations() as locations:
                for piece in self._pieces(locations):
                    for ledger_id, last in last_entries.following(piece):
                        yield from _wrong_last_entry(index, locations, ledger_id, last)
                    if known is not None:
                        _count_unknown(piece, known, unknown)
                    yield from self._confirmed(index, piece)
                    self.entry_count += len(piece)
                    self.progress(self.entry_count)
                for ledger_id, last in last_entries.rest():
                    yield from _wrong_last_entry(index, locations, ledger_id, last)
        except TimeoutError:  # --timeout; it is an OSError, too
            raise
        except (OSError, CorruptDataError) as error:
            yield Finding("unreadable_index", index.directory, str(error))
        if unknown and self.in_use:
            known = self._known_ledgers(index) or set()
        for key, count in unknown.items():
            if known is not None and key not in known:
                detail = f"{count} entries of a ledger that the index does not know"
                yield Finding("unknown_ledger", index.directory, detail, int.from_bytes(key, "big"))

    def _misplaced(
        self, index: Index, ledger_id: int, indexes: Sequence[Index], directory_count: int
    ) -> Iterator[Finding]:
        if index.kind != "db" or directory_count < 2:
            return
        directories = list(dict.fromkeys(index.directory for index in indexes))
        wanted = ledger_id % directory_count
        if len(directories) == directory_count and directories[wanted] != index.directory:
            detail = f"a bookie of {directory_count} directories looks for it in {directories[wanted]}"
            yield Finding("misplaced_ledger", index.directory, detail, ledger_id)

    def _known_ledgers(self, index: Index) -> set[bytes] | None:
        """The keys of the ledgers in the index, None when that cannot be told."""
        try:
            return {ledger_key(ledger_id) for ledger_id, _ in index.ledgers() if ledger_id is not None}
        except (OSError, CorruptDataError) as error:
            self.unchecked.append(f"whether the ledgers are known: {error}")
            return None

    def _pieces(self, locations: Locations) -> Iterator[list[bytes]]:
        piece: list[bytes] = []
        for batch in locations.records(self.ledger_id):
            piece += batch
            if len(piece) >= _PIECE_RECORDS:
                yield piece
                piece = []
        if piece:
            yield piece

    def _confirmed(self, index: Index, piece: list[bytes]) -> Iterator[Finding]:
        """What is wrong in a piece, and still is so when a bookie may have changed it meanwhile."""
        wrong = self._wrong_places(index, piece)
        if not self.in_use:
            yield from (_finding(index, *item) for item in wrong)
            return
        held = list(wrong)
        if not held:
            return
        with index.locations() as locations:
            for record, problem, detail in held:
                ledger_id, entry_id, _ = entry_of(record)
                if [record] in locations.records(ledger_id, entry_id, entry_id):
                    yield _finding(index, record, problem, detail)

    def _wrong_places(self, index: Index, piece: list[bytes]) -> Iterator[tuple[bytes, str, str]]:
        """(record, problem, detail); sorts `piece`."""
        piece.sort()
        first = 0
        while first < len(piece):
            log_id = RECORD.unpack(piece[first])[0]
            end = bisect_left(piece, (log_id + 1).to_bytes(4, "big"), first) if log_id >= 0 else 0
            records = piece[first : end or len(piece)]
            yield from self._wrong_in_log(index, log_id, records)
            first += len(records)

    def _wrong_in_log(
        self, index: Index, log_id: int, records: list[bytes]
    ) -> Iterator[tuple[bytes, str, str]]:
        path = _log_path(index, log_id)
        if path is None:
            for record in records:
                try:
                    log_format.unpack_location(entry_of(record)[2])
                    yield record, "missing_log", f"there is no {log_format.file_name(log_id)}"
                except CorruptDataError as error:
                    yield record, "bad_location", str(error)
            return
        try:
            fd = self.fs.open(path, os.O_RDONLY)
        except OSError as error:
            for record in records:
                yield record, "unreadable_log", f"{path}: {error.strerror or error}"
            return
        try:
            yield from self._wrong_heads(fd, path, records)
        finally:
            self.fs.close(fd)

    def _wrong_heads(self, fd: int, path: Path, records: list[bytes]) -> Iterator[tuple[bytes, str, str]]:
        file_bytes = self.fs.size(fd)
        start, window = 0, b""
        unpack_head, head_bytes = _ENTRY_HEAD.unpack_from, _ENTRY_HEAD.size
        size_bytes, size_min = log_format.SIZE_BYTES, log_format.ENTRY_BYTES_MIN
        for i, (_, position, key) in enumerate(RECORD.iter_unpack(b"".join(records))):
            at = position - size_bytes - start
            if at < 0 or at + head_bytes > len(window):
                start, at = max(0, position - size_bytes), 0
                try:
                    window = self.fs.read(fd, _read_bytes(records, i, position), start)
                except OSError as error:
                    window = b""
                    yield records[i], "unreadable_log", f"{path}: {error.strerror or error}"
                    continue
            if at + head_bytes <= len(window):
                size, found = unpack_head(window, at)
                if found == key and size_min <= size <= file_bytes - position:
                    continue
            yield records[i], *_why(records[i], window, at, file_bytes - position)


def _read_bytes(records: list[bytes], i: int, position: int) -> int:
    """How much to read at once: a window where entries are close together."""
    ahead = records[min(i + _DENSE_RECORDS, len(records) - 1)]
    near = 0 < RECORD.unpack(ahead)[1] - position < _WINDOW_BYTES
    return _WINDOW_BYTES if near else _ENTRY_HEAD.size


def _why(record: bytes, window: bytes, at: int, left_bytes: int) -> tuple[str, str]:
    """(problem, detail) of a record whose place in the log is not right."""
    ledger_id, entry_id, location = entry_of(record)
    try:
        log_format.unpack_location(location)
    except CorruptDataError as error:
        return "bad_location", str(error)
    try:
        size = log_format.unpack_entry_size(window, at, ledger_id, entry_id)
    except CorruptDataError as error:
        return "entry_mismatch", str(error)
    return "entry_mismatch", f"the entry has {size} bytes, and the entry log ends after {left_bytes}"


def _finding(index: Index, record: bytes, problem: str, detail: str) -> Finding:
    ledger_id, entry_id, _ = entry_of(record)
    log_id, position, _ = RECORD.unpack(record)
    return Finding(problem, index.directory, detail, ledger_id, entry_id, log_id, position)


def _log_path(index: Index, log_id: int) -> Path | None:
    if log_id < 0:
        return None
    paths = (directory / log_format.file_name(log_id) for directory in index.log_directories)
    return next((path for path in paths if path.exists()), None)


class _LastEntries:
    """The last entry of each ledger in records that come ledger by ledger, entries ascending."""

    def __init__(self) -> None:
        self._open: bytes | None = None  # the last record so far; its ledger may go on

    def following(self, piece: list[bytes]) -> Iterator[tuple[int, int]]:
        """(ledger id, last entry id) of the ledgers that have ended."""
        ledgers = slice(_KEY_AT, _KEY_AT + LEDGER_KEY_BYTES)
        ended = self.rest() if self._open and self._open[ledgers] != piece[0][ledgers] else ()
        yield from ended
        self._open = piece[-1]
        if piece[0][ledgers] != piece[-1][ledgers]:
            for record in list({record[ledgers]: record for record in piece}.values())[:-1]:
                yield entry_of(record)[:2]

    def rest(self) -> Iterator[tuple[int, int]]:
        if self._open:
            yield entry_of(self._open)[:2]


def _wrong_last_entry(index: Index, locations: Locations, ledger_id: int, last: int) -> Iterator[Finding]:
    """The last entry looked for from the end must be the one that is found from the start."""
    told = locations.last_entry_id(ledger_id)
    if told != last and index.kind == "db":
        yield Finding("last_entry", index.directory, f"the index tells {told} as the last", ledger_id, last)


def _count_unknown(piece: list[bytes], known: set[bytes], unknown: dict[bytes, int]) -> None:
    end = _KEY_AT + LEDGER_KEY_BYTES
    absent = {record[_KEY_AT:end] for record in piece} - known
    if absent:
        for record in piece:
            if record[_KEY_AT:end] in absent:
                unknown[record[_KEY_AT:end]] = unknown.get(record[_KEY_AT:end], 0) + 1
