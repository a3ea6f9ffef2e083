"""Journals, small files and `.idx`: the vectors, and files that Apache BookKeeper wrote."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats import index_file, journal, small_files
from bkctl.formats.entry import HEADER_BYTES, Digester
from bkctl.formats.journal import JournalRecord, RecordKind, Stop
from bkctl.formats.small_files import BookieMode, BookieStatus, LogMark
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.journal import journal_ids, read_last_marks, replay, scan_file
from bkctl.types import DigestType
from tests.shared_data import fixture_path, vectors

VECTORS = vectors("storage")
JOURNAL = VECTORS["journal"]
INDEX_FILE = VECTORS["index_file"]
CLUSTER_PASSWORDS = {4: "s3crét pässword"}  # the other ledgers: golden-pw


def expand(value: dict[str, Any]) -> bytes:
    """The bytes of a run-length form (spec storage section 16)."""
    runs = (
        bytes.fromhex(r["hex"]) if "hex" in r else bytes.fromhex(r["repeat"]) * r["count"]
        for r in value["runs"]
    )
    data = b"".join(runs)
    assert len(data) == value["size"]
    return data


def test_no_vector_is_forgotten() -> None:
    assert set(JOURNAL) == {
        "file_name", "header", "records", "metaentry_ids", "padding_mask_hex", "padding", "file", "torn_tail",
    }  # fmt: skip
    assert set(INDEX_FILE) == {"name", "v1", "v1_no_lac", "v0", "slot"}
    assert [len(JOURNAL[key]) for key in ("file_name", "header", "records", "padding")] == [4, 3, 5, 11]


@pytest.mark.parametrize("case", JOURNAL["file_name"])
def test_journal_file_name(case: dict[str, str]) -> None:
    assert journal.file_name(int(case["id"])) == case["name"]
    assert journal.parse_file_name(case["name"]) == int(case["id"])


@pytest.mark.parametrize("case", JOURNAL["header"])
def test_journal_header(case: dict[str, Any]) -> None:
    header = expand(case["bytes"])
    assert journal.header(case["version"]) == header
    assert journal.parse_header(header) == case["version"]
    assert journal.data_start(case["version"]) == len(header)


def test_ids_of_records_that_are_no_entries() -> None:
    ids = JOURNAL["metaentry_ids"]
    assert (
        ids["ledger_key"], ids["fence"], ids["explicit_lac"],
    ) == (RecordKind.LEDGER_KEY, RecordKind.FENCE, RecordKind.EXPLICIT_LAC)  # fmt: skip
    assert int.from_bytes(bytes.fromhex(JOURNAL["padding_mask_hex"]), signed=True) == journal.PADDING_MASK


@pytest.mark.parametrize("case", JOURNAL["records"], ids=lambda case: case["name"])
def test_journal_record(case: dict[str, Any]) -> None:
    given = case["input"]
    framed = bytes.fromhex(case["framed"])
    body = bytes.fromhex(case["body"])
    value = bytes.fromhex(given.get("masterKey") or given.get("explicitLac") or "")
    written = {
        "ledger_key": lambda: journal.ledger_key_record(3, value),
        "ledger_key_empty": lambda: journal.ledger_key_record(3, value),
        "fence": lambda: journal.fence_record(3),
        "explicit_lac": lambda: journal.explicit_lac_record(3, value),
        # The bookie frames entries itself, in its arena: `size | entry`.
        "entry": lambda: len(body).to_bytes(4) + body,
    }[case["name"]]()
    assert written == framed
    scan = journal.scan_records(framed, 512, 6, at_end_of_file=True)
    kind = RecordKind.ENTRY if given["entryId"] >= 0 else RecordKind(given["entryId"])
    assert scan.records == [JournalRecord(kind, given["ledgerId"], given["entryId"], body, 512)]
    assert scan.records[0].value == value


@pytest.mark.parametrize("case", JOURNAL["padding"], ids=lambda case: f"{case['position']}-{case['align']}")
def test_padding(case: dict[str, Any]) -> None:
    record = journal.padding_record(case["position"], case["align"])
    assert record == expand(case["record"])
    assert case["position"] + len(record) == case["next_position"]


@pytest.mark.parametrize("name", ["file", "torn_tail"])
def test_journal_file_is_scanned(name: str) -> None:
    case = JOURNAL[name]
    data = expand(case["bytes"])
    assert journal.parse_header(data) == 6
    scan = journal.scan_records(data[512:], 512, 6, at_end_of_file=True)
    expected = [r for r in case["expect"] if r["kind"] != "padding"]
    assert [(r.position, r.kind.name.lower(), len(r.body)) for r in scan.records] == [
        (r["offset"], r["kind"], r["length"]) for r in expected
    ]
    assert scan.end is not None
    assert scan.end.scan_position == case["expect_scan_position"]
    assert scan.end.stop is (Stop.ZERO_LENGTH if name == "file" else Stop.TORN)


@pytest.mark.parametrize("case", VECTORS["lastMark"])
def test_last_mark(case: dict[str, str]) -> None:
    mark = LogMark(int(case["logFileId"]), int(case["logFileOffset"]))
    assert small_files.encode_last_mark(mark).hex() == case["hex"]
    assert small_files.decode_last_mark(bytes.fromhex(case["hex"])) == mark


def test_last_mark_file_names() -> None:
    names = VECTORS["lastMark_file_names"]
    assert [small_files.last_mark_name(0, 1)] == names["1 journal dir"]
    assert [small_files.last_mark_name(i, 2) for i in (0, 1)] == names["2 journal dirs"]


@pytest.mark.parametrize("case", VECTORS["lastId"])
def test_last_id(case: dict[str, Any]) -> None:
    assert small_files.encode_last_id(case["id"]) == bytes.fromhex(case["hex"]) == case["text"].encode()
    assert small_files.decode_last_id(bytes.fromhex(case["hex"])) == case["id"]


@pytest.mark.parametrize("case", VECTORS["bookie_status"])
def test_bookie_status(case: dict[str, Any]) -> None:
    status = BookieStatus(BookieMode(case["mode"]), case["ms"], case["manual"])
    assert small_files.encode_bookie_status(status).decode() == case["text"]
    assert small_files.decode_bookie_status(case["text"].encode()) == status


@pytest.mark.parametrize("case", INDEX_FILE["name"])
def test_index_file_path(case: dict[str, str]) -> None:
    assert index_file.index_file_path(int(case["ledgerId"])) == case["path"]


@pytest.mark.parametrize("name", ["v0", "v1", "v1_no_lac"])
def test_index_file_header(name: str) -> None:
    case = INDEX_FILE[name]
    explicit_lac = case.get("explicitLac")
    assert index_file.parse_index_file_header(expand(case["header"])) == index_file.IndexFileHeader(
        version=int(name[1]),
        master_key=bytes.fromhex(case["masterKey"]),
        fenced=case["stateBits"] == 1,
        explicit_lac=None if explicit_lac is None else bytes.fromhex(explicit_lac),
    )


@pytest.mark.parametrize("case", INDEX_FILE["slot"])
def test_index_file_slot(case: dict[str, int]) -> None:
    assert index_file.slot_offset(case["entryId"]) == case["file_offset"]


# -- files of Apache BookKeeper -----------------------------------------------------------------


def ledgers_of(*path: str) -> dict[int, dict[str, Any]]:
    return {ledger["ledgerId"]: ledger for ledger in json.loads(fixture_path(*path).read_text())}


def payload(ledger: dict[str, Any], entry_id: int) -> bytes:
    if ledger["payload"] == "entry-{i}":
        return b"entry-%d" % entry_id
    count, _, rule = ledger["payload"].rpartition("bytes")
    assert rule.strip("; ").startswith("byte j of entry i is (31*j")
    size_bytes = ledger["sizes"][entry_id] if "sizes" in ledger else int(count)
    return bytes((31 * j + entry_id) % 256 for j in range(size_bytes))


def entries_on(ledger: dict[str, Any], bookie: str) -> set[int]:
    """Ids of a ledger's entries that a bookie stores, by its metadata."""
    if ledger["name"] == "gaps":
        return {*range(10), 15, *range(20, 26), 40, 42, 44, 46}
    if ledger["metadata"] is None:  # deleted; was E=3 Qw=3
        return set(range(ledger["entriesWritten"]))
    segments = sorted((int(first), ensemble) for first, ensemble in ledger["metadata"]["ensembles"].items())
    found = set()
    for entry_id in range(ledger["entriesWritten"]):
        ensemble = [e for first, e in segments if first <= entry_id][-1]
        write_set = [(entry_id + i) % len(ensemble) for i in range(ledger["metadata"]["writeQuorumSize"])]
        if bookie in [ensemble[i] for i in write_set]:
            found.add(entry_id)
    return found


