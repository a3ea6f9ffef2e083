"""One change of a ledger's metadata by compare-and-set, repeated over conflicts.

Source: spec replication section 3; upstream MetadataUpdateLoop.
"""

from collections.abc import Callable

from bkctl.quorum.actions import WriteMetadata
from bkctl.types import LedgerMetadata, Versioned

Change = Callable[[LedgerMetadata], LedgerMetadata | None]


class MetadataUpdate:
    """Applies `change` to whatever the store holds, until it is stored or no longer needed.

    `change` gives the new metadata, or None when nothing is left to change, and raises the
    BookKeeperError that forbids the change. It must recognise its own result: after a lost reply
    the store already holds it.
    """

    def __init__(self, current: Versioned[LedgerMetadata], change: Change) -> None:
        self.current = current
        self.change = change
        self._proposed: LedgerMetadata | None = None

    def start(self) -> WriteMetadata | None:
        """The write to make; None: nothing (more) to change, `current` is the result."""
        self._proposed = self.change(self.current.value)
        return WriteMetadata(self._proposed, self.current.version) if self._proposed else None

    def written(self, version: int) -> None:
        """The last write succeeded and is stored as `version`."""
        assert self._proposed is not None
        assert version > self.current.version, (version, self.current.version)
        self.current = Versioned(self._proposed, version)

    def conflict(self, current: Versioned[LedgerMetadata]) -> WriteMetadata | None:
        """The last write was refused, or its outcome is unknown; the store holds `current`."""
        self.current = current
        return self.start()
