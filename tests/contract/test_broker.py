"""What `BrokerConnection` promises, on the embedded broker and on Mosquitto, each a process of the test's own."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from citylab.adapters.child import start_child, stop
from citylab.adapters.mqtt import Address, MqttConnection
from citylab.adapters.rumqttd import EmbeddedBroker
from citylab.errors import ConfigurationError
from citylab.model import Message, Will

PATIENCE = 15.0  # s until a test gives up on something that should happen at once
A_WHILE = 0.5  # s in which something that must not happen would have happened
MOSQUITTO = """\
user root
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 1000
max_queued_messages 0
"""


class Broker:
    """A broker that can be killed and started again on the same port."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.embedded: EmbeddedBroker | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        if self.kind == "embedded":
            self.embedded = self.embedded or EmbeddedBroker(self.folder, port=self.port)
            await self.embedded.__aenter__()
            self.port, self.process = self.embedded.port, self.embedded.process
            return
        self.port = self.port or free_port()
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text(MOSQUITTO.format(port=self.port))
        self.process = start_child([mosquitto(), "-c", configuration], log_file=self.folder / "mosquitto.log")
        await until(lambda: answers(self.port))

    async def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    async def close(self) -> None:
        if self.embedded:
            await self.embedded.__aexit__(None, None, None)
        elif self.process:
            await stop(self.process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def mosquitto() -> str:
    """The program, or an empty string."""
    return shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") or ""


def require_mosquitto() -> None:
    if not mosquitto():
        message = "Mosquitto is not installed: python3 deploy/engines.py install --only mosquitto"
        if os.environ.get("CITYLAB_REQUIRE_ENGINES") == "1":
            pytest.fail(message)
        pytest.skip(message)


async def until(condition, within: float = PATIENCE) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 -- what is waited for happens elsewhere
            await asyncio.sleep(0.01)


@pytest.fixture(params=["embedded", "mosquitto"])
async def stopped_broker(request, tmp_path) -> AsyncIterator[Broker]:
    if request.param == "mosquitto":
        require_mosquitto()
    broker = Broker(request.param, tmp_path)
    yield broker
    await broker.close()


@pytest.fixture
async def broker(stopped_broker) -> Broker:
    await stopped_broker.start()
    return stopped_broker


def connection(broker: Broker, client_id: str, *topics: str, **options) -> MqttConnection:
    subscriptions = [(topic, 1) for topic in topics]
    return MqttConnection(
        broker.url, client_id=client_id, subscriptions=subscriptions, draw=lambda: 0.0, **options
    )


async def connected(mqtt: MqttConnection) -> int:
    return await asyncio.wait_for(mqtt.wait_connected(), PATIENCE)


async def why_not(mqtt: MqttConnection) -> str:
    """Why the first try failed."""
    async with asyncio.timeout(PATIENCE):
        while (why := await mqtt.wait_disconnected()) == "not connected yet":  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)
    return why


async def receive(mqtt: MqttConnection, count: int) -> list[Message]:
    """Exactly `count` messages, unacknowledged."""
    got: list[Message] = []
    async with asyncio.timeout(PATIENCE):
        while len(got) < count:
            got += await mqtt.messages()
    assert len(got) == count
    return got


async def nothing_comes(mqtt: MqttConnection) -> bool:
    try:
        await asyncio.wait_for(mqtt.messages(), A_WHILE)
    except TimeoutError:
        return True
    return False


async def publish(broker: Broker, topic: str, payloads: Sequence[bytes], *, retain: bool = False) -> None:
    """Publish and wait for the PUBACKs."""
    async with connection(broker, "publisher") as mqtt:
        await connected(mqtt)
        waiting = {mqtt.publish(topic, payload, retain=retain) for payload in payloads}
        assert None not in waiting
        async with asyncio.timeout(PATIENCE):
            while waiting:
                waiting -= set(await mqtt.pubacks())


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_a_message_goes_round(broker):
    async with connection(broker, "a", "city/+/packs") as mqtt:
        await connected(mqtt)

        await publish(broker, "city/lamp/packs", [b"\x00payload\xff"])

        (message,) = await receive(mqtt, 1)
        assert (message.topic, message.payload) == ("city/lamp/packs", b"\x00payload\xff")
        assert (message.qos, message.retain) == (1, False)
        assert message.received_at > 1_700_000_000_000_000


