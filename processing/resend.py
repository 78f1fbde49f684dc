"""What the ledger misses of a gateway's numbers is asked for again, once a status shows that it is nowhere on its way.

A number is missing only if the gateway's outbox neither sends it by itself (`pending`) nor has given it up (`gone`), and the log
has since been read to the ends that it had when that status arrived.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from citylab.model import MINUTE, SECOND, Micros, Topic
from citylab.outbound import outbound
from citylab.ports import EventLog, Store, Transaction
from citylab.times import format_instant

LOOK_EVERY = 2.0  # s
MOST_RANGES = 500  # in a question; what is beyond is asked for next time
MOST_PACKS = 10_000
FIRST_AFTER, LONGEST_AFTER = 10 * SECOND, 60 * MINUTE  # until it is asked again; doubles each time
EXPIRES_AFTER = 10 * MINUTE
_AT_ONCE = 100  # statuses in one transaction

Ends: TypeAlias = Mapping[Topic, Mapping[int, int]]
"""By partition of the topics into which numbered packs go, the offset that the next event will have."""


async def ends_of(event_log: EventLog) -> Ends:
    """Read the ends. Raises `Unavailable`."""
    return {topic: await event_log.ends(topic) for topic in (Topic.PACKS, Topic.REFUSED)}


class _Outbox(msgspec.Struct):
    epoch: int
    last: int
    pending: list[tuple[int, int]]
    gone: list[tuple[int, int]]


async def keep_outbox(
    transaction: Transaction, gateway: str, state: Mapping[str, Any], ends: Ends, at: Micros
) -> None:
    """Keep what a status says of an outbox, to be held against the ledger. One without an outbox says nothing.

    ends: of the log, read once the status had arrived.
    """
    try:
        outbox = msgspec.convert(state.get("outbox"), _Outbox)
        numbers = _number(outbox.epoch), _number(outbox.last)
        ranges = _multirange(outbox.pending), _multirange(outbox.gone)
    except (msgspec.ValidationError, ValueError):
        return  # a status is anything; this one is no agent's
    await transaction.execute(
        "INSERT INTO outboxes (gateway, epoch, last, pending, gone, at, ends)"
        " VALUES (%s, %s, %s, %s::int8multirange, %s::int8multirange, %s, %s::jsonb)"
        " ON CONFLICT (gateway, epoch) DO UPDATE SET last = excluded.last, pending = excluded.pending,"
        " gone = excluded.gone, at = excluded.at, ends = excluded.ends, looked = false",
        (
            gateway,
            *numbers,
            *ranges,
            format_instant(at),
            msgspec.json.encode(ends).decode(),
        ),
    )


def _number(number: int) -> int:
    if not 0 <= number < 2**62:
        raise ValueError(number)
    return number


def _multirange(pairs: list[tuple[int, int]]) -> str:
    return (
        "{" + ",".join(f"[{_number(first)},{_number(last)}]" for first, last in pairs if first <= last) + "}"
    )


_LOOK = """
SELECT o.gateway, o.epoch, o.asked, ARRAY(
    SELECT ARRAY[lower(r), upper(r) - 1] FROM unnest(
        int8multirange(int8range(1, o.last + 1)) - o.pending - o.gone - coalesce(l.received, '{}')
    ) r LIMIT %(most)s
)
FROM outboxes o JOIN gateways g ON g.name = o.gateway LEFT JOIN ledger l ON l.gateway = o.gateway AND l.epoch = o.epoch
WHERE NOT o.looked AND o.ends IS NOT NULL AND o.ask_at <= %(now)s AND g.status ->> 'state' = 'online'
    AND g.status -> 'outbox' ->> 'epoch' = o.epoch::text
    AND NOT EXISTS (
        SELECT FROM jsonb_each(o.ends) t CROSS JOIN jsonb_each_text(t.value) e LEFT JOIN positions p
            ON p.consumer = 'processing' AND p.topic = t.key AND p.partition = e.key::int
        WHERE coalesce(p."offset", 0) < e.value::bigint
    )
ORDER BY o.ask_at, o.gateway LIMIT %(at_once)s FOR UPDATE OF o SKIP LOCKED
"""


async def ask_again(store: Store, event_log: EventLog, *, now: Micros) -> int:
    """Ask for what newly read statuses show as missing; return how many gateways were asked. Raises `Unavailable`."""
    parameters = {"most": MOST_RANGES, "now": format_instant(now), "at_once": _AT_ONCE}
    asked = 0
    while True:
        async with store.transaction() as transaction:
            rows = await transaction.fetch(_LOOK, parameters)
            for gateway, epoch, times, missing in rows:
                ranges = _bounded(missing)
                if ranges:
                    asked += 1
                    body = msgspec.json.encode({"epoch": epoch, "ranges": ranges})
                    topic = f"citylab/v1/gateways/{gateway}/resend"
                    event = outbound(topic, body, now=now, gateway=gateway, expires_at=now + EXPIRES_AFTER)
                    await event_log.append(Topic.OUTBOUND, [event])
                after = min(FIRST_AFTER << min(times, 20), LONGEST_AFTER) if ranges else 0
                await transaction.execute(
                    "UPDATE outboxes SET looked = true, asked = %s, ask_at = %s WHERE gateway = %s AND epoch = %s",
                    (times + 1 if ranges else 0, format_instant(now + after), gateway, epoch),
                )
        if len(rows) < _AT_ONCE:
            return asked


def _bounded(missing: list[list[int]]) -> list[list[int]]:
    """The first ranges, of MOST_PACKS numbers together."""
    ranges, left = [], MOST_PACKS
    for first, last in missing:
        if left <= 0:
            break
        ranges.append([first, min(last, first + left - 1)])
        left -= last - first + 1
    return ranges
