"""The bridge, processing and edge agents are killed while a recording is replayed: the store equals the file.

The moments are drawn from CITYLAB_TEST_SEED, else from a seed of the run; a failure prints it.
"""

import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from city import City, run
from city_devices import T0, Command, stream, thing

from citylab.model import Reason
from simulators import open_data_bcn
from simulators.playback import Recording
from simulators.recordings import air_quality_rows, write_air_quality

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "2025_08_Agost_qualitat_aire_BCN.csv"
KILLS = 3  # of each: bridge, processing, edge agents
FLOWS_FOR = 20.0  # s that the replay would take if nobody killed
STORED = "SELECT coalesce(sum(count), 0)::bigint FROM latest"
TABLES = ("observations", "latest", "aggregates", "rejections", "things", "locations", "historical_locations",
    "sensors", "observed_properties", "datastreams", "features_of_interest")  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A month of Barcelona's air quality: the recorded one where it lies beside the checkout, else one like it."""
    if RECORDED.exists():
        return RECORDED
    series = [(station, code) for station in open_data_bcn.STATIONS for code in ("1", "7", "8", "10", "999")]
    path = tmp_path_factory.mktemp("recording") / "air.csv"
    path.write_text(write_air_quality(air_quality_rows(1, first=date(2025, 8, 1), days=31, series=series)))
    return path


def values_of(recording: Recording) -> set[tuple[str, int, Any, int]]:
    """Stream, time in µs, value and quality of each value of the file."""
    return {
        (reading.name, reading.time, float(reading.value), int(reading.quality))
        for part in recording.parts.values()
        for step in part.steps
        for reading in step.readings
    }


def values_in(city: City) -> list[tuple[str, int, Any, int]]:
    return city.fetch(
        "SELECT d.stream_name, (extract(epoch FROM o.phenomenon_time) * 1000000)::bigint, o.result_number, o.quality"
        " FROM observations o JOIN datastreams d ON d.id = o.datastream_id"
    )


def tables_of(city: City) -> dict[str, Any]:
    return {
        table: city.fetch(
            f"SELECT count(*), md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM {table} t"
        )
        for table in TABLES
    }


def unacknowledged(city: City) -> dict[str, int]:
    """How many packs each outbox that has been made still waits to be told of."""
    found = {}
    for file in (city.folder / "edge" / "replay").glob("*/outbox.db"):
        with closing(sqlite3.connect(file)) as outbox:
            if outbox.execute("SELECT 1 FROM sqlite_master WHERE name = 'numbers'").fetchone():
                ((found[file.parent.name],),) = outbox.execute("SELECT count(*) FROM numbers WHERE pending")
    return found


def test_the_store_equals_the_file_whoever_is_killed(own_city, file):
    city, recording = own_city, open_data_bcn.read(file)
    recorded_for = (recording.summary.last or 0) - (recording.summary.first or 0)
    with Command(city, "replay", "open-data-bcn", file, "--speed", recorded_for / 1e6 / FLOWS_FOR) as replay:
        _kill_while_it_flows(city, recording, replay)
    _check_that_all_is_there_once(city, recording)
    before_again = tables_of(city)
    again = run("replay", "open-data-bcn", file, "--speed", "max", env=city.environment(), within=60)
    assert again.returncode == 0, again.stderr
    assert f"0 values new, {recording.summary.values:,} there already, 0 rejected" in again.stdout
    city.until(lambda: city.fetch("SELECT count(*) FROM stale_hours") == [(0,)], "hours and days are folded")
    assert tables_of(city) == before_again


