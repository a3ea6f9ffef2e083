"""Pulsar's rack mapping: the node `/bookies`, JSON of group -> bookie id -> rack and host name.

Source: spec metadata section 19; Pulsar BookieRackAffinityMapping, BookiesRackConfiguration.
"""

import json
from collections.abc import Mapping

from bkctl.errors import CorruptDataError

RACK_MAP_PATH = "/bookies"  # under the chroot, not under the ledgers root
MAX_RACK_MAP_BYTES = 16 << 20


def decode(data: bytes) -> dict[str, str | None]:
    """Rack (leading `/`) by bookie id, by host in the id, and by host name. None: the default rack.

    Raises CorruptDataError.
    """
    if len(data) > MAX_RACK_MAP_BYTES:
        raise CorruptDataError(f"rack mapping of {len(data)} bytes")
    try:
        groups = json.loads(data or b"{}")
    except (ValueError, RecursionError) as exc:
        raise CorruptDataError(f"rack mapping is not JSON: {exc}") from None
    racks: dict[str, str | None] = {}
    for bookies in _object(groups, "rack mapping").values():
        for bookie_id, details in _object(bookies, "rack group").items():
            fields = _object(details, f"rack of {bookie_id}")
            rack, host = _rack(fields), fields.get("hostname")
            for name in (bookie_id, bookie_id.rpartition(":")[0], host):
                if isinstance(name, str) and name:
                    racks[name] = rack
    return racks


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise CorruptDataError(f"{what} is not a JSON object")
    return value


def _rack(details: Mapping[str, object]) -> str | None:
    rack = details.get("rack")
    if not isinstance(rack, str) or rack in ("", "/"):
        return None
    return rack if rack.startswith("/") else "/" + rack
