"""Descriptors and statuses as gateways write them: read, and held against the entity table.

Pure: no connection, no clock.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from citylab.drafts import Draft, holds_nul, read_draft
from citylab.entities import SETS
from citylab.errors import Rejected
from citylab.model import Reason
from citylab.senml import NAME

Json = dict[str, Any]
# What a descriptor's entities hold of others. Anything else of a deep insert could reach what is not the gateway's.
_HOLDS: Mapping[str, frozenset[str]] = {
    "Thing": frozenset({"Locations", "Datastreams", "TaskingCapabilities"}),
    "Datastream": frozenset({"Sensor", "ObservedProperty"}),
    "TaskingCapability": frozenset({"Actuator"}),
}


def json_object(payload: bytes) -> Json:
    """Read a JSON object. Raises `Rejected("malformed")`."""
    try:
        return msgspec.json.decode(payload, type=Json)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.MALFORMED, f"not a JSON object: {error}") from error


def things_of(payload: bytes) -> list[Json]:
    """The Things of a descriptor: one, or an array of them. Raises `Rejected("malformed")`."""
    if payload.lstrip()[:1] != b"[":
        return [json_object(payload)]
    try:
        return msgspec.json.decode(payload, type=list[Json])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.MALFORMED, f"a descriptor is a Thing or an array of Things: {error}") from error


def identity(thing: Json) -> str:
    """By what a Thing is known again, or a TaskingCapability of one: `properties.key`, else its name."""
    key = key_of(thing)
    return str(thing.get("name")) if key is None else key


def key_of(thing: Json) -> str | None:
    """A Thing's `properties.key`, as the store has it: of whatever is no text, its JSON."""
    key = _key(thing)
    return key if key is None or isinstance(key, str) else text_of(key)


def _key(thing: Json) -> Any:
    properties = thing.get("properties")
    return properties.get("key") if isinstance(properties, dict) else None


def differences(new: Json, old: Json, keys: Sequence[str]) -> Json:
    """What of `keys` is new or has changed, None for what is gone."""
    return {key: new.get(key) for key in keys if new.get(key) != old.get(key)}


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
    streams = {stream_name(datastream): datastream for datastream in datastreams}
    if len(streams) < len(datastreams):
        raise Rejected(
            Reason.MALFORMED, f"two Datastreams of the Thing {thing.get('name')!r} have one streamName"
        )
    return streams


def capabilities_of(thing: Json) -> dict[str, Json]:
    """A Thing's TaskingCapabilities by `properties.key`, else name. Raises `Rejected("malformed")`."""
    capabilities = thing.get("TaskingCapabilities", [])
    if any("@iot.id" in capability for capability in capabilities):
        raise Rejected(Reason.MALFORMED, "a descriptor describes TaskingCapabilities, and links to none")
    found = {identity(capability): capability for capability in capabilities}
    if len(found) < len(capabilities):
        raise Rejected(
            Reason.MALFORMED,
            f"two TaskingCapabilities of the Thing {thing.get('name')!r} have one name or properties.key",
        )
    return found


def read_thing(thing: Json) -> Draft:
    """Hold a descriptor's Thing, with all that it holds, against the entity table. Raises `Rejected("malformed")`."""
    try:
        draft = read_draft(SETS["Things"], msgspec.json.encode(thing))
        _hold_only_ones_own(draft)
        if not isinstance(_key(thing), str | int | None):
            raise Rejected(Reason.MALFORMED, "properties.key is a text or a whole number")
    except Rejected as error:
        raise Rejected(error.reason, f"the Thing {thing.get('name')!r}: {error.detail}") from None
    return draft


def _hold_only_ones_own(draft: Draft) -> None:
    for name, targets in draft.links.items():
        if name not in _HOLDS.get(draft.entity_type.name, ()):
            raise Rejected(
                Reason.MALFORMED, f"a {draft.entity_type.name} in a descriptor does not come with its {name}"
            )
        for target in targets:
            if isinstance(target, Draft):
                _hold_only_ones_own(target)


def check_listed_once(thing: Json, applied: Mapping[str, Json], listed: Mapping[str, str]) -> None:
    """Refuse a Thing, or a stream of it, that the descriptor has listed before. Raises `Rejected("malformed")`.

    applied: Things by identity; listed: by stream name the Thing that has it.
    """
    if identity(thing) in applied:
        raise Rejected(Reason.MALFORMED, f"the Thing {identity(thing)!r} is listed twice")
    if twice := listed.keys() & streams_of(thing).keys():
        name = min(twice)
        raise Rejected(
            Reason.MALFORMED,
            f"the stream {name!r} of the Thing {identity(thing)!r} is listed in {listed[name]!r} already",
        )


def text_of(value: Any) -> str:
    """JSON text."""
    return msgspec.json.encode(value).decode()


def storable(value: Json) -> str:
    """JSON text that the store can keep. Raises `Rejected("malformed")`."""
    text = text_of(value)
    if holds_nul(text):
        raise Rejected(Reason.MALFORMED, "it holds the character NUL, which the store cannot keep")
    return text
