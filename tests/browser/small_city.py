# ruff: noqa: ARG002 the port names the arguments
"""A city made of generated answers, for the states of the live page that are hard to produce on the real thing.

`/live` is the real one, reading a log in memory; the SensorThings answers are those that the page asks for, no more.
"""

import asyncio
import math
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from api.live import LiveRouter
from api.live_feed import Feed
from api.live_things import Box
from api.page import page_router
from citylab.columns import Observations, Update, encode_update
from citylab.model import SECOND, Batch, Event, NewEvent, Position, Quality, Topic
from citylab.times import format_instant, now, parse_instant

STATIONS = [
    ("Poblenou", 2.2045, 41.4039), ("Sants", 2.1331, 41.3788), ("Eixample", 2.1538, 41.3853),
    ("Gràcia", 2.1534, 41.3987), ("Ciutadella", 2.1874, 41.3864), ("Vall d'Hebron", 2.1480, 41.4261),
    ("Palau Reial", 2.1151, 41.3875), ("Observatori Fabra", 2.1239, 41.4183),
]  # fmt: skip
AIR = [
    ("NO₂", "µg/m³", 38, 14),
    ("O₃", "µg/m³", 61, 18),
    ("PM10", "µg/m³", 22, 6),
    ("Temperature", "°C", 17.5, 4),
]
QUALITIES = {Quality.NONE: None, Quality.GOOD: "good", Quality.SUSPECT: "suspect", Quality.BAD: "bad"}


