"""An archive of the store: a base backup, and all WAL that was written since, received as it is written.

PostgreSQL's own programs make it, pg_basebackup and pg_receivewal; a replication slot has the store keep what the archive
lacks. In the folder: `archive.json`, `base/`, `wal/`, an embedded store's `password`, and in `before-1/` and so on the archives
that ended.
"""

import asyncio
import fcntl
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec
import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict

from citylab.adapters.child import last_lines, start_child, stop, wait
from citylab.adapters.postgres import Connection, primary, translated
from citylab.adapters.postgres_programs import program, reaching
from citylab.archive_watch import SLOTS
from citylab.errors import CitylabError, ConfigurationError, Unavailable
from citylab.times import format_instant

log = structlog.get_logger()
FORMAT = 1
ARCHIVE, BASE, WAL, PASSWORD = "archive.json", "base", "wal", "password"
MANIFEST = "backup_manifest"  # in the base backup, PostgreSQL's own
_PARTS = (ARCHIVE, BASE, WAL, PASSWORD)
_PAUSES = (0.2, 5.0)  # s between attempts, from the first to the longest
_ABOUT = """
SELECT (SELECT system_identifier FROM pg_control_system()), current_setting('server_version_num')::int / 10000,
    substring(version() FROM ' on ([^- ]+)'), (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
    rolname::text, rolsuper OR rolreplication, current_setting('wal_level'), current_setting('max_slot_wal_keep_size'),
    CASE WHEN rolsuper THEN current_setting('data_directory') END
FROM pg_roles WHERE rolname = current_user
"""


class Archive(msgspec.Struct, frozen=True):
    """What an archive is of. major, machine: the server's; since: the earliest instant it restores, none without a base."""

    format: int
    citylab: str
    system: int
    major: int
    machine: str
    segment_bytes: int
    slot: str
    since: str = ""


class _Server(NamedTuple):
    """The store's server, and what this role may do there."""

    system: int
    major: int
    machine: str
    segment_bytes: int
    role: str
    may_replicate: bool
    wal_level: str
    keeps: str
    data: str | None


class _Stopped(CitylabError):
    """A program ended, or the folder cannot be written: it is tried again."""


def read_archive(folder: Path) -> Archive | None:
    """What the folder says of itself; None where no archive is. Raises `ConfigurationError`."""
    try:
        return msgspec.json.decode((folder / ARCHIVE).read_bytes(), type=Archive)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"{folder / ARCHIVE} is no archive that this Citylab knows: {error}"
        ) from error


def wal_range(base: Path) -> tuple[int, int, str]:
    """A base backup's timeline, the LSN from which on it needs WAL, and the one up to which it does."""
    manifest = msgspec.json.decode((base / MANIFEST).read_bytes())
    (needed,) = manifest["WAL-Ranges"]
    return needed["Timeline"], lsn(needed["Start-LSN"]), needed["End-LSN"]


