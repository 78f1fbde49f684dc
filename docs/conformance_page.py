"""Writes docs/reference/conformance.md: what the API claims, and which tests hold each claim.

A test names the requirements that it holds in its docstring, by the part of their URIs from `req/` on; `*` stands for
one segment. A test of the project fails when the page is stale, and when a claim has no test.
"""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from api.sensorthings import requirements
from api.sensorthings.requirements import (
    BASE,
    MQTT_CLASSES,
    TASKING_BASE,
    TASKING_CLASSES,
    TASKING_MQTT_CLASSES,
)

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "conformance"
PAGE = ROOT / "docs" / "reference" / "conformance.md"
_NAMED = re.compile(r"\breq/([\w*/-]*[\w*])")
_TASKING = TASKING_CLASSES | TASKING_MQTT_CLASSES
_FURTHER = {  # one class has the same name in both parts
    name: (*MQTT_CLASSES.get(name, ()), *_TASKING.get(name, ())) for name in MQTT_CLASSES | _TASKING
}
CLASSES = requirements.CLASSES | _FURTHER
HELD = (*requirements.HELD, *_FURTHER, *(name for names in _FURTHER.values() for name in names))
_WRITTEN = "<!-- Written by docs/conformance_page.py. Change requirements.py or the tests, not this page. -->"


def named() -> Iterator[tuple[str, str]]:
    """Each requirement that a test names, as it names it, and the test."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for name in _NAMED.findall(ast.get_docstring(node) or ""):
                    yield name, f"{file.relative_to(TESTS)}::{node.name}"


def holding() -> dict[str, list[str]]:
    """The tests of each claim. A requirements class is held by those of its requirements."""
    found = list(named())
    tests: dict[str, list[str]] = {}
    for claim in HELD:
        parts = CLASSES.get(claim, (claim,))
        tests[claim] = sorted({test for name, test in found for part in parts if _matches(part, name)})
    return tests


def _matches(claim: str, name: str) -> bool:
    return claim.count("/") == name.count("/") and fnmatchcase(claim, name)


def unheld() -> list[str]:
    """Claims that no test names; of a class, its requirements count one by one."""
    tests = holding()
    return [claim for claim in HELD if claim not in CLASSES and not tests[claim]]


def page() -> str:
    """The page."""
    tests = holding()
    lines = [
        _WRITTEN,
        "",
        "# Conformance",
        "",
        "What the API claims on its landing page (`serverSettings.conformance`), and the tests under",
        "`tests/conformance/` that hold it, black box over HTTP and MQTT, on the embedded and on the real engines.",
        f"Every URI begins with `{BASE}`; those of Part 2,",
        f"Tasking ({', '.join(f'`{name}`' for name in _TASKING)}), with `{TASKING_BASE}`.",
        "",
        f"Requirements classes of which everything holds: {', '.join(f'`{name}`' for name in CLASSES)}.",
        "",
    ]
    for group in dict.fromkeys(claim.partition("/")[0] for claim in HELD):
        lines += [f"## {group}", "", "| requirement | tests |", "|---|---|"]
        for claim in HELD:
            if claim not in CLASSES and claim.partition("/")[0] == group:
                lines.append(f"| `{claim}` | {'<br>'.join(f'`{test}`' for test in tests[claim])} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
