"""Documents that describe entities, read and checked against the entity table before anything is written.

Pure: the API's POST, MQTT creates and the registration of descriptors all come through here.
JSON values are kept as their text, so that `6.0` stays `6.0` and an integer of forty digits stays whole.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import msgspec

from citylab.entities import (
    ENTITY_TYPES,
    OBSERVATION,
    EntityType,
    EntityTypes,
    Kind,
    Property,
    Relation,
    target,
)
from citylab.errors import Rejected
from citylab.model import Micros, Reason
from citylab.times import parse_time

LARGEST_ID = 2**63 - 1

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)
_anything = msgspec.json.Decoder(float_hook=len)  # a number may be larger than a float64
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class Result:
    """An Observation's result: `number` is NaN where it is no (finite) number, `json` is its exact JSON text."""

    number: float
    json: str


# By kind: TEXT str; JSON, OBJECT, ARRAY and QUALITY their JSON text; INSTANT Micros; TIME (Micros, Micros or None);
# INTERVAL (Micros, Micros); RESULT Result. None is null.
Value: TypeAlias = "str | Micros | tuple[Micros, Micros | None] | Result | None"
Target: TypeAlias = "int | Draft"  # of a relation: an existing entity's id, or one to create


@dataclass(slots=True)
class Draft:
    """An entity that is to be created, with everything that is to be created or linked along with it.

    values: by property name, without those that were not given; links: by relation name;
    extra: values of columns that are no property, such as a Thing's `gateway`.
    """

    entity_type: EntityType
    values: dict[str, Value]
    links: dict[str, list[Target]]
    extra: dict[str, object] = field(default_factory=dict)


def read_draft(
    entity_type: EntityType,
    document: bytes,
    *,
    parent: Relation | None = None,
    types: EntityTypes = ENTITY_TYPES,
) -> Draft:
    """Read a document in which every relation may be a link by id or a new entity, to any depth, in both directions.

    parent: the relation under which it is created, for a document sent to a navigation link. The document may still
    name that parent by its id; whoever creates the entity compares the two. types: the table that is offered.
    Raises `Rejected` with reason `malformed` for JSON that is none, an unknown property, one that is missing.
    """
    return _draft(entity_type, _document(document), parent, types, nested=False, where="")


def holds_nul(text: str) -> bool:
    """Whether JSON text holds the character NUL, which PostgreSQL keeps in no text and no jsonb."""
    return "\\u0000" in text and _NUL.search(text) is not None


def read_changes(entity_type: EntityType, document: bytes, *, replace: bool = False) -> Draft:
    """Read what a PATCH changes of an entity (OGC 18-088 §10.3): values by property, and links by relation.

    A value of None unsets, or gives a defaulted property its default. replace: for a PUT, which names every mandatory
    property and unsets what it does not name. Related entities may only be linked; ids and other control information
    are ignored. Raises `Rejected` with reason `malformed`.
    """
    members = _document(document)
    values = _values(entity_type, members, "")
    if replace:
        _require(entity_type, values, "")
        for p in entity_type.properties.values():
            if p.given:
                values.setdefault(p.name, None)
    links = {
        name: _targets(relation, members[name], None, "")
        for name, relation in entity_type.relations.items()
        if name in members
    }
    for name in links:
        either = entity_type.relations[name].either
        if either is not None and either.other in links:
            _refuse("", f"{entity_type.name} has a {name} or a {either.other}, not both")
    return Draft(entity_type, values, links)


def attach(draft: Draft, relation: Relation, parent: int) -> None:
    """Tie a draft to the entity under whose navigation link it is created. Raises `Rejected` if it names another."""
    targets = draft.links.setdefault(relation.inverse, [])
    if not relation.link and targets and targets != [parent]:
        name = draft.entity_type.relations[relation.inverse].target
        _refuse("", f"the document names another {relation.inverse} than the {name}({parent}) it was sent to")
    if parent not in targets:
        targets.append(parent)


def is_plain_observation(draft: Draft) -> bool:
    """Whether it is an Observation that names its Datastream, and perhaps its feature, by id: nothing else is made."""
    links = draft.links
    return (
        draft.entity_type is OBSERVATION
        and "Datastream" in links
        and links.keys() <= {"Datastream", "FeatureOfInterest"}
        and all(isinstance(target, int) for targets in links.values() for target in targets)
    )


def _draft(
    entity_type: EntityType,
    members: Mapping[str, msgspec.Raw],
    parent: Relation | None,
    types: EntityTypes,
    *,
    nested: bool,
    where: str,
) -> Draft:
    values = _values(entity_type, members, where)
    _require(entity_type, values, where)
    links: dict[str, list[Target]] = {}
    of_parent = parent.inverse if parent is not None else None
    for name, relation in entity_type.relations.items():
        if relation.either is not None:
            other = relation.either.other
            both = members.keys() | {of_parent}
            if {name, other} <= both:
                _refuse(where, f"{entity_type.name} has a {other} or a {name}, not both")
            if both.isdisjoint({name, other}):
                _refuse(where, f"{entity_type.name} needs its {name} or its {other}: give its @iot.id")
        if name in members:
            if nested and parent is not None and name == parent.inverse and not relation.many:
                _refuse(where, f"{name} is the entity that this one stands in, and cannot be named again")
            links[name] = _targets(relation, members[name], types, where)
        elif relation.required and name != of_parent:
            _refuse(where, f"{entity_type.name} needs its {name}: give its @iot.id, or describe a new one")
    return Draft(entity_type, values, links)


