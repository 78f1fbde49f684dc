"""The one write path: whatever comes in whatever order, the tables are those of a fresh computation."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citylab.columns import Observations, decode_update
from citylab.model import DAY, HOUR, MINUTE, SECOND, Position, Reason, Topic
from citylab.ports import START
from citylab.writes import (
    CATALOGUE_VERSION,
    CatalogueChanged,
    NewRejection,
    PositionMoved,
    Receipt,
    Span,
    Write,
)

T0 = 1_748_736_000 * SECOND  # 2025-06-01T00:00:00Z
THING = {
    "name": "t",
    "description": "d",
    "Locations": [
        {"name": "l", "description": "d", "encodingType": "application/geo+json",
         "location": {"type": "Point", "coordinates": [2.17, 41.38]}}
    ],
}  # fmt: skip


def datastream(name: str, interval: str | None = None, stamp: str | None = None) -> dict:
    properties = {"streamName": name, "interval": interval, "stamp": stamp}
    return {
        "name": name,
        "description": "d",
        "observationType": "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
        "unitOfMeasurement": {"name": "n", "symbol": "s", "definition": "d"},
        "properties": {k: v for k, v in properties.items() if v is not None},
        "Sensor": {"name": "s", "description": "d", "encodingType": "text/plain", "metadata": "m"},
        "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
    }


@pytest.fixture
async def streams(store) -> list[int]:
    """Three streams: of seconds, of hours stamped at their end, of days."""
    return await make_streams(store)


async def make_streams(store) -> list[int]:
    things = [("a", "PT1S", None), ("b", "PT1H", "end"), ("c", "P1D", None)]
    async with store.transaction() as transaction:
        thing = await transaction.create("Things", THING)
        return [
            await transaction.create("Datastreams", datastream(*stream) | {"Thing": {"@iot.id": thing}})
            for stream in things
        ]


async def version(store) -> int:
    async with store.transaction(read_only=True) as transaction:
        return (await transaction.fetch(CATALOGUE_VERSION))[0][0]


def rows(values: Sequence[tuple[int, int, float]], quality: Sequence[int] = ()) -> Observations:
    n = len(values)
    return Observations(
        datastream=np.array([v[0] for v in values], np.int64),
        time=np.array([v[1] for v in values], np.int64),
        number=np.array([v[2] for v in values], np.float64),
        quality=np.array(list(quality) or [0] * n, np.int8),
        feature=np.ones(n, np.int64),
    )


async def write(store, columns: Observations, *, seq: int = 1, **more) -> Write:
    n = len(columns)
    receipts = [Receipt("gw", 7, seq, Topic.PACKS, 0, seq, T0, n + len(more.get("rejections", ())), T0)]
    return Write(
        rows=columns, receipt=np.zeros(n, np.int64), record=np.arange(n), receipts=receipts,
        catalogue_version=await version(store), **more,
    )  # fmt: skip


async def fetch(store, sql: str, parameters=()) -> list[tuple]:
    async with store.transaction(read_only=True) as transaction:
        return await transaction.fetch(sql, parameters)


async def test_new_rows_are_stored_and_what_comes_again_is_a_duplicate(store, streams):
    batch = rows([(streams[0], T0 + i * SECOND, float(i)) for i in range(100)])

    first = await store.save(await write(store, batch))
    again = await store.save(await write(store, batch))

    assert (first.stored, first.duplicates) == (100, 0)
    assert (again.stored, again.duplicates) == (0, 100)
    stored = await fetch(store, "SELECT count(*), sum(result_number) FROM observations")
    assert stored == [(100, float(sum(range(100))))]
    ((packs, duplicate_packs, records, kept, duplicates),) = await fetch(
        store, "SELECT packs, duplicate_packs, records, stored, duplicates FROM ledger"
    )
    assert (packs, duplicate_packs, records, kept, duplicates) == (1, 1, 200, 100, 100)


async def test_another_value_for_a_stored_time_is_a_conflict_and_the_first_stands(store, streams):
    await store.save(await write(store, rows([(streams[0], T0, 1.0)])))

    saved = await store.save(await write(store, rows([(streams[0], T0, 2.0), (streams[0], T0, 1.0)]), seq=2))

    assert (saved.stored, saved.duplicates, dict(saved.rejected)) == (0, 1, {Reason.CONFLICT: 1})
    assert await fetch(store, "SELECT result_number FROM observations") == [(1.0,)]
    assert await fetch(store, "SELECT reason, record, content ->> 'value' FROM rejections") == [
        ("conflict", 0, "2.0")
    ]


async def test_within_one_batch_the_first_of_two_values_stands(store, streams):
    saved = await store.save(
        await write(store, rows([(streams[0], T0, 5.0), (streams[0], T0, 6.0), (streams[0], T0, 5.0)]))
    )

    assert (saved.stored, saved.duplicates, saved.rejected[Reason.CONFLICT]) == (1, 1, 1)
    assert await fetch(store, "SELECT result_number FROM observations") == [(5.0,)]


async def test_texts_and_booleans_are_kept_as_they_are(store, streams):
    batch = Observations(
        datastream=np.full(3, streams[0]), time=T0 + np.arange(3), number=np.array([np.nan, np.nan, 3.0]),
        quality=np.array([0, 2, 0], np.int8), feature=np.array([1, 0, 1]), json=['"ünï"', "true", None],
        parameters=[None, None, '{"sum":4.5}'],
    )  # fmt: skip

    await store.save(await write(store, batch))
    again = await store.save(await write(store, batch))

    assert again.duplicates == 3
    found = await fetch(
        store,
        "SELECT result_json, result_number, quality, parameters FROM observations ORDER BY phenomenon_time",
    )
    assert found == [("ünï", None, 0, None), (True, None, 2, None), (None, 3.0, 0, {"sum": 4.5})]


async def test_a_tombstone_makes_a_redelivery_a_duplicate(store, streams):
    async with store.transaction() as transaction:
        await transaction.execute("INSERT INTO tombstones VALUES (%s, '2025-06-01T00:00:00Z')", (streams[0],))
    await store.save(await write(store, rows([(streams[0], T0 + SECOND, 1.0)])))

    saved = await store.save(await write(store, rows([(streams[0], T0, 9.0)])))

    assert (saved.stored, saved.duplicates, saved.rejected.total()) == (0, 1, 0)


async def test_the_fence_drops_a_batch_that_another_worker_has_committed(store, streams):
    after = Position(10, b"12345678")
    span = Span(Topic.PACKS, 0, START, after)
    await store.save(await write(store, rows([(streams[0], T0, 1.0)]), spans=[span]))

    late = Span(Topic.PACKS, 0, Position(5, b"x"), Position(11, b"y"))
    dropped = await write(store, rows([(streams[0], T0 + 1, 1.0)]), spans=[late])
    with pytest.raises(PositionMoved):
        await store.save(dropped)

    assert await store.positions(Topic.PACKS) == {0: after}
    assert await fetch(store, "SELECT count(*) FROM observations") == [(1,)]


async def test_a_changed_catalogue_stores_nothing(store, streams):
    stale = await write(store, rows([(streams[0], T0, 1.0)]))
    async with store.transaction() as transaction:
        await transaction.execute("UPDATE datastreams SET properties = properties || '{\"x\": 1}'")

    with pytest.raises(CatalogueChanged):
        await store.save(stale)

    assert await fetch(store, "SELECT count(*) FROM observations") == [(0,)]


async def test_rejections_are_kept_once_and_counted(store, streams):
    rejection = NewRejection(0, 3, Reason.UNIT_MISMATCH, "K is not Cel", "a", '{"n": "a"}')
    batch = await write(store, rows([(streams[0], T0, 1.0)]), rejections=[rejection])

    await store.save(batch)
    again = await store.save(batch)

    assert again.rejected.total() == 0
    ((records, stored, duplicates, rejected, reasons),) = await fetch(
        store, "SELECT records, stored, duplicates, rejected, rejected_by_reason FROM ledger"
    )
    assert (records, stored, duplicates, rejected, reasons) == (4, 1, 2, 1, {"unit-mismatch": 1})


async def test_the_update_message_says_what_was_stored(store, streams):
    saved = await store.save(await write(store, rows([(streams[0], T0, 1.5), (streams[0], T0, 1.5)])))

    ((update_id, message),) = saved.updates
    columns, ids = decode_update(message).rows()
    assert decode_update(message).id == update_id
    assert columns.number.tolist() == [1.5]
    assert await fetch(store, "SELECT id FROM observations") == [(ids[0],)]
    await store.save(await write(store, rows([]), seq=2, published=[update_id]))
    assert await fetch(store, "SELECT count(*) FROM pending_updates") == [(0,)]


async def test_long_texts_are_spread_over_updates_that_the_log_takes(store, streams):
    texts = [f'"{"x" * 200_000}"'] * 12 + [f'"{"y" * 2_000_000}"', '"z"']
    n = len(texts)
    batch = Observations(
        datastream=np.full(n, streams[0]), time=T0 + np.arange(n), number=np.full(n, np.nan),
        quality=np.zeros(n, np.int8), feature=np.ones(n, np.int64), json=texts,
    )  # fmt: skip

    saved = await store.save(await write(store, batch))

    assert saved.stored == n
    assert all(len(message) < 4 << 20 for _, message in saved.updates)
    told = [text for _, message in saved.updates for text in decode_update(message).rows()[0].json]
    assert told == [text for text in texts if len(text) < 1_000_000]


async def test_huge_values_do_not_stop_the_aggregates(store, streams):
    await store.save(await write(store, rows([(streams[0], T0, 1e308), (streams[0], T0 + 1, -1e308)])))
    await store.save(await write(store, rows([(streams[0], T0 + 2, 2.0)]), seq=2))
    while await store.fold():
        pass

    found = await fetch(store, "SELECT count, good_count, mean FROM aggregates WHERE width = 3600")
    assert found == [(3, 1, 2.0)]


VALUES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 3 * 24 * 60).map(lambda m: T0 + m * MINUTE // 2 * 2 + (m % 7) * 10 * SECOND),
        st.floats(-1e6, 1e6, width=32),
        st.sampled_from([0, 1, 2, 3]),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda v: v[:2],
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=VALUES, cuts=st.lists(st.integers(0, 60), max_size=5), order=st.randoms())
def test_any_order_and_batching_gives_the_tables_of_a_fresh_computation(
    embedded_databases, values, cuts, order
):
    import asyncio

    asyncio.run(_any_order(embedded_databases.make(), values, cuts, order))


async def _any_order(url, values, cuts, order) -> None:
    from citylab.adapters.store import PostgresStore

    async with PostgresStore(url) as store:
        streams = await make_streams(store)
        shuffled = list(values)
        order.shuffle(shuffled)
        edges = sorted({0, len(shuffled), *(c for c in cuts if c < len(shuffled))})
        for seq, (a, b) in enumerate(itertools.pairwise(edges), start=1):
            part = [*shuffled[a:b], *shuffled[max(0, a - 3) : a]]  # and some of what came before, again
            batch = rows([(streams[s], t, v) for s, t, v, _ in part], [q for *_, q in part])
            await store.save(await write(store, batch, seq=seq))
            if seq % 2:
                await store.fold()
        while await store.fold():
            pass
        await _compare(store, streams, values)


async def _compare(store, streams, values) -> None:
    expected: dict[tuple, list[tuple[int, float, int]]] = {}
    widths = {0: (MINUTE, HOUR, DAY), 1: (HOUR, DAY), 2: (DAY,)}
    for s, t, v, q in values:
        inside = t - 1 if s == 1 else t
        for width in widths[s]:
            key = (streams[s], width // SECOND, inside - inside % width)
            expected.setdefault(key, []).append((t, v, q))
    found = {
        (d, w, start): rest
        for d, w, start, *rest in await fetch(
            store,
            "SELECT datastream_id, width, (extract(epoch FROM window_start) * 1000000)::bigint, count, good_count,"
            " mean, m2, min, max, first, last FROM aggregates",
        )
    }
    assert found.keys() == expected.keys()
    for key, members in expected.items():
        good = sorted((t, v) for t, v, q in members if q != 3)
        numbers = [v for _, v in good]
        count, good_count, mean, m2, least, greatest, first, last = found[key]
        assert (count, good_count) == (len(members), len(good))
        if not good:
            assert (mean, least, greatest, first, last) == (None,) * 5
            continue
        exact = math.fsum(numbers) / len(numbers)
        scale = max(map(abs, numbers)) + 1e-12
        assert mean == pytest.approx(exact, rel=1e-9, abs=1e-9 * scale)
        assert m2 == pytest.approx(
            math.fsum((v - exact) ** 2 for v in numbers), rel=1e-6, abs=1e-9 * scale**2
        )
        assert (least, greatest, first, last) == (min(numbers), max(numbers), numbers[0], numbers[-1])
    latest = await fetch(
        store,
        "SELECT datastream_id, count, result_number, (extract(epoch FROM phenomenon_first) * 1000000)::bigint,"
        " (extract(epoch FROM phenomenon_last) * 1000000)::bigint FROM latest",
    )
    for datastream_id, count, newest, first, last in latest:
        members = sorted((t, v) for s, t, v, _ in values if streams[s] == datastream_id)
        assert (count, newest, first, last) == (len(members), members[-1][1], members[0][0], members[-1][0])
