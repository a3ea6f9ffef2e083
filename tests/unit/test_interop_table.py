"""docs/interop.md says what the interop suite holds."""

from pathlib import Path

from tests.interop.matrix import claims, sentence

_TABLE = Path(__file__).parents[2] / "docs" / "interop.md"


def test_the_table_has_a_row_for_every_claim_and_no_failure() -> None:
    text = _TABLE.read_text()
    for title, tests in claims().values():
        assert f"## {title}\n" in text
        for test in tests:
            assert f"| {sentence(test)} |" in text, f"run `make interop-table`: {test} is missing"
    assert "**" not in text, "a claim does not hold"
    assert "not run" not in text
