"""`citylab bench`: what the platform reaches on this machine, beside what the store alone reaches in the same run."""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from citylab import wiring
from citylab.cli import run
from citylab.columns import decode_update
from citylab.errors import CitylabError
from citylab.model import DAY, Micros, Topic
from citylab.ports import EventLog, Store
from citylab.settings import Settings
from citylab.times import now
from citylab.up import City
from simulators.bench_api import bench_api
from simulators.bench_city import Watch, city_apart, until, value
from simulators.bench_outage import bench_outage
from simulators.load import SHAPES, Task

app = typer.Typer(help="Measure the platform on this machine.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)  # fmt: skip


@app.callback()
def _bench() -> None:
    """Measure the platform on this machine. Compare ratios within one run: absolute figures move with the machine."""


class Figure(msgspec.Struct):
    """One shape's result. rates in observations a second; cpu in µs an observation, by service and engine.

    moves: how often buses moved meanwhile.
    """

    shape: str
    observations: int
    seconds: float
    rate: float
    copy_rate: float
    cpu: dict[str, float]
    moves: int = 0

    @property
    def total(self) -> float:
        """µs of CPU an observation in all."""
        return sum(self.cpu.values())


class Delays(msgspec.Struct):
    """From publish to visible at a steady rate, in milliseconds."""

    rate: float
    observations: int
    p50: float
    p99: float
    most: float


_MOVES = "SELECT count(*) FROM historical_locations WHERE by_position"


async def _generate(task: Task) -> float:
    """Run a generator process to its end; return the CPU time that it took, in seconds."""
    before = psutil.Process().cpu_times()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators.load", msgspec.json.encode(task).decode()
    )
    try:
        if await child.wait():
            raise CitylabError("the load generator failed; its message stands above")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    after = psutil.Process().cpu_times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@asynccontextmanager
async def _buses(city: City, store: Store, buses: int, say: Console) -> AsyncIterator[None]:
    """Buses that drive meanwhile, from the moment on at which all of them have moved."""
    if not buses:
        yield
        return
    before = await value(store, _MOVES)
    task = Task(city.settings.broker_url, "deep", secrets.randbelow(10**6), 0, seconds=600, buses=buses)
    say.print(f"{buses:,} buses drive, a position a second each")
    driving = asyncio.create_task(_generate(task))
    try:
        await until(store, _MOVES, before + 2 * buses, what="moves", within=60)
        yield
    finally:
        driving.cancel()
        await asyncio.wait({driving})


