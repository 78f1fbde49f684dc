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
