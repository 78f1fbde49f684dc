"""A device without an agent: it numbers nothing and keeps nothing; what the broker acknowledged is what it counts on."""

import asyncio
import random

import msgspec

from citylab.model import SECOND, Micros, Quality
from citylab.ports import BrokerConnection, BrokerConnector
from citylab.times import now
from simulators.load import ROOT, Shape, things
from simulators.torture_truth import Row

_EVERY = 0.2  # s between two packs
_RECORDS = 5


class PlainSender:
    """Publishes packs for a while. rows: those that the broker has acknowledged, and those of which nothing is known."""

    def __init__(self, gateway: str, connect: BrokerConnector, *, seed: int, seconds: float) -> None:
        self.ended = False
        self._gateway, self._seconds = gateway, seconds
        self._draw = random.Random(f"plain {seed}")
        self._connection: BrokerConnection = connect(client_id=gateway, keep_alive=5)
        self._sent: dict[int, list[Row]] = {}
        self._safe: list[Row] = []
        self._unsure: list[Row] = []

    @property
    def rows(self) -> tuple[list[Row], list[Row]]:
        """See the class."""
        return self._safe, self._unsure + [row for some in self._sent.values() for row in some]

    async def run(self) -> None:
        """Send until the time is over."""
        descriptor = msgspec.json.encode(things(self._gateway, Shape(1, 1, 1, 1)))
        deadline = asyncio.get_running_loop().time() + self._seconds
        async with self._connection, asyncio.TaskGroup() as tasks:
            confirming = tasks.create_task(self._confirm())
            last: Micros = 0
            known = 0
            while asyncio.get_running_loop().time() < deadline:
                if (
                    self._connection.connected
                    and (number := await self._connection.wait_connected()) != known
                ):
                    known = number
                    self._connection.publish(f"{ROOT}{self._gateway}/descriptor", descriptor, retain=True)
                last = max(last + 1, now())
                last += self._send(last)
                await asyncio.sleep(_EVERY)
            await asyncio.sleep(1.0)  # the last PUBACKs
            confirming.cancel()
        self.ended = True

    def _send(self, at: Micros) -> Micros:
        """One pack; return how much time it covers."""
        rows = [
            Row(f"{self._gateway}/s0", at + number, self._draw.gauss(20, 5), int(Quality.NONE))
            for number in range(_RECORDS)
        ]
        pack = [{"n": row.stream, "t": row.time / SECOND, "v": row.value} for row in rows]
        packet = self._connection.publish(f"{ROOT}{self._gateway}/packs", msgspec.json.encode(pack))
        if packet is not None:
            self._sent[packet] = rows
        return len(rows)

    async def _confirm(self) -> None:
        while True:
            for packet in await self._connection.pubacks():
                self._safe += self._sent.pop(packet, [])
            if not self._connection.connected:
                await self._connection.wait_connected()
