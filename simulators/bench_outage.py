"""`citylab bench outage`: a gateway comes back with what it measured in a day without the platform.

Its outbox is filled as the edge agent would have filled it; then it is an edge agent, a process of its own, which goes on
measuring while it delivers. Another gateway measures beside it, and so does it before and afterwards.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from citylab import wiring
from citylab.columns import decode_update
from citylab.errors import CitylabError
from citylab.model import SECOND, Micros, Reading, Topic
from citylab.ports import EventLog, Store
from citylab.settings import Settings
from citylab.times import now
from citylab.up import City, Service
from edge.agent import Agent
from edge.feed import COMMITTED_AT_ONCE, Packing
from edge.outbox import Outbox, Pack
from edge.packing import encode_all
from simulators.bench_city import Watch, city_apart, until, value
from simulators.load import Shape, things

BACK, OTHER = "bench-back", "bench-other"  # the gateways
STREAMS = 10  # of each
ALONE = 10.0  # s for which the other gateway measures alone
BEHIND = 5.0  # s for which both go on measuring when everything has come: of a short backlog's time there is little
WITHIN = 3_600.0  # s that catching up may take


class Delays(msgspec.Struct):
    """From measuring to visible, in milliseconds, the second for which the agent collects a pack included."""

    observations: int
    p50: float
    p99: float
    most: float


class Outage(msgspec.Struct):
    """What a run has found. seconds: of catching up; memory: the most that a process took, in MiB, by name.

    alone: of the other gateway before; beside: of it from when the backlog came; live: of the gateway that came back.
    """

    hours: float
    rate: float
    observations: int
    outbox_bytes: int
    fill_seconds: float
    seconds: float
    alone: Delays
    beside: Delays
    live: Delays
    memory: dict[str, int]

    @property
    def caught_up(self) -> float:
        """Observations a second."""
        return self.observations / self.seconds


class Clockwork:
    """A driver that measures `rate` readings a second, from now on."""

    def __init__(self, gateway: str, rate: float) -> None:
        self.things = things(gateway, Shape(1, STREAMS, 1, STREAMS))
        self._names = [f"{gateway}/s{number}" for number in range(STREAMS)]
        self._rate = rate

    async def readings(self, _position: str | None) -> AsyncIterator[tuple[Sequence[Reading], str | None]]:
        """Without end."""
        begin, count = now(), 0
        draw = random.Random(0)
        while True:
            due = int((now() - begin) / SECOND * self._rate)
            times = (begin + int(n / self._rate * SECOND) for n in range(count, due))
            some = [
                Reading(self._names[n % STREAMS], at, round(draw.gauss(20, 5), 2), "Cel")
                for n, at in enumerate(times, count)
            ]
            count = max(count, due)
            yield some, None
            await asyncio.sleep(0.05)


class Role(msgspec.Struct, frozen=True):
    """What a gateway's process is told."""

    gateway: str
    rate: float
    outbox: str


async def serve(settings: Settings, role: Role) -> None:
    """Be a gateway until we are told to end."""
    connect: Any = partial(wiring.broker_connection, settings)
    await Agent(role.gateway, Clockwork(role.gateway, role.rate), Outbox(Path(role.outbox)), connect).run()


def measured(rate: float, begin: Micros, seconds: float) -> Iterator[list[Reading]]:
    """What a gateway has measured since `begin`, a second at a time: what the agent makes a pack of."""
    names = [f"{BACK}/s{number}" for number in range(STREAMS)]
    draw = np.random.default_rng(0)
    step = SECOND / rate
    for second in range(int(seconds)):
        first, end = round(second * rate), round((second + 1) * rate)
        values = draw.normal(20, 5, end - first).round(2).tolist()
        yield [
            Reading(names[n % STREAMS], begin + int(n * step), v, "Cel") for n, v in enumerate(values, first)
        ]


