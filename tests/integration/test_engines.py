"""`deploy/engines.py run`: an engine in the foreground, for a supervisor; it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
from city_engines import answers, wait_for_no_port
from engines import SCRIPT, missing, url_of


@pytest.fixture
def running(tmp_path):
    url_of("BROKER")  # says how to install it
    command = [sys.executable, SCRIPT, "run", "--only", "mosquitto", "--dir", tmp_path]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        addresses = tmp_path / "engines.env"
        while process.poll() is None and not addresses.exists():
            time.sleep(0.02)
        if process.poll() is not None:
            missing(process.communicate()[1])
        yield process, urlsplit(addresses.read_text().strip().partition("=")[2]).port
        process.kill()


def test_it_runs_until_it_is_told_to_end(running):
    process, port = running
    assert answers(port)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    wait_for_no_port(port)


def test_it_ends_when_its_engine_does(running, tmp_path):
    process, port = running
    os.kill(json.loads((tmp_path / "started.json").read_text())["mosquitto"]["pid"], signal.SIGKILL)
    assert process.wait(10) == 1
    wait_for_no_port(port)
    assert not (tmp_path / "engines.env").read_text()
