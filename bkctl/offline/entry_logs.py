"""Entry logs of a bookie that need not run: which there are, headers, ledgers maps, entries.

Source: spec storage section 5; `formats.entry_log`, `server.storage.entry_log`.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bkctl.errors import CorruptDataError, NotFoundError
from bkctl.formats import entry_log as fmt
from bkctl.formats.entry import HEADER_BYTES, Digester
from bkctl.formats.entry_log import Header, ScannedEntry
from bkctl.offline.digests import KnownDigests, fits
from bkctl.offline.files import Read, opened
from bkctl.server.storage.entry_log import log_ids
from bkctl.server.storage.fs import OsFs

_ENTRY_BYTES_MAX = 128 << 20  # as formats.journal: far above what a bookie accepts
_MAP_LEDGER_BYTES_MAX = 40  # in the map, when each ledger has a batch of its own
_EXTRACTED_AT_ONCE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class LogFile:
    """`header` and `error`: one of them is None, both when the file is empty (allocated ahead)."""

    path: Path
    log_id: int | None  # None when the name tells none
    size_bytes: int
    header: Header | None
    error: str | None

    @property
    def sealed(self) -> bool:
        return self.header is not None and self.header.ledgers_map_offset > 0


def log_files(directories: Sequence[Path]) -> list[LogFile]:
    """The logs of ledger directories, ascending by id in each; raises OSError for a directory."""
    paths = (d / fmt.file_name(log_id) for d in directories for log_id in log_ids(d, OsFs()))
    return [_listed(path) for path in paths]


def _listed(path: Path) -> LogFile:
    try:
        return log_file(path)
    except OSError as exc:
        return LogFile(
            path, fmt.parse_file_name(path.name), path.stat().st_size, None, exc.strerror or str(exc)
        )


def log_file(path: Path) -> LogFile:
    """One log by its path; raises as `files.opened` does, never for what is in it."""
    header = error = None
    with opened(path) as (read, size_bytes):
        try:
            header = fmt.unpack_header(read(0, fmt.HEADER_BYTES)) if size_bytes else None
        except CorruptDataError as exc:
            error = str(exc)
    return LogFile(path, fmt.parse_file_name(path.name), size_bytes, header, error)


def read_ledgers_map(read: Read, file_bytes: int, header: Header) -> dict[int, int]:
    """Ledger id -> bytes of its entries, size fields included, from the map of a sealed log.

    Raises CorruptDataError: there is no map where the header says, or it breaks its format.
    """
    offset, count = header.ledgers_map_offset, header.ledgers_count
    if not fmt.HEADER_BYTES <= offset < file_bytes:
        raise CorruptDataError(f"the header names byte {offset} for the ledgers map; it is not in the file")
    if not 0 < count <= file_bytes:
        raise CorruptDataError(f"the header names {count} ledgers in the ledgers map")
    size_bytes = min(file_bytes - offset, _MAP_LEDGER_BYTES_MAX * count)
    return fmt.unpack_ledgers_map(read(offset, size_bytes), header)


def scanned_ledgers(path: Path) -> dict[int, int]:
    """What a ledgers map would say, from the entries; raises CorruptDataError, OSError."""
    sizes: dict[int, int] = {}
    for entry in entries(path):
        sizes[entry.ledger_id] = sizes.get(entry.ledger_id, 0) + fmt.SIZE_BYTES + len(entry.entry)
    return sizes


def entries(path: Path) -> Iterator[ScannedEntry]:
    """The entries of a log in file order; memory is that of the largest one.

    Raises CorruptDataError, after the entries before it; OSError; as `files.file_status` does.
    """
    with opened(path) as (read, file_bytes):
        yield from fmt.scan(read, file_bytes, entry_bytes_max=_ENTRY_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Entries `first`..`last` (None: to the end) of a ledger (None: of all)."""

    ledger_id: int | None = None
    first: int = 0
    last: int | None = None

    def holds(self, ledger_id: int, entry_id: int) -> bool:
        return (
            self.ledger_id in (None, ledger_id)
            and entry_id >= self.first
            and (self.last is None or entry_id <= self.last)
        )


def extract(
    path: Path, wanted: Wanted, known: KnownDigests, digester: Digester | None = None, *, whole: bool
) -> Iterator[tuple[list[int], list[bytes]]]:
    """(entry ids, payloads) of one ledger in groups, ascending, each entry once.

    Of several copies of an entry the last good one counts. `whole`: the entries as they are stored,
    with header and digest, unchecked. `digester`: known from elsewhere, else recognised. Everything
    is checked before the first group comes. Memory: 16 bytes per entry, and some MiB.

    Raises:
        NotFoundError: the log holds no such entry.
        CorruptDataError: the log is damaged, or an entry has no good copy.
        OSError, and as `files.file_status` does.
    """
    assert wanted.ledger_id is not None
    ids, positions, sizes, bad = array("q"), array("q"), array("q"), array("q")
    for scanned in entries(path):
        if wanted.holds(scanned.ledger_id, scanned.entry_id):
            digest = digester or known.of(scanned.ledger_id, scanned.entry_id, scanned.entry)
            if whole or (digest and fits(digest, scanned.ledger_id, scanned.entry_id, scanned.entry)):
                ids.append(scanned.entry_id)
                positions.append(scanned.position)
                sizes.append(len(scanned.entry))
            else:
                bad.append(scanned.entry_id)
    _refuse_bad(path, wanted.ledger_id, bad, ids, digester or known.get(wanted.ledger_id))
    if not ids:
        raise NotFoundError(f"{path} holds no such entry of ledger {wanted.ledger_id}")
    digest = digester or known.get(wanted.ledger_id)
    payload_at = 0 if whole or digest is None else HEADER_BYTES + digest.digest_bytes
    with opened(path) as (read, _):
        group: tuple[list[int], list[bytes]] = ([], [])
        group_bytes = 0
        for index in _ascending(ids):
            group[0].append(ids[index])
            group[1].append(read(positions[index] + payload_at, sizes[index] - payload_at))
            group_bytes += sizes[index]
            if group_bytes >= _EXTRACTED_AT_ONCE_BYTES:
                yield group
                group, group_bytes = ([], []), 0
        yield group


def _refuse_bad(
    path: Path, ledger_id: int, bad: "array[int]", good: "array[int]", digester: Digester | None
) -> None:
    lost = sorted(set(bad) - set(good))
    if not lost:
        return
    if digester is None:
        raise CorruptDataError(
            f"{path}: the digest of ledger {ledger_id} cannot be told from its entries; "
            "give --password-file (MAC) or --digest, or take the entries --whole"
        )
    raise CorruptDataError(
        f"{path}: {len(lost)} of the entries of ledger {ledger_id} do not fit their "
        f"{digester.digest_type.name} digest, first entry {lost[0]}; leave them out by --entry, or take "
        "the entries --whole"
    )


def _ascending(ids: "array[int]") -> Iterator[int]:
    """Indexes of the last copy of each id, ascending by id."""
    order: Sequence[int] = range(len(ids))
    if any(ids[i] >= ids[i + 1] for i in range(len(ids) - 1)):
        order = sorted(order, key=ids.__getitem__)  # stable: the last copy stays last
    for at, index in enumerate(order):
        if at + 1 == len(order) or ids[order[at + 1]] != ids[index]:
            yield index
