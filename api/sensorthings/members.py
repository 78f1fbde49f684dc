"""`$select`: which members an entity shows, down into their JSON."""

from collections.abc import Iterable
from dataclasses import dataclass

from api.sensorthings.errors import Fault
from api.sensorthings.expressions import IDS, member_sql, unknown
from api.sensorthings.syntax import Path
from api.sensorthings.values import Parameters
from citylab import entity_json
from citylab.entities import EntityType, Kind, Property
from citylab.entity_json import Piece, Sql, concat, property_json

Members = tuple[str | int, ...]
"""The way to a member of a property's JSON."""


@dataclass(slots=True)
class Selection:
    """What an entity shows. properties: of each, the members selected of it; none for the whole property.

    paths: the same as columns of a table, each once and in the order in which they were selected.
    """

    control: frozenset[str]  # of "id" and "selfLink"
    properties: dict[str, list[Members]]
    links: frozenset[str]
    paths: list[Members]


def select(entity_type: EntityType, paths: Iterable[Path], *, links: bool) -> Selection:
    """Read `$select`. links: whether navigation links show when nothing is selected. Raises `Fault`."""
    every = Selection(
        frozenset({"id", "selfLink"}),
        {name: [] for name in entity_type.properties},
        frozenset(entity_type.relations if links else ()),
        [("id",), *((name,) for name in entity_type.properties)],
    )
    paths = list(paths)
    if not paths or any(path.steps == ("*",) for path in paths):
        return every
    control: set[str] = set()
    chosen: dict[str, list[Members]] = {}
    whole: set[str] = set()
    shown: set[str] = set()
    columns: dict[Members, None] = {}
    for path in paths:
        first, members = str(path.steps[0]), path.steps[1:]
        columns[("id",) if path.steps[0] in IDS else path.steps] = None
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
                chosen[first].append(members)
            else:
                whole.add(first)
        elif first in entity_type.relations:
            raise Fault(path.at, f"{first} is a relation: $expand shows what it leads to")
        else:
            raise Fault(path.at, unknown(entity_type, first))
    properties = {
        name: [] if name in whole else chosen[name] for name in entity_type.properties if name in chosen
    }
    return Selection(frozenset(control), properties, frozenset(shown), list(columns))


def _check_members(known: Property, path: Path) -> None:
    if len(path.steps) == 1:
        return
    if known.kind not in {Kind.OBJECT, Kind.ARRAY, Kind.JSON, Kind.RESULT, Kind.QUALITY}:
        raise Fault(path.at, f"{known.name} has no members")


def property_member(
    known: Property, columns: list[str], paths: list[Members], parameters: Parameters
) -> list[Piece]:
    """The pieces of a property's member, with its leading comma."""
    if paths:
        whole = _jsonb(known, columns)
        trees = _tree([(known.name, *path) for path in paths])
        return [
            _nested(f"'{known.name}'::text", indexes, tree, whole, parameters)
            for (_, *indexes), tree in trees.items()
        ]
    return entity_json.property_member(known, columns)


def member_jsonb(known: Property, columns: list[str], members: Members, parameters: Parameters) -> str:
    """SQL of the jsonb of a property, or of a member of it; null where there is none."""
    return f"({member_sql(f'({_jsonb(known, columns)})', members, parameters)})"


def _jsonb(known: Property, columns: list[str]) -> str:
    if known.kind is Kind.RESULT:
        return f"coalesce({columns[1]}, to_jsonb({columns[0]}))"
    if known.kind is Kind.QUALITY:
        return f"{property_json(known, columns)}::jsonb"
    return columns[0]


_Tree = dict[Members, "_Tree"]  # by a member's name and the indexes after it


def _tree(paths: list[Members]) -> "_Tree":
    tree: _Tree = {}
    for path in paths:
        node, start = tree, 0
        for end in range(1, len(path) + 1):
            if end == len(path) or isinstance(path[end], str):
                node, start = node.setdefault(path[start:end], {}), end
    return tree


def _nested(key: str, indexes: Iterable[str | int], tree: "_Tree", sql: str, parameters: Parameters) -> Sql:
    """A member that holds only some members of a JSON object; those that the object lacks are left out.

    key: SQL of its name. An element of an array goes by the name with its index, as it does at the end of a path.
    """
    suffix = "".join(f"[{index}]" for index in indexes)
    name = f"',' || to_json({key} || '{suffix}')::text || ':'"
    sql = f"({member_sql(sql, indexes, parameters)})"
    if not tree:
        return Sql(f"({name} || ({sql})::text)")
    inside: list[Piece] = []
    for (member, *further), below in tree.items():
        inner = parameters.add(str(member), "text")
        inside.append(_nested(inner, further, below, f"({sql} -> {inner})", parameters))
    whole = f"{name} || '{{' || substr({concat(inside)}, 2) || '}}'"
    return Sql(f"CASE WHEN jsonb_typeof({sql}) = 'object' THEN {whole} END")
