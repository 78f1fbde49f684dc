"""Single Observations that are posted at the same time: stored together, answered each by itself."""

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def streams(api, documents):
    return [api.create("/Datastreams", documents.whole_datastream(f"Together {n}")) for n in range(3)]


def test_each_gets_its_own_answer(api, documents, streams):
    """req/create-update-delete/create-entity."""
    homeless = api.create("/Datastreams", documents.whole_datastream("Homeless", Thing=documents.thing()))
    feature = api.create("/FeaturesOfInterest", documents.feature("Named"))

    def post(n):
        kinds = [
            (f"/Datastreams({streams[n % 3]})/Observations", {"result": n, "parameters": {"n": n}}, 201),
            ("/Observations", {"result": n, "Datastream": {"@iot.id": streams[n % 3]}}, 201),
            ("/Observations",
             {"result": n, "Datastream": {"@iot.id": streams[0]}, "FeatureOfInterest": {"@iot.id": feature}}, 201),
            (f"/Datastreams({streams[0]})/Observations", {}, 400),
            ("/Datastreams(987654321)/Observations", {"result": n}, 404),
            ("/Observations", {"result": n, "Datastream": {"@iot.id": 987654321}}, 400),
            (f"/Datastreams({homeless})/Observations", {"result": n}, 400),
            (f"/Datastreams({streams[1]})/Observations", b'{"result": 1e999999}', 400),
            (f"/Datastreams({streams[1]})/Observations",
             {"result": n, "FeatureOfInterest": documents.feature(f"Deep {n}")}, 201),
        ]  # fmt: skip
        path, document, status = kinds[n % len(kinds)]
        return n, status, api.post(path, document)

    before = api.get("/Observations?$count=true&$top=0")["@iot.count"]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(post, range(90)))
    assert [response.status_code for _, _, response in found] == [status for _, status, _ in found]
    made = [(n, response) for n, _, response in found if response.status_code == 201]
    assert [response.json()["result"] for _, response in made] == [n for n, _ in made]
    for _, response in made:
        entity = response.json()
        assert response.headers["location"] == entity["@iot.selfLink"]
        assert api.absolute(entity["@iot.selfLink"]) == entity
        assert response.headers["etag"] == api.client.get(entity["@iot.selfLink"]).headers["etag"]
    assert api.get("/Observations?$count=true&$top=0")["@iot.count"] == before + len(made)


def test_links_are_those_of_the_own_request(api, streams):
    """req/create-update-delete/create-entity."""

    def post(n):
        headers = {"Host": f"city{n % 3}.example"}
        url = f"{api.root}/Datastreams({streams[0]})/Observations"
        return n, api.client.post(url, json={"result": n}, headers=headers)

    with ThreadPoolExecutor(12) as pool:
        for n, response in pool.map(post, range(36)):
            assert response.status_code == 201, response.text
            assert response.headers["location"].startswith(f"http://city{n % 3}.example/v1.1/Observations(")
            assert response.json()["@iot.selfLink"] == response.headers["location"]
            assert response.json()["result"] == n


def test_a_move_of_the_thing_in_between_is_seen(api, documents, streams):
    """req/create-update-delete/create-entity: what is remembered of a Datastream ends when its Thing moves."""
    thing = api.get(f"/Datastreams({streams[2]})/Thing")["@iot.id"]
    path = f"/Datastreams({streams[2]})/Observations"
    names = []
    for n in range(4):
        api.create(f"/Things({thing})/Locations", documents.location(f"Stop {n}"))
        for _ in range(2):
            own = api.create(path, {"result": n})
            names.append(api.get(f"/Observations({own})/FeatureOfInterest")["name"])
    assert names == [f"Stop {n}" for n in range(4) for _ in range(2)]
    feature = api.get(f"/Observations({own})/FeatureOfInterest")["@iot.id"]
    assert api.request("DELETE", f"/FeaturesOfInterest({feature})").status_code == 200
    own = api.create(path, {"result": 9})
    assert api.get(f"/Observations({own})/FeatureOfInterest")["@iot.id"] > feature
