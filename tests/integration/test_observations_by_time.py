"""A page of all Observations of a time is the same, whichever way it was found."""

import pytest

from api.sensorthings.formats import data_array
from api.sensorthings.options import read_query
from api.sensorthings.resource import read_resource
from api.sensorthings.statements import Compiler
from citylab.policy import everything

SERIES = 300
COMPILER = Compiler(everything, page=100)
RANGE = "$filter=phenomenonTime ge 2024-01-01T00:00:00Z and phenomenonTime lt 2024-01-01T00:30:00Z"
IN_TIME = f"$orderby=phenomenonTime&{RANGE}"


@pytest.fixture
async def aligned(store):
    """A store of Datastreams with values at the same instants, every third of them one instant later than the others."""
    async with store.transaction() as transaction:
        await transaction.execute(
            "INSERT INTO observations (id, datastream_id, phenomenon_time, ordinal, result_number)"
            " SELECT d * 10 + i, d, timestamptz '2024-01-01' + i * interval '10 minutes', CASE WHEN d = 7 THEN i ELSE 0 END, i"
            " FROM generate_series(1, %s) d, generate_series((d %% 3 = 0)::int, 4) i",
            (SERIES,),
        )
        await transaction.execute(
            "INSERT INTO latest (datastream_id, count) SELECT datastream_id, count(*) FROM observations GROUP BY 1"
        )
    return store


async def both(store, text):
    """The row that answers by the first instant or Datastreams, and the one by no bound but the request's own."""
    resource, query = read_resource("/Observations"), read_query(text)
    statement = COMPILER.collection(resource, query, data_array if query.result_format else None)
    parameters = statement.parameters | {"base": "http://city/v1.1/"}
    if statement.window:
        parameters["from"] = statement.window.instant
    async with store.transaction(read_only=True) as transaction:
        (first,) = await transaction.fetch(statement.first, parameters)
        (whole,) = await transaction.fetch(statement.sql, parameters | {"to": "infinity"})
    assert statement.wanted == COMPILER.top(query) + 1
    return first, whole


@pytest.mark.parametrize("form", ["", "&$resultFormat=dataArray"])
@pytest.mark.parametrize("order", [IN_TIME, RANGE])
async def test_a_full_page_is_the_page(aligned, order, form):
    text = f"{order}&$top=50{form}"
    first, whole = await both(aligned, text)
    assert first == whole
    for _ in range(2):
        text = f"{order}&$top=50{form}&$skiptoken={whole[2]}"
        first, whole = await both(aligned, text)
        assert first == whole


async def test_one_that_is_not_full_is_seen_to_be_so(aligned):
    first, whole = await both(aligned, f"{IN_TIME}&$top=250")
    assert first[1] < 251
    assert whole[1] == 251
