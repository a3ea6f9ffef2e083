"""The interop matrix as Markdown: `python -m tests.interop.matrix > docs/interop.md`.

A row per test, named after what it claims; a column per release of Apache BookKeeper that was run.
Each run of `make interop` leaves its results in the cache; nothing is in the table that did not run.
"""

import ast
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
RESULTS = _HERE.parent.parent / ".cache" / "interop" / "results"


def claims() -> dict[str, tuple[str, list[str]]]:
    """{module: (title, test names)} of the tests as they stand in the tree, in order."""
    found = {}
    for path in sorted(_HERE.glob("test_*.py")):
        tree = ast.parse(path.read_text())
        tests = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        ]
        title = (ast.get_docstring(tree) or path.stem).splitlines()[0].rstrip(".")
        found[path.stem] = (title, tests)
    return found


def sentence(test: str) -> str:
    """test_disk_is_kept -> "disk is kept"."""
    return test.removeprefix("test_").replace("_", " ")


def record(version: str, facts: dict[str, str], outcomes: Iterable[tuple[str, str, bool]]) -> None:
    """Keep one run: (module, test, passed) for each case. Modules that did not run keep their results."""
    tests: dict[str, dict[str, list[int]]] = {}
    for module, test, passed in outcomes:
        counts = tests.setdefault(module, {}).setdefault(test, [0, 0])
        counts[0] += passed
        counts[1] += 1
    path = RESULTS / f"{version}.json"
    before = json.loads(path.read_text())["tests"] if path.exists() else {}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"facts": facts, "tests": before | tests}, indent=1))


def render(runs: dict[str, Any]) -> str:
    """`runs` is {version: what `record` kept}."""
    versions = sorted(runs, reverse=True)
    lines = [
        "# Apache BookKeeper and bkctl, both ways",
        "",
        "Written by `make interop-table` from the results of `make interop`: the released Apache",
        "BookKeeper, its bookies, its client and its admin API, against ours. A cell says how many cases of",
        "the test passed, of how many that ran.",
        "",
    ]
    lines += [
        f"- Apache BookKeeper {version}: {', '.join(f'{k} {v}' for k, v in runs[version]['facts'].items())}"
        for version in versions
    ]
    for module, (title, tests) in claims().items():
        lines += ["", f"## {title}", "", f"| | {' | '.join(versions)} |", "|---" * (len(versions) + 1) + "|"]
        for test in tests:
            cells = [_cell(runs[version]["tests"].get(module, {}).get(test)) for version in versions]
            lines.append(f"| {sentence(test)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(counts: list[int] | None) -> str:
    if counts is None:
        return "not run"
    passed, ran = counts
    return f"{passed} of {ran}" if passed == ran else f"**{passed} of {ran}**"


if __name__ == "__main__":
    sys.stdout.write(render({path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}))
