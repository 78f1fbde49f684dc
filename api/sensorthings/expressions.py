"""Expressions compiled to SQL in the scope of a row: `$filter` and `$orderby`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from api.sensorthings.comparisons import NEVER, compare, compare_times
from api.sensorthings.errors import Fault
from api.sensorthings.functions import arithmetic, call
from api.sensorthings.geofunctions import Placed, condition, geo_value, placed
from api.sensorthings.geometry import ARGUMENTS, NUMERIC
from api.sensorthings.parser import COMPARISONS, MIRRORED, TEMPORAL, is_null
from api.sensorthings.rows import Row, id_of, is_related, value_of
from api.sensorthings.syntax import (
    Binary,
    Call,
    Expression,
    In,
    Lambda,
    Literal,
    LiteralKind,
    Not,
    Path,
)
from api.sensorthings.values import (
    Boolean,
    Duration,
    Geometry,
    Json,
    Null,
    Number,
    Parameters,
    Result,
    Text,
    Time,
    Value,
)
from citylab.entities import EntityType, Relation, target
from citylab.times import format_instant, parse_time

IDS = frozenset({"id", "@iot.id"})
_LARGEST = 2**63 - 1
_LONGEST_NUMBER = 400  # characters


@dataclass(slots=True)
class _Any:
    """The related rows that one comparison meets through to-many relations: it holds if it holds for any of them."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)

    def exists(self, sql: str = "TRUE") -> str:
        items = ", ".join(row.from_item() for row in self.rows.values())
        return f"EXISTS (SELECT FROM {items} WHERE {' AND '.join([*self.conditions, f'({sql})'])})"


