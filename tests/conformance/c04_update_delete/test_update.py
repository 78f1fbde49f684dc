"""Changing entities (OGC 18-088 §10.3)."""

import pytest

MAKERS = [
    ("/Things", "thing"),
    ("/Locations", "location"),
    ("/Sensors", "sensor"),
    ("/ObservedProperties", "observed_property"),
    ("/FeaturesOfInterest", "feature"),
    ("/Datastreams", "whole_datastream"),
]
PATCH = "application/json-patch+json"


def patch(api, path, document, **headers):
    return api.request("PATCH", path, json=document, headers=headers)


def changed(api, path, document, method="PATCH"):
    """Change an entity; what the answer says is what is there afterwards."""
    response = api.request(method, path, json=document)
    assert response.status_code == 200, response.text
    assert response.json() == api.get(path)
    return response.json()


def json_patch(api, path, *operations):
    return api.request("PATCH", path, json=list(operations), headers={"content-type": PATCH})


def observed(api, documents, name, **more):
    """A Datastream with one Observation: both ids."""
    stream = api.create("/Datastreams", documents.whole_datastream(name))
    document = {"phenomenonTime": "2024-01-01T00:00:00Z", "result": 1} | more
    return stream, api.create(f"/Datastreams({stream})/Observations", document)


@pytest.mark.parametrize(("path", "maker"), MAKERS)
def test_a_patch_merges_top_level_properties(api, documents, path, maker):
    """req/create-update-delete/update-entity: properties that are not named stay as they are."""
    own = api.create(path, getattr(documents, maker)(properties={"a": 1, "b": {"c": 2}}))
    before = api.get(f"{path}({own})")
    after = changed(api, f"{path}({own})", {"description": "another", "properties": {"b": {"d": 6.0}}})
    assert after == before | {"description": "another", "properties": {"b": {"d": 6.0}}}
    assert "6.0" in api.response(f"{path}({own})").text
    assert "properties" not in changed(api, f"{path}({own})", {"properties": None})


@pytest.mark.parametrize(("path", "maker"), MAKERS)
def test_a_put_replaces_what_it_does_not_name_and_keeps_relations(api, documents, path, maker):
    """req/create-update-delete/update-entity-put."""
    document = getattr(documents, maker)("first", properties={"a": 1})
    own = api.create(path, document)
    before = api.get(f"{path}({own})")
    own_properties = {k: v for k, v in document.items() if k[0].islower() and k != "properties"}
    after = changed(
        api, f"{path}({own})", own_properties | {"name": "second", "@iot.id": 77, "@iot.selfLink": "x"}, "PUT"
    )
    assert after == {k: v for k, v in before.items() if k != "properties"} | {"name": "second"}
    if path == "/Datastreams":
        assert api.get(f"{path}({own})/Thing")["name"] == "first's thing"
    missing = {k: v for k, v in own_properties.items() if k != "description"}
    assert api.request("PUT", f"{path}({own})", json=missing).status_code == 400


def test_an_observation_is_changed_and_keeps_its_id(api, documents):
    """req/create-update-delete/update-entity: the type of a result may change; computed properties follow."""
    stream, own = observed(api, documents, "Changing", resultTime="2024-01-01T00:01:00Z")
    for result in ("6.0", '"text"', "true", "null", '{"a":[1.10]}', "12345678901234567890123456789"):
        response = api.request("PATCH", f"/Observations({own})", content=f'{{"result": {result}}}')
        assert response.status_code == 200
        assert f'"result":{result}' in api.response(f"/Observations({own})").text.replace(": ", ":")
    after = changed(
        api, f"/Observations({own})", {"phenomenonTime": "2025-01-01T00:00:00Z/2025-01-02T00:00:00Z"}
    )
    assert after["resultTime"] == "2024-01-01T00:01:00Z"
    assert after["@iot.id"] == own
    found = api.get(f"/Datastreams({stream})")
    assert found["phenomenonTime"] == "2025-01-01T00:00:00Z/2025-01-02T00:00:00Z"
    changed(api, f"/Observations({own})", {"resultTime": None, "parameters": {"x": 1}})
    assert "resultTime" not in api.get(f"/Datastreams({stream})")
    whole = changed(
        api, f"/Observations({own})", {"phenomenonTime": "2026-01-01T00:00:00Z", "result": 5}, "PUT"
    )
    assert "parameters" not in whole
    assert api.get(f"/Observations({own})/Datastream")["@iot.id"] == stream


