"""The bridge's promise: nothing is acknowledged, to the broker or to a gateway, that the log has not."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self

import cbor2
import msgspec
import pytest

from citylab.errors import Unavailable
from citylab.model import Batch, Message, NewEvent, Position, Topic
from ingest.bridge import PLATFORM, ROOT, Bridge, Limits, unnumbered_subscriptions
from ingest.quotas import PACK_COSTS, Quota

T0 = 1_767_225_600_000_000
PACK = b'[{"epoch":7,"seq":%d,"n":"a","v":1}]'


class Broker:
    """One connection to a broker, in memory (`ports.BrokerConnection`)."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.waiting: asyncio.Queue[Message] = asyncio.Queue()
        self.published: list[tuple[str, bytes, bool]] = []
        self.acked: list[str] = []
        self.up = asyncio.Event()
        self.down = asyncio.Event()
        self.connections = 0
        self.connect()

    def connect(self) -> None:
        self.connections += 1
        self.down.clear()
        self.up.set()

    def disconnect(self) -> None:
        self.up.clear()
        self.down.set()

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        name = f"{topic.removeprefix(ROOT)} {len(self.acked) + self.waiting.qsize()}"

        def ack() -> None:
            self.acked.append(name)
            self.story.append(f"puback {topic.removeprefix(ROOT)}")

        self.waiting.put_nowait(Message(topic, payload, 1, retain, T0, ack))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    @property
    def connected(self) -> bool:
        return self.up.is_set()

    async def wait_connected(self) -> int:
        await self.up.wait()
        return self.connections

    async def wait_disconnected(self) -> str:
        await self.down.wait()
        return "gone"

    def reconnect(self, why: str) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int | None:
        assert qos == 1
        if not self.up.is_set():
            return None
        self.published.append((topic, payload, retain))
        self.story.append(f"publish {topic.removeprefix(ROOT)}")
        return len(self.published)

    async def pubacks(self) -> list[int]:
        await self.down.wait()
        return []

    async def messages(self, *, most: int = 1_000, linger: float = 0.0) -> list[Message]:
        del linger
        found = [await self.waiting.get()]
        while not self.waiting.empty() and len(found) < most:
            found.append(self.waiting.get_nowait())
        return found

    def acks(self) -> list[tuple[str, dict]]:
        return [
            (topic.removeprefix(ROOT).removesuffix("/acks"), msgspec.json.decode(payload))
            for topic, payload, _ in self.published
            if topic.endswith("/acks")
        ]


