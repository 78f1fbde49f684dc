"""`citylab replay` as a person uses it: what arrives, what it says, and what it says of files that are wrong."""

import re
import signal
import subprocess
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec
import pytest
from city import City, clean_environment, run
from city_devices import Command

from citylab.times import parse_instant
from simulators import drive_test, open_data_bcn
from simulators.recordings import (
    Cell,
    air_quality_rows,
    drive_rows,
    write_air_quality,
    write_drive_test,
)

RECORDED = Path(__file__).parents[3] / "shared" / "data"
MADE = write_air_quality(
    air_quality_rows(3, first=date(2025, 3, 29), days=3, series=[("43", "8"), ("57", "999")])
)


@pytest.fixture
def file(tmp_path) -> Path:
    """Three days of two stations' air, among them the day of 23 hours."""
    path = tmp_path / "air.csv"
    path.write_text(MADE)
    return path


def replay(city: City, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("replay", *arguments, env=city.environment())


def values_of(recording) -> dict[str, list[tuple[int, float]]]:
    """By stream name: time in µs and value."""
    found: dict[str, list[tuple[int, float]]] = {}
    for part in recording.parts.values():
        for step in part.steps:
            for reading in step.readings:
                found.setdefault(reading.name, []).append((reading.time, reading.value))
    return found


def values_in(city: City, recording) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, time, value in city.fetch(
        "SELECT d.stream_name, (extract(epoch FROM o.phenomenon_time) * 1000000)::bigint, o.result_number"
        " FROM observations o JOIN datastreams d ON d.id = o.datastream_id WHERE d.stream_name = ANY(%s) ORDER BY 2",
        list(values_of(recording)),
    ):
        found.setdefault(name, []).append((time, value))
    return found


def test_a_file_arrives_whole_and_again_changes_nothing(city, file):
    recording = open_data_bcn.read(file)
    count = recording.summary.values

    first = replay(city, "open-data-bcn", file, "--speed", "max")
    again = replay(city, "open-data-bcn", file, "--speed", "max", "--json")

    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"air.csv: 6 rows, {count} values")
    assert f"All of it is in the database: {count} values new, 0 there already, 0 rejected." in first.stdout
    said = msgspec.json.decode(again.stdout)
    assert (said["stored"], said["duplicates"], said["rejected"]) == (0, count, 0)
    assert said["file"]["values"] == count
    assert values_in(city, recording) == values_of(recording)
    for name, values in values_of(recording).items():
        station = city.datastream(name)  # as the API tells it
        told = [(parse_instant(one["phenomenonTime"]), one["result"]) for one in station["Observations"]]
        assert told == values
    station = city.datastream("bcn-air/43/NO2")
    assert station["unitOfMeasurement"]["symbol"] == "µg/m³"
    assert station["properties"] | {"interval": "PT1H", "stamp": "end"} == station["properties"]
    unknown = city.datastream("bcn-air/57/999")
    assert unknown["unitOfMeasurement"]["symbol"] is None
    hours = "SELECT count(*) FROM aggregates WHERE datastream_id = %s AND width = %s"
    city.until(lambda: city.fetch(hours, station["@iot.id"], 86_400) > [(0,)], "the days are folded")
    assert city.fetch(hours, station["@iot.id"], 60) == [(0,)]  # a value an hour makes no minutes


def test_a_drive_test_arrives_at_the_place_that_is_named(city, tmp_path):
    path = tmp_path / "drive.csv"
    path.write_text(write_drive_test(drive_rows(1, start=datetime(2022, 8, 11, 9, tzinfo=UTC), rows=300)))
    recording = drive_test.read(path)

    ended = replay(city, "drive-test", path, "--speed", "max", "--location", "-8.5,51.9")

    assert ended.returncode == 0, ended.stderr
    assert values_in(city, recording) == values_of(recording)
    (gateway,) = recording.parts
    ((point,),) = city.fetch(
        "SELECT l.location -> 'coordinates' FROM locations l JOIN things_locations tl ON tl.location_id = l.id"
        " JOIN things t ON t.id = tl.thing_id WHERE t.gateway = %s",
        gateway,
    )
    assert point == [-8.5, 51.9]


@pytest.mark.recordings
@pytest.mark.skipif(
    not RECORDED.exists(), reason="the recordings lie beside the project's own checkouts only"
)
@pytest.mark.parametrize(
    "name", ["5g_drive_cork_2022-08-11", "5g_drive_cork_2021-12-15", "5g_stationary_cork_2022-06-27"]
)
def test_a_recorded_drive_test_arrives_whole(city, name):
    path = RECORDED / f"{name}.csv"
    recording = drive_test.read(path)

    ended = replay(city, "drive-test", path, "--speed", "max")

    assert ended.returncode == 0, ended.stderr
    assert values_in(city, recording) == values_of(recording)