def _values(entity_type: EntityType, members: Mapping[str, msgspec.Raw], where: str) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, raw in members.items():
        known = entity_type.properties.get(name)
        if known is None:
            if "@" not in name and name not in entity_type.relations:
                _refuse(where, f"{entity_type.name} has no property {name!r}")
        elif known.given:
            value = _value(known, raw, where)
            if known.check is not None and isinstance(value, str):
                try:
                    known.check(value)
                except ValueError as error:
                    _refuse(f"{where}{name}", str(error))
            if value is not None or not known.defaulted:
                values[name] = value
    return values


def _require(entity_type: EntityType, values: Mapping[str, Value], where: str) -> None:
    for p in entity_type.properties.values():
        if p.required and p.name not in values:
            _refuse(where, f"{entity_type.name} needs its {p.name}")


def _value(known: Property, raw: msgspec.Raw, where: str) -> Value:
    name = known.name
    if bytes(raw) == b"null" and known.kind is not Kind.RESULT:
        if known.required:
            _refuse(where, f"{name} must not be null")
        return None
    match known.kind:
        case Kind.TEXT:
            return _string(raw, name, where)
        case Kind.INSTANT | Kind.TIME | Kind.INTERVAL:
            return _time(known.kind, _string(raw, name, where), name, where)
        case Kind.RESULT:
            text = _json(raw, name, where)
            return Result(_number(text), text)
        case Kind.OBJECT:
            text = _json(raw, name, where)
            if not text.startswith("{"):
                _refuse(where, f"{name} must be a JSON object")
            return text
        case Kind.ARRAY:
            text = _json(raw, name, where)
            if not text.startswith("["):
                _refuse(where, f"{name} must be a JSON array")
            return text
        case _:
            return _json(raw, name, where)


def _string(raw: msgspec.Raw, name: str, where: str) -> str:
    try:
        text = _text.decode(raw)
    except msgspec.DecodeError:
        _refuse(where, f"{name} must be a string")
    if "\0" in text:
        _refuse(where, f"{name} holds the character NUL, which the store cannot keep")
    return text


def _time(kind: Kind, text: str, name: str, where: str) -> Value:
    try:
        start, end = parse_time(text)
    except ValueError as error:
        _refuse(where, f"{name}: {error}")
    if kind is Kind.TIME:
        return start, end
    if kind is Kind.INTERVAL:
        if end is None:
            _refuse(where, f"{name} must be an interval: start/end")
        return start, end
    if end is not None:
        _refuse(where, f"{name} must be an instant, not an interval")
    return start


def _json(raw: msgspec.Raw, name: str, where: str) -> str:
    text = bytes(raw).decode()
    try:
        _anything.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        _refuse(where, f"{name} is no JSON that can be kept: a lone surrogate, or too deep")
    if holds_nul(text):
        _refuse(where, f"{name} holds the character NUL, which the store cannot keep")
    return text


def _number(text: str) -> float:
    if text[0] not in "-0123456789":
        return math.nan
    number = float(text)
    return number if math.isfinite(number) else math.nan


def _targets(relation: Relation, raw: msgspec.Raw, types: EntityTypes | None, where: str) -> list[Target]:
    """What a relation leads to; types: None where entities may only be linked."""
    where = f"{where}{relation.name}"
    if not relation.many:
        return [_target(relation, raw, types, where)]
    try:
        elements = _elements.decode(raw)
    except msgspec.DecodeError:
        _refuse(where, "must be an array of entities")
    return [_target(relation, element, types, f"{where}[{i}]") for i, element in enumerate(elements)]


def _target(relation: Relation, raw: msgspec.Raw, types: EntityTypes | None, where: str) -> Target:
    try:
        members = _members.decode(raw)
    except msgspec.DecodeError:
        _refuse(where, 'must be an object: a new entity, or a link {"@iot.id": ...}')
    if "@iot.id" in members:
        return _id(members["@iot.id"], where)
    if types is None:
        _refuse(where, 'a related entity can only be linked here: {"@iot.id": ...}')
    return _draft(target(relation, types), members, relation, types, nested=True, where=f"{where}/")


def _id(raw: msgspec.Raw, where: str) -> int:
    try:
        number = msgspec.json.decode(raw, type=int, strict=False)
    except msgspec.DecodeError:
        number = 0
    if not 0 < number <= LARGEST_ID:
        _refuse(where, f"@iot.id {bytes(raw).decode()[:40]} is no id of this service")
    return number


def _document(document: bytes) -> dict[str, msgspec.Raw]:
    try:
        document.decode()
        return _members.decode(document)
    except UnicodeDecodeError as error:
        _refuse("", f"the document is not UTF-8: {error.reason} at byte {error.start}")
    except msgspec.ValidationError:
        _refuse("", "the document must be a JSON object")
    except msgspec.DecodeError as error:
        if re.search(rb"\\u[dD][89a-fA-F]", document):
            _refuse("", "the document is no JSON, or holds a lone surrogate, which no text can have")
        _refuse("", f"the document is no JSON: {error}")
    except RecursionError:
        _refuse("", "the document is nested too deeply")


def _refuse(where: str, what: str) -> NoReturn:
    where = where.rstrip("/")
    raise Rejected(Reason.MALFORMED, f"{where}: {what}" if where else what)