async def fill(folder: Path, rate: float, hours: float, until: Micros) -> tuple[int, int, int]:
    """Write an outbox as the agent does that has nobody to send to: readings, packs and bytes that it holds."""
    packing = Packing()
    readings = 0
    async with Outbox(folder) as outbox:
        packs: list[Pack] = []
        for some in measured(rate, until - int(hours * 3_600 * SECOND), hours * 3_600):
            readings += len(some)
            seq = outbox.last + len(packs) + 1
            payloads = encode_all(
                some, epoch=outbox.epoch, seq=seq, form=packing.form, most_records=packing.most_records,
                most_bytes=packing.most_bytes, refused=_refuse,
            )  # fmt: skip
            packs += [Pack(number, payload) for number, payload in enumerate(payloads, seq)]
            if len(packs) >= COMMITTED_AT_ONCE:
                await outbox.append(packs, None)
                packs = []
            if outbox.gone:
                break
        await outbox.append(packs, None)
        if outbox.gone:
            raise CitylabError(
                f"an outbox of {outbox.most_bytes >> 20} MiB does not hold {hours:g} h of that: make it less"
            )
        return readings, outbox.last, outbox.stored


def _refuse(reading: Reading, why: str) -> None:
    raise CitylabError(f"{reading}: {why}")


class Visible:
    """Watches what becomes visible: delays of what was measured since we watch, by gateway."""

    def __init__(self, store: Store, log: EventLog) -> None:
        self._store, self._log = store, log
        self._since: Micros = 0
        self._found: dict[str, list[np.ndarray[Any, np.dtype[np.int64]]]] = {BACK: [], OTHER: []}
        self._ids: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}

    async def know(self, gateway: str) -> None:
        """Wait until its streams are registered."""
        mine = f"FROM datastreams WHERE stream_name LIKE '{gateway}/%'"
        await until(self._store, f"SELECT count(*) {mine}", STREAMS, what="streams", within=60)
        self._ids[gateway] = np.array(await value(self._store, f"SELECT array_agg(id) {mine}"))

    async def run(self) -> None:
        """Watch until cancelled. The update that follows a commit shows its rows."""
        async for batch in self._log.read(Topic.UPDATES, await self._log.tail(Topic.UPDATES)):
            seen: Micros = now()
            for event in batch.events:
                rows, _ = decode_update(event.value).rows()
                rows = rows.take(rows.time >= self._since)
                for gateway, ids in self._ids.items():
                    self._found[gateway].append(seen - rows.time[np.isin(rows.datastream, ids)])

    def restart(self) -> None:
        """From now on."""
        self._since = now()
        for some in self._found.values():
            some.clear()

    def delays(self, gateway: str) -> Delays:
        """Since the restart."""
        some = np.concatenate([*self._found[gateway], np.zeros(0, np.int64)]) / 1_000
        if not len(some):
            raise CitylabError(f"nothing that {gateway} measured meanwhile became visible")
        return Delays(len(some), *(round(float(np.percentile(some, p)), 1) for p in (50, 99, 100)))


