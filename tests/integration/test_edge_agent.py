"""The agent against a broker and a platform that the test plays: nothing is lost, whatever goes away."""

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from citylab.adapters.mqtt import MqttConnection
from citylab.adapters.rumqttd import EmbeddedBroker
from citylab.errors import ConfigurationError
from citylab.model import SECOND, Message, Reading
from citylab.senml import decode, identity
from citylab.times import now
from edge.agent import Agent, AgentSettings
from edge.feed import Packing
from edge.outbox import MOST_BYTES, Outbox, Priority

PATIENCE = 30.0  # s until a test gives up on something that should happen soon
T0 = 1_767_225_600 * SECOND
GATEWAY = "lamp-7"
ROOT = f"citylab/v1/gateways/{GATEWAY}"
THINGS = [{"name": "lamp", "Datastreams": [{"name": "NO2", "properties": {"streamName": "lamp-7/no2"}}]}]


class Numbers:
    """A driver of the readings 0, 1, 2, ..., whose place is the next number."""

    def __init__(self, count: int, *, step: int = 10, start: int = T0, pause: float = 0.0) -> None:
        self.things: Sequence[dict[str, Any]] = THINGS
        self.given = 0
        self._count, self._step, self._start, self._pause = count, step, start, pause

    async def readings(self, position: str | None) -> AsyncIterator[tuple[list[Reading], str | None]]:
        for first in range(int(position or 0), self._count, self._step):
            numbers = range(first, min(first + self._step, self._count))
            self.given = numbers.stop
            yield (
                [Reading("lamp-7/no2", self._start + n * SECOND, float(n)) for n in numbers],
                str(numbers.stop),
            )
            await asyncio.sleep(self._pause)


class Platform:
    """The bridge's part: remembers what came, and acknowledges while `answering`."""

    def __init__(self, url: str) -> None:
        self.connection = MqttConnection(
            url,
            client_id="bridge",
            keep_alive=10,
            subscriptions=[
                ("$share/citylab/citylab/v1/gateways/+/packs/numbered", 1),
                ("citylab/v1/gateways/+/status", 1),
                ("citylab/v1/gateways/+/descriptor", 1),
            ],
            draw=lambda: 0.0,
        )
        self.answering = True
        self.refuse: Callable[[int], str | None] = lambda _: None
        self.packs: dict[tuple[int, int], list[bytes]] = {}  # all that came, by epoch and seq
        self.others: dict[str, list[Any]] = {"status": [], "descriptor": []}
        self._untold: list[tuple[int, int]] = []
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.connection.__aenter__()
        self._tasks = [asyncio.create_task(work()) for work in (self._receive, self._answer, self._drain)]
        await asyncio.wait_for(self.connection.wait_connected(), PATIENCE)
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.connection.__aexit__(*error)

    async def _receive(self) -> None:
        while True:
            for message in await self.connection.messages():
                self._take(message)
                message.ack()
            self._changed.set()

    def _take(self, message: Message) -> None:
        kind = message.topic.rpartition("/")[2]
        if kind == "numbered":
            number = identity(message.payload)
            self.packs.setdefault(number, []).append(message.payload)
            self._untold.append(number)
        else:
            self.others[kind].append(msgspec.json.decode(message.payload))

    async def _answer(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            if self.answering and self.connection.connected and self._untold:
                untold, self._untold = self._untold, []
                for epoch in {epoch for epoch, _ in untold}:
                    self.tell(epoch, [seq for other, seq in untold if other == epoch])

    async def _drain(self) -> None:
        while True:
            if not await self.connection.pubacks():
                await self.connection.wait_connected()

    def tell(self, epoch: int, seqs: Sequence[int], **more: Any) -> None:
        refused = {seq: reason for seq in seqs if (reason := self.refuse(seq))}
        appended = [(seq, seq) for seq in seqs if seq not in refused]
        body = {"epoch": epoch, "appended": appended, "refused": refused} | more
        self.connection.publish(f"{ROOT}/acks", msgspec.json.encode(body))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):  # what is waited for may be the agent's
                    await asyncio.wait_for(self._changed.wait(), 0.05)

    def values(self) -> set[float | None]:
        return {record.v for versions in self.packs.values() for record in decode(versions[0])}


@pytest.fixture
async def broker(tmp_path) -> AsyncIterator[EmbeddedBroker]:
    async with EmbeddedBroker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