class MemoryLog:
    """The event log in memory, enough for a reader of its tail."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        self.events += [Event(0, len(self.events) + i, *event) for i, event in enumerate(events)]
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    async def partitions(self, topic: Topic) -> Sequence[int]:
        return [0]

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        return {0: len(self.events)}

    async def tail(self, topic: Topic) -> Mapping[int, Position]:
        return {0: Position(len(self.events), b"")}

    async def committed(self, group: str, topic: Topic) -> Mapping[int, Position]:
        return {}

    async def commit(self, group: str, topic: Topic, positions: Mapping[int, Position]) -> None:
        pass

    async def read(
        self, topic: Topic, start: Mapping[int, Position], *, most: int = 1_000, most_bytes: int = 4 << 20
    ) -> AsyncIterator[Batch]:
        at = start[0].offset
        while True:
            changed = self.changed
            events = self.events[at : at + most]
            if events:
                yield Batch(topic, 0, Position(at, b""), events, Position(at + len(events), b""))
                at += len(events)
            else:
                await changed.wait()


@dataclass
class Stream:
    """A datastream whose values are a function of time."""

    id: int
    name: str
    unit: str
    mean: float
    swing: float
    interval: float = 10.0  # seconds
    stopped: float = 0.0  # silent for so many seconds
    quality: Quality = Quality.NONE
    active: bool = True
    results: list[Any] | None = None  # results that are no numbers
    stamp: str | None = None
    empty: bool = False
    flawed: bool = True  # has outages of some minutes, so that charts have gaps, and a few doubtful values
    extra: list[tuple[int, Any, Quality]] = field(
        default_factory=list
    )  # what a test has sent: µs, result, quality

    def times(self, start: int, end: int) -> Iterator[int]:
        """µs of its values between two instants."""
        step = round(self.interval * SECOND)
        last = min(end, now() - round(self.stopped * SECOND))
        for number in range(-(-start // step), last // step + 1):
            outage = (number * step // SECOND + self.id * 711) % 5_400 < 240
            if not (self.flawed and outage and self.interval <= 60 and not self.stopped):
                yield number * step

    def value(self, time: int) -> Any:
        if self.results is not None:
            return self.results[(time // SECOND // 60 + self.id) % len(self.results)]
        seconds = time / SECOND
        day = math.sin(2 * math.pi * (seconds / 86_400 + self.id / 17))
        hour = math.sin(2 * math.pi * (seconds / 2_300 + self.id / 5))
        noise = random.Random(time * 31 + self.id).gauss(0, 1)
        return round(self.mean + self.swing * (0.6 * day + 0.35 * hour + 0.12 * noise), 1)

    def flag(self, time: int) -> Quality:
        if self.quality or not self.flawed:
            return self.quality
        draw = random.Random(time * 7 + self.id).random()
        return Quality.SUSPECT if draw < 0.006 else Quality.BAD if draw < 0.009 else Quality.NONE

    def observations(self, start: int, end: int) -> list[dict[str, Any]]:
        """As the API writes them, the newest first."""
        if self.empty and not self.extra:
            return []
        rows = (
            []
            if self.empty
            else [(time, self.value(time), self.flag(time)) for time in self.times(start, end)]
        )
        rows += [row for row in self.extra if start <= row[0] <= end]
        rows.sort(key=lambda row: -row[0])
        return [
            {
                "@iot.id": self.id * 1_000_000 + i,
                "phenomenonTime": format_instant(time),
                "result": value,
                "resultQuality": {"flag": QUALITIES[flag]} if flag else None,
            }
            for i, (time, value, flag) in enumerate(rows)
        ]

    def json(self) -> dict[str, Any]:
        until = now() - round(self.stopped * SECOND)
        newest = self.observations(until - round(self.interval * SECOND) - 300 * SECOND, now())
        properties: dict[str, Any] = {"streamName": f"small/{self.id}", "interval": f"PT{self.interval:g}S"}
        if not self.active:
            properties["active"] = False
        if self.stamp:
            properties["stamp"] = self.stamp
        return {
            "@iot.id": self.id,
            "name": f"{self.name} {self.id}",
            "description": f"{self.name} of a generated city",
            "unitOfMeasurement": {"name": self.unit, "symbol": self.unit, "definition": ""},
            "properties": properties,
            "ObservedProperty": {"@iot.id": 1, "name": self.name},
            "Observations": newest[:1],
        }


@dataclass
class Thing:
    """A thing and where it stands."""

    id: int
    name: str
    longitude: float
    latitude: float
    streams: list[Stream]

    def json(self) -> dict[str, Any]:
        point = {"type": "Point", "coordinates": [self.longitude, self.latitude]}
        return {
            "@iot.id": self.id,
            "@iot.selfLink": f"http://elsewhere.invalid/v1.1/Things({self.id})",
            "name": self.name,
            "description": f"{self.name}, generated",
            "properties": {"key": f"thing-{self.id}"},
            "Locations": [
                {
                    "name": self.name,
                    "description": "",
                    "encodingType": "application/geo+json",
                    "location": point,
                }
            ],
            "Datastreams": [stream.json() for stream in self.streams],
        }


class SmallCity:
    """The city, which a test may change while the page looks at it."""

    def __init__(self, things: list[Thing], static: Path | None = None) -> None:
        self.things = things
        self.log = MemoryLog()
        self.live = LiveRouter(Feed(self.log), self)
        self.health: dict[str, Any] = {
            "state": "ready",
            "checks": [{"name": "store", "ok": True, "detail": ""}],
            "observations_per_second": 0.0,
            "lag_seconds": 0.21,
            "gateways": {"online": 12, "offline": 0},
            "broker": "mqtt://127.0.0.1:18830",
        }
        self.page_size = 100
        self.failing = False
        self.asked: list[str] = []
        self.playing = True
        self._update = 0
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.include_router(page_router(static))
        self.app.include_router(self.live)
        self.app.add_api_route("/v1.1/Things", self._things)
        self.app.add_api_route("/v1.1/Datastreams({number})/Observations", self._observations)
        self.app.add_api_route("/health/ready", self._ready)

    @property
    def streams(self) -> list[Stream]:
        return [stream for thing in self.things for stream in thing.streams]

    async def send(
        self, stream: Stream, result: float, quality: Quality = Quality.NONE, *, ago: float = 0.0
    ) -> None:
        """Let one value arrive now."""
        time = now() - round(ago * SECOND)
        stream.extra.append((time, result, quality))
        await self._write([(stream.id, time, result, quality)])

    async def _write(self, rows: list[tuple[int, int, float, Quality]]) -> None:
        self._update += 1
        columns = Observations(
            datastream=np.array([row[0] for row in rows], np.int64),
            time=np.array([row[1] for row in rows], np.int64),
            number=np.array([row[2] for row in rows], np.float64),
            quality=np.array([row[3] for row in rows], np.int8),
            feature=np.ones(len(rows), np.int64),
        )
        value = encode_update(Update.of(self._update, columns, np.arange(len(rows), dtype=np.int64)))
        await self.log.append(Topic.UPDATES, [NewEvent("small", value, {}, now())])

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        playing = asyncio.create_task(self._play())
        yield
        playing.cancel()

    async def _play(self) -> None:
        """Let what is due arrive, every quarter of a second."""
        before = now()
        counts: list[int] = []
        while True:
            await asyncio.sleep(0.25)
            upto = now()
            rows = [
                (stream.id, time, stream.value(time), stream.flag(time))
                for stream in self.streams
                if self.playing
                and stream.active
                and not stream.stopped
                and stream.results is None
                and not stream.empty
                for time in stream.times(before + 1, upto)
            ]
            before = upto
            counts = [*counts[-7:], len(rows)]
            self.health["observations_per_second"] = sum(counts) / len(counts) * 4
            if rows:
                await self._write(rows)

    async def datastreams_of(self, thing: int) -> list[int] | None:
        for one in self.things:
            if one.id == thing:
                return [stream.id for stream in one.streams]
        return None

    async def datastreams_in(self, box: Box) -> list[int]:
        return []

    async def _ready(self) -> JSONResponse:
        return JSONResponse(self.health, 200 if self.health["state"] == "ready" else 503)

    async def _things(self, request: Request) -> JSONResponse:
        self.asked.append(str(request.url))
        if self.failing:
            return JSONResponse(
                {"code": 503, "type": "Unavailable", "message": "the store does not answer"}, 503
            )
        skip = int(request.query_params.get("$skip", "0"))
        assert request.query_params["$expand"].startswith("Locations,Datastreams(")
        page = self.things[skip : skip + self.page_size]
        body: dict[str, Any] = {"value": [thing.json() for thing in page]}
        if skip + self.page_size < len(self.things):
            query = {"$expand": request.query_params["$expand"], "$skip": str(skip + self.page_size)}
            body["@iot.nextLink"] = f"http://elsewhere.invalid/v1.1/Things?{urlencode(query)}"
        return JSONResponse(body)

    async def _observations(self, number: int, request: Request) -> JSONResponse:
        self.asked.append(str(request.url))
        if self.failing:
            return JSONResponse(
                {"code": 503, "type": "Unavailable", "message": "the store does not answer"}, 503
            )
        query = request.query_params
        found = re.fullmatch(r"phenomenonTime ge (\S+) and phenomenonTime (le|lt) (\S+)", query["$filter"])
        assert found, query["$filter"]
        start, end = parse_instant(found[1]), parse_instant(found[3]) - (found[2] == "lt")
        (stream,) = [stream for stream in self.streams if stream.id == number]
        top = min(int(query.get("$top", "100")), 1_000)
        skip = int(query.get("$skip", "0"))
        rows = stream.observations(start, end)
        assert query["$orderby"] == "phenomenonTime desc"
        body: dict[str, Any] = {"value": rows[skip : skip + top]}
        if skip + top < len(rows):
            body["@iot.nextLink"] = (
                f"http://elsewhere.invalid/v1.1/Datastreams({number})/Observations?"
                f"{urlencode({**query, '$skip': str(skip + top)})}"
            )
        return JSONResponse(body)


def barcelona() -> list[Thing]:
    """Some forty things with one of every state."""
    draw = random.Random(7)
    ids = iter(range(1, 10_000))
    things = [
        Thing(
            next(ids), f"Air quality {name}", longitude, latitude,
            [Stream(next(ids), property_, unit, mean, swing) for property_, unit, mean, swing in AIR],
        )
        for name, longitude, latitude in STATIONS
    ]  # fmt: skip
    streets = [
        "Rambla del Poblenou", "Carrer de Mallorca", "Passeig de Gràcia", "Plaça de Catalunya", "Carrer de Sants",
        "Avinguda del Paral·lel", "Plaça de les Glòries", "Carrer de Pallars", "Via Laietana", "Plaça d'Espanya",
        "Travessera de Dalt", "Carrer de Balmes", "Passeig Marítim", "Carrer de la Marina", "Avinguda de Roma",
    ]  # fmt: skip
    for name in streets:
        longitude, latitude = 2.128 + draw.random() * 0.07, 41.379 + draw.random() * 0.033
        streams = [
            Stream(next(ids), "Sound level", "dB(A)", 62, 9, 1.0),
            Stream(next(ids), "Vehicles", "/min", 24, 15, 60),
        ]
        things.append(Thing(next(ids), f"Noise {name}", longitude, latitude, streams))
    for name in ("Forum", "Sants Estació", "Boqueria", "Hospital Clínic"):
        longitude, latitude = 2.13 + draw.random() * 0.08, 41.38 + draw.random() * 0.03
        streams = [
            Stream(next(ids), "Free places", "", 140, 90, 30),
            Stream(next(ids), "Barrier", "", 0, 0, 60, results=["open", "closed"]),
        ]
        things.append(Thing(next(ids), f"Car park {name}", longitude, latitude, streams))
    things[2].streams[1].quality = Quality.SUSPECT
    things[5].streams[0].stopped = 95
    things[7].streams[2].stopped = 9_000
    things[7].streams[3].active = False
    things[7].streams[3].stopped = 90_000
    things[11].streams[1].stopped = 230
    things[14].streams[0].empty = True
    things[20].streams[0].quality = Quality.BAD
    return things


def many(count: int) -> list[Thing]:
    """Things with five streams each, on a grid."""
    side = math.ceil(math.sqrt(count))
    return [
        Thing(
            i + 1, f"Lamp post {i + 1}", 2.10 + 0.12 * (i % side) / side, 41.37 + 0.08 * (i // side) / side,
            [Stream(10_000 + 5 * i + k, f"Value {k}", "V", 230, 3, 5.0) for k in range(5)],
        )
        for i in range(count)
    ]  # fmt: skip
