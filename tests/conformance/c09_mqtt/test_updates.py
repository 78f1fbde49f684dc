"""OGC 18-088 §14.2: who subscribes to a plain topic receives what is created and changed, as HTTP GET answers it.

Every test has entities of its own, and looks only at what tells of them.
"""

from typing import Any

import pytest

RECEIVE = "req/receive-updates-via-mqtt/receive-updates"
SETS = (
    "Things", "Locations", "HistoricalLocations", "Datastreams", "Sensors", "ObservedProperties", "Observations",
    "FeaturesOfInterest",
)  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "Things": {"name": "other", "description": "another", "properties": {"a": {"b": [1, None]}}},
    "Locations": {"name": "other", "location": {"type": "Point", "coordinates": [2.5, 41]}, "properties": {"x": 1}},
    "HistoricalLocations": {"time": "2020-01-01T00:00:00Z"},
    "Datastreams": {
        "name": "other", "description": "ünï ☃", "observationType": "any",
        "unitOfMeasurement": {"name": "n", "symbol": "s", "definition": None}, "properties": {"p": "q"},
    },
    "Sensors": {"name": "other", "metadata": {"any": "thing"}, "encodingType": "x/y"},
    "ObservedProperties": {"name": "other", "definition": "urn:other", "description": "d"},
    "Observations": {
        "result": {"deep": [1.50, "x"]}, "resultTime": "2020-01-01T00:00:00Z", "parameters": {"a": 1},
        "resultQuality": "fine", "validTime": "2020-01-01T00:00:00Z/2021-01-01T00:00:00Z",
    },
    "FeaturesOfInterest": {"name": "other", "feature": {"type": "Point", "coordinates": [3, 3]}},
}  # fmt: skip


class Ids(dict[str, int]):
    """The id of one entity of each set, which belong together."""

    def entity(self, set_name: str) -> str:
        return f"{set_name}({self[set_name]})"


@pytest.fixture
def ids(service, documents) -> Ids:
    """One new entity of each set, all of them announced."""
    ids = Ids()
    with service.subscribed(*SETS) as heard:
        for name in SETS:
            ids[name] = service.create(name, document(name, ids, documents))
        for name in SETS:
            told(service, heard, name, ids[name])
    return ids


def document(set_name: str, ids: Ids, documents) -> dict[str, Any]:
    def link(name: str) -> dict[str, int]:
        return {"@iot.id": ids[name]}

    match set_name:
        case "Things":
            return documents.thing()
        case "Locations":
            return documents.location(Things=[link("Things")])
        case "HistoricalLocations":
            past = {"time": "2019-01-01T00:00:00Z"}
            return past | {"Thing": link("Things"), "Locations": [link("Locations")]}
        case "Datastreams":
            parts = {"Sensor": documents.sensor(), "ObservedProperty": documents.observed_property()}
            return documents.datastream(Thing=link("Things"), **parts)
        case "Sensors":
            return documents.sensor()
        case "ObservedProperties":
            return documents.observed_property()
        case "FeaturesOfInterest":
            return documents.feature()
    return {"result": 1.5, "phenomenonTime": "2021-01-01T00:00:00Z", "Datastream": link("Datastreams")}


def of(messages: list[Any], own: int) -> list[Any]:
    """Those that tell of an entity."""
    return [message for message in messages if message.get("@iot.id") == own]


def told(service, heard, topic: str, own: int) -> Any:
    """The one message on a topic that tells of an entity."""
    service.until(lambda: of(heard.on(topic), own), f"{topic} tells of {own}; heard on {heard.topics()}")
    (message,) = of(heard.on(topic), own)
    return message


def test_what_is_created_comes_on_the_topic_of_its_set(service, documents):
    """req/receive-updates-via-mqtt/receive-updates: byte for byte as HTTP answers it."""
    with service.subscribed(*SETS) as heard:
        ids = Ids()
        for name in SETS:
            ids[name] = service.create(name, document(name, ids, documents))
            text = service.city.http.get(f"/v1.1/{ids.entity(name)}").text
            told(service, heard, name, ids[name])
            assert heard.text(name).count(text) == 1


