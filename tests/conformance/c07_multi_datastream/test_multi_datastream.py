"""MultiDatastreams (OGC 18-088 §13): several properties at once, results that are arrays."""

import pytest

COMPLEX = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_ComplexObservation"
MEASUREMENT = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement"
UNITS = [
    {"name": "degree", "symbol": "°", "definition": "ucum:deg"},
    {"name": "metre per second", "symbol": "m/s", "definition": "ucum:m/s"},
]


def multi(documents, name="Wind", **more):
    document = {
        "name": name,
        "description": "direction and speed",
        "observationType": COMPLEX,
        "unitOfMeasurements": UNITS,
        "multiObservationDataTypes": [MEASUREMENT, MEASUREMENT],
        "Thing": documents.thing(f"{name}'s thing", Locations=[documents.location(f"{name}'s place")]),
        "Sensor": documents.sensor(f"{name}'s sensor"),
        "ObservedProperties": [
            documents.observed_property(f"{name}'s direction"),
            documents.observed_property(f"{name}'s speed"),
        ],
    }
    return document | more


@pytest.fixture(scope="module")
def wind(api, documents):
    """A MultiDatastream with two Observations."""
    own = api.create("/MultiDatastreams", multi(documents))
    for hour, result in ((3, [270, 4.5]), (5, [90.0, 12])):
        document = {
            "phenomenonTime": f"2024-01-01T0{hour}:00:00Z",
            "resultTime": f"2024-01-01T0{hour}:30:00Z",
            "result": result,
        }
        api.create(f"/MultiDatastreams({own})/Observations", document)
    return own


@pytest.fixture(scope="module")
def stream(api, documents):
    """A Datastream beside it, with one Observation."""
    own = api.create("/Datastreams", documents.whole_datastream("Plain"))
    api.create(f"/Datastreams({own})/Observations", {"phenomenonTime": "2024-01-01T04:00:00Z", "result": 1})
    return own


def test_properties(api, documents, wind):
    """req/multi-datastream/properties."""
    entity = api.get(f"/MultiDatastreams({wind})")
    document = multi(documents)
    for name in (
        "name",
        "description",
        "observationType",
        "unitOfMeasurements",
        "multiObservationDataTypes",
    ):
        assert entity[name] == document[name]
    assert entity["phenomenonTime"] == "2024-01-01T03:00:00Z/2024-01-01T05:00:00Z"
    assert entity["resultTime"] == "2024-01-01T03:30:00Z/2024-01-01T05:30:00Z"
    assert entity["observedArea"] == documents.point()
    assert "properties" not in entity
    assert entity["@iot.selfLink"] == f"{api.root}/MultiDatastreams({wind})"


def test_the_observation_type_is_known_if_it_is_not_given(api, documents):
    document = multi(documents, "Untyped", properties={"a": 1})
    del document["observationType"]
    own = api.create("/MultiDatastreams", document)
    assert api.get(f"/MultiDatastreams({own})")["observationType"] == COMPLEX
    assert api.get(f"/MultiDatastreams({own})")["properties"] == {"a": 1}


@pytest.mark.parametrize(
    "missing",
    [
        "name",
        "description",
        "unitOfMeasurements",
        "multiObservationDataTypes",
        "Thing",
        "Sensor",
        "ObservedProperties",
    ],
)
def test_what_is_mandatory(api, documents, missing):
    """req/multi-datastream/properties, req/multi-datastream/relations."""
    document = multi(documents)
    del document[missing]
    assert api.post("/MultiDatastreams", document).status_code == 400


def test_relations_lead_both_ways(api, wind):
    """req/multi-datastream/relations."""
    entity = api.get(f"/MultiDatastreams({wind})")
    links = {key.partition("@")[0] for key in entity if key.endswith("@iot.navigationLink")}
    assert links == {"Thing", "Sensor", "ObservedProperties", "Observations"}
    for name, many in (("Thing", "Things"), ("Sensor", "Sensors")):
        other = api.absolute(entity[f"{name}@iot.navigationLink"])
        assert api.ids(f"/{many}({other['@iot.id']})/MultiDatastreams") == [wind]
        assert api.absolute(other["MultiDatastreams@iot.navigationLink"])["value"] == [entity]
        assert api.ids(f"/{many}({other['@iot.id']})/Datastreams") == []
    for other in api.absolute(entity["ObservedProperties@iot.navigationLink"])["value"]:
        assert api.ids(f"/ObservedProperties({other['@iot.id']})/MultiDatastreams") == [wind]
    first, second = api.values(f"/MultiDatastreams({wind})/Observations")
    assert (first["result"], second["result"]) == ([270, 4.5], [90.0, 12])
    assert api.get(f"/Observations({first['@iot.id']})/MultiDatastream") == entity


