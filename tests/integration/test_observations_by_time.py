"""A page of all Observations in the order of time is the same, whichever way it was found."""

import pytest

from api.sensorthings.options import read_query
from api.sensorthings.resource import read_resource
from api.sensorthings.statements import Compiler
from citylab.policy import everything

SERIES = 300
COMPILER = Compiler(everything, page=100)
BEGIN = "$orderby=phenomenonTime&$filter=phenomenonTime ge 2024-01-01T00:00:00Z"


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
    """The row that answers at the instant alone, and the one that answers with no bound but the request's own."""
    statement = COMPILER.collection(read_resource("/Observations"), read_query(text))
    parameters = statement.parameters | {"base": "http://city/v1.1/", "from": statement.window.instant}
    async with store.transaction(read_only=True) as transaction:
        (instant,) = await transaction.fetch(statement.at_instant, parameters)
        (whole,) = await transaction.fetch(statement.sql, parameters | {"to": "infinity"})
    return instant, whole


@pytest.mark.parametrize("form", ["", "&$resultFormat=dataArray"])
async def test_a_page_at_one_instant_is_the_page(aligned, form):
    text = f"{BEGIN}&$top=50{form}"
    instant, whole = await both(aligned, text)
    assert instant == whole
    for _ in range(2):
        text = f"{BEGIN}&$top=50{form}&$skiptoken={whole[2]}"
        instant, whole = await both(aligned, text)
        assert instant == whole


async def test_one_that_is_not_full_is_seen_to_be_so(aligned):
    instant, whole = await both(aligned, f"{BEGIN}&$top=250")
    assert instant[1] < 251
    assert whole[1] == 251
