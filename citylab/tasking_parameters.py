"""Parameters of Tasks: a SWE Common DataRecord (OGC 08-094, in the JSON of OGC 17-011) that describes them, and values.

Pure. Both come as JSON text; what is wrong is a ValueError that names the field, such as `schedule/from: is no number`.
Patterns are RE2's, whose time is linear in the text: no pattern and no text can hang whoever checks them.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn

import msgspec
import re2

from citylab.times import parse_instant

DEEPEST = 20  # components within components
MOST_INTERVALS = 100  # of a constraint
LONGEST_PATTERN = 1_000  # characters
_PATTERN_MEMORY = 1 << 20  # bytes that RE2 may use for one pattern


class _Unfit(ValueError):
    """What a value is not."""


Component = Mapping[str, Any]
_decode = msgspec.json.Decoder(float_hook=Decimal).decode  # neither large nor long numbers lose anything
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


def check_record(text: str) -> None:
    """Check that JSON text is a DataRecord whose fields a Task can be held against. Raises ValueError."""
    record = _decode(text)
    if not isinstance(record, dict) or record.get("type") != "DataRecord":
        raise ValueError('is a SWE Common DataRecord: {"type": "DataRecord", "field": [...]}')
    _check_component(record, "", 0)


def check_values(record: str, text: str) -> None:
    """Check the values of a Task, JSON text, against a DataRecord that `check_record` took. Raises ValueError."""
    _Values().check(_decode(record), _decode(text), "")


# The record -----------------------------------------------------------------------------------------------------------


def _check_component(component: object, where: str, depth: int) -> None:
    if not isinstance(component, dict):
        _fail(where, "is an object with a type")
    kind = component.get("type")
    if kind not in _KINDS:
        _fail(where, f"has the type {kind!r}; it may be {', '.join(_KINDS)}")
    if depth > DEEPEST:
        _fail(where, f"lies deeper than {DEEPEST} components")
    if not isinstance(component.get("optional", False), bool):
        _fail(where, "optional is true or false")
    for text in ("label", "description", "definition"):
        if not isinstance(component.get(text, ""), str):
            _fail(where, f"{text} is a string")
    match kind:
        case "DataRecord":
            _check_named(_members(component, "field"), where, "field", depth)
        case "DataChoice":
            if not _check_named(_members(component, "item"), where, "item", depth):
                _fail(where, "has at least one item")
        case "DataArray":
            size = _size(component)
            if size is not None and (type(size) is not int or size < 0):
                _fail(where, 'elementCount is {"type": "Count", "value": N}')
            _check_component(component.get("elementType"), _inside(where, "elementType"), depth + 1)
        case _:
            _check_unit(component, where)
            _check_constraint(component, str(kind).removesuffix("Range"), where)


def _check_named(components: object, where: str, what: str, depth: int) -> set[str]:
    """Check fields or items; return their names."""
    if not isinstance(components, list):
        _fail(where, f"{what} is an array of components")
    names: set[str] = set()
    for i, component in enumerate(components):
        name = component.get("name") if isinstance(component, dict) else None
        if not isinstance(name, str) or not name:
            _fail(where, f"{what}[{i}] needs a name")
        if name in names:
            _fail(where, f"two have the name {name!r}")
        names.add(name)
        _check_component(component, _inside(where, name), depth + 1)
    return names


def _check_unit(component: Component, where: str) -> None:
    unit = component.get("uom", {"code": ""})
    if not isinstance(unit, dict) or not any(isinstance(unit.get(key), str) for key in ("code", "href")):
        _fail(where, 'uom is {"code": a UCUM code} or {"href": a URI}')


def _check_constraint(component: Component, kind: str, where: str) -> None:
    constraint = component.get("constraint")
    if constraint is None:
        return
    allowed = _CONSTRAINTS.get(kind)
    if allowed is None:
        _fail(where, f"a {kind} takes no constraint")
    if not isinstance(constraint, dict) or constraint.get("type", allowed) != allowed:
        _fail(where, f"its constraint is an object of the type {allowed}")
    for value in _array(constraint, "value", where):
        _constant(component, kind, value, where)
    intervals = _array(constraint, "interval", where)
    if len(intervals) > MOST_INTERVALS:
        _fail(where, f"a constraint has at most {MOST_INTERVALS} intervals")
    for interval in intervals:
        if allowed == "AllowedTokens":
            _fail(where, "AllowedTokens has no interval")
        if not isinstance(interval, list) or len(interval) != 2:
            _fail(where, f"an interval is [least, greatest], which {_shown(interval)} is not")
        low, high = (_constant(component, kind, bound, where) for bound in interval)
        if low > high:
            _fail(where, f"the interval {_shown(interval)} is empty")
    if "pattern" in constraint:
        if allowed != "AllowedTokens":
            _fail(where, f"{allowed} has no pattern")
        _compile(constraint["pattern"], where)


def _array(constraint: Component, name: str, where: str) -> list[Any]:
    found = _members(constraint, name, [])
    if not isinstance(found, list):
        _fail(where, f"{name} is an array")
    return found


def _constant(component: Component, kind: str, value: object, where: str) -> Any:
    """A value that a constraint names, as values are compared."""
    try:
        return _READ[kind](component, value)
    except ValueError as error:
        _fail(where, f"its constraint: {_shown(value)} {error}")


def _compile(pattern: object, where: str) -> Any:
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
        _fail(where, f"a pattern is a regular expression of at most {LONGEST_PATTERN} characters")
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args else "too large"
        _fail(where, f"the pattern {pattern!r} is none of RE2's: {why}")


# Values ---------------------------------------------------------------------------------------------------------------


class _Allowed:
    """What a constraint allows: any of its values, what lies within any of its intervals, what fits its pattern."""

    def __init__(self, component: Component, kind: str) -> None:
        constraint = component.get("constraint") or {}
        read = _READ[kind]
        self._values = frozenset(read(component, value) for value in _members(constraint, "value", []))
        self._intervals = [
            (read(component, low), read(component, high))
            for low, high in _members(constraint, "interval", [])
        ]
        self._pattern = _compile(constraint["pattern"], "") if "pattern" in constraint else None
        self._everything = not self._values and not self._intervals and self._pattern is None

    def __contains__(self, value: Any) -> bool:
        return (
            self._everything
            or value in self._values
            or any(low <= value <= high for low, high in self._intervals)
            or (self._pattern is not None and self._pattern.fullmatch(value) is not None)
        )


class _Values:
    """Checks values against the components of one record. Time grows with the values, whatever the record is."""

    def __init__(self) -> None:
        self._allowed: dict[int, _Allowed] = {}  # by a component's identity

    def check(self, component: Component, value: object, where: str) -> None:
        """Check a value against a component that `_check_component` took."""
        match component["type"]:
            case "DataRecord":
                self._check_record(component, value, where)
            case "DataChoice":
                self._check_choice(component, value, where)
            case "DataArray":
                self._check_array(component, value, where)
            case kind if kind in _READ:
                self._check_simple(component, kind, value, where)
            case kind:
                self._check_range(component, kind.removesuffix("Range"), value, where)

    def _check_record(self, component: Component, value: object, where: str) -> None:
        if not isinstance(value, dict):
            _fail(where, "is an object with a value for each field")
        fields = {field["name"]: field for field in _members(component, "field")}
        for name in value:
            if name not in fields:
                _fail(_inside(where, name), f"is no field; there are {', '.join(fields) or 'none'}")
        for name, field in fields.items():
            if name in value:
                self.check(field, value[name], _inside(where, name))
            elif not field.get("optional", False):
                _fail(_inside(where, name), "is missing")

    def _check_choice(self, component: Component, value: object, where: str) -> None:
        items = {item["name"]: item for item in _members(component, "item")}
        if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= items.keys():
            _fail(where, f"is an object with one of {', '.join(items)}")
        ((name, chosen),) = value.items()
        self.check(items[name], chosen, _inside(where, name))

    def _check_array(self, component: Component, value: object, where: str) -> None:
        size = _size(component)
        if not isinstance(value, list) or (size is not None and len(value) != size):
            _fail(where, "is an array" if size is None else f"is an array of {size} elements")
        for i, element in enumerate(value):
            self.check(component["elementType"], element, f"{where}[{i}]")

    def _check_range(self, component: Component, kind: str, value: object, where: str) -> None:
        if not isinstance(value, list) or len(value) != 2:
            _fail(where, "is a range: [least, greatest]")
        low, high = (self._check_simple(component, kind, bound, where) for bound in value)
        if kind != "Category" and low > high:
            _fail(where, f"the range {_shown(value)} is empty")

    def _check_simple(self, component: Component, kind: str, value: object, where: str) -> Any:
        """Check a value against its type and constraint; return it as values are compared."""
        try:
            read = _READ[kind](component, value)
        except ValueError as error:
            _fail(where, f"{_shown(value)} {error}")
        allowed = self._allowed.get(id(component))
        if allowed is None:
            allowed = self._allowed[id(component)] = _Allowed(component, kind)
        if read not in allowed:
            _fail(where, f"{_shown(value)} is not allowed: {_told(component['constraint'])}")
        return read


def _told(constraint: Component) -> str:
    told = []
    for name, begin in (("value", "one of "), ("interval", "within ")):
        if found := _members(constraint, name, []):
            told.append(begin + ", ".join(map(_shown, found[:20])))
    if "pattern" in constraint:
        told.append(f"like {constraint['pattern']}")
    return ", or ".join(told)


def _number(_: Component, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _Unfit("is no number")
    return Decimal(value)


def _whole(component: Component, value: object) -> Decimal:
    number = _number(component, value)
    if number != number.to_integral_value():
        raise _Unfit("is no whole number")
    return number


def _boolean(_: Component, value: object) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("is neither true nor false")
    return value


def _string(_: Component, value: object) -> str:
    if not isinstance(value, str):
        raise _Unfit("is no string")
    return value


def _time(component: Component, value: object) -> Decimal:
    """A time in ISO 8601, as microseconds; with a unit's code a number of these."""
    if isinstance(value, str):
        try:
            return Decimal(parse_instant(value))
        except ValueError:
            raise _Unfit("is no time in ISO 8601 with an offset") from None
    if not isinstance(component.get("uom", {}).get("code"), str):
        raise _Unfit("is no time in ISO 8601 with an offset")
    return _number(component, value)


