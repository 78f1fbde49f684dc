"""What known clients ask, as they write it on the wire (each read in its source), and what they need of the answer."""

from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import pytest

pytestmark = pytest.mark.usefixtures("city")

AREA = "geography'Polygon ((2 41, 3 41, 3 42, 2 42, 2 41))'"
POINTS = "location/type eq 'Point' or location/geometry/type eq 'Point'"


@pytest.fixture(scope="module")
def city(api, documents) -> SimpleNamespace:
    """Three Things, each at a place with a Datastream of four Observations; the second place is a Feature."""
    things, streams = [], []
    for n in range(3):
        where = documents.point([2.1, 2.2, 2.3][n], 41.4)
        if n == 1:
            where = {"type": "Feature", "properties": {}, "geometry": where}
        place = documents.location(f"Place {n}", location=where)
        parts = {"Thing": documents.thing(f"O'Neill {n}", Locations=[place], properties={"layer": f"l{n}"})}
        streams.append(api.create("/Datastreams", documents.whole_datastream(f"Client {n}", **parts)))
        things.append(api.get(f"/Datastreams({streams[-1]})/Thing")["@iot.id"])
        for hour in range(4):
            document = {"result": n * 10 + hour, "phenomenonTime": f"2024-01-01T0{hour}:00:00Z"}
            api.create(f"/Datastreams({streams[-1]})/Observations", document)
    return SimpleNamespace(things=things, streams=streams)


def asked(api, raw):
    """The answer to an address that is sent as it is."""
    response = api.client.get(f"{api.root}{raw}")
    assert response.status_code == 200, f"{raw}: {response.text}"
    return response.json()


class TestQgis:
    """Its provider counts first, then fetches the features of the view, page by page along opaque next links."""

    def qurl(self, path, **options):
        """As Qt encodes it: spaces and quotes at most."""
        return f"{path}?" + "&".join(
            f"${n}={quote(v, safe='/(),:=$;' + chr(39))}" for n, v in options.items()
        )

    def test_it_counts_without_fetching(self, api):
        """req/request-data/top, req/request-data/count."""
        assert asked(api, "/Locations?$top=0&$count=true") == {"@iot.count": 3, "value": []}
        assert asked(api, self.qurl("/Locations", top="0", count="true", filter=POINTS))["@iot.count"] == 3
        areas = "observedArea/type eq 'Point' or observedArea/geometry/type eq 'Point'"
        counted = asked(api, self.qurl("/Datastreams", top="0", count="true", filter=areas))
        assert counted["@iot.count"] == 3
        features = "feature/type eq 'Polygon' or feature/geometry/type eq 'Polygon'"
        assert (
            asked(api, self.qurl("/FeaturesOfInterest", top="0", count="true", filter=features))["@iot.count"]
            == 0
        )

    def test_it_fetches_what_the_view_meets(self, api):
        """req/request-data/built-in-query-functions, req/request-data/pagination."""
        for condition in (
            f"geo.intersects(location, {AREA})",
            f"({POINTS}) and (geo.intersects(location, {AREA}))",
        ):
            page = asked(api, self.qurl("/Locations", filter=condition, top="2", count="false"))
            assert "@iot.count" not in page
            found = [e["@iot.id"] for e in page["value"]]
            assert len(found) == 2
            found += [e["@iot.id"] for e in api.absolute(page["@iot.nextLink"])["value"]]
            assert len(set(found)) == 3

    def test_it_joins_what_is_expanded(self, api):
        """req/request-data/expand: every level with its own order, limit and filter, and with id and self link."""
        expand = (
            "Things($orderby=id desc;$top=3;$expand=Datastreams($orderby=description;$top=30;$filter=id ne 0;"
            "$expand=ObservedProperty($orderby=name;$top=100)))"
        )
        (place,) = asked(api, self.qurl("/Locations", filter="name eq 'Place 0'", expand=expand))["value"]
        (thing,) = place["Things"]
        (stream,) = thing["Datastreams"]
        for entity in (place, thing, stream, stream["ObservedProperty"]):
            assert {"@iot.id", "@iot.selfLink", "name", "description"} <= entity.keys()
        assert asked(api, self.qurl("/Observations", expand="Datastream($orderby=id;$top=3)", top="1"))[
            "value"
        ]


