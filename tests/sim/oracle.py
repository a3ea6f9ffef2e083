"""What must never happen: the invariants of spec replication section 16, by their names.

It sees everything at once: what programs were told, what the store holds, what disks hold.
"""

from typing import TYPE_CHECKING

from bkctl.formats.entry import read_header
from bkctl.types import INVALID_ENTRY_ID, EntryId, LedgerMetadata, MetadataState

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

_LEGAL = {
    (MetadataState.OPEN, MetadataState.OPEN),
    (MetadataState.OPEN, MetadataState.IN_RECOVERY),
    (MetadataState.OPEN, MetadataState.CLOSED),
    (MetadataState.IN_RECOVERY, MetadataState.CLOSED),
}


class Oracle:
    """`payloads`: what the writer added, by entry id; `outcomes`: what it was told, True for success."""

    def __init__(self, cluster: "Cluster", metadata: LedgerMetadata) -> None:
        self._cluster = cluster
        self.payloads: dict[int, bytes] = {}
        self.outcomes: dict[int, bool] = {}
        self.acked: EntryId = INVALID_ENTRY_ID  # highest
        self.frozen_lacs: set[int] = set()  # what recoverers may write as LAC
        self.read: dict[int, bytes] = {}  # payloads that readers were given
        self.end: tuple[int, int] | None = None  # of the closed ledger: last entry, length
        self.latest = metadata
        self.forced: EntryId = INVALID_ENTRY_ID  # under deferred sync: what is promised
        self.deferred = cluster.settings.deferred_sync
        self.advanced = cluster.settings.advanced
        self.damaged: set[str] = set()  # bookies that lost or damaged something for good
        self.deleted = False
        self.fenced_behind: int | None = None  # the last entry added before a fence was complete

    @property
    def promised(self) -> EntryId:
        """The last entry that may never be lost again."""
        return self.forced if self.deferred else self.acked

    # -- metadata --------------------------------------------------------------------------------

    def metadata_changed(self, before: LedgerMetadata, after: LedgerMetadata | None) -> None:
        if after is None:
            self.deleted = True
            return
        self._cluster.world.tell("metadata", _in_words(after))
        assert (before.state, after.state) in _LEGAL, f"I8: {before.state} became {after.state}"
        firsts = [segment.first_entry_id for segment in after.segments]
        assert firsts[0] == 0, f"I7: the first segment begins at {firsts[0]}"
        assert firsts == sorted(set(firsts)), f"I7: segments begin at {firsts}"
        for segment in after.segments:
            assert len(set(segment.ensemble)) == after.ensemble_size, f"I7: {segment}"
        kept = len(before.segments) - 1
        assert after.segments[:kept] == before.segments[:kept], "I7: a finished segment was changed"
        if after.closed:
            end = (int(after.last_entry_id), int(after.length))
            assert self.end is None or self.end == end, f"I3: closed at {self.end}, then at {end}"
            self.end = end
            assert firsts[-1] <= end[0] + 1, f"I7: a segment begins behind the end {end[0]}"
            assert end[0] >= self.promised, f"I1: acknowledged up to {self.promised}, closed at {end[0]}"
        self.latest = after

    # -- writer ----------------------------------------------------------------------------------

    def added(self, first: int, payloads: list[bytes]) -> None:
        self.payloads.update(enumerate(payloads, first))

    def acknowledged(self, first: int, last: int) -> None:
        for entry_id in range(first, last + 1):
            assert entry_id == self.acked + 1, f"I9: {entry_id} acknowledged after {self.acked}"
            assert entry_id not in self.outcomes, f"I9: a second outcome of {entry_id}"
            self.outcomes[entry_id] = True
            self.acked = EntryId(entry_id)
            if self.end is not None:
                assert entry_id <= self.end[0], f"I4: {entry_id} acknowledged beyond the end {self.end[0]}"
            if self.fenced_behind is not None:
                assert entry_id <= self.fenced_behind, (
                    f"I4: {entry_id} was added behind a fence, and acknowledged"
                )
            if not self.deferred and not self.deleted:
                self._check_replicated(entry_id)

    def force_done(self, last: int) -> None:
        """The writer was told that everything up to `last` is durable."""
        if self.end is not None:
            assert last <= self.end[0], f"I4: {last} is durable, the ledger was closed at {self.end[0]}"
        for entry_id in range(self.forced + 1, last + 1):
            self._check_replicated(entry_id)
        self.forced = max(self.forced, EntryId(last))

    def refused(self, first: int, last: int) -> None:
        for entry_id in range(first, last + 1):
            assert entry_id not in self.outcomes, f"I9: a second outcome of {entry_id}"
            self.outcomes[entry_id] = False

    def _check_replicated(self, entry_id: int) -> None:
        cluster = self._cluster
        ensemble = self.latest.segment_at(EntryId(entry_id)).ensemble
        named = [ensemble[i] for i in cluster.schedule.write_set(EntryId(entry_id))]
        from tests.sim.cluster import LEDGER_ID

        held = [b for b in named if cluster.bookies[b].durable_entry(LEDGER_ID, entry_id) is not None]
        assert len(held) >= cluster.schedule.ack_quorum_size, (
            f"I6: entry {entry_id} was acknowledged, of {named} only {held} hold it durably"
        )

    def fenced(self) -> None:
        """Somebody was told that the writer is fenced: nothing that it adds from now on succeeds."""
        if self.fenced_behind is None:
            self.fenced_behind = max(self.payloads, default=-1)

    def sent_by_writer(self, body: bytes) -> None:
        header = read_header(body)
        self.lac_sent(header.lac)

    def lac_sent(self, lac: int) -> None:
        assert lac <= self.promised, f"I5: LAC {lac} sent, {self.promised} is acknowledged and durable"

    def sent_by_recoverer(self, body: bytes) -> None:
        self.frozen_lacs.add(read_header(body).lac)

    # -- readers ---------------------------------------------------------------------------------

    def lac_given(self, lac: int, before: int) -> None:
        """A reader was told that it may read up to `lac`."""
        assert lac >= before, f"I5: the LAC of a reader fell from {before} to {lac}"
        limit = self.promised if self.end is None else max(self.promised, self.end[0])
        assert lac <= limit, f"I5: a reader was given LAC {lac}; {limit} is all that may be read"

    def entry_given(self, entry_id: int, payload: bytes) -> None:
        assert payload == self.payloads.get(entry_id), f"I2: entry {entry_id} is not what was written"
        assert self.read.setdefault(entry_id, payload) == payload, f"I2: entry {entry_id} read twice, unequal"

    # -- the end of the story --------------------------------------------------------------------

    def check_end(self) -> None:
        """All is healed and the ledger was recovered: it holds everything that was acknowledged."""
        from tests.sim.cluster import LEDGER_ID

        cluster, metadata = self._cluster, self.latest
        assert metadata.closed, f"I14: the ledger is {metadata.state.name}"
        end = int(metadata.last_entry_id)
        for entry_id in range(end + 1):
            ensemble = metadata.segment_at(EntryId(entry_id)).ensemble
            named = [ensemble[i] for i in cluster.schedule.write_set(EntryId(entry_id))]
            bodies = [cluster.bookies[b].durable_entry(LEDGER_ID, entry_id) for b in named]
            copies = [body for body in bodies if body is not None]
            assert len(copies) >= cluster.schedule.ack_quorum_size, (
                f"I6: {len(copies)} durable copies of entry {entry_id} on {named}"
            )
            for body in copies:
                payload = cluster.digester.open_entry(body, LEDGER_ID, entry_id)
                assert payload == self.payloads[entry_id], f"I2: a copy of entry {entry_id} differs"
        if not self.advanced:  # there it follows the order of the adds
            assert metadata.length == sum(len(self.payloads[e]) for e in range(end + 1)), "I10: the length"
        for entry_id in self.read:
            assert entry_id <= end, f"I2: a reader was given entry {entry_id}, behind the end {end}"


def _in_words(metadata: LedgerMetadata) -> str:
    segments = "; ".join(f"{s.first_entry_id}: {' '.join(s.ensemble)}" for s in metadata.segments)
    end = f" at {metadata.last_entry_id}" if metadata.closed else ""
    return f"{metadata.state.name}{end} [{segments}]"
