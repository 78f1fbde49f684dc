"""What the ledger knows beyond counts: holes with their age and their reason, and rejections that are taken up again."""

import asyncio
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citylab.adapters import entity_writes
from citylab.columns import Observations
from citylab.delays import quantile
from citylab.errors import Rejected
from citylab.model import SECOND, Position, Reason, Topic
from citylab.ports import START
from citylab.rejections import Selection, replay_selection
from citylab.times import now
from citylab.writes import NewRejection, Receipt, Span, Write, no_rows
from processing.announcer import Announcer
from processing.service import Processing

T0 = 1_748_736_000 * SECOND  # 2025-06-01T00:00:00Z
THING = {
    "name": "t", "description": "d",
    "Locations": [
        {"name": "l", "description": "d", "encodingType": "application/geo+json",
         "location": {"type": "Point", "coordinates": [2.17, 41.38]}}
    ],
}  # fmt: skip


def datastream(name: str) -> dict:
    return {
        "name": name, "description": "d", "properties": {"streamName": name},
        "observationType": "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
        "unitOfMeasurement": {"name": "n", "symbol": "s", "definition": "d"},
        "Sensor": {"name": "s", "description": "d", "encodingType": "text/plain", "metadata": "m"},
        "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
    }  # fmt: skip


async def fetch(store, sql: str, parameters=()) -> list[tuple]:
    async with store.transaction(read_only=True) as transaction:
        return await transaction.fetch(sql, parameters)


async def receive(store, *numbers: int, at: int, gateway: str = "gw") -> None:
    """One write of empty packs with these numbers, received so many seconds after T0."""
    rows, receipt, record = no_rows()
    receipts = [Receipt(gateway, 7, n, Topic.PACKS, 0, n, T0 + at * SECOND, 0) for n in numbers]
    await store.save(Write(rows=rows, receipt=receipt, record=record, receipts=receipts))


async def gaps(store) -> list[tuple]:
    return await fetch(
        store,
        "SELECT lower(numbers), upper(numbers), extract(epoch FROM since)::bigint - %s FROM gaps ORDER BY 1, 2",
        (T0 // SECOND,),
    )


async def absent(store) -> dict[str, str]:
    columns = ("absent", "pending", "gone", "missing", "unsettled")
    (row,) = await fetch(
        store, f"SELECT {', '.join(f'{c}::text' for c in columns)} FROM absent_numbers WHERE gateway = 'gw'"
    )
    return dict(zip(columns, row, strict=True))


async def report(store, last: int, pending: str, gone: str, ends: str | None) -> None:
    async with store.transaction() as transaction:
        await transaction.execute(
            "INSERT INTO outboxes VALUES ('gw', 7, %s, %s, %s, now(), %s::jsonb) ON CONFLICT (gateway, epoch) DO UPDATE"
            " SET last = excluded.last, pending = excluded.pending, gone = excluded.gone, ends = excluded.ends",
            (last, pending, gone, ends),
        )


async def test_a_hole_is_as_old_as_the_first_higher_number(store):
    await receive(store, 1, 2, at=0)
    await receive(store, 5, at=10)
    await receive(store, 9, 6, at=20)
    await receive(store, 4, at=30)

    assert await gaps(store) == [(3, 6, 10), (6, 10, 20)]

    await receive(store, 7, 8, at=40)
    assert await gaps(store) == [(3, 6, 10)]
    await receive(store, 3, at=50)
    assert await gaps(store) == []


async def test_what_comes_in_order_leaves_no_trace(store):
    await receive(store, *range(1, 100), at=0)
    await receive(store, *reversed(range(100, 200)), at=1)
    await receive(store, 50, at=2)

    assert await gaps(store) == []


async def test_a_number_is_missing_once_its_gateway_and_the_log_have_both_said_so(store):
    await receive(store, 1, 4, 8, at=0)
    assert await absent(store) == {
        "absent": "{[2,4),[5,8)}", "pending": "{}", "gone": "{}", "missing": "{}", "unsettled": "{[2,4),[5,8)}",
    }  # fmt: skip

    await report(store, 7, "{[5,6)}", "{[2,3)}", '{"0": 10}')
    assert (await absent(store))["unsettled"] == "{[3,4),[6,8)}"  # the log is not read that far

    rows, receipt, record = no_rows()
    span = Span(Topic.PACKS, 0, START, Position(10, b"f"))
    await store.save(Write(rows=rows, receipt=receipt, record=record, spans=[span]))
    assert await absent(store) == {
        "absent": "{[2,4),[5,8)}", "pending": "{[5,6)}", "gone": "{[2,3)}", "missing": "{[3,4),[6,8)}", "unsettled": "{}",
    }  # fmt: skip

    await receive(store, 11, at=1)  # later than what the gateway has reported of
    assert (await absent(store))["unsettled"] == "{[9,11)}"
    await report(store, 12, "{}", "{}", None)
    assert (await absent(store))["missing"] == "{}"
    await report(store, 12, "{}", "{}", "{}")
    assert (await absent(store))[
        "missing"
    ] == "{[2,4),[5,8),[9,11),[12,13)}"  # 12 was acknowledged, and never came


async def test_packs_that_bring_something_new_are_counted_by_their_delay(store):
    moment = now()
    rows = Observations(
        datastream=np.array([1, 1]), time=np.array([moment - 90 * SECOND, moment - 60 * SECOND]),
        number=np.zeros(2), quality=np.zeros(2, np.int8), feature=np.ones(2, np.int64),
    )  # fmt: skip
    receipt = Receipt("gw", 7, 1, Topic.PACKS, 0, 1, moment - 10 * SECOND, 2, moment - 60 * SECOND)
    write = Write(rows=rows, receipt=np.zeros(2, np.int64), record=np.arange(2), receipts=[receipt])

    await store.save(write)
    await store.save(write)  # again, when it is old: not counted
    await receive(store, 2, at=0)

    ((measured, received),) = await fetch(store, "SELECT delays_measured, delays_received FROM ledger")
    assert sum(measured) == sum(received) == 1
    assert 50_000 < quantile(measured, 0.5) < 90_000
    assert 7_000 < quantile(received, 0.5) < 15_000

    later = replace(rows, time=rows.time + SECOND)
    late = receipt._replace(seq=3, received_at=moment - 3_600 * SECOND)
    await store.save(replace(write, rows=later, receipts=[late]))
    ((measured, received),) = await fetch(store, "SELECT delays_measured, delays_received FROM ledger")
    assert [sum(measured), sum(received)] == [2, 2]
    assert quantile(received, 1.0) > 3_000_000


async def test_what_the_store_refuses_stays_and_holds_up_no_other(store, monkeypatch):
    async with store.transaction() as transaction:
        await transaction.create("Datastreams", datastream("a") | {"Thing": THING})
    receipt = Receipt("gw", 7, 1, Topic.PACKS, 0, 1, T0, 3)
    rows, receipts, record = no_rows()
    wrong = [
        NewRejection(0, i, Reason.UNIT_MISMATCH, "no", "a", f'{{"n":"a","time":{T0 + i},"v":{i}}}')
        for i in range(3)
    ]
    await store.save(Write(rows=rows, receipt=receipts, record=record, receipts=[receipt], rejections=wrong))
    real = store.save

    async def refusing(write):
        if 1.0 in write.rows.number:
            raise Rejected(Reason.MALFORMED, "the store keeps no 1")
        return await real(write)

    monkeypatch.setattr(store, "save", refusing)
    log = Log()
    announcer = Announcer(store, log, base="http://localhost/v1.1/", per_second=0)
    taking = asyncio.create_task(Processing(store, log, entity_writes, announcer).run())
    try:
        found = await replay_selection(store, Selection(gateway="gw"), patience=20)
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)

    assert (found.asked, found.stored, found.rejected) == (3, 2, {"malformed": 1})
    assert await fetch(
        store, "SELECT record, reason, detail, replay FROM rejections WHERE closed_at IS NULL"
    ) == [(1, "unit-mismatch", "the store keeps no 1", None)]
    assert await fetch(store, "SELECT records, stored, rejected FROM ledger") == [(3, 2, 1)]


