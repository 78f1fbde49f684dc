"""What a write accounts for: the log's positions, rejections, and the ledger of each gateway."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from citylab.adapters.pgbinary import PgArray, times
from citylab.adapters.postgres import Connection
from citylab.columns import Int64
from citylab.delays import bucket
from citylab.model import Position
from citylab.times import now
from citylab.writes import NewRejection, PositionMoved, Saved, Span, Write

CONSUMER = "processing"
REJECTIONS_KEPT = 10_000  # rows a gateway; what is beyond is counted in the ledger alone
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 2_000, 8 << 20  # of rejections in a statement


async def take_positions(connection: Connection, spans: Sequence[Span]) -> None:
    """Lock the partitions' positions and compare them with what the batch was read from (the fence).

    Raises `PositionMoved`.
    """
    for span in sorted(spans, key=lambda span: (span.topic, span.partition)):
        key = (CONSUMER, span.topic, span.partition)
        await connection.execute(
            "INSERT INTO positions VALUES (%s, %s, %s, 0, '') ON CONFLICT DO NOTHING", key
        )
        cursor = await connection.execute(
            'SELECT "offset", fingerprint FROM positions WHERE consumer = %s AND topic = %s AND partition = %s FOR UPDATE',
            key,
        )
        row = await cursor.fetchone()
        assert row is not None
        stored = Position(row[0], bytes(row[1]))
        if stored != span.before:
            raise PositionMoved(
                f"{span.topic}/{span.partition} is at {stored.offset}, not {span.before.offset}"
            )


async def close_rejections(connection: Connection, write: Write) -> None:
    """Close the rejections that a write takes up, and take them out of the ledger: it enters them anew.

    Raises `PositionMoved` when another has taken one of them up.
    """
    cursor = await connection.execute(
        "UPDATE rejections SET closed_at = now(), replay = NULL WHERE id = ANY(%s) AND closed_at IS NULL"
        " RETURNING gateway, epoch, reason",
        (list(write.closes),),
    )
    closed = await cursor.fetchall()
    if len(closed) != len(write.closes):
        raise PositionMoved("some of these rejections are closed already")
    for (gateway, epoch, reason), count in sorted(Counter(closed).items()):
        await connection.execute(
            "UPDATE ledger SET records = records - %(n)s, rejected = rejected - %(n)s, rejected_by_reason = jsonb_set("
            "rejected_by_reason, ARRAY[%(r)s], to_jsonb((rejected_by_reason ->> %(r)s)::bigint - %(n)s))"
            " WHERE gateway = %(g)s AND epoch = %(e)s",
            {"n": count, "r": reason, "g": gateway, "e": epoch},
        )


async def move_positions(connection: Connection, spans: Sequence[Span]) -> None:
    """Store the positions after the batch, which its transaction has locked."""
    for span in spans:
        await connection.execute(
            'UPDATE positions SET "offset" = %s, fingerprint = %s WHERE consumer = %s AND topic = %s AND partition = %s',
            (span.after.offset, span.after.fingerprint, CONSUMER, span.topic, span.partition),
        )


async def keep_rejections(
    connection: Connection, write: Write, rejections: Sequence[NewRejection]
) -> list[bool]:
    """Keep the rejections' records; return which are new. What a gateway has beyond its quota is only counted.

    What is rejected again as it was, in a write that takes rejections up, is opened again: that counts as new, and no
    quota drops what was kept already.
    """
    if not rejections:
        return []
    reopened = await _reopen(connection, write, rejections) if write.closes else set()
    gateways = sorted({write.receipts[r.receipt].gateway for r in rejections})
    cursor = await connection.execute(
        "SELECT gateway, count(*) FROM rejections WHERE gateway = ANY(%s) GROUP BY gateway", (gateways,)
    )
    kept: dict[str, int] = dict(await cursor.fetchall())
    new = [True] * len(rejections)
    within: list[int] = []  # the quota
    for i, rejection in enumerate(rejections):
        gateway = write.receipts[rejection.receipt].gateway
        if reopened and _key(_row(write, rejection)) in reopened:
            continue
        kept[gateway] = kept.get(gateway, 0) + 1
        if write.closes or kept[gateway] <= REJECTIONS_KEPT:
            within.append(i)
    for some in _portions(rejections, within):
        keys = await _insert_rejections(connection, [_row(write, rejections[i]) for i in some])
        for i in some:
            key = _key(_row(write, rejections[i]))
            new[i] = key in keys
            keys.discard(key)  # what comes twice in one write is kept once
    return new


_Row = tuple[str, int, int, str, int, int, int, str, str, str | None, str | None, bytes | None, datetime]


def _row(write: Write, rejection: NewRejection) -> _Row:
    r = write.receipts[rejection.receipt]
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=r.received_at)
    return (
        r.gateway, r.epoch, r.seq, r.topic, r.partition, r.offset, rejection.record, rejection.reason,
        rejection.detail, rejection.stream, rejection.content, rejection.payload, moment,
    )  # fmt: skip


def _key(row: Sequence[Any]) -> tuple[Any, ...]:
    """What is unique of a rejection: the unique indexes' columns."""
    gateway, epoch, seq, topic, partition, offset, record, reason = row[:8]
    return (gateway, epoch, seq, record, reason) if epoch else (topic, partition, offset, record, reason)


