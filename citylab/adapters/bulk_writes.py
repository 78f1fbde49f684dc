"""Many Observations of existing Datastreams at once: each is stored or refused by itself."""

from collections.abc import Sequence

import numpy as np

from citylab.adapters.entity_writes import default_features, lock_catalogue, observation_columns
from citylab.columns import Int64, Observations
from citylab.drafts import Draft
from citylab.errors import Rejected
from citylab.model import Micros
from citylab.ports import Transaction


async def create_observations(
    transaction: Transaction, rows: Observations | Sequence[Draft], *, now: Micros
) -> tuple[Int64, dict[int, str]]:
    """Store rows; return their ids, int64, shape (n,), 0 for what is refused, and by row why it is.

    A row without a feature gets the one of its Thing's Location. drafts: Observations that name their Datastream, and
    perhaps their feature, by id; now: the phenomenonTime of those that have none.
    """
    if not isinstance(rows, Observations):
        rows = _rows_of(rows, now)
    await lock_catalogue(transaction, exclusive=False)
    refused: dict[int, str] = {}
    feature = await _features(transaction, rows, refused)
    good = np.ones(len(rows), np.bool_)
    good[list(refused)] = False
    ids = np.zeros(len(rows), np.int64)
    await _save(transaction, rows.with_features(feature), np.flatnonzero(good), ids, refused)
    return ids, refused


async def _features(transaction: Transaction, rows: Observations, refused: dict[int, str]) -> Int64:
    """The feature of each row; refuses those whose Datastream or feature does not exist, or cannot be made."""
    refuse = _Refusals(refused)
    existing = await _existing(transaction, "datastreams", rows.datastream)
    missing = ~np.isin(rows.datastream, existing)
    refuse.all(missing, rows.datastream, "Datastreams({}) does not exist")
    wanting = (rows.feature == 0) & ~missing
    feature = rows.feature.copy()
    if wanting.any():
        made = await default_features(transaction, np.unique(rows.datastream[wanting]).tolist())
        series, index = np.unique(rows.datastream[wanting], return_inverse=True)
        feature[wanting] = np.array([made.get(d, 0) for d in series.tolist()], np.int64)[index]
        refuse.all(
            wanting & (feature == 0),
            rows.datastream,
            "the Thing of Datastreams({}) has no Location to make a FeatureOfInterest from",
        )
    named = rows.feature > 0
    if named.any():
        existing = await _existing(transaction, "features_of_interest", rows.feature[named])
        refuse.all(
            named & ~np.isin(rows.feature, existing), rows.feature, "FeaturesOfInterest({}) does not exist"
        )
    return feature


class _Refusals:
    """Refuses rows, each for the first reason."""

    def __init__(self, refused: dict[int, str]) -> None:
        self._refused = refused

    def all(self, which: "np.typing.NDArray[np.bool_]", ids: Int64, why: str) -> None:
        for row in np.flatnonzero(which).tolist():
            self._refused.setdefault(row, why.format(ids[row]))


async def _existing(transaction: Transaction, table: str, ids: Int64) -> Int64:
    rows = await transaction.fetch(
        f"SELECT id FROM {table} WHERE id = ANY(%s::int8[])", (np.unique(ids).tolist(),)
    )
    return np.array([row[0] for row in rows], np.int64)


async def _save(
    transaction: Transaction, rows: Observations, some: Int64, ids: Int64, refused: dict[int, str]
) -> None:
    """Store some of the rows; where one holds what the store cannot keep, find it by halves."""
    if not len(some):
        return
    try:
        async with transaction.savepoint():
            ids[some] = await transaction.save_observations(rows.take(some))
    except Rejected as error:
        if len(some) == 1:
            refused[int(some[0])] = error.detail
            return
        half = len(some) // 2
        await _save(transaction, rows, some[:half], ids, refused)
        await _save(transaction, rows, some[half:], ids, refused)


def _rows_of(drafts: Sequence[Draft], now: Micros) -> Observations:
    def linked(name: str) -> Int64:
        return np.array([next(iter(draft.links.get(name, ())), 0) for draft in drafts], np.int64)

    return Observations(
        datastream=linked("Datastream"),
        feature=linked("FeatureOfInterest"),
        **observation_columns(drafts, now),
    )
