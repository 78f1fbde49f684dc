"""Appending to Kafka where a partition is stuck: whoever waits for it is told, whatever is delivered into others."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from citylab.adapters.kafka_appends import Appends
from citylab.model import NewEvent

EVENT = NewEvent("lamp", b"21.4", {}, 0)
STUCK, WELL = TopicPartition("packs", 0), TopicPartition("status", 0)
PATIENCE = 0.5


class Builder:
    """Holds one event, so that each is a batch."""

    def __init__(self) -> None:
        self.full = False

    def append(self, **_event: object) -> object | None:
        was, self.full = self.full, True
        return None if was else object()


class Producer:
    """Delivers at once, but for a partition that never takes a batch, or never delivers it."""

    def __init__(self, stuck: str) -> None:
        self.stuck, self.stopped = stuck, False
        self._sender = self._message_accumulator = self
        self.sender_task = asyncio.create_task(asyncio.sleep(60))
        self._batches: dict[object, list[object]] = {}
        self._pending_batches: set[object] = set()
        self._waiting: list[asyncio.Future[None]] = []

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(self, _builder: Builder, topic: str, *, partition: int) -> asyncio.Future[None]:
        delivery = asyncio.get_running_loop().create_future()
        if TopicPartition(topic, partition) != STUCK or not self.stuck:
            delivery.set_result(None)
        elif self.stuck == "batch":
            await delivery  # as where the metadata never come
        else:
            self._waiting.append(delivery)
        return delivery

    def fail_all(self, why: Exception) -> None:
        for delivery in self._waiting:
            delivery.set_exception(why)

    async def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize("stuck", ["batch", "delivery"])
async def test_a_partition_that_is_stuck_is_said_and_begun_anew_while_others_go_on(stuck):
    producers: list[Producer] = []

    async def connect() -> Producer:
        producers.append(Producer("" if producers else stuck))
        return producers[-1]

    appends = Appends(connect, patience=PATIENCE)

    async def go_on() -> None:
        while True:
            await appends.append({WELL: [EVENT]})
            await asyncio.sleep(0.01)

    others = asyncio.create_task(go_on())
    async with asyncio.timeout(20 * PATIENCE):
        with pytest.raises((KafkaConnectionError, TimeoutError)):
            await appends.append({STUCK: [EVENT]})
        await appends.append({STUCK: [EVENT, EVENT], WELL: [EVENT]})
    others.cancel()
    await appends.close()

    assert len(producers) > 1
    assert all(producer.stopped for producer in producers)


async def test_a_partition_into_which_something_is_delivered_now_and_then_is_waited_for():
    class Slow(Producer):
        async def send_batch(self, builder: Builder, topic: str, *, partition: int) -> asyncio.Future[None]:
            await asyncio.sleep(PATIENCE / 3)
            return await super().send_batch(builder, topic, partition=partition)

    async def connect() -> Producer:
        return Slow("")

    appends = Appends(connect, patience=PATIENCE)
    await appends.append({WELL: [EVENT] * 6})  # twice the patience
    await appends.close()