class TestGrafana:
    """The data sources of LinkSmart and Fraunhofer put addresses together as text, and follow next links by their query."""

    def test_a_series_of_a_range_of_time(self, api, city):
        """req/request-data/filter."""
        times = "phenomenonTime gt 2024-01-01T00:00:00.000Z and phenomenonTime lt 2024-01-01T03:00:00.000Z"
        path = f"/Datastreams({city.streams[1]})/Observations?&$filter={quote(times)}&$top=1"
        page = asked(api, path)
        results = [o["result"] for o in page["value"]]
        while link := page.get("@iot.nextLink"):
            page = asked(api, f"{path.partition('?')[0]}?{link.rpartition('?')[2]}")
            results += [o["result"] for o in page["value"]]
        assert results == [11, 12]

    def test_a_table_to_choose_from(self, api, city):
        """req/request-data/filter: text functions of any column, the id too."""
        columns = f"startswith(name,'O''Neill') and startswith(@iot.id,'{city.things[0]}') and startswith(properties/layer,'l')"
        found = asked(api, f"/Things?$filter={quote(columns)}&$count=true&$top=5")
        assert [t["@iot.id"] for t in found["value"]] == [city.things[0]]
        assert found["@iot.count"] == 1

    def test_where_a_thing_was(self, api, city):
        """req/request-data/expand."""
        times = "time gt 2020-01-01T00:00:00.000Z and time lt 2999-01-01T00:00:00.000Z"
        path = f"/Things({city.things[2]})/HistoricalLocations?$filter={quote(times)}&$expand=Locations"
        (history,) = asked(api, path)["value"]
        assert history["Locations"][0]["location"]["coordinates"] == [2.3, 41.4]


class TestOthers:
    """Whole encodings, other spellings."""

    def test_everything_encoded(self, api, city):
        """req/resource-path/resource-path-to-entities: as Apache's URIBuilder and Python's requests do it."""
        condition = "name eq 'O''Neill 1' and Locations/location/geometry/coordinates[1] gt 41"
        found = asked(api, f"/Things?{quote_plus('$filter')}={quote_plus(condition)}&%24count=%74rue")
        assert [t["@iot.id"] for t in found["value"]] == [city.things[1]]
        path = quote(f"Things({city.things[1]})", safe="")
        assert asked(api, f"/{path}/Datastreams/%24ref?%24top=1")["value"]
        assert asked(api, f"/{path}/properties/l%61yer") == {"layer": "l1"}

    def test_orders_as_a_typescript_client_writes_them(self, api):
        """req/request-data/orderby: `$orderBy`, and a plus sign for the space."""
        found = asked(api, "/Things?$skip=1&$top=1&$orderBy=name+desc")
        assert [t["name"] for t in found["value"]] == ["O'Neill 1"]

    def test_a_map_of_the_newest_values(self, api):
        """req/request-data/expand: as Masterportal asks, with options after a nested `$expand`."""
        observations = "Observations($select=result,phenomenonTime;$orderby=phenomenonTime desc;$top=1)"
        expand = f"Locations,Datastreams($expand={observations},ObservedProperty;$filter=startswith(name,'Client');$select=id,name)"
        condition = f"st_within(Locations/location,{AREA}) and Datastreams/name eq 'Client 2'"
        (thing,) = asked(api, f"/Things?$filter={quote(condition)}&$expand={quote(expand)}")["value"]
        (stream,) = thing["Datastreams"]
        assert stream["Observations"] == [{"phenomenonTime": "2024-01-01T03:00:00Z", "result": 23}]
        assert stream["Observations@iot.nextLink"]
        assert stream["ObservedProperty"]["name"]
        assert thing["Locations"][0]["name"] == "Place 2"
