"""A PostgreSQL of a test's own, and one with a standby that follows it: the one can be killed, and the other promoted."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol

import psycopg
from city_engines import DistantStore, free_port
from engines import SCRIPT, missing, url_of

from citylab.adapters.child import last_lines, start_child, stop, wait
from citylab.adapters.embedded_postgres import ACCOUNT, EmbeddedPostgres
from citylab.adapters.migrations import migrate

ANSWERS_WITHIN = 20.0  # s
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "autovacuum": "off",
}
_INITDB = ("-U", "citylab", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
_TIMESCALE = {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}


class Programs(Protocol):
    """PostgreSQL's programs for one folder; `inside` is how they see it."""

    inside: Path
    user: str | None
    settings: dict[str, str]

    def command(self, name: str, *arguments: str) -> list[str]: ...


class Embedded:
    """Those of the wheel."""

    settings = _SETTINGS

    def __init__(self, folder: Path) -> None:
        self.inside = folder
        self.user = ACCOUNT if os.geteuid() == 0 else None
        folder.mkdir(exist_ok=True)
        server = EmbeddedPostgres(folder)
        server._prepare()
        self._programs = server._binaries()

    def command(self, name: str, *arguments: str) -> list[str]:
        return [str(self._programs / name), *arguments]


class Installed:
    """Those that deploy/engines.py has installed, with TimescaleDB."""

    settings = _SETTINGS | _TIMESCALE
    user = None  # they change it themselves

    def __init__(self, folder: Path) -> None:
        url_of("STORE")  # says how to install it
        spec = spec_from_file_location("citylab_deploy_engines", SCRIPT)
        assert spec
        assert spec.loader
        engines = sys.modules[spec.name] = module_from_spec(spec)
        spec.loader.exec_module(engines)
        installed = engines.Postgres(Path("~/.cache/citylab/engines").expanduser())
        if installed.missing():
            missing("no local PostgreSQL to kill: python3 deploy/engines.py install --only postgres")
        folder.mkdir(exist_ok=True)
        if installed.root != Path("/"):
            (folder / installed.root.name).symlink_to(installed.root)
        self._postgres = engines.Postgres(folder)
        self._postgres.data.mkdir(parents=True)
        self._postgres._hand_over(self._postgres.data)
        self.inside = self._postgres.inside

    def command(self, name: str, *arguments: str) -> list[str]:
        command: list[str] = self._postgres._server_program(name, *arguments)
        return command


class Server:
    """A server in a folder, on a port that it keeps."""

    def __init__(self, programs: Programs, password: str, log_file: Path) -> None:
        self.programs, self.password, self.log_file = programs, password, log_file
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", port: int = 0) -> str:
        return f"postgresql://citylab:{self.password}@127.0.0.1:{port or self.port}/{database}"

    def run(self, name: str, *arguments: str) -> None:
        command = self.programs.command(name, *arguments)
        child = start_child(command, log_file=self.log_file, user=self.programs.user)
        assert asyncio.run(wait(child, ANSWERS_WITHIN)) == 0, last_lines(self.log_file)

    def start(self) -> None:
        settings = [
            part for name, value in self.programs.settings.items() for part in ("-c", f"{name}={value}")
        ]
        places = ["-D", str(self.programs.inside / "data"), "-p", str(self.port)]
        command = self.programs.command("postgres", *places, *settings)
        self.process = start_child(command, log_file=self.log_file, user=self.programs.user)
        deadline = time.monotonic() + ANSWERS_WITHIN
        while True:
            try:
                self.fetch("SELECT 1")
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, last_lines(self.log_file)
                time.sleep(0.02)
            else:
                return

    def fetch(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """As a crash would."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process:
            asyncio.run(stop(self.process, signal.SIGQUIT))


class Pair:
    """A primary and the standby that follows it over a line that can be cut."""

    def __init__(self, primary: Server, standby: Server, line: DistantStore) -> None:
        self.primary, self.standby, self.line = primary, standby, line

    def url(self, *servers: Server, asks: str = "") -> str:
        """The URL of the migrated database on these servers, in this order."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        return f"postgresql://citylab:{self.primary.password}@{hosts}/citylab{asks}"

    def follow_synchronously(self) -> None:
        """From now on the primary commits nothing that the standby has not got."""
        self.primary.fetch("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.fetch("SELECT pg_reload_conf()")
        self._until(self.primary, "SELECT true FROM pg_stat_replication WHERE sync_state = 'sync'")

    def stop_following(self) -> None:
        """The standby gets everything up to now, and nothing more."""
        ((place,),) = self.primary.fetch("SELECT pg_current_wal_insert_lsn()")
        self._until(self.standby, f"SELECT true WHERE pg_last_wal_replay_lsn() >= '{place}'")
        self.line.stop()

    def promote(self) -> None:
        self.standby.fetch("SELECT pg_promote()")

    def _until(self, server: Server, sql: str) -> None:
        deadline = time.monotonic() + ANSWERS_WITHIN
        while not server.fetch(sql):
            assert time.monotonic() < deadline, f"{sql}\n{last_lines(server.log_file)}"
            time.sleep(0.02)


@contextmanager
def pair(kind: str, folder: Path) -> Iterator[Pair]:
    """A server as below, with a standby."""
    with ExitStack() as stack:
        primary = stack.enter_context(server(kind, folder / "primary"))
        line = DistantStore(primary.url())
        line.start()
        stack.callback(line.close)
        standby = Server(_programs(kind, folder / "standby"), primary.password, folder / "standby.log")
        stack.callback(standby.close)
        data = str(standby.programs.inside / "data")
        standby.run("pg_basebackup", "-d", line.url, "-D", data, "-R", "-c", "fast", "--no-sync")
        standby.start()
        yield Pair(primary, standby, line)


@contextmanager
def server(kind: str, folder: Path) -> Iterator[Server]:
    """A server of the set of engines `kind`, whose database `citylab` is migrated."""
    made = Server(_programs(kind, folder), secrets.token_hex(8), folder.with_suffix(".log"))
    try:
        made.run("initdb", "-D", str(made.programs.inside / "data"), *_INITDB)
        made.start()
        made.fetch("CREATE DATABASE citylab")
        asyncio.run(migrate(made.url("citylab")))
        yield made
    finally:
        made.close()


def _programs(kind: str, folder: Path) -> Programs:
    return Embedded(folder) if kind == "embedded" else Installed(folder)
