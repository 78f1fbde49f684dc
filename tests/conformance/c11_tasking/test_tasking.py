"""Tasking (OGC 17-079, Part 2: Tasking Core), black box over HTTP."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conformance.conftest import served, thing

LIGHT = {
    "type": "DataRecord",
    "field": [
        {
            "name": "status",
            "label": "On/Off status",
            "description": "Specifies turning the light On or Off",
            "type": "Category",
            "constraint": {"type": "AllowedTokens", "value": ["on", "off"]},
        },
        {
            "name": "color",
            "label": "Light Color",
            "description": "Specifies the light color in RGB HEX format. Example: #FF11A0",
            "type": "Text",
            "optional": True,
            "constraint": {"type": "AllowedTokens", "pattern": "^#([A-Fa-f0-9]{6}|[A-Fa-f0-9]{3})$"},
        },
    ],
}


def actuator(name: str = "Switch", **more: Any) -> dict[str, Any]:
    document = {
        "name": name,
        "description": "a relay",
        "encodingType": "text/html",
        "metadata": "https://x.example",
    }
    return document | more


def capability(name: str = "Control Light", **more: Any) -> dict[str, Any]:
    return {"name": name, "description": "Turn the light on and off", "taskingParameters": LIGHT} | more


@pytest.fixture
def light(api) -> int:
    """A TaskingCapability of a Thing and an Actuator of its own."""
    return api.create("/TaskingCapabilities", capability(Thing=thing("Lamp"), Actuator=actuator()))


def refusal(response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    return response.json()["message"]


def test_entities_have_the_properties_of_the_standard(api, light):
    """req/tasking-capability/properties, req/actuator/properties, req/task/properties."""
    found = api.get(f"/TaskingCapabilities({light})")
    assert {k for k in found if "@iot" not in k} == {"name", "description", "taskingParameters"}
    assert found["taskingParameters"] == LIGHT
    switch = api.get(f"/TaskingCapabilities({light})/Actuator")
    assert {k: v for k, v in switch.items() if "@iot" not in k} == actuator()
    before = datetime.now(UTC) - timedelta(minutes=1)
    task = api.create(
        "/Tasks", {"taskingParameters": {"status": "on"}, "TaskingCapability": {"@iot.id": light}}
    )
    found = api.get(f"/Tasks({task})")
    assert {k for k in found if "@iot" not in k} == {"creationTime", "taskingParameters"}
    created = datetime.fromisoformat(found["creationTime"])
    assert before < created < before + timedelta(minutes=5)


def test_entities_have_the_relations_of_the_standard(api, light):
    """req/tasking-capability/relations, req/actuator/relations, req/task/relations."""
    task = api.create(f"/TaskingCapabilities({light})/Tasks", {"taskingParameters": {"status": "off"}})
    for path, relations in (
        (f"/TaskingCapabilities({light})", {"Thing", "Actuator", "Tasks"}),
        (f"/TaskingCapabilities({light})/Actuator", {"TaskingCapabilities"}),
        (f"/Tasks({task})", {"TaskingCapability"}),
    ):
        entity = api.get(path)
        links = {k.partition("@")[0] for k in entity if k.endswith("@iot.navigationLink")}
        assert links == relations
        for relation in relations:
            api.absolute(entity[f"{relation}@iot.navigationLink"])
    lamp = api.get(f"/TaskingCapabilities({light})/Thing")
    assert lamp["TaskingCapabilities@iot.navigationLink"].endswith("/TaskingCapabilities")
    assert api.ids(f"/Things({lamp['@iot.id']})/TaskingCapabilities") == [light]
    assert api.ids(f"/TaskingCapabilities({light})/Tasks") == [task]
    assert api.get(f"/Tasks({task})/TaskingCapability/Thing/name") == {"name": "Lamp"}


@pytest.mark.parametrize("missing", ["name", "description", "taskingParameters", "Thing", "Actuator"])
def test_a_capability_needs_what_is_mandatory(api, missing):
    """req/tasking-capability/properties, req/tasking-capability/relations."""
    whole = capability(Thing=thing(), Actuator=actuator())
    before = api.get("/Things?$count=true&$top=0")["@iot.count"]
    assert missing in refusal(
        api.post("/TaskingCapabilities", {k: v for k, v in whole.items() if k != missing})
    )
    assert api.get("/Things?$count=true&$top=0")["@iot.count"] == before


def test_everything_comes_in_one_document(api):
    """req/create-tasks/task-creation: a Thing with capabilities, actuators and Tasks."""
    deep = capability(Actuator=actuator("Deep"), Tasks=[{"taskingParameters": {"status": "on"}}])
    own = api.create("/Things", thing("Deep lamp", TaskingCapabilities=[deep]))
    found = api.get(f"/Things({own})?$expand=TaskingCapabilities($expand=Actuator,Tasks)")
    (inner,) = found["TaskingCapabilities"]
    assert inner["Actuator"]["name"] == "Deep"
    assert [task["taskingParameters"] for task in inner["Tasks"]] == [{"status": "on"}]
    wrong = capability(Actuator=actuator("None"), Tasks=[{"taskingParameters": {"status": "dim"}}])
    said = refusal(api.post("/Things", thing("No lamp", TaskingCapabilities=[wrong])))
    assert "status" in said
    assert api.values("/Actuators?$filter=name eq 'None'") == []
    assert api.values("/Things?$filter=name eq 'No lamp'") == []


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({}, "status"),
        ({"status": "dim"}, "status"),
        ({"status": 1}, "status"),
        ({"status": "on", "color": "red"}, "color"),
        ({"status": "on", "level": 1}, "level"),
        (["on"], "taskingParameters"),
        (None, "taskingParameters"),
    ],
)
def test_a_task_is_held_against_its_capability(api, light, parameters, field):
    """req/create-tasks/task-creation: what is wrong is named, and nothing is created."""
    said = refusal(api.post(f"/TaskingCapabilities({light})/Tasks", {"taskingParameters": parameters}))
    assert field in said
    assert api.values(f"/TaskingCapabilities({light})/Tasks") == []


def test_a_task_needs_a_capability_that_exists(api):
    """req/create-tasks/task-creation, req/task/relations."""
    parameters = {"taskingParameters": {"status": "on"}}
    assert "TaskingCapability" in refusal(api.post("/Tasks", parameters))
    assert "does not exist" in refusal(
        api.post("/Tasks", parameters | {"TaskingCapability": {"@iot.id": 10**9}})
    )


def test_what_is_no_datarecord_is_refused_by_what_is_wrong(api):
    """req/tasking-capability/properties: taskingParameters is a SWE Common DataRecord."""
    for record, what in (
        ({"status": "text"}, "DataRecord"),
        ({"type": "DataRecord", "field": [{"name": "x", "type": "Colour"}]}, "x: has the type 'Colour'"),
        (
            {
                "type": "DataRecord",
                "field": [{"name": "x", "type": "Text", "constraint": {"pattern": "(?=a)"}}],
            },
            "x: the pattern",
        ),
    ):
        document = capability(Thing=thing(), Actuator=actuator(), taskingParameters=record)
        said = refusal(api.post("/TaskingCapabilities", document))
        assert said.startswith("taskingParameters")
        assert what in said
    own = api.create("/TaskingCapabilities", capability(Thing=thing(), Actuator=actuator()))
    assert "DataRecord" in refusal(
        api.request("PATCH", f"/TaskingCapabilities({own})", json={"taskingParameters": {}})
    )


def test_the_server_alone_says_when_and_what_became_of_it(api, light):
    """req/task/properties: creationTime, and the status of SensorThings 2.0, are the platform's."""
    document = {
        "taskingParameters": {"status": "on"},
        "creationTime": "2001-01-01T00:00:00Z",
        "status": "completed",
        "runLog": {"at": "x"},
    }
    task = api.create(f"/TaskingCapabilities({light})/Tasks", document)
    found = api.get(f"/Tasks({task})")
    assert not found["creationTime"].startswith("2001")
    assert "status" not in found
    for verb in ("PATCH", "PUT"):
        response = api.request(verb, f"/Tasks({task})", json=document)
        assert response.status_code == 200, response.text
        assert response.json() == found
    assert api.status(f"/Tasks({task})/status") == 204
    assert api.get(f"/Tasks({task})/creationTime") == {"creationTime": found["creationTime"]}