def test_an_observation_moves_to_another_datastream(api, documents):
    one, own = observed(api, documents, "From")
    other, _ = observed(api, documents, "To")
    changed(api, f"/Observations({own})", {"Datastream": {"@iot.id": other}})
    assert api.values(f"/Datastreams({one})/Observations") == []
    assert own in api.ids(f"/Datastreams({other})/Observations")
    assert "phenomenonTime" not in api.get(f"/Datastreams({one})")
    assert api.get(f"/Datastreams({other})/Observations?$count=true")["@iot.count"] == 2


def test_links_are_changed_by_id(api, documents):
    """req/create-update-delete/update-entity: a link replaces a to-one relation, and adds to one to many."""
    stream, own = observed(api, documents, "Linked")
    sensor = api.create("/Sensors", documents.sensor("Another"))
    changed(api, f"/Datastreams({stream})", {"Sensor": {"@iot.id": sensor}})
    assert api.get(f"/Datastreams({stream})/Sensor")["@iot.id"] == sensor
    feature = api.create("/FeaturesOfInterest", documents.feature("Another"))
    changed(api, f"/Observations({own})", {"FeatureOfInterest": {"@iot.id": feature}})
    assert api.ids(f"/FeaturesOfInterest({feature})/Observations") == [own]
    thing = api.create("/Things", documents.thing())
    changed(api, f"/Things({thing})", {"Datastreams": [{"@iot.id": stream}]})
    assert api.ids(f"/Things({thing})/Datastreams") == [stream]
    assert patch(api, f"/Datastreams({stream})", {"Sensor": {"@iot.id": 10**12}}).status_code == 400
    assert api.get(f"/Datastreams({stream})/Sensor")["@iot.id"] == sensor


def test_locations_of_a_thing_are_replaced_and_kept_in_a_historical_location(api, documents):
    """req/create-update-delete/historical-location-auto-creation."""
    own = api.create("/Things", documents.thing(Locations=[documents.location("first")]))
    other = api.create("/Locations", documents.location("second"))
    changed(api, f"/Things({own})", {"Locations": [{"@iot.id": other}]})
    assert api.ids(f"/Things({own})/Locations") == [other]
    history = api.values(f"/Things({own})/HistoricalLocations?$expand=Locations&$orderby=id")
    assert [[place["name"] for place in h["Locations"]] for h in history] == [["first"], ["second"]]
    changed(api, f"/Things({own})", {"Locations": [{"@iot.id": other}]})
    assert len(api.values(f"/Things({own})/HistoricalLocations")) == 2
    third = api.create("/Things", documents.thing())
    changed(api, f"/Locations({other})", {"Things": [{"@iot.id": third}]})
    assert api.ids(f"/Things({third})/Locations") == [other]
    assert api.ids(f"/Things({own})/Locations") == [other]


def test_a_historical_location_that_becomes_the_latest_moves_the_thing(api, documents):
    own = api.create("/Things", documents.thing(Locations=[documents.location("now")]))
    place = api.create("/Locations", documents.location("then"))
    document = {"time": "2020-01-01T00:00:00Z", "Thing": {"@iot.id": own}, "Locations": [{"@iot.id": place}]}
    made = api.create("/HistoricalLocations", document)
    assert api.values(f"/Things({own})/Locations")[0]["name"] == "now"
    changed(api, f"/HistoricalLocations({made})", {"time": "2100-01-01T00:00:00Z"})
    assert api.ids(f"/Things({own})/Locations") == [place]


