"""Observations as columns, and the update message that tells the log's readers what was newly stored.

Needs numpy, so the platform's rooms may import it and the gateway's may not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
NO_TIME = np.iinfo(np.int64).min  # in a column of times: null


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """n rows for the store. Times are int64 µs since the epoch; every array has shape (n,).

    datastream: int64; time: int64, phenomenonTime or its interval's start;
    number: float64, NaN where the result is no number; quality: int8, a `Quality`; feature: int64, 0 for none.
    The rest is None for a whole batch of plain stream rows:
    json: JSON text of a result that `number` does not give back exactly, else None per row;
    end, result_time, valid_start, valid_end: int64 with NO_TIME for null;
    result_quality, parameters: JSON text or None per row;
    multi: bool, whether `datastream` is a MultiDatastream.
    """

    datastream: Int64
    time: Int64
    number: Float64
    quality: NDArray[np.int8]
    feature: Int64
    json: list[str | None] | None = None
    end: Int64 | None = None
    result_time: Int64 | None = None
    valid_start: Int64 | None = None
    valid_end: Int64 | None = None
    result_quality: list[str | None] | None = None
    parameters: list[str | None] | None = None
    multi: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.datastream)

    @property
    def plain(self) -> bool:
        """Whether all are numbers at instants with a feature and nothing else: what the fast path stores."""
        optional = (
            self.json, self.end, self.result_time, self.valid_start, self.valid_end, self.result_quality, self.parameters,
            self.multi,
        )  # fmt: skip
        return all(column is None for column in optional) and bool(self.feature.all())

    @classmethod
    def joined(cls, parts: "Sequence[Observations]") -> "Observations":
        """The rows of several, one after the other."""
        if len(parts) == 1:
            return parts[0]

        def column(name: str) -> Any:
            columns = [getattr(part, name) for part in parts]
            if all(c is None for c in columns):
                return None
            if any(isinstance(c, list) for c in columns):
                lists = ([None] * len(p) if c is None else c for p, c in zip(parts, columns, strict=True))
                return list(chain.from_iterable(lists))
            absent = False if name == "multi" else NO_TIME
            return np.concatenate(
                [np.full(len(p), absent) if c is None else c for p, c in zip(parts, columns, strict=True)]
            )

        return cls(**{name: column(name) for name in cls.__dataclass_fields__})

    def with_features(self, feature: Int64) -> Self:
        """The same rows with other features."""
        return replace(self, feature=feature)

    def take(self, index: NDArray[Any]) -> Self:
        """The rows that a mask (bool, shape (n,)) or an index (int64, shape (m,)) selects, in its order."""
        chosen = np.flatnonzero(index) if index.dtype == np.bool_ else index

        def some(column: Any) -> Any:
            if column is None:
                return None
            return [column[i] for i in chosen.tolist()] if isinstance(column, list) else column[chosen]

        return type(self)(**{name: some(getattr(self, name)) for name in self.__dataclass_fields__})


class Update(msgspec.Struct, frozen=True):
    """What one write stored, as the log's `citylab.updates` carries it: columns in little-endian bytes.

    id: the update id, by which readers drop what they have seen; datastream, observation, time: int64;
    number: float64; quality: int8; json: as in `Observations`; multi: bool, empty where none is.
    """

    id: int
    datastream: bytes
    observation: bytes
    time: bytes
    number: bytes
    quality: bytes
    json: list[str | None] | None = None
    multi: bytes = b""

    @classmethod
    def of(cls, update_id: int, rows: Observations, observation: Int64) -> Self:
        """Make the message for rows that were stored under the ids `observation`."""
        return cls(
            update_id,
            rows.datastream.astype("<i8").tobytes(),
            observation.astype("<i8").tobytes(),
            rows.time.astype("<i8").tobytes(),
            rows.number.astype("<f8").tobytes(),
            rows.quality.astype("i1").tobytes(),
            rows.json,
            b"" if rows.multi is None else rows.multi.tobytes(),
        )

    def rows(self) -> tuple[Observations, Int64]:
        """The rows and their ids again."""
        quality = np.frombuffer(self.quality, "i1").astype(np.int8)
        rows = Observations(
            datastream=np.frombuffer(self.datastream, "<i8").astype(np.int64),
            time=np.frombuffer(self.time, "<i8").astype(np.int64),
            number=np.frombuffer(self.number, "<f8").astype(np.float64),
            quality=quality,
            feature=np.zeros(len(quality), np.int64),
            json=self.json,
            multi=np.frombuffer(self.multi, np.bool_) if self.multi else None,
        )
        return rows, np.frombuffer(self.observation, "<i8").astype(np.int64)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Update)


def encode_update(update: Update) -> bytes:
    """Write an update message."""
    return _encoder.encode(update)


def decode_update(message: bytes) -> Update:
    """Read an update message. Raises `msgspec.DecodeError`."""
    return _decoder.decode(message)
