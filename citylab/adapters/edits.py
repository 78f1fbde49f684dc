"""Edits and deletions of observations on the one write path: rows, tombstones, and everything that was made of them.

Whoever calls holds the catalogue lock exclusively, so that no writer is about, and what a statement reads is what there
is. What an edit changes is a row that goes and one that comes, under the same id.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from citylab.adapters.derived import FactsCache, derive, forget
from citylab.adapters.folding import LOCK as FOLDING_LOCK
from citylab.adapters.folding import refold_minutes
from citylab.adapters.pgbinary import PgArray, times
from citylab.adapters.postgres import Connection
from citylab.adapters.saving import insert, lock_catalogue
from citylab.columns import NO_TIME, Observations
from citylab.model import HOUR, MINUTE

_BY_MINUTE = 10_000  # rows; where more go, all minutes of their hours are made anew


async def delete_observations(connection: Connection, selection: str, parameters: Mapping[str, Any]) -> int:
    """Delete observations; return how many.

    selection: SQL whose rows are keys: datastream_id, phenomenon_time, ordinal. A row of a stream leaves a tombstone.
    """
    cursor = await connection.execute(_DELETE.format(selection=selection), parameters)
    streams, windows, features = [], [], []
    for what, datastream, start, width, feature, *rest in await cursor.fetchall():
        match what:
            case "stream":
                streams.append((datastream, *rest))
            case "window" if start is not None:
                windows.append((datastream, start, start + width))
            case "feature" if feature is not None:
                features.append((datastream, feature))
    if not streams:
        return 0
    await _lower_latest(connection, streams)
    if windows:
        await refold_minutes(connection, *np.array(windows, np.int64).T)
    await _forget_features(connection, features)
    return sum(gone for _, gone, *_ in streams)


async def rewrite_observation(
    connection: Connection, cache: FactsCache, own: int, rows: Observations
) -> None:
    """Make an observation what the one row of `rows` says, and tell the readers of updates.

    With another time or Datastream it becomes a row of the API's: its ordinal is its id from then on.
    """
    cursor = await connection.execute(
        "SELECT datastream_id, (extract(epoch FROM phenomenon_time) * 1000000)::bigint, ordinal FROM observations"
        " WHERE id = %s",
        (own,),
    )
    ((*key, ordinal),) = await cursor.fetchall()
    if key != [int(rows.datastream[0]), int(rows.time[0])]:
        ordinal = own
    await delete_observations(
        connection,
        "SELECT datastream_id, phenomenon_time, ordinal FROM observations WHERE id = %(id)s",
        {"id": own},
    )
    facts = await lock_catalogue(connection, cache)
    await facts.load(connection, rows.datastream)
    ids = np.array([own], np.int64)
    await insert(connection, rows, ids, np.array([ordinal], np.int64))
    await derive(connection, facts, rows, ids, source="api", stream=False)
    # Among equal times the order of ids decides what is first and last, not the order of writes.
    minute = rows.time - facts.stamp_end[rows.datastream]
    minute -= minute % MINUTE
    await refold_minutes(connection, rows.datastream, minute, minute + MINUTE)
    await connection.execute("NOTIFY citylab_updates")


async def forget_datastreams(connection: Connection, datastreams: Sequence[int]) -> None:
    """Delete the observations of datastreams that are about to be deleted, and everything that was made of them."""
    # A fold that has read the minutes would write hours after they are deleted here.
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (FOLDING_LOCK,))
    for table in ("observations", "latest", "aggregates", "tombstones", "observed_features", "stale_hours"):
        await connection.execute(
            f"DELETE FROM {table} WHERE datastream_id = ANY(%s::int8[])", (list(datastreams),)
        )


async def refold_datastream(connection: Connection, datastream: int) -> None:
    """Make all aggregates of a datastream anew, whose declared interval or stamp has changed."""
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (FOLDING_LOCK,))
    await connection.execute("DELETE FROM aggregates WHERE datastream_id = %s", (datastream,))
    hour = _micros(_window("'hour'"))
    cursor = await connection.execute(
        f"SELECT DISTINCT {hour} FROM observations o JOIN datastreams s ON s.id = o.datastream_id"
        " WHERE s.id = %s AND o.result_number IS NOT NULL ORDER BY 1",
        (datastream,),
    )
    hours = np.array([row[0] for row in await cursor.fetchall()], np.int64)
    if len(hours):
        await refold_minutes(connection, np.full(len(hours), datastream), hours, hours + HOUR)


async def _lower_latest(connection: Connection, streams: Sequence[tuple[Any, ...]]) -> None:
    """Take what went out of `latest`. streams: datastream, how many went, their last end, first and last result time."""
    datastream, gone, end, result_first, result_last = zip(*streams, strict=True)
    await connection.execute(
        _LOWER_LATEST,
        {
            "d": PgArray(np.array(datastream, np.int64)),
            "gone": PgArray(np.array(gone, np.int64)),
            "end": _instants(end),
            "first": _instants(result_first),
            "last": _instants(result_last),
        },
    )


async def _forget_features(connection: Connection, features: Sequence[tuple[int, int]]) -> None:
    """Take the features that a datastream's observations have no more out of what it has observed."""
    if not features:
        return
    datastream, feature = zip(*features, strict=True)
    cursor = await connection.execute(
        "SELECT d, f FROM unnest(%s::int8[], %s::int8[]) x (d, f) WHERE NOT EXISTS (SELECT FROM observations o"
        " WHERE o.datastream_id = x.d AND o.feature_of_interest_id = x.f)",
        (list(datastream), list(feature)),
    )
    await forget(connection, [(datastream, feature) for datastream, feature in await cursor.fetchall()])


