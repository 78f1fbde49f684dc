"""`$resultFormat=dataArray` (OGC 18-088 §11.2)."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("rows")

ARRAY = "$resultFormat=dataArray"


def records(answer):
    """The rows of all groups as objects, each with its group's link."""
    found = []
    for group in answer["value"]:
        assert group["dataArray@iot.count"] == len(group["dataArray"])
        for row in group["dataArray"]:
            assert len(row) == len(group["components"])
            found.append(
                dict(zip(group["components"], row, strict=True))
                | {"Datastream": group["Datastream@iot.navigationLink"]}
            )
    return found


def test_observations_come_in_groups(api, rows):
    """req/data-array/data-array: groups with the Datastream's link, components, a count and the rows."""
    answer = api.get(f"/Observations?{ARRAY}")
    assert set(answer) == {"value"}
    links = [group["Datastream@iot.navigationLink"] for group in answer["value"]]
    assert links == [f"{api.root}/Datastreams({stream})" for stream in rows.streams]
    assert [g["dataArray@iot.count"] for g in answer["value"]] == [3, 3]
    assert answer["value"][0]["components"][:2] == ["id", "phenomenonTime"]
    assert api.client.get(links[0]).status_code == 200


def test_a_data_array_says_what_the_entities_say(api, rows):
    """req/data-array/data-array."""
    entities = api.values("/Observations?$orderby=id")
    found = sorted(records(api.get(f"/Observations?{ARRAY}")), key=lambda r: r["id"])
    assert [r["id"] for r in found] == rows.ids
    for record, entity in zip(found, entities, strict=True):
        for name in ("phenomenonTime", "resultTime", "result", "resultQuality", "validTime", "parameters"):
            assert record[name] == entity.get(name)


def test_results_come_back_exactly(api, rows):
    """req/data-array/data-array."""
    text = api.response(f"/Datastreams({rows.streams[0]})/Observations?{ARRAY}&$select=result").text
    assert '"dataArray":[[1],[2.50],["text"]]' in text


def test_options_apply(api, rows):
    """req/data-array/data-array with filter, order, select, top, skip and count."""
    options = "$filter=result ge 1&$orderby=phenomenonTime desc,id&$select=id,result&$count=true&$top=3"
    answer = api.get(f"/Observations?{ARRAY}&{options}")
    assert answer["@iot.count"] == 4
    assert [g["components"] for g in answer["value"]] == [["id", "result"]] * 2
    assert sorted(r["result"] for r in records(answer)) == [1, 2.5, 2.5]
    assert f"{ARRAY}" in answer["@iot.nextLink"]
    rest = api.absolute(answer["@iot.nextLink"])
    assert [r["result"] for r in records(rest)] == [1]
    assert "@iot.nextLink" not in rest
    assert [r["id"] for r in records(api.get(f"/Observations?{ARRAY}&$orderby=id&$skip=4"))] == rows.ids[4:]


def test_a_walk_over_pages_meets_every_row_once(api, rows):
    """req/data-array/data-array."""
    found, link = [], f"{api.root}/Observations?{ARRAY}&$top=1&$orderby=phenomenonTime"
    while link:
        page = api.absolute(link.replace(" ", "%20"))
        found += [r["id"] for r in records(page)]
        link = page.get("@iot.nextLink")
    assert sorted(found) == rows.ids


def test_selected_links_are_components(api):
    """req/data-array/data-array."""
    found = records(api.get(f"/Observations?{ARRAY}&$select=id,FeatureOfInterest&$top=1"))
    link = found[0]["FeatureOfInterest@iot.navigationLink"]
    assert link == f"{api.root}/Observations({found[0]['id']})/FeatureOfInterest"


def test_every_path_to_observations_answers(api, rows):
    """req/data-array/data-array."""
    thing = api.get(f"/Datastreams({rows.streams[0]})/Thing")["@iot.id"]
    feature = api.get(f"/Observations({rows.ids[0]})/FeatureOfInterest")["@iot.id"]
    for path in (f"Things({thing})/Datastreams({rows.streams[0]})", f"FeaturesOfInterest({feature})"):
        assert len(records(api.get(f"/{path}/Observations?{ARRAY}"))) == 3


def test_an_empty_one_has_no_groups(api):
    """req/data-array/data-array."""
    empty = api.get(f"/Observations?{ARRAY}&$filter=result gt 1000&$count=true")
    assert empty == {"@iot.count": 0, "value": []}
    assert api.get(f"/Observations?{ARRAY}&$top=0") == {"value": []}
    assert api.status(f"/Datastreams(987654321)/Observations?{ARRAY}") == 404


def test_what_is_no_collection_of_observations_has_no_data_array(api, rows):
    """req/data-array/data-array."""
    for path in ("/Things", f"/Observations({rows.ids[0]})", f"/Observations({rows.ids[0]})/result"):
        assert "$resultFormat" in api.refused(f"{path}?{ARRAY}")
    assert "$resultFormat" in api.refused("/Observations?$resultFormat=XML")
    assert "$expand" in api.refused(f"/Observations?{ARRAY}&$expand=Datastream")
    api.refused(f"/Observations?{ARRAY}&$select=parameters/hour", 501)
    assert json.loads(api.response(f"/Observations?{ARRAY}&$top=1").content)