def test_tasks_change_within_what_their_capability_allows(api, light):
    """req/task/properties: PATCH, PUT and JSON Patch are held against the capability as a create is."""
    task = api.create(f"/TaskingCapabilities({light})/Tasks", {"taskingParameters": {"status": "on"}})
    ok = api.request(
        "PATCH", f"/Tasks({task})", json={"taskingParameters": {"status": "off", "color": "#fff"}}
    )
    assert ok.json()["taskingParameters"] == {"status": "off", "color": "#fff"}
    assert "status" in refusal(
        api.request("PUT", f"/Tasks({task})", json={"taskingParameters": {"status": "dim"}})
    )
    patch = json.dumps([{"op": "replace", "path": "/taskingParameters/color", "value": "blue"}])
    headers = {"content-type": "application/json-patch+json"}
    assert "color" in refusal(api.request("PATCH", f"/Tasks({task})", content=patch, headers=headers))
    patch = patch.replace("blue", "#00f")
    done = api.request("PATCH", f"/Tasks({task})", content=patch, headers=headers)
    assert done.json()["taskingParameters"]["color"] == "#00f"
    empty = {"type": "DataRecord", "field": []}
    other = api.create(
        "/TaskingCapabilities",
        capability("Reboot", taskingParameters=empty, Thing=thing(), Actuator=actuator()),
    )
    moved = {"TaskingCapability": {"@iot.id": other}}
    assert "is no field" in refusal(api.request("PATCH", f"/Tasks({task})", json=moved))
    assert api.request("PATCH", f"/Tasks({task})", json=moved | {"taskingParameters": {}}).status_code == 200
    assert api.ids(f"/TaskingCapabilities({other})/Tasks") == [task]