def check_records(records: list[JournalRecord], ledgers: dict[int, dict[str, Any]], bookie: str) -> None:
    """The records are exactly what the ledgers say: keys first, every entry, digests good."""
    digesters = {
        i: Digester(DigestType[ledger["digestType"]], ledger["password"].encode())
        for i, ledger in ledgers.items()
    }
    stored: dict[int, set[int]] = defaultdict(set)
    keys = set()
    for record in records:
        ledger, digester = ledgers[record.ledger_id], digesters[record.ledger_id]
        if record.kind is RecordKind.LEDGER_KEY:
            assert record.value == digester.master_key
            keys.add(record.ledger_id)
        elif record.kind is RecordKind.EXPLICIT_LAC:
            assert digester.open_lac(record.value, record.ledger_id) == 6
        elif record.kind is RecordKind.ENTRY:
            assert record.ledger_id in keys
            found = digester.open_entry(record.body, record.ledger_id, record.entry_id)
            assert found == payload(ledger, record.entry_id)
            stored[record.ledger_id].add(record.entry_id)
        else:
            assert record.kind is RecordKind.FENCE
            assert len(record.body) == 16
    wanted = {i: entries_on(ledger, bookie) for i, ledger in ledgers.items()}
    assert dict(stored) == {i: entry_ids for i, entry_ids in wanted.items() if entry_ids}