class Log:
    """An event log in memory (`ports.EventLog`), as far as a bridge uses it."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.events: dict[Topic, list[NewEvent]] = {topic: [] for topic in Topic}
        self.open = asyncio.Event()
        self.open.set()
        self.failures = 0

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        await self.open.wait()
        if self.failures and topic != Topic.OUTBOUND:
            self.failures -= 1
            raise Unavailable("event log", "it is full")
        assert all(len(event.value) <= 4 << 20 for event in events)
        self.events[topic] += events
        if topic not in {Topic.STATUS, Topic.OUTBOUND}:
            self.story.append(f"append {topic}")

    async def tail(self, topic: Topic) -> dict[int, Position]:
        return {0: Position(len(self.events[topic]), b"")}

    async def read(self, *_: object, **options: int) -> AsyncGenerator[Batch]:
        del options
        await asyncio.Event().wait()  # nothing is to be published here
        yield Batch(Topic.OUTBOUND, 0, Position(0, b""), [], Position(0, b""))

    def of(self, topic: Topic) -> list[NewEvent]:
        """Without what the bridge says of itself."""
        return [event for event in self.events[topic] if not event.key.startswith(PLATFORM)]


class House:
    """A bridge between two connections and a log."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.story: list[str] = []
        self.settlings = 0
        self.numbered, self.unnumbered, self.log = Broker(self.story), Broker(self.story), Log(self.story)
        self.bridge = Bridge(
            self.numbered, self.unnumbered, self.log, name="north", limits=limits, clock=lambda: T0
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        task = asyncio.create_task(self.bridge.run())
        try:
            yield self
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 -- a condition over what the bridge did, not an event of its own
                await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """All that was delivered before has its PUBACK, and its gateway was told."""
        self.settlings += 1
        name = f"settled-{self.settlings}"
        self.numbered.deliver(f"{ROOT}{name}/packs/numbered", PACK % 1)
        self.unnumbered.deliver(f"{ROOT}{name}/packs", b"[]")
        await self.until(
            lambda: name in dict(self.numbered.acks()) and any(name in one for one in self.unnumbered.acked)
        )


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with House().running() as house:
        yield house


def pack_of(gateway: str) -> str:
    return f"{ROOT}{gateway}/packs/numbered"


async def test_the_log_has_a_pack_before_anyone_is_told(house):
    house.numbered.deliver(pack_of("gw"), PACK % 5)

    await house.until(house.numbered.acks)

    story = [line for line in house.story if "platform" not in line]
    assert story == ["append citylab.packs", "puback gw/packs/numbered", "publish gw/acks"]
    assert house.numbered.acks() == [("gw", {"epoch": 7, "appended": [[5, 5]]})]
    (event,) = house.log.of(Topic.PACKS)
    assert event == NewEvent(
        "gw",
        PACK % 5,
        {
            "gateway": "gw",
            "received-at": str(T0),
            "epoch": "7",
            "seq": "5",
            "content-type": "application/senml+json",
        },
        T0,
    )


async def test_while_the_log_is_away_nothing_is_acknowledged_and_then_everything(house):
    house.log.failures = 2
    for seq in (1, 2):
        house.numbered.deliver(pack_of("gw"), PACK % seq)
    house.unnumbered.deliver(f"{ROOT}dev/packs", b"[]")
    await house.until(lambda: house.log.failures == 0)
    assert house.story == [line for line in house.story if "platform" in line]

    await house.until(lambda: len(house.numbered.acked) == 2 and house.unnumbered.acked)
    await house.until(house.numbered.acks)

    assert house.numbered.acks() == [("gw", {"epoch": 7, "appended": [[1, 2]]})]
    assert [event.headers.get("seq") for event in house.log.of(Topic.PACKS) if event.key == "gw"] == [
        "1",
        "2",
    ]


async def test_what_is_in_hand_when_it_ends_is_not_acknowledged():
    house = House()
    house.log.open.clear()
    async with house.running():
        house.numbered.deliver(pack_of("gw"), PACK % 1)
        await house.until(house.numbered.waiting.empty)

    assert house.numbered.acked == house.numbered.acks() == []


async def test_pubacks_leave_in_the_order_of_receipt(house):
    for seq in range(1, 50):
        house.numbered.deliver(pack_of(f"gw{seq % 3}"), PACK % seq if seq % 5 else b"nonsense")
    await house.settled()

    order = [int(name.rpartition(" ")[2]) for name in house.numbered.acked]
    assert order == sorted(order)
    assert len(order) == 50


async def test_acknowledgements_are_told_together(house):
    for seq in [*range(1, 40), *range(60, 70)]:
        house.numbered.deliver(pack_of("gw"), PACK % seq)
    await house.settled()

    told = [body for gateway, body in house.numbered.acks() if gateway == "gw"]
    assert len(told) <= 3
    assert sorted(n for body in told for a, b in body["appended"] for n in range(a, b + 1)) == [
        *range(1, 40),
        *range(60, 70),
    ]


async def test_what_is_lost_without_a_connection_is_told_when_the_gateway_sends_again(house):
    house.numbered.disconnect()
    house.numbered.deliver(pack_of("gw"), PACK % 3)
    await house.until(lambda: house.bridge.packs == 1)
    await house.until(lambda: house.bridge.acknowledgements._appended == {})
    house.numbered.connect()

    house.numbered.deliver(pack_of("gw"), PACK % 3)
    await house.settled()

    assert dict(house.numbered.acks())["gw"] == {"epoch": 7, "appended": [[3, 3]]}
    assert (
        len([e for e in house.log.of(Topic.PACKS) if e.key == "gw"]) == 2
    )  # processing counts the second as a duplicate


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"nonsense", b'[{"n":"a","v":1}]', b'[{"epoch":0,"seq":1}]', b"\x81\xa0"]
)
async def test_a_numbered_pack_without_its_numbers_is_refused_and_nobody_can_be_told(house, payload):
    house.numbered.deliver(pack_of("gw"), payload)
    await house.settled()

    (event,) = house.log.of(Topic.REFUSED)
    assert (event.key, event.value, event.headers["reason"]) == ("gw", payload, "malformed")
    assert event.headers["topic"] == pack_of("gw")
    assert "epoch" not in event.headers
    assert "gw" not in dict(house.numbered.acks())
    assert house.bridge.refused == 1


