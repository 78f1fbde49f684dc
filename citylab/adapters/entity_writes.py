"""Entities into the store: deep insert in both directions, with the entities that the platform makes by itself.

Everything happens in the transaction that is given, so that all of it is there or none. Observations go through the
one write path (`Transaction.save_observations`). Locks: the catalogue first, then things, then the rest by id.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from citylab.adapters.multi_datastreams import check_results, check_sizes, rank, refuse_another_property
from citylab.adapters.saving import CATALOGUE_LOCK
from citylab.adapters.tasks import begin, send
from citylab.columns import NO_TIME, Observations
from citylab.drafts import Draft, Result, Target, Value
from citylab.entities import (
    DATASTREAM,
    GEOJSON_ENCODINGS,
    HISTORICAL_LOCATION,
    LOCATION,
    MULTI_DATASTREAM,
    OBSERVATION,
    TASK,
    THING,
    EntityType,
    Kind,
    Relation,
    target,
)
from citylab.errors import Rejected
from citylab.model import Micros, Quality, Reason
from citylab.ports import Transaction
from citylab.times import format_instant

CASTS = {Kind.TEXT: "text", Kind.INSTANT: "timestamptz"}  # every other kind that is inserted here is jsonb


async def create(transaction: Transaction, draft: Draft, *, now: Micros) -> int:
    """Create an entity with all that its draft holds; return its id.

    now: the time of automatic HistoricalLocations, and the phenomenonTime of Observations that have none.
    Raises `Rejected` when a link's target does not exist, or an Observation has no feature and no Location to make
    one from.
    """
    return (await create_all(transaction, [draft], now=now))[0]


async def create_all(transaction: Transaction, drafts: Sequence[Draft], *, now: Micros) -> list[int]:
    """Create several entities in their order; return their ids."""
    await lock_catalogue(transaction, exclusive=any(map(_changes_catalogue, drafts)))
    insert = _Insert(transaction, now)
    places = [await insert.entity(draft) for draft in drafts]
    ids = await insert.save_observations()
    return [ids[place.row] if isinstance(place, _Row) else place for place in places]


async def lock_catalogue(transaction: Transaction, *, exclusive: bool) -> None:
    """Keep streams and Locations from changing until the transaction ends; exclusive: in order to change them."""
    shared = "" if exclusive else "_shared"
    await transaction.fetch(f"SELECT pg_advisory_xact_lock{shared}(%s)", (CATALOGUE_LOCK,))


async def require(transaction: Transaction, entity_type: EntityType, ids: Iterable[int]) -> None:
    """Raise `Rejected` unless all these entities exist; keep them from being deleted until the transaction ends."""
    wanted = sorted(set(ids))
    lock = "" if entity_type is OBSERVATION else " FOR KEY SHARE"
    rows = await transaction.fetch(
        f"SELECT id FROM {entity_type.table} WHERE id = ANY(%s::int8[]) ORDER BY id{lock}",
        (wanted,),
    )
    missing = set(wanted) - {row[0] for row in rows}
    if missing:
        raise Rejected(Reason.MALFORMED, f"{entity_type.set_name}({min(missing)}) does not exist")


async def move_thing(
    transaction: Transaction, thing: int, locations: Sequence[int], *, time: Micros
) -> int | None:
    """Make these the Locations of a Thing and keep that in a HistoricalLocation, whose id is returned.

    Returns None, and changes nothing, when they are its Locations already.
    """
    if not await place(transaction, thing, locations):
        return None
    (row,) = await transaction.fetch(
        "INSERT INTO historical_locations (thing_id, time) VALUES (%s, %s::timestamptz) RETURNING id",
        (thing, format_instant(time)),
    )
    await link(transaction, HISTORICAL_LOCATION.relations["Locations"], int(row[0]), locations)
    return int(row[0])


async def feature_of_location(transaction: Transaction, location: int) -> int:
    """Return the FeatureOfInterest made from a Location, made now if there is none; concurrent callers get the same."""
    for _ in range(2):  # the second round reads what another transaction has just committed
        rows = await transaction.fetch(
            "SELECT id FROM features_of_interest WHERE location_id = %s", (location,)
        )
        if not rows:
            rows = await transaction.fetch(
                "INSERT INTO features_of_interest (name, description, encoding_type, feature, location_id)"
                " SELECT name, description, encoding_type, location, id FROM locations WHERE id = %s"
                " ON CONFLICT (location_id) DO NOTHING RETURNING id",
                (location,),
            )
        if rows:
            return int(rows[0][0])
    raise Rejected(Reason.CONFLICT, f"Locations({location}) was deleted meanwhile")


async def default_features(transaction: Transaction, datastreams: Sequence[int]) -> dict[int, int]:
    """The features of Observations that name none, by Datastream or MultiDatastream, made where they are missing.

    It is the one of a Location of the Thing, a GeoJSON one if there are several; Datastreams whose Thing has no Location
    are left out.
    """
    rows = await transaction.fetch(
        "SELECT d.id, l.id, (SELECT f.id FROM features_of_interest f WHERE f.location_id = l.id)"
        " FROM (SELECT id, thing_id FROM datastreams UNION ALL SELECT id, thing_id FROM multi_datastreams) d"
        " CROSS JOIN LATERAL (SELECT l.id FROM things_locations t JOIN locations l"
        " ON l.id = t.location_id WHERE t.thing_id = d.thing_id"
        " ORDER BY l.encoding_type = ANY(%s) DESC, l.id LIMIT 1) l WHERE d.id = ANY(%s::int8[])",
        (list(GEOJSON_ENCODINGS), datastreams),
    )
    made: dict[int, int] = {}
    by_datastream: dict[int, int] = {}
    for datastream, location, feature in sorted(rows, key=lambda row: row[1]):
        if feature is None and location not in made:
            made[location] = await feature_of_location(transaction, location)
        by_datastream[datastream] = feature or made[location]
    return by_datastream


@dataclass(frozen=True, slots=True)
class _Row:
    """An Observation that is to be saved with all others at the end: its index among them."""

    row: int


@dataclass(slots=True)
class _Insert:
    """One insertion: what is to be saved at its end."""

    transaction: Transaction
    now: Micros
    observations: list[tuple[Draft, int, int]] = field(default_factory=list)  # datastream, feature or 0
    multi: list[bool] = field(default_factory=list)  # whether that datastream is a MultiDatastream

    async def entity(self, draft: Draft) -> "int | _Row":
        """Insert an entity after what it refers to and before what refers to it."""
        references = {}
        for name, targets in draft.links.items():
            relation = draft.entity_type.relations[name]
            if not relation.many:
                references[relation.column] = await self._reference(relation, targets[0])
        if draft.entity_type is OBSERVATION:
            self.observations.append(
                (draft, references["datastream_id"], references.get("feature_of_interest_id", 0))
            )
            self.multi.append("MultiDatastream" in draft.links)
            return _Row(len(self.observations) - 1)
        columns: dict[str, Any] = references | draft.extra
        command = None
        if draft.entity_type is TASK:
            command, kept = await begin(
                self.transaction, draft, columns["tasking_capability_id"], now=self.now
            )
            columns |= kept
        own = await self._row(draft, columns)
        if command is not None:
            await send(self.transaction, own, command)
        for name, targets in draft.links.items():
            relation = draft.entity_type.relations[name]
            if relation.link:
                await self._partners(draft, relation, own, targets)
            elif relation.many:
                await self._children(relation, own, targets)
        if draft.entity_type is HISTORICAL_LOCATION:
            await follow_history(self.transaction, own, columns["thing_id"])
        return own

    async def save_observations(self) -> list[int]:
        """Save the Observations that were met; return their ids."""
        if not self.observations:
            return []
        multi = np.array(self.multi, np.bool_)
        datastreams = np.array([datastream for _, datastream, _ in self.observations], np.int64)
        rows = observation_columns([draft for draft, _, _ in self.observations], self.now)
        if multi.any():
            results = [rows["json"][i] for i in np.flatnonzero(multi).tolist()]
            await check_results(self.transaction, datastreams[multi].tolist(), results)
        features = await self._features()
        saved = await self.transaction.save_observations(
            Observations(
                datastream=datastreams,
                feature=np.array(features, np.int64),
                multi=multi if multi.any() else None,
                **rows,
            )
        )
        return [int(i) for i in saved.tolist()]

    async def _row(self, draft: Draft, columns: dict[str, Any]) -> int:
        names, places, parameters = [], [], []
        for name, value in draft.values.items():
            p = draft.entity_type.properties[name]
            names.append(p.columns[0])
            places.append(f"%s::{CASTS.get(p.kind, 'jsonb')}")
            parameters.append(
                format_instant(value) if p.kind is Kind.INSTANT and isinstance(value, int) else value
            )
        for column, value in columns.items():
            names.append(column)
            places.append("%s")
            parameters.append(value)
        (row,) = await self.transaction.fetch(
            f"INSERT INTO {draft.entity_type.table} ({', '.join(names)}) VALUES ({', '.join(places)}) RETURNING id",
            parameters,
        )
        return int(row[0])

    async def _reference(self, relation: Relation, wanted: Target) -> int:
        if isinstance(wanted, Draft):
            own = await self.entity(wanted)
            assert isinstance(own, int)
            return own
        await require(self.transaction, target(relation), [wanted])
        return wanted

    async def _children(self, relation: Relation, own: int, targets: Sequence[Target]) -> None:
        links = [t for t in targets if isinstance(t, int)]
        for child in targets:
            if isinstance(child, Draft):
                child.links[relation.inverse] = [own]
                await self.entity(child)
        if links and target(relation) is OBSERVATION:
            raise Rejected(
                Reason.MALFORMED,
                "existing Observations cannot be linked here: change their Datastream or feature",
            )
        if links:
            await require(self.transaction, target(relation), links)
            await self.transaction.execute(
                f"UPDATE {target(relation).table} SET {relation.column} = %s WHERE id = ANY(%s::int8[])",
                (own, sorted(set(links))),
            )

    async def _partners(self, draft: Draft, relation: Relation, own: int, targets: Sequence[Target]) -> None:
        """Tie both sides of a many-to-many relation; a Thing that gets Locations by this has moved."""
        if target(relation) is MULTI_DATASTREAM:
            for partner in targets:
                await self._one_more_property(own, partner)
            return
        ids = []
        for partner in targets:
            if isinstance(partner, Draft):
                made = await self.entity(partner)
                assert isinstance(made, int)
                ids.append(made)
            else:
                ids.append(partner)
        await require(self.transaction, target(relation), ids)
        if draft.entity_type == THING:
            await move_thing(self.transaction, own, ids, time=self.now)
        elif target(relation) is THING:
            for thing in ids:
                await move_thing(self.transaction, thing, [own], time=self.now)
        elif draft.entity_type is MULTI_DATASTREAM:
            await rank(self.transaction, own, ids)
            await check_sizes(self.transaction, own)
        else:
            await link(self.transaction, relation, own, ids)

    async def _one_more_property(self, own: int, partner: Target) -> None:
        """Create a MultiDatastream of an ObservedProperty, which is the last of its properties if it names others."""
        if isinstance(partner, int):
            raise refuse_another_property(partner)
        partner.links.setdefault("ObservedProperties", []).append(own)
        await self.entity(partner)

    async def _features(self) -> list[int]:
        """The feature of each Observation; those that name none get the one of their Thing's Location."""
        wanting = sorted({datastream for _, datastream, feature in self.observations if not feature})
        if not wanting:
            return [feature for _, _, feature in self.observations]
        by_datastream = await default_features(self.transaction, wanting)
        homeless = [d for d in wanting if d not in by_datastream]
        if homeless:
            raise Rejected(
                Reason.MALFORMED,
                "the Observation needs its FeatureOfInterest: the Thing of its Datastream, whose id is"
                f" {homeless[0]}, has no Location to make one from",
            )
        return [feature or by_datastream[datastream] for _, datastream, feature in self.observations]


