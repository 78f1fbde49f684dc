"""The one write path into observations: rows, latest, aggregates, ledger, rejections, update and position together.

Locks are always taken in one order: the catalogue lock, positions, Things that move, observations by (datastream, time,
ordinal), aggregates by key, latest, ledger.
"""

from collections import Counter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg import errors

from citylab.adapters.accounts import (
    CONSUMER,
    account,
    close_rejections,
    count_replay,
    keep_rejections,
    move_positions,
    take_positions,
)
from citylab.adapters.derived import Facts, FactsCache, derive
from citylab.adapters.moves import Moved, observe_moved, settle
from citylab.adapters.pgbinary import EPOCH_2000, PgArray, copy_rows, times
from citylab.adapters.postgres import Connection
from citylab.columns import Int64, Observations
from citylab.model import Quality, Reason
from citylab.writes import CATALOGUE_VERSION, CatalogueChanged, NewRejection, Saved, Write

CATALOGUE_LOCK = 7102003
_FEWEST_COPIED = 50  # rows of the API: below it COPY costs more than it saves

BoolArray = NDArray[np.bool_]


async def save(connection: Connection, cache: FactsCache, write: Write) -> Saved:
    """Store a write inside the connection's open transaction.

    Raises `CatalogueChanged` and `PositionMoved`, both before anything was changed.
    """
    facts = await lock_catalogue(connection, cache)
    if write.catalogue_version not in {None, facts.version}:
        raise CatalogueChanged
    await take_positions(connection, write.spans)
    if write.published:
        await connection.execute("DELETE FROM pending_updates WHERE id = ANY(%s)", (list(write.published),))
    rows = write.rows
    order = np.lexsort(
        (rows.time, rows.datastream)
    )  # stable: the first by (partition, offset, record) stands
    rows, receipt, record = rows.take(order), write.receipt[order], write.record[order]
    stored = np.zeros(len(rows), np.bool_)
    conflict = np.zeros(len(rows), np.bool_)
    ids = np.zeros(len(rows), np.int64)
    moved = Moved()
    if len(rows):
        await facts.load(connection, rows.datastream)
        rows, moved = await settle(connection, facts, rows, least=write.least_move)
        ids = await draw_ids(connection, len(rows))
        stored, conflict = await _insert_stream_rows(connection, facts, rows, ids)
    updates = await derive(connection, facts, rows.take(stored), ids[stored], source=CONSUMER, stream=True)
    await observe_moved(connection, moved)
    rejections = [*write.rejections, *_conflicts(rows, receipt, record, conflict)]
    if write.closes:
        await close_rejections(connection, write)
    kept = await keep_rejections(connection, write, rejections)
    await account(connection, write, receipt[stored], rejections, kept)
    await move_positions(connection, write.spans)
    rejected = Counter(r.reason for r, new in zip(rejections, kept, strict=True) if new)
    saved = Saved(
        stored=int(stored.sum()),
        duplicates=len(rows) - int(stored.sum()) - int(conflict.sum()) + len(kept) - sum(kept),
        rejected=rejected,
        updates=updates,
    )
    if write.replay is not None:
        await count_replay(connection, write.replay, saved)
    return saved


async def save_observations(connection: Connection, cache: FactsCache, rows: Observations) -> Int64:
    """Store rows that came through the API, inside its transaction; return their ids, int64, shape (n,).

    Their ordinal is their own id, so that they meet no stream row. The store tells who waits for updates after the commit.
    """
    return await save_api_rows(connection, await lock_catalogue(connection, cache), rows)


async def save_api_rows(connection: Connection, facts: Facts, rows: Observations) -> Int64:
    """As `save_observations`, under the catalogue lock."""
    if not len(rows):
        return np.zeros(0, np.int64)
    await facts.load(connection, rows.datastream)
    ids = await draw_ids(connection, len(rows))
    copied = rows.plain and len(rows) >= _FEWEST_COPIED
    if copied:
        await insert(connection, rows, ids, ids)
    order = np.lexsort((rows.time, rows.datastream))
    async with connection.pipeline():  # nothing here waits for what a statement answers
        if not copied:
            await insert(connection, rows, ids, ids)
        await derive(connection, facts, rows.take(order), ids[order], source="api", stream=False)
    return ids


