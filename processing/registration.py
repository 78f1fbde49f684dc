"""Descriptors and statuses: what a gateway says of itself becomes Things, Datastreams and its state.

A descriptor is compared with the same gateway's previous one and only differences are applied, so that a redelivery
does not undo what was edited through the API.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from citylab.errors import Rejected
from citylab.model import LARGEST_NUMBER, SECOND, Batch, Event, Micros, Reason, Topic
from citylab.ports import Store, Transaction
from citylab.times import format_instant
from citylab.writes import NewRejection, Receipt, Span, Write, bookkeeping
from processing.descriptors import (
    Json,
    capabilities_of,
    check_listed_once,
    differences,
    identity,
    json_object,
    key_of,
    read_thing,
    storable,
    streams_of,
    text_of,
    things_of,
)
from processing.tasks import keep_result, send_again

_THING = ("name", "description", "properties")
_APART = frozenset({"Datastreams", "TaskingCapabilities"})  # registered one by one once their Thing is there
_DATASTREAM = {
    "name": "name",
    "description": "description",
    "observationType": "observation_type",
    "unitOfMeasurement": "unit_of_measurement",
    "properties": "properties",
}
_CAPABILITY = {
    "name": "name",
    "description": "description",
    "taskingParameters": "tasking_parameters",
    "properties": "properties",
}
_JSONB = frozenset({"unit_of_measurement", "tasking_parameters", "properties"})
_SHARED: Mapping[str, tuple[str, str, Callable[[Json], tuple[str, ...]]]] = {
    "Sensor": (
        "Sensors",
        "SELECT id FROM sensors WHERE name = %s AND metadata = %s::jsonb ORDER BY id LIMIT 1",
        lambda sensor: (sensor["name"], text_of(sensor["metadata"])),
    ),
    "Actuator": (
        "Actuators",
        "SELECT id FROM actuators WHERE name = %s AND metadata = %s::jsonb ORDER BY id LIMIT 1",
        lambda actuator: (actuator["name"], text_of(actuator["metadata"])),
    ),
    "ObservedProperty": (
        "ObservedProperties",
        "SELECT id FROM observed_properties WHERE definition = %s ORDER BY id LIMIT 1",
        lambda observed: (observed["definition"],),
    ),
}


async def register(store: Store, batch: Batch) -> None:
    """Apply a batch of descriptors in one transaction, with the log position. What is wrong in one Thing harms no other.

    Raises `PositionMoved`, `Unavailable`.
    """
    async with store.transaction() as transaction:
        await transaction.lock_catalogue()
        receipts: list[Receipt] = []
        rejections: list[NewRejection] = []
        for event in batch.events:
            for index, payload, error in await _register(transaction, event.headers["gateway"], event):
                reason = Reason(error.reason)
                rejections.append(NewRejection(len(receipts), index, reason, error.detail, payload=payload))
                receipts.append(_receipt(batch, event))
        await transaction.save(_accounting(batch, receipts, rejections))


async def status(store: Store, batch: Batch, ends: Mapping[int, int] | None = None) -> None:
    """Keep what gateways and bridges last said of themselves, and what gateways say of their Tasks.

    ends: where the packs' partitions end now, if known: what a gateway has no more is before that, or missing.
    Raises `PositionMoved`, `Unavailable`.
    """
    async with store.transaction() as transaction:
        await transaction.lock_catalogue(shared=True)  # before the gateways' rows, in the order of `register`
        receipts: list[Receipt] = []
        rejections: list[NewRejection] = []
        for event in batch.events:
            at, topic = format_instant(event.time), event.headers.get("topic", "")
            try:
                if topic.endswith("/results"):
                    async with transaction.savepoint():
                        await keep_result(transaction, event.headers["gateway"], event.value, event.time)
                    continue
                state = json_object(event.value)
                text = storable(state)
            except Rejected as error:
                rejections.append(
                    NewRejection(len(receipts), -1, Reason(error.reason), error.detail, payload=event.value)
                )
                receipts.append(_receipt(batch, event))
                continue
            if "/bridges/" in topic:
                await transaction.execute(
                    # `at` is the store's clock, as of every service; the bridge's own is beside it.
                    "INSERT INTO services VALUES (%s, %s::jsonb || jsonb_build_object('clock', %s), now())"
                    " ON CONFLICT (name) DO UPDATE SET state = excluded.state, at = excluded.at",
                    ("ingest " + topic.rpartition("/")[2], text, event.time / SECOND),
                )
            else:
                await transaction.execute(
                    "INSERT INTO gateways (name, status, status_at) VALUES (%s, %s::jsonb, %s)"
                    # The last will says only that it is gone: what its outbox held stays known.
                    " ON CONFLICT (name) DO UPDATE SET status = coalesce(gateways.status, '{}') || excluded.status,"
                    " status_at = excluded.status_at",
                    (event.headers["gateway"], text, at),
                )
                if outbox := _outbox(state):
                    told = (event.headers["gateway"], *outbox, text, text, at, text_of(ends))
                    await transaction.execute(_REPORT, told)
                if state.get("state") == "online":
                    await send_again(transaction, event.headers["gateway"])
        await transaction.save(_accounting(batch, receipts, rejections))


_REPORT = """
INSERT INTO outboxes VALUES (%s, %s, %s, reported_ranges(%s::jsonb, 'pending'), reported_ranges(%s::jsonb, 'gone'), %s,
    nullif(%s::jsonb, 'null'))
