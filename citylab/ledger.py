"""What the ledger answers: of each gateway what came and what is missing, since when and why; of each stream its holes."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from citylab.delays import quantile
from citylab.errors import Rejected
from citylab.model import MINUTE, SECOND, Micros, Reason
from citylab.ports import Transaction
from citylab.times import format_instant, parse_duration

MOST_HOLES = 1_000  # of an entry or a stream in an answer; the rest is counted
MOST_EXPECTED = 2_000_000  # values of a stream that are looked at together
LATE = 1.5  # intervals after a value from which on the next one is late, and there is a hole
# What is known of numbers that have not come.
WHY = {
    "pending": "the gateway still has these packs and will send them",
    "gone": "the gateway had to drop these packs because its outbox was full",
    "missing": "the gateway has not got these packs any more, and they have not come",
    "unsettled": "the gateway has not said anything of these packs since",
}


class Hole(msgspec.Struct, frozen=True):
    """Numbers from first to last that have not come. state: a word of `WHY`; since: when a higher number first came."""

    first: int
    last: int
    state: str
    since: str | None


class Delay(msgspec.Struct, frozen=True):
    """Within how many ms half, and all but a hundredth, of the packs were stored."""

    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, counts: list[int]) -> "Delay":
        """From counts by bucket (`citylab.delays`)."""
        return cls(quantile(counts, 0.5), quantile(counts, 0.99))


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's account for one epoch of its outbox; epoch 0 is of packs without numbers, which have counts only.

    contiguous: up to here all numbers have come; highest: that has come; missing, pending, gone, unsettled: how many
    numbers (`WHY`); records = stored + duplicates + rejected; delays of packs that brought something new: from their
    newest record's own time, and from the platform's receipt, until they were stored.
    """

    gateway: str
    epoch: int
    state: str | None
    status_at: str | None
    first_received: str | None
    last_received: str | None
    packs: int
    duplicate_packs: int
    contiguous: int | None
    highest: int | None
    missing: int | None
    pending: int | None
    gone: int | None
    unsettled: int | None
    holes: list[Hole]
    holes_left_out: int
    records: int
    stored: int
    duplicates: int
    rejected: int
    rejected_by_reason: dict[str, int]
    untimed: int
    clock_skew_ms: int | None
    delay_since_measurement: Delay
    delay_since_receipt: Delay


_INSTANT = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
_ENTRIES = f"""
SELECT a.gateway, a.epoch, g.status ->> 'state', {_INSTANT.format("g.status_at")}, {_INSTANT.format("l.first_at")},
    {_INSTANT.format("l.last_at")}, coalesce(l.packs, 0), coalesce(l.duplicate_packs, 0),
    CASE WHEN a.epoch > 0 THEN coalesce((SELECT upper(r) - 1 FROM unnest(l.received) r WHERE lower(r) = 1), 0) END,
    CASE WHEN a.epoch > 0 THEN coalesce(upper(l.received) - 1, 0) END,
    numbers_in(a.missing), numbers_in(a.pending), numbers_in(a.gone), numbers_in(a.unsettled),
    coalesce(h.holes, '[]'), (SELECT count(*) FROM unnest(ARRAY[a.missing, a.pending, a.gone, a.unsettled]) s, unnest(s) r),
    coalesce(l.records, 0), coalesce(l.stored, 0), coalesce(l.duplicates, 0), coalesce(l.rejected, 0),
    coalesce(l.rejected_by_reason, '{{}}'), coalesce(l.untimed, 0), l.skew_ms,
    coalesce(l.delays_measured, '{{}}'), coalesce(l.delays_received, '{{}}')
FROM absent_numbers a
LEFT JOIN ledger l USING (gateway, epoch)
LEFT JOIN gateways g ON g.name = a.gateway
CROSS JOIN LATERAL (SELECT json_agg(json_build_object('first', lower(r), 'last', upper(r) - 1, 'state', state, 'since', (
        SELECT {_INSTANT.format("min(since)")} FROM gaps p
        WHERE p.gateway = a.gateway AND p.epoch = a.epoch AND p.numbers && r)) ORDER BY lower(r)) AS holes
    FROM (SELECT state, r FROM (VALUES ('missing', a.missing), ('pending', a.pending), ('gone', a.gone),
        ('unsettled', a.unsettled)) s (state, numbers), unnest(numbers) r ORDER BY lower(r) LIMIT %(holes)s) x
) h
WHERE (%(gateway)s::text IS NULL OR a.gateway = %(gateway)s) AND (a.gateway, a.epoch) > (%(after)s, %(after_epoch)s)
ORDER BY a.gateway, a.epoch LIMIT %(most)s
"""  # noqa: S608 -- put together from constants


