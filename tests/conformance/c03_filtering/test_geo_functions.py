"""Geo functions in `$filter` and `$orderby`, against what each row's geometry really is."""

from types import SimpleNamespace

import pytest

SQUARE = "geography'POLYGON ((0 0, 10 0, 10 10, 0 10, 0 0))'"
POINTS = {"inside": [5, 5], "edge": [10, 5], "outside": [20, 5], "far": [130, 45]}
NAMES = {
    "line": {"type": "LineString", "coordinates": [[-3, 5], [13, 5]]},
    "area": {"type": "Polygon", "coordinates": [[[5, 5], [15, 5], [15, 15], [5, 15], [5, 5]]]},
    "square": {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]},
    "bow": {"type": "Polygon", "coordinates": [[[1, 1], [3, 3], [1, 3], [3, 1], [1, 1]]]},  # crosses itself
}
NONE = {
    "address": {"street": "Carrer de Mallorca", "type": "Address"},
    "text": "POINT (5 5)",
    "broken": {"type": "Point", "coordinates": ["a", "b"]},
    "empty": {"type": "Point", "coordinates": []},
    "open": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1]]]},
    "nobody": {"type": "Feature", "geometry": None, "properties": {}},
    "list": [5, 5],
}


@pytest.fixture(scope="module")
def places(api, documents) -> SimpleNamespace:
    """A Thing at each place, with a Datastream and an Observation."""
    geometries = {name: {"type": "Point", "coordinates": at} for name, at in POINTS.items()} | NAMES | NONE
    geometries["feature"] = {
        "type": "Feature",
        "properties": {},
        "geometry": {"type": "Point", "coordinates": [6, 6, 9]},
    }
    found = SimpleNamespace(things={}, streams={}, locations={})
    for name, geometry in geometries.items():
        document = documents.thing(name, Locations=[documents.location(name, location=geometry)])
        found.things[name] = api.create("/Things", document)
        stream = documents.datastream(
            name,
            Thing={"@iot.id": found.things[name]},
            Sensor=documents.sensor(),
            ObservedProperty=documents.observed_property(),
        )
        found.streams[name] = api.create("/Datastreams", stream)
        api.create(f"/Datastreams({found.streams[name]})/Observations", {"result": len(name)})
    api.create("/Things", documents.thing("nowhere"))
    return found


def named(api, path):
    return [entity["name"] for entity in api.values(path)]


SHAPES = {"line", "area", "square", "bow"}
GEOMETRIES = {*POINTS, *SHAPES, "feature"}

