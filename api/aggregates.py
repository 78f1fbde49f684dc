"""`/aggregates`: windows of a Datastream merged from those that the store keeps; or its line in a few points, for charts."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field

from api.lttb import decimate
from api.queries import Id, TimeRange, Width, answer, documented
from api.sensorthings.errors import RequestError, not_found
from citylab.columns import NO_TIME, Float64
from citylab.entities import ENTITY_TYPES
from citylab.ledger import expected_in
from citylab.model import DAY, HOUR, MINUTE, Micros, Quality
from citylab.policy import Visible, everything
from citylab.ports import Store, Transaction
from citylab.times import format_instant, now
from citylab.windows import ORIGIN, Partials, merge

MOST_WINDOWS = 10_000
MOST_PARTS = 200_000  # stored windows that an answer is merged from
MOST_ROWS = 100_000  # observations that are decimated
_STORED = (DAY, HOUR, MINUTE)


class AggregateWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window from `start` on, in UTC. What is not a count is over the values that are not bad, and null without any.

    standard_deviation: of the sample; expected: values by now, from the declared interval; completeness: of them came.
    """

    start: str
    count: int
    good_count: int
    mean: float | None
    standard_deviation: float | None
    min: float | None
    max: float | None
    first: float | None
    last: float | None
    expected: int | None
    completeness: float | None


class Aggregates(msgspec.Struct, frozen=True, kw_only=True):
    """Windows in order of time; those without a value are there when `fill` asks for them. width: in seconds."""

    datastream: int
    unit: str | None
    interval: str | None
    width: int
    value: list[AggregateWindow]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """So many of the observations as keep the line's shape: arrays of time and result. observations: there were."""

    datastream: int
    unit: str | None
    interval: str | None
    observations: int
    points: list[tuple[str, float]]


class AggregatesQuery(TimeRange):
    """What `/aggregates` can be asked."""

    datastream: Annotated[Id, Field(description="Of this Datastream.")]
    width: Annotated[
        Width | None,
        Field(description="Of the windows: `minute`, `hour` (the default), `day`, or whole minutes such as `PT15M`."),
    ] = None  # fmt: skip
    fill: Annotated[bool, Field(description="Whether windows without a value are shown.")] = False
    points: Annotated[
        int | None,
        Field(ge=3, le=10_000, description="Instead of windows: so many observations as keep the line's shape."),
    ] = None  # fmt: skip


class _Stream(msgspec.Struct, frozen=True):
    """What is declared of a Datastream. interval: µs, None where it is unknown."""

    id: int
    unit: str | None
    declared: str | None
    interval: Micros | None


_DESCRIPTION = (
    "Windows that overlap `from` to `to` (the last day by default), whole. They begin at multiples of their width in UTC, weeks on"
    " Mondays. Minutes are stored with the observations, hours and days follow a second later; other widths are merged"
    " from those. A value belongs to the window that holds the start of the interval that it covers, or the instant before its"
    " end where the Datastream declares `properties.stamp` `end`. Windows narrower than `properties.interval` are not made. With `points`:"
    " the observations themselves that are not bad, decimated by Largest-Triangle-Three-Buckets."
)


def aggregates_router(
    store: Store, *, visible: Visible = everything, clock: Callable[[], Micros] = now
) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["accounts"])

    @router.get(
        "/aggregates",
        summary="Windows of a Datastream, or its line in a few points",
        description=_DESCRIPTION,
        responses=documented("Aggregates", "Windows, or with `points` a Line.", 400, 404, 503),
        response_class=Response,
    )
    async def aggregates(query: Annotated[AggregatesQuery, Query()]) -> Response:
        if query.points is not None and query.model_fields_set & {"width", "fill"}:
            raise RequestError(400, "points are observations, and have neither width nor fill")
        moment = clock()
        start, end = query.between(moment, DAY)
        async with store.transaction(read_only=True) as transaction:
            stream = await _stream(transaction, query.datastream, visible)
            if query.points is not None:
                return answer(await _line(transaction, stream, start, end, query.points))
            width = query.width or HOUR
            parts = await _parts(transaction, stream, start, end, width)
        merged = merge(parts, width=width)
        begins = range(start - (start - ORIGIN) % width, end, width) if query.fill else merged.start.tolist()
        found = dict(zip(merged.start.tolist(), range(len(merged.start)), strict=True))
        windows = [_window(merged, found.get(begin), begin, width, stream, moment) for begin in begins]
        return answer(
            Aggregates(
                datastream=stream.id, unit=stream.unit, interval=stream.declared, width=width // 1_000_000, value=windows
            )
        )  # fmt: skip

    return router


