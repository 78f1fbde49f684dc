"""What was published to create an entity (OGC 18-088 §14.1): executed once an event, by the same rules as a POST."""

from itertools import groupby

import structlog

from citylab.drafts import Draft, attach, is_plain_observation, read_draft
from citylab.entities import ENTITY_TYPES, EntityTypes
from citylab.errors import Rejected
from citylab.model import Batch, Event, Reason
from citylab.mqtt_topics import creation_target
from citylab.ports import EntityWrites, Store, Transaction
from citylab.writes import NewRejection, Receipt, Span, Write, bookkeeping

log = structlog.get_logger()

_Refused = dict[int, Rejected]  # by the event's place in the batch


async def create(store: Store, writes: EntityWrites, batch: Batch, types: EntityTypes = ENTITY_TYPES) -> None:
    """Create what a batch says, in one transaction with the log position. What is wrong in one event harms no other.

    types: the entities that are offered.

    Raises `PositionMoved`, `Unavailable`.
    """
    try:
        await _create(store, writes, batch, types, together=True)
    except Rejected as error:
        log.warning(
            "the store refused creates together; now one by one", events=len(batch.events), why=error.detail
        )
        await _create(store, writes, batch, types, together=False)


async def _create(
    store: Store, writes: EntityWrites, batch: Batch, types: EntityTypes, *, together: bool
) -> None:
    refused: _Refused = {}
    drafts = {i: draft for i, event in enumerate(batch.events) if (draft := _read(event, i, types, refused))}
    async with store.transaction() as transaction:
        if not together or not all(map(is_plain_observation, drafts.values())):
            await transaction.lock_catalogue()
        span = Span(batch.topic, batch.partition, batch.before, batch.after)
        await transaction.save(bookkeeping(spans=[span]))
        for plain, some in groupby(drafts.items(), lambda item: together and is_plain_observation(item[1])):
            if plain:
                await _create_plain(transaction, batch, dict(some), refused)
            else:
                for i, draft in some:
                    try:
                        async with transaction.savepoint():
                            await writes.create(transaction, draft, now=batch.events[i].time)
                    except Rejected as error:
                        refused[i] = error
        if refused:
            await transaction.save(_rejections(batch, refused))


def _read(event: Event, i: int, types: EntityTypes, refused: _Refused) -> Draft | None:
    try:
        entity_type, relation, parent = creation_target(event.headers.get("topic", ""), types)
        draft = read_draft(entity_type, event.value, parent=relation, types=types)
        if relation is not None:
            attach(draft, relation, parent)
    except Rejected as error:
        refused[i] = error
        return None
    return draft


async def _create_plain(
    transaction: Transaction, batch: Batch, drafts: dict[int, Draft], refused: _Refused
) -> None:
    for i, draft in drafts.items():
        draft.values.setdefault("phenomenonTime", (batch.events[i].time, None))
    places = list(drafts)
    _, problems = await transaction.create_observations(list(drafts.values()), now=batch.events[0].time)
    for row, why in problems.items():
        refused[places[row]] = Rejected(Reason.MALFORMED, why)


def _rejections(batch: Batch, refused: _Refused) -> Write:
    receipts: list[Receipt] = []
    rejections: list[NewRejection] = []
    for i, error in sorted(refused.items()):
        event, reason = batch.events[i], Reason(error.reason)
        rejections.append(NewRejection(len(receipts), -1, reason, error.detail, payload=event.value))
        receipts.append(
            Receipt(
                event.headers["gateway"], 0, 0, batch.topic, batch.partition, event.offset, event.time, records=1
            )
        )  # fmt: skip
    return bookkeeping(receipts=receipts, rejections=rejections)
