"""Is an entry log whole? Structure, digests as far as they can be told, and the ledgers map.

An entry log has no checksums of its own. Told from its bytes are: a header and sizes that break the
format, bytes between entries, entries that do not fit their digest, and in a sealed log whether the
bytes of each ledger add up to what the map says. A crash cuts the log that was written: that is "torn
tail" of a log without map, and everything else is damage.

Source: spec storage section 5; `formats.entry_log`.
"""

import enum
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log as fmt
from bkctl.formats.entry_log import Header
from bkctl.formats.journal import RECORD_BYTES_MAX
from bkctl.offline.damage import DAMAGES_MAX, Damage, covered_bytes, first_nonzero, merged
from bkctl.offline.digests import DigestCheck, KnownDigests
from bkctl.offline.entry_logs import read_ledgers_map
from bkctl.offline.entry_search import RECORD_BYTES_MIN, next_entry, without_swallowed
from bkctl.offline.files import Read, data_end, next_nonzero, opened

_HEAD = Struct(">iqq")
_MAP_COUNT = Struct(">i")
_MAP_PAIR_BYTES = 16
_MAP_BATCH_HEAD_BYTES = 24
_MAP_IDS = (-1, -2)
_FIELDS_END = 20  # behind the last field of the header
_MAP_OFFSET_AT, _MAP_COUNT_AT = 8, 16
_PADDING_BYTE = 0xF0
_PADDING_ALIGNMENT = 4096
_WINDOW_BYTES = 4 << 20
_RESUMES_MAX = 1000
_ZEROS = "zeros instead of entries"


class LogState(enum.StrEnum):
    OK = "ok"
    EMPTY = "empty"  # allocated ahead, or never written
    TORN_TAIL = "torn tail"  # normal after a crash
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(slots=True)
class LogReport:
    """What a check of one entry log found; `damages` are ascending.

    `lost_bytes`: of entries that cannot be read or trusted. `lost_by_ledger`: bytes that the ledgers
    map of a damaged log promises and the log does not have whole.
    """

    path: Path
    state: LogState = LogState.OK
    sealed: bool = False
    entries: int = 0
    ledgers: int = 0
    digests: DigestCheck | None = None
    damages: list[Damage] = field(default_factory=list)
    damage_count: int = 0
    lost_bytes: int = 0
    lost_by_ledger: dict[int, int] = field(default_factory=dict)
    entries_behind: int = 0  # whole ones behind the first damage
    error: str | None = None


def verify(path: Path, known: KnownDigests) -> LogReport:
    """Check every entry of a log. Memory: some windows of 4 MiB, and some bytes per ledger.

    Raises OSError, and as `files.file_status` does.
    """
    report = LogReport(path)
    with opened(path) as (read, file_bytes):
        if file_bytes == 0:
            report.state = LogState.EMPTY
            return report
        head = read(0, fmt.HEADER_BYTES)
        header = None
        try:
            header = fmt.unpack_header(head)
        except CorruptDataError as error:
            if len(head) < fmt.HEADER_BYTES or head.startswith(_MAGIC):
                report.state, report.error = LogState.UNREADABLE, str(error)
                return report
            report.damages.append(Damage(0, len(_MAGIC), str(error)))
        _Check(read, file_bytes, header, report, known).run(head)
    return report


_MAGIC = fmt.pack_header()[:4]


class _LedgerBytes:
    """What a log holds of one ledger: bytes with size fields, whole entries, and where it begins."""

    __slots__ = ("first_position", "size_bytes")

    def __init__(self, first_position: int) -> None:
        self.first_position = first_position
        self.size_bytes = 0


