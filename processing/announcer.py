"""The announcer: what was created or changed -> the log's outbound topic, after the commit and not faster than allowed.

Entities come from `pending_announcements`, where the transaction that changed them left them; Observations from the log's
updates, so that the way of a reading into the store pays nothing for it. JSON is made only of what is published.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import NoReturn

import structlog

from citylab.columns import decode_update
from citylab.entities import ENTITY_TYPES, EntityTypes
from citylab.errors import PositionLost, Unavailable
from citylab.model import MINUTE, Batch, Micros, NewEvent, Position, Topic
from citylab.outbound import GROUP, LARGEST, outbound
from citylab.policy import Visible, everything
from citylab.ports import EventLog, Store, Transaction
from citylab.times import now
from citylab.writes import PositionMoved, Span, bookkeeping
from processing.announcements import (
    Announcement,
    Change,
    coalesced,
    of_change,
    of_collections,
    reading,
    reading_observations,
)
from processing.waiting import Keys, Waiting

log = structlog.get_logger()

TICK = 0.1  # s between two looks at what was changed
EXPIRES_AFTER = 10 * MINUTE  # who was not there hears of what is new, not of what was
MOST_BEHIND = (
    10  # s of announcements that may wait for the bridge; more wait here, where newer ones replace older ones
)
_A_CHANGE, _AN_OBSERVATION = 4, 3  # messages, about

_TAKE = """
WITH taken AS (DELETE FROM pending_announcements WHERE id IN (
    SELECT id FROM pending_announcements ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
) RETURNING *) SELECT entity_table, entity, columns FROM taken ORDER BY id
"""


class Announcer:
    """Announces entities below `base`, the address of the service that ends in /v1.1/.

    per_second: messages, 0 for none at all; visible: what may be announced; types: the entities that are offered.
    """

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        *,
        base: str,
        per_second: int,
        visible: Visible = everything,
        types: EntityTypes = ENTITY_TYPES,
        clock: Callable[[], Micros] = now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.log, self.base, self.per_second = store, event_log, base, per_second
        self.clock, self._monotonic = clock, monotonic
        self.messages = 0
        self._visible, self._types = visible, types
        self._of_observations = reading_observations(visible)
        self._waiting = Waiting(_most_waiting(per_second))
        self._left_out = self._too_large = 0
        self._more = asyncio.Event()
        self._span: Span | None = None
        self._tokens, self._since, self._looked = 0.0, monotonic(), 0.0
        self._behind = False

    @property
    def left_out(self) -> int:
        """What was not announced: Observations, because a newer one of their Datastream was; messages that are too large."""
        return self._left_out + self._waiting.left_out + self._too_large

    async def run(self, well: Callable[[], None]) -> None:
        """Announce until cancelled. well: is told when store and log answer. Raises `Unavailable`."""
        if not self.per_second:
            await self._forget(well)
        while True:
            self._left_out += self._waiting.left_out
            self._waiting, self._span = Waiting(_most_waiting(self.per_second)), None
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read(await self._start()))
                    tasks.create_task(self._announce(well))
            except* PositionMoved as moved:
                log.info("positions moved; reading on from there", why=str(moved.exceptions[0]))
            except* PositionLost as lost:
                log.warning(
                    "updates that were not announced are gone; going on with new ones",
                    why=str(lost.exceptions[0]),
                )
                await self._forget_places()
            except* Unavailable as away:
                raise away.exceptions[0] from away

    async def _start(self) -> Mapping[int, Position]:
        """Where to read updates on: where the store says, at first from now on."""
        places = await self.store.positions(Topic.UPDATES)
        new = {p: at for p, at in (await self.log.tail(Topic.UPDATES)).items() if p not in places}
        spans = [Span(Topic.UPDATES, p, Position(0, b""), at) for p, at in new.items()]
        await self.store.save(bookkeeping(spans=spans))
        return {**places, **new}

    async def _forget(self, well: Callable[[], None]) -> NoReturn:
        """Without announcements: keep nothing for a later day."""
        await self._forget_places()
        while True:
            async with self.store.transaction() as transaction:
                await transaction.execute("DELETE FROM pending_announcements")
            well()
            await asyncio.sleep(60)

    async def _forget_places(self) -> None:
        async with self.store.transaction() as transaction:
            await transaction.execute("DELETE FROM positions WHERE topic = %s", (Topic.UPDATES,))

    async def _read(self, start: Mapping[int, Position]) -> None:
        async with aclosing(self.log.read(Topic.UPDATES, start)) as batches:
            async for batch in batches:
                self._add(batch)
                self._more.set()
                if self._tokens <= 0:  # no hurry: more come together
                    await asyncio.sleep(TICK)

    def _add(self, batch: Batch) -> None:
        for event in batch.events:
            rows, ids = decode_update(event.value).rows()
            self._waiting.add(Keys(rows.datastream, rows.time, ids))
        before = self._span.before if self._span else batch.before
        self._span = Span(batch.topic, batch.partition, before, batch.after)

    async def _announce(self, well: Callable[[], None]) -> None:
        while True:
            try:
                async with asyncio.timeout(TICK):
                    await self._more.wait()
            except TimeoutError:
                pass
            self._more.clear()
            await self._refill()
            if self._tokens > 0:
                await self._announce_changes(share=0.5 if len(self._waiting) else 1.0)
            if self._span or (self._tokens > 0 and len(self._waiting)):
                await self._announce_observations()
            well()

    async def _refill(self) -> None:
        """Allow more messages, unless those that were handed over are not yet published."""
        moment = self._monotonic()
        if moment - self._looked > 1:
            self._looked = moment
            ends = await self.log.ends(Topic.OUTBOUND)
            places = await self.log.committed(GROUP, Topic.OUTBOUND)
            waiting = sum(end - (places[p].offset if p in places else 0) for p, end in ends.items())
            self._behind = waiting > MOST_BEHIND * self.per_second
        if not self._behind:
            allowed = self._tokens + (moment - self._since) * self.per_second
            self._tokens = min(allowed, float(self.per_second))
        self._since = moment

    async def _announce_changes(self, *, share: float) -> None:
        most = max(int(self._tokens * share) // _A_CHANGE, 1)
        async with self.store.transaction(read_only=True) as transaction:
            ((waits,),) = await transaction.fetch("SELECT EXISTS (SELECT FROM pending_announcements)")
        if not waits:
            return
        async with self.store.transaction() as transaction:
            changes = coalesced(await transaction.fetch(_TAKE, (most,)), self._types)
            await self._append(await self._told(transaction, changes))

    async def _told(self, transaction: Transaction, changes: Sequence[Change]) -> list[Announcement]:
        """The messages that tell of changes, in their order."""
        places: dict[str, dict[int, int]] = defaultdict(dict)  # among the changes, by type and id
        for place, change in enumerate(changes):
            places[change.entity_type.name][change.id] = place
        told: dict[int, list[Announcement]] = {}
        for name, of_type in places.items():
            parameters = {"base": self.base, "ids": list(of_type)}
            sql = reading(self._types[name], self._visible, self._types)
            for own, *found in await transaction.fetch(sql, parameters):
                told[of_type[own]] = list(of_change(changes[of_type[own]], *found))
        return [message for _, messages in sorted(told.items()) for message in messages]

    async def _announce_observations(self) -> None:
        """Announce what is allowed, and keep how far the updates are read; the rest waits in memory."""
        span, self._span = self._span, None
        keys = self._waiting.take(max(-int(-self._tokens // _AN_OBSERVATION), 0))
        async with self.store.transaction() as transaction:
            if span:  # first: what another process has announced is not announced here
                await transaction.save(bookkeeping(spans=[span]))
            if len(keys):
                parameters = {
                    "base": self.base,
                    "datastreams": keys.datastream.tolist(),
                    "times": keys.time.tolist(),
                    "ids": keys.id.tolist(),
                    "first": int(keys.time.min()),
                    "last": int(keys.time.max()),
                }
                found = await transaction.fetch(self._of_observations, parameters)
                await self._append(
                    message
                    for json, collections in found
                    for message in of_collections("Observations", json.encode(), collections)
                )

    async def _append(self, messages: Iterable[Announcement]) -> None:
        moment = self.clock()
        events: list[NewEvent] = []
        for topic, payload in messages:
            if len(payload) > LARGEST:
                self._too_large += 1
                continue
            events.append(outbound(topic, payload, now=moment, expires_at=moment + EXPIRES_AFTER))
        if events:
            await self.log.append(Topic.OUTBOUND, events)
        self._tokens -= len(events)
        self.messages += len(events)


def _most_waiting(per_second: int) -> int:
    """Observations that wait before older ones give way: two seconds' worth."""
    return 2 * per_second // _AN_OBSERVATION + 1
