"""What the ledger misses of a gateway's numbers is asked for again, once a status shows that it is nowhere on its way.

What is missing the view `absent_numbers` says: neither received nor, by the gateway's last status, still sent by itself
(`pending`) or given up (`gone`), when the log has since been read to the ends that it had then.
"""

import msgspec

from citylab.model import MINUTE, SECOND, Micros, Topic
from citylab.outbound import outbound
from citylab.ports import EventLog, Store
from citylab.times import format_instant

LOOK_EVERY = 2.0  # s
MOST_RANGES = 500  # in a question; what is beyond is asked for next time
MOST_PACKS = 10_000
FIRST_AFTER, LONGEST_AFTER = 10 * SECOND, 60 * MINUTE  # until it is asked again; doubles each time
EXPIRES_AFTER = 10 * MINUTE
_AT_ONCE = 100  # statuses in one transaction

# Each status of who is online, once, when nothing of what it says is unsettled any more. What is to be asked later than
# the longest pause from now was said by a clock that has been put back since.
_LOOK = """
SELECT o.gateway, o.epoch, o.at, coalesce(r.asked, 0),
    ARRAY(SELECT ARRAY[lower(m), upper(m) - 1] FROM unnest(a.missing) m LIMIT %(most)s)
FROM outboxes o JOIN gateways g ON g.name = o.gateway
JOIN absent_numbers a ON a.gateway = o.gateway AND a.epoch = o.epoch
LEFT JOIN resends r ON r.gateway = o.gateway AND r.epoch = o.epoch
WHERE r.looked_at IS DISTINCT FROM o.at AND coalesce(r.ask_at <= %(now)s OR r.ask_at > %(longest)s, true) AND g.status ->> 'state' = 'online'
    AND g.status -> 'outbox' ->> 'epoch' = o.epoch::text
    AND isempty(a.unsettled * int8multirange(int8range(1, o.last + 1)))
ORDER BY o.at, o.gateway LIMIT %(at_once)s
"""
_LOOKED = """
INSERT INTO resends VALUES (%s, %s, %s, %s, %s) ON CONFLICT (gateway, epoch)
DO UPDATE SET looked_at = excluded.looked_at, asked = excluded.asked, ask_at = excluded.ask_at
"""


async def ask_again(store: Store, event_log: EventLog, *, now: Micros) -> int:
    """Ask for what newly read statuses show as missing; return how many gateways were asked. Raises `Unavailable`."""
    longest = format_instant(now + LONGEST_AFTER)
    parameters = {"most": MOST_RANGES, "now": format_instant(now), "longest": longest, "at_once": _AT_ONCE}
    asked = 0
    while True:
        async with store.transaction() as transaction:
            rows = await transaction.fetch(_LOOK, parameters)
            for gateway, epoch, at, times, missing in rows:
                ranges = _bounded(missing)
                if ranges:
                    asked += 1
                    body = msgspec.json.encode({"epoch": epoch, "ranges": ranges})
                    topic = f"citylab/v1/gateways/{gateway}/resend"
                    event = outbound(topic, body, now=now, gateway=gateway, expires_at=now + EXPIRES_AFTER)
                    await event_log.append(Topic.OUTBOUND, [event])
                after = min(FIRST_AFTER << min(times, 20), LONGEST_AFTER) if ranges else 0
                looked = (gateway, epoch, at, times + 1 if ranges else 0, format_instant(now + after))
                await transaction.execute(_LOOKED, looked)
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
