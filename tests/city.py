"""A whole city for a test: engines of its own, the services as child processes that can be killed, a user's eyes."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import cbor2
import httpx
import msgspec
import psycopg
import pytest
from city_devices import SOON, Device, Json, labelled
from city_engines import Broker, event_log, free_port
from stores import reachable_folder

from citylab.adapters.child import last_lines, stop
from citylab.settings import Settings
from citylab.up import SERVICES, Service

T = TypeVar("T")
ROOT = "citylab/v1/gateways"
KINDS = ("embedded", "real")  # of engines
ENTITIES = ("things", "locations", "historical_locations", "sensors", "observed_properties", "datastreams")


class Rejection(NamedTuple):
    """A row of the table of rejections."""

    record: int
    reason: str
    detail: str
    stream: str | None
    content: Any
    payload: bytes | None
    open: bool


class Away(Exception):
    """The API says that the store is away."""


class Live(NamedTuple):
    """What `/live` has sent: observations, each with the id of its Datastream, and the names of all events."""

    observations: list[Json]
    events: list[str]


class City:
    """A city in a folder. `settings` has its engines' addresses; `broker` is its own."""

    def __init__(self, folder: Path, settings: Settings, broker: Broker | None = None) -> None:
        self.folder, self.settings, self.broker = folder, settings, broker
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.services = {name: Service(name, settings, folder / "logs") for name in SERVICES}
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{settings.http_port}", timeout=SOON)

    def __enter__(self) -> Self:
        for name in self.services:
            self.start(name)
        return self

    def __exit__(self, *error: object) -> None:
        if "device" in self.__dict__:
            self.device.close()
        self.http.close()
        if self._connection:
            self._connection.close()
        asyncio.run(self._stop())

    async def _stop(self) -> None:
        children = [service.child for service in self.services.values() if service.child]
        await asyncio.gather(*(stop(child, within=5) for child in children))

    def environment(self) -> dict[str, str]:
        """For a command that finds this city."""
        return clean_environment(**self.settings.environment())

    # -- services ----------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a service as `citylab up` does."""
        self.services[name].start()

    def kill(self, name: str) -> None:
        """Kill a service's whole session with signal 9."""
        child = self.services[name].child
        assert child
        assert child.poll() is None, f"{name} had ended already:\n{self.said(name)}"
        child.kill()
        child.wait()

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def pids(self) -> dict[str, int]:
        """The process of each service that runs: equal before and after means that none has ended in between."""
        return {
            name: service.child.pid
            for name, service in self.services.items()
            if service.child and service.child.poll() is None
        }

    def said(self, name: str, lines: int = 10_000) -> str:
        """What a service wrote into its log."""
        return last_lines(self.services[name].log_file, lines)

    def is_well(self) -> bool:
        """Whether every service says so."""
        return bool(self.http.get("/health/ready").json()["state"] == "ready")

    # -- what devices do ---------------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> "Device":
        """A client of the broker, from the first use on."""
        return Device(self.settings.broker_url)

    def publish(self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False) -> None:
        """Publish below `citylab/v1/gateways/`, and wait for the PUBACK."""
        self.device.publish(f"{ROOT}/{topic}", payload, qos=qos, retain=retain)

    def accepts(self, topic: str, payload: bytes) -> bool:
        """Whether the broker acknowledges a message, or disconnects the client that sends it."""
        device = Device(self.settings.broker_url, reconnect=False)
        sent = device.offer(f"{ROOT}/{topic}", payload)
        cut = sent.rc > 0  # while it was still being sent
        if not cut:
            self.until(
                lambda: sent.is_published() or not device.connected, "the broker has judged the message"
            )
        device.close()
        return not cut and sent.is_published()

    def descriptor(self, gateway: str, *things: Any) -> None:
        """Publish what a gateway says of itself, retained as it should be."""
        document = things[0] if len(things) == 1 else things
        self.publish(f"{gateway}/descriptor", msgspec.json.encode(document), retain=True)

    def register(self, gateway: str, *things: Any) -> None:
        """Publish a descriptor; return when it has been applied, as far as it is right."""
        about = ("SELECT descriptor_at FROM gateways WHERE name = %s", gateway)
        before = self.fetch(*about)
        self.descriptor(gateway, *things)
        self.until(lambda: self.fetch(*about) != before, f"the descriptor of {gateway} is applied")

    def pack(self, gateway: str, *records: Json, epoch: int = 0, seq: int = 0, cbor: bool = False) -> None:
        """Publish a pack, numbered if it has an epoch."""
        pack = [dict(record) for record in records]
        if epoch:
            pack[0] = {"epoch": epoch, "seq": seq} | pack[0]
        payload = cbor2.dumps([labelled(record) for record in pack]) if cbor else msgspec.json.encode(pack)
        self.publish(f"{gateway}/packs/numbered" if epoch else f"{gateway}/packs", payload)

    # -- what people see ---------------------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """The API's answer to a GET."""
        answer = self.http.get(path)
        if answer.status_code == 503:
            raise Away(answer.text)
        assert answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def datastream(self, stream: str) -> Json | None:
        """A Datastream by its stream name, with its Thing and all its Observations in order of time."""
        wanted = quote(f"properties/streamName eq '{stream}'")
        expand = "Thing,Observations($orderby=phenomenonTime;$top=10000)"
        found = self.get(f"/v1.1/Datastreams?$filter={wanted}&$expand={expand}")["value"]
        return found[0] if found else None

    def results(self, stream: str) -> list[Any]:
        """The results of a stream in order of time; none while it is unknown."""
        found = self.datastream(stream)
        return [one["result"] for one in found["Observations"]] if found else []

    def fetch(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the store."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.settings.store_url, autocommit=True, connect_timeout=5)
        cursor = self._connection.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def entities(self) -> dict[str, list[str]]:
        """All rows of the tables of entities."""
        return {
            table: [row for (row,) in self.fetch(f"SELECT to_jsonb(t)::text FROM {table} t ORDER BY id")]
            for table in ENTITIES
        }

    def rejections(self, gateway: str) -> list[Rejection]:
        rows = self.fetch(
            "SELECT record, reason, detail, stream, content, payload, closed_at IS NULL FROM rejections"
            " WHERE gateway = %s ORDER BY id",
            gateway,
        )
        return [Rejection(*row) for row in rows]

    def ledger(self, gateway: str, epoch: int = 0) -> Json:
        """A gateway's row of the ledger, by column; empty while there is none."""
        rows = self.fetch(
            "SELECT to_jsonb(l) FROM ledger l WHERE gateway = %s AND epoch = %s", gateway, epoch
        )
        return rows[0][0] if rows else {}

    @contextmanager
    def live(self, query: str = "") -> Iterator[Live]:
        """What `/live` sends from now on, in lists that grow."""
        seen = Live([], [])
        with self.http.stream("GET", f"/live{query}") as stream:
            lines = stream.iter_lines()
            next(lines)  # the greeting: from here on nothing is missed
            reader = threading.Thread(target=_read_live, args=(lines, seen), daemon=True)
            reader.start()
            yield seen

    # -- patience ----------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], T], what: str, within: float = SOON) -> T:
        """Ask until the answer is true, and return it. Fails with what a user would have seen."""
        deadline = time.monotonic() + within
        answer: Any = None
        while True:
            try:
                answer = condition()
            except (Away, httpx.TransportError, psycopg.OperationalError) as error:
                answer = error  # a service or the store is away
            else:
                if answer:
                    return answer
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {within:g} s: {what}; the last answer was {answer!r}\n{self.story()}"
                )
            time.sleep(0.03)

    def stays(self, condition: Callable[[], T], what: str, long: float) -> None:
        """Look for a while whether something stays true. Fails with what a user would have seen."""
        deadline = time.monotonic() + long
        while time.monotonic() < deadline:
            answer = condition()
            assert answer, f"no longer: {what}; the answer is {answer!r}\n{self.story()}"
            time.sleep(0.05)

    def story(self) -> str:
        """What a person who looks into the folder would read."""
        running = self.pids()
        return "\n".join(
            f"--- {name} ({'runs' if name in running else 'does not run'})\n{self.said(name, 8)}"
            for name in self.services
        )


