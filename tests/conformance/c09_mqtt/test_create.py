"""OGC 18-088 §14.1: what is published on the topics of Observations is created, by the rules of a POST."""

import re
from datetime import UTC, datetime, timedelta

import pytest

NUMBER = {"name": "number", "symbol": "1", "definition": "ucum:1"}
CREATE = "req/create-observations-via-mqtt/observations-creation"


@pytest.fixture
def stream(service, documents) -> int:
    """A Datastream of the test's own."""
    return service.create("Datastreams", documents.whole_datastream())


def observations(service, stream: int, options: str = "") -> list:
    return service.values(f"Datastreams({stream})/Observations?$orderby=id&{options}")


def appears(service, stream: int, options: str = ""):
    """The one Observation of a Datastream, as soon as there is one."""
    return service.until(lambda: observations(service, stream, options), "the Observation is created")[0]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_observation_is_created_in_the_set(service, stream, documents, qos):
    """req/create-observations-via-mqtt/observations-creation"""
    feature = service.create("FeaturesOfInterest", documents.feature())
    document = {
        "phenomenonTime": "2015-03-01T02:40:00+02:00",
        "validTime": "2016-01-01T01:01:01Z/2016-01-01T23:59:59Z",
        "resultTime": "2015-03-01T01:00:00Z",
        "result": -3819502934860172043,
        "parameters": {"param1": "some value1", "deep": [1, {"a": None}]},
        "resultQuality": "good enough",
        "Datastream": {"@iot.id": stream},
        "FeatureOfInterest": {"@iot.id": feature},
    }
    service.publish("Observations", document, qos=qos)
    found = appears(service, stream, "$expand=Datastream($select=id),FeatureOfInterest($select=id)")
    assert found.items() >= (document | {"phenomenonTime": "2015-03-01T00:40:00Z"}).items()


def test_an_observation_is_created_at_its_datastream(service, stream):
    """req/create-observations-via-mqtt/observations-creation: exact results; the time of receipt where it has none."""
    service.publish(f"Datastreams({stream})/Observations", '{"result": 6.0}')
    found = service.until(
        lambda: service.city.http.get(f"/v1.1/Datastreams({stream})/Observations").text.partition(
            '"result":'
        )[2],
        "the Observation is created",
    )
    assert found.startswith(("6.0,", "6.0}"))
    (one,) = observations(service, stream)
    late = datetime.now(UTC) - datetime.fromisoformat(one["phenomenonTime"])
    assert timedelta(0) < late < timedelta(minutes=1)
    assert one["resultTime"] is None


def test_an_observation_is_created_at_its_feature(service, stream, documents):
    """req/create-observations-via-mqtt/observations-creation"""
    feature = service.create("FeaturesOfInterest", documents.feature())
    body = {"result": "text", "Datastream": {"@iot.id": stream}, "FeatureOfInterest": {"@iot.id": feature}}
    service.publish(f"FeaturesOfInterest({feature})/Observations", body)
    found = appears(service, stream, "$expand=FeatureOfInterest")
    assert (found["result"], found["FeatureOfInterest"]["@iot.id"]) == ("text", feature)


def test_an_observation_is_created_at_its_multi_datastream(service, documents):
    """req/create-observations-via-mqtt/observations-creation"""
    multi = service.create(
        "MultiDatastreams",
        {
            "name": "wind",
            "description": "speed and direction",
            "unitOfMeasurements": [NUMBER, NUMBER],
            "multiObservationDataTypes": ["m", "m"],
            "ObservedProperties": [
                documents.observed_property("speed"),
                documents.observed_property("direction"),
            ],
            "Sensor": documents.sensor(),
            "Thing": documents.thing(Locations=[documents.location()]),
        },
    )
    service.publish(f"MultiDatastreams({multi})/Observations", {"result": [3, 270]})
    path = f"MultiDatastreams({multi})/Observations"
    assert service.until(lambda: service.values(path), "it is created")[0]["result"] == [3, 270]