def test_the_order_of_the_properties_is_kept(api, documents):
    """req/multi-datastream/constraints: units, types and ObservedProperties go by the same order."""
    first, second, third = (api.create("/ObservedProperties", documents.observed_property(n)) for n in "abc")
    for order in ([third, first, second], [second, third, first], [first, first, second]):
        document = multi(
            documents,
            "Ordered",
            unitOfMeasurements=[*UNITS, UNITS[0]],
            multiObservationDataTypes=[MEASUREMENT] * 3,
            ObservedProperties=[{"@iot.id": own} for own in order],
        )
        own = api.create("/MultiDatastreams", document)
        assert api.ids(f"/MultiDatastreams({own})/ObservedProperties") == order
        page = api.get(f"/MultiDatastreams({own})/ObservedProperties?$top=2&$count=true")
        assert page["@iot.count"] == 3
        assert [e["@iot.id"] for e in page["value"]] == order[:2]
        assert [e["@iot.id"] for e in api.absolute(page["@iot.nextLink"])["value"]] == order[2:]
        assert [
            e["@iot.id"] for e in api.walk(f"/MultiDatastreams({own})/ObservedProperties?$top=1")
        ] == order
        expanded = api.get(f"/MultiDatastreams({own})?$expand=ObservedProperties($select=id;$count=true)")
        assert [e["@iot.id"] for e in expanded["ObservedProperties"]] == order
        assert expanded["ObservedProperties@iot.count"] == 3
        by_name = api.ids(f"/MultiDatastreams({own})/ObservedProperties?$orderby=name desc")
        assert by_name == sorted(order, reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"unitOfMeasurements": UNITS[:1]},
        {"unitOfMeasurements": []},
        {"unitOfMeasurements": UNITS[0]},
        {"multiObservationDataTypes": [MEASUREMENT] * 3},
        {"multiObservationDataTypes": MEASUREMENT},
        {"ObservedProperties": []},
        {"ObservedProperties": [{"@iot.id": 999_999}, {"@iot.id": 999_998}]},
    ],
)
def test_sizes_that_do_not_agree_are_refused(api, documents, wrong):
    """req/multi-datastream/constraints."""
    before = api.get("/Things?$count=true&$top=0")["@iot.count"]
    assert api.post("/MultiDatastreams", multi(documents, "Wrong", **wrong)).status_code == 400
    assert api.get("/Things?$count=true&$top=0")["@iot.count"] == before


def test_a_property_cannot_join_later(api, documents, wind):
    """req/multi-datastream/constraints: there is no unit for it."""
    document = documents.observed_property("late")
    assert api.post(f"/MultiDatastreams({wind})/ObservedProperties", document).status_code == 400
    linked = document | {"MultiDatastreams": [{"@iot.id": wind}]}
    assert api.post("/ObservedProperties", linked).status_code == 400
    of_another = api.create("/ObservedProperties", document)
    for links, status in ([{"@iot.id": wind}], 400), ([], 200):
        response = api.request(
            "PATCH", f"/ObservedProperties({of_another})", json={"MultiDatastreams": links}
        )
        assert response.status_code == status, response.text
    assert len(api.ids(f"/MultiDatastreams({wind})/ObservedProperties")) == 2


@pytest.mark.parametrize("result", ["1", "null", '"12"', "[1]", "[1, 2, 3]", "[]", '{"a": 1, "b": 2}'])
def test_a_result_of_another_size_is_refused(api, wind, result):
    """req/multi-datastream/constraints."""
    for path, more in (
        (f"/MultiDatastreams({wind})/Observations", ""),
        ("/Observations", f', "MultiDatastream": {{"@iot.id": {wind}}}'),
    ):
        response = api.post(path, f'{{"result": {result}{more}}}')
        assert response.status_code == 400, response.text


@pytest.mark.parametrize(
    "result", ["[1, 2]", "[-50, 6.0]", '["a", {"b": [1]}]', "[null, true]", "[12345678901234567890, 1.230]"]
)
def test_a_result_comes_back_exactly(api, documents, result):
    own = api.create("/MultiDatastreams", multi(documents, "Exact"))
    made = api.create(f"/MultiDatastreams({own})/Observations", f'{{"result": {result}}}')
    assert api.response(f"/Observations({made})/result/$value").text == result
    assert f'"result":{result}' in api.response(f"/Observations({made})").text


