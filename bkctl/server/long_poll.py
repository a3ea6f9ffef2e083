"""Readers that wait for a ledger's last-add-confirmed to move (spec wire 8.6)."""

from collections.abc import Callable

Waiter = tuple[int, Callable[[bool], None]]  # previous LAC, what to call: True if the LAC advanced


class LacWaiters:
    """Who waits on which ledger. Each waiter is called once, or taken back with `remove`."""

    def __init__(self) -> None:
        self._by_ledger: dict[int, list[Waiter]] = {}

    def add(self, ledger_id: int, waiter: Waiter) -> None:
        self._by_ledger.setdefault(ledger_id, []).append(waiter)

    def remove(self, ledger_id: int, waiter: Waiter) -> None:
        waiters = self._by_ledger.get(ledger_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._by_ledger[ledger_id]

    def advanced(self, ledger_id: int, lac: int) -> None:
        """The ledger's LAC is now `lac`: call those who wait for more than they had."""
        waiters = self._by_ledger.get(ledger_id)
        if waiters is None:
            return
        still = [waiter for waiter in waiters if waiter[0] >= lac]
        if still:
            self._by_ledger[ledger_id] = still
        else:
            del self._by_ledger[ledger_id]
        for previous_lac, call in waiters:
            if lac > previous_lac:
                call(True)

    def wake(self, ledger_id: int) -> None:
        """The ledger was fenced or deleted: nobody need wait any longer."""
        for _previous_lac, call in self._by_ledger.pop(ledger_id, ()):
            call(False)
