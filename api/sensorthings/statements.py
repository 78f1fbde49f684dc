"""A resource and a query compiled to one SQL statement, whose answer is JSON text.

A collection is a page of rows, limited and ordered in an inner query, over which JSON is made in an outer one; what is
expanded is joined to it laterally, one subquery a relation, each again such a page. `OFFSET 0` keeps PostgreSQL from
turning a lateral subquery into another kind of join, which would lose the order of the page.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from api.sensorthings.errors import Fault
from api.sensorthings.expressions import Scope, member_sql, unknown
from api.sensorthings.members import property_member, select
from api.sensorthings.options import write_query
from api.sensorthings.ordering import Key, after_token, order_of, token_sql
from api.sensorthings.resource import Resource, Step
from api.sensorthings.rows import Row, Statement, is_related
from api.sensorthings.syntax import Expand, Query
from api.sensorthings.windows import Windowed, first_datastream, of_first_datastreams, windowed
from citylab.entities import (
    DATASTREAM,
    ENTITY_TYPES,
    MULTI_DATASTREAM,
    OBSERVATION,
    EntityType,
    EntityTypes,
    Property,
    Relation,
    target,
)
from citylab.entity_json import BASE, Piece, Sql, concat, literal, navigation_link, property_json
from citylab.policy import Visible

LARGEST_PAGE = 10_000
LARGEST_TEXT = 8 << 20  # bytes of the entities on a page with others inside them
ANCHORED = 128  # every such id is in the index observations_anchors
_PAGES = 5  # of the table, from an anchor on: more than lie between two
_GEOMETRIES = frozenset({"location", "feature", "observedArea"})
_COUNTED = (DATASTREAM.relations["Observations"], MULTI_DATASTREAM.relations["Observations"])


class Compiled(NamedTuple):
    """A statement whose parameters lack only `base`, the address of the service, and the ids `id0`, `id1`, ...

    window: how its page is looked for; its parameters `from` and `to` are then the bounds of the window tried;
    first: the statement that is tried before, whose page stands if it is full, with `wanted` rows: it looks at the
    instant `from` alone, or at the first Datastreams.
    """

    sql: str
    parameters: dict[str, object]
    window: Windowed | None = None
    first: str = ""
    wanted: int = 0


@dataclass(slots=True)
class Page:
    """The columns that the inner query of a page gives to the outer one, which calls it `alias`."""

    row: Row
    alias: str
    columns: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def column(self, sql: str) -> str:
        """Take a column, or any expression of the inner query, out."""
        name = self.columns.setdefault(sql, f"c{len(self.columns)}")
        return f"{self.alias}.{name}"

    def property(self, known: Property) -> list[str]:
        """Take a property's columns out."""
        return [self.column(self.row.column(c, computed=known.computed)) for c in known.columns]

    def text(self, sql: str) -> str:
        """Make a text of the columns once for each row of the page, for several places in its JSON."""
        name = self.texts.setdefault(sql, f"t{len(self.texts)}")
        return f"{self.alias}.{name}"

    def source(self, inner: str) -> str:
        """The FROM item of the outer query over an inner one, with the texts."""
        if not self.texts:
            return f"({inner}) AS {self.alias}"
        texts = ", ".join(f"{sql} AS {name}" for sql, name in self.texts.items())
        return f"(SELECT *, {texts} FROM ({inner}) AS {self.alias} OFFSET 0) AS {self.alias}"

    def select(self, where: str) -> str:
        """The inner query; to be written when every column has been taken."""
        columns = ", ".join(f"{sql} AS {name}" for sql, name in self.columns.items()) or "1 AS nothing"
        return f"SELECT {columns} FROM {self.row.from_item()}{where}"


