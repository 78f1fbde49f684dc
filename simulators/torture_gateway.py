"""A gateway of `citylab torture` as a process: the edge agent with its outbox, and a driver that plays a script."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import typer

from citylab import wiring
from citylab.cli import run
from citylab.model import MINUTE, SECOND, Quality, Reading
from citylab.settings import Settings
from citylab.times import now
from edge.agent import Agent, AgentSettings
from edge.feed import Packing
from edge.outbox import Outbox, Pack
from simulators.load import Shape, things
from simulators.torture_plan import STREAMS, Script
from simulators.torture_ports import KillPoint, Part, wrap_wiring

# As in production, but sooner: a run has seconds where an outage in a city has hours.
_SOONER = AgentSettings(
    packing=Packing(most_records=50, linger=0.1),
    ack_timeout=1.0,
    longest_ack_timeout=4.0,
    puback_within=5.0,
    keep_alive=5,
    status_every=3.0,
    flush_every=0.5,
)


class Role(msgspec.Struct, frozen=True):
    """What the process is told. outbox: its folder; most_bytes: that it may hold; enough: the file that ends the script."""

    script: Script
    outbox: str
    most_bytes: int
    enough: str
    part: Part


class ScriptDriver:
    """Yields the script's readings when they are due: the planned ones, and more until the file `enough` is there.

    What fell due while the gateway was dead comes at once.
    """

    def __init__(self, script: Script, enough: Path) -> None:
        self.things = things(script.gateway, Shape(1, STREAMS, 1, STREAMS))
        self._script, self._enough = script, enough

    async def readings(self, position: str | None) -> AsyncIterator[tuple[Sequence[Reading], str | None]]:
        """The place is how many readings lie behind."""
        script, columns = self._script, self._script.columns()
        at = int(position or 0)
        while at < script.planned or (at < len(columns) and not self._enough.exists()):
            due = int((time.time() - script.begin / SECOND) * script.rate)
            until = min(due, len(columns), at + 500)
            if until > at:
                some = slice(at, until)
                rows = zip(
                    columns.stream[some].tolist(), columns.time[some].tolist(), columns.value[some].tolist(),
                    columns.quality[some].tolist(), strict=True,
                )  # fmt: skip
                yield [Reading(script.name(s), t, v, "Cel", Quality(q)) for s, t, v, q in rows], str(until)
                at = until
            await asyncio.sleep(0.05)


class KillingOutbox(Outbox):
    """Before and after: outbox, the commit of new packs."""

    def __init__(self, folder: Path, most_bytes: int, kill: KillPoint) -> None:
        super().__init__(folder, most_bytes=most_bytes)
        self._kill = kill

    async def append(self, packs: Sequence[Pack], position: str | None) -> list[tuple[int, int]]:
        """Commit."""
        if packs:
            self._kill.reach("before outbox")
        given_up = await super().append(packs, position)
        if packs:
            self._kill.reach("after outbox")
        return given_up


async def _serve(settings: Settings, role: Role) -> None:
    kill = wrap_wiring(role.part)
    script = role.script
    skew = random.Random(f"skew {script.seed} {script.gateway}").randint(-10, 10) * MINUTE
    connect: Any = partial(wiring.broker_connection, settings)
    agent = Agent(
        script.gateway,
        ScriptDriver(script, Path(role.enough)),
        KillingOutbox(Path(role.outbox), role.most_bytes, kill),
        connect,
        settings=_SOONER,
        clock=lambda: now() + skew,
    )
    await agent.run()


def main() -> None:
    """Run a gateway: a `Role` in JSON."""
    role = msgspec.json.decode(sys.argv[1], type=Role)
    try:
        run("edge", partial(_serve, role=role), of_running_city=False)
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