async def test_messages_come_in_order_and_at_most_as_many_as_asked_for(broker):
    async with connection(broker, "a", "t") as mqtt:
        await connected(mqtt)
        await publish(broker, "t", numbered(300))

        got: list[bytes] = []
        async with asyncio.timeout(PATIENCE):
            while len(got) < 300:
                some = await mqtt.messages(most=70, linger=0.05)
                assert len(some) <= 70
                got += [message.payload for message in some]
                for message in some:  # rumqttd has at most 100 on the way
                    message.ack()

        assert got == numbered(300)


async def test_a_message_of_qos_0_needs_no_acknowledgement(broker):
    at_most_once = MqttConnection(broker.url, client_id="a", subscriptions=[("t", 0)])
    async with at_most_once as mqtt, connection(broker, "b") as publisher:
        await connected(mqtt)
        await connected(publisher)
        assert publisher.publish("t", b"once", qos=0) is not None

        (message,) = await receive(mqtt, 1)
        message.ack()

        assert message.qos == 0
        assert mqtt.connected


async def test_the_largest_pack_passes(broker):
    pack = os.urandom(256 << 10)
    async with connection(broker, "a", "t") as mqtt:
        await connected(mqtt)

        await publish(broker, "t", [pack] * 5)

        got = await receive(mqtt, 5)
        assert all(message.payload == pack for message in got)


async def test_acknowledging_in_any_order_keeps_the_connection(broker):
    async with connection(broker, "a", "t", clean_session=False) as mqtt:
        await connected(mqtt)
        await publish(broker, "t", numbered(100))
        messages = await receive(mqtt, 100)
        for message in reversed(messages):
            message.ack()
            message.ack()  # twice is once

        await publish(broker, "t", [b"next"])

        (message,) = await receive(mqtt, 1)
        message.ack()
        assert await mqtt.wait_connected() == 1

    async with connection(broker, "a", "t", clean_session=False) as mqtt:
        await connected(mqtt)
        assert await nothing_comes(mqtt)


async def test_a_puback_waits_for_those_of_earlier_messages(broker):
    async with connection(broker, "a", "t", clean_session=False) as mqtt:
        await connected(mqtt)
        await publish(broker, "t", numbered(5))
        messages = await receive(mqtt, 5)
        for message in messages[2:]:
            message.ack()
        messages[0].ack()

    async with connection(broker, "a", "t", clean_session=False) as mqtt:
        await connected(mqtt)
        again = await receive(mqtt, 4)
        assert [message.payload for message in again] == numbered(5)[1:]


async def test_a_persistent_session_gets_again_what_it_did_not_acknowledge(broker):
    async with connection(broker, "a", "t", clean_session=False) as mqtt:
        await connected(mqtt)
        await publish(broker, "t", numbered(3))
        old = await receive(mqtt, 3)
        mqtt.reconnect("the test wants it")
        assert not mqtt.connected
        assert await mqtt.wait_disconnected() == "the test wants it"

        assert await connected(mqtt) == 2
        again = await receive(mqtt, 3)
        for message in old:
            message.ack()  # does nothing: it belongs to the old connection
        mqtt.reconnect("the test wants it again")
        assert await connected(mqtt) == 3
        third = await receive(mqtt, 3)

        assert [message.payload for message in again] == numbered(3)
        assert [message.payload for message in third] == numbered(3)


async def test_a_persistent_session_gets_what_came_while_it_was_away(broker):
    async with connection(broker, "a", "$share/bridge/t", clean_session=False) as mqtt:
        await connected(mqtt)

    await publish(broker, "t", numbered(3))

    async with connection(broker, "a", "$share/bridge/t", clean_session=False) as mqtt:
        await connected(mqtt)
        assert [message.payload for message in await receive(mqtt, 3)] == numbered(3)


async def test_a_clean_session_gets_nothing_back(broker):
    async with connection(broker, "a", "t") as mqtt:
        await connected(mqtt)
        await publish(broker, "t", numbered(3))
        await receive(mqtt, 3)

    async with connection(broker, "a", "t") as mqtt:
        await connected(mqtt)
        assert await nothing_comes(mqtt)


