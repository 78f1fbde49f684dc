"""What the log's outbound topic holds reaches MQTT clients, whichever bridge is killed meanwhile."""

import asyncio
import time

from city import City
from city_devices import Command, Device

from citylab import wiring
from citylab.model import SECOND, NewEvent, Topic
from citylab.outbound import outbound
from citylab.times import now


def append(city: City, *events: NewEvent) -> None:
    async def opened_append() -> None:
        async with wiring.event_log(city.settings) as log:
            await log.append(Topic.OUTBOUND, events)

    asyncio.run(opened_append())


def to_lamp(*payloads: str) -> list[NewEvent]:
    return [
        outbound("citylab/v1/gateways/lamp/commands", text.encode(), now=now(), gateway="lamp")
        for text in payloads
    ]


def heard(device: Device) -> list[str]:
    return [payload.decode() for _, payload in device.heard]


def test_messages_are_published_and_those_that_have_expired_are_not(own_city):
    client = own_city.device
    client.listen("citylab/v1/gateways/+/commands")
    expired = outbound("citylab/v1/gateways/lamp/commands", b"old", now=now(), expires_at=now() - SECOND)
    append(own_city, expired, *to_lamp("1", "2", "3"))
    own_city.until(lambda: heard(client) == ["1", "2", "3"], "the messages are published, once")


def test_nothing_is_lost_when_bridge_and_broker_are_killed(own_city):
    client = own_city.device
    client.listen("citylab/v1/gateways/+/commands")
    own_city.kill("ingest")
    append(own_city, *to_lamp("while it was down"))
    own_city.start("ingest")
    own_city.until(lambda: heard(client) == ["while it was down"], "the bridge goes on where it stood")

    own_city.broker.stop()
    append(own_city, *to_lamp("while the broker was down"))
    own_city.broker.start()
    own_city.until(lambda: client.connected, "the client is back")
    again = Device(own_city.settings.broker_url)
    again.listen("citylab/v1/gateways/+/commands")
    own_city.until(own_city.is_well, "the bridge is back")
    append(own_city, *to_lamp("after it"))
    own_city.until(lambda: "after it" in heard(again), "the bridge publishes again")
    again.close()


def test_of_two_bridges_one_publishes_and_the_other_takes_over(own_city):
    client = own_city.device
    client.listen("citylab/v1/gateways/+/commands")
    first = [str(i) for i in range(200)]
    with Command(own_city, "ingest", CITYLAB_BRIDGE_NAME="two") as second:
        own_city.until(
            lambda: (
                {"ingest 1", "ingest two"} <= {row[0] for row in own_city.fetch("SELECT name FROM services")}
            ),
            "both bridges have said that they are there",
        )
        append(own_city, *to_lamp(*first))
        own_city.until(lambda: heard(client)[-1:] == first[-1:], "all is published")
        assert heard(client) == first, "by one of them, in order"
        second.kill()
        append(own_city, *to_lamp("the last"))
        began = time.monotonic()
        own_city.until(lambda: heard(client)[-1:] == ["the last"], "the other bridge takes over")
        assert time.monotonic() - began < 25
