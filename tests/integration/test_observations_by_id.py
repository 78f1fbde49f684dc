"""An Observation is found by its id wherever its row lies, and without reading much where it lies as it was written."""

import pytest

from api.sensorthings.options import read_query
from api.sensorthings.resource import read_resource
from api.sensorthings.statements import ANCHORED, Compiler
from citylab.policy import everything

ROWS = 5_000
COMPILER = Compiler(everything, page=100)


@pytest.fixture
async def rows(store):
    """A store of Observations in the order of their ids, from the first one on."""
    async with store.transaction() as transaction:
        await transaction.execute(
            "INSERT INTO observations (id, datastream_id, phenomenon_time, result_number)"
            " SELECT i, 1 + i %% 10, timestamptz '2024-01-01' + i * interval '1 second', i FROM generate_series(1, %s) i",
            (ROWS,),
        )
    return store


def statement(path: str, own: int):
    resource = read_resource(path.format(own))
    compiled = (
        COMPILER.property(resource) if resource.of_property else COMPILER.entity(resource, read_query(""))
    )
    return compiled.sql, compiled.parameters | {"base": "http://city/v1.1/", "id0": str(own)}


async def results(store, ids):
    async with store.transaction(read_only=True) as transaction:
        found = [await transaction.fetch(*statement("/Observations({})/result", own)) for own in ids]
    return [rows[0][0] if rows else None for rows in found]


async def test_every_id_is_found_and_no_other(rows):
    ids = [1, ANCHORED - 1, ANCHORED, ANCHORED + 1, 3_333, ROWS - 1, ROWS]
    assert await results(rows, ids) == [str(own) for own in ids]
    assert await results(rows, [ROWS + 1, 2**62]) == [None, None]


async def test_rows_that_moved_are_found(rows):
    async with rows.transaction() as transaction:
        await transaction.execute("DELETE FROM observations WHERE id % 3 = 0")
        await transaction.execute("UPDATE observations SET result_number = -id WHERE id % 2 = 0")
    ids = range(1_000, 1_300)
    wanted = [None if own % 3 == 0 else str(-own if own % 2 == 0 else own) for own in ids]
    assert await results(rows, ids) == wanted


async def test_rows_written_in_another_order_are_found(store):
    async with store.transaction() as transaction:
        await transaction.execute(
            "INSERT INTO observations (id, datastream_id, phenomenon_time, result_number)"
            " SELECT i, 1, timestamptz '2024-01-01' + i * interval '1 day', i FROM generate_series(1, 600) i"
            " ORDER BY i % 7, i DESC"
        )
    assert await results(store, range(1, 601)) == [str(own) for own in range(1, 601)]


@pytest.mark.parametrize(
    "path", ["/Observations({})", "/Observations({})/result", "/Observations({})/Datastream"]
)
async def test_a_row_that_lies_as_it_was_written_is_found_beside_its_anchor(rows, path):
    sql, parameters = statement(path, 3_333)
    async with rows.transaction(read_only=True) as transaction:
        plan = await transaction.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {sql}", parameters)
    lines = [line for (line,) in plan if "Scan on" in line or "observations_by_id" in line]
    assert any("Tid Range Scan" in line and "never executed" not in line for line in lines)
    assert all("never executed" in line for line in lines if "observations_by_id" in line)
