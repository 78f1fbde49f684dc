"""`$top`, `$skip`, `$count` and next links (OGC 18-088 §9.3.3)."""

import pytest

pytestmark = pytest.mark.usefixtures("city")


def test_top(api):
    """req/request-data/top: at most so many; 0 is legal."""
    assert len(api.values("/Observations?$top=5")) == 5
    assert api.get("/Observations?$top=0") == {"value": []}
    assert len(api.values("/Observations?$top=10000")) == 36
    assert len(api.values("/Observations?$top=99999")) == 36


def test_skip(api):
    """req/request-data/skip."""
    every = api.ids("/Observations")
    assert api.ids("/Observations?$skip=30") == every[30:]
    assert api.ids("/Observations?$skip=3&$top=4") == every[3:7]
    assert api.ids("/Observations?$skip=1000") == []


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("/Observations", 36),
        ("/Things", 4),
        ("/Datastreams({0})/Observations", 12),
        ("/Things({t})/Datastreams({0})/Observations", 12),
        ("/Observations?$filter=result ge 200", 12),
        ("/Things?$filter=Datastreams/Observations/result ge 0", 2),
        ("/ObservedProperties?$filter=Datastreams/Thing/Datastreams/Observations/result ge 0", 2),
    ],
)
def test_count(api, city, path, count):
    """req/request-data/count: after the filter, whatever the page shows; no entity twice."""
    path = path.replace("{0}", str(city.streams[0])).replace("{t}", str(city.things[0]))
    mark = "&" if "?" in path else "?"
    assert api.get(f"{path}{mark}$count=true")["@iot.count"] == count
    assert (
        api.get(f"{path}{mark}$count=true&$top=1&$skip=1&$expand={''}".removesuffix("&$expand="))[
            "@iot.count"
        ]
        == count
    )
    assert "@iot.count" not in api.get(f"{path}{mark}$count=false")
    assert len(api.walk(path)) == count


def test_a_next_link_is_there_exactly_when_more_remains(api, city):
    """req/request-data/pagination."""
    assert "@iot.nextLink" not in api.get("/Things?$top=4")
    assert "@iot.nextLink" not in api.get("/Things?$top=2&$skip=2")
    assert "@iot.nextLink" not in api.get("/Things")
    link = api.get("/Things?$top=3")["@iot.nextLink"]
    assert link.startswith(f"{api.root}/Things?")
    page = api.absolute(link)
    assert [thing["@iot.id"] for thing in page["value"]] == city.things[3:]
    assert "@iot.nextLink" not in page


@pytest.mark.parametrize(
    "query",
    [
        "$top=5",
        "$top=7&$skip=3",
        "$top=5&$orderby=result desc",
        "$top=5&$orderby=phenomenonTime desc",
        "$top=5&$orderby=resultTime,phenomenonTime desc",
        "$top=5&$orderby=resultTime desc",
        "$top=4&$orderby=Datastream/name desc,result",
        "$top=5&$orderby=id desc",
        "$top=5&$orderby=parameters/hour desc",
        "$top=5&$orderby=result mod 3,resultTime desc,id",
        "$top=5&$orderby=validTime",
        "$top=5&$filter=result mod 2 eq 0 and phenomenonTime ge 2024-01-01T03:00:00Z&$orderby=result",
    ],
)
def test_a_walk_meets_everything_once_in_order(api, query):
    """req/request-data/pagination: the other options stay."""
    whole = query.replace("$top=5", "$top=1000").replace("$top=7", "$top=1000").replace("$top=4", "$top=1000")
    walked = [entity["@iot.id"] for entity in api.walk(f"/Observations?{query}&$select=id")]
    assert walked == api.ids(f"/Observations?{whole}&$select=id")
    assert len(walked) == len(set(walked))


def test_a_walk_is_not_disturbed_by_new_rows(api, documents):
    """req/request-data/pagination: everything that was there when it began, exactly once."""
    stream = api.create("/Datastreams", documents.whole_datastream("Busy"))
    first = [
        api.create(
            f"/Datastreams({stream})/Observations",
            {"result": n, "phenomenonTime": f"2024-02-01T{n:02}:00:00Z"},
        )
        for n in range(10)
    ]
    page = api.get(f"/Datastreams({stream})/Observations?$top=3&$orderby=phenomenonTime desc")
    met = [entity["@iot.id"] for entity in page["value"]]
    day = 2
    while link := page.get("@iot.nextLink"):
        for time in (f"2024-02-{day:02}T00:00:00Z", f"2024-01-{day:02}T00:00:00Z"):
            api.create(f"/Datastreams({stream})/Observations", {"result": 0, "phenomenonTime": time})
        day += 1
        page = api.absolute(link)
        met += [entity["@iot.id"] for entity in page["value"]]
        assert day < 28
    assert [i for i in met if i in first] == first[::-1]
    assert len(met) == len(set(met))


