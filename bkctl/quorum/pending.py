"""Adds that are sent and not yet acknowledged: their bytes, their answers, their resends.

Adds are kept as blocks of consecutive entries, packed once: a resend repeats the same bytes. Without
striping one block object serves every bookie of the ensemble.

Source: spec replication sections 5 and 6.6-6.7.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, cycle, islice

from bkctl.errors import BkctlError
from bkctl.formats.entry import HEADER_BYTES, Digester
from bkctl.formats.request_v2 import ADD_PREFIX
from bkctl.quorum.acks import AckWatermarks
from bkctl.quorum.actions import Acked, Failed, SendAdds
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieId, BookieIndex, EntryId

PARTS_PER_FRAME = 4  # what Digester.pack_adds makes of one entry
_LENGTH_BYTES = 4


def frames_in(block: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of every add frame in a block."""
    start = 0
    while start < len(block):
        end = start + _LENGTH_BYTES + int.from_bytes(block[start : start + _LENGTH_BYTES])
        yield start, end
        start = end


def entries_in(block: bytes) -> list[tuple[EntryId, bytes]]:
    """The entries in a block of add frames: id and body (header, digest, payload)."""
    bodies = [block[start + ADD_PREFIX.size : end] for start, end in frames_in(block)]
    return [(EntryId(int.from_bytes(body[8:16])), body) for body in bodies]


@dataclass(slots=True)
class _Block:
    """`chunks` holds the frames: one per entry if the ledger is striped, else all in one."""

    first_entry_id: int
    last_entry_id: int
    chunks: list[bytes]
    admitted: int  # adds admitted before this block

    @property
    def count(self) -> int:
        return self.last_entry_id - self.first_entry_id + 1

    @property
    def bytes(self) -> int:
        return sum(map(len, self.chunks))

    def tail(self, first_entry_id: int) -> "_Block":
        """The block without the entries below `first_entry_id`."""
        skip = first_entry_id - self.first_entry_id
        if skip <= 0:
            return self
        if len(self.chunks) == self.count:
            chunks = self.chunks[skip:]
        else:
            (frames,) = self.chunks
            chunks = [frames[next(islice(frames_in(frames), skip, None))[0] :]]
        return _Block(first_entry_id, self.last_entry_id, chunks, self.admitted)


