"""Appending to Kafka: one idempotent producer, batches filled in the order of the calls, a bounded wait.

aiokafka's idempotent producer never gives up on a batch, and one that was stopped never ends a wait for its metadata. Here
each partition is waited for by itself: a producer that delivers nothing into one for a while is abandoned together with
what waits for it, and the next append starts a new one.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from citylab.model import NewEvent

TIME_HEADER = "time-us"  # Kafka's own timestamps are milliseconds


@dataclass(eq=False)
class _Append:
    """One call of `append`: how many of its events are not delivered yet, by partition."""

    left: dict[TopicPartition, int]
    done: asyncio.Future[None]

    def delivered(self, place: TopicPartition) -> None:
        self.left[place] -= 1
        if not self.left[place]:
            del self.left[place]
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def failed(self, why: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(KafkaConnectionError(str(why)))
            self.done.exception()  # whoever was cancelled does not look


@dataclass(eq=False)
class _Lane:
    """What waits for one partition, the task that fills batches from it, and when something was last delivered into it."""

    waiting: deque[tuple[NewEvent, _Append]] = field(default_factory=deque)
    filling: asyncio.Task[None] | None = None
    delivered: float = 0.0


class Appends:
    """The appends of one log. `connect` starts a producer, within `patience` seconds or with an error."""

    def __init__(self, connect: Callable[[], Awaitable[AIOKafkaProducer]], *, patience: float) -> None:
        self._connect = connect
        self._patience = patience
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    async def append(self, events: Mapping[TopicPartition, list[NewEvent]]) -> None:
        """Return when all events are delivered. Raises KafkaError, TimeoutError and OSError."""
        loop = asyncio.get_running_loop()
        append = _Append({place: len(those) for place, those in events.items()}, loop.create_future())
        for (
            place,
            those,
        ) in events.items():  # no await up to here: the order of the calls is the order of the events
            lane = self._lanes.setdefault(place, _Lane())
            lane.waiting.extend((event, append) for event in those)
            if not lane.filling:
                lane.filling = asyncio.create_task(self._fill_batches(place, lane))
        began = loop.time()
        while not append.done.done():
            await asyncio.wait([append.done], timeout=self._patience)
            since = min((self._lanes[place].delivered for place in append.left), default=began)
            if loop.time() - max(began, since) >= self._patience:
                self._give_up(
                    self._producer, TimeoutError(f"nothing was delivered within {self._patience:g} s")
                )
        append.done.result()

    async def close(self) -> None:
        """Deliver what waits, within the patience; stop the producer."""
        filling = [lane.filling for lane in self._lanes.values() if lane.filling]
        if filling:
            await asyncio.wait(filling, timeout=self._patience)
        producer, self._producer = self._producer, None
        if producer:
            stopping = asyncio.create_task(producer.stop())
            await asyncio.wait([stopping], timeout=self._patience)
            if not stopping.done():
                await _abandon(producer)
                await stopping
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, *self._ending, return_exceptions=True)

    async def _fill_batches(self, place: TopicPartition, lane: _Lane) -> None:
        try:
            while lane.waiting:
                producer, taken = None, list[_Append]()
                try:
                    producer = await self._connected()
                    builder = producer.create_batch()
                    taken = _fill(builder, lane)
                    async with asyncio.timeout(self._patience):
                        delivery = await producer.send_batch(builder, place.topic, partition=place.partition)
                    delivery.add_done_callback(partial(self._settle, producer, place, taken))
                except (KafkaError, OSError) as error:
                    for append in taken:
                        append.failed(error)
                    self._give_up(producer, error)
        finally:
            lane.filling = None

    def _settle(
        self,
        producer: AIOKafkaProducer,
        place: TopicPartition,
        appends: list[_Append],
        delivery: asyncio.Future[object],
    ) -> None:
        problem = KafkaConnectionError("closed") if delivery.cancelled() else delivery.exception()
        if problem:
            for append in appends:
                append.failed(problem)
            self._give_up(producer, problem)
            return
        self._lanes[place].delivered = asyncio.get_running_loop().time()
        for append in appends:
            append.delivered(place)

    def _give_up(self, producer: AIOKafkaProducer | None, why: BaseException) -> None:
        """Fail all that waits, and leave the producer; once for each producer."""
        if producer is not self._producer:
            return
        for lane in self._lanes.values():
            for _, append in lane.waiting:
                append.failed(why)
            lane.waiting.clear()
        if producer:
            self._producer = None
            ending = asyncio.create_task(_abandon(producer))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            self._producer = self._producer or await self._connect()
            return self._producer


def _fill(builder: BatchBuilder, lane: _Lane) -> list[_Append]:
    """Move events into a batch until it is full; return for each whose it is. The first always fits."""
    taken = []
    while lane.waiting:
        (key, value, headers, time), append = lane.waiting[0]
        carried = [(name, text.encode()) for name, text in headers.items()]
        carried.append((TIME_HEADER, b"%d" % time))
        stamp = max(time // 1_000, 0)
        if builder.append(key=key.encode(), value=value, timestamp=stamp, headers=carried) is None:
            break
        lane.waiting.popleft()
        taken.append(append)
    return taken


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Stop a producer that may never deliver what it has: `stop` alone would wait for it."""
    routine = producer._sender.sender_task
    routine.cancel()
    await asyncio.wait([routine])  # ends with the requests that are on the way, each bounded by its time-out
    batches = producer._message_accumulator
    put_back = [
        batch for waiting in batches._batches.values() for batch in waiting
    ]  # after a try that failed
    batches._pending_batches.update(put_back)  # each takes itself out of there, whether it is in it or not
    batches.fail_all(KafkaConnectionError("the producer was given up"))
    for batch in put_back:
        batch._drain_waiter.exception()  # nobody else looks
    with suppress(KafkaError, OSError):
        await producer.stop()
