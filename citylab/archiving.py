"""The continuous half of `citylab backup` and `citylab restore`: an archive of the store, to its last commit."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import typer

from citylab import __version__, wiring
from citylab.errors import CitylabError, ConfigurationError
from citylab.model import Micros
from citylab.settings import Settings

_NEXT_STEPS = """\
{data} is a data directory of PostgreSQL {major} on {machine}. Next:
  1. stop the server, and move its data directory away
  2. put this one there, owned by the server's account (chown -R postgres: ...), 0700
  3. start the server: it recovers, says "archive recovery complete" and takes writes
  4. start the services; processing goes on in the log from where that moment stands
"""


async def keep(settings: Settings, folder: Path, *, new_base: bool) -> None:
    """Archive until cancelled. A city that is started again has its embedded store at another address."""

    def address() -> str:
        return wiring.store_url(Settings.load(data=settings.data))

    await wiring.keep_archive(address, folder, version=__version__, new_base=new_base)


async def restore(
    settings: Settings, folder: Path, *, until: Micros | None, into: Path | None, force: bool, only_check: bool, as_json: bool
) -> None:  # fmt: skip
    """Check an archive, and recover it: the embedded store, or a data directory for another server."""
    own = Settings.load(data=settings.data, of_running_city=False)  # a killed city has left its addresses
    if not only_check and into is None and not own.store_url.startswith("embedded:"):
        raise ConfigurationError(
            "a server of yours recovers by itself, from a data directory that --into DIRECTORY makes; to put its rows into another"
            " one afterwards, use `citylab backup` and `citylab restore`"
        )
    if into and into.exists():
        raise ConfigurationError(f"{into} is there: --into makes a new directory")
    reach = await asyncio.to_thread(wiring.check_archive, folder, until)
    if only_check:
        unread = f"which no pg_waldump of PostgreSQL {reach.major} is here to read"
        upto = f"to the commit at {reach.last_commit}" if reach.last_commit else f"to its end, {unread}"
        size = f"{reach.bytes / 1e6:,.0f} MB"
        _say(f"{folder} is whole, from {reach.since} {upto}: {size}", reach, as_json=as_json)
        return
    try:
        if into:
            await asyncio.to_thread(wiring.prepare_archived, folder, into, until)
            _say(
                _NEXT_STEPS.format(data=into, major=reach.major, machine=reach.machine).rstrip(),
                reach,
                as_json=as_json,
            )
            return
        at = await wiring.recover_embedded(own, folder, reach, until, force=force)
    except OSError as error:
        raise CitylabError(f"{error.filename or into or settings.data} cannot be written: {error}") from error
    _say(f"restored from {folder}: the last commit is of {at}", reach, as_json=as_json)


def _say(text: str, reach: Any, *, as_json: bool) -> None:
    typer.echo(msgspec.json.encode(reach) if as_json else text)
