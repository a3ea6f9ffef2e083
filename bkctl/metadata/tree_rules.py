"""What every driver of the metadata tree accepts, so that any tree can be copied into any other.

Source: upstream ZooKeeper PathUtils.validatePath, and its default packet limit `jute.maxbuffer`.
"""

import re
from collections.abc import Sequence

from bkctl.errors import BadInputError
from bkctl.metadata.api import CreateOp, Op, SetOp

# ZooKeeper drops the connection of whoever sends a packet of 1,048,576 bytes or more; the
# difference is room for the request's other fields.
REQUEST_BYTES_MAX = 1024 * 1024 - 4096
_OP_OVERHEAD_BYTES = 96  # headers and access list of one operation in a ZooKeeper transaction
# Java sees UTF-16: everything above U+FFFF is made of surrogates there, which it refuses.
_ILLEGAL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\U0010ffff]")


def check_path(path: str) -> None:
    """Raises BadInputError unless `path` is absolute, normalized and of legal characters."""
    if path == "/":
        return
    if not path.startswith("/"):
        raise BadInputError(f"metadata path is not absolute: {path!r}")
    if _ILLEGAL.search(path) is not None:
        raise BadInputError(f"metadata path has an illegal character: {path!r}")
    if any(name in ("", ".", "..") for name in path[1:].split("/")):
        raise BadInputError(f"metadata path is not normalized: {path!r}")


def parent_and_name(path: str) -> tuple[str, str]:
    """("/a", "b") of "/a/b". The root has neither: it cannot be created, deleted or renamed."""
    parent, _, name = path.rpartition("/")
    if not name:
        raise BadInputError("the root of the metadata tree always exists")
    return parent or "/", name


def ancestors(path: str) -> list[str]:
    """Every path strictly between the root and `path`, shortest first."""
    return [path[:i] for i, char in enumerate(path) if char == "/" and i]


def check_write(path: str, data: bytes = b"") -> None:
    """Raises BadInputError for a path or a value that no driver stores."""
    check_path(path)
    if len(path.encode()) + len(data) > REQUEST_BYTES_MAX:
        raise BadInputError(
            f"{path[:200]}: {len(data)} bytes are too many for a metadata node (limit {REQUEST_BYTES_MAX})"
        )


def check_multi(ops: Sequence[Op]) -> None:
    """As check_write, for a transaction as a whole."""
    total_bytes = 0
    for op in ops:
        data = op.data if isinstance(op, CreateOp | SetOp) else b""
        check_write(op.path, data)
        total_bytes += len(op.path.encode()) + len(data) + _OP_OVERHEAD_BYTES
    if total_bytes > REQUEST_BYTES_MAX:
        raise BadInputError(
            f"a transaction of {total_bytes} bytes is too large for the metadata store "
            f"(limit {REQUEST_BYTES_MAX})"
        )
