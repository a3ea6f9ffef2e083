"""The cookie vectors of vectors-storage.json."""

from typing import Any

import pytest

from bkctl.formats import cookie
from tests.shared_data import vectors

VECTORS = vectors("storage")


def test_no_vector_is_forgotten() -> None:
    assert (len(VECTORS["cookie"]), len(VECTORS["cookie_parse"])) == (3, 2)


@pytest.mark.parametrize("case", VECTORS["cookie"])
def test_cookie_is_written_and_read(case: dict[str, Any]) -> None:
    expected = cookie.make_cookie(
        case["bookieHost"],
        case["journalDirs"],
        case["ledgerDirs"],
        case["instanceId"],
        case["indexDirs"] or (),
    )
    assert expected.layout_version == case["version"]
    assert cookie.encode(expected).decode() == case["text"]
    assert cookie.decode(case["text"].encode()) == expected


@pytest.mark.parametrize("case", VECTORS["cookie_parse"])
def test_cookie_of_old_or_free_form_is_read(case: dict[str, Any]) -> None:
    found = cookie.decode(case["text"].encode())
    assert {
        "version": found.layout_version,
        "bookieHost": found.bookie_id,
        "journalDir": found.journal_dirs,
        "ledgerDirs": found.ledger_dirs,
        "instanceId": found.instance_id,
        "indexDirs": found.index_dirs,
    } == case["expect"]
