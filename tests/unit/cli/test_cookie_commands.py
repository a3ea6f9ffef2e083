"""`bkctl cookie`: what metadata store, directories and configuration say, and where they differ."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bkctl.formats import cookie as cookie_format
from bkctl.metadata.cluster import read_instance_id
from bkctl.metadata.store import MetadataStore
from bkctl.types import BookieId
from tests.unit.cli.conftest import Bkctl, Result
from tests.unit.offline.bookie_disks import untouched

BOOKIE = BookieId("b1")


def items(result: Result, code: int = 0) -> list[dict[str, Any]]:
    assert result.code == code, result.err
    return json.loads(result.out)["items"]  # type: ignore[no-any-return]


class Bookie:
    """A bookie that was started once: its directories, cookies in them and in the store."""

    def __init__(self, home: Path, uri: str) -> None:
        self.uri = uri
        self.journal, self.ledgers = str(home / "journal"), [str(home / "l1"), str(home / "l2")]
        self.instance_id = asyncio.run(self._instance_id())
        self.cookie = cookie_format.make_cookie(BOOKIE, [self.journal], self.ledgers, self.instance_id)
        for name in (self.journal, *self.ledgers):
            (Path(name) / "current").mkdir(parents=True)
            self.version(name).write_bytes(cookie_format.encode(self.cookie))
        self.store(cookie_format.encode(self.cookie))

    def version(self, directory: str) -> Path:
        return Path(directory) / "current" / "VERSION"

    def diff(self, **changes: Any) -> tuple[str, ...]:
        ledgers = changes.get("ledgers", self.ledgers)
        options = ["-j", changes.get("journal", self.journal), *(x for name in ledgers for x in ("-l", name))]
        uri = ["-u", changes["uri"]] if "uri" in changes else ["-u", self.uri]
        return ("cookie", "diff", changes.get("bookie", BOOKIE), *options, *uri, "-o", "json")

    def store(self, data: bytes | None, bookie_id: str = BOOKIE) -> None:
        async def write() -> None:
            store = await MetadataStore.open(self.uri)
            path = f"{store.root}/cookies/{bookie_id}"
            if await store.tree.exists(path) is not None:
                await store.tree.delete(path, -1)
            if data is not None:
                await store.tree.create(path, data, parents=True)
            await store.close()

        asyncio.run(write())

    async def _instance_id(self) -> str | None:
        store = await MetadataStore.open(self.uri)
        try:
            return await read_instance_id(store.tree, store.root)
        finally:
            await store.close()


@pytest.fixture
def bookie(tmp_path: Path, uri: str) -> Bookie:
    return Bookie(tmp_path / "b1", uri)


def differing(rows: list[dict[str, Any]]) -> dict[str, str]:
    """{field: proposed fix}"""
    assert all((row["fix"] is None) == row["same"] for row in rows)
    return {row["field"]: row["fix"] for row in rows if not row["same"]}


def test_list_has_one_row_for_each_bookie_and_names_a_damaged_one(bkctl: Bkctl, bookie: Bookie) -> None:
    command = ("cookie", "list", "-u", bookie.uri, "-o", "json")
    [row] = items(bkctl(*command))
    assert row == {
        "bookie_id": "b1", "layout_version": 5, "journal_directories": bookie.journal,
        "ledger_directories": "\t".join(["2", *bookie.ledgers]), "index_directories": None,
        "instance_id": bookie.instance_id,
    }  # fmt: skip
    bookie.store(b"5\nnonsense", "b0")
    damaged, whole = items(bkctl(*command), 9)
    assert whole == row
    assert (damaged["bookie_id"], "cookies/b0" in damaged["error"]) == ("b0", True)


def test_show_prints_a_cookie_and_its_exact_text(bkctl: Bkctl, bookie: Bookie) -> None:
    text = cookie_format.encode(bookie.cookie).decode()
    places = [("b1", "-u", bookie.uri), ("--dir", bookie.journal), ("--dir", f"{bookie.ledgers[0]}/current")]
    for place in places:
        [row] = items(bkctl("cookie", "show", *place, "-o", "json"))
        assert (row["bookie_id"], row["instance_id"]) == ("b1", bookie.instance_id)
        result = bkctl("cookie", "show", *place, "--raw")
        assert (result.code, result.out) == (0, text)
    bookie.store(b"5\nodd")
    assert bkctl("cookie", "show", "b1", "-u", bookie.uri).code == 7
    assert "odd" in bkctl("cookie", "show", "b1", "-u", bookie.uri, "--raw").out


def test_show_of_what_is_not_there_is_not_found(bkctl: Bkctl, bookie: Bookie, tmp_path: Path) -> None:
    assert bkctl("cookie", "show", "b2", "-u", bookie.uri).code == 3
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent", "metadata.db"):
        result = bkctl("cookie", "show", "--dir", str(tmp_path / name))
        assert (result.code, result.out, result.err.count("\n")) == (3, "", 1)
        assert name in result.err
    assert bkctl("cookie", "show").code == 2
    assert bkctl("cookie", "show", "b1", "--dir", bookie.journal).code == 2


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"five\n", b"\x00" * 100, b"1\n", b"5\nbookieHost: \"b1", b"5\nbookieHost: \"b1\"\n",
        b"3\nb1\n", b"5\n" + b"x" * (2 << 20), b"99999999999\n", b"5\n{}{}{}",
    ],
)  # fmt: skip
def test_a_version_file_that_is_no_cookie_is_one_clear_line(
    bkctl: Bkctl, bookie: Bookie, content: bytes
) -> None:
    path = bookie.version(bookie.ledgers[1])
    path.write_bytes(content)
    with untouched(path.parent):
        result = bkctl("cookie", "show", "--dir", bookie.ledgers[1])
        assert (result.code, result.out, result.err.count("\n")) == (7, "", 1)
        assert str(path) in result.err
        fixes = differing(items(bkctl(*bookie.diff()), 7))
    assert list(fixes) == ["cookie"]
    assert bookie.ledgers[1] in fixes["cookie"]


def test_a_layout_before_3_is_named(bkctl: Bkctl, bookie: Bookie) -> None:
    bookie.version(bookie.journal).write_bytes(b"2\n")
    fixes = differing(items(bkctl(*bookie.diff()), 8))
    assert "before 3" in fixes["layout_version"]


def test_a_newer_layout_is_shown_as_far_as_it_is_known(bkctl: Bkctl, bookie: Bookie) -> None:
    path = bookie.version(bookie.journal)
    path.write_bytes(path.read_bytes().replace(b"5\n", b"6\n", 1) + b'color: "blue"\n')
    [row] = items(bkctl("cookie", "show", "--dir", bookie.journal, "-o", "json"))
    assert (row["layout_version"], row["bookie_id"]) == (6, "b1")


def test_equal_cookies_exit_0_and_nothing_is_written(bkctl: Bkctl, bookie: Bookie) -> None:
    with untouched(Path(bookie.journal).parent):
        rows = items(bkctl(*bookie.diff()))
    assert differing(rows) == {}
    assert {row["field"]: row["configured"] for row in rows} == {
        "cookie": "present", "bookie_id": "b1", "journal_directories": bookie.journal,
        "ledger_directories": bookie.cookie.ledger_dirs, "instance_id": bookie.instance_id,
        "layout_version": "5",
    }  # fmt: skip
    assert all(set(row["directories"].values()) == {row["configured"]} for row in rows)


def test_each_differing_field_is_named_with_its_fix(bkctl: Bkctl, bookie: Bookie, tmp_path: Path) -> None:
    one, two = bookie.ledgers
    fixes = differing(items(bkctl(*bookie.diff(ledgers=[two, one])), 8))
    assert list(fixes) == ["ledger_directories"]
    assert f"configure ledgerDirectories={one},{two}" in fixes["ledger_directories"]
    assert "old order" in fixes["ledger_directories"]
    assert (
        "compare text"
        in differing(items(bkctl(*bookie.diff(ledgers=[f"{one}/", two])), 8))["ledger_directories"]
    )

    fixes = differing(items(bkctl(*bookie.diff(ledgers=[one, two, str(tmp_path / "l3")])), 8))
    assert "without what was added" in fixes["ledger_directories"]
    assert f"{tmp_path / 'l3'} is missing" in fixes["cookie"]

    fixes = differing(items(bkctl(*bookie.diff(journal=two)), 8))
    assert f"journalDirectories={bookie.journal}" in fixes["journal_directories"]


def test_another_bookies_directory_is_named(bkctl: Bkctl, bookie: Bookie) -> None:
    path = bookie.version(bookie.ledgers[1])
    path.write_bytes(path.read_bytes().replace(b'"b1"', b'"b7"'))
    [(field, fix)] = differing(items(bkctl(*bookie.diff()), 8)).items()
    assert field == "bookie_id"
    assert fix.startswith(f"{bookie.ledgers[1]} says b7")


def test_an_identity_that_the_configuration_changed_is_named(bkctl: Bkctl, bookie: Bookie) -> None:
    """As in Kubernetes, when a pod's address became the identity."""
    command = [
        *bookie.diff(),
        "--advertised-address",
        "127.0.0.1",
        "-p",
        "4000",
        "--set",
        "allowLoopback=true",
    ]
    rows = items(bkctl(*command), 8)
    [(field, fix)] = differing(rows).items()
    assert (field, "bookieId=b1" in fix) == ("bookie_id", True)
    assert next(row["configured"] for row in rows if row["field"] == field) == "127.0.0.1:4000"


