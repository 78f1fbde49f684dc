"""`citylab replay`: a recording, sent through the broker like any gateway would, until it is in the database."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from citylab import wiring
from citylab.cli import Data, run
from citylab.errors import ConfigurationError, Unavailable
from citylab.ports import Store
from citylab.settings import Settings
from edge.feed import Packing
from edge.outbox import Outbox
from simulators import drive_test, open_data_bcn
from simulators.fleet import Counted, run_fleet
from simulators.playback import Pace, Recording, parse_speed

T = TypeVar("T")

PACKS_AHEAD = 500  # in an outbox, unacknowledged, beyond which the file is not read on
SAY_EVERY = 5.0  # s between lines where there is no terminal

app = typer.Typer(
    help="Send a recording through the broker like any gateway would, until it is in the database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Speed = Annotated[
    str,
    typer.Option(
        "--speed",
        metavar="FACTOR",
        help="1 is the recorded pace, 3600 an hour a second, max as fast as accepted.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print what was sent as JSON.")]


class _Bar:
    """How far the replay is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("sending", total=total)
        self._total, self._sent, self._said = total, 0, time.monotonic()
        self._quiet = not console.is_terminal

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def add(self, count: int) -> None:
        """Count readings that are on their way."""
        self._sent += count
        self._progress.advance(self._task, count)
        if self._quiet and time.monotonic() - self._said >= SAY_EVERY:
            self._said = time.monotonic()
            typer.echo(f"sent {self._sent:,} of {self._total:,} values", err=True)

    def phase(self, text: str) -> None:
        """Say what is waited for."""
        self._progress.update(self._task, description=text)


_NAMES = ("stored", "duplicates", "rejected")


async def _accounts(store: Store, gateways: Iterable[str]) -> Counter[str]:
    """What the ledger has of these gateways so far: records stored, duplicates, rejected."""
    async with store.transaction(read_only=True) as transaction:
        ((stored, duplicates, rejected),) = await transaction.fetch(
            "SELECT coalesce(sum(stored), 0)::bigint, coalesce(sum(duplicates), 0)::bigint,"
            " coalesce(sum(rejected), 0)::bigint FROM ledger WHERE gateway = ANY(%s)",
            (list(gateways),),
        )
    return Counter(dict(zip(_NAMES, (stored, duplicates, rejected), strict=True)))


# What was rejected because it overtook its descriptor is taken up by itself: soon, or as soon as that is registered.
_OVERTAKING = """
SELECT EXISTS (SELECT FROM rejections r WHERE r.gateway = ANY(%s) AND r.reason = 'unknown-stream' AND r.closed_at IS NULL
    AND (EXISTS (SELECT FROM datastreams d WHERE d.stream_name = r.stream)
        OR NOT EXISTS (SELECT FROM gateways g WHERE g.name = r.gateway AND g.descriptor IS NOT NULL)))
"""


async def _until_stored(store: Store, outboxes: Mapping[str, Outbox]) -> None:
    """Return when the ledger has every pack that the outboxes numbered, and what waits for a descriptor is stored."""
    received = "SELECT received @> int8range(1, %s, '[]') FROM ledger WHERE gateway = %s AND epoch = %s"
    for gateway, outbox in outboxes.items():
        if outbox.last:
            await _until(store, received, (outbox.last, gateway, outbox.epoch), True)
    await _until(store, _OVERTAKING, (list(outboxes),), False)


async def _until(store: Store, query: str, parameters: Sequence[Any], answer: object) -> None:
    while True:
        async with store.transaction(read_only=True) as transaction:
            if (answer,) in await transaction.fetch(query, parameters):
                return
        await asyncio.sleep(0.1)


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Ask the store again while it does not answer; say so once."""
    said = False
    while True:
        try:
            return await work()
        except Unavailable as error:
            if not said:
                typer.echo(f"waiting: {error}", err=True)
            said = True
            await asyncio.sleep(1)


async def _replay(settings: Settings, read: Callable[[], Recording], speed: str, as_json: bool) -> int:
    pace = Pace(parse_speed(speed))
    recording = await asyncio.to_thread(read)
    summary = recording.summary
    if not as_json:
        typer.echo("\n".join(summary.lines()))
    async with wiring.opened(wiring.store(settings, name="replay")) as store:
        before = await _patiently(lambda: _accounts(store, recording.parts))
        with _Bar(summary.values) as bar:
            drivers = {name: Counted(driver, bar.add) for name, driver in recording.drivers(pace).items()}
            packing = Packing(most_pending=PACKS_AHEAD)
            outboxes = await run_fleet(settings, drivers, group="replay", packing=packing)
            bar.phase("storing")
            await _patiently(lambda: _until_stored(store, outboxes))
        after = await _patiently(lambda: _accounts(store, recording.parts))
    for outbox in outboxes.values():  # done: another replay of the file begins anew
        async with outbox:
            await outbox.append([], "")
    became = {name: after[name] - before[name] for name in _NAMES}
    if as_json:
        typer.echo(msgspec.json.encode({"file": summary.json(), **became}).decode())
    else:
        typer.echo(
            f"All of it is in the database: {became['stored']:,} values new, {became['duplicates']:,} there already,"
            f" {became['rejected']:,} rejected."
        )
    return 0


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ConfigurationError(f"{path} is not a file that can be read")
    return path


@app.command("open-data-bcn")
def replay_open_data_bcn(
    file: Annotated[Path, typer.Argument(help="Open Data BCN's hourly air quality, as CSV.")],
    stations: Annotated[
        Path | None,
        typer.Option(help="A CSV of stations (station,name,longitude,latitude) instead of the known ones."),
    ] = None,
    speed: Speed = "1",
    json: Json = False,
    data: Data = None,
) -> None:
    """Replay Barcelona's air quality: a gateway a station, a datastream a pollutant, a value an hour.

    Ends when the ledger says that everything is in the database. Interrupted, it goes on where it was; replayed again,
    it changes nothing.
    """

    def read() -> Recording:
        known = open_data_bcn.read_stations(_file(stations)) if stations else open_data_bcn.STATIONS
        return open_data_bcn.read(_file(file), stations=known)

    run("replay", lambda settings: _replay(settings, read, speed, json), data=data)


@app.command("drive-test")
def replay_drive_test(
    file: Annotated[Path, typer.Argument(help="A 5G drive test, as CSV.")],
    location: Annotated[
        str | None,
        typer.Option(metavar="LON,LAT", help="Where it was recorded: the file does not say. Default: Cork."),
    ] = None,
    speed: Speed = "1",
    json: Json = False,
    data: Data = None,
) -> None:
    """Replay a 5G drive test: one gateway, a datastream a column, a row every three seconds.

    Ends when the ledger says that everything is in the database. Interrupted, it goes on where it was; replayed again,
    it changes nothing.
    """

    def read() -> Recording:
        return drive_test.read(
            _file(file), location=drive_test.parse_location(location) if location else None
        )

    run("replay", lambda settings: _replay(settings, read, speed, json), data=data)
