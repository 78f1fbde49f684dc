"""Decimation keeps the ends, the order and what stands out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.lttb import decimate

series = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


def slowly(time, value, points: int) -> list[int]:
    """As the paper says it, in plain Python."""
    n = len(time)
    if n <= points:
        return list(range(n))
    edges = np.linspace(1, n - 1, points - 1).astype(int).tolist()
    chosen = [0]
    for i in range(points - 2):
        begin, end = edges[i], edges[i + 1]
        low, high = (edges[i + 1], edges[i + 2]) if i + 2 < len(edges) else (n - 1, n)
        x, y = sum(time[low:high]) / (high - low), sum(value[low:high]) / (high - low)
        a = chosen[-1]
        areas = [
            abs((time[a] - x) * (value[j] - value[a]) - (time[a] - time[j]) * (y - value[a]))
            for j in range(begin, end)
        ]
        chosen.append(begin + areas.index(max(areas)))
    return [*chosen, n - 1]


@given(st.lists(st.integers(-1_000, 1_000), min_size=1, max_size=200), st.integers(3, 60))
def test_it_chooses_as_the_paper_does(values, points):
    time = [i * i * 1_000 for i in range(len(values))]

    found = decimate(np.array(time, np.int64), np.array(values, np.float64), points)

    expected = slowly(time, values, points)
    assert len(found) == len(expected)
    x, y = np.array(time, np.float64), np.array(values, np.float64)
    # Sums in another order may break a tie the other way; from there on another point is before the next.
    for a, b in zip(found.tolist(), expected, strict=True):
        if a != b:
            assert x[a] != x[b] or y[a] != y[b]
            break


@given(series, st.integers(3, 50))
def test_ends_stay_order_stays_and_there_are_as_many_as_asked(values, points):
    value = np.array(values, np.float64)

    found = decimate(np.arange(len(values)) * 1_000, value, points)

    assert len(found) == min(points, len(values))
    assert (found[0], found[-1]) == (0, len(values) - 1)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("at", [1, 500, 998])
def test_what_stands_out_is_kept(at):
    value = np.zeros(1_000)
    value[at] = 1.0

    assert at in decimate(np.arange(1_000) * 1_000_000, value, 20)
