"""What the README, the tutorials and the how-tos show is typed into a shell, against a city of the test's own."""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grafana_standin
import pytest
from engines import missing
from grafana_standin import GrafanaStandin
from project.documents import ROOT, Block, Reader, blocks_of, clean_environment, matches
from stores import reachable_folder

DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]


@dataclass
class City:
    """`citylab up` as a process of its own."""

    data: Path
    process: subprocess.Popen[bytes]
    http: int = 0
    mqtt: int = 0

    def ask(self, path: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
            return json.load(answer)

    def until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.data / "up.log").read_text()
            try:
                addresses = json.loads((self.data / "city.json").read_text())
                self.http, self.mqtt = addresses["http_port"], int(addresses["broker_url"].rpartition(":")[2])
                if (
                    self.ask("/health/ready")["state"] == "ready"
                    and self.ask("/v1.1/Observations?$top=1")["value"]
                ):
                    return
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"no observation after a minute:\n{(self.data / 'up.log').read_text()}")


@pytest.fixture(scope="module")
def city() -> Iterator[City]:
    """A city with its simulation, whose folder has the addresses of one that was killed."""
    with reachable_folder() as folder:
        (folder / "city.json").write_text(
            json.dumps({"store_url": "postgresql://citylab:x@127.0.0.1:1/citylab", "http_port": 1})
        )
        with (folder / "up.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "citylab", "up", "--data", folder, "--port", "0"],
                env=clean_environment() | {"CITYLAB_MQTT_PORT": "0"}, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            city = City(folder, process)
            try:
                city.until_ready()
                yield city
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                finally:
                    process.kill()


@pytest.fixture(scope="module")
def grafana() -> Iterator[GrafanaStandin]:
    with grafana_standin.running() as standin:
        yield standin


@pytest.fixture
def reader(city: City, grafana: GrafanaStandin, tmp_path: Path) -> Reader:
    if shutil.which("mosquitto_pub") is None:
        missing(
            "mosquitto_pub is not installed, so the documents' commands are NOT RUN (apt-get install mosquitto-clients)"
        )
    return Reader(
        tmp_path,
        clean_environment() | {"CITYLAB_DATA": str(city.data)},
        {
            "127.0.0.1:8000": f"127.0.0.1:{city.http}",
            "mosquitto_pub ": f"mosquitto_pub -h 127.0.0.1 -p {city.mqtt} ",
            "mosquitto_sub ": f"mosquitto_sub -h 127.0.0.1 -p {city.mqtt} ",
            "mqtt://127.0.0.1:1883": f"mqtt://127.0.0.1:{city.mqtt}",
            "http://admin:admin@127.0.0.1:3000": grafana.with_credential(),
        },
    )


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_what_a_document_shows_works(document: Path, reader: Reader) -> None:
    for block in blocks_of(document):
        if block.is_run:
            reader.type(document, block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_shown_is_run_or_says_why_not(document: Path) -> None:
    for block in blocks_of(document):
        where = f"{name_of(document)}, line {block.line}"
        if block.is_shell:
            assert block.mark, f"{where}: is it run? Put <!-- run --> or <!-- not run: WHY --> before it"
            assert block.language in {"bash", "console"}, where
            assert block.mark in {"run", "run: until it shows"} or block.mark.startswith("not run: "), where
        else:
            assert not block.is_run, f"{where}: only bash and console are run"


def test_a_city_starts_whatever_addresses_a_killed_one_left(city: City) -> None:
    assert city.http != 1


def test_the_readme_runs_a_strangers_own_device() -> None:
    run = "".join(block.text for block in blocks_of(ROOT / "README.md") if block.is_run)

    for command in ("gateways/my-box/descriptor", "gateways/my-box/packs", "curl", "citylab replay"):
        assert command in run


def test_a_console_block_is_commands_and_what_they_show() -> None:
    block = Block(1, "console", "run", "$ one \\\n  more\nfirst\nsecond\n$ two\n")

    (one, two) = block.steps()

    assert (one.command, one.shows) == ("one \\\n  more", "first\nsecond")
    assert (two.command, two.shows) == ("two", None)


def test_dots_stand_for_any_text_and_nothing_else_does() -> None:
    assert matches('{"a": ..., "b": 2}', '{"a": 17,\n"x": 0, "b": 2}\n')
    assert not matches('{"a": ..., "b": 2}', '{"a": 17, "b": 3}')
    assert not matches("done", "not done")


def test_a_block_that_fails_fails_the_test(tmp_path: Path) -> None:
    reader = Reader(tmp_path, clean_environment(), {})

    with pytest.raises(pytest.fail.Exception, match=r"README.md, line 3(?s:.)*ended with 1"):
        reader.type(ROOT / "README.md", Block(3, "bash", "run", "false\ntrue\n"))
    with pytest.raises(pytest.fail.Exception, match=r"printed\n2"):
        reader.type(ROOT / "README.md", Block(3, "console", "run", "$ echo 2\n3\n"))


def test_what_one_block_sets_the_next_one_knows(tmp_path: Path) -> None:
    reader = Reader(tmp_path, clean_environment(), {})

    reader.type(ROOT / "README.md", Block(1, "bash", "run", "place='a b'\n"))
    reader.type(ROOT / "README.md", Block(2, "console", "run", '$ echo "$place"\na b\n'))
