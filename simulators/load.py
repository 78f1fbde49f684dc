"""A load generator: many gateways on few connections, with the window and the acknowledgements of a real gateway.

It keeps no outbox on disk; all else is as the edge agent does it, so that what it measures is the platform.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from citylab.model import SECOND, Micros
from citylab.ports import BrokerConnection
from citylab.times import now
from edge.window import Window
from simulators.buses import drive

ROOT = "citylab/v1/gateways/"
_MEASUREMENT = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement"


@dataclass(frozen=True)
class Shape:
    """What is sent: every pack holds `samples` of each of `together` of the gateway's streams."""

    gateways: int
    streams: int  # of a gateway
    samples: int
    together: int

    @property
    def records(self) -> int:
        """Of a pack."""
        return self.samples * self.together


SHAPES = {"deep": Shape(100, 50, 10, 5), "wide": Shape(5_000, 1, 50, 1)}


class _Acks(msgspec.Struct):
    epoch: int
    appended: list[tuple[int, int]] = []
    refused: dict[str, str] = {}


def things(gateway: str, shape: Shape) -> list[dict[str, Any]]:
    """The gateway's descriptor."""
    location = {"type": "Point", "coordinates": [2.17, 41.39]}
    return [
        {
            "name": gateway,
            "description": "A load generator's gateway.",
            "properties": {"key": gateway},
            "Locations": [
                {
                    "name": "Nowhere",
                    "description": "Made up.",
                    "encodingType": "application/geo+json",
                    "location": location,
                }
            ],
            "Datastreams": [
                {
                    "name": f"{gateway} s{number}",
                    "description": "Made up.",
                    "observationType": _MEASUREMENT,
                    "unitOfMeasurement": {"name": "degree Celsius", "symbol": "°C", "definition": "ucum:Cel"},
                    "properties": {
                        "streamName": f"{gateway}/s{number}",
                        "senmlUnit": "Cel",
                        "interval": "PT1S",
                    },
                    "Sensor": {
                        "name": "load",
                        "description": "-",
                        "encodingType": "text/plain",
                        "metadata": "-",
                    },
                    "ObservedProperty": {
                        "name": "load",
                        "definition": "urn:citylab:load",
                        "description": "-",
                    },
                }
                for number in range(shape.streams)
            ],
        }
    ]