CASES = [
    (f"geo.intersects(location, {SQUARE})", {"inside", "edge", "feature", *SHAPES}),
    (f"st_intersects({SQUARE}, location)", {"inside", "edge", "feature", *SHAPES}),
    (f"st_within(location, {SQUARE})", {"inside", "feature", "square", "bow"}),
    (f"st_contains({SQUARE}, location)", {"inside", "feature", "square", "bow"}),
    ("st_contains(location, geography'POINT (5 5)')", {"inside", "line", "square"}),
    ("st_within(geography'POINT (5 5)', location)", {"inside", "line", "square"}),
    (f"st_disjoint(location, {SQUARE})", {"outside", "far"}),
    (f"st_touches(location, {SQUARE})", {"edge"}),
    (f"st_overlaps(location, {SQUARE})", {"area"}),
    (f"st_crosses(location, {SQUARE})", {"line"}),
    (f"st_crosses({SQUARE}, location)", {"line"}),
    (f"st_equals(location, {SQUARE})", {"square"}),
    (f"st_relate(location, {SQUARE}, 'T*F**F***')", {"inside", "feature", "square", "bow"}),
    (f"st_relate({SQUARE}, location, 'T*****FF*')", {"inside", "feature", "square", "bow"}),
    (f"st_relate(location, {SQUARE}, 'FF*FF****')", {"outside", "far"}),
    ("geo.distance(location, geography'POINT (5 5)') lt 6", {"inside", "edge", "feature", *SHAPES}),
    ("geo.distance(location, geography'POINT (5 5)') le 5", {"inside", "edge", "feature", *SHAPES}),
    ("5 gt geo.distance(geography'POINT (5 5)', location)", {"inside", "feature", *SHAPES}),
    ("geo.distance(location, geography'POINT (5 5)') eq 15", {"outside"}),
    ("geo.distance(location, geography'POINT (5 5)') ge 15", {"outside", "far"}),
    ("geo.distance(location, geography'POINT (5 5)') mul 2 eq 30", {"outside"}),
    ("geo.distance(location, geography'POINT (5 5)') lt -1", set()),
    ("geo.length(location) eq 16", {"line"}),
    ("geo.length(geography'LINESTRING (0 0, 3 4)') eq 5", {*GEOMETRIES, *NONE}),
    (
        "st_within(geography'POINT (1 1)', geography'POLYGON ((0 0, 2 0, 2 2, 0 2, 0 0))')",
        {*GEOMETRIES, *NONE},
    ),
    (f"not st_within(location, {SQUARE})", {"edge", "outside", "far", "line", "area"}),
    (
        f"not (st_within(location, {SQUARE}) or st_touches(location, {SQUARE}))",
        {"outside", "far", "line", "area"},
    ),
    (f"not (not st_within(location, {SQUARE}))", {"inside", "feature", "square", "bow"}),
    (f"st_within(location, {SQUARE}) eq false", {"edge", "outside", "far", "line", "area"}),
    (f"(not st_within(location, {SQUARE})) eq true", {"edge", "outside", "far", "line", "area"}),
    (f"st_within(location, {SQUARE}) eq null", {*NONE}),
    (f"st_within(location, {SQUARE}) ne null", GEOMETRIES),
    (f"geo.distance(location, {SQUARE}) eq null", {*NONE}),
    (f"st_within(location, {SQUARE}) and geo.length(location) ge 0", {"inside", "feature", "square", "bow"}),
    ("geo.length(location) gt 0", {"line"}),  # an area has no length, only a perimeter
    ("geo.length(location) eq 0", GEOMETRIES - {"line"}),
    (f"geo.length({SQUARE}) eq 0", {*GEOMETRIES, *NONE}),
    ("st_equals(location, location)", GEOMETRIES),
    ("geo.distance(location, location) eq 0", GEOMETRIES),
    ("geo.distance(location, location) add 1 eq 1", GEOMETRIES),
    ("location eq geography'POINT (5 5)'", set()),
    ("st_within(name, geography'POINT (5 5)')", set()),
    ("not st_within(name, geography'POINT (5 5)')", set()),
    ("st_within(properties/at, geography'POINT (5 5)')", set()),
    ("geo.distance(description, location) lt 5", set()),
    ("geo.distance(location, geography'POINT EMPTY') ge 0", set()),
    ("geo.distance(location, geography'SRID=4326;POINT (5 5)') eq 15", {"outside"}),
    ("geo.distance(location, geometry'POINT (5 5)') eq 15", {"outside"}),
    ("geo.distance(location, geography'POINT (5, 5)') eq 15", {"outside"}),  # as the standard writes it once
]


@pytest.mark.parametrize(("condition", "names"), CASES)
def test_a_condition_on_locations(api, places, condition, names):  # noqa: ARG001
    """req/request-data/built-in-query-functions"""
    page = api.get(f"/Locations?$filter={condition}&$top=100&$count=true")
    assert {entity["name"] for entity in page["value"]} == names
    assert page["@iot.count"] == len(names)


WITHIN = {"inside", "feature", "square", "bow"}
RELATED = [
    ("Things", f"st_within(Locations/location, {SQUARE})", WITHIN),
    ("Things", f"Locations/any(l: st_within(l/location, {SQUARE}))", WITHIN),
    ("Things", f"Locations/any(l: not st_within(l/location, {SQUARE}))", {"edge", "outside", "far", "line", "area"}),
    ("Things", f"not st_within(Locations/location, {SQUARE})", {*GEOMETRIES, *NONE, "nowhere"} - WITHIN),
    ("Things", f"Locations/all(l: st_within(l/location, {SQUARE}))", {*WITHIN, "nowhere"}),
    ("Things", "geo.distance(Locations/location, geography'POINT (5 5)') eq 15", {"outside"}),
    ("Things", "geo.distance(Locations/location, geography'POINT (5 5)') sub 15 eq 0", {"outside"}),
    ("Things", "st_equals(Locations/location, Datastreams/observedArea)", GEOMETRIES),
    ("Things", "Datastreams/any(d: geo.distance(d/observedArea, Locations/location) mul 2 eq 0)", GEOMETRIES),
    ("Datastreams", f"st_within(observedArea, {SQUARE})", WITHIN),
    ("Datastreams", f"st_within(Thing/Locations/location, {SQUARE})", WITHIN),
    ("Datastreams", f"st_within(Observations/FeatureOfInterest/feature, {SQUARE})", WITHIN),
    ("FeaturesOfInterest", f"st_within(feature, {SQUARE})", WITHIN),
]  # fmt: skip


@pytest.mark.parametrize(("entities", "condition", "names"), RELATED)
def test_a_condition_through_relations(api, places, entities, condition, names):  # noqa: ARG001
    """req/request-data/built-in-query-functions"""
    assert set(named(api, f"/{entities}?$filter={condition}")) == names


