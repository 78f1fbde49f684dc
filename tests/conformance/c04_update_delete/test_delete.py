"""Deleting entities (OGC 18-088 §10.4), and what a filter matches."""

import pytest

SETS = (
    "Things",
    "Locations",
    "HistoricalLocations",
    "Datastreams",
    "Sensors",
    "ObservedProperties",
    "Observations",
    "FeaturesOfInterest",
)
# Table 26: what goes along with an entity.
CASCADES = {
    "Things": {"Datastreams", "Observations", "HistoricalLocations"},
    "Locations": {"HistoricalLocations"},
    "HistoricalLocations": set(),
    "Datastreams": {"Observations"},
    "Sensors": {"Datastreams", "Observations"},
    "ObservedProperties": {"Datastreams", "Observations"},
    "Observations": set(),
    "FeaturesOfInterest": {"Observations"},
}


def chain(api, documents, name):
    """One entity of every kind, all related: their ids by set."""
    stream = api.create("/Datastreams", documents.whole_datastream(name))
    observation = api.create(
        f"/Datastreams({stream})/Observations", {"phenomenonTime": "2024-01-01T00:00:00Z", "result": 1}
    )
    path = f"/Datastreams({stream})"
    return {
        "Things": api.get(f"{path}/Thing")["@iot.id"],
        "Locations": api.ids(f"{path}/Thing/Locations")[0],
        "HistoricalLocations": api.ids(f"{path}/Thing/HistoricalLocations")[0],
        "Datastreams": stream,
        "Sensors": api.get(f"{path}/Sensor")["@iot.id"],
        "ObservedProperties": api.get(f"{path}/ObservedProperty")["@iot.id"],
        "Observations": observation,
        "FeaturesOfInterest": api.get(f"/Observations({observation})/FeatureOfInterest")["@iot.id"],
    }


@pytest.mark.parametrize("deleted", SETS)
def test_a_deleted_entity_takes_along_what_the_standard_says_and_no_more(api, documents, deleted):
    """req/create-update-delete/delete-entity: 200, then 404; the integrity constraints of Table 26, exactly."""
    ids = chain(api, documents, deleted)
    others = chain(api, documents, f"{deleted} beside")
    response = api.request("DELETE", f"/{deleted}({ids[deleted]})")
    assert (response.status_code, response.content) == (200, b"")
    assert "content-type" not in response.headers  # of nothing
    gone = CASCADES[deleted] | {deleted}
    assert {name for name, own in ids.items() if api.status(f"/{name}({own})") == 404} == gone
    assert all(api.status(f"/{name}({own})") == 200 for name, own in others.items())
    assert api.request("DELETE", f"/{deleted}({ids[deleted]})").status_code == 404


def test_computed_properties_follow_a_deletion(api, documents):
    """req/create-update-delete/delete-entity."""
    stream = api.create("/Datastreams", documents.whole_datastream("Shrinking"))
    ids = [
        api.create(
            f"/Datastreams({stream})/Observations",
            {
                "phenomenonTime": f"2024-01-0{day}T00:00:00Z",
                "resultTime": f"2024-02-0{day}T00:00:00Z",
                "result": day,
            },
        )
        for day in (1, 2, 3)
    ]
    api.request("DELETE", f"/Observations({ids[2]})")
    found = api.get(f"/Datastreams({stream})")
    assert found["phenomenonTime"] == "2024-01-01T00:00:00Z/2024-01-02T00:00:00Z"
    assert found["resultTime"] == "2024-02-01T00:00:00Z/2024-02-02T00:00:00Z"
    assert api.get("/Observations?$count=true&$top=0")["@iot.count"] == len(api.walk("/Observations"))
    for own in ids[:2]:
        api.request("DELETE", f"/Observations({own})")
    found = api.get(f"/Datastreams({stream})")
    assert not {"phenomenonTime", "resultTime", "observedArea"} & found.keys()


def test_the_next_observation_after_its_feature_was_deleted_gets_a_new_one(api, documents):
    ids = chain(api, documents, "Featureless")
    api.request("DELETE", f"/FeaturesOfInterest({ids['FeaturesOfInterest']})")
    path = f"/Datastreams({ids['Datastreams']})/Observations"
    own = api.create(path, {"phenomenonTime": "2024-01-01T00:00:00Z", "result": 1})
    assert api.get(f"/Observations({own})/FeatureOfInterest")["@iot.id"] != ids["FeaturesOfInterest"]
    assert api.get(f"/Datastreams({ids['Datastreams']})")["observedArea"] == documents.point()


