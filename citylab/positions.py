"""`citylab positions`: where processing stands in the event log, and what an operator does when that fits no more."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from citylab import wiring
from citylab.cli import Data, run
from citylab.errors import ConfigurationError
from citylab.log_watch import LOST, STORED, WRITERS
from citylab.model import Topic
from citylab.ports import EventLog, Store
from citylab.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]

app = typer.Typer(
    help="Where processing stands in the event log.", add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def show(data: Data = None, as_json: AsJson = False) -> None:
    """Show for each topic what the log holds and where processing stands, and what went unread."""
    run("positions", lambda settings: _show(settings, as_json=as_json), data=data)


@app.command()
def acknowledge(data: Data = None) -> None:
    """Take note of what went unread: /health no longer says it."""
    run("positions", _acknowledge, data=data)


@app.command()
def reset(
    topic: Annotated[
        list[Topic] | None, typer.Option(help="One of the topics that processing reads; without it all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: Data = None,
) -> None:
    """Forget where processing stands, so that it reads the log that is there from its start. Processing must be stopped.

    For a log that was recreated, cut short or swapped, and does not come back. What only the old log had is lost. What is
    stored already is recognised as duplicates and changes nothing; packs without times are stored again.
    """
    topics = topic or STORED
    if any(one not in STORED for one in topics):
        typer.echo(f"citylab positions: processing reads {', '.join(STORED)}", err=True)
        raise typer.Exit(2)
    if not yes:
        typer.confirm("Forget where processing stands? What only the old log had is then lost", abort=True)
    run("positions", lambda settings: _reset(settings, topics), data=data)


async def _show(settings: Settings, *, as_json: bool) -> None:
    async with (
        wiring.store(settings, name="positions") as store,
        wiring.event_log(settings, only_looks=True) as log,
    ):
        rows = [row for topic in STORED for row in await _rows(store, log, topic)]
        lost = await _lost(store)
    if as_json:
        typer.echo(msgspec.json.encode({"positions": rows, "lost": lost}))
        return
    for row in rows:
        at = "at the log's start" if row["offset"] is None else f"at {row['offset']:,}"
        typer.echo(f"{row['topic']}/{row['partition']}: {at}, the log ends at {row['end']:,}")
    for place, why in lost.items():
        typer.echo(f"unread in {place}: {why}")


async def _rows(store: Store, log: EventLog, topic: Topic) -> list[dict[str, Any]]:
    stored, ends = await store.positions(topic), await log.ends(topic)
    return [
        {
            "topic": topic,
            "partition": partition,
            "offset": stored[partition].offset if partition in stored else None,
            "end": end,
        }
        for partition, end in sorted(ends.items())
    ]


async def _lost(store: Store) -> dict[str, str]:
    async with store.transaction(read_only=True) as transaction:
        rows = await transaction.fetch("SELECT state FROM services WHERE name = %s", (LOST,))
    return msgspec.convert(rows[0][0], dict[str, str]) if rows else {}


async def _acknowledge(settings: Settings) -> None:
    async with (
        wiring.store(settings, name="positions") as store,
        store.transaction() as transaction,
    ):
        there = await transaction.execute("DELETE FROM services WHERE name = %s", (LOST,))
    typer.echo("acknowledged" if there else "nothing went unread")


async def _reset(settings: Settings, topics: Sequence[Topic]) -> None:
    async with wiring.store(settings, name="positions") as store, store.transaction() as transaction:
        running = [name for (name,) in await transaction.fetch(WRITERS) if name.startswith("processing")]
        if running:
            raise ConfigurationError("processing runs, or did within the last 10 s: stop it first")
        count = await transaction.execute(
            "DELETE FROM positions WHERE topic = ANY(%s)", ([str(topic) for topic in topics],)
        )
    typer.echo(f"forgot {count} positions; processing begins at the log's start")
