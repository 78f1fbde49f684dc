"""Cities for the integration tests: one a set of engines for tests that harm none, others for those that kill."""

from collections.abc import Iterator
from zlib import crc32

import pytest
from city import KINDS, City, new_city
from city_devices import slug


@pytest.fixture(scope="session", params=KINDS)
def city(request) -> Iterator[City]:
    """The city that tests share; each has gateways and streams of its own, and leaves the services alone."""
    with new_city(request) as city:
        yield city


@pytest.fixture(params=KINDS)
def own_city(request) -> Iterator[City]:
    """A city in which a test may kill."""
    with new_city(request) as city:
        yield city


@pytest.fixture
def gateway(request) -> str:
    """A name that no other test uses."""
    test = request.node.name.removeprefix("test_")
    return f"{slug(test)[:40].strip('-')}-{crc32(test.encode()):08x}"