async def draw_ids(connection: Connection, count: int) -> Int64:
    """Reserve ids from the sequence in one statement; int64, shape (count,)."""
    row = await (await connection.execute("SELECT draw_observation_ids(%s)", (count,))).fetchone()
    assert row is not None
    return np.arange(row[0], row[0] + count, dtype=np.int64)


async def lock_catalogue(connection: Connection, cache: FactsCache) -> Facts:
    """Keep streams from changing until the transaction ends; return what is known of them."""
    async with connection.pipeline():
        await connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (CATALOGUE_LOCK,))
        row = await (await connection.execute(CATALOGUE_VERSION)).fetchone()
    assert row is not None
    return cache.at(row[0])


async def _insert_stream_rows(
    connection: Connection, facts: Facts, rows: Observations, ids: Int64
) -> tuple[BoolArray, BoolArray]:
    """Insert rows, sorted by (datastream, time), under their natural key; return which are new and which conflict."""
    again = np.zeros(len(rows), np.bool_)
    again[1:] = (rows.datastream[1:] == rows.datastream[:-1]) & (rows.time[1:] == rows.time[:-1])
    stored, conflict = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))  # of the rows with the same key
    late = ~again & (rows.time <= facts.high_water[rows.datastream])
    fresh = ~again & ~late
    if fresh.any():
        if await _copy(connection, rows.take(fresh), ids[fresh]):
            stored |= fresh
        else:
            late |= fresh
    if late.any():
        new, different = await _stage(connection, rows.take(late), ids[late])
        stored[late], conflict[late] = new, different
    beside = again & stored[first]  # the first of their key is new: compared with that
    conflict |= beside & ~_same_result(rows, np.arange(len(rows)), first)
    rest = again & ~beside  # compared with what was stored before
    if rest.any():
        _, conflict[rest] = await _stage(connection, rows.take(rest), ids[rest])
    return stored, conflict


async def _copy(connection: Connection, rows: Observations, ids: Int64) -> bool:
    """COPY rows that are expected to be new; False, and nothing stored, when a key exists already."""
    try:
        async with connection.transaction():
            await insert(connection, rows, ids, None)
    except errors.UniqueViolation:
        return False
    return True


async def insert(connection: Connection, rows: Observations, ids: Int64, ordinal: Int64 | None) -> None:
    """Insert rows, by COPY where they are plain and of streams (ordinal None), or many."""
    if rows.plain and (ordinal is None or len(rows) >= _FEWEST_COPIED):
        statement = (
            "COPY observations (id, datastream_id, phenomenon_time, result_number, quality, feature_of_interest_id,"
            " ordinal) FROM STDIN (FORMAT BINARY)"
        )
        data = copy_rows(
            ids,
            rows.datastream,
            rows.time - EPOCH_2000,
            rows.number,
            rows.quality.astype(np.int16),
            rows.feature,
            np.zeros(len(rows), np.int64) if ordinal is None else ordinal,
        )
        async with connection.cursor().copy(statement) as copy:
            await copy.write(data)
        return
    await connection.execute(
        f"INSERT INTO observations ({_COLUMNS}) SELECT {_SELECTED} FROM unnest({_UNNESTED}) AS r ({_NAMES})",
        _parameters(rows, ids, ordinal),
    )


