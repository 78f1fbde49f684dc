"""`/live` over HTTP: who gets what, and what happens to those who are slow, late or wrong."""
# ruff: noqa: ARG002, ASYNC110  # the port names the arguments; a server tells nobody that it has started

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import api.live
from api.cli import Server
from api.live import LiveRouter
from api.live_feed import Feed
from api.live_things import Box
from citylab.columns import Observations, Update, encode_update
from citylab.errors import PositionLost, Unavailable
from citylab.model import Batch, Event, NewEvent, Position, Topic

T0 = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
S = 1_000_000


class Shelf:
    """The event log in memory, which can be taken away and exchanged."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.away = False
        self.exchanged = False
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        for new in events:
            self.events.append(Event(0, len(self.events), new.key, new.value, new.headers, new.time))
        self.ring()

    def ring(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def partitions(self, topic: Topic) -> Sequence[int]:
        return [0]

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        self._answer()
        return {0: len(self.events)}

    async def tail(self, topic: Topic) -> Mapping[int, Position]:
        self._answer()
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
            self._answer()
            if self.exchanged:
                self.exchanged = False
                raise PositionLost(topic, 0, "another log")
            changed = self._changed
            if at < len(self.events):
                events = self.events[at : at + most]
                yield Batch(topic, 0, Position(at, b""), events, Position(at + len(events), b""))
                at += len(events)
            else:
                await changed.wait()

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("event log", "it is away", retry_after=0.01)


class Shelved:
    """The Things of a city: 5 and 6 with these Datastreams, and in every box those of Thing 5."""

    def __init__(self, things: dict[int, list[int]]) -> None:
        self._things = things

    async def datastreams_of(self, thing: int) -> list[int] | None:
        return self._things.get(thing)

    async def datastreams_in(self, box: Box) -> list[int]:
        return self._things[5]


class Said(NamedTuple):
    """An event as a client reads it."""

    name: str
    id: str | None
    data: object


class City:
    """A running `/live`, what is written to its log, and its clients."""

    def __init__(
        self,
        log: Shelf,
        live: LiveRouter,
        server: Server,
        things: dict[int, list[int]],
        serving: asyncio.Task[None],
        transport: str,
    ) -> None:
        self.log = log
        self.live = live
        self.things = things
        self.serving = serving
        self.transport = transport
        host, port = server.servers[0].sockets[0].getsockname()
        self.http = httpx.AsyncClient(base_url=f"http://{host}:{port}")
        self.websocket = f"ws://{host}:{port}/live"
        self._update = 100

    async def write(self, *rows: tuple[int, int, float], update: int | None = None) -> int:
        """Store rows of (datastream, seconds after T0, number), as one update."""
        if update is None:
            self._update += 1
            update = self._update
        datastream, seconds, number = zip(*rows, strict=True)
        n = len(rows)
        columns = Observations(
            datastream=np.array(datastream, np.int64),
            time=np.array(seconds, np.int64) * S + T0,
            number=np.array(number, np.float64),
            quality=np.zeros(n, np.int8),
            feature=np.ones(n, np.int64),
        )
        value = encode_update(Update.of(update, columns, np.arange(n, dtype=np.int64)))
        await self.log.append(Topic.UPDATES, [NewEvent("test", value, {}, T0)])
        return update

    @asynccontextmanager
    async def client(self, query: str = "", *, since: int | str | None = None) -> AsyncIterator["Client"]:
        headers = {} if since is None else {"Last-Event-ID": str(since)}
        if self.transport == "websocket":
            async with connect(
                f"{self.websocket}{query}", additional_headers=headers, proxy=None
            ) as connection:
                over_socket = SocketClient(connection)
                assert (await over_socket.message())["event"] == "connected"
                yield over_socket
            return
        async with self.http.stream("GET", f"/live{query}", headers=headers, timeout=10) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            client = Client(answer)
            async with aclosing(client.blocks):
                await client.block()  # the greeting: it is connected
                yield client

    async def refusal(self, query: str) -> tuple[int, dict[str, Any]]:
        """The status and the body of an answer to who is not served."""
        if self.transport != "websocket":
            answer = await self.http.get(f"/live{query}")
            return answer.status_code, answer.json()
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{self.websocket}{query}", proxy=None)
        return refused.value.response.status_code, json.loads(refused.value.response.body)


class Client:
    """One connection."""

    def __init__(self, answer: httpx.Response) -> None:
        self.blocks = self._read(answer)

    async def _read(self, answer: httpx.Response) -> AsyncIterator[str]:
        rest = ""
        async for text in answer.aiter_text():
            *blocks, rest = (rest + text).split("\n\n")
            for block in blocks:
                yield block

    async def block(self) -> str:
        async with asyncio.timeout(10):
            return await anext(self.blocks)

    async def event(self) -> Said:
        """The next event, passing over comments."""
        while True:
            fields = dict(line.split(": ", 1) for line in (await self.block()).splitlines() if line[0] != ":")
            if "data" in fields:
                return Said(fields["event"], fields.get("id"), json.loads(fields["data"]))

    async def results(self, n: int) -> list[tuple[int, float]]:
        """(datastream, result) of the next n observations."""
        got: list[tuple[int, float]] = []
        while len(got) < n:
            said = await self.event()
            assert said.name == "observations", said
            got += [(one["Datastream"]["@iot.id"], one["result"]) for one in said.data]
        return got


class SocketClient(Client):
    """One connection over a WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def message(self) -> dict[str, object]:
        async with asyncio.timeout(10):
            return json.loads(await self._socket.recv(decode=True))

    async def event(self) -> Said:
        said = await self.message()
        return Said(str(said["event"]), said.get("id"), said["data"])


