"""numpy columns in PostgreSQL's binary formats: COPY rows and array parameters, no Python object a row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper, PyFormat
from psycopg.pq import Format

from citylab.columns import NO_TIME, Int64

EPOCH_2000 = 946_684_800_000_000  # µs from 1970 to 2000, PostgreSQL's epoch
_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ELEMENT = {"i8": 20, "i2": 21, "i4": 23, "f8": 701}
_ARRAY = {20: 1016, 21: 1005, 23: 1007, 701: 1022, 1184: 1185}


class PgArray:
    """A numpy column as an array parameter (`%b`, or `unnest(%b)`): int16, int32, int64 or float64, shape (n,)."""

    def __init__(self, column: NDArray[Any], *, times: bool = False) -> None:
        kind = column.dtype.str[1:]
        self.oid = 1184 if times else _ELEMENT[kind]
        null = np.zeros(len(column), np.bool_)
        if times:
            null = column == NO_TIME
            column = column - EPOCH_2000
        header = np.array([1, int(null.any()), self.oid, len(column), 1], ">i4").tobytes()
        cells = np.empty(len(column), np.dtype([("length", ">i4"), ("value", f">{kind}")]))
        cells["length"] = column.dtype.itemsize
        cells["value"] = column
        if not null.any():
            self.data = (
                header + cells.tobytes() if len(column) else np.array([0, 0, self.oid], ">i4").tobytes()
            )
        else:
            parts = (
                b"\xff\xff\xff\xff" if gone else cell.tobytes()
                for gone, cell in zip(null, cells, strict=True)
            )
            self.data = header + b"".join(parts)


def times(column: Int64) -> PgArray:
    """A column of µs since 1970 as timestamptz[]; NO_TIME as null."""
    return PgArray(column, times=True)


class PgArrayDumper(Dumper):
    """Gives psycopg the bytes and, by instance, the type."""

    format = Format.BINARY

    def get_key(self, obj: PgArray, format: PyFormat) -> Any:  # noqa: A002, ARG002 -- psycopg's name
        return (self.cls, obj.oid)

    def upgrade(self, obj: PgArray, format: PyFormat) -> "PgArrayDumper":  # noqa: A002, ARG002
        dumper = PgArrayDumper(self.cls)
        dumper.oid = _ARRAY[obj.oid]
        return dumper

    def dump(self, obj: PgArray) -> Buffer:
        return obj.data


def copy_rows(*columns: NDArray[Any]) -> bytes:
    """COPY ... (FORMAT BINARY) data of non-null fixed-width columns: numbers as they are, times as PostgreSQL counts."""
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    for i, column in enumerate(columns):
        fields += [(f"length{i}", ">i4"), (f"value{i}", f">{column.dtype.str[1:]}")]
    rows = np.empty(len(columns[0]), np.dtype(fields))
    rows["fields"] = len(columns)
    for i, column in enumerate(columns):
        rows[f"length{i}"] = column.dtype.itemsize
        rows[f"value{i}"] = column
    return _SIGNATURE + rows.tobytes() + _TRAILER
