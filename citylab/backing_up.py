"""`citylab backup` and `citylab restore`: the store, its place in the log included, as a folder of files, and back."""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from citylab import __version__, archiving, wiring
from citylab.cli import Data, run, single
from citylab.errors import CitylabError, ConfigurationError
from citylab.settings import Settings, redacted
from citylab.times import parse_instant

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The backup's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable: the manifest.")]
LOG = "log"  # in a backup
_TELL_EVERY = 5.0  # s between lines where no terminal is


class Teller:
    """Tells of progress: a line that moves on a terminal, else a line a while, and nothing for a program."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description} {task.completed:,} rows"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._lines = not quiet and not console.is_terminal
        self._task = self._progress.add_task("", total=None)
        self._next = time.monotonic() + _TELL_EVERY

    @contextmanager
    def telling(self) -> Iterator[None]:
        """While the work goes on."""
        with self._progress:
            yield

    def __call__(self, table: str, rows: int) -> None:
        """So many rows of a table are done."""
        self._progress.update(self._task, description=table, completed=rows)
        if self._lines and time.monotonic() >= self._next:
            self._next = time.monotonic() + _TELL_EVERY
            typer.echo(f"{table}: {rows:,} rows", err=True)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Say in a sentence why a folder cannot be written, such as a full disk."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise CitylabError(f"{folder} cannot be written: {error}") from error


async def _back_up(settings: Settings, folder: Path, *, with_log: bool, as_json: bool) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is not empty: a backup has a folder of its own")
    log_folder = wiring.log_folder(settings) if with_log else None
    partial = folder.with_name(f"{folder.name}.partial")
    teller = Teller(quiet=as_json)
    with teller.telling(), _written(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o700)
        try:
            async with wiring.store_server(settings, may_be_new=False) as url:
                manifest = await wiring.back_up(url, partial, version=__version__, told=teller)
            if log_folder:  # after the store, so that the log reaches at least as far as its positions
                await asyncio.to_thread(wiring.copy_log, log_folder, partial / LOG)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _say(folder, manifest, as_json=as_json, done="backed up to")


async def _restore(
    settings: Settings, folder: Path, *, force: bool, only_check: bool, with_log: bool, as_json: bool
) -> None:
    teller = Teller(quiet=as_json)
    log_folder = wiring.log_folder(settings) if with_log else None
    if with_log and not (folder / LOG).is_dir():
        raise ConfigurationError(f"{folder} holds no event log: it was made without --log")
    if log_folder and not only_check and log_folder.exists() and not force:
        raise ConfigurationError(f"{log_folder} is there: move it away, or say --force to replace it")
    with teller.telling():
        manifest = await asyncio.to_thread(wiring.check_backup, folder, told=teller)
        if not only_check:
            async with wiring.store_server(settings, may_be_new=True) as url:
                await wiring.restore(settings, url, folder, force=force, told=teller)
            if log_folder:
                with _written(log_folder):
                    shutil.rmtree(log_folder, ignore_errors=True)
                    shutil.copytree(folder / LOG, log_folder)
    done = "is whole:" if only_check else f"restored into {redacted(settings.store_url)} from"
    _say(folder, manifest, as_json=as_json, done=done)


def _say(folder: Path, manifest: Any, *, as_json: bool, done: str) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(manifest))
        return
    rows = sum(table.rows for table in manifest.tables)
    typer.echo(f"{done} {folder}: {rows:,} rows of {len(manifest.tables)} tables, as of {manifest.made_at}")


def backup(
    folder: Folder,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Go on until stopped: an archive to the last commit.")
    ] = False,
    base: Annotated[
        bool,
        typer.Option(
            "--base", help="With --continuous: begin with a new base backup, and let go of what is older."
        ),
    ] = False,
    end: Annotated[
        bool,
        typer.Option("--end", help="With --continuous: no more; the store keeps nothing for it from now on."),
    ] = False,
    log: Annotated[bool, typer.Option("--log", help="The embedded event log too.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Write the store into a new folder: all rows as they are at one moment, and where processing stands in the log.

    Services go on. The event log is not in it: after a restore processing reads it again from where the backup stands.
    The folder has what the store has, credentials' hashes too: keep it as safe.

    With --continuous it is an archive, of a base backup and all WAL since, and goes on until it is stopped; started again
    it goes on where it was. It has what was edited over HTTP too, to the last commit, and for an embedded store its password.
    """

    async def work(settings: Settings) -> None:
        if not continuous:
            if base or end:
                raise ConfigurationError("--base and --end go with --continuous")
            await _back_up(settings, folder.absolute(), with_log=log, as_json=as_json)
            return
        if log or as_json:
            raise ConfigurationError("--continuous goes with neither --log nor --json")
        if end:
            await wiring.end_archive(wiring.store_url(settings), folder.absolute())
            typer.echo(f"the store keeps nothing for {folder} any more; what is in it can be restored")
            return
        await archiving.keep(settings, folder.absolute(), new_base=base)

    run("backup", work, data=data)


def restore(
    folder: Folder,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare the backup with its manifest.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what the store holds.")] = False,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="INSTANT", help="Of a continuous backup: as it was then, such as 2026-11-26T14:00:00Z."
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Of a continuous backup: make a data directory for a PostgreSQL of yours.",
        ),
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="The embedded event log too.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Put a backup into a store, all or nothing, after it was compared with its manifest.

    Refused while services write into the store, and where it holds something already. Then start the services: what came
    through the log since the backup is read again. A continuous backup becomes the embedded store of a city that is
    stopped, or a data directory.
    """

    async def work(settings: Settings) -> None:
        if wiring.is_archive(folder.absolute()):
            if log:
                raise ConfigurationError("a continuous backup holds no event log")
            try:
                moment = parse_instant(until) if until else None
            except ValueError as error:
                raise ConfigurationError(f"--until: {error}") from None
            await archiving.restore(
                settings, folder.absolute(), until=moment, into=into and into.absolute(), force=force,
                only_check=check, as_json=as_json,
            )  # fmt: skip
            return
        if until or into:
            raise ConfigurationError(f"{folder} is no continuous backup: --until and --into are for those")
        await _restore(
            settings, folder.absolute(), force=force, only_check=check, with_log=log, as_json=as_json
        )

    run("restore", work, data=data)


app = single(backup)
