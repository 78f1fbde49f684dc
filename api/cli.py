"""`citylab api`: the open API and the live page as a process, or several."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from api.aggregates import aggregates_router
from api.app import create_app
from api.health import health_router
from api.ledger import ledger_router
from api.live import LiveRouter, live_router
from api.page import page_router
from api.rejections import rejections_router
from citylab import wiring
from citylab.cli import Data, run, single
from citylab.ports import Store
from citylab.settings import Settings, redacted

GRACE = 2  # s that requests in hand have when the server stops


async def _datastreams_of(store: Store, thing: int) -> list[int] | None:
    """The ids of a Thing's Datastreams, or None when there is no such Thing."""
    async with store.transaction(read_only=True) as transaction:
        rows = await transaction.fetch(
            "SELECT t.id, d.id FROM things t LEFT JOIN datastreams d ON d.thing_id = t.id WHERE t.id = %s",
            (thing,),
        )
    return [datastream for _, datastream in rows if datastream is not None] if rows else None


class Server(uvicorn.Server):
    """Serves until cancelled, as every service of ours; then ends the live streams and puts everything away."""

    def __init__(self, config: uvicorn.Config, live: LiveRouter) -> None:
        super().__init__(config)
        self._live = live

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the command line, which cancels."""
        yield

    async def run_until_cancelled(self) -> None:
        """Serve; when cancelled, finish what is in hand first."""
        serving = asyncio.create_task(self.serve())
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self.should_exit = True
            await serving
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving. Open responses are waited for, which live streams would be for ever."""
        self._live.close()
        await super().shutdown(sockets)


async def serve(settings: Settings) -> None:
    """Serve until told to stop."""
    timeout = settings.statement_seconds
    async with (
        wiring.opened(wiring.store(settings, name="api", statement_timeout=timeout)) as store,
        wiring.opened(wiring.event_log(settings)) as log,
    ):

        async def datastreams_of(thing: int) -> list[int] | None:
            return await _datastreams_of(store, thing)

        live = live_router(log, datastreams_of)
        app = create_app(
            store,
            wiring.entity_writes(),
            public_url=settings.public_url or None,
            page_limit=settings.page_limit,
            routers=(
                health_router(store, broker=redacted(settings.broker_url), is_open=settings.open),
                live,
                ledger_router(store),
                rejections_router(store),
                aggregates_router(store),
                page_router(),
            ),
        )
        config = uvicorn.Config(
            app, host=settings.http_host, port=settings.http_port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=GRACE, server_header=False, lifespan="on", http="httptools",
        )  # fmt: skip
        await Server(config, live).run_until_cancelled()


def api(data: Data = None) -> None:
    """Run the open API: SensorThings at /v1.1, live streams at /live, the live page at /.

    Waits for a store or a log that is not there.
    """
    run("api", serve, data=data)


app = single(api)
