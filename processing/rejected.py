"""Rejected records that the store keeps: which of them may be taken up, and the packs that the bridge refused."""

from collections.abc import Mapping, Sequence

from citylab.model import Batch, Event, Reason, Topic
from citylab.ports import Store
from citylab.writes import NewRejection, Receipt, Span, Write, bookkeeping
from processing.decode import OpenRejection

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
