"""Geometries in memory follow what is committed, in whatever order, and nothing else."""

import asyncio
from contextlib import AsyncExitStack

from api.sensorthings.geometries import StoredGeometries
from api.sensorthings.geometry import Column, Measure, Source

LOCATIONS = Source("locations", "id", "location")
INSERT = "INSERT INTO locations (name, description, encoding_type, location) VALUES ('l', 'd', 'e', %s::jsonb) RETURNING id"


def point(x: float) -> str:
    return f'{{"type": "Point", "coordinates": [{x}, 41.4]}}'


def near(x: float) -> Column:
    return Column(Measure("geo.distance", (LOCATIONS, f"POINT ({x} 41.4)"), bound=("lt", 0.1)), "true", 0)


async def found(geometries, transaction, x) -> set[int]:
    filled = await geometries.fill(transaction, {"ids": near(x)})
    return {int(one) for one in filled["ids"].strip("{}").split(",") if one}


async def test_what_is_written_and_changed_is_found(store):
    geometries = StoredGeometries()
    async with store.transaction(read_only=True) as transaction:
        assert await found(geometries, transaction, 1) == set()
        ((one,),) = await transaction.fetch(INSERT, (point(1),))
        ((two,),) = await transaction.fetch(INSERT, (point(2),))
        assert await found(geometries, transaction, 1) == {one}
        await transaction.execute("UPDATE locations SET location = %s::jsonb WHERE id = %s", (point(1), two))
        assert await found(geometries, transaction, 1) == {one, two}
        await transaction.execute("UPDATE locations SET location = '7' WHERE id = %s", (one,))
        assert await found(geometries, transaction, 1) == {two}
        assert await found(geometries, transaction, 2) == set()


async def test_a_transaction_that_commits_late_is_not_missed(store):
    geometries = StoredGeometries()
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(store.transaction(read_only=True))
        async with store.transaction() as late:
            ((early,),) = await late.fetch(INSERT, (point(1),))
            ((own,),) = await reader.fetch(INSERT, (point(1),))  # begun later, committed earlier
            for _ in range(2):
                assert await found(geometries, reader, 1) == {own}
        assert await found(geometries, reader, 1) == {early, own}


async def test_what_is_rolled_back_was_never_there_for_others(store):
    geometries = StoredGeometries()
    async with store.transaction(read_only=True) as reader:
        ((one,),) = await reader.fetch(INSERT, (point(1),))
        assert await found(geometries, reader, 1) == {one}
        try:
            async with store.transaction() as writer:
                await writer.execute(
                    "UPDATE locations SET location = %s::jsonb WHERE id = %s", (point(2), one)
                )
                assert await found(geometries, writer, 2) == {one}
                assert await found(geometries, writer, 1) == set()
                assert await found(geometries, reader, 1) == {one}
                raise TimeoutError
        except TimeoutError:
            pass
        assert await found(geometries, reader, 1) == {one}
        assert await found(geometries, reader, 2) == set()


async def test_a_table_of_several_pages_and_many_readers(store):
    geometries = StoredGeometries()

    async def one() -> int:
        async with store.transaction(read_only=True) as transaction:
            return len(await found(geometries, transaction, 3))

    async with store.transaction() as writer:
        await writer.execute(
            "INSERT INTO locations (name, description, encoding_type, location)"
            " SELECT 'l', 'd', 'e', %s::jsonb FROM generate_series(1, 12000)",
            (point(3),),
        )
    assert set(await asyncio.gather(*(one() for _ in range(20)))) == {12_000}
