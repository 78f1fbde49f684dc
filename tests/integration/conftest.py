"""Cities for the integration tests: one a set of engines for tests that harm none, others for those that kill."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from zlib import crc32

import city_engines
import pytest
from city import City, running_city
from city_devices import slug
from stores import reachable_folder

KINDS = ("embedded", "real")


@contextmanager
def _new_city(request: pytest.FixtureRequest) -> Iterator[City]:
    kind = request.param
    databases = request.getfixturevalue("embedded_databases" if kind == "embedded" else "real_databases")
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        log_url = stack.enter_context(city_engines.event_log(kind, folder))
        yield stack.enter_context(running_city(kind, folder, log_url, databases.make()))


@pytest.fixture(scope="session", params=KINDS)
def city(request) -> Iterator[City]:
    """The city that tests share; each has gateways and streams of its own, and leaves the services alone."""
    with _new_city(request) as city:
        yield city


@pytest.fixture(params=KINDS)
def own_city(request) -> Iterator[City]:
    """A city in which a test may kill."""
    with _new_city(request) as city:
        yield city


@pytest.fixture
def gateway(request) -> str:
    """A name that no other test uses."""
    test = request.node.name.removeprefix("test_")
    return f"{slug(test)[:40].strip('-')}-{crc32(test.encode()):08x}"
