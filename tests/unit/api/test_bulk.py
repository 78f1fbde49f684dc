import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.sensorthings.bulk import gives_back, read_groups
from api.sensorthings.errors import RequestError
from citylab.drafts import Draft
from citylab.times import format_instant, parse_instant

NOW = 1_700_000_000_000_000


def groups(*rows, components=("phenomenonTime", "result")):
    group = {"Datastream": {"@iot.id": 7}, "components": components, "dataArray": rows}
    return read_groups(json.dumps([group]).encode(), NOW)


def test_plain_rows_become_columns():
    (group,) = groups(["2024-02-29T23:59:59Z", 1], ["0001-01-01T00:00:00Z", -2.5])
    assert group.columns is not None
    assert group.columns.datastream.tolist() == [7, 7]
    assert [format_instant(t) for t in group.columns.time.tolist()] == [
        "2024-02-29T23:59:59Z",
        "0001-01-01T00:00:00Z",
    ]
    assert group.columns.number.tolist() == [1, -2.5]
    assert group.columns.json is None
    assert group.columns.result_time is None


def test_a_row_without_a_time_is_of_now():
    (group,) = groups([1], components=["result"])
    assert group.columns is not None
    assert group.columns.time.tolist() == [NOW]


@given(st.datetimes().map(lambda t: t.replace(microsecond=0).isoformat() + "Z"))
def test_plain_times_are_read_as_any_other(text):
    (group,) = groups([text, 1])
    assert group.columns is not None
    assert group.columns.time.tolist() == [parse_instant(text)]


@given(st.lists(st.integers(0, 2**50).map(format_instant), min_size=1, max_size=5))
def test_plain_times_may_have_fractions_of_different_length(texts):
    (group,) = groups(*([text, 1] for text in texts))
    assert group.columns is not None
    assert group.columns.time.tolist() == [parse_instant(text) for text in texts]


@pytest.mark.parametrize(
    "text", ["2024-01-01T00:00:00.Z", "2024-01-01T00:00:00,5Z", "2024-01-01T00:00:00.1234567Z"]
)
def test_other_fractions_are_read_row_by_row(text):
    (group,) = groups([text, 1])
    assert group.columns is None


@pytest.mark.parametrize(
    "text",
    ["2024-02-30T00:00:00Z", "2024-13-01T00:00:00Z", "2024-00-01T00:00:00Z", "2024-01-00T00:00:00Z",
     "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-01-01T00:00:60Z", "0000-01-01T00:00:00Z", "2024-01-01T00:00:0xZ"],
)  # fmt: skip
def test_a_time_that_is_none_is_said_of_its_row(text):
    (group,) = groups([text, 1], ["2024-01-01T00:00:00Z", 2])
    assert group.columns is None
    refused, good = group.drafts
    assert isinstance(refused, str)
    assert isinstance(good, Draft)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18))
def test_what_is_not_given_back_keeps_its_text(number):
    text = json.dumps(number)
    (group,) = read_groups(
        b'[{"Datastream":{"@iot.id":7},"components":["result"],"dataArray":[[%s]]}]' % text.encode(), NOW
    )
    assert group.columns is not None
    assert group.columns.number.tolist() == [float(text)]
    kept = group.columns.json
    assert kept is None or kept == [text]
    if kept is None:
        shortest = repr(float(text))
        assert text in {shortest, shortest.removesuffix(".0")}


@pytest.mark.parametrize(
    ("text", "same"),
    [(b"1", True), (b"-5", True), (b"0.1", True), (b"-0", True), (b"1.0", False), (b"1.10", False),
     (b"100000.0", False), (b"1e5", False), (b"1e-7", False), (b"12345678901234567", False), (b"0.00001", False)],
)  # fmt: skip
def test_only_the_shortest_text_is_given_back(text, same):
    assert gives_back(float(text), text) is same


def test_a_string_that_holds_a_number_counts_as_that_number():
    (group,) = groups(["2024-01-01T00:00:00Z", "6.50"])
    assert group.columns is not None
    assert group.columns.number.tolist() == [6.5]
    assert group.columns.json == ['"6.50"']
    (group,) = groups([None, "6.50"], ["2024-01-01T00:00:00Z", "six"])
    results = [draft.values["result"].number for draft in group.drafts]
    assert results[0] == 6.5
    assert math.isnan(results[1])


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda s: st.lists(s, max_size=3)))
def test_no_rows_break_the_reader(rows):
    group = {"Datastream": {"@iot.id": 7}, "components": ["result", "parameters"], "dataArray": rows}
    try:
        (found,) = read_groups(json.dumps([group]).encode(), NOW)
    except RequestError as error:
        status = error.status
    else:
        status = 200
        assert len(found.drafts) == len(rows)
    assert status == (200 if isinstance(rows, list) else 400)
