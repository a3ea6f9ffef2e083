"""Entries: 32-byte header, digest, payload; the same bytes on the wire and on disk.

    offset  size  field
    0       i64   ledger id
    8       i64   entry id
    16      i64   LAC of the writer when it sent the entry, -1 if none
    24      i64   length: payload bytes of the ledger up to and including this entry
    32      D     digest of header and payload: CRC32 8, MAC 20, CRC32C 4, DUMMY 0 bytes
    32+D          payload

A LAC packet (explicit LAC) is ledger id, LAC, digest of these 16 bytes.

`pack_adds` is the client's hottest function: everything per entry happens inside C iterators.
Source: spec wire section 7; upstream DigestManager.
"""

import hashlib
import hmac
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, count, repeat
from struct import Struct
from typing import NamedTuple

from bkctl.errors import DigestMatchError, IncorrectParameterError
from bkctl.formats.frame import FRAME_BYTES_MAX, LENGTH_BYTES
from bkctl.formats.request_v2 import ADD_ENTRY, ADD_PREFIX, VERSION, pack_header
from bkctl.types import DigestType

HEADER = Struct(">qqqq")
LAC_HEADER = Struct(">qq")
HEADER_BYTES = 32
assert (HEADER.size, LAC_HEADER.size) == (HEADER_BYTES, 16)

INT64_MAX = 2**63 - 1

DIGEST_BYTES = {DigestType.CRC32: 8, DigestType.MAC: 20, DigestType.CRC32C: 4, DigestType.DUMMY: 0}

Payload = bytes | bytearray | memoryview
_Digests = Callable[[Iterable[bytes], Iterable[Payload]], Iterable[bytes]]  # of (header, payload) pairs


class EntryHeader(NamedTuple):
    """`length` counts the payload bytes of the ledger up to and including this entry."""

    ledger_id: int
    entry_id: int
    lac: int
    length: int


def read_header(body: bytes) -> EntryHeader:
    """The header of an entry, unverified.

    Raises:
        DigestMatchError: the entry is shorter than its header.
    """
    if len(body) < HEADER_BYTES:
        raise DigestMatchError(f"entry of {len(body)} bytes: shorter than its header")
    return EntryHeader._make(HEADER.unpack_from(body))


def master_key(password: bytes) -> bytes:
    """The 20 bytes that prove to a bookie that a writer knows the password."""
    return hashlib.sha1(b"ledger" + password).digest()


def mac_key(password: bytes) -> bytes:
    """The key of DigestType.MAC; never sent."""
    return hashlib.sha1(b"mac" + password).digest()


