"""Bookie ids: which are legal, and the address that some of them spell.

Source: spec metadata section 9; upstream BookieId.
"""

import re

from bkctl.errors import BadInputError
from bkctl.types import Address, BookieId

# Letters, digits, dot, minus, and (upstream's range quirk) every character from ':' to '_'.
_LEGAL = re.compile(r"[A-Za-z0-9.\-:-_]+")
_RESERVED = "readonly"  # the child of `available` that holds the read-only bookies
_HOST_PORT = re.compile(r"(.+):([0-9]{1,5})")

MAX_BOOKIE_ID_CHARS = 4096


def is_bookie_id(text: str) -> bool:
    return (
        len(text) <= MAX_BOOKIE_ID_CHARS and _LEGAL.fullmatch(text) is not None and text.lower() != _RESERVED
    )


def parse(text: str) -> BookieId:
    """`text` as a bookie id. Raises BadInputError."""
    if not is_bookie_id(text):
        raise BadInputError(
            f"{text[:80]!r} is not a bookie id: use letters, digits, '.', '-', '_' and ':', "
            f"and not the word {_RESERVED!r}"
        )
    return BookieId(text)


def spelled_address(bookie_id: BookieId) -> Address | None:
    """The address in an id of the form `host:port`; None for an id that names no address."""
    match = _HOST_PORT.fullmatch(bookie_id)
    if match is None:
        return None
    port = int(match[2])
    return Address(match[1], port) if 0 < port <= 0xFFFF else None