class PendingAdds:
    """The queue of pending adds of one ledger over its current ensemble.

    `digester` is that of the ledger. Ids are consecutive unless `advanced`, where blocks of one
    entry come in any order and a gap holds back later entries.
    """

    def __init__(
        self,
        schedule: RoundRobinSchedule,
        ensemble: tuple[BookieId, ...],
        acked: EntryId,
        digester: Digester,
        *,
        advanced: bool = False,
    ) -> None:
        self._schedule = schedule
        self._acks = AckWatermarks(schedule, acked)
        self._blocks: dict[int, _Block] = {}  # by first entry
        self._frame_overhead_bytes = ADD_PREFIX.size + HEADER_BYTES + digester.digest_bytes
        self._advanced = advanced
        self._last_pushed = acked
        self._next_block = acked + 1  # first entry of the block that holds the next entry to acknowledge
        self._set_ensemble(ensemble)
        self.admitted = 0  # adds pushed so far
        self.entries = 0  # in blocks that are not acknowledged as a whole
        self.bytes = 0

    def _set_ensemble(self, ensemble: tuple[BookieId, ...]) -> None:
        assert len(set(ensemble)) == self._schedule.ensemble_size == len(ensemble), ensemble
        self.ensemble = ensemble
        self.index_of = {bookie_id: BookieIndex(index) for index, bookie_id in enumerate(ensemble)}

    @property
    def acked(self) -> EntryId:
        """The last acknowledged entry; all before it are acknowledged, too."""
        return self._acks.acked

    @property
    def last_pushed(self) -> EntryId:
        return self._last_pushed

    def contains(self, entry_id: int) -> bool:
        """Whether an entry is pending (advanced queues only)."""
        return entry_id in self._blocks

    def push(
        self,
        first_entry_id: int,
        parts: Sequence[bytes | bytearray | memoryview],
        skip: Collection[BookieIndex],
    ) -> list[SendAdds]:
        """Take consecutive entries as Digester.pack_adds made them, and send them to their write sets.

        Indexes in `skip` get nothing now: they are being replaced.
        """
        count = len(parts) // PARTS_PER_FRAME
        if self._schedule.striped:
            frames = (parts[i : i + PARTS_PER_FRAME] for i in range(0, len(parts), PARTS_PER_FRAME))
            chunks = list(map(b"".join, frames))
        else:
            chunks = [b"".join(parts)]
        block = _Block(first_entry_id, first_entry_id + count - 1, chunks, self.admitted)
        assert self._advanced or first_entry_id == self._last_pushed + 1, (first_entry_id, self._last_pushed)
        self._blocks[first_entry_id] = block
        self._last_pushed = EntryId(max(self._last_pushed, block.last_entry_id))
        self.admitted += count
        self.entries += count
        self.bytes += block.bytes
        sends = (self._send(block, index) for index in self.index_of.values() if index not in skip)
        return [send for send in sends if send is not None]

    def _send(self, block: _Block, index: BookieIndex) -> SendAdds | None:
        first, last = block.first_entry_id, block.last_entry_id
        if self._schedule.striped:
            size, quorum = self._schedule.ensemble_size, self._schedule.write_quorum_size
            mine = cycle([(index - entry_id) % size < quorum for entry_id in range(first, first + size)])
            frames = b"".join(compress(block.chunks, mine))
            if not frames:
                return None
        else:
            (frames,) = block.chunks
        return SendAdds(self.ensemble[index], EntryId(first), EntryId(last), frames)

    def store(self, bookie_id: BookieId, first_entry_id: int, last_entry_id: int) -> None:
        """A bookie holds its entries among first..last. Bookies outside the ensemble are ignored."""
        index = self.index_of.get(bookie_id)
        last_entry_id = min(last_entry_id, self._last_pushed)  # nobody can store what was never sent
        if index is not None and first_entry_id <= last_entry_id:
            self._acks.store(index, first_entry_id, last_entry_id)

    def drain(self) -> Acked | None:
        """Acknowledge, in order, what is stored by enough bookies."""
        first, stored = self.acked + 1, self._acks.quorum_stored(self._last_pushed)
        acked = first - 1
        while acked < stored and (block := self._blocks.get(self._next_block)) is not None:
            acked = min(block.last_entry_id, stored)
            if acked < block.last_entry_id:
                break
            del self._blocks[self._next_block]
            self._next_block = block.last_entry_id + 1
            self.entries -= block.count
            self.bytes -= block.bytes
        if acked < first:
            return None
        self._acks.acked = EntryId(acked)
        return Acked(EntryId(first), EntryId(acked))

    def replace(self, ensemble: tuple[BookieId, ...], resend: Collection[BookieIndex]) -> list[SendAdds]:
        """Go on with another ensemble; everything pending is sent anew to the indexes in `resend`.

        All answers are taken back before anything is sent, and nothing is acknowledged here.
        """
        self._set_ensemble(ensemble)
        for index in resend:
            self._acks.reset(index)
        blocks = [self._blocks[first].tail(self.acked + 1) for first in sorted(self._blocks)]
        sends = (self._send(block, index) for index in sorted(resend) for block in blocks)
        return [send for send in sends if send is not None]

    def fail_all(self, error: BkctlError) -> list[Failed]:
        """Forget every pending add; one Failed for each run of consecutive ids, in order."""
        runs: list[Failed] = []
        for first in sorted(self._blocks):
            start, last = max(first, self.acked + 1), EntryId(self._blocks[first].last_entry_id)
            if runs and runs[-1].last_entry_id + 1 == start:
                runs[-1] = Failed(runs[-1].first_entry_id, last, error)
            else:
                runs.append(Failed(EntryId(start), last, error))
        self._blocks.clear()
        self.entries = self.bytes = 0
        return runs

    def payload_bytes(self) -> int:
        """Payload bytes of the adds that are not acknowledged."""
        total = 0
        for block in self._blocks.values():
            rest = block.tail(self.acked + 1)
            total += rest.bytes - rest.count * self._frame_overhead_bytes
        return total

    def first_outstanding(self, index: BookieIndex) -> int | None:
        """The oldest entry that was sent to `index` and is not known to be stored there."""
        if not self._advanced:
            mark = self._acks.watermark(index)
            return mark if mark <= self._last_pushed else None
        missing = (first for first in self._blocks if self._acks.lacks(index, first))
        return min(missing, default=None)

    def behind(self, admitted: int) -> list[BookieId]:
        """Bookies that have not stored all of the first `admitted` adds."""
        if not self._advanced:
            first = self._last_pushed + 1 - self.admitted
            return [b for b, i in self.index_of.items() if self._acks.watermark(i) < first + admitted]
        old = [block.first_entry_id for block in self._blocks.values() if block.admitted < admitted]
        return [b for b, i in self.index_of.items() if any(self._acks.lacks(i, e) for e in old)]
