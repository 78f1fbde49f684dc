#!/usr/bin/env python3
"""Install and run the real engines (Mosquitto, Kafka, TimescaleDB) natively on Debian, without Docker.

Uses the standard library alone, so that it works before Citylab itself is installed. Everything lies in one
folder that clones share, listens on loopback only, and is found through `DIR/engines.env`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import json
import os
import platform
import random
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

KAFKA_VERSION = "4.4.0"
SCALA_VERSION = "2.13"  # of the broker's jar; Kafka 4 knows no other
SLF4J_VERSION = "1.7.36"  # what this Kafka's loggers are written against
MAVEN_DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
JAVA_MINIMUM = 17  # Kafka 4's broker
JAVA_PACKAGE = {"12": "openjdk-17-jre-headless", "13": "openjdk-21-jre-headless"}
POSTGRES_VERSION = "17"
POSTGRES_PACKAGES = (f"postgresql-{POSTGRES_VERSION}", f"postgresql-{POSTGRES_VERSION}-timescaledb")
POSTGRES_SUITE = "trixie"  # the first Debian release with TimescaleDB for PostgreSQL 17

MIB = 1024 * 1024
MAX_MESSAGE_BYTES = 16 * MIB  # of one Kafka batch; a pack is far smaller

MOSQUITTO_SETTINGS: dict[str, str] = {
    "allow_anonymous": "true",
    "persistence": "false",  # its copy on disk is written only now and then: it would promise what it cannot keep
    "max_inflight_messages": "1000",  # the default of 20 throttles the bridge
    "max_queued_messages": "0",  # unlimited: a full queue drops what was already acknowledged ...
    # ... so this is what protects the machine. At the limit publishers are cut off unacknowledged, and the
    # queue drains at a crawl: it is the last resort, not a way to run.
    "memory_limit": str(4096 * MIB),
    "max_packet_size": str(MIB),  # a larger one disconnects; message_size_limit would drop it in silence
    "set_tcp_nodelay": "true",
}

KAFKA_HEAP = "-Xmx512m"
KAFKA_SETTINGS: dict[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "auto.create.topics.enable": "false",  # a mistyped topic is an error, not a new topic
    "message.max.bytes": str(MAX_MESSAGE_BYTES),
    "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
    "group.initial.rebalance.delay.ms": "0",
    "log.retention.check.interval.ms": "10000",  # short retentions take effect within a test's patience
    "offsets.topic.num.partitions": "1",  # fewer internal partitions start faster
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
}

# For two cores and 24 GB that the engines share with Citylab itself.
POSTGRES_SETTINGS: dict[str, str] = {
    "shared_preload_libraries": "timescaledb",
    "timescaledb.telemetry_level": "off",
    "timescaledb.max_background_workers": "8",
    "max_worker_processes": "24",  # TimescaleDB's, one launcher, parallel queries and some to spare
    "max_connections": "200",
    "shared_buffers": "1GB",
    "work_mem": "32MB",
    "wal_compression": "lz4",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "synchronous_commit": "on",  # an acknowledged pack survives a power cut
    "random_page_cost": "1.1",
    "jit": "off",
    "password_encryption": "scram-sha-256",
}
# glibc would give the memory of every larger answer back, and take it again, page by page, for the next one.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}

START_SECONDS = 60.0
STOP_SECONDS = 30.0
LOG_LINES_QUOTED = 15
# Debian's server programs lie in sbin, which is not on everybody's PATH.
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

# Held in place while packages are installed: no service starts, and no PostgreSQL cluster `main` is made.
HOLDS = {
    Path(
        "/usr/sbin/policy-rc.d"
    ): "#!/bin/sh\n# by citylab's deploy/engines.py, for an installation\nexit 101\n",
    Path("/etc/postgresql-common/createcluster.d/citylab-engines.conf"): "create_main_cluster = false\n",
}


class SetupError(Exception):
    """Something a person must put right; the message says what and how."""


def say(text: str) -> None:
    """Tell the person at the terminal; standard output stays for what programs read."""
    print(text, file=sys.stderr, flush=True)


# --- the machine ------------------------------------------------------------------------------------------


def debian_release() -> str:
    """Return "12" or "13", or "" on anything else."""
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release()
        if system["ID"] == "debian" and system.get("VERSION_ID") in JAVA_PACKAGE:
            return system["VERSION_ID"]
    return ""


def last_lines(log: Path) -> str:
    """Quote the end of a log, indented."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES_QUOTED:]) or "    (nothing logged)"


