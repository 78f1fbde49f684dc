"""An archive of the store, held against itself, and made into a data directory that a server recovers from."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec
import psycopg

from citylab.adapters.archives import BASE, MANIFEST, PASSWORD, WAL, read_archive, segments, wal_range
from citylab.adapters.archives import lsn as parsed
from citylab.adapters.backups import Damaged
from citylab.adapters.child import last_lines
from citylab.adapters.embedded_postgres import EmbeddedPostgres, package
from citylab.adapters.postgres import translated
from citylab.adapters.postgres_programs import major_of, program
from citylab.errors import CitylabError, ConfigurationError, Unavailable
from citylab.model import Micros
from citylab.times import format_instant, parse_instant

_PATIENCE = 7 * 86_400.0  # s for a recovery; one that fails says so at once
_COMMIT = re.compile(r"COMMIT(?: PREPARED \d+:)? ([0-9-]{10}) ([0-9:.]+) UTC")
_END = re.compile(r"error in WAL record at ([0-9A-F]+/[0-9A-F]+)")
_SETTINGS = ("restore_command", "recovery_target_time", "recovery_target_action", "recovery_target_timeline")


class Reach(msgspec.Struct, frozen=True):
    """What an archive restores: from `since` to its last commit, which is unknown where no program could read the WAL."""

    major: int
    machine: str
    since: str
    last_commit: str | None
    bytes: int


def check_archive(folder: Path, until: Micros | None = None) -> Reach:
    """Verify the base backup, and read all WAL since. Raises `Damaged`, `ConfigurationError`.

    until: what comes after it may be missing or damaged.
    """
    archive = read_archive(folder)
    if archive is None or not archive.since:
        raise ConfigurationError(
            f"{folder} has no whole base backup: run `citylab backup --continuous {folder}`"
        )
    if until is not None and until < parse_instant(archive.since):
        raise ConfigurationError(f"{folder} begins at {archive.since}: a `before-` folder in it can be older")
    size = _verified(folder / BASE)
    usable, trouble = _without_holes(folder)
    last_commit, end = _read(folder, usable) if usable else (None, None)
    if end is not None and end < max(usable) - 1:  # the last record can begin in the segment before
        trouble = f"{usable[end]} is damaged"
    if trouble and (until is None or last_commit is None or until > parse_instant(last_commit)):
        upto = f": it can be restored --until {last_commit}" if last_commit else ""
        raise Damaged(f"{trouble}{upto}")
    size += len(usable) * archive.segment_bytes
    return Reach(archive.major, archive.machine, archive.since, last_commit, size)


def prepare(folder: Path, data: Path, until: Micros | None = None) -> None:
    """Make a data directory of an archive that was checked; a server that starts on it recovers first.

    It has all WAL in itself and needs the archive no more.
    """
    shutil.copytree(folder / BASE, data, symlinks=True)
    for path in (*_without_holes(folder)[0].values(), *(folder / WAL).glob("*.history")):
        shutil.copyfile(path, data / "pg_wal" / path.name.removesuffix(".partial"))
    (data / "recovery.signal").touch()
    target = format_instant(until).replace("Z", "+00") if until is not None else ""
    values = ("false", target, "promote", "latest")
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.writelines(f"{name} = '{value}'\n" for name, value in zip(_SETTINGS, values, strict=True))
    for path in (data, *data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


async def recover_embedded(
    folder: Path, store: Path, reach: Reach, until: Micros | None, *, force: bool
) -> str:
    """Put an archive that was checked in the place of an embedded store that does not run; return its last commit.

    What was there stays until the recovery is done. Raises `ConfigurationError` where it cannot be.
    """
    ours = (major_of(package() / "pginstall" / "bin" / "postgres"), platform.machine())
    embedded = (folder / PASSWORD).exists()
    if ours != (reach.major, reach.machine) or not embedded:
        raise ConfigurationError(
            f"{folder} is of a PostgreSQL {reach.major} on {reach.machine}{'' if embedded else ' of yours'}, and the embedded store"
            f" is {ours[0]} on {ours[1]}: say --into DIRECTORY for a server of that kind, from which `citylab backup` takes the rows"
        )
    if store.exists():
        await EmbeddedPostgres(store).wait_for_the_last_one()
        if not force:
            raise ConfigurationError(f"{store} is there: move it away, or say --force to replace it")
    restored = store.with_name(f"{store.name}.restored")
    shutil.rmtree(restored, ignore_errors=True)
    server = EmbeddedPostgres(restored, patience=_PATIENCE)
    await server.adopt(lambda data: prepare(folder, data, until), (folder / PASSWORD).read_text())
    async with server:
        try:
            last_commit = await _recovered(server.url) or reach.since
        except Unavailable as error:
            raise CitylabError(f"the recovery failed:\n{last_lines(server.log_file)}") from error
    if until is None and reach.last_commit and parse_instant(last_commit) < parse_instant(reach.last_commit):
        raise CitylabError(
            f"the recovery ended at {last_commit}, before {reach.last_commit}: see {server.log_file}"
        )
    if store.exists():
        shutil.rmtree(store)
    restored.rename(store)
    return last_commit


async def _recovered(url: str) -> str | None:
    """Wait until the server has recovered, and let go of what it was told for that; the last commit, if there was one."""
    with translated():
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            recovers = "SELECT 1 FROM pg_sleep(0.05) WHERE pg_is_in_recovery()"
            while await (await connection.execute(recovers)).fetchone():
                pass
            for name in _SETTINGS:
                await connection.execute(f"ALTER SYSTEM RESET {name}")
            cursor = await connection.execute(
                "SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint"
            )
            ((at,),) = await cursor.fetchall()
            return format_instant(at) if at else None


def _verified(base: Path) -> int:
    """Compare a base backup with its manifest, as pg_verifybackup does for its own version; its bytes. Raises `Damaged`."""
    try:
        content = (base / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(content)
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"{base / MANIFEST} cannot be read: {error}") from error
    itself = content[: content.rindex(b"\n", 0, -1) + 1]  # all but the line that has its checksum
    if hashlib.sha256(itself).hexdigest() != manifest["Manifest-Checksum"]:
        raise Damaged(f"{base / MANIFEST} is not what was written")
    for file in manifest["Files"]:
        name = os.fsdecode(bytes.fromhex(file["Encoded-Path"])) if "Encoded-Path" in file else file["Path"]
        path = base / name
        try:
            with path.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}") from error
        if found != file["Checksum"]:
            raise Damaged(f"{path} is not what was written")
    return sum(file["Size"] for file in manifest["Files"])


def _without_holes(folder: Path) -> tuple[dict[int, Path], str]:
    """The WAL from where the base backup needs it on, up to the first that is missing, and which that is."""
    archive = read_archive(folder)
    assert archive
    timeline, begin, _ = wal_range(folder / BASE)
    found = segments(folder, timeline, archive.segment_bytes)
    number = begin // archive.segment_bytes
    usable = {}
    while number in found and found[number].stat().st_size == archive.segment_bytes:
        usable[number] = found[number]
        number += 1
    if number in found:
        return usable, f"{found[number]} is cut short"
    if not usable or number < max(found):
        return usable, f"{folder / WAL} has a hole at segment {number:X}"
    return usable, ""


def _read(folder: Path, usable: dict[int, Path]) -> tuple[str | None, int | None]:
    """Read the WAL to its end with the server's own pg_waldump: the last commit, and the number of the last segment.

    None, None where that program is not.
    """
    archive = read_archive(folder)
    assert archive
    try:
        reader = program("pg_waldump", archive.major, same=True)
    except ConfigurationError:
        return None, None
    timeline, begin, _ = wal_range(folder / BASE)
    last_commit = archive.since
    with tempfile.TemporaryDirectory() as scratch:
        for path in usable.values():
            (Path(scratch) / path.name.removesuffix(".partial")).symlink_to(path)
        start = f"{begin >> 32:X}/{begin & 0xFFFFFFFF:X}"
        with subprocess.Popen(  # noqa: S603 -- PostgreSQL's own
            [reader, "--path", scratch, f"--timeline={timeline}", f"--start={start}", "--rmgr=Transaction"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"TZ": "UTC"},
        ) as reading:
            assert reading.stdout
            assert reading.stderr
            for line in reading.stdout:
                if found := _COMMIT.search(line):
                    last_commit = f"{found[1]}T{found[2]}Z"
            said = reading.stderr.read()
    if "could not find file" in said:  # it ends with a segment
        return last_commit, max(usable)
    if not (ended := _END.search(said)):
        raise Damaged(f"{folder / WAL} cannot be read: {said.strip()}")
    return last_commit, parsed(ended[1]) // archive.segment_bytes
