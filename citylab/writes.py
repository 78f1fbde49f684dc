"""What one write into the store consists of, and what became of it: the words of the one write path, `Store.save`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from citylab.columns import Int64, Observations
from citylab.model import Micros, Position, Reason, Topic

LEAST_MOVE = 10.0  # m
# The catalogue's version, which is a transaction's number, on this run of this server: a standby that is promoted without
# the last transactions gives their numbers to others.
CATALOGUE_VERSION = "SELECT hashint8extended(version, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint) FROM catalogue"


class Receipt(NamedTuple):
    """One pack as it came out of the log.

    seq and epoch are 0 for a pack without numbers; records: how many it holds; newest: its newest record's time, or
    None; untimed: records without an absolute time.
    """

    gateway: str
    epoch: int
    seq: int
    topic: Topic
    partition: int
    offset: int
    received_at: Micros
    records: int
    newest: Micros | None = None
    untimed: int = 0


class NewRejection(NamedTuple):
    """A record that is not stored. receipt: index of its pack; record: index in the pack, -1 for the whole of it.

    content: JSON text of the resolved record; payload: the bytes of a pack that is refused whole.
    """

    receipt: int
    record: int
    reason: Reason
    detail: str
    stream: str | None = None
    content: str | None = None
    payload: bytes | None = None


class Span(NamedTuple):
    """The part of a partition that a write accounts for."""

    topic: Topic
    partition: int
    before: Position
    after: Position


@dataclass(frozen=True, kw_only=True)
class Write:
    """Everything that a batch of events becomes, for one transaction.

    receipt, record: int64, shape (n,), which pack and which record of it each row of `rows` came from.
    catalogue_version: at which the rows were resolved; closes: for a write that takes rejections up again, their ids, one a receipt; replay: the request that had them taken up; published: ids of updates that the
    log has, to be forgotten. Rows of Things that move need no feature: they get that of where their Thing was;
    least_move: m, nearer positions make no Location.
    """

    rows: Observations
    receipt: Int64
    record: Int64
    receipts: Sequence[Receipt] = ()
    rejections: Sequence[NewRejection] = ()
    spans: Sequence[Span] = ()
    catalogue_version: int | None = None
    closes: Sequence[int] = ()
    replay: int | None = None
    published: Sequence[int] = ()
    least_move: float = LEAST_MOVE


@dataclass(frozen=True)
class Saved:
    """What became of a write. updates: (id, message) to append to the log now that it is committed."""

    stored: int
    duplicates: int
    rejected: Counter[Reason] = field(default_factory=Counter)
    updates: Sequence[tuple[int, bytes]] = ()


class CatalogueChanged(Exception):
    """Streams were registered, changed or deleted since the rows were resolved: load the catalogue, resolve again."""


class PositionMoved(Exception):
    """Another worker has committed this part of the log, or taken up these rejections: drop the batch, read anew."""


def no_rows() -> tuple[Observations, Int64, Int64]:
    """Empty columns: rows, receipt, record."""
    none = np.zeros(0, np.int64)
    rows = Observations(
        datastream=none, time=none, number=np.zeros(0, np.float64), quality=np.zeros(0, np.int8), feature=none
    )
    return rows, none, none


def bookkeeping(
    *, receipts: Sequence[Receipt] = (), rejections: Sequence[NewRejection] = (), spans: Sequence[Span] = ()
) -> Write:
    """A write that stores no rows: what came, what of it is refused, how far the log is read."""
    rows, receipt, record = no_rows()
    return Write(
        rows=rows, receipt=receipt, record=record, receipts=receipts, rejections=rejections, spans=spans
    )
