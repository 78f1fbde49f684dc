"""Observations that wait to be announced: all of them up to a number, beyond it the newest of each Datastream.

Pure: columns in, columns out.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from citylab.columns import Int64


class Keys(NamedTuple):
    """By what Observations are found, int64, shape (n,): Datastream, phenomenonTime in µs, id."""

    datastream: Int64
    time: Int64
    id: Int64

    @classmethod
    def none(cls) -> Self:
        """No Observations."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, empty)

    def take(self, index: "slice | NDArray[np.int64]") -> "Keys":
        """Some of them."""
        return Keys(self.datastream[index], self.time[index], self.id[index])

    def __len__(self) -> int:
        return len(self.id)

    def __add__(self, other: "Keys") -> "Keys":  # type: ignore[override]  # not as a tuple
        return Keys(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def newest(keys: Keys) -> Keys:
    """The newest Observation of each Datastream, by time, then id, at the place of the Datastream's first."""
    order = np.lexsort((keys.id, keys.time, keys.datastream))
    series, first, index = np.unique(keys.datastream, return_index=True, return_inverse=True)
    last = np.zeros(len(series), np.int64)
    last[index[order]] = order  # the last one written stands
    return keys.take(last[np.argsort(first)])


class Waiting:
    """A queue. most: how many wait before older ones give way; left_out: how many did."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.left_out = 0
        self._keys = Keys.none()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Keys) -> None:
        """Put Observations at its end."""
        self._keys = self._keys + keys
        if len(self._keys) > self.most:
            kept = newest(self._keys)
            self.left_out += len(self._keys) - len(kept)
            self._keys = kept

    def take(self, most: int) -> Keys:
        """Take the first ones out."""
        taken, self._keys = self._keys.take(slice(most)), self._keys.take(slice(most, None))
        return taken
