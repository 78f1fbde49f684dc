"""Writers that meet: relations stay whole, and what the platform makes by itself is made once."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest

JSON = {"content-type": "application/json"}


def at_once(actions):
    """What each action returns, when all run at the same time."""
    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result() for future in [pool.submit(action) for action in actions]]


@pytest.fixture
def place(api, documents):
    """A Thing at a place with two Datastreams and a MultiDatastream that nothing has observed yet."""
    thing = api.create("/Things", documents.thing("Meeting", Locations=[documents.location("Meeting point")]))
    parts = {
        "Thing": {"@iot.id": thing},
        "Sensor": {"@iot.id": api.create("/Sensors", documents.sensor())},
    }
    measured = {"@iot.id": api.create("/ObservedProperties", documents.observed_property())}
    whole = documents.datastream(**parts, ObservedProperty=measured)
    multi = {
        "name": "m", "description": "d", "unitOfMeasurements": [{"name": "u"}], "multiObservationDataTypes": ["t"],
        "ObservedProperties": [measured],
    } | parts  # fmt: skip

    return SimpleNamespace(
        own=thing,
        location=api.ids(f"/Things({thing})/Locations")[0],
        streams=[api.create("/Datastreams", whole) for _ in range(2)],
        multi_datastream=api.create("/MultiDatastreams", multi),
    )


def whole(api):
    """Every reference leads somewhere, and the counts that are kept are right."""
    for path in (
        "/Observations?$filter=Datastream/id ne null and Datastream/name eq null",
        "/Observations?$filter=FeatureOfInterest/name eq null",
        "/Datastreams?$filter=Thing/name eq null or Sensor/name eq null",
        "/HistoricalLocations?$filter=Thing/name eq null",
    ):
        assert api.values(path) == []
    kept = api.get("/Observations?$top=0&$count=true")["@iot.count"]
    assert kept == api.get("/Observations?$top=0&$count=true&$filter=id gt 0")["@iot.count"]


def test_one_of_those_who_saw_the_same_version_changes_it(api, documents):
    """req/create-update-delete/update-entity: If-Match, as RFC 9110 §13.1.1 has it."""
    path = f"/Things({api.create('/Things', documents.thing())})"
    for _ in range(3):
        seen = {"if-match": api.response(path).headers["etag"]}
        documents_at_once = [{"properties": {"n": n}} for n in range(8)]
        actions = [partial(api.request, "PATCH", path, json=d, headers=seen) for d in documents_at_once]
        statuses = [response.status_code for response in at_once(actions)]
        assert sorted(statuses) == [200] + [412] * 7


def test_a_thing_that_many_move_is_in_one_place(api, documents, place):
    """req/create-update-delete/historical-location-auto-creation, req/create-update-delete/historical-location-manual-creation."""
    places = [api.create("/Locations", documents.location(f"Stop {n}")) for n in range(4)]
    path = f"/Things({place.own})"
    before = api.get(f"{path}/HistoricalLocations?$count=true")["@iot.count"]

    def move(n):
        target = {"@iot.id": places[n % 4]}
        if n % 3 == 0:
            return api.request("PATCH", path, json={"Locations": [target]}).status_code
        if n % 3 == 1:
            return api.post(f"{path}/Locations", documents.location(f"New stop {n}")).status_code
        document = {
            "time": f"2100-01-01T00:00:{n:02}Z",
            "Thing": {"@iot.id": place.own},
            "Locations": [target],
        }
        return api.post("/HistoricalLocations", document).status_code

    assert set(at_once([partial(move, n) for n in range(15)])) == {200, 201}
    assert len(api.ids(f"{path}/Locations")) == 1
    assert before < api.get(f"{path}/HistoricalLocations?$count=true")["@iot.count"] <= before + 15
    assert all(len(h["Locations"]) == 1 for h in api.values(f"{path}/HistoricalLocations?$expand=Locations"))


def test_first_observations_by_every_route_share_one_feature(api, place):
    """req/create-update-delete/create-entity: made once from the Thing's Location."""

    def observe(n):
        link = {"@iot.id": place.streams[n % 2]}
        match n % 5:
            case 0:
                return api.post("/Observations", {"result": n, "Datastream": link}).status_code
            case 1:
                return api.post(f"/Datastreams({link['@iot.id']})/Observations", {"result": n}).status_code
            case 2:
                group = {"Datastream": link, "components": ["result"], "dataArray": [[n], [n]]}
                return api.post("/CreateObservations", [group]).status_code
            case 3:
                document = {"result": [n], "MultiDatastream": {"@iot.id": place.multi_datastream}}
                return api.post("/Observations", document).status_code
            case _:
                request = {"id": "1", "atomicityGroup": "g", "method": "post", "url": "Observations"}
                request["body"] = {"result": n, "Datastream": link}
                batch = {"requests": [request]}
                response = api.request("POST", "/$batch", json=batch, headers=JSON)
                return response.json()["responses"][0]["status"]

    assert set(at_once([partial(observe, n) for n in range(15)])) == {201}
    features = {
        o["FeatureOfInterest"]["@iot.id"]
        for path in (
            *(f"/Datastreams({s})" for s in place.streams),
            f"/MultiDatastreams({place.multi_datastream})",
        )
        for o in api.values(f"{path}/Observations?$expand=FeatureOfInterest($select=id)")
    }
    assert len(features) == 1


