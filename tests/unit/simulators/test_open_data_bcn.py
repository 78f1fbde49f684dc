from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citylab.errors import ConfigurationError
from citylab.model import HOUR, SECOND, Quality, Reading
from citylab.times import format_instant, parse_instant
from simulators.open_data_bcn import Site, hour_end, parse, read, read_stations
from simulators.playback import Recording
from simulators.recordings import AirQualityRow, Cell, air_quality_rows, write_air_quality

DAY = date(2025, 8, 1)
SPRING = date(2025, 3, 30)  # 23 hours: 02:00 becomes 03:00
AUTUMN = date(2025, 10, 26)  # 25 hours: 03:00 becomes 02:00
RECORDING = Path(__file__).parents[4] / "shared" / "data" / "2025_08_Agost_qualitat_aire_BCN.csv"


def row(
    day: date = DAY, *, station: str = "43", pollutant: str = "8", cells: dict[int, Cell] | None = None
) -> AirQualityRow:
    given_cells = cells or {}
    every = tuple(given_cells.get(hour, Cell("NA", "N")) for hour in range(1, 25))
    return AirQualityRow(station, pollutant, day, every)


def parsed(*rows: AirQualityRow) -> Recording:
    return parse(write_air_quality(rows).encode(), "test.csv")


def readings(recording: Recording) -> list[Reading]:
    return [r for part in recording.parts.values() for step in part.steps for r in step.readings]


def problems(recording: Recording) -> list[str]:
    return [str(problem) for problem in recording.summary.problems]


def instants(recording: Recording) -> list[str]:
    return [format_instant(reading.time) for reading in readings(recording)]


def test_a_value_is_at_the_end_of_its_hour_in_utc() -> None:
    recording = parsed(row(cells={1: Cell("7"), 24: Cell("9")}))

    assert instants(recording) == ["2025-07-31T23:00:00Z", "2025-08-01T22:00:00Z"]


def test_h24_is_midnight_of_the_next_day_in_winter_too() -> None:
    assert instants(parsed(row(date(2024, 12, 31), cells={24: Cell("9")}))) == ["2024-12-31T23:00:00Z"]


def test_the_day_of_23_hours_has_no_h03_and_a_value_there_is_reported() -> None:
    recording = parsed(row(SPRING, cells={2: Cell("1"), 3: Cell("2"), 4: Cell("3")}))

    assert instants(recording) == ["2025-03-30T01:00:00Z", "2025-03-30T02:00:00Z"]
    assert len(problems(recording)) == 1
    assert "line 2: H03 has the value 2" in problems(recording)[0]
    assert "2025-03-30" in problems(recording)[0]


def test_an_empty_h03_on_the_day_of_23_hours_is_no_problem() -> None:
    assert problems(parsed(row(SPRING, cells={2: Cell("1")}))) == []


def test_h03_on_the_day_of_25_hours_is_the_second_and_the_first_is_a_hole() -> None:
    recording = parsed(row(AUTUMN, cells={hour: Cell(str(hour)) for hour in range(1, 6)}))

    assert instants(recording) == [
        "2025-10-25T23:00:00Z",
        "2025-10-26T00:00:00Z",
        "2025-10-26T02:00:00Z",
        "2025-10-26T03:00:00Z",
        "2025-10-26T04:00:00Z",
    ]


@given(st.dates(date(2000, 1, 1), date(2037, 12, 31)), st.integers(1, 24))
def test_the_hours_of_a_day_are_those_of_the_wall_clock(day: date, hour: int) -> None:
    """Computed the other way round: from UTC instants to what a clock in Madrid shows."""
    madrid = ZoneInfo("Europe/Madrid")
    around = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=3)
    wanted = (day + timedelta(days=hour == 24), hour % 24)
    shown = [
        moment
        for moment in (around + timedelta(hours=n) for n in range(32))
        if (moment.astimezone(madrid).date(), moment.astimezone(madrid).hour) == wanted
    ]
    end = hour_end(day, hour)
    spring = len(shown) == 0
    if end is None:
        assert hour == 3
        # The hour before the end is not one that a clock shows.
        assert not [
            m
            for m in (around + timedelta(hours=n) for n in range(32))
            if (m.astimezone(madrid).date(), m.astimezone(madrid).hour) == (day, 2)
        ]
    elif spring:
        assert hour == 2  # ends in the moment at which 02:00 becomes 03:00
        assert hour_end(day, 3) is None
    else:
        assert end == round(shown[0].timestamp()) * SECOND


