"""Writing, reading and scanning entry logs; broken bytes give one clear error."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError
from bkctl.formats import entry_log as fmt
from bkctl.formats.index import entry_key
from bkctl.server.storage.entry_log import EntryLogReader, EntryLogWriter, Wanted, log_ids
from bkctl.server.storage.fs import OsFs

Record = tuple[int, int, bytes]  # ledger id, entry id, payload


def append(writer: EntryLogWriter, records: Sequence[Record]) -> list[int]:
    """Put `records` (ascending ids) into an arena back to front, and append them in order."""
    entries = [entry_key(ledger_id, entry_id) + payload for ledger_id, entry_id, payload in records]
    arena, positions = b"", []
    for entry in reversed(entries):
        positions.insert(0, len(arena))
        arena += len(entry).to_bytes(4, "big") + entry
    sizes = [4 + len(entry) for entry in entries]
    return writer.append(memoryview(arena), [entry[:16] for entry in entries], positions, sizes)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[EntryLogWriter]:
    writer = EntryLogWriter(tmp_path, OsFs(), log_bytes_max=2048)
    yield writer
    writer.close()


def records_of(ledger_ids: Sequence[int], count: int, size: int = 100) -> list[Record]:
    return [(i, e, bytes([i, e]) * (size // 2)) for i in ledger_ids for e in range(count)]


def test_what_is_appended_is_read_back_by_location(tmp_path: Path, writer: EntryLogWriter) -> None:
    records = records_of([3, 5, 9], 20)
    locations = append(writer, records)
    writer.force()
    reader = EntryLogReader(tmp_path, OsFs())
    assert locations[0] == fmt.pack_location(0, 1028)
    for location, (ledger_id, entry_id, payload) in zip(locations, records, strict=True):
        entry = reader.entry(Wanted(location, ledger_id, entry_id))
        assert entry == entry_key(ledger_id, entry_id) + payload


def test_a_full_log_is_sealed_with_its_ledgers_map_and_the_newest_is_not(
    tmp_path: Path, writer: EntryLogWriter
) -> None:
    records = records_of([3, 5, 9], 20)
    append(writer, records)
    writer.force()
    ids = log_ids(tmp_path, OsFs())
    assert len(ids) == 8
    found = []
    for log_id in ids:
        data = (tmp_path / fmt.file_name(log_id)).read_bytes()
        entries = list(
            fmt.scan(lambda position, size, data=data: data[position : position + size], len(data))
        )  # type: ignore[misc]
        found += [(e.ledger_id, e.entry_id, e.entry[16:]) for e in entries]
        header = fmt.unpack_header(data)
        if log_id == ids[-1]:
            assert header == fmt.Header()
            continue
        assert header.ledgers_map_offset <= 2048
        ledger_bytes: dict[int, int] = {}
        for e in entries:
            ledger_bytes[e.ledger_id] = ledger_bytes.get(e.ledger_id, 0) + 4 + len(e.entry)
        assert fmt.unpack_ledgers_map(data[header.ledgers_map_offset :], header) == ledger_bytes
    assert found == records
    assert (tmp_path / "lastId").read_bytes() == b"%x\n" % ids[-1]


def test_an_entry_larger_than_a_log_gets_one_of_its_own(tmp_path: Path, writer: EntryLogWriter) -> None:
    append(writer, [(1, 0, b"a"), (1, 1, bytes(5000)), (1, 2, b"b")])
    reader = EntryLogReader(tmp_path, OsFs())
    assert [[e.entry_id for e in reader.scan(log_id)] for log_id in log_ids(tmp_path, OsFs())] == [
        [0],
        [1],
        [2],
    ]


def test_a_log_of_an_earlier_run_is_never_appended_to(tmp_path: Path) -> None:
    """Trap T4: an unsealed log stays as it is, an empty one too."""
    for run in range(3):
        writer = EntryLogWriter(tmp_path, OsFs(), log_bytes_max=2048)
        (location,) = append(writer, [(1, run, b"x")])
        writer.force()
        writer.close()
        assert fmt.unpack_location(location) == (run, 1028)
    (tmp_path / "a.log").write_bytes(b"")
    writer = EntryLogWriter(tmp_path, OsFs(), log_bytes_max=2048)
    assert fmt.unpack_location(append(writer, [(1, 9, b"x")])[0])[0] == 0xB
    assert (tmp_path / "a.log").read_bytes() == b""
    assert list(EntryLogReader(tmp_path, OsFs()).scan(0xA)) == []
    writer.close()


@pytest.mark.parametrize(
    ("files", "last_id", "next_id"),
    [
        ([], None, 0),
        ([], b"5\n", 6),
        (["0.log", "1.log"], None, 2),
        (["0.log", "1.log"], b"", 2),
        (["0.log", "1.log"], b"no number\n", 2),
        (["0.log", "1.log"], b"7\n", 8),
        (["0.log"], b"0\n", 1),
        (["5.log"], b"3\n", 6),
        (["4.log", "5.log.4.compacted"], None, 6),
        (["7ffffffe.log"], None, 0x7FFFFFFF),
        (["7fffffff.log"], None, 0),
        (["0.log", "7fffffff.log"], None, 1),
        (["1.log", "7ffffffe.log", "zz.log", "1.log.compacting"], b"7ffffffe\n", 0x7FFFFFFF),
    ],
)
def test_the_id_of_the_next_log(
    tmp_path: Path, files: list[str], last_id: bytes | None, next_id: int
) -> None:
    for name in files:
        (tmp_path / name).touch()
    if last_id is not None:
        (tmp_path / "lastId").write_bytes(last_id)
    writer = EntryLogWriter(tmp_path, OsFs(), log_bytes_max=2048)
    (location,) = append(writer, [(1, 0, b"x")])
    assert fmt.unpack_location(location)[0] == next_id
    writer.close()


def test_entries_of_any_size_are_read_even_when_the_first_guess_is_short(tmp_path: Path) -> None:
    writer = EntryLogWriter(tmp_path, OsFs(), log_bytes_max=1 << 20)
    records = [(1, e, bytes([e]) * size) for e, size in enumerate((0, 1, 4072, 4080, 4096, 100_000, 3))]
    locations = append(writer, records)
    reader = EntryLogReader(tmp_path, OsFs())
    wanted = [Wanted(location, 1, e) for e, location in enumerate(locations)]
    expected = [entry_key(1, e) + payload for _, e, payload in records]
    assert [reader.entry(one) for one in wanted] == expected
    assert reader.near_entries(wanted) == expected
    writer.close()


def test_more_logs_than_open_files_are_read(tmp_path: Path) -> None:
    writer = EntryLogWriter(tmp_path, OsFs(), log_bytes_max=1)
    locations = append(writer, records_of([1], 200, 10))
    writer.close()
    reader = EntryLogReader(tmp_path, OsFs())
    for _ in range(2):
        for entry_id, location in enumerate(locations):
            assert reader.entry(Wanted(location, 1, entry_id))[:16] == entry_key(1, entry_id)
    reader.close()


def test_another_entry_or_no_entry_at_the_place_is_corrupt(tmp_path: Path, writer: EntryLogWriter) -> None:
    locations = append(writer, records_of([1], 3))
    reader = EntryLogReader(tmp_path, OsFs())
    for wanted in (
        Wanted(locations[0], 1, 1),
        Wanted(locations[0], 2, 0),
        Wanted(locations[0] + 1, 1, 0),
        Wanted(locations[2] + 500, 1, 2),
        Wanted(0, 1, 0),
        Wanted(1024, 1, 0),
        Wanted(-1, 1, 0),
        Wanted(1 << 63, 1, 0),
    ):
        with pytest.raises(CorruptDataError):
            reader.entry(wanted)
    with pytest.raises(FileNotFoundError):
        reader.entry(Wanted(fmt.pack_location(77, 1028), 1, 0))


def test_an_entry_that_the_file_cuts_off_is_corrupt(tmp_path: Path, writer: EntryLogWriter) -> None:
    locations = append(writer, [(1, 0, bytes(100))])
    path = tmp_path / "0.log"
    data = path.read_bytes()
    for size in range(1024, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptDataError):
            EntryLogReader(tmp_path, OsFs()).entry(Wanted(locations[0], 1, 0))


def scanned(data: bytes) -> list[tuple[int, int]]:
    entries = fmt.scan(lambda position, size: data[position : position + size], len(data))
    return [(e.ledger_id, e.entry_id) for e in entries]


def log_of(*parts: bytes) -> bytes:
    return fmt.pack_header() + b"".join(parts)


def record(ledger_id: int, entry_id: int, size: int = 20) -> bytes:
    return (16 + size).to_bytes(4, "big") + entry_key(ledger_id, entry_id) + b"\xf0" * size


def test_a_scan_passes_over_padding_and_zeros() -> None:
    first, second = record(1, 0), record(1, 1, 300)
    for gap in range(1, 40):
        assert scanned(log_of(first, bytes(gap), second, bytes(gap))) == [(1, 0), (1, 1)]
    padding = b"\xf0" * (4096 - 1024 - len(first))
    assert scanned(log_of(first, padding, second)) == [(1, 0), (1, 1)]


def test_a_scan_of_a_torn_log_ends_with_the_last_whole_entry() -> None:
    whole = log_of(record(1, 0), record(1, 1, 3000), record(1, 2))
    assert scanned(whole) == [(1, 0), (1, 1), (1, 2)]
    for size in (*range(1024, 1100), *range(len(whole) - 50, len(whole))):
        assert scanned(whole[:size]) == [(1, 0), (1, 1), (1, 2)][: len(scanned(whole[:size]))]
    assert scanned(whole[:-1]) == [(1, 0), (1, 1)]
    assert scanned(whole[:1063]) == []
    assert scanned(b"") == []


def test_a_scan_crosses_its_window_at_any_place() -> None:
    entries = [(7, e) for e in range(1500)]
    assert scanned(log_of(*(record(7, e, 2000 + e % 97) for _, e in entries))) == entries


def test_a_scan_refuses_what_no_writer_leaves() -> None:
    for broken in (b"\xff\xff\xff\xff", b"\x80\0\0\0"):
        data = log_of(record(1, 0), broken, bytes(100))
        entries = fmt.scan(lambda position, size, data=data: data[position : position + size], len(data))  # type: ignore[misc]
        assert next(entries).entry_id == 0
        with pytest.raises(CorruptDataError, match="position 1064"):
            next(entries)
    data = log_of(record(1, 0, 500))
    with pytest.raises(CorruptDataError, match="516 bytes"):
        list(
            fmt.scan(lambda position, size: data[position : position + size], len(data), entry_bytes_max=515)
        )


@settings(deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=40))
def test_a_scan_of_any_bytes_ends(tail: bytes, head: bytes) -> None:
    for data in (log_of(tail), head + tail):
        try:
            assert len(scanned(data)) <= len(data)
        except CorruptDataError:
            assert data


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(-(2**31), 2**31 - 1))
def test_a_ledgers_map_of_any_bytes_is_read_or_corrupt(data: bytes, count: int) -> None:
    header = fmt.Header(ledgers_map_offset=1024, ledgers_count=count)
    with pytest.raises(CorruptDataError):
        fmt.unpack_ledgers_map(data, header)


def test_a_cut_or_changed_ledgers_map_is_corrupt() -> None:
    data = fmt.pack_ledgers_map({i: i + 1 for i in range(3)})
    header = fmt.Header(ledgers_map_offset=1024, ledgers_count=3)
    assert fmt.unpack_ledgers_map(data, header) == {0: 1, 1: 2, 2: 3}
    assert fmt.unpack_ledgers_map(data + bytes(9), header) == {0: 1, 1: 2, 2: 3}
    for size in range(len(data)):
        with pytest.raises(CorruptDataError):
            fmt.unpack_ledgers_map(data[:size], header)
    for header in (
        fmt.Header(ledgers_map_offset=1024, ledgers_count=2),
        fmt.Header(version=0, ledgers_map_offset=1024, ledgers_count=3),
        fmt.Header(),
    ):
        with pytest.raises(CorruptDataError):
            fmt.unpack_ledgers_map(data, header)


@pytest.mark.parametrize("data", [b"", b"BKLO", b"BKLG" + bytes(1020), b"BKLO\0\0\0\2" + bytes(1016)])
def test_a_header_that_is_none_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match="entry log header"):
        fmt.unpack_header(data)


def test_an_entry_that_reaches_past_the_end_is_damage_in_a_sealed_log_only() -> None:
    torn = log_of(record(7, 0, 100))[:-1]
    assert scanned(torn) == []
    seal, at = fmt.pack_seal(fmt.HEADER_BYTES, 0)
    sealed = torn[:at] + seal + torn[at + len(seal) :]
    with pytest.raises(CorruptDataError, match="reach past its end"):
        scanned(sealed)
