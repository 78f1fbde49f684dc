"""Edits and deletions on the one write path: afterwards the tables are those of a fresh computation."""

import asyncio
import math

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citylab.adapters.derived import area_of
from citylab.adapters.store import PostgresStore
from citylab.columns import Observations, decode_update
from citylab.drafts import read_changes
from citylab.entities import DATASTREAM, FEATURE_OF_INTEREST, LOCATION, OBSERVATION, THING
from citylab.model import DAY, HOUR, MINUTE, SECOND, Topic
from citylab.times import format_instant, format_time
from citylab.writes import Receipt, Write

T0 = 1_748_736_000 * SECOND  # 2025-06-01T00:00:00Z
NOW = T0 + 100 * DAY
STREAMS = [("a", "PT1S", None), ("b", "PT1H", "end"), ("c", "P1D", None), ("d", None, "end")]
POINTS = [[2.0, 41.0], [2.5, 41.5], [1.0, 40.0]]
MEASUREMENT = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement"


class City:
    """A Thing with four streams, three features, and what a test does with them."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.seq = 0

    async def build(self) -> None:
        async with self.store.transaction() as transaction:
            place = {"name": "l", "description": "d", "encodingType": "application/geo+json",
                     "location": {"type": "Point", "coordinates": POINTS[0]}}  # fmt: skip
            self.thing = await transaction.create(
                "Things", {"name": "t", "description": "d", "Locations": [place]}, now=T0
            )
            self.streams = [
                await transaction.create("Datastreams", self.datastream(*stream)) for stream in STREAMS
            ]
            self.features = [
                await transaction.create(
                    "FeaturesOfInterest",
                    {"name": "f", "description": "d", "encodingType": "application/geo+json",
                     "feature": {"type": "Point", "coordinates": point}},
                )
                for point in POINTS
            ]  # fmt: skip

    def datastream(self, name: str, interval: str | None, stamp: str | None) -> dict:
        properties = {"streamName": name, "interval": interval, "stamp": stamp}
        return {
            "name": name,
            "description": "d",
            "observationType": MEASUREMENT,
            "unitOfMeasurement": {"name": "n", "symbol": "s", "definition": "d"},
            "properties": {k: v for k, v in properties.items() if v is not None},
            "Thing": {"@iot.id": self.thing},
            "Sensor": {"name": "s", "description": "d", "encodingType": "text/plain", "metadata": "m"},
            "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
        }

    async def deliver(
        self, values: list[tuple[int, int, float, int]], feature: int | None = None
    ) -> tuple[int, int]:
        """Save (datastream, time, number, quality) as a gateway's; return how many were stored and duplicates."""
        self.seq += 1
        n = len(values)
        rows = Observations(
            datastream=np.array([v[0] for v in values], np.int64),
            time=np.array([v[1] for v in values], np.int64),
            number=np.array([v[2] for v in values], np.float64),
            quality=np.array([v[3] for v in values], np.int8),
            feature=np.full(n, self.features[0] if feature is None else feature),
        )
        receipt = Receipt("gw", 7, self.seq, Topic.PACKS, 0, self.seq, T0, n, T0)
        saved = await self.store.save(
            Write(rows=rows, receipt=np.zeros(n, np.int64), record=np.arange(n), receipts=[receipt])
        )
        assert not saved.rejected
        return saved.stored, saved.duplicates

    async def create(self, document: dict) -> int:
        async with self.store.transaction() as transaction:
            return await transaction.create("Observations", document, now=NOW)

    async def change(self, entity_type, own: int, document: dict, **options) -> None:
        changes = read_changes(entity_type, msgspec.json.encode(document), **options)
        async with self.store.transaction() as transaction:
            await transaction.lock_catalogue()
            await transaction.update(entity_type, own, changes, now=NOW)

    async def delete(self, entity_type, own: int) -> int:
        keys = ", ".join(entity_type.default_order)
        return await self.delete_where(
            entity_type, f"SELECT {keys} FROM {entity_type.table} WHERE id = %(id)s", {"id": own}
        )

    async def delete_where(self, entity_type, selection: str, parameters: dict) -> int:
        async with self.store.transaction() as transaction:
            await transaction.lock_catalogue()
            return await transaction.delete(entity_type, selection, parameters)

    async def fetch(self, sql: str, *parameters) -> list[tuple]:
        async with self.store.transaction(read_only=True) as transaction:
            return await transaction.fetch(sql, parameters)

    async def check(self) -> None:
        """Fold, and compare every table with one computed from the observations alone."""
        while await self.store.fold():
            pass
        rows = await self.fetch(
            "SELECT o.datastream_id, id, (extract(epoch FROM phenomenon_time) * 1000000)::bigint,"
            " (extract(epoch FROM coalesce(phenomenon_end, phenomenon_time)) * 1000000)::bigint, result_number,"
            " result_json::text, quality, (extract(epoch FROM result_time) * 1000000)::bigint, feature_of_interest_id"
            " FROM observations o ORDER BY 1, 3, 2"
        )
        await self._check_aggregates(rows)
        await self._check_latest(rows)

    async def _check_aggregates(self, rows: list[tuple]) -> None:
        kinds = {
            d: (interval, stamp == "end")
            for d, interval, stamp in await self.fetch(
                "SELECT id, properties ->> 'interval', properties ->> 'stamp' FROM datastreams"
            )
        }
        widths = {"PT1H": (HOUR, DAY), "P1D": (DAY,)}
        expected: dict[tuple, list] = {}
        for d, _, t, _, number, _, quality, *_ in rows:
            if number is None:
                continue
            interval, at_end = kinds[d]
            inside = t - at_end
            for width in widths.get(interval, (MINUTE, HOUR, DAY)):
                expected.setdefault((d, width // SECOND, inside - inside % width), []).append(
                    (number, quality)
                )
        found = {
            (d, w, start): rest
            for d, w, start, *rest in await self.fetch(
                "SELECT datastream_id, width, (extract(epoch FROM window_start) * 1000000)::bigint, count, good_count,"
                " mean, m2, min, max, first, last FROM aggregates"
            )
        }
        assert found.keys() == expected.keys()
        for key, members in expected.items():
            good = [number for number, quality in members if quality != 3]
            count, good_count, mean, m2, least, greatest, first, last = found[key]
            assert (count, good_count) == (len(members), len(good)), key
            if not good:
                assert (mean, m2, least, greatest, first, last) == (None,) * 6
                continue
            exact = math.fsum(good) / len(good)
            scale = max(map(abs, good)) + 1e-12
            assert mean == pytest.approx(exact, rel=1e-9, abs=1e-9 * scale)
            assert m2 == pytest.approx(
                math.fsum((v - exact) ** 2 for v in good), rel=1e-6, abs=1e-9 * scale**2
            )
            assert (least, greatest, first, last) == (min(good), max(good), good[0], good[-1]), key

    async def _check_latest(self, rows: list[tuple]) -> None:
        geometries = dict(await self.fetch("SELECT id, feature::text FROM features_of_interest"))
        expected, pairs = {}, set()
        for datastream in {row[0] for row in rows}:
            own = [row for row in rows if row[0] == datastream]
            newest = own[-1]
            result_times = [row[7] for row in own if row[7] is not None]
            features = {row[8] for row in own if row[8]}
            pairs |= {(datastream, feature) for feature in features}
            area = area_of(sorted({geometries[f] for f in features}))
            expected[datastream] = (
                newest[1], newest[2], newest[4], newest[5], newest[6], newest[7], len(own), own[0][2],
                max(row[3] for row in own), min(result_times, default=None), max(result_times, default=None),
                area and msgspec.json.decode(area),
            )  # fmt: skip
        micros = "(extract(epoch FROM {}) * 1000000)::bigint"
        names = ("phenomenon_first", "phenomenon_last", "result_time_first", "result_time_last")
        found = {
            d: tuple(rest)
            for d, *rest in await self.fetch(
                f"SELECT datastream_id, id, {micros.format('phenomenon_time')}, result_number, result_json::text, quality,"
                f" {micros.format('result_time')}, count, {', '.join(map(micros.format, names))}, observed_area FROM latest"
            )
        }
        for datastream in found.keys() - expected.keys():
            assert found.pop(datastream) == (None, None, None, None, 0, None, 0, None, None, None, None, None)
        assert found == expected
        assert set(await self.fetch("SELECT * FROM observed_features")) == pairs
        assert await self.fetch("SELECT count(*) FROM stale_hours") == [(0,)]


@pytest.fixture
async def city(store) -> City:
    city = City(store)
    await city.build()
    return city


def observation(datastream: int, time: str, result, **more) -> dict:
    return {"Datastream": {"@iot.id": datastream}, "phenomenonTime": time, "result": result} | more


async def test_a_deleted_observation_leaves_nothing_but_a_tombstone(city):
    a = city.streams[0]
    values = [(a, T0 + i * SECOND, float(i), 0) for i in range(5)]
    await city.deliver(values)
    ((newest,),) = await city.fetch("SELECT id FROM latest WHERE datastream_id = %s", a)

    assert await city.delete(OBSERVATION, newest) == 1
    assert await city.delete(OBSERVATION, newest) == 0

    await city.check()
    assert await city.fetch("SELECT count FROM latest") == [(4,)]
    assert await city.deliver(values) == (0, 5)
    await city.check()


async def test_windows_and_areas_that_become_empty_go(city):
    first = await city.create(observation(city.streams[0], "2025-06-01T00:00:10Z", 1))
    await city.check()
    await city.delete(OBSERVATION, first)
    await city.check()
    assert await city.fetch("SELECT count(*) FROM aggregates") == [(0,)]
    # Who remembered that the feature was observed must notice that it is not any more.
    await city.create(observation(city.streams[0], "2025-06-01T00:00:10Z", 1))
    await city.check()


async def test_an_edit_keeps_the_id_and_the_rest_of_the_row(city):
    a = city.streams[0]
    await city.deliver([(a, T0, 1.0, 2)])
    ((own,),) = await city.fetch("SELECT id FROM observations")

    await city.change(OBSERVATION, own, {"result": 5.5, "parameters": {"by": "hand"}})

    found = await city.fetch("SELECT id, ordinal, result_number, quality, parameters FROM observations")
    assert found == [(own, 0, 5.5, 2, {"by": "hand"})]
    assert await city.deliver([(a, T0, 1.0, 2)]) == (0, 1)
    await city.check()


async def test_another_time_makes_a_stream_row_one_of_the_api(city):
    a = city.streams[0]
    await city.deliver([(a, T0, 1.0, 0), (a, T0 + HOUR, 2.0, 0)])
    ((own,),) = await city.fetch("SELECT id FROM observations WHERE result_number = 1")

    await city.change(OBSERVATION, own, {"phenomenonTime": format_instant(T0 + HOUR)})

    assert await city.fetch("SELECT ordinal FROM observations WHERE id = %s", own) == [(own,)]
    assert await city.deliver([(a, T0, 1.0, 0), (a, T0 + HOUR, 2.0, 0)]) == (0, 2)
    await city.check()


async def test_another_datastream_and_feature(city):
    a, b, *_ = city.streams
    await city.deliver([(a, T0, 1.0, 0), (a, T0 + SECOND, 2.0, 0)])
    ((own,),) = await city.fetch("SELECT id FROM observations WHERE result_number = 2")
    await city.change(
        OBSERVATION, own, {"Datastream": {"@iot.id": b}, "FeatureOfInterest": {"@iot.id": city.features[1]}}
    )
    await city.check()
    assert await city.fetch("SELECT datastream_id, count FROM latest ORDER BY 1") == [(a, 1), (b, 1)]


async def test_an_edit_is_told_to_the_readers_of_updates(city):
    own = await city.create(observation(city.streams[0], "2025-06-01T00:00:10Z", 1))
    await city.change(OBSERVATION, own, {"result": 2})
    messages = await city.fetch("SELECT message FROM pending_updates ORDER BY id")
    told = [decode_update(message).rows() for (message,) in messages]
    assert [(ids.tolist(), rows.number.tolist()) for rows, ids in told] == [([own], [1.0]), ([own], [2.0])]


async def test_a_deleted_datastream_takes_everything_along(city):
    a, b, *_ = city.streams
    await city.deliver([(d, T0 + i * SECOND, 1.0, 0) for d in (a, b) for i in range(3)])
    ((own,),) = await city.fetch("SELECT max(id) FROM observations WHERE datastream_id = %s", a)
    await city.delete(OBSERVATION, own)
    await city.delete(DATASTREAM, a)
    await city.check()
    for table in ("observations", "latest", "aggregates", "tombstones", "observed_features", "stale_hours"):
        assert await city.fetch(f"SELECT 1 FROM {table} WHERE datastream_id = %s", a) == [], table
    assert await city.fetch("SELECT count(*) FROM observations") == [(3,)]


async def test_a_deleted_thing_takes_its_datastreams_along_and_leaves_the_rest(city):
    await city.deliver([(city.streams[0], T0, 1.0, 0)])
    await city.delete(THING, city.thing)
    await city.check()
    counts = {
        table: (await city.fetch(f"SELECT count(*) FROM {table}"))[0][0]
        for table in ("things", "datastreams", "observations", "historical_locations", "locations", "sensors")
    }
    assert counts == {
        "things": 0, "datastreams": 0, "observations": 0, "historical_locations": 0, "locations": 1, "sensors": 4,
    }  # fmt: skip


async def test_a_deleted_feature_takes_its_observations_along(city):
    a = city.streams[0]
    await city.deliver([(a, T0, 1.0, 0)])
    await city.deliver([(a, T0 + SECOND, 1.0, 0)], city.features[1])
    await city.delete(FEATURE_OF_INTEREST, city.features[1])
    await city.check()
    assert await city.fetch("SELECT count(*) FROM observations") == [(1,)]
    assert await city.deliver([(a, T0 + SECOND, 1.0, 0)]) == (0, 1)


async def test_another_geometry_of_a_feature_changes_the_areas(city):
    a = city.streams[0]
    await city.deliver([(a, T0, 1.0, 0)])
    await city.deliver([(a, T0 + SECOND, 1.0, 0)], city.features[1])
    await city.check()
    await city.change(
        FEATURE_OF_INTEREST, city.features[1], {"feature": {"type": "Point", "coordinates": [9, 9]}}
    )
    await city.check()
    ((area,),) = await city.fetch("SELECT observed_area FROM latest")
    assert area["coordinates"][0][2] == [9.0, 41.0]


async def test_another_place_of_a_location_makes_another_feature(city):
    first = await city.create(observation(city.streams[0], "2025-06-01T00:00:10Z", 1))
    ((location,),) = await city.fetch("SELECT id FROM locations")
    await city.change(LOCATION, location, {"description": "the same place"})
    second = await city.create(observation(city.streams[0], "2025-06-01T00:00:11Z", 1))
    await city.change(LOCATION, location, {"location": {"type": "Point", "coordinates": [3, 3]}})
    third = await city.create(observation(city.streams[0], "2025-06-01T00:00:12Z", 1))
    features = dict(await city.fetch("SELECT id, feature_of_interest_id FROM observations"))
    assert features[first] == features[second] != features[third]
    await city.check()


@pytest.mark.parametrize(
    "properties",
    [{"interval": "PT1H"}, {"interval": "P1D"}, {"stamp": "end"}, {"interval": "PT1H", "stamp": "end"}],
)
async def test_another_interval_or_stamp_makes_the_aggregates_anew(city, properties):
    a = city.streams[0]
    await city.deliver([(a, T0 + i * 10 * MINUTE, float(i), i % 4) for i in range(300)])
    await city.check()
    await city.change(DATASTREAM, a, {"properties": {"streamName": "a"} | properties})
    await city.check()
    await city.change(DATASTREAM, a, {"properties": {"streamName": "a"}})
    await city.check()


async def test_what_a_failed_transaction_learned_is_forgotten(city):
    document = observation(city.streams[0], "2025-06-01T00:00:10Z", 1)

    class Failed(Exception):
        pass

    async def fail() -> None:
        async with city.store.transaction() as transaction:
            await transaction.create("Observations", document)
            raise Failed

    async def fail_in(transaction) -> None:
        async with transaction.savepoint():
            await transaction.create("Observations", document)
            raise Failed

    with pytest.raises(Failed):
        await fail()
    async with city.store.transaction() as transaction:
        with pytest.raises(Failed):
            await fail_in(transaction)
    await city.create(document)
    await city.check()


async def test_many_deleted_at_once(city):
    a = city.streams[0]
    await city.deliver([(a, T0 + i * 20 * SECOND, float(i), i % 4) for i in range(12_000)])
    limit = format_instant(T0 + 11_500 * 20 * SECOND + 30 * SECOND)
    gone = await city.delete_where(
        OBSERVATION,
        "SELECT datastream_id, phenomenon_time, ordinal FROM observations WHERE phenomenon_time < %(limit)s::timestamptz",
        {"limit": limit},
    )
    assert gone == 11_502
    await city.check()


TIMES = st.integers(0, 40).map(lambda i: T0 + (i % 9) * 17 * SECOND + (i // 9) * 11 * HOUR)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "result": st.one_of(
            st.integers(-50, 50), st.floats(-1e5, 1e5, width=32), st.sampled_from(["x", None, True])
        ),
        "phenomenonTime": st.one_of(
            TIMES.map(format_instant),
            st.tuples(TIMES, st.integers(0, DAY)).map(lambda p: format_time(p[0], p[0] + p[1])),
        ),
        "resultTime": st.one_of(st.none(), TIMES.map(format_instant)),
        "resultQuality": st.sampled_from(
            [None, {"flag": "bad"}, {"flag": "good"}, {"flag": "bad", "why": "x"}]
        ),
        "Datastream": st.integers(0, 3),
        "FeatureOfInterest": st.integers(0, 2),
    },
)
ROW = st.tuples(st.integers(0, 3), TIMES, st.integers(-50, 50).map(float), st.integers(0, 3))
STEPS = st.one_of(
    st.tuples(
        st.just("deliver"),
        st.lists(ROW, min_size=1, max_size=12, unique_by=lambda r: r[:2]),
        st.integers(0, 2),
    ),
    st.tuples(st.just("create"), CHANGES, st.integers(0, 3)),
    st.tuples(st.just("edit"), CHANGES, st.integers(0, 1_000)),
    st.tuples(st.just("delete"), st.none(), st.integers(0, 1_000)),
    st.tuples(st.just("delete some"), TIMES, st.integers(0, 3)),
    st.tuples(st.just("fold"), st.none(), st.none()),
    st.tuples(st.just("delete feature"), st.none(), st.integers(1, 2)),
    st.tuples(st.just("delete datastream"), st.none(), st.just(3)),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=4, max_size=25))