def run(argv: Sequence[str], log: Path, what: str) -> None:
    """Run a program to its end with its output in `log`; on failure raise with the last lines."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "PATH": SYSTEM_PATH}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        out.write(f"\n$ {' '.join(argv)}\n")
        out.flush()
        try:
            code = subprocess.call(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
        except OSError as error:
            raise SetupError(f"{what}: {argv[0]} cannot be run: {error.strerror}") from error
    if code != 0:
        raise SetupError(f"{what} failed (code {code}). The end of {log}:\n{last_lines(log)}")


def output_of(*argv: str) -> str:
    """Return what a program prints, or "" when it is not there."""
    with contextlib.suppress(OSError):
        return subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        ).stdout
    return ""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one run at a time pass; the kernel frees the lock even after a kill -9."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run holds {path}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def package_installed(package: str) -> bool:
    """Tell whether dpkg holds the package complete, not merely unpacked."""
    return output_of("dpkg-query", "-W", "-f=${db:Status-Status}", package) == "installed"


@contextlib.contextmanager
def services_held_back() -> Iterator[None]:
    """Keep packages from starting services while they are installed, by Debian's own means (see HOLDS).

    Takes away what an interrupted run left of it, too.
    """
    if os.geteuid() != 0 or not shutil.which("dpkg"):
        yield  # no package can be installed
        return
    with locked(Path("/run/lock/citylab-engines")):
        # A file that somebody else put there stays: containers have a policy that forbids all starts already.
        ours = [path for path, text in HOLDS.items() if not path.exists() or path.read_text() == text]
        try:
            for path in ours:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(HOLDS[path])
                path.chmod(0o755)
            yield
        finally:
            for path in ours:
                path.unlink(missing_ok=True)


def apt_install(packages: Sequence[str], log: Path) -> None:
    """Install Debian packages; a dpkg that was interrupted earlier is finished first."""
    wanted = [package for package in packages if not package_installed(package)]
    if not wanted:
        return
    names = " ".join(wanted)
    if not shutil.which("apt-get"):
        raise SetupError(f"needs Debian's packages {names}, and there is no apt-get here")
    if os.geteuid() != 0:
        raise SetupError(f"needs root once, for: apt-get install --no-install-recommends {names}")
    apt = ["apt-get", "-y", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "--no-install-recommends", *wanted]
    try:
        run(install, log, f"installing {names}")
    except SetupError:  # package lists missing or old, or dpkg interrupted earlier
        run(["dpkg", "--configure", "-a"], log, "finishing an interrupted dpkg")
        run([*apt, "update"], log, "apt-get update (is there a network?)")
        run(install, log, f"installing {names}")


@contextlib.contextmanager
def workshop(home: Path, name: str) -> Iterator[Path]:
    """Lend a new folder to build something in, and clear away those of runs that were interrupted.

    Each run has its own, since what an interrupted run started may still be writing into the old one.
    """
    for abandoned in home.glob(f"{name}.partial-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}.partial-", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def disable_service(name: str, log: Path) -> None:
    """Keep a service that we brought from starting, now or at the next boot."""
    if Path("/run/systemd/system").exists():
        run(["systemctl", "disable", "--now", name], log, f"disabling Debian's own {name} service")
    elif shutil.which("update-rc.d"):
        run(["update-rc.d", name, "disable"], log, f"disabling Debian's own {name} service")


def debian_mirror(log: Path) -> str:
    """Return the address that this machine's own apt takes Debian's main packages from."""
    query = (
        "apt-get",
        "indextargets",
        "--format",
        "$(LABEL)|$(COMPONENT)|$(REPO_URI)",
        "Created-By: Packages",
    )
    wanted = "Debian|main|"
    if wanted not in output_of(*query):
        run(["apt-get", "update"], log, "apt-get update (is there a network?)")
    for line in output_of(*query).splitlines():
        if line.startswith(wanted):
            return line.removeprefix(wanted)
    raise SetupError("apt knows no source of Debian's main packages; see /etc/apt/sources.list.d")


def free_port(preferred: int | None = None) -> int:
    """Return a loopback port nobody listens on: the preferred one if possible.

    Below the range the system gives to outgoing connections, so that none takes it before the engine does.
    """
    candidates = [preferred] if preferred else []
    for port in [*candidates, *random.sample(range(20_000, 32_000), 100)]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise SetupError("no free port found on 127.0.0.1 between 20000 and 32000")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:  # noqa: PTH123
        out.write(text)
    draft.replace(path)


# --- processes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A process that this script started. Pid, start time and boot together are never reused."""

    pid: int
    start_time: str  # clock ticks since boot, as in /proc/PID/stat
    boot: str
    port: int

    @classmethod
    def of(cls, pid: int, port: int) -> Started:
        """Remember a process that was just started."""
        return cls(pid, process_start_time(pid), boot_id(), port)

    def alive(self) -> bool:
        """Tell whether exactly this process still runs."""
        return self.start_time != "" and (process_start_time(self.pid), boot_id()) == (
            self.start_time,
            self.boot,
        )

    def end(self, graceful: signal.Signals) -> None:
        """Ask it to stop and wait; kill its whole session if it does not."""
        for kind in (graceful, signal.SIGKILL):
            if not self.alive():
                return
            with contextlib.suppress(ProcessLookupError):
                if kind is signal.SIGKILL:
                    os.killpg(self.pid, kind)
                else:
                    os.kill(self.pid, kind)
            deadline = time.monotonic() + STOP_SECONDS
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.05)
        if self.alive():
            raise SetupError(f"process {self.pid} does not end, not even when killed")


