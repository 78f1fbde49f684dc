"""Changes and deletions of entities, with what follows from them (OGC 18-088 §10.3 and §10.4).

Under the exclusive catalogue lock, which the caller has taken: nothing is created meanwhile that refers to what goes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from citylab.adapters.derived import FactsCache, observe_again
from citylab.adapters.edits import (
    delete_observations,
    forget_datastreams,
    refold_datastream,
    rewrite_observation,
)
from citylab.adapters.entity_writes import (
    CASTS,
    follow_history,
    link,
    move_thing,
    observation_columns,
    place,
    require,
)
from citylab.adapters.multi_datastreams import check_results, check_sizes, rank, refuse_another_property, size
from citylab.adapters.postgres import Connection
from citylab.adapters.tasks import check_change
from citylab.columns import NO_TIME, Observations
from citylab.drafts import Draft
from citylab.entities import (
    DATASTREAM,
    ENTITY_TYPES,
    FEATURE_OF_INTEREST,
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
from citylab.model import Micros
from citylab.ports import Transaction
from citylab.times import format_instant

# OGC 18-088 §10.4, Table 26, and the like for Tasking: what is deleted along with an entity.
_CASCADES: Mapping[str, Sequence[str]] = {
    "Thing": ("Datastreams", "MultiDatastreams", "HistoricalLocations", "TaskingCapabilities"),
    "Location": ("HistoricalLocations",),
    "Datastream": ("Observations",),
    "Sensor": ("Datastreams", "MultiDatastreams"),
    "ObservedProperty": ("Datastreams", "MultiDatastreams"),
    "FeatureOfInterest": ("Observations",),
    "Actuator": ("TaskingCapabilities",),
    "TaskingCapability": ("Tasks",),
}


@dataclass(frozen=True, slots=True)
class Changes:
    """What one transaction changes. now: the time of HistoricalLocations that are made by themselves."""

    transaction: Transaction
    connection: Connection
    cache: FactsCache
    now: Micros

    async def update(self, entity_type: EntityType, own: int, changes: Draft) -> None:
        """Change an entity that exists."""
        if entity_type is OBSERVATION:
            if changes.values or changes.links:
                await self._update_observation(own, changes)
            return
        windows = await self._windows(own) if entity_type is DATASTREAM else None
        results = await size(self.transaction, own) if entity_type is MULTI_DATASTREAM else None
        if entity_type is TASK:
            await check_change(self.transaction, own, changes)
        await self._set(entity_type, own, changes)
        for name, targets in changes.links.items():
            relation = entity_type.relations[name]
            ids = sorted({t for t in targets if isinstance(t, int)})
            if relation.link and relation.link.rank:
                await require(self.transaction, target(relation), ids)
                await rank(self.transaction, own, [t for t in targets if isinstance(t, int)])
            elif relation.many:
                await require(self.transaction, target(relation), ids)
                await self._relate(entity_type, own, relation, ids)
        if results is not None:
            await check_sizes(self.transaction, own, before=results)
        if entity_type is HISTORICAL_LOCATION:
            ((thing,),) = await self.transaction.fetch(
                "SELECT thing_id FROM historical_locations WHERE id = %s", (own,)
            )
            await follow_history(self.transaction, own, thing)
        elif windows is not None and windows != await self._windows(own):
            await refold_datastream(self.connection, own)
        elif entity_type is LOCATION and "location" in changes.values:
            # What was observed there was observed where it was then: the next Observation gets another feature.
            await self.transaction.execute(
                "UPDATE features_of_interest f SET location_id = NULL FROM locations l"
                " WHERE l.id = %s AND f.location_id = l.id AND f.feature <> l.location",
                (own,),
            )
        elif entity_type is FEATURE_OF_INTEREST and "feature" in changes.values:
            rows = await self.transaction.fetch(
                "SELECT datastream_id FROM observed_features WHERE feature_id = %s", (own,)
            )
            await observe_again(self.connection, [row[0] for row in rows])

    async def delete(self, entity_type: EntityType, selection: str, parameters: Mapping[str, Any]) -> int:
        """Delete the entities whose keys a statement gives, with all that the standard deletes along with them."""
        if entity_type is OBSERVATION:
            return await delete_observations(self.connection, selection, parameters)
        rows = await self.transaction.fetch(selection, parameters)
        await self._delete(entity_type, sorted({row[0] for row in rows}))
        return len(rows)

    async def _delete(self, entity_type: EntityType, ids: Sequence[int]) -> None:
        if not ids:
            return
        if entity_type in (DATASTREAM, MULTI_DATASTREAM):
            await forget_datastreams(self.connection, ids)
        else:
            for name in _CASCADES.get(entity_type.name, ()):
                # Of the whole table: also where a service offers less, nothing is left behind.
                await self._delete_related(ENTITY_TYPES[entity_type.name].relations[name], ids)
        await self.transaction.execute(
            f"DELETE FROM {entity_type.table} WHERE id = ANY(%s::int8[])", (list(ids),)
        )

    async def _delete_related(self, relation: Relation, ids: Sequence[int]) -> None:
        other = target(relation)
        where = f"r.{relation.column} = ANY(%(ids)s::int8[])"
        if relation.link:
            where = (
                f"r.id IN (SELECT l.{relation.link.other} FROM {relation.link.name} l"
                f" WHERE l.{relation.link.own} = ANY(%(ids)s::int8[]))"
            )
        elif relation.narrowed_by:
            narrow = relation.narrowed_by
            where += (
                f" AND r.{other.relations[narrow.relation].column} IN"
                f" (SELECT n.{narrow.other} FROM {narrow.table} n WHERE n.{narrow.own} = ANY(%(ids)s::int8[]))"
            )
        keys = ", ".join(f"r.{column}" for column in other.default_order)
        await self.delete(other, f"SELECT {keys} FROM {other.table} r WHERE {where}", {"ids": list(ids)})

    async def _set(self, entity_type: EntityType, own: int, changes: Draft) -> None:
        """Set the entity's own columns: its properties and its to-one relations."""
        columns: list[str] = []
        parameters: list[Any] = []
        for name, value in changes.values.items():
            known = entity_type.properties[name]
            if value is None and known.defaulted:
                columns.append(f"{known.columns[0]} = DEFAULT")
                continue
            columns.append(f"{known.columns[0]} = %s::{CASTS.get(known.kind, 'jsonb')}")
            parameters.append(
                format_instant(value) if known.kind is Kind.INSTANT and isinstance(value, int) else value
            )
        for name, targets in changes.links.items():
            relation = entity_type.relations[name]
            if not relation.many:
                (other,) = targets
                assert isinstance(other, int)
                await require(self.transaction, target(relation), [other])
                columns.append(f"{relation.column} = %s")
                parameters.append(other)
        if columns:
            await self.transaction.execute(
                f"UPDATE {entity_type.table} SET {', '.join(columns)} WHERE id = %s", (*parameters, own)
            )

    async def _relate(self, entity_type: EntityType, own: int, relation: Relation, ids: list[int]) -> None:
        """Link to entities that exist. The Locations of a Thing are replaced; every other relation gets more."""
        if entity_type == THING and relation.link:
            if ids:
                await move_thing(self.transaction, own, ids, time=self.now)
            else:
                await place(self.transaction, own, ids)
        elif target(relation) is THING:
            for thing in ids:
                await move_thing(self.transaction, thing, [own], time=self.now)
        elif target(relation) is MULTI_DATASTREAM and relation.link:
            if ids:
                raise refuse_another_property(ids[0])
        elif relation.link:
            await link(self.transaction, relation, own, ids)
        else:
            for other in ids:
                draft = Draft(target(relation), {}, {relation.inverse: [own]})
                await self.update(target(relation), other, draft)

    async def _windows(self, datastream: int) -> tuple[Any, ...]:
        """What decides in which windows a datastream's values are counted."""
        (row,) = await self.transaction.fetch(
            "SELECT declared_interval(properties), properties ->> 'stamp' FROM datastreams WHERE id = %s",
            (datastream,),
        )
        return row

    async def _update_observation(self, own: int, changes: Draft) -> None:
        columns = observation_columns([changes], self.now)
        changed: dict[str, Any] = {
            column: columns[column] for name in changes.values for column in _COLUMNS_OF[name]
        }
        for name, field in (
            ("Datastream", "datastream"),
            ("MultiDatastream", "datastream"),
            ("FeatureOfInterest", "feature"),
        ):
            if name in changes.links:
                (other,) = changes.links[name]
                assert isinstance(other, int)
                await require(self.transaction, target(OBSERVATION.relations[name]), [other])
                changed[field] = np.array([other], np.int64)
                if field == "datastream":
                    changed["multi"] = np.array([name == "MultiDatastream"])
        before = await self._observation(own)
        rows = replace(before, **changed)
        if rows.multi is not None and rows.multi[0]:
            await check_results(self.transaction, rows.datastream.tolist(), rows.json or [None])
        await rewrite_observation(self.connection, self.cache, own, rows)
        names = await self._differing(before, rows, changes.values)
        differing = [OBSERVATION.properties[name].columns[0] for name in names]
        await self.transaction.execute(
            "INSERT INTO pending_announcements (entity_table, entity, columns) VALUES ('observations', %s, %s)",
            (own, differing),
        )

    async def _differing(self, before: Observations, after: Observations, names: Iterable[str]) -> list[str]:
        """Those of the properties whose values differ. JSON that means the same does not."""
        differing, texts = [], []
        for name in names:
            pairs = [(_value(before, c), _value(after, c)) for c in _COLUMNS_OF[name]]
            different = [pair for pair in pairs if pair[0] != pair[1]]
            if any(not isinstance(value, str) for pair in different for value in pair):
                differing.append(name)
            elif different:
                texts += [(name, *pair) for pair in different]
        if texts:
            rows = await self.transaction.fetch(
                "SELECT n FROM unnest(%s::text[], %s::text[], %s::text[]) x (n, a, b) WHERE a::jsonb <> b::jsonb",
                [list(column) for column in zip(*texts, strict=True)],
            )
            differing += [row[0] for row in rows]
        return differing

    async def _observation(self, own: int) -> Observations:
        """An observation as it is, as a row to be written."""

        def micros(column: str) -> str:
            return f"(extract(epoch FROM {column}) * 1000000)::bigint"

        (
            (
                datastream,
                time,
                number,
                quality,
                feature,
                json,
                end,
                result_time,
                start,
                until,
                remark,
                more,
                multi,
            ),
        ) = await self.transaction.fetch(
            f"SELECT datastream_id, {micros('phenomenon_time')}, result_number, quality,"
            " coalesce(feature_of_interest_id, 0), result_json::text,"
            f" {micros('phenomenon_end')}, {micros('result_time')}, {micros('valid_start')}, {micros('valid_end')},"
            " result_quality::text, parameters::text, multi FROM observations WHERE id = %s",
            (own,),
        )

        def instant(value: int | None) -> Any:
            return np.array([NO_TIME if value is None else value], np.int64)

        return Observations(
            datastream=np.array([datastream], np.int64),
            time=instant(time),
            number=np.array([np.nan if number is None else number], np.float64),
            quality=np.array([quality], np.int8),
            feature=np.array([feature], np.int64),
            json=[json],
            end=instant(end),
            result_time=instant(result_time),
            valid_start=instant(start),
            valid_end=instant(until),
            result_quality=[remark],
            parameters=[more],
            multi=np.array([multi], np.bool_),
        )


def _value(rows: Observations, name: str) -> Any:
    """The value of a column of one row; a result is its JSON."""
    if name == "number":
        return None
    column = getattr(rows, name)
    value = None if column is None else column[0]
    if name == "json" and value is None:
        return repr(float(rows.number[0]))
    return value.item() if isinstance(value, np.generic) else value


_COLUMNS_OF = {
    "phenomenonTime": ("time", "end"),
    "result": ("number", "json"),
    "resultTime": ("result_time",),
    "resultQuality": ("quality", "result_quality"),
    "validTime": ("valid_start", "valid_end"),
    "parameters": ("parameters",),
}