async def test_a_pack_that_is_too_large_is_refused_and_the_gateway_is_told():
    async with House(Limits(most_bytes=100)).running() as house:
        house.numbered.deliver(pack_of("gw"), (PACK % 9).ljust(101))
        house.numbered.deliver(pack_of("gw"), (PACK % 10).ljust(100))
        await house.settled()

        (event,) = house.log.of(Topic.REFUSED)
        assert (event.headers["epoch"], event.headers["seq"]) == ("7", "9")
        assert "101 bytes are more than the 100" in event.headers["detail"]
        assert len(event.value) == 100
        assert dict(house.numbered.acks())["gw"] == {
            "epoch": 7,
            "appended": [[10, 10]],
            "refused": {"9": "malformed"},
        }


async def test_beyond_its_quota_a_numbered_pack_comes_again_and_one_without_a_number_is_rejected():
    quota = Quota(rate=1_000, burst=3 * (len(PACK % 1) + PACK_COSTS))
    async with House(Limits(quota=quota)).running() as house:
        for seq in range(1, 6):
            house.numbered.deliver(pack_of("noisy"), PACK % seq)
        house.numbered.deliver(pack_of("quiet"), PACK % 1)
        house.unnumbered.deliver(f"{ROOT}device/packs", b"[]".ljust(200))
        for _ in range(3):
            house.unnumbered.deliver(f"{ROOT}device/packs", b"[]".ljust(500))
        await house.settled()

        told = dict(house.numbered.acks())
        seconds = 2 * (len(PACK % 1) + PACK_COSTS) / 1_000
        assert told["noisy"] == {
            "epoch": 7,
            "appended": [[1, 3]],
            "slow_down_until": pytest.approx(T0 / 1e6 + seconds, abs=1e-4),
        }
        assert told["quiet"] == {"epoch": 7, "appended": [[1, 1]]}
        assert len(house.numbered.acked) == 7, "each has its PUBACK"
        assert [e.key for e in house.log.of(Topic.PACKS)].count("noisy") == 3
        rejected = house.log.of(Topic.REFUSED)
        assert {(e.key, e.headers["reason"], len(e.value)) for e in rejected} == {
            ("device", "over-quota", 500)
        }
        assert house.bridge.quotas.over == {"noisy": 2, "device": len(rejected)}


async def test_what_the_log_takes_no_event_of_is_cut(house):
    house.unnumbered.deliver(f"{ROOT}gw/packs", b"[" + b" " * (5 << 20))
    house.numbered.deliver(f"{ROOT}gw/descriptor", b"{" + b" " * (5 << 20))
    await house.settled()

    assert [len(event.value) for event in house.log.of(Topic.REFUSED)] == [256 * 1024] * 2


@pytest.mark.parametrize("gateway", ["", "ünï", "a b", "a" * 65, "a\0b", "a\ud800b", "x" * 60_000])
async def test_a_gateway_whose_name_is_none_is_refused_and_named_so_that_the_store_can_keep_it(
    house, gateway
):
    for kind in ("packs/numbered", "packs", "descriptor", "status"):
        house.numbered.deliver(f"{ROOT}{gateway}/{kind}", PACK % 3)
    await house.settled()

    events = house.log.of(Topic.REFUSED)
    assert len(events) == 4
    for event in events:
        assert event.key == event.headers["gateway"]
        assert len(event.key) <= 64
        assert event.key.isprintable()
        assert "a gateway's name" in event.headers["detail"]
        event.headers["detail"].encode()
    assert [gateway for gateway, _ in house.numbered.acks()] == ["settled-1"]


async def test_each_kind_of_message_has_its_topic_in_the_log(house):
    house.unnumbered.deliver(f"{ROOT}gw/packs", cbor2.dumps([{0: "a", 2: 1}]))
    house.numbered.deliver(f"{ROOT}gw/descriptor", b'{"name":"x"}', retain=True)
    house.numbered.deliver(f"{ROOT}gw/status", b'{"state":"online"}', retain=True)
    await house.settled()

    pack = next(event for event in house.log.of(Topic.PACKS) if event.key == "gw")
    assert pack.headers == {"gateway": "gw", "received-at": str(T0), "content-type": "application/senml+cbor"}
    for topic, kind in ((Topic.DESCRIPTORS, "descriptor"), (Topic.STATUS, "status")):
        (event,) = house.log.of(topic)
        assert event.headers == {"gateway": "gw", "received-at": str(T0), "topic": f"{ROOT}gw/{kind}"}