def process_start_time(pid: int) -> str:
    """Return field 22 of /proc/PID/stat, or "" when the process is gone or a zombie."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""


def boot_id() -> str:
    """Return what is different after each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


# --- the engines ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine(ABC):
    """One engine in `home`: how it is installed, started and asked whether it answers."""

    home: Path
    name: ClassVar[str]
    title: ClassVar[str]
    variable: ClassVar[str]
    graceful: ClassVar[signal.Signals] = signal.SIGTERM

    @property
    def log(self) -> Path:
        """Where the engine writes."""
        return self.home / "logs" / f"{self.name}.log"

    @property
    def data(self) -> Path:
        """Where the engine keeps what must outlive a restart."""
        return self.home / "data" / self.name

    @abstractmethod
    def missing(self) -> str:
        """Say what is not installed; "" when the engine can start."""

    @abstractmethod
    def install(self, log: Path) -> None:
        """Install what is missing. An interrupted installation is no installation: doing it again repairs it."""

    @abstractmethod
    def prepare(self, port: int) -> list[str]:
        """Write settings and first data; return the command that runs the engine in the foreground."""

    @abstractmethod
    def answers(self, port: int) -> bool:
        """Ask the engine something real. May raise OSError while it is not there yet."""

    def settle(self, port: int) -> None:  # noqa: B027 - most engines need nothing
        """Do what needs the running engine before others may use it; doing it again changes nothing."""

    @abstractmethod
    def url(self, port: int) -> str:
        """Return the address that Citylab's setting takes."""


class Mosquitto(Engine):
    """Debian's Mosquitto on a port of ours."""

    name = "mosquitto"
    title = "Mosquitto"
    variable = "CITYLAB_BROKER_URL"

    @property
    def unfinished(self) -> Path:
        """A mark that is there while the package is being installed."""
        return self.home / "mosquitto.partial"

    def missing(self) -> str:
        """Look for the programs."""
        if self.unfinished.exists():
            return "its installation was interrupted"
        # The documents' tests publish with mosquitto_pub; where it cannot be installed the broker runs without it.
        programs = ("mosquitto", "mosquitto_pub") if os.geteuid() == 0 else ("mosquitto",)
        lacking = [name for name in programs if not shutil.which(name, path=SYSTEM_PATH)]
        return f"no program {lacking[0]}" if lacking else ""

    def install(self, log: Path) -> None:
        """Install the package without its service; one that was there before keeps its service."""
        if os.geteuid() != 0:
            apt_install(["mosquitto"], log)  # says what root has to do
            return
        self.unfinished.touch()
        apt_install(["mosquitto", "mosquitto-clients"], log)
        disable_service("mosquitto", log)
        self.unfinished.unlink()

    def prepare(self, port: int) -> list[str]:
        """Write the configuration. Started by root, Mosquitto reads it and then becomes user mosquitto."""
        logging = {"log_dest": "stderr", "log_timestamp_format": "%Y-%m-%dT%H:%M:%S"}
        settings = {"listener": f"{port} 127.0.0.1"} | MOSQUITTO_SETTINGS | logging
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.data / "mosquitto.conf"
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        return [shutil.which("mosquitto", path=SYSTEM_PATH) or "mosquitto", "-c", str(config)]

    def answers(self, port: int) -> bool:
        """MQTT 3.1.1, 3.1 and 3.2: a CONNECT with a clean session is answered by CONNACK with code 0."""
        client = b"citylab-engines"
        body = b"\x00\x04MQTT\x04\x02\x00\x0a" + struct.pack(">H", len(client)) + client
        with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
            link.sendall(bytes([0x10, len(body)]) + body)
            answer = receive(link, 4)
            link.sendall(b"\xe0\x00")  # DISCONNECT
        return answer == b"\x20\x02\x00\x00"

    def url(self, port: int) -> str:
        """Return mqtt://..."""
        return f"mqtt://127.0.0.1:{port}"


