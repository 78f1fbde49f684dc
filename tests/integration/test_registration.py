"""Descriptors and statuses in the store: one transaction a batch, with its position, whoever else is writing."""

import asyncio
import json

import numpy as np
import pytest

from citylab.model import SECOND, Batch, Event, Position, Topic
from citylab.ports import START
from citylab.writes import PositionMoved
from processing import catalogue
from processing.decode import Rules, decode
from processing.registration import register, status

T0 = 1_767_225_600 * SECOND  # 2026-01-01T00:00:00Z


def place(name: str = "square", longitude: float = 2.17) -> dict:
    return {
        "name": name, "description": "d", "encodingType": "application/geo+json",
        "location": {"type": "Point", "coordinates": [longitude, 41.38]},
    }  # fmt: skip


def stream(name: str, sensor: str = "sensor", **properties) -> dict:
    return {
        "name": f"name of {name}", "description": "d",
        "observationType": "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
        "unitOfMeasurement": {"name": "degree Celsius", "symbol": "°C", "definition": "d"},
        "properties": {"streamName": name, "senmlUnit": "Cel"} | properties,
        "Sensor": {"name": sensor, "description": "d", "encodingType": "text/plain", "metadata": "m"},
        "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
    }  # fmt: skip


def thing(key: str | None, *streams: dict, name: str = "lamp", at: dict | None = None, **properties) -> dict:
    if key is not None:
        properties["key"] = key
    what = {"name": name, "description": "d", "Locations": [at or place()], "Datastreams": list(streams)}
    return what | ({"properties": properties} if properties else {})


class Log:
    """A partition of descriptors or statuses, which hands out what was put into it as batches."""

    def __init__(self, topic: Topic, partition: int = 0) -> None:
        self.topic, self.partition, self.at, self.time = topic, partition, START, T0

    def batch(self, *messages: tuple[str, object], **headers: str) -> Batch:
        """(gateway, document) of each event; the batch after it begins where it ends."""
        events = []
        for gateway, document in messages:
            self.time += SECOND
            value = document if isinstance(document, bytes) else json.dumps(document).encode()
            header = {"gateway": gateway, "topic": f"citylab/v1/gateways/{gateway}/{self.topic}"} | headers
            events.append(
                Event(self.partition, self.at.offset + len(events), gateway, value, header, self.time)
            )
        before, self.at = (
            self.at,
            Position(self.at.offset + len(events), b"%8d" % (self.at.offset + len(events))),
        )
        return Batch(self.topic, self.partition, before, events, self.at)


@pytest.fixture
def log() -> Log:
    return Log(Topic.DESCRIPTORS)


async def fetch(store, sql: str, *parameters) -> list[tuple]:
    async with store.transaction(read_only=True) as transaction:
        return await transaction.fetch(sql, parameters)


async def entities(store) -> list[list[tuple]]:
    tables = (
        "things",
        "things_locations",
        "locations",
        "historical_locations",
        "sensors",
        "observed_properties",
        "datastreams",
    )
    return [await fetch(store, f"SELECT t::text FROM {table} t ORDER BY 1") for table in tables]


async def rejections(store) -> list[tuple]:
    return await fetch(store, "SELECT gateway, record, reason, detail FROM rejections ORDER BY id")


async def test_a_thing_is_known_again_by_its_key_whatever_its_name(store, log):
    await register(store, log.batch(("gw", thing("k", stream("gw/a")))))

    await register(store, log.batch(("gw", thing("k", stream("gw/a"), name="renamed"))))

    assert await fetch(store, "SELECT name, key, gateway FROM things") == [("renamed", "k", "gw")]
    assert await rejections(store) == []


async def test_without_a_key_a_thing_is_known_by_gateway_and_name(store, log):
    await register(
        store, log.batch(("one", thing(None, stream("one/a"))), ("two", thing(None, stream("two/a"))))
    )
    await register(store, log.batch(("one", thing(None, stream("one/a", note="x")))))

    found = await fetch(
        store,
        "SELECT t.gateway, d.stream_name FROM things t JOIN datastreams d ON d.thing_id = t.id ORDER BY 1",
    )
    assert found == [("one", "one/a"), ("two", "two/a")]