def _instants(column: Sequence[int | None]) -> PgArray:
    return times(np.array([NO_TIME if value is None else value for value in column], np.int64))


def _micros(sql: str) -> str:
    return f"(extract(epoch FROM {sql}) * 1000000)::bigint"


def _window(unit: str) -> str:
    """SQL of the start of the window of `o` that a Datastream `s` puts it into; unit: SQL of a string."""
    back = "CASE WHEN s.properties ->> 'stamp' = 'end' THEN interval '1 microsecond' ELSE interval '0' END"
    return f"date_trunc({unit}, o.phenomenon_time - {back}, 'UTC')"


_DELETE = f"""
WITH gone AS (
    DELETE FROM observations o USING ({{selection}}) AS k (d, t, n)
    WHERE o.datastream_id = k.d AND o.phenomenon_time = k.t AND o.ordinal = k.n
    RETURNING o.datastream_id, o.phenomenon_time, coalesce(o.phenomenon_end, o.phenomenon_time) AS last, o.ordinal,
        o.result_time, o.result_number IS NOT NULL AS numeric, o.feature_of_interest_id AS f
), buried AS (
    INSERT INTO tombstones SELECT datastream_id, phenomenon_time FROM gone WHERE ordinal = 0 ON CONFLICT DO NOTHING
), unit AS (SELECT CASE WHEN count(*) > {_BY_MINUTE} THEN 'hour' ELSE 'minute' END AS name FROM gone
), row AS (
    SELECT o.*, o.datastream_id AS d, CASE WHEN numeric THEN {_window("(SELECT name FROM unit)")} END AS w
    FROM gone o LEFT JOIN datastreams s ON s.id = o.datastream_id  -- none for a MultiDatastream
)
SELECT CASE grouping(w, f) WHEN 3 THEN 'stream' WHEN 1 THEN 'window' ELSE 'feature' END, d, {_micros("w")},
    (SELECT CASE name WHEN 'hour' THEN {HOUR} ELSE {MINUTE} END FROM unit), f, count(*), {_micros("max(last)")},
    {_micros("min(result_time)")}, {_micros("max(result_time)")}
FROM row GROUP BY GROUPING SETS ((d), (d, w), (d, f))
"""

_ALL = "FROM observations o WHERE o.datastream_id = g.d"
_NEWEST = (
    "id", "phenomenon_time", "phenomenon_end", "result_number", "result_json", "result_time", "result_quality",
)  # fmt: skip
_LOWER_LATEST = f"""
UPDATE latest l SET {", ".join(f"{column} = n.{column}" for column in _NEWEST)}, quality = coalesce(n.quality, 0),
    count = l.count - g.gone,
    phenomenon_first = (SELECT min(o.phenomenon_time) {_ALL}),
    phenomenon_last = CASE WHEN g.last < l.phenomenon_last THEN l.phenomenon_last
        ELSE (SELECT max(coalesce(o.phenomenon_end, o.phenomenon_time)) {_ALL}) END,
    result_time_first = CASE WHEN g.result_first > l.result_time_first OR g.result_first IS NULL THEN l.result_time_first
        ELSE (SELECT min(o.result_time) {_ALL}) END,
    result_time_last = CASE WHEN g.result_last < l.result_time_last OR g.result_last IS NULL THEN l.result_time_last
        ELSE (SELECT max(o.result_time) {_ALL}) END
FROM unnest(%(d)b::int8[], %(gone)b::int8[], %(end)b::timestamptz[], %(first)b::timestamptz[], %(last)b::timestamptz[])
    AS g (d, gone, last, result_first, result_last)
LEFT JOIN LATERAL (SELECT o.* {_ALL} ORDER BY o.phenomenon_time DESC, o.id DESC LIMIT 1) n ON TRUE
WHERE l.datastream_id = g.d
"""
