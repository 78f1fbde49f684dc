import math

import pytest

from citylab.errors import ConfigurationError
from citylab.model import HOUR, SECOND, Reading
from simulators.playback import MOST, Pace, Part, Playback, Problem, Summary, parse_speed, steps_of


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def part(instants: int = 3) -> Part:
    return Part(things=[], steps=steps_of([Reading("a", n * HOUR, float(n)) for n in range(instants)]))


async def played(playback: Playback, position: str | None = None) -> list[tuple[list[Reading], str | None]]:
    return [step async for step in playback.readings(position)]


async def test_the_recorded_pace_is_kept_and_a_factor_shortens_it() -> None:
    for speed, seconds in ((1.0, 7200.0), (3600.0, 2.0)):
        clock = Clock()
        await played(Playback(part(), "d", Pace(speed, clock=clock, sleep=clock.sleep)))
        assert clock.now - 1_000 == pytest.approx(seconds)


async def test_drivers_that_share_a_pace_play_together() -> None:
    clock = Clock()
    pace = Pace(3600, clock=clock, sleep=clock.sleep)
    await pace.wait_for(10 * HOUR)
    await pace.wait_for(9 * HOUR)  # another gateway's earlier instant is due at once
    assert clock.now == 1_000
    await pace.wait_for(12 * HOUR)
    assert clock.now == pytest.approx(1_002)


async def test_max_waits_for_nothing_and_gives_many_instants_at_once() -> None:
    steps = await played(Playback(part(2 * MOST + 1), "d", Pace(None)))

    assert [len(readings) for readings, _ in steps] == [MOST, MOST, 1]


@pytest.mark.parametrize("speed", [None, 1e9])
async def test_it_goes_on_behind_its_position(speed: float | None) -> None:
    playback = Playback(part(3_000), "d", Pace(speed))
    every = await played(playback)
    wanted = [reading.time for readings, _ in every for reading in readings]
    for index in (0, len(every) // 2, len(every) - 1):
        before = [reading.time for readings, _ in every[: index + 1] for reading in readings]
        after = [
            reading.time for readings, _ in await played(playback, every[index][1]) for reading in readings
        ]
        assert before + after == wanted


@pytest.mark.parametrize("position", ["other:3600000000", "d:", "d:x", "", "nonsense"])
async def test_a_position_of_another_file_starts_anew(position: str) -> None:
    (step,) = await played(Playback(part(), "d", Pace(None)), position)

    assert len(step[0]) == 3


async def test_a_restart_does_not_wait_for_what_was_sent() -> None:
    clock = Clock()
    await played(Playback(part(), "d", Pace(1, clock=clock, sleep=clock.sleep)), f"d:{HOUR}")

    assert clock.now == 1_000


def test_speed_is_max_or_a_number_above_0() -> None:
    assert parse_speed("max") is None
    assert parse_speed(" Max ") is None
    assert parse_speed("3600") == 3600
    for text in ("0", "-1", "nan", "inf", "fast", ""):
        with pytest.raises(ConfigurationError, match="speed"):
            parse_speed(text)


def test_the_summary_says_what_was_read_and_what_was_wrong() -> None:
    summary = Summary(
        file="f.csv", rows=1200, values=10, holes=2, suspect=1, bad=0, first=0, last=HOUR + SECOND, gateways=1,
        streams=2, problems=[Problem(n, "odd") for n in range(2, 15)],
    )  # fmt: skip
    lines = summary.lines()

    assert lines[0] == (
        "f.csv: 1,200 rows, 10 values (1 suspect), 2 holes, 1970-01-01T00:00:00Z to 1970-01-01T01:00:01Z"
    )
    assert lines[1] == "1 gateway, 2 datastreams"
    assert lines[2] == "  line 2: odd"
    assert lines[-1] == "  and 3 more lines like these"
    assert summary.json()["problems"][0] == {"line": 2, "text": "odd"}
    assert math.isfinite(summary.json()["values"])
