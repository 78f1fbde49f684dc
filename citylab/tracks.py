"""Which positions of a Thing make a Location: those that are far enough from the Location before them.

Pure. A track follows from the positions alone, in whatever order they came: a late one changes what comes after it
until a Location is met that stands in any case.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from citylab.model import Micros

EARTH_RADIUS = 6_371_008.8  # m, the mean of WGS 84
Point: TypeAlias = tuple[float, float]  # longitude, latitude in degrees


class Place(NamedTuple):
    """A HistoricalLocation: where a Thing was from `time` on. point: None where its Location is no point."""

    time: Micros
    point: Point | None
    history: int
    by_position: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What new positions change of a track. made: where Locations begin; gone: HistoricalLocations that are none, with their time."""

    made: list[tuple[Micros, Point]] = field(default_factory=list)
    gone: list[tuple[Micros, int]] = field(default_factory=list)

    @property
    def span(self) -> tuple[Micros, Micros]:
        """The first and the last time at which something changed. A track with changes has something made first."""
        return self.made[0][0], max(self.made[-1][0], self.gone[-1][0] if self.gone else self.made[0][0])


def on_earth(longitude: float, latitude: float) -> bool:
    """Whether these are degrees of longitude and latitude."""
    return abs(longitude) <= 180 and abs(latitude) <= 90


def metres(one: Point, other: Point) -> float:
    """The distance of two points on a sphere."""
    (x, y), (u, v) = one, other
    across, up = math.radians(u - x), math.radians(v - y)
    half = (
        math.sin(up / 2) ** 2
        + math.cos(math.radians(y)) * math.cos(math.radians(v)) * math.sin(across / 2) ** 2
    )
    return 2 * EARTH_RADIUS * math.asin(math.sqrt(min(half, 1.0)))


def follow(
    here: Point | None,
    places: Sequence[Place],
    positions: Mapping[Micros, Point],
    new: Collection[Micros],
    *,
    least: float,
) -> Changes:
    """Follow a Thing from its first new position on until its track is again what it was.

    here: where it was before; places, positions: what is known from then on, the new positions among them; least: m,
    how far a position is from the Location before it to make one. What was declared stands; what a position made stands
    while it is still far enough.
    """
    changes = Changes()
    if not new:
        return changes
    stand: dict[Micros, list[Place]] = {}
    for place in places:
        stand.setdefault(place.time, []).append(place)
    last = max(new)
    astray = False  # whether the track is another one than it was
    for time in sorted(stand.keys() | positions.keys()):
        if time > last and not astray:
            break
        made: Place | None = None
        position = positions.get(time)
        for place in stand.get(time, ()):
            if place.by_position and position is not None:
                made = place
            else:
                here, astray = place.point, False
        if position is None or (not astray and made is None and time not in new):
            continue  # what was too near before is still
        if not astray and made is not None:
            here = position
        elif here is not None and metres(here, position) < least:
            if made is not None:
                changes.gone.append((time, made.history))
        else:
            here, astray = position, made is None
            if made is None:
                changes.made.append((time, position))
    return changes
