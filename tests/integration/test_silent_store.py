"""A store whose line has died: the server is gone from the client's sight, and nothing says so."""

import asyncio
from urllib.parse import urlsplit, urlunsplit

import pytest

from citylab.adapters.store import PostgresStore
from citylab.errors import Unavailable
from citylab.model import Topic
from simulators.torture_lines import Line


@pytest.fixture
async def line(store_url):
    parts = urlsplit(store_url)
    async with Line(parts.hostname or "", parts.port or 5432).open() as line:
        yield line, urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{line.port}")))


async def test_who_waits_for_an_answer_gives_the_line_up_and_goes_on(line):
    bad, url = line
    async with PostgresStore(url, patience=0.5) as store, asyncio.TaskGroup() as tasks:
        async with store.transaction() as transaction:
            await transaction.execute("SELECT 1")
        mute = tasks.create_task(bad.half_close(3_600))
        await asyncio.sleep(0)  # it has begun

        with pytest.raises(Unavailable):
            await asyncio.wait_for(store.positions(Topic.PACKS), 10)

        assert await store.positions(Topic.PACKS) == {}
        mute.cancel()


async def test_who_waits_for_a_notification_notices_too(line):
    bad, url = line
    async with PostgresStore(url, patience=0.5) as store, asyncio.TaskGroup() as tasks:
        notifications = store.notifications("citylab_updates", poll=0.2)
        await anext(notifications)
        mute = tasks.create_task(bad.half_close(3_600))

        async def listen() -> None:
            async for _ in notifications:
                pass

        with pytest.raises(Unavailable):
            await asyncio.wait_for(listen(), 10)
        mute.cancel()


async def test_a_statement_within_the_patience_is_left_alone(store_url):
    async with PostgresStore(store_url, patience=5) as store, store.transaction() as transaction:
        assert await transaction.fetch("SELECT 1 FROM pg_sleep(0.6)") == [(1,)]
