"""Hours and days from minutes (or from observations where there are no minutes): only what changed, any number of times.

And minutes from observations, where some of those were edited or deleted. A window without values has no row.

A sum of squares would cancel; M2 is the sum of the parts' M2 and of the squared distances of their means.
"""

import numpy as np

from citylab.adapters.derived import LARGEST_AGGREGATED, MARK_STALE, SMALLEST_AGGREGATED
from citylab.adapters.pgbinary import PgArray, times
from citylab.adapters.postgres import Connection
from citylab.columns import Int64
from citylab.model import HOUR

LOCK = 7102004  # of who folds
_MOST_HOURS = 20_000  # a transaction

_INTERVAL = "declared_interval(d.properties)"


def _parts(window: str, narrower: int, *, finest: str) -> str:
    """What a window is folded from: narrower windows where the stream has them, else its observations.

    Windows narrower than a stream's interval are not made; a stream of unknown interval counts as short.
    """
    observed = f"{_INTERVAL} > interval '{finest}' AND {_INTERVAL} <= interval '{window}'"
    return f"""
part AS (
    SELECT t.d, t.h, 0 AS id, a.count, a.good_count AS good, a.mean, a.m2, a.min, a.max,
        a.first, a.first_time, a.last, a.last_time
    FROM touched t JOIN datastreams d ON d.id = t.d AND coalesce({_INTERVAL} <= interval '{finest}', true)
    JOIN aggregates a ON a.datastream_id = t.d AND a.width = {narrower}
        AND a.window_start >= t.h AND a.window_start < t.h + interval '{window}'
    UNION ALL
    SELECT t.d, t.h, o.id, 1, n, x.v, x.v - x.v, x.v, x.v, x.v, x.t, x.v, x.t
    FROM touched t JOIN datastreams d ON d.id = t.d AND {observed} {_observed("t.h", f"t.h + interval '{window}'")}
)"""


def _observed(low: str, high: str) -> str:
    """Joins to touched `t` and Datastream `d`: of each numeric observation from `low` to before `high` the row `x`.

    n: 1 if it is good; v and t: its value and time then, else null. `s.back` is what leads from a time into its window.
    """
    return f"""
    CROSS JOIN LATERAL (SELECT CASE WHEN d.properties ->> 'stamp' = 'end' THEN interval '1 microsecond'
        ELSE interval '0' END AS back) s
    JOIN observations o ON o.datastream_id = t.d AND o.result_number IS NOT NULL
        AND o.phenomenon_time >= {low} + s.back AND o.phenomenon_time < {high} + s.back
    CROSS JOIN LATERAL (SELECT o.quality <> 3 AND abs(o.result_number) <= {LARGEST_AGGREGATED}) g (good)
    CROSS JOIN LATERAL (SELECT CASE WHEN good THEN 1 ELSE 0 END, CASE WHEN good AND abs(o.result_number) <
        {SMALLEST_AGGREGATED} THEN 0 WHEN good THEN o.result_number END, CASE WHEN good THEN o.phenomenon_time END) x (n, v, t)"""


def _touched(unit: str) -> str:
    return (
        f"WITH touched (d, h, until) AS (SELECT DISTINCT d, h, h + interval '1 {unit}' FROM"
        f" (SELECT d, date_trunc('{unit}', h, 'UTC') FROM unnest(%(d)s::bigint[], %(h)s::timestamptz[]) t (d, h)) x (d, h)),"
    )


_HOURS = f"{_touched('hour')} {_parts('1 hour', 60, finest='1 minute')}"
_DAYS = f"{_touched('day')} {_parts('1 day', 3_600, finest='1 hour')}"

