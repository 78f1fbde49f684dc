"""The geo functions of `$filter` and `$orderby` (OGC 18-088 §9.3.3.5.2) in SQL: as rows found beforehand, by their ids.

The ids, and what the functions are for them, are parameters that are made when the statement runs
(`geometries`), so that a compiled statement serves again. What is no geometry is among none of them: null.
"""

from collections.abc import Sequence
from typing import NamedTuple

from api.sensorthings.comparisons import NEVER
from api.sensorthings.errors import Fault
from api.sensorthings.geometry import ARGUMENTS, NUMERIC, Column, Measure, Part, Source, evaluate, is_pattern
from api.sensorthings.rows import Place, Row
from api.sensorthings.syntax import Call, Literal, LiteralKind
from api.sensorthings.values import Boolean, Geometry, Null, Number, Parameters, Value
from citylab.entities import target

MOST_MEASURES = 20  # of one request


class Placed(NamedTuple):
    """A measure, and the rows whose geometries its stored operands are."""

    measure: Measure
    rows: tuple[Row, ...]
    parameters: Parameters


def placed(
    node: Call, arguments: Sequence[Value], parameters: Parameters, bound: tuple[str, float] | None
) -> Placed | None:
    """Read a geo function; None where an argument can be no geometry. Raises `Fault`."""
    wanted = ARGUMENTS[node.name]
    if len(arguments) != wanted:
        raise Fault(
            node.at, f"{node.name} takes {wanted} argument{'' if wanted == 1 else 's'}, not {len(arguments)}"
        )
    pattern = ""
    if node.name == "st_relate":
        last = node.arguments[2]
        if (
            not isinstance(last, Literal)
            or last.kind is not LiteralKind.STRING
            or not is_pattern(str(last.value))
        ):
            raise Fault(last.at, "the pattern of st_relate is a string of nine of 0 1 2 T F *")
        pattern, arguments = str(last.value), arguments[:2]
    operands: list[Source | str] = []
    rows = []
    for argument in arguments:
        if isinstance(argument, Geometry):
            operands.append(argument.wkt)
        elif isinstance(argument, Place) and argument.row is not None and argument.source is not None:
            operands.append(argument.source)
            rows.append(argument.row)
        else:
            return None
    measure = Measure(node.name, tuple(operands), pattern, bound)
    parameters.measures.add(measure)
    if len(parameters.measures) > MOST_MEASURES:
        raise Fault(node.at, f"more than {MOST_MEASURES} different geo functions")
    return Placed(measure, tuple(rows), parameters)


def condition(found: Placed | None, wanted: bool | None) -> str:
    """SQL of a truth. wanted: whether only true matters, or only false: the other and null may then be confused."""
    if found is None:
        return NEVER
    if not found.rows:
        truth = _constant(found.measure)
        return NEVER if truth is None else str(bool(truth)).upper()
    if wanted is True:
        return _among(found, truth=True)
    if wanted is False:
        return f"NOT {_among(found, truth=False)}"
    return (
        f"(CASE WHEN {_among(found, truth=True)} THEN TRUE WHEN {_among(found, truth=False)} THEN FALSE END)"
    )


def geo_value(found: Placed | None) -> Value:
    """A geo function as a value: a boolean or a number."""
    if found is None:
        return Null()
    if found.measure.function not in NUMERIC:
        return Boolean(True, condition(found, None))
    if found.rows:
        return _number(found)
    number = _constant(found.measure)
    return Null() if number is None else Number(False, found.parameters.add(repr(number), "float8"))


def _constant(measure: Measure) -> float | None:
    values = evaluate(measure, {}).values.tolist()
    return values[0] if values else None


def _arrays(found: Placed, part: Part) -> str:
    """SQL of the arrays of ids, one a row."""
    columns = [Column(found.measure, part, i) for i in range(len(found.rows))]
    return ", ".join(found.parameters.column(column, "int8[]") for column in columns)


def _among(found: Placed, *, truth: bool) -> str:
    arrays = _arrays(found, "true" if truth else "false")
    if len(found.rows) > 1:
        keys = ", ".join(row.key for row in found.rows)
        return f"(({keys}) IN (SELECT * FROM unnest({arrays})))"
    (row,) = found.rows
    ids = f"(SELECT unnest({arrays}))"
    return f"({row.key} IN {ids}{_narrowed(row, ids)})"


def _narrowed(row: Row, ids: str) -> str:
    """A further condition that holds where the row is one of these, for a relation that no index serves.

    As an array the key's index takes it, and gives the rows in its order.
    """
    if row.via is None:
        return ""
    before, relation = row.via
    inverse = target(relation).relations.get(relation.inverse)
    if inverse is None or inverse.narrowed_by is None:
        return ""
    narrow = inverse.narrowed_by
    column = before.entity_type.relations[narrow.relation].column
    return (
        f" AND {before.column(column)} = ANY(ARRAY("
        f"SELECT n.{narrow.other} FROM {narrow.table} n WHERE n.{narrow.own} IN {ids}))"
    )


def _number(found: Placed) -> Number:
    first, *others = found.rows
    statement = first.statement
    alias = statement.name("g")
    names = [f"k{i}" for i in range(len(found.rows))]
    values = found.parameters.column(Column(found.measure, "all", None), "float8[]")
    source = f"unnest({_arrays(found, 'all')}, {values}) AS {alias}({', '.join(names)}, v)"
    equal = " AND ".join(f"{alias}.{name} = {row.key}" for name, row in zip(names, found.rows, strict=True))
    if all((row.root or row) is (first.root or first) for row in others):
        first.join(f"LEFT JOIN {source} ON {equal}")
        return Number(True, f"{alias}.v")
    return Number(True, f"(SELECT {alias}.v FROM {source} WHERE {equal})")
