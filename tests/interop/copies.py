"""The copies of a ledger's entries, as each bookie stores them: header, digest, payload."""

from bkctl.errors import BookKeeperError
from bkctl.formats.entry import Digester, read_header
from bkctl.quorum.schedule import RoundRobinSchedule
from bkctl.types import BookieId, DigestType, EntryId, LedgerId
from tests.interop.payload import payload
from tests.interop.sides import SIZE, BkctlSide

Copies = dict[int, dict[str, bytes | BookKeeperError]]  # of each entry, by bookie
_ASK_ENTRIES = 500


def copies_of(side: BkctlSide, ledger_id: LedgerId) -> Copies:
    """Every entry of a closed ledger from every bookie of its write set."""
    metadata = side.metadata(ledger_id)
    schedule = RoundRobinSchedule.of(metadata)
    found: Copies = {entry_id: {} for entry_id in range(metadata.last_entry_id + 1)}
    wanted: dict[BookieId, list[int]] = {}
    for entry_id in map(EntryId, found):
        ensemble = metadata.segment_at(entry_id).ensemble
        for index in schedule.write_set(entry_id):
            wanted.setdefault(ensemble[index], []).append(entry_id)

    async def read(bookie_id: BookieId, entry_ids: list[int]) -> None:
        channel = side.client.pool.channel(bookie_id)
        for start in range(0, len(entry_ids), _ASK_ENTRIES):
            asked = entry_ids[start : start + _ASK_ENTRIES]
            answers = await channel.read_entries(ledger_id, asked)
            for entry_id, answer in zip(asked, answers, strict=True):
                found[entry_id][bookie_id] = answer

    for bookie_id, entry_ids in wanted.items():
        side.run(read(bookie_id, entry_ids))
    return found


def lac_of(body: bytes | BookKeeperError) -> int:
    """The last add confirmed in the header of a copy."""
    assert isinstance(body, bytes), body
    return read_header(body).lac


def assert_identical(copies: Copies, write_quorum_size: int) -> None:
    """Every bookie of every write set stores the same bytes."""
    for entry_id, by_bookie in copies.items():
        assert len(by_bookie) == write_quorum_size, (entry_id, list(by_bookie))
        assert not any(isinstance(c, BookKeeperError) for c in by_bookie.values()), (entry_id, by_bookie)
        assert len(set(by_bookie.values())) == 1, (entry_id, by_bookie)


def assert_same_entries(copies: Copies, ledger_id: LedgerId, kind: str, *, missing_max: int = 0) -> None:
    """Every copy verifies and holds the right payload, with the right length in its header; only the
    LAC, and the digest that covers it, may differ. `missing_max` copies of an entry may be absent."""
    digester = Digester(DigestType[kind], b"")
    for entry_id, by_bookie in copies.items():
        stored = {b: c for b, c in by_bookie.items() if isinstance(c, bytes)}
        assert len(by_bookie) - len(stored) <= missing_max, (entry_id, by_bookie)
        for bookie_id, body in stored.items():
            opened = digester.open_entry(body, ledger_id, entry_id)
            assert bytes(opened) == payload(entry_id, SIZE), (entry_id, bookie_id)
            assert read_header(body).length == (entry_id + 1) * SIZE, (entry_id, bookie_id)
