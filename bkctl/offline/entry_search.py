"""Finding the next whole entry behind damage, in journals and entry logs alike.

Both frame an entry as `size i32 | entry`. An entry is taken for one when its header is plausible and
its digest fits; where the ledger's digest is unknown, when what follows it is plausible as well. Entry
ids are taken to be below 2^40: with the zeros that follow from it, noise is not mistaken for a header.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from struct import Struct

from bkctl.formats.entry import HEADER_BYTES
from bkctl.formats.journal import PADDING_MASK, RECORD_BYTES_MAX
from bkctl.offline.damage import Damage
from bkctl.offline.digests import KnownDigests
from bkctl.offline.files import Read

# size | ledger id | entry id | LAC, maybe -1 | length
_PLAUSIBLE = re.compile(
    rb"(?=(?!\0{4})[\0-\7].{3}[\0-\x7f].{7}\0{3}.{5}(?:\0{3}.{5}|\xff{8})\0\0)", re.DOTALL
)
_HEAD = Struct(">iqqqq")
_SIZE = Struct(">i")
_ENDS = (PADDING_MASK, 0)  # instead of a size
_WINDOW_BYTES = 1 << 20


RECORD_BYTES_MIN = 4 + 16
"""Size field and ids: so far behind the start of a damaged record or entry the next one can begin."""


def next_entry(read: Read, position: int, file_bytes: int, known: KnownDigests) -> int | None:
    """File offset of the size field of the next whole entry from `position` on; None: there is none."""
    while position + _HEAD.size <= file_bytes:
        window = read(position, _WINDOW_BYTES + _HEAD.size)
        if window.count(0) == len(window):  # reserved space, maybe gigabytes of it
            position += _WINDOW_BYTES
            continue
        for match in _PLAUSIBLE.finditer(window, 0, len(window)):
            at = match.start()
            if at + _HEAD.size <= len(window) and _is_entry(
                read, position + at, file_bytes, window[at : at + _HEAD.size], known
            ):
                return position + at
        position += _WINDOW_BYTES
    return None


def without_swallowed(damages: Sequence[Damage], read: Read, known: KnownDigests) -> list[Damage]:
    """`damages`; those with whole entries inside are not torn writes: their size is what is wrong."""
    return [
        replace(damage, torn=False)
        if damage.torn and next_entry(read, damage.position + RECORD_BYTES_MIN, damage.end, known) is not None
        else damage
        for damage in damages
    ]


def _is_entry(read: Read, position: int, file_bytes: int, head: bytes, known: KnownDigests) -> bool:
    size, ledger_id, entry_id, lac, _length = _HEAD.unpack(head)
    end = position + _SIZE.size + size
    if not HEADER_BYTES <= size <= RECORD_BYTES_MAX or lac >= max(entry_id, 0) or end > file_bytes:
        return False
    entry = read(position + _SIZE.size, size)
    if len(entry) == size and known.recognise(ledger_id, entry_id, entry) is not None:
        return True
    return known.get(ledger_id) is None and _is_followed(read, end, file_bytes)


def _is_followed(read: Read, position: int, file_bytes: int) -> bool:
    """Whether two more plausible entries, or padding, or the end of the data begin at `position`."""
    for _ in range(2):
        head = read(position, _HEAD.size)
        if position == file_bytes or (len(head) >= _SIZE.size and _SIZE.unpack_from(head)[0] in _ENDS):
            return True
        if len(head) < _HEAD.size or _PLAUSIBLE.match(head) is None:
            return False
        position += _SIZE.size + int(_SIZE.unpack_from(head)[0])
    return True
