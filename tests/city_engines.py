"""Engines of a test's own, by kind: brokers that can be killed and started again, event logs, and a cut in a line."""

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from engines import missing, url_of

from citylab.adapters.child import last_lines, start_child, stop
from citylab.adapters.embedded_postgres import EmbeddedPostgres
from citylab.adapters.migrations import migrate
from citylab.adapters.rumqttd import EmbeddedBroker

ANSWERS_WITHIN = 20.0  # s
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

    def kill(self) -> None:
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


class Store:
    """An embedded PostgreSQL on a port that it keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = EmbeddedPostgres(folder, port=free_port())

    @property
    def url(self) -> str:
        return self.server.url

    def start(self) -> None:
        asyncio.run(self.server.__aenter__())

    def migrate(self) -> None:
        asyncio.run(migrate(self.url))

    def kill(self) -> None:
        """As a power cut would, but for the disk's cache."""
        self.server.process.kill()
        self.server.process.wait()

    def close(self) -> None:
        asyncio.run(self.server.__aexit__(None, None, None))


class Line:
    """A TCP line to a server that can be cut and mended: what a client sees when the server dies and comes back."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = free_port()
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()

    def mend(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        listener, self._listener = self._listener, None
        if listener:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        with self._lock:
            ends, self._open = self._open, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            with self._lock:
                self._open += [near, far]
            for here, there in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(here, there), daemon=True).start()

    def _copy(self, here: socket.socket, there: socket.socket) -> None:
        with suppress(OSError):
            while data := here.recv(64 << 10):
                there.sendall(data)
        for end in (here, there):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            here.close()
