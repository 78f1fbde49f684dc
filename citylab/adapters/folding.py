"""Hours and days from minutes (or from observations where there are no minutes): only what changed, any number of times.

A sum of squares would cancel; M2 is the sum of the parts' M2 and of the squared distances of their means.
"""

from citylab.adapters.derived import LARGEST_AGGREGATED, SMALLEST_AGGREGATED
from citylab.adapters.postgres import Connection

_LOCK = 7102004
_MOST_HOURS = 20_000  # a transaction

_INTERVAL = "declared_interval(d.properties)"


def _parts(window: str, narrower: int, *, finest: str) -> str:
    """What a window is folded from: narrower windows where the stream has them, else its observations.

    Windows narrower than a stream's interval are not made; a stream of unknown interval counts as short.
    """
    observed = f"{_INTERVAL} > interval '{finest}' AND {_INTERVAL} <= interval '{window}'"
    return f"""
part AS (
    SELECT t.d, t.h, a.count, a.good_count AS good, a.mean, a.m2, a.min, a.max, a.first, a.first_time, a.last, a.last_time
    FROM touched t JOIN datastreams d ON d.id = t.d AND coalesce({_INTERVAL} <= interval '{finest}', true)
    JOIN aggregates a ON a.datastream_id = t.d AND a.width = {narrower}
        AND a.window_start >= t.h AND a.window_start < t.h + interval '{window}'
    UNION ALL
    SELECT t.d, t.h, 1, n, x.v, x.v - x.v, x.v, x.v, x.v, x.t, x.v, x.t
    FROM touched t JOIN datastreams d ON d.id = t.d AND {observed}
    CROSS JOIN LATERAL (SELECT CASE WHEN d.properties ->> 'stamp' = 'end' THEN interval '1 microsecond'
        ELSE interval '0' END AS back) s
    JOIN observations o ON o.datastream_id = t.d AND o.result_number IS NOT NULL
        AND o.phenomenon_time >= t.h + s.back AND o.phenomenon_time < t.h + interval '{window}' + s.back
    CROSS JOIN LATERAL (SELECT o.quality <> 3 AND coalesce(o.result_quality ->> 'flag', '') <> 'bad'
        AND abs(o.result_number) <= {LARGEST_AGGREGATED}) g (good)
    CROSS JOIN LATERAL (SELECT CASE WHEN good THEN 1 ELSE 0 END, CASE WHEN good AND abs(o.result_number) < {SMALLEST_AGGREGATED}
        THEN 0 WHEN good THEN o.result_number END, CASE WHEN good THEN o.phenomenon_time END) x (n, v, t)
)"""


_TOUCHED = "SELECT * FROM unnest(%(d)s::bigint[], %(h)s::timestamptz[])"
_HOURS = f"WITH touched (d, h) AS ({_TOUCHED}), {_parts('1 hour', 60, finest='1 minute')}"
_DAYS = (
    f"WITH touched (d, h) AS (SELECT DISTINCT d, date_trunc('day', h, 'UTC') FROM ({_TOUCHED}) t (d, h)),"
    f" {_parts('1 day', 3_600, finest='1 hour')}"
)

_MERGE = """,
total AS (SELECT d, h, sum(good * mean) / nullif(sum(good), 0) AS mean FROM part GROUP BY d, h)
INSERT INTO aggregates (datastream_id, width, window_start, count, good_count, mean, m2, min, max,
    first, first_time, last, last_time)
SELECT p.d, %(width)s, p.h, sum(p.count), sum(p.good), t.mean,
    sum(p.m2) + sum(p.good * (p.mean - t.mean) * (p.mean - t.mean)), min(p.min), max(p.max),
    (array_agg(p.first ORDER BY p.first_time) FILTER (WHERE p.good > 0))[1], min(p.first_time),
    (array_agg(p.last ORDER BY p.last_time DESC) FILTER (WHERE p.good > 0))[1], max(p.last_time)
FROM part p JOIN total t USING (d, h) GROUP BY p.d, p.h, t.mean ORDER BY p.d, p.h
ON CONFLICT (datastream_id, width, window_start) DO UPDATE SET
    count = excluded.count, good_count = excluded.good_count, mean = excluded.mean, m2 = excluded.m2,
    min = excluded.min, max = excluded.max, first = excluded.first, first_time = excluded.first_time,
    last = excluded.last, last_time = excluded.last_time
"""


async def fold(connection: Connection) -> int:
    """Bring hours and days in step with what writes touched, in the open transaction; return how many hours.

    One folds at a time; another returns 0 at once. Writers never wait for it: their marks are new rows.
    """
    alone = await (await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))).fetchone()
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
