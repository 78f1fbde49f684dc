"""The geometries that the store holds, kept in memory and brought up to date by what changed since.

A row says in `geometry_changed` which transaction gave it its geometry. All transactions before the oldest that ran
when we last looked (`pg_snapshot_xmin`) are in what we saw; so looking for that one and later ones, by an index, finds
whatever is new, in any order of commits, and no writer waits for another. What was deleted stays until the table is
read whole again, and does no harm: ids are never used again, and the statement joins by them. Another server (a standby
that was promoted without the last transactions) gives their numbers and ids to others: there, the table is read whole.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from api.sensorthings.geometry import Column, Found, Measure, Source, Table, evaluate
from citylab.ports import Transaction

_PAGE = 5_000  # rows that are read at a time when a table is read whole
_READ_AGAIN = 3_600.0  # s after which a table is read whole again
_AT_ONCE = 2  # evaluations, each in a thread
_MOST_KEPT = 64 << 20  # characters of evaluated columns


@dataclass(slots=True)
class _Kept:
    """A table as last seen.

    server: the run of the server that it is of; since: transactions before it are in it; recent: which others are, by id;
    read: when whole.
    """

    table: Table
    server: str
    since: int
    recent: dict[int, int]
    read: float


class _Seen(NamedTuple):
    """server: a run of one; since: the oldest transaction then; own: whether ours wrote; rows: id, transaction, GeoJSON."""

    server: str
    since: int
    own: bool
    rows: list[tuple[int, int, str | None]]


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
        keys = {
            name: (column, tuple(tables[source].version for source in column.measure.sources))
            for name, column in columns.items()
        }
        missing = {name: columns[name] for name, key in keys.items() if key not in self._texts}
        texts = {name: self._texts[key] for name, key in keys.items() if name not in missing}
        if missing:
            async with self._turns:
                texts |= await asyncio.to_thread(_evaluated, missing, tables)
        for name, key in keys.items():
            self._keep(key, texts[name])
        return parameters | texts

    def _keep(self, key: tuple[Column, tuple[int, ...]], text: str) -> None:
        """Keep what was found for the next page of the same query."""
        self._size += len(text) - len(self._texts.pop(key, ""))
        self._texts[key] = text
        while self._size > _MOST_KEPT:
            self._size -= len(self._texts.popitem(last=False)[1])

    async def _table(self, transaction: Transaction, source: Source) -> Table:
        """The geometries as they are now, for this transaction."""
        async with self._reading[source]:
            kept = self._kept.get(source)
            seen = await _changed(transaction, source, kept.since) if kept else None
            if (
                kept is None
                or seen is None
                or time.monotonic() - kept.read > _READ_AGAIN
                or seen.server != kept.server
            ):
                kept = _Kept(Table({}), "", 0, {}, time.monotonic())
                seen = await _all_of(transaction, source)
            table = kept.table
            new = [row for row in seen.rows if seen.own or kept.recent.get(row[0]) != row[1]]
            if new:
                table = await asyncio.to_thread(table.changed, [r[0] for r in new], [r[2] for r in new])
            if not seen.own:  # else it may be rolled back, and what it changed with it
                recent = {own: transaction for own, transaction, _ in seen.rows if transaction >= seen.since}
                self._kept[source] = _Kept(table, seen.server, seen.since, recent, kept.read)
            return table


def _evaluated(columns: Mapping[str, Column], tables: Mapping[Source, Table]) -> dict[str, str]:
    found: dict[Measure, Found] = {}
    for column in columns.values():
        if column.measure not in found:
            found[column.measure] = evaluate(column.measure, tables)
    return {name: column.text(found[column.measure]) for name, column in columns.items()}


async def _all_of(transaction: Transaction, source: Source) -> _Seen:
    condition = f"r.{source.key} > %(after)s::int8 AND r.{source.column} IS NOT NULL"
    statement = _select(source, condition, _PAGE)
    first = page = _seen(await transaction.fetch(statement, {"after": "-1"}))
    own, rows = page.own, page.rows
    while len(page.rows) == _PAGE:
        page = _seen(await transaction.fetch(statement, {"after": str(page.rows[-1][0])}))
        own |= page.own
        rows = rows + page.rows
    return _Seen(first.server, first.since, own, rows)


async def _changed(transaction: Transaction, source: Source, since: int) -> _Seen:
    statement = _select(source, "r.geometry_changed >= %(since)s::xid8")
    return _seen(await transaction.fetch(statement, {"since": str(since)}))


def _seen(found: list[tuple[Any, ...]]) -> _Seen:
    rows = [(own, int(transaction), text) for _, _, _, own, transaction, text in found if own is not None]
    server, since, wrote, *_ = found[0]
    return _Seen(server, int(since), wrote, rows)


def _select(source: Source, condition: str, limit: int = 0) -> str:
    """The columns of `_Seen`, of rows that meet the condition."""
    value = f"r.{source.column}"
    geometry = (
        f"CASE WHEN jsonb_typeof({value}) = 'object' THEN (CASE WHEN {value} ->> 'type' = 'Feature'"
        f" THEN {value} -> 'geometry' ELSE {value} END)::text END"
    )
    order = f" ORDER BY r.{source.key} LIMIT {limit}" if limit else ""
    return (
        "SELECT s.server, s.since, s.own, r.* FROM (SELECT pg_postmaster_start_time()::text AS server,"
        " pg_snapshot_xmin(pg_current_snapshot())::text AS since,"
        " pg_current_xact_id_if_assigned() IS NOT NULL AS own) AS s LEFT JOIN (SELECT"
        f" r.{source.key}, r.geometry_changed::text, {geometry} FROM {source.table} AS r WHERE {condition}{order})"
        " AS r ON TRUE"
    )