def test_an_observation_has_one_or_the_other(api, wind, stream):
    """req/multi-datastream/constraints."""
    both = {"result": [1, 2], "MultiDatastream": {"@iot.id": wind}, "Datastream": {"@iot.id": stream}}
    assert api.post("/Observations", both).status_code == 400
    assert api.post("/Observations", {"result": [1, 2]}).status_code == 400
    of_other = {"result": [1, 2], "MultiDatastream": {"@iot.id": wind}}
    assert api.post(f"/Datastreams({stream})/Observations", of_other).status_code == 400
    of_stream = {"result": [1, 2], "Datastream": {"@iot.id": stream}}
    assert api.post(f"/MultiDatastreams({wind})/Observations", of_stream).status_code == 400


def test_neither_is_found_as_the_other(api, wind, stream):
    assert wind not in api.ids("/Datastreams")
    assert stream not in api.ids("/MultiDatastreams")
    assert api.status(f"/Datastreams({wind})") == 404
    assert api.status(f"/Datastreams({wind})/Observations") == 404
    assert api.status(f"/MultiDatastreams({stream})") == 404
    assert api.post("/Observations", {"result": 1, "Datastream": {"@iot.id": wind}}).status_code == 400
    assert (
        api.post("/Observations", {"result": [1, 2], "MultiDatastream": {"@iot.id": stream}}).status_code
        == 400
    )
    of_multi = api.values(f"/MultiDatastreams({wind})/Observations")[0]
    (of_stream,) = api.values(f"/Datastreams({stream})/Observations")
    assert "Datastream@iot.navigationLink" not in of_multi
    assert "MultiDatastream@iot.navigationLink" not in of_stream
    assert of_stream["Datastream@iot.navigationLink"] == f"{of_stream['@iot.selfLink']}/Datastream"
    assert api.status(f"/Observations({of_multi['@iot.id']})/Datastream") == 204
    expanded = api.get(f"/Observations({of_multi['@iot.id']})?$expand=Datastream,MultiDatastream/Thing")
    assert expanded["Datastream"] is None
    assert expanded["MultiDatastream"]["Thing"]["name"] == "Wind's thing"


def test_filters_tell_them_apart(api, wind, stream):
    multis = [[270, 4.5], [90.0, 12]]

    def found(text):
        query = f"/Observations?$orderby=phenomenonTime&$filter={text}"
        some = f"(MultiDatastream/id eq {wind} or Datastream/id eq {stream})"
        return [o["result"] for o in api.values(f"{query} and {some}")]

    assert found("MultiDatastream ne null") == multis
    assert found("Datastream eq null") == multis
    assert found("Datastream ne null") == found("not (MultiDatastream ne null)") == [1]
    assert found(f"Datastream/id eq {wind}") == []
    assert found(f"Datastream/id in ({wind}, {stream})") == [1]
    assert found(f"Datastream/id ne {stream + 1}") == [1]
    assert found(f"not (Datastream/id eq {stream + 1})") == [1]
    assert found(f"not (Datastream/id add 0 eq {stream} or MultiDatastream/id eq {wind + 1})") == []
    assert found(f"MultiDatastream/@iot.id eq {wind}") == multis
    assert found("MultiDatastream/name eq 'Wind'") == multis
    assert found("Datastream/name eq 'Plain'") == [1]
    assert api.ids("/MultiDatastreams?$filter=Observations/result[1] eq 12") == [wind]
    assert api.ids("/Things?$filter=MultiDatastreams/name eq 'Wind'") == api.ids(
        "/Things?$filter=name eq 'Wind''s thing'"
    )
    ordered = api.values("/Observations?$orderby=Datastream/id,phenomenonTime")
    assert {o["@iot.id"] for o in ordered} == set(api.ids("/Observations"))
    named = f"id eq {wind} and ObservedProperties/any(p: p/name eq 'Wind''s speed')"
    assert api.ids(f"/MultiDatastreams?$filter={named}") == [wind]