def test_any_mix_of_writes_edits_and_deletions_gives_the_tables_of_a_fresh_computation(
    embedded_databases, steps
):
    asyncio.run(_any_mix(embedded_databases.make(), steps))


async def _any_mix(url, steps) -> None:
    async with PostgresStore(url) as store:
        city = City(store)
        await city.build()
        mix = _Mix(city)
        for step, what, number in steps:
            await mix.do(step, what, number)
        await city.check()
        again = [row for row in mix.delivered.values() if row[0] in city.streams]
        if again:
            assert await city.deliver(again) == (0, len(again))
            await city.check()


class _Mix:
    def __init__(self, city: City) -> None:
        self.city = city
        self.delivered: dict[tuple[int, int], tuple] = {}

    def linked(self, changes: dict) -> dict:
        """The changes, with links to what is still there."""
        document = dict(changes)
        for name, ids in (("Datastream", self.city.streams), ("FeatureOfInterest", self.city.features)):
            if name in document:
                document[name] = {"@iot.id": ids[document[name] % len(ids)]}
        return document

    async def do(self, step: str, what, number) -> None:
        city = self.city
        match step:
            case "deliver":
                rows = [(city.streams[s], t, v, q) for s, t, v, q in what if s < len(city.streams)]
                rows = [self.delivered.setdefault(row[:2], row) for row in rows]
                if rows:
                    await city.deliver(rows, city.features[number % len(city.features)])
            case "create":
                document = {"result": 1, "Datastream": 0} | what
                await city.create(self.linked(document))
            case "edit" | "delete":
                ids = [row[0] for row in await city.fetch("SELECT id FROM observations ORDER BY id")]
                if ids and step == "edit":
                    await city.change(OBSERVATION, ids[number % len(ids)], self.linked(what))
                elif ids:
                    assert await city.delete(OBSERVATION, ids[number % len(ids)]) == 1
            case "delete some":
                await city.delete_where(
                    OBSERVATION,
                    "SELECT datastream_id, phenomenon_time, ordinal FROM observations"
                    " WHERE datastream_id = %(d)s AND phenomenon_time >= %(t)s::timestamptz",
                    {"d": city.streams[number % len(city.streams)], "t": format_instant(what)},
                )
            case "delete feature" if number < len(city.features):
                await city.delete(FEATURE_OF_INTEREST, city.features.pop(number))
            case "delete datastream" if number < len(city.streams):
                await city.delete(DATASTREAM, city.streams.pop(number))
            case "fold":
                await city.store.fold()
