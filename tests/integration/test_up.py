"""`citylab up` as a process: what it prints, how it ends, what a kill leaves behind, and the commands beside it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import city_engines
import httpx
import pytest
from city import clean_environment, run
from city_engines import Broker
from stores import reachable_folder

from citylab.cli import COMMANDS

SOON = 60.0  # s


class Up:
    """`citylab up` on ports of its own, in a folder."""

    def __init__(self, folder: Path, *options: str, **environment: object) -> None:
        self.folder = folder
        self.env = clean_environment(CITYLAB_DATA=folder, CITYLAB_MQTT_PORT=0) | {
            name: str(value) for name, value in environment.items()
        }
        self.log_file = folder / "up.txt"
        self.argv = [sys.executable, "-m", "citylab", "up", "--port", "0", *options]

    def __enter__(self) -> Self:
        self.log_file.write_text("")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.argv, env=self.env, stdout=log, stderr=log)
        self.until(lambda: "live page" in self.said, "it says where to look")
        found = re.search(r"live page +(http://127.0.0.1:\d+)/", self.said)
        assert found
        self.http = httpx.Client(base_url=found[1], timeout=10)
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(SOON)

    @property
    def said(self) -> str:
        return self.log_file.read_text()

    def until(self, condition: Callable[[], Any], what: str, within: float = SOON) -> Any:
        deadline, answer = time.monotonic() + within, None
        while time.monotonic() < deadline:
            try:
                if answer := condition():
                    return answer
            except httpx.TransportError as error:
                answer = error
            time.sleep(0.03)
        raise AssertionError(f"not within {within:g} s: {what}; the last answer is {answer!r}\n{self.said}")

    def count(self) -> int:
        """How many Observations the API has."""
        answer = self.http.get("/v1.1/Observations?$top=0&$count=true")
        return int(answer.json()["@iot.count"]) if answer.status_code == 200 else 0

    def is_well(self) -> bool:
        return bool(self.http.get("/health/ready").json()["state"] == "ready")

    def family(self) -> dict[int, str]:
        """Every process that it started, with the moment of its start, which tells it from another of the same number."""
        return descendants(self.process.pid)


def descendants(pid: int) -> dict[int, str]:
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child: started(child)} | descendants(child)
    return found


def started(pid: int) -> str:
    """When a process started, in ticks since boot; nothing when there is none, or only its exit code is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def alive(family: dict[int, str]) -> list[int]:
    return [pid for pid, moment in family.items() if moment and started(pid) == moment]


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(params=["embedded", "real"])
def engines(request, folder) -> Iterator[dict[str, str]]:
    """Settings that name the engines."""
    if request.param == "embedded":
        yield {}
        return
    with ExitStack() as stack:
        broker = Broker("real", folder / "mosquitto")
        broker.start()
        stack.callback(broker.close)
        log_url = stack.enter_context(city_engines.event_log("real", folder))
        databases = request.getfixturevalue("real_databases")
        yield {
            "CITYLAB_BROKER_URL": broker.url,
            "CITYLAB_LOG_URL": log_url,
            "CITYLAB_STORE_URL": databases.make(migrated=False),
        }


def test_a_city_comes_up_plays_ends_at_ctrl_c_and_goes_on(folder, engines):
    with Up(folder, **engines) as up:
        up.until(lambda: up.count() > 0, "the first observation is visible")
        up.until(up.is_well, "all is well")
        assert up.http.get("/").status_code == 200
        up.until(lambda: "observations/s" in up.said and "all well" in up.said, "the status says so")
        family, seen = up.family(), up.count()
        assert len(family) >= 4

        up.process.send_signal(signal.SIGINT)

        assert up.process.wait(SOON) == 0, up.said
        assert alive(family) == []
        assert "Traceback" not in up.said

    with Up(folder, "--no-simulate", **engines) as up:
        assert up.until(up.count, "the observations are still there") >= seen
        up.until(up.is_well, "all is well")
        assert "simulate" not in " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in up.family())


def test_no_child_survives_a_kill_and_the_next_start_recovers(folder):
    with Up(folder) as up:
        up.until(lambda: up.count() > 0, "the first observation is visible")
        family = up.family()

        up.process.kill()

        up.until(lambda: not alive(family), "no child survives")
        assert (folder / "city.json").exists()  # nobody took it away

    with Up(folder) as up:
        up.until(lambda: up.count() > 0, "the observations are there")
        up.until(up.is_well, "all is well")


