"""The functions of `$filter` and `$orderby` (OGC 18-088 §9.3.3.5.2), and arithmetic. One table, name to SQL.

An argument of the wrong type makes the result null.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from api.sensorthings.errors import Fault
from api.sensorthings.values import Boolean, Duration, Null, Number, Text, Time, Value

Builder: TypeAlias = Callable[..., Value]


class Function(NamedTuple):
    """How many arguments a function takes, and what it makes of them."""

    least: int
    most: int
    build: Builder


def call(name: str, arguments: list[Value], at: int) -> Value:
    """Apply a function. Raises `Fault` for one that there is not, or a wrong number of arguments."""
    if name in _UNSUPPORTED:
        raise Fault(at, f"the function {name} is not supported", unsupported=True)
    function = _FUNCTIONS.get(name)
    if function is None:
        raise Fault(at, f"there is no function {name}")
    if not function.least <= len(arguments) <= function.most:
        count = (
            f"{function.least} to {function.most}" if function.least < function.most else f"{function.least}"
        )
        raise Fault(at, f"{name} takes {count} argument{'' if count == '1' else 's'}, not {len(arguments)}")
    return function.build(*arguments)


def arithmetic(operator: str, left: Value, right: Value) -> Value:
    """`add`, `sub`, `mul`, `div` (real division) or `mod` of numbers; `add` and `sub` of times and durations too."""
    if (
        isinstance(left, Duration)
        or isinstance(right, Duration)
        or isinstance(left, Time)
        or isinstance(right, Time)
    ):
        return _time_arithmetic(operator, left, right)
    one, other = left.number(), right.number()
    if one is None or other is None:
        return Null()
    if operator == "mod":
        return Number(True, f"mod(({one})::numeric, nullif(({other})::numeric, 0))", "numeric")
    if operator == "div":
        other = f"nullif(({other})::float8, 0)"
    return Number(True, f"(({one})::float8 {_SIGNS[operator]} ({other})::float8)", "float8")


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def _time_arithmetic(operator: str, left: Value, right: Value) -> Value:
    if operator not in {"add", "sub"}:
        return Null()
    sign = _SIGNS[operator]
    if isinstance(left, Duration) and isinstance(right, Duration):
        return Duration(True, f"({left.sql} {sign} {right.sql})")
    if isinstance(left, Duration) and operator == "add":
        left, right = right, left
    time = left.time()
    if time is None:
        return Null()
    if isinstance(right, Duration):
        end = None if time.end is None else f"({time.end} {sign} {right.sql})"
        return Time(True, f"({time.start} {sign} {right.sql})", end, time.always_interval)
    other = right.time()
    if other is None or operator == "add":
        return Null()
    return Duration(True, f"({time.start} - {other.start})")


def _of_texts(build: Callable[..., Value]) -> Builder:
    def function(*arguments: Value) -> Value:
        texts = [argument.text() for argument in arguments]
        return Null() if None in texts else build(*(f"({text})" for text in texts))

    return function


def _of_number(sql: str) -> Builder:
    def function(argument: Value) -> Value:
        number = argument.number()
        return Null() if number is None else Number(True, sql.format(f"({number})::numeric"), "numeric")

    return function


def _of_time(build: Callable[[str], Value]) -> Builder:
    """An interval counts by its start."""

    def function(argument: Value) -> Value:
        time = argument.time()
        return Null() if time is None else build(time.start)

    return function


def _part(sql: str) -> Builder:
    return _of_time(lambda start: Number(True, sql.format(start), "numeric"))


def _substring(text: Value, start: Value, length: Value | None = None) -> Value:
    sql, first = text.text(), start.number()
    count = None if length is None else length.number()
    if sql is None or first is None or (length is not None and count is None):
        return Null()
    begin = f"{_small(first)} + 1"
    if count is None:
        return Text(True, f"substr(({sql}), greatest({begin}, 1))")
    return Text(True, f"substr(({sql}), greatest({begin}, 1), greatest({_small(count)}, 0))")


def _small(number: str) -> str:
    """A number as int4, within what no text is longer than."""
    return f"least(greatest(({number})::float8, -1e9), 1e9)::int4"


def _boolean(sql: str) -> Callable[..., Value]:
    return lambda *texts: Boolean(True, f"({sql.format(*texts)})")


def _text(sql: str) -> Callable[..., Value]:
    return lambda *texts: Text(True, sql.format(*texts))


def _integer(sql: str) -> Callable[..., Value]:
    return lambda *texts: Number(True, sql.format(*texts), "int8")


def _clock(start: str) -> Value:
    return Text(True, f"({start})::time::text")


_FUNCTIONS: dict[str, Function] = {
    # strings
    "substringof": Function(2, 2, _of_texts(_boolean("strpos({1}, {0}) > 0"))),
    "contains": Function(2, 2, _of_texts(_boolean("strpos({0}, {1}) > 0"))),
    "startswith": Function(2, 2, _of_texts(_boolean("starts_with({0}, {1})"))),
    "endswith": Function(2, 2, _of_texts(_boolean("right({0}, length({1})) = {1}"))),
    "length": Function(1, 1, _of_texts(_integer("length({0})"))),
    "indexof": Function(2, 2, _of_texts(_integer("strpos({0}, {1})"))),  # the first character is 1
    "substring": Function(2, 3, _substring),
    "tolower": Function(1, 1, _of_texts(_text("lower({0})"))),
    "toupper": Function(1, 1, _of_texts(_text("upper({0})"))),
    "trim": Function(1, 1, _of_texts(_text("btrim({0}, E' \\t\\n\\r')"))),
    "concat": Function(2, 2, _of_texts(_text("({0} || {1})"))),
    # dates and times
    "year": Function(1, 1, _part("extract(year FROM {0})")),
    "month": Function(1, 1, _part("extract(month FROM {0})")),
    "day": Function(1, 1, _part("extract(day FROM {0})")),
    "hour": Function(1, 1, _part("extract(hour FROM {0})")),
    "minute": Function(1, 1, _part("extract(minute FROM {0})")),
    "second": Function(1, 1, _part("floor(extract(second FROM {0}))")),
    "fractionalseconds": Function(
        1, 1, _part("(extract(second FROM {0}) - floor(extract(second FROM {0})))")
    ),
    "totaloffsetminutes": Function(
        1, 1, _part("CASE WHEN ({0}) IS NOT NULL THEN 0::numeric END")
    ),  # all is UTC
    "date": Function(1, 1, _of_time(lambda start: Text(True, f"to_char({start}, 'YYYY-MM-DD')"))),
    "time": Function(1, 1, _of_time(_clock)),
    "now": Function(0, 0, lambda: Time(False, "now()")),
    "mindatetime": Function(0, 0, lambda: Time(False, "'0001-01-01T00:00:00Z'::timestamptz")),
    "maxdatetime": Function(0, 0, lambda: Time(False, "'9999-12-31T23:59:59.999999Z'::timestamptz")),
    # numbers
    "round": Function(1, 1, _of_number("round({0})")),
    "floor": Function(1, 1, _of_number("floor({0})")),
    "ceiling": Function(1, 1, _of_number("ceil({0})")),
}
_UNSUPPORTED = {
    "cast", "isof", "case", "matchesPattern", "hassubset", "hassubsequence", "totalseconds",
}  # fmt: skip