def lsn(text: str) -> int:
    """A place in the WAL, in bytes."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def segments(folder: Path, timeline: int, segment_bytes: int) -> dict[int, Path]:
    """The archived WAL of a timeline, by number; the last one grows and is called `.partial`."""
    found = {}
    for path in (folder / WAL).iterdir():
        if name := re.fullmatch(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.partial)?", path.name):
            number = int(name[2], 16) * ((1 << 32) // segment_bytes) + int(name[3], 16)
            if int(name[1], 16) == timeline and (number not in found or not name[4]):
                found[number] = path
    return found


async def keep_archive(address: Callable[[], str], folder: Path, *, version: str, new_base: bool) -> NoReturn:
    """Archive the store until cancelled, and go on whenever it is back. address: its URL, which can change meanwhile.

    new_base: begin with another base backup, and let go of what is older. Raises `ConfigurationError` for what cannot
    work, but only before it has worked.
    """
    keeper = _Keeper(address, folder, version, new_base=new_base)
    with _alone(folder):
        await keeper.run()


async def end_archive(url: str, folder: Path) -> None:
    """Have the store keep nothing for an archive any more; what is in the folder stays. Raises as `keep_archive` does."""
    archive = read_archive(folder)
    if archive is None:
        raise ConfigurationError(f"{folder} is no archive")
    with _alone(folder), translated():
        async with await psycopg.AsyncConnection.connect(
            primary(url), autocommit=True, connect_timeout=5
        ) as connection:
            await _fetch(
                connection,
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                archive.slot,
            )


class _Keeper:
    def __init__(self, address: Callable[[], str], folder: Path, version: str, *, new_base: bool) -> None:
        self._address, self._folder, self._version = address, folder, version
        self._new_base = new_base
        self._log_file = folder / "programs.log"
        self._worked = False
        self._said = ""
        self._pause = _PAUSES[0]

    async def run(self) -> NoReturn:
        while True:
            try:
                await self._receive()
            except ConfigurationError as error:
                if not self._worked:
                    raise
                self._say(error)
            except (Unavailable, _Stopped) as error:
                self._say(error)
            except OSError as error:
                self._say(_Stopped(f"{self._folder} cannot be written: {error}"))
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, _PAUSES[1])

    def _ended(self) -> _Stopped:
        return _Stopped(f"it ended: {last_lines(self._log_file, 1)}")

    def _say(self, error: CitylabError) -> None:
        if self._said != str(error):
            log.warning("nothing is archived; trying again", why=str(error))
        self._said = str(error)

    async def _receive(self) -> None:
        """Receive WAL until it ends, which raises; take a base backup first where there is none."""
        url = primary(self._address())
        receiver: subprocess.Popen[bytes] | None = None
        try:
            with translated():
                async with await psycopg.AsyncConnection.connect(
                    url, autocommit=True, connect_timeout=5
                ) as connection:
                    archive = await self._archive(connection, url)
                    receiver = self._start("pg_receivewal", archive, url, self._folder / WAL,
                        f"--slot={archive.slot}", "--synchronous", "--no-loop")  # fmt: skip
                    await self._received(connection, archive, receiver)
                    if self._new_base or not archive.since:
                        archive = await self._take_base(connection, archive, url, receiver)
            log.info("archiving", folder=str(self._folder), since=archive.since)
            self._worked, self._said, self._pause = True, "", _PAUSES[0]
            await wait(receiver)
            raise self._ended()
        finally:
            if receiver:
                await stop(receiver)

    def _start(
        self, name: str, archive: Archive, url: str, folder: Path, *options: str
    ) -> subprocess.Popen[bytes]:
        where, environment = reaching(url)
        command = [
            str(program(name, archive.major)),
            "-d",
            where,
            "-D",
            str(folder),
            "--no-password",
            *options,
        ]
        return start_child(command, log_file=self._log_file, env=environment)

    async def _archive(self, connection: Connection, url: str) -> Archive:
        """The folder's archive, which the store keeps WAL for; a new one where there is none that can go on."""
        server = _Server(*(await _fetch(connection, _ABOUT))[0])
        _refuse(server)
        archive = read_archive(self._folder)
        if archive and archive.system != server.system:
            raise ConfigurationError(f"{self._folder} is the archive of another store: name another folder")
        if archive:
            slot = await _fetch(
                connection, "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", archive.slot
            )
            if slot and slot != [("lost",)]:
                return archive
            earlier = _set_aside(self._folder, archive)
            log.warning(
                "the store has not kept what this archive lacks: beginning a new one", earlier=str(earlier)
            )
            if slot:
                await _fetch(connection, "SELECT pg_drop_replication_slot(%s)", archive.slot)
        if server.keeps == "-1":
            log.warning(
                "the store keeps all WAL that an archive lacks, also of one that nobody runs, until its disk is full:"
                " set its max_slot_wal_keep_size"
            )
        archive = Archive(
            FORMAT, self._version, server.system, server.major, server.machine, server.segment_bytes,
            f"{SLOTS}{secrets.token_hex(4)}",
        )  # fmt: skip
        (self._folder / WAL).mkdir(exist_ok=True)
        _keep_password(self._folder, server, url)
        _write(self._folder, archive)
        await _fetch(connection, "SELECT pg_create_physical_replication_slot(%s, true)", archive.slot)
        return archive

    async def _received(
        self, connection: Connection, archive: Archive, receiver: "subprocess.Popen[bytes]", upto: str = "0/0"
    ) -> None:
        """Return when WAL is being received, and has been up to an LSN."""
        is_there = (
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active AND restart_lsn >= %s::pg_lsn"
        )
        while not await _fetch(connection, is_there, archive.slot, upto):
            if await wait(receiver, within=0.05) is not None:
                raise self._ended()

    async def _take_base(
        self, connection: Connection, archive: Archive, url: str, receiver: "subprocess.Popen[bytes]"
    ) -> Archive:
        """Put a new base backup in the place of the one before, once all the WAL that it needs is here."""
        log.info("taking a base backup", folder=str(self._folder))
        base, partial = self._folder / BASE, self._folder / f"{BASE}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        taker = self._start("pg_basebackup", archive, url, partial,
            "--wal-method=none", "--checkpoint=fast", "--manifest-checksums=SHA256")  # fmt: skip
        try:
            if await wait(taker) != 0:
                raise self._ended()
        finally:
            await stop(taker)
        timeline, begin, end = wal_range(partial)
        await self._received(connection, archive, receiver, end)
        ((since,),) = await _fetch(connection, "SELECT (extract(epoch FROM now()) * 1000000)::bigint")
        _write(self._folder, msgspec.structs.replace(archive, since=""))
        shutil.rmtree(base, ignore_errors=True)
        partial.rename(base)
        archive = msgspec.structs.replace(archive, since=format_instant(since))
        _write(self._folder, archive)
        self._new_base = False
        for number, path in segments(self._folder, timeline, archive.segment_bytes).items():
            if number < begin // archive.segment_bytes:
                path.unlink()
        return archive


