"""Many Observations of existing Datastreams at once: each is stored or refused by itself."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from citylab.adapters.derived import Facts, FactsCache
from citylab.adapters.entity_writes import default_features, observation_columns
from citylab.adapters.postgres import Connection
from citylab.adapters.saving import lock_catalogue, save_api_rows
from citylab.columns import Int64, Observations
from citylab.drafts import Draft
from citylab.errors import Rejected
from citylab.model import Micros
from citylab.ports import Transaction

_LONG = 10_000  # characters
_EXPONENT = re.compile(r"\d[eE]")


async def create_observations(
    transaction: Transaction,
    connection: Connection,
    cache: FactsCache,
    rows: Observations | Sequence[Draft],
    *,
    now: Micros,
) -> tuple[Int64, dict[int, str]]:
    """Store rows; return their ids, int64, shape (n,), 0 for what is refused, and by row why it is.

    A row without a feature gets the one of its Thing's Location. drafts: Observations that name their Datastream, and
    perhaps their feature, by id; now: the phenomenonTime of those that have none.
    """
    if not isinstance(rows, Observations):
        rows = _rows_of(rows, now)
    facts = await lock_catalogue(connection, cache)
    refused: dict[int, str] = {}
    rows = rows.with_features(await _features(transaction, facts, rows, refused))
    good = np.ones(len(rows), np.bool_)
    good[list(refused)] = False
    ids = np.zeros(len(rows), np.int64)
    some = np.flatnonzero(good)
    if _harmless(rows):
        ids[some] = await save_api_rows(connection, facts, rows.take(some))
    else:
        await _save(transaction, rows, some, ids, refused)
    return ids, refused


async def _features(
    transaction: Transaction, facts: Facts, rows: Observations, refused: dict[int, str]
) -> Int64:
    """The feature of each row; refuses those whose Datastream or feature does not exist, or cannot be made."""
    refuse = _Refusals(refused)
    series, index = np.unique(rows.datastream, return_inverse=True)
    unknown = np.array([d for d in series.tolist() if d not in facts.defaults], np.int64)
    made: dict[int, int] = {}
    if len(unknown):
        existing = await _existing(transaction, "datastreams", unknown)
        missing = np.isin(rows.datastream, np.setdiff1d(unknown, existing))
        refuse.all(missing, rows.datastream, "Datastreams({}) does not exist")
        wanting = np.intersect1d(existing, rows.datastream[rows.feature == 0])
        if len(wanting):
            made = await default_features(transaction, wanting.tolist())
            await _remember(transaction, facts, made)
    defaults = np.array([made.get(d) or facts.defaults.get(d, 0) for d in series.tolist()], np.int64)
    feature = np.where(rows.feature == 0, defaults[index], rows.feature)
    refuse.all(
        feature == 0,
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


async def _remember(transaction: Transaction, facts: Facts, made: Mapping[int, int]) -> None:
    """Keep the features of Datastreams that are there for everybody, not those of a transaction that may yet fail.

    Nor those of Things that move, which the catalogue's version does not tell.
    """
    rows = await transaction.fetch(
        "SELECT r.d FROM unnest(%s::int8[], %s::int8[]) AS r (d, f) JOIN features_of_interest f ON f.id = r.f"
        " WHERE f.xmin::text::int8 <> coalesce(pg_current_xact_id_if_assigned()::text::int8 & 4294967295, 0)"
        " AND NOT EXISTS (SELECT FROM moving_things m WHERE m.thing_id IN (SELECT thing_id FROM datastreams WHERE id = r.d"
        " UNION ALL SELECT thing_id FROM multi_datastreams WHERE id = r.d))",
        (list(made), list(made.values())),
    )
    facts.defaults |= {datastream: made[datastream] for (datastream,) in rows}


def _harmless(rows: Observations) -> bool:
    """Whether there is nothing among the values that jsonb might not hold: a number beyond its range."""
    texts = [*(rows.json or ()), *(rows.parameters or ()), *(rows.result_quality or ())]
    return not any(text and (len(text) > _LONG or _EXPONENT.search(text)) for text in texts)


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
