"""What of `deploy/engines.py` can be tested without an engine: that it harms nobody, and that it explains itself."""

import importlib.util
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

if sys.platform != "linux":
    pytest.skip("the script is for Linux", allow_module_level=True)

SCRIPT = Path(__file__).parents[3] / "deploy" / "engines.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("citylab_deploy_engines", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


engines = load()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that does nothing, as an engine would be started."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_process_that_was_started_is_known_and_ended(sleeper: subprocess.Popen[bytes]) -> None:
    started = engines.Started.of(sleeper.pid, port=1)
    assert started.alive()

    started.end(signal.SIGTERM)

    assert not started.alive()
    assert sleeper.wait() == -signal.SIGTERM


@pytest.mark.parametrize("changed", [{"start_time": "1"}, {"start_time": ""}, {"boot": "another"}])
def test_another_process_with_the_same_pid_is_left_alone(
    sleeper: subprocess.Popen[bytes], changed: dict[str, str]
) -> None:
    fields = {
        "pid": sleeper.pid,
        "start_time": engines.process_start_time(sleeper.pid),
        "boot": engines.boot_id(),
    }
    reused = engines.Started(**fields | changed, port=1)

    reused.end(signal.SIGKILL)

    assert not reused.alive()
    assert sleeper.poll() is None


def test_a_zombie_does_not_count_as_running() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert engines.process_start_time(child.pid) == ""
    child.wait()


def test_stop_spares_a_process_that_took_over_a_recorded_pid(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    record = {"pid": sleeper.pid, "start_time": "1", "boot": engines.boot_id(), "port": 1}
    (tmp_path / "started.json").write_text(json.dumps({"kafka": record}))

    result = run("stop", "--dir", str(tmp_path))

    assert result.returncode == 0
    assert sleeper.poll() is None


def test_a_port_in_use_is_not_offered_even_when_preferred() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert engines.free_port(port) != port


def test_a_free_port_is_kept_when_preferred() -> None:
    port = engines.free_port()

    assert engines.free_port(port) == port


def test_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    engines.write_private(tmp_path / "secret", "x")

    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_two_runs_do_not_work_in_one_folder_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def second() -> None:
        with engines.locked(tmp_path / "lock"):
            order.append("second")

    with engines.locked(tmp_path / "lock"):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()

    assert order == ["first", "second"]
    assert "waiting" in capsys.readouterr().err


def test_what_an_interrupted_installation_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "kafka.partial-old" / "libs").mkdir(parents=True)

    with engines.workshop(tmp_path, "kafka") as folder:
        assert list(tmp_path.iterdir()) == [folder]

    assert list(tmp_path.iterdir()) == []


def test_kafka_is_asked_of_maven_by_name_and_version_without_any_address() -> None:
    project = ET.fromstring(engines.kafka_pom())

    versions = {d.findtext("artifactId"): d.findtext("version") for d in project.iter("dependency")}
    assert versions == {"kafka_2.13": engines.KAFKA_VERSION, "slf4j-simple": engines.SLF4J_VERSION}
    assert project.find("repositories") is None


def test_mosquitto_listens_on_loopback_only(tmp_path: Path) -> None:
    *_, config = engines.Mosquitto(tmp_path).prepare(port=21_883)

    lines = Path(config).read_text().splitlines()
    assert [line for line in lines if line.startswith("listener")] == ["listener 21883 127.0.0.1"]


def test_kafka_requests_are_framed_by_their_length() -> None:
    client, broker = socket.socketpair()
    with client, broker:
        broker.sendall(struct.pack(">ii", 6, 1) + b"\x00\x00")  # length, correlation id, error code

        assert engines.kafka_request(client, api=18, version=0, body=b"") == b"\x00\x00"
        assert broker.recv(100) == struct.pack(">ihhih", 10, 18, 0, 1, -1)


def test_an_engine_that_hangs_up_is_not_there_yet() -> None:
    client, broker = socket.socketpair()
    broker.close()
    with client, pytest.raises(ConnectionError):
        engines.receive(client, 4)


def test_a_wrong_command_line_is_told_apart_from_a_failure(tmp_path: Path) -> None:
    assert run().returncode == 2
    assert run("start", "--only", "oracle").returncode == 2
    assert run("env", "--dir", str(tmp_path)).returncode == 1
    assert run("--help").returncode == 0


def test_a_folder_that_cannot_be_made_is_said_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    result = run("start", "--dir", str(tmp_path / "file" / "engines"))

    assert result.returncode == 1
    assert "Not a directory" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_engine_that_is_not_installed_is_said_loudly_and_env_omits_it(tmp_path: Path) -> None:
    result = run("start", "--only", "kafka", "--dir", str(tmp_path))

    assert result.returncode == 1
    assert "NOT INSTALLED" in result.stderr
    assert "install --only kafka" in result.stderr
    assert (tmp_path / "engines.env").read_text() == ""


def test_it_needs_nothing_but_the_standard_library() -> None:
    isolated = [sys.executable, "-I", "-S", str(SCRIPT), "--help"]

    assert subprocess.run(isolated, capture_output=True, check=False).returncode == 0


def test_it_names_no_package_registry() -> None:
    assert "http" not in SCRIPT.read_text()
