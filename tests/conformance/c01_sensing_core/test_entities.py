"""Entities as they are read (OGC 18-088 §8.2, §9.2)."""

import json

import pytest

RELATIONS = {
    "Things": ["Locations", "HistoricalLocations", "Datastreams", "MultiDatastreams", "TaskingCapabilities"],
    "Locations": ["Things", "HistoricalLocations"],
    "HistoricalLocations": ["Thing", "Locations"],
    "Datastreams": ["Thing", "Sensor", "ObservedProperty", "Observations"],
    "Sensors": ["Datastreams", "MultiDatastreams"],
    "ObservedProperties": ["Datastreams", "MultiDatastreams"],
    "Observations": ["Datastream", "FeatureOfInterest"],
    "FeaturesOfInterest": ["Observations"],
}
MANDATORY = {
    "Things": {"name", "description"},
    "Locations": {"name", "description", "encodingType", "location"},
    "HistoricalLocations": {"time"},
    "Datastreams": {"name", "description", "unitOfMeasurement", "observationType"},
    "Sensors": {"name", "description", "encodingType", "metadata"},
    "ObservedProperties": {"name", "definition", "description"},
    "Observations": {"phenomenonTime", "result", "resultTime"},
    "FeaturesOfInterest": {"name", "description", "encodingType", "feature"},
}


@pytest.fixture(scope="module")
def observation(api, documents):
    """One entity of every type; the Observation's id."""
    return api.create(
        "/Observations",
        {
            "result": 1,
            "phenomenonTime": "2024-01-01T00:00:00Z",
            "Datastream": documents.whole_datastream("All"),
        },
    )


@pytest.mark.usefixtures("observation")
@pytest.mark.parametrize("name", RELATIONS)
def test_control_information_properties_and_relations(api, name):
    """req/datamodel/entity-control-information/common-control-information, req/datamodel/*/properties,
    req/datamodel/*/relations."""
    for entity in api.values(f"/{name}"):
        own = entity["@iot.id"]
        assert isinstance(own, int)
        assert entity["@iot.selfLink"] == f"{api.root}/{name}({own})"
        assert api.absolute(entity["@iot.selfLink"]) == entity
        assert MANDATORY[name] <= entity.keys()
        links = {key for key in entity if key.endswith("@iot.navigationLink")}
        assert links == {f"{relation}@iot.navigationLink" for relation in RELATIONS[name]}
        for relation in RELATIONS[name]:
            address = entity[f"{relation}@iot.navigationLink"]
            assert address == f"{entity['@iot.selfLink']}/{relation}"
            related = api.absolute(address)
            if relation in {"MultiDatastreams", "TaskingCapabilities"}:
                assert related["value"] == []
            elif relation.endswith("s"):
                assert related["value"]
            else:
                assert related["@iot.id"]
        optional = entity.keys() - MANDATORY[name] - links - {"@iot.id", "@iot.selfLink"}
        assert all(entity[key] is not None for key in optional)


