"""A SensorThings service over real HTTP, empty at the beginning of each test module, on both sets of engines."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn

from api.app import create_app
from citylab.adapters import entity_writes
from citylab.adapters.store import PostgresStore

GEOJSON = "application/geo+json"


class Api:
    """What a client does: paths are relative to the root, options are encoded here."""

    def __init__(self, url: str) -> None:
        self.root = f"{url}/v1.1"
        self.client = httpx.Client(base_url=self.root, timeout=60)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        address, mark, query = path.partition("?")
        url = self.root + quote(address, safe="/()$@:,;=%") + mark + quote(query, safe="$=&()'/,;:@*%")
        return self.client.request(method, url, **options)

    def response(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def get(self, path: str) -> Any:
        response = self.response(path)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text}"
        return response.json()

    def values(self, path: str) -> list[Any]:
        return self.get(path)["value"]

    def ids(self, path: str) -> list[int]:
        return [entity["@iot.id"] for entity in self.values(path)]

    def status(self, path: str) -> int:
        return self.response(path).status_code

    def refused(self, path: str, status: int = 400) -> str:
        """The message with which a request is refused."""
        response = self.response(path)
        assert response.status_code == status, f"{path}: {response.status_code} {response.text}"
        error = response.json()
        assert error["code"] == status
        assert set(error) == {"code", "type", "message"}
        return error["message"]

    def post(self, path: str, document: Any) -> httpx.Response:
        if isinstance(document, bytes | str):
            return self.request("POST", path, content=document)
        return self.request("POST", path, json=document)

    def create(self, path: str, document: Any) -> int:
        response = self.post(path, document)
        assert response.status_code == 201, f"{path}: {response.status_code} {response.text}"
        return response.json()["@iot.id"]

    def absolute(self, url: str) -> Any:
        response = self.client.get(url)
        assert response.status_code == 200, f"{url}: {response.status_code} {response.text}"
        return response.json()

    def walk(self, path: str) -> list[Any]:
        """All entities, along the next links."""
        page = self.get(path)
        found = page["value"]
        while link := page.get("@iot.nextLink"):
            page = self.absolute(link)
            assert page["value"], "a next link that leads to an empty page"
            found += page["value"]
        return found


@contextmanager
def served(store_url: str, *, statement_timeout: float = 30, **options: Any) -> Iterator[Api]:
    """Serve a store on a free port of loopback. statement_timeout: seconds."""
    server: uvicorn.Server | None = None
    started = threading.Event()
    failure: list[BaseException] = []
    port = 0

    async def serve() -> None:
        nonlocal server, port
        async with PostgresStore(store_url, name="conformance", statement_timeout=statement_timeout) as store:
            app = create_app(store, entity_writes, **options)
            server = uvicorn.Server(
                uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False)
            )
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            started.set()
            await serving

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001  # the fixture raises it
            failure.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(30)
    assert not failure, failure
    api = Api(f"http://127.0.0.1:{port}")
    try:
        yield api
    finally:
        api.client.close()
        assert server is not None
        server.should_exit = True
        thread.join(30)
    assert not failure, failure


@pytest.fixture(scope="module", params=["embedded", "timescale"])
def module_store_url(request) -> Iterator[str]:
    kind = "embedded_databases" if request.param == "embedded" else "real_databases"
    with request.getfixturevalue(kind).one() as url:
        yield url


@pytest.fixture(scope="module")
def api(module_store_url) -> Iterator[Api]:
    with served(module_store_url) as api:
        yield api


# Documents ----------------------------------------------------------------------------------------------------------


def point(longitude: float = 2.15, latitude: float = 41.39) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [longitude, latitude]}


def thing(name: str = "Station", **more: Any) -> dict[str, Any]:
    return {"name": name, "description": f"{name}, described"} | more


def location(name: str = "Place", **more: Any) -> dict[str, Any]:
    document = {"name": name, "description": "where", "encodingType": GEOJSON, "location": point()}
    return document | more


def sensor(name: str = "Sensor", **more: Any) -> dict[str, Any]:
    document = {
        "name": name,
        "description": "an instrument",
        "encodingType": "application/pdf",
        "metadata": "m",
    }
    return document | more


def observed_property(name: str = "NO2", **more: Any) -> dict[str, Any]:
    return {"name": name, "definition": f"https://example.org/{name}", "description": "a gas"} | more


def feature(name: str = "Street", **more: Any) -> dict[str, Any]:
    return {"name": name, "description": "f", "encodingType": GEOJSON, "feature": point()} | more


def datastream(name: str = "Stream", **more: Any) -> dict[str, Any]:
    document = {
        "name": name,
        "description": "a stream",
        "observationType": "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
        "unitOfMeasurement": {"name": "microgram", "symbol": "ug", "definition": "ucum:ug"},
    }
    return document | more


def whole_datastream(name: str = "Stream", **more: Any) -> dict[str, Any]:
    """A Datastream with its Sensor, ObservedProperty and a Thing at a place."""
    parts = {
        "Sensor": sensor(f"{name}'s sensor"),
        "ObservedProperty": observed_property(f"{name}'s property"),
        "Thing": thing(f"{name}'s thing", Locations=[location(f"{name}'s place")]),
    }
    return datastream(name, **(parts | more))


@pytest.fixture(scope="session")
def documents() -> Any:
    """The makers of documents above, for tests in the folders below."""

    class Documents:
        point = staticmethod(point)
        thing = staticmethod(thing)
        location = staticmethod(location)
        sensor = staticmethod(sensor)
        observed_property = staticmethod(observed_property)
        feature = staticmethod(feature)
        datastream = staticmethod(datastream)
        whole_datastream = staticmethod(whole_datastream)

    return Documents


@pytest.fixture(scope="session")
def serve() -> Any:
    """`served` above, for tests in the folders below."""
    return served