_MERGE = """,
total AS (SELECT d, h, sum(good * mean) / nullif(sum(good), 0) AS mean FROM part GROUP BY d, h),
made AS (
    INSERT INTO aggregates (datastream_id, width, window_start, count, good_count, mean, m2, min, max,
        first, first_time, last, last_time)
    SELECT p.d, %(width)s, p.h, sum(p.count), sum(p.good), t.mean,
        sum(p.m2) + sum(p.good * (p.mean - t.mean) * (p.mean - t.mean)), min(p.min), max(p.max),
        (array_agg(p.first ORDER BY p.first_time, p.id) FILTER (WHERE p.good > 0))[1], min(p.first_time),
        (array_agg(p.last ORDER BY p.last_time DESC, p.id DESC) FILTER (WHERE p.good > 0))[1], max(p.last_time)
    FROM part p JOIN total t USING (d, h) GROUP BY p.d, p.h, t.mean ORDER BY p.d, p.h
    ON CONFLICT (datastream_id, width, window_start) DO UPDATE SET
        count = excluded.count, good_count = excluded.good_count, mean = excluded.mean, m2 = excluded.m2,
        min = excluded.min, max = excluded.max, first = excluded.first, first_time = excluded.first_time,
        last = excluded.last, last_time = excluded.last_time
    RETURNING datastream_id AS d, window_start AS h
)
DELETE FROM aggregates a USING touched t
WHERE a.datastream_id = t.d AND a.width = %(width)s AND a.window_start >= t.h AND a.window_start < t.until
    AND NOT EXISTS (SELECT FROM made m WHERE m.d = a.datastream_id AND m.h = a.window_start)
"""

_MINUTES = f"""
WITH touched (d, h, until) AS (SELECT * FROM unnest(%(d)b::int8[], %(h)b::timestamptz[], %(until)b::timestamptz[])),
part AS (
    SELECT t.d, date_trunc('minute', o.phenomenon_time - s.back, 'UTC') AS h, o.id, 1 AS count, n AS good, x.v AS mean,
        x.v - x.v AS m2, x.v AS min, x.v AS max, x.v AS first, x.t AS first_time, x.v AS last, x.t AS last_time
    FROM touched t JOIN datastreams d ON d.id = t.d AND coalesce({_INTERVAL} <= interval '1 minute', true)
    {_observed("t.h", "t.until")}
)"""


async def refold_minutes(connection: Connection, datastream: Int64, start: Int64, end: Int64) -> None:
    """Make the minutes from `start` to before `end` from what is observed, and mark their hours.

    int64, µs, shape (n,): whole minutes, ranges that do not overlap within a datastream. No writer may be about: the
    caller holds the catalogue lock exclusively.
    """
    parameters = {"d": PgArray(datastream), "h": times(start), "until": times(end), "width": 60}
    await connection.execute(_MINUTES + _MERGE, parameters)
    hours = sorted(set(zip(datastream.tolist(), (start - start % HOUR).tolist(), strict=True)))
    series, hour = np.array(hours, np.int64).reshape(-1, 2).T
    await connection.execute(MARK_STALE, (PgArray(series), times(hour)))


async def fold(connection: Connection) -> int:
    """Bring hours and days in step with what writes touched, in the open transaction; return how many hours.

    One folds at a time; another returns 0 at once. Writers never wait for it: their marks are new rows.
    """
    alone = await (await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK,))).fetchone()
    if not alone or not alone[0]:
        return 0
    cursor = await connection.execute(
        "WITH gone AS (DELETE FROM stale_hours WHERE ctid = ANY(ARRAY(SELECT ctid FROM stale_hours LIMIT %s)) RETURNING *)"
        " SELECT DISTINCT datastream_id, hour FROM gone",
        (_MOST_HOURS,),
    )
    touched = await cursor.fetchall()
    if not touched:
        return 0
    parameters = {"d": [d for d, _ in touched], "h": [h for _, h in touched]}
    await connection.execute(_HOURS + _MERGE, parameters | {"width": 3_600})
    await connection.execute(_DAYS + _MERGE, parameters | {"width": 86_400})
    return len(touched)
