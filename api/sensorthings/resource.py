"""Resource paths (OGC 18-088 §9.2): a URL's path read into steps from set to set, and a property or a reference."""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from api.sensorthings.errors import RequestError, not_found
from api.sensorthings.expressions import IDS
from citylab.entities import ENTITY_TYPES, SETS, EntityType, EntityTypes, Kind, Property, Relation, target

_SEGMENT = re.compile(r"([^()\[\]]+)(?:\((\d{1,19})\))?")
_MEMBER = re.compile(r"([^\[\]]+)((?:\[\d{1,9}\])*)")
_LARGEST_ID = 2**63 - 1
_MOST_STEPS = 30


@dataclass(frozen=True, slots=True)
class Step:
    """One step: a set, or a relation from the entity before it. id: position among the path's ids, if one is given."""

    entity_type: EntityType
    relation: Relation | None
    id: int | None = None

    @property
    def single(self) -> bool:
        """Whether it leads to one entity."""
        return self.id is not None or (self.relation is not None and not self.relation.many)


@dataclass(frozen=True, slots=True)
class Resource:
    """What a path names. shape: the path without its ids, by which compiled statements are kept.

    property: with the members below it, and the name of the answer's key; or "id".
    """

    shape: str
    steps: tuple[Step, ...]
    ids: tuple[int, ...]
    of_property: Property | None = None
    of_id: bool = False
    members: tuple[str | int, ...] = ()
    key: str = ""
    value: bool = False
    reference: bool = False

    @property
    def entity_type(self) -> EntityType:
        """The type of the last step."""
        return self.steps[-1].entity_type

    @property
    def whole(self) -> bool:
        """Whether it is an entity or a collection, and no part or reference of one."""
        return not (self.reference or self.of_id or self.of_property is not None)


def read_resource(path: str, types: EntityTypes = ENTITY_TYPES) -> Resource:
    """Read the path below the service's root, percent-encoded. Raises `RequestError` 404 for one that names nothing."""
    segments = [_decoded(segment) for segment in path.strip("/").split("/")]
    if len(segments) > _MOST_STEPS:
        raise not_found("the path is too long")
    steps: list[Step] = []
    ids: list[int] = []
    rest: list[str] = []
    for i, segment in enumerate(segments):
        step = _step(steps[-1] if steps else None, segment, ids, types)
        if step is None:
            rest = segments[i:]
            break
        steps.append(step)
    if not steps:
        sets = ", ".join(t.set_name for t in types.values())
        raise not_found(f"there is no set {segments[0]!r}; the sets are {sets}")
    shape = "/".join(_shape_of(step) for step in steps) + "".join(f"/{r}" for r in rest)
    return _tail(shape, tuple(steps), tuple(ids), rest)


def _step(before: Step | None, segment: str, ids: list[int], types: EntityTypes) -> Step | None:
    match = _SEGMENT.fullmatch(segment)
    name = match[1] if match else segment.partition("(")[0]
    relation = None
    if before is None:
        entity_type = SETS.get(name)
        entity_type = types.get(entity_type.name) if entity_type else None
    else:
        relation = before.entity_type.relations.get(name)
        entity_type = target(relation, types) if relation else None
    if entity_type is None:
        return None
    if before is not None and not before.single:
        raise not_found(
            f"{name} cannot be reached from several {before.entity_type.set_name} at once: give an id"
        )
    if match is None:
        raise not_found(f"{segment!r}: an id is a whole number in parentheses")
    if match[2] is None:
        return Step(entity_type, relation)
    if relation is not None and not relation.many:
        raise not_found(f"{segment!r}: {name} is one entity and takes no id")
    number = int(match[2])
    if not 0 < number <= _LARGEST_ID:
        raise not_found(f"{segment!r} does not exist")
    ids.append(number)
    return Step(entity_type, relation, len(ids) - 1)


def _shape_of(step: Step) -> str:
    name = step.relation.name if step.relation else step.entity_type.set_name
    return name if step.id is None else f"{name}()"


def _tail(shape: str, steps: tuple[Step, ...], ids: tuple[int, ...], rest: list[str]) -> Resource:
    """What follows the entities: `$ref`, or a property with its members and `$value`."""
    resource = Resource(shape, steps, ids)
    if not rest:
        return resource
    if rest == ["$ref"]:
        return Resource(shape, steps, ids, reference=True)
    if rest[0].startswith("$"):
        raise RequestError(
            501 if rest[0] in {"$count", "$value"} else 404, f"{rest[0]} is not supported here"
        )
    if not steps[-1].single:
        raise not_found(f"{steps[-1].entity_type.set_name} has no {rest[0]!r}: give an id")
    value = rest[-1] == "$value"
    names = rest[:-1] if value else rest
    entity_type = steps[-1].entity_type
    members: list[str | int] = []
    for name in names:
        match = _MEMBER.fullmatch(name)
        if match is None or name.startswith("$"):
            raise not_found(f"{name!r} names nothing")
        members.append(match[1])
        members += [int(index) for index in re.findall(r"\d+", match[2])]
    first = str(members.pop(0))
    if first in IDS and not members:
        return Resource(shape, steps, ids, of_id=True, key="@iot.id", value=value)
    known = entity_type.properties.get(first)
    if known is None:
        raise not_found(f"{entity_type.name} has no property {first!r}")
    if members and known.kind not in {Kind.JSON, Kind.OBJECT, Kind.ARRAY, Kind.RESULT, Kind.QUALITY}:
        raise not_found(f"{first} has no members")
    return Resource(shape, steps, ids, of_property=known, members=tuple(members), key=names[-1], value=value)


def _decoded(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise not_found("the path is not UTF-8 once its percent signs are decoded") from None
    if "\0" in text:
        raise not_found("the path holds the character NUL")
    return text
