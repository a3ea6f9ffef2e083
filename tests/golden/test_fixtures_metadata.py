"""Every znode and cookie file that Apache BookKeeper wrote: decoded by its kind, written back alike."""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bkctl.formats import cookie, layout, ledger_metadata, ledger_path, service_info, underreplication
from bkctl.formats.ledger_path import ManagerType
from bkctl.types import BookieId, DigestType, LedgerMetadata, MetadataState
from tests.shared_data import fixture_path

TREES = {
    "zk/tree-running.json": "/ledgers",
    "zk/tree-at-sigkill.json": "/ledgers",
    "zk/tree-autorecovery-idle.json": "/ledgers",
    "zk/tree-underreplicated.json": "/ledgers",
    "bookie-sorted/tree.json": "/sorted2ledgers",
}


def nodes_of(tree: str) -> list[tuple[str, bytes]]:
    """(path below the root, data)"""
    root = TREES[tree]
    nodes = json.loads(fixture_path(tree).read_text())
    assert nodes[0]["path"] == root
    return [(node["path"].removeprefix(root), base64.b64decode(node["data"] or "")) for node in nodes]


def check_layout(path: str, data: bytes) -> None:
    assert layout.decode(data) == layout.DEFAULT_LAYOUT
    assert layout.encode(layout.decode(data)) == data


