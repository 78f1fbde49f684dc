"""Comparisons over the type lattice, and the algebra of instants and intervals.

Intervals are half-open, [start, end).
"""

from api.sensorthings.errors import Fault
from api.sensorthings.values import DYNAMIC, Boolean, Duration, Json, Null, Number, Result, Text, Time, Value

NEVER = "NULL::boolean"
_SQL = {"eq": "=", "ne": "<>", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def compare(operator: str, left: Value, right: Value, at: int) -> str:
    """SQL of `left operator right`: null where the types do not meet. Raises `Fault` for `during` an instant."""
    if isinstance(left, Null) or isinstance(right, Null):
        return _compare_null(operator, right if isinstance(left, Null) else left)
    if operator not in _SQL or isinstance(left, Time) or isinstance(right, Time):
        one, other = left.time(), right.time()
        if one is not None and other is not None:
            return compare_times(operator, one, other, at)
        if operator not in _SQL:
            return NEVER
        return _compare_as(operator, left.text(), right.text())
    return _compare_scalars(operator, left, right)


def _compare_null(operator: str, value: Value) -> str:
    if operator == "eq":
        return value.is_null()
    return f"NOT ({value.is_null()})" if operator == "ne" else NEVER


def _compare_scalars(operator: str, left: Value, right: Value) -> str:
    if isinstance(left, Duration) and isinstance(right, Duration):
        return f"{left.sql} {_SQL[operator]} {right.sql}"
    if isinstance(left, Text) or isinstance(right, Text):
        return _compare_text(operator, left, right)
    if isinstance(left, Boolean) or isinstance(right, Boolean):
        return _compare_as(operator, left.boolean(), right.boolean())
    if isinstance(left, DYNAMIC) and isinstance(right, DYNAMIC):
        return _compare_dynamic(operator, left, right)
    return _compare_as(operator, left.number(), right.number())


def _compare_text(operator: str, left: Value, right: Value) -> str:
    """A string literal meets everything as text; a text that a row holds is no number and no boolean."""
    literal = any(isinstance(v, Text) and v.literal for v in (left, right))
    other = right if isinstance(left, Text) else left
    if not literal and isinstance(other, Number | Boolean):
        return NEVER
    return _compare_as(operator, left.text(), right.text())


def _compare_dynamic(operator: str, left: Json | Result, right: Json | Result) -> str:
    """Two numbers as numbers, whatever else as text."""
    one, other = left.number(), right.number()
    numbers = f"({one}) {_SQL[operator]} ({other})"
    text = _compare_as(operator, left.text(), right.text())
    return f"CASE WHEN ({one}) IS NOT NULL AND ({other}) IS NOT NULL THEN {numbers} ELSE {text} END"


def _compare_as(operator: str, left: str | None, right: str | None) -> str:
    if left is None or right is None:
        return NEVER
    return f"({left}) {_SQL[operator]} ({right})"


# Times --------------------------------------------------------------------------------------------------------------


def compare_times(operator: str, left: Time, right: Time, at: int) -> str:
    """SQL of a comparison of times. Raises `Fault` where the right side of `during` can only be an instant."""
    if operator == "ne":
        return f"NOT ({compare_times('eq', left, right, at)})"
    operator = {"before": "lt", "after": "gt"}.get(operator, operator)
    if operator == "during" and right.end is None:
        raise Fault(at, "the right side of during must be an interval")
    exact = _by_kind(operator, left, right)
    # A bound that an index can use, where the exact condition looks at both columns.
    if operator in {"lt", "le"} and "CASE" in exact:
        return f"({left.start} <= {right.start} AND {exact})"
    if operator in {"gt", "ge"} and "CASE" in exact:
        return f"({left.start} >= {right.start} AND {exact})"
    return exact


def _by_kind(operator: str, left: Time, right: Time) -> str:
    """Each side as an instant and as an interval, where a row decides which."""
    if left.end is not None and not left.always_interval:
        instant = _by_kind(operator, Time(left.nullable, left.start), right)
        interval = _by_kind(operator, Time(left.nullable, left.start, left.end, always_interval=True), right)
        return (
            instant
            if instant == interval
            else f"CASE WHEN {left.end} IS NULL THEN {instant} ELSE {interval} END"
        )
    if right.end is not None and not right.always_interval:
        instant = _by_kind(operator, left, Time(right.nullable, right.start))
        interval = _by_kind(
            operator, left, Time(right.nullable, right.start, right.end, always_interval=True)
        )
        return (
            instant
            if instant == interval
            else f"CASE WHEN {right.end} IS NULL THEN {instant} ELSE {interval} END"
        )
    if left.end is None and right.end is None:
        return _instants(operator, left.start, right.start)
    if left.end is None:
        assert right.end is not None
        return _instant_interval(operator, left.start, right.start, right.end)
    if right.end is None:
        return _interval_instant(operator, left.start, left.end, right.start)
    return _intervals(operator, left.start, left.end, right.start, right.end)


def _instants(operator: str, t: str, u: str) -> str:
    return "FALSE" if operator == "during" else f"{t} {_SQL.get(operator, '=')} {u}"


def _instant_interval(operator: str, t: str, s: str, e: str) -> str:
    return _INSTANT_INTERVAL[operator].format(t=t, s=s, e=e)


def _interval_instant(operator: str, s: str, e: str, t: str) -> str:
    return _INTERVAL_INSTANT[operator].format(t=t, s=s, e=e)


def _intervals(operator: str, s: str, e: str, u: str, f: str) -> str:
    return _INTERVALS[operator].format(s=s, e=e, u=u, f=f)


_INSTANT_INTERVAL = {
    "lt": "{t} < {s}",
    "le": "{t} <= {s}",
    "gt": "{t} >= {e}",
    "ge": "{t} >= {e}",
    "eq": "({s} IS NULL AND NULL)",  # of different kinds: never equal; null where there is no interval
    "meets": "({t} = {s} OR {t} = {e})",
    "during": "({s} <= {t} AND {t} < {e})",
    "overlaps": "({s} <= {t} AND {t} < {e})",
    "starts": "{t} = {s}",
    "finishes": "{t} = {e}",
}
_INTERVAL_INSTANT = _INSTANT_INTERVAL | {
    "lt": "{e} <= {t}",
    "le": "{e} <= {t}",
    "gt": "{s} > {t}",
    "ge": "{s} >= {t}",
    "during": "FALSE",
}
_INTERVALS = {  # [s, e) and [u, f)
    "lt": "{e} <= {u}",
    "le": "({s} <= {u} AND {e} <= {f})",
    "gt": "{s} >= {f}",
    "ge": "({s} >= {u} AND {e} >= {f})",
    "eq": "({s} = {u} AND {e} = {f})",
    "meets": "({e} = {u} OR {s} = {f})",
    "during": "({u} <= {s} AND {e} <= {f})",
    "overlaps": "({s} < {f} AND {u} < {e})",
    "starts": "{s} = {u}",
    "finishes": "{e} = {f}",
}
