"""What every test may use: stores on both sets of engines."""

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from engines import url_of
from stores import Databases, embedded_server

from citylab.adapters.store import PostgresStore


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sends the logs to the test's own standard error, which then closes."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def embedded_databases() -> Iterator[Databases]:
    with embedded_server() as url:
        yield Databases(url, copies=True)


@pytest.fixture(scope="session")
def real_databases() -> Iterator[Databases]:
    databases = Databases(url_of("STORE"), copies=False)
    yield databases
    databases.close()


@pytest.fixture(params=["embedded", "timescale"])
def store_url(request) -> Iterator[str]:
    """A new database, migrated."""
    kind = "embedded_databases" if request.param == "embedded" else "real_databases"
    with request.getfixturevalue(kind).one() as url:
        yield url


@pytest.fixture
async def store(store_url) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(store_url, name="test") as store:
        yield store