class Rows(NamedTuple):
    """The rows of a collection: the page that they are on, their condition and their order."""

    page: Page
    where: str
    keys: list[Key]

    def ordered(self, query: Query, limit: int | None) -> str:
        """The inner query in its order."""
        order = ", ".join(key.clause() for key in self.keys)
        limited = "" if limit is None else f" LIMIT {limit}"
        skip = query.skip if query.skiptoken is None else 0
        return f"{self.page.select(self.where)} ORDER BY {order}{limited} OFFSET {skip}"

    def numbered(self, query: Query, top: int, columns: Sequence[str], joins: Sequence[str] = ()) -> str:
        """Columns over the page and the first row of the next, numbered from 1 in the column n.

        Numbering copies every row, so it is the last step, over no more columns than those.
        """
        source = self.page.source(self.ordered(query, top + 1 if top else 0))
        made = f"SELECT {', '.join(columns)} FROM {source}{''.join(joins)} OFFSET 0"
        return f"SELECT *, row_number() OVER () AS n FROM ({made}) AS q"

    def token_columns(self) -> list[str]:
        """The keys of the order, each as SQL that names it: what a token is made of."""
        return [f"{self.page.column(key.sql)} AS k{i}" for i, key in enumerate(self.keys)]

    def token(self, alias: str) -> str:
        """SQL of the token of a row that has `token_columns`."""
        return token_sql([f"{alias}.k{i}" for i in range(len(self.keys))])


class Parts(NamedTuple):
    """A collection's pieces: JSON of its entities, how many were found, the token after the last one if more remain, FROM."""

    entities: str
    found: str
    token: str
    source: str


Render = Callable[[Rows, Query, int], Parts]  # the last: how many entities the page holds


