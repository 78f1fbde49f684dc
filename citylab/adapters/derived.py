"""What follows from new observations: aggregates, latest values, observed areas, update messages."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise

import msgspec
import numpy as np
import shapely

from citylab.adapters.pgbinary import PgArray, times
from citylab.adapters.postgres import Connection
from citylab.columns import NO_TIME, Int64, Observations, Update, encode_update
from citylab.model import HOUR, MINUTE, Quality
from citylab.windows import fold

LARGEST_AGGREGATED = 1e140  # beyond it squares overflow: counted, but not among the good
SMALLEST_AGGREGATED = 1e-130  # below it squares underflow, which PostgreSQL refuses: aggregated as 0
_ROWS_PER_UPDATE, _TEXT_PER_UPDATE = 10_000, 1 << 20


class Facts:
    """What saving needs to know of datastreams, by id: high water of their stream times, their windows, what moves.

    A cache over `latest` and `datastreams` at one version of the catalogue. A high water that another writer has
    passed since, or that a rolled back transaction has raised, costs a retry inside the transaction, never a wrong row.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self.defaults: dict[int, int] = {}  # the feature of an Observation that names none, by Datastream
        self.known = np.zeros(0, np.bool_)
        self.high_water = np.zeros(0, np.int64)
        self.minutes = np.zeros(0, np.bool_)  # whether windows of a minute are made
        self.stamp_end = np.zeros(0, np.bool_)  # whether a time names the end of the interval it covers
        self.moving = np.zeros(0, np.int64)  # its Thing, if that moves, else 0
        self.axis = np.zeros(0, np.int8)  # 1: it is its Thing's longitude; 2: its latitude
        # (datastream, feature) that are in observed_features; none of what moves, which would have no end
        self.features: set[tuple[int, int]] = set()

    async def load(self, connection: Connection, datastream: Int64) -> None:
        """Make sure that all of `datastream` are known."""
        ids = np.unique(datastream)
        if ids[-1] >= len(self.known):
            more = int(ids[-1]) * 2 + 64 - len(self.known)
            self.known = np.concatenate([self.known, np.zeros(more, np.bool_)])
            self.high_water = np.concatenate([self.high_water, np.full(more, NO_TIME)])
            self.minutes = np.concatenate([self.minutes, np.ones(more, np.bool_)])
            self.stamp_end = np.concatenate([self.stamp_end, np.zeros(more, np.bool_)])
            self.moving = np.concatenate([self.moving, np.zeros(more, np.int64)])
            self.axis = np.concatenate([self.axis, np.zeros(more, np.int8)])
        unknown = ids[~self.known[ids]]
        if not len(unknown):
            return
        cursor = await connection.execute(
            "SELECT d.id, coalesce(declared_interval(d.properties) <= interval '1 minute', true),"
            " d.properties ->> 'stamp',"
            " (extract(epoch FROM l.high_water) * 1000000)::bigint, coalesce(m.thing_id, 0),"
            " CASE d.id WHEN m.longitude THEN 1 WHEN m.latitude THEN 2 ELSE 0 END"
            " FROM datastreams d LEFT JOIN latest l ON l.datastream_id = d.id"
            " LEFT JOIN moving_things m ON m.thing_id = d.thing_id WHERE d.id = ANY(%s)",
            (PgArray(unknown),),
        )
        for datastream_id, short, stamp, high_water, moving, axis in await cursor.fetchall():
            self.known[datastream_id] = True
            self.high_water[datastream_id] = NO_TIME if high_water is None else high_water
            self.minutes[datastream_id] = short
            self.stamp_end[datastream_id] = stamp == "end"
            self.moving[datastream_id] = moving
            self.axis[datastream_id] = axis


class FactsCache:
    """The newest facts, begun anew when the catalogue's version changes and after a failed transaction."""

    def __init__(self) -> None:
        self._facts = Facts(0)

    def at(self, version: int) -> Facts:
        """The facts at a version of the catalogue."""
        if self._facts.version != version:
            self._facts = Facts(version)
        return self._facts

    def drop(self) -> None:
        """Forget what a transaction learned that was rolled back."""
        self._facts = Facts(0)


async def derive(
    connection: Connection, facts: Facts, rows: Observations, ids: Int64, *, source: str, stream: bool
) -> list[tuple[int, bytes]]:
    """Bring minutes, stale hours, latest, observed areas and updates in step with new rows, sorted by datastream, time."""
    if not len(rows):
        return []
    await _aggregate(connection, facts, rows)
    await _latest(connection, rows, ids, stream=stream)
    if stream:
        facts_rows = np.flatnonzero(np.r_[rows.datastream[1:] != rows.datastream[:-1], True])
        newest = rows.datastream[facts_rows]
        facts.high_water[newest] = np.maximum(facts.high_water[newest], rows.time[facts_rows])
    await _observe(connection, facts, rows)
    return await _remember_updates(connection, rows, ids, source)


