"""A city that a bench has for itself."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from citylab import wiring
from citylab.ports import Store
from citylab.settings import Settings
from citylab.up import City


@asynccontextmanager
async def city_apart(settings: Settings, *names: str) -> AsyncIterator[City]:
    """A city for the bench alone: embedded engines in a new folder, or the real ones with names of its own.

    names: the services that it runs.
    """
    folder = Path(tempfile.mkdtemp(prefix="citylab-bench-", dir="/var/tmp"))
    folder.chmod(0o711)
    mark = f"bench-{secrets.token_hex(4)}"
    changes: dict[str, Any] = {"data": folder, "http_port": 0, "mqtt_port": 0}
    if settings.log_url.startswith("kafka:"):
        changes["log_url"] = f"{settings.log_url.rstrip('/')}/{mark}"
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if not settings.store_url.startswith("embedded:"):
            database = mark.replace("-", "_")
            changes["store_url"] = await stack.enter_async_context(_database(settings, database))
        city = City(settings.replaced(**changes), names=names)
        await stack.enter_async_context(city.running())
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        keepers = [tasks.create_task(service.keep_running()) for service in city.services]
        try:
            yield city
        finally:
            for keeper in keepers:
                keeper.cancel()


@asynccontextmanager
async def _database(settings: Settings, name: str) -> AsyncIterator[str]:
    """A database of its own on the server that the settings name; dropped at the end."""
    async with wiring.store(settings, name="bench") as store:
        await _alone(store, f"CREATE DATABASE {name}")
        try:
            yield f"{settings.store_url.rpartition('/')[0]}/{name}"
        finally:
            await _alone(store, f"DROP DATABASE {name} WITH (FORCE)")


async def _alone(store: Store, statement: str) -> None:
    async with store.transaction(read_only=True) as transaction:
        await transaction.execute(statement)


async def value(store: Store, query: str) -> Any:
    """The one value that a query gives."""
    async with store.transaction(read_only=True) as transaction:
        return (await transaction.fetch(query))[0][0]