def _refuse(server: _Server) -> None:
    if server.wal_level == "minimal":
        raise ConfigurationError(
            "the store writes too little WAL to archive: set its wal_level to replica, and start it again"
        )
    if not server.may_replicate:
        raise ConfigurationError(
            f'the store\'s role {server.role} may not replicate: ALTER ROLE "{server.role}" REPLICATION (as a superuser), and let'
            " it in for the database `replication` in pg_hba.conf"
        )


def _keep_password(folder: Path, server: _Server, url: str) -> None:
    """Of an embedded store, whose password lies beside its data, and is in the data only as what proves it."""
    password = conninfo_to_dict(url).get("password")
    kept = Path(server.data).with_name(PASSWORD) if server.data else None
    if kept and kept.exists() and kept.read_text().strip() == password:
        (folder / PASSWORD).touch(0o600)
        (folder / PASSWORD).write_text(str(password))


def _write(folder: Path, archive: Archive) -> None:
    partial = folder / f"{ARCHIVE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(archive), indent=2) + b"\n")
    partial.rename(folder / ARCHIVE)


def _set_aside(folder: Path, archive: Archive) -> Path | None:
    """Move an archive that ended into a folder of its own; one that never had a base backup is of no use."""
    if not archive.since:
        shutil.rmtree(folder / WAL, ignore_errors=True)
        return None
    number = 1
    while (earlier := folder / f"before-{number}" / ARCHIVE).exists():
        number += 1
    earlier = earlier.parent
    earlier.mkdir(exist_ok=True)  # where this was killed before it was done
    for part in _PARTS[::-1]:  # archive.json last: it is what makes it one
        if (folder / part).exists():
            (folder / part).rename(earlier / part)
    return earlier


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process archives into a folder."""
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        if not (folder / ARCHIVE).exists() and {p.name for p in folder.iterdir()} - {"lock", WAL, PASSWORD}:
            raise ConfigurationError(
                f"{folder} is not empty, and no archive: a continuous backup has a folder of its own"
            )
        with (folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(f"another process archives into {folder}") from None
            yield
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error}") from error


async def _fetch(connection: Connection, query: Any, *parameters: Any) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, parameters or None)).fetchall()
