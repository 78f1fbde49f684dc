"""Descriptors and statuses: what a gateway says of itself becomes Things, Datastreams and its state.

A descriptor is compared with the same gateway's previous one and only differences are applied, so that a redelivery
does not undo what was edited through the API.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from citylab.errors import Rejected
from citylab.model import Batch, Event, Micros, Reason, Topic
from citylab.ports import Store, Transaction
from citylab.senml import NAME
from citylab.times import format_instant
from citylab.writes import NewRejection, Receipt, Span, Write, no_rows

Json = dict[str, Any]
_THING = ("name", "description", "properties")
_DATASTREAM = {
    "name": "name",
    "description": "description",
    "observationType": "observation_type",
    "unitOfMeasurement": "unit_of_measurement",
    "properties": "properties",
}
_DOCUMENTS = frozenset({"unitOfMeasurement", "properties"})


async def register(store: Store, batch: Batch) -> None:
    """Apply a batch of descriptors in one transaction, with the log position. What is wrong in one Thing harms no other.

    Raises `PositionMoved`, `Unavailable`.
    """
    async with store.transaction() as transaction:
        await transaction.lock_catalogue()
        receipts: list[Receipt] = []
        rejections: list[NewRejection] = []
        for event in batch.events:
            for error in await _register(transaction, event.headers["gateway"], event):
                rejections.append(
                    NewRejection(len(receipts), -1, Reason(error.reason), error.detail, payload=event.value)
                )
                receipts.append(_receipt(batch, event))
        await transaction.save(_accounting(batch, receipts, rejections))


async def status(store: Store, batch: Batch) -> None:
    """Keep what gateways and bridges last said of themselves. Raises `PositionMoved`, `Unavailable`."""
    async with store.transaction() as transaction:
        receipts: list[Receipt] = []
        rejections: list[NewRejection] = []
        for event in batch.events:
            at = format_instant(event.time)
            try:
                text = msgspec.json.encode(_object(event.value)).decode()
            except Rejected as error:
                rejections.append(
                    NewRejection(len(receipts), -1, Reason(error.reason), error.detail, payload=event.value)
                )
                receipts.append(_receipt(batch, event))
                continue
            topic = event.headers.get("topic", "")
            if "/bridges/" in topic:
                await transaction.execute(
                    "INSERT INTO services VALUES (%s, %s::jsonb, %s)"
                    " ON CONFLICT (name) DO UPDATE SET state = excluded.state, at = excluded.at",
                    ("ingest " + topic.rpartition("/")[2], text, at),
                )
            else:
                await transaction.execute(
                    "INSERT INTO gateways (name, status, status_at) VALUES (%s, %s::jsonb, %s)"
                    # The last will says only that it is gone: what its outbox held stays known.
                    " ON CONFLICT (name) DO UPDATE SET status = coalesce(gateways.status, '{}') || excluded.status,"
                    " status_at = excluded.status_at",
                    (event.headers["gateway"], text, at),
                )
        await transaction.save(_accounting(batch, receipts, rejections))


def _accounting(batch: Batch, receipts: Sequence[Receipt], rejections: Sequence[NewRejection]) -> Write:
    rows, receipt, record = no_rows()
    spans = [Span(batch.topic, batch.partition, batch.before, batch.after)]
    return Write(
        rows=rows, receipt=receipt, record=record, receipts=receipts, rejections=rejections, spans=spans
    )


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


def _object(payload: bytes) -> Json:
    try:
        return msgspec.json.decode(payload, type=Json)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.MALFORMED, f"not a JSON object: {error}") from error


def things_of(payload: bytes) -> list[Json]:
    """The Things of a descriptor: one, or an array of them. Raises `Rejected("malformed")`."""
    if payload[:1] != b"[":
        return [_object(payload)]
    try:
        return msgspec.json.decode(payload, type=list[Json])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.MALFORMED, f"a descriptor is a Thing or an array of Things: {error}") from error


def identity(thing: Json) -> str:
    """By what a Thing is known again: `properties.key`, else its name."""
    properties = thing.get("properties")
    key = properties.get("key") if isinstance(properties, dict) else None
    return str(key if key is not None else thing.get("name"))


def differences(new: Json, old: Json, keys: Sequence[str]) -> Json:
    """What of `keys` is new or has changed."""
    return {key: new[key] for key in keys if key in new and (key not in old or new[key] != old[key])}


def stream_name(datastream: Json) -> str:
    """The stream name of a descriptor's Datastream. Raises `Rejected("malformed")`."""
    properties = datastream.get("properties")
    name = properties.get("streamName") if isinstance(properties, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Rejected(
            Reason.MALFORMED,
            f"the Datastream {datastream.get('name')!r} needs properties.streamName, an ASCII letter or digit followed"
            f" by those and - : . / _ (RFC 8428 §4.5.1), not {name!r}",
        )
    return name


def streams_of(thing: Json) -> dict[str, Json]:
    """A Thing's Datastreams by stream name. Raises `Rejected("malformed")`."""
    datastreams = thing.get("Datastreams", [])
    if not isinstance(datastreams, list) or not all(isinstance(d, dict) for d in datastreams):
        raise Rejected(
            Reason.MALFORMED, f"the Datastreams of the Thing {thing.get('name')!r} are an array of objects"
        )
    return {stream_name(datastream): datastream for datastream in datastreams}


async def _register(transaction: Transaction, gateway: str, event: Event) -> list[Rejected]:
    """Apply one descriptor; return what was refused of it."""
    try:
        things = things_of(event.value)
    except Rejected as error:
        return [error]
    rows = await transaction.fetch("SELECT descriptor FROM gateways WHERE name = %s", (gateway,))
    previous = {identity(thing): thing for thing in (rows[0][0] if rows and rows[0][0] else [])}
    applied: list[Json] = []
    refused: list[Rejected] = []
    for thing in things:
        before = previous.pop(identity(thing), None)
        if thing != before:
            try:
                async with transaction.savepoint():
                    await _register_thing(transaction, gateway, thing, before or {}, event.time)
            except Rejected as error:
                refused.append(error)
                if before is not None:
                    applied.append(before)
                continue
        applied.append(thing)
    for gone in previous.values():
        await _retire(transaction, streams_of(gone))
    await transaction.execute(
        "INSERT INTO gateways (name, descriptor, descriptor_at) VALUES (%s, %s::jsonb, %s) ON CONFLICT (name)"
        " DO UPDATE SET descriptor = excluded.descriptor, descriptor_at = excluded.descriptor_at",
        (gateway, _text(applied), format_instant(event.time)),
    )
    return refused


async def _register_thing(
    transaction: Transaction, gateway: str, thing: Json, before: Json, at: Micros
) -> None:
    properties = thing.get("properties")
    key = properties.get("key") if isinstance(properties, dict) else None
    if key is not None:
        found = await transaction.fetch(
            "SELECT id, gateway, properties FROM things WHERE key = %s", (str(key),)
        )
    else:
        found = await transaction.fetch(
            "SELECT id, gateway, properties FROM things WHERE gateway = %s AND name = %s AND key IS NULL",
            (gateway, str(thing.get("name"))),
        )
    if not found:
        if not thing.get("Locations"):
            raise Rejected(Reason.MALFORMED, f"the Thing {thing.get('name')!r} needs a Location")
        body = {name: value for name, value in thing.items() if name != "Datastreams"}
        thing_id = await transaction.create("Things", body, now=at)
        await transaction.execute("UPDATE things SET gateway = %s WHERE id = %s", (gateway, thing_id))
    else:
        thing_id, owner, stored = found[0]
        _check_owner(gateway, owner, stored, f"the Thing {identity(thing)!r}")
        changed = differences(thing, before, _THING)
        for name, value in changed.items():
            await transaction.execute(
                f"UPDATE things SET {name} = %s{'::jsonb' if name == 'properties' else ''} WHERE id = %s",  # noqa: S608
                (_text(value) if name == "properties" else value, thing_id),
            )
        if "Locations" in differences(thing, before, ("Locations",)):
            await _move(transaction, thing_id, thing["Locations"], at)
    streams, old = streams_of(thing), streams_of(before)
    for name, datastream in streams.items():
        if datastream != old.get(name):
            await _register_stream(transaction, gateway, thing_id, name, datastream, old.get(name, {}))
    await _retire(transaction, {name: d for name, d in old.items() if name not in streams})


def _check_owner(gateway: str, owner: str | None, properties: Any, what: str) -> None:
    listed = properties.get("gateways") if isinstance(properties, Mapping) else None
    allowed = {owner, *(listed if isinstance(listed, list) else [])} - {None}
    if allowed and gateway not in allowed:
        raise Rejected(Reason.NOT_YOURS, f"{what} belongs to another gateway")


async def _move(transaction: Transaction, thing_id: int, locations: Any, at: Micros) -> None:
    """Give a Thing other Locations, and a HistoricalLocation from then on."""
    if not isinstance(locations, list) or not locations:
        raise Rejected(Reason.MALFORMED, "Locations is an array of at least one Location")
    ids = [await transaction.create("Locations", location, now=at) for location in locations]
    await transaction.execute("DELETE FROM things_locations WHERE thing_id = %s", (thing_id,))
    ((history,),) = await transaction.fetch(
        "INSERT INTO historical_locations (time, thing_id) VALUES (%s, %s) RETURNING id",
        (format_instant(at), thing_id),
    )
    for location in ids:
        await transaction.execute("INSERT INTO things_locations VALUES (%s, %s)", (thing_id, location))
        await transaction.execute(
            "INSERT INTO historical_locations_locations VALUES (%s, %s)", (history, location)
        )


async def _register_stream(
    transaction: Transaction, gateway: str, thing_id: int, name: str, datastream: Json, before: Json
) -> None:
    found = await transaction.fetch(
        "SELECT d.id, t.id, t.gateway, t.properties FROM datastreams d JOIN things t ON t.id = d.thing_id"
        " WHERE d.stream_name = %s",
        (name,),
    )
    if found:
        datastream_id, _, owner, properties = found[0]
        _check_owner(gateway, owner, properties, f"the stream {name!r}")
        for key, value in differences(datastream, before, tuple(_DATASTREAM)).items():
            document = key in _DOCUMENTS
            if document != isinstance(value, dict):
                raise Rejected(
                    Reason.MALFORMED,
                    f"{key} of the stream {name!r} is {'an object' if document else 'a text'}",
                )
            await transaction.execute(
                f"UPDATE datastreams SET {_DATASTREAM[key]} = %s{'::jsonb' if document else ''} WHERE id = %s",  # noqa: S608
                (_text(value) if document else value, datastream_id),
            )
        return
    body = dict(datastream) | {"Thing": {"@iot.id": thing_id}}
    body["Sensor"] = await _known(
        transaction,
        datastream.get("Sensor"),
        "SELECT id FROM sensors WHERE name = %s AND metadata = %s::jsonb ORDER BY id LIMIT 1",
        lambda sensor: (str(sensor.get("name")), _text(sensor.get("metadata"))),
    )
    body["ObservedProperty"] = await _known(
        transaction,
        datastream.get("ObservedProperty"),
        "SELECT id FROM observed_properties WHERE definition = %s ORDER BY id LIMIT 1",
        lambda observed: (str(observed.get("definition")),),
    )
    await transaction.create("Datastreams", body)


async def _known(transaction: Transaction, entity: Any, query: str, parameters: Any) -> Any:
    """A link to the Sensor or ObservedProperty that is shared with others, or what is to be created."""
    if (
        isinstance(entity, dict)
        and "@iot.id" not in entity
        and (rows := await transaction.fetch(query, parameters(entity)))
    ):
        return {"@iot.id": rows[0][0]}
    return entity


async def _retire(transaction: Transaction, streams: Mapping[str, Json]) -> None:
    """Keep Datastreams that are no longer listed, marked inactive."""
    if streams:
        await transaction.execute(
            "UPDATE datastreams SET properties = properties || '{\"active\": false}' WHERE stream_name = ANY(%s)",
            (list(streams),),
        )


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
