"""Several gateways in one process: the edge agent, a driver and an outbox on disk for each."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from citylab import wiring
from citylab.model import Reading
from citylab.settings import Settings
from edge.agent import Agent, AgentSettings
from edge.drivers import Driver
from edge.feed import Packing
from edge.outbox import Outbox


class Counted:
    """A driver that tells how many readings it has given."""

    def __init__(self, driver: Driver, tell: Callable[[int], None]) -> None:
        self._driver, self._tell = driver, tell

    @property
    def things(self) -> Sequence[dict[str, Any]]:
        """The driver's own."""
        return self._driver.things

    async def readings(self, position: str | None) -> AsyncIterator[tuple[Sequence[Reading], str | None]]:
        """The driver's own, counted."""
        async for readings, place in self._driver.readings(position):
            yield readings, place
            self._tell(len(readings))


async def run_fleet(
    settings: Settings, drivers: Mapping[str, Driver], *, group: str, packing: Packing
) -> dict[str, Outbox]:
    """Run one agent a driver until every driver has ended and every pack is acknowledged; return their outboxes.

    Outboxes lie in the city's folder under `edge/GROUP`, where a later run goes on with them.
    """
    connect = partial(wiring.broker_connection, settings)
    outboxes = {name: Outbox(settings.data / "edge" / group / name) for name in drivers}
    agent_settings = AgentSettings(packing=packing)
    async with asyncio.TaskGroup() as tasks:
        for name, driver in drivers.items():
            agent = Agent(name, driver, outboxes[name], connect, settings=agent_settings)
            tasks.create_task(agent.run(), name=name)
    return outboxes
