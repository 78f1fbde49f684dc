"""The service's root (OGC 18-088 §9.2.1), and what every answer has."""

from api.sensorthings.requirements import BASE, EXTENSIONS, HELD, TASKING_BASE, TASKING_CLASSES

SETS = {
    "Things",
    "Locations",
    "HistoricalLocations",
    "Datastreams",
    "MultiDatastreams",
    "Sensors",
    "Observations",
    "ObservedProperties",
    "FeaturesOfInterest",
    "TaskingCapabilities",
    "Tasks",
    "Actuators",
}


def test_the_root_lists_the_sets_and_each_is_reachable(api):
    """req/resource-path/resource-path-to-entities."""
    for address in (api.root, f"{api.root}/"):
        page = api.absolute(address)
        assert {entry["name"] for entry in page["value"]} == SETS
        for entry in page["value"]:
            assert entry["url"].startswith(f"{api.root}/")
            assert api.absolute(entry["url"]) == {"value": []}


def test_conformance_lists_what_holds(api):
    listed = api.get("/")["serverSettings"]["conformance"]
    assert BASE == "http://www.opengis.net/spec/iot_sensing/1.1/req/"
    assert TASKING_BASE == "http://www.opengis.net/spec/iot_tasking/1.0/req/"
    tasking = (*TASKING_CLASSES, *(name for names in TASKING_CLASSES.values() for name in names))
    held = {BASE + requirement for requirement in HELD} | {TASKING_BASE + name for name in tasking}
    assert sorted(listed) == sorted(held | {*EXTENSIONS})


def test_json_may_be_read_from_anywhere(api):
    response = api.response("/Things")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["access-control-allow-origin"] == "*"
    preflight = api.request("OPTIONS", "/Things", headers={"Origin": "https://x.example"})
    assert preflight.status_code == 204
    assert "GET" in preflight.headers["access-control-allow-methods"]


def test_head_answers_like_get_without_content(api):
    response = api.request("HEAD", "/Things")
    assert response.status_code == 200
    assert response.content == b""
    assert int(response.headers["content-length"]) == len(api.response("/Things").content)


def test_links_begin_with_the_host_that_was_asked(api):
    page = api.client.get(api.root, headers={"Host": "city.example:8443"}).json()
    assert page["value"][0]["url"] == "http://city.example:8443/v1.1/Things"
    injected = api.client.get(api.root, headers={"Host": 'x"}<script>'})
    assert "script" not in injected.text


def test_other_methods_are_refused(api):
    response = api.request("TRACE", "/Things")
    assert response.status_code == 405
    assert "GET" in response.headers["allow"]


def test_the_contract_describes_every_set(api):
    document = api.absolute(api.root.replace("/v1.1", "/openapi.json"))
    for name in SETS:
        assert f"/v1.1/{name}" in document["paths"]
    page = api.client.get(api.root.replace("/v1.1", "/docs"))
    assert page.status_code == 200
    assert "http://" not in page.text.replace("http://www.opengis.net", "")
    assert "https://" not in page.text