def _portions(rejections: Sequence[NewRejection], indexes: Sequence[int]) -> Iterator[list[int]]:
    """Indexes of rejections that go into one statement."""
    some: list[int] = []
    size = 0
    for i in indexes:
        some.append(i)
        size += len(rejections[i].payload or b"")
        if len(some) >= _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


async def _reopen(
    connection: Connection, write: Write, rejections: Sequence[NewRejection]
) -> set[tuple[Any, ...]]:
    """Open the rejections again that this write has closed and gives the same reason; return their keys."""
    rows = [_row(write, rejection) for rejection in rejections]
    cursor = await connection.execute(
        "UPDATE rejections x SET closed_at = NULL, detail = d FROM unnest(%s::text[], %s::int8[], %s::int8[], %s::text[],"
        " %s::int4[], %s::int8[], %s::int4[], %s::text[], %s::text[]) AS q (g, e, s, t, p, o, r, why, d)"
        ' WHERE x.id = ANY(%s) AND (x.gateway, x.epoch, x.seq, x.topic, x.partition, x."offset", x.record, x.reason)'
        " = (g, e, s, t, p, o, r, why)"
        ' RETURNING gateway, epoch, seq, topic, partition, "offset", record, reason',
        [*([row[i] for row in rows] for i in range(9)), list(write.closes)],
    )
    return {_key(row) for row in await cursor.fetchall()}


async def count_replay(connection: Connection, replay: int, saved: Saved) -> None:
    """Add what became of records to the request that had them taken up again."""
    await connection.execute(
        "UPDATE replays SET stored = stored + %s, duplicates = duplicates + %s, rejected = (SELECT"
        " coalesce(jsonb_object_agg(key, n), '{}') FROM (SELECT key, sum(value::bigint) AS n FROM (SELECT * FROM"
        " jsonb_each_text(rejected) UNION ALL SELECT * FROM jsonb_each_text(%s::jsonb)) u GROUP BY key) s) WHERE id = %s",
        (saved.stored, saved.duplicates, msgspec.json.encode(saved.rejected).decode(), replay),
    )


async def _insert_rejections(connection: Connection, rows: Sequence[_Row]) -> set[tuple[Any, ...]]:
    """Insert those that are not there; return their keys."""
    cursor = await connection.execute(
        'INSERT INTO rejections (gateway, epoch, seq, topic, partition, "offset", record, reason, detail, stream,'
        " content, payload, received_at) SELECT g, e, s, t, p, o, r, why, d, n, c::jsonb, b, at FROM unnest(%s::text[],"
        " %s::int8[], %s::int8[], %s::text[], %s::int4[], %s::int8[], %s::int4[], %s::text[], %s::text[], %s::text[],"
        " %s::text[], %s::bytea[], %s::timestamptz[]) WITH ORDINALITY"
        " AS q (g, e, s, t, p, o, r, why, d, n, c, b, at, i) ORDER BY i ON CONFLICT DO NOTHING"
        ' RETURNING gateway, epoch, seq, topic, partition, "offset", record, reason',
        [list(column) for column in zip(*rows, strict=True)],
    )
    return {_key(row) for row in await cursor.fetchall()}


