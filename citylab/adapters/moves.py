"""Things that move: new positions among stream rows become Locations, and rows get the feature of where their Thing was.

What is written here changes no catalogue (migration 0006): no writer loads anything anew, and none waits but those of
the same Thing, which is locked. Where a Thing was is asked for the times at hand, never kept.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from citylab.adapters.derived import Facts, forget, observe
from citylab.adapters.pgbinary import PgArray, times
from citylab.adapters.postgres import Connection
from citylab.columns import Observations
from citylab.entities import GEOJSON_ENCODINGS
from citylab.model import Micros, Quality
from citylab.tracks import Changes, Place, Point, follow, on_earth

_MOST = 1_000  # positions, and places, that are read at a time
_AXES = (1, 2)  # longitude, latitude: as in `Facts.axis`

Coordinates = dict[int, tuple[float | None, int]]  # by axis: degrees, quality


@dataclass(slots=True)
class Moved:
    """What of older rows changed with the track, to be brought into the observed areas: (datastream, feature).

    left: which they had before, with the first and the last time of those rows; others may still have it.
    """

    seen: set[tuple[int, int]] = field(default_factory=set)
    left: list[tuple[int, int, Micros, Micros]] = field(default_factory=list)


async def settle(
    connection: Connection, facts: Facts, rows: Observations, *, least: float
) -> tuple[Observations, Moved]:
    """Move the Things of which stream rows, sorted by (datastream, time), bring new positions.

    Returns the rows with the features of where their Things were. The rows are not stored yet; that they will be is
    certain, because no other writer stores rows of Things that are locked here.
    """
    moving = facts.moving[rows.datastream]
    some = np.flatnonzero(moving)
    moved = Moved()
    if not len(some):
        return rows, moved
    await connection.execute(
        "SELECT id FROM things WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE",
        (PgArray(np.unique(moving[some])),),
    )
    waiting = await _coordinates(connection, facts, rows)
    while waiting:
        since = {thing: min(positions) for thing, positions in waiting.items()}
        stretches = await _stretches(connection, since)
        changes = {}
        for thing, stretch in stretches.items():
            changes[thing] = stretch.follow(waiting[thing], least)
            waiting[thing] = {t: c for t, c in waiting[thing].items() if t > stretch.until}
        waiting = {thing: positions for thing, positions in waiting.items() if positions}
        await _change(connection, {thing: change for thing, change in changes.items() if change.made}, moved)
    feature = rows.feature.copy()
    feature[some] = await _features(connection, moving[some], rows.time[some])
    return rows.with_features(feature), moved


async def _coordinates(
    connection: Connection, facts: Facts, rows: Observations
) -> dict[int, dict[Micros, Coordinates]]:
    """The coordinates among rows, by Thing and time; without those that were stored once and are deleted."""
    axis = facts.axis[rows.datastream]
    first = np.r_[True, (rows.datastream[1:] != rows.datastream[:-1]) | (rows.time[1:] != rows.time[:-1])]
    index = np.flatnonzero((axis > 0) & first)
    if not len(index):
        return {}
    cursor = await connection.execute(
        "SELECT r.i FROM unnest(%b::int8[], %b::timestamptz[]) WITH ORDINALITY AS r (d, t, i)"
        " JOIN tombstones s ON s.datastream_id = r.d AND s.phenomenon_time = r.t",
        (PgArray(rows.datastream[index]), times(rows.time[index])),
    )
    index = np.delete(index, [i - 1 for (i,) in await cursor.fetchall()])
    found: defaultdict[int, dict[Micros, Coordinates]] = defaultdict(dict)
    for i in index.tolist():
        of_thing = found[int(facts.moving[rows.datastream[i]])]
        of_thing.setdefault(int(rows.time[i]), {})[int(axis[i])] = (
            float(rows.number[i]),
            int(rows.quality[i]),
        )
    return found


@dataclass(slots=True)
class _Stretch:
    """What is stored of a Thing from a time on, and complete up to `until`. here: where it was before."""

    here: Point | None = None
    places: list[Place] = field(default_factory=list)
    coordinates: dict[Micros, Coordinates] = field(default_factory=dict)
    until: Micros = np.iinfo(np.int64).max

    def follow(self, candidates: Mapping[Micros, Coordinates], least: float) -> Changes:
        """Follow the Thing with coordinates that may be new."""
        positions, new = {}, set()
        stored = {t: c for t, c in self.coordinates.items() if t <= self.until}
        for time in stored.keys() | {t for t in candidates if t <= self.until}:
            before = stored.get(time, {})
            after = candidates.get(time, {}) | before
            position = _position(after)
            if position is not None:
                positions[time] = position
                if len(after) > len(before):
                    new.add(time)
        places = [place for place in self.places if place.time <= self.until]
        return follow(self.here, places, positions, new, least=least)


def _position(coordinates: Coordinates) -> Point | None:
    """The position that coordinates make together; None unless both are there, on earth and not bad."""
    if len(coordinates) < len(_AXES):
        return None
    (longitude, one), (latitude, other) = (coordinates[axis] for axis in _AXES)
    if (
        longitude is None
        or latitude is None
        or Quality.BAD in {one, other}
        or not on_earth(longitude, latitude)
    ):
        return None
    return longitude, latitude


async def _stretches(connection: Connection, since: Mapping[int, Micros]) -> dict[int, _Stretch]:
    stretches = {thing: _Stretch() for thing in since}
    parameters = {
        "things": PgArray(np.array(list(since), np.int64)),
        "since": times(np.array(list(since.values()), np.int64)),
    }
    read: defaultdict[tuple[int, int], list[Micros]] = defaultdict(list)  # by Thing and source of a row
    for thing, axis, time, number, quality in await (
        await connection.execute(_STORED, parameters)
    ).fetchall():
        stretches[thing].coordinates.setdefault(time, {})[axis] = (number, quality)
        read[thing, axis].append(time)
    for thing, history, time, by_position, longitude, latitude, before in await (
        await connection.execute(_PLACES, parameters)
    ).fetchall():
        point = None if longitude is None or latitude is None else (longitude, latitude)
        if before:
            stretches[thing].here = point
        else:
            stretches[thing].places.append(Place(time, point, history, by_position))
            read[thing, 0].append(time)
    for (thing, _), found in read.items():
        if len(found) == _MOST:
            stretches[thing].until = min(stretches[thing].until, found[-1])
    return stretches


async def _change(connection: Connection, changes: Mapping[int, Changes], moved: Moved) -> None:
    """Write what changes of the tracks of Things, and give the rows of the times in between their features."""
    if not changes:
        return
    made = [(thing, time, *point) for thing, change in changes.items() for time, point in change.made]
    thing, time, longitude, latitude = zip(*made, strict=True)
    things = list(changes)
    gone = [history for change in changes.values() for _, history in change.gone]
    async with connection.pipeline():  # nothing here waits for what a statement answers
        async with _no_change_of_catalogue(connection):
            await connection.execute(
                _MAKE,
                (
                    PgArray(np.array(thing, np.int64)), times(np.array(time, np.int64)),
                    PgArray(np.array(longitude, np.float64)), PgArray(np.array(latitude, np.float64)),
                ),
            )  # fmt: skip
            if gone:
                await connection.execute("DELETE FROM historical_locations WHERE id = ANY(%s)", (gone,))
        await connection.execute(_FOLLOW_NEWEST, {"things": things})
    first, last = np.array([change.span for change in changes.values()], np.int64).T
    cursor = await connection.execute(_OVERTAKEN, (PgArray(np.array(things, np.int64)), times(first)))
    late = np.isin(things, [thing for (thing,) in await cursor.fetchall()])
    if not late.any():
        return
    cursor = await connection.execute(
        _GIVE_FEATURES, (PgArray(np.array(things, np.int64)[late]), times(first[late]), times(last[late]))
    )
    for datastream, before, after, begin, end in await cursor.fetchall():
        moved.seen.add((datastream, after))
        if before is not None:
            moved.left.append((datastream, before, begin, end))


async def observe_moved(connection: Connection, moved: Moved) -> None:
    """Bring observed areas in step with the older rows whose features changed."""
    await observe(connection, moved.seen)
    if not moved.left:
        return
    datastream, feature, begin, end = np.array(moved.left, np.int64).T
    cursor = await connection.execute(
        _LEFT, (PgArray(datastream), PgArray(feature), times(begin), times(end))
    )
    async with _no_change_of_catalogue(connection):
        await forget(connection, [(d, f) for d, f in await cursor.fetchall()])


@asynccontextmanager
async def _no_change_of_catalogue(connection: Connection) -> AsyncIterator[None]:
    await connection.execute("SELECT set_config('citylab.moves', 'on', TRUE)")
    yield
    await connection.execute("SELECT set_config('citylab.moves', 'off', TRUE)")


async def _features(connection: Connection, thing: Any, time: Any) -> Any:
    """The feature of where each Thing was at each time; int64, shape (n,), 0 for nowhere."""
    pairs, index = np.unique(np.stack([thing, time]), axis=1, return_inverse=True)
    cursor = await connection.execute(_FEATURES, (PgArray(pairs[0]), times(pairs[1])))
    features = np.array([feature for (feature,) in await cursor.fetchall()], np.int64)
    return features[index.reshape(-1)]


def _micros(sql: str) -> str:
    return f"(extract(epoch FROM {sql}) * 1000000)::bigint"


def _last(of: str, where: str) -> str:
    """SQL of the HistoricalLocation in force: the last one where something holds, else the first that was declared."""
    return (
        f"coalesce((SELECT n.id FROM historical_locations n WHERE n.thing_id = {of} AND {where}"
        " ORDER BY n.time DESC, n.id DESC LIMIT 1),"
        f" (SELECT n.id FROM historical_locations n WHERE n.thing_id = {of} AND NOT n.by_position"
        " ORDER BY n.time, n.id LIMIT 1))"
    )


def _location(history: str) -> str:
    """SQL of a HistoricalLocation's Location, the GeoJSON one of several."""
    encodings = ", ".join(f"'{encoding}'" for encoding in GEOJSON_ENCODINGS)
    return (
        "SELECT l.* FROM historical_locations_locations hl JOIN locations l ON l.id = hl.location_id"
        f" WHERE hl.historical_location_id = {history} ORDER BY l.encoding_type IN ({encodings}) DESC, l.id LIMIT 1"
    )


