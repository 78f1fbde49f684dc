"""`/live`: what is newly stored, as server-sent events (WHATWG HTML, 9.2) or over a WebSocket (RFC 6455).

Events: `observations` (data: a JSON array; id: the update id), `reset` (something was missed: fetch anew),
`unwell` and `well` (the event log went away, came back). Comments every 15 s keep the connection open. A WebSocket
brings each as a message `{"event", "id", "data"}`; the first is `connected`, and pings keep it open.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import Response, StreamingResponse
from starlette.requests import HTTPConnection

from api.live_events import as_json, message, observations
from api.live_feed import Feed
from api.live_things import Box, Things
from api.sensorthings.errors import body
from citylab.columns import Int64, Observations
from citylab.errors import Unavailable
from citylab.ports import EventLog

_RETRY_MS = 2_000
_HEARTBEAT_SECONDS = 15.0
_ASK_AGAIN_SECONDS = 30.0  # a Thing gets new Datastreams while somebody watches it
_LOOK_AGAIN_SECONDS = 5.0  # Things come into a box
_PAUSE_SECONDS = (
    0.05  # between two events of a client with a filter, so that what comes in a burst goes together
)
_MOST_ROWS = 20_000  # a client with a filter that is further behind fetches anew
_MOST_IDS = 1_000
_MOST_CLIENTS = 1_000
_SERVICE_RESTART = 1012  # why we close a WebSocket: the IANA registry of close codes
_PARAMETERS = ("datastream", "thing", "bbox", "last-event-id")
_ID = re.compile(r"[0-9]{1,19}", re.ASCII)


class LiveRouter(APIRouter):
    """The route `/live`; including it in an application adds the reader of the log to the application's lifespan."""

    def __init__(self, feed: Feed, things: Things) -> None:
        super().__init__(lifespan=self._read)
        self._feed = feed
        self._things = things
        self._clients = 0
        self.add_api_route("/live", self._live, methods=["GET"], response_class=Response, **_DOCUMENTATION)
        self.add_websocket_route("/live", self._socket)

    def close(self) -> None:
        """End all streams now. Call it when the server is to stop: servers wait for open responses otherwise."""
        self._feed.close()

    @asynccontextmanager
    async def _read(self, _: Any) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._feed.run())
            try:
                yield
            finally:
                self.close()
                reading.cancel()

    async def _admit(self, connection: HTTPConnection) -> "tuple[_Asked, Int64] | Response":
        """What a client asks for and which Datastreams that means, or why it is not served."""
        try:
            asked = _Asked.of(connection)
        except ValueError as error:
            return _refusal(400, str(error))
        if self._clients >= _MOST_CLIENTS:
            return _refusal(503, f"{_MOST_CLIENTS} clients are connected to this process; try again later")
        try:
            return asked, await self._resolve(asked)
        except Unavailable as error:
            return _refusal(503, str(error), retry_after=error.retry_after)
        except LookupError as error:
            return _refusal(404, str(error.args[0]))

    async def _live(self, request: Request) -> Response:
        admitted = await self._admit(request)
        if isinstance(admitted, Response):
            return admitted
        return StreamingResponse(
            self._stream(*admitted),
            media_type="text/event-stream",
            # Proxies must neither keep nor collect a stream.
            headers={"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"},
        )

    async def _socket(self, socket: WebSocket) -> None:
        admitted = await self._admit(socket)
        if isinstance(admitted, Response):
            await socket.send_denial_response(admitted)
            return
        await socket.accept()
        async with asyncio.TaskGroup() as tasks:
            both = (
                tasks.create_task(_send(socket, self._stream(*admitted))),
                tasks.create_task(_until_gone(socket)),
            )
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()

    async def _stream(self, asked: "_Asked", datastreams: Int64) -> AsyncGenerator[bytes]:
        self._clients += 1
        self._feed.watchers += not asked.filtered
        try:
            if asked.filtered:
                async for some in self._all_of(asked, datastreams):
                    yield some
            else:
                async for some in self._newest(asked):
                    yield some
        finally:
            self._clients -= 1
            self._feed.watchers -= not asked.filtered

    async def _newest(self, asked: "_Asked") -> AsyncIterator[bytes]:
        """Without a filter: the newest of each datastream, at most four times a second."""
        feed, client = self._feed, _Client(self._feed)
        place, missed = asked.start(feed, feed.tick)
        yield client.greeting(place)
        if missed:
            yield client.reset(place)
        while not feed.closed:
            news = client.news()
            if news:
                yield news
            if place < feed.tick:
                end = feed.tick
                if feed.holds(place):
                    for event in await feed.coalesced(place):
                        yield event
                else:
                    yield client.reset(end)
                place = end
                client.wrote()
                continue
            if client.silent():
                yield client.heartbeat()
            await feed.changed(client.patience())

    async def _all_of(self, asked: "_Asked", datastreams: Int64) -> AsyncIterator[bytes]:
        """With a filter: every row of these datastreams."""
        feed, client = self._feed, _Client(self._feed)
        place, missed = asked.start(feed, feed.head)
        yield client.greeting(place)
        if missed:
            yield client.reset(place)
        resolved = time.monotonic()
        while not feed.closed:
            news = client.news()
            if news:
                yield news
            if time.monotonic() - resolved > asked.patience:
                resolved = time.monotonic()
                datastreams = await self._resolve_again(asked, datastreams)
            if place < feed.head:
                start, place = place, feed.head
                if events := _rows_of(feed, datastreams, start, place):
                    for event in events:
                        yield event
                    client.wrote()
                    await asyncio.sleep(_PAUSE_SECONDS)
                elif events is None:
                    yield client.reset(place)
                continue
            if client.silent():
                yield client.heartbeat()
            await feed.changed(client.patience())

    async def _resolve(self, asked: "_Asked") -> Int64:
        """The Datastreams that a client means, int64, sorted. Raises LookupError for a Thing that is not there."""
        wanted = set(asked.datastreams)
        for thing in asked.things:
            of_thing = await self._things.datastreams_of(thing)
            if of_thing is None:
                raise LookupError(f"there is no Thing with id {thing}")
            wanted.update(of_thing)
        if asked.box is not None:
            wanted.update(await self._things.datastreams_in(asked.box))
        return np.array(sorted(wanted), np.int64)

    async def _resolve_again(self, asked: "_Asked", before: Int64) -> Int64:
        try:
            return await self._resolve(asked)
        except (Unavailable, LookupError):
            return before


