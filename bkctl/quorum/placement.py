"""Choosing bookies for ensembles.

Pure: the caller hands in the candidates in random order, which spreads ledgers over the cluster.

Source: spec replication sections 4 and 6.3; upstream DefaultEnsemblePlacementPolicy.
"""

from collections.abc import Collection, Iterable, Sequence

from bkctl.errors import NotEnoughBookiesError
from bkctl.types import BookieId, BookieIndex


def _ordered(
    candidates: Sequence[BookieId], exclude: Collection[BookieId], avoid: Collection[BookieId]
) -> list[BookieId]:
    usable = [bookie_id for bookie_id in dict.fromkeys(candidates) if bookie_id not in exclude]
    return sorted(usable, key=lambda bookie_id: bookie_id in avoid)  # stable: keeps the random order


def choose_ensemble(
    candidates: Sequence[BookieId], ensemble_size: int, avoid: Collection[BookieId] = ()
) -> tuple[BookieId, ...]:
    """`ensemble_size` distinct bookies, those of `avoid` (recently failing) only when short.

    Raises:
        NotEnoughBookiesError (-6)
    """
    chosen = _ordered(candidates, (), avoid)[:ensemble_size]
    if len(chosen) < ensemble_size:
        raise NotEnoughBookiesError(
            f"an ensemble needs {ensemble_size} writable bookies, there are {len(chosen)}"
        )
    return tuple(chosen)


def choose_replacements(
    candidates: Sequence[BookieId],
    indexes: Iterable[BookieIndex],
    exclude: Collection[BookieId],
    avoid: Collection[BookieId] = (),
) -> dict[BookieIndex, BookieId]:
    """A new bookie for as many of the indexes as there are candidates, lowest index first."""
    return dict(zip(sorted(indexes), _ordered(candidates, exclude, avoid), strict=False))
