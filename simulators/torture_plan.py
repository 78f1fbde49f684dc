"""What `citylab torture` does to a city, and what its gateways send: all of it drawn from a seed. Pure."""

import random
from collections.abc import Iterator, Mapping, Sequence
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
    """A kill point that ends its process when it is reached for the first time after so many seconds of its life."""

    point: str
    after: float


def faults(seed: int, seconds: float, targets: Mapping[Kind, Sequence[str]]) -> list[Fault]:
    """The faults of a run, in order: every kind at every target once before one comes again, at random moments.

    The last begin when four fifths of the time are over, so that data flows behind every one.
    """
    draw = random.Random(f"faults {seed}")
    deck: list[tuple[Kind, str]] = []
    plan = []
    for moment in sorted(draw.uniform(0, 0.8 * seconds) for _ in range(max(round(0.8 * seconds / EVERY), 1))):
        if not deck:
            deck = [(kind, target) for kind, some in targets.items() for target in some]
            draw.shuffle(deck)
        kind, target = deck.pop()
        lasting = round(draw.uniform(*_LASTING[kind]), 2)
        plan.append(Fault(round(moment, 2), kind, target, lasting))
    return plan


def arms(seed: int, service: str, name: str, broken: Broken = "") -> Iterator[Arm | None]:
    """How a service is armed at each of its starts, without end. None: it lives until somebody else kills it.

    service: of `KILL_POINTS`; name: which one of them. In a broken build it is the point at which that shows.
    """
    draw = random.Random(f"arms {seed} {name}")
    points = KILL_POINTS[service]
    if broken:
        where, point = BROKEN_AT[broken]
        points = (point,) if where == service else ()
    while points:
        for point in draw.sample(points, len(points)):
            yield Arm(point, round(draw.uniform(0.3, 2.5), 2))
            if draw.random() < 1 / 3:
                yield None
    while True:
        yield None


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

    begin: µs, when the run began; rate: readings a second; history: whether it plays a day and a half that crosses a
    midnight instead of what is measured now; jumps: how often its clock is set while it measures.
    """

    gateway: str
    seed: int
    begin: Micros
    rate: float
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
        samples = max(self.readings // STREAMS, 1)
        if self.history:
            start, step = (self.begin - 2 * DAY) // DAY * DAY + 7 * HOUR, 36 * HOUR // samples
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


def scripts(seed: int, begin: Micros, *, gateways: int, rate: float, seconds: float) -> list[Script]:
    """What the gateways send; every other one plays history. rate: readings a second of all together."""
    each = rate / gateways
    readings = max(int(each * seconds), STREAMS)
    return [
        Script(gateway_name(number), seed, begin, each, readings, history=number % 2 == 1)
        for number in range(gateways)
    ]
