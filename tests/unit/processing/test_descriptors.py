"""Descriptors as gateways write them, before anything is asked of the store."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.errors import Rejected
from processing.descriptors import (
    capabilities_of,
    check_listed_once,
    differences,
    identity,
    json_object,
    key_of,
    read_thing,
    storable,
    streams_of,
    text_of,
    things_of,
)


def datastream(name: str, **more) -> dict:
    return {
        "name": "temperature", "description": "d", "observationType": "OM_Measurement",
        "unitOfMeasurement": {"name": "degree Celsius", "symbol": "°C", "definition": "d"},
        "properties": {"streamName": name},
        "Sensor": {"name": "s", "description": "d", "encodingType": "text/plain", "metadata": "m"},
        "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
    } | more  # fmt: skip


def thing(name: str = "lamp", *streams: str, **more) -> dict:
    location = {
        "name": "l", "description": "d", "encodingType": "application/geo+json",
        "location": {"type": "Point", "coordinates": [2.17, 41.38]},
    }  # fmt: skip
    return {
        "name": name,
        "description": "d",
        "Locations": [location],
        "Datastreams": [datastream(s) for s in streams],
    } | more


def detail_of(function, *arguments) -> str:
    with pytest.raises(Rejected) as caught:
        function(*arguments)
    assert caught.value.reason == "malformed"
    return caught.value.detail


def test_a_descriptor_is_a_thing_or_an_array_of_them():
    assert things_of(b'{"name":"a"}') == [{"name": "a"}]
    assert things_of(b' [{"name":"a"},{"name":"b"}]') == [{"name": "a"}, {"name": "b"}]
    assert things_of(b"[]") == []


@given(
    st.binary(max_size=40)
    | st.binary(max_size=40).map(lambda b: b"[" + b)
    | st.binary(max_size=40).map(lambda b: b'{"' + b)
)
def test_whatever_else_it_is_it_is_refused(payload):
    try:
        things = things_of(payload)
    except Rejected as error:
        if error.reason != "malformed" or not error.detail:
            raise
    else:
        assert all(isinstance(one, dict) for one in things)


@pytest.mark.parametrize("payload", [b"", b"7", b"[1]", b'{"a":' * 50_000, b'"\xff"', b'{"a":NaN}'])
def test_what_is_no_object_says_so(payload):
    assert detail_of(things_of, payload)
    assert "not a JSON object" in detail_of(json_object, payload)


@pytest.mark.parametrize(
    ("properties", "key"),
    [
        (None, None),
        ({}, None),
        ({"key": None}, None),
        ({"key": "k"}, "k"),
        ({"key": ""}, ""),
        ({"key": 7}, "7"),
        ("text", None),
    ],
)
def test_a_thing_is_known_again_by_its_key_or_else_by_its_name(properties, key):
    what = thing(properties=properties)

    assert key_of(what) == key
    assert identity(what) == ("lamp" if key is None else key)


@pytest.mark.parametrize("key", [1.5, [], {}, ["a"]])
def test_a_key_is_a_text_or_a_whole_number(key):
    assert "properties.key" in detail_of(read_thing, thing(properties={"key": key}))


def test_differences_are_what_is_new_changed_or_gone():
    old = {"a": 1, "b": {"x": [1]}, "c": 3, "e": 5}
    new = {"a": 1, "b": {"x": [2]}, "d": 4, "e": None}

    assert differences(new, old, ("a", "b", "c", "d", "e", "f")) == {
        "b": {"x": [2]},
        "c": None,
        "d": 4,
        "e": None,
    }
    assert differences(new, new, ("a", "b")) == {}


def test_streams_are_found_by_name_and_each_has_one_of_its_own():
    assert list(streams_of(thing("t", "g/a", "g/b"))) == ["g/a", "g/b"]
    assert streams_of({"name": "t"}) == {}
    assert "have one streamName" in detail_of(streams_of, thing("t", "g/a", "g/a"))


@pytest.mark.parametrize("name", [None, 5, "", "ünï", "-a", "a b", "a" * 2000])
def test_a_stream_name_is_one_of_senml(name):
    wrong = thing("t", Datastreams=[datastream("a", properties={"streamName": name})])

    assert "RFC 8428" in detail_of(streams_of, wrong)


@pytest.mark.parametrize("datastreams", [None, "a", {"a": 1}, [1], [[]]])
def test_datastreams_are_an_array_of_objects(datastreams):
    assert "array of objects" in detail_of(streams_of, {"name": "t", "Datastreams": datastreams})


@pytest.mark.parametrize("properties", [None, [], "a"])
def test_a_datastream_without_properties_has_no_stream_name(properties):
    assert "streamName" in detail_of(streams_of, {"Datastreams": [{"name": "x", "properties": properties}]})


def test_a_thing_and_a_stream_are_listed_once():
    applied, listed = {"lamp": thing()}, {"g/a": "lamp"}

    check_listed_once(thing("other", "g/b"), applied, listed)
    assert "'lamp' is listed twice" in detail_of(check_listed_once, thing("lamp"), applied, listed)
    assert "listed in 'lamp' already" in detail_of(
        check_listed_once, thing("other", "g/b", "g/a"), applied, listed
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": 5}, "name must be a string"),
        ({"colour": "red"}, "no property 'colour'"),
        ({"HistoricalLocations": []}, "does not come with its HistoricalLocations"),
        ({"Datastreams": [datastream("a", Observations=[])]}, "does not come with its Observations"),
        ({"Datastreams": [datastream("a", Thing={"@iot.id": 1})]}, "Thing"),
        ({"Datastreams": [datastream("a", observationType=None)]}, "observationType must not be null"),
        ({"Datastreams": [datastream("a", Sensor={"name": "s"})]}, "Sensor"),
        ({"Locations": [{"@iot.id": "x"}]}, "no id of this service"),
    ],
)
def test_all_of_a_thing_is_held_against_the_entity_table(wrong, told):
    detail = detail_of(read_thing, thing() | wrong)

    assert told in detail
    assert detail.startswith("the Thing ")


def test_texts_of_any_alphabet_stay_as_they_are():
    what = thing("Gràcia · 東京 \U0001f6b2", properties={"note": "\u0627\u0644"})

    assert read_thing(what).values["name"] == "Gràcia · 東京 \U0001f6b2"
    assert msgspec.json.decode(text_of(what)) == what


def capability(name: str, **more):
    record = {"type": "DataRecord", "field": []}
    actuator = {"name": "a", "description": "d", "encodingType": "text/html", "metadata": "m"}
    return {"name": name, "description": "d", "taskingParameters": record, "Actuator": actuator} | more


def test_capabilities_are_known_by_key_or_name_and_each_is_listed_once():
    what = thing(TaskingCapabilities=[capability("Dim", properties={"key": "dim"}), capability("Turn")])
    read_thing(what)
    assert list(capabilities_of(what)) == ["dim", "Turn"]
    assert capabilities_of(thing()) == {}
    twice = thing(TaskingCapabilities=[capability("Dim"), capability("x", properties={"key": "Dim"})])
    assert "have one name" in detail_of(capabilities_of, twice)
    linked = thing(TaskingCapabilities=[{"@iot.id": 1}])
    assert "links to none" in detail_of(capabilities_of, linked)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"Tasks": []}, "does not come with its Tasks"),
        ({"Thing": {"@iot.id": 1}}, "Thing"),
        ({"Actuator": None}, "Actuator"),
        ({"taskingParameters": {"type": "DataRecord"}}, "taskingParameters: field is an array"),
    ],
)
def test_a_capability_holds_its_actuator_and_nothing_of_others(wrong, told):
    assert told in detail_of(read_thing, thing(TaskingCapabilities=[capability("Dim", **wrong)]))


def test_what_the_store_cannot_keep_is_refused():
    assert storable({"a": "\\u0000"}) == '{"a":"\\\\u0000"}'
    assert "NUL" in detail_of(storable, {"a": ["\0"]})
    assert "NUL" in detail_of(storable, {"\0": 1})