async def _aggregate(connection: Connection, facts: Facts, rows: Observations) -> None:
    numeric = ~np.isnan(rows.number)
    if not numeric.any():
        return
    series, time, value = rows.datastream[numeric], rows.time[numeric], rows.number[numeric]
    quality = np.where(np.abs(value) > LARGEST_AGGREGATED, np.int8(Quality.BAD), rows.quality[numeric])
    value = np.where(np.abs(value) < SMALLEST_AGGREGATED, 0.0, value)
    inside = time - facts.stamp_end[series]
    short = facts.minutes[series]
    if short.any():
        m = fold(series[short], time[short], inside[short], value[short], quality[short], width=MINUTE)
        first_time = np.where(m.good > 0, m.first_time, NO_TIME)
        last_time = np.where(m.good > 0, m.last_time, NO_TIME)
        await connection.execute(
            _MERGE_MINUTES,
            (
                PgArray(m.series), times(m.start), PgArray(m.count), PgArray(m.good), PgArray(m.mean), PgArray(m.m2),
                PgArray(m.least), PgArray(m.greatest), PgArray(m.first), times(first_time), PgArray(m.last),
                times(last_time),
            ),
        )  # fmt: skip
    hour = inside - inside % HOUR
    new = np.ones(len(series), np.bool_)  # sorted by (datastream, time): one mark a run is enough
    new[1:] = (series[1:] != series[:-1]) | (hour[1:] != hour[:-1])
    await connection.execute(MARK_STALE, (PgArray(series[new]), times(hour[new])))


MARK_STALE = "INSERT INTO stale_hours SELECT * FROM unnest(%b::int8[], %b::timestamptz[])"

# Chan, Golub, LeVeque 1983: two partials become one without a sum of squares.
_MERGE_MINUTES = """
INSERT INTO aggregates AS a (datastream_id, width, window_start, count, good_count, mean, m2, min, max,
    first, first_time, last, last_time)
SELECT d, 60, w, c, g, nullif(mean, 'NaN'), nullif(m2, 'NaN'), nullif(least, 'NaN'), nullif(greatest, 'NaN'),
    nullif(f, 'NaN'), ft, nullif(l, 'NaN'), lt
FROM unnest(%b::int8[], %b::timestamptz[], %b::int8[], %b::int8[], %b::float8[], %b::float8[], %b::float8[],
    %b::float8[], %b::float8[], %b::timestamptz[], %b::float8[], %b::timestamptz[])
    AS r (d, w, c, g, mean, m2, least, greatest, f, ft, l, lt)
ON CONFLICT (datastream_id, width, window_start) DO UPDATE SET
    count = a.count + excluded.count,
    good_count = a.good_count + excluded.good_count,
    mean = CASE WHEN excluded.good_count = 0 THEN a.mean WHEN a.good_count = 0 THEN excluded.mean
        ELSE a.mean + (excluded.mean - a.mean) * excluded.good_count / (a.good_count + excluded.good_count) END,
    m2 = CASE WHEN excluded.good_count = 0 THEN a.m2 WHEN a.good_count = 0 THEN excluded.m2
        ELSE a.m2 + excluded.m2 + (excluded.mean - a.mean) * (excluded.mean - a.mean)
            * (a.good_count::float8 * excluded.good_count / (a.good_count + excluded.good_count)) END,
    min = least(a.min, excluded.min),
    max = greatest(a.max, excluded.max),
    first = CASE WHEN a.first_time <= excluded.first_time THEN a.first ELSE coalesce(excluded.first, a.first) END,
    first_time = least(a.first_time, excluded.first_time),
    last = CASE WHEN a.last_time > excluded.last_time THEN a.last ELSE coalesce(excluded.last, a.last) END,
    last_time = greatest(a.last_time, excluded.last_time)
"""


