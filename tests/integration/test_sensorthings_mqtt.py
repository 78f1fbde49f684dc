"""SensorThings over MQTT when services are killed, and when more happens than may be announced."""

import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from city import KINDS, City, new_city
from city_devices import T0, Device, place, stream, thing

PAST = T0 - 86_400


@pytest.fixture(params=KINDS)
def slow_city(request) -> Iterator[City]:
    """A city that announces 30 messages a second at most."""
    with new_city(request, announcements_per_second=30) as city:
        yield city


@pytest.fixture(params=KINDS)
def silent_city(request) -> Iterator[City]:
    """A city that announces nothing."""
    with new_city(request, announcements_per_second=0) as city:
        yield city


def post(city: City, path: str, document: Any) -> int:
    answer = city.http.post(f"/v1.1/{path}", json=document)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["@iot.id"])


def new_stream(city: City, name: str = "s") -> int:
    """A Datastream that the API made; returns its id."""
    whole = thing(f"thing-{name}", stream(name))
    return int(city.get(f"/v1.1/Things({post(city, 'Things', whole)})/Datastreams")["value"][0]["@iot.id"])


def announced(device: Device, topic: str) -> list[Any]:
    """What was announced on a topic, without what was published there in order to create."""
    found = [msgspec.json.decode(payload) for name, payload in device.heard if name == f"v1.1/{topic}"]
    return [one for one in found if "@iot.id" in one]


def stored(city: City, own: int) -> list[Any]:
    path = f"/v1.1/Datastreams({own})/Observations?$orderby=id&$top=10000&$select=result"
    return [one["result"] for one in city.get(path)["value"]]


def publish(city: City, own: int, numbers: range) -> None:
    city.device.publish_all(
        f"v1.1/Datastreams({own})/Observations", [msgspec.json.encode({"result": i}) for i in numbers]
    )


def test_each_create_is_executed_once_though_processing_is_killed(own_city):
    own = new_stream(own_city)
    for begin in range(0, 300, 100):
        publish(own_city, own, range(begin, begin + 100))
        own_city.restart("processing")
    own_city.until(lambda: len(stored(own_city, own)) >= 300, "all are created")
    assert stored(own_city, own) == list(range(300))


def test_no_create_is_lost_though_the_bridge_is_killed(own_city):
    own = new_stream(own_city)
    for begin in range(0, 300, 100):
        publish(own_city, own, range(begin, begin + 100))
        own_city.kill("ingest")
        publish(own_city, own, range(1_000 + begin, 1_010 + begin))  # the broker keeps them
        own_city.start("ingest")
    wanted = {*range(300), *(1_000 + begin + i for begin in range(0, 300, 100) for i in range(10))}
    own_city.until(lambda: set(stored(own_city, own)) == wanted, "all are created")


def test_what_was_committed_while_processing_was_dead_is_announced(own_city):
    own = new_stream(own_city)
    topics = (f"Datastreams({own})", f"Datastreams({own})/name", f"Datastreams({own})/Observations", "Things")
    device = own_city.device
    for topic in topics:
        device.listen(f"v1.1/{topic}")
    own_city.until(
        lambda: own_city.fetch("SELECT count(*) FROM pending_announcements") == [(0,)], "all is announced"
    )
    own_city.kill("processing")
    own_city.http.patch(f"/v1.1/Datastreams({own})", json={"name": "renamed"}).raise_for_status()
    created = post(own_city, f"Datastreams({own})/Observations", {"result": 1})
    other = post(own_city, "Things", {"name": "t", "description": "d"})
    own_city.start("processing")
    own_city.until(lambda: announced(device, topics[2]), "the Observation is announced")
    own_city.until(
        lambda: other in [one["@iot.id"] for one in announced(device, "Things")], "the Thing is announced"
    )
    assert announced(device, topics[0]) == [own_city.get(f"/v1.1/Datastreams({own})")]
    assert [payload for name, payload in device.heard if name == f"v1.1/{topics[1]}"] == [
        b'{"name":"renamed"}'
    ]
    assert {one["@iot.id"] for one in announced(device, topics[2])} == {created}


def counter(city: City, name: str) -> int:
    found = re.search(rf"^{name}_total (\S+)$", city.http.get("/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_beyond_the_rate_the_newest_of_each_datastream_is_announced_and_the_rest_counted(slow_city):
    names = [f"s{i}" for i in range(3)]
    slow_city.register("gw", thing("thing", *map(stream, names), at=place()))
    own = [slow_city.datastream(name)["@iot.id"] for name in names]
    slow_city.until(
        lambda: slow_city.fetch("SELECT count(*) FROM pending_announcements") == [(0,)], "all is announced"
    )
    device = slow_city.device
    device.listen("v1.1/Observations")
    began, before = time.monotonic(), counter(slow_city, "citylab_announcements")
    for second in range(0, 300, 10):
        records = [{"n": name, "v": second + i, "t": PAST + second + i} for name in names for i in range(10)]
        slow_city.pack("gw", *records)
    slow_city.until(
        lambda: slow_city.fetch("SELECT count(*) FROM observations") == [(900,)], "all are stored"
    )
    newest = {row for (row,) in slow_city.fetch("SELECT id FROM latest WHERE datastream_id = ANY(%s)", own)}
    slow_city.until(
        lambda: newest <= {one["@iot.id"] for one in announced(device, "Observations")},
        "the newest of each Datastream is announced",
    )
    slow_city.until(
        lambda: len(announced(device, "Observations")) + counter(slow_city, "citylab_not_announced") == 900,
        "each Observation is announced or counted",
    )
    assert counter(slow_city, "citylab_not_announced") > 500
    seconds = time.monotonic() - began
    assert counter(slow_city, "citylab_announcements") - before <= 30 * (seconds + 2)


def test_nothing_is_announced_where_announcements_are_off(silent_city):
    device = silent_city.device
    device.listen("v1.1/#")
    own = new_stream(silent_city)
    publish(silent_city, own, range(3))
    silent_city.until(lambda: stored(silent_city, own) == [0, 1, 2], "creating works")
    silent_city.stays(
        lambda: not announced(device, "Observations") and not announced(device, "Things"), "silence", 1
    )
    conformance = silent_city.get("/v1.1")["serverSettings"]["conformance"]
    assert not [uri for uri in conformance if "receive-updates" in uri]
    assert [uri for uri in conformance if uri.endswith("/observations-creation")]


def test_an_entity_too_large_for_a_broker_stops_nothing(own_city):
    own = new_stream(own_city)
    device = own_city.device
    device.listen("v1.1/Observations")
    large = "x" * (5 << 20)
    post(own_city, f"Datastreams({own})/Observations", {"result": 1, "parameters": {"a": large}})
    small = post(own_city, f"Datastreams({own})/Observations", {"result": 2})
    own_city.until(
        lambda: [one["@iot.id"] for one in announced(device, "Observations")] == [small], "the next one comes"
    )
    own_city.until(lambda: counter(own_city, "citylab_not_announced") > 0, "the large one is counted")
