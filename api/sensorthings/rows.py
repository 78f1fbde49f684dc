"""Rows of entities inside a statement: their columns, and the joins by which they reach related entities."""

from dataclasses import dataclass, field

from api.sensorthings.geometry import Source
from api.sensorthings.values import (
    Json,
    Number,
    Parameters,
    Result,
    Text,
    Time,
    Value,
)
from citylab.entities import EntityType, EntityTypes, Kind, Property, Relation, target
from citylab.entity_json import FLAGS
from citylab.policy import Visible


class Statement:
    """What all parts of one statement share: parameters, names that are used once, what may be seen and what there is."""

    def __init__(self, visible: Visible, types: EntityTypes) -> None:
        self.parameters = Parameters()
        self.visible = visible
        self.types = types
        self._names = 0

    def name(self, kind: str) -> str:
        """A name that nothing else in the statement has."""
        self._names += 1
        return f"{kind}{self._names}"

    def conditions(self, entity_type: EntityType, alias: str) -> list[str]:
        """The condition of the policy, if there is one."""
        condition = self.visible(entity_type, alias)
        return [] if condition == "TRUE" else [condition]


@dataclass(eq=False, slots=True)
class Row:
    """A row of an entity type in a FROM clause, with what is joined to it as it is needed."""

    statement: Statement
    entity_type: EntityType
    alias: str
    root: "Row | None" = None  # the row whose FROM item this one is joined to
    joins: list[str] = field(default_factory=list)
    via: "tuple[Row, Relation] | None" = None  # the row and the relation that lead to this one
    _latest: bool = False
    _related: dict[str, "Row"] = field(default_factory=dict)

    @classmethod
    def new(cls, statement: Statement, entity_type: EntityType) -> "Row":
        """A row that begins a FROM item of its own."""
        return cls(statement, entity_type, statement.name("t"))

    def from_item(self) -> str:
        """The FROM item; to be written when all that refers to the row has been compiled."""
        return " ".join([f"{self.entity_type.table} AS {self.alias}", *self.joins])

    def ranked(self, relation: Relation | None, own: str | None) -> str | None:
        """Join the table that gives the targets of `relation` their order, if it has one; SQL of the place in it."""
        if relation is None or relation.link is None or not relation.link.rank:
            return None
        link, alias = relation.link, f"{self.alias}_r"
        self.join(
            f"JOIN {link.name} AS {alias} ON {alias}.{link.other} = {self.alias}.id AND {alias}.{link.own} = {own}"
        )
        return f"{alias}.{link.rank}"

    def column(self, name: str, *, computed: bool = False) -> str:
        """SQL of a column; a computed one is in `latest`."""
        if not computed:
            return f"{self.alias}.{name}"
        if not self._latest:
            self._latest = True
            self.join(f"LEFT JOIN latest AS {self.alias}_l ON {self.alias}_l.datastream_id = {self.alias}.id")
        return f"{self.alias}_l.{name}"

    def related(self, relation: Relation) -> "Row":
        """The row that a to-one relation leads to, joined once."""
        if relation.name not in self._related:
            other = target(relation, self.statement.types)
            row = Row(
                self.statement, other, self.statement.name("t"), self.root or self, via=(self, relation)
            )
            conditions = [f"{row.alias}.id = {self.column(relation.column)}"]
            conditions += self.statement.conditions(other, row.alias)
            self.join(f"LEFT JOIN {other.table} AS {row.alias} ON {' AND '.join(conditions)}")
            self._related[relation.name] = row
        return self._related[relation.name]

    @property
    def key(self) -> str:
        """SQL of its id: of the foreign key that leads to it, where nothing hides the row, so that no join is needed."""
        if self.via and not self.statement.conditions(self.entity_type, self.alias):
            return self.via[0].column(self.via[1].column)
        return self.column("id")

    @property
    def joined(self) -> bool:
        """Whether it may be missing, being joined to another."""
        return self.root is not None

    def join(self, clause: str) -> None:
        """Add a clause to the FROM item."""
        (self.root or self).joins.append(clause)


@dataclass(frozen=True, slots=True)
class Place(Json):
    """A geometry that a row holds, and where it is stored."""

    row: Row | None = None
    source: Source | None = None


def is_related(relation: Relation, alias: str, own: str, foreign: str = "") -> list[str]:
    """Conditions under which the row `alias` is what `relation` leads to.

    own: SQL of the id on this side; foreign: SQL of this side's foreign key, for a to-one relation.
    """
    if not relation.many:
        return [f"{alias}.id = {foreign}"]
    if relation.link:
        link = relation.link
        return [f"{alias}.id IN (SELECT l.{link.other} FROM {link.name} l WHERE l.{link.own} = {own})"]
    conditions = [f"{alias}.{relation.column} = {own}"]
    if relation.narrowed_by:
        narrow = relation.narrowed_by
        column = target(relation).relations[narrow.relation].column
        conditions.append(
            f"{alias}.{column} IN (SELECT n.{narrow.other} FROM {narrow.table} n WHERE n.{narrow.own} = {own})"
        )
    return conditions


def value_of(row: Row, known: Property) -> Value:
    """A property of a row."""
    columns = [row.column(c, computed=known.computed) for c in known.columns]
    nullable = row.joined or not known.always or known.nullable
    match known.kind:
        case Kind.TEXT:
            return Text(nullable, columns[0])
        case Kind.INSTANT:
            return Time(nullable, columns[0])
        case Kind.TIME:
            return Time(nullable, columns[0], columns[1])
        case Kind.INTERVAL:
            return Time(nullable, columns[0], columns[1], always_interval=True)
        case Kind.RESULT:
            return Result(nullable, columns[0], columns[1])
        case Kind.QUALITY:
            return Json(nullable, quality_json(columns[0], columns[1]))
        case Kind.JSON if known.geometry:
            table, key = ("latest", "datastream_id") if known.computed else (row.entity_type.table, "id")
            return Place(nullable, columns[0], row, Source(table, key, known.columns[0]))
        case _:
            return Json(nullable, columns[0])


def id_of(row: Row) -> Number:
    """The id of a row."""
    return Number(row.joined, row.column("id"), "int8")


def quality_json(remark: str, flag: str) -> str:
    """resultQuality: what came through the API, or the flag of a stream."""
    flags = " ".join(f'WHEN {i} THEN \'{{"flag": "{name}"}}\'::jsonb' for i, name in FLAGS.items())
    return f"coalesce({remark}, CASE {flag} {flags} END)"
