"""The comparison of a store with the truth: every way in which they can differ is seen."""

import numpy as np
import pytest

from citylab.model import DAY, HOUR, MINUTE, Quality
from simulators.torture_plan import Columns
from simulators.torture_truth import (
    WIDTHS,
    Account,
    Newest,
    Row,
    Window,
    compare_accounts,
    compare_newest,
    compare_rows,
    compare_windows,
    truth,
    windows,
)

T0 = 20_000 * DAY
ROWS = [Row("a", T0 + n, float(n), Quality.NONE) for n in range(10)]
SPREAD = [
    Row(stream, T0 + n * 7 * MINUTE, 20 + n / 3, Quality.BAD if n % 9 == 0 else Quality.NONE)
    for stream in ("a", "b")
    for n in range(300)
]


def counts(difference):
    return difference.lost, difference.doubled, difference.altered


def test_columns_become_rows():
    columns = Columns(np.array([1, 0]), np.array([5, 6]), np.array([0.5, 1.5]), np.array([0, 3], np.int8))
    assert truth(columns, ["a", "b"]) == [Row("b", 5, 0.5, 0), Row("a", 6, 1.5, 3)]


def test_equal_stores_do_not_differ_whatever_the_order():
    assert not compare_rows(ROWS, (), reversed(ROWS))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ROWS[1:], (1, 0, 0)),
        ([*ROWS, ROWS[3]], (0, 1, 0)),
        ([*ROWS[:-1], ROWS[-1]._replace(value=9.0000001)], (0, 0, 1)),
        ([*ROWS[:-1], ROWS[-1]._replace(value=None)], (0, 0, 1)),
        ([*ROWS[:-1], ROWS[-1]._replace(quality=Quality.BAD)], (0, 0, 1)),
        ([*ROWS, Row("a", T0 + 99, 1.0, 0)], (0, 0, 1)),
        ([*ROWS[:-1], ROWS[-1]._replace(time=T0 + 99)], (1, 0, 1)),
        ([], (10, 0, 0)),
    ],
)
def test_what_differs_is_counted_and_shown(found, expected):
    difference = compare_rows(ROWS, (), found)

    assert counts(difference) == expected
    assert difference
    assert difference.examples


def test_what_nothing_is_known_of_may_be_there_but_not_otherwise():
    assert not compare_rows(ROWS[:5], ROWS[5:], ROWS[:7])
    assert counts(compare_rows(ROWS[:5], ROWS[5:], [*ROWS[:5], ROWS[6]._replace(value=0.1)])) == (0, 0, 1)
    assert counts(compare_rows(ROWS[:5], ROWS[5:], [*ROWS[:7], ROWS[6]])) == (0, 1, 0)


def all_windows():
    return [window for width in WIDTHS for window in windows(SPREAD, width)]


def test_windows_are_what_their_rows_say():
    rows = [
        Row("a", T0 + 1, 1.0, Quality.BAD),
        Row("a", T0 + 3, 4.0, Quality.NONE),
        Row("a", T0 + 2, 2.0, Quality.GOOD),
        Row("a", T0 + HOUR, 9.0, Quality.BAD),
    ]
    assert windows(rows, 3_600) == [
        Window("a", 3_600, T0, 3, 2, 3.0, 2.0, 2.0, 4.0, 2.0, T0 + 2, 4.0, T0 + 3),
        Window("a", 3_600, T0 + HOUR, 1, 0, *[None] * 8),
    ]


def test_aggregates_may_differ_by_their_rounding_alone():
    found = all_windows()
    assert not compare_windows(SPREAD, found)
    rounded = [w._replace(mean=w.mean * (1 + 1e-14)) if w.mean else w for w in found]
    assert not compare_windows(SPREAD, rounded)


@pytest.mark.parametrize("field", Window._fields[3:])
def test_an_aggregate_that_is_wrong_in_any_field_is_found(field):
    found = all_windows()
    some = next(n for n, window in enumerate(found) if window.good > 1)
    found[some] = found[some]._replace(**{field: getattr(found[some], field) + 1})

    assert compare_windows(SPREAD, found).derived == 1


def test_an_aggregate_that_is_missing_or_of_nothing_is_found():
    found = all_windows()
    assert compare_windows(SPREAD, found[1:]).derived == 1
    assert compare_windows(SPREAD, [*found, found[0]._replace(start=0)]).derived == 1


def test_newest_values_and_counts():
    right = [Newest("a", T0 + 9, 9.0, 10)]
    assert not compare_newest(ROWS, right)
    for wrong in (
        [],
        [right[0]._replace(values=9)],
        [right[0]._replace(time=T0)],
        [right[0]._replace(value=1.0)],
    ):
        assert compare_newest(ROWS, wrong).derived == 1


def test_the_ledger_has_everything_and_it_adds_up():
    account = Account("lamp", 5, 10, 8, 2, 0, [(1, 4)])
    assert not compare_accounts({("lamp", 5): 3}, [account])
    for wrong in (
        [],
        [account._replace(records=11)],
        [account._replace(rejected=1, stored=7)],
        [account._replace(received=[(1, 2), (3, 4)])],
        [account._replace(received=[(1, 3)])],
        [account._replace(received=[(1, 5)])],
    ):
        assert compare_accounts({("lamp", 5): 3}, wrong).ledger == 1


def test_differences_add_up():
    total = compare_rows(ROWS, (), ROWS[1:])
    total.add(compare_rows(ROWS, (), [*ROWS[2:], ROWS[2]]))
    assert counts(total) == (3, 1, 0)