@asynccontextmanager
async def running(transport: str = "server-sent events", **feed_options: float) -> AsyncIterator[City]:
    log = Shelf()
    things: dict[int, list[int]] = {5: [12, 13], 6: []}
    live = LiveRouter(Feed(log, **feed_options), Shelved(things))
    app = FastAPI()
    app.include_router(live)
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="on", ws="websockets-sansio")
    server = Server(config, live)
    serving = asyncio.create_task(server.run_until_cancelled())
    while not server.started:
        await asyncio.sleep(0.005)
    city = City(log, live, server, things, serving, transport)
    try:
        yield city
    finally:
        await city.http.aclose()
        serving.cancel()
        async with asyncio.timeout(5):
            with suppress(asyncio.CancelledError):
                await serving


@pytest.fixture(params=["server-sent events", "websocket"])
async def city(request) -> AsyncIterator[City]:
    async with running(request.param) as one:
        yield one


async def test_an_observation_comes_with_its_datastream_time_result_quality_and_update_id(city):
    async with city.client() as client:
        update = await city.write((12, 0, 21.4))
        assert await client.event() == Said(
            "observations",
            str(update),
            [
                {
                    "Datastream": {"@iot.id": 12},
                    "phenomenonTime": "2026-01-01T00:00:00Z",
                    "result": 21.4,
                    "resultQuality": None,
                }
            ],
        )


async def test_a_datastream_filter_gives_every_row_of_these_and_of_no_other(city):
    async with city.client("?datastream=12,14") as client:
        await city.write((12, 0, 1.0), (13, 0, 2.0), (12, 1, 3.0))
        await city.write((13, 1, 4.0))
        await city.write((14, 1, 5.0), (12, 2, 6.0))
        assert await client.results(4) == [(12, 1), (12, 3), (14, 5), (12, 6)]


async def test_a_thing_stands_for_its_datastreams(city):
    async with city.client("?thing=5") as client:
        await city.write((11, 0, 1.0), (13, 0, 2.0), (12, 0, 3.0))
        assert await client.results(2) == [(13, 2), (12, 3)]


async def test_every_parameter_adds_datastreams(city):
    city.things[6] = [40, 41]
    async with city.client("?thing=6&datastream=1,2&datastream=3&thing=5") as client:
        await city.write(*((stream, 0, float(stream)) for stream in (1, 2, 3, 4, 12, 13, 39, 40, 41)))
        assert await client.results(7) == [(n, n) for n in (1, 2, 3, 12, 13, 40, 41)]


async def test_a_box_stands_for_the_things_in_it_and_for_those_that_come_into_it(city, monkeypatch):
    monkeypatch.setattr(api.live, "_LOOK_AGAIN_SECONDS", 0.0)
    async with city.client("?bbox=2.1,41.3,2.2,41.4") as client:
        await city.write((11, 0, 1.0), (12, 0, 2.0))
        assert await client.results(1) == [(12, 2)]
        city.things[5] = [11]
        await city.write((11, 1, 3.0), (12, 1, 4.0))
        assert await client.results(1) == [(11, 3)]