def test_a_collection_inside_another_has_its_own_pages(api):
    """req/request-data/expand, req/request-data/pagination."""
    query = "$filter=Thing/name eq 'Thing 0'&$orderby=name&$expand=Observations($top=5;$orderby=result desc;$count=true;$filter=result mod 2 eq 0)"
    for n, stream in enumerate(api.values(f"/Datastreams?{query}")):
        assert stream["Observations@iot.count"] == 6
        page, found = stream, [o["result"] for o in stream["Observations"]]
        assert len(found) == 5
        page = api.absolute(stream["Observations@iot.nextLink"])
        assert page["@iot.count"] == 6
        found += [o["result"] for o in page["value"]]
        assert found == [100 * n + hour for hour in (10, 8, 6, 4, 2, 0)]
        assert "@iot.nextLink" not in page
    assert "Observations@iot.nextLink" not in api.values("/Datastreams?$expand=Observations($top=12)")[0]


@pytest.mark.parametrize(
    "query",
    [
        "$top=-1", "$top=x", "$top=", "$top", "$top=1.5", "$top=99999999999", "$skip=-1", "$count=maybe", "$count=1",
        "$top=1&$top=2", "$nothing=1", "top=1", "$skiptoken=x", "$skiptoken=WyIxIiwiMiIsIjMiLCI0Il0", "$skiptoken=W10",
        "$skiptoken=WyJhIiwiYiIsImMiXQ", "$filter=%FF",
    ],
)  # fmt: skip
def test_malformed_and_unknown_options_are_refused(api, query):
    """req/request-data/query-status-code: 400."""
    api.refused(f"/Observations?{query}", 400)


@pytest.mark.parametrize("option", ["$search=x", "$format=json", "$apply=x", "$compute=x"])
def test_options_of_odata_that_are_not_supported(api, option):
    """req/request-data/query-status-code: 501."""
    api.refused(f"/Things?{option}", 501)


def test_the_names_of_options_count_in_any_case(api):
    """req/request-data/order: clients write `$orderBy`; OData 4.01 has services accept it."""
    ids = api.ids("/Observations?$orderby=id desc&$top=2")
    page = api.get("/Observations?$orderBy=id desc&$TOP=2&$Count=true&$resultformat=dataArray&$SELECT=id")
    assert [row[0] for group in page["value"] for row in group["dataArray"]] == ids
    assert page["@iot.count"] > 2
    page = api.absolute(page["@iot.nextLink"])
    assert page["value"][0]["components"] == ["id"]
    (thing,) = api.values("/Things?$top=1&$expand=Datastreams($orderBy=id desc;$Top=1;$Select=id)")
    assert list(thing["Datastreams"][0]) == ["@iot.id"]
    assert "is $orderBy meant?" in api.refused("/Things?orderBy=id")
    api.refused("/Things?$Search=x", 501)
    api.refused("/Things?$top=1&$TOP=1", 400)


def test_options_may_be_encoded_in_full(api):
    query = "%24filter=name%20eq%20%27Thing+1%27&%24%74op=5"
    assert api.client.get(f"{api.root}/Things?{query}").json()["value"][0]["name"] == "Thing 1"


def test_options_are_evaluated_in_the_order_of_the_standard(api, city):
    """req/request-data/order: filter, count, orderby, skip, top; then select and expand."""
    options = [
        "$select=result",
        "$top=2",
        "$expand=Datastream($select=name)",
        "$skip=1",
        "$orderby=phenomenonTime desc",
        "$count=true",
        "$filter=parameters/hour lt 6",
    ]
    for query in ("&".join(options), "&".join(reversed(options))):
        page = api.get(f"/Datastreams({city.streams[1]})/Observations?{query}")
        assert page["@iot.count"] == 6
        assert page["value"] == [{"result": 100 + n, "Datastream": {"name": "Stream 1"}} for n in (4, 3)]
        following = api.absolute(page["@iot.nextLink"])
        assert [entity["result"] for entity in following["value"]] == [102, 101]
