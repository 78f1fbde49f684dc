"""What the log's outbound topic holds is published at least once, in order, by one of the bridges."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from citylab.errors import PositionLost, Unavailable
from citylab.model import Batch, Event, NewEvent, Position, Topic
from citylab.outbound import GROUP, LARGEST, outbound
from citylab.ports import START
from ingest.outbound import Outbound

T0 = 1_767_225_600_000_000


class Log:
    """A topic of one partition in memory (`ports.EventLog`)."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.places: dict[str, Position] = {}
        self.more = asyncio.Condition()
        self.begins = 0
        self.away = False

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        assert topic is Topic.OUTBOUND
        self._ask()
        async with self.more:
            for event in events:
                self.events.append(Event(0, len(self.events), *event))
            self.more.notify_all()

    def _ask(self) -> None:
        if self.away:
            raise Unavailable("event log", "it is away", retry_after=0.01)

    async def partitions(self, _: Topic) -> Sequence[int]:
        return [0]

    async def ends(self, _: Topic) -> Mapping[int, int]:
        self._ask()
        return {0: len(self.events)}

    async def tail(self, _: Topic) -> Mapping[int, Position]:
        self._ask()
        return {0: Position(len(self.events), b"")}

    async def read(self, topic: Topic, start: Mapping[int, Position], *, most: int) -> AsyncGenerator[Batch]:
        at = self.begins if start[0] == START else start[0].offset
        if at < self.begins:
            raise PositionLost(topic, 0, "the retention removed it")
        while True:
            async with self.more:
                while not self.away and len(self.events) <= at:
                    await self.more.wait()
            self._ask()
            events = self.events[at : at + most]
            before, at = at, at + len(events)
            yield Batch(topic, 0, Position(before, b""), events, Position(at, b""))

    async def committed(self, group: str, _: Topic) -> Mapping[int, Position]:
        self._ask()
        return {0: self.places[group]} if group in self.places else {}

    async def commit(self, group: str, _: Topic, positions: Mapping[int, Position]) -> None:
        self.places[group] = positions[0]


class Connection:
    """A connection to a broker in memory (`ports.BrokerConnection`), which acknowledges while `acknowledging`."""

    def __init__(self) -> None:
        self.number = 1
        self.up = asyncio.Event()
        self.up.set()
        self.acknowledging = True
        self.heard: list[tuple[str, bytes, int, bool]] = []
        self.told: asyncio.Queue[list[int]] = asyncio.Queue()

    @property
    def connected(self) -> bool:
        return self.up.is_set()

    async def wait_connected(self) -> int:
        await self.up.wait()
        return self.number

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int | None:
        if "#" in topic:
            raise ValueError("it has a wildcard")
        if not self.connected:
            return None
        self.heard.append((topic, payload, qos, retain))
        packet = self.number << 16 | len(self.heard)
        if self.acknowledging and qos:
            self.told.put_nowait([packet])
        return packet

    async def pubacks(self) -> list[int]:
        return await self.told.get()

    def lose(self) -> None:
        self.up.clear()
        self.told.put_nowait([])

    def find(self) -> None:
        self.number += 1
        self.up.set()

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _, _ in self.heard]


@asynccontextmanager
async def publishing(
    log: Log, connection: Connection, claim: str, **options: object
) -> AsyncIterator[Outbound]:
    publisher = Outbound(connection, log, claim=claim, clock=lambda: T0, draw=lambda: 0, **options)
    task = asyncio.create_task(publisher.run())
    await until(lambda: any(event.headers.get("claim") == claim for event in log.events))
    yield publisher
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 -- of many, any
            await asyncio.sleep(0.001)


def messages(*payloads: bytes) -> list[NewEvent]:
    return [outbound("v1.1/Things", payload, now=T0) for payload in payloads]


async def test_messages_are_published_in_order_as_they_say() -> None:
    log, connection = Log(), Connection()
    async with publishing(log, connection, "one"):
        await log.append(Topic.OUTBOUND, [
            outbound("a/commands", b"first", now=T0, gateway="lamp"),
            outbound("a", b"second", now=T0, qos=0, retain=True),
        ])  # fmt: skip
        await until(lambda: len(connection.heard) == 2)
    assert connection.heard == [("a/commands", b"first", 1, False), ("a", b"second", 0, True)]
    assert [event.key for event in log.events] == ["bridges", "lamp", "a"]