def test_values_come_back_as_they_came(api):
    """req/task/properties: numbers keep how they are written."""
    fields = [{"name": name, "type": "Quantity"} for name in ("a", "b", "c")]
    record = {"type": "DataRecord", "field": fields}
    own = api.create(
        "/TaskingCapabilities", capability(taskingParameters=record, Thing=thing(), Actuator=actuator())
    )
    text = '{"taskingParameters": {"a": 6.0, "b": 123456789012345678901234567890, "c": -50}}'
    response = api.post(f"/TaskingCapabilities({own})/Tasks", text)
    assert '{"a": 6.0, "b": 123456789012345678901234567890, "c": -50}' in response.text


@pytest.mark.parametrize("root", ["Thing", "Actuator"])
def test_deleting_takes_capabilities_and_their_tasks_along(api, light, root):
    """req/tasking-capability/relations: no capability without Thing and Actuator, no Task without capability."""
    task = api.create(f"/TaskingCapabilities({light})/Tasks", {"taskingParameters": {"status": "on"}})
    lamp = api.get(f"/TaskingCapabilities({light})/Thing")["@iot.id"]
    switch = api.get(f"/TaskingCapabilities({light})/Actuator")["@iot.id"]
    gone, kept = (f"/Things({lamp})", f"/Actuators({switch})")[:: 1 if root == "Thing" else -1]
    assert api.request("DELETE", gone).status_code == 200
    assert api.status(f"/TaskingCapabilities({light})") == 404
    assert api.status(f"/Tasks({task})") == 404
    assert api.ids(f"{kept}/TaskingCapabilities") == []


def test_the_query_options_are_those_of_every_set(api):
    """req/task/relations: filters, orders, counts, expansion and selection reach through the relations."""
    own = api.create("/TaskingCapabilities", capability("Queried", Thing=thing("Q"), Actuator=actuator("QA")))
    for status in ("on", "off", "on"):
        api.create(f"/TaskingCapabilities({own})/Tasks", {"taskingParameters": {"status": status}})
    mine = "TaskingCapability/name eq 'Queried'"
    assert len(api.values(f"/Tasks?$filter={mine} and taskingParameters/status eq 'on'")) == 2
    assert api.get(f"/Tasks?$filter={mine}&$count=true&$top=1")["@iot.count"] == 3
    newest = api.ids(f"/Tasks?$filter={mine}&$orderby=creationTime desc,id desc")
    assert newest == sorted(newest, reverse=True)
    assert api.ids("/Things?$filter=TaskingCapabilities/Actuator/name eq 'QA'") == [
        api.get(f"/TaskingCapabilities({own})/Thing")["@iot.id"]
    ]
    selected = api.values(f"/Tasks?$filter={mine}&$select=taskingParameters/status&$top=1")
    assert selected == [{"taskingParameters": {"status": "on"}}]
    csv = api.response(f"/Tasks?$filter={mine}&$resultFormat=CSV&$select=id,creationTime,taskingParameters")
    assert len(csv.text.splitlines()) == 4
    assert (
        api.get("/Actuators?$filter=name eq 'QA'&$expand=TaskingCapabilities($count=true)")["value"][0][
            "TaskingCapabilities@iot.count"
        ]
        == 1
    )