async def account(
    connection: Connection,
    write: Write,
    stored_receipt: Int64,
    rejections: Sequence[NewRejection],
    kept: list[bool],
) -> None:
    """Enter the packs into the ledger."""
    if not write.receipts:
        return
    groups: dict[tuple[str, int], list[int]] = {}
    for i, receipt in enumerate(write.receipts):
        groups.setdefault((receipt.gateway, receipt.epoch), []).append(i)
    stored = np.bincount(stored_receipt, minlength=len(write.receipts))
    reasons: dict[int, Counter[str]] = {}
    for rejection, new in zip(rejections, kept, strict=True):
        if new:
            reasons.setdefault(rejection.receipt, Counter())[rejection.reason] += 1
    delays = _Delays(write, stored > 0)
    entries = []
    for (gateway, epoch), members in sorted(groups.items()):
        packs = [write.receipts[i] for i in members]
        by_reason: Counter[str] = sum((reasons.get(i, Counter()) for i in members), Counter())
        records = sum(pack.records for pack in packs)
        here = int(stored[members].sum())
        rejected = by_reason.total()
        last = max(packs, key=lambda pack: pack.received_at)
        entries.append(
            (
                gateway, epoch, _multirange(pack.seq for pack in packs if pack.epoch and not write.closes),
                0 if write.closes else len(packs), records, here,
                records - here - rejected, rejected, msgspec.json.encode(by_reason).decode(),
                sum(pack.untimed for pack in packs), min(pack.received_at for pack in packs), last.received_at,
                None if last.newest is None or write.closes else (last.received_at - last.newest) // 1000,
                *delays.of(members),
            )
        )  # fmt: skip
    columns = list(zip(*entries, strict=True))
    int64 = [np.array(columns[i], np.int64) for i in (1, 3, 4, 5, 6, 7, 9, 10, 11)]
    epochs, packs_, records_, stored_, duplicates, rejected_, untimed, first, last_ = int64
    await connection.execute(
        _MERGE_LEDGER,
        (
            list(columns[0]), PgArray(epochs), list(columns[2]), PgArray(packs_), PgArray(records_), PgArray(stored_),
            PgArray(duplicates), PgArray(rejected_), list(columns[8]), PgArray(untimed), times(first), times(last_),
            list(columns[12]), list(columns[13]), list(columns[14]),
        ),
    )  # fmt: skip


class _Delays:
    """Which buckets (`citylab/delays.py`) a write's packs go into: those that bring something new, when they come."""

    def __init__(self, write: Write, new: NDArray[np.bool_]) -> None:
        received = np.array([pack.received_at for pack in write.receipts], np.int64)
        measured = np.array(
            [pack.received_at if pack.newest is None else pack.newest for pack in write.receipts], np.int64
        )
        moment = now()
        self._buckets = bucket(moment - measured), bucket(moment - received)
        self._counted = new if not write.closes else np.zeros(len(new), np.bool_)

    def of(self, members: Sequence[int]) -> Iterator[str]:
        """The counts of these packs, as arrays of PostgreSQL: since they were measured, since they were received."""
        some = np.array(members)[self._counted[members]]
        for buckets in self._buckets:
            yield f"{{{','.join(map(str, np.bincount(buckets[some]).tolist()))}}}"


