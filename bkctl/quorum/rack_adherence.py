"""Whether an ensemble spreads its write quorums over enough racks.

Source: spec metadata section 13.2; upstream RackawareEnsemblePlacementPolicyImpl.
"""

import enum
from collections.abc import Mapping, Sequence

from bkctl.types import BookieId

DEFAULT_RACK = "/default-rack"


class Adherence(enum.IntEnum):
    """The numbers are upstream's: do not change."""

    FAIL = 1
    MEETS_SOFT = 3
    MEETS_STRICT = 5


def rack_adherence(
    racks: Mapping[BookieId, str],
    ensemble: Sequence[BookieId],
    write_quorum_size: int,
    *,
    min_racks_per_write_quorum: int = 2,
    enforce: bool = False,
) -> Adherence:
    """MEETS_STRICT when every window of `write_quorum_size` members spans enough racks, else FAIL.

    `racks` holds the writable bookies; a member that is not there brings no rack. `enforce`: nor is a
    window with a member in the default rack accepted.
    """
    wanted = min(write_quorum_size, min_racks_per_write_quorum)
    for start in range(len(ensemble)):
        window = [ensemble[(start + i) % len(ensemble)] for i in range(write_quorum_size)]
        found = {racks[bookie_id] for bookie_id in window if bookie_id in racks}
        if len(found) < wanted or (enforce and DEFAULT_RACK in found):
            return Adherence.FAIL
    return Adherence.MEETS_STRICT
