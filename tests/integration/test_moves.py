"""Things that move: whatever comes in whatever order, the tables are those of a fresh computation."""

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citylab.adapters.saving import CATALOGUE_LOCK
from citylab.adapters.store import PostgresStore
from citylab.columns import Observations
from citylab.model import DAY, SECOND, Micros, Quality, Reason, Topic
from citylab.tracks import metres
from citylab.writes import Receipt, Saved, Write
from processing import catalogue

T0 = 1_748_736_000 * SECOND  # 2025-06-01T00:00:00Z
DEPOT = (2.10, 41.30)
MEASUREMENT = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement"


def datastream(name: str, symbol: str, **properties: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": "d",
        "observationType": MEASUREMENT,
        "unitOfMeasurement": {"name": "n", "symbol": symbol, "definition": "d"},
        "properties": {"streamName": name} | properties,
        "Sensor": {"name": "s", "description": "d", "encodingType": "text/plain", "metadata": "m"},
        "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
    }


def place(name: str, point: tuple[float, float]) -> dict[str, Any]:
    return {
        "name": name,
        "description": "d",
        "encodingType": "application/geo+json",
        "location": {"type": "Point", "coordinates": list(point)},
    }


class Bus:
    """A Thing that moves, as the store knows it: its Datastreams by name, and writes that its gateway makes."""

    def __init__(self, store: PostgresStore, thing: int, streams: dict[str, int]) -> None:
        self.store, self.thing, self.streams = store, thing, streams
        self._seq = itertools.count(1)

    @classmethod
    async def register(cls, store: PostgresStore, name: str = "bus", *, at: Micros = T0) -> "Bus":
        """A bus that was in its depot from an instant on."""
        body = {"name": name, "description": "d", "Locations": [place("depot", DEPOT)]}
        async with store.transaction() as transaction:
            thing = await transaction.create("Things", body, now=at)
            made = {}
            for slug, symbol, properties in (
                ("longitude", "°", {"senmlUnit": "lon"}), ("latitude", "lat", {}), ("no2", "ug/m3", {}),
            ):  # fmt: skip
                body = datastream(f"{name}/{slug}", symbol, **properties) | {"Thing": {"@iot.id": thing}}
                made[slug] = await transaction.create("Datastreams", body)
        return cls(store, thing, made)

    async def says(self, *readings: tuple[str, float, float], quality: int = 0, least: float = 10.0) -> Saved:
        """Store a pack. readings: which stream, s after T0, value."""
        known = await catalogue.load(self.store)
        n = len(readings)
        rows = Observations(
            datastream=np.array([self.streams[slug] for slug, _, _ in readings], np.int64),
            time=np.array([T0 + round(second * SECOND) for _, second, _ in readings], np.int64),
            number=np.array([value for _, _, value in readings], np.float64),
            quality=np.full(n, quality, np.int8),
            feature=np.zeros(n, np.int64),
        )
        seq = next(self._seq)
        receipt = Receipt("gw", 7, seq, Topic.PACKS, 0, seq, T0, n, T0)
        return await self.store.save(
            Write(
                rows=rows, receipt=np.zeros(n, np.int64), record=np.arange(n), receipts=[receipt],
                catalogue_version=known.version, least_move=least,
            )
        )  # fmt: skip

    async def is_at(self, second: float, longitude: float, latitude: float, **more: Any) -> Saved:
        """Store a position."""
        return await self.says(("longitude", second, longitude), ("latitude", second, latitude), **more)

    async def history(self) -> list[tuple[float, float, float]]:
        """HistoricalLocations in order of time: s after T0, longitude, latitude."""
        rows = await self.fetch(
            "SELECT extract(epoch FROM h.time)::float8, l.location -> 'coordinates' FROM historical_locations h"
            " JOIN historical_locations_locations hl ON hl.historical_location_id = h.id"
            " JOIN locations l ON l.id = hl.location_id WHERE h.thing_id = %s ORDER BY h.time, h.id",
            (self.thing,),
        )
        return [(time - T0 / SECOND, *point) for time, point in rows]

    async def here(self) -> list[list[float]]:
        """The coordinates of its Locations."""
        rows = await self.fetch(
            "SELECT l.location -> 'coordinates' FROM things_locations t JOIN locations l ON l.id = t.location_id"
            " WHERE t.thing_id = %s",
            (self.thing,),
        )
        return [point for (point,) in rows]

    async def features(self, slug: str = "no2") -> list[tuple[float, list[float] | None]]:
        """A stream's Observations in order of time: s after T0, the coordinates of their features."""
        rows = await self.fetch(
            "SELECT extract(epoch FROM o.phenomenon_time)::float8, f.feature -> 'coordinates' FROM observations o"
            " LEFT JOIN features_of_interest f ON f.id = o.feature_of_interest_id WHERE o.datastream_id = %s"
            " ORDER BY o.phenomenon_time",
            (self.streams[slug],),
        )
        return [(time - T0 / SECOND, point) for time, point in rows]

    async def fetch(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        async with self.store.transaction(read_only=True) as transaction:
            return await transaction.fetch(sql, parameters)


@pytest.fixture
async def bus(store) -> Bus:
    return await Bus.register(store)


async def version(store) -> int:
    async with store.transaction(read_only=True) as transaction:
        return int((await transaction.fetch("SELECT version FROM catalogue"))[0][0])


async def test_a_position_moves_the_thing_and_what_it_measures_is_there(store, bus):
    before = await version(store)

    await bus.says(("no2", 5, 40.0), ("longitude", 10, 2.2), ("latitude", 10, 41.4), ("no2", 10, 41.0))
    await bus.says(("no2", 11, 42.0))

    assert await bus.history() == [(0, *DEPOT), (10, 2.2, 41.4)]
    assert await bus.here() == [[2.2, 41.4]]
    assert await bus.features() == [(5, list(DEPOT)), (10, [2.2, 41.4]), (11, [2.2, 41.4])]
    assert await bus.features("longitude") == [(10, [2.2, 41.4])]
    names = await bus.fetch("SELECT name, description FROM locations ORDER BY id DESC LIMIT 1")
    assert names == [("bus", "Where bus was at 2025-06-01T00:00:10Z")]
    assert await version(store) == before  # no writer loads anything anew


async def test_a_position_that_comes_again_changes_nothing(bus):
    await bus.is_at(10, 2.2, 41.4)
    before = await bus.fetch("SELECT id FROM historical_locations UNION ALL SELECT id FROM locations")

    saved = await bus.is_at(10, 2.2, 41.4)

    assert (saved.stored, saved.duplicates) == (0, 2)
    assert await bus.fetch("SELECT id FROM historical_locations UNION ALL SELECT id FROM locations") == before


async def test_another_position_for_the_same_time_is_a_conflict_and_moves_nothing(bus):
    await bus.is_at(10, 2.2, 41.4)

    saved = await bus.is_at(10, 2.3, 41.5)

    assert dict(saved.rejected) == {Reason.CONFLICT: 2}
    assert await bus.history() == [(0, *DEPOT), (10, 2.2, 41.4)]


async def test_a_late_position_is_history_and_does_not_move_the_thing_back(bus):
    await bus.is_at(20, 2.3, 41.4)
    await bus.says(("no2", 12, 1.0), ("no2", 22, 2.0))

    await bus.is_at(10, 2.2, 41.4)

    assert await bus.history() == [(0, *DEPOT), (10, 2.2, 41.4), (20, 2.3, 41.4)]
    assert await bus.here() == [[2.3, 41.4]]
    assert await bus.features() == [(12, [2.2, 41.4]), (22, [2.3, 41.4])]  # the reading was there before


@pytest.mark.parametrize(
    ("metres_north", "least", "moves"),
    [(9, 10.0, False), (11, 10.0, True), (11, 12.0, False), (0.2, 0.1, True)],
)
async def test_short_moves_make_no_location(bus, metres_north, least, moves):
    north = DEPOT[1] + metres_north / 111_195

    await bus.is_at(10, DEPOT[0], north, least=least)

    assert len(await bus.history()) == 1 + moves


async def test_a_slow_thing_moves_all_the_same(bus):
    for second in range(1, 11):
        await bus.is_at(second, DEPOT[0], DEPOT[1] + second * 4 / 111_195)

    assert [second for second, *_ in await bus.history()] == [0, 3, 6, 9]  # 12 m, 24 m, 36 m


@pytest.mark.parametrize(
    "pack",
    [
        [("longitude", 10, 2.2)],
        [("latitude", 10, 41.4)],
        [("longitude", 10, 2.2), ("latitude", 10.000001, 41.4)],
        [("longitude", 10, 180.5), ("latitude", 10, 41.4)],
        [("longitude", 10, 2.2), ("latitude", 10, -90.1)],
    ],
)
async def test_what_is_no_position_is_stored_and_moves_nothing(bus, pack):
    saved = await bus.says(*pack, ("no2", 10, 40.0))

    assert saved.stored == len(pack) + 1
    assert await bus.history() == [(0, *DEPOT)]
    assert await bus.features() == [(10, list(DEPOT))]


async def test_a_position_of_bad_quality_moves_nothing_and_a_suspect_one_does(bus):
    await bus.is_at(10, 2.2, 41.4, quality=Quality.BAD)
    await bus.is_at(20, 2.3, 41.4, quality=Quality.SUSPECT)

    assert await bus.history() == [(0, *DEPOT), (20, 2.3, 41.4)]


async def test_a_position_whose_halves_come_in_two_packs_is_one(bus):
    await bus.says(("longitude", 10, 2.2), ("no2", 10, 40.0))
    await bus.says(("latitude", 10, 41.4))

    assert await bus.history() == [(0, *DEPOT), (10, 2.2, 41.4)]
    assert await bus.features() == [(10, [2.2, 41.4])]


async def test_a_declared_place_stands_until_the_next_position(store, bus):
    await bus.is_at(10, 2.2, 41.4)
    async with store.transaction() as transaction:
        body = place("workshop", (2.5, 41.5)) | {"Things": [{"@iot.id": bus.thing}]}
        await transaction.create("Locations", body, now=T0 + 20 * SECOND)
    assert await bus.here() == [[2.5, 41.5]]

    await bus.says(("no2", 25, 1.0))
    await bus.is_at(30, 2.50001, 41.5)  # it is still there
    await bus.is_at(15, 2.3, 41.4)
    await bus.is_at(40, 2.2, 41.4)

    assert await bus.history() == [
        (0, *DEPOT), (10, 2.2, 41.4), (15, 2.3, 41.4), (20, 2.5, 41.5), (40, 2.2, 41.4),
    ]  # fmt: skip
    assert await bus.features() == [(25, [2.5, 41.5])]
    assert await bus.here() == [[2.2, 41.4]]


async def test_an_observation_through_the_api_is_where_the_thing_is(store, bus):
    async def observe(second: int) -> None:
        async with store.transaction() as transaction:
            body = {"result": 1, "phenomenonTime": f"2025-06-01T00:01:{second}Z", "Datastream": {"@iot.id": bus.streams["no2"]}}  # fmt: skip
            await transaction.create("Observations", body)

    await bus.is_at(10, 2.2, 41.4)
    await observe(10)
    await bus.is_at(20, 2.3, 41.4)
    await observe(20)

    assert await bus.features() == [(70, [2.2, 41.4]), (80, [2.3, 41.4])]


async def test_what_was_edited_keeps_the_feature_that_it_was_given(store, bus):
    await bus.says(("no2", 12, 1.0))
    async with store.transaction() as transaction:
        await transaction.execute(
            "INSERT INTO tombstones SELECT datastream_id, phenomenon_time FROM observations WHERE datastream_id = %s",
            (bus.streams["no2"],),
        )

    await bus.is_at(10, 2.2, 41.4)

    assert await bus.features() == [(12, list(DEPOT))]


async def test_a_deleted_position_that_comes_again_moves_nothing(store, bus):
    await bus.is_at(20, *DEPOT)
    async with store.transaction() as transaction:
        for slug in ("longitude", "latitude"):
            await transaction.execute(
                "INSERT INTO tombstones VALUES (%s, '2025-06-01T00:00:10Z')", (bus.streams[slug],)
            )

    saved = await bus.is_at(10, 2.2, 41.4)

    assert (saved.stored, saved.duplicates) == (0, 2)
    assert await bus.history() == [(0, *DEPOT)]


async def test_many_late_positions_in_one_write_are_followed_piece_by_piece(bus):
    """More stored positions follow than are read at a time, and the first new one comes before them all."""
    far = [(float(s), 2.2 + s / 1_000, 41.4) for s in range(1, 2_600)]
    await bus.says(*((slug, s, p) for s, x, y in far[::2] for slug, p in (("longitude", x), ("latitude", y))))

    await bus.says(
        *((slug, s, p) for s, x, y in far[1::2] for slug, p in (("longitude", x), ("latitude", y)))
    )

    assert await bus.history() == [(0, *DEPOT), *far]


async def test_the_memory_of_a_writer_does_not_grow_with_the_places(store, bus):
    for second in range(1, 30):
        await bus.is_at(second, 2.2 + second / 1_000, 41.4)

    assert not store._cache._facts.features
    known = await catalogue.load(store)
    assert {stream.features for stream in known.streams} == {()}


STOPS = [(2.1000 + x / 10_000, 41.3 + y / 10_000) for x in range(3) for y in range(2)]  # 8 to 17 m apart
EVENTS = st.lists(
    st.tuples(st.sampled_from(["position", "longitude", "latitude", "no2"]), st.integers(1, 30), st.integers(0, 5)),
    min_size=1,
    max_size=40,
    unique_by=lambda e: (e[0] == "no2", e[1]),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=EVENTS,
    cuts=st.lists(st.integers(1, 39), max_size=8),
    order=st.randoms(),
    declared=st.integers(0, 31),
)
def test_any_order_of_positions_and_readings_gives_the_tables_of_a_fresh_computation(
    embedded_databases, events, cuts, order, declared
):
    asyncio.run(_any_order(embedded_databases.make(), events, cuts, order, declared * SECOND + SECOND // 2))


async def _any_order(url, events, cuts, order, declared: Micros) -> None:
    async with PostgresStore(url) as store:
        bus = await Bus.register(store, at=T0 + declared)
        shuffled = list(events)
        order.shuffle(shuffled)
        edges = sorted({0, len(shuffled), *(c for c in cuts if c < len(shuffled))})
        for a, b in itertools.pairwise(edges):
            part = [*shuffled[a:b], *shuffled[max(0, a - 2) : a]]  # and some of what came before, again
            await bus.says(*(reading for event in part for reading in readings(*event)))
        track = fresh_track(events, declared / SECOND)
        assert await bus.history() == track
        assert await bus.here() == [list(track[-1][1:])]
        for slug in bus.streams:
            found = await bus.features(slug)
            assert found == [(time, list(place_of(track, time))) for time, _ in found]
            seen = {tuple(point) for _, point in found if point}
            areas = await bus.fetch(
                "SELECT observed_area, (SELECT count(*) FROM observed_features o WHERE o.datastream_id = l.datastream_id)"
                " FROM latest l WHERE datastream_id = %s",
                (bus.streams[slug],),
            )
            assert [area for area, _ in areas] == ([area(seen)] if seen else [])
            ((features,),) = await bus.fetch(
                "SELECT count(DISTINCT feature_of_interest_id) FROM observations WHERE datastream_id = %s",
                (bus.streams[slug],),
            )
            assert [count for _, count in areas] == ([features] if features else [])


def readings(kind: str, second: int, stop: int) -> list[tuple[str, float, float]]:
    longitude, latitude = STOPS[stop]
    return {
        "position": [("longitude", second, longitude), ("latitude", second, latitude)],
        "longitude": [("longitude", second, longitude)],
        "latitude": [("latitude", second, latitude)],
        "no2": [("no2", second, float(stop))],
    }[kind]


def fresh_track(events, declared: float) -> list[tuple[float, float, float]]:
    track = [(declared, *DEPOT)]
    here = DEPOT
    positions = sorted((float(second), STOPS[stop]) for kind, second, stop in events if kind == "position")
    for time, point in sorted([*positions, (declared, None)], key=lambda one: one[0]):
        if point is None:
            here = DEPOT
        elif metres(here, point) >= 10:
            here = point
            track.append((time, *point))
    return sorted(track)


def place_of(track, time: float) -> tuple[float, float]:
    before = [point for since, *point in track if since <= time]
    return tuple(before[-1]) if before else DEPOT


def area(points: set[tuple[float, ...]]) -> dict[str, Any]:
    if len(points) == 1:
        return {"type": "Point", "coordinates": list(*points)}
    (west, east), (south, north) = ((min(c), max(c)) for c in zip(*points, strict=True))
    if west == east or south == north:
        return {"type": "LineString", "coordinates": [[west, south], [east, north]]}
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


async def test_who_moves_waits_for_no_writer_but_those_of_the_same_thing(store):
    buses = [await Bus.register(store, f"bus-{n}") for n in range(2)]
    await catalogue.load(store)

    async with store.transaction() as transaction:
        await transaction.fetch("SELECT pg_advisory_xact_lock_shared(%s)", (CATALOGUE_LOCK,))
        await transaction.fetch("SELECT id FROM things WHERE id = %s FOR NO KEY UPDATE", (buses[0].thing,))
        async with asyncio.timeout(10):
            await buses[1].is_at(10, 2.2, 41.4)

    assert await buses[1].here() == [[2.2, 41.4]]


async def test_a_position_of_long_ago_is_found_in_its_place(bus):
    await bus.is_at(DAY / SECOND, 2.3, 41.4)
    await bus.is_at(-DAY / SECOND, 2.2, 41.4)

    assert await bus.history() == [(-86_400, 2.2, 41.4), (0, *DEPOT), (86_400, 2.3, 41.4)]
    assert await bus.here() == [[2.3, 41.4]]