async def test_a_batch_that_another_worker_has_committed_changes_nothing(store, log):
    batch = log.batch(("gw", thing("k", stream("gw/a"))))
    await register(store, batch)
    before = await entities(store)

    changed = batch._replace(
        events=[batch.events[0]._replace(value=json.dumps(thing("other", stream("gw/b"))).encode())]
    )
    with pytest.raises(PositionMoved):
        await register(store, changed)

    assert await entities(store) == before
    assert await store.positions(Topic.DESCRIPTORS) == {0: batch.after}
    assert await fetch(store, "SELECT count(*) FROM gateways") == [(1,)]


async def test_one_bad_thing_harms_no_other_and_one_bad_descriptor_no_other_gateway(store, log):
    bad = thing("bad", stream("gw/bad")) | {"colour": "red"}
    batch = log.batch(
        ("gw", [thing("a", stream("gw/a")), bad, thing("b", stream("gw/b"))]),
        ("mad", b"{"),
        ("other", thing("c", stream("other/c"))),
    )

    await register(store, batch)

    found = await fetch(store, "SELECT key FROM things ORDER BY 1")
    assert found == [("a",), ("b",), ("c",)]
    assert [(g, r, reason) for g, r, reason, _ in await rejections(store)] == [
        ("gw", 1, "malformed"),
        ("mad", -1, "malformed"),
    ]
    assert await fetch(store, "SELECT gateway, rejected FROM ledger ORDER BY 1") == [("gw", 1), ("mad", 1)]
    assert await store.positions(Topic.DESCRIPTORS) == {0: batch.after}
    # The bad Thing is no part of what the next descriptor is compared with.
    assert await fetch(store, "SELECT jsonb_array_length(descriptor) FROM gateways WHERE name = 'gw'") == [
        (2,)
    ]


async def test_several_bad_things_are_all_told(store, log):
    bad = [thing(f"k{i}", stream("gw/a"), stream("gw/a")) for i in range(3)]

    await register(store, log.batch(("gw", bad)))

    assert [(r, "have one streamName" in detail) for _, r, _, detail in await rejections(store)] == [
        (0, True),
        (1, True),
        (2, True),
    ]


async def test_a_thing_that_was_retired_returns_as_the_one_it_was_where_it_was(store, log):
    await register(store, log.batch(("gw", [thing("a", stream("gw/a")), thing("b", stream("gw/b"))])))
    before = await entities(store)

    await register(store, log.batch(("gw", [])))
    active = "SELECT stream_name FROM datastreams WHERE properties ->> 'active' = 'false' ORDER BY 1"
    assert await fetch(store, active) == [("gw/a",), ("gw/b",)]
    await register(store, log.batch(("gw", [thing("a", stream("gw/a")), thing("b", stream("gw/b"))])))

    assert await entities(store) == before


async def test_an_edit_through_the_api_survives_every_redelivery(store, log):
    descriptor = thing("k", stream("gw/a"), stream("gw/b"))
    await register(store, log.batch(("gw", descriptor)))
    async with store.transaction() as transaction:
        await transaction.execute(
            "UPDATE things SET name = 'edited', properties = properties || '{\"note\": 1}'"
        )
        await transaction.execute("UPDATE datastreams SET name = 'edited' WHERE stream_name = 'gw/a'")

    for _ in range(2):
        await register(store, log.batch(("gw", descriptor), ("gw", [descriptor])))
    await register(store, log.batch(("gw", thing("k", stream("gw/a", interval="PT1S"), stream("gw/b")))))

    assert await fetch(store, "SELECT name, properties ->> 'note' FROM things") == [("edited", "1")]
    assert await fetch(
        store, "SELECT name, properties ->> 'interval' FROM datastreams ORDER BY stream_name"
    ) == [
        ("edited", "PT1S"),
        ("name of gw/b", None),
    ]


async def test_properties_that_are_gone_are_gone(store, log):
    await register(store, log.batch(("gw", thing(None, note="x"))))
    await register(store, log.batch(("gw", thing(None) | {"properties": None})))

    assert await fetch(store, "SELECT properties IS NULL FROM things") == [(True,)]


