from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citylab.errors import ConfigurationError
from citylab.model import SECOND, Quality, Reading
from citylab.times import format_instant
from simulators.drive_test import CORK, parse, parse_location, parse_time, read, slug_of
from simulators.playback import Recording
from simulators.recordings import DRIVE_TITLES, drive_rows, write_drive_test

DATA = Path(__file__).parents[4] / "shared" / "data"
HEADER = ",".join(DRIVE_TITLES)
START = datetime(2026, 5, 1, 7, 0, tzinfo=UTC)


def parsed(*lines: str, header: str = HEADER, name: str = "My Drive 1.csv") -> Recording:
    return parse("\n".join([header, *lines]).encode(), name)


def readings(recording: Recording) -> list[Reading]:
    return [r for part in recording.parts.values() for step in part.steps for r in step.readings]


def problems(recording: Recording) -> list[str]:
    return [str(problem) for problem in recording.summary.problems]


def line(
    time: str = "Wed Dec 15 16:04:38 UTC 2021", cells: str = "-110,-15,-73,-80,-11,-70,14229,0.5"
) -> str:
    return f"{time},{cells}"


def test_a_row_becomes_readings_with_units() -> None:
    recording = parsed(line())

    assert list(recording.parts) == ["drive-my-drive-1"]
    assert {(r.name, r.value, r.unit) for r in readings(recording)} == {
        ("drive/my-drive-1/rsrp", -110, "dBm"),
        ("drive/my-drive-1/rsrq", -15, "dB"),
        ("drive/my-drive-1/rssi", -73, "dBm"),
        ("drive/my-drive-1/nr-rsrp", -80, "dBm"),
        ("drive/my-drive-1/nr-rsrq", -11, "dB"),
        ("drive/my-drive-1/nr-rssi", -70, "dBm"),
        ("drive/my-drive-1/sent-bytes", 14229, "B"),
        ("drive/my-drive-1/rate", 0.5, "Mbit/s"),
    }
    assert {format_instant(r.time) for r in readings(recording)} == {"2021-12-15T16:04:38Z"}


def test_a_zero_of_5g_is_a_hole_and_no_other_zero_is() -> None:
    recording = parsed(line(cells="-110,-15,-73,0,0,0,0,0"))

    assert {r.name.rpartition("/")[2] for r in readings(recording)} == {
        "rsrp",
        "rsrq",
        "rssi",
        "sent-bytes",
        "rate",
    }
    assert recording.summary.holes == 3


def test_what_cannot_be_is_kept_and_marked_as_suspect() -> None:
    recording = parsed(line(cells="0,0,0,0,0,0,5,-798.67"))

    assert {(r.name.rpartition("/")[2], r.value, r.quality) for r in readings(recording)} == {
        ("rsrp", 0, Quality.SUSPECT),
        ("rsrq", 0, Quality.SUSPECT),
        ("rssi", 0, Quality.SUSPECT),
        ("sent-bytes", 5, Quality.NONE),
        ("rate", -798.67, Quality.SUSPECT),
    }
    assert recording.summary.suspect == 4


def test_columns_vary_and_one_that_nobody_knows_is_kept() -> None:
    header = f"{HEADER},NR UL BW,SINR (dB)"
    recording = parsed(line(cells="-110,-15,-73,-80,-11,-70,1,0,100,13.5"), header=header)

    (thing,) = recording.parts["drive-my-drive-1"].things
    streams = {
        stream["properties"]["streamName"].rpartition("/")[2]: stream for stream in thing["Datastreams"]
    }
    assert streams["nr-ul-bw"]["unitOfMeasurement"]["symbol"] is None
    assert streams["sinr"]["unitOfMeasurement"]["symbol"] == "dB"
    assert {r.name.rpartition("/")[2]: r.value for r in readings(recording)}["sinr"] == 13.5
    assert {stream["properties"]["interval"] for stream in streams.values()} == {"PT3S"}
    assert all("stamp" not in stream["properties"] for stream in streams.values())


def test_without_a_location_it_is_cork_and_the_description_says_so() -> None:
    (thing,) = parsed(line()).parts["drive-my-drive-1"].things
    assert thing["Locations"][0]["location"]["coordinates"] == list(CORK)
    assert "Assumed" in thing["Locations"][0]["description"]

    given_one = parse(f"{HEADER}\n{line()}".encode(), "a.csv", location=(2.5, 41.5))
    (thing,) = given_one.parts["drive-a"].things
    assert thing["Locations"][0]["location"]["coordinates"] == [2.5, 41.5]
    assert "Given" in thing["Locations"][0]["description"]