async def entries(
    transaction: Transaction,
    *,
    gateway: str | None = None,
    after: tuple[str, int] = ("", -1),
    most: int = 100,
    holes: int = 100,
) -> list[LedgerEntry]:
    """The entries in order of gateway and epoch, of one gateway or of all, beyond `after`, so many at most."""
    rows = await transaction.fetch(
        _ENTRIES,
        {"gateway": gateway, "after": after[0], "after_epoch": after[1], "most": most, "holes": holes},
    )
    return [_entry(*row) for row in rows]


def _entry(*row: Any) -> LedgerEntry:
    (
        gateway, epoch, state, status_at, first, last, packs, duplicate_packs, contiguous, highest, missing, pending, gone,
        unsettled, holes, ranges, records, stored, duplicates, rejected, reasons, untimed, skew, measured, received,
    ) = row  # fmt: skip
    numbered = epoch > 0
    return LedgerEntry(
        gateway=gateway, epoch=epoch, state=state, status_at=status_at, first_received=first, last_received=last,
        packs=packs, duplicate_packs=duplicate_packs, contiguous=contiguous, highest=highest,
        missing=missing if numbered else None, pending=pending if numbered else None, gone=gone if numbered else None,
        unsettled=unsettled if numbered else None, holes=msgspec.convert(holes, list[Hole]),
        holes_left_out=ranges - len(holes), records=records, stored=stored, duplicates=duplicates, rejected=rejected,
        rejected_by_reason={reason: n for reason, n in reasons.items() if n}, untimed=untimed, clock_skew_ms=skew,
        delay_since_measurement=Delay.of(measured), delay_since_receipt=Delay.of(received),
    )  # fmt: skip


class Lapse(msgspec.Struct, frozen=True):
    """A time in which a stream has no value: between two of them, or to an end of what was asked for.

    lost: how many values there would have been.
    """

    start: str
    end: str
    lost: int


class StreamWindow(msgspec.Struct, frozen=True):
    """How many values came of those that were expected in a window that begins at `start`."""

    start: str
    received: int
    expected: int | None


