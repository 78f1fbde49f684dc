"""What `citylab torture` adds to a city's engines: small disks that can fill, and a Mosquitto of its own."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from citylab.settings import Settings
from citylab.up import Service

_MOSQUITTO = """\
user root
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 1000
max_queued_messages 0
"""


class Disk:
    """A small disk that can fill: a tmpfs over a folder."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self._size = folder, size

    @contextmanager
    def mounted(self) -> Iterator[bool]:
        """Whether it could be mounted."""
        mount = shutil.which("mount")
        if os.geteuid() or not mount or sys.platform != "linux":
            yield False
            return
        self.folder.mkdir(parents=True)
        made = subprocess.run(  # noqa: S603 -- of the system
            [mount, "-t", "tmpfs", "-o", f"size={self._size},mode=711", "citylab-torture", self.folder],
            check=False, capture_output=True,
        )  # fmt: skip
        if made.returncode:
            yield False
            return
        try:
            yield True
        finally:
            subprocess.run(["umount", "--lazy", self.folder], check=True)  # noqa: S603, S607 -- beside mount

    async def full(self, seconds: float) -> bool:
        """Leave no byte free for a while."""
        filler = self.folder / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            await asyncio.sleep(seconds)
        finally:
            filler.unlink(missing_ok=True)
        return True


class Mosquitto(Service):
    """A Mosquitto of our own, on a port that it keeps."""

    def __init__(self, settings: Settings, folder: Path, program: str) -> None:
        (folder / "logs").mkdir(exist_ok=True)
        super().__init__("mosquitto", settings, folder / "logs")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        configuration = folder / "mosquitto.conf"
        configuration.write_text(_MOSQUITTO.format(port=port))
        self.command = [program, "-c", str(configuration)]
        self.url = f"mqtt://127.0.0.1:{port}"


def own_mosquitto(settings: Settings, folder: Path) -> Mosquitto | None:
    """One, where the broker is to be real and the program is installed; else the given broker is used."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if settings.broker_url.startswith("embedded:") or not program:
        return None
    return Mosquitto(settings, folder, program)
