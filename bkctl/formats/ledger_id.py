"""Ledger ids from sequential nodes of the metadata tree.

    R/idgen/ID-0000000042                      -> 42, valid below 2**31 - 1
    R/idgen-long/HOB-0000000001/ID-0000000005  -> 1 * 2**32 + 5, each half below 2**31 - 1

Source: spec metadata section 6; upstream ZkLedgerIdGenerator, LongZkLedgerIdGenerator.
"""

import re

from bkctl.errors import CorruptDataError
from bkctl.types import LedgerId

ID_PREFIX = "ID-"
HOB_PREFIX = "HOB-"  # "high order bits"

_SEQUENCE_END = (1 << 31) - 1  # the first suffix that is too large; the counter then turns negative
_SEQUENTIAL_NAME = re.compile(r"ID-(-?[0-9]{10})")
_HOB_NAME = re.compile(r"HOB-([0-9]{10})")


def short_ledger_id(node_name: str) -> LedgerId | None:
    """The id that the node `ID-…` stands for; None: the counter ran over, use long ids.

    Raises CorruptDataError when `node_name` is no such name.
    """
    match = _SEQUENTIAL_NAME.fullmatch(node_name)
    if match is None:
        raise CorruptDataError(f"{node_name!r} is not a node of the ledger id generator")
    suffix = int(match[1])
    return LedgerId(suffix) if 0 <= suffix < _SEQUENCE_END else None


def long_ledger_id(high_order_bits: int, node_name: str) -> LedgerId | None:
    """The id below `HOB-<high_order_bits>`; None: the counter ran over, use the next HOB."""
    low = short_ledger_id(node_name)
    return None if low is None else LedgerId(high_order_bits << 32 | low)


def hob_name(high_order_bits: int) -> str:
    return f"{HOB_PREFIX}{high_order_bits:010d}"


def high_order_bits(node_name: str) -> int:
    """The number in `HOB-…`. Raises CorruptDataError for any other name."""
    match = _HOB_NAME.fullmatch(node_name)
    if match is None or int(match[1]) >= _SEQUENCE_END:
        raise CorruptDataError(f"{node_name!r} is not a node of the long ledger id generator")
    return int(match[1])