def test_what_is_deleted_leaves_nothing_behind_whoever_adds_to_it(api, documents, place):
    """req/create-update-delete/delete-entity."""
    first = api.create(f"/Datastreams({place.streams[0]})/Observations", {"result": 0})
    feature = api.get(f"/Observations({first})/FeatureOfInterest")["@iot.id"]
    path = f"/Things({place.own})"
    elsewhere = api.create("/Locations", documents.location("Elsewhere"))

    def act(n):
        stream = place.streams[n % 2]
        if n in {6, 9, 12, 15}:
            target = {6: f"/FeaturesOfInterest({feature})", 9: f"/Locations({place.location})",
                      12: f"/Datastreams({place.streams[0]})", 15: path}[n]  # fmt: skip
            return api.request("DELETE", target).status_code
        match n % 4:
            case 0:
                group = {"Datastream": {"@iot.id": stream}, "components": ["result"], "dataArray": [[n]]}
                return api.post("/CreateObservations", [group]).status_code
            case 1:
                return api.post(f"/Datastreams({stream})/Observations", {"result": n}).status_code
            case 2:
                return api.post(
                    f"{path}/Datastreams", documents.whole_datastream() | {"Thing": {"@iot.id": place.own}}
                ).status_code
            case _:
                return api.request("PATCH", path, json={"Locations": [{"@iot.id": elsewhere}]}).status_code

    statuses = at_once([partial(act, n) for n in range(20)])
    assert set(statuses) <= {200, 201, 400, 404, 409}, statuses
    assert api.status(path) == 404
    for stream in place.streams:
        assert api.status(f"/Datastreams({stream})") == 404
        assert api.values(f"/Observations?$filter=Datastream/id eq {stream}") == []
    whole(api)


def test_computed_properties_are_right_after_edits_that_met(api, place):
    """req/datamodel/datastream/properties."""
    stream = f"/Datastreams({place.streams[0]})"
    made = [
        api.create(f"{stream}/Observations", {"result": n, "phenomenonTime": f"2020-01-01T00:00:{n:02}Z"})
        for n in range(10)
    ]

    def edit(n):
        match n % 3:
            case 0:
                later = {"phenomenonTime": f"2021-01-01T00:00:{n:02}Z"}
                return api.request("PATCH", f"/Observations({made[n % 10]})", json=later).status_code
            case 1:
                return api.request("DELETE", f"/Observations({made[n % 10]})").status_code
            case _:
                earlier = {"result": n, "phenomenonTime": f"2019-01-01T00:00:{n:02}Z"}
                return api.post(f"{stream}/Observations", earlier).status_code

    assert set(at_once([partial(edit, n) for n in range(24)])) <= {200, 201, 404}
    times = [o["phenomenonTime"] for o in api.values(f"{stream}/Observations?$orderby=phenomenonTime")]
    assert api.get(stream)["phenomenonTime"] == f"{times[0]}/{times[-1]}"
    assert api.get(f"{stream}/Observations?$count=true&$top=0")["@iot.count"] == len(times)
    whole(api)