_READ: Mapping[str, Callable[[Component, object], Any]] = {
    "Quantity": _number,
    "Count": _whole,
    "Boolean": _boolean,
    "Text": _string,
    "Category": _string,
    "Time": _time,
}
_CONSTRAINTS = {
    "Quantity": "AllowedValues",
    "Count": "AllowedValues",
    "Text": "AllowedTokens",
    "Category": "AllowedTokens",
    "Time": "AllowedTimes",
}
_KINDS = (
    *_READ, "QuantityRange", "CountRange", "CategoryRange", "TimeRange", "DataRecord", "DataArray", "DataChoice",
)  # fmt: skip


def _members(component: Component, name: str, default: Sequence[Any] | None = None) -> Any:
    """What SWE Common 2 calls `field`, `item`, `value`, `interval`, and SWE Common 3 `fields` and so on."""
    return component.get(name, component.get(f"{name}s", default))


def _size(component: Component) -> Any:
    """How many elements a DataArray has, if that is fixed; what it says if that is no number."""
    count = component.get("elementCount")
    return count.get("value") if isinstance(count, dict) else count


def _inside(where: str, name: str) -> str:
    return f"{where}/{name}" if where else name


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, int | Decimal) else _encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fail(where: str, what: str) -> NoReturn:
    raise ValueError(f"{where}: {what}" if where else what)
