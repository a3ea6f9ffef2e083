"""What is wrong with a file of a bookie, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

from bkctl.formats.journal import SECTOR_BYTES

DAMAGES_MAX = 1000  # of one file; further ones are counted


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes `position`..`end` (exclusive) of a file cannot be trusted; `detail` says why.

    `position` is exact where the format tells, else the start of the record or entry that is damaged.
    `torn`: looks like what a crash leaves of a last write; harmless at the end of the data.
    """

    position: int
    end: int
    detail: str
    ledger_id: int | None = None
    entry_id: int | None = None
    torn: bool = False


def has_zero_sector(data: bytes, position: int) -> bool:
    """Whether the part of `data`, at `position` of its file, in one sector or another is all zeros.

    Such a sector did not reach the disk: a crash leaves that, a flipped bit does not.
    """
    start = 0
    while start < len(data):
        end = min(len(data), start + SECTOR_BYTES - (position + start) % SECTOR_BYTES)
        if data.count(0, start, end) == end - start:
            return True
        start = end
    return False


def first_nonzero(data: bytes) -> int | None:
    """Index of the first byte that is not zero."""
    rest = data.lstrip(b"\0")
    return len(data) - len(rest) if rest else None


def covered_bytes(damages: Sequence[Damage]) -> int:
    """How many bytes lie in one or more of the damages, which are ascending by position."""
    count = reached = 0
    for damage in damages:
        count += max(0, damage.end - max(damage.position, reached))
        reached = max(reached, damage.end)
    return count


def merged(damages: Sequence[Damage]) -> list[Damage]:
    """By position; what lies inside another damage is left out."""
    found: list[Damage] = []
    for damage in sorted(damages, key=lambda damage: (damage.position, -damage.end)):
        if not found or damage.end > found[-1].end or damage.position == damage.end:
            found.append(damage)
    return found