async def test_a_thing_without_datastreams_is_watched_all_the_same(city, monkeypatch):
    monkeypatch.setattr(api.live, "_ASK_AGAIN_SECONDS", 0.0)
    async with city.client("?thing=6") as client:
        city.things[6] = [40]
        await city.write((40, 0, 1.0))
        assert await client.results(1) == [(40, 1)]


async def test_without_a_filter_a_burst_becomes_the_newest_of_each_datastream(city):
    async with city.client() as client:
        await city.write((1, 0, -1.0))
        await client.results(1)
        for second in range(1, 200):
            await city.write((1, second, float(second)), (2, -second, float(second)))
        got: list[tuple[int, float]] = []
        while (1, 199) not in got:
            got += await client.results(1)
        assert len(got) < 20
        assert got[-2:] == [(1, 199), (2, min(number for stream, number in got[-2:] if stream == 2))]


async def test_a_resume_gives_what_is_newer_than_the_last_event_and_nothing_twice(city):
    first = await city.write((12, 0, 1.0))
    async with city.client("?datastream=12", since=first) as client:
        await city.write((12, 1, 2.0))
        await city.write((12, 2, 3.0))
        assert await client.results(2) == [(12, 2), (12, 3)]
    async with city.client("?datastream=12", since=first) as client:
        assert await client.results(2) == [(12, 2), (12, 3)]
    async with city.client(f"?last-event-id={first}") as client:
        assert await client.results(1) == [(12, 3)]


async def test_a_client_that_saw_nothing_yet_can_resume_too(city):
    await city.write((12, 0, 1.0))
    async with (
        city.http.stream("GET", "/live?datastream=12") as answer,
        aclosing(Client(answer).blocks) as blocks,
    ):
        greeting = await anext(blocks)
    assert "retry: 2000" in greeting
    (place,) = [line.removeprefix("id: ") for line in greeting.splitlines() if line.startswith("id: ")]
    await city.write((12, 1, 2.0))
    async with city.client("?datastream=12", since=place) as client:
        assert await client.results(1) == [(12, 2)]


@pytest.mark.parametrize("since", [7, "what-was-this"])
async def test_a_resume_from_what_is_no_longer_here_is_a_reset(city, since):
    update = await city.write((12, 0, 1.0))
    async with city.client("?datastream=12") as ready:
        await city.write((12, 1, 2.0))
        await ready.results(1)
        async with city.client("?datastream=12", since=since) as client:
            said = await client.event()
            assert (said.name, said.id) == ("reset", str(update + 1))
            await city.write((12, 2, 3.0))
            assert await client.results(1) == [(12, 3)]


async def test_an_update_that_is_appended_twice_comes_once(city):
    async with city.client("?datastream=12") as client:
        update = await city.write((12, 0, 1.0))
        await city.write((12, 0, 1.0), update=update)
        await city.write((12, 1, 2.0))
        assert await client.results(2) == [(12, 1), (12, 2)]


async def test_a_store_that_failed_over_and_gives_a_number_again_is_a_reset(city):
    async with city.client("?datastream=12") as client:
        lost = await city.write((12, 0, 1.0))
        assert await client.results(1) == [(12, 1)]
        await city.write((12, 5, 2.0), update=lost)
        assert (await client.event()).name == "reset"
        await city.write((12, 6, 3.0))
        assert await client.results(1) == [(12, 3)]
    async with city.client("?datastream=12", since=lost - 1) as client:
        assert (await client.event()).name == "reset"


async def test_a_message_that_cannot_be_read_stops_nobody(city):
    async with city.client("?datastream=12") as client:
        await city.log.append(Topic.UPDATES, [NewEvent("test", b"\xc1 nonsense", {}, T0)])
        await city.write((12, 0, 1.0))
        assert await client.results(1) == [(12, 1)]


