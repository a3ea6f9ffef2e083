"""Entry logs and RocksDB indexes against the test vectors and against disks of Apache BookKeeper."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log, entry_log_metadata, index
from bkctl.formats.entry import Digester
from bkctl.server.storage.entry_log import EntryLogReader, Wanted, log_ids
from bkctl.server.storage.fs import OsFs
from bkctl.server.storage.index import open_offline
from bkctl.server.storage.journal import read_last_marks, replay
from bkctl.server.storage.ledger_storage import LedgerStorage, StorageSettings
from bkctl.types import DigestType
from tests.shared_data import fixture_path, vectors

ENTRY_LOG: dict[str, Any] = vectors("storage")["entry_log"]
ROCKSDB: dict[str, Any] = vectors("storage")["rocksdb"]
BOOKIES = ["bookies-clean/b1", "bookies-clean/b2", "bookies-clean/b3", "bookie1-sigkill/b1"]


def expand(vector: dict[str, Any]) -> bytes:
    """The bytes of a vector in run-length form, checked by its own size and hash."""
    data = b"".join(
        bytes.fromhex(run["hex"]) if "hex" in run else bytes.fromhex(run["repeat"]) * run["count"]
        for run in vector["runs"]
    )
    assert (len(data), hashlib.sha256(data).hexdigest()) == (vector["size"], vector["sha256"])
    return data


def scanned(data: bytes) -> list[entry_log.ScannedEntry]:
    return list(entry_log.scan(lambda position, size: data[position : position + size], len(data)))


def test_every_vector_of_this_subject_has_its_test() -> None:
    assert set(ENTRY_LOG) == {
        "file_name", "header_open", "sealed_log", "big_map", "direct_io_header", "direct_io_one_entry",
        "largest_gap", "compaction_names", "metadata_cache_value",
    }  # fmt: skip
    assert set(ROCKSDB) == {
        "ledgers_key", "ledger_data", "storage_flags", "locations", "delete_range", "last_entry_floor_bound",
    }  # fmt: skip


@pytest.mark.parametrize("vector", ENTRY_LOG["file_name"], ids=lambda v: v["name"])
def test_entry_log_file_name(vector: dict[str, Any]) -> None:
    assert entry_log.file_name(vector["id"]) == vector["name"]
    assert entry_log.parse_file_name(vector["name"]) == vector["id"]


def test_entry_log_compaction_names() -> None:
    vector = ENTRY_LOG["compaction_names"]
    names = [vector["writing"], vector["flushed"], vector["final"]]
    destination, source = vector["destination"], vector["source"]
    assert names == [
        entry_log.compacting_name(destination),
        entry_log.compacted_name(destination, source),
        entry_log.file_name(destination),
    ]
    assert entry_log.compacted_log_ids(names) == [vector["destination"]]
    assert [entry_log.parse_file_name(name) for name in names] == [None, None, vector["destination"]]


def test_entry_log_metadata_cache_value() -> None:
    vector = ENTRY_LOG["metadata_cache_value"]
    ledger_bytes = {int(ledger_id): size for ledger_id, size in vector["ledgers"].items()}
    metadata = entry_log_metadata.EntryLogMetadata(
        vector["logId"], vector["totalSize"], vector["remainingSize"], ledger_bytes
    )
    value = bytes.fromhex(vector["hex"])
    assert entry_log_metadata.encode(metadata) == value
    assert entry_log_metadata.decode(value) == metadata
    assert entry_log_metadata.pack_key(vector["logId"]).hex() == vector["key_hex"]
    for damaged in (value[:-1], value[:20], b"\x00\x01" + value[2:]):
        with pytest.raises(CorruptDataError):
            entry_log_metadata.decode(damaged)


def test_entry_log_header_open() -> None:
    data = expand(ENTRY_LOG["header_open"])
    assert entry_log.pack_header() == data
    assert entry_log.unpack_header(data) == entry_log.Header()


def test_entry_log_sealed_log() -> None:
    vector = ENTRY_LOG["sealed_log"]
    data = expand(vector["bytes"])
    offset, count = vector["ledgers_map_offset"], vector["ledgers_count"]
    ledger_bytes = {int(ledger_id): size for ledger_id, size in vector["ledger_sizes"].items()}

    header = entry_log.unpack_header(data)
    assert header == entry_log.Header(ledgers_map_offset=offset, ledgers_count=count)
    assert entry_log.unpack_ledgers_map(data[offset:], header) == ledger_bytes
    assert entry_log.pack_ledgers_map(ledger_bytes).hex() == vector["ledgers_map"]
    assert [
        (str(entry_log.pack_location(vector["log_id"], e.position)), e.ledger_id, e.entry_id, e.entry.hex())
        for e in scanned(data)
    ] == [(e["location"], e["ledgerId"], e["entryId"], e["entry"]) for e in vector["entries"]]

    seal, position = entry_log.pack_seal(offset, count)
    records = b"".join(len(e.entry).to_bytes(4, "big") + e.entry for e in scanned(data))
    written = bytearray(entry_log.pack_header() + records + entry_log.pack_ledgers_map(ledger_bytes))
    written[position : position + len(seal)] = seal
    assert written == data


def test_entry_log_big_map() -> None:
    vector = ENTRY_LOG["big_map"]
    ledger_bytes = {ledger_id: 100 + ledger_id for ledger_id in range(20_001)}
    data = entry_log.pack_ledgers_map(ledger_bytes)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (vector["size"], vector["sha256"])
    for batch in vector["batches"]:
        at = batch["offset_in_map"]
        assert int.from_bytes(data[at : at + 4], "big") == batch["size_field"]
        assert int.from_bytes(data[at + 20 : at + 24], "big") == batch["count"]
    header = entry_log.Header(ledgers_map_offset=1024, ledgers_count=20_001)
    assert entry_log.unpack_ledgers_map(data, header) == ledger_bytes


def test_entry_log_direct_io_header() -> None:
    data = expand(ENTRY_LOG["direct_io_header"])
    assert entry_log.unpack_header(data) == entry_log.Header()
    assert scanned(data) == []


def test_entry_log_direct_io_one_entry() -> None:
    vector = ENTRY_LOG["direct_io_one_entry"]
    data = expand(vector["bytes"])
    entries = scanned(data + bytes(8192))  # the file is reserved up to its limit: zeros behind the data
    assert [(e.position - 4, len(e.entry), e.ledger_id, e.entry_id) for e in entries] == [
        (e["offset"], e["length"], e["ledgerId"], e["entryId"]) for e in vector["expect"]
    ]
    location = entry_log.pack_location(vector["log_id"], entries[0].position)
    assert f"{location:016x}" == vector["location_hex"]


@pytest.mark.parametrize("vector", ENTRY_LOG["largest_gap"], ids=lambda v: str(v["ids"]))
def test_entry_log_largest_gap(vector: dict[str, Any]) -> None:
    start, end = entry_log.largest_gap(vector["ids"])
    assert (start, end) == (vector["next"], vector["max"])


@pytest.mark.parametrize("vector", ROCKSDB["ledgers_key"], ids=lambda v: v["ledgerId"])
def test_rocksdb_ledgers_key(vector: dict[str, Any]) -> None:
    key = bytes.fromhex(vector["hex"])
    assert index.ledger_key(int(vector["ledgerId"])) == key
    assert index.unpack_ledger_key(key) == int(vector["ledgerId"])
    assert index.unpack_ledger_key(key + bytes(8)) == int(vector["ledgerId"])  # trap T2


@pytest.mark.parametrize("vector", ROCKSDB["ledger_data"], ids=lambda v: v["hex"][:60])
def test_rocksdb_ledger_data(vector: dict[str, Any]) -> None:
    lac = vector["explicitLac"]
    data = index.LedgerData(
        vector["fenced"],
        bytes.fromhex(vector["masterKey"]),
        None if lac is None else bytes.fromhex(lac),
        vector["limbo"],
    )
    assert index.pack_ledger_data(data).hex() == vector["hex"]
    assert index.unpack_ledger_data(bytes.fromhex(vector["hex"])) == data


def test_rocksdb_storage_flags() -> None:
    vector = ROCKSDB["storage_flags"]
    assert vector["key_hex"] == index.STORAGE_FLAGS_KEY.hex()
    assert index.unpack_ledger_key(index.STORAGE_FLAGS_KEY) < 0
    for name, flags in (("needs_integrity_check", index.FLAG_NEEDS_INTEGRITY_CHECK), ("none", 0)):
        assert index.pack_storage_flags(flags).hex() == vector[name]
        assert index.unpack_storage_flags(bytes.fromhex(vector[name])) == flags


@pytest.mark.parametrize("vector", ROCKSDB["locations"], ids=lambda v: v["value_hex"])
def test_rocksdb_locations(vector: dict[str, Any]) -> None:
    location = entry_log.pack_location(vector["logId"], vector["offset"])
    assert index.entry_key(int(vector["ledgerId"]), int(vector["entryId"])).hex() == vector["key_hex"]
    assert index.pack_location_value(location).hex() == vector["value_hex"]
    assert index.unpack_location_value(bytes.fromhex(vector["value_hex"])) == location
    assert entry_log.unpack_location(location) == (vector["logId"], vector["offset"])


def test_rocksdb_ranges() -> None:
    (vector,) = ROCKSDB["delete_range"]
    first, end = index.entry_key_range(vector["ledgerId"])
    assert (first.hex(), end.hex()) == (vector["begin"], vector["end_exclusive"])
    (bound,) = ROCKSDB["last_entry_floor_bound"]
    assert index.entry_key_range(bound["ledgerId"])[1].hex() == bound["upper_bound_exclusive"]


@pytest.mark.parametrize("vector", vectors("storage")["dir_index"], ids=lambda v: v["ledgerId"])
def test_dir_index(vector: dict[str, Any]) -> None:
    dirs = [Path(f"dir-{i}") for i in range(vector["dirs"])]
    storage = LedgerStorage(StorageSettings(dirs, dirs, 0, 0), OsFs())
    storage.directories = tuple(range(vector["dirs"]))  # type: ignore[assignment]  # names for directories
    assert storage.directory_for(int(vector["ledgerId"])) == vector["index"]
    storage.close()


# Disks of Apache BookKeeper


def payload_of(ledger: dict[str, Any], entry_id: int) -> bytes:
    rule = ledger["payload"]
    if rule == "entry-{i}":
        return b"entry-%d" % entry_id
    sizes = [0, 1, 16, 100, 1000, 4096, 65536, 100000]
    size = sizes[entry_id] if ledger["name"] == "sizes" else int(rule.split(" bytes;")[0])
    return bytes((31 * j + entry_id) % 256 for j in range(size))


def held_by(ledger: dict[str, Any], bookie_id: str) -> list[int]:
    """The entries that a bookie must have, by the ensembles and the round-robin write sets."""
    metadata = ledger["metadata"]
    if metadata is None:  # the deleted ledger: E=3 Qw=3
        return list(range(ledger["entriesWritten"]))
    size, quorum = metadata["ensembleSize"], metadata["writeQuorumSize"]
    starts = sorted(int(first) for first in metadata["ensembles"])
    held = []
    for entry_id in range(ledger["entriesWritten"]):
        ensemble = metadata["ensembles"][str(max(s for s in starts if s <= entry_id))]
        if bookie_id in [ensemble[(entry_id + i) % size] for i in range(quorum)]:
            held.append(entry_id)
    return held


def expected_ledgers(name: str) -> dict[int, dict[str, Any]]:
    return {ledger["ledgerId"]: ledger for ledger in json.loads(fixture_path(name).read_text())}


def digester(ledger: dict[str, Any]) -> Digester:
    return Digester(DigestType[ledger["digestType"]], ledger["password"].encode())


@pytest.mark.parametrize("bookie", BOOKIES)
def test_every_entry_on_a_java_disk_is_found_and_true(bookie: str) -> None:
    current = fixture_path(bookie, "ledgers", "current")
    before = sorted((p, p.stat().st_mtime_ns) for p in current.rglob("*"))
    bookie_id = f"127.0.0.1:318{bookie[-1]}"
    expected = expected_ledgers("expected.json")
    reader = EntryLogReader(current, OsFs())
    count = 0
    with open_offline(current) as (ledgers, locations):
        known = ledgers.load()
        assert set(known) == {i for i, ledger in expected.items() if held_by(ledger, bookie_id)}
        for ledger_id in known:
            ledger = expected[ledger_id]
            entry_ids = locations.entry_ids(ledger_id)
            assert entry_ids == held_by(ledger, bookie_id)
            assert locations.last_entry_id(ledger_id) == entry_ids[-1]
            found = locations.get([index.entry_key(ledger_id, entry_id) for entry_id in entry_ids])
            for entry_id, location in zip(entry_ids, found, strict=True):
                assert location is not None
                entry = reader.entry(Wanted(location, ledger_id, entry_id))
                payload = digester(ledger).open_entry(entry, ledger_id, entry_id)
                assert payload == payload_of(ledger, entry_id)
                count += 1
        assert {i for i, data in known.items() if data.fenced} == {5, 12}
        explicit_lac = known[9].explicit_lac
        assert explicit_lac is not None
        assert digester(expected[9]).open_lac(explicit_lac, 9) == 6
        assert locations.last_entry_id(14) == -1
        assert locations.entry_ids(14) == []
    assert count == {"b1": 715, "b2": 720, "b3": 715}[bookie[-2:]]
    assert sorted((p, p.stat().st_mtime_ns) for p in current.rglob("*")) == before


@pytest.mark.parametrize("bookie", BOOKIES)
def test_scans_of_java_entry_logs_tell_what_index_and_ledgers_map_tell(bookie: str) -> None:
    current = fixture_path(bookie, "ledgers", "current")
    reader = EntryLogReader(current, OsFs())
    ids = log_ids(current, OsFs())
    assert ids == ([0, 1, 2] if (current / "2.log").exists() else [0, 1])
    scans = {log_id: list(reader.scan(log_id)) for log_id in ids}
    newest = {
        (e.ledger_id, e.entry_id): entry_log.pack_location(log_id, e.position)
        for log_id in ids
        for e in scans[log_id]
    }
    with open_offline(current) as (_, locations):
        keys = [index.entry_key(*ids) for ids in newest]
        assert locations.get(keys) == list(newest.values())
    sealed = 0
    for log_id in ids:
        data = (current / entry_log.file_name(log_id)).read_bytes()
        header = entry_log.unpack_header(data)
        if not header.ledgers_map_offset:
            continue
        sealed += 1
        ledger_bytes: dict[int, int] = {}
        for e in scans[log_id]:
            ledger_bytes[e.ledger_id] = ledger_bytes.get(e.ledger_id, 0) + 4 + len(e.entry)
        assert entry_log.unpack_ledgers_map(data[header.ledgers_map_offset :], header) == ledger_bytes
    assert sealed >= 1


def test_a_killed_java_bookie_comes_up_with_everything_its_journal_holds(tmp_path: Path) -> None:
    shutil.copytree(fixture_path("bookie1-sigkill", "b1"), tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    expected = expected_ledgers("expected.json") | expected_ledgers("expected-sigkill.json")
    fs = OsFs()
    directory = tmp_path / "ledgers"
    storage = LedgerStorage(StorageSettings([directory], [directory], 8 << 20, 1 << 20), fs)
    storage.open()
    mark = read_last_marks(fs, [directory / "current"], 0, 1)
    for records in replay(tmp_path / "journal" / "current", fs, mark):
        storage.replay(records)
    storage.flush_all()
    storage.close()

    storage = LedgerStorage(StorageSettings([directory], [directory], 8 << 20, 1 << 20), fs)
    storage.open()
    for ledger_id, ledger in expected.items():
        held = held_by(ledger, "127.0.0.1:3181")
        descriptor = storage.ledger(ledger_id)
        if descriptor is None:
            assert not held
            continue
        entries = storage.directory_for(ledger_id).load_entries([(ledger_id, e) for e in held])
        for entry_id, entry in zip(held, entries, strict=True):
            assert isinstance(entry, bytes)
            payload = digester(ledger).open_entry(entry, ledger_id, entry_id)
            assert payload == payload_of(ledger, entry_id)
    assert {i for i, d in storage.directories[0].ledgers.items() if d.fenced} == {5, 12, 21}
    assert log_ids(directory / "current", fs) == [0, 1, 2]  # Java's logs are not appended to
    storage.close()


def test_an_offline_look_at_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError, match="cannot read the index"), open_offline(tmp_path):
        pass
