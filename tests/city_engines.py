"""Engines of a test's own that can go away and come back at the same address."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from aiokafka.admin import AIOKafkaAdminClient
from engines import SCRIPT, missing, url_of

from citylab.adapters.child import last_lines, start_child, stop
from citylab.adapters.embedded_postgres import EmbeddedPostgres
from citylab.adapters.migrations import migrate
from citylab.adapters.rumqttd import EmbeddedBroker

ANSWERS_WITHIN = 20.0  # s
_INSTALLED = Path("~/.cache/citylab/engines").expanduser()
_MOSQUITTO = """\
user root
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 1000
max_queued_messages 0
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_port(port: int, log_file: Path) -> None:
    deadline = time.monotonic() + ANSWERS_WITHIN
    while not answers(port):
        assert time.monotonic() < deadline, (
            f"nothing answers on port {port}; it said:\n{last_lines(log_file)}"
        )
        time.sleep(0.02)


def wait_for_no_port(port: int) -> None:
    deadline = time.monotonic() + ANSWERS_WITHIN
    while answers(port):
        assert time.monotonic() < deadline, f"port {port} still answers"
        time.sleep(0.02)


class Broker:
    """A broker on a port that it keeps: rumqttd, or a Mosquitto of the test's own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port() if kind == "real" else 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self.kind == "embedded":
            broker = EmbeddedBroker(self.folder, port=self.port)
            asyncio.run(broker.__aenter__())
            self.port, self.process = broker.port, broker.process
            return
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        if not program:
            missing("Mosquitto is not installed: python3 deploy/engines.py install --only mosquitto")
        configuration, log_file = self.folder / "mosquitto.conf", self.folder / "mosquitto.log"
        configuration.write_text(_MOSQUITTO.format(port=self.port))
        self.process = start_child([program, "-c", configuration], log_file=log_file)
        wait_for_port(self.port, log_file)

    def stop(self) -> None:
        """As a crash would."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process:
            asyncio.run(stop(self.process))


@contextmanager
def event_log(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an event log that nobody else uses: a folder, or topics with a prefix of their own."""
    if kind == "embedded":
        yield f"sqlite:{folder / 'log'}"
        return
    server, prefix = url_of("LOG"), f"test-{secrets.token_hex(6)}"
    yield f"{server}/{prefix}"
    asyncio.run(_delete_topics(server.removeprefix("kafka://"), prefix))


async def _delete_topics(server: str, prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(prefix)])
    await admin.close()


class EmbeddedStore:
    """An embedded PostgreSQL that can be killed, and comes back on its port."""

    def __init__(self, folder: Path) -> None:
        self.server = EmbeddedPostgres(folder, port=free_port())
        self.start()
        self.url = self.server.url
        asyncio.run(migrate(self.url))

    def start(self) -> None:
        asyncio.run(self.server.__aenter__())

    def stop(self) -> None:
        self.server.process.kill()
        self.server.process.wait()

    def close(self) -> None:
        asyncio.run(self.server.__aexit__(None, None, None))


class DistantStore:
    """A database at the other end of a TCP line that can be cut: what a client sees when the server dies."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port
        self._target = parts.port
        self._port = free_port()
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{self._port}")))
        self._listener: socket.socket | None = None
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    close = stop

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._ends += [near, far]
            for here, there in ((near, far), (far, near)):
                threading.Thread(target=_copy, args=(here, there), daemon=True).start()


def _copy(here: socket.socket, there: socket.socket) -> None:
    with suppress(OSError):
        while data := here.recv(64 << 10):
            there.sendall(data)
    for end in (here, there):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    here.close()


class EmbeddedLog:
    """The embedded log's folder, in whose place something else can stand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "log"
        self._away = folder / "log.away"
        self.url = f"sqlite:{self.folder}"

    def start(self) -> None:
        if self.folder.is_file():
            self.folder.unlink()
        if self._away.exists():
            self._away.rename(self.folder)

    def stop(self) -> None:
        if self.folder.exists():
            self.folder.rename(self._away)
        self.folder.write_text("not a folder")

    def close(self) -> None:
        pass


class _OwnEngine:
    """An engine of `deploy/engines.py` in a home of its own, which can be killed and started again on the same port."""

    def __init__(self, home: Path, name: str, installed: Path | None) -> None:
        if not installed:
            missing(f"no local {name} to kill: python3 deploy/engines.py install --only {name}")
        self.home, self._name = home, name
        if installed != Path("/"):
            (home / installed.name).symlink_to(installed)
        self.start()
        self.url = (home / "engines.env").read_text().strip().partition("=")[2]

    def start(self) -> None:
        self._run("start", "--only", self._name)

    def stop(self) -> None:
        os.kill(json.loads((self.home / "started.json").read_text())[self._name]["pid"], signal.SIGKILL)
        wait_for_no_port(urlsplit(self.url).port or 0)

    def close(self) -> None:
        self._run("stop")

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, SCRIPT, arguments[0], "--dir", self.home, *arguments[1:]]
        subprocess.run(command, check=True, timeout=90, capture_output=True)


class Kafka(_OwnEngine):
    """One Kafka."""

    def __init__(self, home: Path) -> None:
        url_of("LOG")  # says how to install it
        super().__init__(home, "kafka", next(_INSTALLED.glob("kafka-*"), None))


class Timescale(_OwnEngine):
    """One PostgreSQL with TimescaleDB. of: another one, whose data directory, as a restore made it, is this one's."""

    def __init__(self, home: Path, *, of: "Timescale | None" = None, data: Path | None = None) -> None:
        url_of("STORE")
        if of and data:
            shutil.copy(of.home / "passwords.json", home)
            owner = of.cluster.stat()
            for path in (data, *data.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid)
            (home / "data" / "postgres").mkdir(parents=True)
            data.rename(home / "data" / "postgres" / "cluster")
        super().__init__(home, "postgres", timescale_root())

    def start(self) -> None:
        """Children of one that was killed have its memory for a moment longer, and it refuses to start meanwhile."""
        deadline = time.monotonic() + ANSWERS_WITHIN
        while True:
            try:
                return super().start()
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise

    @property
    def cluster(self) -> Path:
        return self.home / "data" / "postgres" / "cluster"

    def execute(self, statement: str) -> None:
        """Run a statement as the superuser."""
        password = json.loads((self.home / "passwords.json").read_text())["postgres"]
        port = urlsplit(self.url).port
        with psycopg.connect(
            f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())


def timescale_root() -> Path | None:
    """The root folder of the Debian in which PostgreSQL 17 is: a made one on Debian 12."""
    made = next(_INSTALLED.glob("postgresql-17-*"), None)
    return made or (Path("/") if Path("/usr/lib/postgresql/17/bin/postgres").exists() else None)