async def follow_history(transaction: Transaction, own: int, thing: int) -> None:
    """Move the Thing to the Locations of a HistoricalLocation that is later than all others of it."""
    rows = await transaction.fetch(
        "SELECT l.location_id FROM historical_locations_locations l JOIN historical_locations h"
        " ON h.id = l.historical_location_id WHERE h.id = %s AND NOT EXISTS (SELECT FROM historical_locations o"
        " WHERE o.thing_id = h.thing_id AND o.id <> h.id AND o.time >= h.time)",
        (own,),
    )
    if rows:
        await place(transaction, thing, [row[0] for row in rows])


async def place(transaction: Transaction, thing: int, locations: Sequence[int]) -> bool:
    """Make these the Locations of a Thing; return whether they were not yet."""
    # One mover at a time: two would leave the Locations of both.
    await transaction.fetch("SELECT id FROM things WHERE id = %s FOR NO KEY UPDATE", (thing,))
    rows = await transaction.fetch("SELECT location_id FROM things_locations WHERE thing_id = %s", (thing,))
    if {row[0] for row in rows} == set(locations):
        return False
    await transaction.execute("DELETE FROM things_locations WHERE thing_id = %s", (thing,))
    await link(transaction, THING.relations["Locations"], thing, locations)
    return True


async def link(transaction: Transaction, relation: Relation, own: int, others: Sequence[int]) -> None:
    """Tie an entity to others of a many-to-many relation."""
    assert relation.link
    await transaction.execute(
        f"INSERT INTO {relation.link.name} ({relation.link.own}, {relation.link.other})"
        " SELECT %s, unnest(%s::int8[]) ON CONFLICT DO NOTHING",
        (own, sorted(set(others))),
    )