OBSERVED = [
    (f"st_within(FeatureOfInterest/feature, {SQUARE})", WITHIN),
    (f"not st_within(FeatureOfInterest/feature, {SQUARE})", {"edge", "outside", "far", "line", "area"}),
    (f"st_within(FeatureOfInterest/feature, {SQUARE}) and result gt 5", {"inside", "feature", "square"}),
    (f"st_within(Datastream/observedArea, {SQUARE})", WITHIN),
    ("geo.distance(FeatureOfInterest/feature, Datastream/observedArea) eq 0", GEOMETRIES),
    ("geo.distance(FeatureOfInterest/feature, geography'POINT (5 5)') add 0 eq 15", {"outside"}),
]


@pytest.mark.parametrize(("condition", "names"), OBSERVED)
def test_a_condition_on_observations(api, places, condition, names):  # noqa: ARG001
    """req/request-data/built-in-query-functions"""
    found = api.values(f"/Observations?$filter={condition}&$expand=Datastream")
    assert {entity["Datastream"]["name"] for entity in found} == names


def test_an_order(api, places):  # noqa: ARG001
    """req/request-data/built-in-query-functions: the nearest first; what has no distance is null."""
    order = "$orderby=geo.distance(location, geography'POINT (20 5)')"
    points = "geo.length(location) eq 0 and location/type ne 'Polygon'"
    names = named(api, f"/Locations?{order},id&$filter={points}")
    assert names == ["outside", "edge", "feature", "inside", "far"]
    everything = [e["name"] for e in api.walk(f"/Locations?{order} desc&$top=3")]
    assert everything[0] == "far"
    assert set(everything[-len(NONE) :]) == set(NONE)
    assert len(everything) == len(GEOMETRIES) + len(NONE)
    ascending = [e["name"] for e in api.walk(f"/Locations?{order}&$top=2")]
    assert set(ascending[: len(NONE)]) == set(NONE)
    assert ascending[len(NONE)] == "outside"
    truth = [
        e["name"] for e in api.walk(f"/Locations?$orderby=st_within(location, {SQUARE}) desc,name&$top=4")
    ]
    assert truth[:4] == sorted(WITHIN)
    nearest = api.values(
        "/Observations?$orderby=geo.distance(FeatureOfInterest/feature, Datastream/observedArea) desc&$top=1"
    )
    assert len(nearest) == 1


def test_an_order_of_things_in_an_expansion(api, places):
    """req/request-data/built-in-query-functions"""
    thing = places.things["inside"]
    expand = (
        f"$expand=Locations($filter=st_within(location, {SQUARE});$orderby=geo.distance(location, {SQUARE}))"
    )
    assert len(api.get(f"/Things({thing})?{expand}")["Locations"]) == 1
    assert api.get(f"/Things({places.things['outside']})?{expand}")["Locations"] == []
    assert len(api.values(f"/Things({thing})/Locations?$filter=st_within(location, {SQUARE})")) == 1


def test_what_is_created_is_found_at_once(api, documents, places):  # noqa: ARG001
    """req/request-data/built-in-query-functions"""
    path = "/Locations?$filter=st_within(location, geography'POLYGON ((70 70, 72 70, 72 72, 70 72, 70 70))')"
    for count in range(1, 4):
        api.create("/Locations", documents.location("new", location=documents.point(71, 71)))
        assert len(api.values(path)) == count


@pytest.mark.parametrize(
    ("condition", "at"),
    [
        ("st_within(location, geography'POLYGON ((0 0, 1 1')", 21),
        ("st_within(location, geography'POLYGON ((0 0, 1 1, 0 1))')", 21),
        ("st_within(location, geography'HOUSE (5 5)')", 21),
        ("st_within(location, geography'')", 21),
        ("st_within(location, geography'CIRCULARSTRING (0 0, 1 1, 2 0)')", 21),
        ("st_within(location, geography'POINT (nan 1)')", 21),
        ("geo.distance(location, geography'POINT (1e999 1)') lt 1", 24),
        ("st_within(location)", 1),
        ("geo.length(location, location) eq 1", 1),
        ("st_relate(location, geography'POINT (1 1)')", 1),
        ("st_relate(location, geography'POINT (1 1)', 'T')", 45),
        ("st_relate(location, geography'POINT (1 1)', name)", 45),
        ("st_within(nothing, geography'POINT (1 1)')", 11),
        ("geo.area(location) gt 1", 1),
    ],
)
def test_what_is_malformed_is_refused_with_its_position(api, condition, at):
    """req/request-data/query-status-code"""
    assert f"(at character {at}," in api.refused(f"/Locations?$filter={condition}")


def test_limits(api):
    """No request takes more than its share."""
    many = " or ".join(f"st_within(location, geography'POINT ({n} 0)')" for n in range(21))
    assert "more than 20" in api.refused(f"/Locations?$filter={many}")
    same = " or ".join("st_within(location, geography'POINT (0 0)')" for _ in range(40))
    assert api.status(f"/Locations?$filter={same}") == 200