def test_every_entity_of_a_deep_insert_comes(service, documents):
    """req/receive-updates-via-mqtt/receive-updates: also what the platform makes by itself."""
    with service.subscribed(*SETS) as heard:
        body = {
            "result": 1,
            "Datastream": documents.whole_datastream(),
            "FeatureOfInterest": documents.feature(),
        }
        own = service.create("Observations", body)
        paths = {
            "Observations": "",
            "FeaturesOfInterest": "/FeatureOfInterest",
            "Datastreams": "/Datastream",
            "Things": "/Datastream/Thing",
            "Sensors": "/Datastream/Sensor",
            "ObservedProperties": "/Datastream/ObservedProperty",
            "Locations": "/Datastream/Thing/Locations",
            "HistoricalLocations": "/Datastream/Thing/HistoricalLocations",
        }
        for name, path in paths.items():
            found = service.get(f"Observations({own}){path}")
            (entity,) = found.get("value", [found])
            assert told(service, heard, name, entity["@iot.id"]) == entity


def test_a_feature_that_is_made_for_an_observation_comes(service, documents):
    """req/receive-updates-via-mqtt/receive-updates"""
    stream = service.create("Datastreams", documents.whole_datastream())
    with service.subscribed("Observations", "FeaturesOfInterest") as heard:
        own = service.create(f"Datastreams({stream})/Observations", {"result": 1})
        feature = service.get(f"Observations({own})/FeatureOfInterest")
        assert told(service, heard, "FeaturesOfInterest", feature["@iot.id"]) == feature


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("set_name", SETS)
def test_what_is_changed_comes_on_the_topics_of_its_set_itself_and_its_properties(
    service, documents, ids, set_name, method
):
    """req/receive-updates-via-mqtt/receive-updates: a property only when it has another value."""
    own, changes = ids.entity(set_name), CHANGES[set_name]
    before = service.get(own)
    unchanged = [name for name in before if "@" not in name and name not in changes]
    properties = [*changes, *unchanged]
    with service.subscribed(set_name, own, *(f"{own}/{name}" for name in properties)) as heard:
        body = dict(changes)
        if method == "PUT":  # every property, no relation
            whole = document(set_name, ids, documents)
            body = {name: value for name, value in whole.items() if not name[0].isupper()} | changes
        after = service.request(method, own, body)
        told(service, heard, set_name, ids[set_name])
        for topic in (set_name, own):
            assert told(service, heard, topic, ids[set_name]) == after == service.get(own)
        for name in changes:
            topic = f"{own}/{name}"
            service.until(lambda topic=topic: heard.on(topic), f"{topic} tells of it")
            assert heard.on(topic) == [{name: after[name]}] == [service.get(topic)]
        assert not [name for name in unchanged if heard.on(f"{own}/{name}")]


def test_a_value_that_means_the_same_is_no_change_of_the_property(service, ids):
    """req/receive-updates-via-mqtt/receive-updates: nor is a number beyond float64 a difficulty."""
    own = ids.entity("Observations")
    same = '{"result": 1.50, "parameters": {"b": 1, "a": [1e400]}, "resultQuality": {"flag": "good"}}'
    properties = [f"{own}/{name}" for name in ("result", "parameters", "resultQuality", "resultTime")]
    with service.subscribed(*properties) as heard:
        service.request("PATCH", own, same)
        heard.one(properties[1]), heard.one(properties[2])
    with service.subscribed(own, *properties) as heard:
        again = '{"parameters": {"a":[1e400], "b":1.0}, "result": 1.5, "resultQuality": {"flag":"good"}}'
        service.request("PATCH", own, again)
        service.request("PATCH", own, '{"resultTime": "2020-01-01T00:00:00Z", "result": 1e400}')
        assert heard.one(properties[3]) == {"resultTime": "2020-01-01T00:00:00Z"}
        service.until(lambda: heard.text(properties[0]), "another result is told")
        assert not heard.text(properties[1])
        assert not heard.text(properties[2])


def test_what_is_changed_comes_on_relative_topics(service, ids):
    """req/receive-updates-via-mqtt/receive-updates: collections that contain it, and what leads to it alone."""
    relative = {
        "Things": ("Locations/Things", "Datastreams/Thing", "HistoricalLocations/Thing", "Observations/Datastream/Thing"),
        "Locations": ("Things/Locations", "HistoricalLocations/Locations", "Datastreams/Thing/Locations"),
        "Datastreams": (
            "Things/Datastreams", "Sensors:Datastreams/Datastreams", "ObservedProperties:Datastreams/Datastreams",
            "Observations/Datastream", "HistoricalLocations/Thing/Datastreams",
        ),
        "HistoricalLocations": ("Things/HistoricalLocations", "Locations/HistoricalLocations", "Datastreams/Thing/HistoricalLocations"),
        "Observations": ("Datastreams/Observations", "FeaturesOfInterest:Observations/Observations"),
    }  # fmt: skip
    for set_name, topics in relative.items():
        paths = []
        for topic in topics:
            of_set, _, relation = topic.partition("/")
            holder, _, via = of_set.partition(":")
            if via:
                (single,) = [
                    r for r in ("Sensor", "ObservedProperty", "FeatureOfInterest") if r[:6] == holder[:6]
                ]
                parent = service.get(f"{ids.entity(via)}/{single}")["@iot.id"]
            else:
                parent = ids[holder]
            paths.append(f"{holder}({parent})/{relation}")
        with service.subscribed(*paths) as heard:
            after = service.request("PATCH", ids.entity(set_name), CHANGES[set_name])
            for path in paths:
                assert told(service, heard, path, ids[set_name]) == after


