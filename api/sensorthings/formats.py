"""What `$resultFormat` asks for, made by the database: data arrays (OGC 18-088 §11.2), CSV (RFC 4180), GeoJSON (RFC 7946).

A data array is a page like any other. CSV and GeoJSON hold everything that the query finds, unless `$top` says otherwise.
"""

import csv
import io
from typing import NamedTuple

import msgspec

from api.sensorthings.errors import Fault, RequestError
from api.sensorthings.expressions import unknown
from api.sensorthings.members import Members, member_jsonb, select
from api.sensorthings.resource import Resource
from api.sensorthings.rows import Row, is_related
from api.sensorthings.statements import Compiled, Compiler, Parts, Rows, located
from api.sensorthings.syntax import Query
from citylab.entities import GEOJSON_ENCODINGS, OBSERVATION, EntityType, Kind, target
from citylab.entity_json import BASE, Piece, Sql, concat, literal, number_text, property_json

_SERIES = tuple(relation for relation in OBSERVATION.relations.values() if relation.either)


def _path_text(path: Members) -> str:
    """A path as `$select` writes it."""
    return "".join(f"[{step}]" if isinstance(step, int) else f"/{step}" for step in path)[1:]


# Data arrays --------------------------------------------------------------------------------------------------------


def data_array(rows: Rows, query: Query, top: int) -> Parts:
    """Observations in groups, one a Datastream or MultiDatastream, in the order in which the page meets them (OGC 18-088 §11.2)."""
    page = rows.page
    if query.expand:
        raise RequestError(400, "$expand: a data array holds the Observations' own properties only")
    with located("$select", query):
        paths = select(OBSERVATION, query.select, links=False).paths
    names: list[str] = []
    cells: list[Piece] = []
    own = Sql(page.column(page.row.column("id")), always=True)
    link: list[Piece] = ['"', Sql(BASE, always=True), "Observations(", own, ")"]
    for path in paths:
        first, *members = path
        relation = OBSERVATION.relations.get(str(first))
        if relation in _SERIES:
            continue  # in the group's link
        name = _path_text(path)
        pieces: list[Piece] = [own]
        if relation is not None:
            name, pieces = f"{name}@iot.navigationLink", [*link, f'/{name}"']
        elif first == "@iot.selfLink":
            pieces = [*link, '"']
        elif first != "id":
            known = OBSERVATION.properties[str(first)]
            columns = page.property(known)
            json = property_json(known, columns)
            if members:
                json = f"{member_jsonb(known, columns, path[1:], page.row.statement.parameters)}::text"
            pieces = [Sql(f"coalesce({json}, 'null')", always=True)]
        names.append(msgspec.json.encode(name).decode())
        cells += [",", *pieces]
    series = [page.column(page.row.column(_SERIES[0].column))]
    series += [page.column(r.either.holds.format(row=page.row.alias)) for r in _SERIES if r.either]
    columns = [f"{concat(_bracketed(cells))} AS j", *rows.token_columns()]
    columns += [f"{column} AS s{i}" for i, column in enumerate(series)]
    name = page.row.statement.name("n")
    of_group = [f"{name}.s{i}" for i in range(len(series))]
    shown = f"FILTER (WHERE {name}.n <= {top})"
    group = concat(
        [
            '{"',
            Sql(_series_link(of_group)),
            f')","components":[{",".join(names)}],"dataArray@iot.count":',
            Sql(f"count(*) {shown}"),
            ',"dataArray":[',
            Sql(f"string_agg({name}.j, ',' ORDER BY {name}.n) {shown}"),
            "]}",
        ]
    )
    groups = (
        f"SELECT {group} AS j, min({name}.n) AS first, count(*) AS rows,"
        f" max({rows.token(name)}) FILTER (WHERE {name}.n = {top}) AS token"
        f" FROM ({rows.numbered(query, top, columns)}) AS {name} GROUP BY {', '.join(of_group)}"
    )
    found = "coalesce(sum(g.rows), 0)::int8"
    return Parts(
        f"string_agg(g.j, ',' ORDER BY g.first) FILTER (WHERE g.first <= {top})",
        found,
        f"CASE WHEN {found} > {top} AND {top} > 0 THEN max(g.token) END",
        f"FROM ({groups}) AS g",
    )


def _series_link(columns: list[str]) -> str:
    """SQL of a group's key and link, up to the id; columns: the id, and of which relation it is."""
    own, *holds = columns
    links = "".join(
        f" WHEN {hold} THEN {literal(f'{relation.name}@iot.navigationLink')} || '\":\"' || {BASE}"
        f" || {literal(f'{target(relation).set_name}(')}"
        for relation, hold in zip(_SERIES, holds, strict=True)
    )
    return f"(CASE{links} END || {own})"


def _bracketed(cells: list[Piece]) -> list[Piece]:
    return ["[", *cells[1:], "]"]


# CSV ----------------------------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column of a table: through which to-one relations, and the property or the member of one, or the id."""

    relations: tuple[str, ...]
    path: Members

    @property
    def name(self) -> str:
        return "/".join([*self.relations, _path_text(self.path)])


