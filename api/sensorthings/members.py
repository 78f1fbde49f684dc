"""An entity's JSON text, made by the database: members with a constant part and what SQL fills in."""

from collections.abc import Iterable
from dataclasses import dataclass

from api.sensorthings.errors import Fault
from api.sensorthings.expressions import IDS, unknown
from api.sensorthings.syntax import Path
from api.sensorthings.values import Parameters, iso_text, number_text
from citylab.entities import EntityType, Kind, Property

BASE = "%(base)s::text"  # the address of the service, ending in /v1.1/
_MOST_ARGUMENTS = 90  # of a function in PostgreSQL: 100


@dataclass(frozen=True, slots=True)
class Sql:
    """A piece of text that SQL makes; null makes an empty one."""

    text: str


Piece = str | Sql


@dataclass(slots=True)
class Selection:
    """What an entity shows. paths: of each property, the members selected of it; none for the whole property."""

    control: frozenset[str]  # of "id" and "selfLink"
    properties: dict[str, list[tuple[str, ...]]]
    links: frozenset[str]


def select(entity_type: EntityType, paths: Iterable[Path], *, links: bool) -> Selection:
    """Read `$select`. links: whether navigation links show when nothing is selected. Raises `Fault`."""
    every = Selection(
        frozenset({"id", "selfLink"}),
        {name: [] for name in entity_type.properties},
        frozenset(entity_type.relations if links else ()),
    )
    paths = list(paths)
    if not paths or any(path.steps == ("*",) for path in paths):
        return every
    control: set[str] = set()
    chosen: dict[str, list[tuple[str, ...]]] = {}
    whole: set[str] = set()
    shown: set[str] = set()
    for path in paths:
        first, *members = (str(step) for step in path.steps)
        if first in IDS and not members:
            control.add("id")
        elif first == "@iot.selfLink" and not members:
            control.add("selfLink")
        elif first in entity_type.relations and not members:
            shown.add(first)
        elif first in entity_type.properties:
            _check_members(entity_type.properties[first], path)
            chosen.setdefault(first, [])
            if members:
                chosen[first].append(tuple(members))
            else:
                whole.add(first)
        else:
            raise Fault(path.at, unknown(entity_type, first))
    properties = {
        name: [] if name in whole else chosen[name] for name in entity_type.properties if name in chosen
    }
    return Selection(frozenset(control), properties, frozenset(shown))


def _check_members(known: Property, path: Path) -> None:
    if len(path.steps) == 1:
        return
    if known.kind not in {Kind.OBJECT, Kind.JSON, Kind.RESULT, Kind.QUALITY}:
        raise Fault(path.at, f"{known.name} has no members")
    if any(isinstance(step, int) for step in path.steps):
        raise Fault(path.at, "elements of an array cannot be selected", unsupported=True)


def property_json(known: Property, columns: list[str]) -> str:
    """SQL of a property's JSON text; null where it is unset."""
    match known.kind:
        case Kind.TEXT:
            return f"to_json({columns[0]})::text"
        case Kind.INSTANT:
            return f"('\"' || {iso_text(columns[0])} || '\"')"
        case Kind.TIME:
            end = f"coalesce('/' || {iso_text(columns[1])}, '')"
            return f"('\"' || {iso_text(columns[0])} || {end} || '\"')"
        case Kind.INTERVAL:
            return f"('\"' || {iso_text(columns[0])} || '/' || {iso_text(columns[1])} || '\"')"
        case Kind.RESULT:
            return f"coalesce({columns[1]}::text, {number_text(columns[0])})"
        case Kind.QUALITY:
            flags = " ".join(f'WHEN {i} THEN \'{{"flag": "{flag}"}}\'' for i, flag in _FLAGS.items())
            return f"coalesce({columns[0]}::text, CASE {columns[1]} {flags} END)"
        case _:
            return f"{columns[0]}::text"


_FLAGS = {1: "good", 2: "suspect", 3: "bad"}


def property_member(
    known: Property, columns: list[str], paths: list[tuple[str, ...]], parameters: Parameters
) -> list[Piece]:
    """The pieces of a property's member, with its leading comma."""
    if paths:
        return [_nested(f"'{known.name}'::text", _tree(paths), _jsonb(known, columns), parameters)]
    sql = property_json(known, columns)
    if known.nullable:
        return [f',"{known.name}":', Sql(f"coalesce({sql}, 'null')")]
    if known.always:
        return [f',"{known.name}":', Sql(sql)]
    return [Sql(f"',\"{known.name}\":' || {sql}")]


def _jsonb(known: Property, columns: list[str]) -> str:
    if known.kind is Kind.RESULT:
        return f"coalesce({columns[1]}, to_jsonb({columns[0]}))"
    if known.kind is Kind.QUALITY:
        return f"{property_json(known, columns)}::jsonb"
    return columns[0]


_Tree = dict[str, "_Tree"]


def _tree(paths: list[tuple[str, ...]]) -> "_Tree":
    tree: _Tree = {}
    for path in paths:
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def _nested(key: str, tree: "_Tree", sql: str, parameters: Parameters) -> Sql:
    """A member that holds only some members of a JSON object; those that the object lacks are left out.

    key: SQL of its name.
    """
    name = f"',' || to_json({key})::text || ':'"
    if not tree:
        return Sql(f"({name} || ({sql})::text)")
    inside: list[Piece] = []
    for member, below in tree.items():
        inner = parameters.add(member, "text")
        inside.append(_nested(inner, below, f"({sql} -> {inner})", parameters))
    whole = f"{name} || '{{' || substr({concat(inside)}, 2) || '}}'"
    return Sql(f"CASE WHEN jsonb_typeof({sql}) = 'object' THEN {whole} END")


def literal(text: str) -> str:
    """A constant of SQL; percent signs are doubled for the placeholders' sake."""
    quoted = text.replace("'", "''").replace("%", "%%")
    return f"E'{quoted.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{quoted}'"


def concat(pieces: Iterable[Piece]) -> str:
    """SQL that puts pieces together."""
    merged: list[str] = []
    constant = ""
    for piece in pieces:
        if isinstance(piece, str):
            constant += piece
            continue
        if constant:
            merged.append(literal(constant))
            constant = ""
        merged.append(piece.text)
    if constant:
        merged.append(literal(constant))
    while len(merged) > _MOST_ARGUMENTS:
        merged = [
            f"concat({', '.join(merged[i : i + _MOST_ARGUMENTS])})"
            for i in range(0, len(merged), _MOST_ARGUMENTS)
        ]
    return f"concat({', '.join(merged)})" if merged else "''"