@pytest.mark.parametrize(
    "text",
    [
        "-50", "6", "6.0", "1.23", "0", "9007199254740993", "123456789012345678901234567890", "-0.5", "1E2", "21.40",
        "true", "false", "null", '"warm"', '""', '"6"', '{"a": [1, 2.50, {"b": null}]}', "[1, [2]]", '"名 \\"q\\" \\n"',
    ],
)  # fmt: skip
def test_results_come_back_exactly(api, observation, text):
    """req/datamodel/observation/properties: any result, with its type and its digits."""
    stream = api.get(f"/Observations({observation})/Datastream")["@iot.id"]
    own = api.create(f"/Datastreams({stream})/Observations", f'{{"result": {text}}}')
    entity = api.response(f"/Observations({own})").text
    shown = entity[entity.index('"result":') + len('"result":') :]
    decoder = json.JSONDecoder(parse_float=str, parse_int=str)
    wanted = "100" if text == "1E2" else decoder.decode(text)
    assert decoder.raw_decode(shown)[0] == wanted
    value = api.response(f"/Observations({own})/result/$value")
    if text == "null":
        assert value.status_code == 204
    else:
        assert value.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("2016-01-01T07:00Z", "2016-01-01T07:00:00Z"),
        ("2016-01-01T07:00:00.000Z", "2016-01-01T07:00:00Z"),
        ("2016-01-01T09:00:00+02:00", "2016-01-01T07:00:00Z"),
        ("2016-01-01T00:00:00-0700", "2016-01-01T07:00:00Z"),
        ("2016-01-01T07:00:00.120Z", "2016-01-01T07:00:00.12Z"),
        ("2016-01-01T07:00:00Z/2016-01-01T10:00:00.5+02:00", "2016-01-01T07:00:00Z/2016-01-01T08:00:00.5Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_answered_in_utc(api, observation, given, shown):
    """req/datamodel/observation/properties."""
    stream = api.get(f"/Observations({observation})/Datastream")["@iot.id"]
    own = api.create(f"/Datastreams({stream})/Observations", {"result": 1, "phenomenonTime": given})
    assert api.get(f"/Observations({own})")["phenomenonTime"] == shown
    assert api.response(f"/Observations({own})/phenomenonTime/$value").text == shown


@pytest.mark.parametrize("given", ["2016", "2016-01-01", "2016-01-01T07:00:00", "2016-13-01T00:00Z", "now", 5,
                                   "2016-01-02T00:00Z/2016-01-01T00:00Z"])  # fmt: skip
def test_what_is_no_time_is_refused(api, observation, given):
    stream = api.get(f"/Observations({observation})/Datastream")["@iot.id"]
    assert (
        api.post(f"/Datastreams({stream})/Observations", {"result": 1, "phenomenonTime": given}).status_code
        == 400
    )


def test_every_optional_property_of_an_observation(api, observation):
    """req/datamodel/observation/properties."""
    stream = api.get(f"/Observations({observation})/Datastream")["@iot.id"]
    document = {
        "result": 1,
        "phenomenonTime": "2024-02-01T00:00:00Z",
        "resultTime": "2024-02-01T00:00:01Z",
        "resultQuality": {"nameOfMeasure": "x", "values": [1.0, "a"]},
        "validTime": "2024-02-01T00:00:00Z/2024-02-02T00:00:00Z",
        "parameters": {"tilt": 30, "nested": {"a": [1]}},
    }
    own = api.create(f"/Datastreams({stream})/Observations", document)
    entity = api.get(f"/Observations({own})")
    assert {key: entity[key] for key in document} == document


@pytest.mark.parametrize("quality", [{"flag": "good"}, {"flag": "bad"}, {"flag": "other"}, "checked", 2, [1]])
def test_result_quality_is_any_json(api, observation, quality):
    stream = api.get(f"/Observations({observation})/Datastream")["@iot.id"]
    own = api.create(f"/Datastreams({stream})/Observations", {"result": 1, "resultQuality": quality})
    assert api.get(f"/Observations({own})")["resultQuality"] == quality


@pytest.mark.parametrize("metadata", ["text", "https://x.example/?a=1&b='2'", {"a": 1}, ["x"], 5, True])
def test_metadata_is_any_json(api, documents, metadata):
    """req/datamodel/sensor/properties."""
    own = api.create("/Sensors", documents.sensor(metadata=metadata))
    assert api.get(f"/Sensors({own})")["metadata"] == metadata


def test_a_unit_may_have_nulls(api, documents):
    """req/datamodel/datastream/properties."""
    unit = {"name": None, "symbol": None, "definition": None}
    own = api.create("/Datastreams", documents.whole_datastream("Unitless", unitOfMeasurement=unit))
    assert api.get(f"/Datastreams({own})")["unitOfMeasurement"] == unit


def test_computed_fields_of_a_datastream(api, documents):
    """req/datamodel/datastream/properties: they follow the Observations, and are absent when there are none."""
    own = api.create("/Datastreams", documents.whole_datastream("Computed"))
    entity = api.get(f"/Datastreams({own})")
    assert entity.keys().isdisjoint({"phenomenonTime", "resultTime", "observedArea"})
    for hour, result_hour in ((5, 8), (3, 9), (4, 7)):
        document = {
            "result": hour,
            "phenomenonTime": f"2024-01-01T0{hour}:00:00Z",
            "resultTime": f"2024-01-01T0{result_hour}:00:00Z",
            "FeatureOfInterest": documents.feature(feature=documents.point(hour, 40)),
        }
        api.create(f"/Datastreams({own})/Observations", document)
    entity = api.get(f"/Datastreams({own})")
    assert entity["phenomenonTime"] == "2024-01-01T03:00:00Z/2024-01-01T05:00:00Z"
    assert entity["resultTime"] == "2024-01-01T07:00:00Z/2024-01-01T09:00:00Z"
    assert entity["observedArea"]["type"]


def test_what_a_client_sends_for_computed_fields_is_ignored(api, documents):
    document = documents.whole_datastream("Sent", phenomenonTime="x", observedArea=5, resultTime=None)
    own = api.create("/Datastreams", document)
    assert "phenomenonTime" not in api.get(f"/Datastreams({own})")