class Log:
    """A log in which nothing is and nothing comes."""

    async def ends(self, _topic):
        return {0: 0}

    async def partitions(self, _topic):
        return [0]

    async def read(self, *_, **__):
        await asyncio.Event().wait()
        yield

    async def append(self, _topic, events):
        return [START] * len(events)


EVENTS = st.lists(
    st.tuples(st.integers(1, 12), st.booleans(), st.lists(st.integers(0, 20), max_size=4)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS)
async def test_whatever_comes_again_every_record_counts_once_an_arrival(store, events):
    """Packs that come once or again, rejections that are taken up or stay: records = stored + duplicates + rejected."""
    async with store.transaction() as transaction:
        for table in ("ledger", "gaps", "rejections", "observations", "latest", "aggregates", "stale_hours"):
            await transaction.execute(f"DELETE FROM {table}")
    total = 0
    for seq, wrong, seconds in events:
        n = len(seconds)
        rows = Observations(
            datastream=np.full(n, 1), time=np.array([T0 + s * SECOND for s in seconds], np.int64),
            number=np.array([float(seq)] * n), quality=np.zeros(n, np.int8), feature=np.ones(n, np.int64),
        )  # fmt: skip
        rejections = [NewRejection(0, n, Reason.UNIT_MISMATCH, "no", "s", "{}")] if wrong else []
        receipt = Receipt("gw", 7, seq, Topic.PACKS, 0, seq, T0, n + len(rejections), T0)
        total += receipt.records
        await store.save(
            Write(
                rows=rows,
                receipt=np.zeros(n, np.int64),
                record=np.arange(n),
                receipts=[receipt],
                rejections=rejections,
            )
        )
        if wrong:  # taken up: now and then still wrong, and opened again
            found = await fetch(
                store,
                "SELECT id, record FROM rejections WHERE seq = %s AND closed_at IS NULL AND reason = 'unit-mismatch'",
                (seq,),
            )
            rows, receipts, record = no_rows()
            again = (
                [NewRejection(0, found[0][1], Reason.UNIT_MISMATCH, "still", "s", "{}")]
                if found and seq % 2
                else []
            )
            if found:
                await store.save(
                    Write(
                        rows=rows, receipt=receipts, record=record, receipts=[receipt._replace(records=1)],
                        rejections=again, closes=[found[0][0]],
                    )
                )  # fmt: skip
                assert (
                    await fetch(
                        store, "SELECT closed_at IS NULL FROM rejections WHERE id = %s", (found[0][0],)
                    )
                ) == [(bool(again),)]
        ((records, stored, duplicates, rejected, reasons, opened),) = await fetch(
            store,
            "SELECT records, stored, duplicates, rejected, rejected_by_reason,"
            " (SELECT count(*) FROM rejections WHERE closed_at IS NULL) FROM ledger",
        )
        assert records == total == stored + duplicates + rejected
        assert rejected == sum(reasons.values()) == opened
        assert ((stored,),) == tuple(await fetch(store, "SELECT count(*) FROM observations"))
