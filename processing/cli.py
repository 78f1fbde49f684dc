"""`citylab processing`: the service as a process."""

import gc

from citylab import wiring
from citylab.cli import Data, run, single
from citylab.entities import ENTITY_TYPES, TASKING, without
from citylab.settings import Settings
from citylab.times import parse_instant
from processing.decode import Rules
from processing.service import Processing


async def serve(settings: Settings) -> None:
    """Process until cancelled."""
    rules = Rules(
        most_records=settings.pack_records,
        most_bytes=settings.pack_bytes,
        future=settings.future_seconds * 1_000_000,
        earliest=parse_instant(settings.earliest),
    )
    async with (
        wiring.opened(wiring.store(settings, name="processing")) as store,
        wiring.opened(wiring.event_log(settings)) as log,
    ):
        gc.freeze()  # what is here now stays; the collector need not look at it again
        await Processing(
            store,
            log,
            wiring.entity_writes(),
            rules=rules,
            types=ENTITY_TYPES if settings.tasking else without(*TASKING),
            command_seconds=settings.command_seconds,
        ).run()


def processing(data: Data = None) -> None:
    """Run the service that turns packs into observations, from the positions that the store holds.

    Waits for a log or a store that is not there.
    """
    run("processing", serve, data=data)


app = single(processing)
