"""Whatever is asked or sent, the service answers for it: no status of 500, and soon."""

import time
from types import SimpleNamespace
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citylab.entities import ENTITY_TYPES, SETS

SECONDS = 10  # for one answer, on a machine that others use too
ANSWERS = frozenset({200, 201, 204, 400, 404, 405, 409, 412, 413, 415, 424, 501, 503})

bounded = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", autouse=True)
def city(api, documents) -> SimpleNamespace:
    """Something behind every path: ids 1 and 2 of most sets."""
    streams = [api.create("/Datastreams", documents.whole_datastream(f"Fuzz {n}")) for n in range(2)]
    for n, result in enumerate([1, 2.5, "t", True, None, {"a": [1]}, [1, 2]]):
        document = {"result": result, "parameters": {"a": {"b": [n]}}}
        api.create(f"/Datastreams({streams[n % 2]})/Observations", document)
    return SimpleNamespace(streams=streams)


def attempt(api, method, path, **options):
    began = time.monotonic()
    response = api.client.request(method, f"{api.root}{path}", **options)
    said = f"{method} {path} {options}: {response.status_code} {response.text[:500]}"
    assert response.status_code in ANSWERS, said
    assert time.monotonic() - began < SECONDS, said
    if response.content and response.headers["content-type"] == "application/json":
        response.json()
    if response.status_code >= 400 and method != "HEAD":
        assert set(response.json()) == {"code", "type", "message"}, said
    return response


# Addresses ----------------------------------------------------------------------------------------------------------

NAMES = sorted(
    {"id", "@iot.id", "$ref", "$value", "$count", "$batch", "a", "b[0]", "a/b[0]", ""}
    | SETS.keys()
    | {name for t in ENTITY_TYPES.values() for name in [*t.properties, *t.relations]}
)
IDS = [
    "",
    "(1)",
    "(2)",
    "(0)",
    "(-1)",
    "(9223372036854775807)",
    "(9223372036854775808)",
    "('1')",
    "()",
    "(1",
    "(1)(2)",
]
SETTERS = ["1", "0", "3", "2147483647", "2147483648", "-1", "x", "true", "false", "", "null"]

segments = st.builds(lambda name, own: name + own, st.sampled_from(NAMES), st.sampled_from(IDS)) | st.text(
    max_size=6
)
paths = st.builds(
    lambda first, own, rest: "/".join(["", first + own, *rest]),
    st.sampled_from(sorted(SETS)),
    st.sampled_from(IDS[:4]),
    st.lists(segments, max_size=4),
)
words = st.sampled_from(
    [*NAMES, "(", ")", ",", "/", ";", "=", ":", "'", "[0]", "[", "*", " eq ", " and ", " in ", " add ", "not ", "1", "-1", "1e400",
     "'x'", "null", "true", "any(x:x/", "all(", "$filter=", "$expand=", "$top=1", "$orderby=", "$select=", " desc", "substringof(",
     "geo.distance(", "geography'POINT(1 1)'", "duration'PT1H'", "2024-01-01T00:00:00Z", "/", "now()", "%", "\0", "é", "\\"]
)  # fmt: skip
texts = st.lists(words, max_size=7).map("".join) | st.text(max_size=8)
options = st.tuples(
    st.sampled_from(
        ["$filter", "$orderby", "$select", "$expand", "$top", "$skip", "$count", "$skiptoken", "$resultFormat", "$format", "$id", "x"]
    ),
    texts | st.sampled_from([*SETTERS, "dataArray", "CSV", "GeoJSON", "Datastreams", "WyIxIl0"]),
)  # fmt: skip
queries = st.lists(options, max_size=4).map(
    lambda found: "&".join(f"{n}={quote(v, safe='')}" for n, v in found)
)


@bounded
@given(
    paths,
    queries,
    st.sampled_from(["GET", "GET", "GET", "HEAD", "OPTIONS", "DELETE", "POST", "PATCH", "PUT"]),
)
def test_any_address(api, path, query, method):
    """req/request-data/query-status-code, req/resource-path/resource-path-to-entities."""
    if method == "DELETE":  # what the others need stays
        query += "&$filter=false"
        path += "/x" if path.endswith(")") else ""
    response = attempt(api, method, f"{quote(path, safe='/()$@')}?{query}")
    link = (
        response.json().get("@iot.nextLink")
        if response.headers.get("content-type") == "application/json" and method == "GET"
        else None
    )
    if link:
        assert api.client.get(link).status_code == 200


