"""A city that a bench has for itself."""

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil

from citylab import wiring
from citylab.errors import CitylabError
from citylab.ports import Store
from citylab.settings import Settings
from citylab.up import City


@asynccontextmanager
async def city_apart(settings: Settings, *names: str, kept: str | None = None) -> AsyncIterator[City]:
    """A city for the bench alone: embedded engines in a new folder, or the real ones with names of its own.

    names: the services that it runs. kept: what its folder, in that of the settings' data, or its database is called if
    it is to stay and serve again.
    """
    async with prepared_city(settings, *names, kept=kept) as city, asyncio.TaskGroup() as tasks:
        keepers = [tasks.create_task(service.keep_running()) for service in city.services]
        try:
            yield city
        finally:
            for keeper in keepers:
                keeper.cancel()


@asynccontextmanager
async def new_folder() -> AsyncIterator[Path]:
    """A folder that the account of an embedded store can reach; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="citylab-bench-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def prepared_city(
    settings: Settings, *names: str, folder: Path | None = None, kept: str | None = None
) -> AsyncIterator[City]:
    """As `city_apart`, its services not started yet. folder: where it lives, else in a new one."""
    mark = kept or f"bench-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        if kept:
            folder = settings.data / kept
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711)
        folder = folder or await stack.enter_async_context(new_folder())
        changes: dict[str, Any] = {"data": folder, "http_port": 0, "mqtt_port": 0}
        if settings.log_url.startswith("kafka:"):
            changes["log_url"] = f"{settings.log_url.rstrip('/')}/{mark}"
            if kept is None:
                log = settings.replaced(log_url=changes["log_url"])
                stack.push_async_callback(wiring.delete_topics, log)
        if not settings.store_url.startswith("embedded:"):
            database = mark.replace("-", "_")
            changes["store_url"] = await stack.enter_async_context(
                _database(settings, database, keep=kept is not None)
            )
        city = City(settings.replaced(**changes), names=names)
        yield await stack.enter_async_context(city.running())


@asynccontextmanager
async def _database(settings: Settings, name: str, *, keep: bool) -> AsyncIterator[str]:
    """A database of its own on the server that the settings name; dropped at the end unless it is kept."""
    async with wiring.store(settings, name="bench") as store:
        there = await value(store, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'")
        if not (keep and there):
            await _alone(store, f"CREATE DATABASE {name}")
    try:
        yield urlunsplit(urlsplit(settings.store_url)._replace(path=f"/{name}"))
    finally:
        if not keep:
            async with wiring.store(settings, name="bench") as store:  # the server may be another by now
                await _alone(store, f"DROP DATABASE {name} WITH (FORCE)")


async def _alone(store: Store, statement: str) -> None:
    async with store.transaction(read_only=True) as transaction:
        await transaction.execute(statement)


async def value(store: Store, query: str) -> Any:
    """The one value that a query gives."""
    async with store.transaction(read_only=True) as transaction:
        return (await transaction.fetch(query))[0][0]


async def until(store: Store, query: str, wanted: int, *, what: str, within: float = 600.0) -> None:
    """Wait until a query gives at least so many. what: they are, for who waits in vain."""
    deadline = time.monotonic() + within
    while (found := await value(store, query)) < wanted:
        if time.monotonic() > deadline:
            raise CitylabError(f"after {within:.0f} s there are {found:,} {what} instead of {wanted:,}")
        await asyncio.sleep(0.02)


class Watch:
    """CPU time by process: the city's services and engines, embedded or found by the port that they listen on."""

    def __init__(self, city: City) -> None:
        self.processes: dict[str, psutil.Process] = {}
        for service in city.services:
            if service.child:
                self.processes[service.name] = psutil.Process(service.child.pid)
        for name, pid in city.engines.items():
            self.processes[name] = psutil.Process(pid)
        settings = city.settings
        for name, url in (
            ("broker", settings.broker_url),
            ("log", settings.log_url),
            ("store", settings.store_url),
        ):
            found = None if name in self.processes else _listening_on(urlsplit(url).port)
            if found:
                self.processes[name] = psutil.Process(found)

    def seconds(self) -> dict[str, float]:
        """User and system time so far, with that of children, alive and gone."""
        found = {}
        for name, process in self.processes.items():
            total = 0.0
            for one in (process, *process.children(recursive=True)):
                try:
                    spent = one.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                total += spent.user + spent.system + spent.children_user + spent.children_system
            found[name] = total
        return found


def _listening_on(port: int | None) -> int | None:
    for connection in psutil.net_connections(kind="tcp") if port else ():
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return connection.pid
    return None