def test_a_batch_creates_capability_and_task(api):
    """req/create-tasks/task-creation: in one JSON batch, the Task referring to what was made before it."""
    requests = {
        "requests": [
            {"id": "1", "atomicityGroup": "g", "method": "post", "url": "TaskingCapabilities",
             "body": capability("Batch", Thing=thing("B"), Actuator=actuator())},
            {"id": "2", "atomicityGroup": "g", "method": "post", "url": "Tasks",
             "body": {"taskingParameters": {"status": "on"}, "TaskingCapability": {"@iot.id": "$1"}}},
        ]
    }  # fmt: skip
    answers = api.post("/$batch", requests).json()["responses"]
    assert [answer["status"] for answer in answers] == [201, 201]
    assert len(api.values("/Tasks?$filter=TaskingCapability/name eq 'Batch'")) == 1


def test_without_tasking_nothing_of_it_is_there(api, module_store_url, light):
    """req/tasking-capability/relations: and in the same process, with it, everything is."""
    with served(module_store_url, tasking=False) as sensing:
        page = sensing.get("/")
        assert not {entry["name"] for entry in page["value"]} & {"TaskingCapabilities", "Tasks", "Actuators"}
        assert not [uri for uri in page["serverSettings"]["conformance"] if "tasking" in uri]
        for path in ("/Tasks", "/Actuators", f"/TaskingCapabilities({light})"):
            assert sensing.status(path) == 404
        (lamp, *_) = sensing.values("/Things")
        assert not [key for key in lamp if "Tasking" in key]
        assert sensing.status(f"/Things({lamp['@iot.id']})/TaskingCapabilities") == 404
        for path in (
            "/Things?$expand=TaskingCapabilities",
            "/Things?$filter=TaskingCapabilities/name eq 'x'",
            "/Things?$select=TaskingCapabilities",
            "/Datastreams?$filter=Thing/TaskingCapabilities/name eq 'x'",
            "/Datastreams?$expand=Thing($expand=TaskingCapabilities)",
            "/Locations?$filter=Things/any(t: t/TaskingCapabilities/any())",
        ):
            assert "Tasking" in sensing.refused(path)
        deep = thing("T", TaskingCapabilities=[capability(Actuator=actuator())])
        for path, document in (
            ("/Things", deep),
            (
                "/Locations",
                {"name": "L", "description": "d", "encodingType": "x", "location": "y", "Things": [deep]},
            ),
        ):
            assert "TaskingCapabilities" in refusal(sensing.post(path, document))
        plain = sensing.create("/Things", thing("Plain"))
        link = {"TaskingCapabilities": [{"@iot.id": light}]}
        assert "TaskingCapabilities" in refusal(sensing.request("PATCH", f"/Things({plain})", json=link))
        contract = sensing.absolute(sensing.root.replace("/v1.1", "/openapi.json"))
        assert not [path for path in contract["paths"] if "Task" in path or "Actuator" in path]
        assert sensing.request("DELETE", f"/Things({plain})").status_code == 200
        other = api.create("/TaskingCapabilities", capability(Thing=thing("Other"), Actuator=actuator()))
        lamp = api.get(f"/TaskingCapabilities({other})/Thing")["@iot.id"]
        assert sensing.request("DELETE", f"/Things({lamp})").status_code == 200
        assert api.status(f"/TaskingCapabilities({other})") == 404
    assert api.get("/Things?$expand=TaskingCapabilities&$top=1")["value"]
    assert api.status(f"/TaskingCapabilities({light})") == 200