def _changes_catalogue(draft: Draft) -> bool:
    """Whether creating it registers or moves streams, or moves a Thing."""
    if draft.entity_type is DATASTREAM or "Datastreams" in draft.links or "Locations" in draft.links:
        return True
    if draft.entity_type is LOCATION and "Things" in draft.links:
        return True
    return any(
        _changes_catalogue(t) for targets in draft.links.values() for t in targets if isinstance(t, Draft)
    )


def observation_columns(drafts: Sequence[Draft], now: Micros) -> dict[str, Any]:
    """The Observations' own columns by their names in `Observations`, without datastream and feature."""

    def column(name: str, pick: Callable[[Any], Any], absent: Any) -> list[Any]:
        values: list[Value] = [draft.values.get(name) for draft in drafts]
        return [absent if value is None else pick(value) for value in values]

    def times_of(values: list[Any]) -> Any:
        return np.array(values, np.int64)

    results = column("result", lambda r: r, Result(math.nan, "null"))
    quality = column("resultQuality", _flag, Quality.NONE)
    remark = column("resultQuality", lambda text: None if _flag(text) else text, None)
    return {
        "time": times_of(column("phenomenonTime", lambda t: t[0], now)),
        "end": times_of(column("phenomenonTime", lambda t: NO_TIME if t[1] is None else t[1], NO_TIME)),
        "number": np.array([r.number for r in results], np.float64),
        "json": [r.json for r in results],
        "quality": np.array(quality, np.int8),
        "result_quality": remark,
        "result_time": times_of(column("resultTime", lambda t: t, NO_TIME)),
        "valid_start": times_of(column("validTime", lambda t: t[0], NO_TIME)),
        "valid_end": times_of(column("validTime", lambda t: t[1], NO_TIME)),
        "parameters": column("parameters", lambda text: text, None),
    }


_FLAGS = {f'{{"flag":"{q.name.lower()}"}}': q for q in (Quality.GOOD, Quality.SUSPECT, Quality.BAD)}


def _flag(text: str) -> Quality:
    """The quality of a resultQuality that says what a stream's flag says, so that aggregates count it alike."""
    return _FLAGS.get("".join(text.split()), Quality.NONE) if len(text) < 40 else Quality.NONE
