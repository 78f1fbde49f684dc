"""Aggregates over windows, against the same computed with fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.model import DAY, HOUR, MINUTE, Quality
from citylab.windows import ORIGIN, Partials, fold, merge


def fold_rows(rows: list[tuple[int, int, float, int]], *, width: int = MINUTE, back: int = 0) -> Partials:
    """rows: series, time in µs, value, quality; back: how far before its time lies the instant in its window."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    time = np.array(columns[1], np.int64)
    return fold(
        np.array(columns[0], np.int64), time, time - back, np.array(columns[2], np.float64),
        np.array(columns[3], np.int8), width=width,
    )  # fmt: skip


def exact(rows: list[tuple[int, int, float, int]], width: int) -> dict[tuple[int, int], dict]:
    windows: dict[tuple[int, int], list[tuple[int, float, int]]] = {}
    for series, time, value, quality in rows:
        windows.setdefault((series, time // width * width), []).append((time, value, quality))
    found = {}
    for key, members in windows.items():
        good = sorted((time, value) for time, value, quality in members if quality != Quality.BAD)
        values = [Fraction(value) for _, value in good]
        mean = sum(values) / len(values) if values else None
        found[key] = {
            "count": len(members), "good": len(good), "mean": mean,
            "m2": sum((v - mean) ** 2 for v in values) if values else None,
            "least": min(values, default=None), "greatest": max(values, default=None),
            "first": good[0] if good else None, "last": good[-1] if good else None,
        }  # fmt: skip
    return found


def check(rows: list[tuple[int, int, float, int]], width: int) -> None:
    partials = fold_rows(rows, width=width)
    expected = exact(rows, width)
    keys = list(zip(partials.series.tolist(), partials.start.tolist(), strict=True))
    assert keys == sorted(expected)
    for i, key in enumerate(keys):
        right = expected[key]
        assert (partials.count[i], partials.good[i]) == (right["count"], right["good"])
        floats = (
            partials.mean[i],
            partials.m2[i],
            partials.least[i],
            partials.greatest[i],
            partials.first[i],
            partials.last[i],
        )
        if not right["good"]:
            assert np.isnan(floats).all()
            continue
        assert (partials.least[i], partials.greatest[i]) == (right["least"], right["greatest"])
        # Of several values at one moment any may be the first or the last.
        assert partials.first_time[i] == right["first"][0]
        assert partials.last_time[i] == right["last"][0]
        size = max(abs(right["least"]), abs(right["greatest"]))
        error = Fraction(float(partials.mean[i])) - right["mean"]
        assert abs(error) <= size * Fraction(4, 2**53) + Fraction(1, 2**1000)
        spread = right["greatest"] - right["least"]
        allowed = right["m2"] * Fraction(1, 10**12) + right["good"] * (size * Fraction(4, 2**53)) * (
            spread + size * Fraction(4, 2**53)
        )
        assert abs(Fraction(float(partials.m2[i])) - right["m2"]) <= allowed + Fraction(1, 2**1000)


TIMES = st.integers(-5 * MINUTE, 5 * MINUTE)
VALUES = (
    st.floats(-1e140, 1e140)
    | st.floats(1e9, 1e9 + 1)
    | st.sampled_from([0.0, -0.0, 1.0, 0.1, 1e-300, 1e140, -1e140])
)
ROWS = st.lists(st.tuples(st.integers(1, 3), TIMES, VALUES, st.sampled_from([0, 1, 2, 3])), max_size=40)


@given(ROWS, st.sampled_from([MINUTE, HOUR, DAY, 1, 7]))
def test_windows_are_those_of_an_exact_computation(rows, width):
    check(rows, width)


@given(
    st.lists(
        st.tuples(st.integers(1, 2), TIMES, st.floats(-100, 100), st.sampled_from([0, 3])),
        max_size=30,
        unique_by=lambda r: r[:2],
    ),
    st.randoms(),
)
def test_the_order_of_rows_does_not_matter(rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    one, other = fold_rows(rows), fold_rows(shuffled)

    for name in Partials.__dataclass_fields__:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-9)


def test_a_small_variance_far_from_zero_does_not_cancel():
    values = [1e9 + step / 1024 for step in (-1, 0, 1)] * 1000
    partials = fold_rows([(1, i, value, 0) for i, value in enumerate(values)])

    assert partials.mean[0] == 1e9
    assert partials.m2[0] == pytest.approx(2000 / 1024**2, rel=1e-12)


def test_values_that_cancel_leave_the_mean_of_what_remains():
    partials = fold_rows([(1, 0, 1e16, 0), (1, 1, 3.0, 0), (1, 2, -1e16, 0)])

    assert abs(partials.mean[0] - 1.0) <= 1e16 * 2**-51


def test_one_row_is_its_own_window():
    partials = fold_rows([(7, 90_000_000, 2.5, Quality.SUSPECT)])

    assert [getattr(partials, name).tolist() for name in Partials.__dataclass_fields__] == [
        [7], [60_000_000], [1], [1], [2.5], [0], [2.5], [2.5], [2.5], [90_000_000], [2.5], [90_000_000],
    ]  # fmt: skip


def test_bad_values_are_counted_and_nothing_else():
    partials = fold_rows(
        [(1, 0, 5.0, Quality.BAD), (1, 1, 6.0, Quality.BAD), (2, 0, 1.0, 0), (2, 5, 99.0, Quality.BAD)]
    )

    assert (partials.count.tolist(), partials.good.tolist()) == ([2, 2], [0, 1])
    assert np.isnan(partials.mean[0])
    assert (partials.mean[1], partials.greatest[1], partials.last[1]) == (1, 1, 1)


def test_no_rows_make_no_windows():
    partials = fold_rows([])

    assert all(len(getattr(partials, name)) == 0 for name in Partials.__dataclass_fields__)


def test_windows_before_1970_begin_at_their_start_too():
    partials = fold_rows([(1, -1, 1.0, 0), (1, -MINUTE, 2.0, 0), (1, 0, 3.0, 0)])

    assert partials.start.tolist() == [-MINUTE, 0]
    assert (partials.first.tolist(), partials.last.tolist()) == ([2, 3], [1, 3])


def test_a_value_that_names_the_end_of_its_interval_belongs_to_the_window_before():
    partials = fold_rows([(1, 2 * MINUTE, 1.0, 0), (1, 2 * MINUTE + 1, 2.0, 0)], back=1)

    assert partials.start.tolist() == [MINUTE, 2 * MINUTE]
    assert partials.first_time.tolist() == [2 * MINUTE, 2 * MINUTE + 1]


@given(ROWS, st.sampled_from([(MINUTE, 2 * MINUTE), (MINUTE, 7 * MINUTE), (MINUTE, HOUR), (HOUR, 7 * DAY)]))
def test_windows_merged_from_their_parts_are_those_of_all_rows(rows, widths):
    narrow, wide = widths
    rows = [(s, t, v if abs(v) < 1e10 else v / 1e130, q) for s, t, v, q in rows]
    merged = merge(fold_rows(rows, width=narrow), width=wide)
    expected = exact([(s, t - ORIGIN, v, q) for s, t, v, q in rows], wide)

    assert list(zip(merged.series.tolist(), (merged.start - ORIGIN).tolist(), strict=True)) == sorted(
        expected
    )
    for i, key in enumerate(sorted(expected)):
        right = expected[key]
        assert (merged.count[i], merged.good[i]) == (right["count"], right["good"])
        if not right["good"]:
            assert np.isnan([merged.mean[i], merged.m2[i], merged.least[i], merged.first[i]]).all()
            continue
        assert (merged.least[i], merged.greatest[i]) == (right["least"], right["greatest"])
        assert merged.first_time[i] == right["first"][0] + ORIGIN
        assert merged.last_time[i] == right["last"][0] + ORIGIN
        size = float(max(abs(right["least"]), abs(right["greatest"])))
        assert merged.mean[i] == pytest.approx(float(right["mean"]), rel=1e-12, abs=1e-14 * size)
        assert merged.m2[i] == pytest.approx(float(right["m2"]), rel=1e-9, abs=1e-13 * size**2 + 1e-290)


def test_weeks_begin_on_mondays():
    monday = 1_748_822_400_000_000  # 2025-06-02
    merged = merge(fold_rows([(1, monday - 1, 1.0, 0), (1, monday, 2.0, 0)], width=DAY), width=7 * DAY)

    assert merged.start.tolist() == [monday - 7 * DAY, monday]