class _Check:
    def __init__(
        self, read: Read, file_bytes: int, header: Header | None, report: LogReport, known: KnownDigests
    ) -> None:
        self._read = read
        self._file_bytes = file_bytes
        self._header = header
        self._report = report
        self._known = known
        self._digests = report.digests = DigestCheck(known)
        self._ledgers: dict[int, _LedgerBytes] = {}
        self._pieces: list[tuple[int, int]] = []  # (position of a window, entries before it)
        self._last_position: int | None = None  # of the size field of the entry taken last, until passed
        self._map_at: int | None = None  # where a ledgers map was met
        self._end = file_bytes  # of the entries, where the header names it

    def run(self, head: bytes) -> None:
        header, report = self._header, self._report
        ledgers_map: dict[int, int] | None = None
        map_error = ""
        if header is not None:
            self._check_header(header, head)
            report.sealed = header.ledgers_map_offset != 0
        if header is not None and report.sealed:
            try:
                ledgers_map = read_ledgers_map(self._read, self._file_bytes, header)
                self._end = header.ledgers_map_offset
            except CorruptDataError as error:
                map_error = str(error)
        self._walk()
        if header is not None and map_error:
            self._report_map(header, map_error)
        structural = [damage for damage in report.damages if damage.position >= fmt.HEADER_BYTES]
        self._digests.settle()
        if header is not None and ledgers_map is not None:
            self._compare_map(header, ledgers_map, bool(structural))
        self._judge()

    def _check_header(self, header: Header, head: bytes) -> None:
        found = first_nonzero(head[_FIELDS_END:])
        if found is not None:
            at = _FIELDS_END + found
            self._add(Damage(at, at + 1, "a byte of the header is not zero"))
        if header.version < 1 and header.ledgers_map_offset:
            self._add(Damage(4, 8, "the header is of version 0, which knows no ledgers map, and names one"))
        if header.ledgers_count and not header.ledgers_map_offset:
            at = _MAP_OFFSET_AT
            detail = f"the header names no ledgers map, but {header.ledgers_count} ledgers in it"
            self._add(Damage(at, _FIELDS_END, detail))

    def _walk(self) -> None:
        position, resumes = fmt.FIRST_POSITION, 0
        while position < self._end:
            position = self._take_entries(position)
            if position >= self._end or self._map_at is not None:
                return
            behind = self._pass_over(position)
            if isinstance(behind, int):
                position, self._last_position = behind, None
                continue
            start = self._suspect_start(position)
            resumed = None
            if resumes < _RESUMES_MAX:
                resumed = next_entry(
                    self._read,
                    start + (1 if behind.detail == _ZEROS else RECORD_BYTES_MIN),
                    self._end,
                    self._known,
                )
            end = resumed or max(data_end(self._read, position, self._end), position + 1)
            torn = behind.torn and resumed is None and not self._report.sealed
            if start == position:
                self._add(Damage(position, end, behind.detail, torn=torn))
            elif resumed is not None or not torn:
                detail = f"an entry whose size may be wrong: at byte {position} follows {behind.detail}"
                self._add(Damage(start, end, detail))
            else:
                self._add(Damage(position, end, behind.detail, torn=True))
            if resumed is None:
                return
            position, resumes = resumed, resumes + 1

    def _suspect_start(self, position: int) -> int:
        """Where damage that shows at `position` may begin: with the entry before it, unless that is whole."""
        if self._last_position is None or self._last_position >= position:
            return position
        start = self._last_position
        entry = self._read(start + fmt.SIZE_BYTES, position - start - fmt.SIZE_BYTES)
        _, ledger_id, entry_id = _HEAD.unpack(self._read(start, _HEAD.size))
        return position if self._known.proves(ledger_id, entry_id, entry) else start

    def _take_entries(self, position: int) -> int:
        """Check whole entries from `position` on; where something else stands."""
        window_bytes = _WINDOW_BYTES
        while position < self._end:
            data = self._read(position, min(window_bytes, self._end - position))
            self._pieces.append((position, self._report.entries))
            at, wanted_bytes = self._take_window(data, position)
            if not at and (wanted_bytes <= len(data) or position + wanted_bytes > self._end):
                return position
            position += at
            if wanted_bytes > RECORD_BYTES_MAX:
                return position
            window_bytes = max(_WINDOW_BYTES, wanted_bytes)
        return position

    def _take_window(self, data: bytes, position: int) -> tuple[int, int]:
        """(bytes of the whole entries at the start of `data`, bytes of the item behind them)."""
        by_ledger: dict[int, tuple[list[int], list[int], list[bytes]]] = {}
        at, end, taken, last = 0, len(data), 0, 0
        wanted_bytes = _HEAD.size
        unpack = _HEAD.unpack_from
        while at + _HEAD.size <= end:
            size, ledger_id, entry_id = unpack(data, at)
            if size < fmt.ENTRY_BYTES_MIN or ledger_id < 0 or entry_id < 0:
                wanted_bytes = 0
                break
            behind = at + fmt.SIZE_BYTES + size
            if behind > end:
                wanted_bytes = fmt.SIZE_BYTES + size
                break
            group = by_ledger.get(ledger_id)
            if group is None:
                group = by_ledger[ledger_id] = ([], [], [])
            group[0].append(entry_id)
            group[1].append(position + at + fmt.SIZE_BYTES)
            group[2].append(data[at + fmt.SIZE_BYTES : behind])
            last, at = at, behind
            taken += 1
        self._report.entries += taken
        self._last_position = position + last if taken else self._last_position
        for ledger_id, (entry_ids, positions, entries) in by_ledger.items():
            ledger = self._ledgers.get(ledger_id)
            if ledger is None:
                ledger = self._ledgers[ledger_id] = _LedgerBytes(positions[0])
            ledger.size_bytes += sum(map(len, entries)) + fmt.SIZE_BYTES * len(entries)
            self._digests.check(ledger_id, entry_ids, positions, entries)
        return at, wanted_bytes

    def _pass_over(self, position: int) -> "int | Damage":
        """What stands at `position` instead of a whole entry: where to go on, or the damage."""
        data = self._read(position, min(_PADDING_ALIGNMENT, self._end - position))
        if data[0] == _PADDING_BYTE:
            padding = data[: _PADDING_ALIGNMENT - position % _PADDING_ALIGNMENT]
            wrong = padding.lstrip(bytes([_PADDING_BYTE]))
            if wrong:
                at = position + len(padding) - len(wrong)
                return Damage(position, position, f"byte {at} is neither padding nor an entry")
            return position + len(padding)
        if len(data) < _HEAD.size:
            zeros = first_nonzero(data) is None
            return self._end if zeros else Damage(position, position, "the log ends in an entry", torn=True)
        size, ledger_id, entry_id = _HEAD.unpack_from(data)
        if size == 0:
            found = next_nonzero(self._read, position, self._end)
            return self._end if found is None else Damage(position, position, _ZEROS)
        if size < fmt.ENTRY_BYTES_MIN:
            return Damage(position, position, f"an entry of {size} bytes")
        if (ledger_id, entry_id) == _MAP_IDS:
            self._map_at = position
            return self._end
        if ledger_id == -1 and position + fmt.SIZE_BYTES + size <= self._end:
            return position + fmt.SIZE_BYTES + int(size)  # the filler of a log that was written directly
        if ledger_id < 0 or entry_id < 0:
            return Damage(position, position, f"an entry with ids {ledger_id} and {entry_id}")
        detail = f"an entry of {size} bytes, and the log ends before it does"
        return Damage(position, position, detail, torn=size <= RECORD_BYTES_MAX)

    def _report_map(self, header: Header, error: str) -> None:
        """Which of header and map is damaged, when they do not make a ledgers map together."""
        offset, said = header.ledgers_map_offset, header.ledgers_count
        if self._map_at is None:
            if fmt.HEADER_BYTES <= offset < self._file_bytes:
                self._add(Damage(offset, min(self._file_bytes, offset + _MAP_BATCH_HEAD_BYTES), error))
            else:
                self._add(Damage(_MAP_OFFSET_AT, _MAP_COUNT_AT, error))
            return
        if self._map_at != offset:
            detail = f"the header names byte {offset} for the ledgers map, which begins at {self._map_at}"
            self._add(Damage(_MAP_OFFSET_AT, _MAP_COUNT_AT, detail))
            return
        by_size, by_count, end = self._map_counts(offset)
        if by_size == by_count != said:
            detail = f"the header names {said} ledgers, the ledgers map holds {by_count}"
            self._add(Damage(_MAP_COUNT_AT, _FIELDS_END, detail))
        elif by_size == by_count:
            self._add(Damage(offset, end, "the ledgers map names a ledger twice"))
        else:
            self._add(Damage(offset, offset + _MAP_BATCH_HEAD_BYTES, error))

    def _map_counts(self, position: int) -> tuple[int, int, int]:
        """(ledgers by the sizes of the batches, ledgers by their counts, end of the map)."""
        by_size = by_count = 0
        while True:
            head = self._read(position, _MAP_BATCH_HEAD_BYTES)
            if len(head) < _MAP_BATCH_HEAD_BYTES or _HEAD.unpack_from(head)[1:] != _MAP_IDS:
                return by_size, by_count, position
            pairs_bytes = _HEAD.unpack_from(head)[0] + fmt.SIZE_BYTES - _MAP_BATCH_HEAD_BYTES
            if pairs_bytes < 0:
                return by_size, by_count, position
            by_size += pairs_bytes // _MAP_PAIR_BYTES
            by_count += int(_MAP_COUNT.unpack_from(head, _HEAD.size)[0])
            position += _MAP_BATCH_HEAD_BYTES + pairs_bytes

    def _compare_map(self, header: Header, ledgers_map: dict[int, int], structural: bool) -> None:
        """Bytes of each ledger: what the map says against what is there.

        A ledger that only the log knows is a damaged entry, or a damaged ledger id in the map: then
        the bytes of both agree.
        """
        damaged = {damage.ledger_id for damage in self._digests.damages}
        found_bytes = {ledger_id: ledger.size_bytes for ledger_id, ledger in self._ledgers.items()}
        strangers = {i: n for i, n in found_bytes.items() if i not in ledgers_map and not self._known_bad(i)}
        for index, (ledger_id, promised) in enumerate(ledgers_map.items()):
            found = found_bytes.get(ledger_id, 0)
            if found == promised:
                continue
            twin = next((i for i, size in strangers.items() if not found and size == promised), None)
            if twin is not None:
                del strangers[twin]
            elif structural or ledger_id in damaged or (strangers and found < promised):
                if found < promised:
                    self._report.lost_by_ledger[ledger_id] = promised - found
                continue
            at = _pair_position(header.ledgers_map_offset, index)
            detail = f"the ledgers map says {promised} bytes of ledger {ledger_id}, the log has {found}"
            self._add(Damage(at, at + _MAP_PAIR_BYTES, detail, ledger_id))
        for ledger_id in strangers if not structural else ():
            at = self._ledgers[ledger_id].first_position
            detail = f"an entry of ledger {ledger_id}, which the ledgers map does not know"
            self._add(Damage(at, at + 8, detail, ledger_id))

    def _known_bad(self, ledger_id: int) -> bool:
        """Whether the digests told already that the only entry of a ledger is damaged."""
        start = self._ledgers[ledger_id].first_position
        return any(start <= damage.position < start + 16 for damage in self._digests.damages)

    def _judge(self) -> None:
        report = self._report
        report.ledgers = len(self._ledgers)
        damages = merged([*report.damages, *self._digests.damages])
        damages = without_swallowed(damages, self._read, self._known)
        report.damage_count = max(len(damages), self._digests.bad)
        report.damages = damages[:DAMAGES_MAX]
        if damages:
            end = data_end(self._read, damages[0].position, self._file_bytes)
            torn = damages[0].torn and damages[0].end >= end and not report.sealed
            report.state = LogState.TORN_TAIL if torn else LogState.DAMAGED
        first = next((damage for damage in damages if damage.position >= fmt.HEADER_BYTES), None)
        report.lost_bytes = covered_bytes([d for d in damages if fmt.HEADER_BYTES <= d.position < self._end])
        if first is not None:
            report.entries_behind = report.entries - self._entries_up_to(first.position)

    def _entries_up_to(self, position: int) -> int:
        """How many entries begin at or before `position`."""
        pieces = [piece for piece in self._pieces if piece[0] <= position]
        if not pieces:
            return 0
        at, count = pieces[-1]
        while at <= position:
            head = self._read(at, _HEAD.size)
            if len(head) < _HEAD.size:
                break
            size, ledger_id, _ = _HEAD.unpack(head)
            if size < fmt.ENTRY_BYTES_MIN or ledger_id < 0:
                break
            at += fmt.SIZE_BYTES + size
            count += 1
        return count

    def _add(self, damage: Damage) -> None:
        if len(self._report.damages) < DAMAGES_MAX:
            self._report.damages.append(damage)


def _pair_position(map_offset: int, index: int) -> int:
    """Where the pair of the ledger with this index stands, in a map with full batches."""
    batches = index // 10_000 + 1
    return map_offset + batches * _MAP_BATCH_HEAD_BYTES + index * _MAP_PAIR_BYTES
