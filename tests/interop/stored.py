"""What a cluster's metadata store holds: through our tree, in our commands' rows, in Java's words."""

import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bkctl.formats.ledger_path import ledger_path
from bkctl.metadata.store import MetadataStore
from bkctl.types import LedgerId, LedgerMetadata
from tests.integration.bookies import bkctl


@contextlib.asynccontextmanager
async def opened(uri: str) -> AsyncIterator[MetadataStore]:
    store = await MetadataStore.open(uri)
    try:
        yield store
    finally:
        await store.close()


async def stored_bytes(store: MetadataStore, ledger_id: LedgerId) -> bytes:
    """Of the ledger's node."""
    path = ledger_path(store.root, store.layout.manager, ledger_id)
    return (await store.tree.get(path)).data


async def stored_tree(store: MetadataStore, path: str) -> dict[str, bytes]:
    """{path below `path`: data} of every node."""
    found = {"": (await store.tree.get(path)).data}
    for name in (await store.tree.children(path))[0]:
        below = await stored_tree(store, f"{path}/{name}")
        found |= {f"/{name}{relative}": data for relative, data in below.items()}
    return found


def rows(*arguments: str) -> list[dict[str, Any]]:
    """The items of a command that must succeed."""
    done = bkctl(*arguments, "-o", "json")
    assert done.returncode == 0, done.stderr.decode()
    found: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return found


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_java(metadata: LedgerMetadata) -> dict[str, Any]:
    """As the driver's `read_metadata` shows it, but for the version; `ctime_ms` None: not stored."""
    named = metadata.password is not None and metadata.digest_type is not None
    return {
        "state": metadata.state.name,
        "ensemble_size": metadata.ensemble_size,
        "write_quorum_size": metadata.write_quorum_size,
        "ack_quorum_size": metadata.ack_quorum_size,
        "digest": metadata.digest_type.name if named and metadata.digest_type else None,
        "password": base64_text(metadata.password) if named and metadata.password is not None else None,
        "format": metadata.format_version,
        "last_entry_id": metadata.last_entry_id if metadata.closed else None,
        "length": metadata.length if metadata.closed else None,
        "ctime_ms": metadata.ctime_ms,
        "creator_token": metadata.creator_token,
        "ensembles": {str(s.first_entry_id): list(s.ensemble) for s in metadata.segments},
        "custom": {key: base64_text(value) for key, value in metadata.custom_metadata.items()},
    }


def shown_by_java(found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `ledger show`, but for its id, made of what the driver's `read_metadata` says."""
    ctime_ms = found["ctime_ms"]
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ctime_ms // 1000))
    return {
        "state": found["state"],
        "ensemble_size": found["ensemble_size"],
        "write_quorum_size": found["write_quorum_size"],
        "ack_quorum_size": found["ack_quorum_size"],
        "digest_type": found["digest"],
        "last_entry_id": found["last_entry_id"],
        "length": found["length"],
        "ctime": f"{seconds}.{ctime_ms % 1000:03d}Z",
        "format_version": found["format"],
        "custom_metadata": {key: _readable(value) for key, value in found["custom"].items()},
        "segments": [
            {"first_entry_id": int(first), "ensemble": ensemble}
            for first, ensemble in found["ensembles"].items()
        ],
    }


def _readable(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except UnicodeDecodeError:
        return f"base64:{text}"