async def _pipeline(city: City, store: Store, name: str, observations: int, say: Console) -> Figure:
    """One shape: register its streams, send, and wait until every row is committed and visible."""
    shape, seed = SHAPES[name], secrets.randbelow(10**6)
    packs = max(observations // (shape.gateways * shape.records), 1)
    total = packs * shape.gateways * shape.records
    url = city.settings.broker_url
    begin = now() // DAY * DAY - DAY
    streams = await value(store, "SELECT count(*) FROM datastreams") + shape.gateways * shape.streams
    say.print(
        f"{name}: registering {shape.gateways * shape.streams:,} streams of {shape.gateways:,} gateways"
    )
    await _generate(Task(url, name, seed, begin, describe=True))
    await until(store, "SELECT count(*) FROM datastreams", streams, what="streams")
    kept = f"SELECT coalesce(sum(stored), 0)::bigint FROM ledger WHERE gateway LIKE 'load-{seed}-%'"
    moves = await value(store, _MOVES)
    watch = Watch(city)
    cpu = watch.seconds()
    say.print(f"{name}: sending {total:,} observations in packs of {shape.records}")
    began = time.monotonic()
    generator = asyncio.create_task(_generate(Task(url, name, seed, begin, packs=packs)))
    stored = asyncio.create_task(until(store, kept, total, what="observations"))
    await asyncio.wait({generator, stored}, return_when=asyncio.FIRST_EXCEPTION)
    for finished in (generator, stored):
        if not finished.done():
            finished.cancel()
    await stored
    seconds = time.monotonic() - began
    spent = {name: after - cpu[name] for name, after in watch.seconds().items()}
    spent["generator"] = await generator
    moves = await value(store, _MOVES) - moves
    found = await value(store, f"SELECT count(*) FROM observations o JOIN datastreams d ON d.id = o.datastream_id WHERE d.stream_name LIKE 'load-{seed}-%'")  # fmt: skip
    if found != total:
        raise CitylabError(f"{found:,} of {total:,} observations are in the store: something was lost")
    copy_seconds = await wiring.copy_again(city.settings, f"load-{seed}-")
    per = {name: s / total * 1e6 for name, s in spent.items()}
    return Figure(name, total, seconds, total / seconds, total / copy_seconds, per, moves)


async def _delays(city: City, log: EventLog, rate: float, seconds: float, say: Console) -> Delays:
    """From publish to visible: rows carry the moment of publishing; the update that follows their commit shows them."""
    seed = secrets.randbelow(10**6)
    task = Task(city.settings.broker_url, "deep", seed, 0)
    await _generate(msgspec.structs.replace(task, describe=True))
    async with wiring.store(city.settings, name="bench") as store:
        await until(store, f"SELECT count(*) FROM datastreams WHERE stream_name LIKE 'load-{seed}-%'", 5_000, what="streams")  # fmt: skip
        mine = np.array(await value(store, f"SELECT array_agg(id) FROM datastreams WHERE stream_name LIKE 'load-{seed}-%'"))  # fmt: skip
    say.print(f"delay: {rate:,.0f} observations a second for {seconds:.0f} s")
    wanted = int(rate * seconds)
    found: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    generator = asyncio.create_task(_generate(msgspec.structs.replace(task, rate=rate, seconds=seconds)))
    count = 0
    start = await log.tail(Topic.UPDATES)
    async with asyncio.timeout(seconds + 60):
        async for batch in log.read(Topic.UPDATES, start):
            seen: Micros = now()
            for event in batch.events:
                rows, _ = decode_update(event.value).rows()
                rows = rows.take(np.isin(rows.datastream, mine))
                found.append(seen - rows.time)
                count += len(rows)
            if count >= wanted:
                break
    await generator
    delays = np.concatenate(found) / 1_000
    return Delays(rate, count, *(float(np.percentile(delays, p)) for p in (50, 99, 100)))


async def bench_pipeline(settings: Settings, shapes: list[str], observations: int, rate: float, seconds: float, buses: int, as_json: bool) -> None:  # fmt: skip
    """Measure, and print."""
    say = Console(stderr=True)
    delays = None
    async with (
        city_apart(settings, "ingest", "processing") as city,
        wiring.opened(wiring.store(city.settings, name="bench")) as store,
        wiring.opened(wiring.event_log(city.settings)) as log,
    ):
        bridges = "SELECT count(*) FROM services WHERE name LIKE 'ingest %' AND (state ->> 'connected')::bool"
        await until(store, bridges, 1, what="bridges that are connected", within=60)
        async with _buses(city, store, buses, say):
            figures = [await _pipeline(city, store, name, observations, say) for name in shapes]
            if rate:
                delays = await _delays(city, log, rate, seconds, say)
    if as_json:
        typer.echo(msgspec.json.encode({"pipeline": figures, "delay": delays}).decode())
        return
    table = Table(title="publish -> committed and visible")
    parts = sorted({part for figure in figures for part in figure.cpu})
    for column in ("shape", "observations/s", "raw COPY/s", "ratio", "µs CPU", *parts):
        table.add_column(column, justify="left" if column == "shape" else "right")
    for figure in figures:
        cells = (f"{figure.cpu.get(part, 0):.2f}" for part in parts)
        table.add_row(
            figure.shape, f"{figure.rate:,.0f}", f"{figure.copy_rate:,.0f}", f"{figure.rate / figure.copy_rate:.2f}",
            f"{figure.total:.2f}", *cells,
        )  # fmt: skip
    Console(width=140).print(table)
    if buses:
        typer.echo(f"meanwhile {buses:,} buses moved {sum(figure.moves for figure in figures):,} times")
    if delays:
        typer.echo(
            f"publish -> visible at {delays.rate:,.0f} observations/s: p50 {delays.p50:.0f} ms, p99 {delays.p99:.0f} ms,"
            f" most {delays.most:.0f} ms ({delays.observations:,} observations)"
        )


@app.command("pipeline")
def pipeline(
    shape: Annotated[
        list[str], typer.Option(help="deep: 100 gateways of 50 streams; wide: 5,000 gateways of one.")
    ] = ["deep", "wide"],  # noqa: B006
    observations: Annotated[int, typer.Option(min=1_000, help="How many a shape.")] = 2_000_000,
    rate: Annotated[
        float, typer.Option(help="Observations a second for the delay; 0 leaves it out.")
    ] = 1_000.0,
    seconds: Annotated[float, typer.Option(help="How long the delay is measured.")] = 20.0,
    buses: Annotated[
        int,
        typer.Option(
            min=0, help="Gateways that move meanwhile, with a position and a reading a second each."
        ),
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send packs of 50 from many gateways as fast as they are accepted, and time them to committed and visible.

    On embedded engines, or on those that CITYLAB_*_URL name: with topics and a database of its own there. The broker
    must serve no other city meanwhile.
    """
    if unknown := set(shape) - set(SHAPES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: a shape is one of {', '.join(SHAPES)}")
    run(
        "bench",
        lambda settings: bench_pipeline(settings, shape, observations, rate, seconds, buses, json),
        of_running_city=False,  # it has a city of its own
    )


@app.command("api")
def api(
    only: Annotated[
        list[str], typer.Argument(help="Parts of the names of shapes; all when there are none.")
    ] = [],  # noqa: B006
    observations: Annotated[
        float, typer.Option(min=1_000, help="How many are stored; 1e7 is a big city's year.")
    ] = 1e6,
    seconds: Annotated[float, typer.Option(help="How long each figure is measured.")] = 3.0,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Let the filled store stay, and use it if it is there: what was written stays too."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fill a store and ask the API for what clients ask for, on 1 and on 8 connections.

    On an embedded store, or on a database of its own on the one that CITYLAB_STORE_URL names; all on the same two cores.
    """
    run(
        "bench",
        lambda settings: bench_api(settings, only, int(observations), seconds, keep=keep, as_json=json),
        of_running_city=False,
    )


@app.command("outage")
def outage(
    hours: Annotated[
        float, typer.Option(min=0.01, max=200, help="For how long the gateway could not deliver.")
    ] = 24.0,
    rate: Annotated[
        float, typer.Option(min=1, max=1_000, help="Observations a second that it measures.")
    ] = 100.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let a gateway come back with an outbox full of a day, while it and another one go on measuring.

    On embedded engines, or on those that CITYLAB_*_URL name: with topics and a database of its own there.
    """
    run(
        "bench",
        lambda settings: bench_outage(settings, hours, rate, as_json=json),
        of_running_city=False,
    )
