"""`citylab bench api`: requests a second over a full store, load generator, API and PostgreSQL on the same two cores."""

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from citylab import wiring
from citylab.columns import Int64, Observations
from citylab.errors import CitylabError
from citylab.model import DAY, MINUTE
from citylab.ports import Store
from citylab.settings import Settings
from citylab.times import format_instant
from citylab.up import City
from citylab.writes import Write
from simulators.bench_city import Watch, city_apart, value
from simulators.http_load import LoadTask, Outcome, Request

LONG, SHORT = 5_000, 2_000  # observations of a Datastream: of the first 200, and of the others
FIRST = 200
STEP = 10 * MINUTE  # so a day of a Datastream has 144
_END = 20_500 * DAY  # 2026-02-16: fixed, so that two runs ask the same
_STREAMS_A_THING = 2
_VARIANTS = 64  # different requests of a shape, asked in turn
_ROWS_A_WRITE = 50_000
_DISTRICTS = 10
_SAFE = "()$,;/:='"  # of a query
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}  # the generator keeps its own


class Filled(NamedTuple):
    """What is in the store. ids: how many Observations were stored."""

    things: list[int]
    datastreams: list[int]
    observations: int

    def day(self, rng: random.Random, among: int = SHORT) -> tuple[str, str]:
        """The bounds of one whole day that every Datastream has."""
        first = (_END - among * STEP) // DAY + 1
        begin = rng.randrange(first, _END // DAY) * DAY
        return format_instant(begin), format_instant(begin + DAY)


@dataclass(frozen=True)
class Shape:
    """A request. peer, aim: what the best other server reached, and what we are for; rows: that each request writes."""

    name: str
    request: Request | Callable[[Filled, random.Random], Request]
    peer: float | None = None
    aim: float | None = None
    connections: tuple[int, ...] = (1, 8)
    rows: int = 1


def _get(path: str, **options: str) -> Request:
    query = "&".join(f"${name}={quote(text, safe=_SAFE)}" for name, text in options.items())
    return Request(f"/v1.1{path}{'?' if query else ''}{query}")


def _series(filled: Filled, rng: random.Random, **options: str) -> Request:
    return _get(f"/Datastreams({rng.choice(filled.datastreams[:FIRST])})/Observations", **options)


def _day(filled: Filled, rng: random.Random) -> str:
    begin, end = filled.day(rng)
    return f"phenomenonTime ge {begin} and phenomenonTime lt {end}"


def _square(_: Filled, rng: random.Random) -> str:
    x, y = 2 + rng.random() * 0.19, 41.3 + rng.random() * 0.19
    corners = ((x, y), (x + 0.01, y), (x + 0.01, y + 0.01), (x, y + 0.01), (x, y))
    return f"geography'POLYGON (({', '.join(f'{a:.4f} {b:.4f}' for a, b in corners)}))'"


def _post(filled: Filled, rng: random.Random) -> Request:
    body = {
        "phenomenonTime": format_instant(_END + rng.randrange(DAY)),
        "result": round(rng.random() * 50, 2),
    }
    path = f"/v1.1/Datastreams({rng.choice(filled.datastreams)})/Observations"
    return Request(path, "POST", msgspec.json.encode(body).decode())


def _create_rows(filled: Filled, rng: random.Random) -> Request:
    begin = _END + rng.randrange(DAY)
    rows = [[format_instant(begin + n * MINUTE), round(rng.random() * 50, 2)] for n in range(1_000)]
    group = {
        "Datastream": {"@iot.id": rng.choice(filled.datastreams)},
        "components": ["phenomenonTime", "result"],
        "dataArray": rows,
    }
    return Request("/v1.1/CreateObservations", "POST", msgspec.json.encode([group]).decode())


_LATEST = {"orderby": "phenomenonTime desc"}
_NESTED = "Datastreams($expand=Observations($orderby=phenomenonTime desc;$top=1))"
SHAPES: tuple[Shape, ...] = (
    Shape("landing page", _get(""), 31_000, 5_000),
    Shape("Things?$top=100", _get("/Things", top="100"), 3_300, 2_500),
    Shape("Things by name", lambda f, r: _get("/Things", filter=f"name eq 'Thing {r.randrange(len(f.things))}'"), 4_100, 2_500),
    Shape("Observations(id)", lambda f, r: _get(f"/Observations({r.randrange(f.observations) + 1})"), 3_400, 2_500),
    Shape("one Datastream, latest 100", lambda f, r: _series(f, r, **_LATEST, top="100"), 1_260, 2_500),
    Shape("its latest 1,000", lambda f, r: _series(f, r, **_LATEST, top="1000"), 260, 1_000),
    Shape("one day of it (144 values)", lambda f, r: _series(f, r, filter=_day(f, r), top="1000"), 840, 2_500),
    Shape(
        "one day of all, by time, top 100",
        lambda f, r: _get("/Observations", filter=_day(f, r), orderby="phenomenonTime", top="100"), 1_090, 2_000,
    ),
    Shape("10 Things, their Datastreams, each latest", _get("/Things", top="10", expand=_NESTED), 125, 600),
    Shape("Observations?$count=true&$top=1", _get("/Observations", count="true", top="1"), 16, 2_500),
    Shape("data array of 1,000", lambda f, r: _series(f, r, resultFormat="dataArray", top="1000"), 140, 1_500),
    Shape("filter by property", lambda _, r: _get("/Things", filter=f"properties/district eq {r.randrange(_DISTRICTS)}", top="100")),
    Shape("filter by geometry", lambda f, r: _get("/Things", filter=f"st_within(Locations/location, {_square(f, r)})")),
    Shape(
        "Observations by geometry, top 100",
        lambda f, r: _get("/Observations", filter=f"st_within(FeatureOfInterest/feature, {_square(f, r)})", top="100"),
    ),
    Shape("one day of all, top 100", lambda f, r: _get("/Observations", filter=_day(f, r), top="100")),
    Shape("deep page: skip 100,000", _get("/Observations", skip="100000", top="100")),
    Shape("GeoJSON of 100 Locations", _get("/Locations", resultFormat="GeoJSON", top="100"), connections=(1, 4)),
    Shape("CSV of 10,000 Observations", _get("/Observations", resultFormat="CSV", top="10000"), connections=(1, 4)),
    Shape("CreateObservations of 1,000 rows", _create_rows, 2_270, 100_000, (4,), 1_000),
    Shape("POST of one Observation", _post, 570, 1_500, (8,)),
)  # fmt: skip


class Result(msgspec.Struct):
    """A shape's figures by number of connections; rate in requests a second, where it writes rows in rows a second.

    cpu: ms a request, by process, on the most connections. What it allows on two cores is steadier than the rate, when
    others use them too.
    """

    shape: str
    peer: float | None
    aim: float | None
    by_connections: dict[int, Outcome]
    cpu: dict[str, float]


async def fill(store: Store, observations: int, say: Console) -> Filled:
    """Fill a store: Things on a grid with two Datastreams each, values every ten minutes, in the order of time.

    One that was kept is full already.
    """
    lengths = [LONG] * min(FIRST, max(observations // LONG, 1))
    lengths += [SHORT] * (max(0, observations - sum(lengths)) // SHORT)
    total = sum(lengths)
    if await value(store, "SELECT count(*) FROM latest"):
        await _check(store, total)
        async with store.transaction(read_only=True) as transaction:
            things = [row[0] for row in await transaction.fetch("SELECT id FROM things ORDER BY id")]
            series = [row[0] for row in await transaction.fetch("SELECT id FROM datastreams ORDER BY id")]
        say.print(f"{len(things):,} Things, {len(series):,} Datastreams, {total:,} observations are there")
        return Filled(things, series, total)
    began = time.monotonic()
    things = []
    async with store.transaction() as transaction:
        sensor = await transaction.create(
            "Sensors", _described("Sensor", encodingType="text/plain", metadata="m")
        )
        gas = await transaction.create(
            "ObservedProperties", _described("NO2", definition="http://example.org/no2")
        )
        for n in range(-(-len(lengths) // _STREAMS_A_THING)):
            streams = min(_STREAMS_A_THING, len(lengths) - n * _STREAMS_A_THING)
            things.append(await transaction.create("Things", _thing(n, streams, sensor, gas)))
        await transaction.execute(
            "INSERT INTO features_of_interest (name, description, encoding_type, feature, location_id)"
            " SELECT name, description, encoding_type, location, id FROM locations"
        )
        rows = await transaction.fetch(
            "SELECT d.id, f.id FROM datastreams d JOIN things_locations t ON t.thing_id = d.thing_id"
            " JOIN features_of_interest f ON f.location_id = t.location_id ORDER BY d.id"
        )
    datastreams, features = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    say.print(f"{len(things):,} Things, {len(datastreams):,} Datastreams in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    await _fill_rows(store, datastreams, features, np.array(lengths, np.int64))
    say.print(f"{total:,} observations in {time.monotonic() - began:.0f} s")
    async with store.transaction(read_only=True) as transaction:
        await transaction.execute("DELETE FROM pending_updates")
        await transaction.execute("VACUUM ANALYZE")
    await _check(store, total)
    return Filled(things, datastreams.tolist(), total)


async def _check(store: Store, total: int) -> None:
    found = await value(store, "SELECT sum(count)::int8 FROM latest")
    if found < total:
        raise CitylabError(f"{found:,} of {total:,} observations are in the store")


async def _fill_rows(store: Store, datastreams: Int64, features: Int64, lengths: Int64) -> None:
    rng = np.random.default_rng(1)
    longest = int(lengths.max())
    published: Sequence[int] = ()
    position = 0
    while position < longest:
        running = np.flatnonzero(lengths > longest - position - 1)  # the others begin later: all end together
        steps = min(max(_ROWS_A_WRITE // len(running), 1), longest - position)
        later = np.flatnonzero((lengths <= longest - position - 1) & (lengths > longest - position - steps))
        if len(later):  # stop where the next ones begin
            steps = int(longest - position - lengths[later].max())
        times = _END - (longest - position - np.arange(steps, dtype=np.int64)) * STEP
        count = len(running) * steps
        rows = Observations(
            datastream=np.repeat(datastreams[running], steps),
            time=np.tile(times, len(running)),
            number=np.round(rng.random(count) * 50, 2),
            quality=np.ones(count, np.int8),
            feature=np.repeat(features[running], steps),
        )
        none = np.zeros(count, np.int64)
        saved = await store.save(Write(rows=rows, receipt=none, record=none, published=published))
        published = [update for update, _ in saved.updates]
        position += steps


def _described(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": f"{name}, described"} | more


def _thing(n: int, streams: int, sensor: int, gas: int) -> dict[str, Any]:
    place = {"type": "Point", "coordinates": [2 + n % 50 * 0.004, 41.3 + n // 50 % 50 * 0.004]}
    unit = {"name": "microgram per cubic metre", "symbol": "ug/m3", "definition": "http://example.org/ug"}
    return _described(
        f"Thing {n}",
        properties={"district": n % _DISTRICTS, "key": f"t{n}"},
        Locations=[_described(f"Place {n}", encodingType="application/geo+json", location=place)],
        Datastreams=[
            _described(
                f"Stream {n}-{k}",
                observationType="http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
                unitOfMeasurement=unit,
                properties={"streamName": f"bench-{n}-{k}", "interval": "PT10M"},
                Sensor={"@iot.id": sensor},
                ObservedProperty={"@iot.id": gas},
            )
            for k in range(streams)
        ],
    )


async def _load(task: LoadTask) -> Outcome:
    """Run a generator process to its end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "simulators.http_load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | _MEMORY,
    )
    try:
        told, _ = await child.communicate(msgspec.json.encode(task))
        if child.returncode:
            raise CitylabError("the load generator failed; its message stands above")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return msgspec.json.decode(told, type=Outcome)


async def measure(shape: Shape, filled: Filled, city: City, seconds: float) -> Result:
    """Ask for one shape with each number of connections."""
    rng = random.Random(1)
    made = shape.request
    requests = [made] if isinstance(made, Request) else [made(filled, rng) for _ in range(_VARIANTS)]
    result = Result(shape.name, shape.peer, shape.aim, {}, {})
    watch = Watch(city)
    for connections in shape.connections:
        before = watch.seconds()
        outcome = await _load(LoadTask("127.0.0.1", city.settings.http_port, requests, connections, seconds))
        spent = {name: after - before[name] for name, after in watch.seconds().items()}
        if outcome.answers:
            result.cpu = {
                name: spent[name] / outcome.answers * 1e3 for name in ("api", "store") if name in spent
            }
            result.cpu["generator"] = outcome.cpu / 1e3
        outcome.rate *= shape.rows
        result.by_connections[connections] = outcome
        if outcome.failure:
            break
    return result


async def bench_api(
    settings: Settings, only: Sequence[str], observations: int, seconds: float, *, keep: bool, as_json: bool
) -> None:
    """Fill, measure, and print. keep: let the store stay, for the next run over as many."""
    say = Console(stderr=True)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # what is started from here inherits them
    results = []
    async with (
        city_apart(settings, "api", kept=f"bench-api-{observations}" if keep else None) as city,
        wiring.opened(wiring.store(city.settings, name="bench")) as store,
    ):
        filled = await fill(store, observations, say)
        await _until_served(city.settings.http_port)
        for shape in SHAPES:
            if any(part.lower() in shape.name.lower() for part in only or [""]):
                results.append(await measure(shape, filled, city, seconds))
                say.print(_line(results[-1]))
    if as_json:
        typer.echo(msgspec.json.encode({"observations": filled.observations, "api": results}).decode())
        return
    table = Table(title=f"requests a second over {filled.observations:,} observations (p50, p99 in ms)")
    for column in (
        "request",
        "1 connection",
        "",
        "several",
        "",
        "ms CPU: api",
        "store",
        "generator",
        "best peer",
        "aim",
    ):
        table.add_column(column, justify="left" if column == "request" else "right")
    for result in results:
        first, several = result.by_connections.get(1), [o for n, o in result.by_connections.items() if n > 1]
        table.add_row(result.shape, *_cells(first), *_cells(several[0] if several else None), *(f"{result.cpu[name]:.2f}" if name in result.cpu else "" for name in ("api", "store", "generator")), _number(result.peer), _number(result.aim))  # fmt: skip
    Console(width=140).print(table)


async def _until_served(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise CitylabError("the API does not listen after a minute") from None
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


def _line(result: Result) -> str:
    parts = [
        o.failure.splitlines()[0] if o.failure else f"{n}: {o.rate:,.0f}/s {o.p50:.1f}/{o.p99:.1f} ms"
        for n, o in result.by_connections.items()
    ]
    cpu = ", ".join(f"{name} {ms:.2f}" for name, ms in result.cpu.items())
    return f"{result.shape}: {'; '.join(parts)}; ms CPU: {cpu}"


def _cells(outcome: Outcome | None) -> tuple[str, str]:
    if outcome is None or outcome.failure:
        return ("" if outcome is None else outcome.failure[:3]), ""
    return f"{outcome.rate:,.0f}", f"{outcome.p50:.1f}, {outcome.p99:.1f}"


def _number(figure: float | None) -> str:
    return "" if figure is None else f"{figure:,.0f}"