ON CONFLICT (gateway, epoch) DO UPDATE SET last = excluded.last, pending = excluded.pending, gone = excluded.gone,
    at = excluded.at, ends = excluded.ends
"""


def _outbox(said: Json) -> tuple[int, int] | None:
    """Epoch and last number of the outbox that a status tells of; None where it does not."""
    outbox = said.get("outbox")
    if not isinstance(outbox, Mapping):
        return None
    epoch, last = outbox.get("epoch"), outbox.get("last")
    if type(epoch) is not int or type(last) is not int:
        return None
    return (epoch, last) if 1 <= epoch <= LARGEST_NUMBER and 0 <= last <= LARGEST_NUMBER else None


def _accounting(batch: Batch, receipts: Sequence[Receipt], rejections: Sequence[NewRejection]) -> Write:
    spans = [Span(batch.topic, batch.partition, batch.before, batch.after)]
    return bookkeeping(receipts=receipts, rejections=rejections, spans=spans)


def _receipt(batch: Batch, event: Event) -> Receipt:
    return Receipt(
        event.headers["gateway"],
        0,
        0,
        Topic(batch.topic),
        batch.partition,
        event.offset,
        event.time,
        records=1,
    )


async def _register(
    transaction: Transaction, gateway: str, event: Event
) -> list[tuple[int, bytes, Rejected]]:
    """Apply one descriptor; return what was refused of it: a Thing's index and JSON, or -1 and the whole."""
    try:
        things = things_of(event.value)
    except Rejected as error:
        return [(-1, event.value, error)]
    rows = await transaction.fetch("SELECT descriptor FROM gateways WHERE name = %s", (gateway,))
    previous = {identity(thing): thing for thing in (rows[0][0] if rows and rows[0][0] else [])}
    applied: dict[str, Json] = {}
    listed: dict[str, str] = {}  # by stream name: the Thing
    refused: list[tuple[int, bytes, Rejected]] = []
    for index, thing in enumerate(things):
        before = previous.get(identity(thing))
        stands: Json | None = thing
        try:
            check_listed_once(thing, applied, listed)
            if thing != before:
                async with transaction.savepoint():
                    await _register_thing(transaction, gateway, thing, before or {}, event.time)
        except Rejected as error:
            refused.append((index, text_of(thing).encode(), error))
            stands = before
        if stands is not None:
            applied.setdefault(identity(thing), stands)
            listed |= dict.fromkeys(streams_of(stands), identity(thing))
    # Only now: a stream may have gone from one Thing to another.
    await _retire(transaction, {n for thing in previous.values() for n in streams_of(thing)} - listed.keys())
    rows = await transaction.fetch(
        "SELECT c.id FROM tasking_capabilities c JOIN things t ON t.id = c.thing_id"
        " WHERE t.gateway = %s AND coalesce(t.key, t.name) = ANY(%s)",
        (gateway, list(previous.keys() - applied)),
    )
    await _retire_capabilities(transaction, [row[0] for row in rows])
    await transaction.execute(
        "INSERT INTO gateways (name, descriptor, descriptor_at) VALUES (%s, %s::jsonb, %s) ON CONFLICT (name)"
        " DO UPDATE SET descriptor = excluded.descriptor, descriptor_at = excluded.descriptor_at",
        (gateway, text_of(list(applied.values())), format_instant(event.time)),
    )
    return refused