# Documents ----------------------------------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z/2024-01-02T00:00:00Z", "1", 1, 2, 2**63, "$1", "$1/x"])
)  # fmt: skip
KEYS = [
    *NAMES,
    "Datastream@iot.navigationLink",
    "type",
    "coordinates",
    "components",
    "dataArray",
    "FeatureOfInterest/id",
]
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def changed(draw, document):
    """A document that is right but for some members."""
    document = dict(document)
    for name in draw(st.lists(st.sampled_from([*document, *KEYS]), min_size=1, max_size=3)):
        if draw(st.booleans()):
            document.pop(name, None)
        else:
            document[name] = draw(values)
    return document


def encoded(document):
    try:
        return msgspec.json.encode(document)
    except (UnicodeEncodeError, msgspec.EncodeError, OverflowError):
        return b"\xff"


@pytest.mark.parametrize("name", sorted(SETS))
def test_any_document(api, documents, city, name):
    """req/create-update-delete/create-entity, req/create-update-delete/update-entity: made, or refused with 4xx."""
    right = {
        "Things": documents.thing(),
        "Locations": documents.location(),
        "HistoricalLocations": {"time": "2024-01-01T00:00:00Z", "Thing": {"@iot.id": 1}, "Locations": [{"@iot.id": 1}]},
        "Datastreams": documents.datastream() | {n: {"@iot.id": 1} for n in ("Thing", "Sensor", "ObservedProperty")},
        "MultiDatastreams": {
            "name": "m", "description": "d", "unitOfMeasurements": [{"name": "a"}], "multiObservationDataTypes": ["b"],
            "Thing": {"@iot.id": 1}, "Sensor": {"@iot.id": 1}, "ObservedProperties": [{"@iot.id": 1}],
        },
        "Sensors": documents.sensor(),
        "ObservedProperties": documents.observed_property(),
        "FeaturesOfInterest": documents.feature(),
        "Observations": {"result": 1, "Datastream": {"@iot.id": city.streams[0]}},
        "Actuators": documents.sensor(),
        "TaskingCapabilities": {
            "name": "c", "description": "d", "taskingParameters": {"type": "DataRecord", "field": [{"name": "on", "type": "Boolean"}]},
            "Thing": {"@iot.id": 1}, "Actuator": documents.sensor(),
        },
        "Tasks": {"taskingParameters": {"on": True}, "TaskingCapability": {"@iot.id": 1}},
    }[name]  # fmt: skip

    @settings(bounded, max_examples=40)
    @given(changed(right), st.sampled_from(["POST", "POST", "PATCH", "PUT"]), st.lists(values, max_size=3))
    def attempts(document, method, patch):
        path = f"/{name}" if method == "POST" else f"/{name}(1)"
        attempt(api, method, path, content=encoded(document))
        operations = [{"op": "add", "path": f"/{n}", "value": v} for n, v in zip(right, patch, strict=False)]
        kind = {"content-type": "application/json-patch+json"}
        attempt(api, "PATCH", f"/{name}(1)", content=encoded(operations), headers=kind)

    attempts()


@bounded
@given(
    values,
    st.sampled_from(["id", "components", "dataArray", "method", "url", "body", "atomicityGroup", "headers"]),
)
def test_any_bulk_and_batch(api, city, value, member):
    """req/data-array/data-array, req/batch-request/batch-request: answered row by row and request by request."""
    link = {"@iot.id": city.streams[0]}
    group = {
        "Datastream": link,
        "components": ["phenomenonTime", "result"],
        "dataArray": [["2024-01-01T00:00:00Z", value]],
    }
    attempt(api, "POST", "/CreateObservations", content=encoded([group]))
    attempt(api, "POST", "/CreateObservations", content=encoded([group | {member: value}]))
    request = {"id": "1", "method": "post", "url": "Observations", "body": {"result": 1, "Datastream": link}}
    later = {"id": "2", "method": "patch", "url": "$1", "body": {"result": value}}
    last = {"id": "3", "method": "delete", "url": "$1"}
    for batch in ({"requests": [request | {member: value}, later, last]}, {"requests": value}, value):
        attempt(api, "POST", "/$batch", content=encoded(batch), headers={"content-type": "application/json"})


@bounded
@given(st.lists(st.sampled_from([b"--b", b"--b--", b"\r\n", b"\n", b"Content-Type: application/http", b"Content-ID: 1", b"--c", b"--c--",
    b"Content-Type: multipart/mixed;boundary=c", b"GET Things?$top=1 HTTP/1.1", b"POST /v1.1/Things HTTP/1.1", b"PATCH $1 HTTP/1.1",
    b"GET http://[ HTTP/1.1", b"Content-Length: 5", b"{}", b"\xff", b"Host: x"]), max_size=24))  # fmt: skip
def test_any_multipart(api, pieces):
    """req/batch-request/batch-request: what is no batch is refused."""
    kind = {"content-type": "multipart/mixed;boundary=b"}
    attempt(api, "POST", "/$batch", content=b"".join(pieces), headers=kind)