def test_a_second_row_of_one_second_is_reported_and_the_first_stands() -> None:
    recording = parsed(line(), line(cells="-1,-1,-1,-1,-1,-1,1,1"))

    assert {r.value for r in readings(recording) if r.name.endswith("/rsrp")} == {-110}
    assert problems(recording) == ["line 3: line 2 has the same time, and stands"]


def test_a_row_that_is_late_in_the_file_is_sent_in_its_place() -> None:
    recording = parsed(line(), line("Wed Dec 15 16:04:35 UTC 2021"))

    (part,) = recording.parts.values()
    assert [format_instant(step.time) for step in part.steps] == [
        "2021-12-15T16:04:35Z",
        "2021-12-15T16:04:38Z",
    ]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (line("Wed Dec 15 16:04:38 CET 2021"), "is no time"),
        (line("Wed Dez 15 16:04:38 UTC 2021"), "is no time"),
        (line("Wed Feb 30 16:04:38 UTC 2021"), "day"),
        (line("2021-12-15T16:04:38Z"), "is no time"),
        (line("Wed Dec 15 16:04:38 UTC 2021") + ",1", "10 cells, the header has 9"),
    ],
)
def test_a_broken_line_is_named_and_the_others_go_on(broken: str, said: str) -> None:
    recording = parsed(broken, line("Wed Dec 15 16:05:00 UTC 2021"))

    assert len(readings(recording)) == 8
    assert problems(recording)[0].startswith("line 2: ")
    assert said in problems(recording)[0]


def test_a_broken_cell_costs_only_itself() -> None:
    recording = parsed(line(cells="x,-15,-73,-80,-11,-70,1,0"))

    assert len(readings(recording)) == 7
    assert problems(recording) == ["line 2: column 2: 'x' is no number"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        (HEADER, "no rows"),
        (HEADER.replace("nr_rsrq(dB)", "other") + "\n" + line(), r"no column nr_rsrq\(dB\)"),
        (HEADER + ",RATE(MBit/s)\n" + line() + ",1", "twice"),
        (HEADER + "\nnonsense", "no line that can be replayed"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused_with_a_reason(content: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(content.encode(), "test.csv")


def test_a_location_is_longitude_and_latitude_in_degrees() -> None:
    assert parse_location("-8.47, 51.9") == (-8.47, 51.9)
    for text in ("", "1", "1,2,3", "a,b", "200,10", "10,100", "nan,5"):
        with pytest.raises(ConfigurationError, match="location"):
            parse_location(text)


@given(st.integers(0, 4_102_444_800))
def test_times_are_read_as_the_c_library_writes_them(second: int) -> None:
    moment = datetime.fromtimestamp(second, UTC)

    assert parse_time(f"{moment:%a %b %d %H:%M:%S} UTC {moment.year}") == second * SECOND


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_what_is_written_is_read_again(seed: int, count: int) -> None:
    rows = drive_rows(seed, start=START, rows=count)
    recording = parse(write_drive_test(rows).encode(), "written.csv")

    slugs = ("rsrp", "rsrq", "rssi", "nr-rsrp", "nr-rsrq", "nr-rssi", "sent-bytes", "rate")
    wanted = {
        (f"drive/written/{slug}", round(row.time.timestamp()) * SECOND): float(cell)
        for row in rows
        for slug, cell in zip(slugs, row.cells, strict=True)
        if not (slug.startswith("nr") and cell == "0")
    }
    assert {(r.name, r.time): r.value for r in readings(recording)} == wanted
    assert recording.summary.problems == []
    assert recording.summary.values + recording.summary.holes == 8 * count


def test_a_name_becomes_one_that_topics_can_carry() -> None:
    assert slug_of("5G Drive_Cork 2022") == "5g-drive-cork-2022"
    (gateway,) = parsed(line(), name="測定.csv").parts
    assert gateway.startswith("drive-")
    assert gateway.isascii()


@pytest.mark.recordings
@pytest.mark.skipif(not DATA.exists(), reason="the recordings are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "rows", "values", "holes"),
    [
        ("5g_drive_cork_2021-12-15.csv", 363, 363 * 8 - 189, 189),
        ("5g_drive_cork_2022-08-11.csv", 906, 906 * 9 - 2_250, 2_250),
        ("5g_stationary_cork_2022-06-27.csv", 9_035, 9_035 * 8 - 25_074, 25_074),
    ],
)
def test_the_recordings_are_read_whole(file: str, rows: int, values: int, holes: int) -> None:
    recording = read(DATA / file)

    assert (recording.summary.rows, recording.summary.values, recording.summary.holes) == (
        rows,
        values,
        holes,
    )
    assert recording.summary.problems == []
    assert len(readings(recording)) == values
