"""A recording played by drivers at its own pace, faster, or as fast as accepted; and what was read of it."""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from citylab.errors import ConfigurationError
from citylab.model import SECOND, Micros, Reading
from citylab.times import format_instant

MOST = 1_000  # readings in one step when nothing has to be waited for
_PROBLEMS_SHOWN = 10


class Pace:
    """When a recorded instant is due: `speed` recorded seconds a second, None for at once.

    One pace is shared by all drivers of a recording, so that they play together. It starts with the first instant
    that is asked for, so that a replay that goes on after a restart does not wait for what it has sent already.
    """

    def __init__(
        self,
        speed: float | None = 1.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.speed = speed
        self._clock = clock
        self._sleep = sleep
        self._origin: tuple[Micros, float] | None = None

    async def wait_for(self, instant: Micros) -> None:
        """Return when `instant` of the recording is due."""
        if self.speed is None:
            return
        if self._origin is None:
            self._origin = (instant, self._clock())
        recorded, started = self._origin
        due = started + (instant - recorded) / SECOND / self.speed
        while (left := due - self._clock()) > 0:
            await self._sleep(min(left, 3600.0))


def parse_speed(text: str) -> float | None:
    """Read `max` (None) or a factor above 0. Raises `ConfigurationError`."""
    if text.strip().lower() == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not (0 < speed < math.inf):
        raise ConfigurationError(
            f"speed {text!r} is neither 'max' nor a number above 0, such as 3600 (an hour a second)"
        )
    return speed


class Problem(NamedTuple):
    """Something in a file that was not sent, or not as it stood. Lines count from 1, the header's."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was read of a file. values + holes + problems' cells are all its cells."""

    file: str
    rows: int
    values: int
    holes: int
    suspect: int
    bad: int
    first: Micros | None
    last: Micros | None
    gateways: int
    streams: int
    problems: Sequence[Problem]

    def lines(self) -> list[str]:
        """The summary for a person."""
        span = ""
        if self.first is not None and self.last is not None:
            span = f", {format_instant(self.first)} to {format_instant(self.last)}"
        marks = [f"{n:,} {word}" for n, word in ((self.suspect, "suspect"), (self.bad, "bad")) if n]
        marked = f" ({', '.join(marks)})" if marks else ""
        lines = [
            f"{self.file}: {self.rows:,} rows, {self.values:,} values{marked}, {self.holes:,} holes{span}",
            f"{_many(self.gateways, 'gateway')}, {_many(self.streams, 'datastream')}",
        ]
        lines += [f"  {problem}" for problem in self.problems[:_PROBLEMS_SHOWN]]
        if len(self.problems) > _PROBLEMS_SHOWN:
            lines.append(f"  and {len(self.problems) - _PROBLEMS_SHOWN:,} more lines like these")
        return lines

    def json(self) -> dict[str, Any]:
        """The summary for a machine."""
        return {
            "file": self.file,
            "rows": self.rows,
            "values": self.values,
            "holes": self.holes,
            "suspect": self.suspect,
            "bad": self.bad,
            "first": None if self.first is None else format_instant(self.first),
            "last": None if self.last is None else format_instant(self.last),
            "gateways": self.gateways,
            "streams": self.streams,
            "problems": [{"line": problem.line, "text": problem.text} for problem in self.problems],
        }


class Step(NamedTuple):
    """All readings of one gateway at one recorded instant."""

    time: Micros
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one gateway has of a recording: its descriptor's Things, and its steps in order of time."""

    things: Sequence[dict[str, Any]]
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A file as it was read. `digest` is of the bytes: another file under the same name is another recording."""

    digest: str
    parts: Mapping[str, Part]
    summary: Summary

    def drivers(self, pace: Pace) -> "dict[str, Playback]":
        """One driver a gateway, all at the same pace."""
        return {gateway: Playback(part, self.digest, pace) for gateway, part in self.parts.items()}


class Playback:
    """A driver of the edge agent (`edge.drivers.Driver`) that plays one gateway's part of a recording, then ends.

    Its position is the recording's digest and the last instant that was given: a restart goes on behind it, and
    another file starts anew.
    """

    def __init__(self, part: Part, digest: str, pace: Pace) -> None:
        self.things = part.things
        self._steps = part.steps
        self._digest = digest
        self._pace = pace

    async def readings(self, position: str | None) -> AsyncIterator[tuple[list[Reading], str | None]]:
        """Yield readings in order of time, each time with the position behind them."""
        sent = self._sent(position)
        waiting: list[Reading] = []
        for step in self._steps:
            if sent is not None and step.time <= sent:
                continue
            if self._pace.speed is not None:
                await self._pace.wait_for(step.time)
                yield list(step.readings), self._at(step.time)
                continue
            waiting.extend(step.readings)
            if len(waiting) >= MOST:
                yield waiting, self._at(step.time)
                waiting = []
        if waiting:
            yield waiting, self._at(self._steps[-1].time)

    def _at(self, instant: Micros) -> str:
        return f"{self._digest}:{instant}"

    def _sent(self, position: str | None) -> Micros | None:
        digest, _, instant = (position or "").partition(":")
        if digest != self._digest:
            return None
        try:
            return int(instant)
        except ValueError:
            return None


def steps_of(readings: Sequence[Reading]) -> list[Step]:
    """Group readings by their time, in its order; within an instant they keep theirs."""
    by_time: dict[Micros, list[Reading]] = {}
    for reading in readings:
        by_time.setdefault(reading.time, []).append(reading)
    return [Step(instant, tuple(by_time[instant])) for instant in sorted(by_time)]


def read_bytes(path: Path) -> bytes:
    """Read a file that a person named. Raises `ConfigurationError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def digest_of(content: bytes) -> str:
    """What tells recordings apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
