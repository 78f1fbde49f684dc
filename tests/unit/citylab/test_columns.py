"""Observations as columns, and the update message."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.columns import NO_TIME, Observations, Update, decode_update, encode_update

INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(
    st.tuples(INT64, INT64, INT64, st.floats(), st.integers(0, 3), st.none() | st.text()), max_size=8
)


def observations(**more) -> Observations:
    columns = {
        "datastream": np.array([1, 1, 2]), "time": np.array([10, 20, 30]), "number": np.array([1.5, np.nan, 3.5]),
        "quality": np.array([0, 1, 3], np.int8), "feature": np.array([4, 5, 6]),
    }  # fmt: skip
    return Observations(**(columns | more))


@given(ROWS, st.booleans())
def test_an_update_comes_back_as_it_was(rows, with_json):
    datastream, ids, time, number, quality, json = (
        (list(c) for c in zip(*rows, strict=True)) if rows else ([],) * 6
    )
    written = Observations(
        datastream=np.array(datastream, np.int64), time=np.array(time, np.int64), number=np.array(number, np.float64),
        quality=np.array(quality, np.int8), feature=np.ones(len(rows), np.int64), json=json if with_json else None,
    )  # fmt: skip

    message = encode_update(Update.of(2**62, written, np.array(ids, np.int64)))

    update = decode_update(message)
    read, read_ids = update.rows()
    assert update.id == 2**62
    assert read_ids.tolist() == ids
    assert read.datastream.tolist() == datastream
    assert read.time.tolist() == time
    assert read.number.tobytes() == written.number.tobytes()
    assert read.quality.tolist() == quality
    assert read.json == (json if with_json else None)
    assert [c.dtype for c in (read.datastream, read.time, read.number, read.quality)] == [
        np.int64,
        np.int64,
        np.float64,
        np.int8,
    ]


def test_columns_of_another_byte_order_are_written_alike():
    native, swapped = (
        observations(),
        observations(time=np.array([10, 20, 30], ">i8"), number=np.array([1.5, np.nan, 3.5], ">f8")),
    )
    ids = np.array([7, 8, 9])

    assert encode_update(Update.of(1, native, ids)) == encode_update(Update.of(1, swapped, ids.astype(">i8")))


@pytest.mark.parametrize(
    "message",
    [b"", b"\x00", b"\x81\xa2id\x01", encode_update(Update.of(1, observations(), np.arange(3)))[:-1]],
)
def test_what_is_no_update_is_refused(message):
    with pytest.raises(msgspec.DecodeError):
        decode_update(message)


OPTIONAL = {
    "json": [None, '"x"', None], "end": np.array([11, NO_TIME, 31]), "result_time": np.array([NO_TIME, 5, 6]),
    "valid_start": np.array([1, 2, 3]), "valid_end": np.array([4, 5, 6]), "result_quality": ['{"a":1}', None, None],
    "parameters": [None, None, '{"sum":1}'],
}  # fmt: skip


def test_rows_are_taken_by_mask_and_by_index_in_its_order():
    rows = observations(**OPTIONAL)

    masked, picked = rows.take(np.array([True, False, True])), rows.take(np.array([2, 0]))

    assert len(masked) == len(picked) == 2
    assert (masked.time.tolist(), picked.time.tolist()) == ([10, 30], [30, 10])
    assert (masked.json, picked.parameters) == ([None, None], ['{"sum":1}', None])
    assert picked.end.tolist() == [31, 11]
    assert len(rows.take(np.zeros(3, np.bool_))) == len(rows.take(np.zeros(0, np.int64))) == 0
    assert observations().take(np.array([1])).json is None


@pytest.mark.parametrize("column", OPTIONAL)
def test_plain_rows_have_a_feature_and_nothing_optional(column):
    assert observations().plain
    assert not observations(**{column: OPTIONAL[column]}).plain
    assert not observations(feature=np.array([1, 0, 1])).plain