_RANGES = "unnest(%(things)b::int8[], %(since)b::timestamptz[]) AS r (thing, since)"
# `high_water` spares looking for what comes after the newest, in every chunk of a hypertable.
_STORED = f"""
SELECT r.thing, s.axis, {_micros("o.phenomenon_time")}, o.result_number, o.quality
FROM {_RANGES} JOIN moving_things m ON m.thing_id = r.thing
CROSS JOIN LATERAL (VALUES (1, m.longitude), (2, m.latitude)) AS s (axis, stream)
JOIN latest l ON l.datastream_id = s.stream AND l.high_water >= r.since
CROSS JOIN LATERAL (
    SELECT * FROM observations o WHERE o.datastream_id = s.stream AND o.ordinal = 0 AND o.phenomenon_time >= r.since
    ORDER BY o.phenomenon_time LIMIT {_MOST}
) o ORDER BY o.phenomenon_time
"""

_POINT = "CASE WHEN l.location ->> 'type' = 'Feature' THEN l.location -> 'geometry' ELSE l.location END"
_DEGREES = "jsonb_typeof(g.point -> 'coordinates' -> {0}) = 'number' THEN (g.point -> 'coordinates' ->> {0})::float8 END"
_PLACES = f"""
SELECT r.thing, h.id, {_micros("h.time")}, h.by_position,
    CASE WHEN g.point ->> 'type' = 'Point' AND {_DEGREES.format(0)},
    CASE WHEN g.point ->> 'type' = 'Point' AND {_DEGREES.format(1)}, h.before
FROM {_RANGES} CROSS JOIN LATERAL (
    SELECT h.*, TRUE AS before FROM historical_locations h WHERE h.id = {_last("r.thing", "n.time < r.since")}
    UNION ALL (SELECT h.*, FALSE FROM historical_locations h WHERE h.thing_id = r.thing AND h.time >= r.since
        ORDER BY h.time, h.id LIMIT {_MOST})
) h LEFT JOIN LATERAL ({_location("h.id")}) l ON TRUE
CROSS JOIN LATERAL (SELECT {_POINT} AS point) g
ORDER BY h.time, h.id
"""