class Digester:
    """Packs and verifies the entries of one ledger: its digest type and password."""

    def __init__(self, digest_type: DigestType, password: bytes) -> None:
        self.digest_type = digest_type
        self.digest_bytes = DIGEST_BYTES[digest_type]
        self.master_key = master_key(password)
        self._digests = _digests_of(digest_type, password)
        self._payload_offset = HEADER_BYTES + self.digest_bytes

    def payload_bytes_max(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> int:
        """The largest payload whose v2 add fits a frame."""
        return frame_bytes_max - ADD_PREFIX.size - self._payload_offset

    def pack_adds(
        self,
        ledger_id: int,
        first_entry_id: int,
        lac: int,
        length: int,
        payloads: Sequence[Payload],
        *,
        flags: int = 0,
        frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> tuple[list[Payload], int]:
        """v2 add frames of consecutive entries, as parts for b"".join (four per entry), and the
        length of the ledger after them.

        `length` is that before the first entry; `flags` are those of request_v2.

        Raises:
            IncorrectParameterError: a negative id, an id or length beyond 64 bits, a frame over the limit.
        """
        sizes = list(map(len, payloads))
        if sizes and max(sizes) > self.payload_bytes_max(frame_bytes_max):
            raise IncorrectParameterError(
                f"entry of {max(sizes)} bytes: at most {self.payload_bytes_max(frame_bytes_max)} fit a frame"
            )
        headers, length = self._headers(ledger_id, first_entry_id, lac, length, sizes)
        entry_bytes = self._payload_offset + ADD_PREFIX.size - LENGTH_BYTES
        header = pack_header(VERSION, ADD_ENTRY, flags)
        prefix_of = {
            size: ADD_PREFIX.pack(entry_bytes + size, header, self.master_key) for size in set(sizes)
        }
        digests = self._digests(headers, payloads)
        quads = zip(map(prefix_of.__getitem__, sizes), headers, digests, payloads, strict=True)
        return list(chain.from_iterable(quads)), length

    def pack_entries(
        self, ledger_id: int, first_entry_id: int, lac: int, length: int, payloads: Sequence[Payload]
    ) -> tuple[list[bytes], int]:
        """Consecutive entries, one bytes object each, and the length of the ledger after them.

        Raises:
            IncorrectParameterError: a negative id, an id or length beyond 64 bits.
        """
        headers, length = self._headers(ledger_id, first_entry_id, lac, length, list(map(len, payloads)))
        digests = self._digests(headers, payloads)
        return list(map(b"".join, zip(headers, digests, payloads, strict=True))), length

    def _headers(
        self, ledger_id: int, first_entry_id: int, lac: int, length: int, sizes: list[int]
    ) -> tuple[list[bytes], int]:
        lengths = list(accumulate(sizes, initial=length))
        last_entry_id = first_entry_id + len(sizes) - 1
        if (
            min(ledger_id, first_entry_id, length) < 0
            or max(ledger_id, last_entry_id, lengths[-1]) > INT64_MAX
        ):
            raise IncorrectParameterError(
                f"ledger {ledger_id} entries {first_entry_id}..{last_entry_id}, length {lengths[-1]}: "
                "ids and length must be 0..2^63-1"
            )
        if not -1 <= lac <= INT64_MAX:
            raise IncorrectParameterError(f"LAC {lac}: must be -1..2^63-1")
        after = lengths[-1]
        columns = (repeat(ledger_id), count(first_entry_id), repeat(lac), lengths[1:])
        return list(map(HEADER.pack, *columns)), after

    def open_entry(self, body: bytes, ledger_id: int, entry_id: int) -> bytes:
        """The payload of an entry, after checking digest, ledger id and entry id, in this order.

        Raises:
            DigestMatchError: too short, damaged, or another entry; ask another replica.
        """
        header = self._verify(body, ledger_id)
        if header.entry_id != entry_id:
            raise DigestMatchError(f"ledger {ledger_id} entry {entry_id}: got entry {header.entry_id}")
        return body[self._payload_offset :]

    def open_entries(
        self, bodies: Sequence[bytes], ledger_id: int, entry_ids: Sequence[int]
    ) -> list[bytes | DigestMatchError]:
        """The payload, or what is wrong, of each entry; as `open_entry`, cheaper when all are good."""
        offset = self._payload_offset
        if bodies and min(map(len, bodies)) >= offset:
            headers = [body[:HEADER_BYTES] for body in bodies]
            payloads: list[bytes | DigestMatchError] = [body[offset:] for body in bodies]
            ids = [HEADER.unpack(header)[:2] for header in headers]
            digests = list(self._digests(headers, payloads))  # type: ignore[arg-type] # all are bytes here
            if digests == [body[HEADER_BYTES:offset] for body in bodies] and ids == list(
                zip(repeat(ledger_id), entry_ids, strict=False)
            ):
                return payloads
        return [
            self._try_open(body, ledger_id, entry_id)
            for body, entry_id in zip(bodies, entry_ids, strict=True)
        ]

    def _try_open(self, body: bytes, ledger_id: int, entry_id: int) -> bytes | DigestMatchError:
        try:
            return self.open_entry(body, ledger_id, entry_id)
        except DigestMatchError as error:
            return error

    def open_last_entry(self, body: bytes, ledger_id: int) -> EntryHeader:
        """The header of a ledger's last entry on a bookie, whatever its id, after checking digest
        and ledger id.

        Raises:
            DigestMatchError: too short, damaged, or of another ledger.
        """
        return self._verify(body, ledger_id)

    def _verify(self, body: bytes, ledger_id: int) -> EntryHeader:
        offset = self._payload_offset
        if len(body) < offset:
            raise DigestMatchError(
                f"ledger {ledger_id}: entry of {len(body)} bytes, at least {offset} expected"
            )
        header = read_header(body)
        (digest,) = self._digests([body[:HEADER_BYTES]], [body[offset:]])
        if digest != body[HEADER_BYTES:offset]:
            raise DigestMatchError(
                f"ledger {ledger_id} entry {header.entry_id}: {self.digest_type.name} digest does not match"
            )
        if header.ledger_id != ledger_id:
            raise DigestMatchError(f"ledger {ledger_id}: got an entry of ledger {header.ledger_id}")
        return header

    def pack_lac(self, ledger_id: int, lac: int) -> bytes:
        """The LAC packet that tells bookies that `lac` is confirmed."""
        header = LAC_HEADER.pack(ledger_id, lac)
        return header + b"".join(self._digests([header], [b""]))

    def open_lac(self, body: bytes, ledger_id: int) -> int:
        """The LAC in a LAC packet, after checking digest and ledger id.

        Raises:
            DigestMatchError: too short, damaged, or of another ledger.
        """
        end = LAC_HEADER.size + self.digest_bytes
        if len(body) < end:
            raise DigestMatchError(f"ledger {ledger_id}: LAC packet of {len(body)} bytes, {end} expected")
        header = body[: LAC_HEADER.size]
        if b"".join(self._digests([header], [b""])) != body[LAC_HEADER.size : end]:
            raise DigestMatchError(f"ledger {ledger_id}: digest of the LAC packet does not match")
        packet_ledger_id, lac = LAC_HEADER.unpack(header)
        if packet_ledger_id != ledger_id:
            raise DigestMatchError(f"ledger {ledger_id}: got the LAC of ledger {packet_ledger_id}")
        return int(lac)


def _digests_of(digest_type: DigestType, password: bytes) -> _Digests:
    """What computes the digests of (header, payload) pairs, as lazily as its input."""
    if digest_type is DigestType.CRC32C:
        from crc32c import crc32c  # slow to import: 50 ms, only where entries are

        pack_crc32c = Struct(">I").pack
        return lambda headers, payloads: map(pack_crc32c, map(crc32c, payloads, map(crc32c, headers)))
    if digest_type is DigestType.CRC32:
        pack_crc32 = Struct(">Q").pack
        return lambda headers, payloads: map(pack_crc32, map(zlib.crc32, payloads, map(zlib.crc32, headers)))
    if digest_type is DigestType.MAC:
        key = mac_key(password)
        return lambda headers, payloads: (
            hmac.digest(key, header + payload, "sha1")
            for header, payload in zip(headers, payloads, strict=True)
        )
    return lambda headers, payloads: (b"" for _ in headers)
