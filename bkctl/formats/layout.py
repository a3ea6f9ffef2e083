"""`LAYOUT`: which ledger manager a cluster uses.

    <format version>\\n<factory>:<manager version>      UTF-8, no newline at the end

Source: spec metadata section 4; upstream LedgerLayout.
"""

import re
from dataclasses import dataclass

from bkctl.errors import CorruptDataError
from bkctl.formats.ledger_path import ManagerType

MAX_LAYOUT_BYTES = 4096

_PACKAGE = "org.apache.bookkeeper.meta."
_SHADE_PREFIX = "dlshade."
_LAYOUT = re.compile(r"([0-9]{1,9})\n([^:\n]+):([0-9]{1,9})\n?")

_FACTORY_CLASSES = {
    ManagerType.HIERARCHICAL: _PACKAGE + "HierarchicalLedgerManagerFactory",
    ManagerType.LONG_HIERARCHICAL: _PACKAGE + "LongHierarchicalLedgerManagerFactory",
    ManagerType.FLAT: _PACKAGE + "FlatLedgerManagerFactory",
    ManagerType.LEGACY_HIERARCHICAL: _PACKAGE + "LegacyHierarchicalLedgerManagerFactory",
}
_MANAGERS = {name: manager for manager, name in _FACTORY_CLASSES.items()} | {
    "hierarchical": ManagerType.HIERARCHICAL,  # the short names of format version 1
    "flat": ManagerType.FLAT,
}


@dataclass(frozen=True, slots=True)
class Layout:
    """`factory`: a Java class name, or the short name that format version 1 uses."""

    factory: str
    manager_version: int = 1
    format_version: int = 2

    @property
    def manager(self) -> ManagerType:
        """Raises CorruptDataError when no ledger manager known here has this factory."""
        manager = _MANAGERS.get(self.factory.removeprefix(_SHADE_PREFIX))
        if manager is None:
            raise CorruptDataError(f"LAYOUT names {self.factory}, a ledger manager that bkctl has not")
        return manager


def layout_of(manager: ManagerType) -> Layout:
    """What a new cluster with this manager stores."""
    return Layout(_FACTORY_CLASSES[manager])


DEFAULT_LAYOUT = layout_of(ManagerType.HIERARCHICAL)


def encode(layout: Layout) -> bytes:
    return f"{layout.format_version}\n{layout.factory}:{layout.manager_version}".encode()


def decode(data: bytes) -> Layout:
    """Raises CorruptDataError."""
    text = data[:MAX_LAYOUT_BYTES].decode("utf-8", "replace")
    match = _LAYOUT.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 2:
        raise CorruptDataError(f"LAYOUT is {text[:80]!r}: two lines expected, version 1 or 2")
    return Layout(factory=match[2], manager_version=int(match[3]), format_version=int(match[1]))