async def _latest(connection: Connection, rows: Observations, ids: Int64, *, stream: bool) -> None:
    begins = np.flatnonzero(np.r_[True, rows.datastream[1:] != rows.datastream[:-1]])
    newest = np.r_[begins[1:], len(rows)] - 1
    end = rows.time if rows.end is None else np.maximum(rows.time, rows.end)
    some = rows.take(newest)
    count = newest - begins + 1
    result_first = result_last = None
    if rows.result_time is not None:
        given = rows.result_time != NO_TIME
        earliest = np.minimum.reduceat(np.where(given, rows.result_time, np.iinfo(np.int64).max), begins)
        result_last = np.maximum.reduceat(rows.result_time, begins)
        result_first = np.where(result_last == NO_TIME, NO_TIME, earliest)
    await connection.execute(
        _MERGE_LATEST,
        (
            PgArray(some.datastream), PgArray(ids[newest]), times(some.time),
            None if some.end is None else times(some.end), PgArray(some.number), some.json,
            None if some.result_time is None else times(some.result_time), PgArray(some.quality.astype(np.int16)),
            some.result_quality, PgArray(count.astype(np.int64)), times(rows.time[begins]),
            times(np.maximum.reduceat(end, begins)), None if result_first is None else times(result_first),
            None if result_last is None else times(result_last), times(some.time) if stream else None,
        ),
    )  # fmt: skip


_NEWER = "l.id IS NULL OR (excluded.phenomenon_time, excluded.id) > (l.phenomenon_time, l.id)"
_OF_NEWEST = (
    "id", "phenomenon_time", "phenomenon_end", "result_number", "result_json", "result_time", "quality", "result_quality",
)  # fmt: skip
_MERGE_LATEST = f"""
INSERT INTO latest AS l (datastream_id, id, phenomenon_time, phenomenon_end, result_number, result_json, result_time,
    quality, result_quality, count, phenomenon_first, phenomenon_last, result_time_first, result_time_last, high_water)
SELECT d, id, t, e, nullif(number, 'NaN'), json::jsonb, rt, quality, rq::jsonb, c, pf, pl, rf, rl, h
FROM unnest(%b::int8[], %b::int8[], %b::timestamptz[], %b::timestamptz[], %b::float8[], %s::text[], %b::timestamptz[],
    %b::int2[], %s::text[], %b::int8[], %b::timestamptz[], %b::timestamptz[], %b::timestamptz[], %b::timestamptz[],
    %b::timestamptz[]) AS r (d, id, t, e, number, json, rt, quality, rq, c, pf, pl, rf, rl, h)
ON CONFLICT (datastream_id) DO UPDATE SET
    {", ".join(f"{c} = CASE WHEN {_NEWER} THEN excluded.{c} ELSE l.{c} END" for c in _OF_NEWEST)},
    count = l.count + excluded.count,
    phenomenon_first = least(l.phenomenon_first, excluded.phenomenon_first),
    phenomenon_last = greatest(l.phenomenon_last, excluded.phenomenon_last),
    result_time_first = least(l.result_time_first, excluded.result_time_first),
    result_time_last = greatest(l.result_time_last, excluded.result_time_last),
    high_water = greatest(l.high_water, excluded.high_water)
"""


async def _observe(connection: Connection, facts: Facts, rows: Observations) -> None:
    """Widen the observed area of the datastreams that see a feature for the first time."""
    changed = np.ones(len(rows), np.bool_)
    changed[1:] = (rows.datastream[1:] != rows.datastream[:-1]) | (rows.feature[1:] != rows.feature[:-1])
    changed &= rows.feature > 0
    pairs = (
        set(zip(rows.datastream[changed].tolist(), rows.feature[changed].tolist(), strict=True))
        - facts.features
    )
    await observe(connection, pairs)
    facts.features |= {pair for pair in pairs if not facts.moving[pair[0]]}


async def observe(connection: Connection, pairs: Collection[tuple[int, int]]) -> None:
    """Widen observed areas by features. pairs: (datastream, feature)."""
    if not pairs:
        return
    datastream, feature = zip(*sorted(pairs), strict=True)
    cursor = await connection.execute(
        "WITH new AS (INSERT INTO observed_features SELECT * FROM unnest(%s::int8[], %s::int8[])"
        "   ON CONFLICT DO NOTHING RETURNING *)"
        " SELECT l.datastream_id, l.observed_area::text FROM latest l WHERE l.datastream_id IN (SELECT datastream_id FROM new)"
        f" UNION ALL SELECT n.datastream_id, {_GEOMETRY} FROM new n JOIN features_of_interest f ON f.id = n.feature_id",
        (list(datastream), list(feature)),
    )
    await _set_areas(connection, await cursor.fetchall())


async def forget(connection: Connection, pairs: Collection[tuple[int, int]]) -> None:
    """Narrow observed areas by features that no observation has any more. pairs: (datastream, feature)."""
    if not pairs:
        return
    datastream, feature = zip(*pairs, strict=True)
    # A trigger changes the catalogue's version: writers remember which pairs are there.
    await connection.execute(
        "DELETE FROM observed_features o USING unnest(%s::int8[], %s::int8[]) x (d, f)"
        " WHERE o.datastream_id = x.d AND o.feature_id = x.f",
        (list(datastream), list(feature)),
    )
    await observe_again(connection, sorted(set(datastream)))