async def _register_thing(
    transaction: Transaction, gateway: str, thing: Json, before: Json, at: Micros
) -> None:
    draft = read_thing(thing)  # nothing of a Thing is written unless all of it is right
    key = key_of(thing)
    if key is not None:
        found = await transaction.fetch(
            "SELECT id, gateway, properties FROM things WHERE key = %s ORDER BY id", (key,)
        )
    else:
        found = await transaction.fetch(
            "SELECT id, gateway, properties FROM things WHERE gateway = %s AND name = %s AND key IS NULL ORDER BY id",
            (gateway, thing["name"]),
        )
    if not found:
        if not draft.links.get("Locations"):
            raise Rejected(Reason.MALFORMED, f"the Thing {thing['name']!r} needs a Location")
        body = {name: value for name, value in thing.items() if name not in _APART}
        thing_id = await transaction.create("Things", body, now=at)
        await transaction.execute("UPDATE things SET gateway = %s WHERE id = %s", (gateway, thing_id))
    else:
        thing_id, owner, stored = found[0]
        _check_owner(gateway, owner, stored, f"the Thing {identity(thing)!r}")
        changes = differences(thing, before, _THING)
        if owner is None:  # it came through the API: the first gateway to register it is its owner
            changes["gateway"] = gateway
        await _set(transaction, "things", thing_id, changes)
        if "Locations" in thing and thing["Locations"] != before.get("Locations"):
            await _move(transaction, thing_id, thing["Locations"], at)
    streams, old = streams_of(thing), streams_of(before)
    for name, datastream in streams.items():
        if datastream != old.get(name):
            await _register_stream(transaction, gateway, thing_id, name, datastream, old.get(name, {}))
    await _register_capabilities(transaction, thing_id, capabilities_of(thing), capabilities_of(before))


def _check_owner(gateway: str, owner: str | None, properties: Any, what: str) -> None:
    listed = properties.get("gateways") if isinstance(properties, Mapping) else None
    others = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    if gateway != owner and gateway not in others and (owner or others):
        raise Rejected(Reason.NOT_YOURS, f"{what} belongs to another gateway")


async def _move(transaction: Transaction, thing_id: int, locations: Sequence[Json], at: Micros) -> None:
    """Give a Thing other Locations, and a HistoricalLocation from then on, unless it is there already.

    A Thing that has a later HistoricalLocation, because its gateway's clock is ahead, stays there.
    """
    if not locations:
        raise Rejected(Reason.MALFORMED, "a Thing needs at least one Location")
    here = {
        i for (i,) in await transaction.fetch("SELECT location_id FROM things_locations WHERE thing_id = %s", (thing_id,))
    }  # fmt: skip
    ids = {await _location(transaction, location, here, at) for location in locations}
    if ids == here:
        return
    ((history, newest),) = await transaction.fetch(
        "INSERT INTO historical_locations (time, thing_id) VALUES (%(at)s, %(thing)s) RETURNING id, NOT EXISTS"
        " (SELECT FROM historical_locations h WHERE h.thing_id = %(thing)s AND h.time > %(at)s)",
        {"at": format_instant(at), "thing": thing_id},
    )
    if newest:
        await transaction.execute("DELETE FROM things_locations WHERE thing_id = %s", (thing_id,))
    for location in sorted(ids):
        if newest:
            await transaction.execute("INSERT INTO things_locations VALUES (%s, %s)", (thing_id, location))
        await transaction.execute(
            "INSERT INTO historical_locations_locations VALUES (%s, %s)", (history, location)
        )


async def _location(transaction: Transaction, location: Json, here: Collection[int], at: Micros) -> int:
    """The id of a Location: a link's, that of an equal one where the Thing is, else a new one's."""
    if "@iot.id" in location:
        return int(location["@iot.id"])
    equal = await transaction.fetch(
        "SELECT id FROM locations WHERE id = ANY(%s) AND name = %s AND description = %s AND encoding_type = %s"
        " AND location = %s::jsonb ORDER BY id LIMIT 1",
        (
            list(here), location["name"], location["description"], location["encodingType"],
            text_of(location["location"]),
        ),
    )  # fmt: skip
    return int(equal[0][0]) if equal else await transaction.create("Locations", location, now=at)


