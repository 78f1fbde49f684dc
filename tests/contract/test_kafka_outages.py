"""What the event log does when Kafka hangs, dies and comes back: on a Kafka of the tests' own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from engines import SCRIPT, missing, url_of

from citylab.adapters.kafka_log import KafkaLog
from citylab.errors import Unavailable
from citylab.model import Batch, NewEvent, Position, Topic
from citylab.ports import START

INSTALLED = Path("~/.cache/citylab/engines").expanduser()
PATIENCE = 2.0  # s that the log waits for Kafka in these tests
SOON = 2.5 * PATIENCE  # s in which an error must be said


class Kafka:
    """One Kafka that can be killed, stopped and started again on the same port."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def start(self) -> None:
        subprocess.run(
            [sys.executable, SCRIPT, "start", "--dir", self.home, "--only", "kafka"],
            check=True,
            timeout=90,
            capture_output=True,
        )

    def signal(self, number: int) -> None:
        os.kill(json.loads((self.home / "started.json").read_text())["kafka"]["pid"], number)

    @property
    def url(self) -> str:
        return (self.home / "engines.env").read_text().strip().partition("=")[2]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory) -> Iterator[Kafka]:
    url_of("LOG")  # says how to install it
    jars = next(INSTALLED.glob("kafka-*"), None)
    if not jars:
        missing("no local Kafka to kill: python3 deploy/engines.py install --only kafka")
    home = tmp_path_factory.mktemp("engines")
    (home / jars.name).symlink_to(jars)
    kafka = Kafka(home)
    kafka.start()
    yield kafka
    subprocess.run(
        [sys.executable, SCRIPT, "stop", "--dir", home], check=True, timeout=90, capture_output=True
    )


@pytest.fixture
async def log(kafka, request) -> AsyncIterator[KafkaLog]:
    async with KafkaLog(f"{kafka.url}/{request.node.name.replace('_', '-')}", patience=PATIENCE) as log:
        yield log


def event(number: int) -> NewEvent:
    return NewEvent("gw", b"%d" % number, {}, number)


@asynccontextmanager
async def unavailable_soon() -> AsyncIterator[None]:
    began = time.monotonic()
    with pytest.raises(Unavailable, match="Kafka at"):
        async with asyncio.timeout(30):
            yield
    assert time.monotonic() - began < SOON


async def is_unavailable(attempt) -> None:
    async with unavailable_soon():
        await attempt


async def again(attempt):
    """What a caller does: try until it is available."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await attempt()
            except Unavailable:
                await asyncio.sleep(0.1)


async def first(log: KafkaLog, start: dict[int, Position]) -> Batch:
    async with aclosing(log.read(Topic.STATUS, start)) as incoming:
        return await anext(incoming)


async def numbers(log: KafkaLog) -> list[int]:
    end = (await log.ends(Topic.STATUS))[0]
    got: list[int] = []
    async with asyncio.timeout(30), aclosing(log.read(Topic.STATUS, {0: START})) as incoming:
        while len(got) < end:
            got += [int(e.value) for e in (await anext(incoming)).events]
    return got


async def test_without_kafka_opening_says_so_at_once():
    async with unavailable_soon(), KafkaLog("kafka://127.0.0.1:1", patience=PATIENCE):
        pytest.fail("there is no Kafka on port 1")


async def test_kafka_dies_and_comes_back(kafka, log):
    await log.append(Topic.STATUS, [event(0)])
    await log.commit("group", Topic.STATUS, {0: START})
    async with aclosing(log.read(Topic.STATUS, {0: START})) as incoming:
        batch = await anext(incoming)

        kafka.signal(signal.SIGKILL)

        async with unavailable_soon():
            await log.append(Topic.STATUS, [event(-1)])
        async with unavailable_soon():
            await anext(incoming)
    await asyncio.gather(
        is_unavailable(log.ends(Topic.STATUS)),
        is_unavailable(log.tail(Topic.STATUS)),
        is_unavailable(log.committed("group", Topic.STATUS)),
        is_unavailable(first(log, {0: batch.after})),
    )

    await asyncio.to_thread(kafka.start)

    await again(lambda: log.append(Topic.STATUS, [event(1)]))
    assert await again(lambda: log.committed("group", Topic.STATUS)) == {0: START}
    following = await again(lambda: first(log, {0: batch.after}))
    assert [int(e.value) for e in following.events][-1] == 1
    assert [number for number in await numbers(log) if number >= 0] == [0, 1]


async def test_kafka_that_hangs_is_unavailable(kafka, log):
    await log.append(Topic.STATUS, [event(0)])
    await log.ends(Topic.STATUS)
    kafka.signal(signal.SIGSTOP)
    try:
        async with unavailable_soon():
            await asyncio.gather(*(log.append(Topic.STATUS, [event(-1)]) for _ in range(20)))
        async with unavailable_soon():
            await log.ends(Topic.STATUS)
    finally:
        kafka.signal(signal.SIGCONT)

    await again(lambda: log.append(Topic.STATUS, [event(1)]))

    assert [number for number in await numbers(log) if number >= 0] == [0, 1]


async def test_a_restart_within_the_patience_is_only_a_delay(kafka):
    async with KafkaLog(f"{kafka.url}/short-restart", patience=60) as log:
        async with aclosing(log.read(Topic.STATUS, {0: START})) as incoming:
            await log.append(Topic.STATUS, [event(0)])
            batch = await anext(incoming)
            kafka.signal(signal.SIGKILL)
            appending = [
                asyncio.create_task(log.append(Topic.STATUS, [event(number)])) for number in range(1, 50)
            ]
            await asyncio.to_thread(kafka.start)
            await asyncio.gather(*appending)
            got = [int(e.value) for e in batch.events]
            async with asyncio.timeout(60):
                while len(got) < 50:
                    following = await anext(incoming)
                    assert following.before == batch.after
                    batch = following
                    got += [int(e.value) for e in batch.events]
        assert got == list(range(50)), "each once, in order"
        assert await numbers(log) == got
