"""The syntax tree of query options (OGC 18-088 §9.3, OData 4.0 part 2 §5). Every node knows where it stands in the text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from citylab.model import Micros


class LiteralKind(StrEnum):
    """What a literal is."""

    NULL = "null"
    BOOLEAN = "boolean"
    NUMBER = "number"  # its text
    STRING = "string"
    TIME = "time"  # (start, end), the end None for an instant
    DURATION = "duration"  # µs
    DATE = "date"  # its text, YYYY-MM-DD
    TIME_OF_DAY = "time of day"  # its text, HH:MM:SS with a fraction that does not end in 0
    GEOMETRY = "geometry"  # well-known text


LiteralValue: TypeAlias = bool | str | Micros | tuple[Micros, Micros | None] | None


@dataclass(frozen=True, slots=True)
class Literal:
    """A value in the text."""

    at: int = field(compare=False)
    kind: LiteralKind
    value: LiteralValue


@dataclass(frozen=True, slots=True)
class Path:
    """Steps from an entity: names of relations, properties and JSON members; an int is the index in an array."""

    at: int = field(compare=False)
    steps: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments."""

    at: int = field(compare=False)
    name: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Logical negation."""

    at: int = field(compare=False)
    operand: "Expression"


@dataclass(frozen=True, slots=True)
class Binary:
    """An operator between two expressions, by its OData name."""

    at: int = field(compare=False)
    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class In:
    """Whether a value is one of several; a single choice may be a JSON array."""

    at: int = field(compare=False)
    value: "Expression"
    choices: tuple["Expression", ...]
    listed: bool


@dataclass(frozen=True, slots=True)
class Lambda:
    """`path/any(variable: predicate)` or `all`; without a variable whether there is any related entity."""

    at: int = field(compare=False)
    path: Path
    every: bool
    variable: str | None
    predicate: "Expression | None"


Expression: TypeAlias = Literal | Path | Call | Not | Binary | In | Lambda


def walk(node: Expression) -> Iterator[Expression]:
    """An expression and all inside it."""
    yield node
    match node:
        case Call():
            inside: tuple[Expression, ...] = node.arguments
        case Not():
            inside = (node.operand,)
        case Binary():
            inside = (node.left, node.right)
        case In():
            inside = (node.value, *node.choices)
        case Lambda():
            inside = (node.path,) if node.predicate is None else (node.path, node.predicate)
        case _:
            inside = ()
    for one in inside:
        yield from walk(one)


class ResultFormat(StrEnum):
    """What `$resultFormat` may ask for."""

    DATA_ARRAY = "dataArray"
    CSV = "CSV"
    GEOJSON = "GeoJSON"


@dataclass(frozen=True, slots=True)
class OrderKey:
    """One key of `$orderby`."""

    expression: Expression
    descending: bool


_REPEATED: tuple[str, ...] = ("$filter", "$orderby", "$select")


@dataclass(frozen=True, slots=True)
class Query:
    """All options of one collection, at the top or inside `$expand`; the texts are as they came."""

    filter: Expression | None = None
    orderby: tuple[OrderKey, ...] = ()
    select: tuple[Path, ...] = ()
    expand: tuple["Expand", ...] = ()
    top: int | None = None
    skip: int = 0
    count: bool = False
    skiptoken: str | None = None
    result_format: ResultFormat | None = None
    texts: dict[str, str] = field(default_factory=dict, compare=False)

    def options(self) -> list[tuple[str, str]]:
        """The options to repeat in a link to the next page: all but `$skip` and `$skiptoken`."""
        options = [(name, self.texts[name]) for name in _REPEATED if name in self.texts]
        if self.expand:
            options.append(("$expand", ",".join(e.text() for e in self.expand)))
        if self.count:
            options.append(("$count", "true"))
        if self.top is not None:
            options.append(("$top", str(self.top)))
        if self.result_format:
            options.append(("$resultFormat", self.result_format))
        return options


@dataclass(frozen=True, slots=True)
class Expand:
    """A relation to expand, with the options of what it leads to."""

    at: int = field(compare=False)
    relation: str
    query: Query

    def text(self) -> str:
        """The item as `$expand` writes it."""
        options = self.query.options()
        if self.query.skip:
            options.append(("$skip", str(self.query.skip)))
        inside = ";".join(f"{name}={value}" for name, value in options)
        return f"{self.relation}({inside})" if inside else self.relation
