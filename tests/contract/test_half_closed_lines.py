"""A line that half closes: the engine sees its end, the client sees nothing. It is given up, and all goes on over another."""

import asyncio
import struct
from contextlib import aclosing, suppress
from urllib.parse import urlsplit

from engines import url_of

from citylab.adapters.kafka_log import KafkaLog, delete_topics
from citylab.adapters.mqtt import MqttConnection
from citylab.errors import Unavailable
from citylab.model import NewEvent, Topic
from citylab.ports import START
from simulators.torture_lines import Line

PATIENCE = 20.0  # s
KAFKAS = 1.0  # s that the log waits for Kafka


class LineToKafka(Line):
    """Kafka tells its clients where it is, and they go there: it is said to be at the near end."""

    async def _hand_over(self, data: bytes, target: asyncio.StreamWriter, connection: object) -> None:
        far, near = (b"127.0.0.1" + struct.pack(">i", port) for port in (self._server[1], self.port))
        await super()._hand_over(data.replace(far, near), target, connection)


async def test_to_the_broker():
    url = urlsplit(url_of("BROKER"))
    async with Line(url.hostname or "", url.port or 1883).open() as line, asyncio.TaskGroup() as tasks:
        mqtt = MqttConnection(
            f"mqtt://127.0.0.1:{line.port}", client_id=f"half-{line.port}", keep_alive=1, draw=lambda: 0.0
        )
        async with mqtt, asyncio.timeout(PATIENCE):
            before = await mqtt.wait_connected()
            mute = tasks.create_task(line.half_close(3_600))
            await mqtt.wait_disconnected()
            assert await mqtt.wait_connected() > before
            packet = mqtt.publish(f"citylab-test/{line.port}", b"still here")
            while packet not in await mqtt.pubacks():
                pass
            mute.cancel()


async def test_to_kafka():
    url = urlsplit(url_of("LOG"))
    async with LineToKafka(url.hostname or "", url.port or 9092).open() as line, asyncio.TaskGroup() as tasks:
        address = f"kafka://127.0.0.1:{line.port}/half-{line.port}"
        async with KafkaLog(address, partitions=1, patience=KAFKAS) as log, asyncio.timeout(PATIENCE):
            read: asyncio.Queue[bytes] = asyncio.Queue()
            reader = tasks.create_task(read_patiently(log, read))
            await append_patiently(log, b"1")
            assert await read.get() == b"1"
            mute = tasks.create_task(line.half_close(3_600))
            await asyncio.sleep(0)  # it has begun
            await append_patiently(log, b"2")
            assert await read.get() == b"2"
            reader.cancel()
            mute.cancel()
        await delete_topics(address)


async def append_patiently(log: KafkaLog, value: bytes) -> None:
    while True:
        with suppress(Unavailable):
            await log.append(Topic.PACKS, [NewEvent("gw", value, {}, 1)])
            return


async def read_patiently(log: KafkaLog, read: asyncio.Queue[bytes]) -> None:
    """As processing does: again from the last position when the log goes away."""
    at = START
    while True:
        with suppress(Unavailable):
            async with aclosing(log.read(Topic.PACKS, {0: at})) as batches:
                async for batch in batches:
                    for event in batch.events:
                        read.put_nowait(event.value)
                    at = batch.after
