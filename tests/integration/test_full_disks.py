"""Disks that fill, under each engine: what waits, who says so, and that all goes on by itself once there is room."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from city import City, running_city
from city_devices import EdgeAgent, stream, thing
from city_engines import EmbeddedStore, Kafka, answers, event_log
from engines import url_of
from own_postgres import server
from stores import Databases, reachable_folder

from simulators.torture_engines import Disk

MIB = 1 << 20
PATIENCE = 60.0  # s


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Disk]:
    disk = Disk(folder, size)
    with disk.mounted() as mounted:
        if not mounted:
            pytest.skip("a small disk is a tmpfs, which only root on Linux may mount")
        yield disk


@contextmanager
def full(disk: Disk) -> Iterator[None]:
    """No byte is left on it while the block runs."""
    filler = disk.folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(16 << 10))
    try:
        yield
    finally:
        filler.unlink()


class Small(NamedTuple):
    """A city, the small disk that an engine of it writes on, how it is seen, and what has to be done once there is room."""

    city: City
    disk: Disk
    is_seen: Callable[[], bool]
    mend: Callable[[], None]


def says(city: City, cause: str) -> Callable[[], bool]:
    """Whether health names the cause."""
    return lambda: any(
        cause in check["detail"]
        for check in city.http.get("/health/ready").json()["checks"]
        if not check["ok"]
    )


def nothing() -> None:
    """It goes on by itself."""


@contextmanager
def all_on_one_disk() -> Iterator[Small]:
    """All that the embedded engines, the services and the gateways write."""
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        disk = stack.enter_context(small_disk(folder / "city", 300 * MIB))
        store = EmbeddedStore(disk.folder / "store")
        stack.callback(store.close)
        city = running_city("embedded", disk.folder, f"sqlite:{disk.folder / 'log'}", store.url)
        running = stack.enter_context(city)
        yield Small(running, disk, says(running, "MB are left on the disk of"), nothing)


@contextmanager
def a_store_of_ones_own() -> Iterator[Small]:
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        disk = stack.enter_context(small_disk(folder / "store", 200 * MIB))
        store = stack.enter_context(server("real", disk.folder))
        log_url = stack.enter_context(event_log("real", folder))
        city = running_city("real", folder, log_url, store.url("citylab"))
        running = stack.enter_context(city)
        yield Small(running, disk, says(running, "No space left on device"), nothing)


@contextmanager
def kafka() -> Iterator[Small]:
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        disk = stack.enter_context(small_disk(folder / "kafka", 200 * MIB))
        log = Kafka(disk.folder)
        stack.callback(log.close)
        databases = Databases(url_of("STORE"), copies=False)
        stack.callback(databases.close)
        city = running_city("real", folder, log.url, databases.make())
        port = urlsplit(log.url).port or 0
        yield Small(stack.enter_context(city), disk, lambda: not answers(port), log.start)  # it stops


ENGINES = {"embedded": all_on_one_disk, "PostgreSQL": a_store_of_ones_own, "Kafka": kafka}
STORED = "SELECT count(*), count(DISTINCT phenomenon_time), sum(result_number) FROM observations"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_comes_while_a_disk_is_full_is_stored_once_there_is_room(engine):
    with ENGINES[engine]() as small, EdgeAgent(small.city, "lamp", thing("lamp", stream("lamp/a"))) as agent:
        city = small.city
        services = city.pids()
        values = {second: float(second) for second in range(10_000)}
        agent.say("lamp/a", {second: values.pop(second) for second in range(100)})
        city.until(lambda: len(city.results("lamp/a")) == 100, "data flow")

        with full(small.disk):
            agent.say("lamp/a", values)
            city.until(small.is_seen, "it is seen", PATIENCE)
            assert len(city.results("lamp/a")) >= 100, "the API reads"
        small.mend()

        agent.end(PATIENCE)
        everything = [(10_000, 10_000, sum(range(10_000)))]
        city.until(lambda: city.fetch(STORED) == everything, "each value is there, once", PATIENCE)
        city.until(city.is_well, "all is well", PATIENCE)
        assert city.pids() == services, city.story()
