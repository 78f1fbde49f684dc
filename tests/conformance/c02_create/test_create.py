"""Creating entities (OGC 18-088 §10.2)."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

NOW = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.mark.parametrize(
    ("path", "maker"),
    [
        ("/Things", "thing"),
        ("/Locations", "location"),
        ("/Sensors", "sensor"),
        ("/ObservedProperties", "observed_property"),
        ("/FeaturesOfInterest", "feature"),
        ("/Datastreams", "whole_datastream"),
    ],
)
def test_an_entity_is_created_and_found_at_its_self_link(api, documents, path, maker):
    """req/create-update-delete/create-entity: 201, Location is the self link, the entity comes back."""
    document = getattr(documents, maker)("Ünïcode 'quoted' \"name\" \\ %s 名")
    response = api.post(path, document)
    assert response.status_code == 201, response.text
    made = response.json()
    assert response.headers["location"] == made["@iot.selfLink"] == f"{api.root}{path}({made['@iot.id']})"
    again = api.absolute(made["@iot.selfLink"])
    assert again == made
    for name, value in document.items():
        if not name[0].isupper():
            assert again[name] == value


def test_a_historical_location_is_created(api, documents):
    """req/create-update-delete/historical-location-manual-creation."""
    own = api.create("/Things", documents.thing())
    place = api.create("/Locations", documents.location())
    made = api.create(
        "/HistoricalLocations",
        {"time": "2020-01-01T00:00:00Z", "Thing": {"@iot.id": own}, "Locations": [{"@iot.id": place}]},
    )
    assert api.get(f"/HistoricalLocations({made})")["time"] == "2020-01-01T00:00:00Z"
    assert api.ids(f"/HistoricalLocations({made})/Locations") == [place]
    assert api.get(f"/HistoricalLocations({made})/Thing")["@iot.id"] == own


def test_ids_grow_with_creation(api, documents):
    ids = [api.create("/Things", documents.thing()) for _ in range(3)]
    assert ids == sorted(set(ids))


def test_deep_insert_downwards(api, documents):
    """req/create-update-delete/deep-insert: related entities in the same request, to any depth, both directions."""
    document = documents.thing(
        "Deep",
        Locations=[documents.location("Deep place")],
        Datastreams=[
            documents.datastream(
                "Deep stream",
                Sensor=documents.sensor("Deep sensor"),
                ObservedProperty=documents.observed_property("Deep property"),
                Observations=[
                    {"phenomenonTime": "2024-01-01T00:00:00Z", "result": 1},
                    {
                        "phenomenonTime": "2024-01-01T01:00:00Z",
                        "result": 2,
                        "FeatureOfInterest": documents.feature("Deep feature"),
                    },
                ],
            )
        ],
    )
    own = api.create("/Things", document)
    (stream,) = api.values(
        f"/Things({own})/Datastreams?$expand=Sensor,ObservedProperty,Observations($expand=FeatureOfInterest)"
    )
    assert stream["Sensor"]["name"] == "Deep sensor"
    assert stream["ObservedProperty"]["name"] == "Deep property"
    assert [o["FeatureOfInterest"]["name"] for o in stream["Observations"]] == ["Deep place", "Deep feature"]
    assert stream["phenomenonTime"] == "2024-01-01T00:00:00Z/2024-01-01T01:00:00Z"


def test_deep_insert_upwards(api, documents):
    """req/create-update-delete/deep-insert: from an Observation up to the Thing and its Location."""
    document = {
        "result": 7,
        "phenomenonTime": "2024-02-01T00:00:00Z",
        "Datastream": documents.whole_datastream("Up"),
    }
    own = api.create("/Observations", document)
    found = api.get(f"/Observations({own})?$expand=FeatureOfInterest,Datastream/Thing/Locations")
    assert found["FeatureOfInterest"]["name"] == "Up's place"
    assert found["Datastream"]["Thing"]["Locations"][0]["name"] == "Up's place"


def test_deep_insert_from_the_other_end(api, documents):
    """req/create-update-delete/deep-insert."""
    sensor = api.create(
        "/Sensors",
        documents.sensor(
            "Owner",
            Datastreams=[
                documents.datastream(
                    "Owned",
                    Thing=documents.thing("Owned thing"),
                    ObservedProperty=documents.observed_property(),
                )
            ],
        ),
    )
    place = api.create(
        "/Locations", documents.location("Busy", Things=[documents.thing("One"), documents.thing("Two")])
    )
    assert [d["name"] for d in api.values(f"/Sensors({sensor})/Datastreams")] == ["Owned"]
    assert [t["name"] for t in api.values(f"/Locations({place})/Things")] == ["One", "Two"]
    assert len(api.values(f"/Locations({place})/HistoricalLocations")) == 2


def test_links_to_existing_entities(api, documents):
    """req/create-update-delete/link-to-existing-entities."""
    own = api.create("/Things", documents.thing())
    sensor = api.create("/Sensors", documents.sensor())
    gas = api.create("/ObservedProperties", documents.observed_property())
    links = {"Thing": {"@iot.id": own}, "Sensor": {"@iot.id": sensor}, "ObservedProperty": {"@iot.id": gas}}
    stream = api.create("/Datastreams", documents.datastream(**links))
    assert api.get(f"/Datastreams({stream})/Thing")["@iot.id"] == own
    assert api.get(f"/Datastreams({stream})/Sensor")["@iot.id"] == sensor
    assert api.get(f"/Datastreams({stream})/ObservedProperty")["@iot.id"] == gas


def test_a_missing_target_creates_nothing(api, documents):
    """req/create-update-delete/deep-insert-status-code: all or nothing."""
    before = {
        name: api.get(f"/{name}?$count=true&$top=0")["@iot.count"]
        for name in ("Things", "Sensors", "Datastreams")
    }
    document = documents.whole_datastream("Half", Sensor={"@iot.id": 987654321})
    response = api.post("/Datastreams", document)
    assert response.status_code == 400
    assert "Sensors(987654321)" in response.json()["message"]
    after = {name: api.get(f"/{name}?$count=true&$top=0")["@iot.count"] for name in before}
    assert after == before


def test_posting_to_a_navigation_link_ties_to_the_parent(api, documents):
    """req/create-update-delete/create-entity."""
    own = api.create("/Things", documents.thing())
    whole = documents.whole_datastream("Tied")
    del whole["Thing"]
    stream = api.create(f"/Things({own})/Datastreams", whole)
    assert api.get(f"/Datastreams({stream})/Thing")["@iot.id"] == own
    place = api.create(f"/Things({own})/Locations", documents.location("Tied place"))
    assert api.ids(f"/Things({own})/Locations") == [place]
    observation = api.create(f"/Things({own})/Datastreams({stream})/Observations", {"result": 1})
    assert api.ids(f"/Datastreams({stream})/Observations") == [observation]
    other = api.create("/Things", documents.thing())
    for path in (
        f"/Things({other})/Datastreams({stream})/Observations",
        "/Datastreams(987654321)/Observations",
    ):
        for document in ({"result": 1}, {"outcome": 1}, {"result": 1, "Datastream": {"@iot.id": 1}}, b"{"):
            assert api.post(path, document).status_code == 404  # whatever the document says
    assert api.post("/Things(987654321)/Datastreams", {}).status_code == 404
    refused = api.post(f"/Things({own})/Datastreams", whole | {"Thing": {"@iot.id": other}})
    assert refused.status_code == 400
    assert api.post(f"/Things({own})/Datastreams", whole | {"Thing": {"@iot.id": own}}).status_code == 201


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"\xff", "UTF-8"),
        (b'{"properties":' + b"[" * 3000 + b"]" * 3000 + b"}", "deep"),
        ({"name": "n"}, "description"),
        ({"name": "n", "description": None}, "description"),
        ({"name": 5, "description": "d"}, "name"),
        ({"name": "n", "description": "d", "colour": "red"}, "colour"),
        ({"name": "n", "description": "d", "properties": [1]}, "properties"),
        ({"name": "n\0", "description": "d"}, "NUL"),
        ({"name": "n", "description": "d", "properties": {"a": ["\0"]}}, "NUL"),
        (b'{"name": "n", "description": "d", "properties": {"a": "\\ud800"}}', "surrogate"),
        ({"name": "n", "description": "d", "Locations": {}}, "Locations"),
        ({"name": "n", "description": "d", "Locations": [5]}, "Locations[0]"),
        ({"name": "n", "description": "d", "Locations": [{"@iot.id": "x"}]}, "@iot.id"),
        ({"name": "n", "description": "d", "Locations": [{"name": "l"}]}, "Locations[0]"),
        ({"name": "n", "description": "d", "Datastreams": [{"@iot.id": 2**63}]}, "@iot.id"),
    ],
)
def test_what_is_malformed_is_refused_and_says_where(api, document, message):
    """req/create-update-delete/create-entity: 400 for what the standard does not allow."""
    response = api.post("/Things", document)
    assert response.status_code == 400, response.text
    assert message in response.json()["message"]


def test_control_information_in_a_document_is_ignored(api, documents):
    made = api.get(f"/Things({api.create('/Things', documents.thing())})")
    copied = api.create("/Things", made | {"@odata.type": "#Thing", "name@odata.type": "Edm.String"})
    assert copied > made["@iot.id"]
    assert api.get(f"/Things({copied})")["name"] == made["name"]


def test_entities_are_created_only_at_sets(api, documents):
    own = api.create("/Things", documents.thing())
    assert api.post(f"/Things({own})", documents.thing()).status_code == 405
    assert api.post(f"/Things({own})/name", documents.thing()).status_code == 405
    assert api.post("/Nothings", documents.thing()).status_code == 404


class TestLocationsOfThings:
    """req/create-update-delete/historical-location-auto-creation."""

    def test_a_thing_created_with_locations_has_a_historical_location(self, api, documents):
        own = api.create(
            "/Things", documents.thing(Locations=[documents.location("A"), documents.location("B")])
        )
        (history,) = api.values(f"/Things({own})/HistoricalLocations?$expand=Locations")
        assert NOW.fullmatch(history["time"])
        assert [place["name"] for place in history["Locations"]] == ["A", "B"]

    def test_a_new_location_moves_the_thing(self, api, documents):
        own = api.create("/Things", documents.thing(Locations=[documents.location("A")]))
        api.create(f"/Things({own})/Locations", documents.location("B"))
        api.create("/Locations", documents.location("C", Things=[{"@iot.id": own}]))
        assert [place["name"] for place in api.values(f"/Things({own})/Locations")] == ["C"]
        history = api.values(f"/Things({own})/HistoricalLocations?$expand=Locations&$orderby=id")
        assert [h["Locations"][0]["name"] for h in history] == ["A", "B", "C"]

    def test_a_later_manual_one_moves_the_thing_and_an_earlier_one_does_not(self, api, documents):
        """req/create-update-delete/historical-location-manual-creation."""
        own = api.create("/Things", documents.thing())
        places = [api.create("/Locations", documents.location(name)) for name in "ABC"]
        for time, place in (("2016-01-01T06:00Z", 0), ("2016-01-01T07:00Z", 1), ("2016-01-01T05:00Z", 2)):
            links = {"Thing": {"@iot.id": own}, "Locations": [{"@iot.id": places[place]}]}
            api.create("/HistoricalLocations", {"time": time} | links)
        assert api.ids(f"/Things({own})/Locations") == [places[1]]
        assert len(api.values(f"/Things({own})/HistoricalLocations")) == 3


class TestFeaturesMadeFromLocations:
    """req/create-update-delete/create-entity: an Observation without a feature gets one from the Thing's Location."""

    def test_it_is_made_once_and_shared_by_every_datastream_of_every_thing_there(self, api, documents):
        place = api.create("/Locations", documents.location("Shared", properties={"a": 1}))
        first = api.create(
            "/Datastreams",
            documents.whole_datastream("1", Thing=documents.thing(Locations=[{"@iot.id": place}])),
        )
        second = api.create(
            "/Datastreams",
            documents.whole_datastream("2", Thing=documents.thing(Locations=[{"@iot.id": place}])),
        )
        made = [
            api.create("/Observations", {"result": 1, "Datastream": {"@iot.id": d}})
            for d in (first, second, first)
        ]
        features = [api.get(f"/Observations({o})/FeatureOfInterest") for o in made]
        assert len({f["@iot.id"] for f in features}) == 1
        assert features[0]["name"].startswith("Shared")
        assert features[0]["feature"] == documents.point()
        assert features[0]["encodingType"] == "application/geo+json"

    def test_the_geojson_location_of_several_is_taken(self, api, documents):
        places = [
            documents.location("Address", encodingType="text/plain", location="Main Street 1"),
            documents.location("Coordinates", encodingType="application/vnd.geo+json"),
            documents.location("Directions", encodingType="text/plain", location=""),
        ]
        stream = api.create(
            "/Datastreams", documents.whole_datastream("G", Thing=documents.thing(Locations=places))
        )
        own = api.create("/Observations", {"result": 1, "Datastream": {"@iot.id": stream}})
        assert api.get(f"/Observations({own})/FeatureOfInterest")["name"] == "Coordinates"

    def test_after_a_move_there_is_another(self, api, documents):
        stream = api.create("/Datastreams", documents.whole_datastream("M"))
        own = api.get(f"/Datastreams({stream})/Thing")["@iot.id"]
        one = api.create(f"/Datastreams({stream})/Observations", {"result": 1})
        api.create(
            f"/Things({own})/Locations", documents.location("Elsewhere", location=documents.point(3, 42))
        )
        two = api.create(f"/Datastreams({stream})/Observations", {"result": 1})
        names = [api.get(f"/Observations({o})/FeatureOfInterest")["name"] for o in (one, two)]
        assert names == ["M's place", "Elsewhere"]

    def test_without_a_location_the_observation_is_refused(self, api, documents):
        stream = api.create("/Datastreams", documents.whole_datastream("H", Thing=documents.thing()))
        response = api.post(f"/Datastreams({stream})/Observations", {"result": 1})
        assert response.status_code == 400
        assert "Location" in response.json()["message"]
        with_one = {"result": 1, "FeatureOfInterest": documents.feature()}
        assert api.post(f"/Datastreams({stream})/Observations", with_one).status_code == 201

    def test_a_dozen_first_observations_at_once_make_one(self, api, documents):
        stream = api.create("/Datastreams", documents.whole_datastream("Twelve"))
        with ThreadPoolExecutor(12) as pool:
            made = list(
                pool.map(
                    lambda n: api.create(f"/Datastreams({stream})/Observations", {"result": n}), range(12)
                )
            )
        features = {api.get(f"/Observations({o})/FeatureOfInterest")["@iot.id"] for o in made}
        assert len(features) == 1
        assert len(api.values("/FeaturesOfInterest?$filter=name eq 'Twelve''s place'")) == 1


def test_phenomenon_time_defaults_to_now_and_result_time_to_null(api, documents):
    """req/create-update-delete/create-entity (OGC 18-088 §10.2.1, defaults)."""
    stream = api.create("/Datastreams", documents.whole_datastream("D"))
    own = api.get(f"/Observations({api.create(f'/Datastreams({stream})/Observations', {'result': 1})})")
    assert NOW.fullmatch(own["phenomenonTime"])
    assert own["resultTime"] is None


def test_an_observation_needs_a_datastream_and_a_result(api, documents):
    """req/create-update-delete/create-entity."""
    assert api.post("/Observations", {"result": 1}).status_code == 400
    assert api.post("/Observations", {"result": 1, "Datastream": {"@iot.id": 987654321}}).status_code == 400
    stream = api.create("/Datastreams", documents.whole_datastream("R"))
    assert api.post(f"/Datastreams({stream})/Observations", {}).status_code == 400
    no_feature = {"result": 1, "FeatureOfInterest": {"@iot.id": 987654321}}
    assert api.post(f"/Datastreams({stream})/Observations", no_feature).status_code == 400
