import asyncio
import json
import math
import re
from collections import Counter
from itertools import pairwise

import pytest

from citylab.commands import Command
from citylab.model import GATEWAY_NAME, HOUR, MINUTE, SECOND, Quality, Reading
from citylab.tasking_parameters import check_values
from citylab.times import parse_duration, parse_instant
from citylab.tracks import metres
from simulators.city import GATEWAYS, TASKED, CityDriver, drivers
from simulators.city_bus import STOPS
from simulators.city_signals import Moment, sun, traffic

NOON = parse_instant("2026-05-06T10:00:00Z")
STREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-:._/]*")


class Clock:
    """A wall clock that moves only while somebody sleeps."""

    def __init__(self, now: int = NOON) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += math.ceil(seconds * SECOND)
        await asyncio.sleep(0)


def city(clock: Clock, seed: int = 1) -> dict[str, CityDriver]:
    return drivers(seed, clock=clock, sleep=clock.sleep)


async def run(
    driver: CityDriver, until: int, position: str | None = None
) -> tuple[list[Reading], str | None]:
    """What a driver says up to an instant, and where it was then."""
    said: list[Reading] = []
    async for readings, place in driver.readings(position):
        said.extend(readings)
        position = place
        if place is not None and int(place) >= until:
            break
    return said, position


def one_hour(seed: int = 1) -> list[Reading]:
    return [
        reading for driver in city(Clock(), seed).values() for reading in driver.between(NOON - HOUR, NOON)
    ]


def test_it_has_25_things_and_about_80_datastreams_behind_several_gateways() -> None:
    made = city(Clock())
    names = [
        stream["properties"]["streamName"]
        for d in made.values()
        for t in d.things
        for stream in t["Datastreams"]
    ]

    assert sum(len(driver.things) for driver in made.values()) == 25
    assert 70 <= len(names) <= 90
    assert len(set(names)) == len(names)
    assert len(made) == len(GATEWAYS) == 7
    assert all(GATEWAY_NAME.fullmatch(gateway) for gateway in made)
    assert all(STREAM_NAME.fullmatch(name) for name in names)


def test_an_observed_property_has_one_name_whoever_observes_it() -> None:
    """They are shared by their definition, and the first to register one names it."""
    observed = {
        (stream["ObservedProperty"]["definition"], json.dumps(stream["ObservedProperty"]))
        for driver in city(Clock()).values()
        for thing in driver.things
        for stream in thing["Datastreams"]
    }

    assert len(observed) == len({definition for definition, _ in observed})


def test_every_thing_stands_in_barcelona_and_says_that_it_is_simulated() -> None:
    for driver in city(Clock()).values():
        for thing in driver.things:
            (location,) = thing["Locations"]
            longitude, latitude = location["location"]["coordinates"]
            assert 2.05 < longitude < 2.25
            assert 41.33 < latitude < 41.46
            assert "Simulated" in thing["description"]


def test_values_come_at_the_declared_interval_with_the_declared_unit() -> None:
    said = one_hour()
    for driver in city(Clock()).values():
        for thing in driver.things:
            for stream in thing["Datastreams"]:
                interval = parse_duration(stream["properties"]["interval"])
                assert SECOND <= interval <= MINUTE
                mine = [r for r in said if r.name == stream["properties"]["streamName"]]
                assert mine
                assert {r.unit for r in mine} == {stream["properties"].get("senmlUnit")}
                assert all((b.time - a.time) % interval == 0 for a, b in pairwise(mine))


def test_the_same_seed_says_the_same_and_another_does_not() -> None:
    assert one_hour(1) == one_hour(1)
    assert one_hour(1) != one_hour(2)


async def test_an_hour_of_history_comes_first_and_then_second_by_second() -> None:
    clock = Clock()
    driver = city(clock)["city-ciutat-vella"]
    said, _ = await run(driver, NOON + 30 * SECOND)

    assert said == driver.between(NOON - HOUR, NOON + 30 * SECOND)
    assert clock.now >= NOON + 30 * SECOND
    times = [reading.time for reading in said]
    assert times == sorted(times)
    assert all(time <= clock.now for time in times)


async def test_nothing_is_said_before_its_time() -> None:
    clock = Clock()
    async for readings, position in city(clock)["city-eixample"].readings(None):
        assert all(reading.time <= clock.now for reading in readings)
        if position is not None and int(position) > NOON + 5 * SECOND:
            break


async def test_a_restart_goes_on_without_a_gap_and_without_a_contradiction() -> None:
    clock = Clock()
    first, position = await run(city(clock)["city-gracia"], NOON + 10 * SECOND)
    clock.now += 5 * MINUTE

    second, _ = await run(city(clock)["city-gracia"], clock.now, position)

    whole = city(clock)["city-gracia"].between(NOON - HOUR, second[-1].time)
    assert first + second == whole


