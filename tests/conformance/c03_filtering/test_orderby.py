"""`$orderby` (OGC 18-088 §9.3.3.2)."""

import pytest

pytestmark = pytest.mark.usefixtures("city")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/Things?$orderby=name desc", ["Thing 3", "Thing 2", "Thing 1", "Thing 0"]),
        ("/Things?$orderby=id desc", ["Thing 3", "Thing 2", "Thing 1", "Thing 0"]),
        ("/Things?$orderby=@iot.id", ["Thing 0", "Thing 1", "Thing 2", "Thing 3"]),
        ("/Datastreams?$orderby=Thing/name desc,name desc", ["Stream 2", "Stream 1", "Stream 0"]),
        ("/Datastreams?$orderby=ObservedProperty/id desc,name asc", ["Stream 1", "Stream 0", "Stream 2"]),
        ("/Datastreams?$orderby=Sensor/id,Thing/id desc,id", ["Stream 2", "Stream 0", "Stream 1"]),
        ("/Things?$orderby=properties/n desc&$top=3", ["Thing 2", "Thing 1", "Thing 0"]),
        ("/Datastreams?$orderby=unitOfMeasurement/symbol desc", ["Stream 2", "Stream 1", "Stream 0"]),
        ("/Datastreams?$orderby=length(name),name desc", ["Stream 2", "Stream 1", "Stream 0"]),
    ],
)
def test_orders(api, path, names):
    """req/request-data/orderby: several keys, ascending by default, related properties."""
    assert [entity["name"] for entity in api.values(path)] == names


def test_nulls_come_first_ascending_and_last_descending(api, city):
    """req/request-data/orderby."""
    ascending = [
        o["resultTime"]
        for o in api.values(f"/Datastreams({city.streams[0]})/Observations?$orderby=resultTime")
    ]
    assert ascending[:6] == [None] * 6
    assert ascending[6:] == sorted(ascending[6:])
    descending = api.values(f"/Datastreams({city.streams[0]})/Observations?$orderby=resultTime desc")
    assert [o["resultTime"] for o in descending] == ascending[::-1]
    assert api.values("/Things?$orderby=properties/n")[0]["name"] == "Thing 3"


def test_results_order_as_numbers_and_others_as_text(api, documents):
    """req/request-data/orderby."""
    stream = api.create("/Datastreams", documents.whole_datastream("Mixed"))
    for result in ("b", 9, 10.5, "a", -1, True, None):
        api.create(f"/Datastreams({stream})/Observations", {"result": result})
    found = [o["result"] for o in api.values(f"/Datastreams({stream})/Observations?$orderby=result")]
    assert found == [None, "a", "b", True, -1, 9, 10.5]
    found = [o["result"] for o in api.values(f"/Datastreams({stream})/Observations?$orderby=result desc")]
    assert found == [10.5, 9, -1, True, "b", "a", None]


@pytest.mark.parametrize("query", ["$orderby=colour", "$orderby=", "$orderby=name up", "$orderby=name,", "$orderby=Datastreams/name",
                                   "$orderby=Locations", "$orderby=null", "$orderby=name asc desc"])  # fmt: skip
def test_what_cannot_be_an_order_is_refused(api, query):
    """req/request-data/query-status-code."""
    api.refused(f"/Things?{query}", 400)
