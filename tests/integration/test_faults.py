"""An engine that is down at the start, or goes away later: services wait, say so once, go on, and nothing is lost."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple, Protocol

import city_engines
import msgspec
import pytest
from city import City
from city_devices import EdgeAgent, stream, thing
from city_engines import Broker, DistantStore, EmbeddedLog, EmbeddedStore, Kafka
from stores import reachable_folder

from citylab.settings import Settings

A_WHILE = 1.0  # s in which something that must not happen would have happened
PATIENCE = 60.0  # s: services look for an engine that is away ever less often


class Engine(Protocol):
    url: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class Fragile(NamedTuple):
    """A city that is not started, and the engine of it that goes away; it is away."""

    city: City
    engine: Engine


@pytest.fixture(scope="module")
def kafka(tmp_path_factory) -> Iterator[Kafka]:
    kafka = Kafka(tmp_path_factory.mktemp("engines"))
    yield kafka
    kafka.close()


@pytest.fixture(params=["embedded", "real"])
def fragile(request, engine) -> Iterator[Fragile]:
    kind = request.param
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        broker = Broker(kind, folder / "broker")
        broker.start()
        stack.callback(broker.close)
        parts: dict[str, Engine] = {"broker": broker}
        if engine == "log":
            parts["log"] = EmbeddedLog(folder) if kind == "embedded" else request.getfixturevalue("kafka")
            log_url = parts["log"].url
        else:
            log_url = stack.enter_context(city_engines.event_log(kind, folder))
        if engine == "store" and kind == "embedded":
            parts["store"] = EmbeddedStore(folder / "store")
        else:
            databases = request.getfixturevalue(f"{'embedded' if kind == 'embedded' else 'real'}_databases")
            parts["store"] = DistantStore(databases.make())
            parts["store"].start()
        stack.callback(parts["store"].close)
        parts[engine].stop()
        settings = Settings.load({}, data=folder).replaced(
            broker_url=broker.url,
            log_url=log_url,
            store_url=parts["store"].url,
            http_port=city_engines.free_port(),
            embedded_broker=kind == "embedded",
        )
        yield Fragile(City(folder, settings, broker), parts[engine])


# Who says first that an engine went away, and in which words: at the start, and later.
SAYS = {
    "broker": ("ingest", "no connection to the MQTT broker", "no connection to the MQTT broker"),
    "log": ("ingest", "waiting for an engine", "packs wait at the gateways"),
    "store": ("processing", "waiting for an engine", "waiting for an engine"),
}


def warnings(city: City) -> Counter[tuple[str, ...]]:
    """What the services have warned of, each by service, words, and the task or client whose words they are."""
    found: Counter[tuple[str, ...]] = Counter()
    for service in city.services:
        said = city.said(service).splitlines()
        assert all(line[0] == "{" for line in said), (
            f"{service} has a trace in its log:\n{city.said(service)}"
        )
        lines = [msgspec.json.decode(line) for line in said]
        found.update(
            (service, line["event"], line.get("task", ""), line.get("client", ""))
            for line in lines
            if line["level"] in {"warning", "error"}
        )
    return found


@pytest.mark.parametrize("engine", ["broker", "log", "store"])
def test_an_engine_is_away_at_the_start_and_again_later(fragile, engine):
    name, values = "lamp/a", {second: float(second) for second in range(40)}
    some = [dict(list(values.items())[i : i + 10]) for i in range(0, 40, 10)]
    who, at_start, later = SAYS[engine]
    with fragile.city as city, EdgeAgent(city, "lamp", thing("lamp", stream(name))) as agent:
        services = city.pids()
        agent.say(name, some[0])
        city.until(lambda: at_start in city.said(who), f"{who} says that it waits")
        city.stays(lambda: max(warnings(city).values()) == 1, "each says it once", A_WHILE)

        fragile.engine.start()
        agent.say(name, some[1])
        city.until(lambda: len(city.results(name)) == 20, "readings flow once it is there", PATIENCE)
        city.until(city.is_well, "all is well", PATIENCE)
        so_far = warnings(city)

        with city.live() as live:
            fragile.engine.stop()
            agent.say(name, some[2])
            city.until(
                lambda: any(later in words for _, words, *_ in warnings(city) - so_far),
                f"{who} says that it waits",
            )
            agent.say(name, some[3])
            city.stays(lambda: max((warnings(city) - so_far).values()) == 1, "each says it once", A_WHILE)
            if engine == "store":
                answer = city.http.get("/v1.1/Things")
                assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
                assert city.http.get("/health/ready").status_code == 503
            told = engine == "log" and city.broker.kind == "embedded"  # Kafka's patience is longer than ours
            if told:
                city.until(lambda: "unwell" in live.events, "the live page is told")

            fragile.engine.start()
            agent.end(PATIENCE)

            city.until(lambda: city.results(name) == list(values.values()), "nothing is lost", PATIENCE)
            city.until(city.is_well, "all is well", PATIENCE)
            if told:
                city.until(lambda: "well" in live.events, "the live page is told", PATIENCE)
        assert city.pids() == services, f"a service ended\n{city.story()}"
        assert city.rejections("lamp") == [] or not any(one.open for one in city.rejections("lamp"))