class Memory:
    """The most that each process took while the block ran, in MiB, sampled."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self._processes = processes
        self.most: dict[str, int] = {}

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            for name, process in self._processes.items():
                took = process.memory_info().rss >> 20
                self.most[name] = max(took, self.most.get(name, 0))
            await asyncio.sleep(0.25)


@asynccontextmanager
async def _gateway(city: City, name: str, rate: float) -> AsyncIterator[psutil.Process]:
    """A gateway as a process."""
    role = Role(name, rate, str(city.settings.data / "edge" / name))
    service = Service(name, city.settings, city.settings.data / "logs")
    service.command = [sys.executable, "-m", "simulators.bench_outage", msgspec.json.encode(role).decode()]
    service.start()
    assert service.child is not None
    try:
        yield psutil.Process(service.child.pid)
    finally:
        await service.stop(5)


async def measure(settings: Settings, hours: float, rate: float, say: Console) -> Outage:
    """Make the outage, end it, and measure until everything has come and is the truth."""
    async with AsyncExitStack() as stack:
        city = await stack.enter_async_context(city_apart(settings, "ingest", "processing"))
        store = await stack.enter_async_context(wiring.opened(wiring.store(city.settings, name="bench")))
        log = await stack.enter_async_context(wiring.opened(wiring.event_log(city.settings)))
        say.print(f"filling an outbox with {hours:g} h at {rate:g} observations a second")
        began = time.monotonic()
        readings, packs, size = await fill(city.settings.data / "edge" / BACK, rate, hours, now())
        filled = time.monotonic() - began

        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        visible = Visible(store, log)
        watching = [tasks.create_task(visible.run())]
        other = await stack.enter_async_context(_gateway(city, OTHER, rate))
        await visible.know(OTHER)
        say.print(f"another gateway measures alone for {ALONE:g} s")
        await asyncio.sleep(2)  # the first packs waited for their descriptor
        visible.restart()
        await asyncio.sleep(ALONE)
        alone = visible.delays(OTHER)

        say.print(f"the gateway is back, with {readings:,} observations in {packs:,} packs, {size:,} bytes")
        began = time.monotonic()
        visible.restart()
        back = await stack.enter_async_context(_gateway(city, BACK, rate))
        watch = Watch(city).processes
        store_less = {name: process for name, process in watch.items() if name not in {"store", "log"}}
        memory = Memory({**store_less, "gateway": back, "other gateway": other})
        watching.append(tasks.create_task(memory.run()))
        await visible.know(BACK)
        has_all = (
            f"SELECT count(*) FROM ledger WHERE gateway = '{BACK}' AND received @> int8range(1, {packs + 1})"
        )
        await until(store, has_all, 1, what="ledgers with all of it", within=WITHIN)
        seconds = time.monotonic() - began
        await asyncio.sleep(BEHIND)
        beside, live = visible.delays(OTHER), visible.delays(BACK)
        for task in watching:
            task.cancel()
        await _check(store, readings, packs)
    return Outage(
        hours, rate, readings, size, round(filled, 1), round(seconds, 1), alone, beside, live, memory.most
    )


async def _check(store: Store, readings: int, packs: int) -> None:
    """Every observation of the backlog is there, once, and none was rejected. Raises `CitylabError`."""
    rejected = f"SELECT sum(rejected)::bigint FROM ledger WHERE gateway = '{BACK}'"
    found = (
        "SELECT count(*) FROM observations o JOIN datastreams d ON d.id = o.datastream_id"
        f" WHERE d.stream_name LIKE '{BACK}/%'"
    )
    there, refused = await value(store, found), await value(store, rejected)
    if there < readings or refused:
        raise CitylabError(
            f"of {readings:,} observations in {packs:,} packs {there:,} are there, {refused:,} rejected"
        )


async def bench_outage(settings: Settings, hours: float, rate: float, *, as_json: bool) -> None:
    """Measure, and print."""
    outage = await measure(settings, hours, rate, Console(stderr=True))
    if as_json:
        typer.echo(msgspec.json.encode(outage).decode())
        return
    console = Console(width=140, highlight=False)
    console.print(
        f"{outage.observations:,} observations ({outage.outbox_bytes / (1 << 20):,.0f} MiB of packs) came in"
        f" {outage.seconds:,.1f} s: {outage.caught_up:,.0f} a second, {outage.caught_up / rate:,.0f} times what is measured"
    )
    table = Table(title="measured -> visible, ms")
    for column in ("", "observations", "p50", "p99", "most"):
        table.add_column(column, justify="left" if not column else "right")
    for name, delays in (
        ("another gateway, alone", outage.alone),
        ("the same, beside the backlog", outage.beside),
        ("live data of the gateway that came back", outage.live),
    ):
        figures = (delays.p50, delays.p99, delays.most)
        table.add_row(name, f"{delays.observations:,}", *(f"{figure:,.0f}" for figure in figures))
    console.print(table)
    console.print(
        "most memory, MiB: " + ", ".join(f"{name} {most:,}" for name, most in outage.memory.items())
    )


if __name__ == "__main__":
    from citylab.cli import run

    run("edge", partial(serve, role=msgspec.json.decode(sys.argv[1], type=Role)), of_running_city=False)