class Compiler:
    """Compiles for one service. page: how many entities a page has when the request does not say; types: its entities."""

    def __init__(self, visible: Visible, *, page: int, types: EntityTypes = ENTITY_TYPES) -> None:
        self._visible = visible
        self.types = types
        self._page = page

    def collection(self, resource: Resource, query: Query, render: Render | None = None) -> Compiled:
        """A page, in one row. render: makes something else of it than an array of entities.

        JSON of the entities, how many were found (one more than the page has, if there are more), the next page's
        token or null, the count or null, whether the parent exists.
        """
        top = self.top(query)
        if resource.entity_type is not OBSERVATION or len(resource.steps) > 1 or not top:
            return self._page_of(resource, query, render, None)
        window = windowed(query, top)
        compiled = self._page_of(resource, query, render, window)
        after = first_datastream(query) if window is None else window.after
        if after is None:
            return compiled

        def narrowed(alias: str) -> list[str]:
            return [of_first_datastreams(alias, top + 1)] if window is None else window.at_instant(alias)

        first = self._page_of(resource, query, render, window, narrowed).sql
        parameters = compiled.parameters | {"after": str(after)}
        return compiled._replace(parameters=parameters, first=first, wanted=top + 1)

    def _page_of(
        self,
        resource: Resource,
        query: Query,
        render: Render | None,
        window: Windowed | None,
        narrowed: Callable[[str], list[str]] | None = None,
    ) -> Compiled:
        """A page; narrowed: conditions of its rows that stand in the window's place."""
        statement = Statement(self._visible, self.types)
        step = resource.steps[-1]
        owner = self._owner_sql(resource.steps)

        def conditions(alias: str) -> list[str]:
            return self._reached(resource.steps, alias)

        parts = self._collection(
            statement,
            step.entity_type,
            query,
            conditions,
            reference=resource.reference,
            nested=False,
            window=window,
            narrowed=narrowed,
            render=render,
            relation=step.relation,
            owner=owner,
        )
        count = self._count(statement, step, query, conditions, owner) if query.count else "NULL"
        parent = "TRUE"
        if owner is not None:
            parent = f"CASE WHEN {parts.found} = 0 THEN {self._exists(resource.steps[:-1])} ELSE TRUE END"
        sql = f"SELECT {parts.entities}, {parts.found}, {parts.token}, {count}, {parent} {parts.source}"
        return Compiled(sql, statement.parameters.values, window)

    def lines(
        self, resource: Resource, query: Query, render: Callable[[Rows], tuple[str, list[str]]]
    ) -> Compiled:
        """Everything that a query finds, in its order: one row with one text for each entity, which `render` makes."""
        statement = Statement(self._visible, self.types)
        rows = self.rows(
            statement,
            resource.entity_type,
            query,
            lambda alias: self._reached(resource.steps, alias),
            relation=resource.steps[-1].relation,
            owner=self._owner_sql(resource.steps),
        )
        text, joins = render(rows)
        source = f"{rows.page.source(rows.ordered(query, query.top))}{''.join(joins)}"
        return Compiled(f"SELECT {text} FROM {source}", statement.parameters.values)

    def entity(self, resource: Resource, query: Query) -> Compiled:
        """One row with the entity's JSON and its tag (null where others are expanded in it), or none."""
        statement = Statement(self._visible, self.types)
        step = resource.steps[-1]
        row = Row.new(statement, step.entity_type)
        page = Page(row, statement.name("p"))
        pieces, joins = self.entity_json(page, query, reference=resource.reference, nested=False)
        json = concat(pieces)
        # Which transaction wrote the row: computed properties, which are in another table, do not change it.
        tag = "NULL" if query.expand or resource.reference else f"{page.column(row.column('xmin'))}::text"
        where = self._where(row, self._reached(resource.steps, row.alias), Query())
        inner = _one(resource.steps, page.select(where), row.alias)
        sql = f"SELECT {json}, {tag} FROM {page.source(inner + ' OFFSET 0')}{''.join(joins)}"
        return Compiled(sql, statement.parameters.values)

    def observations_by_key(self) -> Compiled:
        """Id, JSON and tag of Observations that the API made, by the parameters `series`, `times` and `ids`."""
        statement = Statement(self._visible, self.types)
        row = Row.new(statement, OBSERVATION)
        page = Page(row, statement.name("p"))
        pieces, _ = self.entity_json(page, Query(), reference=False, nested=False)
        own, tag = page.column(row.column("id")), page.column(row.column("xmin"))
        key = ", ".join(row.column(column) for column in OBSERVATION.default_order)
        keys = "SELECT * FROM unnest(%(series)s::int8[], %(times)s::timestamptz[], %(ids)s::int8[])"
        where = self._where(row, [f"({key}) IN ({keys})"], Query())
        sql = f"SELECT {own}, {concat(pieces)}, {tag}::text FROM {page.source(page.select(where) + ' OFFSET 0')}"
        return Compiled(sql, statement.parameters.values)

    def property(self, resource: Resource) -> Compiled:
        """One row with the property's JSON text or null, and as a value its raw text or null; or no row."""
        statement = Statement(self._visible, self.types)
        row = Row.new(statement, resource.entity_type)
        known = resource.of_property
        if known is None:
            json, raw = (f"{row.column('id')}::text",) * 2
        else:
            columns = [row.column(c, computed=known.computed) for c in known.columns]
            json, raw = property_json(known, columns), "NULL"
            if resource.members or resource.value:
                json = member_sql(f"({json})::jsonb", resource.members, statement.parameters)
                json, raw = f"({json})::text", f"({json}) #>> '{{}}'"
        where = self._where(row, self._reached(resource.steps, row.alias), Query())
        query = _one(resource.steps, f"SELECT {json}, {raw} FROM {row.from_item()}{where}", row.alias)
        return Compiled(query, statement.parameters.values)

    def matching(self, resource: Resource, query: Query) -> Compiled:
        """The keys of the entities that a path leads to and a filter matches: the columns of the default order."""
        statement = Statement(self._visible, self.types)
        row = Row.new(statement, resource.entity_type)
        with located("$filter", query, nested=False):
            where = self._where(row, self._reached(resource.steps, row.alias), query)
        keys = ", ".join(row.column(column) for column in resource.entity_type.default_order)
        return Compiled(f"SELECT {keys} FROM {row.from_item()}{where}", statement.parameters.values)

    def existence(self, steps: Sequence[Step]) -> Compiled:
        """One row: whether the entity exists, and all those on the way to it belong together; and its id."""
        sql = f"SELECT {self._exists(steps)}, {self._id(steps)}"
        return Compiled(sql, {})

    # Collections ------------------------------------------------------------------------------------------------

    def _collection(
        self,
        statement: Statement,
        entity_type: EntityType,
        query: Query,
        conditions: Callable[[str], list[str]],
        *,
        reference: bool,
        nested: bool,
        relation: Relation | None,
        owner: str | None,
        window: Windowed | None = None,
        narrowed: Callable[[str], list[str]] | None = None,
        render: Render | None = None,
    ) -> Parts:
        rows = self.rows(
            statement,
            entity_type,
            query,
            conditions,
            relation=relation,
            owner=owner,
            nested=nested,
            window=window,
            narrowed=narrowed,
        )
        page, top = rows.page, self.top(query)
        if render is not None:
            return render(rows, query, top)
        pieces, joins = self.entity_json(page, query, reference=reference, nested=nested)
        columns = [f"{concat(pieces)} AS j", *rows.token_columns()]
        name = statement.name("n")
        numbered = rows.numbered(query, top, columns, joins)
        if joins:
            # What is inside multiplies from level to level: a page ends where its text would become too long.
            # No aggregate says an order of its own: PostgreSQL would give all of them the rows in that.
            sized = f"SELECT *, sum(octet_length(j)) OVER (ROWS UNBOUNDED PRECEDING) AS size FROM ({numbered}) AS t"
            fits = f"{name}.n <= {top} AND ({name}.size <= {LARGEST_TEXT} OR {name}.n = 1)"
            return Parts(
                f"string_agg({name}.j, ',') FILTER (WHERE {fits})",
                "count(*)",
                f"CASE WHEN bool_or(NOT ({fits})) AND {top} > 0"
                f" THEN (array_agg({rows.token(name)}) FILTER (WHERE {fits}))[count(*) FILTER (WHERE {fits})] END",
                f"FROM ({sized}) AS {name}",
            )
        last = f"max({rows.token(name)}) FILTER (WHERE {name}.n = {top})"
        return Parts(
            f"string_agg({name}.j, ',') FILTER (WHERE {name}.n <= {top})",
            "count(*)",
            f"CASE WHEN count(*) > {top} AND {top} > 0 THEN {last} END",
            f"FROM ({numbered}) AS {name}",
        )

    def rows(
        self,
        statement: Statement,
        entity_type: EntityType,
        query: Query,
        conditions: Callable[[str], list[str]],
        *,
        relation: Relation | None,
        owner: str | None,
        nested: bool = False,
        window: Windowed | None = None,
        narrowed: Callable[[str], list[str]] | None = None,
    ) -> Rows:
        """What a query finds; conditions: what else holds for the row of this alias.

        relation, owner: by which it is reached, and SQL of the id of the entity that it is reached from.
        """
        row = Row.new(statement, entity_type)
        rank = row.ranked(relation, owner)
        with located("$orderby", query, nested=nested):
            keys = order_of(row, query.orderby, rank)
        reached = conditions(row.alias)
        if query.skiptoken is not None:
            reached.append(after_token(keys, query.skiptoken, statement.parameters))
        if narrowed is not None:
            reached += narrowed(row.alias)
        elif window:
            column = row.column(window.column)
            reached += [f"{column} >= %(from)s::{window.cast}", f"{column} <= %(to)s::{window.cast}"]
        with located("$filter", query, nested=nested):
            where = self._where(row, reached, query)
        return Rows(Page(row, statement.name("p")), where, keys)

    def top(self, query: Query) -> int:
        """How many entities a page holds."""
        return self._page if query.top is None else min(query.top, LARGEST_PAGE)

    def _where(self, row: Row, reached: list[str], query: Query) -> str:
        conditions = [*reached, *row.statement.conditions(row.entity_type, row.alias)]
        if query.filter is not None:
            conditions.append(Scope(row).predicate(query.filter))
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""

    def _count(
        self,
        statement: Statement,
        step: Step,
        query: Query,
        conditions: Callable[[str], list[str]],
        owner: str | None,
    ) -> str:
        """SQL of how many there are; of unfiltered Observations from the counts that `latest` keeps."""
        entity_type = step.entity_type
        kept = (
            entity_type is OBSERVATION and query.filter is None and not statement.conditions(entity_type, "x")
        )
        if kept and owner is None:
            return "(SELECT coalesce(sum(l.count), 0)::int8 FROM latest l)"
        if kept and step.relation in _COUNTED:
            return f"coalesce((SELECT l.count FROM latest l WHERE l.datastream_id = {owner}), 0)"
        row = Row.new(statement, entity_type)
        row.ranked(step.relation, owner)
        where = self._where(row, conditions(row.alias), query)
        return f"(SELECT count(*) FROM {row.from_item()}{where})"

    # Entities ---------------------------------------------------------------------------------------------------

    def entity_json(
        self, page: Page, query: Query, *, reference: bool, nested: bool, feature: bool = False
    ) -> tuple[list[Piece], list[str]]:
        """The pieces of an entity's JSON, and the lateral joins that they need.

        feature: as the properties of a GeoJSON feature, without what is its geometry.
        """
        entity_type = page.row.entity_type
        own = page.column(page.row.column("id"))
        place = literal(f"{entity_type.set_name}(")
        identity = Sql(page.text(f"{own}::text"), always=True)
        link: list[Piece] = [Sql(page.text(f"{BASE} || {place} || {own}"), always=True), ")"]
        if reference:
            return ['{"@iot.selfLink":"', *link, '"}'], []
        with located("$select", query, nested=nested):
            selection = select(entity_type, query.select, links=not nested and not feature)
        members: list[Piece] = []
        if "selfLink" in selection.control:
            members += [',"@iot.selfLink":"', *link, '"']
        if "id" in selection.control:
            members += [',"@iot.id":', identity]
        for name, paths in selection.properties.items():
            if feature and name in _GEOMETRIES:
                continue
            known = entity_type.properties[name]
            members += property_member(known, page.property(known), paths, page.row.statement.parameters)
        for name in entity_type.relations:
            if name in selection.links:
                members += navigation_link(
                    entity_type,
                    name,
                    link,
                    selection.links,
                    lambda sql: page.column(sql.format(row=page.row.alias)),
                )
        joins: list[str] = []
        with located("$expand", query, nested=nested):
            for expand in query.expand:
                relation = entity_type.relations.get(expand.relation)
                if relation is None:
                    raise Fault(expand.at, unknown(entity_type, expand.relation))
                sql, join = self._expanded(page, expand, relation)
                members.append(Sql(sql))
                joins.append(join)
        return _braced(members), joins

    def _expanded(self, page: Page, expand: Expand, relation: Relation) -> tuple[str, str]:
        """A relation's member, and the lateral subquery that makes it."""
        statement = page.row.statement
        alias = statement.name("e")
        own = page.column(page.row.column("id"))
        foreign = "" if relation.many else page.column(page.row.column(relation.column))
        other = target(relation, self.types)

        def conditions(row: str) -> list[str]:
            return is_related(relation, row, own, foreign)

        if not relation.many:
            inner = Page(Row.new(statement, other), statement.name("p"))
            pieces, joins = self.entity_json(inner, expand.query, reference=False, nested=True)
            where = self._where(inner.row, conditions(inner.row.alias), expand.query)
            source = f"{inner.source(inner.select(where) + ' OFFSET 0')}{''.join(joins)}"
            join = (
                f" LEFT JOIN LATERAL (SELECT {concat(pieces)} AS j FROM {source} OFFSET 0) AS {alias} ON TRUE"
            )
            return f"',\"{relation.name}\":' || coalesce({alias}.j, 'null')", join
        parts = self._collection(
            statement,
            other,
            expand.query,
            conditions,
            reference=False,
            nested=True,
            relation=relation,
            owner=own,
        )
        pieces = []
        if expand.query.count:
            step = Step(other, relation)
            count = self._count(statement, step, expand.query, conditions, own)
            pieces += [f',"{relation.name}@iot.count":', Sql(count)]
        pieces += [f',"{relation.name}":[', Sql(parts.entities), "]"]
        link = f"{page.row.entity_type.set_name}("
        options = write_query(expand.query.options())
        after = f")/{relation.name}?{options}{'&' if options else ''}$skiptoken="
        token = f"{BASE} || {literal(link)} || {own} || {literal(after)} || {parts.token}"
        pieces.append(Sql(f"',\"{relation.name}@iot.nextLink\":\"' || {token} || '\"'"))
        join = f" LEFT JOIN LATERAL (SELECT {concat(pieces)} AS j {parts.source}) AS {alias} ON TRUE"
        return f"{alias}.j", join

    # Paths ------------------------------------------------------------------------------------------------------

    def _reached(self, steps: Sequence[Step], alias: str) -> list[str]:
        """The conditions under which the row `alias` is what the path leads to."""
        step = steps[-1]
        conditions = [] if step.id is None else [f"{alias}.id = {_id_parameter(step)}"]
        if step.relation is not None:
            before = steps[:-1]
            own = self._id(before)
            foreign = ""
            if not step.relation.many:
                foreign = self._column(before, step.relation.column)
            conditions += is_related(step.relation, alias, own, foreign)
            if step.relation.many and target(step.relation).relations[step.relation.inverse].either:
                conditions.append(self._exists(before))  # the id might be one of the other relation's
        return conditions

    def _owner_sql(self, steps: Sequence[Step]) -> str | None:
        return self._id(steps[:-1]) if len(steps) > 1 else None

    def _id(self, steps: Sequence[Step]) -> str:
        """SQL of the id of the entity that steps lead to; null if they do not belong together."""
        return _id_parameter(steps[0]) if len(steps) == 1 else self._column(steps, "id")

    def _column(self, steps: Sequence[Step], column: str) -> str:
        """SQL of a column of the entity that steps lead to."""
        alias = f"s{len(steps)}"
        statement = Statement(self._visible, self.types)
        entity_type = steps[-1].entity_type
        conditions = self._reached(steps, alias) + statement.conditions(entity_type, alias)
        query = f"SELECT {alias}.{column} FROM {entity_type.table} {alias} WHERE {' AND '.join(conditions)}"
        return f"({_one(steps, query, alias)})"

    def _exists(self, steps: Sequence[Step]) -> str:
        return f"({self._column(steps, 'id')} IS NOT NULL)"


