"""Rejections that the store keeps: finding them, and asking processing to take them up again."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from citylab.errors import Rejected
from citylab.model import Micros, Reason, Topic
from citylab.ports import Store, Transaction
from citylab.times import format_instant

_LOOK_EVERY = 0.1  # s, at what became of a request


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which rejections: all that hold. ids: of these; start, end: received from, and before."""

    ids: Sequence[int] | None = None
    gateway: str | None = None
    reason: str | None = None
    stream: str | None = None
    open: bool | None = None
    start: Micros | None = None
    end: Micros | None = None

    def condition(self) -> str:
        """As SQL of a row `r` of rejections, with named parameters."""
        parts = [sql for name, sql in _CONDITIONS.items() if getattr(self, name) is not None]
        return " AND ".join(parts) or "true"

    def parameters(self) -> Mapping[str, Any]:
        """What `condition` names."""
        values = msgspec.structs.asdict(self)
        for name in ("start", "end"):
            values[name] = None if values[name] is None else format_instant(values[name])
        return values | {"ids": None if self.ids is None else list(self.ids)}


_CONDITIONS = {
    "ids": "r.id = ANY(%(ids)s)",
    "gateway": "r.gateway = %(gateway)s",
    "reason": "r.reason = %(reason)s",
    # A conflict names its Datastream.
    "stream": "(r.stream = %(stream)s OR (r.reason = 'conflict' AND r.content ->> 'datastream' ="
    " (SELECT d.id::text FROM datastreams d WHERE d.stream_name = %(stream)s)))",
    "open": "(r.closed_at IS NULL) = %(open)s",
    "start": "r.received_at >= %(start)s",
    "end": "r.received_at < %(end)s",
}


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A record, or a pack that was refused whole (record -1), and why.

    epoch, seq: 0 where the pack has no number; record: index in the pack; content: the record, its time in µs;
    replayable: whether it can be taken up again; replay: the request that it waits for.
    """

    id: int
    gateway: str
    reason: str
    detail: str
    stream: str | None
    epoch: int
    seq: int
    record: int
    received: str
    closed: str | None
    replayable: bool
    replay: int | None
    payload_bytes: int | None
    content: Any


class Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    """The bytes of a pack: as text where they are UTF-8, else in base64."""

    text: str | None = None
    base64: str | None = None

    @classmethod
    def of(cls, payload: bytes) -> "Payload":
        """The one that fits."""
        try:
            return cls(text=payload.decode())
        except UnicodeDecodeError:
            return cls(base64=base64.b64encode(payload).decode())


# A descriptor or a status that was refused is published again, not taken up.
_REPLAYABLE = "(r.closed_at IS NULL AND (r.content IS NOT NULL OR (r.payload IS NOT NULL AND r.topic = ANY(%(topics)s))))"
_TOPICS = [Topic.PACKS.value, Topic.REFUSED.value]
_INSTANT = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
_COLUMNS = (
    f"r.id, r.gateway, r.reason, r.detail, r.stream, r.epoch, r.seq, r.record, {_INSTANT.format('r.received_at')},"
    f" {_INSTANT.format('r.closed_at')}, {_REPLAYABLE}, r.replay, octet_length(r.payload), r.content"
)


async def find(
    transaction: Transaction, selection: Selection, *, before: int | None = None, most: int = 100
) -> list[Rejection]:
    """The newest rejections of a selection whose id is below `before`, so many at most."""
    rows = await transaction.fetch(
        f"SELECT {_COLUMNS} FROM rejections r WHERE {selection.condition()}"
        " AND (%(before)s::bigint IS NULL OR r.id < %(before)s) ORDER BY r.id DESC LIMIT %(most)s",
        {**selection.parameters(), "before": before, "most": most, "topics": _TOPICS},
    )
    names = Rejection.__struct_fields__
    return [Rejection(**dict(zip(names, row, strict=True))) for row in rows]


async def payload_of(transaction: Transaction, rejection: int) -> Payload | None:
    """The bytes that a rejection keeps, if it keeps any."""
    rows = await transaction.fetch("SELECT payload FROM rejections WHERE id = %s", (rejection,))
    return Payload.of(bytes(rows[0][0])) if rows and rows[0][0] is not None else None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A request to take rejections up, and what became of them so far.

    asked: rejections; waiting: of them, still; stored, duplicates, rejected (by reason): records. A pack that was
    refused whole is one rejection and may hold many records.
    """

    id: int
    requested: str
    asked: int
    waiting: int
    stored: int
    duplicates: int
    rejected: dict[str, int]


async def request_replay(transaction: Transaction, selection: Selection) -> int:
    """Ask processing to take up what is open and can be; return the request's id.

    Nothing comes in twice: each record goes through its natural key. What is still wrong stays a rejection, with what
    is wrong now. Raises `Rejected` when there is nothing to take up.
    """
    ((replay,),) = await transaction.fetch("INSERT INTO replays (asked) VALUES (0) RETURNING id")
    asked = await transaction.execute(
        f"UPDATE rejections r SET replay = %(replay)s WHERE r.replay IS NULL AND {_REPLAYABLE} AND {selection.condition()}",
        {**selection.parameters(), "replay": replay, "topics": _TOPICS},
    )
    if not asked:
        raise Rejected(
            Reason.MALFORMED,
            "there is nothing to take up: no such rejection is open, or they wait already, or they are descriptors or"
            " statuses, which are published again instead",
        )
    await transaction.execute("UPDATE replays SET asked = %s WHERE id = %s", (asked, replay))
    await transaction.execute("NOTIFY citylab_replays")
    return int(replay)


async def replay_of(transaction: Transaction, replay: int) -> Replay | None:
    """What became of a request so far; None when there is none with this id."""
    rows = await transaction.fetch(
        f"SELECT p.id, {_INSTANT.format('p.requested_at')}, p.asked, (SELECT count(*) FROM rejections r WHERE r.replay = p.id),"
        " p.stored, p.duplicates, p.rejected FROM replays p WHERE p.id = %s",
        (replay,),
    )
    names = Replay.__struct_fields__
    return Replay(**dict(zip(names, rows[0], strict=True))) if rows else None


async def replay_selection(store: Store, selection: Selection, *, patience: float) -> Replay:
    """Ask for a selection to be taken up, and return what became of it, or has after `patience` seconds.

    Raises `Rejected` when there is nothing to take up.
    """
    async with store.transaction() as transaction:
        replay = await request_replay(transaction, selection)
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while True:
        async with store.transaction(read_only=True) as transaction:
            found = await replay_of(transaction, replay)
        assert found is not None
        if not found.waiting or loop.time() >= until:
            return found
        await asyncio.sleep(_LOOK_EVERY)
