"""Where the real engines are: CITYLAB_TEST_{BROKER,LOG,STORE}_URL, or those that deploy/engines.py started.

A missing one is a loud skip on a laptop, and a failure where CITYLAB_REQUIRE_ENGINES=1.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Literal, NoReturn

import pytest

SCRIPT = Path(__file__).parents[1] / "deploy" / "engines.py"
ENGINES = {"BROKER": "mosquitto", "LOG": "kafka", "STORE": "postgres"}


def url_of(engine: Literal["BROKER", "LOG", "STORE"]) -> str:
    """The real engine's URL; skips or fails the test when it does not run."""
    url = os.environ.get(f"CITYLAB_TEST_{engine}_URL") or _started().get(f"CITYLAB_{engine}_URL")
    if not url:
        name = ENGINES[engine]
        here = "python3 deploy/engines.py"
        missing(f"{name} does not run: {here} install --only {name} && {here} start --only {name}")
    return url


def missing(message: str) -> NoReturn:
    """Skip, or fail where the engines are required."""
    if os.environ.get("CITYLAB_REQUIRE_ENGINES") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@cache
def _started() -> dict[str, str]:
    told = subprocess.run(
        [sys.executable, SCRIPT, "env"], capture_output=True, text=True, check=False, timeout=30
    )
    return dict(line.split("=", 1) for line in told.stdout.splitlines())