class Table:
    """A collection as a table: `$select` names its columns, and `$expand` of to-one relations adds theirs."""

    def __init__(self, entity_type: EntityType, query: Query) -> None:
        self._columns = list(_columns(entity_type, query, ()))
        names = [column.name for column in self._columns]
        line = io.StringIO()
        csv.writer(line).writerow(names)
        self.header = line.getvalue().encode()

    def line(self, rows: Rows) -> tuple[str, list[str]]:
        """SQL of a row's line."""
        pieces: list[Piece] = []
        for column in self._columns:
            row = rows.page.row
            for name in column.relations:
                row = row.related(row.entity_type.relations[name])
            pieces += [",", Sql(_cell(rows, row, column.path))]
        return concat([*pieces[1:], "\r\n"]), []


def _columns(entity_type: EntityType, query: Query, relations: tuple[str, ...]) -> list[_Column]:
    nested = bool(relations)
    for option in {"$filter", "$orderby", "$top", "$skip", "$count"} & query.texts.keys() if nested else ():
        raise RequestError(400, f"$expand: {option} has no meaning for the columns of a table")
    with located("$select", query, nested=nested):
        paths = select(entity_type, query.select, links=False).paths
    own = {"id", *entity_type.properties}
    found = [_Column(relations, path) for path in paths if path[0] in own]
    with located("$expand", query, nested=nested):
        for expand in query.expand:
            relation = entity_type.relations.get(expand.relation)
            if relation is None:
                raise Fault(expand.at, unknown(entity_type, expand.relation))
            if relation.many:
                raise Fault(expand.at, f"{relation.name} are several, and a table has one line an entity")
            found += _columns(target(relation), expand.query, (*relations, relation.name))
    return found


def _cell(rows: Rows, row: Row, path: Members) -> str:
    first, *members = path
    if first == "id":
        return rows.page.column(row.column("id"))
    known = row.entity_type.properties[str(first)]
    columns = [rows.page.column(row.column(c, computed=known.computed)) for c in known.columns]
    match known.kind:
        case Kind.TEXT:
            return _quoted(columns[0])
        case Kind.INSTANT | Kind.TIME | Kind.INTERVAL:
            return f"trim('\"' FROM {property_json(known, columns)})"
        case Kind.RESULT if not members:
            text = _quoted(f"({columns[1]} #>> '{{}}')")
            return f"CASE WHEN {columns[1]} IS NULL THEN {number_text(columns[0])} ELSE {text} END"
        case _:
            return _quoted(f"({member_jsonb(known, columns, path[1:], row.statement.parameters)} #>> '{{}}')")


def _quoted(text: str) -> str:
    """A text as RFC 4180 wants it; an empty one in quotes, which a null is not."""
    doubled = f"replace({text}, '\"', '\"\"')"
    return f"CASE WHEN {text} ~ E'^$|[\",\\r\\n]' THEN '\"' || {doubled} || '\"' ELSE {text} END"


# GeoJSON ------------------------------------------------------------------------------------------------------------

_TYPES = "('Point', 'LineString', 'Polygon', 'MultiPoint', 'MultiLineString', 'MultiPolygon', 'GeometryCollection')"
_ENCODINGS = f"({', '.join(literal(encoding) for encoding in GEOJSON_ENCODINGS)})"


def geojson(compiler: Compiler, resource: Resource, query: Query) -> Compiled:
    """Features with the entities as their properties; one that has no geometry has a null there."""

    def render(rows: Rows) -> tuple[str, list[str]]:
        page = rows.page
        geometry = _geometry(page.column(_place(page.row)))
        pieces, joins = compiler.entity_json(page, query, reference=False, nested=False, feature=True)
        own = Sql(page.column(page.row.column("id")))
        feature: list[Piece] = [
            '{"type":"Feature","id":',
            own,
            ',"geometry":',
            Sql(geometry),
            ',"properties":',
        ]
        return concat([*feature, *pieces, "}"]), joins

    return compiler.lines(resource, query, render)


def _place(row: Row) -> str:
    """SQL of what may hold the geometry of an entity. Raises `RequestError` for sets that have none."""
    match row.entity_type.name:
        case "Location":
            return row.column("location")
        case "FeatureOfInterest":
            return row.column("feature")
        case "Datastream" | "MultiDatastream":
            return row.column("observed_area", computed=True)
        case "Observation":
            return row.related(OBSERVATION.relations["FeatureOfInterest"]).column("feature")
        case "Thing":
            other = target(row.entity_type.relations["Locations"])
            alias = row.statement.name("g")
            conditions = is_related(row.entity_type.relations["Locations"], alias, row.column("id"))
            conditions += row.statement.conditions(other, alias)
            return (
                f"(SELECT {alias}.location FROM {other.table} AS {alias} WHERE {' AND '.join(conditions)}"
                f" ORDER BY {alias}.encoding_type IN {_ENCODINGS} DESC, {alias}.id LIMIT 1)"
            )
    raise RequestError(400, f"$resultFormat=GeoJSON: {row.entity_type.set_name} have no geometry")


def _geometry(column: str) -> str:
    inside = f"CASE WHEN {column} ->> 'type' = 'Feature' THEN {column} -> 'geometry' ELSE {column} END"
    return f"CASE WHEN ({inside}) ->> 'type' IN {_TYPES} THEN ({inside})::text ELSE 'null' END"
