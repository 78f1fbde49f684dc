"""An entity's JSON text, made by the database: pieces of constant text and of SQL. The session's time zone is UTC.

What the API answers and what is published over MQTT is made of the same pieces, so that it is the same.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from citylab.entities import EntityType, Kind, Property

BASE = "%(base)s::text"  # the address of the service, ending in /v1.1/


@dataclass(frozen=True, slots=True)
class Sql:
    """A piece of text that SQL makes; null makes an empty one. always: it never is null."""

    text: str
    always: bool = False


Piece = str | Sql


def entity(entity_type: EntityType, alias: str, latest: str) -> str:
    """SQL of an entity's JSON as the API answers it when nothing is selected or expanded.

    alias, latest: by which names the row of its table and the one of `latest`, if there is any, can be referred to.
    """
    own = Sql(f"{alias}.id", always=True)
    link: list[Piece] = [Sql(BASE, always=True), f"{entity_type.set_name}(", own, ")"]
    pieces: list[Piece] = ['{"@iot.selfLink":"', *link, '","@iot.id":', own]
    for known in entity_type.properties.values():
        row = latest if known.computed else alias
        pieces += property_member(known, [f"{row}.{column}" for column in known.columns])
    names = frozenset(entity_type.relations)
    for name in entity_type.relations:
        pieces += navigation_link(entity_type, name, link, names, lambda sql: sql.format(row=alias))
    return concat([*pieces, "}"])


def property_member(known: Property, columns: list[str]) -> list[Piece]:
    """The pieces of a property's member, with its leading comma."""
    sql = property_json(known, columns)
    if known.nullable:
        return [f',"{known.name}":', Sql(f"coalesce({sql}, 'null')", always=True)]
    if known.always:
        return [f',"{known.name}":', Sql(sql)]
    return [Sql(f"',\"{known.name}\":' || {sql}")]


def navigation_link(
    entity_type: EntityType, name: str, link: list[Piece], links: frozenset[str], column: Callable[[str], str]
) -> list[Piece]:
    """The member with the link of a relation. Of two in a column an entity shows the one that it has.

    links: the relations whose links are shown; column: makes SQL over `{row}` such that it can be referred to here.
    """
    either = entity_type.relations[name].either
    if either is None:
        return [f',"{name}@iot.navigationLink":"', *link, f'/{name}"']
    holds = column(either.holds)
    if either.other not in links:
        whole = concat([f',"{name}@iot.navigationLink":"', *link, f'/{name}"'])
        return [Sql(f"CASE WHEN {holds} THEN {whole} END")]
    if name > either.other:
        return []  # shown with the other
    shown = Sql(f"CASE WHEN {holds} THEN '{name}' ELSE '{either.other}' END", always=True)
    return [',"', shown, '@iot.navigationLink":"', *link, "/", shown, '"']


def property_json(known: Property, columns: list[str]) -> str:
    """SQL of a property's JSON text; null where it is unset."""
    match known.kind:
        case Kind.TEXT:
            return f"to_json({columns[0]})::text"
        case Kind.INSTANT:
            return _instant_json(columns[0])
        case Kind.TIME:
            start, end = columns
            interval = _interval_json(start, end)
            return f"CASE WHEN {end} IS NULL THEN {_instant_json(start)} ELSE {interval} END"
        case Kind.INTERVAL:
            return _interval_json(columns[0], columns[1])
        case Kind.RESULT:
            return f"coalesce({columns[1]}::text, {number_text(columns[0])})"
        case Kind.QUALITY:
            flags = " ".join(f'WHEN {i} THEN \'{{"flag": "{flag}"}}\'' for i, flag in FLAGS.items())
            return f"coalesce({columns[0]}::text, CASE {columns[1]} {flags} END)"
        case _:
            return f"{columns[0]}::text"


FLAGS = {1: "good", 2: "suspect", 3: "bad"}
"""`resultQuality` of a stream, by its number in the store."""


def number_text(sql: str) -> str:
    """The text of a float8 as JSON wants it: an integral one below 2^53 without fraction or exponent."""
    return (
        f"CASE WHEN abs({sql}) >= 1e15 AND abs({sql}) < 9007199254740992 AND {sql} = trunc({sql})"
        f" THEN ({sql})::int8::text ELSE ({sql})::text END"
    )


def _instant_json(sql: str) -> str:
    """As `iso_text`, in quotes: what PostgreSQL makes of it ends in `+00:00`."""
    return f"replace(to_json({sql})::text, '+00:00', 'Z')"


def _interval_json(start: str, end: str) -> str:
    return f"('\"' || {iso_text(start)} || '/' || {iso_text(end)} || '\"')"


def iso_text(sql: str) -> str:
    """A timestamptz as ISO 8601 in UTC with `Z`. The session's time zone is UTC, so its text ends in `+00`."""
    return f"replace(left(({sql})::text, -3), ' ', 'T') || 'Z'"


def literal(text: str) -> str:
    """A constant of SQL; percent signs are doubled for the placeholders' sake."""
    quoted = text.replace("'", "''").replace("%", "%%")
    return f"E'{quoted.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{quoted}'"


def concat(pieces: Iterable[Piece]) -> str:
    """SQL that puts pieces together: by `||`, which costs half of what the function `concat` does."""
    merged: list[str] = []
    constant = ""
    for piece in pieces:
        if isinstance(piece, str):
            constant += piece
            continue
        if constant:
            merged.append(literal(constant))
            constant = ""
        merged.append(f"({piece.text})::text" if piece.always else f"coalesce(({piece.text})::text, '')")
    if constant:
        merged.append(literal(constant))
    return _joined(merged) if merged else "''"


def _joined(parts: Sequence[str]) -> str:
    """As a tree of `||`, which is not deeper than PostgreSQL's stack however many there are."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return f"({_joined(parts[:half])} || {_joined(parts[half:])})"
