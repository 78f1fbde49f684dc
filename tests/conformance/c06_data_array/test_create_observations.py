"""`CreateObservations` (OGC 18-088 §11.2.2)."""

import json
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def streams(api, documents) -> SimpleNamespace:
    plain = [api.create("/Datastreams", documents.whole_datastream(f"Bulk {n}")) for n in range(2)]
    homeless = api.create("/Datastreams", documents.whole_datastream("Bulk", Thing=documents.thing()))
    return SimpleNamespace(plain=plain, homeless=homeless)


def group(stream, components, *rows, **more):
    return {"Datastream": {"@iot.id": stream}, "components": components, "dataArray": rows} | more


def created(api, *groups):
    response = api.post("/CreateObservations", json.dumps(groups))
    assert response.status_code == 201, response.text
    return response.json()


def test_rows_become_observations_in_their_order(api, streams):
    """req/data-array/data-array: 201 with one self link a row."""
    one, two = streams.plain
    components = ["phenomenonTime", "result"]
    links = created(
        api,
        group(
            one,
            components,
            ["2024-03-01T00:00:00Z", 1],
            ["2024-03-01T01:00:00Z", 2.5],
            **{"dataArray@iot.count": 2},
        ),
        group(two, components, ["2024-03-01T00:00:00Z", 3]),
    )
    found = [api.absolute(link) for link in links]
    assert [o["result"] for o in found] == [1, 2.5, 3]
    assert [o["phenomenonTime"] for o in found][:2] == ["2024-03-01T00:00:00Z", "2024-03-01T01:00:00Z"]
    assert [o["@iot.selfLink"] for o in found] == links
    assert api.get(f"/Observations({found[2]['@iot.id']})/Datastream")["@iot.id"] == two
    assert api.get(f"/Observations({found[0]['@iot.id']})/FeatureOfInterest")["name"].startswith("Bulk 0")
    assert api.get(f"/Datastreams({one})")["phenomenonTime"] == "2024-03-01T00:00:00Z/2024-03-01T01:00:00Z"


def test_a_bad_row_does_not_stop_the_others(api, streams):
    """req/data-array/data-array: a string that begins with `error` where nothing was created."""
    components = ["phenomenonTime", "result", "parameters"]
    outcomes = created(
        api,
        group(
            streams.plain[0],
            components,
            ["2024-03-02T00:00:00Z", 1, {"a": 1}],
            ["yesterday", 2, None],
            ["2024-03-02T01:00:00Z", 3],
            ["2024-03-02T02:00:00Z", 4, "none"],
            "row",
            ["2024-03-02T03:00:00Z", "five\0", None],
            ["2024-03-02T04:00:00Z", 6, None],
        ),
        group(987654321, ["result"], [1], [2]),
        group(streams.homeless, ["result"], [1]),
        group(streams.plain[1], ["result", "FeatureOfInterest/id"], [8, 987654321]),
        group(streams.plain[1], ["result"], [9]),
    )
    good = [i for i, outcome in enumerate(outcomes) if not outcome.startswith("error")]
    assert len(outcomes) == 12
    assert good == [0, 6, 11]
    assert "yesterday" in outcomes[1]
    assert "987654321" in outcomes[7]
    assert "Location" in outcomes[9]
    assert [api.absolute(outcomes[i])["result"] for i in good] == [1, 6, 9]


def test_a_value_that_the_store_cannot_keep_stops_only_its_row(api, streams):
    """req/data-array/data-array."""
    body = (
        f'[{{"Datastream":{{"@iot.id":{streams.plain[0]}}},"components":["result"],'
        '"dataArray":[[1],[1e400],[1e999999],[2]]}]'
    )
    outcomes = api.post("/CreateObservations", body).json()
    assert [outcome.startswith("error") for outcome in outcomes] == [False, False, True, False]
    assert "1e+400" in api.client.get(outcomes[1]).text or "10000" in api.client.get(outcomes[1]).text


def test_all_components(api, streams, documents):
    """req/data-array/data-array."""
    feature = api.create("/FeaturesOfInterest", documents.feature("Bulk feature"))
    row = {
        "phenomenonTime": "2024-03-03T00:00:00Z/2024-03-03T01:00:00Z",
        "resultTime": "2024-03-03T02:00:00Z",
        "result": "text",
        "resultQuality": {"DQ": 1},
        "validTime": "2024-03-03T00:00:00Z/2024-03-04T00:00:00Z",
        "parameters": {"a": 1},
    }
    (link,) = created(api, group(streams.plain[0], [*row, "FeatureOfInterest/id"], [*row.values(), feature]))
    found = api.absolute(link)
    assert {name: found[name] for name in row} == row
    assert api.absolute(f"{link}/FeatureOfInterest")["@iot.id"] == feature
    (link,) = created(
        api,
        group(streams.plain[0], ["phenomenonTime", "resultTime", "result", "FeatureOfInterest/id"],
              ["2024-03-03T05:00:00Z", "2024-03-03T06:00:00Z", 5, feature]),
    )  # fmt: skip
    assert api.absolute(link)["resultTime"] == "2024-03-03T06:00:00Z"
    assert api.absolute(f"{link}/FeatureOfInterest")["@iot.id"] == feature