@pytest.mark.parametrize(
    "document",
    [
        {"Locations": [{"name": "new", "description": "d", "encodingType": "x", "location": 1}]},
        {"Datastreams": [{"name": "new"}]},
        {"nom": "x"},
        {"name": None},
        {"name": 5},
        {"properties": []},
        [],
        "name",
    ],
)
def test_a_patch_that_cannot_be_changes_nothing(api, documents, document):
    """req/create-update-delete/update-entity: no related entities inline; req/request-data/status-code."""
    own = api.create("/Things", documents.thing())
    before = api.get(f"/Things({own})")
    assert patch(api, f"/Things({own})", document).status_code == 400
    assert api.request("PUT", f"/Things({own})", json=document).status_code == 400
    assert api.get(f"/Things({own})") == before


def test_a_related_entity_that_is_described_is_refused_for_that(api, documents):
    """req/create-update-delete/update-entity: not for what its description lacks."""
    own = api.create("/Things", documents.thing())
    for document in ({"Datastreams": [{"name": "new"}]}, {"Locations": [{}]}):
        response = patch(api, f"/Things({own})", document)
        assert response.status_code == 400
        assert "can only be linked" in response.json()["message"]


def test_a_patch_of_nothing_changes_nothing(api, documents):
    _, own = observed(api, documents, "Nothing")
    before = api.get(f"/Observations({own})")
    assert changed(api, f"/Observations({own})", {"@iot.id": 1, "@iot.selfLink": "x"}) == before


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
def test_what_does_not_exist_or_belong_together_is_not_found(api, documents, method):
    """req/resource-path/resource-path-to-entities, for every verb."""
    stream, own = observed(api, documents, "Nested")
    thing = api.create("/Things", documents.thing())
    document = {"name": "n", "description": "d"}
    for path in (
        "/Things(9223372036854775807)",
        f"/Things({thing})/Datastreams({stream})",
        f"/Datastreams({stream})/Observations(999999999)",
        f"/Things({thing})/Datastreams({stream})/Observations({own})",
        "/Nothings(1)",
    ):
        response = api.request(method, path, json=document)
        assert response.status_code == 404, f"{path}: {response.text}"
    assert api.get(f"/Observations({own})")["result"] == 1


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_only_entities_are_changed(api, documents, method):
    own = api.create("/Things", documents.thing())
    for path in ("/Things", f"/Things({own})/name", f"/Things({own})/$ref"):
        assert api.request(method, path, json={"name": "x"}).status_code == 405


def test_entities_are_changed_and_deleted_on_nested_paths(api, documents):
    stream, own = observed(api, documents, "Path")
    thing = api.get(f"/Datastreams({stream})/Thing")["@iot.id"]
    path = f"/Things({thing})/Datastreams({stream})/Observations({own})"
    assert patch(api, path, {"result": 2}).json()["result"] == 2
    assert patch(api, f"/Observations({own})/Datastream", {"name": "renamed"}).json()["name"] == "renamed"
    assert api.get(f"/Datastreams({stream})")["name"] == "renamed"
    assert api.request("DELETE", path).status_code == 200
    assert api.status(path) == 404


# JSON Patch ----------------------------------------------------------------------------------------------------------


def test_a_json_patch_changes_parts(api, documents):
    """req/create-update-delete/update-entity-jsonpatch."""
    own = api.create("/Things", documents.thing("Patched", properties={"a": 6.0, "list": [1, 2]}))
    response = json_patch(
        api,
        f"/Things({own})",
        {"op": "test", "path": "/properties/a", "value": 6},
        {"op": "replace", "path": "/name", "value": "other"},
        {"op": "add", "path": "/properties/list/-", "value": 3},
        {"op": "add", "path": "/properties/a~1b", "value": None},
        {"op": "copy", "from": "/properties/list", "path": "/properties/again"},
    )
    assert response.status_code == 200, response.text
    found = api.response(f"/Things({own})")
    assert found.json() == response.json()
    assert found.json()["name"] == "other"
    assert found.json()["properties"] == {"a": 6.0, "list": [1, 2, 3], "a/b": None, "again": [1, 2, 3]}
    assert "6.0" in found.text
    assert json_patch(api, f"/Things({own})", {"op": "remove", "path": "/properties"}).status_code == 200
    assert "properties" not in api.get(f"/Things({own})")


