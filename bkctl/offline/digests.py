"""Which digests the entries of a bookie carry, and whether they fit.

A bookie stores neither the digest type of a ledger nor its password (its master key is a hash that
tells neither). But CRC32C and CRC32 need no key, so an entry that fits one of them tells the type of
its ledger, and so does the length of an explicit LAC. MAC needs the password. Entries of a ledger of
which nothing fits are counted as unknown: MAC without its password, DUMMY (which has no digest), or
all of them damaged.

Source: spec wire section 7; `formats.entry`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct

from bkctl.errors import DigestMatchError
from bkctl.formats.entry import DIGEST_BYTES, HEADER_BYTES, LAC_HEADER, Digester
from bkctl.offline.damage import DAMAGES_MAX, Damage, has_zero_sector
from bkctl.types import DigestType

_SIZE_BYTES = 4  # the size field in front of an entry, in journals and entry logs: it may be what is wrong
_LEDGER_ID = Struct(">Q")
_LEDGER_ID_BITS = 63
_POLYNOMIALS = {DigestType.CRC32C: 0x82F63B78, DigestType.CRC32: 0xEDB88320}  # bits reversed
_LOCATED_BYTES_MAX = 128 * 1024  # of an entry in which a flipped bit is looked for: 60 ms
_LOCATED_MAX = 16  # entries of a file in which one is looked for
_KEPT_PER_LEDGER = 2  # entries that fit nothing, kept until the ledger's type is known
_KEPT_BYTES_MAX = 16 << 20  # ... of all ledgers
_KEPT_MAX = 4096


class KnownDigests:
    """The digest of each ledger, as far as its entries have told."""

    def __init__(self, passwords: Sequence[bytes] = ()) -> None:
        """`passwords` are tried for MAC entries, and so is the empty one."""
        self.passwords = tuple(dict.fromkeys((*passwords, b"")))
        self._candidates = [
            Digester(DigestType.CRC32C, b""),
            Digester(DigestType.CRC32, b""),
            *(Digester(DigestType.MAC, password) for password in self.passwords),
        ]
        self._dummy = Digester(DigestType.DUMMY, b"")
        self._of_ledger: dict[int, Digester] = {}

    def get(self, ledger_id: int) -> Digester | None:
        """What is known of the ledger already."""
        return self._of_ledger.get(ledger_id)

    def recognise(self, ledger_id: int, entry_id: int, entry: bytes) -> Digester | None:
        """The digest that the entry fits, which is then that of its ledger."""
        for digester in self._candidates:
            if fits(digester, ledger_id, entry_id, entry):
                self._of_ledger[ledger_id] = digester
                return digester
        return None

    def proves(self, ledger_id: int, entry_id: int, entry: bytes) -> bool:
        """Whether the entry is whole for certain."""
        digester = self.of(ledger_id, entry_id, entry)
        return (
            digester is not None
            and digester.digest_type is not DigestType.DUMMY
            and fits(digester, ledger_id, entry_id, entry)
        )

    def of(self, ledger_id: int, entry_id: int, entry: bytes) -> Digester | None:
        return self._of_ledger.get(ledger_id) or self.recognise(ledger_id, entry_id, entry)

    def lac_damage(self, ledger_id: int, packet: bytes) -> str:
        """What is wrong with an explicit LAC; "" when nothing is, or nothing can be told."""
        digest_bytes = len(packet) - LAC_HEADER.size
        types = [t for t, size in DIGEST_BYTES.items() if size == digest_bytes]
        if not types:
            return f"an explicit LAC of {len(packet)} bytes, which no digest makes"
        if types[0] is DigestType.DUMMY:
            self._of_ledger.setdefault(ledger_id, self._dummy)
        candidates = [d for d in (self._dummy, *self._candidates) if d.digest_type is types[0]]
        for digester in candidates:
            try:
                digester.open_lac(packet, ledger_id)
            except DigestMatchError:
                continue
            self._of_ledger.setdefault(ledger_id, digester)
            return ""
        return (
            "" if types[0] is DigestType.MAC else f"the explicit LAC does not fit its {types[0].name} digest"
        )


def fits(digester: Digester, ledger_id: int, entry_id: int, entry: bytes) -> bool:
    return isinstance(digester.open_entries([entry], ledger_id, [entry_id])[0], bytes)


@dataclass(frozen=True, slots=True)
class _Unproved:
    """An entry that fits no digest, of a ledger of which none is known yet."""

    damage: Damage
    entry_id: int
    entry: bytes


@dataclass(slots=True)
class _OpenLedger:
    count: int = 0
    kept: list[_Unproved] = field(default_factory=list)


class DigestCheck:
    """Checks the entries of one file; `settle` once at its end, then the counts are final."""

    def __init__(self, known: KnownDigests) -> None:
        self._known = known
        self._open: dict[int, _OpenLedger] = {}
        self._kept_bytes = 0
        self._kept_count = 0
        self._located = 0
        self.good = 0
        self.bad = 0
        self.unknown = 0
        self.damages: list[Damage] = []  # of the bad ones, at most DAMAGES_MAX

    def check(
        self, ledger_id: int, entry_ids: Sequence[int], positions: Sequence[int], entries: Sequence[bytes]
    ) -> None:
        """Entries of one ledger; `positions` are the file offsets of the entries themselves."""
        digester, first = self._known.get(ledger_id), 0
        while digester is None and first < len(entries):
            digester = self._known.recognise(ledger_id, entry_ids[first], entries[first])
            if digester is None:
                self._keep(ledger_id, entry_ids[first], positions[first], entries[first])
                first += 1
        if digester is None or first == len(entries):
            return
        if digester.digest_type is DigestType.DUMMY:
            self.unknown += len(entries) - first
            return
        if first:
            entry_ids, positions, entries = entry_ids[first:], positions[first:], entries[first:]
        opened = digester.open_entries(entries, ledger_id, entry_ids)
        good = len(opened)
        for index, payload in enumerate(opened):
            if type(payload) is not bytes:
                good -= 1
                self._found_bad(digester, ledger_id, entry_ids[index], positions[index], entries[index])
        self.good += good

    def settle(self) -> None:
        """Judge the entries that came before the type of their ledger was known."""
        for ledger_id, waiting in self._open.items():
            digester = self._known.get(ledger_id)
            if digester is None:
                strayed = [self._strayed(ledger_id, unproved) for unproved in waiting.kept]
                for damage in filter(None, strayed):
                    self._add(damage)
                bad = len(strayed) - strayed.count(None)
                self.bad += bad
                self.unknown += waiting.count - bad
            elif digester.digest_type is DigestType.DUMMY:
                self.unknown += waiting.count
            else:
                for unproved in waiting.kept:
                    self._found_bad(
                        digester,
                        ledger_id,
                        unproved.entry_id,
                        unproved.damage.position,
                        unproved.entry,
                    )
                self.bad += waiting.count - len(waiting.kept)
        self._open = {}

    def _keep(self, ledger_id: int, entry_id: int, position: int, entry: bytes) -> None:
        waiting = self._open.setdefault(ledger_id, _OpenLedger())
        waiting.count += 1
        if (
            len(waiting.kept) < _KEPT_PER_LEDGER
            and self._kept_count < _KEPT_MAX
            and self._kept_bytes + len(entry) <= _KEPT_BYTES_MAX
        ):
            damage = Damage(position, position + len(entry), "", ledger_id, entry_id)
            waiting.kept.append(_Unproved(damage, entry_id, entry))
            self._kept_count += 1
            self._kept_bytes += len(entry)

    def _found_bad(
        self, digester: Digester, ledger_id: int, entry_id: int, position: int, entry: bytes
    ) -> None:
        self.bad += 1
        if len(self.damages) >= DAMAGES_MAX:
            return
        where = f"entry {entry_id} of ledger {ledger_id}"
        detail, start = f"{where} does not fit its {digester.digest_type.name} digest", position - _SIZE_BYTES
        torn = has_zero_sector(entry, position)
        if not torn and self._located < _LOCATED_MAX and len(entry) <= _LOCATED_BYTES_MAX:
            self._located += 1
            flipped = flipped_bit(digester.digest_type, entry)
            if flipped is not None:
                byte, bit = flipped
                start = position + byte
                detail += f"; one flipped bit explains it: bit {bit} of this byte"
        self._add(Damage(start, position + len(entry), detail, ledger_id, entry_id, torn))

    def _add(self, damage: Damage) -> None:
        if len(self.damages) < DAMAGES_MAX:
            self.damages.append(damage)

    def _strayed(self, ledger_id: int, unproved: _Unproved) -> Damage | None:
        """The damage, when the entry fits the digest of a ledger whose id differs in one bit."""
        for bit in range(_LEDGER_ID_BITS):
            other_id = ledger_id ^ (1 << bit)
            digester = self._known.get(other_id)
            if digester is None or digester.digest_type is DigestType.DUMMY:
                continue
            entry = _LEDGER_ID.pack(other_id) + unproved.entry[_LEDGER_ID.size :]
            if fits(digester, other_id, unproved.entry_id, entry):
                detail = (
                    f"entry {unproved.entry_id} of ledger {other_id} carries ledger id {ledger_id}; "
                    f"one flipped bit explains it: bit {bit % 8} of this byte"
                )
                start = unproved.damage.position + _LEDGER_ID.size - 1 - bit // 8
                return Damage(start, unproved.damage.end, detail, other_id, unproved.entry_id)
        return None


def flipped_bit(digest_type: DigestType, entry: bytes) -> tuple[int, int] | None:
    """(index of the byte, bit) of the one flipped bit that explains why a CRC does not fit.

    None when no single bit does. A CRC of a difference depends on nothing but where it lies: walk
    back from the last bit of the payload, one step of the CRC's register for each bit.
    """
    polynomial = _POLYNOMIALS.get(digest_type)
    payload_at = HEADER_BYTES + DIGEST_BYTES[digest_type]
    if polynomial is None or len(entry) < payload_at:
        return None
    (stored,) = _DIGEST_FIELDS[digest_type].unpack_from(entry, HEADER_BYTES)
    wrong = stored ^ _crc(digest_type, entry[:HEADER_BYTES] + entry[payload_at:])
    if wrong.bit_count() == 1:
        from_end, bit = divmod(wrong.bit_length() - 1, 8)
        return payload_at - 1 - from_end, bit
    register = polynomial
    for step in range(8 * (len(entry) - payload_at + HEADER_BYTES)):
        if register == wrong:
            from_end, bit_from_top = divmod(step, 8)
            index = len(entry) - 1 - from_end
            return (index if index >= payload_at else index - payload_at + HEADER_BYTES), 7 - bit_from_top
        register = register >> 1 ^ polynomial if register & 1 else register >> 1
    return None


_DIGEST_FIELDS = {DigestType.CRC32C: Struct(">I"), DigestType.CRC32: Struct(">Q")}


def _crc(digest_type: DigestType, data: bytes) -> int:
    if digest_type is DigestType.CRC32C:
        from crc32c import crc32c

        return int(crc32c(data))
    import zlib

    return zlib.crc32(data)