class StreamAccount(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a stream between two instants, against its declared interval (an ISO 8601 duration, or None).

    rejected_by_reason: its records of that time that are open rejections; gateway: whose entries say what its packs lack.
    """

    datastream: int
    name: str
    stream: str | None
    gateway: str | None
    interval: str | None
    start: str
    end: str
    received: int
    expected: int | None
    completeness: float | None
    windows: list[StreamWindow]
    holes: list[Lapse]
    holes_left_out: int
    rejected_by_reason: dict[str, int]


_FIND = """
SELECT d.id, d.name, d.stream_name, t.gateway, d.properties ->> 'interval',
    (extract(epoch FROM declared_interval(d.properties)) * 1000000)::bigint, d.properties ->> 'stamp' = 'end'
FROM datastreams d JOIN things t ON t.id = d.thing_id
WHERE d.id = %(id)s OR d.stream_name = %(name)s OR d.name = %(name)s ORDER BY d.stream_name = %(name)s DESC NULLS LAST, d.id
LIMIT 2
"""
_WINDOWS = """
SELECT (extract(epoch FROM date_bin(%(width)s * interval '1 microsecond', phenomenon_time - %(back)s * interval '1 microsecond',
    '1970-01-01Z')) * 1000000)::bigint AS w, count(*)
FROM observations WHERE datastream_id = %(id)s AND phenomenon_time >= %(start)s AND phenomenon_time < %(end)s GROUP BY w ORDER BY w
"""
_LAPSES = """
WITH seen (t) AS (
    SELECT phenomenon_time FROM observations
    WHERE datastream_id = %(id)s AND phenomenon_time >= %(start)s AND phenomenon_time < %(end)s
    UNION ALL VALUES (%(start)s::timestamptz), (%(until)s::timestamptz)
), step AS (SELECT lag(t) OVER (ORDER BY t) AS before, t FROM seen)
SELECT (extract(epoch FROM before) * 1000000)::bigint, (extract(epoch FROM t) * 1000000)::bigint, count(*) OVER ()
FROM step WHERE t - before > %(late)s * interval '1 microsecond' ORDER BY t LIMIT %(most)s
"""
_REJECTED = """
SELECT reason, count(*) FROM rejections WHERE stream = %(stream)s AND closed_at IS NULL
    AND (content ->> 'time')::bigint >= %(from)s AND (content ->> 'time')::bigint < %(to)s GROUP BY reason ORDER BY reason
"""


async def stream_account(
    transaction: Transaction,
    datastream: int | str,
    *,
    start: Micros,
    end: Micros,
    width: Micros,
    now: Micros,
) -> StreamAccount | None:
    """The account of a Datastream, by id, stream name or name, from `start` to before `end`; None if there is none.

    width: of the windows in µs, which begin at multiples of it in UTC. Raises `Rejected` when the name is that of
    several, or the time holds more values than are looked at together.
    """
    name = datastream if isinstance(datastream, str) else None
    found = await transaction.fetch(_FIND, {"id": None if name is not None else datastream, "name": name})
    if not found:
        return None
    if len(found) > 1 and found[0][2] != name:
        raise Rejected(
            Reason.MALFORMED, f"several Datastreams are called {name!r}: give a stream name or an id"
        )
    own, called, stream, gateway, declared, interval, stamp_end = found[0]
    if (end - start) // max(interval or SECOND, 1) > MOST_EXPECTED:
        raise Rejected(
            Reason.MALFORMED, f"the time holds more than {MOST_EXPECTED:,} values: ask for a shorter one"
        )
    until = max(min(end, now), start)
    parameters: Mapping[str, Any] = {
        "id": own, "start": format_instant(start), "end": format_instant(end), "until": format_instant(until),
        "width": width, "back": int(bool(stamp_end)), "most": MOST_HOLES, "late": round(LATE * (interval or 0)),
    }  # fmt: skip
    counts: dict[int, int] = dict(await transaction.fetch(_WINDOWS, parameters))
    lapses = await transaction.fetch(_LAPSES, parameters) if interval else []
    rejected = await transaction.fetch(_REJECTED, {"stream": stream, "from": start, "to": end})
    expected = expected_in(start, until, interval)
    received = sum(counts.values())
    return StreamAccount(
        datastream=own, name=called, stream=stream, gateway=gateway, interval=declared if interval else None,
        start=format_instant(start), end=format_instant(end), received=received, expected=expected,
        completeness=min(received / expected, 1.0) if expected else None,
        windows=windows(counts, start=start, end=until, width=width, interval=interval),
        holes=[
            Lapse(format_instant(a), format_instant(b), lost_between(a, b, interval, edge=a == start or b == until))
            for a, b, _ in lapses
        ],
        holes_left_out=lapses[0][2] - len(lapses) if lapses else 0, rejected_by_reason=dict(rejected),
    )  # fmt: skip


def expected_in(start: Micros, end: Micros, interval: Micros | None) -> int | None:
    """How many values a stream of this interval has from `start` to before `end`; None when it declares none."""
    return max(end - start, 0) // interval if interval else None


def lost_between(before: Micros, after: Micros, interval: Micros, *, edge: bool) -> int:
    """How many values are not there between two; one more where an end of the time asked for stands for a value."""
    return max(round((after - before) / interval) - (0 if edge else 1), 1)


def windows(
    counts: Mapping[Micros, int], *, start: Micros, end: Micros, width: Micros, interval: Micros | None
) -> list[StreamWindow]:
    """The windows from `start` to before `end`, the first and the last as far as they lie within. counts: by start."""
    return [
        StreamWindow(
            format_instant(begin),
            counts.get(begin, 0),
            expected_in(max(begin, start), min(begin + width, end), interval),
        )
        for begin in range(start - start % width, end, width)
    ]


def parse_width(text: str) -> Micros:
    """The width of windows in µs: `minute`, `hour`, `day`, or an ISO 8601 duration of whole minutes. Raises ValueError."""
    named = {"minute": "PT1M", "hour": "PT1H", "day": "P1D"}
    with suppress(ValueError):
        width = parse_duration(named.get(text, text))
        if width > 0 and width % MINUTE == 0:
            return width
    raise ValueError(
        f"{text!r}: windows are minute, hour, day, or a duration of whole minutes, such as PT15M"
    )