def _kill_while_it_flows(city: City, recording: Recording, replay: Command) -> None:
    """Kill each service and the agents several times, at seeded moments of the data's flow; return at its end."""
    expected = values_of(recording)
    seed = int(os.environ.get("CITYLAB_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    sys.stdout.write(f"CITYLAB_TEST_SEED={seed}\n")
    random_ = random.Random(seed)
    kill_and_start: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "edge agents": (replay.kill, replay.start),
        "ingest": (lambda: city.kill("ingest"), lambda: city.start("ingest")),
        "processing": (lambda: city.kill("processing"), lambda: city.start("processing")),
    }
    victims = list(kill_and_start) * KILLS
    random_.shuffle(victims)
    moments = sorted(random_.uniform(0.02, 0.75) for _ in victims)

    before = -1
    for victim, moment in zip(victims, moments, strict=True):
        wanted = max(moment * len(expected), before + 1)  # after the last kill it has gone on
        stored = city.until(
            lambda least=wanted: (found := city.fetch(STORED)[0][0]) >= least and found,
            f"{wanted:.0f} values are stored, after which {victim} is killed; the replay says:\n"
            + replay.said,
            within=60,
        )
        sys.stdout.write(f"killing {victim} at {stored} of {len(expected)} values\n")
        assert stored < len(expected), "all was over before the last kill"
        kill, start = kill_and_start[victim]
        kill()
        before = city.fetch(STORED)[0][0]
        start()

    city.until(lambda: replay.process.poll() is not None, "the replay ends", within=90)
    assert replay.process.returncode == 0, replay.said


def _check_that_all_is_there_once(city: City, recording: Recording) -> None:
    expected = values_of(recording)
    found = values_in(city)
    assert len(found) == len(expected), "a row is there twice, or missing"
    assert set(found) == expected
    for reason, is_open in city.fetch("SELECT reason, closed_at IS NULL FROM rejections"):
        assert reason in set(Reason)
        assert not is_open
    assert unacknowledged(city) == dict.fromkeys(recording.parts, 0)
    for gateway, balanced, whole in city.fetch(
        "SELECT gateway, records = stored + duplicates + rejected, received = int8multirange(int8range(1, upper(received)))"
        " FROM ledger"
    ):
        assert (gateway, balanced, whole) == (gateway, True, True)

    city.until(lambda: city.fetch("SELECT count(*) FROM stale_hours") == [(0,)], "hours and days are folded")


def test_what_devices_say_while_the_bridge_is_away_waits_at_the_broker(own_city):
    city = own_city
    city.register("lamp", thing("lamp", stream("lamp/a")))
    city.fetch("UPDATE things SET name = 'edited' WHERE key = 'lamp'")
    city.kill("ingest")

    for second in range(20):
        city.pack("lamp", {"n": "lamp/a", "t": T0 + second, "v": second})
    city.descriptor("post", thing("post", stream("post/a")))
    city.pack("post", {"n": "post/a", "t": T0, "v": 1})
    city.start("ingest")

    city.until(lambda: city.results("lamp/a") == list(range(20)), "every reading is stored")
    city.until(lambda: city.results("post/a") == [1], "the new gateway is registered, and its reading stored")
    # The bridge has got the retained descriptor again, and has changed nothing by it.
    assert city.datastream("lamp/a")["Thing"]["name"] == "edited"
    assert len(city.fetch("SELECT 1 FROM observations")) == 21


def test_a_backlog_is_not_judged_before_its_descriptors(own_city, file):
    city, recording = own_city, open_data_bcn.read(file)
    city.kill("processing")
    with Command(city, "replay", "open-data-bcn", file, "--speed", "max") as replay:
        city.until(lambda: set(unacknowledged(city)) == set(recording.parts), "the agents have begun")
        city.until(lambda: not any(unacknowledged(city).values()), "the log has all packs")
        assert not replay.ended, f"nothing is stored, and it has ended: {replay.said}"

        city.start("processing")

        city.until(lambda: replay.ended, "the replay ends", within=60)
    assert f"{recording.summary.values:,} values new, 0 there already, 0 rejected" in replay.said
    assert set(values_in(city)) == values_of(recording)
    assert city.fetch("SELECT count(*) FROM rejections") == [(0,)]


def test_several_bridges_and_processors_share_the_work_and_store_nothing_twice(own_city, file):
    city, recording = own_city, open_data_bcn.read(file)
    expected = values_of(recording)
    with Command(city, "ingest", CITYLAB_BRIDGE_NAME="2") as bridge, Command(city, "processing") as processor:
        second = "SELECT state ->> 'connected' FROM services WHERE name = 'ingest 2'"
        city.until(lambda: city.fetch(second) == [("true",)], "the second bridge is connected")
        replayed = run("replay", "open-data-bcn", file, "--speed", "max", env=city.environment(), within=120)

        assert replayed.returncode == 0, f"{replayed.stderr}\n{city.story()}"
        assert not bridge.ended, bridge.said
        assert not processor.ended, processor.said
        packs = "SELECT name, (state ->> 'packs')::int FROM services WHERE name LIKE 'ingest%%'"
        city.until(lambda: all(count > 0 for _, count in city.fetch(packs)), "both bridges report packs")
    found = values_in(city)
    assert len(found) == len(expected)
    assert set(found) == expected


WORKERS = "SELECT name FROM services WHERE starts_with(name, 'processing') ORDER BY name"
TAKEN_OVER_WITHIN = 10.0  # s after a kill -9, the contracts' promise; 2 s after a worker that says so


@pytest.mark.parametrize("victim", ["the first", "the second"])
def test_of_two_processors_one_is_killed_and_the_other_takes_over(own_city, file, victim):
    city, recording = own_city, open_data_bcn.read(file)
    expected = values_of(recording)
    with Command(city, "processing", "--number", 2) as second:
        city.until(lambda: city.fetch(WORKERS) == [("processing",), ("processing 2",)], "two share the work")
        assert city.is_well()
        replay = Command(city, "replay", "open-data-bcn", file, "--speed", "max")
        city.until(lambda: city.fetch(STORED)[0][0] > len(expected) // 5, "a fifth is stored")
        if victim == "the first":
            city.kill("processing")
        else:
            second.kill()
        killed = time.monotonic()
        left = "processing 2" if victim == "the first" else "processing"
        city.until(lambda: city.fetch(WORKERS) == [(left,)], "the other takes over", TAKEN_OVER_WITHIN)

        city.until(lambda: replay.ended, "the replay ends", within=60)
        sys.stdout.write(f"ended {time.monotonic() - killed:.1f} s after the kill\n")
        assert replay.process.returncode == 0, replay.said
        found = values_in(city)
        assert len(found) == len(expected), "a row is there twice, or missing"
        assert set(found) == expected
        # What one alone does, the other does now.
        city.register("lamp", thing("lamp", stream("lamp/a")))
        city.pack("lamp", {"n": "lamp/a", "t": T0, "v": 1})
        city.until(lambda: city.results("lamp/a") == [1], "a new gateway's reading is stored")
        city.until(lambda: city.fetch("SELECT count(*) FROM stale_hours") == [(0,)], "hours are folded")
        city.until(
            lambda: city.fetch("SELECT count(*) FROM pending_announcements") == [(0,)], "all is announced"
        )
        assert city.is_well()


def test_a_worker_that_comes_or_goes_stops_the_flow_for_less_than_two_seconds(own_city):
    city = own_city
    gateways = [f"gw-{n}" for n in range(8)]  # in every partition, or nearly
    for gateway in gateways:
        city.register(gateway, thing(gateway, stream(f"{gateway}/a")))
    longest, second, count = 0.0, 0, "SELECT count(*) FROM observations"

    def flow(seconds: float) -> None:
        nonlocal longest, second
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            second += 1
            sent = time.monotonic()
            for gateway in gateways:
                city.pack(gateway, {"n": f"{gateway}/a", "t": T0 + second, "v": second})
            city.until(lambda n=second * len(gateways): city.fetch(count) == [(n,)], "all are stored")
            longest = max(longest, time.monotonic() - sent)

    flow(0.5)
    with Command(city, "processing", "--number", 2, "--workers", 2) as others:
        city.until(lambda: (flow(0.1), len(city.fetch(WORKERS)) == 3)[1], "three share the work")
        flow(1.0)
        others.process.terminate()
        city.until(lambda: (flow(0.1), len(city.fetch(WORKERS)) == 1)[1], "one is left")
        flow(1.0)
    sys.stdout.write(f"the longest stop: {longest:.2f} s\n")
    assert longest < 2.0
    assert len(city.fetch("SELECT DISTINCT datastream_id FROM observations")) == len(gateways)