def test_an_empty_disk_is_told_from_a_new_bookie(bkctl: Bkctl, bookie: Bookie) -> None:
    bookie.version(bookie.ledgers[0]).unlink()
    [(field, fix)] = differing(items(bkctl(*bookie.diff()), 8)).items()
    assert (field, bookie.ledgers[0] in fix, "mount" in fix) == ("cookie", True, True)
    bookie.version(bookie.ledgers[1]).unlink()
    bookie.version(bookie.journal).unlink()
    bookie.store(None)
    assert differing(items(bkctl(*bookie.diff()))) == {}


def test_a_cookie_that_the_metadata_store_lacks_or_cannot_read_is_told(bkctl: Bkctl, bookie: Bookie) -> None:
    bookie.store(None)
    [(field, fix)] = differing(items(bkctl(*bookie.diff()), 8)).items()
    assert (field, "no cookie of b1" in fix) == ("cookie", True)
    bookie.store(b"garbage")
    [(field, fix)] = differing(items(bkctl(*bookie.diff()), 7)).items()
    assert (field, "damaged" in fix) == ("cookie", True)


def test_the_metadata_store_of_another_cluster_is_told(bkctl: Bkctl, bookie: Bookie, tmp_path: Path) -> None:
    other = f"sqlite://{tmp_path}/other.db"
    assert bkctl("cluster", "init", "-u", other).code == 0
    fixes = differing(items(bkctl(*bookie.diff(uri=other)), 8))
    assert set(fixes) == {"cookie", "instance_id"}
    assert f"belong to cluster {bookie.instance_id}" in fixes["instance_id"]


def test_without_metadata_the_rest_is_compared_and_the_code_is_6(
    bkctl: Bkctl, bookie: Bookie, tmp_path: Path
) -> None:
    absent = f"sqlite://{tmp_path}/absent.db"
    result = bkctl(*bookie.diff(uri=absent))
    rows = items(result, 6)
    assert differing(rows) == {}
    assert {row["metadata"] for row in rows} == {None}
    assert "without the metadata store" in result.err
    arguments = [part for part in bookie.diff() if part not in ("-u", bookie.uri)]
    result = bkctl(*arguments)
    assert (result.code, "no metadata store is named" in result.err) == (6, True)
    assert bkctl(*bookie.diff(uri=absent, ledgers=bookie.ledgers[::-1])).code == 8
    assert not (tmp_path / "absent.db").exists()


def test_diff_needs_directories(bkctl: Bkctl, uri: str) -> None:
    assert bkctl("cookie", "diff", "b1", "-u", uri).code == 2