async def test_a_thing_of_the_api_belongs_to_the_first_gateway_that_registers_it(store, log):
    async with store.transaction() as transaction:
        made = await transaction.create("Things", thing("k") | {"Datastreams": [stream("free/a")]})

    await register(store, log.batch(("first", thing("k", stream("first/b")))))
    await register(store, log.batch(("second", thing("k", stream("second/c")))))

    assert await fetch(store, "SELECT id, gateway FROM things") == [(made, "first")]
    assert [(g, reason) for g, _, reason, _ in await rejections(store)] == [("second", "not-yours")]
    assert await fetch(store, "SELECT stream_name FROM datastreams ORDER BY 1") == [("first/b",), ("free/a",)]


async def test_shared_sensors_are_created_once_and_never_changed(store, log):
    other = stream("two/a")
    other["Sensor"]["description"] = other["ObservedProperty"]["description"] = "otherwise described"
    another = stream("two/b")
    another["Sensor"]["metadata"] = "another model"

    await register(store, log.batch(("one", thing("a", stream("one/a")))))
    await register(store, log.batch(("two", thing("b", other, another))))

    assert await fetch(store, "SELECT metadata, description FROM sensors ORDER BY id") == [
        ("m", "d"),
        ("another model", "d"),
    ]
    assert await fetch(store, "SELECT description FROM observed_properties") == [("d",)]


async def test_what_the_gateways_list_says_is_what_the_catalogue_says(store, log):
    await register(store, log.batch(("gw", thing("k", stream("gw/a"), gateways=["second", 5, None]))))
    first = await catalogue.load(store)
    await register(store, log.batch(("gw", thing("k", stream("gw/a")))))
    second = await catalogue.load(store)

    assert [one.streams[0].gateways for one in (first, second)] == [{"gw", "second"}, {"gw"}]
    assert first.version != second.version