def test_elements_of_a_result(api, wind):
    """req/resource-path/resource-path-to-entities: `result[0]` in paths, filters, orders and selections."""
    root = f"/MultiDatastreams({wind})/Observations"
    first, second = api.ids(root)
    assert api.get(f"/Observations({first})/result[1]") == {"result[1]": 4.5}
    assert api.get(f"/Observations({first})/result%5B0%5D") == {"result[0]": 270}
    assert api.response(f"/Observations({second})/result[1]/$value").text == "12"
    assert api.status(f"/Observations({first})/result[2]") == 404
    assert api.ids(f"{root}?$filter=result[0] gt 100") == [first]
    assert api.ids(f"{root}?$filter=result[1] eq 12 and result[0] lt 91") == [second]
    assert api.ids(f"{root}?$filter=result[2] eq 12") == []
    assert api.ids(f"{root}?$filter=result[0] add result[1] gt 200") == [first]
    assert api.ids(f"{root}?$orderby=result[0]") == [second, first]
    assert api.ids(f"{root}?$orderby=result[1]") == [first, second]
    assert api.values(f"{root}?$select=result[0],id") == [
        {"@iot.id": first, "result[0]": 270},
        {"@iot.id": second, "result[0]": 90.0},
    ]
    assert api.values(f"{root}?$select=result[1],result[0]&$top=1") == [{"result[1]": 4.5, "result[0]": 270}]
    (unit,) = api.values(f"/MultiDatastreams?$filter=id eq {wind}&$select=unitOfMeasurements[1]/symbol")
    assert unit == {"unitOfMeasurements[1]": {"symbol": "m/s"}}
    assert api.ids(f"/MultiDatastreams?$filter=id eq {wind} and unitOfMeasurements[0]/symbol eq '°'") == [
        wind
    ]
    assert api.get(f"/MultiDatastreams({wind})/unitOfMeasurements[0]/symbol") == {"symbol": "°"}


def test_an_element_of_what_is_no_array_is_none(api, stream):
    own = api.create(f"/Datastreams({stream})/Observations", {"result": "text"})
    assert api.ids(f"/Observations?$filter=result[0] eq 'text' and id eq {own}") == []
    assert api.status(f"/Observations({own})/result[0]") == 404
    assert api.values(f"/Observations?$filter=id eq {own}&$select=id,result[0]") == [{"@iot.id": own}]


def test_deep_insert_in_both_directions(api, documents):
    """req/create-update-delete/deep-insert."""
    parts = {name: value for name, value in multi(documents, "Deep").items() if name != "Thing"}
    observations = [{"phenomenonTime": "2024-01-01T00:00:00Z", "result": [1, 2]}]
    document = documents.thing(
        "Deep thing",
        Locations=[documents.location("Deep place")],
        MultiDatastreams=[parts | {"Observations": observations}],
    )
    own = api.create("/Things", document)
    (found,) = api.values(
        f"/Things({own})/MultiDatastreams?$expand=ObservedProperties,Sensor,Observations/FeatureOfInterest"
    )
    assert [p["name"] for p in found["ObservedProperties"]] == ["Deep's direction", "Deep's speed"]
    assert found["Observations"][0]["FeatureOfInterest"]["name"] == "Deep place"
    made = api.create("/Observations", {"result": [3, 4], "MultiDatastream": multi(documents, "Up")})
    assert api.get(f"/Observations({made})/MultiDatastream/Sensor")["name"] == "Up's sensor"
    wrong = {"Observations": [{"result": [1]}]}
    assert api.post("/MultiDatastreams", multi(documents, "Wrong", **wrong)).status_code == 400
    nested = {"Observations": [{"result": [1, 2], "Datastream": {"@iot.id": 1}}]}
    assert api.post("/MultiDatastreams", multi(documents, "Wrong", **nested)).status_code == 400


def test_deep_insert_from_an_observed_property(api, documents):
    """req/create-update-delete/deep-insert: the one around is the last of its properties, unless they name it."""
    other = api.create("/ObservedProperties", documents.observed_property("given"))
    parts = multi(documents, "Inside", ObservedProperties=[{"@iot.id": other}])
    own = api.create("/ObservedProperties", documents.observed_property("around", MultiDatastreams=[parts]))
    (made,) = api.ids(f"/ObservedProperties({own})/MultiDatastreams")
    assert api.ids(f"/MultiDatastreams({made})/ObservedProperties") == [other, own]
    parts["ObservedProperties"] = [{"@iot.id": own}, {"@iot.id": other}]
    made = api.create(f"/ObservedProperties({own})/MultiDatastreams", parts)
    assert api.ids(f"/MultiDatastreams({made})/ObservedProperties") == [own, other]
    one = multi(documents, "Alone", unitOfMeasurements=UNITS[:1], multiObservationDataTypes=[MEASUREMENT])
    del one["ObservedProperties"]
    made = api.create(f"/ObservedProperties({own})/MultiDatastreams", one)
    assert api.ids(f"/MultiDatastreams({made})/ObservedProperties") == [own]