def test_a_feature_is_made_from_the_location_of_the_thing(service, stream):
    """req/create-observations-via-mqtt/observations-creation"""
    service.publish(f"Datastreams({stream})/Observations", {"result": 1})
    found = appears(service, stream, "$expand=FeatureOfInterest")
    assert found["FeatureOfInterest"]["feature"]["type"] == "Point"


def test_related_entities_are_created_along(service, documents):
    """req/create-observations-via-mqtt/observations-creation: deep insert, as with a POST."""
    name = "made over MQTT"
    document = {
        "phenomenonTime": "2015-03-01T00:00:00Z",
        "result": 5,
        "FeatureOfInterest": documents.feature("A weather station"),
        "Datastream": documents.whole_datastream(name),
    }
    service.publish("Observations", document)
    path = f"Observations?$filter=Datastream/name eq '{name}'&$expand=Datastream/Thing/Locations,FeatureOfInterest"
    (found,) = service.until(lambda: service.values(path), "it is created")
    assert found["FeatureOfInterest"]["name"] == "A weather station"
    assert found["Datastream"]["Thing"]["name"] == f"{name}'s thing"
    assert len(found["Datastream"]["Thing"]["Locations"]) == 1


def test_each_message_makes_one_observation_in_order(service, stream):
    """req/create-observations-via-mqtt/observations-creation: also where others are refused between them."""
    for i in range(40):
        service.publish(f"Datastreams({stream})/Observations", {"result": i})
        service.publish("Observations", {"result": i})
    service.until(lambda: len(observations(service, stream)) >= 40, "all are created")
    assert [one["result"] for one in observations(service, stream)] == list(range(40))


@pytest.mark.parametrize(
    ("topic", "payload", "why"),
    [
        ("Observations", "no JSON", "no JSON"),
        ("Observations", '{"result": 1}', "needs its Datastream"),
        ("Observations", '{"Datastream": {"@iot.id": 987654321}, "result": 1}', "987654321.* does not exist"),
        ("Datastreams(987654321)/Observations", '{"result": 1}', "987654321.* does not exist"),
        ("Datastreams(STREAM)/Observations", "{}", "needs its result"),
        ("Datastreams(STREAM)/Observations", '{"result": 1, "colour": "red"}', "no property 'colour'"),
        ("Datastreams(STREAM)/Observations", '{"result": 1, "Datastream": {"@iot.id": 987654321}}', "another"),
        ("Datastreams(STREAM)/Observations", '{"result": 1, "phenomenonTime": "yesterday"}', "phenomenonTime"),
        ("Datastreams(STREAM)/Observations", '{"result": {"a": "\\u0000"}}', "NUL"),
        ("Datastreams(STREAM)/Observations", '{"result": [1e999999]}', ""),
        ("Things(1)/Observations", '{"result": 1}', "nothing is created"),
        ("Datastreams(x)/Observations", '{"result": 1}', "nothing is created"),
        ("Datastreams(99999999999999999999)/Observations", '{"result": 1}', "nothing is created"),
        ("FeaturesOfInterest(987654321)/Observations", '{"Datastream": {"@iot.id": STREAM}, "result": 1}', "exist"),
    ],
)  # fmt: skip
def test_what_a_post_would_refuse_is_a_rejection_and_harms_no_other(service, stream, topic, payload, why):
    """req/create-observations-via-mqtt/observations-creation"""
    topic, payload = topic.replace("STREAM", str(stream)), payload.replace("STREAM", str(stream))
    before = len(service.city.rejections("v1.1/Observations"))
    service.publish(topic, payload)
    service.publish(f"Datastreams({stream})/Observations", {"result": "after it"})
    assert appears(service, stream)["result"] == "after it"
    rejections = service.city.rejections("v1.1/Observations")[before:]
    assert [(one.payload, one.reason) for one in rejections] == [(payload.encode(), "malformed")]
    assert re.search(why, rejections[0].detail)


def test_the_landing_page_says_where_to_publish(service):
    """req/create-observations-via-mqtt/observations-creation"""
    settings = service.get("")["serverSettings"]
    uri = f"http://www.opengis.net/spec/iot_sensing/1.1/{CREATE}"
    assert uri in settings["conformance"]
    assert settings[uri]["endpoints"] == [service.city.settings.broker_url]