def test_results_come_back_exactly(api, streams):
    """req/data-array/data-array."""
    texts = [
        "1", "-0", "1.0", "1.10", "100000.0", "123456789012345678901234567890", "1e5", "0.00001", "1e-05", "-2.5",
        "1234567890123456.5", "0.1", '"7.5"', "true", "null", "999999999999999",
    ]  # fmt: skip
    numbers = [t for t in texts if t[0] not in 'tn"']
    for part in (texts, numbers):
        body = (
            f'[{{"Datastream":{{"@iot.id":{streams.plain[1]}}},"components":["result"],'
            f'"dataArray":[{",".join(f"[{t}]" for t in part)}]}}]'
        )
        for text, link in zip(part, api.post("/CreateObservations", body).json(), strict=True):
            single = api.post(f"/Datastreams({streams.plain[1]})/Observations", f'{{"result":{text}}}')
            value = api.client.get(f"{link}/result/$value").text
            assert value == api.client.get(f"{single.headers['location']}/result/$value").text


def test_numbers_that_arrive_as_strings_compare_as_numbers(api, streams):
    """req/data-array/data-array."""
    links = created(
        api, group(streams.plain[0], ["phenomenonTime", "result"],
                   ["2024-03-05T00:00:00Z", "4321.5"], ["2024-03-05T00:00:00Z", "9"]),
    )  # fmt: skip
    (found,) = api.values("/Observations?$filter=result gt 4000 and result lt 5000")
    assert found["@iot.selfLink"] == links[0]
    assert found["result"] == "4321.5"
    mixed = group(streams.plain[0], ["result", "parameters"], ["5321.5", {"a": 1}])
    created(api, mixed)
    assert len(api.values("/Observations?$filter=result gt 5000 and result lt 6000")) == 1


def test_the_count_and_the_newest_follow(api, streams):
    """req/data-array/data-array."""
    path = f"/Datastreams({streams.plain[0]})/Observations?$count=true&$top=1&$orderby=phenomenonTime desc"
    before = api.get(path)["@iot.count"]
    created(
        api, group(streams.plain[0], ["phenomenonTime", "result"], *[[f"2031-01-{d:02}T00:00:00Z", d] for d in range(1, 31)])
    )  # fmt: skip
    after = api.get(path)
    assert after["@iot.count"] == before + 30
    assert after["value"][0]["result"] == 30


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{}", b"[1]", b"[{}]", b"[[]]", b"\xff", b"[" * 3000,
        b'[{"components":["result"],"dataArray":[[1]]}]',
        b'[{"Datastream":{"@iot.id":1},"components":["colour"],"dataArray":[[1]]}]',
        b'[{"Datastream":{"@iot.id":1},"components":["result","result"],"dataArray":[[1,1]]}]',
        b'[{"Datastream":{"@iot.id":1},"components":"result","dataArray":[[1]]}]',
        b'[{"Datastream":{"@iot.id":1},"components":["result"],"dataArray":1}]',
        b'[{"Datastream":{"@iot.id":1},"components":["result"]}]',
    ],
)  # fmt: skip
def test_what_has_not_the_form_of_groups_is_refused(api, document):
    """req/data-array/data-array."""
    response = api.post("/CreateObservations", document)
    assert response.status_code == 400, response.text


@pytest.mark.parametrize(
    "link", [{}, 1, None, "x", {"@iot.id": "x"}, {"@iot.id": 0}, {"@iot.id": 2**63}, {"name": "new"}]
)
def test_a_datastream_is_named_by_its_id(api, link):
    """req/data-array/data-array."""
    body = json.dumps([{"Datastream": link, "components": ["result"], "dataArray": [[1]]}])
    response = api.post("/CreateObservations", body)
    assert response.status_code == 400 or response.json()[0].startswith("error")


def test_nothing_to_create_creates_nothing(api, streams):
    """req/data-array/data-array."""
    assert created(api) == []
    assert created(api, group(streams.plain[0], ["result"])) == []
    assert api.status("/CreateObservations") in {404, 405}


def test_rows_of_a_multi_datastream(api, documents):
    """req/data-array/data-array: results are arrays, of the right size."""
    units = [{"name": "n", "symbol": s, "definition": "d"} for s in "ab"]
    document = documents.whole_datastream("Multi")
    for name in ("unitOfMeasurement", "ObservedProperty"):
        del document[name]
    measurement = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement"
    document |= {
        "observationType": "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_ComplexObservation",
        "unitOfMeasurements": units,
        "multiObservationDataTypes": [measurement, measurement],
        "ObservedProperties": [documents.observed_property(name) for name in ("One", "Two")],
    }
    own = api.create("/MultiDatastreams", document)
    rows = {
        "MultiDatastream": {"@iot.id": own},
        "components": ["result"],
        "dataArray": [[[1, 2]], [3], [[4, 5]]],
    }
    outcomes = created(api, rows)
    assert [outcome.startswith("error") for outcome in outcomes] == [False, True, False]
    (group,) = api.get(f"/MultiDatastreams({own})/Observations?$resultFormat=dataArray&$select=result")[
        "value"
    ]
    assert group["MultiDatastream@iot.navigationLink"] == f"{api.root}/MultiDatastreams({own})"
    assert group["dataArray"] == [[[1, 2]], [[4, 5]]]
