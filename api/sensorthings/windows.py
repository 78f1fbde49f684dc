"""Observations of all Datastreams in the order of time or id, without an index that every insert would pay for.

A B-tree on time costs an insert half as much again; block ranges (BRIN) cost nothing, and find a narrow range fast, but
give no order. So a page is looked for in a window that should just hold it, and in wider ones while it does not. What a
request says about time or id bounds the windows; the last one has no bound but that, so nothing is ever missed.

Where many Datastreams have values at the same instants, as those of a city that measure every ten minutes, the first
instant alone may fill the page, and the first Datastreams alone. They are asked before anything else: one look into the
index for each. So are they where the default order is meant, by Datastream, and the filter bounds the time: TimescaleDB
would look through whole chunks that hold little of it.
"""

from typing import NamedTuple

from api.sensorthings.ordering import read_token
from api.sensorthings.parser import MIRRORED
from api.sensorthings.syntax import Binary, Expression, Lambda, Literal, LiteralKind, Path, Query, walk
from citylab.entities import OBSERVATION
from citylab.errors import CitylabError
from citylab.times import FIRST_INSTANT, LAST_INSTANT, format_instant, parse_instant

_IDS = frozenset({"id", "@iot.id"})
_TIME = "phenomenonTime"
_FILTERED = 8  # a filter leaves out some: begin wider
_WIDER = 8
_MOST_TRIES = 4  # then all at once
_DATASTREAMS = 2  # as many as rows are wanted at one instant: some have none
LARGEST_ID = 2**63 - 1
EXTENT = (
    "SELECT (extract(epoch FROM min(phenomenon_first)) * 1000000)::int8,"
    " (extract(epoch FROM max(phenomenon_last)) * 1000000)::int8, coalesce(sum(count), 0)::int8,"
    " (SELECT last_value FROM observation_ids) FROM latest"
)


class Extent(NamedTuple):
    """Roughly where Observations are: least and greatest time in µs, how many, the last id."""

    first: int | None
    last: int | None
    rows: int
    last_id: int


