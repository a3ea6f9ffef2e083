"""Is a journal whole? Structure, digests as far as they can be told, and what is lost behind damage.

A journal has no checksums of its own. Told from its bytes are: records and padding that break their
format, bytes that should be zero, entries that do not fit their digest, explicit LACs likewise, and
master keys that differ. A crash tears the last group only: sectors of it that are all zeros, or a
file that ends early. So that is "torn tail", and everything else is damage.

Source: spec storage section 4; `formats.journal`.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

from bkctl.errors import CorruptDataError
from bkctl.formats import journal as fmt
from bkctl.formats.journal import JournalRecord, RecordKind, ScanEnd, Stop
from bkctl.formats.small_files import LogMark
from bkctl.offline.damage import DAMAGES_MAX, Damage, covered_bytes, first_nonzero, has_zero_sector, merged
from bkctl.offline.digests import DigestCheck, KnownDigests
from bkctl.offline.entry_search import RECORD_BYTES_MIN, next_entry, without_swallowed
from bkctl.offline.files import Read, data_end, next_nonzero, opened
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.journal import scan_file

_LENGTH = Struct(">i")
_PADDING = Struct(">ii")
_MAGIC_BYTES = 8  # magic and version
_FENCE_BYTES = 16
_RESUMES_MAX = 1000  # scans begun anew behind damage, in one file
_SEARCH_BYTES = 4 << 20


class JournalState(enum.StrEnum):
    OK = "ok"
    EMPTY = "empty"
    TORN_TAIL = "torn tail"  # normal after a crash
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(slots=True)
class JournalReport:
    """What a check of one journal file found.

    `damages` are ascending. `lost_bytes`: of records that cannot be read. What is behind the first
    damage is lost to a replay, although it may be whole: `records_behind`, `ledgers_behind`.
    """

    path: Path
    state: JournalState = JournalState.OK
    version: int | None = None
    records: int = 0
    entries: int = 0
    digests: DigestCheck | None = None
    damages: list[Damage] = field(default_factory=list)
    damage_count: int = 0
    data_end: int = 0
    lost_bytes: int = 0
    records_behind: int = 0
    ledgers_behind: list[int] = field(default_factory=list)
    error: str | None = None


def verify(path: Path, known: KnownDigests, *, is_last: bool, mark: LogMark | None = None) -> JournalReport:
    """Check every record of a journal file.

    `is_last`: no younger file lies beside it, so that a crash may have cut it. `mark`: the offset of
    its journal's last mark when that lies in this file. Memory: a few MiB, and some bytes per ledger.

    Raises OSError, and as `file_status` does.
    """
    report = JournalReport(path)
    with opened(path) as (read, file_bytes):
        if file_bytes == 0:
            report.state = JournalState.EMPTY
            return report
        try:
            report.version = fmt.parse_header(read(0, fmt.HEADER_BYTES))
        except CorruptDataError as error:
            report.state, report.error = JournalState.UNREADABLE, str(error)
            return report
        check = _Check(path, read, file_bytes, report, known)
        end = check.run()
        check.judge(end, is_last, mark)
    return report


class _Check:
    def __init__(
        self, path: Path, read: Read, file_bytes: int, report: JournalReport, known: KnownDigests
    ) -> None:
        assert report.version is not None
        self._path = path
        self._read = read
        self._file_bytes = file_bytes
        self._report = report
        self._version: int = report.version
        self._known = known
        self._digests = report.digests = DigestCheck(known)
        self._expected = fmt.data_start(self._version)  # where the next record or padding begins
        self._group_start = self._expected  # of the group scanned last
        self._last: JournalRecord | None = None
        self._keys: dict[int, bytes] = {}
        self._pieces: list[tuple[int, int]] = []  # (position of a scanned piece, records before it)
        self._last_of_ledger: dict[int, int] = {}  # the position of its last record

    def run(self) -> ScanEnd:
        """Scan to the end of the data, beginning anew behind damage; the end of the last scan."""
        self._check_header()
        position, resumes = 0, 0
        while True:
            end = self._scan(position)
            resumed = None
            if end.stop is Stop.BAD_RECORD:
                start = self._suspect_start(end.position)
                resumed = self._resume_position(start) if resumes < _RESUMES_MAX else None
                lost_end = data_end(self._read, end.position, self._file_bytes)
                lost_end = lost_end if resumed is None else resumed
                self._add(Damage(start, max(lost_end, start + 1), end.detail))
            if resumed is None:
                break
            position, resumes = resumed, resumes + 1
            self._group_start = resumed
        self._digests.settle()
        return end

    def judge(self, end: ScanEnd, is_last: bool, mark: LogMark | None) -> None:
        """What the damages make of the file."""
        report = self._report
        self._check_tail(end, mark)
        report.data_end = data_end(self._read, 0, self._file_bytes)
        damages = merged([*report.damages, *self._digests.damages])
        damages = without_swallowed(damages, self._read, self._known)
        report.damage_count = max(len(damages), self._digests.bad)
        report.damages = damages[:DAMAGES_MAX]
        cut = end.stop is Stop.TORN  # by the end of the file, which bookies reserve before they write
        if any(not damage.torn or damage.position < self._group_start for damage in damages):
            report.state = JournalState.DAMAGED
        elif cut and not is_last:
            report.state = JournalState.TRUNCATED
        elif cut or damages:
            report.state = JournalState.TORN_TAIL
        report.lost_bytes = covered_bytes(damages)
        if damages:
            first = damages[0].position
            report.records_behind = report.records - self._records_up_to(first)
            behind = (ledger for ledger, at in self._last_of_ledger.items() if at > first)
            report.ledgers_behind = sorted(behind)

    def _suspect_start(self, position: int) -> int:
        """Where damage that shows at `position` may begin: with the entry before it, unless that is whole."""
        last = self._last
        if last is None or last.position + 4 + len(last.body) != position:
            return position
        if last.kind is not RecordKind.ENTRY or self._known.proves(last.ledger_id, last.entry_id, last.body):
            return position
        return last.position

    def _check_header(self) -> None:
        if self._version >= fmt.VERSION_PADDED:
            zeros_at = 8
            found = first_nonzero(self._read(zeros_at, fmt.HEADER_BYTES - zeros_at))
            if found is not None:
                self._add(Damage(zeros_at + found, zeros_at + found + 1, "a byte of the header is not zero"))

    def _scan(self, position: int) -> ScanEnd:
        self._expected = max(position, fmt.data_start(self._version))
        for scan in scan_file(OsFs(), self._path, position):
            self._pieces.append((self._expected, self._report.records))
            self._check_records(scan.records)
            if scan.end is not None:
                if scan.end.position > self._expected:
                    self._check_gap(scan.end.position)
                return scan.end
        raise AssertionError("a scan without an end")

    def _check_records(self, found: Sequence[JournalRecord]) -> None:
        by_ledger: dict[int, tuple[list[int], list[int], list[bytes]]] = {}
        expected, entries = self._expected, 0
        for kind, ledger_id, entry_id, body, position in found:
            if position != expected:
                self._expected = expected
                self._check_gap(position)
                self._group_start = position
            expected = position + 4 + len(body)
            if kind is RecordKind.ENTRY and ledger_id >= 0:
                entries += 1
                group = by_ledger.get(ledger_id)
                if group is None:
                    group = by_ledger[ledger_id] = ([], [], [])
                group[0].append(entry_id)
                group[1].append(position + 4)
                group[2].append(body)
            else:
                self._check_meta(JournalRecord(kind, ledger_id, entry_id, body, position))
            self._last_of_ledger[ledger_id] = position
        self._expected = expected
        self._last = found[-1] if found else self._last
        for ledger_id, (entry_ids, positions, bodies) in by_ledger.items():
            self._digests.check(ledger_id, entry_ids, positions, bodies)
        self._report.records += len(found)
        self._report.entries += entries

    def _check_meta(self, record: JournalRecord) -> None:
        """A record that is no entry, or an entry with an impossible ledger id."""
        detail = ""
        value = record.value
        if record.ledger_id < 0:
            detail = f"a record of ledger {record.ledger_id}"
        elif record.kind is RecordKind.UNKNOWN:
            detail = f"a record of an unknown kind, {record.entry_id}"
        elif record.kind is RecordKind.FENCE and len(record.body) != _FENCE_BYTES:
            detail = f"a fence of {len(record.body)} bytes"
        elif record.kind is RecordKind.EXPLICIT_LAC:
            detail = self._known.lac_damage(record.ledger_id, value)
        elif (
            record.kind is RecordKind.LEDGER_KEY
            and any(value)
            and self._keys.setdefault(record.ledger_id, value) != value
        ):
            detail = f"another master key of ledger {record.ledger_id} than before"
        if detail:
            torn = has_zero_sector(record.body, record.position + 4)
            end = record.position + 4 + len(record.body)
            self._add(Damage(record.position, end, detail, record.ledger_id, None, torn))

    def _check_gap(self, end: int) -> None:
        """Bytes from `_expected` to `end` are padding, or records whose bodies never came."""
        position = self._expected
        while position < end:
            head = self._read(position, _PADDING.size)
            length = int(_LENGTH.unpack_from(head)[0])
            if length == fmt.PADDING_MASK:
                size = _PADDING.size + int(_PADDING.unpack(head)[1])
                self._check_padding(position, size)
            else:
                size = _LENGTH.size + length
                detail = f"a record of {length} bytes, all zeros"
                self._add(Damage(position, position + size, detail, torn=True))
            position += size

    def _check_padding(self, position: int, size: int) -> None:
        """It holds zeros, up to the end of a sector."""
        end = position + size
        found = first_nonzero(self._read(position + _PADDING.size, size - _PADDING.size))
        at = end if found is None else position + _PADDING.size + found
        if end % fmt.SECTOR_BYTES:
            self._add(
                Damage(position, end, f"padding of {size} bytes, which does not end where a sector does")
            )
        elif found is not None and at - at % fmt.SECTOR_BYTES > position:
            self._add(
                Damage(position, at + 1, f"padding of {size} bytes, which is not zero from byte {at} on")
            )
        elif found is not None:
            self._add(Damage(at, at + 1, "a byte of the padding is not zero"))

    def _resume_position(self, position: int) -> int | None:
        """Where whole records begin again behind damage at `position`."""
        if self._version == 1 and position == 0:
            return None  # no journal of version 1 either: the layout is not known
        entry_at = next_entry(self._read, position + RECORD_BYTES_MIN, self._file_bytes, self._known)
        if self._version < fmt.VERSION_PADDED:
            return entry_at
        at = position + fmt.SECTOR_BYTES - position % fmt.SECTOR_BYTES
        search_end = data_end(self._read, at, self._file_bytes) if entry_at is None else entry_at
        while at < search_end:
            group_at = fmt.find_groups(self._read(at, 2 * _SEARCH_BYTES), self._version)
            if group_at is not None:
                return at + group_at if entry_at is None else min(entry_at, at + group_at)
            at += _SEARCH_BYTES
        return entry_at

    def _check_tail(self, end: ScanEnd, mark: LogMark | None) -> None:
        """What is behind the end of the data, and whether the mark agrees with it."""
        if mark is not None and mark.offset > end.scan_position and end.stop is not Stop.BAD_RECORD:
            detail = f"the data ends here, but lastMark names byte {mark.offset}"
            self._add(Damage(end.position, mark.offset, detail))
        if end.stop is Stop.TORN:
            self._add(Damage(end.position, self._file_bytes, end.detail, torn=True))
        if end.stop is Stop.UNFINISHED:
            record_end = end.scan_position - _LENGTH.size
            self._add(Damage(end.position, record_end, end.detail, torn=True))
        if end.stop not in (Stop.ZERO_LENGTH, Stop.UNFINISHED):
            return
        zeros_at = end.position
        if end.stop is Stop.UNFINISHED:
            zeros_at = end.scan_position - _LENGTH.size
            self._add(Damage(end.position, zeros_at, end.detail, torn=True))
        elif self._version >= fmt.VERSION_PADDED and zeros_at % fmt.SECTOR_BYTES:
            self._add(Damage(zeros_at, zeros_at, "the last flush was not finished", torn=True))
        position = next_nonzero(self._read, zeros_at, self._file_bytes)
        if position is None:
            return
        behind_end = data_end(self._read, position, self._file_bytes)
        if self._version < fmt.VERSION_PADDED and not self._report.records:
            detail = f"version {self._version} has its records here, but the data begins at byte {position}"
            self._add(Damage(4, behind_end, detail))
            return
        # A disk writes sectors whole: zeros before other bytes of the same sector were not left by a crash.
        sector_end = zeros_at + fmt.SECTOR_BYTES - zeros_at % fmt.SECTOR_BYTES
        detail = f"the data ends here, but further bytes begin at byte {position}"
        self._add(Damage(zeros_at, behind_end, detail, torn=position >= sector_end))

    def _records_up_to(self, position: int) -> int:
        """How many records begin at or before `position`."""
        pieces = [piece for piece in self._pieces if piece[0] <= position]
        if not pieces:
            return 0
        start, count = pieces[-1]
        scan = next(scan_file(OsFs(), self._path, start))
        return count + sum(record.position <= position for record in scan.records)

    def _add(self, damage: Damage) -> None:
        if len(self._report.damages) < DAMAGES_MAX:
            self._report.damages.append(damage)