async def test_members_of_a_shared_subscription_get_each_message_once(broker):
    filter_ = "$share/bridge/city/+/packs"
    async with connection(broker, "a", filter_) as one, connection(broker, "b", filter_) as other:
        await connected(one)
        await connected(other)
        await publish(broker, "city/lamp/packs", numbered(100))
        shares: dict[str, list[bytes]] = {"one": [], "other": []}

        async def collect(name: str, mqtt: MqttConnection) -> None:
            while True:
                for message in await mqtt.messages():
                    message.ack()
                    shares[name].append(message.payload)

        tasks = [asyncio.create_task(collect("one", one)), asyncio.create_task(collect("other", other))]
        await until(lambda: sum(map(len, shares.values())) >= 100)
        for task in tasks:
            task.cancel()

        assert sorted(shares["one"] + shares["other"]) == sorted(numbered(100))
        assert shares["one"]
        assert shares["other"]


async def test_the_survivor_of_a_shared_subscription_gets_everything(broker):
    filter_ = "$share/bridge/t"
    async with connection(broker, "a", filter_) as survivor:
        await connected(survivor)
        async with connection(broker, "b", filter_) as mortal:
            await connected(mortal)

        await publish(broker, "t", numbered(20))

        got = await receive(survivor, 20)
        assert sorted(message.payload for message in got) == sorted(numbered(20))


async def test_a_retained_message_comes_with_the_subscription(broker):
    await publish(broker, "descriptor", [b"old", b"new"], retain=True)

    async with connection(broker, "a", "descriptor") as mqtt:
        await connected(mqtt)
        (message,) = await receive(mqtt, 1)
        assert (message.payload, message.retain) == (b"new", True)


async def test_the_last_will_is_published_when_the_connection_is_lost_and_only_then(broker):
    will = Will("status", b"offline", retain=True)
    async with connection(broker, "watcher", "status") as watcher:
        await connected(watcher)
        async with connection(broker, "a", "t", will=will) as mqtt:
            await connected(mqtt)
            await publish(broker, "t", [b"x" * 1000] * 500)  # unread when we close, and still a good-bye
        assert await nothing_comes(watcher)

        async with connection(broker, "a", will=will) as mqtt:
            await connected(mqtt)
            mqtt.reconnect("as if the cable were pulled")
            (message,) = await receive(watcher, 1)

        assert message.payload == b"offline"


async def test_what_is_handed_over_before_closing_is_sent(broker):
    async with connection(broker, "a", "t") as mqtt:
        await connected(mqtt)
        async with connection(broker, "b") as hasty:
            await connected(hasty)
            for _ in range(100):
                hasty.publish("t", b"x" * 50_000)

        assert len(await receive(mqtt, 100)) == 100


async def test_a_broker_that_is_down_at_the_start_is_waited_for(stopped_broker):
    stopped_broker.port = free_port()
    async with connection(stopped_broker, "a", "t") as mqtt:
        assert await mqtt.wait_disconnected() == "not connected yet"
        assert mqtt.publish("t", b"lost") is None
        await stopped_broker.start()

        await connected(mqtt)

        await publish(stopped_broker, "t", [b"first"])
        assert [message.payload for message in await receive(mqtt, 1)] == [b"first"]


async def test_after_a_crash_of_the_broker_connection_and_subscriptions_come_back(broker):
    async with connection(broker, "a", "t") as mqtt:
        await connected(mqtt)
        first = mqtt.publish("elsewhere", b"1")
        assert await asyncio.wait_for(mqtt.pubacks(), PATIENCE) == [first]
        await broker.kill()
        await asyncio.wait_for(mqtt.wait_disconnected(), PATIENCE)
        assert await asyncio.wait_for(mqtt.pubacks(), PATIENCE) == []
        assert mqtt.publish("elsewhere", b"2") is None
        await broker.start()

        assert await connected(mqtt) > 1

        third = mqtt.publish("elsewhere", b"3")
        assert third != first
        assert await asyncio.wait_for(mqtt.pubacks(), PATIENCE) == [third]
        await publish(broker, "t", [b"again"])
        assert [message.payload for message in await receive(mqtt, 1)] == [b"again"]


