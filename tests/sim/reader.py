"""A program that reads: it opens without recovery, follows the LAC, and tells the oracle what it got."""

from functools import partial
from typing import Any

from bkctl.errors import BookKeeperError, DigestMatchError
from bkctl.quorum.lac import NEGATIVE, Coverage, LacCoverage, TailPoll
from bkctl.quorum.reads import RangeRead
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    BookieIndex,
    EntryId,
    LedgerMetadata,
    MetadataState,
    Versioned,
)
from tests.sim.cluster import LEDGER_ID, Cluster
from tests.sim.coverage import counted
from tests.sim.programs import Program
from tests.sim.world import MS

_POLL_US = 40 * MS


class Reader(Program):
    """As LedgerReader does it, around the same machines."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name)
        self.lac: EntryId = INVALID_ENTRY_ID
        self.given = 0  # entries read so far
        self.failures = 0
        assert cluster.metadata.current is not None
        self.metadata = cluster.metadata.current.value
        cluster.metadata.watch(self._watched)
        self.machine = self  # nothing replaces it

    @property
    def state(self) -> MetadataState:
        return self.metadata.state

    def _watched(self, metadata: Versioned[LedgerMetadata] | None) -> None:
        if metadata is not None:
            self.metadata = metadata.value

    # -- how far one may read ------------------------------------------------------------------------

    def step(self) -> None:
        """Ask how far one may read, then read the next entries."""
        if not self.alive:
            return
        metadata = self.metadata
        if metadata.closed:
            self._learn(metadata.last_entry_id)
            self._read_on()
            return
        coverage = LacCoverage(self.cluster.schedule)
        for number, bookie_id in enumerate(metadata.last_segment.ensemble):
            then = partial(self._lac_heard, coverage, BookieIndex(number))
            self.cluster.carrier.read_lac(self, bookie_id, then)

    def _lac_heard(self, coverage: LacCoverage, index: BookieIndex, answer: Any) -> None:
        if coverage.state is not Coverage.PENDING or not self.alive:
            self._cover("17.4 reply after the end")
            return
        failed = isinstance(answer, BookKeeperError)
        negative = isinstance(answer, NEGATIVE)
        self._cover("17.4 " + ("negative" if negative else "unknown" if failed else "OK"))
        state = coverage.failed(index, answer) if failed else coverage.answered(index, answer)
        if state is Coverage.COVERED:
            self._cover("17.4 covered")
            # As a handle does: closed metadata that came meanwhile bounds what bookies say.
            end = self.metadata.last_entry_id if self.metadata.closed else coverage.last_add_confirmed
            self._learn(max(self.lac, end))
            self._read_on()
        elif state is Coverage.FAILED:
            self._cover("17.4 all in, not covered")
            self.failures += 1

    def _cover(self, cell: str) -> None:
        self.world.covered[counted(cell)] += 1

    def _learn(self, lac: int) -> None:
        if lac != self.lac:
            self.world.tell(self.name, f"may read up to {lac}")
        self.cluster.oracle.lac_given(lac, self.lac)
        self.lac = EntryId(lac)

    # -- long polls ----------------------------------------------------------------------------------

    def poll(self) -> None:
        """Wait on all bookies for the next entry to be confirmed."""
        if not self.alive or self.metadata.closed or self.given <= self.lac:
            self.step()
            return
        entry_id = EntryId(self.given)
        poll = TailPoll(self.cluster.schedule, EntryId(entry_id - 1))
        over: list[bool] = []
        for number, bookie_id in enumerate(self.metadata.last_segment.ensemble):
            then = partial(self._polled, poll, over, BookieIndex(number), entry_id)
            self.cluster.carrier.long_poll(self, bookie_id, entry_id - 1, _POLL_US, then)

    def _polled(
        self, poll: TailPoll, over: list[bool], index: BookieIndex, entry_id: EntryId, answer: Any
    ) -> None:
        if over or not self.alive:
            return
        payload = None
        if not isinstance(answer, BookKeeperError):
            lac, body = answer
            try:
                payload = self.cluster.digester.open_entry(body, LEDGER_ID, entry_id) if body else None
            except DigestMatchError as error:
                answer = error
        told = "error" if isinstance(answer, BookKeeperError) else "entry" if payload is not None else "LAC"
        self.world.covered[f"long poll {told}"] += 1
        if isinstance(answer, BookKeeperError):
            over += [True] if poll.failed(index, answer) else []
        else:
            over += [True] if poll.answered(index, EntryId(lac)) else []
            if not self.metadata.closed:
                self._learn(max(self.lac, lac))
        if payload is not None and self.given == entry_id <= self.lac:
            over.append(True)
            self._give(entry_id, payload)

    # -- entries -------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        if self.given > self.lac:
            return
        first = EntryId(self.given)
        metadata = self.metadata
        later = [s.first_entry_id for s in metadata.segments if s.first_entry_id > first]
        last = EntryId(min([self.lac, *(e - 1 for e in later)]))
        ensemble = metadata.segment_at(first).ensemble
        read = RangeRead(self.cluster.schedule, self.cluster.digester, LEDGER_ID, first, last)
        self._ask(read, ensemble, read.start())
        self._speculate_later(read, ensemble, self.cluster.settings.speculative_us)

    def _speculate_later(self, read: RangeRead, ensemble: tuple[BookieId, ...], wait_us: int) -> None:
        def late() -> None:
            if read.done or not self.alive:
                return
            groups = read.speculate()
            self._cover("17.3 SpecTimer, " + ("next asked" if groups else "nobody left"))
            self._ask(read, ensemble, groups)
            if groups:
                self._speculate_later(read, ensemble, 2 * wait_us)

        self.world.after(wait_us, late)

    def _ask(self, read: RangeRead, ensemble: tuple[BookieId, ...], groups: Any) -> None:
        for index, entry_ids in groups.items():
            then = partial(self._answered, read, ensemble, index, entry_ids)
            self.cluster.carrier.read(self, ensemble[index], entry_ids, then)

    def _answered(
        self, read: RangeRead, ensemble: tuple[BookieId, ...], index: BookieIndex, entry_ids: Any, answer: Any
    ) -> None:
        if read.done or not self.alive:
            self._cover("17.3 reply after the end")
            return
        answers = [answer] * len(entry_ids) if isinstance(answer, BookKeeperError) else answer
        for each in answers:
            if isinstance(each, BookKeeperError):
                self._cover("17.3 reply, " + ("negative" if isinstance(each, NEGATIVE) else "unknown"))
        mismatches = len(read.digest_mismatches)
        groups = read.answered(index, entry_ids, answers)
        if len(read.digest_mismatches) > mismatches:
            self._cover("17.3 reply, bad digest")
            self.world.tell(self.name, f"gets a damaged entry from {ensemble[index]}")
        if groups:
            self._cover("17.3 next replica asked")
        self._ask(read, ensemble, groups)
        if not read.done:
            return
        if read.error is not None:
            self.failures += 1
            self._cover("17.3 nobody left, failed")
            self.world.tell(self.name, f"cannot read: {read.error}")
            return
        self._cover("17.3 reply, verified")
        for entry in read.entries():
            self._give(entry.entry_id, entry.payload)

    def _give(self, entry_id: EntryId, payload: bytes) -> None:
        self.cluster.oracle.entry_given(entry_id, payload)
        self.given = max(self.given, entry_id + 1)
