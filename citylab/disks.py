"""Whether the disks on which this machine's engines write have room: a state of health, before anything has to wait."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from citylab.log_watch import Finding

LOW, FULL = 1 << 30, 64 << 20  # bytes that are left


def findings(folders: Sequence[Path], *, low: int = LOW, full: int = FULL) -> list[Finding]:
    """What to tell people of the folders' disks, of each once, with what to do. A folder that is not there has none."""
    seen: set[int] = set()
    found = []
    for folder in folders:
        with suppress(OSError):
            device, left = folder.stat().st_dev, shutil.disk_usage(folder).free
            if device not in seen and left < low:
                text = f"{left / 1e6:,.0f} MB are left on the disk of {folder}: make room, or what comes waits at the gateways"
                found.append(Finding("disk", left < full, text))
            seen.add(device)
    return found
