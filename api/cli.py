"""`citylab api`: the open API and the live page as a process, or several."""

import asyncio
import ctypes
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn

from api.aggregates import aggregates_router
from api.app import create_app
from api.health import health_router
from api.ledger import ledger_router
from api.live import LiveRouter, live_router
from api.live_things import StoredThings
from api.page import page_router
from api.rejections import rejections_router
from citylab import wiring
from citylab.cli import Data, run, single
from citylab.settings import Settings, endpoints, redacted

GRACE = 2  # s that requests in hand have when the server stops
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt


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


def _keep_memory() -> None:
    """Let glibc keep what an answer took: else the next one gets it from the kernel again, page by page."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, 8 << 20)
            mallopt(_TRIM_THRESHOLD, 32 << 20)


async def serve(settings: Settings) -> None:
    """Serve until told to stop."""
    _keep_memory()
    timeout = settings.statement_seconds
    async with (
        wiring.opened(wiring.store(settings, name="api", statement_timeout=timeout)) as store,
        wiring.opened(wiring.event_log(settings)) as log,
    ):
        live = live_router(log, StoredThings(store))
        app = create_app(
            store,
            wiring.entity_writes(),
            public_url=settings.public_url or None,
            page_limit=settings.page_limit,
            tasking=settings.tasking,
            mqtt_endpoints=endpoints(settings),
            announced=settings.announcements_per_second > 0,
            routers=(
                health_router(
                    store,
                    log,
                    broker=redacted(settings.broker_url),
                    is_open=settings.open,
                    folders=wiring.folders(settings),
                ),
                live,
                ledger_router(store),
                rejections_router(store),
                aggregates_router(store),
                page_router(),
            ),
        )
        config = uvicorn.Config(
            app, host=settings.http_host, port=settings.http_port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=GRACE, server_header=False, lifespan="on", http="httptools", ws="websockets-sansio",
            ws_per_message_deflate=False,  # a compressor for each client would cost more than the bytes
        )  # fmt: skip
        await Server(config, live).run_until_cancelled()


def api(data: Data = None) -> None:
    """Run the open API: SensorThings at /v1.1, live streams at /live, the live page at /.

    Waits for a store or a log that is not there.
    """
    run("api", serve, data=data)


app = single(api)