async def _stream(transaction: Transaction, datastream: int, visible: Visible) -> _Stream:
    rows = await transaction.fetch(
        "SELECT d.id, d.unit_of_measurement ->> 'symbol', d.properties ->> 'interval',"
        " (extract(epoch FROM declared_interval(d.properties)) * 1000000)::bigint FROM datastreams d"
        f" WHERE d.id = %s AND {visible(ENTITY_TYPES['Datastream'], 'd')}",
        (datastream,),
    )
    if not rows:
        raise not_found(f"there is no Datastream {datastream}")
    return _Stream(*rows[0])


_PARTS = """
SELECT (extract(epoch FROM window_start) * 1000000)::bigint, count, good_count, mean, m2, min, max, first,
    (extract(epoch FROM first_time) * 1000000)::bigint, last, (extract(epoch FROM last_time) * 1000000)::bigint
FROM aggregates WHERE datastream_id = %s AND width = %s AND window_start >= %s AND window_start < %s ORDER BY window_start
"""


async def _parts(
    transaction: Transaction, stream: _Stream, start: Micros, end: Micros, width: Micros
) -> Partials:
    """The stored windows that those of `width` are merged from: the widest that divide it. Raises `RequestError`."""
    interval = stream.interval or 0
    if width < interval:
        raise RequestError(
            400, f"the Datastream has a value every {stream.declared}: no narrower windows are made"
        )
    stored = next((w for w in _STORED if width % w == 0 and w >= interval), None)
    if stored is None:
        raise RequestError(
            400, f"the Datastream has a value every {stream.declared}: its windows are whole hours or days"
        )
    first = start - (start - ORIGIN) % width
    last = end + (ORIGIN - end) % width
    if (last - first) // width > MOST_WINDOWS or (last - first) // stored > MOST_PARTS:
        raise RequestError(
            400, f"more than {MOST_WINDOWS:,} windows: ask for wider ones, or for a shorter time"
        )
    parameters = (stream.id, stored // 1_000_000, format_instant(first), format_instant(last))
    rows = await transaction.fetch(_PARTS, parameters)
    columns: list[Any] = list(zip(*rows, strict=True)) or [()] * 11

    def whole(i: int) -> Any:
        return np.array([NO_TIME if x is None else x for x in columns[i]], np.int64)

    def real(i: int) -> Float64:
        return np.array(columns[i], np.float64)  # None becomes NaN

    return Partials(
        np.zeros(len(rows), np.int64), whole(0), whole(1), whole(2), real(3), real(4), real(5), real(6), real(7), whole(8),
        real(9), whole(10),
    )  # fmt: skip


def _window(
    merged: Partials, at: int | None, start: Micros, width: Micros, stream: _Stream, moment: Micros
) -> AggregateWindow:
    """Row `at` of the merged windows, or an empty window."""
    count, good = (0, 0) if at is None else (int(merged.count[at]), int(merged.good[at]))
    expected = expected_in(start, max(min(start + width, moment), start), stream.interval)

    def over_good(column: Float64) -> float | None:
        return None if at is None or not good else float(column[at])

    m2 = over_good(merged.m2)
    return AggregateWindow(
        start=format_instant(start), count=count, good_count=good, mean=over_good(merged.mean),
        standard_deviation=(m2 / (good - 1)) ** 0.5 if m2 is not None and good > 1 else None,
        min=over_good(merged.least), max=over_good(merged.greatest), first=over_good(merged.first),
        last=over_good(merged.last), expected=expected,
        completeness=min(count / expected, 1.0) if expected else None,
    )  # fmt: skip


async def _line(transaction: Transaction, stream: _Stream, start: Micros, end: Micros, points: int) -> Line:
    rows = await transaction.fetch(
        "SELECT (extract(epoch FROM phenomenon_time) * 1000000)::bigint, result_number FROM observations"
        " WHERE datastream_id = %s AND phenomenon_time >= %s AND phenomenon_time < %s AND result_number IS NOT NULL"
        f" AND quality <> {Quality.BAD:d} ORDER BY phenomenon_time, id LIMIT {MOST_ROWS + 1}",
        (stream.id, format_instant(start), format_instant(end)),
    )
    if len(rows) > MOST_ROWS:
        raise RequestError(
            400, f"more than {MOST_ROWS:,} observations: ask for windows, or for a shorter time"
        )
    kept = await asyncio.to_thread(_decimated, rows, points)
    return Line(
        datastream=stream.id, unit=stream.unit, interval=stream.declared, observations=len(rows), points=kept
    )


def _decimated(rows: list[tuple[Any, ...]], points: int) -> list[tuple[str, float]]:
    time, value = np.array([t for t, _ in rows], np.int64), np.array([v for _, v in rows], np.float64)
    index = decimate(time, value, points) if rows else np.zeros(0, np.int64)
    return [(format_instant(rows[i][0]), rows[i][1]) for i in index.tolist()]
