"""Every vector of vectors-metadata.json, section by section."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bkctl.errors import (
    BadInputError,
    BkctlError,
    CorruptDataError,
    IncorrectParameterError,
    MetadataSerializationError,
)
from bkctl.formats import (
    bookie_id,
    cookie,
    layout,
    ledger_id,
    ledger_metadata,
    ledger_path,
    rack_map,
    service_info,
    service_uri,
    text_format,
    underreplication,
)
from bkctl.formats.ledger_path import ManagerType
from bkctl.formats.service_info import BookieServiceInfo, Endpoint
from bkctl.formats.underreplication import UnderreplicatedLedger
from bkctl.metadata.cluster import init_cluster
from bkctl.metadata.ledgers import LedgerManager
from bkctl.metadata.memory import MemoryTree
from bkctl.quorum.fragments import failed_ledger_backoff_ms, stored_bounds
from bkctl.quorum.rack_adherence import rack_adherence
from bkctl.server.storage.gc_plan import GarbagePlan
from bkctl.types import (
    INVALID_ENTRY_ID,
    BookieId,
    DigestType,
    EntryId,
    LedgerId,
    LedgerMetadata,
    MetadataState,
    Segment,
)
from tests.shared_data import vectors

VECTORS = vectors("metadata")
ROOT = "/ledgers"
SECTION_SIZES = {
    "about": 5,
    "ledger_metadata": 15,
    "ledger_metadata_invalid": 13,
    "ledger_metadata_lenient": 1,
    "ledger_paths": 19,
    "ledger_path_parse": 8,
    "root_children": 7,
    "id_generation": 9,
    "ledger_metadata_hazards": 12,
    "text_escapes": 2,
    "ledger_ranges": 5,
    "gc_over_ranges": 4,
    "rack_adherence": 11,
    "layout": 3,
    "cookies": 3,
    "bookie_service_info": 2,
    "underreplicated_ledger": 2,
    "small_znodes": 7,
    "bookie_ids": 3,
    "metadata_service_uri": 12,
    "pulsar_rack_mapping": 4,
    "fragment_bounds": 16,
    "failed_ledger_backoff": 2,
}


def section(*path: str) -> Any:
    found = VECTORS
    for name in path:
        found = found[name]
    return found


def each(*path: str) -> Any:
    cases = section(*path)
    return pytest.mark.parametrize("case", cases, ids=[case_id(i, case) for i, case in enumerate(cases)])


def case_id(index: int, case: Any) -> str:
    for key in ("name", "ledger_id", "path", "created", "uri", "why", "node"):
        if isinstance(case, dict) and key in case:
            return f"{index}-{case[key]}"
    return str(index)


def test_no_section_is_forgotten() -> None:
    assert {name: len(content) for name, content in VECTORS.items()} == SECTION_SIZES


def metadata_of(fields: Mapping[str, Any], version: int) -> LedgerMetadata:
    state = MetadataState[fields["state"]]
    digest = {"HMAC": DigestType.MAC}.get(fields["digest"]) or DigestType[fields["digest"]]
    return LedgerMetadata(
        ensemble_size=fields["ensemble_size"],
        write_quorum_size=fields["write_quorum"],
        ack_quorum_size=fields["ack_quorum"],
        segments=tuple(
            Segment(EntryId(first), tuple(map(BookieId, bookies))) for first, bookies in fields["segments"]
        ),
        state=state,
        length=fields.get("length", 0),
        last_entry_id=EntryId(fields.get("last_entry_id", INVALID_ENTRY_ID)),
        digest_type=None if version == 1 else digest,
        password=None if version == 1 else bytes.fromhex(fields["password_hex"]),
        ctime_ms=fields.get("stored_ctime"),
        custom_metadata={key: bytes.fromhex(value) for key, value in fields.get("custom_metadata", [])},
        creator_token=fields.get("ctoken", 0),
        format_version=version,
    )


@each("ledger_metadata")
def test_ledger_metadata_is_written_and_read_as_java_does(case: dict[str, Any]) -> None:
    metadata = metadata_of(case["input"], case["version"])
    data = bytes.fromhex(case["hex"])
    assert ledger_metadata.encode(metadata) == data
    assert ledger_metadata.decode(data) == metadata
    if "text" in case:
        assert data.decode() == case["text"]


@each("ledger_metadata_invalid")
def test_invalid_ledger_metadata_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(CorruptDataError):
        ledger_metadata.decode(bytes.fromhex(case["hex"]))


@each("ledger_metadata_lenient")
def test_free_form_text_is_read(case: dict[str, Any]) -> None:
    v1_open = next(v["input"] for v in section("ledger_metadata") if v["name"] == "v1-open")
    expected = metadata_of(v1_open, 2)  # digest CRC32, password "passwd", ack quorum 2
    assert ledger_metadata.decode(bytes.fromhex(case["hex"])) == expected


@each("ledger_metadata_hazards")
def test_ledger_metadata_that_java_chokes_on(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    if "read fails" in case["java_4_18"]:
        with pytest.raises(CorruptDataError):
            ledger_metadata.decode(data)
        return
    metadata = ledger_metadata.decode(data)
    found = {
        "last_entry_id": metadata.last_entry_id,
        "length": metadata.length,
        "ctoken": metadata.creator_token,
    }
    for name in found.keys() & case.keys():
        assert found[name] == case[name]
    if "rewrite fails" in case["java_4_18"]:
        assert metadata.password is None
        assert metadata.digest_type is None
        with pytest.raises(MetadataSerializationError):
            ledger_metadata.encode(metadata)
    else:
        assert ledger_metadata.decode(ledger_metadata.encode(metadata)) == metadata


@each("ledger_paths")
def test_ledger_paths(case: dict[str, Any]) -> None:
    number = LedgerId(case["ledger_id"])
    for manager in ManagerType:
        expected = case[manager.value]
        if expected is None:
            with pytest.raises(IncorrectParameterError):
                ledger_path.ledger_path(ROOT, manager, number)
        else:
            assert ledger_path.ledger_path(ROOT, manager, number) == expected
            assert expected.startswith(ROOT)
            if manager is not ManagerType.FLAT or len(str(number)) <= 10:
                assert ledger_path.parse_ledger_path(ROOT, manager, expected) == number
    assert underreplication.ledger_path(ROOT, number) == case["underreplicated"]
    assert underreplication.lock_path(ROOT, number) == case["ur_lock"]
    assert underreplication.ledger_id_of(case["ur_lock"].rpartition("/")[2]) == number


@each("ledger_path_parse")
def test_ledger_path_parse(case: dict[str, Any]) -> None:
    manager = ManagerType(case["scheme"])
    if case.get("error"):
        with pytest.raises(CorruptDataError):
            ledger_path.parse_ledger_path(ROOT, manager, case["path"])
    else:
        assert ledger_path.parse_ledger_path(ROOT, manager, case["path"]) == case["ledger_id"]


def test_root_children() -> None:
    children = section("root_children")
    parents = {
        ManagerType.HIERARCHICAL: children["hierarchical_parent"],
        ManagerType.LONG_HIERARCHICAL: children["longhierarchical_parent"],
        ManagerType.LEGACY_HIERARCHICAL: children["legacyhierarchical_parent"],
        ManagerType.FLAT: children["flat_ledger"],
    }
    for name in children["special"]:
        assert ledger_path.is_special_child(name), name
    for manager, names in parents.items():
        for name in names:
            assert ledger_path.is_ledger_child(manager, name), name
            assert not ledger_path.is_special_child(name), name
        for name in children["special"] + children["not_special_but_not_a_ledger_parent_either"]:
            assert not ledger_path.is_ledger_child(manager, name), name
    for name in children["not_special_but_not_a_ledger_parent_either"]:
        assert not ledger_path.is_special_child(name), name
    for name in children["flat_not_matched"]:
        assert not ledger_path.is_ledger_child(ManagerType.FLAT, name), name


@each("id_generation")
def test_id_generation(case: dict[str, Any]) -> None:
    parent, _, name = case["created"].rpartition("/")
    if "/idgen-long/" in case["created"]:
        hob = ledger_id.high_order_bits(parent.rpartition("/")[2])
        assert ledger_id.hob_name(hob) == parent.rpartition("/")[2]
        drawn = ledger_id.long_ledger_id(hob, name)
        if case.get("overflow"):
            assert ledger_id.hob_name(hob + 1) in case["next"]
    else:
        drawn = ledger_id.short_ledger_id(name)
    assert drawn == case.get("ledger_id")
    assert (drawn is None) == case.get("overflow", False)


@each("text_escapes")
def test_text_escapes(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["bytes_hex"])
    assert text_format.quote(data) == case["text_4_18"]
    schema = text_format.Schema(text_format.Field(1, "value", text_format.Kind.BYTES))
    for text in (case["text_4_18"], case["text_4_17"]):
        assert text_format.parse(schema, f"value: {text}".encode()) == {"value": data}


async def list_ranges(manager: ManagerType, ledger_ids: Sequence[int]) -> list[list[LedgerId]]:
    tree = MemoryTree()
    await tree.open()
    await init_cluster(tree, ROOT, layout.layout_of(manager))
    ledgers = LedgerManager(tree, ROOT, layout.layout_of(manager))
    metadata = LedgerMetadata(1, 1, 1, (Segment(EntryId(0), (BookieId("b:1"),)),))
    for number in reversed(ledger_ids):
        try:
            await ledgers.create(metadata, LedgerId(number), creator_token=1)
        except IncorrectParameterError:
            assert manager is ManagerType.FLAT
            assert number > 9_999_999_999
    found = [ledger_ids async for ledger_ids in ledgers.ranges()]
    await tree.close()
    return found


@pytest.mark.parametrize("manager", ["hierarchical", "longhierarchical", "flat"])
def test_ledger_ranges(manager: str) -> None:
    case = section("ledger_ranges")
    assert asyncio.run(list_ranges(ManagerType(manager), case["ids"])) == case[manager]


def test_gc_over_ranges() -> None:
    case = section("gc_over_ranges")
    plan = GarbagePlan(map(LedgerId, case["local_ledgers"]))
    for ledger_ids in case["metadata_ranges"]:
        plan.add_range(ledger_ids)
    assert plan.finish() == case["deleted"]


@each("rack_adherence")
def test_rack_adherence(case: dict[str, Any]) -> None:
    found = rack_adherence(
        case["racks"],
        case["ensemble"],
        case["write_quorum"],
        min_racks_per_write_quorum=case["min_racks"],
        enforce=case["enforce"],
    )
    assert found.name == case["result"]


@each("layout", "valid")
def test_layout_is_written_and_read(case: dict[str, Any]) -> None:
    fields = case["input"]
    expected = layout.Layout(
        fields["manager_factory_class"], fields["manager_version"], fields["layout_format_version"]
    )
    assert layout.encode(expected) == case["text"].encode() == bytes.fromhex(case["hex"])
    assert layout.decode(layout.encode(expected)) == expected
    if "etcd" in expected.factory:
        with pytest.raises(CorruptDataError):
            _ = expected.manager
    else:
        assert expected.manager.value.replace("legacy", "").replace("long", "") in expected.factory.lower()


@each("layout", "also_parsed")
def test_layout_with_a_newline_is_read(case: dict[str, Any]) -> None:
    assert layout.decode(case["text"].encode()) == layout.DEFAULT_LAYOUT


@each("layout", "invalid")
def test_invalid_layout_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(CorruptDataError):
        layout.decode(case["text"].encode())


def cookie_of(fields: Mapping[str, Any]) -> cookie.Cookie:
    return cookie.make_cookie(
        fields["bookie_id"],
        fields["journal_dirs"],
        fields["ledger_dirs"],
        fields.get("instance_id"),
        fields.get("index_dirs", ()),
    )


@each("cookies", "valid")
def test_cookie_is_written_and_read(case: dict[str, Any]) -> None:
    expected = cookie_of(case["input"])
    assert cookie.encode(expected) == case["text"].encode() == bytes.fromhex(case["hex"])
    assert cookie.decode(bytes.fromhex(case["hex"])) == expected
    assert cookie.split_directories(expected.ledger_dirs) == case["input"]["ledger_dirs"]


def test_legacy_cookies() -> None:
    legacy = {case["name"]: case for case in section("cookies", "legacy")}
    assert len(legacy) == 3
    layout_5 = cookie_of(section("cookies", "valid")[0]["input"])
    layout_4 = cookie.decode(legacy["layout-4"]["text"].encode())
    assert layout_4.layout_version == 4
    assert cookie.differences(layout_5, layout_4, allow_expansion=False) == []
    assert cookie.encode(layout_4) == legacy["layout-4"]["text"].encode()

    parsed = legacy["layout-3"]["parsed"]
    layout_3 = cookie.decode(legacy["layout-3"]["text"].encode())
    assert layout_3 == cookie.Cookie(
        parsed["bookie_id"], parsed["journal_dir"], parsed["ledger_dirs"], None, None, layout_version=3
    )
    assert cookie.encode(layout_3) == legacy["layout-3"]["text"].encode()

    layout_2 = cookie.decode(legacy["layout-2"]["text"].encode())
    assert layout_2.layout_version == 2
    assert [d.field for d in cookie.differences(layout_5, layout_2, allow_expansion=True)] == [
        "layoutVersion"
    ]
    with pytest.raises(BadInputError):
        cookie.encode(layout_2)


@each("cookies", "verify")
def test_cookie_verification(case: dict[str, Any]) -> None:
    found = cookie.differences(
        cookie_of(case["master"]), cookie_of(case["stored"]), allow_expansion=case["allow_expansion"]
    )
    assert (found == []) == case["ok"], found


@each("bookie_service_info", "encode")
def test_service_info(case: dict[str, Any]) -> None:
    endpoints = tuple(
        Endpoint(**fields | {name: tuple(fields.get(name, ())) for name in ("auth", "extensions")})
        for fields in case["input"]["endpoints"]
    )
    info = BookieServiceInfo(endpoints, dict(case["input"].get("properties", [])))
    assert service_info.encode(info) == bytes.fromhex(case["hex"])
    assert service_info.decode(bytes.fromhex(case["hex"]), BookieId("b:1")) == info


@each("bookie_service_info", "decode_legacy")
def test_service_info_of_old_bookies(case: dict[str, Any]) -> None:
    data, name = bytes.fromhex(case["hex"]), BookieId(case["bookie_id"])
    if "error" in case:
        with pytest.raises(CorruptDataError):
            service_info.decode(data, name)
        return
    (endpoint,) = service_info.decode(data, name).endpoints
    assert {field: getattr(endpoint, field) for field in ("id", "host", "port", "protocol")} == {
        field: case["endpoint"][field] for field in ("id", "host", "port", "protocol")
    }
    assert endpoint.auth == endpoint.extensions == ()


@each("underreplicated_ledger", "encode")
def test_underreplicated_ledger(case: dict[str, Any]) -> None:
    ledger = UnderreplicatedLedger(tuple(case["input"]["replicas"]), case["input"]["ctime"])
    assert underreplication.encode_ledger(ledger) == bytes.fromhex(case["hex"]) == case["text"].encode()
    assert underreplication.decode_ledger(bytes.fromhex(case["hex"])) == ledger


@each("underreplicated_ledger", "merge")
def test_marking_a_ledger_again(case: dict[str, Any]) -> None:
    existing = underreplication.decode_ledger(case["existing"].encode())
    merged = existing.with_missing(case["add"], case["now"])
    if case["result"] is None:
        assert merged is None
    else:
        assert merged is not None
        assert underreplication.encode_ledger(merged).decode() == case["result"]


def test_small_znodes() -> None:
    nodes = section("small_znodes")
    ur_layout = nodes["ur_layout"]
    assert underreplication.LAYOUT == bytes.fromhex(ur_layout["hex"]) == ur_layout["text"].encode()
    underreplication.check_layout(underreplication.LAYOUT)
    for case in nodes["lock_data"] + nodes["auditor_vote"]:
        data = bytes.fromhex(case["hex"])
        assert data.decode() == case["text"]
        assert underreplication.encode_bookie(underreplication.decode_bookie(data)) == data
    votes = nodes["auditor_order"]
    order = underreplication.vote_order(votes["children"])
    assert order[0] == votes["auditor"]
    assert dict(zip(order[1:], order, strict=False)) == votes["watches"]
    for case in nodes["lost_bookie_recovery_delay"]:
        assert underreplication.encode_recovery_delay(case["seconds"]) == case["text"].encode()
        assert underreplication.decode_recovery_delay(case["text"].encode()) == case["seconds"]
    for case in nodes["ctime_nodes"]:
        data = bytes.fromhex(case["hex"])
        assert underreplication.decode_check_time(data) == case["ctime_ms"]
        if data:
            assert underreplication.encode_check_time(case["ctime_ms"]) == data
    instance_id = nodes["instance_id"]
    assert bytes.fromhex(instance_id["hex"]) == instance_id["text"].encode()


def test_bookie_ids() -> None:
    ids = section("bookie_ids")
    for text in ids["valid"]:
        assert bookie_id.parse(text) == text
    for text in ids["invalid"]:
        with pytest.raises(BadInputError):
            bookie_id.parse(text)


@each("metadata_service_uri")
def test_metadata_service_uri(case: dict[str, Any]) -> None:
    # The deprecated metastore is refused right here: nothing behind a URI could serve it.
    if case.get("error") or case.get("manager") == "ms":
        with pytest.raises(BadInputError, match=r"accepted|names no"):
            service_uri.parse(case["uri"])
        return
    uri = service_uri.parse(case["uri"])
    assert uri.driver is service_uri.Driver.ZOOKEEPER
    if "pulsar" in case:
        assert uri.pulsar
        assert "zk:" + uri.servers == case["pulsar"]["store"]
        assert uri.root == case["pulsar"]["root"]
    else:
        manager = case["manager"]
        assert (uri.servers, uri.root) == (case["servers"], case["root"])
        assert uri.manager is (None if manager is None else ManagerType(manager))


def test_pulsar_rack_mapping() -> None:
    case = section("pulsar_rack_mapping")
    assert case["znode"] == rack_map.RACK_MAP_PATH
    racks = rack_map.decode(json.dumps(case["json"]).encode())
    assert {name: racks.get(name) for name in case["resolve"]} == case["resolve"]


@each("fragment_bounds")
def test_fragment_bounds(case: dict[str, Any]) -> None:
    found = stored_bounds(
        case["ensemble"], case["write_quorum"], case["bookie_index"], case["first_entry"], case["last_known"]
    )
    assert found == (case["first_stored"], case["last_stored"])


def test_failed_ledger_backoff() -> None:
    case = section("failed_ledger_backoff")
    period_ms = case["lockReleaseOfFailedLedgerGracePeriod_ms"]
    delays = case["delay_by_failure_count"]
    assert [failed_ledger_backoff_ms(n, period_ms) for n in range(len(delays))] == delays


def test_every_refusal_is_an_error_of_ours() -> None:
    """Cutting any vector anywhere never lets a foreign exception out."""
    for case in section("ledger_metadata") + section("ledger_metadata_lenient"):
        data = bytes.fromhex(case["hex"])
        for end in range(len(data)):
            try:
                ledger_metadata.decode(data[:end])
            except BkctlError:
                pass
