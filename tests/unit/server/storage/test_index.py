"""The RocksDB indexes: what upstream finds in them, and what they find in upstream's."""

from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from bkctl.errors import BookieStartError, CorruptDataError
from bkctl.formats import index as fmt
from bkctl.formats.entry_log_metadata import EntryLogMetadata, encode, pack_key
from bkctl.server.storage.index import (
    EntryLogMetadataIndex,
    LedgersIndex,
    LocationsIndex,
    new_block_cache,
    open_offline,
)
from tests.shared_data import fixture_path

KEY = b"k" * 20


def open_locations(path: Path) -> LocationsIndex:
    return LocationsIndex.open(path / "locations", new_block_cache(8 << 20))


def raw(path: Path) -> Rdict:
    options = Options(raw_mode=True)
    return Rdict(str(path), options, {"default": options})


def options_of(directory: Path) -> dict[str, str]:
    newest = max(directory.glob("OPTIONS-*"))
    lines = (line.strip().partition("=") for line in newest.read_text().splitlines())
    return {name: value for name, separator, value in lines if separator}


def test_locations_are_found_counted_and_deleted_by_ledger(tmp_path: Path) -> None:
    locations = open_locations(tmp_path)
    keys = [fmt.entry_key(ledger_id, e) for ledger_id in (1, 2, 3) for e in range(0, 10_000, 2)]
    locations.put(keys, range(len(keys)))
    locations.sync()
    assert locations.get([keys[7], fmt.entry_key(1, 1), keys[-1]]) == [7, None, len(keys) - 1]
    assert [locations.last_entry_id(i) for i in (0, 1, 2, 3, 4)] == [-1, 9998, 9998, 9998, -1]
    assert locations.entry_ids(2) == list(range(0, 10_000, 2))
    assert locations.following(2, 5, 3) == [(6, 5003), (8, 5004), (10, 5005)]
    assert locations.following(2, 9996, 3) == [(9998, 9999)]
    locations.delete_ledgers([2, 77])
    assert [len(locations.entry_ids(i)) for i in (1, 2, 3)] == [5000, 0, 5000]
    assert [locations.last_entry_id(i) for i in (1, 2, 3)] == [9998, -1, 9998]
    locations.close()
    locations = open_locations(tmp_path)
    assert [len(locations.entry_ids(i)) for i in (1, 2, 3)] == [5000, 0, 5000]
    locations.close()


def test_ledgers_come_back_as_they_were_written(tmp_path: Path) -> None:
    changed = {
        0: fmt.LedgerData(False, KEY),
        7: fmt.LedgerData(True, b"", explicit_lac=b"packet", limbo=True),
        2**63 - 1: fmt.LedgerData(True, KEY, limbo=False),
    }
    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    ledgers.write(changed, [])
    ledgers.write({}, [0])
    ledgers.sync()
    ledgers.close()
    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    assert ledgers.load() == {i: data for i, data in changed.items() if i}
    ledgers.close()


def test_t2_the_16_byte_key_of_a_rebuilt_index_wins_until_the_ledger_changes(tmp_path: Path) -> None:
    database = raw(tmp_path / "ledgers")
    for ledger_id in (5, 6, 7):
        database.put(fmt.ledger_key(ledger_id), fmt.pack_ledger_data(fmt.LedgerData(False, KEY)))
        rebuilt = fmt.pack_ledger_data(fmt.LedgerData(True, b""))
        database.put(fmt.ledger_key(ledger_id) + bytes(8), rebuilt)
    database.close()

    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    assert ledgers.load() == dict.fromkeys((5, 6, 7), fmt.LedgerData(True, b""))
    ledgers.write({5: fmt.LedgerData(True, KEY)}, [6])
    ledgers.close()

    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    assert ledgers.load() == {5: fmt.LedgerData(True, KEY), 7: fmt.LedgerData(True, b"")}
    ledgers.close()
    database = raw(tmp_path / "ledgers")
    assert [len(key) for key in database.keys()] == [8, 8, 16]  # noqa: SIM118  # not a dict
    database.close()


