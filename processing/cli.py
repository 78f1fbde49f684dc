"""`citylab processing`: the service as a process."""

import gc

from citylab import wiring
from citylab.cli import Data, run, single
from citylab.entities import ENTITY_TYPES, TASKING, without
from citylab.settings import Settings, service_url
from citylab.times import parse_instant
from processing.announcer import Announcer
from processing.decode import Rules
from processing.service import Processing


async def serve(settings: Settings) -> None:
    """Process until cancelled."""
    rules = Rules(
        most_records=settings.pack_records,
        most_bytes=settings.pack_bytes,
        future=settings.future_seconds * 1_000_000,
        earliest=parse_instant(settings.earliest),
        least_move=settings.move_metres,
    )
    async with (
        wiring.opened(wiring.store(settings, name="processing")) as store,
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
            rules=rules,
            types=types,
            command_seconds=settings.command_seconds,
        ).run()


def processing(data: Data = None) -> None:
    """Run the service that turns packs into observations, from the positions that the store holds.

    Waits for a log or a store that is not there.
    """
    run("processing", serve, data=data)


app = single(processing)