def check_instance_id(path: str, data: bytes) -> None:
    assert re.fullmatch(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", data)


def check_service_info(path: str, data: bytes) -> None:
    bookie_id = BookieId(path.rpartition("/")[2])
    info = service_info.decode(data, bookie_id)
    assert str(info.bookie_rpc_address) == bookie_id
    assert service_info.encode(info) == data


def check_cookie(path: str, data: bytes) -> None:
    found = cookie.decode(data)
    assert found.bookie_id == path.rpartition("/")[2]
    assert cookie.encode(found) == data


def check_ledger(path: str, data: bytes) -> None:
    ledger_id = ledger_path.parse_ledger_path("", ManagerType.HIERARCHICAL, path)
    assert ledger_path.ledger_path("", ManagerType.HIERARCHICAL, ledger_id) == path
    metadata = ledger_metadata.decode(data)
    assert ledger_metadata.encode(metadata) == data


def check_marked_ledger(path: str, data: bytes) -> None:
    ledger_id = underreplication.ledger_id_of(path.rpartition("/")[2])
    assert underreplication.ledger_path("", ledger_id) == path
    ledger = underreplication.decode_ledger(data)
    assert ledger.replicas
    assert ledger.ctime_ms is not None
    assert underreplication.encode_ledger(ledger) == data


def check_lock(path: str, data: bytes) -> None:
    ledger_id = underreplication.ledger_id_of(path.rpartition("/")[2])
    assert underreplication.lock_path("", ledger_id) == path
    check_vote(path, data)


def check_vote(path: str, data: bytes) -> None:
    assert underreplication.encode_bookie(underreplication.decode_bookie(data)) == data


def check_underreplication_layout(path: str, data: bytes) -> None:
    underreplication.check_layout(data)
    assert data == underreplication.LAYOUT


def check_time(path: str, data: bytes) -> None:
    assert underreplication.decode_check_time(data) > 0
    assert underreplication.encode_check_time(underreplication.decode_check_time(data)) == data


def check_delay(path: str, data: bytes) -> None:
    assert underreplication.decode_recovery_delay(data) == 0


def check_empty(path: str, data: bytes) -> None:
    assert data == b""


KINDS: list[tuple[str, str, Callable[[str, bytes], None]]] = [
    ("layout", r"/LAYOUT", check_layout),
    ("instance id", r"/INSTANCEID", check_instance_id),
    ("directory", r"|/available|/available/readonly|/cookies|/idgen", check_empty),
    ("service info", r"/available/(readonly/)?[^/]+:\d+", check_service_info),
    ("cookie", r"/cookies/.+", check_cookie),
    ("ledger", r"(/[0-9]+){2,4}/L[0-9]{4}", check_ledger),
    ("ledger parent", r"(/[0-9]+){1,4}", check_empty),
    ("underreplication layout", r"/underreplication/LAYOUT", check_underreplication_layout),
    ("underreplication parent", r"/underreplication(/ledgers(/[0-9a-f]{4})*|/locks)?", check_empty),
    ("marked ledger", r"/underreplication/ledgers/.*/urL\d+", check_marked_ledger),
    ("lock", r"/underreplication/locks/urL\d+", check_lock),
    ("vote", r"/underreplication/auditorelection(/V_\d+)?", check_vote),
    (
        "check time",
        r"/underreplication/(checkallledgers|placementpolicycheck|replicascheck)ctime",
        check_time,
    ),
    ("recovery delay", r"/underreplication/lostBookieRecoveryDelay", check_delay),
]


@pytest.mark.parametrize("tree", TREES)
def test_every_node_is_read_and_written_alike(tree: str) -> None:
    seen: Counter[str] = Counter()
    for path, data in nodes_of(tree):
        for name, pattern, check in KINDS:
            if re.fullmatch(pattern, path):
                check(path, data)
                seen[name] += 1
                break
        else:
            pytest.fail(f"a node of no known kind: {path}")
    assert seen["ledger"] == {"bookie-sorted/tree.json": 9, "zk/tree-running.json": 19}.get(tree, 22)
    assert seen["marked ledger"] == (22 if tree == "zk/tree-underreplicated.json" else 0)
    assert seen["lock"] == (4 if tree == "zk/tree-underreplicated.json" else 0)


def summary(metadata: LedgerMetadata) -> dict[str, Any]:
    """As expected.json has it, without what it takes from elsewhere (creation time of the node)."""
    return {
        "formatVersion": metadata.format_version,
        "state": metadata.state.name,
        "ensembleSize": metadata.ensemble_size,
        "writeQuorumSize": metadata.write_quorum_size,
        "ackQuorumSize": metadata.ack_quorum_size,
        "lastEntryId": metadata.last_entry_id if metadata.closed else None,
        "length": metadata.length if metadata.closed else None,
        "ensembles": {str(segment.first_entry_id): list(segment.ensemble) for segment in metadata.segments},
        "digestType": metadata.digest_type and metadata.digest_type.name,
    }


@pytest.mark.parametrize(
    ("expected", "tree"),
    [
        ("expected.json", "zk/tree-running.json"),
        ("expected-sigkill.json", "zk/tree-at-sigkill.json"),
        ("bookie-sorted/expected.json", "bookie-sorted/tree.json"),
    ],
)
def test_ledger_metadata_means_what_java_read(expected: str, tree: str) -> None:
    stored = {
        ledger_path.parse_ledger_path("", ManagerType.HIERARCHICAL, path): ledger_metadata.decode(data)
        for path, data in nodes_of(tree)
        if re.fullmatch(r"(/[0-9]+)+/L[0-9]+", path)
    }
    ledgers = json.loads(fixture_path(expected).read_text())
    assert ledgers
    for ledger in ledgers:
        if ledger["metadata"] is None:
            assert ledger["ledgerId"] not in stored
            continue
        metadata = stored[ledger["ledgerId"]]
        wanted = {k: v for k, v in ledger["metadata"].items() if k != "ctime"}
        assert summary(metadata) == wanted
        if metadata.format_version > 1:
            assert metadata.password == ledger["password"].encode()
            assert metadata.digest_type is DigestType[ledger["digestType"]]
        custom = {k: base64.b64decode(v) for k, v in ledger.get("customMetadataBase64", {}).items()}
        assert metadata.custom_metadata == custom
        if metadata.state is MetadataState.CLOSED and ledger["entriesWritten"]:
            assert metadata.last_entry_id == ledger["entriesWritten"] - 1


def test_every_version_file_is_the_cookie_of_its_directory() -> None:
    root = fixture_path()
    files = sorted(root.rglob("VERSION"))
    assert len(files) == 10
    for file in files:
        found = cookie.decode(file.read_bytes())
        assert cookie.encode(found) == file.read_bytes()
        kind = file.relative_to(root).parts[-3]  # journal or ledgers
        directories = (
            found.journal_dirs.split(",")
            if kind == "journal"
            else cookie.split_directories(found.ledger_dirs)
        )
        assert [directory.rpartition("/")[2] for directory in directories] == [kind]
