"""Chromium, and cities for it to look at. Whatever the page asks of another server, or says in its console, fails a test."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from browser.small_city import SmallCity
from city import City, running_city
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect
from stores import Databases, reachable_folder

from dashboards.build import build

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_WEBGL = (
    "--ignore-gpu-blocklist",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
_NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")

expect.set_options(timeout=15_000)  # ms; a machine that runs all tests is slow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where Chromium is."""
    for name in _CHROMIUM:
        if path := shutil.which(name):
            return path
    reason = "Chromium is not installed, so nobody looks at the live page (Debian: apt-get install chromium)"
    if os.environ.get("CITYLAB_REQUIRE_ENGINES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def built_page() -> None:
    """The live page as the sources say it."""
    build()


class Eyes:
    """Opens pages and remembers what went wrong on them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.problems: list[str] = []
        self.expected: list[str] = []  # parts of problems that a test provokes

    async def look(self, url: str, *, width: int = 1440, height: int = 900, **options: Any) -> Page:
        """Open a page in a window of this size; options are those of a browser context."""
        context: BrowserContext = await self._browser.new_context(
            viewport={"width": width, "height": height}, timezone_id="Europe/Madrid", locale="en-GB",
            reduced_motion="reduce", **options,
        )  # fmt: skip
        page = await context.new_page()
        page.set_default_timeout(10_000)
        origin = url.split("/?", 1)[0].rstrip("/")
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on(
            "console",
            lambda said: (
                self.problems.append(f"{said.type}: {said.text} {said.location.get('url', '')}")
                if said.type in {"error", "warning"} and "GPU stall" not in said.text
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                self.problems.append(f"asked elsewhere: {request.url}")
                if not request.url.startswith((origin, "data:", "blob:"))
                else None
            ),
        )
        await page.goto(url)
        return page

    def unexpected(self) -> list[str]:
        return [one for one in self.problems if not any(part in one for part in self.expected)]


@asynccontextmanager
async def _eyes(chromium: str, flags: tuple[str, ...]) -> AsyncIterator[Eyes]:
    async with async_playwright() as playwright:
        # As root, which containers and CI are, Chromium has no sandbox of its own.
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", *flags]
        )
        eyes = Eyes(browser)
        yield eyes
        await browser.close()
    assert not eyes.unexpected()


@pytest.fixture
async def eyes(chromium: str, built_page: None, serve: Any) -> AsyncIterator[Eyes]:  # noqa: ARG001 cities outlive pages
    async with _eyes(chromium, _WEBGL) as eyes:
        yield eyes


@pytest.fixture
async def eyes_without_webgl(chromium: str, built_page: None, serve: Any) -> AsyncIterator[Eyes]:  # noqa: ARG001
    async with _eyes(chromium, _NO_WEBGL) as eyes:
        yield eyes


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, city: SmallCity) -> None:
        super().__init__(config)
        self._city = city

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._city.live.close()
        await super().shutdown(sockets)


class Served:
    """A small city on a port of its own, which can go away and come back on it."""

    def __init__(self, city: SmallCity) -> None:
        self.city = city
        self.port = 0
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        config = uvicorn.Config(self.city.app, port=self.port, log_level="warning", lifespan="on")
        self._server = _Server(config, self.city)
        self._serving = asyncio.create_task(self._server.serve())
        async with asyncio.timeout(10):
            while not self._server.started:  # noqa: ASYNC110 uvicorn tells nobody
                await asyncio.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server
        assert self._serving
        self._server.should_exit = True
        async with asyncio.timeout(10):
            await self._serving


@pytest.fixture(scope="module")
def city(embedded_databases: Databases, built_page: None) -> Iterator[City]:  # noqa: ARG001
    """A whole city, on embedded engines: the page sees nothing of them but the API."""
    with (
        reachable_folder() as folder,
        running_city("embedded", folder, f"sqlite:{folder / 'log'}", embedded_databases.make()) as city,
    ):
        yield city


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """Serve a small city for the rest of the test."""
    async with AsyncExitStack() as stack:

        async def _serve(city: SmallCity) -> Served:
            served = Served(city)
            await served.start()
            stack.push_async_callback(served.stop)
            return served

        yield _serve