def _multirange(numbers: Iterable[int]) -> str:
    """`{[1,5),[7,8)}` of the numbers that occur."""
    found = np.unique(np.fromiter(numbers, np.int64))
    if not len(found):
        return "{}"
    breaks = np.flatnonzero(np.diff(found) != 1)
    begins, ends = found[np.r_[0, breaks + 1]], found[np.r_[breaks, len(found) - 1]] + 1
    return "{" + ",".join(f"[{a},{b})" for a, b in zip(begins, ends, strict=True)) + "}"


def _sum_of(counts: str) -> str:
    """Two arrays of counts as one. Not a function of SQL: that costs as much as all the rest of a row."""
    return (
        "(SELECT coalesce(array_agg(coalesce(x, 0) + coalesce(y, 0) ORDER BY i), '{}')"
        f" FROM unnest(l.{counts}, excluded.{counts}) WITH ORDINALITY u (x, y, i))"
    )


_NEW_PACKS = "(SELECT coalesce(sum(upper(r) - lower(r)), 0) FROM unnest(excluded.received - l.received) r)"
_MERGE_LEDGER = f"""
WITH q AS (
    SELECT q.*, r::int8multirange AS numbers FROM unnest(%s::text[], %b::int8[], %s::text[], %b::int8[], %b::int8[],
        %b::int8[], %b::int8[], %b::int8[], %s::text[], %b::int8[], %b::timestamptz[], %b::timestamptz[], %s::int8[],
        %s::text[], %s::text[]) AS q (g, e, r, p, n, s, d, j, b, u, f, t, k, dm, dr)
), before AS (
    SELECT g, e, f, coalesce(upper(l.received), 1) AS top FROM q LEFT JOIN ledger l ON l.gateway = g AND l.epoch = e
), merged AS (
INSERT INTO ledger AS l (gateway, epoch, received, packs, duplicate_packs, records, stored, duplicates, rejected,
    rejected_by_reason, untimed, first_at, last_at, skew_ms, delays_measured, delays_received)
SELECT g, e, numbers, CASE WHEN e = 0 THEN p ELSE numbers_in(numbers) END, CASE WHEN e = 0 THEN 0 ELSE p - numbers_in(numbers) END,
    n, s, d, j, b::jsonb, u, f, t, k, dm::int8[], dr::int8[]
FROM q
ON CONFLICT (gateway, epoch) DO UPDATE SET
    received = l.received + excluded.received,
    packs = l.packs + CASE WHEN l.epoch = 0 THEN excluded.packs ELSE {_NEW_PACKS} END,
    duplicate_packs = l.duplicate_packs + CASE WHEN l.epoch = 0 THEN 0
        ELSE excluded.packs + excluded.duplicate_packs - {_NEW_PACKS} END,
    records = l.records + excluded.records,
    stored = l.stored + excluded.stored,
    duplicates = l.duplicates + excluded.duplicates,
    rejected = l.rejected + excluded.rejected,
    rejected_by_reason = CASE WHEN excluded.rejected = 0 THEN l.rejected_by_reason ELSE (
        SELECT jsonb_object_agg(key, n) FROM (SELECT key, sum(value::bigint) AS n FROM (
            SELECT * FROM jsonb_each_text(l.rejected_by_reason) UNION ALL
            SELECT * FROM jsonb_each_text(excluded.rejected_by_reason)) u GROUP BY key) s) END,
    untimed = l.untimed + excluded.untimed,
    first_at = least(l.first_at, excluded.first_at),
    last_at = greatest(l.last_at, excluded.last_at),
    skew_ms = coalesce(excluded.skew_ms, l.skew_ms),
    delays_measured = {_sum_of("delays_measured")},
    delays_received = {_sum_of("delays_received")}
RETURNING l.gateway, l.epoch, l.received
), filled AS (
    DELETE FROM gaps g USING merged m WHERE g.gateway = m.gateway AND g.epoch = m.epoch AND g.numbers <@ m.received
)
INSERT INTO gaps SELECT g, e, int8range(top, upper(received)), f
FROM merged JOIN before ON g = gateway AND e = epoch
WHERE e > 0 AND upper(received) > top AND NOT received @> int8range(top, upper(received))
ON CONFLICT DO NOTHING
"""