def test_what_is_created_comes_on_the_collections_that_contain_it(service, documents, ids):
    """req/receive-updates-via-mqtt/receive-updates"""
    thing, stream = ids.entity("Things"), ids.entity("Datastreams")
    topics = (
        f"{thing}/Datastreams",
        f"{thing}/Locations",
        f"{thing}/HistoricalLocations",
        f"{stream}/Observations",
    )
    with service.subscribed(*topics) as heard:
        parts = {"Sensor": documents.sensor(), "ObservedProperty": documents.observed_property()}
        datastream = service.create(f"{thing}/Datastreams", documents.datastream(**parts))
        location = service.create(f"{thing}/Locations", documents.location())
        observation = service.create(f"{stream}/Observations", {"result": 2})
        assert told(service, heard, topics[0], datastream) == service.get(f"Datastreams({datastream})")
        assert told(service, heard, topics[1], location) == service.get(f"Locations({location})")
        history = service.values(f"{thing}/HistoricalLocations?$orderby=id desc&$top=1")[0]
        assert told(service, heard, topics[2], history["@iot.id"]) == history
        assert told(service, heard, topics[3], observation) == service.get(f"Observations({observation})")


def test_a_multi_datastream_and_its_observations_come(service, documents):
    """req/receive-updates-via-mqtt/receive-updates"""
    number = {"name": "number", "symbol": "1", "definition": "ucum:1"}
    body = {
        "name": "wind", "description": "d", "unitOfMeasurements": [number], "multiObservationDataTypes": ["m"],
        "ObservedProperties": [documents.observed_property()], "Sensor": documents.sensor(),
        "Thing": documents.thing(Locations=[documents.location()]),
    }  # fmt: skip
    with service.subscribed("MultiDatastreams") as heard:
        multi = service.create("MultiDatastreams", body)
        assert told(service, heard, "MultiDatastreams", multi) == service.get(f"MultiDatastreams({multi})")
    path = f"MultiDatastreams({multi})/Observations"
    with service.subscribed("Observations", path, f"Datastreams({multi})/Observations") as heard:
        own = service.create(path, {"result": [1]})
        for topic in ("Observations", path):
            assert told(service, heard, topic, own) == service.get(f"Observations({own})")
        assert not heard.on(f"Datastreams({multi})/Observations")


@pytest.mark.parametrize("route", ["CreateObservations", "multipart", "JSON", "MQTT", "gateway"])
def test_observations_come_whichever_way_they_were_created(service, documents, route):
    """req/receive-updates-via-mqtt/receive-updates"""
    name = f"stream-{route}"
    stream = service.create("Datastreams", documents.whole_datastream(name, properties={"streamName": name}))
    topic = f"Datastreams({stream})/Observations"
    with service.subscribed(topic, "Observations") as heard:
        match route:
            case "CreateObservations":
                rows = {"Datastream": {"@iot.id": stream}, "components": ["result"], "dataArray": [[7]]}
                service.request("POST", route, [rows])
            case "JSON":
                one = {"id": "1", "method": "post", "url": topic, "body": {"result": 7}}
                service.request("POST", "$batch", {"requests": [one]}, **{"content-type": "application/json"})
            case "multipart":
                one = (
                    f'POST /v1.1/{topic} HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{{"result":7}}\r\n'
                )
                part = f"--b\r\nContent-Type: application/http\r\n\r\n{one}--b--\r\n"
                kind = {"content-type": "multipart/mixed;boundary=b"}
                answer = service.city.http.post("/v1.1/$batch", content=part, headers=kind)
                assert "201 Created" in answer.text
            case "MQTT":
                service.publish(topic, {"result": 7})
            case "gateway":
                service.city.pack(f"gw-{name}", {"n": name, "v": 7, "t": 1_700_000_000})
        (stored,) = service.until(lambda: service.values(topic), "it is stored")
        for where in (topic, "Observations"):
            assert told(service, heard, where, stored["@iot.id"]) == stored
        assert stored["result"] == 7


