"""`citylab processing`: the service as a process."""

import asyncio
import gc
from functools import partial
from typing import Annotated

import typer

from citylab import wiring
from citylab.cli import Data, run, single
from citylab.entities import ENTITY_TYPES, TASKING, without
from citylab.settings import Settings, service_url
from citylab.times import parse_instant
from citylab.up import Service
from processing.announcer import Announcer
from processing.decode import Rules
from processing.service import Processing
from processing.workers import Workers

PATIENCE = (
    30.0  # s that the store may take for an answer: a line that has died looks like a store that thinks
)


async def serve(settings: Settings, *, number: int) -> None:
    """Process until cancelled, with others beside us if there are to be several; we are `number` among all that run."""
    logs = settings.data / "logs"
    others = [
        Service(
            f"processing-{n}",
            settings.replaced(workers=1),
            logs,
            command=("processing", "--number", str(n)),
        )
        for n in range(number + 1, number + settings.workers)
    ]
    if others:
        logs.mkdir(parents=True, exist_ok=True)
    try:
        async with asyncio.TaskGroup() as tasks:
            for other in others:
                tasks.create_task(other.keep_running())
            tasks.create_task(_process(settings, number))
    finally:
        await asyncio.gather(*(other.stop(within=1.0) for other in others))


async def _process(settings: Settings, number: int) -> None:
    rules = Rules(
        most_records=settings.pack_records,
        most_bytes=settings.pack_bytes,
        future=settings.future_seconds * 1_000_000,
        earliest=parse_instant(settings.earliest),
        least_move=settings.move_metres,
    )
    async with (
        wiring.opened(wiring.store(settings, name="processing", patience=PATIENCE)) as store,
        wiring.opened(wiring.event_log(settings)) as log,
    ):
        gc.freeze()  # what is here now stays; the collector need not look at it again
        types = ENTITY_TYPES if settings.tasking else without(*TASKING)
        announcer = Announcer(
            store,
            log,
            base=f"{service_url(settings)}/v1.1/",
            per_second=settings.announcements_per_second,
            types=types,
        )
        await Processing(
            store,
            log,
            wiring.entity_writes(),
            announcer,
            workers=Workers(store, number=number),
            rules=rules,
            types=types,
            command_seconds=settings.command_seconds,
        ).run()


def processing(
    data: Data = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that share the packs. Default: CITYLAB_WORKERS, else 1."),
    ] = None,
    number: Annotated[
        int, typer.Option(min=1, help="What it is called among all that run: processing, processing 2, ...")
    ] = 1,
) -> None:
    """Run the service that turns packs into observations, from the positions that the store holds.

    Waits for a log or a store that is not there. As many as run, on this machine and on others, share the partitions of
    the packs; when one comes or goes the others take over.
    """
    run("processing", partial(serve, number=number), data=data, workers=workers)


app = single(processing)