async def test_results_of_tasks_go_where_statuses_go_each_of_them(house):
    topic = f"{ROOT}gw/results"
    for _ in range(2):
        house.unnumbered.deliver(topic, b'{"task":7,"state":"running"}')
    await house.settled()

    events = house.log.of(Topic.STATUS)
    assert [event.headers["topic"] for event in events] == [topic, topic]
    assert {event.key for event in events} == {"gw"}


async def test_what_is_retained_is_appended_again_only_when_it_is_another(house):
    topic = f"{ROOT}gw/descriptor"
    for documents in ([b"A"], [b"A"], [b""], [b"A", b"B"], [b"B", b"C", b"B"], [b"C", b"B"]):
        for document in documents:
            house.numbered.deliver(topic, document, retain=True)
        await house.settled()

    assert [event.value for event in house.log.of(Topic.DESCRIPTORS)] == [b"A", b"B", b"C", b"B", b"C", b"B"]
    assert sum("descriptor" in name for name in house.numbered.acked) == 10


async def test_a_retained_message_waits_for_the_log_too(house):
    house.log.failures = 1
    house.numbered.deliver(f"{ROOT}gw/status", b"A")
    await house.settled()

    assert [event.value for event in house.log.of(Topic.STATUS)] == [b"A"]


async def test_gateways_hear_of_every_new_connection(house):
    def greetings() -> list[tuple[dict, bool]]:
        return [
            (msgspec.json.decode(p), retain)
            for topic, p, retain in house.numbered.published
            if topic == PLATFORM
        ]

    await house.until(lambda: len(greetings()) == 1)
    house.numbered.disconnect()
    await house.until(lambda: not house.numbered.connected)
    await asyncio.sleep(0)
    house.numbered.connect()
    await house.until(lambda: len(greetings()) == 2)

    assert greetings()[0] == ({"since": T0 / 1e6}, True)


async def test_the_bridge_says_of_itself_how_it_is(house):
    await house.until(lambda: house.log.events[Topic.STATUS])

    event = house.log.events[Topic.STATUS][0]
    assert event.headers["topic"] == f"{PLATFORM}/bridges/north"
    assert msgspec.json.decode(event.value) == {
        "packs": 0,
        "packs_per_second": 0.0,
        "refused": 0,
        "published": 0,
        "lost": "",
        "connected": True,
    }


async def test_a_create_goes_into_the_log_under_the_name_of_its_set(house):
    house.unnumbered.deliver("v1.1/Datastreams(3)/Observations", b'{"result":1}')
    await house.settled()
    (event,) = house.log.of(Topic.CREATES)
    assert (event.key, event.value) == ("v1.1/Observations", b'{"result":1}')
    assert event.headers["topic"] == "v1.1/Datastreams(3)/Observations"
    assert len(house.unnumbered.acked) == 2


async def test_our_own_announcements_and_what_the_broker_retained_create_nothing(house):
    announcement = b'{"@iot.selfLink":"http://city/v1.1/Observations(7)","@iot.id":7,"result":1}'
    house.unnumbered.deliver("v1.1/Observations", announcement)
    house.unnumbered.deliver("v1.1/Observations", b'{"result":1}', retain=True)
    await house.settled()
    assert house.log.of(Topic.CREATES) == []
    assert len(house.unnumbered.acked) == 3


def test_bridges_share_what_has_no_numbers_but_on_the_embedded_broker_where_one_takes_it():
    *shared, results = unnumbered_subscriptions("two", embedded=False)
    assert [topic.partition("/")[0] for topic, _ in shared] == ["$share"] * 5
    assert results == (f"{ROOT}+/results", 1), (
        "every bridge takes them: a dead one keeps none from the others"
    )
    assert unnumbered_subscriptions("1", embedded=True) == [
        (f"{ROOT}+/packs", 1),
        ("v1.1/Observations", 1),
        ("v1.1/+/Observations", 1),
        ("v1.1/Tasks", 1),
        ("v1.1/+/Tasks", 1),
        (f"{ROOT}+/results", 1),
    ]
    assert unnumbered_subscriptions("two", embedded=True) == []
