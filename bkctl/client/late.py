"""Noticing bookies that leave adds unanswered for too long, without a timer per add.

Source: spec replication section 8 (add timeout).
"""

from collections import deque
from collections.abc import Callable, Iterable

from bkctl.types import BookieId, EntryId

CHECKS_PER_TIMEOUT = 5  # an add is noticed to be late after 1.0 to 1.4 timeouts


class LateBookies:
    """`behind(n)` names the bookies that have not answered all of the first n adds.

    Times are seconds on one monotonic clock, handed in.
    """

    def __init__(self, timeout_ms: int, behind: Callable[[int], list[BookieId]]) -> None:
        self._timeout_s = timeout_ms / 1000
        self.interval_s = self._timeout_s / CHECKS_PER_TIMEOUT
        self._behind = behind
        self._marks: deque[tuple[float, int]] = deque()  # at this time so many adds had been sent
        self._resent: dict[BookieId, float] = {}  # when everything pending was sent to it (again)
        self._last_check: float | None = None

    def resent_to(self, bookie_ids: Iterable[BookieId], now: float) -> None:
        """Pending adds were sent to these bookies just now: their time begins anew."""
        self._resent.update(dict.fromkeys(bookie_ids, now))

    def check(self, admitted: int, now: float) -> list[BookieId]:
        """The late bookies; call it every `interval_s`, with the number of adds sent so far."""
        slept = self._last_check is not None and now - self._last_check > 2 * self.interval_s
        self._last_check = now
        if slept:  # we were stopped, not they: answers may be waiting in our sockets
            self._marks.clear()
        self._marks.append((now, admitted))
        due = now - self._timeout_s
        while len(self._marks) > 1 and self._marks[1][0] <= due:
            self._marks.popleft()
        sent_at, sent = self._marks[0]
        if sent_at > due:
            return []
        return [b for b in self._behind(sent) if self._resent.get(b, sent_at) <= due]


class OldestAdd:
    """Whether an add waits longer for its ack quorum than `timeout_ms`, without a timer per add."""

    def __init__(self, timeout_ms: int) -> None:
        self._timeout_s = timeout_ms / 1000
        self.interval_s = self._timeout_s / CHECKS_PER_TIMEOUT
        self._marks: deque[tuple[float, EntryId]] = deque()  # at this time, the last entry added

    def overdue(self, last_pushed: EntryId, last_acked: EntryId, now: float) -> bool:
        """Call it every `interval_s`; an add is noticed after 1.0 to 1.4 timeouts."""
        self._marks.append((now, last_pushed))
        while self._marks and self._marks[0][1] <= last_acked:
            self._marks.popleft()
        return bool(self._marks) and self._marks[0][0] <= now - self._timeout_s
