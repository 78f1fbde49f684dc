"""Which messages tell clients of an entity that was created or changed (OGC 18-088 §14.2), and the SQL that reads it.

A stock broker does not show who subscribes to what, so a closed set of plain topics is published: `Set`, and the
navigation collections that contain the entity; of a change also `Set(id)`, the properties that changed, and paths of one or
two steps that lead to it through a to-one relation. Nobody can wait for an id that is new, so nothing is published there: brokers remember every topic.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from citylab.entities import ENTITY_TYPES, OBSERVATION, EntityType, EntityTypes, Relation, target
from citylab.entity_json import entity
from citylab.mqtt_topics import ROOT
from citylab.policy import Visible

MOST_RELATED = 100  # topics a path that one change goes to, those of the newest entities

Announcement: TypeAlias = tuple[str, bytes]  # topic and payload

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Change(NamedTuple):
    """What was done to an entity. columns: those that have another value than before, None for a new entity."""

    entity_type: EntityType
    id: int
    columns: frozenset[str] | None

    @property
    def visible(self) -> bool:
        """Whether an entity as clients see it may have changed."""
        if not self.columns:
            return True
        own = {r.column for r in self.entity_type.relations.values() if not r.many}
        return bool(self.properties or own & self.columns)

    @property
    def properties(self) -> list[str]:
        """The names of the properties that have another value."""
        known = self.entity_type.properties.values()
        return [
            p.name
            for p in known
            if not p.computed and self.columns and not self.columns.isdisjoint(p.columns)
        ]


def coalesced(
    rows: Sequence[tuple[str, int, list[str] | None]], types: EntityTypes = ENTITY_TYPES
) -> list[Change]:
    """The changes that rows of `pending_announcements` tell of, one an entity, without those that nobody sees.

    types: the entities that are offered.
    """
    by_table = {t.table: t for t in types.values()}
    found: dict[tuple[str, int], set[str] | None] = {}
    for table, own, columns in rows:
        before = found.setdefault((table, own), set())
        found[table, own] = None if columns is None or before is None else before | set(columns)
    changes = [
        Change(by_table[table], own, None if columns is None else frozenset(columns))
        for (table, own), columns in found.items()
        if table in by_table
    ]
    return [change for change in changes if change.visible]


def reading(entity_type: EntityType, visible: Visible, types: EntityTypes = ENTITY_TYPES) -> str:
    """SQL of entities by the parameter `ids`: id, JSON as HTTP answers it, topics below `v1.1/`.

    The topics are of the collections that contain the entity, and those of which only changes are told (`_references`).
    types: the entities that are offered.
    """
    condition = visible(entity_type, "e")
    return (
        f"SELECT e.id, {entity(entity_type, 'e', 'l')}, {_collections(entity_type)},"
        f" {_references(entity_type, types)} FROM {entity_type.table} e LEFT JOIN latest l ON l.datastream_id = e.id"
        f" WHERE e.id = ANY(%(ids)s::int8[]) AND {condition}"
    )


def reading_observations(visible: Visible) -> str:
    """SQL of Observations by the parameters `datastreams`, `times` (µs) and `ids`, in their order: JSON and topics."""
    moment = "'epoch'::timestamptz + {} * interval '1 microsecond'"
    return (
        f"SELECT {entity(OBSERVATION, 'e', '')}, {_collections(OBSERVATION)}"
        " FROM unnest(%(datastreams)s::int8[], %(times)s::int8[], %(ids)s::int8[]) WITH ORDINALITY AS k (d, t, i, n)"
        f" JOIN observations e ON e.datastream_id = k.d AND e.phenomenon_time = {moment.format('k.t')} AND e.id = k.i"
        # for the planner, which leaves out the chunks of other times
        f" AND e.phenomenon_time BETWEEN {moment.format('%(first)s::int8')} AND {moment.format('%(last)s::int8')}"
        f" WHERE {visible(OBSERVATION, 'e')} ORDER BY k.n"
    )


def of_change(
    change: Change, json: str, collections: Collection[str], references: Collection[str]
) -> Iterator[Announcement]:
    """The messages that tell of an entity. Of an Observation those of its collections go out with the update message."""
    payload, set_name = json.encode(), change.entity_type.set_name
    if change.entity_type is not OBSERVATION:
        yield from of_collections(set_name, payload, collections)
    if change.columns is None:
        return
    own = f"{set_name}({change.id})"
    for topic in (own, *references):
        yield ROOT + topic, payload
    members = _members.decode(payload)
    for name in change.properties:
        value = bytes(members.get(name, b"null"))
        yield f"{ROOT}{own}/{name}", b'{"%s":%s}' % (name.encode(), value)


def of_collections(set_name: str, payload: bytes, collections: Collection[str]) -> Iterator[Announcement]:
    """The messages to the set and to the collections that contain an entity."""
    for topic in (set_name, *collections):
        yield ROOT + topic, payload


def _collections(entity_type: EntityType) -> str:
    """SQL of the topics of relations to many that lead to the row `e`."""
    parts = [
        _topics(target(r), r.inverse, f"({_ids(r, 'e')}) x")
        for r in entity_type.relations.values()
        if _inverse(r).many
    ]
    return " || ".join(parts) or "'{}'::text[]"


def _references(entity_type: EntityType, types: EntityTypes) -> str:
    """SQL of the topics of relations to one that lead to the row `e`, and of any relation that follows on one to one."""
    parts = []
    for relation in entity_type.relations.values():
        other = target(relation, types)
        if not _inverse(relation).many:
            parts.append(_topics(other, relation.inverse, f"({_ids(relation, 'e')}) x"))
        for before in other.relations.values():
            if not _inverse(before).many and target(before) != entity_type:
                path = f"{before.inverse}/{relation.inverse}"
                reached = f"({_ids(relation, 'e')}) y, LATERAL ({_ids(before, 'y')}) x"
                parts.append(_topics(target(before), path, reached))
    return " || ".join(parts) or "'{}'::text[]"


def _inverse(relation: Relation) -> Relation:
    return target(relation).relations[relation.inverse]


def _topics(holder: EntityType, path: str, rows: str) -> str:
    return f"ARRAY(SELECT '{holder.set_name}(' || x.id || ')/{path}' FROM {rows} LIMIT {MOST_RELATED})"


def _ids(relation: Relation, row: str) -> str:
    """SQL of the ids to which a relation of a row leads, the newest of many."""
    other = target(relation)
    if not relation.many:
        holds = relation.either.holds.format(row=row) if relation.either else "TRUE"
        return f"SELECT {row}.{relation.column} AS id WHERE {row}.{relation.column} IS NOT NULL AND {holds}"
    if relation.link:
        link = relation.link
        return (
            f"SELECT DISTINCT m.{link.other} AS id FROM {link.name} m WHERE m.{link.own} = {row}.id"
            f" ORDER BY 1 DESC LIMIT {MOST_RELATED}"
        )
    if other is OBSERVATION:  # of which there may be any number: the newest of each Datastream
        narrow, streams = relation.narrowed_by, f"{row}.id"
        if narrow:
            streams = f"SELECT n.{narrow.other} FROM {narrow.table} n WHERE n.{narrow.own} = {row}.id"
        return (
            "SELECT o.id FROM latest s JOIN observations o ON o.datastream_id = s.datastream_id"
            f" AND o.phenomenon_time = s.phenomenon_time AND o.id = s.id WHERE s.datastream_id IN ({streams})"
            f" AND o.{relation.column} = {row}.id LIMIT {MOST_RELATED}"
        )
    return f"SELECT o.id FROM {other.table} o WHERE o.{relation.column} = {row}.id ORDER BY 1 DESC LIMIT {MOST_RELATED}"
