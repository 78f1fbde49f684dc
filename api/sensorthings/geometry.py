"""Geometries, read from well-known text and GeoJSON, and the geo functions over them: on the plane, in degrees.

Pure computation (Shapely, vectorised); run it in a thread, it takes its time.
"""

import itertools
import operator
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from api.sensorthings.errors import RequestError

Geometry: TypeAlias = Any  # shapely ships no types
Geometries: TypeAlias = NDArray[Any]
Part: TypeAlias = Literal["true", "false", "all"]

MOST_PAIRS = 100_000
LONGEST_EVALUATION = 10.0  # s
_VERSIONS = itertools.count()
_SLICE = 2_048  # geometries between two looks at the clock

_SRID = re.compile(r"\s*srid\s*=\s*\d+\s*;", re.IGNORECASE)
_COMMA_POINT = re.compile(r"\s*point\s*\(\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\)\s*", re.IGNORECASE)
_PATTERN = re.compile("[012TF*]{9}")


@dataclass(frozen=True, slots=True)
class Source:
    """Where geometries are stored: a jsonb column of a table whose rows `key` names."""

    table: str
    key: str
    column: str


@dataclass(frozen=True, slots=True)
class Measure:
    """A geo function with its operands, stored or given as well-known text; with a bound, its comparison with a number.

    pattern: of st_relate, for the DE-9IM matrix. bound: operator, number.
    """

    function: str
    operands: tuple[Source | str, ...]
    pattern: str = ""
    bound: tuple[str, float] | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The operands that are stored."""
        return tuple(operand for operand in self.operands if isinstance(operand, Source))


class Table:
    """The geometries of a source, by id: none is empty, invalid or three-dimensional. Never changed.

    version: no other has it.
    """

    def __init__(self, known: Mapping[int, Geometry]) -> None:
        self.known = known
        self.version = next(_VERSIONS)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """int64, shape (n,)."""
        return np.fromiter(self.known, np.int64, len(self.known))

    @cached_property
    def geometries(self) -> Geometries:
        """Shape (n,), in the order of `ids`."""
        found: Geometries = np.empty(len(self.known), object)
        found[:] = list(self.known.values())
        return found

    @cached_property
    def tree(self) -> Any:
        """An index over their bounding boxes."""
        return shapely.STRtree(self.geometries)

    def changed(self, ids: Iterable[int], texts: Sequence[str | None]) -> "Table":
        """The table with the GeoJSON of some rows changed."""
        known = dict(self.known)
        for own, geometry in zip(ids, read_geojson(texts), strict=True):
            if geometry is None:
                known.pop(own, None)
            else:
                known[own] = geometry
        return Table(known)


class Found(NamedTuple):
    """What a measure is for each row of its source, or each pair of rows; left out where it is null.

    keys: int64, shape (n,), one array a source; values: bool or float64, shape (n,).
    """

    keys: tuple[NDArray[np.int64], ...]
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A parameter that is an array made from a measure.

    part: the rows of which it is true, of which it is false, or all; key: which of the row's ids; None: the values.
    """

    measure: Measure
    part: Part
    key: int | None

    def text(self, found: Found) -> str:
        """The array as PostgreSQL reads it."""
        array = found.values if self.key is None else found.keys[self.key]
        if self.part != "all":
            array = array[found.values if self.part == "true" else ~found.values]
        return "{" + ",".join(map(str, array.tolist())) + "}"


def read_wkt(text: str) -> Geometry:
    """Read well-known text. Raises `ValueError`."""
    text = _SRID.sub("", text, count=1)
    if point := _COMMA_POINT.fullmatch(text):  # as the standard's own example writes it
        text = f"POINT ({point[1]} {point[2]})"
    try:
        with np.errstate(all="ignore"):
            geometry = shapely.from_wkt(text)
    except (shapely.errors.GEOSException, NotImplementedError) as error:
        raise ValueError(f"no well-known text: {str(error).rpartition('Exception: ')[2]}") from None
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise ValueError("no well-known text: a coordinate is no number, or too large")
    return _planar(np.array([geometry], object))[0]


def read_geojson(texts: Sequence[str | None]) -> Geometries:
    """Read GeoJSON geometries, shape (n,); None for what is none or is empty."""
    with np.errstate(all="ignore"):
        found = shapely.from_geojson(np.array(texts, object), on_invalid="ignore")
        infinite = ~np.isfinite(shapely.bounds(found)).all(axis=-1)  # those of none and of empty ones are NaN
    found[infinite] = None
    return _planar(found)


def _planar(geometries: Geometries) -> Geometries:
    """In two dimensions; a polygon that crosses itself as the areas that it encloses."""
    geometries = shapely.force_2d(geometries)
    wrong = ~shapely.is_valid(geometries) & (geometries != None)  # noqa: E711  # elementwise
    if wrong.any():
        geometries[wrong] = shapely.make_valid(geometries[wrong])
    return geometries


def is_pattern(text: str) -> bool:
    """Whether a text is one that a DE-9IM matrix can be compared with."""
    return _PATTERN.fullmatch(text) is not None