def test_t13_reserved_negative_keys_are_no_ledgers_and_stay(tmp_path: Path) -> None:
    database = raw(tmp_path / "ledgers")
    database.put(fmt.STORAGE_FLAGS_KEY, fmt.pack_storage_flags(fmt.FLAG_NEEDS_INTEGRITY_CHECK))
    database.close()
    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    assert ledgers.load() == {}
    ledgers.write({1: fmt.LedgerData(False, KEY)}, [])
    ledgers.close()
    database = raw(tmp_path / "ledgers")
    assert database.get(fmt.STORAGE_FLAGS_KEY) == bytes(7) + b"\1"
    database.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"short", fmt.pack_ledger_data(fmt.LedgerData(False, KEY))),
        (fmt.ledger_key(1), b"no protobuf \xff"),
        (fmt.ledger_key(1), b""),
        (fmt.ledger_key(1), b"\x08\x01\x10\x00"),  # no master key
    ],
)
def test_a_record_that_breaks_the_format_of_ledgers_is_corrupt(
    tmp_path: Path, key: bytes, value: bytes
) -> None:
    database = raw(tmp_path / "ledgers")
    database.put(key, value)
    database.close()
    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    with pytest.raises(CorruptDataError, match="ledgers index"):
        ledgers.load()
    ledgers.close()


def test_a_location_that_is_none_is_corrupt(tmp_path: Path) -> None:
    database = raw(tmp_path / "locations")
    database.put(fmt.entry_key(1, 0), b"seven")
    database.close()
    locations = open_locations(tmp_path)
    with pytest.raises(CorruptDataError, match="5 bytes"):
        locations.get([fmt.entry_key(1, 0)])
    with pytest.raises(CorruptDataError, match="5 bytes"):
        locations.following(1, -1, 1)
    locations.close()


@pytest.mark.parametrize("value", [b"", b"1", bytes(9), (2).to_bytes(8, "big"), b"\xff" * 8])
def test_storage_flags_that_nobody_defined_are_corrupt(value: bytes) -> None:
    with pytest.raises(CorruptDataError, match="storage flags"):
        fmt.unpack_storage_flags(value)


def test_an_index_in_use_cannot_be_opened_again_and_a_closed_one_says_so(tmp_path: Path) -> None:
    locations = open_locations(tmp_path)
    with pytest.raises(BookieStartError, match="cannot open the index"):
        open_locations(tmp_path)
    locations.close()
    with pytest.raises(OSError, match="closed"):
        locations.get([fmt.entry_key(1, 0)])


def test_a_damaged_index_is_one_clear_error(tmp_path: Path) -> None:
    locations = open_locations(tmp_path)
    locations.put([fmt.entry_key(1, 0)], [2000])
    locations.close()
    for file in (tmp_path / "locations").glob("*.sst"):
        file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(BookieStartError, match="cannot open the index"):
        open_locations(tmp_path).get([fmt.entry_key(1, 0)])
    ((tmp_path / "locations") / "CURRENT").write_text("nonsense\n")
    with pytest.raises(BookieStartError, match="cannot open the index"):
        open_locations(tmp_path)


def test_offline_sees_a_running_bookie_and_leaves_no_trace(tmp_path: Path) -> None:
    ledgers, locations = LedgersIndex.open(tmp_path / "ledgers"), open_locations(tmp_path)
    ledgers.write({3: fmt.LedgerData(True, KEY)}, [])
    locations.put([fmt.entry_key(3, 0), fmt.entry_key(3, 1)], [1028, 1228])

    def listing() -> list[tuple[str, int, int]]:
        paths = sorted(path for path in tmp_path.rglob("*"))
        return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    before = listing()
    for _ in range(2):
        with open_offline(tmp_path) as (offline_ledgers, offline_locations):
            assert offline_ledgers.load() == {3: fmt.LedgerData(True, KEY)}
            assert offline_locations.get([fmt.entry_key(3, 1), fmt.entry_key(3, 2)]) == [1228, None]
            assert offline_locations.last_entry_id(3) == 1
    assert listing() == before
    ledgers.close()
    locations.close()


MUST_MATCH = (
    "comparator", "format_version", "checksum", "compression", "merge_operator", "prefix_extractor", "ttl",
    "num_levels", "index_type", "block_size", "level_compaction_dynamic_level_bytes", "max_total_wal_size",
    "max_open_files", "delete_obsolete_files_period_micros", "keep_log_file_num", "log_file_time_to_roll",
    "cache_index_and_filter_blocks", "max_write_buffer_number", "level0_file_num_compaction_trigger",
    "max_bytes_for_level_base", "partition_filters", "data_block_index_type",
)  # fmt: skip


