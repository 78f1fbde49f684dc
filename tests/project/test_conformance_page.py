"""Every claim of the API has tests, and the page that says which is up to date."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "conformance_page.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("citylab_conformance_page", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_claim_has_tests(script):
    assert script.unheld() == []


def test_a_claim_without_a_test_would_be_found(script, monkeypatch):
    claims = (
        *script.HELD,
        "request-data/what-nobody-tests",
        "request-data",
    )  # no test of a part holds for another
    monkeypatch.setattr(script, "HELD", claims)
    assert script.unheld() == ["request-data/what-nobody-tests", "request-data"]


def test_the_page_is_what_would_be_written_now(script):
    assert script.PAGE.read_text() == script.page(), "it is stale: python docs/conformance_page.py"
