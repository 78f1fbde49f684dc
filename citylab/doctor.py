"""`citylab doctor`: the resolved settings, and whether every engine answers."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from citylab import disks, wiring
from citylab.archive_watch import archives
from citylab.cli import Data, run, single
from citylab.errors import CitylabError, ConfigurationError
from citylab.log_watch import findings, look
from citylab.model import Topic
from citylab.ports import EventLog
from citylab.settings import CITY_FILE, Settings
from citylab.times import now

ANSWER_WITHIN = 10.0  # s


class Unwell(CitylabError):
    """Everything answers, and yet something is wrong."""


async def _disk(settings: Settings) -> str:
    found = await asyncio.to_thread(disks.findings, wiring.folders(settings))
    said = "; ".join(one.text for one in found)
    if any(one.unwell for one in found):
        raise Unwell(said)
    return f"warning: {said}" if said else "has room"


async def _broker(settings: Settings) -> str:
    connection = wiring.broker_connection(settings, client_id="citylab-doctor")
    async with connection:
        await connection.wait_connected()
    return "accepts connections; what it has acknowledged and not delivered is lost if it is killed, gateways send it again"


def _event_log(settings: Settings) -> EventLog:
    if settings.log_url == "sqlite:" and not (settings.data / "log").exists():
        raise ConfigurationError(f"there is no city in {settings.data} yet: start one with `citylab up`")
    return wiring.event_log(settings, only_looks=True)


async def _log(settings: Settings) -> str:
    async with _event_log(settings) as log:
        ends = await log.ends(Topic.PACKS)
    durable = (
        "synced to this disk with every append"
        if settings.log_url.startswith("sqlite:")
        else "as durable as its brokers' replicas"
    )
    return f"{sum(ends.values()):,} packs in {len(ends)} partitions, {durable}"


async def _retention(settings: Settings) -> str:
    async with wiring.store(settings, name="doctor") as store, _event_log(settings) as log:
        kept = await look(log, store, now=now())
    found = findings(kept)
    said = "; ".join(f"{one.topic}: {one.text}" for one in found)
    if any(one.unwell for one in found):
        raise Unwell(said)
    behind = max(one.behind for one in kept.values())
    size = sum(one.bytes for one in kept.values())
    return (
        f"warning: {said}"
        if said
        else f"{size / 1e6:,.0f} MB in the log, {behind:.0%} of its retention unread"
    )


async def _store(settings: Settings) -> str:
    async with (
        wiring.store(settings, name="doctor") as store,
        store.transaction(read_only=True) as transaction,
    ):
        ((version, commit, fsync, followers, awaited),) = await transaction.fetch(
            "SELECT current_setting('server_version'), current_setting('synchronous_commit'), current_setting('fsync'),"
            " (SELECT count(*) FROM pg_stat_replication WHERE application_name <> 'pg_receivewal'), current_setting('synchronous_standby_names') <> ''"
        )
        hypertable = await transaction.fetch("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
        ((rows,),) = await transaction.fetch("SELECT coalesce(sum(count), 0)::bigint FROM latest")
        archived = await archives(transaction)
    said = "".join(f"; archive {one.name}: {one.text}" for one in archived)
    if any(one.unwell for one in archived):
        raise Unwell(said.removeprefix("; "))
    kept = (
        "a power cut loses nothing"
        if (commit, fsync) == ("on", "on")
        else f"a power cut can lose commits (synchronous_commit {commit}, fsync {fsync})"
    )
    if followers or awaited:
        safe = awaited and commit in {"on", "remote_apply"}
        kept += (
            ", a fail-over neither"
            if safe
            else "; a fail-over can lose the last commits (no synchronous standby)"
        )
    return f"PostgreSQL {version}{' with TimescaleDB' if hypertable else ''}, {rows:,} observations; {kept}{said}"


async def _try(check: Callable[[Settings], Awaitable[str]], settings: Settings) -> tuple[bool, str]:
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            return True, await check(settings)
    except TimeoutError:
        return False, f"no answer within {ANSWER_WITHIN:.0f} s"
    except CitylabError as error:
        return False, str(error)


async def _examine(settings: Settings) -> int:
    console = Console()
    table = Table(title="settings", title_justify="left", show_header=False)
    for name, value in settings.shown().items():
        table.add_row(name, value)
    console.print(table)
    running = (settings.data / CITY_FILE).exists()
    typer.echo(f"A city is {'running' if running else 'not running'} in {Path(settings.data)}.")
    well = True
    for name, check in (
        ("disk", _disk),
        ("broker", _broker),
        ("event log", _log),
        ("store", _store),
        ("retention", _retention),
    ):
        ok, text = await _try(check, settings)
        well &= ok
        typer.echo(f"{'ok  ' if ok else 'FAIL'} {name}: {text}")
    return 0 if well else 1


def doctor(data: Data = None) -> None:
    """Show the resolved settings, try every engine, and say what a power cut can take on it. Exits 1 when one fails."""
    run("doctor", _examine, data=data)


app = single(doctor)
