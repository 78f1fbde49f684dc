"""`$select` and `$expand` (OGC 18-088 §9.3.2)."""

import pytest

pytestmark = pytest.mark.usefixtures("city")

LINKS = {
    "Locations@iot.navigationLink",
    "HistoricalLocations@iot.navigationLink",
    "Datastreams@iot.navigationLink",
}


def test_select_shows_exactly_what_is_selected(api, city):
    """req/request-data/select."""
    own = city.things[0]
    assert api.get(f"/Things({own})?$select=name") == {"name": "Thing 0"}
    assert api.get(f"/Things({own})?$select=id") == {"@iot.id": own}
    assert api.get(f"/Things({own})?$select=@iot.id,description") == {
        "@iot.id": own,
        "description": "Thing 0, described",
    }
    assert api.get(f"/Things({own})?$select=name,Locations") == {
        "name": "Thing 0",
        "Locations@iot.navigationLink": f"{api.root}/Things({own})/Locations",
    }
    assert api.values("/Things?$select=name&$top=2") == [{"name": "Thing 0"}, {"name": "Thing 1"}]
    assert api.get(f"/Things({city.things[3]})?$select=properties") == {}
    assert api.get(f"/Things({own})?$select=*") == api.get(f"/Things({own})")


def test_select_of_members(api, city):
    """req/request-data/select."""
    stream = city.streams[0]
    select = "unitOfMeasurement/symbol,name"
    assert api.get(f"/Datastreams({stream})?$select={select}") == {
        "name": "Stream 0",
        "unitOfMeasurement": {"symbol": "u0"},
    }
    both = api.get(
        f"/Datastreams({stream})?$select=unitOfMeasurement/symbol,unitOfMeasurement/name,unitOfMeasurement/none"
    )
    assert both == {"unitOfMeasurement": {"symbol": "u0", "name": "microgram"}}
    assert api.get(f"/Observations({city.observations[3]})?$select=parameters/hour") == {
        "parameters": {"hour": 3}
    }


def test_expand_of_several_relations(api, city):
    """req/request-data/expand."""
    own = api.get(f"/Things({city.things[0]})?$expand=Locations,Datastreams")
    assert [place["name"] for place in own["Locations"]] == ["Place 0"]
    assert [stream["name"] for stream in own["Datastreams"]] == ["Stream 0", "Stream 1"]
    assert own.keys() >= LINKS


def test_expanded_entities_have_id_and_properties_and_no_links(api, city):
    """req/request-data/expand."""
    (place,) = api.get(f"/Things({city.things[0]})?$expand=Locations")["Locations"]
    assert place.keys() == {
        "@iot.id",
        "@iot.selfLink",
        "name",
        "description",
        "encodingType",
        "location",
        "properties",
    }
    (place,) = api.get(f"/Things({city.things[0]})?$expand=Locations($select=name,Things)")["Locations"]
    assert place.keys() == {"name", "Things@iot.navigationLink"}


def test_expand_along_a_path(api, city):
    """req/request-data/expand."""
    found = api.get(
        f"/Observations({city.observations[0]})?$expand=Datastream/Thing,Datastream/Sensor,FeatureOfInterest"
    )
    assert found["Datastream"]["Thing"]["name"] == "Thing 0"
    assert found["Datastream"]["Sensor"]["name"] == "Sensor 0"
    assert found["FeatureOfInterest"]["name"] == "Place 0"


def test_expand_with_options_at_any_depth(api):
    """req/request-data/expand."""
    expand = (
        "Datastreams($filter=name ne 'Stream 1';$select=name;$expand=ObservedProperty($select=name),"
        "Observations($orderby=phenomenonTime desc;$top=2;$skip=1;$select=result;$count=true))"
    )
    (one, two) = api.values(f"/Things?$select=name&$expand={expand}&$top=2")
    assert one == {
        "name": "Thing 0",
        "Datastreams": [
            {
                "name": "Stream 0",
                "ObservedProperty": {"name": "Gas 0"},
                "Observations@iot.count": 12,
                "Observations": [{"result": 10}, {"result": 9}],
                "Observations@iot.nextLink": one["Datastreams"][0]["Observations@iot.nextLink"],
            }
        ],
    }
    assert [o["result"] for o in two["Datastreams"][0]["Observations"]] == [210, 209]
    following = api.absolute(one["Datastreams"][0]["Observations@iot.nextLink"])
    assert following["value"] == [{"result": 8}, {"result": 7}]


def test_expand_of_what_is_empty(api, city):
    """req/request-data/expand."""
    own = api.get(f"/Things({city.things[3]})?$expand=Datastreams,Locations")
    assert own["Datastreams"] == own["Locations"] == []


def test_the_latest_observation_of_each_stream_of_each_thing(api):
    """req/request-data/expand."""
    things = api.values(
        "/Things?$expand=Datastreams($expand=Observations($orderby=phenomenonTime desc;$top=1))&$top=2"
    )
    newest = [[s["Observations"][0]["result"] for s in thing["Datastreams"]] for thing in things]
    assert newest == [[11, 111], [211]]


def test_options_on_a_single_entity_are_accepted(api, city):
    """req/request-data/expand."""
    options = "$top=1;$skip=0;$count=true;$orderby=name;$filter=name ne 'x';$select=name"
    found = api.get(f"/Datastreams({city.streams[0]})?$expand=Thing({options})&$select=name")
    assert found == {"name": "Stream 0", "Thing": {"name": "Thing 0"}}


def test_a_path_and_its_expansion(api, city):
    """req/request-data/expand."""
    (one, _) = api.values(f"/Things({city.things[0]})/Datastreams?$expand=Sensor($select=name)&$select=name")
    assert one == {"name": "Stream 0", "Sensor": {"name": "Sensor 0"}}
    assert (
        api.get(f"/Observations({city.observations[0]})/Datastream?$expand=Thing&$select=id")["Thing"]["name"]
        == "Thing 0"
    )


@pytest.mark.parametrize(
    "query",
    [
        "$select=colour", "$select=", "$select=name,,", "$select=name/first", "$select=Datastreams/name", "$expand=Nothing",
        "$expand=name", "$expand=Datastreams(", "$expand=Datastreams($top=x)", "$expand=Datastreams($nothing=1)",
        "$expand=Datastreams($top=1;$top=2)", "$expand=Datastreams/Nothing", "$expand=Datastreams($expand=Locations)",
        "$expand=Datastreams($top=1),Datastreams($top=2)", "$expand=Datastreams($filter=colour eq 1)",
    ],
)  # fmt: skip
def test_what_there_is_not_is_refused(api, query):
    """req/request-data/query-status-code."""
    assert api.refused(f"/Things?{query}", 400)
