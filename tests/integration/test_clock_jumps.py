"""The platform's clock is put, by a day, while data flow: nothing waits for it, and what it had refused can be taken up."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import city_engines
import pytest
from city import KINDS, City, run
from city_devices import EdgeAgent, stream, thing
from city_engines import Broker
from stores import reachable_folder

from citylab.settings import Settings

SCRIPT = Path(__file__).parents[1] / "put_clock.py"
HOUR, DAY = 3_600, 86_400  # s
PROMPTLY = 20.0  # s


@pytest.fixture(params=KINDS)
def put(request) -> Iterator[tuple[City, Callable[[int], None]]]:
    """A city, and what puts the clock of its services to so many seconds ahead of the store's and the gateways'."""
    kind = request.param
    databases = request.getfixturevalue("embedded_databases" if kind == "embedded" else "real_databases")
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        broker = Broker(kind, folder / "broker")
        stack.callback(broker.close)
        broker.start()
        settings = Settings.load({}, data=folder).replaced(
            broker_url=broker.url,
            log_url=stack.enter_context(city_engines.event_log(kind, folder)),
            store_url=databases.make(),
            http_port=city_engines.free_port(),
            embedded_broker=kind == "embedded",
        )
        city, file = City(folder, settings, broker), folder / "ahead"

        def put(seconds: int) -> None:
            new = folder / "ahead.new"
            new.write_text(str(seconds))
            new.replace(file)  # nobody reads half of it

        put(0)
        for name, service in city.services.items():
            service.command = [sys.executable, str(SCRIPT), str(file), name]
        stack.enter_context(city)
        city.until(city.is_well, "the city is well")
        yield city, put


def clocks(city: City) -> dict[str, str]:
    """What health says of clocks."""
    checks = city.http.get("/health/ready").json()["checks"]
    return {one["name"]: one["detail"] for one in checks if one["name"].startswith("clock")}


def test_nothing_waits_for_a_clock_that_is_put_back_or_forward(put):
    city, set_to = put
    services, name = city.pids(), "lamp/a"
    now = int(time.time()) - 100
    sent: list[int] = []

    def say(agent: EdgeAgent) -> None:
        """Readings of now, by the gateway's clock, which is right."""
        values = {second: float(second) for second in range(len(sent), len(sent) + 10)}
        sent.extend(values)
        agent.say(name, values, since=now)

    with EdgeAgent(city, "lamp", thing("lamp", stream(name))) as agent:
        for ahead in (HOUR, 0, DAY):
            set_to(ahead)
            say(agent)
            city.until(lambda: city.results(name) == sent, f"data flow {ahead} s ahead", PROMPTLY)
            if ahead:
                city.until(
                    lambda n=ahead: any(f"{n:,} s ahead" in why for why in clocks(city).values()),
                    "health says it",
                )

        set_to(-DAY)
        say(agent)
        refused = "SELECT count(*) FROM rejections WHERE reason = 'time-in-future' AND closed_at IS NULL"
        city.until(lambda: city.fetch(refused) == [(10,)], "a day behind, all is in the future", PROMPTLY)
        city.until(
            lambda: any("behind the store's" in why for why in clocks(city).values()), "health says it"
        )
        city.register("post", thing("post", stream("post/a")))
        city.pack("post", {"n": "post/a", "t": now - 2 * DAY, "v": 1}, epoch=1, seq=1)
        city.until(lambda: city.results("post/a") == [1], "what is registered meanwhile is stored", PROMPTLY)

        set_to(0)
        say(agent)
        agent.end()
    city.until(city.is_well, "all is well", PROMPTLY)
    replayed = run("rejections", "replay", "--reason", "time-in-future", env=city.environment())
    assert replayed.returncode == 0, replayed.stderr
    assert city.results(name) == sent
    assert city.pids() == services, city.story()
