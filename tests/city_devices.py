"""What devices do, for tests: an MQTT client, an edge agent as a process, what they say of themselves and measure."""

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import msgspec
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage, MQTTMessageInfo

from citylab.adapters.child import last_lines, start_child

if TYPE_CHECKING:
    from city import City

Json = dict[str, Any]

SOON = 30.0  # s until a test gives up on something that should happen soon
MEASUREMENT = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement"
T0 = 1_767_225_600  # 2026-01-01T00:00:00Z, in the past and not far from now


class Device:
    """An MQTT client as a device has it, which also hears what is said to a gateway."""

    def __init__(self, url: str, *, reconnect: bool = True) -> None:
        address = urlsplit(url)
        self.heard: list[tuple[str, bytes]] = []
        self._client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=reconnect)
        self._client.on_message = self._hear
        self._client.reconnect_delay_set(0.1, 1)
        self._client.connect(address.hostname or "", address.port or 1883)
        self._client.loop_start()

    def _hear(self, _client: Client, _data: None, message: MQTTMessage) -> None:
        self.heard.append((message.topic, message.payload))

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    def listen(self, topic: str) -> None:
        """Hear what comes on a topic from now on."""
        done: list[int] = []
        self._client.on_subscribe = lambda *_: done.append(1)
        self._client.subscribe(topic, 1)
        deadline = time.monotonic() + SOON
        while not done:
            assert time.monotonic() < deadline, f"the broker did not take the subscription to {topic}"
            time.sleep(0.01)

    def offer(self, topic: str, payload: bytes) -> MQTTMessageInfo:
        """Publish without waiting."""
        deadline = time.monotonic() + SOON
        while not self.connected:
            assert time.monotonic() < deadline, "the broker takes no connection"
            time.sleep(0.01)
        return self._client.publish(topic, payload, qos=1)

    def publish(self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(SOON)

    def publish_all(self, topic: str, payloads: Sequence[bytes]) -> None:
        """Publish many without waiting for each."""
        for sent in [self._client.publish(topic, payload, qos=1) for payload in payloads]:
            sent.wait_for_publish(SOON)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Command:
    """A command of `citylab` as a process that can be killed, and started again."""

    def __init__(self, city: "City", *arguments: object, **environment: str) -> None:
        self.argv = [sys.executable, "-m", "citylab", *map(str, arguments)]
        self.env = city.environment() | environment
        self.log_file = city.folder / "logs" / f"command-{arguments[0]}.log"
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.ended:
            self.kill()

    def start(self) -> None:
        self.process = start_child(self.argv, log_file=self.log_file, env=self.env)

    def kill(self) -> None:
        assert self.process.poll() is None, f"it ended too early:\n{self.said}"
        self.process.kill()
        self.process.wait()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def said(self) -> str:
        return last_lines(self.log_file, 100)


class EdgeAgent:
    """`citylab edge` as a process, which is told its readings. options: more of the command line."""

    def __init__(self, city: "City", gateway: str, *things: Json, options: Sequence[object] = ()) -> None:
        self.city, self.gateway = city, gateway
        self.log_file = city.folder / "logs" / f"{gateway}.log"
        descriptor = city.folder / f"{gateway}.json"
        descriptor.write_bytes(msgspec.json.encode(things))
        command = [
            sys.executable,
            "-m",
            "citylab",
            "edge",
            "--gateway",
            gateway,
            "--descriptor",
            str(descriptor),
            *map(str, options),
        ]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=city.environment()
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()

    def say(self, name: str, values: Mapping[int, float], *, since: int = T0) -> None:
        """Read sensors: a value by the second after `since`."""
        assert self.process.stdin
        for second, value in values.items():
            line = msgspec.json.encode({"n": name, "t": since + second, "v": value})
            self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def end(self, within: float = SOON) -> None:
        """Let its readings end, and return when all of them are acknowledged."""
        assert self.process.stdin
        self.process.stdin.close()
        self.city.until(
            lambda: self.process.poll() is not None, "the edge agent has delivered everything", within
        )
        assert self.process.returncode == 0, last_lines(self.log_file)


# RFC 8428 §6, Table 4.
_LABELS = {"bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6, "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "s": 5,
    "t": 6, "ut": 7, "vd": 8}  # fmt: skip


def labelled(record: Json) -> dict[int | str, Any]:
    """A record with the labels that it has in CBOR."""
    return {_LABELS.get(name, name): value for name, value in record.items()}


def stream(name: str, *, unit: str = "ug/m3", kind: str = MEASUREMENT, title: str = "", **more: Any) -> Json:
    """A Datastream of a descriptor."""
    return {
        "name": title or f"NO2 of {name}",
        "description": "nitrogen dioxide",
        "observationType": kind,
        "unitOfMeasurement": {"name": "microgram per cubic metre", "symbol": unit, "definition": "ucum:ug/m3"},
        "properties": {"streamName": name, "interval": "PT1S"} | more,
        "Sensor": {
            "name": "chemiluminescence", "description": "analyser", "encodingType": "text/html", "metadata": "none",
        },
        "ObservedProperty": {
            "name": "NO2", "definition": "urn:test:no2", "description": "nitrogen dioxide in the air",
        },
    }  # fmt: skip


def place(longitude: float = 2.17, latitude: float = 41.39, name: str = "street") -> Json:
    return {
        "name": name,
        "description": "where the lamp post stands",
        "encodingType": "application/geo+json",
        "location": {"type": "Point", "coordinates": [longitude, latitude]},
    }


def thing(key: str, *streams: Json, at: Json | None = None, name: str = "", **properties: Any) -> Json:
    """A Thing of a descriptor, with its Location and Datastreams."""
    return {
        "name": name or key,
        "description": "a lamp post",
        "properties": {"key": key} | properties,
        "Locations": [at or place()],
        "Datastreams": list(streams),
    }


def slug(text: str) -> str:
    """A name that gateways and streams may have."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:56]
