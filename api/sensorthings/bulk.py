"""`CreateObservations` (OGC 18-088 §11.2.2): groups of rows read into columns, without an object a row in the plain case.

Plain is a group whose results are numbers and whose times are such as 2026-05-01T07:00:00.250Z; every other group is read row by
row, as a POST of each row would be, and says of each row that cannot be stored why.
"""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from api.sensorthings.errors import RequestError
from api.sensorthings.requests import Answer, Request
from citylab.columns import NO_TIME, Float64, Int64, Observations
from citylab.drafts import LARGEST_ID, Draft, Result, read_draft
from citylab.entities import OBSERVATION
from citylab.errors import Rejected
from citylab.model import DAY, HOUR, MINUTE, SECOND, Micros
from citylab.ports import EntityWrites, Transaction

_FEATURE = "FeatureOfInterest/id"
_FEATURES = frozenset({_FEATURE, "FeatureOfInterest/@iot.id"})
_IGNORED = frozenset({"id", "@iot.id"})
_SERIES = tuple(name for name in ("Datastream", "MultiDatastream") if name in OBSERVATION.relations)
_PLAIN = frozenset({"phenomenonTime", "resultTime", "result", _FEATURE, *_IGNORED})
_NUMBER = re.compile(rb'"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+\-]?[0-9]+)?"')
_LONGEST_PLAIN = 15  # digits that a float64 gives back exactly, written without an exponent

_LONG = 100_000  # bytes

_rows = msgspec.json.Decoder(list[list[msgspec.Raw]])
_raw_rows = msgspec.json.Decoder(list[msgspec.Raw])
_cells = msgspec.json.Decoder(list[msgspec.Raw])


class _Group(
    msgspec.Struct, rename={"rows": "dataArray", "datastream": "Datastream", "multi": "MultiDatastream"}
):
    components: list[str]
    rows: msgspec.Raw
    datastream: msgspec.Raw = msgspec.Raw()
    multi: msgspec.Raw = msgspec.Raw()


class _Link(msgspec.Struct, rename={"id": "@iot.id"}):
    id: int


_groups = msgspec.json.Decoder(list[_Group])
_link = msgspec.json.Decoder(_Link, strict=False)


class Group(NamedTuple):
    """The rows of one group as columns, or each as a draft or the reason why it is none."""

    columns: Observations | None
    drafts: Sequence[Draft | str]


def read_groups(document: bytes, now: Micros) -> list[Group]:
    """Read the document. now: the phenomenonTime of plain rows without one.

    Raises `RequestError` 400 for what has not the form of groups; what is wrong with one row is said of that row.
    """
    try:
        document.decode()
        groups = _groups.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(
            400, f"the document is no array of groups with components and dataArray: {error}"
        ) from None
    return [_read(group, i, now) for i, group in enumerate(groups)]


def _read(group: _Group, index: int, now: Micros) -> Group:
    where = f"group {index + 1}"
    for name in group.components:
        if name not in OBSERVATION.properties and name not in _FEATURES and name not in _IGNORED:
            raise RequestError(400, f"{where}: there is no component {name!r}")
    if len(set(group.components)) != len(group.components):
        raise RequestError(400, f"{where}: a component is named twice")
    series = {"Datastream": group.datastream, "MultiDatastream": group.multi}
    named = [name for name in _SERIES if bytes(series[name])]
    if len(named) != 1:
        raise RequestError(400, f"{where}: it needs {' or '.join(_SERIES)}, by its @iot.id")
    link = series[named[0]]
    if named == ["Datastream"] and _PLAIN.issuperset(group.components):
        columns = _plain(group, link, now)
        if columns is not None:
            return Group(columns, ())
    try:
        rows = _raw_rows.decode(group.rows)
    except msgspec.DecodeError:
        raise RequestError(400, f"{where}: dataArray is an array of rows") from None
    return Group(None, [_draft(group.components, row, named[0], link) for row in rows])


# Columns ------------------------------------------------------------------------------------------------------------


