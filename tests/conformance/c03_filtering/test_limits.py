"""No request takes more than its share: it is stopped, and told so."""

import pytest

CROWD = 20  # Datastreams of one Thing
LEVELS = 8  # of a walk from the Thing to each of them and back: CROWD ** LEVELS ways


@pytest.fixture(scope="module")
def impatient(module_store_url, documents, serve):
    """A service that stops a statement after 0.3 s, and a crowd to keep one busy with."""
    with serve(module_store_url, statement_timeout=0.3) as api:
        parts = {
            "Sensor": {"@iot.id": api.create("/Sensors", documents.sensor())},
            "ObservedProperty": {"@iot.id": api.create("/ObservedProperties", documents.observed_property())},
        }
        streams = [documents.datastream(f"Crowd {n}", **parts) for n in range(CROWD)]
        api.create("/Things", documents.thing("Crowded", Datastreams=streams))
        yield api


def endless() -> str:
    """A condition that is false only when all ways have been gone."""
    names = "''"
    for n in range(LEVELS):
        names = f"concat(d{n}/name,{names})"
    condition = f"{names} eq 'nothing'"
    for n in reversed(range(LEVELS)):
        way = f"d{n - 1}/Thing/Datastreams" if n else "Datastreams"
        condition = f"{way}/any(d{n}:{condition})"
    return condition


@pytest.mark.parametrize(
    "options",
    [
        f"$filter={endless()}",
        "$expand=" + "Datastreams/Thing/" * LEVELS + "Locations",
        f"$top=0&$count=true&$filter={endless()}",
        f"$resultFormat=CSV&$filter={endless()}",
    ],
    ids=["filter", "expand", "count", "export"],
)
def test_a_request_that_takes_too_long_is_told_so(impatient, options):
    """req/request-data/query-status-code: 503, with the setting that stopped it and what to ask instead."""
    response = impatient.response(f"/Things?{options}")
    assert response.status_code == 503, response.text
    assert "CITYLAB_STATEMENT_SECONDS" in response.json()["message"]
    assert response.headers["retry-after"].isdecimal()
    assert impatient.status("/Things?$top=1") == 200


def test_a_deletion_that_takes_too_long_deletes_nothing(impatient):
    """req/create-update-delete/delete-entity."""
    response = impatient.request("DELETE", f"/Things?$filter=not ({endless()})")
    assert response.status_code == 503, response.text
    assert len(impatient.values("/Things?$filter=name eq 'Crowded'")) == 1


def test_a_page_ends_where_what_is_inside_becomes_too_much(api, documents):
    """req/request-data/pagination, req/request-data/expand: the rest is behind next links, inside and outside."""
    parts = {
        "Sensor": {"@iot.id": api.create("/Sensors", documents.sensor())},
        "ObservedProperty": {"@iot.id": api.create("/ObservedProperties", documents.observed_property())},
    }
    streams = [documents.datastream(f"Heavy {n}", **parts) for n in range(30)]
    heavy = documents.thing("Heavy", properties={"text": "x" * 500_000}, Datastreams=streams)
    own = api.create("/Things", heavy)
    mine = f"$filter=Thing/id eq {own}"

    page = api.get(f"/Datastreams?{mine}&$expand=Thing&$count=true")
    assert page["@iot.count"] == 30
    assert 1 < len(page["value"]) < 30
    found = [stream["@iot.id"] for stream in page["value"]]
    assert found == api.ids(f"/Datastreams?{mine}")[: len(found)]
    assert sorted(s["@iot.id"] for s in api.walk(f"/Datastreams?{mine}&$expand=Thing")) == api.ids(
        f"/Datastreams?{mine}"
    )

    (thing,) = api.values(
        f"/Things?$filter=id eq {own}&$expand=Datastreams/Thing/Datastreams/Thing&$select=id"
    )
    outer = thing["Datastreams"]
    inner = outer[0]["Thing"]["Datastreams"]
    assert 1 < len(inner) < 30
    rest = api.absolute(outer[0]["Thing"]["Datastreams@iot.nextLink"])
    assert rest["value"][0]["@iot.id"] > inner[-1]["@iot.id"]
    assert rest["value"][0]["Thing"]["@iot.id"] == own
    assert len(outer) < 30
    assert api.absolute(thing["Datastreams@iot.nextLink"])["value"][0]["@iot.id"] > outer[-1]["@iot.id"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("$filter=" + "Datastreams/Thing/" * 400 + "name eq 'x'", "60 steps"),
        ("$filter=properties" + "/a" * 5_000 + " eq 1", "60 steps"),
        ("$filter=properties/a" + "[0]" * 500 + " eq 1", "60 steps"),
        ("$select=properties" + "/a" * 5_000, "60 steps"),
        ("$orderby=" + ",".join(f"properties/k{n}" for n in range(900)), "30 keys"),
        ("$filter=" + "not " * 5_000 + "true", "60 levels"),
        ("$filter=" + "(" * 5_000 + "true" + ")" * 5_000, "60 levels"),
        ("$filter=" + " or ".join(["id eq 1"] * 1_500), "2000 values"),
        ("$expand=" + "Datastreams/Thing/" * 400 + "Datastreams", "60"),
        ("$expand=" + ",".join(["Datastreams/Observations"] * 100), "60 expansions"),
        ("$filter=name eq '" + "x" * 40_000 + "'", "longer"),
    ],
)
def test_a_query_has_limits_that_it_is_told(api, options, message):
    """req/request-data/query-status-code: 400, before the store has any work with it."""
    assert message in api.refused(f"/Things?{options}")


def test_long_but_legal_queries_answer(api):
    """req/request-data/filter, req/request-data/orderby, req/request-data/select."""
    for options in (
        "$filter=" + "Datastreams/Thing/" * 10 + "name eq 'x'",
        "$filter=" + " or ".join(["Datastreams/Observations/result eq 1"] * 300),
        f"$filter=id in ({','.join(map(str, range(1_900)))})",
        "$orderby=" + ",".join(f"properties/k{n} desc" for n in range(30)),
        "$select=" + ",".join(f"properties/k{n}" for n in range(1_000)),
    ):
        assert api.status(f"/Things?$top=2&{options}") == 200
