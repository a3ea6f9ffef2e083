"""The golden data: test vectors, and files and captures written by Apache BookKeeper 4.18.

`tests/golden/data/apache-4.18.0-SNAPSHOT.tar.xz` holds bookie directories, znode dumps, wire
captures and shell output of the real thing; its README.md says how each was made. It is unpacked
once per test run into a directory that goes away with the process.
"""

import json
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "golden" / "data"


@cache
def vectors(name: str) -> Any:
    """`vectors-<name>.json`: name is wire, storage or metadata."""
    return json.loads((DATA / f"vectors-{name}.json").read_text())


@cache
def _unpacked() -> tempfile.TemporaryDirectory[str]:
    directory = tempfile.TemporaryDirectory(prefix="bkctl-golden-", ignore_cleanup_errors=True)
    with tarfile.open(DATA / "apache-4.18.0-SNAPSHOT.tar.xz") as archive:
        # The filter came with 3.11.4, and 3.12 warns without it.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(directory.name, **safely)
    return directory


def fixture_path(*parts: str) -> Path:
    """A path below the golden files; treat them as read-only and copy what a test changes."""
    path = Path(_unpacked().name, "apache-4.18.0-SNAPSHOT", *parts)
    assert path.exists(), f"golden data is missing: {path}"
    return path