@dataclass(slots=True)
class Scope:
    """Compiles expressions over `row`; variables are the rows of the lambdas around.

    wanted: whether it matters only where the expression is true, only where it is false, or (None) both, and null.
    The id of one of two relations in a column is that column, for an index's sake, and one of `guards`, which the
    comparison then needs, where only true matters; ordering: it does not matter which of the two it is.
    """

    row: Row
    variables: dict[str, Row] = field(default_factory=dict)
    any_of: _Any = field(default_factory=_Any)
    wanted: bool | None = True
    guards: list[str] = field(default_factory=list)
    ordering: bool = False

    @property
    def parameters(self) -> Parameters:
        """Where values of the request go."""
        return self.row.statement.parameters

    def predicate(self, node: Expression) -> str:
        """SQL of a boolean expression. Raises `Fault`."""
        match node:
            case Binary(operator="and" | "or" as operator):
                return f"({self.predicate(node.left)} {operator.upper()} {self.predicate(node.right)})"
            case Not():
                wanted = None if self.wanted is None else not self.wanted
                return f"(NOT {replace(self, wanted=wanted).predicate(node.operand)})"
            case Lambda():
                return self._lambda(node)
        positive = _without_not(node)
        return self._atom(node) if positive is None else self.predicate(Not(node.at, positive))

    def _atom(self, node: Expression) -> str:
        inner = replace(self, any_of=_Any(), guards=[])
        if (
            isinstance(node, Binary)
            and node.operator in {"eq", "ne"}
            and (is_null(node.left) or is_null(node.right))
        ):
            return replace(inner, wanted=None)._compare_null(node)
        sql = inner._geo_condition(node) or inner.value(node).boolean() or NEVER
        if inner.guards:
            sql = " AND ".join([f"({sql})", *inner.guards])
        return inner.any_of.exists(sql) if inner.any_of.rows else f"({sql})"

    def _compare_null(self, node: Binary) -> str:
        """`path eq null` holds too where a to-many relation of the path leads to nothing."""
        value = self.value(node.right if is_null(node.left) else node.left)
        sql = value.is_null() if node.operator == "eq" else f"NOT ({value.is_null()})"
        if not self.any_of.rows:
            return f"({sql})"
        exists = self.any_of.exists(sql)
        return f"(NOT {self.any_of.exists()} OR {exists})" if node.operator == "eq" else exists

    def value(self, node: Expression) -> Value:
        """The typed value of an expression. Raises `Fault`."""
        match node:
            case Literal():
                return self._literal(node)
            case Path():
                return self.path(node)
            case Call():
                return self._call(node)
            case In():
                return Boolean(True, self._in(node))
            case Binary() if node.operator in COMPARISONS or node.operator in TEMPORAL:
                left, right = self.value(node.left), self.value(node.right)
                return Boolean(True, f"({compare(node.operator, left, right, node.at)})")
            case Binary() if node.operator not in {"and", "or"}:
                return arithmetic(node.operator, self.value(node.left), self.value(node.right))
            case _:
                return Boolean(True, replace(self, wanted=None).predicate(node))

    def _call(self, node: Call) -> Value:
        if node.name in ARGUMENTS:
            return geo_value(self._placed(node))
        arguments = [self.value(argument) for argument in node.arguments]
        if node.name in TEMPORAL:
            return self._temporal(node, arguments)
        return call(node.name, arguments, node.at)

    def _geo_condition(self, node: Expression) -> str | None:
        """SQL of a geo function that is a condition by itself, or of its comparison with a number; None if it is neither."""
        bound: tuple[str, float] | None = None
        if isinstance(node, Binary) and node.operator in COMPARISONS:
            operator, function, literal = node.operator, node.left, node.right
            if isinstance(function, Literal):
                operator, function, literal = MIRRORED[operator], literal, function
            if not isinstance(literal, Literal) or literal.kind is not LiteralKind.NUMBER:
                return None
            self._literal(literal)  # it may be too large
            bound, node = (operator, float(str(literal.value))), function
        if not isinstance(node, Call) or node.name not in ARGUMENTS:
            return None
        if (node.name in NUMERIC) != (bound is not None):
            return None
        found = self._placed(node, bound)
        return condition(found, True if self.any_of.rows else self.wanted)

    def _placed(self, node: Call, bound: tuple[str, float] | None = None) -> Placed | None:
        return placed(node, [self.value(argument) for argument in node.arguments], self.parameters, bound)

    def _temporal(self, node: Call, arguments: list[Value]) -> Value:
        if len(arguments) != 2:
            raise Fault(node.at, f"{node.name} takes 2 arguments, not {len(arguments)}")
        left, right = (argument.time() for argument in arguments)
        if left is None or right is None:
            return Boolean(True, NEVER)
        return Boolean(True, f"({compare_times(node.name, left, right, node.at)})")

    def _in(self, node: In) -> str:
        value = self.value(node.value)
        choices = [self.value(choice) for choice in node.choices]
        if not node.listed and isinstance(choices[0], Json | Result):
            array, element = choices[0].json(), value.json()
            if element is None:
                return NEVER
            return f"(CASE WHEN jsonb_typeof({array}) = 'array' THEN {array} @> {element} END)"
        return f"({' OR '.join(compare('eq', value, choice, node.at) for choice in choices)})"

    def _lambda(self, node: Lambda) -> str:
        inner = replace(self, any_of=_Any())
        row, steps = inner._start(node.path)
        row, steps = inner._follow(row, steps, leave=1)
        relation = row.entity_type.relations.get(str(steps[0])) if len(steps) == 1 else None
        if relation is None or not relation.many:
            raise Fault(
                node.path.at, f"{'all' if node.every else 'any'} needs a relation to several entities"
            )
        row, conditions = self._open(row, relation)
        sql = "TRUE"
        if node.variable is not None and node.predicate is not None:
            sql = Scope(self.row, self.variables | {node.variable: row}).predicate(node.predicate)
        if node.every:
            sql = f"NOT coalesce({sql}, FALSE)"
        found = f"EXISTS (SELECT FROM {row.from_item()} WHERE {' AND '.join([*conditions, f'({sql})'])})"
        if node.every:
            found = f"NOT {found}"
        return inner.any_of.exists(found) if inner.any_of.rows else f"({found})"

    # Paths ------------------------------------------------------------------------------------------------------

    def path(self, node: Path) -> Value:
        """What a path leads to: a property, an id, or a member of a JSON value. Raises `Fault` if it leads nowhere."""
        row, steps = self._start(node)
        row, steps = self._follow(row, steps)
        if not steps:
            raise Fault(node.at, "a property was expected after the relation")
        first, *members = steps
        if isinstance(first, int):
            raise Fault(node.at, f"{row.entity_type.name} is no array")
        relation = row.entity_type.relations.get(first)
        if relation is not None:  # a to-one relation stands for its id, which this side's table holds
            never_null = relation.required or relation.either is not None
            return Number(row.joined or not never_null, row.column(relation.column), "int8")
        if first in IDS and not members:
            return id_of(row)
        known = row.entity_type.properties.get(first)
        if known is None:
            raise Fault(node.at, unknown(row.entity_type, first))
        value = value_of(row, known)
        return self._member(value, members, node) if members else value

    def _member(self, value: Value, members: list[str | int], node: Path) -> Value:
        match value:
            case Json():
                sql = f"({value.sql})"
            case Result():
                sql = value.of_json
            case _:
                raise Fault(node.at, f"{node.steps[-len(members) - 1]} has no members")
        return Json(True, f"({member_sql(sql, members, self.parameters)})")

    def _start(self, node: Path) -> tuple[Row, list[str | int]]:
        first, *rest = node.steps
        if isinstance(first, str) and first in self.variables:
            return self.variables[first], rest
        return (self.row, rest) if first == "$it" else (self.row, list(node.steps))

    def _follow(self, row: Row, steps: list[str | int], *, leave: int = 0) -> tuple[Row, list[str | int]]:
        """Go along the relations at the beginning of a path, but for the last `leave` steps of it."""
        while len(steps) > leave:
            relation = row.entity_type.relations.get(str(steps[0]))
            if relation is None:
                break
            ends = len(steps) == 1 or (len(steps) == 2 and steps[1] in IDS)
            if ends and not relation.many:
                if relation.either is not None and self.wanted is not True:
                    return row.related(relation), ["id"]
                if relation.either is not None and not self.ordering:
                    self.guards.append(relation.either.of_column.format(row=row.alias))
                return row, [relation.name]
            row = self._any_related(row, relation) if relation.many else row.related(relation)
            steps = steps[1:]
        return row, steps

    def _any_related(self, row: Row, relation: Relation) -> Row:
        key = (row.alias, relation.name)
        if key not in self.any_of.rows:
            other, conditions = self._open(row, relation)
            self.any_of.rows[key] = other
            self.any_of.conditions += conditions
        return self.any_of.rows[key]

    def _open(self, row: Row, relation: Relation) -> tuple[Row, list[str]]:
        other = Row.new(row.statement, target(relation, row.statement.types))
        conditions = is_related(relation, other.alias, row.column("id"))
        return other, conditions + row.statement.conditions(other.entity_type, other.alias)

    # Literals ---------------------------------------------------------------------------------------------------

    def _literal(self, node: Literal) -> Value:
        value = node.value
        match node.kind:
            case LiteralKind.NULL:
                return Null()
            case LiteralKind.BOOLEAN:
                return Boolean(False, "TRUE" if value else "FALSE")
            case LiteralKind.NUMBER:
                return self._number(str(value), node.at)
            case LiteralKind.TIME:
                assert isinstance(value, tuple)
                return self._time(*value)
            case LiteralKind.DURATION:
                return Duration(False, self.parameters.add(f"{value} microseconds", "interval"))
            case LiteralKind.GEOMETRY:
                return Geometry(False, str(value))
            case _:
                text = str(value)
                midnight = "T00:00:00Z" if node.kind is LiteralKind.DATE else ""
                return Text(
                    False,
                    self.parameters.add(text, "text"),
                    literal=True,
                    parse=lambda: self._time_in(text + midnight),
                )

    def _number(self, text: str, at: int) -> Number:
        if len(text) > _LONGEST_NUMBER:
            raise Fault(at, f"a number of more than {_LONGEST_NUMBER} characters")
        cast = "float8"
        if text.lstrip("-").isdecimal():
            cast = "int8" if abs(int(text)) <= _LARGEST else "numeric"
        elif abs(float(text)) == float("inf"):
            raise Fault(at, "a number that is too large")
        return Number(False, self.parameters.add(text, cast), cast)

    def _time(self, start: int, end: int | None) -> Time:
        first = self.parameters.add(format_instant(start), "timestamptz")
        last = None if end is None else self.parameters.add(format_instant(end), "timestamptz")
        return Time(False, first, last, always_interval=end is not None)

    def _time_in(self, text: str) -> Time | None:
        try:
            return self._time(*parse_time(text))
        except ValueError:
            return None


def _without_not(node: Expression) -> Expression | None:
    """What `not result lt 5` denies; None for a condition that does not begin with `not`.

    By its precedence `not` belongs to the first operand alone, where it is either an equivalent or makes no sense.
    """
    match node:
        case Not():
            return node.operand
        case Binary():
            left = _without_not(node.left)
            return None if left is None else replace(node, left=left)
        case In():
            value = _without_not(node.value)
            return None if value is None else replace(node, value=value)
    return None


def unknown(entity_type: EntityType, name: str) -> str:
    """Say that an entity type has no such property, and which it has."""
    names = ", ".join(["id", *entity_type.properties, *entity_type.relations])
    return f"{entity_type.name} has no property {name!r} (it has {names})"


def member_sql(sql: str, members: Iterable[str | int], parameters: Parameters) -> str:
    """A member of a jsonb, null where there is none."""
    for member in members:  # not `-> 0`: of a string that is the string itself
        sql += f" #> '{{{member}}}'" if isinstance(member, int) else f" -> {parameters.add(member, 'text')}"
    return sql
