"""`citylab simulate`: a small synthetic city, in real time."""

from typing import Annotated

import typer

from citylab.cli import Data, run, single
from citylab.settings import Settings
from edge.feed import Packing
from simulators import city
from simulators.fleet import run_fleet


async def serve(settings: Settings, *, seed: int) -> None:
    """Play the city until cancelled."""
    await run_fleet(settings, city.drivers(seed), group="city", packing=Packing(linger=1.0))


def simulate(
    seed: Annotated[
        int, typer.Option(help="Another number makes another city, the same one each time.")
    ] = 2026,
    data: Data = None,
) -> None:
    """Play a small synthetic city in real time: first its last hour, then what it measures from now on.

    Its gateways are real ones: edge agents with an outbox on disk, whose packs go through the broker.
    """
    run("simulate", lambda settings: serve(settings, seed=seed), data=data)


app = single(simulate)