@pytest.mark.parametrize("name", ["ledgers", "locations"])
def test_the_options_are_those_of_java(tmp_path: Path, name: str) -> None:
    """Spec storage 6.1; sizes of buffers, files and thread pools are our own."""
    LedgersIndex.open(tmp_path / "ledgers").close()
    open_locations(tmp_path).close()
    ours = options_of(tmp_path / name)
    java = options_of(fixture_path("bookies-clean", "b1", "ledgers", "current", name))
    assert {option: ours[option] for option in MUST_MATCH} == {option: java[option] for option in MUST_MATCH}
    # rocksdict writes the filter's name without its bits: 13.
    assert (ours["filter_policy"] == "nullptr") == (java["filter_policy"] == "nullptr")


def flip_data_bit(database: Path) -> None:
    """Flip a bit of the first data block of the only table."""
    [table] = database.glob("*.sst")
    content = bytearray(table.read_bytes())
    content[100] ^= 1
    table.write_bytes(content)


def test_a_block_that_cannot_be_read_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    ledgers.write({i: fmt.LedgerData(True, KEY) for i in range(100)}, [])
    ledgers.close()
    locations = open_locations(tmp_path)
    locations.put([fmt.entry_key(1, i) for i in range(100)], range(100))
    locations.close()
    for name in ("ledgers", "locations"):
        flip_data_bit(tmp_path / name)

    ledgers, locations = LedgersIndex.open(tmp_path / "ledgers"), open_locations(tmp_path)
    for read in (
        ledgers.load,
        lambda: list(locations.records()),
        lambda: locations.entry_ids(1),
        lambda: locations.following(1, 5, 10),
        lambda: locations.last_entry_id(1),
        lambda: locations.get([fmt.entry_key(1, 5)]),
    ):
        with pytest.raises(CorruptDataError, match="checksum mismatch"):
            read()
    ledgers.close()
    locations.close()


def test_damage_in_an_offline_index_names_the_file_and_not_its_link(tmp_path: Path) -> None:
    LedgersIndex.open(tmp_path / "ledgers").close()
    locations = open_locations(tmp_path)
    locations.put([fmt.entry_key(1, i) for i in range(100)], range(100))
    locations.close()
    flip_data_bit(tmp_path / "locations")
    with (
        open_offline(tmp_path) as (_, offline),
        pytest.raises(CorruptDataError, match=f"in {tmp_path}/locations/[0-9]+.sst"),
    ):
        list(offline.records())


# The cache of entry logs' metadata


def test_a_damaged_cache_of_metadata_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "metadata-cache"
    store = EntryLogMetadataIndex.open(path)
    store.put(EntryLogMetadata(7, 100, 60, {1: 60}))
    store.sync()
    store.close()
    (path / "CURRENT").write_bytes(b"no manifest\n")
    store = EntryLogMetadataIndex.open(path)
    assert (store.log_ids(), store.get(7)) == ([], None)
    store.put(EntryLogMetadata(8, 100, 60, {1: 60}))
    assert (store.log_ids(), store.get(8)) == ([8], EntryLogMetadata(8, 100, 60, {1: 60}))
    store.close()


def test_a_record_that_cannot_be_read_or_is_of_another_log_counts_as_none(tmp_path: Path) -> None:
    store = EntryLogMetadataIndex.open(tmp_path / "metadata-cache")
    store._database.put(pack_key(7), b"no metadata")
    store._database.put(pack_key(8), encode(EntryLogMetadata(9, 100, 60, {1: 60})))
    assert store.get(7) is None
    assert store.get(8) is None
    store.close()


def test_tombstones_are_no_ledgers(tmp_path: Path) -> None:
    ledgers = LedgersIndex.open(tmp_path / "ledgers")
    ledgers.write({1: fmt.LedgerData(False, b"k")}, [2, 3], [2, 3], [])
    ledgers.write({}, [], [61_180], [3])
    assert set(ledgers.load()) == {1}
    assert ledgers.tombstones() == [2, 61_180]
    ledgers.close()