def fenced(records: list[JournalRecord]) -> set[int]:
    return {record.ledger_id for record in records if record.kind is RecordKind.FENCE}


def records_of(directory: Path, mark: LogMark = small_files.ZERO_MARK) -> list[JournalRecord]:
    return [record for batch in replay(directory, OsFs(), mark) for record in batch]


@pytest.mark.parametrize(("name", "port"), [("b1", 3181), ("b2", 3182), ("b3", 3183)])
def test_journals_of_apache_hold_every_entry(name: str, port: int) -> None:
    records = records_of(fixture_path("bookies-clean", name, "journal", "current"))
    check_records(records, ledgers_of("expected.json"), f"127.0.0.1:{port}")
    assert fenced(records) == ({5, 12})


def test_journal_of_apache_sorted_storage() -> None:
    records = records_of(fixture_path("bookie-sorted", "journal", "current"))
    check_records(records, ledgers_of("bookie-sorted", "expected.json"), "127.0.0.1:3181")
    assert fenced(records) == {4}


def test_replay_of_a_killed_apache_bookie() -> None:
    """From its lastMark, in the zeros of the journal before, on: ledgers 19 to 21 are only there."""
    directory = fixture_path("bookie1-sigkill", "b1", "journal", "current")
    ledger_dir = fixture_path("bookie1-sigkill", "b1", "ledgers", "current")
    mark = read_last_marks(OsFs(), [ledger_dir], 0, 1)
    assert mark == LogMark(0x1A2054C4BD9, 516)
    records = records_of(directory, mark)
    check_records(records, ledgers_of("expected-sigkill.json"), "127.0.0.1:3181")
    assert fenced(records) == {21}


def journal_files() -> Iterator[Path]:
    for top in ("bookies-clean", "bookie1-sigkill", "bookie-sorted"):
        yield from sorted(fixture_path(top).rglob("*.txn"))


def test_every_journal_of_apache_ends_in_zeros_behind_a_padded_flush() -> None:
    paths = list(journal_files())
    assert len(paths) == 11
    for path in paths:
        *_, last = scan_file(OsFs(), path)
        assert last.end is not None
        assert (last.end.stop, last.end.position % 512, last.end.detail) == (Stop.ZERO_LENGTH, 0, "")
        assert journal_ids(OsFs(), path.parent) == sorted(int(p.stem, 16) for p in path.parent.glob("*.txn"))


def test_last_marks_of_apache_lie_4_bytes_behind_the_end_of_data() -> None:
    for bookie in (
        ("bookies-clean", "b1"),
        ("bookies-clean", "b2"),
        ("bookies-clean", "b3"),
        ("bookie1-sigkill", "b1"),
    ):
        mark = read_last_marks(OsFs(), [fixture_path(*bookie, "ledgers", "current")], 0, 1)
        path = fixture_path(*bookie, "journal", "current", journal.file_name(mark.journal_id))
        *_, last = scan_file(OsFs(), path)
        assert last.end is not None
        assert last.end.scan_position == mark.offset
        (again,) = scan_file(OsFs(), path, mark.offset)
        assert again.records == []


def test_index_files_of_apache_locate_every_entry() -> None:
    ledgers = ledgers_of("bookie-sorted", "expected.json")
    current = fixture_path("bookie-sorted", "ledgers", "current")
    log = (current / "0.log").read_bytes()
    assert len(list(current.rglob("*.idx"))) == len(ledgers)
    for ledger_id, ledger in ledgers.items():
        data = (current / index_file.index_file_path(ledger_id)).read_bytes()
        digester = Digester(DigestType[ledger["digestType"]], ledger["password"].encode())
        header = index_file.parse_index_file_header(data[: index_file.HEADER_BYTES])
        assert (header.version, header.master_key, header.fenced) == (1, digester.master_key, ledger_id == 4)
        assert (header.explicit_lac is not None) == (ledger_id == 5)
        slots = dict(index_file.parse_slots(data[index_file.HEADER_BYTES :], 0))
        assert set(slots) == entries_on(ledger, "127.0.0.1:3181")
        for entry_id, location in slots.items():
            log_id, position = location >> 32, location & 0xFFFFFFFF
            assert log_id == 0
            size_bytes = int.from_bytes(log[position - 4 : position])
            assert size_bytes >= HEADER_BYTES
            body = log[position : position + size_bytes]
            assert digester.open_entry(body, ledger_id, entry_id) == payload(ledger, entry_id)