def evaluate(measure: Measure, tables: Mapping[Source, Table]) -> Found:
    """Evaluate a measure over its sources. Raises `RequestError` when that takes more than a request's share."""
    deadline = time.monotonic() + LONGEST_EVALUATION
    operands = [tables[o] if isinstance(o, Source) else read_wkt(o) for o in measure.operands]
    stored = [operand for operand in operands if isinstance(operand, Table)]
    with np.errstate(all="ignore"):
        if len(stored) == 1:
            values = _over_one(measure, operands, deadline)
            keys: tuple[NDArray[np.int64], ...] = (stored[0].ids,)
        elif stored:
            keys, values = _over_pairs(measure, stored[0], stored[1], deadline)
        else:
            geometries = [np.array([operand], object) for operand in operands]
            keys, values = (), _applied(_function(measure), geometries, deadline)
    known = ~np.isnan(values)
    values = values[known]
    if measure.bound is not None:
        found = _COMPARISONS[measure.bound[0]](values, measure.bound[1])
    else:
        found = values if measure.function in NUMERIC else values > 0
    return Found(tuple(key[known] for key in keys), found)


def _over_one(measure: Measure, operands: list[Any], deadline: float) -> NDArray[np.float64]:
    if len(operands) == 1:
        return _applied(_function(measure), [operands[0].geometries], deadline)
    swapped = isinstance(operands[0], Table)  # what is given goes first: it is prepared
    table, given = operands if swapped else reversed(operands)
    shapely.prepare(given)
    function = _function(measure, swapped=swapped)

    def of(rows: Any) -> NDArray[np.float64]:
        stored = table.geometries[rows]
        return _applied(lambda some: function(given, some), [stored], deadline)

    if measure.function == "st_relate" or given.is_empty:
        return of(slice(None))
    if measure.function == "geo.distance":
        if measure.bound is None or measure.bound[0] not in {"lt", "le"}:
            return of(slice(None))
        rows = table.tree.query(given, predicate="dwithin", distance=max(measure.bound[1], 0.0))
        values = np.full(len(table.known), np.inf)
    else:
        rows = table.tree.query(given)
        values = np.full(len(table.known), 1.0 if measure.function == "st_disjoint" else 0.0)
    values[rows] = of(rows)
    return values


def _over_pairs(
    measure: Measure, one: Table, other: Table, deadline: float
) -> tuple[tuple[NDArray[np.int64], ...], NDArray[np.float64]]:
    n, m = len(one.known), len(other.known)
    if n * m > MOST_PAIRS:
        raise RequestError(
            501,
            f"{measure.function} of two stored geometries: {n:,} by {m:,} is more than {MOST_PAIRS:,} pairs;"
            " give one of the two as a literal",
        )
    first, second = np.repeat(np.arange(n), m), np.tile(np.arange(m), n)
    values = _applied(_function(measure), [one.geometries[first], other.geometries[second]], deadline)
    return (one.ids[first], other.ids[second]), values


def _applied(
    function: Callable[..., Any], operands: Sequence[Geometries], deadline: float
) -> NDArray[np.float64]:
    """A function's values, NaN where it has none."""
    values = np.empty(len(operands[0]), np.float64)
    for begin in range(0, len(values), _SLICE):
        if time.monotonic() > deadline:
            raise RequestError(503, f"a geo function took longer than {LONGEST_EVALUATION:.0f} s")
        some = [operand[begin : begin + _SLICE] for operand in operands]
        try:
            values[begin : begin + _SLICE] = function(*some)
        except shapely.errors.GEOSException:  # of one of them: find which
            values[begin : begin + _SLICE] = [_one(function, *each) for each in zip(*some, strict=True)]
    return values


def _one(function: Callable[..., Any], *operands: Geometry) -> float:
    try:
        return float(function(*operands))
    except shapely.errors.GEOSException:
        return float("nan")


def _function(measure: Measure, *, swapped: bool = False) -> Callable[..., Any]:
    """The function over arrays; swapped: with its operands in the other order."""
    if measure.function == "st_relate":
        pattern = measure.pattern
        if swapped:
            return lambda a, b: shapely.relate_pattern(b, a, pattern)
        return lambda a, b: shapely.relate_pattern(a, b, pattern)
    name = _INVERSE.get(measure.function, measure.function) if swapped else measure.function
    return _FUNCTIONS[name]


def _length(shapes: Any) -> Any:
    """Of lines; an area has none, as in OGC Simple Features."""
    return np.where(shapely.get_dimensions(shapes) == _AREA, 0.0, shapely.length(shapes))


_AREA = 2  # dimensions
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "geo.distance": shapely.distance,
    "geo.length": _length,
    "geo.intersects": shapely.intersects,
    "st_equals": shapely.equals,
    "st_disjoint": shapely.disjoint,
    "st_touches": shapely.touches,
    "st_within": shapely.within,
    "st_overlaps": shapely.overlaps,
    "st_crosses": shapely.crosses,
    "st_intersects": shapely.intersects,
    "st_contains": shapely.contains,
}
_INVERSE = {"st_within": "st_contains", "st_contains": "st_within"}  # the others are symmetric
_COMPARISONS: dict[str, Callable[[Any, float], NDArray[Any]]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
NUMERIC = frozenset({"geo.distance", "geo.length"})
ARGUMENTS = {name: 1 if name == "geo.length" else 2 for name in _FUNCTIONS} | {"st_relate": 3}
"""The functions by the number of their arguments."""
