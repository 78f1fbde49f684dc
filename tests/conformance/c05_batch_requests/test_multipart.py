"""`$batch` as multipart/mixed (OGC 18-088 §11.1; OData 4.0 part 1 §11.7)."""

import json
from email.parser import BytesParser
from email.policy import HTTP

import pytest


def http(method, url, body=None, *, name="", headers=()):
    """One part: an HTTP request."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = ["Content-Type: application/http", "Content-Transfer-Encoding: binary"]
    lines += [f"Content-ID: {name}"] if name else []
    lines += ["", f"{method} {url} HTTP/1.1", "Host: localhost", *headers]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"] if content else []
    return "\r\n".join([*lines, "", ""]).encode() + content


def mixed(boundary, *parts):
    joined = b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts)
    return joined + f"--{boundary}--\r\n".encode()


def change_set(*parts, boundary="changes"):
    return f"Content-Type: multipart/mixed; boundary={boundary}\r\n\r\n".encode() + mixed(boundary, *parts)


def send(api, *parts, body=None, boundary="batch_1", kind="multipart/mixed; boundary=batch_1", **headers):
    content = mixed(boundary, *parts) if body is None else body
    return api.client.post("/$batch", content=content, headers={"Content-Type": kind} | headers)


def parts_of(message):
    return [parts_of(part) if part.is_multipart() else answer_of(part) for part in message.iter_parts()]


def answer_of(part):
    """Status, headers and JSON of a response inside a part."""
    assert part.get_content_type() == "application/http"
    head, _, content = part.get_payload(decode=True).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert status.startswith("HTTP/1.1 ")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if "content-length" in headers:
        content = content[: int(headers["content-length"])]
    is_json = "json" in headers.get("content-type", "") and content
    return {
        "status": int(status.split()[1]), "headers": headers, "id": part["Content-ID"],
        "json": json.loads(content) if is_json else None, "content": content,
    }  # fmt: skip


def answers(response):
    assert response.status_code == 200, response.text
    kind = response.headers["content-type"]
    assert kind.startswith("multipart/mixed; boundary=")
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + response.content)
    return parts_of(message)


def count(api, name="Things"):
    return api.get(f"/{name}?$count=true&$top=0")["@iot.count"]


def test_requests_are_answered_in_order(api, documents):
    """req/batch-request/batch-request: GETs and a change set; a missing entity is 404 and stops nothing."""
    own = api.create("/Things", documents.thing("Old"))
    found = answers(
        send(
            api,
            http("GET", f"/v1.1/Things({own})?$select=name"),
            change_set(
                http("POST", "/v1.1/Things", documents.thing("New"), name="1"),
                http("PATCH", f"/v1.1/Things({own})", {"name": "Patched"}, name="2"),
            ),
            http("GET", "/v1.1/Things(987654321)"),
            http("GET", f"/v1.1/Things({own})?$select=name"),
        )
    )
    read, changed, missing, again = found
    assert (read["status"], read["json"]) == (200, {"name": "Old"})
    assert [(a["status"], a["id"]) for a in changed] == [(201, "1"), (200, "2")]
    made = changed[0]["headers"]["location"]
    assert api.client.get(made.replace("/things", "/Things")).json()["name"] == "New"
    assert missing["status"] == 404
    assert missing["json"]["code"] == 404
    assert again["json"] == {"name": "Patched"}


def test_addresses_may_be_absolute_or_relative(api, documents):
    """req/batch-request/batch-request: absolute, from the host's root, relative to the service."""
    own = api.create("/Things", documents.thing("Addressed"))
    path = f"Things({own})?$select=name"
    for url in (
        f"{api.root}/{path}",
        f"/v1.1/{path}",
        path,
        f"/{path}",
        f"https://elsewhere.example/x/v1.1/{path}",
    ):
        (answer,) = answers(send(api, http("GET", url)))
        assert answer["json"] == {"name": "Addressed"}, url
    (answer,) = answers(
        send(api, http("GET", "Things?$filter=name%20eq%20'Addressed'&$count=true&$select=id"))
    )
    assert answer["json"]["@iot.count"] == 1
    (answer,) = answers(send(api, http("GET", "Things?$filter=name eq 'Addressed'&$select=id")))
    assert len(answer["json"]["value"]) == 1


def test_references_in_bodies(api, documents):
    """req/batch-request/batch-request: `$id` for an entity that the change set created."""
    own = api.create("/Things", documents.thing())
    gas = api.create("/ObservedProperties", documents.observed_property())
    links = {"ObservedProperty": {"@iot.id": gas}, "Sensor": {"@iot.id": "$sensor1"}}
    (changed,) = answers(
        send(
            api,
            change_set(
                http("POST", "/v1.1/Sensors", documents.sensor("Referred"), name="sensor1"),
                http(
                    "POST",
                    f"/v1.1/Things({own})/Datastreams",
                    documents.datastream("°C", **links),
                    name="any",
                ),
            ),
        )
    )
    assert [a["status"] for a in changed] == [201, 201]
    (stream,) = api.values(f"/Things({own})/Datastreams?$expand=Sensor")
    assert stream["Sensor"]["name"] == "Referred"


def test_references_in_addresses(api, documents):
    """req/batch-request/batch-request."""
    (changed, later) = answers(
        send(
            api,
            change_set(
                http("POST", "Things", documents.thing("Root"), name="1"),
                http("POST", "$1/Locations", documents.location("There"), name="2"),
                http("PATCH", "/v1.1/$1", {"description": "changed"}, name="3"),
                http("POST", "Things($1)/Locations", documents.location("Then there"), name="4"),
            ),
            http("GET", "$1?$expand=Locations"),
        )
    )
    assert [a["status"] for a in changed] == [201, 201, 200, 201]
    assert later["json"]["description"] == "changed"
    assert [place["name"] for place in later["json"]["Locations"]] == ["Then there"]


