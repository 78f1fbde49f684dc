"""The generated pages of the reference are what the code says."""

import importlib.util
import re
from types import ModuleType

import pytest
from project.documents import ROOT

from citylab.cli import COMMANDS
from citylab.model import Reason
from citylab.settings import PREFIX, Settings

REFERENCE = ROOT / "docs" / "reference"
WRITTEN_ELSEWHERE = {"mqtt.md", "conformance.md"}  # by hand; by tests/project, from the conformance tests


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("citylab_docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "commands.md", "errors.md", "metrics.md"])
def test_a_page_is_what_would_be_written_now(generate: ModuleType, page: str) -> None:
    assert (REFERENCE / page).read_text() == generate.pages()[page], "it is stale: make references"


def test_no_page_is_left_over(generate: ModuleType) -> None:
    assert {page.name for page in REFERENCE.glob("*.md")} == {*generate.pages(), *WRITTEN_ELSEWHERE}


def test_every_setting_is_there(generate: ModuleType) -> None:
    page = generate.pages()["settings.md"]

    for name in Settings.__struct_fields__:
        assert f"| `{PREFIX}{name.upper()}` |" in page


def test_every_command_is_there_with_its_options(generate: ModuleType) -> None:
    page = generate.pages()["commands.md"]

    for name in COMMANDS:
        assert f"\n## citylab {name}\n" in page
    assert "\n### citylab replay open-data-bcn\n" in page
    assert "| `--descriptor FILE` | required |" in page


def test_every_reason_is_explained(generate: ModuleType) -> None:
    assert set(generate.REASONS) == set(Reason)
    assert all(when and then for when, then in generate.REASONS.values())


def test_a_secret_is_called_one(generate: ModuleType) -> None:
    lines = [line for line in generate.pages()["settings.md"].splitlines() if "A secret." in line]

    assert {line.split("`")[1] for line in lines} == {"CITYLAB_GRAFANA_TOKEN", "CITYLAB_GRAFANA_DB_PASSWORD"}


def test_the_tutorial_explains_the_live_pages_states_as_the_page_does() -> None:
    source = (ROOT / "dashboards" / "live" / "src" / "states.ts").read_text()
    names, meanings = (
        re.findall(
            r'^  \w+: "(.+)",$', source.partition(f"{table}: Record")[2].partition("};")[0], re.MULTILINE
        )
        for table in ("STATE_NAMES", "STATE_MEANINGS")
    )
    tutorial = (ROOT / "docs" / "tutorials" / "city-engineer.md").read_text()

    assert len(names) == len(meanings) == 6
    for name, meaning in zip(names, meanings, strict=True):
        assert f"| {name} | {meaning} |" in tutorial
