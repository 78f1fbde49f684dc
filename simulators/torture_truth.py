"""What the store must hold after a run, beside what it holds: lost, doubled, altered. Pure: rows in, differences out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isclose
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np

from citylab.model import DAY, HOUR, MINUTE, SECOND, Micros, Quality
from simulators.torture_plan import Columns

WIDTHS = (MINUTE // SECOND, HOUR // SECOND, DAY // SECOND)  # of aggregates, in seconds, as the store has them
_MOST_EXAMPLES = 5


class Row(NamedTuple):
    """An observation. value is None where the store holds no number."""

    stream: str
    time: Micros
    value: float | None
    quality: int


class Newest(NamedTuple):
    """A stream's row of `latest`."""

    stream: str
    time: Micros
    value: float | None
    values: int


class Window(NamedTuple):
    """An aggregate; what follows `good` is None where that is 0."""

    stream: str
    width: int
    start: Micros
    values: int
    good: int
    mean: float | None
    m2: float | None
    least: float | None
    greatest: float | None
    first: float | None
    first_time: Micros | None
    last: float | None
    last_time: Micros | None


class Account(NamedTuple):
    """A row of the ledger. received: half-open ranges."""

    gateway: str
    epoch: int
    records: int
    stored: int
    duplicates: int
    rejected: int
    received: Sequence[tuple[int, int]]


class Difference(msgspec.Struct):
    """How a store differs from the truth. derived: aggregates and newest values that are wrong; ledger: its rows."""

    lost: int = 0
    doubled: int = 0
    altered: int = 0
    derived: int = 0
    ledger: int = 0
    examples: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.altered or self.derived or self.ledger)

    def say(self, example: str) -> None:
        """Keep the first few."""
        if len(self.examples) < _MOST_EXAMPLES:
            self.examples.append(example)

    def add(self, other: "Difference") -> None:
        """Count what another part of the store differs in."""
        for name in ("lost", "doubled", "altered", "derived", "ledger"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for example in other.examples:
            self.say(example)


Key: TypeAlias = tuple[str, Micros]


def truth(columns: Columns, names: Sequence[str]) -> list[Row]:
    """The observations that a gateway's columns become. names: of its streams."""
    parts = (columns.stream, columns.time, columns.value, columns.quality)
    return [
        Row(names[stream], time, value, quality)
        for stream, time, value, quality in zip(*(part.tolist() for part in parts), strict=True)
    ]


def compare_rows(must: Iterable[Row], may: Iterable[Row], found: Iterable[Row]) -> Difference:
    """Observations row by row. may: they can be there or not, but not otherwise."""
    wanted: dict[Key, Row] = {row[:2]: row for row in must}
    allowed: dict[Key, Row] = {row[:2]: row for row in may}
    seen: Counter[Key] = Counter()
    difference = Difference()
    for row in found:
        key = row[:2]
        seen[key] += 1
        expected = wanted.get(key) or allowed.get(key)
        if seen[key] > 1:
            difference.doubled += 1
            difference.say(f"doubled: {row}")
        elif row != expected:
            difference.altered += 1
            difference.say(f"altered: {row} instead of {expected}")
    for key, row in wanted.items():
        if key not in seen:
            difference.lost += 1
            difference.say(f"lost: {row}")
    return difference


def windows(rows: Iterable[Row], width: int) -> list[Window]:
    """Aggregates computed anew from all rows at once, without what the platform uses for them."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.stream, row.time - row.time % (width * SECOND)), []).append(row)
    made = []
    for (stream, start), some in groups.items():
        good = sorted((row for row in some if row.quality != Quality.BAD), key=lambda row: row.time)
        values = np.array([row.value for row in good], np.float64)
        if not len(values):
            made.append(Window(stream, width, start, len(some), 0, *[None] * 8))
            continue
        mean = float(values.mean())
        made.append(
            Window(
                stream, width, start, len(some), len(good), mean, float(((values - mean) ** 2).sum()),
                float(values.min()), float(values.max()), good[0].value, good[0].time, good[-1].value, good[-1].time,
            )
        )  # fmt: skip
    return made


def compare_windows(rows: Sequence[Row], found: Iterable[Window]) -> Difference:
    """Minutes, hours and days, against what the rows make them. Mean and M2 may differ by their rounding."""
    wanted = {window[:3]: window for width in WIDTHS for window in windows(rows, width)}
    difference = Difference()
    for window in found:
        expected = wanted.pop(window[:3], None)
        if expected is None or not _alike(window, expected):
            difference.derived += 1
            difference.say(f"aggregate: {window} instead of {expected}")
    for window in wanted.values():
        difference.derived += 1
        difference.say(f"aggregate missing: {window}")
    return difference


def _alike(one: Window, other: Window) -> bool:
    return all(
        a == b or (a is not None and b is not None and isclose(a, b, rel_tol=1e-9, abs_tol=1e-9))
        for a, b in ((one.mean, other.mean), (one.m2, other.m2))
    ) and one._replace(mean=None, m2=None) == other._replace(mean=None, m2=None)


def compare_newest(rows: Iterable[Row], found: Iterable[Newest]) -> Difference:
    """The newest value and the count of each stream."""
    wanted: dict[str, Newest] = {}
    for row in rows:
        before = wanted.get(row.stream)
        newest = row if before is None or row.time > before.time else before
        wanted[row.stream] = Newest(row.stream, newest.time, newest.value, before.values + 1 if before else 1)
    difference = Difference()
    have = {newest.stream: newest for newest in found if newest.values}
    for stream in wanted.keys() | have.keys():
        if wanted.get(stream) != have.get(stream):
            difference.derived += 1
            difference.say(f"latest: {have.get(stream)} instead of {wanted.get(stream)}")
    return difference


def compare_accounts(sent: Mapping[tuple[str, int], int], found: Iterable[Account]) -> Difference:
    """The ledger: everything accounted for, nothing rejected, no hole. sent: the last number, by gateway and epoch."""
    difference = Difference()
    accounts = {account[:2]: account for account in found}
    for account in accounts.values():
        balanced = account.records == account.stored + account.duplicates + account.rejected
        if account.rejected or not balanced:
            difference.ledger += 1
            difference.say(f"ledger: {account}")
    for (gateway, epoch), last in sent.items():
        received = accounts[gateway, epoch].received if (gateway, epoch) in accounts else ()
        if list(received) != ([(1, last + 1)] if last else []):
            difference.ledger += 1
            difference.say(f"ledger: of {gateway} {list(received)} is received instead of 1 to {last}")
    return difference