def test_a_member_that_fails_rolls_its_change_set_back(api, documents):
    """req/batch-request/batch-request: one answer for the whole set, nothing of it is there, the next ones go on."""
    before = count(api)
    failed, good, seen = answers(
        send(
            api,
            change_set(
                http("POST", "Things", documents.thing("Half"), name="1"),
                http("POST", "Things", {"name": "no description"}, name="2"),
                http("POST", "Things", documents.thing("Other half"), name="3"),
            ),
            change_set(http("POST", "Things", documents.thing("Whole"), name="4"), boundary="other"),
            http("GET", "Things?$count=true&$top=0"),
        )
    )
    assert (failed["status"], failed["id"]) == (400, "2")
    assert "description" in failed["json"]["message"]
    assert [a["status"] for a in good] == [201]
    assert seen["json"]["@iot.count"] == before + 1 == count(api)


def test_a_change_set_that_the_store_refuses_is_rolled_back(api, documents):
    """req/batch-request/batch-request."""
    before = count(api, "Locations")
    too_large = b'{"name":"n","description":"d","encodingType":"e","location":1e999999}'
    failed, after = answers(
        send(
            api,
            change_set(
                http("POST", "Locations", documents.location("Gone"), name="1"),
                http("POST", "Locations", too_large, name="2"),
            ),
            http("POST", "Locations", documents.location("Kept")),
        )
    )
    assert (failed["status"], after["status"]) == (400, 201)
    assert count(api, "Locations") == before + 1


def test_reads_in_a_change_set_see_its_writes(api, documents):
    """req/batch-request/batch-request: later reads see earlier writes."""
    (changed,) = answers(
        send(
            api,
            change_set(
                http("POST", "Things", documents.thing("Seen"), name="1"),
                http("GET", "$1?$select=name", name="2"),
                http("DELETE", "$1", name="3"),
            ),
        )
    )
    assert changed[1]["json"] == {"name": "Seen"}
    assert [a["status"] for a in changed] == [201, 200, 200]


def test_the_batch_stops_when_that_is_asked_for(api, documents):
    """req/batch-request/batch-request (OData 4.0 part 1 §8.2.8.3)."""
    parts = [http("GET", "Things(987654321)"), http("POST", "Things", documents.thing("After"))]
    assert [a["status"] for a in answers(send(api, *parts))] == [404, 201]
    stopped = answers(send(api, *parts, Prefer="odata.continue-on-error=false"))
    assert [a["status"] for a in stopped] == [404]


def test_formats_inside_a_batch(api, documents):
    """req/batch-request/batch-request."""
    own = api.create("/Things", documents.thing("Table"))
    table, created = answers(
        send(
            api,
            http("GET", f"Things?$resultFormat=CSV&$select=id&$filter=id eq {own}"),
            http("POST", "CreateObservations", []),
        )
    )
    assert table["content"] == f"id\r\n{own}\r\n".encode()
    assert (created["status"], created["json"]) == (201, [])


def test_lines_may_end_in_lf(api, documents):
    """req/batch-request/batch-request."""
    body = mixed("batch_1", http("POST", "Things", documents.thing("LF"))).replace(b"\r\n", b"\n")
    (answer,) = answers(send(api, body=b"preamble\n" + body + b"epilogue"))
    assert answer["status"] == 201


def test_a_quoted_boundary(api):
    """req/batch-request/batch-request."""
    kind = 'multipart/mixed; charset=utf-8; boundary="b:1 x"'
    (answer,) = answers(send(api, http("GET", "/v1.1/"), boundary="b:1 x", kind=kind))
    assert "serverSettings" in answer["json"]


def test_methods_and_batches_that_cannot_stand_inside(api):
    """req/batch-request/batch-request."""
    found = answers(
        send(api, http("BREW", "Things"), http("POST", "$batch", {}), http("GET", "$unknown/Things"))
    )
    assert [a["status"] for a in found] == [405, 400, 404]


GOOD = mixed("batch_1", http("GET", "Things"))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/mixed; boundary=batch_1", b""),
        ("multipart/mixed; boundary=batch_1", b"--batch_1\r\n"),
        ("multipart/mixed; boundary=batch_1", GOOD.removesuffix(b"--\r\n")),
        ("multipart/mixed; boundary=other", GOOD),
        ("multipart/mixed; boundary=batch_1", GOOD.replace(b"application/http", b"text/plain")),
        ("multipart/mixed; boundary=batch_1", GOOD.replace(b"GET Things HTTP/1.1", b"")),
        ("multipart/mixed; boundary=batch_1", GOOD.replace(b"Host: ", b"Host ")),
        ("multipart/mixed; boundary=batch_1", mixed("batch_1", change_set(b"x"))),
        ("application/json", b"{"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused_whole(api, kind, body):
    """req/batch-request/batch-request."""
    response = api.client.post("/$batch", content=body, headers={"Content-Type": kind})
    assert response.status_code == 400, response.text


def test_other_media_types_are_refused(api):
    """req/batch-request/batch-request."""
    for kind in ("text/plain", "multipart/mixed", "multipart/form-data; boundary=batch_1"):
        assert api.client.post("/$batch", content=GOOD, headers={"Content-Type": kind}).status_code == 415
    assert api.status("/$batch") in {404, 405}
