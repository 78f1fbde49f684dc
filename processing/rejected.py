"""Rejected records that the store keeps: which of them may be taken up, and the packs that the bridge refused."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from citylab.model import Batch, Event, Micros, Reason, Topic
from citylab.ports import Store
from citylab.writes import NewRejection, Receipt, Span, Write, bookkeeping
from processing.catalogue import Catalogue
from processing.decode import HOLDS_NUL, OpenRejection, RefusedPack, Rules, take_up, take_up_packs

_OPEN = """
SELECT r.id, r.gateway, r.epoch, r.seq, r.topic, r.partition, r."offset",
    (extract(epoch FROM r.received_at) * 1000000)::bigint, r.record, r.content
FROM rejections r JOIN datastreams d ON d.stream_name = r.stream
WHERE r.closed_at IS NULL AND r.reason = 'unknown-stream' AND r.content IS NOT NULL
ORDER BY r.id LIMIT %s
"""


async def open_rejections(store: Store, *, most: int = 5_000) -> Sequence[OpenRejection]:
    """Records that were rejected because no Datastream had their stream name, and now one has."""
    async with store.transaction(read_only=True) as transaction:
        rows = await transaction.fetch(_OPEN, (most,))
    return [
        OpenRejection(
            id_, Receipt(gateway, epoch, seq, Topic(topic), partition, offset, at, 1), record, content
        )
        for id_, gateway, epoch, seq, topic, partition, offset, at, record, content in rows
    ]


_WAITING_RECORDS = """
SELECT r.id, r.gateway, r.epoch, r.seq, r.topic, r.partition, r."offset",
    (extract(epoch FROM r.received_at) * 1000000)::bigint, r.record, r.content, r.detail, d.stream_name
FROM rejections r LEFT JOIN datastreams d ON d.id = (r.content ->> 'datastream')::bigint
WHERE r.replay = %s AND r.content IS NOT NULL ORDER BY r.id LIMIT 5000
"""
_WAITING_PACKS = """
SELECT r.id, r.gateway, r.epoch, r.seq, r.topic, r.partition, r."offset",
    (extract(epoch FROM r.received_at) * 1000000)::bigint, r.payload
FROM rejections r WHERE r.replay = %s AND r.content IS NULL ORDER BY r.id LIMIT 32
"""


class Replay(NamedTuple):
    """Some of the rejections that a request wants taken up: records, or packs that were refused whole."""

    id: int
    records: Sequence[OpenRejection]
    packs: Sequence[RefusedPack]

    def write(self, catalogue: Catalogue, rules: Rules, *, now: Micros) -> Write:
        """Judge them again: a write that closes all of them, and rejects anew what is still wrong.

        now: what is no longer in the future may have been sent by a right clock, and received by a wrong one.
        """
        rules = replace(rules, received=now)
        if self.records:
            write = take_up(self.records, catalogue, rules)
        else:
            write = take_up_packs(self.packs, catalogue, rules)
        return replace(write, replay=self.id)

    def singly(self) -> "list[Replay]":
        """Each by itself."""
        return [
            *(self._replace(records=[one], packs=[]) for one in self.records),
            *(self._replace(records=[], packs=[one]) for one in self.packs),
        ]


async def next_replay(store: Store) -> Replay | None:
    """What the oldest request waits for, as much as one transaction takes; None when none waits."""
    async with store.transaction(read_only=True) as transaction:
        ((replay,),) = await transaction.fetch("SELECT min(replay) FROM rejections WHERE replay IS NOT NULL")
        if replay is None:
            return None
        records = [
            OpenRejection(
                id_, Receipt(gateway, epoch, seq, Topic(topic), partition, offset, at, 1), record,
                as_it_came(content, detail, stream), asked=True,
            )
            for id_, gateway, epoch, seq, topic, partition, offset, at, record, content, detail, stream
            in await transaction.fetch(_WAITING_RECORDS, (replay,))
        ]  # fmt: skip
        if records:
            return Replay(replay, records, [])
        packs = [
            RefusedPack(
                id_, Topic(topic),
                Event(
                    partition, offset, gateway, bytes(payload),
                    {"gateway": gateway, "epoch": str(epoch), "seq": str(seq)}, at,
                ),
            )
            for id_, gateway, epoch, seq, topic, partition, offset, at, payload
            in await transaction.fetch(_WAITING_PACKS, (replay,))
        ]  # fmt: skip
    return Replay(replay, [], packs)


async def keep_waiting_no_longer(store: Store, replay: Replay, detail: str) -> None:
    """Leave a rejection as it is, because the store does not take it, and say why."""
    ids = [*(record.id for record in replay.records), *(pack.id for pack in replay.packs)]
    async with store.transaction() as transaction:
        await transaction.execute(
            "UPDATE rejections SET replay = NULL, detail = %s WHERE id = ANY(%s)", (detail, ids)
        )
        await transaction.execute(
            "UPDATE replays SET rejected = rejected || jsonb_build_object('malformed',"
            " coalesce((rejected ->> 'malformed')::bigint, 0) + 1) WHERE id = %s",
            (replay.id,),
        )


def as_it_came(content: Mapping[str, Any], detail: str, stream: str | None) -> dict[str, Any]:
    """The resolved record of a rejection. stream: the name of the Datastream, if a conflict names one.

    What was kept of a text with the character NUL is not what came: it gets its NUL back, and is refused again.
    """
    if "datastream" in content:
        value = content["value"]
        label = "vb" if isinstance(value, bool) else "vs" if isinstance(value, str) else "v"
        record = {"n": stream or "", "time": content["time"], label: value}
        if "quality" in content:
            record["quality"] = content["quality"]
        if "sum" in content.get("parameters", {}):
            record["s"] = content["parameters"]["sum"]
        return record
    if detail != HOLDS_NUL:
        return dict(content)
    return {
        k: v.replace("\ufffd", "\0") if isinstance(v, str) and k != "n" else v for k, v in content.items()
    }


def refused(batch: Batch) -> Write:
    """The write of packs that the bridge refused (log topic `citylab.refused`)."""
    receipts = [_receipt(batch, event) for event in batch.events]
    rejections = [
        NewRejection(i, -1, _reason(event.headers), event.headers.get("detail", ""), payload=event.value)
        for i, event in enumerate(batch.events)
    ]
    spans = [Span(batch.topic, batch.partition, batch.before, batch.after)]
    return bookkeeping(receipts=receipts, rejections=rejections, spans=spans)


def _receipt(batch: Batch, event: Event) -> Receipt:
    return Receipt(
        event.headers.get("gateway", event.key), int(event.headers.get("epoch", 0)), int(event.headers.get("seq", 0)),
        batch.topic, batch.partition, event.offset, event.time, 1,
    )  # fmt: skip


def _reason(headers: Mapping[str, str]) -> Reason:
    return Reason(headers["reason"]) if headers.get("reason") in set(Reason) else Reason.MALFORMED
