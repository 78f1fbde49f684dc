"""What `citylab torture` does to a city, and what its gateways send: all of it drawn from a seed. Pure."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from zlib import crc32

import msgspec
import numpy as np

from citylab.columns import Float64, Int64
from citylab.model import DAY, HOUR, SECOND, Micros, Quality

Kind: TypeAlias = Literal["kill", "pause", "cut", "half-close", "stall", "delay", "fill"]
Broken: TypeAlias = Literal["", "ack-first", "position-first"]

EVERY = 1.1  # s between two faults, on average
STREAMS = 5  # of a gateway
LONG = 60.0  # s of data in which an engine that is away for long may be killed in the middle
_LASTING: Mapping[Kind, tuple[float, float]] = {
    "kill": (0, 0), "cut": (0, 0), "pause": (0.3, 3.0), "half-close": (0.5, 3.0), "stall": (0.3, 3.0),
    "delay": (1.0, 4.0), "fill": (1.0, 3.0),
}  # fmt: skip
# Where a service can be made to kill itself, by the service (`simulators.torture_ports` says what each one means).
KILL_POINTS: Mapping[str, Sequence[str]] = {
    "ingest": (
        "before append", "after append", "before puback", "after puback", "before acknowledgement",
        "after acknowledgement", "before publish", "after publish", "before place", "after place",
    ),
    "processing": (
        "before copy", "after copy", "after commit", "before update", "after update", "before fold", "after fold",
    ),
    "edge": ("before outbox", "after outbox", "before pack", "after pack"),
}  # fmt: skip
_SELDOM = {"before fold": 2, "after fold": 2}  # reached about once a second; all others are 10 times or more
_OFTEN = 10
# A build known to be wrong, and the kill point at which it shows.
BROKEN_AT: Mapping[Broken, tuple[str, str]] = {
    "ack-first": ("ingest", "before append"),
    "position-first": ("processing", "between position and rows"),
}


class Fault(msgspec.Struct, frozen=True):
    """Something that is done at a moment, in seconds, to a process, a line or a disk; seconds: how long it lasts."""

    at: float
    kind: Kind
    target: str
    seconds: float


class Arm(msgspec.Struct, frozen=True):
    """A kill point that ends its process when it is reached for the nth time in its life."""

    point: str
    nth: int


def faults(seed: int, seconds: float, targets: Mapping[Kind, Sequence[str]]) -> list[Fault]:
    """The faults of a run, in order: every kind at every target once before one comes again, at random moments.

    The last begin when four fifths of the time are over, so that data flows behind every one. A log that is a process
    comes back so slowly that its kill is the last fault, and the only one of it where the run is not long.
    """
    draw = random.Random(f"faults {seed}")
    end = round(0.8 * seconds, 2)
    every = [(kind, target) for kind, some in targets.items() for target in some]
    last = [pair for pair in every if pair == ("kill", "log")]
    if seconds < LONG:
        every = [pair for pair in every if pair not in last]
    deck: list[tuple[Kind, str]] = []
    plan = []
    for moment in sorted(draw.uniform(0, end) for _ in range(max(round(end / EVERY), 1))):
        if not deck:
            deck = draw.sample(every, len(every))
        kind, target = deck.pop()
        lasting = round(draw.uniform(*_LASTING[kind]), 2)
        plan.append(Fault(round(moment, 2), kind, target, lasting))
    return plan + [Fault(end, kind, target, 0.0) for kind, target in last]


class Arms:
    """How a service is armed at each of its starts: first with every point that is still to be hit, in turn, then at random.

    service: of `KILL_POINTS`; name: which one of them. In a broken build there is but the point at which that shows.
    """

    def __init__(self, seed: int, service: str, name: str, broken: Broken = "") -> None:
        self._draw = random.Random(f"arms {seed} {name}")
        points = KILL_POINTS[service]
        if broken:
            where, point = BROKEN_AT[broken]
            points = (point,) if where == service else ()
        self._points = points
        self._turns = self._draw.sample(points, len(points))

    def next(self, hit: Collection[str], *, only_missing: bool = False) -> Arm | None:
        """For the next life. None: it lives until somebody else kills it. hit: the points that are, by whatever service."""
        missing = [point for point in self._turns if point not in hit]
        if missing:
            point = missing[0]
            self._turns.remove(point)
            self._turns.append(point)  # comes again if something else ends that life
        elif only_missing or not self._points or self._draw.random() < 1 / 4:
            return None
        else:
            point = self._draw.choice(self._points)
        return Arm(point, self._draw.randint(1, _SELDOM.get(point, _OFTEN)))


@dataclass(frozen=True)
class Columns:
    """What a gateway sends, one row a reading: stream (0, 1, ...), time (µs), value, quality; all of shape (n,)."""

    stream: Int64
    time: Int64
    value: Float64
    quality: np.ndarray[Any, np.dtype[np.int8]]

    def __len__(self) -> int:
        return len(self.time)


class Script(msgspec.Struct, frozen=True):
    """What one gateway sends, as few words as make it again anywhere.

    begin: µs, when the run began; rate: readings a second; planned: how many are sent, up to `readings` if the run takes
    longer; history: whether the planned ones are a day and a half that crosses a midnight instead of what is measured now;
    jumps: how often its clock is set while it measures.
    """

    gateway: str
    seed: int
    begin: Micros
    rate: float
    planned: int
    readings: int
    history: bool
    jumps: int = 3

    def name(self, stream: int) -> str:
        """Of a stream."""
        return f"{self.gateway}/s{stream}"

    def columns(self) -> Columns:
        """All of it. No stream has two readings of one time, whatever the clock does."""
        draw = np.random.default_rng([self.seed, crc32(self.gateway.encode())])
        at = np.arange(self.readings, dtype=np.int64)
        sample = at // STREAMS
        samples = max(self.planned // STREAMS, 1)
        if self.history:
            step = 36 * HOUR // samples
            start = (self.begin - (self.readings // STREAMS + 1) * step) // DAY * DAY - 17 * HOUR
        else:
            start, step = self.begin, round(STREAMS / self.rate * SECOND)
        # The clock jumps by whole steps, and by a microsecond more each time, so that no time comes twice.
        jumps = np.sort(draw.integers(0, samples, self.jumps))
        most = max(10 * 60 * SECOND // step, 1)
        skew = np.concatenate([[0], draw.integers(-most, most, self.jumps)]) * step + np.arange(
            self.jumps + 1
        )
        return Columns(
            stream=at % STREAMS,
            time=start + sample * step + skew[np.searchsorted(jumps, sample, side="right")],
            value=draw.normal(20, 5, self.readings),
            quality=draw.choice(
                np.array([Quality.NONE, Quality.GOOD, Quality.SUSPECT, Quality.BAD], np.int8),
                self.readings, p=(0.7, 0.2, 0.05, 0.05),
            ),
        )  # fmt: skip


def gateway_name(number: int) -> str:
    """Of the gateways that have an outbox, 0, 1, ..."""
    return f"torture-{number}"


def scripts(
    seed: int, begin: Micros, *, gateways: int, rate: float, seconds: float, longer: float = 0.0
) -> list[Script]:
    """What the gateways send; every other one plays history. rate: readings a second of all together.

    longer: s for which they go on if they are not told that it is enough.
    """
    each = rate / gateways
    planned = max(int(each * seconds), STREAMS)
    return [
        Script(
            gateway_name(number),
            seed,
            begin,
            each,
            planned,
            planned + int(each * longer),
            history=number % 2 == 1,
        )
        for number in range(gateways)
    ]
