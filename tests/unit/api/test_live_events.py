"""Rows as server-sent events: the text is what the API would say of the same observations."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.live_events import ROWS_AN_EVENT, as_json, event, instants, message, newest, observations, results
from citylab.columns import Observations, Update, decode_update, encode_update
from citylab.times import format_instant


def rows(
    *values: tuple[int, int, float], quality: int = 0, json_texts: list[str | None] | None = None
) -> Observations:
    """Rows of (datastream, µs, number)."""
    datastream, time, number = zip(*values, strict=True)
    n = len(values)
    return Observations(
        datastream=np.array(datastream, np.int64),
        time=np.array(time, np.int64),
        number=np.array(number, np.float64),
        quality=np.full(n, quality, np.int8),
        feature=np.zeros(n, np.int64),
        json=json_texts,
    )


def data_of(text: bytes) -> list[dict[str, object]]:
    (line,) = [line for line in text.decode().splitlines() if line.startswith("data: ")]
    return json.loads(line.removeprefix("data: "))


@given(st.lists(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999), min_size=1, max_size=20))
def test_instants_are_written_as_everywhere_else(micros):
    assert instants(np.array(micros, np.int64)) == [format_instant(one) for one in micros]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_come_back_exactly(numbers):
    texts = results(rows(*[(1, 0, number) for number in numbers]))
    assert [float(json.loads(text)) for text in texts] == numbers


def test_integral_numbers_have_no_fraction_and_stored_json_stays_as_it_is():
    texts = results(
        rows((1, 0, 6.0), (1, 0, -50.0), (1, 0, float("nan")), json_texts=[None, None, '{"a":\n1.10}'])
    )
    assert texts == ["6", "-50", '{"a": 1.10}']


def test_the_newest_of_a_datastream_is_newest_by_time_not_by_arrival():
    some = rows((7, 3_000_000, 1.0), (5, 1, 2.0), (7, 2_000_000, 3.0), (5, 1, 4.0))
    kept = some.take(newest(some))
    assert list(zip(kept.datastream.tolist(), kept.number.tolist(), strict=True)) == [(5, 4.0), (7, 1.0)]


def test_an_event_is_what_the_page_and_other_clients_read():
    (text,) = observations(rows((12, 1_767_225_600_500_000, 21.4), quality=2), 99)
    assert text.decode() == (
        "event: observations\nid: 99\n"
        'data: [{"Datastream":{"@iot.id":12},"phenomenonTime":"2026-01-01T00:00:00.5Z",'
        '"result":21.4,"resultQuality":{"flag":"suspect"}}]\n\n'
    )
    (text,) = observations(rows((12, 0, 1.0)), 99)
    assert data_of(text)[0]["resultQuality"] is None


def test_many_rows_become_several_events_and_only_the_last_has_the_id():
    texts = observations(rows(*[(1, i, float(i)) for i in range(2 * ROWS_AN_EVENT + 1)]), 5)
    assert [len(data_of(text)) for text in texts] == [ROWS_AN_EVENT, ROWS_AN_EVENT, 1]
    assert [b"\nid: 5\n" in text for text in texts] == [False, False, True]


def test_writes_with_and_without_json_join():
    both = Observations.joined([rows((1, 0, 1.0)), rows((2, 0, float("nan")), json_texts=['"on"'])])
    assert results(both) == ["1", '"on"']


def test_an_event_without_an_id_does_not_touch_the_clients_place():
    assert event("reset", "{}") == b"event: reset\ndata: {}\n\n"


def test_a_multi_datastream_is_named_as_one():
    multi = replace(rows((2, 0, float("nan")), json_texts=["[1, 2]"]), multi=np.array([True]))
    update = Update.of(7, Observations.joined([rows((1, 0, 1.0)), multi]), np.array([8, 9]))
    both, _ = decode_update(encode_update(update)).rows()
    (text,) = observations(both, 7)
    assert [set(event) & {"Datastream", "MultiDatastream"} for event in data_of(text)] == [
        {"Datastream"},
        {"MultiDatastream"},
    ]
    assert data_of(text)[1]["result"] == [1, 2]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (b'event: observations\nid: 7\ndata: [{"result":"a: b"}]\n\n', {"event": "observations", "id": "7", "data": [{"result": "a: b"}]}),
        (message("well", "it is back"), {"event": "well", "data": {"message": "it is back"}}),
        (b"retry: 2000\nid: 6\n\n", {"event": "connected", "id": "6"}),
        (b"retry: 2000\n\n", {"event": "connected"}),
        (b": still here\n\n", None),
    ],
)  # fmt: skip
def test_an_event_is_the_same_over_a_websocket(block, said):
    text = as_json(block)
    assert (None if text is None else json.loads(text)) == said