class Kafka(Engine):
    """Apache Kafka from its Maven artifacts: one node that is broker and controller."""

    name = "kafka"
    title = f"Apache Kafka {KAFKA_VERSION}"
    variable = "CITYLAB_LOG_URL"

    @property
    def libs(self) -> Path:
        """The broker's jars. The folder is there only when it is complete."""
        return self.home / f"kafka-{KAFKA_VERSION}"

    def missing(self) -> str:
        """Look for the jars and for Java."""
        if not self.libs.is_dir():
            return f"no {self.libs}"
        return "" if find_java() else f"no Java {JAVA_MINIMUM} or later"

    def install(self, log: Path) -> None:
        """Let Maven copy the broker's jars, from wherever this machine's Maven takes artifacts."""
        if not find_java():
            apt_install([JAVA_PACKAGE.get(debian_release(), "default-jre-headless")], log)
        if not find_java():
            raise SetupError(f"Kafka needs Java {JAVA_MINIMUM} or later, and none was found; set JAVA_HOME")
        if self.libs.is_dir():
            return
        if not shutil.which("mvn"):
            apt_install(["maven"], log)
        with workshop(self.home, "kafka") as project:
            (project / "pom.xml").write_text(kafka_pom())
            maven = ["mvn", "-B", "-q", "-f", str(project / "pom.xml"), "-DincludeScope=runtime"]
            goal = [f"-DoutputDirectory={project / 'libs'}", f"{MAVEN_DEPENDENCY_PLUGIN}:copy-dependencies"]
            run([*maven, *goal], log, "fetching Kafka with Maven")
            (project / "libs").rename(self.libs)

    def _java(self, main_class: str, *arguments: str) -> list[str]:
        logger = "-Dorg.slf4j.simpleLogger."
        log_form = [f"{logger}showDateTime=true", f"{logger}dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss"]
        machine = [find_java(), KAFKA_HEAP, "-XX:+ExitOnOutOfMemoryError", *log_form, "-cp", f"{self.libs}/*"]
        return [*machine, main_class, *arguments]

    def prepare(self, port: int) -> list[str]:
        """Write the configuration; format the storage the first time."""
        controller = free_port()
        settings = KAFKA_SETTINGS | {
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.listener.names": "CONTROLLER",
            # Static voters are read at each start, so that the controller's port may change.
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self.data / "log"),
        }
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.data / "server.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        if not (self.data / "log" / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            options = ["--ignore-formatted", f"--cluster-id={cluster}", f"--config={config}"]
            formatter = self._java("kafka.tools.StorageTool", "format", *options)
            run(formatter, self.home / "logs" / "install.log", "formatting Kafka's storage")
        return self._java("kafka.Kafka", str(config))

    def answers(self, port: int) -> bool:
        """ApiVersions answers, and a consumer group finds its coordinator.

        The latter makes Kafka create its offsets topic, which else costs the first consumer some seconds.
        """
        group = b"citylab-engines"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
            versions = kafka_request(link, api=18, version=0, body=b"")
            find = struct.pack(">h", len(group)) + group + b"\x00"  # key, key type: group
            coordinator = kafka_request(link, api=10, version=1, body=find)
        # ApiVersions v0 begins with its error code, FindCoordinator v1 with the throttle time (int32)
        return versions[:2] == b"\x00\x00" and coordinator[4:6] == b"\x00\x00"

    def url(self, port: int) -> str:
        """Return kafka://..."""
        return f"kafka://127.0.0.1:{port}"