async def platform(broker) -> AsyncIterator[Platform]:
    async with Platform(broker.url) as platform:
        yield platform


def agent(broker: EmbeddedBroker, driver: Any, folder: Path, **settings: Any) -> Agent:
    packing = {
        name: settings.pop(name)
        for name in ("linger", "most_records", "most_pending", "priority")
        if name in settings
    }
    return Agent(
        GATEWAY,
        driver,
        Outbox(folder / "outbox", most_bytes=settings.pop("most_bytes", MOST_BYTES)),
        partial(MqttConnection, broker.url, draw=lambda: 0.0),
        settings=AgentSettings(
            packing=Packing(**({"linger": 0.02, "most_records": 10} | packing)), **settings
        ),
        draw=lambda: 0.0,
    )


@contextlib.asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(agent.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_every_reading_arrives_and_the_run_ends_when_all_are_acknowledged(broker, platform, tmp_path):
    a = agent(broker, Numbers(5_000, step=100), tmp_path)

    await asyncio.wait_for(a.run(), PATIENCE)

    assert platform.values() == {float(n) for n in range(5_000)}
    assert sorted(platform.packs) == [(a.outbox.epoch, seq) for seq in range(1, a.outbox.last + 1)]
    assert not a.outbox.pending


async def test_a_second_run_goes_on_behind_the_first(broker, platform, tmp_path):
    await asyncio.wait_for(agent(broker, Numbers(30), tmp_path).run(), PATIENCE)
    driver = Numbers(50)

    await asyncio.wait_for(agent(broker, driver, tmp_path).run(), PATIENCE)

    records = [record.v for versions in platform.packs.values() for record in decode(versions[0])]
    assert sorted(records) == [float(n) for n in range(50)]


async def test_descriptor_and_status_are_retained_and_whole(broker, platform, tmp_path):
    a = agent(broker, Numbers(10), tmp_path)
    platform.answering = False
    async with running(a):
        await platform.until(lambda: len(platform.packs) == 1)
        async with MqttConnection(broker.url, client_id="late", subscriptions=[(f"{ROOT}/+", 1)]) as late:
            found = {}
            async with asyncio.timeout(PATIENCE):
                while len(found) < 2:
                    found |= {m.topic.rpartition("/")[2]: m for m in await late.messages() if m.retain}
        assert msgspec.json.decode(found["descriptor"].payload) == THINGS
        status = msgspec.json.decode(found["status"].payload)
        assert status["state"] == "online"
        assert status["outbox"]["epoch"] == a.outbox.epoch
        assert status["unclean_stops"] == 0

    await platform.until(lambda: platform.others["status"][-1]["state"] == "offline")
    outbox = platform.others["status"][-1]["outbox"]
    assert (outbox["last"], outbox["pending"], outbox["gone"], outbox["first_unacked"]) == (
        1,
        [[1, 1]],
        [],
        1,
    )


async def test_a_descriptor_that_changes_is_published_again(broker, platform, tmp_path):
    driver = Numbers(1)
    platform.answering = False
    async with running(agent(broker, driver, tmp_path, status_every=0.05)):
        await platform.until(lambda: platform.others["descriptor"] == [THINGS])
        driver.things = [*THINGS, {"name": "another lamp"}]
        await platform.until(lambda: len(platform.others["descriptor"]) == 2)

    assert platform.others["descriptor"][1] == driver.things


async def test_without_a_platform_few_packs_are_sent_and_with_it_all_arrive(broker, platform, tmp_path):
    """A broker acknowledges whatever happens behind it; the window is what holds the agent back."""
    platform.answering = False
    a = agent(broker, Numbers(2_000, step=100), tmp_path, ack_timeout=0.1, longest_ack_timeout=0.2)
    async with running(a) as task:
        await platform.until(lambda: sum(map(len, platform.packs.values())) >= 20)
        assert len(platform.packs) == 8  # the first window, again and again
        assert len(a.outbox.pending) == a.outbox.last

        platform.answering = True
        await asyncio.wait_for(task, PATIENCE)

    assert platform.values() == {float(n) for n in range(2_000)}
    assert all(len(set(versions)) == 1 for versions in platform.packs.values())


async def test_a_replay_waits_for_acknowledgements(broker, platform, tmp_path):
    platform.answering = False
    driver = Numbers(10_000, step=10)
    async with running(agent(broker, driver, tmp_path, most_pending=50)) as task:
        await platform.until(lambda: driver.given >= 450)
        await asyncio.sleep(0.2)  # in which it would have read on
        assert driver.given <= 520

        platform.answering = True
        await asyncio.wait_for(task, PATIENCE)

    assert platform.values() == {float(n) for n in range(10_000)}


async def test_sensors_are_read_on_while_the_platform_is_away(broker, platform, tmp_path):
    platform.answering = False
    driver = Numbers(3_000, start=now())
    a = agent(broker, driver, tmp_path)
    async with running(a):
        await platform.until(lambda: len(a.outbox.pending) == 300)


async def test_live_packs_overtake_a_backlog(broker, platform, tmp_path):
    platform.answering = False
    async with running(a := agent(broker, Numbers(2_000, step=100), tmp_path)):
        await platform.until(lambda: len(platform.packs) == 8 and a.outbox.last == 200)
    backlog = set(platform.packs)

    live = Numbers(2_010, start=now() - 2_000 * SECOND)
    async with running(a := agent(broker, live, tmp_path, ack_timeout=0.2)):
        await platform.until(lambda: (a.outbox.epoch, 201) in platform.packs)

    assert len(set(platform.packs) - backlog) < 20  # of the 192 that had not been sent


@pytest.mark.parametrize("priority", [Priority.LIVE, Priority.BACKLOG])
async def test_the_priority_that_was_asked_for_is_that_of_all_readings(broker, platform, tmp_path, priority):
    platform.answering = False
    readings = Numbers(1_000, start=now() - 500 * SECOND, step=100)
    async with running(a := agent(broker, readings, tmp_path, priority=priority)):
        await platform.until(lambda: a.outbox.last == 100)
        stored = await a.outbox.run(lambda db: db.execute("SELECT DISTINCT priority FROM numbers").fetchall())
    assert stored == [(priority,)]


async def test_a_day_without_a_platform_keeps_the_newest_and_tells_what_it_gave_up(
    broker, platform, tmp_path
):
    """A reading a second for 24 h, on a disk's share for a fifth of it; what is live goes first when it is back."""
    day, live, limit = 86_400, 900, 300_000
    await asyncio.wait_for(platform.connection.wait_connected(), PATIENCE)
    broker.process.kill()
    broker.process.wait()
    begin = now() - day * SECOND
    a = agent(
        broker,
        Numbers(day, start=begin, step=600),
        tmp_path,
        most_records=60,
        most_bytes=limit,
        status_every=0.1,
    )
    async with running(a) as task:
        await platform.until(lambda: a.outbox.last >= day // 60 and not a._feed._committing)
        assert a.outbox.stored <= limit
        assert sum(file.stat().st_size for file in (tmp_path / "outbox").iterdir()) < limit + (5 << 20)
        given_up = set(a.outbox.gone)
        assert 500 < len(given_up) < 1_440
        assert given_up | set(a.outbox.pending) == set(range(1, a.outbox.last + 1))

        async with EmbeddedBroker(tmp_path / "again", port=broker.port):
            await platform.until(lambda: bool(platform.packs))
            await asyncio.wait_for(task, PATIENCE)
            await platform.until(lambda: platform.others["status"][-1]["state"] == "offline")

    told = platform.others["status"][-1]["outbox"]
    assert {n for first, last in told["gone"] for n in range(first, last + 1)} == given_up
    assert {seq for _, seq in platform.packs} == set(range(1, a.outbox.last + 1)) - given_up
    assert set(map(float, range(day - live + 60, day))) <= platform.values(), "what is live was given up last"
    first = decode(next(iter(platform.packs.values()))[0])
    assert min(record.v or 0 for record in first) >= day - live - 120, "and sent first"


async def test_what_the_platform_misses_is_sent_again_and_what_is_not_kept_is_told(
    broker, platform, tmp_path
):
    a = agent(broker, Numbers(100, pause=0.001), tmp_path, most_bytes=1_100)
    driver_ends = asyncio.Event()
    readings = a.driver.readings

    async def and_stays(position: str | None) -> AsyncIterator[tuple[list[Reading], str | None]]:
        async for some in readings(position):
            yield some
        await driver_ends.wait()

    a.driver.readings = and_stays  # type: ignore[method-assign] -- a driver that never ends, as sensors are
    async with running(a):
        await platform.until(lambda: len(platform.packs) == 10 and not a.outbox.pending)
        kept = set(await a.outbox.load(range(1, 11)))
        assert 0 < len(kept) < 9
        platform.packs.clear()
        for epoch, ranges in ((a.outbox.epoch + 1, [[1, 10]]), (a.outbox.epoch, [[1, 9], [9, 2**40]])):
            body = msgspec.json.encode({"epoch": epoch, "ranges": ranges})
            platform.connection.publish(f"{ROOT}/resend", body)
        await platform.until(lambda: {seq for _, seq in platform.packs} == kept and not a.outbox.pending)
        await platform.until(lambda: bool(platform.others["status"][-1]["outbox"]["gone"]))
    told = platform.others["status"][-1]["outbox"]["gone"]
    assert {n for first, last in told for n in range(first, last + 1)} == set(range(1, 11)) - kept


async def test_a_crash_of_the_broker_loses_nothing(broker, platform, tmp_path):
    driver, current = Numbers(3_000, pause=0.002), broker
    a = agent(broker, driver, tmp_path, ack_timeout=0.5)
    async with contextlib.AsyncExitStack() as brokers, running(a) as task:
        for at in (500, 1_500):
            await platform.until(lambda at=at: driver.given > at)
            current.process.kill()
            await asyncio.wait_for(platform.connection.wait_disconnected(), PATIENCE)
            current.process.wait()
            again = EmbeddedBroker(tmp_path / f"broker {at}", port=broker.port)
            current = await brokers.enter_async_context(again)
        await asyncio.wait_for(task, PATIENCE)

    assert platform.values() == {float(n) for n in range(3_000)}


PROGRAM = """
import asyncio, sys
from functools import partial
from pathlib import Path
from citylab.adapters.mqtt import MqttConnection
from citylab.model import SECOND, Reading
from edge.agent import Agent, AgentSettings
from edge.feed import Packing
from edge.outbox import Outbox

class Numbers:
    things = [{"name": "lamp"}]

    async def readings(self, position):  # noqa: ARG002 -- the port's
        for first in range(int(position or 0), 3_000, 10):
            yield [Reading("lamp-7/no2", (1_767_225_600 + n) * SECOND, float(n)) for n in range(first, first + 10)], str(first + 10)
            await asyncio.sleep(0.002)

async def main(url, folder):
    settings = AgentSettings(packing=Packing(linger=0.02, most_records=10), ack_timeout=0.5, flush_every=0.1)
    connect = partial(MqttConnection, url, draw=lambda: 0.0)
    await Agent("lamp-7", Numbers(), Outbox(Path(folder)), connect, settings=settings).run()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killing_the_agent_loses_nothing_and_a_number_never_carries_other_bytes(
    broker, platform, tmp_path
):
    folder, chance, kills = tmp_path / "outbox", random.Random(7), 0
    while True:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, broker.url, str(folder))
        before = len(platform.packs)
        goal = before + chance.randint(1, 60)
        ended = asyncio.ensure_future(process.wait())
        await platform.until(lambda goal=goal, ended=ended: len(platform.packs) >= goal or ended.done())
        if ended.done():
            assert ended.result() == 0
            break
        process.send_signal(signal.SIGKILL)
        await ended
        kills += 1

    assert kills >= 3
    assert platform.values() == {float(n) for n in range(3_000)}
    assert len({epoch for epoch, _ in platform.packs}) == 1
    assert all(len(set(versions)) == 1 for versions in platform.packs.values())
    assert platform.others["status"][-1]["unclean_stops"] == kills
    await platform.until(lambda: platform.others["status"][-1]["state"] == "offline")
    assert {"state": "offline", "agent": "0.1.0"} in platform.others[
        "status"
    ]  # the last will of one that was killed


async def test_a_refused_pack_leaves_the_queue(broker, platform, tmp_path):
    platform.refuse = lambda seq: "malformed" if seq % 3 == 0 else None
    a = agent(broker, Numbers(100), tmp_path)

    await asyncio.wait_for(a.run(), PATIENCE)

    assert not a.outbox.pending
    assert all(len(versions) == 1 for versions in platform.packs.values())


async def test_an_acknowledgement_for_another_epoch_frees_nothing(broker, platform, tmp_path):
    platform.answering = False
    a = agent(broker, Numbers(10), tmp_path)
    async with running(a) as task:
        await platform.until(lambda: len(platform.packs) == 1)
        platform.tell(a.outbox.epoch + 1, [1])
        platform.connection.publish(f"{ROOT}/acks", b"not JSON")
        platform.tell(a.outbox.epoch, [99])
        await asyncio.sleep(0.2)  # in which it would have been freed
        assert list(a.outbox.pending) == [1]

        platform.tell(a.outbox.epoch, [1])
        await asyncio.wait_for(task, PATIENCE)


async def test_before_slow_down_until_nothing_is_sent(broker, platform, tmp_path):
    a = agent(broker, Numbers(2_000, pause=0.001), tmp_path)
    async with running(a) as task:
        await platform.until(lambda: len(platform.packs) > 10)
        platform.tell(a.outbox.epoch, [], slow_down_until=now() / SECOND + 1.5)
        await platform.until(lambda: a.throttled > 0)
        await asyncio.sleep(0.3)  # for what was on the way
        before = len(platform.packs)
        await asyncio.sleep(0.7)
        assert len(platform.packs) == before

        await asyncio.wait_for(task, PATIENCE)

    assert a.throttled == pytest.approx(1.5, abs=0.2)
    assert platform.values() == {float(n) for n in range(2_000)}


async def test_a_bridge_that_is_back_is_not_kept_waiting(broker, platform, tmp_path):
    platform.answering = False
    a = agent(broker, Numbers(10), tmp_path, ack_timeout=60.0)
    async with running(a) as task:
        await platform.until(lambda: len(platform.packs) == 1)
        await asyncio.sleep(0.1)  # for the PUBACK
        platform.packs.clear()
        platform._untold.clear()
        platform.answering = True

        platform.connection.publish("citylab/v1/platform", b'{"since":1767225600.5}', retain=True)

        await asyncio.wait_for(task, PATIENCE)
    assert len(platform.packs) == 1


async def test_a_broker_that_sends_no_puback_is_left_and_tried_again(tmp_path):
    connects = 0

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connects
        connects += 1
        await reader.read(1_000)  # CONNECT
        writer.write(bytes.fromhex("20020000"))
        subscribe = await reader.read(1_000)
        writer.write(bytes.fromhex("9004") + subscribe[2:4] + b"\x01\x01")
        while await reader.read(10_000):
            pass
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    connect = partial(
        MqttConnection, f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", draw=lambda: 0.0
    )
    settings = AgentSettings(puback_within=0.2)
    a = Agent(GATEWAY, Numbers(10), Outbox(tmp_path), connect, settings=settings)
    async with server, running(a):
        async with asyncio.timeout(PATIENCE):
            while connects < 2:  # noqa: ASYNC110 -- the other end counts
                await asyncio.sleep(0.02)


async def test_readings_that_no_pack_can_hold_are_left_out(broker, platform, tmp_path):
    class Strange(Numbers):
        async def readings(self, position):  # noqa: ARG002 -- the port's
            yield (
                [Reading("lamp 7", T0, 1.0), Reading("lamp-7/no2", 5, 2.0), Reading("lamp-7/no2", T0, 3.0)],
                None,
            )
            yield [Reading("lamp-7/no2", T0 + SECOND, "x" * 300_000)], None

    await asyncio.wait_for(agent(broker, Strange(0), tmp_path).run(), PATIENCE)

    assert platform.values() == {3.0}


async def test_a_driver_that_fails_ends_the_run_and_what_it_gave_before_is_kept(broker, platform, tmp_path):
    class Broken(Numbers):
        async def readings(self, position):  # noqa: ARG002 -- the port's
            yield [Reading("lamp-7/no2", T0, 1.0)], "1"
            await platform.until(lambda: len(platform.packs) == 1)
            raise OSError("the sensor is unplugged")

    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(agent(broker, Broken(0), tmp_path).run(), PATIENCE)

    assert raised.group_contains(OSError, match="unplugged")
    async with Outbox(tmp_path / "outbox") as outbox:
        assert (outbox.last, outbox.position, outbox.unclean_stops) == (1, "1", 0)


def test_what_cannot_be_sent_is_said_before_anything_starts(tmp_path):
    connect = partial(MqttConnection, "mqtt://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="is no gateway's name"):
        Agent("lamp 7", Numbers(1), Outbox(tmp_path), connect)

    large = Numbers(1)
    large.things = [{"name": "x" * 1_000}] * 600
    with pytest.raises(ConfigurationError, match="let several gateways share its Things"):
        Agent(GATEWAY, large, Outbox(tmp_path), connect)
    assert not list(tmp_path.iterdir())