def test_whatever_is_killed_under_it_is_started_again(folder):
    with Up(folder) as up:
        up.until(up.is_well, "all is well")
        before = up.count()
        names = {"ingest", "processing", "api", "simulate", "iotcore", "postgres"}
        family = up.family()
        for pid in list(family):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if names & {Path(part).name for part in command} and "postgres:" not in command[0]:
                os.kill(pid, signal.SIGKILL)

        up.until(lambda: not alive(family), "all of them are gone")
        up.until(lambda: up.count() > before, "readings flow again")
        up.until(up.is_well, "all is well")


def test_a_store_that_is_lost_comes_back_from_the_archive_that_the_city_keeps(folder):
    archive = folder / "archive"
    with Up(folder, "--no-simulate", CITYLAB_ARCHIVE=archive) as up:
        up.until(
            lambda: any(
                c["name"].startswith("archive") for c in up.http.get("/health/ready").json()["checks"]
            ),
            "it is archived",
        )
        up.until((archive / "base").exists, "there is a base backup")
        last = up.http.post("/v1.1/Things", json={"name": "bench", "description": "oak"})
        assert last.status_code == 201, last.text
    shutil.rmtree(folder / "store")

    restored = run("restore", archive, env=up.env)

    assert restored.returncode == 0, restored.stderr
    with Up(folder, "--no-simulate", CITYLAB_ARCHIVE=archive) as up:
        up.until(up.is_well, "all is well")
        assert [one["name"] for one in up.http.get("/v1.1/Things").json()["value"]] == ["bench"]
        up.until((archive / "before-1" / "archive.json").exists, "a new archive is begun beside the old one")


def test_a_port_that_is_taken_gets_a_sentence(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        http = run("up", "--data", folder, "--port", port, env=clean_environment())
        mqtt = run("up", "--data", folder, "--port", 0, env=clean_environment(CITYLAB_MQTT_PORT=port))

    for ended, words in ((http, "choose another with --port"), (mqtt, "CITYLAB_MQTT_PORT")):
        assert ended.returncode == 2, ended.stderr
        assert f"{port}" in ended.stderr
        assert words in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_a_second_city_in_one_folder_gets_a_sentence_and_the_commands_find_the_first(folder):
    with Up(folder, "--no-simulate") as up:
        up.until(up.is_well, "all is well")

        second = run("up", "--port", 0, env=up.env)
        doctor = run("doctor", env=up.env)
        migrate = [run("migrate", env=up.env) for _ in range(2)]

        assert second.returncode == 2
        assert second.stderr.startswith(f"citylab up: a city is running in {folder} already")
        assert len(second.stderr.strip().splitlines()) == 1
        assert doctor.returncode == 0, doctor.stdout
        assert [line.split(":")[0] for line in doctor.stdout.splitlines()[-4:]] == [
            "ok   broker", "ok   event log", "ok   store", "ok   retention",
        ]  # fmt: skip
        password = (folder / "store" / "password").read_text().strip()
        for ended in migrate:
            assert ended.returncode == 0
            assert "nothing to do" in ended.stdout
        assert not any(
            password in said for said in (up.said, doctor.stdout, *(ended.stdout for ended in migrate))
        )
        assert up.is_well()


def test_without_a_city_the_commands_say_what_to_do(folder):
    doctor = run("doctor", "--data", folder, env=clean_environment())
    assert doctor.returncode == 1
    assert doctor.stdout.count("FAIL") == 4
    assert "`citylab up`" in doctor.stdout

    for command in ("migrate", "ingest", "processing", "api", "simulate"):
        ended = run(command, "--data", folder, env=clean_environment())
        assert ended.returncode == 2, ended.stderr
        assert "`citylab up`" in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_an_unknown_setting_is_named_with_the_one_that_is_meant(folder):
    ended = run("up", "--data", folder, env=clean_environment(CITYLAB_STORE_ULR="x"))

    assert ended.returncode == 2
    assert "CITYLAB_STORE_ULR is no setting of Citylab; did you mean CITYLAB_STORE_URL?" in ended.stderr


def test_help_lists_commands_that_are_there():
    shown = run("--help", env=clean_environment(COLUMNS=200)).stdout
    listed = re.findall(r"^[│ ]+([a-z]+) {2,}", shown, re.MULTILINE)
    assert listed == list(COMMANDS)

    for command in listed:
        ended = run(command, "--help", env=clean_environment(COLUMNS=200))
        assert ended.returncode == 0, ended.stderr
        assert f"Usage: citylab {command}" in ended.stdout