async def _stage(connection: Connection, rows: Observations, ids: Int64) -> tuple[BoolArray, BoolArray]:
    """Insert what is not there yet; return which rows were new, and which differ from what is stored."""
    parameters = _parameters(rows, ids, None)
    gone = await (
        await connection.execute(
            "SELECT array_agg(r.i) FROM unnest(%b::int8[], %b::timestamptz[]) WITH ORDINALITY AS r (d, t, i)"
            " JOIN tombstones s ON s.datastream_id = r.d AND s.phenomenon_time = r.t",
            (PgArray(rows.datastream), times(rows.time)),
        )
    ).fetchone()
    buried = np.zeros(len(rows), np.bool_)
    if gone and gone[0]:
        buried[np.array(gone[0]) - 1] = True
        parameters = _parameters(rows.take(~buried), ids[~buried], None)
    cursor = await connection.execute(
        f"INSERT INTO observations ({_COLUMNS}) SELECT {_SELECTED} FROM unnest({_UNNESTED}) AS r ({_NAMES})"
        " ON CONFLICT DO NOTHING RETURNING id",
        parameters,
    )
    new = np.isin(ids, np.array([row[0] for row in await cursor.fetchall()], np.int64))
    old = np.flatnonzero(~new & ~buried)
    different = np.zeros(len(rows), np.bool_)
    if len(old):
        some = rows.take(old)
        cursor = await connection.execute(
            "SELECT r.i FROM unnest(%b::int8[], %b::timestamptz[], %b::float8[], %s::text[]) WITH ORDINALITY"
            " AS r (d, t, number, json, i) JOIN observations o"
            " ON o.datastream_id = r.d AND o.phenomenon_time = r.t AND o.ordinal = 0"
            " WHERE o.result_number IS DISTINCT FROM nullif(r.number, 'NaN')"
            " OR o.result_json IS DISTINCT FROM r.json::jsonb",
            (PgArray(some.datastream), times(some.time), PgArray(some.number), some.json),
        )
        different[old[np.array([row[0] for row in await cursor.fetchall()], np.int64) - 1]] = True
    return new, different


def _same_result(rows: Observations, one: Int64, other: Int64) -> BoolArray:
    a, b = rows.number[one], rows.number[other]
    same: BoolArray = (a == b) | (np.isnan(a) & np.isnan(b))
    if rows.json is not None:
        same &= np.array(
            [rows.json[i] == rows.json[j] for i, j in zip(one.tolist(), other.tolist(), strict=True)]
        )
    return same


def _conflicts(rows: Observations, receipt: Int64, record: Int64, conflict: BoolArray) -> list[NewRejection]:
    return [
        NewRejection(
            int(receipt[i]),
            int(record[i]),
            Reason.CONFLICT,
            "another value is stored for this datastream and time; the first stands",
            content=msgspec.json.encode(_content(rows, int(i))).decode(),
        )
        for i in np.flatnonzero(conflict)
    ]


def _content(rows: Observations, i: int) -> dict[str, Any]:
    content = {"datastream": int(rows.datastream[i]), "time": int(rows.time[i]), "value": _value(rows, i)}
    if flag := int(rows.quality[i]):
        content["quality"] = Quality(flag).name.lower()
    if rows.parameters and (text := rows.parameters[i]):
        content["parameters"] = msgspec.Raw(text.encode())
    return content


def _value(rows: Observations, i: int) -> Any:
    text = rows.json[i] if rows.json else None
    return msgspec.Raw(text.encode()) if text is not None else float(rows.number[i])


_COLUMNS = (
    "id, datastream_id, phenomenon_time, phenomenon_end, ordinal, result_number, result_json, result_time, quality,"
    " result_quality, valid_start, valid_end, parameters, feature_of_interest_id, multi"
)
_NAMES = "id, d, t, e, ordinal, number, json, rt, quality, rq, vs, ve, parameters, feature, multi"
_SELECTED = (
    "id, d, t, e, coalesce(ordinal, 0), nullif(number, 'NaN'), json::jsonb, rt, quality, rq::jsonb, vs, ve,"
    " parameters::jsonb, nullif(feature, 0), coalesce(multi, FALSE)"
)
_UNNESTED = (
    "%b::int8[], %b::int8[], %b::timestamptz[], %b::timestamptz[], %b::int8[], %b::float8[], %s::text[],"
    " %b::timestamptz[], %b::int2[], %s::text[], %b::timestamptz[], %b::timestamptz[], %s::text[], %b::int8[],"
    " %s::bool[]"
)


def _parameters(rows: Observations, ids: Int64, ordinal: Int64 | None) -> tuple[Any, ...]:
    def optional(column: Int64 | None) -> PgArray | None:
        return None if column is None else times(column)

    return (
        PgArray(ids), PgArray(rows.datastream), times(rows.time), optional(rows.end),
        None if ordinal is None else PgArray(ordinal), PgArray(rows.number), rows.json, optional(rows.result_time),
        PgArray(rows.quality.astype(np.int16)), rows.result_quality, optional(rows.valid_start),
        optional(rows.valid_end), rows.parameters, PgArray(rows.feature),
        None if rows.multi is None else rows.multi.tolist(),
    )  # fmt: skip