async def _send(socket: WebSocket, events: AsyncGenerator[bytes]) -> None:
    """Send events, as fast as the client takes them, until they end or the client is gone."""
    async with aclosing(events):
        with suppress(WebSocketDisconnect):
            async for event in events:
                if text := as_json(event):
                    await socket.send_text(text)
            await socket.close(_SERVICE_RESTART)


async def _until_gone(socket: WebSocket) -> None:
    """Return when the client has left; what it says meanwhile means nothing."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def live_router(log: EventLog, things: Things) -> LiveRouter:
    """Make the route `/live`. `log` is open for as long as the application runs; `things` answers `?thing=` and `?bbox=`."""
    return LiveRouter(Feed(log), things)


class _Asked:
    """What a client wants. `since` is the last update it knows, -1 for an id that was never ours."""

    def __init__(self, datastreams: list[int], things: list[int], box: Box | None, since: int | None) -> None:
        self.datastreams = datastreams
        self.things = things
        self.box = box
        self.since = since

    @property
    def filtered(self) -> bool:
        return bool(self.datastreams or self.things) or self.box is not None

    @property
    def patience(self) -> float:
        """Seconds after which its Datastreams may be others."""
        if self.box is not None:
            return _LOOK_AGAIN_SECONDS
        return _ASK_AGAIN_SECONDS if self.things else math.inf

    @classmethod
    def of(cls, connection: HTTPConnection) -> "_Asked":
        """Read the query and `Last-Event-ID`. Raises ValueError."""
        query = connection.query_params
        for name, _ in query.multi_items():
            if name not in _PARAMETERS:
                raise ValueError(f"/live has no parameter {name!r}; it has {', '.join(_PARAMETERS)}")
        datastreams, things = (_ids(name, query.getlist(name)) for name in ("datastream", "thing"))
        boxes = query.getlist("bbox")
        if len(boxes) > 1:
            raise ValueError("there is one bbox at most")
        # An EventSource cannot send the header when it is made, so the query carries it too.
        since = connection.headers.get("last-event-id") or query.get("last-event-id")
        known = int(since) if since and _ID.fullmatch(since) else -1
        return cls(datastreams, things, Box.read(boxes[0]) if boxes else None, known if since else None)

    def start(self, feed: Feed, now: int) -> tuple[int, bool]:
        """The place to begin at, and whether something between the client's last update and it is lost."""
        if self.since is None:
            return now, False
        place = feed.after(self.since)
        return (now, True) if place is None else (place, False)