def _read_live(lines: Iterator[str], seen: Live) -> None:
    with suppress(httpx.HTTPError, httpx.StreamError):  # closed by who no longer watches
        for line in lines:
            if line.startswith("event: "):
                seen.events.append(line.removeprefix("event: "))
            elif line.startswith("data: ") and seen.events[-1] == "observations":
                seen.observations.extend(
                    one | {"Datastream": one["Datastream"]["@iot.id"]}
                    for one in msgspec.json.decode(line.removeprefix("data: "))
                )


def clean_environment(**more: object) -> dict[str, str]:
    """Our environment without its settings of Citylab, but with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CITYLAB_")}
    return kept | {name: str(value) for name, value in more.items()}


def run(*arguments: object, env: dict[str, str], within: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the command `citylab` to its end."""
    command = [sys.executable, "-m", "citylab", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=within, check=False)


@contextmanager
def new_city(request: pytest.FixtureRequest, **more: Any) -> Iterator[City]:
    """A city on the engines that a fixture's parameter names, of `KINDS`. more: settings."""
    kind = request.param
    databases = request.getfixturevalue("embedded_databases" if kind == "embedded" else "real_databases")
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        log_url = stack.enter_context(event_log(kind, folder))
        store_url = stack.enter_context(databases.one())
        yield stack.enter_context(running_city(kind, folder, log_url, store_url, **more))


@contextmanager
def running_city(kind: str, folder: Path, log_url: str, store_url: str, **more: Any) -> Iterator[City]:
    """A city with a broker of its own, whose services have said that they are well. more: settings."""
    with ExitStack() as stack:
        broker = Broker(kind, folder / "broker")
        stack.callback(broker.close)
        broker.start()
        settings = Settings.load({}, data=folder).replaced(
            broker_url=broker.url,
            log_url=log_url,
            store_url=store_url,
            http_port=free_port(),
            embedded_broker=kind == "embedded",
            **more,
        )
        running = stack.enter_context(City(folder, settings, broker))
        running.until(running.is_well, "the city is well")
        yield running
