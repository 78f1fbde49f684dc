"""The geometries that the store holds, kept in memory and brought up to date by what changed since.

A row says in `geometry_changed` which transaction gave it its geometry. All transactions before the oldest that ran
when we last looked (`pg_snapshot_xmin`) are in what we saw; so looking for that one and later ones, by an index, finds
whatever is new, in any order of commits, and no writer waits for another. What was deleted stays: ids are never used
again, and the statement joins by them.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from api.sensorthings.geometry import Column, Found, Measure, Source, Table, evaluate
from citylab.ports import Transaction

_PAGE = 5_000  # rows that are read at a time when a table is read whole
_AT_ONCE = 2  # evaluations, each in a thread
_MOST_KEPT = 64 << 20  # characters of evaluated columns

Rows: TypeAlias = list[tuple[Any, ...]]


@dataclass(slots=True)
class _Kept:
    """A table as last seen. since: transactions before it are in it; recent: which others are, by id."""

    table: Table
    since: str
    recent: dict[int, str]


class StoredGeometries:
    """Fills statements in with what geo functions find."""

    def __init__(self) -> None:
        self._kept: dict[Source, _Kept] = {}
        self._reading: defaultdict[Source, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._texts: OrderedDict[tuple[Column, tuple[int, ...]], str] = OrderedDict()
        self._size = 0

    async def fill(self, transaction: Transaction, parameters: dict[str, object]) -> dict[str, object]:
        """The parameters with arrays in place of `Column`s. Raises `RequestError` for what takes too much."""
        columns = {name: value for name, value in parameters.items() if isinstance(value, Column)}
        if not columns:
            return parameters
        sources = {source for column in columns.values() for source in column.measure.sources}
        tables = {source: await self._table(transaction, source) for source in sorted(sources, key=str)}
        filled: dict[str, object] = {}
        missing: dict[str, Column] = {}
        for name, column in columns.items():
            key = column, tuple(tables[source].version for source in column.measure.sources)
            if 0 in key[1] or key not in self._texts:
                missing[name] = column
            else:
                self._texts.move_to_end(key)
                filled[name] = self._texts[key]
        if missing:
            async with self._turns:
                texts = await asyncio.to_thread(_evaluated, missing, tables)
            for name, column in missing.items():
                self._keep(column, tables, texts[name])
            filled |= texts
        return parameters | filled

    def _keep(self, column: Column, tables: Mapping[Source, Table], text: str) -> None:
        key = column, tuple(tables[source].version for source in column.measure.sources)
        if 0 in key[1] or len(text) > _MOST_KEPT // 4 or key in self._texts:
            return
        self._texts[key] = text
        self._size += len(text)
        while self._size > _MOST_KEPT:
            self._size -= len(self._texts.popitem(last=False)[1])

    async def _table(self, transaction: Transaction, source: Source) -> Table:
        """The geometries as they are now; of version 0 where the transaction may see what nobody else will."""
        async with self._reading[source]:
            kept = self._kept.get(source)
            if kept is not None:
                since, own, rows = await _since(transaction, source, kept.since)
            if kept is None or int(since) < int(kept.since):  # another database, restored from a copy
                kept = _Kept(Table({}, 0), "0", {})
                since, own, rows = await _all_of(transaction, source)
            table = kept.table
            new = [row for row in rows if own is not None or kept.recent.get(row[0]) != row[1]]
            if new or not table.version:
                table = await asyncio.to_thread(
                    table.changed, [row[0] for row in new], [row[2] for row in new]
                )
            if own is not None:  # it may be rolled back, and what it changed with it
                return Table(table.known, 0)
            self._kept[source] = _Kept(
                table, since, {row[0]: row[1] for row in rows if int(row[1]) >= int(since)}
            )
            return table


def _evaluated(columns: Mapping[str, Column], tables: Mapping[Source, Table]) -> dict[str, str]:
    found: dict[Measure, Found] = {}
    for column in columns.values():
        if column.measure not in found:
            found[column.measure] = evaluate(column.measure, tables)
    return {name: column.text(found[column.measure]) for name, column in columns.items()}


async def _all_of(transaction: Transaction, source: Source) -> tuple[str, str | None, Rows]:
    rows: Rows = []
    since, own, after = "", None, -1
    while True:
        found = await transaction.fetch(
            _select(source, f"r.{source.key} > %(after)s::int8 AND r.{source.column} IS NOT NULL", _PAGE),
            {"after": str(after)},
        )
        since = since or found[0][0]
        own = own or found[0][1]
        page = [row[2:] for row in found if row[2] is not None]
        rows += page
        if len(page) < _PAGE:
            return since, own, rows
        after = page[-1][0]


async def _since(transaction: Transaction, source: Source, since: str) -> tuple[str, str | None, Rows]:
    found = await transaction.fetch(
        _select(source, "r.geometry_changed >= %(since)s::xid8"), {"since": since}
    )
    return found[0][0], found[0][1], [row[2:] for row in found if row[2] is not None]


def _select(source: Source, condition: str, limit: int = 0) -> str:
    """The snapshot's oldest transaction, our own if it has written, and ids, transactions and geometries of rows."""
    value = f"r.{source.column}"
    geometry = (
        f"CASE WHEN jsonb_typeof({value}) = 'object' THEN (CASE WHEN {value} ->> 'type' = 'Feature'"
        f" THEN {value} -> 'geometry' ELSE {value} END)::text END"
    )
    order = f" ORDER BY r.{source.key} LIMIT {limit}" if limit else ""
    return (
        "SELECT s.since, s.own, r.* FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS since,"
        " pg_current_xact_id_if_assigned()::text AS own) AS s LEFT JOIN (SELECT"
        f" r.{source.key}, r.geometry_changed::text, {geometry} FROM {source.table} AS r WHERE {condition}{order})"
        " AS r ON TRUE"
    )
