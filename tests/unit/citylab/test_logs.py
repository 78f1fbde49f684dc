import subprocess
import sys
from pathlib import Path

import pytest

_SAYS = """
import structlog
from citylab.logs import start_logging
start_logging("info", service="test")
for _ in range(1_000):
    structlog.get_logger().warning("nobody reads this")
print("went on")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to write on")
def test_a_full_disk_loses_lines_and_stops_nobody():
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", _SAYS], stdout=subprocess.PIPE, stderr=full, text=True, check=False
        )
    assert (ended.returncode, ended.stdout) == (0, "went on\n")