def _plain(group: _Group, link: msgspec.Raw, now: Micros) -> Observations | None:
    """The rows of a plain group; None if it is not plain."""
    try:
        datastream = _link.decode(link).id
        rows = _rows.decode(group.rows)
    except msgspec.DecodeError:
        return None
    n = len(rows)
    components = group.components
    if not n or "result" not in components or not 0 < datastream <= LARGEST_ID:
        return None
    if set(map(len, rows)) != {len(components)}:
        return None
    cells = dict(zip(components, zip(*rows, strict=True), strict=True))
    results = _results(cells["result"])
    time = _instants(cells["phenomenonTime"]) if "phenomenonTime" in cells else np.full(n, now)
    result_time = _instants(cells["resultTime"]) if "resultTime" in cells else np.full(n, NO_TIME)
    feature = _ids(cells[_FEATURE]) if _FEATURE in cells else np.zeros(n, np.int64)
    if results is None or time is None or result_time is None or feature is None:
        return None
    number, json = results
    return Observations(
        datastream=np.full(n, datastream),
        time=time,
        number=number,
        quality=np.zeros(n, np.int8),
        feature=feature,
        json=json,
        result_time=result_time if "resultTime" in cells else None,
    )


def _results(cells: Sequence[msgspec.Raw]) -> tuple[Float64, list[str | None] | None] | None:
    """Numbers, and the texts that they do not give back; a string that holds a number counts as that number."""
    numbers: list[float] = []
    json: list[str | None] = []
    exact = True
    for cell in cells:
        text = bytes(cell)
        if text[:1] == b'"':
            if not _NUMBER.fullmatch(text):
                return None
            numbers.append(float(text[1:-1]))
            json.append(text.decode())
            exact = False
            continue
        try:
            number = float(text)
        except ValueError:
            return None
        numbers.append(number)
        if gives_back(number, text):
            json.append(None)
        else:
            json.append(text.decode())
            exact = False
    column = np.array(numbers, np.float64)
    if not np.isfinite(column).all():
        return None
    return column, None if exact else json


def gives_back(number: float, text: bytes) -> bool:
    """Whether the store writes the float64 of a JSON number as it came."""
    if len(text) > _LONGEST_PLAIN:
        return False
    if text.isdigit():
        return True
    shortest = repr(number).encode()
    return (
        (shortest == text or shortest == text + b".0") and b"e" not in shortest and not text.endswith(b".0")
    )


_FORM = b'"0000-00-00T00:00:00Z"'
_SECONDS = len(_FORM) - 2  # bytes before the Z, or before a fraction
_LONGEST_FRACTION = 6  # digits of whole microseconds


def _instants(cells: Sequence[msgspec.Raw]) -> Int64 | None:
    """µs of texts in the most common form, with a fraction or without; None if one of them is not."""
    texts = [bytes(cell) for cell in cells]
    length = np.fromiter(map(len, texts), np.int64, len(texts))
    micros = np.zeros(len(texts), np.int64)
    for one in np.unique(length).tolist():
        rows = np.flatnonzero(length == one)
        some = texts if len(rows) == len(texts) else [texts[i] for i in rows.tolist()]
        found = _instants_of_length(some, one)
        if found is None:
            return None
        micros[rows] = found
    return micros


def _instants_of_length(texts: Sequence[bytes], length: int) -> Int64 | None:
    fraction = length - len(_FORM) - 1  # digits; -1: there is none, and no point
    if fraction == 0 or not -1 <= fraction <= _LONGEST_FRACTION:
        return None
    form = _FORM[:_SECONDS] + (b"." + b"0" * fraction if fraction > 0 else b"") + _FORM[_SECONDS:]
    pattern = np.frombuffer(form, np.uint8)
    digit = pattern == ord("0")
    table = np.frombuffer(b"".join(texts), np.uint8).reshape(len(texts), length)
    if (table[:, ~digit] != pattern[~digit]).any():
        return None
    digits = table[:, digit].astype(np.int64) - ord("0")
    if (digits < 0).any() or (digits > 9).any():
        return None
    year = digits[:, :4] @ np.array([1000, 100, 10, 1])
    month, day, hour, minute, second = (digits[:, i] * 10 + digits[:, i + 1] for i in range(4, 14, 2))
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    if (days.astype("datetime64[M]") != months).any() or (day == 0).any():
        return None
    if ((year < 1) | (month < 1) | (month > 12) | (hour > 23) | (minute > 59) | (second > 59)).any():
        return None
    below = digits[:, 14:] @ 10 ** np.arange(5, 5 - max(fraction, 0), -1, dtype=np.int64)
    micros: Int64 = days.astype(np.int64) * DAY + hour * HOUR + minute * MINUTE + second * SECOND + below
    return micros