class Windowed(NamedTuple):
    """How to look for a page.

    low, high: bounds in µs, or ids, that the request itself sets;
    rows: how many to find, the first `skipped` of which do not show;
    after: the Datastream from which a token goes on, where the page may lie at the instant `low` alone, in the order of
    the Datastreams; None where it may not.
    """

    by_id: bool
    descending: bool
    low: int | None
    high: int | None
    rows: int
    skipped: int
    filtered: bool
    after: int | None

    def at_instant(self, alias: str) -> list[str]:
        """Conditions of the row `alias` that leave the first Datastreams' values at one instant, the parameter `from`."""
        return [f"{alias}.phenomenon_time = %(from)s::timestamptz", of_first_datastreams(alias, self.rows)]

    @property
    def instant(self) -> str:
        """The lower bound as text."""
        return self._texts(None, None)[0]

    @property
    def column(self) -> str:
        """The column of the window."""
        return "id" if self.by_id else "phenomenon_time"

    @property
    def cast(self) -> str:
        """Its SQL type."""
        return "int8" if self.by_id else "timestamptz"

    def windows(self, extent: Extent) -> list[tuple[str, str]]:
        """The windows to try, each wider than the one before, as texts of their lower and upper bounds."""
        first, last = (1, extent.last_id) if self.by_id else (extent.first, extent.last)
        if first is None or last is None or extent.rows == 0:
            return [self._texts(None, None)]
        density = 1 if self.by_id else max(1, (last - first) // extent.rows)
        width = max(
            1 if self.by_id else 1_000_000, density * self.rows * 2 * (_FILTERED if self.filtered else 1)
        )
        low = first if self.low is None else max(first, self.low)
        high = last if self.high is None else min(last, self.high)
        found = []
        for _ in range(_MOST_TRIES):
            if self.descending and high - width > low:
                found.append(self._texts(high - width, None))
            elif not self.descending and low + width < high:
                found.append(self._texts(None, low + width))
            width *= _WIDER
        return [*found, self._texts(None, None)]

    def _texts(self, low: int | None, high: int | None) -> tuple[str, str]:
        """Bounds as texts; what the request's own conditions bound is bounded here too, for the planner to see."""
        low = self.low if low is None else low
        high = self.high if high is None else high
        if self.by_id:
            return str(0 if low is None else low), str(LARGEST_ID if high is None else high)
        return ("-infinity" if low is None else _instant(low)), (
            "infinity" if high is None else _instant(high)
        )


def windowed(query: Query, page: int) -> Windowed | None:
    """Whether a page of all Observations is looked for in windows, and how.

    Not where an index gives the order, or where the filter leads to other entities: they may be few, with an index.
    """
    if not query.orderby or (query.count and query.filter is not None):
        return None
    key = query.orderby[0]
    if not isinstance(key.expression, Path) or len(key.expression.steps) != 1:
        return None
    name = key.expression.steps[0]
    by_id = name in _IDS
    if not by_id and name != _TIME:
        return None
    if query.filter is not None and not _own(query.filter):
        return None
    low, high = _bounds(query.filter, by_id=by_id)
    skipped = query.skip if query.skiptoken is None else 0
    if query.skiptoken is not None:
        at = _of_token(query.skiptoken, by_id=by_id)
        if at is None:
            return None
        low, high = (
            (low, at if high is None else min(high, at)) if key.descending else (max(low or at, at), high)
        )
    filtered = query.filter is not None and not _is_bound(query.filter, by_id=by_id)
    plain = not (by_id or key.descending or filtered or skipped or low is None) and len(query.orderby) == 1
    after = (
        (0 if query.skiptoken is None else _datastream_of_token(query.skiptoken, place=1)) if plain else None
    )
    return Windowed(by_id, key.descending, low, high, skipped + page + 1, skipped, filtered, after)


def first_datastream(query: Query) -> int | None:
    """From which Datastream on a page in the default order lies, if the time is all that its filter says; else None."""
    if query.orderby or query.filter is None or not _is_bound(query.filter, by_id=False):
        return None
    if query.skiptoken is None:
        return None if query.skip else 0
    return _datastream_of_token(query.skiptoken, place=0)


def of_first_datastreams(alias: str, rows: int) -> str:
    """A condition of the row `alias`, where so many are wanted: it is of the first Datastreams from the parameter `after` on."""
    some = "SELECT l.datastream_id FROM latest l WHERE l.datastream_id >= %(after)s::int8 ORDER BY l.datastream_id"
    return f"{alias}.datastream_id = ANY(ARRAY({some} LIMIT {rows * _DATASTREAMS}))"


def _own(node: Expression) -> bool:
    """Whether an expression names the Observation's own properties only."""
    paths = [n for n in walk(node) if isinstance(n, Path)]
    return all(p.steps[0] not in OBSERVATION.relations for p in paths) and not any(
        isinstance(n, Lambda) for n in walk(node)
    )


def _bounds(node: Expression | None, *, by_id: bool) -> tuple[int | None, int | None]:
    """What a filter says about the time or the id of every row that it lets through."""
    if not isinstance(node, Binary):
        return None, None
    if node.operator == "and":
        one, other = _bounds(node.left, by_id=by_id), _bounds(node.right, by_id=by_id)
        lows = [low for low in (one[0], other[0]) if low is not None]
        highs = [high for high in (one[1], other[1]) if high is not None]
        return max(lows, default=None), min(highs, default=None)
    operator, path, literal = node.operator, node.left, node.right
    if isinstance(path, Literal):
        operator, path, literal = MIRRORED.get(operator, ""), literal, path
    if not isinstance(path, Path) or not isinstance(literal, Literal) or len(path.steps) != 1:
        return None, None
    if not (path.steps[0] in _IDS if by_id else path.steps[0] == _TIME):
        return None, None
    value = literal.value
    if by_id:
        if literal.kind is not LiteralKind.NUMBER or not str(value).isdecimal() or len(str(value)) > 18:
            return None, None
        start = end = int(str(value))
    elif isinstance(value, tuple):
        start, end = value[0], value[0] if value[1] is None else value[1]
    else:
        return None, None
    return start if operator in {"ge", "gt", "eq"} else None, end if operator in {"le", "lt", "eq"} else None


def _is_bound(node: Expression, *, by_id: bool) -> bool:
    """Whether a filter says nothing else than where the window lies."""
    if isinstance(node, Binary) and node.operator == "and":
        return _is_bound(node.left, by_id=by_id) and _is_bound(node.right, by_id=by_id)
    return _bounds(node, by_id=by_id) != (None, None)


def _of_token(token: str, *, by_id: bool) -> int | None:
    """The first key of a token; None if it is none, which is said elsewhere."""
    try:
        text = read_token(token)[0]
        if text is None:
            return None
        # As PostgreSQL writes it: 2024-01-01 00:00:00+00
        return int(text) if by_id else parse_instant(f"{text.removesuffix('+00')}Z")
    except (CitylabError, ValueError, IndexError):
        return None


def _datastream_of_token(token: str, *, place: int) -> int | None:
    """The Datastream's id in a token, which is the key at this place of the order; None if there is none."""
    try:
        text = read_token(token)[place]
    except (CitylabError, IndexError):
        return None
    return int(text) if text is not None and text.isdecimal() and len(text) <= 18 else None


def _instant(micros: int) -> str:
    return format_instant(min(max(micros, FIRST_INSTANT), LAST_INSTANT))
