"""What is committed leads somewhere, and only where anybody can follow."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from project.documents import ROOT

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
# Put together, so that this file does not contain them.
_REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"), ("files", "pythonhosted", "org"), ("registry", "npmjs", "org"), ("crates", "io"),
        ("repo1", "maven", "org"), ("repo", "maven", "apache", "org"), ("proxy", "golang", "org"),
        ("deb", "debian", "org"), ("deb", "nodesource", "com"),
    )
]  # fmt: skip
_PLACES = [f"/{place}/" for place in ("work", "root/work")]
_UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")))


@cache
def committed() -> tuple[Path, ...]:
    """Files that git keeps, or would."""
    asked = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(path for name in told.split("\0") if name and (path := ROOT / name).is_file())


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every committed file that is text."""
    for path in committed():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def documents() -> list[Path]:
    return [path for path in committed() if path.suffix == ".md"]


def anchors(document: Path) -> set[str]:
    """The headings as a browser reaches them."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in _HEADING.findall(text)
    }


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"{document.relative_to(ROOT)}: {link} is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{document.relative_to(ROOT)}: {link} has no such heading"


def test_no_document_is_an_orphan() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document in reached:
            continue
        reached.add(document)
        for link in _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
            target = (document.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists():
                waiting.append(target)

    public = {path for path in documents() if ROOT / "docs" in path.parents}
    assert public <= reached


def test_nothing_names_a_package_registry() -> None:
    found = [(name, host) for name, text in texts() for host in _REGISTRIES if host in text]

    assert not found


def test_nothing_names_a_place_on_somebodys_machine() -> None:
    found = [(name, place) for name, text in texts() for place in _PLACES if place in text]

    assert not found


def test_nothing_is_left_for_later() -> None:
    own = ("dashboards/live/package-lock.json", "requirements.lock")
    found = [
        (name, match[0]) for name, text in texts() if name not in own and (match := _UNFINISHED.search(text))
    ]

    assert not found