async def _register_stream(
    transaction: Transaction, gateway: str, thing_id: int, name: str, datastream: Json, before: Json
) -> None:
    found = await transaction.fetch(
        "SELECT d.id, t.id, t.gateway, t.properties FROM datastreams d JOIN things t ON t.id = d.thing_id"
        " WHERE d.stream_name = %s",
        (name,),
    )
    if found:
        datastream_id, its_thing, owner, properties = found[0]
        _check_owner(gateway, owner, properties, f"the stream {name!r}")
        changed = differences(datastream, before, tuple(_DATASTREAM))
        changes = {_DATASTREAM[key]: value for key, value in changed.items()}
        if not before and its_thing != thing_id:  # taken from one Thing to another
            changes["thing_id"] = thing_id
        for column, kind in (("sensor_id", "Sensor"), ("observed_property_id", "ObservedProperty")):
            if datastream[kind] != before.get(kind):
                changes[column] = await _shared(transaction, kind, datastream[kind])
        await _set(transaction, "datastreams", datastream_id, changes)
        return
    links = {
        kind: {"@iot.id": await _shared(transaction, kind, datastream[kind])}
        for kind in ("Sensor", "ObservedProperty")
    }
    await transaction.create("Datastreams", datastream | links | {"Thing": {"@iot.id": thing_id}})


async def _register_capabilities(
    transaction: Transaction, thing_id: int, capabilities: Mapping[str, Json], before: Mapping[str, Json]
) -> None:
    """Create the TaskingCapabilities of a Thing, or apply what differs; keep those no longer listed, marked inactive."""
    rows = await transaction.fetch(
        "SELECT coalesce(properties ->> 'key', name), id FROM tasking_capabilities WHERE thing_id = %s ORDER BY id DESC",
        (thing_id,),
    )
    stored: dict[str, int] = dict(rows)
    for key, capability in capabilities.items():
        old = before.get(key, {})
        if capability == old:
            continue
        if key not in stored:
            links = {
                "Actuator": {"@iot.id": await _shared(transaction, "Actuator", capability["Actuator"])},
                "Thing": {"@iot.id": thing_id},
            }
            await transaction.create("TaskingCapabilities", capability | links)
            continue
        changed = differences(capability, old, tuple(_CAPABILITY))
        changes = {_CAPABILITY[name]: value for name, value in changed.items()}
        if capability["Actuator"] != old.get("Actuator"):
            changes["actuator_id"] = await _shared(transaction, "Actuator", capability["Actuator"])
        await _set(transaction, "tasking_capabilities", stored[key], changes)
    gone = [stored[key] for key in before.keys() - capabilities.keys() if key in stored]
    await _retire_capabilities(transaction, gone)


async def _retire_capabilities(transaction: Transaction, ids: Sequence[int]) -> None:
    """Keep TaskingCapabilities that are no longer listed, marked inactive."""
    if ids:
        await transaction.execute(
            "UPDATE tasking_capabilities SET properties = coalesce(properties, '{}') || '{\"active\": false}'"
            " WHERE id = ANY(%s)",
            (ids,),
        )


async def _shared(transaction: Transaction, kind: str, entity: Json) -> int:
    """The id of a Sensor, ObservedProperty or Actuator: a link's, that of one that others have too, else a new one's."""
    if "@iot.id" in entity:
        return int(entity["@iot.id"])
    set_name, query, parameters = _SHARED[kind]
    rows = await transaction.fetch(query, parameters(entity))
    return int(rows[0][0]) if rows else await transaction.create(set_name, entity)


async def _set(transaction: Transaction, table: str, row: int, changes: Mapping[str, Any]) -> None:
    for column, value in changes.items():
        document = column in _JSONB
        await transaction.execute(
            f"UPDATE {table} SET {column} = %s{'::jsonb' if document else ''} WHERE id = %s",  # noqa: S608
            (text_of(value) if document and value is not None else value, row),
        )


async def _retire(transaction: Transaction, streams: Collection[str]) -> None:
    """Keep Datastreams that are no longer listed, marked inactive."""
    if streams:
        await transaction.execute(
            "UPDATE datastreams SET properties = properties || '{\"active\": false}' WHERE stream_name = ANY(%s)",
            (sorted(streams),),
        )
