"""Addresses (OGC 18-088 §9.2): req/resource-path/resource-path-to-entities."""

import pytest

PROPERTIES = {
    "string": "s",
    "boolean": True,
    "int": 8,
    "null": None,
    "intArray": [8, 9],
    "intIntArray": [[8, 9], [10]],
    "objArray": [{"string": "in", "intArray": [5]}],
    "a b": {"ü/x": 1},
    "percent%20": 2,
}


@pytest.fixture(scope="module")
def city(api, documents):
    """Two Things, each with a Datastream of two Observations."""

    class City:
        things, streams, observations = [], [], []

    for name in ("One", "Two"):
        thing = documents.thing(
            name, properties=PROPERTIES, Locations=[documents.location(f"{name}'s place")]
        )
        City.things.append(api.create("/Things", thing))
        whole = documents.whole_datastream(f"{name}'s stream", Thing={"@iot.id": City.things[-1]})
        City.streams.append(api.create("/Datastreams", whole))
        for hour in (0, 1):
            document = {"result": {"a": [hour]}, "phenomenonTime": f"2024-01-01T0{hour}:00:00Z"}
            City.observations.append(api.create(f"/Datastreams({City.streams[-1]})/Observations", document))
    return City


def test_chains_of_any_legal_length(api, city):
    one, stream, observation = city.things[0], city.streams[0], city.observations[0]
    assert api.ids(f"/Things({one})/Datastreams") == [stream]
    assert api.get(f"/Things({one})/Datastreams({stream})")["@iot.id"] == stream
    assert api.ids(f"/Things({one})/Datastreams({stream})/Observations") == city.observations[:2]
    assert api.get(f"/Observations({observation})/Datastream/Thing")["@iot.id"] == one
    assert api.ids(f"/Observations({observation})/Datastream/Thing/Datastreams/{''}") == [stream]
    assert api.ids(
        f"/Observations({observation})/Datastream/Thing/Locations({api.ids(f'/Things({one})/Locations')[0]})/Things"
    ) == [one]
    assert (
        api.get(f"/Things({one})/Datastreams({stream})/Observations({observation})/FeatureOfInterest")["name"]
        == "One's place"
    )
    assert api.get(f"/Observations({observation})/Datastream/Thing/name") == {"name": "One"}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("name", {"name": "One"}),
        ("id", None),
        ("properties/string", {"string": "s"}),
        ("properties/boolean", {"boolean": True}),
        ("properties/int", {"int": 8}),
        ("properties/null", {"null": None}),
        ("properties/intArray", {"intArray": [8, 9]}),
        ("properties/intArray[1]", {"intArray[1]": 9}),
        ("properties/intArray%5B1%5D", {"intArray[1]": 9}),
        ("properties/intIntArray[0][1]", {"intIntArray[0][1]": 9}),
        ("properties/objArray[0]/string", {"string": "in"}),
        ("properties/objArray[0]/intArray[0]", {"intArray[0]": 5}),
        ("properties/a%20b/%C3%BC%2Fx", {"ü/x": 1}),
        ("properties/percent%2520", {"percent%20": 2}),
    ],
)
def test_properties_and_members_of_json(api, city, path, answer):
    found = api.get(f"/Things({city.things[0]})/{path}")
    assert found == (answer or {"@iot.id": city.things[0]})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("name", "One"),
        ("properties/string", "s"),
        ("properties/int", "8"),
        ("properties/boolean", "true"),
        ("properties/intArray", "[8, 9]"),
        ("properties/intArray[0]", "8"),
    ],
)
def test_raw_values(api, city, path, text):
    response = api.response(f"/Things({city.things[0]})/{path}/$value")
    assert response.text == text
    assert response.headers["content-type"].startswith("text/plain")


def test_results_have_members_too(api, city):
    assert api.get(f"/Observations({city.observations[1]})/result/a[0]") == {"a[0]": 1}
    assert api.get(f"/Datastreams({city.streams[0]})/unitOfMeasurement/symbol") == {"symbol": "ug"}


def test_a_null_is_a_value_only_where_it_is_mandatory(api, city, documents):
    """A mandatory property that is null: 200 with null; an optional one that is unset: 204; an unknown one: 404."""
    own = city.observations[0]
    assert api.get(f"/Observations({own})/resultTime") == {"resultTime": None}
    assert api.status(f"/Observations({own})/validTime") == 204
    assert api.status(f"/Observations({own})/validTime/$value") == 204
    assert api.status(f"/Observations({own})/parameters") == 204
    assert api.status(f"/Observations({own})/colour") == 404
    bare = api.create("/Things", documents.thing())
    assert api.status(f"/Things({bare})/properties") == 204
    assert api.status(f"/Things({bare})/properties/$value") == 204
    assert api.status(f"/Things({bare})/properties/a") == 404
    assert api.status(f"/Things({bare})/properties/a/$value") == 404
    assert api.get(f"/Things({city.things[0]})/properties/null") == {"null": None}
    assert api.status(f"/Things({city.things[0]})/properties/null/$value") == 204
    assert api.status(f"/Things({city.things[0]})/properties/nulls/$value") == 404
    stream = api.create("/Datastreams", documents.whole_datastream("Empty"))
    assert api.status(f"/Datastreams({stream})/phenomenonTime") == 204


def test_references(api, city):
    one = city.things[0]
    link = {"@iot.selfLink": f"{api.root}/Datastreams({city.streams[0]})"}
    assert api.values(f"/Things({one})/Datastreams/$ref") == [link]
    assert api.get(f"/Datastreams({city.streams[0]})/Thing/$ref") == {
        "@iot.selfLink": f"{api.root}/Things({one})"
    }
    assert len(api.values("/Observations/$ref?$filter=result/a[0] eq 1")) == 2


@pytest.mark.parametrize(
    "path",
    [
        "/Nothings", "/things", "/Things(0)", "/Things(-1)", "/Things(x)", "/Things('1')", "/Things()", "/Things(1.0)",
        "/Things(987654321)", "/Things(9223372036854775807)", "/Things(9223372036854775808)",
        "/Things(99999999999999999999999)", "/Things(987654321)/Datastreams", "/Things(987654321)/name",
        "/Things({0})/Nothing", "/Things({0})/name/x", "/Things({0})/properties/unknown", "/Things({0})/$nothing",
        "/Things({0})/properties/intArray[9]", "/Things({0})/properties/string[0]", "/Things({0})/properties/a[",
        "/Things/Datastreams", "/Things/name", "/Things({0})/Datastreams({1})", "/Things({0})/Datastreams({1})/name",
        "/Things({0})/Datastreams({1})/Observations", "/Things({0})/Datastreams({1})/Thing",
        "/Observations(987654321)/FeatureOfInterest", "/Datastreams(987654321)/Thing/name", "/Things({0})/Thing",
        "/Datastreams({1})/Thing({0})", "/Things({0})/%FF", "/Things({0})/%00",
    ],
)  # fmt: skip
def test_what_names_nothing_is_404(api, city, path):
    path = path.replace("{0}", str(city.things[0])).replace("{1}", str(city.streams[1]))
    api.refused(path, 404)
