"""`$batch` as JSON (OData JSON format 4.01 §19), beyond the standard."""

import pytest


def send(api, *requests, **headers):
    return api.client.post("/$batch", json={"requests": requests}, headers=headers)


def answers(response):
    assert response.status_code == 200, response.text
    return response.json()["responses"]


def test_requests_are_answered_in_order_with_their_ids(api, documents):
    own = api.create("/Things", documents.thing("Old"))
    found = answers(
        send(
            api,
            {"id": "0", "method": "get", "url": f"Things({own})?$select=name"},
            {
                "id": "a",
                "atomicityGroup": "g",
                "method": "post",
                "url": "Things",
                "body": documents.thing("New"),
            },
            {
                "id": "b",
                "atomicityGroup": "g",
                "method": "patch",
                "url": f"Things({own})",
                "body": {"name": "Newer"},
            },
            {"id": "3", "method": "get", "url": "Things(987654321)"},
            {"id": "4", "method": "get", "url": f"/v1.1/Things({own})/name/$value"},
        )
    )
    assert [(a["id"], a["status"]) for a in found] == [
        ("0", 200),
        ("a", 201),
        ("b", 200),
        ("3", 404),
        ("4", 200),
    ]
    assert found[0]["body"] == {"name": "Old"}
    assert found[1]["body"]["name"] == "New"
    assert found[1]["headers"]["location"] == found[1]["body"]["@iot.selfLink"]
    assert found[4]["body"] == "Newer"
    assert found[4]["headers"]["content-type"].startswith("text/plain")


@pytest.mark.parametrize("group", ["", "g"])
def test_an_answer_without_content_has_no_body(api, documents, group):
    """req/batch-request/batch-request: deletions, what is not set, what the client has."""
    own = api.create("/Things", documents.thing())
    seen = {"if-none-match": api.response(f"/Things({own})").headers["etag"]}
    requests = [
        {"id": "1", "method": "get", "url": f"Things({own})", "headers": seen},
        {"id": "2", "method": "get", "url": f"Things({own})/properties"},
        {"id": "3", "method": "delete", "url": f"Things({own})"},
        {"id": "4", "method": "delete", "url": "Things?$filter=name eq 'Nobody'"},
    ]
    found = answers(send(api, *(r | {"atomicityGroup": group} if group else r for r in requests)))
    assert [answer["status"] for answer in found] == [304, 204, 200, 200]
    assert all("body" not in a and "content-type" not in a["headers"] for a in found)
    assert api.status(f"/Things({own})") == 404


def test_references(api, documents):
    """To what was created, and to what was read."""
    own = api.create("/Things", documents.thing())
    gas = api.create("/ObservedProperties", documents.observed_property())
    links = {
        "ObservedProperty": {"@iot.id": gas}, "Sensor": {"@iot.id": "$sensor"}, "Thing": {"@iot.id": "$thing"},
    }  # fmt: skip
    found = answers(
        send(
            api,
            {"id": "thing", "method": "get", "url": f"Things({own})"},
            {"id": "sensor", "atomicityGroup": "g", "method": "post", "url": "Sensors", "body": documents.sensor("S")},
            {"id": "stream", "atomicityGroup": "g", "method": "post", "url": "Datastreams",
             "body": documents.datastream("D", **links)},
            {"id": "last", "method": "get", "url": "$stream/Sensor/name"},
        )
    )  # fmt: skip
    assert [a["status"] for a in found] == [200, 201, 201, 200]
    assert found[3]["body"] == {"name": "S"}
    assert len(api.values(f"/Things({own})/Datastreams")) == 1


def test_a_member_that_fails_rolls_its_group_back(api, documents):
    before = api.get("/Things?$count=true&$top=0")["@iot.count"]
    found = answers(
        send(
            api,
            {"id": "1", "atomicityGroup": "g", "method": "post", "url": "Things", "body": documents.thing()},
            {"id": "2", "atomicityGroup": "g", "method": "post", "url": "Things", "body": {}},
            {"id": "3", "dependsOn": ["g"], "method": "get", "url": "Things"},
            {"id": "4", "dependsOn": ["1"], "method": "get", "url": "Things"},
            {"id": "5", "method": "get", "url": "Things?$count=true&$top=0"},
            {"id": "6", "dependsOn": ["5"], "method": "get", "url": "Things?$top=0"},
        )
    )
    assert [a["status"] for a in found] == [424, 400, 424, 424, 200, 200]
    assert found[4]["body"]["@iot.count"] == before


@pytest.mark.parametrize(
    ("requests", "status"),
    [
        ([{"id": "1", "method": "get"}], 400),
        ([{"id": "1", "method": "get", "url": "Things"}] * 2, 400),
        ([{"id": "1", "method": "get", "url": "Things", "dependsOn": ["2"]}], 400),
        ([{"id": "1", "method": "get", "url": "Things", "if": "true"}], 501),
        (
            [
                {"id": str(n), "method": "get", "url": "Things", "atomicityGroup": "ab"[n % 2]}
                for n in range(3)
            ],
            400,
        ),
        ([{"id": str(n), "method": "get", "url": "Things"} for n in range(1001)], 413),
        (5, 400),
    ],
)
def test_what_is_no_batch_is_refused_whole(api, requests, status):
    response = api.client.post("/$batch", json={"requests": requests})
    assert response.status_code == status, response.text