def _ids(cells: Sequence[msgspec.Raw]) -> Int64 | None:
    texts = [bytes(cell).strip(b'"') for cell in cells]
    if not all(text.isdigit() and len(text) <= 18 and int(text) > 0 for text in texts):
        return None
    return np.array([int(text) for text in texts], np.int64)


# Rows ---------------------------------------------------------------------------------------------------------------


def _draft(components: Sequence[str], row: msgspec.Raw, series: str, link: msgspec.Raw) -> Draft | str:
    """The draft of the Observation that a row describes, or why it describes none."""
    try:
        cells = _cells.decode(row)
    except msgspec.DecodeError:
        return "a row is an array of values"
    if len(cells) != len(components):
        return f"the row has {len(cells)} values for {len(components)} components"
    members = [b'"%s":%s' % (series.encode(), bytes(link))]
    for name, cell in zip(components, cells, strict=True):
        if name in _FEATURES:
            members.append(b'"FeatureOfInterest":{"@iot.id":%s}' % bytes(cell))
        elif name not in _IGNORED:
            members.append(b'"%s":%s' % (name.encode(), bytes(cell)))
    try:
        draft = read_draft(OBSERVATION, b"{%s}" % b",".join(members))
    except Rejected as error:
        return error.detail
    if not all(isinstance(target, int) for targets in draft.links.values() for target in targets):
        return f"{series} and FeatureOfInterest are named by their ids"
    result = draft.values["result"]
    if isinstance(result, Result) and _NUMBER.fullmatch(result.json.encode()):
        number = float(result.json[1:-1])
        draft.values["result"] = Result(number if math.isfinite(number) else math.nan, result.json)
    return draft


# Storing ------------------------------------------------------------------------------------------------------------


async def creation_of_rows(
    request: Request, writes: EntityWrites, now: Micros
) -> Callable[[Transaction], Awaitable[Answer]]:
    """Read a request; return what answers it in a transaction: for each row its link, or why it is nothing."""
    # A long document would keep everybody waiting while it is read.
    is_long = len(request.body) > _LONG
    groups = (
        await asyncio.to_thread(read_groups, request.body, now) if is_long else read_groups(request.body, now)
    )

    async def create(transaction: Transaction) -> Answer:
        outcomes = await _store_groups(transaction, writes, groups, now=now)
        links = ",".join(
            f'"{request.base}Observations({outcome})"'
            if isinstance(outcome, int)
            else msgspec.json.encode(f"error: {outcome}").decode()
            for outcome in outcomes
        )
        return Answer(201, f"[{links}]".encode())

    return create


async def _store_groups(
    transaction: Transaction, writes: EntityWrites, groups: Sequence[Group], *, now: Micros
) -> list[int | str]:
    """Store what was read; for each row, in order, the Observation's id or why it was refused."""
    outcomes: list[int | str] = []
    places: list[int] = []  # of the columns' rows among the outcomes
    single: dict[int, Draft] = {}
    for group in groups:
        first = len(outcomes)
        if group.columns is not None:
            places += range(first, first + len(group.columns))
            outcomes += [0] * len(group.columns)
            continue
        outcomes += [draft if isinstance(draft, str) else 0 for draft in group.drafts]
        single |= {first + i: draft for i, draft in enumerate(group.drafts) if isinstance(draft, Draft)}
    columns = [group.columns for group in groups if group.columns is not None]
    if columns:
        await _store(transaction, Observations.joined(columns), places, outcomes, now)
    simple = {i: draft for i, draft in single.items() if "Datastream" in draft.links}
    if simple:
        await _store(transaction, list(simple.values()), list(simple), outcomes, now)
    for i in single.keys() - simple.keys():
        try:
            async with transaction.savepoint():
                outcomes[i] = await writes.create(transaction, single[i], now=now)
        except Rejected as error:
            outcomes[i] = error.detail
    return outcomes


async def _store(
    transaction: Transaction,
    rows: Observations | Sequence[Draft],
    places: Sequence[int],
    outcomes: list[int | str],
    now: Micros,
) -> None:
    ids, refused = await transaction.create_observations(rows, now=now)
    for i, (place, own) in enumerate(zip(places, ids.tolist(), strict=True)):
        outcomes[place] = refused.get(i, own)
