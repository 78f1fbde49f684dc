"""Reads what a run has left in store and outboxes, for `simulators.torture_truth` to compare."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from citylab.ports import Store
from simulators.torture_truth import Account, Newest, Row, Window

_MICROS = "(extract(epoch FROM {}) * 1000000)::bigint"


class Sent(NamedTuple):
    """What an outbox says at the end.

    last: the greatest number; gone, pending: packs given up, and not acknowledged; readings: of the script, in all packs.
    """

    epoch: int
    last: int
    gone: int
    pending: int
    readings: int


def read_outbox(folder: Path) -> Sent:
    """The outbox of a gateway that no longer runs."""
    with closing(sqlite3.connect(f"file:{folder / 'outbox.db'}?mode=ro", uri=True)) as outbox:
        (row,) = outbox.execute(
            "SELECT epoch, last, (SELECT count(*) FROM gone), (SELECT count(*) FROM numbers WHERE pending),"
            " CAST(coalesce(position, '0') AS INTEGER) FROM outbox"
        )
        return Sent(*row)


class Found:
    """What the store holds of one gateway, whose streams are named GATEWAY/..."""

    def __init__(self, store: Store, gateway: str) -> None:
        self._store, self._like = store, f"{gateway}/%"

    async def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        async with self._store.transaction(read_only=True) as transaction:
            return await transaction.fetch(query, (self._like,))

    async def rows(self) -> Sequence[Row]:
        """Every observation."""
        query = (
            f"SELECT d.stream_name, {_MICROS.format('o.phenomenon_time')}, o.result_number, o.quality"
            " FROM observations o JOIN datastreams d ON d.id = o.datastream_id WHERE d.stream_name LIKE %s"
        )
        return [Row(*row) for row in await self._fetch(query)]

    async def newest(self) -> Sequence[Newest]:
        """Every row of `latest`."""
        query = (
            f"SELECT d.stream_name, {_MICROS.format('l.phenomenon_time')}, l.result_number, l.count"
            " FROM latest l JOIN datastreams d ON d.id = l.datastream_id WHERE d.stream_name LIKE %s"
        )
        return [Newest(*row) for row in await self._fetch(query)]

    async def windows(self) -> Sequence[Window]:
        """Every aggregate."""
        start, first, last = (
            _MICROS.format(f"a.{name}") for name in ("window_start", "first_time", "last_time")
        )
        query = (
            f"SELECT d.stream_name, a.width, {start}, a.count, a.good_count, a.mean, a.m2, a.min, a.max,"
            f" a.first, {first}, a.last, {last}"
            " FROM aggregates a JOIN datastreams d ON d.id = a.datastream_id WHERE d.stream_name LIKE %s"
        )
        return [Window(*row) for row in await self._fetch(query)]


async def read_ledger(store: Store) -> Sequence[Account]:
    """Every row of the ledger."""
    query = (
        "SELECT gateway, epoch, records, stored, duplicates, rejected, ARRAY(SELECT ARRAY[lower(r), upper(r)]"
        " FROM unnest(received) r ORDER BY 1)::bigint[] FROM ledger"
    )
    async with store.transaction(read_only=True) as transaction:
        rows = await transaction.fetch(query)
    return [
        Account(gateway, epoch, records, stored, duplicates, rejected, [(a, b) for a, b in received])
        for gateway, epoch, records, stored, duplicates, rejected, received in rows
    ]