async def test_a_slow_client_delays_nobody_and_is_told_to_fetch_anew():
    async with (
        running(keep_bytes=4 << 20) as city,
        city.client("?datastream=1") as slow,
        city.client() as fast,
    ):
        await city.write((1, 0, 0.0))
        await fast.results(1)
        for second in range(400):  # some 40 MB for `slow`, which reads nothing of it
            await city.write(*[(1, second, float(i)) for i in range(1_000)])
            await asyncio.sleep(0.003)  # as fast as a city would, not all at one moment
        await city.write((2, 0, 7.0))
        started = time.monotonic()
        while (2, 7) not in await fast.results(1):
            pass
        assert time.monotonic() - started < 3
        names = set()
        while "reset" not in names:
            names.add((await slow.event()).name)
        await city.write((1, 999, 8.0))
        said = await slow.event()
        while said.name == "reset":
            said = await slow.event()
        assert said.data[-1]["result"] == 8


async def test_an_event_log_that_goes_away_is_said_once_and_again_when_it_is_back(city):
    async with city.client("?datastream=12") as client:
        city.log.away = True
        city.log.ring()
        said = await client.event()
        assert said.name == "unwell"
        assert said.data == {"message": "the event log does not answer: it is away"}
        async with city.client() as late:
            assert (await late.event()).name == "unwell"
        city.log.away = False
        assert (await client.event()).name == "well"
        await city.write((12, 0, 1.0))
        assert await client.results(1) == [(12, 1)]


async def test_another_log_is_a_reset(city):
    async with city.client() as client:
        await city.write((12, 0, 1.0))
        await client.results(1)
        city.log.exchanged = True
        city.log.ring()
        assert (await client.event()).name == "reset"
        await city.write((12, 1, 2.0))
        assert await client.results(1) == [(12, 2)]


@pytest.mark.parametrize("query", ["", "?datastream=1"])
async def test_a_quiet_connection_gets_heartbeats(monkeypatch, query):
    monkeypatch.setattr(api.live, "_HEARTBEAT_SECONDS", 0.02)
    async with running() as city, city.client(query) as client:
        assert await client.block() == ": still here"
        assert await client.block() == ": still here"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?datastream=abc", "datastream='abc' is no id"),
        ("?datastream=1,,2", "datastream='' is no id"),
        ("?datastream=-1", "is no id"),
        ("?datastream=9223372036854775808", "is no id"),
        ("?thing=x", "thing='x' is no id"),
        ("?thing=5,x", "thing='x' is no id"),
        ("?bbox=1,2,3", "is not west,south,east,north"),
        ("?bbox=1,2,3,x", "is not west,south,east,north"),
        ("?bbox=1,2,3,nan", "south and north"),
        ("?bbox=1,50,3,40", "south first"),
        ("?bbox=-181,2,3,4", "west and east are -180 to 180"),
        ("?bbox=1,2,3,4&bbox=1,2,3,4", "one bbox at most"),
        ("?streams=1", "no parameter 'streams'"),
        ("?datastream=" + ",".join(["1"] * 1_001), "at most 1000"),
    ],
)
async def test_a_wrong_parameter_is_a_sentence(city, query, words):
    status, answer = await city.refusal(query)
    assert (status, answer["code"]) == (400, 400)
    assert words in answer["message"]


async def test_an_unknown_thing_is_not_found(city):
    status, answer = await city.refusal("?thing=5,77")
    assert (status, answer["code"]) == (404, 404)


async def test_streams_end_when_the_server_is_to_stop():
    async with running() as city, city.client() as one, city.client("?datastream=1") as other:
        started = time.monotonic()
        city.serving.cancel()
        for client in (one, other):
            with suppress(StopAsyncIteration):
                while True:
                    await client.block()
        assert time.monotonic() - started < 2


async def test_a_websocket_ends_when_the_server_is_to_stop():
    async with running("websocket") as city, city.client() as one:
        city.serving.cancel()
        with pytest.raises(ConnectionClosed) as closed:
            await one.message()
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1012  # service restart: come again


async def test_what_a_client_says_over_a_websocket_means_nothing():
    async with running("websocket") as city, city.client("?datastream=1") as one:
        await one._socket.send("hello")
        await one._socket.send(b"\x00")
        await city.write((1, 0, 1.0))
        assert await one.results(1) == [(1, 1)]


async def test_clients_that_leave_are_forgotten(city):
    live = city.live
    async with city.client():
        assert live._feed.watchers == 1
    async with asyncio.timeout(5):
        while live._feed.watchers:
            await asyncio.sleep(0.01)
