"""numpy columns in PostgreSQL's binary formats, as PostgreSQL reads them."""

from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citylab.adapters.pgbinary import EPOCH_2000, PgArray, PgArrayDumper, copy_rows, times
from citylab.columns import NO_TIME
from citylab.times import FIRST_INSTANT, LAST_INSTANT

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LEAST, GREATEST = -(2**63), 2**63 - 1


@pytest.fixture
async def connection(store_url):
    async with await psycopg.AsyncConnection.connect(store_url, autocommit=True) as connection:
        connection.adapters.register_dumper(PgArray, PgArrayDumper)
        await connection.execute("SET timezone = 'UTC'")
        yield connection


async def back(connection, parameter: PgArray) -> list:
    """The array as PostgreSQL understands it, without a cast that could help."""
    rows = await (
        await connection.execute("SELECT * FROM unnest(%b) WITH ORDINALITY ORDER BY 2", (parameter,))
    ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int64, [LEAST, -1, 0, 1, GREATEST]),
        (np.int32, [-(2**31), -1, 0, 1, 2**31 - 1]),
        (np.int16, [-(2**15), -1, 0, 1, 2**15 - 1]),
        (np.float64, [float("-inf"), -1.8e308 / 1.1, -5e-324, 0.0, 0.1, 5e-324, float("inf")]),
    ],
)
async def test_numbers_arrive_as_they_are(connection, dtype, values):
    column = np.array(values, dtype)

    assert await back(connection, PgArray(column)) == values
    assert await back(connection, PgArray(column.astype(column.dtype.newbyteorder(">")))) == values
    assert await back(connection, PgArray(column[::2])) == values[::2]


async def test_nan_and_negative_zero_arrive(connection):
    found = await (
        await connection.execute("SELECT v::text FROM unnest(%b) v", (PgArray(np.array([np.nan, -0.0])),))
    ).fetchall()

    assert found == [("NaN",), ("-0",)]


@pytest.mark.parametrize(
    "parameter",
    [PgArray(np.zeros(0, t)) for t in (np.int64, np.int32, np.int16, np.float64)]
    + [times(np.zeros(0, np.int64))],
)
async def test_an_empty_column_is_an_empty_array(connection, parameter):
    rows = await (
        await connection.execute("SELECT cardinality(%b), array_ndims(%b)", (parameter, parameter))
    ).fetchall()

    assert rows == [(0, None)]


async def test_times_arrive_to_the_microsecond_and_no_time_is_null(connection):
    edges = [FIRST_INSTANT, -1, 0, 1, EPOCH_2000 - 1, EPOCH_2000, LAST_INSTANT, NO_TIME]
    found = await back(connection, times(np.array(edges)))

    assert found == [EPOCH + timedelta(microseconds=m) for m in edges[:-1]] + [None]
    assert await back(connection, times(np.full(3, NO_TIME))) == [None] * 3


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(FIRST_INSTANT, LAST_INSTANT) | st.just(NO_TIME), max_size=40))
async def test_any_mixture_of_times_and_nulls_arrives(connection, micros):
    expected = [None if m == NO_TIME else EPOCH + timedelta(microseconds=m) for m in micros]

    assert await back(connection, times(np.array(micros, np.int64))) == expected


async def test_types_do_not_mix_in_one_statement(connection):
    columns = (
        PgArray(np.array([1, 2])),
        PgArray(np.array([0.5, 1.5])),
        times(np.array([0, 1])),
        PgArray(np.array([7, 8], np.int16)),
    )
    found = await (
        await connection.execute(
            "SELECT a, b, c, pg_typeof(a)::text, pg_typeof(b)::text, pg_typeof(c)::text, pg_typeof(d)::text"
            " FROM unnest(%b, %b, %b, %b) AS r (a, b, c, d)",
            columns,
        )
    ).fetchall()

    types = ("bigint", "double precision", "timestamp with time zone", "smallint")
    assert found == [(1, 0.5, EPOCH, *types), (2, 1.5, EPOCH + timedelta(microseconds=1), *types)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(LEAST, GREATEST), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**15), 2**15 - 1),
            st.floats(), st.integers(FIRST_INSTANT, LAST_INSTANT),
        ),
        max_size=30,
    )
)  # fmt: skip
async def test_copied_rows_are_the_columns(connection, rows):
    columns = list(zip(*rows, strict=True)) or [()] * 5
    await connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS copied (a int8, b int4, c int2, d float8, e timestamptz)"
    )
    await connection.execute("TRUNCATE copied")

    async with connection.cursor().copy("COPY copied FROM STDIN (FORMAT BINARY)") as copy:
        await copy.write(
            copy_rows(
                np.array(columns[0], np.int64), np.array(columns[1], np.int32), np.array(columns[2], np.int16),
                np.array(columns[3], np.float64), np.array(columns[4], np.int64) - EPOCH_2000,
            )
        )  # fmt: skip

    found = await (await connection.execute("SELECT a, b, c, d, e FROM copied ORDER BY ctid")).fetchall()
    assert [(a, b, c, e) for a, b, c, _, e in found] == [
        (a, b, c, EPOCH + timedelta(microseconds=e)) for a, b, c, _, e in rows
    ]
    np.testing.assert_array_equal([row[3] for row in found], [row[3] for row in rows])
