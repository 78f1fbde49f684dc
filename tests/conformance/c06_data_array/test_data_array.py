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


def test_components_stand_in_the_order_in_which_they_are_selected(api):
    """req/data-array/data-array: each once, and `id` for `@iot.id`."""
    for selected, components in [
        ("result,phenomenonTime,id", ["result", "phenomenonTime", "id"]),
        ("resultTime,@iot.id,result,id", ["resultTime", "id", "result"]),
        ("result,Datastream", ["result"]),
    ]:
        answer = api.get(f"/Observations?{ARRAY}&$select={selected}")
        assert [group["components"] for group in answer["value"]] == [components] * 2
    every = api.get(f"/Observations?{ARRAY}")["value"][0]["components"]
    assert api.get(f"/Observations?{ARRAY}&$select=*")["value"][0]["components"] == every


def test_members_are_components(api, rows):
    """req/data-array/data-array: by their path, as in `$select`; null where a row has no such member."""
    deep = {"y": {"z": [1.50, {"100%": "{}"}]}, "hour": "late"}
    document = {"result": {"a": [True]}, "resultQuality": [{"b": 1}], "parameters": deep}
    own = api.create(f"/Datastreams({rows.streams[0]})/Observations", document)
    selected = "result,parameters/hour,phenomenonTime,parameters/y/z[0],parameters/y/z[1]/100%25,result/a[0],resultQuality[0]/b"
    options = f"{ARRAY}&$select={selected}&$orderby=id&$count=true"
    answer = api.get(f"/Datastreams({rows.streams[0]})/Observations?{options}&$top=3")
    (group,) = answer["value"]
    assert group["components"] == [
        "result", "parameters/hour", "phenomenonTime", "parameters/y/z[0]", "parameters/y/z[1]/100%", "result/a[0]",
        "resultQuality[0]/b",
    ]  # fmt: skip
    assert group["dataArray"][1] == [2.5, 1, "2024-01-01T01:00:00Z", None, None, None, None]
    (rest,) = api.absolute(answer["@iot.nextLink"])["value"]
    assert rest["components"] == group["components"]
    row = dict(zip(rest["components"], rest["dataArray"][0], strict=True))
    assert row.pop("phenomenonTime")
    assert list(row.values()) == [{"a": [True]}, "late", 1.5, "{}", True, 1]
    assert api.request("DELETE", f"/Observations({own})").status_code == 200
    assert "members" in api.refused(f"/Observations?{ARRAY}&$select=phenomenonTime/x")


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
    assert json.loads(api.response(f"/Observations?{ARRAY}&$top=1").content)