async def observe_again(connection: Connection, datastreams: Sequence[int]) -> None:
    """Make the observed areas of datastreams anew from the features that their observations have."""
    cursor = await connection.execute(
        "SELECT d, NULL FROM unnest(%(d)s::int8[]) x (d)"
        f" UNION ALL SELECT o.datastream_id, {_GEOMETRY} FROM observed_features o"
        " JOIN features_of_interest f ON f.id = o.feature_id WHERE o.datastream_id = ANY(%(d)s)",
        {"d": list(datastreams)},
    )
    await _set_areas(connection, await cursor.fetchall())


_GEOMETRY = (
    "(CASE WHEN f.feature ->> 'type' = 'Feature' THEN f.feature -> 'geometry' ELSE f.feature END)::text"
)


async def _set_areas(connection: Connection, parts: Sequence[tuple[int, str | None]]) -> None:
    """Set observed areas to what covers their parts: (datastream, JSON of a geometry or null)."""
    if not parts:
        return
    by_datastream: dict[int, dict[str, None]] = {}
    for datastream, geometry in parts:
        covered = by_datastream.setdefault(datastream, {})
        if geometry is not None:
            covered[geometry] = None
    await connection.execute(
        "UPDATE latest l SET observed_area = r.area::jsonb FROM unnest(%s::int8[], %s::text[]) AS r (d, area)"
        " WHERE l.datastream_id = r.d AND l.observed_area IS DISTINCT FROM r.area::jsonb",
        (list(by_datastream), [area_of(geometries) for geometries in by_datastream.values()]),
    )


def area_of(geometries: Iterable[str]) -> str | None:
    """GeoJSON of the area that geometries cover: of one that geometry itself, of several their envelope.

    An envelope and a further geometry give the envelope of all. One without width or height is a line or a point, since
    a polygon that encloses nothing is none. What is no GeoJSON geometry covers nothing.
    """
    bounds = []
    for geometry in geometries:
        with suppress(shapely.errors.ShapelyError):
            shape = shapely.from_geojson(geometry)
            if not shape.is_empty:
                bounds.append((geometry, shape.bounds))
    if len(bounds) < 2:
        return bounds[0][0] if bounds else None
    west, south = (min(b[i] for _, b in bounds) for i in (0, 1))
    east, north = (max(b[i] for _, b in bounds) for i in (2, 3))
    if west == east and south == north:
        return msgspec.json.encode({"type": "Point", "coordinates": [west, south]}).decode()
    if west == east or south == north:
        line = [[west, south], [east, north]]
        return msgspec.json.encode({"type": "LineString", "coordinates": line}).decode()
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return msgspec.json.encode({"type": "Polygon", "coordinates": [ring]}).decode()


async def _remember_updates(
    connection: Connection, rows: Observations, ids: Int64, source: str
) -> list[tuple[int, bytes]]:
    """Write the update messages in the write's transaction; whoever appends them to the log deletes them.

    The log takes no event above 4 MiB: messages hold so many rows and so much text, and a result whose text alone is
    longer is in the store, but in no update.
    """
    updates = []
    for part in _parts(rows):
        row = await (await connection.execute("SELECT nextval('pending_updates_id_seq')")).fetchone()
        assert row is not None
        message = encode_update(Update.of(row[0], rows.take(part), ids[part]))
        await connection.execute(
            "INSERT INTO pending_updates (id, source, message) OVERRIDING SYSTEM VALUE VALUES (%s, %s, %b)",
            (row[0], source, message),
        )
        updates.append((row[0], message))
    return updates


def _parts(rows: Observations) -> Iterator[Int64]:
    """Indexes of the rows of each update message."""
    count = len(rows)
    if rows.json is None:
        for begin in range(0, count, _ROWS_PER_UPDATE):
            yield np.arange(begin, min(begin + _ROWS_PER_UPDATE, count))
        return
    size = np.array([len(text) * 4 if text else 0 for text in rows.json], np.int64)  # of UTF-8 at most
    fits = np.flatnonzero(size <= _TEXT_PER_UPDATE)
    message = (
        np.maximum(np.cumsum(size[fits]) // _TEXT_PER_UPDATE, 0) * count
        + np.arange(len(fits)) // _ROWS_PER_UPDATE
    )
    for begin, end in pairwise(
        [*np.flatnonzero(np.r_[True, message[1:] != message[:-1]]).tolist(), len(fits)]
    ):
        yield fits[begin:end]