async def test_a_burst_beyond_the_byte_limit_is_read_as_fast_as_it_is_acknowledged(broker):
    async with connection(broker, "a", "t", most_unacknowledged_bytes=100_000) as mqtt:
        await connected(mqtt)
        await publish(broker, "t", [b"x" * 10_000] * 90)
        got = 0
        async with asyncio.timeout(PATIENCE):
            while got < 90:
                for message in await mqtt.messages():
                    message.ack()
                    got += 1

        assert await mqtt.wait_connected() == 1


async def test_at_the_byte_limit_the_connection_is_dropped_and_opened_again(broker):
    options = {"clean_session": False, "keep_alive": 5, "most_unacknowledged_bytes": 100_000}
    async with connection(broker, "a", "t", **options) as mqtt:
        await connected(mqtt)
        await publish(broker, "t", [b"x" * 10_000] * 90)
        why = await asyncio.wait_for(mqtt.wait_disconnected(), PATIENCE)
        assert why == "more than 100000 bytes wait for their acknowledgement"
        await connected(mqtt)

        got = 0
        async with asyncio.timeout(PATIENCE):
            while got < 90:
                for message in await mqtt.messages():
                    message.ack()
                    got += 1

        assert mqtt.connected


async def test_what_waited_when_the_connection_was_lost_is_given_out_and_stops_counting(broker):
    async with connection(broker, "a", "t", most_unacknowledged_bytes=100_000) as mqtt:
        for _ in range(3):
            number = await connected(mqtt)
            await publish(broker, "t", [b"x" * 10_000] * 8)
            await until(lambda: len(mqtt.incoming) == 8)
            mqtt.reconnect("the test wants it")
            assert await connected(mqtt) == number + 1
            assert len(await receive(mqtt, 8)) == 8


async def test_the_broker_takes_an_older_client_of_the_same_name_away(broker):
    async with connection(broker, "same") as older:
        await connected(older)
        async with connection(broker, "same") as newer:
            await connected(newer)
            await asyncio.wait_for(older.wait_disconnected(), PATIENCE)


async def test_leaving_does_not_wait_for_a_broker_that_is_away(stopped_broker):
    stopped_broker.port = free_port()
    async with asyncio.timeout(3), connection(stopped_broker, "a") as mqtt:
        await mqtt.wait_disconnected()


async def test_thousands_of_messages_pass_while_the_event_loop_is_busy(broker):
    async with connection(broker, "a", "$share/bridge/t") as mqtt, connection(broker, "b") as publisher:
        await connected(mqtt)
        await connected(publisher)
        unconfirmed: set[int | None] = set()
        sent = got = 0
        async with asyncio.timeout(60):
            while got < 5_000 or unconfirmed:
                while sent < 5_000 and len(unconfirmed) < 500:
                    unconfirmed.add(publisher.publish("t", b"x" * 2_500))
                    sent += 1
                assert None not in unconfirmed
                if got < sent:
                    for message in await mqtt.messages():
                        message.ack()
                        got += 1
                if unconfirmed:
                    unconfirmed -= set(await publisher.pubacks())
        assert mqtt.connected


async def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(ConfigurationError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            await EmbeddedBroker(tmp_path, port=port).__aenter__()


async def test_the_embedded_broker_speaks_mqtt_5_on_a_port_of_its_own(tmp_path):
    connect = bytes.fromhex("10 10 00 04 4d515454 05 02 000a 00 0003 616263".replace(" ", ""))
    async with EmbeddedBroker(tmp_path) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port_5)
        writer.write(connect)
        first = await asyncio.wait_for(reader.readexactly(1), PATIENCE)
        writer.close()
        assert first == b"\x20"  # CONNACK


async def test_the_embedded_broker_takes_a_thousand_gateways(tmp_path):
    """A usual limit on open files is 1,024."""
    connect = bytes.fromhex("10 11 00 04 4d515454 04 02 003c 0005".replace(" ", ""))
    async with EmbeddedBroker(tmp_path) as broker:
        writers = []
        for number in range(1_100):
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
            writers.append(writer)
            writer.write(connect + b"%05d" % number)
            assert await asyncio.wait_for(reader.readexactly(4), PATIENCE) == b"\x20\x02\x00\x00"
        for writer in writers:
            writer.close()


