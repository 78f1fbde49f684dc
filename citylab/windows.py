"""Aggregates over windows of event time, as mergeable partials (Chan, Golub, LeVeque 1983). Columns in, columns out."""

from dataclasses import dataclass

import numpy as np

from citylab.columns import Float64, Int64
from citylab.model import DAY, Quality


@dataclass(frozen=True, slots=True)
class Partials:
    """One row a (series, window), sorted by both; every array has shape (m,).

    series, start (µs), count, good: int64; mean, m2, least, greatest, first, last: float64, NaN where good is 0;
    first_time, last_time: int64 µs.
    """

    series: Int64
    start: Int64
    count: Int64
    good: Int64
    mean: Float64
    m2: Float64
    least: Float64
    greatest: Float64
    first: Float64
    first_time: Int64
    last: Float64
    last_time: Int64


def fold(
    series: Int64, time: Int64, inside: Int64, value: Float64, quality: np.ndarray, *, width: int
) -> Partials:
    """Aggregate rows into windows of `width` µs since the epoch.

    series: int64, which series a row belongs to; time: int64 µs; inside: int64 µs, an instant inside the row's
    window (its time, or the instant before its end: contracts, `aggregates`); value: float64, finite;
    quality: int8, a `Quality`. All of shape (n,). The result does not depend on the order of rows but for rounding.
    """
    start = inside - inside % width
    order = np.lexsort((time, start, series))
    series, time, start, value = series[order], time[order], start[order], value[order]
    good = quality[order] != Quality.BAD
    edge = np.ones(len(series), np.bool_)
    edge[1:] = (series[1:] != series[:-1]) | (start[1:] != start[:-1])
    first_row = np.flatnonzero(edge)
    group = np.cumsum(edge) - 1
    groups = len(first_row)
    count = np.bincount(group, minlength=groups)
    good_count = np.bincount(group[good], minlength=groups)
    some = good_count > 0
    nothing = np.full(groups, np.nan)
    group, value, time = group[good], value[good], time[good]

    mean = np.divide(np.bincount(group, value, groups), good_count, out=nothing.copy(), where=some)
    # A second pass over the deviations: a sum of squares would cancel. The first pass's rounding is taken out too.
    deviation = value - mean[group]
    mean = mean + np.divide(
        np.bincount(group, deviation, groups), good_count, out=np.zeros(groups), where=some
    )
    deviation = value - mean[group]
    m2 = np.where(some, np.bincount(group, deviation * deviation, groups), np.nan)

    least, greatest, first, last = nothing.copy(), nothing.copy(), nothing.copy(), nothing.copy()
    first_time, last_time = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    if len(group):
        begins = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        ends = np.r_[begins[1:], len(group)] - 1
        least[some] = np.minimum.reduceat(value, begins)
        greatest[some] = np.maximum.reduceat(value, begins)
        first[some], last[some] = value[begins], value[ends]
        first_time[some], last_time[some] = time[begins], time[ends]
    return Partials(
        series[first_row], start[first_row], count.astype(np.int64), good_count.astype(np.int64),
        mean, m2, least, greatest, first, first_time, last, last_time,
    )  # fmt: skip


ORIGIN = 4 * DAY  # Monday, 1970-01-05: weeks begin on Mondays; minutes, hours and days do not notice


def merge(parts: Partials, *, width: int) -> Partials:
    """The aggregates of wider windows, of `width` µs from `ORIGIN` on, by Chan's merge of all their parts.

    parts: of windows that do not overlap within a series, sorted by series and start.
    """
    start = parts.start - (parts.start - ORIGIN) % width
    edge = np.ones(len(start), np.bool_)
    edge[1:] = (parts.series[1:] != parts.series[:-1]) | (start[1:] != start[:-1])
    begins = np.flatnonzero(edge)
    group, groups = np.cumsum(edge) - 1, len(begins)
    count = np.bincount(group, parts.count, groups).astype(np.int64)
    good = np.bincount(group, parts.good, groups).astype(np.int64)
    some = good > 0
    chosen = parts.good > 0
    inside, weight = group[chosen], parts.good[chosen].astype(np.float64)
    mean = np.full(groups, np.nan)
    m2, least, greatest, first, last = (mean.copy() for _ in range(5))
    first_time, last_time = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    if len(inside):
        mean[some] = np.bincount(inside, weight * parts.mean[chosen], groups)[some] / good[some]
        away = parts.mean[chosen] - mean[inside]
        m2[some] = np.bincount(inside, parts.m2[chosen] + weight * away * away, groups)[some]
        heads = np.flatnonzero(np.r_[True, inside[1:] != inside[:-1]])
        tails = np.r_[heads[1:], len(inside)] - 1
        least[some] = np.minimum.reduceat(parts.least[chosen], heads)
        greatest[some] = np.maximum.reduceat(parts.greatest[chosen], heads)
        first[some], last[some] = parts.first[chosen][heads], parts.last[chosen][tails]
        first_time[some], last_time[some] = parts.first_time[chosen][heads], parts.last_time[chosen][tails]
    return Partials(
        parts.series[begins], start[begins], count, good, mean, m2, least, greatest, first, first_time, last, last_time
    )  # fmt: skip
