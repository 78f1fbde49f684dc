"""A city with its bridge, processing and API, on both sets of engines, and clients of its broker."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from city import KINDS, City, new_city
from city_devices import Device


class Service:
    """What a client of HTTP and MQTT does with a SensorThings service."""

    def __init__(self, city: City) -> None:
        self.city = city
        self.root = f"http://127.0.0.1:{city.settings.http_port}/v1.1/"

    def get(self, path: str) -> Any:
        return self.city.get(f"/v1.1/{path}")

    def values(self, path: str) -> list[Any]:
        return self.get(path)["value"]

    def request(self, method: str, path: str, document: Any, **headers: str) -> Any:
        content = document if isinstance(document, bytes | str) else msgspec.json.encode(document)
        answer = self.city.http.request(method, f"/v1.1/{path}", content=content, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def create(self, path: str, document: Any) -> int:
        return self.request("POST", path, document)["@iot.id"]

    def publish(self, topic: str, document: Any, *, qos: int = 1) -> None:
        """Publish below `v1.1/`, and wait until the broker has it."""
        payload = document if isinstance(document, bytes | str) else msgspec.json.encode(document)
        self.city.device.publish(f"v1.1/{topic}", payload, qos=qos)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        return self.city.until(condition, what)

    @contextmanager
    def subscribed(self, *topics: str) -> Iterator["Heard"]:
        """What comes on topics below `v1.1/` from now on."""
        device = Device(self.city.settings.broker_url)
        for topic in topics:
            device.listen(f"v1.1/{topic}")
        yield Heard(self, device)
        device.close()


class Heard:
    """What a client of the broker has heard."""

    def __init__(self, service: Service, device: Device) -> None:
        self.service, self.device = service, device

    def on(self, topic: str) -> list[Any]:
        """The documents that came on a topic, in order."""
        return [
            msgspec.json.decode(payload) for name, payload in self.device.heard if name == f"v1.1/{topic}"
        ]

    def text(self, topic: str) -> list[str]:
        return [payload.decode() for name, payload in self.device.heard if name == f"v1.1/{topic}"]

    def topics(self) -> set[str]:
        return {name.removeprefix("v1.1/") for name, _ in self.device.heard}

    def one(self, topic: str) -> Any:
        """The document that comes on a topic; soon there is exactly one."""
        self.service.until(lambda: self.on(topic), f"something comes on {topic}; so far on {self.topics()}")
        (document,) = self.on(topic)
        return document


@pytest.fixture(scope="session", params=KINDS)
def service(request) -> Iterator[Service]:
    with new_city(request) as city:
        yield Service(city)
