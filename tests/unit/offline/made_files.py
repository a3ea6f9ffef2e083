"""Journals and entry logs made for tests, and proof that nothing was written."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from bkctl.formats import entry_log, journal
from bkctl.formats.entry import Digester, master_key
from bkctl.types import DigestType

PASSWORD = b"s3cret"


def entries_of(
    ledger_id: int, count: int, digest: DigestType = DigestType.CRC32C, *, first: int = 0, size: int = 100
) -> list[bytes]:
    """Whole entries; no byte of a payload is zero, so that no sector of them is."""
    payloads = [bytes(1 + (7 * i + j) % 255 for j in range(size)) for i in range(first, first + count)]
    digester = Digester(digest, PASSWORD)
    return [
        digester.pack_entries(ledger_id, i, i - 1, i * size, [payload])[0][0]
        for i, payload in enumerate(payloads, first)
    ]


def framed(entries: Sequence[bytes]) -> list[bytes]:
    return [len(entry).to_bytes(4, "big") + entry for entry in entries]


def journal_bytes(groups: Sequence[Sequence[bytes]], *, version: int = 6, zeros: int = 4096) -> bytes:
    """A journal of these groups of records, with reserved space behind them."""
    data = journal.header(version)
    for group in groups:
        data += b"".join(group)
        if version >= journal.VERSION_PADDED:
            data += journal.padding_record(len(data), journal.SECTOR_BYTES)
    return data + bytes(zeros)


def usual_journal() -> bytes:
    """Three groups: key and entries of ledger 5; entries of ledgers 5 and 6; a fence and an explicit LAC."""
    lac = Digester(DigestType.CRC32C, PASSWORD).pack_lac(5, 3)
    return journal_bytes(
        [
            [journal.ledger_key_record(5, master_key(PASSWORD)), *framed(entries_of(5, 3))],
            framed([*entries_of(5, 2, first=3), *entries_of(6, 2, DigestType.CRC32)]),
            [journal.fence_record(5), journal.explicit_lac_record(5, lac)],
            framed(entries_of(6, 1, DigestType.CRC32, first=2)),
        ]
    )


def log_bytes(entries: Sequence[bytes], *, sealed: bool = True) -> bytes:
    data = entry_log.pack_header() + b"".join(framed(entries))
    if not sealed:
        return data
    sizes: dict[int, int] = {}
    for entry in entries:
        ledger_id = int.from_bytes(entry[:8], "big")
        sizes[ledger_id] = sizes.get(ledger_id, 0) + 4 + len(entry)
    seal, at = entry_log.pack_seal(len(data), len(sizes))
    data += entry_log.pack_ledgers_map(sizes)
    return data[:at] + seal + data[at + len(seal) :]


def usual_log(*, sealed: bool = True) -> bytes:
    """Ledger 5 with CRC32C, 6 with CRC32, three entries each; the one at index 4 has 3,000 bytes."""
    small, large = entries_of(6, 3, DigestType.CRC32), entries_of(6, 2, DigestType.CRC32, size=3000)
    return log_bytes([*entries_of(5, 3), small[0], large[1], small[2]], sealed=sealed)


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def tree_hash(directory: Path) -> str:
    """Of the names, contents and modification times of everything below a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        digest.update(f"{path.relative_to(directory)} {path.stat().st_mtime_ns}".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