_MAKE = f"""
WITH new AS (
    SELECT r.*, t.pilot, t.name, nextval('locations_id_seq') AS location, nextval('historical_locations_id_seq') AS history,
        'Where ' || t.name || ' was at ' || to_char(r.time, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS description,
        jsonb_build_object('type', 'Point', 'coordinates', jsonb_build_array(r.longitude, r.latitude)) AS point
    FROM unnest(%b::int8[], %b::timestamptz[], %b::float8[], %b::float8[]) AS r (thing, time, longitude, latitude)
    JOIN things t ON t.id = r.thing ORDER BY r.time
), place AS (
    INSERT INTO locations (id, pilot, name, description, encoding_type, location)
    SELECT location, pilot, name, description, '{GEOJSON_ENCODINGS[0]}', point FROM new
), seen AS (
    INSERT INTO features_of_interest (pilot, name, description, encoding_type, feature, location_id)
    SELECT pilot, name, description, '{GEOJSON_ENCODINGS[0]}', point, location FROM new
), history AS (
    INSERT INTO historical_locations (id, pilot, time, thing_id, by_position)
    SELECT history, pilot, time, thing, TRUE FROM new
)
INSERT INTO historical_locations_locations SELECT history, location FROM new
"""

_FOLLOW_NEWEST = """
WITH now AS (
    SELECT x.thing, hl.location_id FROM unnest(%(things)s::int8[]) AS x (thing)
    CROSS JOIN LATERAL (SELECT h.id FROM historical_locations h WHERE h.thing_id = x.thing
        ORDER BY h.time DESC, h.id DESC LIMIT 1) h
    JOIN historical_locations_locations hl ON hl.historical_location_id = h.id
), gone AS (
    DELETE FROM things_locations t WHERE t.thing_id = ANY(%(things)s::int8[])
    AND NOT EXISTS (SELECT FROM now WHERE now.thing = t.thing_id AND now.location_id = t.location_id)
)
INSERT INTO things_locations SELECT * FROM now ON CONFLICT DO NOTHING
"""

