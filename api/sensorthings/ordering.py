"""The order of a collection, which is always total, and the token from which the next page goes on.

A page is found by the keys of the last row before it, so that page 10,000 costs what page 1 costs, and rows that are
inserted meanwhile neither hide nor repeat others. Nulls come first when ascending and last when descending; an index is
only used if the NULLS clause says what it would do anyway, so it stands only at keys that can be null.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from api.sensorthings.errors import Fault, RequestError
from api.sensorthings.expressions import Scope
from api.sensorthings.rows import Row
from api.sensorthings.syntax import Literal, OrderKey
from api.sensorthings.values import Boolean, Duration, Json, Number, Parameters, Result, Text, Time, Value


class Key(NamedTuple):
    """One key of an order. cast: its SQL type."""

    sql: str
    cast: str
    descending: bool
    nullable: bool

    def clause(self) -> str:
        """What stands in ORDER BY."""
        if not self.descending:
            return f"{self.sql} NULLS FIRST" if self.nullable else self.sql
        return f"{self.sql} DESC NULLS LAST" if self.nullable else f"{self.sql} DESC"


def order_of(row: Row, keys: Sequence[OrderKey], rank: str | None = None) -> list[Key]:
    """The keys that were asked for, and those that make the order total. Raises `Fault`.

    rank: SQL of the order that a relation gives to its targets.
    """
    scope = Scope(row, ordering=True)
    order: list[Key] = []
    for key in keys:
        if isinstance(key.expression, Literal):
            raise Fault(key.expression.at, "an order needs a property")
        value = scope.value(key.expression)
        if scope.any_of.rows:
            raise Fault(key.expression.at, "an order cannot follow a relation to several entities")
        order += [k for k in _keys_of(value, key) if k.sql.strip("()") not in _CONSTANTS]
    # The rest goes in the same direction, so that one index serves both.
    descending = bool(order) and order[-1].descending
    if rank is not None:
        order.append(Key(rank, "int4", descending, nullable=False))
    given = {k.sql for k in order}
    for column in row.entity_type.default_order:
        sql = row.column(column)
        if sql not in given:
            order.append(Key(sql, _CASTS.get(column, "int8"), descending, nullable=False))
    return order


_CASTS = {"phenomenon_time": "timestamptz"}
_CONSTANTS = {"TRUE", "FALSE"}  # they order nothing, and PostgreSQL refuses them


def _keys_of(value: Value, key: OrderKey) -> list[Key]:
    match value:
        case Number():
            return [Key(value.sql, value.cast, key.descending, value.nullable)]
        case Text():
            return [Key(value.sql, "text", key.descending, value.nullable)]
        case Boolean():
            return [Key(value.sql, "boolean", key.descending, value.nullable)]
        case Duration():
            return [Key(value.sql, "interval", key.descending, value.nullable)]
        case Time():
            return [Key(value.start, "timestamptz", key.descending, value.nullable)]
        case Result():
            # Numbers as numbers, what is none as its text.
            text = f"(CASE WHEN {value.of_number} IS NULL THEN {value.text()} END)"
            return [
                Key(value.of_number, "float8", key.descending, nullable=True),
                Key(text, "text", key.descending, nullable=True),
            ]
        case Json():
            number = f"({value.number()})"
            return [
                Key(number, "numeric", key.descending, nullable=True),
                Key(f"({value.text()})", "text", key.descending, nullable=True),
            ]
        case _:
            raise Fault(key.expression.at, "nothing can be ordered by this")


def token_sql(columns: Sequence[str]) -> str:
    """SQL of the token of a row: its keys as texts, a JSON array, base64url."""
    array = f"json_build_array({', '.join(f'{column}::text' for column in columns)})::text"
    return f"translate(encode(convert_to({array}, 'UTF8'), 'base64'), E'+/=\\n', '-_')"


def after_token(keys: Sequence[Key], token: str, parameters: Parameters) -> str:
    """The condition under which a row comes after the one that a token was made of. Raises `RequestError`."""
    values = read_token(token)
    if len(values) != len(keys):
        raise RequestError(400, "$skiptoken: not one that this service gave out for this query")
    places = [None if v is None else parameters.add(v, k.cast) for k, v in zip(keys, values, strict=True)]
    simple = all(not k.nullable and k.descending == keys[0].descending for k in keys)
    if simple:
        left = ", ".join(k.sql for k in keys)
        right = ", ".join(str(place) for place in places)
        return f"({left}) {'<' if keys[0].descending else '>'} ({right})"
    alternatives = []
    equal: list[str] = []
    for key, place in zip(keys, places, strict=True):
        after = _after(key, place)
        if after:
            alternatives.append(f"({' AND '.join([*equal, after])})")
        equal.append(f"{key.sql} IS NULL" if place is None else f"{key.sql} = {place}")
    return f"({' OR '.join(alternatives)})"


def _after(key: Key, place: str | None) -> str | None:
    """What comes after a value of one key, nulls being less than everything."""
    if key.descending:
        if place is None:
            return None
        return f"({key.sql} < {place} OR {key.sql} IS NULL)" if key.nullable else f"{key.sql} < {place}"
    return f"{key.sql} IS NOT NULL" if place is None else f"{key.sql} > {place}"


def read_token(token: str) -> list[str | None]:
    """The keys in a token. Raises `RequestError`."""
    try:
        padded = token + "=" * (-len(token) % 4)
        return msgspec.json.decode(base64.urlsafe_b64decode(padded), type=list[str | None])
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise RequestError(400, "$skiptoken: not one that this service gave out") from None