@dataclass
class Gateway:
    """One simulated gateway: its numbers, its window, its packs still to send."""

    name: str
    shape: Shape
    epoch: int
    begin: Micros
    spacing: float = 1.0  # s between samples
    seq: int = 0
    window: Window = field(default_factory=Window)
    again: list[int] = field(default_factory=list)
    _tails: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        groups = max(self.shape.streams // self.shape.together, 1)
        for group in range(groups):
            records = []
            for sample in range(self.shape.samples):
                for k in range(self.shape.together):
                    name = f"s{(group * self.shape.together + k) % self.shape.streams}"
                    value = round(20 + group + sample / 10 + k / 100, 2)
                    records.append({"n": name, "v": value, "t": round(sample * self.spacing, 6)})
            self._tails.append(msgspec.json.encode(records)[2:])

    def pack(self, seq: int, at: Micros | None = None) -> bytes:
        """The pack with this number; its bytes are the same whenever it is sent again, unless `at` says its time."""
        group = (seq - 1) % len(self._tails)
        if at is None:
            at = self.begin + round(
                (seq - 1) // len(self._tails) * self.shape.samples * self.spacing * SECOND
            )
        head = f'[{{"epoch":{self.epoch},"seq":{seq},"bn":"{self.name}/","bt":{at / 1e6:.6f},"bu":"Cel",'
        return head.encode() + self._tails[group]

    @property
    def topic(self) -> str:
        """Where its packs go."""
        return f"{ROOT}{self.name}/packs/numbered"


def gateways(shape: Shape, *, seed: int, begin: Micros, spacing: float = 1.0) -> list[Gateway]:
    """The shape's gateways; names and epochs come from the seed."""
    draw = random.Random(seed)
    return [
        Gateway(f"load-{seed}-{number:05d}", shape, draw.randrange(1, 2**53), begin, spacing)
        for number in range(shape.gateways)
    ]


async def describe(connection: BrokerConnection, senders: Sequence[Gateway]) -> None:
    """Publish all descriptors; return when the broker has them."""
    waiting: set[int] = set()
    for gateway in senders:
        payload = msgspec.json.encode(things(gateway.name, gateway.shape))
        packet = connection.publish(f"{ROOT}{gateway.name}/descriptor", payload)
        if packet is None:
            raise ConnectionError("the broker went away while descriptors were sent")
        waiting.add(packet)
        if len(waiting) >= 50:
            waiting.difference_update(await connection.pubacks())
    while waiting:
        waiting.difference_update(await connection.pubacks())


class Sender:
    """Sends the packs of some gateways over one connection as fast as they are accepted."""

    def __init__(self, connection: BrokerConnection, senders: Sequence[Gateway], packs: int) -> None:
        self.connection, self.senders, self.packs = connection, senders, packs
        self._by_name = {gateway.name: gateway for gateway in senders}
        self._packets: dict[int, Gateway] = {}
        self._unacknowledged = len(senders) * packs
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Send `packs` packs of every gateway; return when the platform has acknowledged all."""
        async with asyncio.TaskGroup() as tasks:
            works = (self._acknowledged, self._confirmed, self._again)
            running = [tasks.create_task(work()) for work in works]
            for gateway in self.senders:
                self._fill(gateway)
            await self._done.wait()
            for task in running:
                task.cancel()

    def _fill(self, gateway: Gateway) -> None:
        moment = asyncio.get_running_loop().time()
        for _ in range(gateway.window.room()):
            if gateway.again:
                seq = gateway.again.pop()
            elif gateway.seq < self.packs:
                gateway.seq = seq = gateway.seq + 1
            else:
                return
            packet = self.connection.publish(gateway.topic, gateway.pack(seq))
            if packet is None:
                gateway.again.append(seq)
                return
            self._packets[packet] = gateway
            gateway.window.sent(seq, packet, moment)

    async def _acknowledged(self) -> None:
        decode = msgspec.json.Decoder(_Acks).decode
        while True:
            for message in await self.connection.messages():
                message.ack()
                gateway = self._by_name.get(message.topic.split("/")[3])
                told = decode(message.payload)
                if gateway is None or told.epoch != gateway.epoch:
                    continue
                if told.refused:
                    raise ConnectionError(f"{gateway.name}: packs were refused: {told.refused}")
                for first, last in told.appended:
                    self._unacknowledged -= gateway.window.acknowledged(first, last)
                self._fill(gateway)
            if self._unacknowledged <= 0:
                self._done.set()

    async def _confirmed(self) -> None:
        while True:
            moment = asyncio.get_running_loop().time()
            for packet in await self.connection.pubacks():
                if gateway := self._packets.pop(packet, None):
                    gateway.window.pubacks((packet,), moment)

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(1)
            for gateway in self.senders:
                gateway.again += [
                    sent.seq for sent in gateway.window.expire(asyncio.get_running_loop().time())
                ]
                self._fill(gateway)


async def drip(
    connection: BrokerConnection,
    senders: Sequence[Gateway],
    *,
    rate: float,
    seconds: float,
    clock: Callable[[], Micros] = now,
) -> int:
    """Send packs at `rate` observations a second whose times are the moment of publishing; return how many packs."""
    every = senders[0].shape.records / rate
    loop = asyncio.get_running_loop()
    begin = loop.time()
    count = 0
    while (due := begin + count * every) < begin + seconds:
        await asyncio.sleep(max(due - loop.time(), 0))
        gateway = senders[count % len(senders)]
        gateway.seq += 1
        connection.publish(gateway.topic, gateway.pack(gateway.seq, clock()))
        count += 1
    return count


class Task(msgspec.Struct):
    """What a generator process is told to do. rate in observations a second, 0 for as fast as accepted."""

    broker_url: str
    shape: str
    seed: int
    begin: Micros
    packs: int = 0
    connections: int = 4
    describe: bool = False
    rate: float = 0.0
    seconds: float = 0.0
    buses: int = 0  # instead of the shape's gateways


async def perform(task: Task) -> None:
    """Do it, over connections of our own."""
    from citylab import wiring  # noqa: PLC0415
    from citylab.settings import Settings  # noqa: PLC0415

    settings = Settings(broker_url=task.broker_url)
    senders = gateways(
        SHAPES[task.shape], seed=task.seed, begin=task.begin, spacing=1e-6 if task.rate else 1.0
    )

    async def one(number: int, some: Sequence[Gateway]) -> None:
        topics = (
            [(f"{ROOT}{gateway.name}/acks", 1) for gateway in some]
            if len(some) <= 50
            else [(f"{ROOT}+/acks", 1)]
        )
        connection = wiring.broker_connection(
            settings, client_id=f"load-{task.seed}-{number}", subscriptions=topics
        )
        async with connection:
            await connection.wait_connected()
            if task.buses:
                await drive(connection, seed=task.seed, buses=task.buses, seconds=task.seconds)
            elif task.describe:
                await describe(connection, some)
            elif task.rate:
                await drip(connection, some, rate=task.rate, seconds=task.seconds)
            else:
                await Sender(connection, some, task.packs).run()

    n = 1 if task.rate or task.buses else task.connections
    async with asyncio.TaskGroup() as tasks:
        for number in range(n):
            tasks.create_task(one(number, senders[number::n]))


if __name__ == "__main__":
    asyncio.run(perform(msgspec.json.decode(sys.argv[1], type=Task)))
