"""What `citylab torture` adds to a city's engines: small disks that can fill, and real engines of its own."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from citylab.settings import Settings
from citylab.up import Service

SCRIPT = Path(__file__).parents[1] / "deploy" / "engines.py"  # of a checkout
INSTALLED = Path("~/.cache/citylab/engines")
READY_WITHIN = 60.0  # s
STOP_WITHIN = 20.0  # s
_REAL = {"mqtt", "mqtts", "kafka", "postgresql"}
NAMES = {"broker": "mosquitto", "log": "kafka", "store": "postgres"}


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


class OwnEngine(Service):
    """A real engine for a run alone, which `deploy/engines.py` starts, at an address that it keeps.

    role: `broker`, `log` or `store`. Its home is in `folder`.
    """

    def __init__(self, role: str, settings: Settings, folder: Path) -> None:
        self.engine = NAMES[role]
        super().__init__(f"own-{self.engine}", settings, folder / "logs")
        self.home = folder / self.engine
        self.home.mkdir()
        self.log_file.parent.mkdir(exist_ok=True)
        for installation in INSTALLED.expanduser().glob("*-*"):  # Kafka's jars, a Debian with PostgreSQL
            if installation.is_dir():
                (self.home / installation.name).symlink_to(installation)
        self.command = [sys.executable, str(SCRIPT), "run", "--only", self.engine, "--dir", str(self.home)]
        self.url = ""

    @property
    def pid(self) -> int | None:
        """Of the engine itself; None before it has ever run."""
        started = self.home / "started.json"
        return msgspec.json.decode(started.read_bytes())[self.engine]["pid"] if started.exists() else None

    async def ready(self) -> bool:
        """Wait until it can be used; False when it does not start here."""
        addresses = self.home / "engines.env"
        deadline = asyncio.get_running_loop().time() + READY_WITHIN
        while not self.url and not self.trouble and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
            if addresses.exists():
                self.url = addresses.read_text().strip().partition("=")[2]
        return bool(self.url)


@asynccontextmanager
async def own_engines(
    settings: Settings, folder: Path, say: Callable[[str], None]
) -> AsyncIterator[dict[str, OwnEngine]]:
    """One for each role that a real engine is to have and can be started for here, kept running while the block runs."""
    engines = {
        role: OwnEngine(role, settings, folder)
        for role in NAMES
        if SCRIPT.exists() and urlsplit(getattr(settings, f"{role}_url")).scheme in _REAL
    }
    if engines:
        say(f"starting {', '.join(engine.engine for engine in engines.values())} for this run alone")
    async with asyncio.TaskGroup() as tasks:
        keepers = {role: tasks.create_task(engine.keep_running()) for role, engine in engines.items()}
        try:
            ready = {role: engine for role, engine in engines.items() if await engine.ready()}
            for role in engines.keys() - ready.keys():
                keepers[role].cancel()
            yield ready
        finally:
            for keeper in keepers.values():
                keeper.cancel()
            await asyncio.gather(*(engine.stop(STOP_WITHIN) for engine in engines.values()))