class _Client:
    """What one connection was told, and when it was last written to."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._told = False
        self._written = time.monotonic()

    def greeting(self, place: int) -> bytes:
        """How soon to reconnect, and where we are: an id without data is kept by an EventSource for its resume."""
        update = self._feed.update_before(place)
        known = "" if update is None else f"id: {update}\n"
        return f"retry: {_RETRY_MS}\n{known}\n".encode()

    def news(self) -> bytes:
        """What is to be said, once, about the log."""
        trouble = self._feed.trouble
        if (trouble is not None) == self._told:
            return b""
        self._told = trouble is not None
        return message("well", "the event log is back") if trouble is None else message("unwell", trouble)

    def reset(self, place: int) -> bytes:
        """Tell the client to fetch anew, and that it goes on from this place."""
        self.wrote()
        text = "something newer than your last event is no longer here; fetch anew"
        return message("reset", text, self._feed.update_before(place))

    def wrote(self) -> None:
        """Something was written just now."""
        self._written = time.monotonic()

    def patience(self) -> float:
        """Seconds until a heartbeat is due."""
        return max(0.0, self._written + _HEARTBEAT_SECONDS - time.monotonic())

    def silent(self) -> bool:
        """Whether a heartbeat is due."""
        return self.patience() <= 0

    def heartbeat(self) -> bytes:
        """A comment, which keeps proxies from closing the connection."""
        self.wrote()
        return b": still here\n\n"


def _rows_of(feed: Feed, datastreams: Int64, start: int, end: int) -> list[bytes] | None:
    """The events with all rows of these datastreams from place to place; None when some are lost or too many."""
    if not feed.holds(start):
        return None
    found = [(entry, entry.of(datastreams)) for entry in feed.entries(start, end)]
    found = [(entry, index) for entry, index in found if len(index)]
    if not found:
        return []
    if sum(len(index) for _, index in found) > _MOST_ROWS:
        return None
    return observations(
        Observations.joined([entry.rows.take(index) for entry, index in found]), found[-1][0].update
    )


def _ids(name: str, values: Sequence[str]) -> list[int]:
    ids = [_id(name, text) for value in values for text in value.split(",")]
    if len(ids) > _MOST_IDS:
        raise ValueError(
            f"{len(ids)} {name}s; at most {_MOST_IDS}: leave the filter away and choose yourself"
        )
    return ids


def _id(name: str, text: str) -> int:
    if not _ID.fullmatch(text) or int(text) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}={text!r} is no id; ids are positive integers, such as {name}=12")
    return int(text)


def _refusal(status: int, text: str, *, retry_after: float | None = None) -> Response:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return Response(body(status, text), status, headers, "application/json")


def _parameter(name: str, place: str, description: str) -> dict[str, Any]:
    return {
        "name": name, "in": place, "required": False, "description": description, "schema": {"type": "string"},
    }  # fmt: skip


_DOCUMENTATION: dict[str, Any] = {
    "summary": "What is newly stored, as it comes",
    "description": (
        "Server-sent events; over a WebSocket at the same address, messages `{event, id, data}`. `observations` carries an array of `{Datastream, phenomenonTime, result, resultQuality}`; "
        "its id is the update id. Without a filter: the newest of each datastream, at most four times a second. With a "
        "filter: all of them, of every Datastream that one of the parameters names (Things that come into a `bbox` join "
        f"within {_LOOK_AGAIN_SECONDS:.0f} seconds); a client more than {_MOST_ROWS:,} behind gets `reset`. `Last-Event-ID` resumes within "
        "ten minutes, otherwise the first event is `reset`: fetch anew. `unwell` and `well` tell when the event log "
        "goes away and comes back."
    ),
    "tags": ["live"],
    "responses": {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        400: {"description": "A parameter is wrong"},
        404: {"description": "There is no such Thing"},
        503: {"description": "Too many clients, or the store does not answer"},
    },
    "openapi_extra": {
        "parameters": [
            _parameter("datastream", "query", "ids of Datastreams, separated by commas"),
            _parameter("thing", "query", "ids of Things, separated by commas: all their Datastreams"),
            _parameter(
                "bbox",
                "query",
                "west,south,east,north in degrees: all Datastreams of the Things whose Location is in it",
            ),
            _parameter("last-event-id", "query", "as the header, for clients that cannot send one at first"),
            _parameter("Last-Event-ID", "header", "the last update id that the client knows"),
        ]
    },
}