async def test_an_embedded_broker_that_runs_and_answers_nobody_is_killed(tmp_path):
    """rumqttd 0.20's router panics when a persistent session that is alone in a group is cut with messages in flight."""
    async with EmbeddedBroker(tmp_path) as broker:
        process = broker.process
        lonely = MqttConnection(
            broker.url, client_id="lonely", clean_session=False, subscriptions=[("$share/group/t", 1)]
        )
        async with lonely, MqttConnection(broker.url, client_id="other") as other:
            await connected(lonely)
            await connected(other)
            for _ in range(50):
                other.publish("t", b"in flight")
            await until(lambda: len(lonely.incoming) == 50)
            lonely.reconnect("the test wants it")
            await asyncio.wait_for(other.wait_disconnected(), PATIENCE)
            assert process.poll() is None, "a broker that ends by itself needs no watching"
            await until(lambda: process.poll() is not None, within=30)
            await broker.__aenter__()  # as its supervisor does
            assert broker.process is not process
            await connected(other)


async def test_the_embedded_broker_does_not_outlive_a_killed_parent(tmp_path):
    program = (
        "import asyncio, sys, pathlib\n"
        "from citylab.adapters.rumqttd import EmbeddedBroker\n"
        "async def main():\n"
        "    async with EmbeddedBroker(pathlib.Path(sys.argv[1])) as broker:\n"
        "        print(broker.port, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout
    port = int(await asyncio.wait_for(parent.stdout.readline(), PATIENCE))
    assert answers(port)

    parent.kill()
    await parent.wait()

    await until(lambda: not answers(port))


@pytest.mark.parametrize(
    ("connack", "suback", "why"),
    [
        ("20020005", "", "the broker refuses the connection: Not authorized"),
        ("20020000", "9003000180", "the broker refuses the subscription to t"),
    ],
)
async def test_a_refusal_is_told_in_words(connack, suback, why):
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)  # CONNECT
        writer.write(bytes.fromhex(connack))
        if suback:
            await reader.read(1000)  # SUBSCRIBE
            writer.write(bytes.fromhex(suback))
        await reader.read(1000)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        MqttConnection(f"mqtt://127.0.0.1:{port}", client_id="a", subscriptions=[("t", 1)]) as mqtt,
    ):
        assert await why_not(mqtt) == why
        assert not mqtt.connected


async def test_tls_checks_the_brokers_certificate(tmp_path):
    require_mosquitto()
    key, certificate, configuration = (tmp_path / name for name in ("key.pem", "cert.pem", "mosquitto.conf"))
    request = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = await asyncio.create_subprocess_exec(
        "openssl", *request, *names, "-keyout", key, "-out", certificate, stderr=asyncio.subprocess.DEVNULL
    )
    assert await made.wait() == 0
    port = free_port()
    configuration.write_text(MOSQUITTO.format(port=port) + f"certfile {certificate}\nkeyfile {key}\n")
    process = start_child([mosquitto(), "-c", configuration], log_file=tmp_path / "mosquitto.log")
    try:
        await until(lambda: answers(port))
        url = f"mqtts://127.0.0.1:{port}"
        async with MqttConnection(f"{url}?ca={certificate}", client_id="a", subscriptions=[("t", 1)]) as mqtt:
            await connected(mqtt)
            for _ in range(100):
                mqtt.publish("t", os.urandom(100_000))
            got = 0
            async with asyncio.timeout(PATIENCE):
                while got < 100:
                    for message in await mqtt.messages():
                        message.ack()
                        got += 1

        async with MqttConnection(url, client_id="a") as stranger:  # the system's authorities do not know it
            assert "certificate verify failed" in await why_not(stranger)
    finally:
        await stop(process)


@pytest.mark.parametrize(
    "url",
    [
        "http://broker", "mqtt://", "mqtt://broker:port", "mqtt://broker/path", "mqtt://broker?ca=x", "broker:1883",
        "mqtts://broker?certificate=x", "mqtts://broker?ca=/does/not/exist",
    ],
)  # fmt: skip
def test_a_wrong_url_is_a_configuration_error(url):
    with pytest.raises(ConfigurationError):
        Address.parse(url)


def test_a_password_is_decoded_and_never_printed():
    address = Address.parse("mqtt://gate%40way:s%2Fcret@broker")
    assert (address.host, address.port, address.username, address.password) == (
        "broker", 1883, "gate@way", "s/cret",
    )  # fmt: skip
    assert "cret" not in f"{address} {address!r}"