async def test_rows_of_the_stream_are_resolved_as_registered(store, log):
    await register(store, log.batch(("gw", thing("k", stream("gw/a")))))
    before = await catalogue.load(store)
    pack = [
        {"n": "gw/a", "u": unit, "v": 1, "t": T0 // SECOND + i} for i, unit in enumerate(["Cel", "°C", "K"])
    ]
    event = Event(0, 0, "gw", json.dumps(pack).encode(), {"gateway": "gw"}, T0 + SECOND)
    packs = Batch(Topic.PACKS, 0, START, [event], Position(1, b"12345678"))

    write = decode([packs], before, Rules())
    saved = await store.save(write)

    assert (saved.stored, dict(saved.rejected)) == (2, {"unit-mismatch": 1})
    found = await fetch(
        store,
        "SELECT f.location_id IS NOT NULL, f.name FROM observations o JOIN features_of_interest f ON f.id = o.feature_of_interest_id",
    )
    assert found == [(True, "square")] * 2
    assert (await catalogue.load(store)).version == before.version
    np.testing.assert_array_equal(write.rows.feature, before.feature[[0, 0]])


async def test_gateways_register_at_the_same_time(store):
    logs = [Log(Topic.DESCRIPTORS, partition) for partition in range(4)]
    shared = [thing(f"k{i}", *(stream(f"gw{i}/s{k}", f"sensor {k}") for k in range(3))) for i in range(4)]

    await asyncio.gather(*(register(store, log.batch((f"gw{i}", shared[i]))) for i, log in enumerate(logs)))

    assert await fetch(store, "SELECT count(*), count(DISTINCT stream_name) FROM datastreams") == [(12, 12)]
    assert await fetch(store, "SELECT count(*) FROM sensors") == [(3,)]
    assert await fetch(store, "SELECT count(*) FROM observed_properties") == [(1,)]
    assert set(await store.positions(Topic.DESCRIPTORS)) == {0, 1, 2, 3}


async def test_two_gateways_that_claim_one_thing_at_the_same_time_leave_it_to_one(store):
    logs = [Log(Topic.DESCRIPTORS, partition) for partition in range(4)]

    await asyncio.gather(
        *(register(store, log.batch((f"gw{i}", thing("k", stream("gw/a"))))) for i, log in enumerate(logs))
    )

    ((owner,),) = await fetch(store, "SELECT gateway FROM things")
    assert sorted(g for g, _, reason, _ in await rejections(store) if reason == "not-yours") == sorted(
        {"gw0", "gw1", "gw2", "gw3"} - {owner}
    )


async def test_statuses_are_kept_and_a_last_will_takes_nothing_away(store):
    log = Log(Topic.STATUS)
    await status(store, log.batch(("gw", {"state": "online", "outbox": {"epoch": 7, "last": 9}})))
    await status(store, log.batch(("gw", {"state": "offline"}), ("other", {"state": "Grüße 東京"})))

    found = await fetch(
        store, "SELECT name, status, extract(epoch FROM status_at)::bigint FROM gateways ORDER BY name"
    )
    assert found == [
        ("gw", {"state": "offline", "outbox": {"epoch": 7, "last": 9}}, T0 // SECOND + 2),
        ("other", {"state": "Grüße 東京"}, T0 // SECOND + 3),
    ]
    assert await fetch(store, "SELECT count(*) FROM ledger") == [(0,)]


async def test_a_status_that_waits_for_a_registration_is_not_in_its_way(store):
    """Gateways send both whenever they connect: locked in different orders, each would wait for the other until one is ended."""
    log = Log(Topic.STATUS)
    await status(store, log.batch(("gw", {"state": "online"})))
    here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    waiting = f"SELECT count(*) FROM pg_locks WHERE {here} AND locktype = 'advisory' AND NOT granted"
    async with store.transaction() as registration:
        await registration.lock_catalogue()
        late = asyncio.create_task(status(store, log.batch(("gw", {"state": "offline"}))))
        async with asyncio.timeout(10):
            while await registration.fetch(waiting) == [(0,)]:  # noqa: ASYNC110 -- another session has no event
                await asyncio.sleep(0.01)
        await registration.execute("SET LOCAL lock_timeout = '300ms'")
        await registration.execute("UPDATE gateways SET descriptor = '[]' WHERE name = 'gw'")
    await late
    assert await fetch(store, "SELECT status, descriptor FROM gateways") == [({"state": "offline"}, [])]


async def test_what_a_bridge_says_is_a_services_state(store):
    log = Log(Topic.STATUS)
    topic = "citylab/v1/platform/bridges/north"

    await status(store, log.batch(("", {"packs": 1}), topic=topic))
    await status(store, log.batch(("", {"packs": 2}), topic=topic))

    ((name, state),) = await fetch(store, "SELECT name, state FROM services")
    assert (name, state["packs"]) == ("ingest north", 2)
    assert isinstance(state["clock"], int)  # of the bridge
    assert await fetch(store, "SELECT count(*) FROM gateways") == [(0,)]


async def test_a_status_that_is_none_is_rejected_and_the_next_is_kept(store):
    log = Log(Topic.STATUS)
    bad = [b"", b"[]", b"7", b"{", b"\xff", b'{"a":"\\u0000"}', b'{"a":' * 50_000]

    await status(store, log.batch(*(("gw", payload) for payload in bad), ("gw", {"state": "online"})))

    assert [(r, reason) for _, r, reason, _ in await rejections(store)] == [(-1, "malformed")] * len(bad)
    assert await fetch(store, "SELECT payload FROM rejections ORDER BY id") == [(payload,) for payload in bad]
    assert await fetch(store, "SELECT status FROM gateways") == [({"state": "online"},)]


async def test_a_status_batch_that_another_worker_has_committed_changes_nothing(store):
    log = Log(Topic.STATUS)
    batch = log.batch(("gw", {"state": "online"}))
    await status(store, batch)

    late = batch._replace(events=[batch.events[0]._replace(value=b'{"state":"offline"}')])
    with pytest.raises(PositionMoved):
        await status(store, late)

    assert await fetch(store, "SELECT status FROM gateways") == [({"state": "online"},)]