def test_the_observed_area_of_several_features_is_their_envelope(api, documents):
    """req/datamodel/datastream/properties: observedArea is a GeoJSON Polygon."""
    stream = api.create("/Datastreams", documents.whole_datastream("Wide"))
    ids = [
        api.create(
            f"/Datastreams({stream})/Observations",
            {"result": 1, "FeatureOfInterest": documents.feature("f", feature=documents.point(*place))},
        )
        for place in ((1, 10), (3, 30), (2, 20))
    ]
    area = api.get(f"/Datastreams({stream})")["observedArea"]
    assert area == {"type": "Polygon", "coordinates": [[[1, 10], [3, 10], [3, 30], [1, 30], [1, 10]]]}
    api.request("DELETE", f"/Observations({ids[1]})")
    area = api.get(f"/Datastreams({stream})")["observedArea"]
    assert area["coordinates"] == [[[1, 10], [2, 10], [2, 20], [1, 20], [1, 10]]]


def test_the_observed_area_of_features_on_a_line_is_a_line(api, documents):
    """req/datamodel/datastream/properties: a polygon that encloses nothing is no GeoJSON (RFC 7946 §3.1.6)."""
    stream = api.create("/Datastreams", documents.whole_datastream("Narrow"))

    def observe(*place):
        feature = documents.feature("f", feature={"type": "Point", "coordinates": list(place)})
        api.create(f"/Datastreams({stream})/Observations", {"result": 1, "FeatureOfInterest": feature})
        return api.get(f"/Datastreams({stream})")["observedArea"]

    assert observe(8, 51) == {"type": "Point", "coordinates": [8, 51]}
    assert observe(8, 51, 100) == {"type": "Point", "coordinates": [8, 51]}
    assert observe(8, 52) == {"type": "LineString", "coordinates": [[8, 51], [8, 52]]}
    assert api.ids(f"/Datastreams?$filter=observedArea/type eq 'LineString' and id eq {stream}") == [stream]
    assert observe(9, 51)["type"] == "Polygon"


def test_what_a_filter_matches_is_deleted(api, documents):
    """req/filtered-delete: DELETE of a collection with a filter."""
    stream = api.create("/Datastreams", documents.whole_datastream("Filtered"))
    other = api.create("/Datastreams", documents.whole_datastream("Not filtered"))
    for datastream in (stream, other):
        for hour in range(10):
            document = {"phenomenonTime": f"2024-01-01T0{hour}:00:00Z", "result": hour}
            api.create(f"/Datastreams({datastream})/Observations", document)
    response = api.request(
        "DELETE", f"/Datastreams({stream})/Observations?$filter=result ge 4 and result lt 8"
    )
    assert (response.status_code, response.content) == (200, b"")
    left = api.values(f"/Datastreams({stream})/Observations?$orderby=result")
    assert [found["result"] for found in left] == [0, 1, 2, 3, 8, 9]
    deleted = api.request(
        "DELETE",
        "/Observations?$filter=Datastream/name eq 'Filtered' and phenomenonTime gt 2024-01-01T08:00:00Z",
    )
    assert deleted.status_code == 200
    assert api.get(f"/Datastreams({stream})/Observations?$count=true")["@iot.count"] == 5
    assert api.get(f"/Datastreams({stream})")["phenomenonTime"] == "2024-01-01T00:00:00Z/2024-01-01T08:00:00Z"
    assert api.get(f"/Datastreams({other})/Observations?$count=true")["@iot.count"] == 10
    names = [api.create("/Things", documents.thing(name)) for name in ("Gone", "Gone", "Stays")]
    api.request("DELETE", "/Things?$filter=name eq 'Gone'")
    assert [api.status(f"/Things({own})") for own in names] == [404, 404, 200]


def test_a_collection_is_not_deleted_as_a_whole(api, documents):
    ids = chain(api, documents, "Kept")
    for path in (
        "/Observations",
        f"/Datastreams({ids['Datastreams']})/Observations",
        "/Observations?$top=1",
        "/Observations?$filter=result gt 0&$top=1",
        "/Observations?$filter=result gt",
        "/Things?$filter=nothing eq 1",
    ):
        assert api.request("DELETE", path).status_code == 400, path
    assert api.request("DELETE", "/Datastreams(999999999)/Observations?$filter=true").status_code == 404
    assert api.request("DELETE", f"/Things({ids['Things']})/name").status_code == 405
    assert all(api.status(f"/{name}({own})") == 200 for name, own in ids.items())