class Postgres(Engine):
    """PostgreSQL with TimescaleDB from Debian 13: the machine's own, or in a folder of its own on Debian 12."""

    name = "postgres"
    title = f"PostgreSQL {POSTGRES_VERSION} with TimescaleDB"
    variable = "CITYLAB_STORE_URL"
    graceful = signal.SIGINT  # PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave

    @property
    def root(self) -> Path:
        """The root folder of the Debian that holds PostgreSQL. A made one is there only when it is complete."""
        made = self.home / f"postgresql-{POSTGRES_VERSION}-{POSTGRES_SUITE}"
        return Path("/") if debian_release() == "13" else made

    def missing(self) -> str:
        """Look for the extension, which depends on the server."""
        extension = self.root / f"usr/share/postgresql/{POSTGRES_VERSION}/extension/timescaledb.control"
        return "" if extension.exists() else f"no {extension}"

    def install(self, log: Path) -> None:
        """Install Debian 13's packages, on Debian 12 with a small Debian 13 around them."""
        release = debian_release()
        if not release:
            raise SetupError("comes from Debian's packages, and this is not Debian 12 or 13; use one by URL")
        if not self.missing():
            return
        if release == "13":
            apt_install(POSTGRES_PACKAGES, log)
            return
        if os.geteuid() != 0:
            raise SetupError("on Debian 12 it lives in a folder made by debootstrap, which needs root")
        apt_install(["debootstrap"], log)
        with workshop(self.home, "postgresql") as draft:
            root = draft / "root"
            # A mount namespace of its own: an interrupted debootstrap leaves no mount behind to be walked into.
            command = ["unshare", "--mount", "debootstrap", "--variant=minbase"]
            what = [f"--include={','.join(POSTGRES_PACKAGES)}", POSTGRES_SUITE, str(root), debian_mirror(log)]
            run([*command, *what], log, "installing PostgreSQL with debootstrap")
            # The packages' files, and the cluster `main` that the packages make.
            for spent in ("var/cache/apt/archives", "var/lib/postgresql", "etc/postgresql"):
                for entry in (root / spent).glob("*"):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            root.rename(self.root)

    @property
    def inside(self) -> Path:
        """Where the server sees `data`: mounted over its home when root starts it, else as everybody does."""
        return Path("/var/lib/postgresql") if os.geteuid() == 0 else self.data

    def _server_program(self, name: str, *arguments: str) -> list[str]:
        """Return the command that runs a PostgreSQL program: for root, as user `postgres` inside `root`.

        The mounts live in a mount namespace of that process and go with it: nothing is ever mounted twice or
        left to be unmounted, and `home` need not be open to that user.
        """
        command = [f"/usr/lib/postgresql/{POSTGRES_VERSION}/bin/{name}", *arguments]
        if os.geteuid() != 0:
            return command
        uid, gid = self._server_user()
        script = f"""set -e; root=$1; data=$2; shift 2
            mount --bind "$data" "$root{self.inside}"
            if [ "$root" != / ]; then mount -t proc proc "$root/proc"; mount -t tmpfs tmpfs "$root/dev/shm"; fi
            exec chroot --userspec={uid}:{gid} --groups={gid} "$root" "$@" """
        return ["unshare", "--mount", "sh", "-c", script, "sh", str(self.root), str(self.data), *command]

    def _server_user(self) -> tuple[int, int]:
        for line in (self.root / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == "postgres":
                return int(uid), int(gid)
        raise SetupError(f"no user postgres in {self.root}: remove that folder and install again")

    def _passwords(self) -> dict[str, str]:
        """Return the passwords of the roles, drawn once."""
        path = self.home / "passwords.json"
        if not path.exists():
            drawn = {role: secrets.token_hex(16) for role in ("postgres", "citylab")}
            write_private(path, json.dumps(drawn))
        passwords: dict[str, str] = json.loads(path.read_text())
        return passwords

    def prepare(self, port: int) -> list[str]:
        """Write the configuration; make the database cluster the first time."""
        if os.geteuid() != 0 and self.root != Path("/"):
            raise SetupError("on Debian 12 it runs in a folder of its own (chroot), which needs root")
        self.data.mkdir(parents=True, exist_ok=True)
        self._hand_over(self.data)
        if not (self.data / "cluster").exists():
            self._initdb()
        own = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
        config = self.data / "citylab.conf"
        config.write_text("".join(f"{key} = '{value}'\n" for key, value in (POSTGRES_SETTINGS | own).items()))
        places = ["-D", str(self.inside / "cluster"), "-c", f"config_file={self.inside / config.name}"]
        return self._server_program("postgres", *places)

    def _hand_over(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, *self._server_user())

    def _initdb(self) -> None:
        draft, password = self.data / "cluster.partial", self.data / "superuser-password"
        shutil.rmtree(draft, ignore_errors=True)
        write_private(password, self._passwords()["postgres"])
        self._hand_over(password)
        options = ["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        places = [f"--pwfile={self.inside / password.name}", f"--pgdata={self.inside / draft.name}"]
        run(self._server_program("initdb", *options, *places), self.home / "logs" / "install.log", "initdb")
        password.unlink()
        draft.rename(self.data / "cluster")

    def _psql(self, port: int, sql: str, role: str = "postgres") -> str:
        """Run SQL in the role's own database, on standard input: no password appears in the process list."""
        place = f"host=127.0.0.1 port={port} user={role} dbname={role} connect_timeout=5"
        command = self._server_program("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", place)
        env = {"PATH": SYSTEM_PATH, "PGPASSWORD": self._passwords()[role], "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command, input=sql, capture_output=True, text=True, env=env, check=False, timeout=30
        )
        if done.returncode != 0:
            raise ConnectionError(done.stderr.strip())
        return done.stdout.strip()

    def answers(self, port: int) -> bool:
        """Run a query."""
        return self._psql(port, "SELECT 1") == "1"

    def settle(self, port: int) -> None:
        """Make role and database `citylab`, and see that TimescaleDB works for that role.

        The role is no superuser: TimescaleDB is a trusted extension, so whoever owns a database can create it.
        """
        known = self._psql(port, "SELECT 1 FROM pg_roles WHERE rolname = 'citylab'")
        verb, password = "ALTER" if known else "CREATE", self._passwords()["citylab"]
        self._psql(port, f"{verb} ROLE citylab LOGIN CREATEDB CREATEROLE PASSWORD '{password}'")
        if not self._psql(port, "SELECT 1 FROM pg_database WHERE datname = 'citylab'"):
            self._psql(port, "CREATE DATABASE citylab OWNER citylab")
        quietly = "SET client_min_messages = error; "
        self._psql(port, f"{quietly} CREATE EXTENSION IF NOT EXISTS timescaledb", role="citylab")

    def url(self, port: int) -> str:
        """Return postgresql://... with the role's password."""
        return f"postgresql://citylab:{self._passwords()['citylab']}@127.0.0.1:{port}/citylab"


# In the order of starting and waiting: the slowest last.
ENGINES: tuple[type[Engine], ...] = (Mosquitto, Postgres, Kafka)


def find_java() -> str:
    """Return a Java that is new enough, or ""."""
    candidates = [shutil.which("java") or "", *map(str, sorted(Path("/usr/lib/jvm").glob("*/bin/java")))]
    if home := os.environ.get("JAVA_HOME"):
        candidates.insert(0, f"{home}/bin/java")
    for java in filter(None, candidates):
        version = re.search(r'version "(\d+)', output_of(java, "-version"))
        if version and int(version[1]) >= JAVA_MINIMUM:
            return java
    return ""


def kafka_pom() -> str:
    """Return a Maven project that depends on nothing but the broker and a logger that writes to stderr."""
    broker = coordinates("org.apache.kafka", f"kafka_{SCALA_VERSION}", KAFKA_VERSION)
    logger = coordinates("org.slf4j", "slf4j-simple", SLF4J_VERSION)
    project = element("modelVersion", "4.0.0") + coordinates("citylab", "engines", "1")
    needed = element("dependency", broker) + element("dependency", logger)
    return element("project", project + element("dependencies", needed))


def element(name: str, content: str) -> str:
    """Return an XML element."""
    return f"<{name}>{content}</{name}>"


def coordinates(group: str, artifact: str, version: str) -> str:
    """Return Maven's three names of one artifact."""
    return element("groupId", group) + element("artifactId", artifact) + element("version", version)


def receive(link: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes; raise ConnectionError when the other side ends before."""
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        if not part:
            raise ConnectionError("closed")
        data += part
    return data


def kafka_request(link: socket.socket, *, api: int, version: int, body: bytes) -> bytes:
    """Send one Kafka request (header version 1, no client id) and return the body of its response."""
    request = struct.pack(">hhih", api, version, 1, -1) + body
    link.sendall(struct.pack(">i", len(request)) + request)
    (size,) = struct.unpack(">i", receive(link, 4))
    return receive(link, size)[4:]  # after the correlation id


# --- the commands -----------------------------------------------------------------------------------------


class Fleet:
    """The chosen engines in one folder, and which of them this script started."""

    def __init__(self, home: Path, names: Sequence[str]) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        self.home = home
        self.engines = [kind(home) for kind in ENGINES if kind.name in names]
        self.everything = [kind(home) for kind in ENGINES]

    def _started(self) -> dict[str, Started]:
        path = self.home / "started.json"
        records: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        return {name: Started(**record) for name, record in records.items()}

    def _remember(self, name: str, process: Started) -> None:
        records = {known: asdict(record) for known, record in (self._started() | {name: process}).items()}
        write_private(self.home / "started.json", json.dumps(records, indent=1))

    def environment(self) -> str:
        """Return KEY=VALUE lines for the engines that run."""
        started = self._started()
        alive = {name: process.port for name, process in started.items() if process.alive()}
        return "".join(f"{e.variable}={e.url(alive[e.name])}\n" for e in self.everything if e.name in alive)

    def _publish(self) -> None:
        write_private(self.home / "engines.env", self.environment())

    def install(self) -> int:
        """Install what is missing; go on with the next engine when one fails."""
        failed = False
        log = self.home / "logs" / "install.log"
        with locked(self.home / "lock"), services_held_back():
            for engine in self.engines:
                if not engine.missing():
                    say(f"{engine.title}: is installed")
                    continue
                say(f"{engine.title}: installing ...")
                began = time.monotonic()
                try:
                    engine.install(log)
                except SetupError as error:
                    say(f"{engine.title}: {error}")
                    failed = True
                else:
                    say(f"{engine.title}: installed ({time.monotonic() - began:.1f} s)")
        return int(failed)

    def start(self) -> int:
        """Start all, then wait for each; what fails is ended and does not keep the others from running."""
        failed = False
        with locked(self.home / "lock"):
            waiting: list[tuple[Engine, Started, float]] = []
            for engine in self.engines:
                if reason := engine.missing():
                    repair = f"{sys.argv[0]} install --only {engine.name}"
                    say(f"{engine.title}: NOT INSTALLED ({reason}); run: {repair}")
                    continue
                try:
                    fresh = self._launch(engine)
                except (SetupError, OSError) as error:
                    say(f"{engine.title}: {error}")
                    failed = True
                    continue
                if fresh:
                    waiting.append((engine, fresh, time.monotonic()))
            for engine, process, began in waiting:
                try:
                    wait_until_it_answers(engine, process)
                except SetupError as error:
                    process.end(engine.graceful)
                    say(f"{engine.title}: {error}")
                    failed = True
                else:
                    say(f"{engine.title}: started on port {process.port} ({time.monotonic() - began:.1f} s)")
            self._publish()
        if not self.environment():
            say("no engine runs")
            return 1
        say(f"addresses: {self.home / 'engines.env'}")
        return int(failed)

    def _launch(self, engine: Engine) -> Started | None:
        """Start the engine's process; None when a healthy one runs already."""
        before = self._started().get(engine.name)
        if before and before.alive():
            if healthy(engine, before.port):
                say(f"{engine.title}: runs already on port {before.port}")
                return None
            say(f"{engine.title}: runs but does not answer; starting it again")
            before.end(engine.graceful)
        port = free_port(before.port if before else None)
        argv = engine.prepare(port)
        if engine.log.exists():
            engine.log.replace(engine.log.with_suffix(".log.1"))
        with engine.log.open("w") as out:
            # Nothing of the person's goes into a service.
            env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"} | KEPT_MEMORY
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env,
                cwd=engine.data,
                start_new_session=True,
            )
        process = Started.of(child.pid, port)
        self._remember(engine.name, process)
        return process

    def run(self) -> int:
        """Start, and stay until one of them ends or we are told to end; then end all. For a supervisor."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            if self.start():
                return 1
            started = self._started()
            running = [started[engine.name] for engine in self.engines if engine.name in started]
            while all(process.alive() for process in running):
                time.sleep(0.1)
            return 1
        finally:
            self.stop()
            with contextlib.suppress(ChildProcessError):  # a zombie's lock files look valid to the next one
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    def stop(self) -> int:
        """End what this script started, and nothing else."""
        with locked(self.home / "lock"):
            started = self._started()
            for engine in self.engines:
                process = started.get(engine.name)
                if process and process.alive():
                    process.end(engine.graceful)
                    say(f"{engine.title}: stopped")
                else:
                    say(f"{engine.title}: did not run")
            self._publish()
        return 0

    def status(self) -> int:
        """Print one line an engine."""
        started = self._started()
        all_run = True
        for engine in self.engines:
            process = started.get(engine.name)
            if process and process.alive():
                state = "runs" if healthy(engine, process.port) else "DOES NOT ANSWER"
                print(f"{engine.name:10} {state}, port {process.port}, pid {process.pid}, log {engine.log}")
                all_run = all_run and state == "runs"
            else:
                reason = engine.missing()
                state = f"not installed: {reason}" if reason else "installed, does not run"
                print(f"{engine.name:10} {state}")
                all_run = False
        return 0 if all_run else 1

    def env(self) -> int:
        """Print the addresses."""
        lines = self.environment()
        print(lines, end="")
        if not lines:
            say(f"no engine runs; run: {sys.argv[0]} start")
        return 0 if lines else 1


def healthy(engine: Engine, port: int) -> bool:
    """Tell whether the engine answers now."""
    try:
        return engine.answers(port)
    except (OSError, subprocess.TimeoutExpired):
        return False


def wait_until_it_answers(engine: Engine, process: Started) -> None:
    """Return when the engine answered and is settled; raise with the end of its log when it does not in time."""
    deadline = time.monotonic() + START_SECONDS
    said = "no answer"
    while time.monotonic() < deadline:
        if not process.alive():
            raise SetupError(f"ended while starting. The end of {engine.log}:\n{last_lines(engine.log)}")
        try:
            if engine.answers(process.port):
                engine.settle(process.port)
                return
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        time.sleep(0.1)
    late = f"not ready after {START_SECONDS:.0f} s ({said})"
    raise SetupError(f"{late}. The end of {engine.log}:\n{last_lines(engine.log)}")


def arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description="Install and run Mosquitto, Apache Kafka and PostgreSQL with TimescaleDB natively on Debian, "
        "on loopback and free ports.",
        epilog="Exit codes: 0 done, 1 something is missing or failed (the message says what), 2 wrong usage. "
        "Typical use: engines.py install && engines.py start && export $(engines.py env)",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--dir",
        type=Path,
        default=Path("~/.cache/citylab/engines"),
        metavar="DIR",
        help="folder of installation, data, logs and engines.env (default: %(default)s, shared by all clones)",
    )
    shared.add_argument(
        "--only",
        action="append",
        choices=[kind.name for kind in ENGINES],
        metavar="ENGINE",
        help="only this engine: mosquitto, kafka or postgres; may be repeated",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {
        "install": "install what is missing (root, once); quick when done",
        "start": "start what is installed and not running, wait until it answers, write DIR/engines.env",
        "run": "start, stay, and stop all when one of them ends or this is told to end (SIGTERM, Ctrl-C)",
        "stop": "stop what this script started; data stays",
        "status": "say for each engine whether it is installed, runs and answers; 0 if all do",
        "env": "print CITYLAB_*_URL=... of the engines that run",
    }.items():
        commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[shared])
    return parser


def main() -> int:
    """Run one command."""
    options = arguments().parse_args()
    os.umask(
        0o022
    )  # packages' scripts and the server's user count on it; secrets are written 0600 all the same
    try:
        fleet = Fleet(options.dir.expanduser().resolve(), options.only or [kind.name for kind in ENGINES])
        command: Callable[[], int] = getattr(fleet, options.command)
        return command()
    except SetupError as error:
        say(str(error))
    except OSError as error:
        say(f"{error.filename or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        say("interrupted; run the same command again to finish")
    return 1


if __name__ == "__main__":
    sys.exit(main())