def test_what_a_descriptor_registers_and_changes_comes(service):
    """req/receive-updates-via-mqtt/receive-updates"""
    from city_devices import stream, thing

    city = service.city
    with service.subscribed("Things", "Datastreams", "Locations") as heard:
        city.register("gw-described", thing("described-1", stream("described-1/no2")))
        (found,) = service.values(
            "Datastreams?$filter=properties/streamName eq 'described-1/no2'&$expand=Thing"
        )
        thing_id = found["Thing"]["@iot.id"]
        assert told(service, heard, "Things", thing_id) == service.get(f"Things({thing_id})")
        told(service, heard, "Datastreams", found["@iot.id"])
    own = f"Datastreams({found['@iot.id']})"
    with service.subscribed(own, f"{own}/name", f"{own}/description") as heard:
        city.register("gw-described", thing("described-1", stream("described-1/no2", title="renamed")))
        assert heard.one(f"{own}/name") == {"name": "renamed"}
        assert heard.one(own) == service.get(own)
        assert not heard.on(f"{own}/description")


def test_an_announcement_creates_nothing(service, documents):
    """req/receive-updates-via-mqtt/receive-updates: what we publish where others create comes back to us."""
    stream = service.create("Datastreams", documents.whole_datastream())
    topic = f"Datastreams({stream})/Observations"
    with service.subscribed(topic) as heard:

        def announced() -> list[Any]:  # as opposed to what was published in order to create
            return [one["result"] for one in heard.on(topic) if "@iot.id" in one]

        for i in range(5):
            service.publish(topic, {"result": i})
        service.until(lambda: len(announced()) == 5, "each is announced")
        service.publish(topic, {"result": "last"})
        service.until(lambda: announced()[5:] == ["last"], "the last is announced")
        stored = [one["result"] for one in service.values(f"{topic}?$orderby=id")]
        assert announced() == stored == [0, 1, 2, 3, 4, "last"]


def test_what_is_deleted_or_only_computed_does_not_come(service, documents, ids):
    """req/receive-updates-via-mqtt/receive-updates: a Datastream is not changed by its Observations."""
    stream, thing = ids.entity("Datastreams"), ids.entity("Things")
    topics = ("Datastreams", stream, f"{stream}/phenomenonTime", f"{thing}/Datastreams", "Things")
    with service.subscribed(*topics, "Observations") as heard:
        own = service.create(f"{stream}/Observations", {"result": 2})
        told(service, heard, "Observations", own)
        assert service.city.http.delete(f"/v1.1/Observations({own})").is_success
        assert service.city.http.delete(f"/v1.1/{stream}").is_success
        last = service.create("Things", documents.thing())
        told(service, heard, "Things", last)
        assert not of(heard.on("Datastreams"), ids["Datastreams"])
        assert not heard.topics() - {"Things", "Observations", "Datastreams"}
        assert len(of(heard.on("Observations"), own)) == 1


def test_a_change_that_is_rolled_back_does_not_come(service, ids):
    """req/receive-updates-via-mqtt/receive-updates"""
    thing = ids.entity("Things")
    with service.subscribed("Things", thing) as heard:
        changes = {
            "id": "1",
            "atomicityGroup": "g",
            "method": "patch",
            "url": thing,
            "body": {"name": "gone"},
        }
        fails = {"id": "2", "atomicityGroup": "g", "method": "post", "url": "Things", "body": {}}
        service.request(
            "POST", "$batch", {"requests": [changes, fails]}, **{"content-type": "application/json"}
        )
        service.request("PATCH", thing, {"name": "kept"})
        assert told(service, heard, thing, ids["Things"])["name"] == "kept"
        assert [one["name"] for one in of(heard.on("Things"), ids["Things"])] == ["kept"]


def test_the_landing_page_says_where_to_subscribe(service):
    """req/receive-updates-via-mqtt/receive-updates"""
    settings = service.get("")["serverSettings"]
    uri = f"http://www.opengis.net/spec/iot_sensing/1.1/{RECEIVE}"
    assert uri in settings["conformance"]
    assert settings[uri]["endpoints"] == [service.city.settings.broker_url]
