"""`$resultFormat=CSV` and `GeoJSON`: beyond the standard."""

import csv
import io
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.usefixtures("city")
QUOTED = 'a "quoted", two-line\r\nname'


@pytest.fixture(scope="module")
def city(api, documents) -> SimpleNamespace:
    thing = documents.thing(QUOTED, properties={"a": 1}, Locations=[documents.location("Here")])
    stream = api.create("/Datastreams", documents.whole_datastream("Formats", Thing=thing))
    results = ["1", "2.50", '"text, with \\"quotes\\""', "true", '{"a":1}', '""', "null"]
    ids = [
        api.create(
            f"/Datastreams({stream})/Observations",
            f'{{"phenomenonTime":"2024-01-01T0{n}:00:00Z","result":{result}}}',
        )
        for n, result in enumerate(results)
    ]
    nowhere = api.create("/Things", documents.thing("Nowhere"))
    return SimpleNamespace(stream=stream, ids=ids, nowhere=nowhere)


def table(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/csv")
    assert response.text.endswith("\r\n")
    return list(csv.DictReader(io.StringIO(response.text, newline="")))


def test_csv_has_a_header_and_a_line_for_each_entity(api, city):
    rows = table(api.response(f"/Datastreams({city.stream})/Observations?$resultFormat=CSV"))
    assert list(rows[0]) == [
        "id", "phenomenonTime", "resultTime", "result", "resultQuality", "validTime", "parameters",
    ]  # fmt: skip
    assert [row["id"] for row in rows] == [str(own) for own in city.ids]
    assert [row["result"] for row in rows] == [
        "1", "2.50", 'text, with "quotes"', "true", '{"a": 1}', "", "",
    ]  # fmt: skip
    assert rows[1]["phenomenonTime"] == "2024-01-01T01:00:00Z"


def test_csv_quotes_what_needs_quotes(api):
    response = api.response("/Things?$resultFormat=CSV&$select=name,properties&$orderby=id")
    assert table(response) == [
        {"name": QUOTED, "properties": '{"a": 1}'},
        {"name": "Nowhere", "properties": ""},
    ]
    empty = api.response("/Observations?$resultFormat=CSV&$select=result&$filter=result eq ''")
    assert empty.content == b'result\r\n""\r\n'


def test_csv_options_apply(api, city):
    path = f"/Datastreams({city.stream})/Observations?$resultFormat=CSV"
    rows = table(api.response(f"{path}&$filter=result ge 1&$orderby=result desc&$select=id,result"))
    assert [tuple(row.values()) for row in rows] == [(str(city.ids[1]), "2.50"), (str(city.ids[0]), "1")]
    assert len(table(api.response(f"{path}&$top=2&$skip=1"))) == 2
    assert api.response(f"{path}&$filter=result gt 999").text.count("\r\n") == 1


def test_csv_has_the_columns_of_expanded_entities(api):
    path = "/Observations?$resultFormat=CSV&$select=result&$top=1"
    expand = "$expand=Datastream($select=name;$expand=Thing($select=name)),FeatureOfInterest($select=id)"
    (row,) = table(api.response(f"{path}&{expand}"))
    assert row["Datastream/name"] == "Formats"
    assert row["Datastream/Thing/name"] == QUOTED
    assert row["FeatureOfInterest/id"].isdecimal()
    assert "several" in api.refused("/Things?$resultFormat=CSV&$expand=Datastreams")


def test_csv_has_columns_of_members_in_the_order_of_the_selection(api):
    path = "/Things?$resultFormat=CSV&$select=properties/a,name,properties/b[0]/c&$orderby=id"
    expand = "$expand=Datastream($select=unitOfMeasurement/symbol,id;$expand=Sensor($select=metadata))"
    assert table(api.response(path)) == [
        {"properties/a": "1", "name": QUOTED, "properties/b[0]/c": ""},
        {"properties/a": "", "name": "Nowhere", "properties/b[0]/c": ""},
    ]
    (row,) = table(api.response(f"/Observations?$resultFormat=CSV&$select=result&$top=1&{expand}"))
    assert list(row) == [
        "result", "Datastream/unitOfMeasurement/symbol", "Datastream/id", "Datastream/Sensor/metadata",
    ]  # fmt: skip
    assert (row["Datastream/unitOfMeasurement/symbol"], row["Datastream/Sensor/metadata"]) == ("ug", "m")


def test_refusals_are_answers_of_their_own(api):
    assert api.status("/Datastreams(987654321)/Observations?$resultFormat=CSV") == 404
    assert api.status("/Datastreams(987654321)/Observations?$resultFormat=GeoJSON") == 404
    assert "result" in api.refused("/Observations?$resultFormat=CSV&$filter=resul eq 1")
    assert "geometry" in api.refused("/Sensors?$resultFormat=GeoJSON")


@pytest.mark.parametrize("name", ["Things", "Locations", "FeaturesOfInterest", "Observations", "Datastreams"])
def test_geojson_has_a_feature_for_each_entity(api, documents, name):
    response = api.response(f"/{name}?$resultFormat=GeoJSON&$orderby=id")
    assert response.headers["content-type"] == "application/geo+json"
    found = response.json()
    assert found["type"] == "FeatureCollection"
    entities = api.values(f"/{name}?$orderby=id")
    assert [feature["id"] for feature in found["features"]] == [e["@iot.id"] for e in entities]
    assert found["features"][0]["geometry"] == documents.point()
    properties = found["features"][0]["properties"]
    assert properties["@iot.id"] == entities[0]["@iot.id"]
    assert not any(key.endswith("navigationLink") for key in properties)


def test_geojson_without_a_geometry_has_null(api, city):
    (feature,) = api.get(f"/Things?$resultFormat=GeoJSON&$filter=id eq {city.nowhere}")["features"]
    assert feature["geometry"] is None
    assert feature["properties"]["name"] == "Nowhere"


def test_geojson_understands_a_feature_and_what_is_no_geometry(api, documents):
    feature = {"type": "Feature", "geometry": documents.point(1, 2), "properties": {}}
    made = [
        api.create("/Locations", documents.location(f"Odd {n}", location=location))
        for n, location in enumerate([feature, "Main Street 1", {"type": "Elsewhere"}, [1, 2]])
    ]
    found = api.get(f"/Locations?$resultFormat=GeoJSON&$filter=id ge {made[0]}")["features"]
    assert [f["geometry"] for f in found] == [documents.point(1, 2), None, None, None]


def test_geojson_holds_what_is_expanded(api):
    path = "/Things?$resultFormat=GeoJSON&$expand=Datastreams($select=name)&$select=name&$orderby=id&$top=1"
    (feature,) = api.get(path)["features"]
    assert feature["properties"] == {"name": QUOTED, "Datastreams": [{"name": "Formats"}]}


def test_head_has_no_content(api):
    response = api.request("HEAD", "/Things?$resultFormat=CSV")
    assert (response.status_code, response.content) == (200, b"")