def test_a_data_array_names_the_one_or_the_other(api, wind, stream):
    """req/data-array/data-array."""
    some = f"(MultiDatastream/id eq {wind} or Datastream/id eq {stream}) and phenomenonTime lt 2025-01-01T00:00:00Z"
    page = api.get(f"/Observations?$resultFormat=dataArray&$select=result&$orderby=id&$filter={some}")
    groups = {key: group for group in page["value"] for key in group if key.endswith("navigationLink")}
    assert groups.keys() == {"MultiDatastream@iot.navigationLink", "Datastream@iot.navigationLink"}
    of_multi = groups["MultiDatastream@iot.navigationLink"]
    assert of_multi["MultiDatastream@iot.navigationLink"] == f"{api.root}/MultiDatastreams({wind})"
    assert of_multi["dataArray"] == [[[270, 4.5]], [[90.0, 12]]]
    of_stream = groups["Datastream@iot.navigationLink"]
    assert of_stream["Datastream@iot.navigationLink"] == f"{api.root}/Datastreams({stream})"


def test_counts(api, wind):
    assert api.get(f"/MultiDatastreams({wind})/Observations?$count=true&$top=0")["@iot.count"] == 2
    page = api.get("/Observations?$count=true&$top=0")
    assert page["@iot.count"] == len(api.walk("/Observations"))
    expanded = api.get(f"/MultiDatastreams({wind})?$expand=Observations($count=true;$top=1)")
    assert expanded["Observations@iot.count"] == 2
    assert len(api.absolute(expanded["Observations@iot.nextLink"])["value"]) == 1


def test_many_observations_at_once(api, documents):
    """req/data-array/data-array: CreateObservations takes groups of a MultiDatastream, and refuses wrong sizes."""
    own = api.create("/MultiDatastreams", multi(documents, "Bulk"))
    group = {
        "MultiDatastream": {"@iot.id": own},
        "components": ["phenomenonTime", "result"],
        "dataArray": [
            ["2024-01-01T00:00:00Z", [1, 2]],
            ["2024-01-01T01:00:00Z", [1]],
            ["2024-01-01T02:00:00Z", 5],
            ["2024-01-01T03:00:00Z", [3, 4.0]],
        ],
    }
    made = api.post("/CreateObservations", [group]).json()
    assert [text.startswith("error") for text in made] == [False, True, True, False]
    assert [o["result"] for o in api.values(f"/MultiDatastreams({own})/Observations")] == [[1, 2], [3, 4.0]]


def test_changes_and_deletions(api, documents):
    """req/multi-datastream/constraints; req/create-update-delete/update-entity, .../delete-entity."""
    own = api.create("/MultiDatastreams", multi(documents, "Changing"))
    made = api.create(f"/MultiDatastreams({own})/Observations", {"result": [1, 2]})
    path = f"/MultiDatastreams({own})"
    assert api.request("PATCH", path, json={"name": "Changed"}).status_code == 200
    assert api.request("PATCH", path, json={"unitOfMeasurements": UNITS[:1]}).status_code == 400
    assert api.request("PATCH", f"/Observations({made})", json={"result": [1]}).status_code == 400
    assert api.request("PATCH", f"/Observations({made})", json={"result": [5, 6]}).status_code == 200
    assert api.get(f"/Observations({made})/result[1]") == {"result[1]": 6}
    whole = {name: value for name, value in multi(documents, "Put").items() if name[0].islower()}
    del whole["observationType"]
    assert api.request("PUT", path, json=whole).status_code == 200
    assert api.get(path)["name"] == "Put"
    assert api.get(path)["observationType"] == COMPLEX
    operation = [{"op": "replace", "path": "/unitOfMeasurements/0/symbol", "value": "rad"}]
    patched = api.request(
        "PATCH", path, json=operation, headers={"Content-Type": "application/json-patch+json"}
    )
    assert patched.status_code == 200, patched.text
    assert api.get(f"{path}/unitOfMeasurements[0]/symbol") == {"symbol": "rad"}
    (first, _) = api.ids(f"{path}/ObservedProperties")
    assert api.request("DELETE", f"/ObservedProperties({first})").status_code == 200
    assert api.status(path) == 404
    assert api.status(f"/Observations({made})") == 404
