"""The log's `citylab.outbound` -> MQTT: at least once, in order, and by one of the bridges at a time.

The log's order decides which: a bridge appends a claim when it begins, and the bridge whose claim is the last one before
an event publishes it (docs/decisions/0012). Where publishing stands is the consumer group's place in the log.
"""

import asyncio
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

import structlog

from citylab.errors import PositionLost, Unavailable
from citylab.model import Batch, Event, Micros, NewEvent, Position, Topic
from citylab.outbound import GROUP, LARGEST, is_due
from citylab.ports import START, BrokerConnection, EventLog
from citylab.times import now

log = structlog.get_logger()

MOST = 200  # messages on their way to the broker
PUBACK_WITHIN = 30.0  # s, else the connection is opened anew
STALLED_AFTER = 5.0  # s without progress until another bridge claims what waits
_NOBODY = -1


class Outbound:
    """Publishes over one connection, whose PUBACKs it alone takes.

    claim: names this bridge's run, and no other's; stalled_after in s; draw: a number from 0 to 1, so that bridges do not
    claim all at once.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        event_log: EventLog,
        *,
        claim: str = "",
        stalled_after: float = STALLED_AFTER,
        clock: Callable[[], Micros] = now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.connection, self.log, self.clock = connection, event_log, clock
        self.claim = claim or secrets.token_hex(8)
        self.stalled_after, self.draw = stalled_after, draw
        self.published = 0
        self.lost = ""  # why something was never published, until the next run
        self._since = _NOBODY  # the offset of our claim, while it is the last one
        self._said_away = False

    async def run(self) -> None:
        """Publish until cancelled. A broker or a log that goes away is waited for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_patiently())
            tasks.create_task(self._watch())

    async def _follow_patiently(self) -> None:
        while True:
            try:
                await self._follow()
            except Unavailable as error:
                self._since = _NOBODY
                if not self._said_away:
                    log.warning("what is to be published waits for the event log", why=str(error))
                self._said_away = True
                await asyncio.sleep(error.retry_after)

    async def _follow(self) -> None:
        """Read up to our own claim, then again from where publishing stands."""
        start = await self.log.tail(Topic.OUTBOUND)
        await self._claim()
        while True:
            try:
                async with aclosing(self.log.read(Topic.OUTBOUND, start, most=MOST)) as batches:
                    async for batch in batches:
                        if not await self._handle(batch):
                            break
                start = await self._place()
            except PositionLost as error:
                log.error(
                    "some of what was to be published is gone; going on with what is left", why=str(error)
                )
                self.lost = str(error)
                start = dict.fromkeys(await self.log.partitions(Topic.OUTBOUND), START)

    async def _claim(self) -> None:
        event = NewEvent("bridges", b"", {"claim": self.claim}, self.clock())
        await self.log.append(Topic.OUTBOUND, [event])
        if self._said_away:
            log.info("the event log is back")
        self._said_away = False

    async def _place(self) -> Mapping[int, Position]:
        kept = await self.log.committed(GROUP, Topic.OUTBOUND)
        return {p: kept.get(p, START) for p in await self.log.partitions(Topic.OUTBOUND)}

    async def _handle(self, batch: Batch) -> bool:
        """Publish a batch if that is up to us. False: our claim begins here, and nothing was published."""
        due = []
        for event in batch.events:
            claim = event.headers.get("claim")
            if claim is None:
                if self._since != _NOBODY:
                    due.append(event)
            elif claim == self.claim and event.offset > self._since:
                self._since = event.offset
                return False
            elif claim != self.claim and event.offset > self._since:
                self._since = _NOBODY
        await self._publish(due)
        if self._since != _NOBODY:
            await self.log.commit(GROUP, Topic.OUTBOUND, {batch.partition: batch.after})
        return True

    async def _publish(self, events: Sequence[Event]) -> None:
        """Return once the broker has acknowledged every event that has not expired."""
        waiting = list(events)
        while waiting:
            number = await self.connection.wait_connected()
            moment = self.clock()
            waiting = [event for event in waiting if is_due(event, moment)]
            sent: dict[int, Event] = {}
            while waiting:
                qos, packet = int(waiting[0].headers.get("qos", 1)), self._hand_over(waiting[0])
                if packet is None:
                    break
                event = waiting.pop(0)
                if qos and packet:
                    sent[packet] = event
            count = len(sent)
            await self._await_pubacks(number, sent)
            self.published += count - len(sent)
            if waiting:  # the connection could not take them
                await asyncio.sleep(0.05)
            waiting = [*sent.values(), *waiting]

    def _hand_over(self, event: Event) -> int | None:
        """Give an event to the connection: its packet number, 0 for one that cannot be published, None without connection."""
        qos, retain = int(event.headers.get("qos", 1)), event.headers.get("retain") == "1"
        try:
            if len(event.value) > LARGEST:
                raise ValueError(f"it has {len(event.value)} bytes, and {LARGEST} are the most")
            return self.connection.publish(event.headers["topic"], event.value, qos=qos, retain=retain)
        except (ValueError, KeyError) as error:
            log.error("dropped what cannot be published", key=event.key, offset=event.offset, why=repr(error))
            return 0

    async def _await_pubacks(self, number: int, sent: dict[int, Event]) -> None:
        """Take out of `sent` what the broker acknowledges, until nothing is left or the connection has ended.

        number: of the connection over which they were sent.
        """
        try:
            async with asyncio.timeout(PUBACK_WITHIN):
                while sent:
                    packets = await self.connection.pubacks()
                    for packet in packets:
                        sent.pop(packet, None)
                    if not packets and (
                        not self.connection.connected or await self.connection.wait_connected() != number
                    ):
                        return
        except TimeoutError:
            self.connection.reconnect(f"no PUBACK within {PUBACK_WITHIN:g} s")

    async def _watch(self) -> None:
        """Claim what waits when whoever should publish it makes no progress, and our broker is there."""
        before: Mapping[int, Position] | None = None
        while True:
            await asyncio.sleep(self.stalled_after * (1 + self.draw()))
            try:
                place = await self._place()
                ends = await self.log.ends(Topic.OUTBOUND)
                waits = any(place[p].offset < end for p, end in ends.items())
                if self._since == _NOBODY and waits and place == before and self.connection.connected:
                    log.info("publishing instead of a bridge that does not")
                    await self._claim()
                before = place
            except Unavailable:
                before = None  # whoever reads says so