@pytest.mark.parametrize("position", [str(NOON - 30 * HOUR), None, "nonsense"])
async def test_after_a_long_pause_only_the_last_hour_is_made_up(position: str | None) -> None:
    said, _ = await run(city(Clock())["city-nord"], NOON, position)

    assert said[0].time > NOON - HOUR


async def test_a_position_ahead_of_the_clock_goes_on_from_now() -> None:
    said, _ = await run(city(Clock())["city-nord"], NOON + 10 * SECOND, str(NOON + 30 * HOUR))

    assert NOON < said[0].time <= NOON + 10 * SECOND


def test_every_hour_has_values_that_are_suspect_and_bad_and_things_that_are_silent() -> None:
    said = one_hour()
    flags = Counter(reading.quality for reading in said)
    assert flags[Quality.SUSPECT] > 0
    assert flags[Quality.BAD] > 0
    assert flags[Quality.NONE] > 0.9 * len(said)

    wind = [r.time for r in said if r.name == "city/weather-montjuic/wind"]
    assert max(b - a for a, b in pairwise(wind)) > 5 * MINUTE


def test_values_are_plausible() -> None:
    ranges = {
        "no2": (0, 120), "o3": (0, 150), "pm25": (0, 60), "pm10": (0, 90), "laeq": (35, 100), "lamax": (35, 110),
        "temperature": (-5, 42), "humidity": (10, 100), "wind": (0, 25), "pressure": (980, 1045), "rain": (0, 20),
        "sunshine": (0, 1100), "in": (0, 80), "out": (0, 80), "vehicles": (0, 60), "speed": (1, 80), "occupancy": (0, 100),
        "rate": (0, 1500), "longitude": (2.14, 2.18), "latitude": (41.38, 41.43), "rsrp": (-120, -50), "devices": (0, 800), "free": (0, 500), "taken": (0, 100),
    }  # fmt: skip
    for start in ("2026-01-15T03:00:00Z", "2026-07-15T07:00:00Z", "2026-07-15T18:00:00Z"):
        at = parse_instant(start)
        for driver in city(Clock()).values():
            for reading in driver.between(at, at + 5 * MINUTE):
                least, greatest = ranges[reading.name.rpartition("/")[2]]
                margin = 1.15 if reading.quality is not Quality.NONE else 1.0
                assert isinstance(reading.value, float)
                assert least <= reading.value <= greatest * margin or greatest < 0, reading


def test_a_day_has_the_shape_of_one() -> None:
    day = parse_instant("2026-05-05T22:00:00Z") // SECOND  # midnight of a Wednesday in Barcelona
    moments = [Moment.at(day + 3600 * hour) for hour in range(24)]

    assert [moment.hour for moment in moments] == list(range(24))
    assert max(moments, key=traffic).hour in {8, 9, 18, 19}
    assert traffic(moments[3]) < 0.2
    assert max(moments, key=sun).hour in {13, 14}
    assert sun(moments[0]) == 0


def test_the_bus_says_where_it_is_in_pairs_and_drives_as_a_bus_does() -> None:
    said = city(Clock())["city-bus"].between(NOON - HOUR, NOON)
    longitude, latitude = (
        {r.time: r.value for r in said if r.name == f"city/bus-v17/{axis}"}
        for axis in ("longitude", "latitude")
    )
    track = [(longitude[time], latitude[time]) for time in sorted(longitude)]
    steps = [metres(one, other) for one, other in pairwise(track)]

    assert longitude.keys() == latitude.keys()
    assert len(track) == 720
    assert max(steps) < 5 * 6.1  # m in five seconds
    assert steps.count(0) > 50  # it halts at its stops
    assert {min(STOPS, key=lambda stop: metres(stop, point)) for point in track} == set(STOPS)


async def test_one_noise_meter_can_be_told_how_often_to_measure() -> None:
    driver = city(Clock())["city-eixample"]
    (meter,) = [thing for thing in driver.things if "TaskingCapabilities" in thing]
    (capability,) = meter["TaskingCapabilities"]
    assert meter["properties"]["key"] == f"city-{TASKED}"

    def seconds() -> list[int]:
        said = [reading for reading in driver.between(NOON, NOON + MINUTE) if reading.name.endswith("/laeq")]
        return [(reading.time - NOON) // SECOND for reading in said]

    async def told(parameters: dict[str, object]) -> list[str]:
        command = Command(1, {}, parameters, "")
        return [result.state async for result in driver.perform(command)]

    assert len(seconds()) == 60
    check_values(json.dumps(capability["taskingParameters"]), '{"seconds": 20}')
    assert await told({"seconds": 20}) == ["completed"]
    assert seconds() == [20, 40, 60]
    for wrong in ({}, {"seconds": 0}, {"seconds": "x"}, {"seconds": 61}):
        assert await told(wrong) == ["rejected"]
    assert seconds() == [20, 40, 60]
    other = city(Clock())["city-gracia"]
    assert [r.state async for r in other.perform(Command(1, {}, {"seconds": 5}, ""))] == ["rejected"]