def test_a_json_patch_whose_test_fails_changes_nothing(api, documents):
    _, own = observed(api, documents, "Tested")
    replace = {"op": "replace", "path": "/result", "value": 5}
    refused = json_patch(api, f"/Observations({own})", replace, {"op": "test", "path": "/result", "value": 6})
    assert refused.status_code == 409
    assert api.get(f"/Observations({own})")["result"] == 1
    assert json_patch(api, f"/Observations({own})", {"op": "remove", "path": "/nothing"}).status_code == 400
    assert (
        json_patch(api, f"/Observations({own})", {"op": "add", "path": "/nom", "value": 1}).status_code == 400
    )
    assert json_patch(api, f"/Observations({own})", replace).json()["result"] == 5


def test_a_json_patch_changes_links(api, documents):
    stream, own = observed(api, documents, "Patched link")
    other, _ = observed(api, documents, "Patched link's target")
    link = {"op": "add", "path": "/Datastream", "value": {"@iot.id": other}}
    assert json_patch(api, f"/Observations({own})", link).status_code == 200
    assert api.get(f"/Observations({own})/Datastream")["@iot.id"] == other
    assert api.values(f"/Datastreams({stream})/Observations") == []


def test_another_kind_of_patch_is_not_known(api, documents):
    own = api.create("/Things", documents.thing())
    response = patch(
        api, f"/Things({own})", {"name": "x"}, **{"content-type": "application/merge-patch+json"}
    )
    assert response.status_code == 415


# Entity tags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "maker"), MAKERS)
def test_an_entity_tag_holds_until_the_entity_changes(api, documents, path, maker):
    made = api.post(path, getattr(documents, maker)("Tagged"))
    own = f"{path}({made.json()['@iot.id']})"
    tag = made.headers["etag"]
    assert api.response(own).headers["etag"] == tag == api.response(f"{own}?$select=name").headers["etag"]
    after = patch(api, own, {"description": "x"}, **{"if-match": tag})
    assert after.status_code == 200
    assert after.headers["etag"] == api.response(own).headers["etag"] != tag
    for method in ("PATCH", "PUT", "DELETE"):
        response = api.request(method, own, json={"description": "y"}, headers={"if-match": tag})
        assert response.status_code == 412, response.text
    assert api.get(own)["description"] == "x"
    assert (
        patch(api, own, {"description": "y"}, **{"if-match": f'"a", {after.headers["etag"]}'}).status_code
        == 200
    )
    assert patch(api, own, {"description": "z"}, **{"if-match": "*"}).status_code == 200
    assert patch(api, own, {"description": "z"}, **{"if-none-match": "*"}).status_code == 412
    assert (
        api.request("DELETE", own, headers={"if-match": api.response(own).headers["etag"]}).status_code == 200
    )


def test_a_client_that_has_an_entity_is_not_given_it_again(api, documents):
    _, own = observed(api, documents, "Known")
    tag = api.response(f"/Observations({own})").headers["etag"]
    again = api.request("GET", f"/Observations({own})", headers={"if-none-match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    patch(api, f"/Observations({own})", {"result": 9})
    assert api.request("GET", f"/Observations({own})", headers={"if-none-match": tag}).json()["result"] == 9


def test_new_observations_do_not_change_the_tag_of_their_datastream(api, documents):
    stream, _ = observed(api, documents, "Growing")
    tag = api.response(f"/Datastreams({stream})").headers["etag"]
    api.create(
        f"/Datastreams({stream})/Observations", {"phenomenonTime": "2025-01-01T00:00:00Z", "result": 2}
    )
    found = api.request("GET", f"/Datastreams({stream})", headers={"if-none-match": tag})
    assert found.json()["phenomenonTime"] == "2024-01-01T00:00:00Z/2025-01-01T00:00:00Z"
    assert patch(api, f"/Datastreams({stream})", {"name": "x"}, **{"if-match": tag}).status_code == 200