@given(st.dates(date(2000, 1, 1), date(2037, 12, 31)))
def test_every_instant_of_a_day_comes_once_and_only_a_repeated_hour_is_left_out(day: date) -> None:
    ends = [end for hour in range(1, 25) if (end := hour_end(day, hour)) is not None]
    steps = {later - earlier for earlier, later in pairwise(ends)}

    assert steps <= {HOUR, 2 * HOUR}
    next_first = hour_end(day + timedelta(days=1), 1)
    assert next_first == ends[-1] + HOUR


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.dates(date(2024, 1, 1), date(2026, 12, 31)), st.integers(1, 3))
def test_what_is_written_is_read_again(seed: int, first: date, days: int) -> None:
    rows = air_quality_rows(seed, first=first, days=days, holes=0.2, invalid=0.2)
    recording = parse(write_air_quality(rows).encode(), "written.csv")

    symbols = {"8": "NO2", "14": "O3", "6": "CO", "999": "999"}
    flags = {"V": Quality.GOOD, "N": Quality.BAD}
    wanted = {
        (f"bcn-air/{r.station}/{symbols[r.pollutant]}", hour_end(r.day, hour)): (
            float(cell.value),
            flags[cell.flag],
        )
        for r in rows
        for hour, cell in enumerate(r.cells, 1)
        if cell.value != "NA"
    }
    assert {(r.name, r.time): (r.value, r.quality) for r in readings(recording)} == wanted
    assert recording.summary.values == len(wanted)
    assert recording.summary.values + recording.summary.holes == 24 * len(rows)
    assert recording.summary.problems == []


def test_validity_becomes_quality_and_a_cell_without_a_value_a_hole() -> None:
    recording = parsed(row(cells={1: Cell("7", "V"), 2: Cell("8", "N"), 3: Cell("", "V"), 4: Cell("9", "")}))

    assert [r.quality for r in readings(recording)] == [Quality.GOOD, Quality.BAD, Quality.NONE]
    assert recording.summary.holes == 21
    assert recording.summary.bad == 1


def test_a_validity_that_nobody_knows_is_said() -> None:
    recording = parsed(row(cells={1: Cell("7", "T")}))

    assert readings(recording)[0].quality is Quality.NONE
    assert "V01 is 'T'" in problems(recording)[0]


def test_values_are_exact_with_a_decimal_point_or_comma() -> None:
    recording = parsed(row(cells={1: Cell("0.1"), 2: Cell('"0,3"'), 3: Cell("-1.25")}))

    assert [r.value for r in readings(recording)] == [0.1, 0.3, -1.25]


def test_a_known_pollutant_has_its_unit_and_an_unknown_code_is_kept_as_it_is() -> None:
    recording = parsed(
        row(cells={1: Cell("7")}),
        row(pollutant="999", cells={1: Cell("3")}),
        row(pollutant="6", cells={1: Cell("1")}),
    )

    (thing,) = recording.parts["bcn-air-43"].things
    streams = {stream["properties"]["streamName"]: stream for stream in thing["Datastreams"]}
    no2, co, unknown = (streams[f"bcn-air/43/{name}"] for name in ("NO2", "CO", "999"))
    assert no2["unitOfMeasurement"]["symbol"] == "µg/m³"
    assert no2["properties"]["senmlUnit"] == "ug/m3"
    assert no2["properties"]["interval"] == "PT1H"
    assert no2["properties"]["stamp"] == "end"
    assert no2["ObservedProperty"]["definition"].endswith("/aq/pollutant/8")
    assert co["unitOfMeasurement"]["symbol"] == "mg/m³"
    assert "senmlUnit" not in co["properties"]
    assert unknown["ObservedProperty"]["name"] == "pollutant 999"
    assert unknown["unitOfMeasurement"] == {"name": None, "symbol": None, "definition": None}
    assert {r.unit for r in readings(recording)} == {"ug/m3", None}


def test_a_station_that_the_catalogue_lacks_stands_in_the_citys_centre_and_says_so() -> None:
    (thing,) = parsed(row(station="99", cells={1: Cell("7")})).parts["bcn-air-99"].things

    assert thing["name"] == "99"
    assert thing["Locations"][0]["location"]["coordinates"] == [2.1701, 41.387]
    assert "not the station" in thing["Locations"][0]["description"]


def test_stations_come_from_a_table_where_one_is_given(tmp_path: Path) -> None:
    table = tmp_path / "stations.csv"
    table.write_text("station,name,longitude,latitude\n99,Somewhere,2.25,41.45\n", encoding="utf-8")
    stations = read_stations(table)
    assert stations == {"99": Site("Somewhere", 2.25, 41.45)}

    content = write_air_quality([row(station="99", cells={1: Cell("7")})]).encode()
    (thing,) = parse(content, "x.csv", stations=stations).parts["bcn-air-99"].things
    assert thing["name"] == "Somewhere"
    assert thing["Locations"][0]["location"]["coordinates"] == [2.25, 41.45]