def test_a_replay_that_is_interrupted_goes_on_where_it_was(city, file):
    file.write_text(file.read_text().replace(",43,", ",44,").replace(",57,", ",58,"))
    recording = open_data_bcn.read(file)
    count = recording.summary.values
    interrupted = Command(city, "replay", "open-data-bcn", file, "--speed", 30_000)
    city.until(lambda: values_in(city, recording), "it has begun")
    interrupted.process.send_signal(signal.SIGINT)
    city.until(lambda: interrupted.ended, "it ends")
    assert interrupted.process.returncode == 0, interrupted.said
    stored = sum(map(len, values_in(city, recording).values()))
    assert 0 < stored < count

    again = replay(city, "open-data-bcn", file, "--speed", "max")

    assert values_in(city, recording) == values_of(recording)
    (new,) = re.findall(r"(\d+) values new", again.stdout)
    assert 0 < int(new) < count


LINES = MADE.splitlines()


def test_what_overtook_its_descriptor_is_waited_for(own_city, file):
    city, recording = own_city, open_data_bcn.read(file)
    count = recording.summary.values
    # Nothing can be registered: as if a statement took too long.
    city.fetch(
        "CREATE FUNCTION not_now() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = 'query_canceled'; END $$"
    )
    city.fetch("CREATE TRIGGER not_now BEFORE INSERT ON things EXECUTE FUNCTION not_now()")
    with Command(city, "replay", "open-data-bcn", file, "--speed", "max") as replay:
        refused = "SELECT coalesce(sum(rejected), 0)::bigint FROM ledger"
        city.until(lambda: city.fetch(refused) == [(count,)], "all has come, and has no stream")
        city.stays(lambda: not replay.ended, "the replay waits", 1.0)

        city.fetch("DROP TRIGGER not_now ON things")

        city.until(lambda: replay.ended, "the replay ends")
    assert replay.process.returncode == 0, replay.said
    assert f"{count} values new, 0 there already, 0 rejected" in replay.said
    assert values_in(city, recording) == values_of(recording)


UNREADABLE = {
    "empty": ("", "air.csv is empty"),
    "header-only": (LINES[0] + "\n", "air.csv has a header and no rows"),
    "another-table": (
        "a,b\n1,2\n",
        "air.csv is not Open Data BCN's hourly air quality: it has no columns ESTACIO",
    ),
    "column-missing": (MADE.replace('"H07"', '"X07"'), "it has no column H07"),
    "all-broken": (
        LINES[0] + "\n1,2,3\n",
        "no line that can be replayed: line 2: 3 cells, the header has 57",
    ),
    "binary": ("\0\1\2", "air.csv is no text file"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_cannot_be_replayed_gets_a_sentence(tmp_path, what):
    text, sentence = UNREADABLE[what]
    path = tmp_path / "air.csv"
    path.write_text(text)

    ended = run("replay", "open-data-bcn", path, "--data", tmp_path, env=clean_environment())

    assert ended.returncode == 2
    assert ended.stderr.startswith("citylab replay: ")
    assert sentence in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["open-data-bcn", "nowhere.csv"], "nowhere.csv is not a file that can be read"),
        (["open-data-bcn", "FILE", "--speed", "fast"], "speed 'fast' is neither 'max' nor a number above 0"),
        (["open-data-bcn", "FILE", "--speed", "-1"], "speed '-1'"),
        (["open-data-bcn", "FILE", "--stations", "FILE"], "is not a table of stations"),
        (["drive-test", "FILE"], "air.csv is not"),
        (["drive-test", "FILE", "--location", "Cork"], "Cork"),
        (["open-data-bcn", "FILE"], "no city is running in"),
        (["open-data-bcn"], "Missing argument"),
    ],
)
def test_arguments_that_are_wrong_get_a_sentence(tmp_path, file, arguments, sentence):
    arguments = [file if argument == "FILE" else argument for argument in arguments]
    ended = run("replay", *arguments, "--data", tmp_path, env=clean_environment())

    assert ended.returncode == 2, ended.stderr
    assert sentence in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_a_broken_line_is_named_and_harms_no_other(city, tmp_path):
    lines = [line.replace(",43,", ",42,").replace(",57,", ",54,") for line in LINES]
    cut = ",".join(lines[2].split(",")[:20])
    number = lines[4].split(",")
    number[9] = "a lot"
    lines[2], lines[4] = cut, ",".join(number)
    path = tmp_path / "air.csv"
    path.write_text("\n".join(lines))
    recording = open_data_bcn.read(path)

    ended = replay(city, "open-data-bcn", path, "--speed", "max")

    assert ended.returncode == 0, ended.stderr
    assert "line 3: 20 cells, the header has 57" in ended.stdout
    assert "line 5: H01: 'a lot' is no number" in ended.stdout
    assert values_in(city, recording) == values_of(recording)
    assert recording.summary.values > 80


def test_an_hour_that_the_day_does_not_have_is_reported(city, tmp_path):
    rows = air_quality_rows(3, first=date(2025, 3, 30), days=1, series=[("4", "8")], holes=0)
    cells = list(rows[0].cells)
    cells[2] = Cell("12")
    path = tmp_path / "air.csv"
    path.write_text(write_air_quality([type(rows[0])("4", "8", date(2025, 3, 30), tuple(cells))]))

    ended = replay(city, "open-data-bcn", path, "--speed", "max")

    assert ended.returncode == 0, ended.stderr
    assert "line 2: H03 has the value 12, but on 2025-03-30 the clock sprang over that hour" in ended.stdout
    assert "23 values new" in ended.stdout