_OVERTAKEN = """
SELECT r.thing FROM unnest(%b::int8[], %b::timestamptz[]) AS r (thing, first) WHERE EXISTS (
    SELECT FROM datastreams d JOIN latest l ON l.datastream_id = d.id
    WHERE d.thing_id = r.thing AND d.stream_name IS NOT NULL AND l.high_water >= r.first)
"""

# OFFSET 0 keeps the order of the joins: estimates of arrays would have whole histories read.
# What was edited through the API has a tombstone, and the feature that it was given.
_GIVE_FEATURES = f"""
WITH stays AS MATERIALIZED (
    SELECT h.thing_id, h.time AS since, n.until, f.id AS feature
    FROM unnest(%b::int8[], %b::timestamptz[], %b::timestamptz[]) AS r (thing, first, last)
    CROSS JOIN LATERAL (SELECT * FROM historical_locations h WHERE h.thing_id = r.thing AND h.time >= r.first
        AND h.time <= r.last OFFSET 0) h
    CROSS JOIN LATERAL (SELECT coalesce(min(n.time), 'infinity') AS until FROM historical_locations n
        WHERE n.thing_id = h.thing_id AND n.time > h.time) n
    CROSS JOIN LATERAL ({_location("h.id")}) l JOIN features_of_interest f ON f.location_id = l.id
), late AS MATERIALIZED (
    SELECT o.datastream_id, o.phenomenon_time, o.feature_of_interest_id AS before, s.feature
    FROM stays s CROSS JOIN LATERAL (SELECT d.id FROM datastreams d JOIN latest l ON l.datastream_id = d.id
        WHERE d.thing_id = s.thing_id AND d.stream_name IS NOT NULL AND l.high_water >= s.since OFFSET 0) d
    CROSS JOIN LATERAL (SELECT * FROM observations o WHERE o.datastream_id = d.id AND o.phenomenon_time >= s.since
        AND o.phenomenon_time < s.until AND o.ordinal = 0 OFFSET 0) o
    WHERE o.feature_of_interest_id IS DISTINCT FROM s.feature AND NOT EXISTS (SELECT FROM tombstones t
        WHERE t.datastream_id = o.datastream_id AND t.phenomenon_time = o.phenomenon_time)
), changed AS (
    UPDATE observations o SET feature_of_interest_id = late.feature FROM late
    WHERE o.datastream_id = late.datastream_id AND o.phenomenon_time = late.phenomenon_time AND o.ordinal = 0
)
SELECT datastream_id, before, feature, {_micros("min(phenomenon_time)")}, {_micros("max(phenomenon_time)")}
FROM late GROUP BY datastream_id, before, feature
"""

# Looks where those who are at that place are now, and where the rows were that have left it.
_LEFT = """
SELECT DISTINCT x.d, x.f FROM unnest(%b::int8[], %b::int8[], %b::timestamptz[], %b::timestamptz[]) AS x (d, f, first, last)
WHERE NOT EXISTS (
    SELECT FROM (
        SELECT x.first AS since, x.last + interval '1 microsecond' AS until
        UNION ALL SELECT CASE WHEN h.by_position OR EXISTS (SELECT FROM historical_locations n
                WHERE n.thing_id = h.thing_id AND NOT n.by_position AND n.time < h.time) THEN h.time ELSE '-infinity' END,
            coalesce((SELECT min(n.time) FROM historical_locations n WHERE n.thing_id = h.thing_id AND n.time > h.time),
                'infinity')
        FROM features_of_interest f JOIN historical_locations_locations hl ON hl.location_id = f.location_id
        JOIN historical_locations h ON h.id = hl.historical_location_id WHERE f.id = x.f
    ) s CROSS JOIN LATERAL (SELECT FROM observations o WHERE o.datastream_id = x.d AND o.phenomenon_time >= s.since
        AND o.phenomenon_time < s.until AND o.feature_of_interest_id = x.f LIMIT 1) o
)
"""

_FEATURES = f"""
SELECT coalesce(f.id, 0) FROM unnest(%b::int8[], %b::timestamptz[]) WITH ORDINALITY AS r (thing, time, i)
LEFT JOIN LATERAL ({_location(_last("r.thing", "n.time <= r.time"))}) l ON TRUE
LEFT JOIN features_of_interest f ON f.location_id = l.id ORDER BY r.i
"""