def test_each_station_is_a_gateway_and_its_steps_are_in_order_of_time() -> None:
    later, earlier = row(DAY + timedelta(days=1), cells={1: Cell("2")}), row(cells={1: Cell("1")})
    recording = parsed(later, row(station="4", cells={5: Cell("3")}), earlier)

    assert list(recording.parts) == ["bcn-air-4", "bcn-air-43"]
    assert [r.value for step in recording.parts["bcn-air-43"].steps for r in step.readings] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n \r\n", "empty"),
        (write_air_quality([]).encode(), "no rows"),
        (b"a,b\n1,2\n", "no columns ESTACIO, CODI_CONTAMINANT"),
        ("x".encode("utf-16"), "UTF-16"),
        (b"\x89PNG\x00\x01", "no text file"),
        (write_air_quality([row(station="4/3")]).encode(), "no line that can be replayed"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused_with_a_reason(content: bytes, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(content, "test.csv")


def test_a_missing_column_is_named() -> None:
    content = write_air_quality([row(cells={1: Cell("7")})]).replace('"H07"', '"H7x"').encode()

    with pytest.raises(ConfigurationError, match=r"test\.csv .* no column H07$"):
        parse(content, "test.csv")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("8,Barcelona,19,Barcelona,43,8,2025,8", "8 cells, the header has 57"),
        (write_air_quality([row(date(2025, 8, 9))]).splitlines()[1].replace(",8,9,", ",13,9,"), "no day"),
        (write_air_quality([row()]).splitlines()[1].replace("NA", '"'), "cannot be split"),
        (write_air_quality([row(pollutant="a b")]).splitlines()[1], "cannot name a stream"),
        (write_air_quality([row(station="é")]).splitlines()[1], "cannot name a gateway"),
    ],
)
def test_a_broken_line_is_named_and_the_others_go_on(broken: str, said: str) -> None:
    good = write_air_quality(
        [row(date(2025, 8, 2), cells={1: Cell("1")}), row(date(2025, 8, 3), cells={1: Cell("2")})]
    ).splitlines()
    content = "\n".join([good[0], good[1], broken, good[2]]).encode()

    recording = parse(content, "test.csv")

    assert [r.value for r in readings(recording)] == [1.0, 2.0]
    assert len(problems(recording)) == 1
    assert problems(recording)[0].startswith("line 3: ")
    assert said in problems(recording)[0]


@pytest.mark.parametrize("text", ["abc", "inf", "1e999", "0x10", "1_000", "1.2.3"])
def test_a_broken_cell_costs_only_itself(text: str) -> None:
    recording = parsed(row(cells={1: Cell(text), 2: Cell("5")}))

    assert [r.value for r in readings(recording)] == [5.0]
    assert "line 2: H01" in problems(recording)[0]


def test_a_second_row_of_a_series_and_day_is_reported_and_the_first_stands() -> None:
    recording = parsed(row(cells={1: Cell("1")}), row(cells={1: Cell("2")}))

    assert [r.value for r in readings(recording)] == [1.0]
    assert "line 3: " in problems(recording)[0]
    assert "already in line 2" in problems(recording)[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_mark_of_utf_8_or_latin_1_is_read(encoding: str) -> None:
    text = write_air_quality([row(cells={1: Cell("1")})]).replace("Barcelona", "Sant Adrià")
    recording = parse(text.encode(encoding), "test.csv")

    assert len(readings(recording)) == 1
    assert bool(problems(recording)) is (encoding == "latin-1")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 3000))
def test_no_bytes_crash_it(noise: bytes, at: int) -> None:
    good = write_air_quality(air_quality_rows(1, first=DAY, days=2)).encode()
    spoilt = good[:at] + noise + good[at:]
    with suppress(ConfigurationError):
        recording = parse(spoilt, "spoilt.csv")
        assert recording.summary.lines()
        assert recording.summary.values == len(readings(recording)) > 0


@pytest.mark.recordings
@pytest.mark.skipif(not RECORDING.exists(), reason="the recordings are not beside this checkout")
def test_the_recording_of_august_has_50797_values_and_1283_holes() -> None:
    recording = read(RECORDING)

    assert recording.summary.rows == 2_170
    assert recording.summary.values == len(readings(recording)) == 50_797
    assert recording.summary.holes == 1_283
    assert recording.summary.problems == []
    assert (recording.summary.gateways, recording.summary.streams) == (8, 70)
    assert recording.summary.first == parse_instant("2025-07-31T23:00:00Z")
    assert recording.summary.last == parse_instant("2025-08-31T22:00:00Z")
    assert {r.quality for r in readings(recording)} == {Quality.GOOD}
    assert len({(r.name, r.time) for r in readings(recording)}) == 50_797