async def test_its_place_moves_only_with_pubacks() -> None:
    log, connection = Log(), Connection()
    connection.acknowledging = False
    async with publishing(log, connection, "one") as publisher:
        await log.append(Topic.OUTBOUND, messages(b"1", b"2"))
        await until(lambda: len(connection.heard) == 2)
        connection.told.put_nowait([1 << 16 | 1])
        await until(connection.told.empty)
        assert log.places.get(GROUP, START).offset <= 1
        connection.told.put_nowait([1 << 16 | 2])
        await until(lambda: log.places[GROUP].offset == 3)
        assert publisher.published == 2


async def test_what_has_expired_is_dropped() -> None:
    log, connection = Log(), Connection()
    late = outbound("a", b"late", now=T0 - 5, expires_at=T0)
    timely = outbound("a", b"timely", now=T0 - 5, expires_at=T0 + 1)
    async with publishing(log, connection, "one"):
        await log.append(Topic.OUTBOUND, [late, timely])
        await until(lambda: log.places.get(GROUP, START).offset == 3)
    assert connection.payloads == [b"timely"]


async def test_while_the_broker_is_away_messages_wait_and_what_it_did_not_acknowledge_comes_again() -> None:
    log, connection = Log(), Connection()
    connection.acknowledging = False
    async with publishing(log, connection, "one"):
        await log.append(Topic.OUTBOUND, messages(b"1", b"2"))
        await until(lambda: len(connection.heard) == 2)
        connection.told.put_nowait([1 << 16 | 1])
        connection.lose()
        await until(connection.told.empty)
        assert connection.payloads == [b"1", b"2"]
        connection.acknowledging = True
        connection.find()
        await until(lambda: log.places.get(GROUP, START).offset == 3)
    assert connection.payloads == [b"1", b"2", b"2"]


async def test_a_disconnect_of_before_is_none_of_these_messages() -> None:
    log, connection = Log(), Connection()
    connection.acknowledging = False
    connection.told.put_nowait([])  # nobody had asked
    async with publishing(log, connection, "one"):
        await log.append(Topic.OUTBOUND, messages(b"1"))
        await until(lambda: connection.heard and connection.told.empty())
        connection.told.put_nowait([1 << 16 | 1])
        await until(lambda: log.places.get(GROUP, START).offset == 2)
    assert connection.payloads == [b"1"]


async def test_what_cannot_be_published_stops_nothing() -> None:
    log, connection = Log(), Connection()
    async with publishing(log, connection, "one"):
        await log.append(
            Topic.OUTBOUND, [outbound("#", b"wrong", now=T0), *messages(b"x" * (LARGEST + 1), b"right")]
        )
        await until(lambda: connection.payloads == [b"right"])


async def test_a_bridge_that_comes_goes_on_where_publishing_stands() -> None:
    log, before, after = Log(), Connection(), Connection()
    async with publishing(log, before, "one"):
        await log.append(Topic.OUTBOUND, messages(b"1"))
        await until(lambda: log.places.get(GROUP, START).offset == 2)
    await log.append(Topic.OUTBOUND, messages(b"2", b"3"))
    async with publishing(log, after, "two"):
        await until(lambda: len(after.heard) == 2)
    assert after.payloads == [b"2", b"3"]


async def test_of_several_bridges_the_one_that_came_last_publishes() -> None:
    log, first, second = Log(), Connection(), Connection()
    async with publishing(log, first, "one"), publishing(log, second, "two"):
        await log.append(Topic.OUTBOUND, messages(*[b"%d" % i for i in range(500)]))
        await until(lambda: log.places.get(GROUP, START).offset == 502)
    assert first.heard == []
    assert second.payloads == [b"%d" % i for i in range(500)]


async def test_another_bridge_takes_over_from_one_that_makes_no_progress() -> None:
    log, first, second = Log(), Connection(), Connection()
    async with publishing(log, first, "one", stalled_after=0.02), publishing(log, second, "two"):
        second.acknowledging = False  # it hangs
        await log.append(Topic.OUTBOUND, messages(b"1", b"2"))
        await until(lambda: first.payloads == [b"1", b"2"])
        await until(lambda: log.places.get(GROUP, START).offset >= 4)


async def test_what_the_retention_removed_is_gone_and_the_rest_published() -> None:
    log, connection = Log(), Connection()
    await log.append(Topic.OUTBOUND, messages(b"1", b"2", b"3"))
    log.begins, log.places[GROUP] = 2, Position(1, b"")
    async with publishing(log, connection, "one"):
        await until(lambda: connection.payloads == [b"3"])


async def test_a_log_that_goes_away_is_waited_for() -> None:
    log, connection = Log(), Connection()
    async with publishing(log, connection, "one"):
        log.away = True
        async with log.more:
            log.more.notify_all()
        await asyncio.sleep(0.03)
        log.away = False
        await log.append(Topic.OUTBOUND, messages(b"1"))
        await until(lambda: connection.payloads == [b"1"])