@contextmanager
def located(option: str, query: Query, *, nested: bool = False) -> Iterator[None]:
    """Let a fault say in which option it is; inside `$expand` positions count in the text of the outermost."""
    try:
        yield
    except Fault as fault:
        if nested:
            raise
        raise fault.in_text(option, query.texts[option]) from None


def _one(steps: Sequence[Step], query: str, alias: str) -> str:
    """A query that finds one row at most. An Observation is looked for where its id says that it lies, then everywhere."""
    step = steps[-1]
    if len(steps) > 1 or step.entity_type is not OBSERVATION:
        return query
    anchor = (
        f"SELECT a.ctid AS low, format('(%%s,0)', (a.ctid::text::point)[0]::int8 + {_PAGES})::tid AS high"
        f" FROM observations a WHERE a.id %% {ANCHORED} = 0 AND a.id <= {_id_parameter(step)} ORDER BY a.id DESC LIMIT 1"
    )
    near = (
        f"{query} AND {alias}.ctid >= (SELECT low FROM anchor) AND {alias}.ctid < (SELECT high FROM anchor)"
    )
    return f"(WITH anchor AS MATERIALIZED ({anchor}) {near}) UNION ALL ({query}) LIMIT 1"


def _id_parameter(step: Step) -> str:
    return f"%(id{step.id})s::int8"


def _braced(members: list[Piece]) -> list[Piece]:
    """Members with leading commas as an object: the first comma goes."""
    if not members:
        return ["{}"]
    first = members[0]
    if isinstance(first, str):
        return ["{" + first[1:], *members[1:], "}"]
    return ["{", Sql(f"substr({concat(members)}, 2)"), "}"]
