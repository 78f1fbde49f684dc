"""A store that fails over: its primary is killed, its standby promoted, and services go on there by themselves."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from urllib.parse import quote, urlsplit

import pytest
from city import City, run, running_city
from city_devices import T0, EdgeAgent, place, stream, thing
from city_engines import event_log
from own_postgres import Pair, pair
from stores import reachable_folder

from api.sensorthings.geometries import StoredGeometries
from api.sensorthings.geometry import Column, Measure, Source
from citylab.adapters.store import PostgresStore
from citylab.errors import ConfigurationError, Unavailable
from citylab.writes import CatalogueChanged, bookkeeping
from processing import catalogue
from processing.descriptors import text_of

A_WHILE = 1.0  # s in which a service that cannot stand a standby would have ended
PLACES = Source("locations", "id", "location")
TIMES = "SELECT count(*), count(DISTINCT phenomenon_time) FROM observations"


@contextmanager
def city_on_a_pair(kind: str, *, asks: str = "", synchronous: bool = False) -> Iterator[tuple[City, Pair]]:
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        servers = stack.enter_context(pair(kind, folder))
        if synchronous:
            servers.follow_synchronously()
        url = (
            servers.url(servers.standby, servers.primary, asks=asks)
            if asks
            else servers.url(servers.primary, servers.standby)
        )
        log_url = stack.enter_context(event_log(kind, folder))
        yield stack.enter_context(running_city(kind, folder, log_url, url)), servers


def test_a_synchronous_standby_takes_over_and_nothing_is_lost_or_doubled():
    with city_on_a_pair("real", asks="?target_session_attrs=read-write", synchronous=True) as (city, servers):
        services, name = city.pids(), "lamp/a"
        values = {second: float(second) for second in range(25_000)}
        with EdgeAgent(city, "lamp", thing("lamp", stream(name))) as agent:
            agent.say(name, values)
            city.until(lambda: city.fetch(TIMES)[0][0] > 1_000, "data flow")
            created = city.http.post("/v1.1/Things", json={"name": "bench", "description": "of a park"})
            servers.primary.kill()
            assert created.status_code == 201
            city.until(lambda: city.http.get("/v1.1/Things").status_code == 503, "the API says so")
            before = servers.standby.fetch(TIMES, "citylab")[0][0]
            assert before < len(values), "all was over before the fail-over"
            city.stays(lambda: city.pids() == services, "services wait beside a standby", A_WHILE)
            servers.promote()

            city.until(lambda: city.fetch(TIMES) == [(len(values), len(values))], "each value is there, once")
            agent.end()
        city.until(city.is_well, "all is well")
        assert city.get(created.headers["location"])["name"] == "bench"
        assert city.pids() == services, city.story()
        assert city.fetch("SELECT stored, duplicates, records FROM ledger") == [(len(values), 0, len(values))]


def test_what_an_asynchronous_standby_had_not_got_is_read_again_from_the_log():
    with city_on_a_pair("embedded") as (city, servers):
        services = city.pids()
        within = quote("geo.distance(location,geography'POINT (2.3 41.5)') lt 0.01")
        near = f"/v1.1/Locations?$filter={within}"
        city.register("post", thing("post", stream("post/a")))
        city.pack("post", {"n": "post/a", "t": T0, "v": 1}, epoch=1, seq=1)
        city.until(lambda: city.results("post/a") == [1], "the first reading is stored")
        doctor = run("doctor", env=city.environment()).stdout
        assert "a fail-over can lose the last commits (no synchronous standby)" in doctor
        servers.stop_following()
        city.register("lamp", thing("lamp", stream("lamp/a"), at=place(2.3, 41.5)))
        for gateway in ("post", "lamp"):
            for second in range(1, 9):
                city.pack(
                    gateway, {"n": f"{gateway}/a", "t": T0 + second, "v": second}, epoch=1, seq=second + 1
                )
        everything = {"post/a": list(range(1, 9)), "lamp/a": list(range(1, 9))}
        everything["post/a"].insert(0, 1)
        city.until(lambda: {n: city.results(n) for n in everything} == everything, "all is stored")
        created = city.http.post("/v1.1/Things", json={"name": "bench", "description": "of a park"})
        assert len(city.get(near)["value"]) == 1

        servers.primary.kill()
        servers.promote()

        city.until(lambda: {n: city.results(n) for n in everything} == everything, "it comes from the log")
        city.until(city.is_well, "all is well")
        assert len(city.get(near)["value"]) == 1
        ledger = "SELECT stored, duplicates, packs, duplicate_packs FROM ledger ORDER BY gateway"
        city.until(
            lambda: city.fetch(ledger) == [(8, 0, 8, 0), (9, 0, 9, 0)], "the ledger has each pack once"
        )
        assert city.fetch("SELECT count(*) FROM rejections") == [(0,)]
        assert city.http.get(created.headers["location"]).status_code == 404, "it was in no log"
        assert city.pids() == services, city.story()


def test_a_transaction_number_that_is_given_again_is_no_known_one():
    with reachable_folder() as folder, pair("embedded", folder) as servers:
        asyncio.run(given_again(servers))


async def given_again(servers: Pair) -> None:
    geometries = StoredGeometries()
    column = Column(Measure("geo.distance", (PLACES, "POINT (1 1)"), bound=("lt", 0.1)), "true", 0)

    async def near(store: PostgresStore) -> str:
        """Which Locations are near (1, 1), as those in memory tell."""
        async with store.transaction(read_only=True) as transaction:
            return str((await geometries.fill(transaction, {"ids": column}))["ids"])

    async def change(store: PostgresStore, x: float) -> int:
        """Move the Location and change the catalogue; the number of the transaction."""
        async with store.transaction() as transaction:
            await transaction.execute(
                "UPDATE locations SET location = %s::jsonb", (text_of(place(x, 1)["location"]),)
            )
            await transaction.execute(
                "UPDATE datastreams SET properties = properties || '{\"changed\": true}'"
            )
            ((number,),) = await transaction.fetch("SELECT version FROM catalogue")
        return int(number)

    async with PostgresStore(servers.url(servers.primary, servers.standby)) as store:
        async with store.transaction() as transaction:
            of_thing = {"name": "lamp", "description": "post", "Locations": [place()]}
            await transaction.create("Datastreams", stream("lamp/a") | {"Thing": of_thing})
        await asyncio.to_thread(servers.stop_following)
        lost = await change(store, 1)
        known = replace(bookkeeping(), catalogue_version=(await catalogue.load(store)).version)
        await store.save(known)
        assert await near(store) == "{1}"

        servers.primary.kill()
        await asyncio.to_thread(servers.promote)
        async with PostgresStore(servers.standby.url("citylab")) as other:
            while (
                int(servers.standby.fetch("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0])
                < lost
            ):
                servers.standby.fetch("SELECT pg_current_xact_id()::text")
            assert await change(other, 5) == lost

        with suppress(Unavailable):  # its connection was to the primary
            await near(store)
        with pytest.raises(CatalogueChanged):
            await store.save(known)
        assert await near(store) == "{}"


async def test_a_server_that_takes_no_writes_is_one_to_wait_for(store):
    async with store.transaction(read_only=True) as transaction:
        await transaction.execute("SET default_transaction_read_only = on")
        with pytest.raises(Unavailable, match="takes no writes"):
            await transaction.execute("DELETE FROM services")


async def test_a_url_that_postgresql_does_not_understand_is_named_without_its_password(store_url):
    with pytest.raises(ConfigurationError, match="target_session_attr") as raised:
        PostgresStore(f"{store_url}?target_session_attr=any")
    assert f":{urlsplit(store_url).password}@" not in str(raised.value)
