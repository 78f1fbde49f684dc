"""What a synthetic city measures: daily curves and noise, each value a pure function of seed, place and time.

Nothing here remembers anything, so the same seed and second give the same value in every run and after every restart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

ZONE = ZoneInfo("Europe/Madrid")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(NamedTuple):
    """A second as a city lives it: s since the epoch, local hour 0..24, day of the year, whether people work."""

    second: int
    hour: float
    day: int
    weekend: bool

    @classmethod
    def at(cls, second: int) -> "Moment":
        """The moment at a second since the epoch."""
        local = (_EPOCH + timedelta(seconds=second)).astimezone(ZONE)
        hour = local.hour + local.minute / 60 + local.second / 3600
        return cls(second, hour, local.timetuple().tm_yday, local.weekday() >= 5)


@dataclass(frozen=True, slots=True)
class Noise:
    """Reproducible randomness of one place."""

    seed: int
    place: str

    def uniform(self, what: str, number: int) -> float:
        """0..1, drawn for the number-th time."""
        digest = blake2b(f"{self.seed}/{self.place}/{what}/{number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def white(self, what: str, moment: Moment) -> float:
        """-1..1, another one each second."""
        return 2 * self.uniform(what, moment.second) - 1

    def drift(self, what: str, moment: Moment, period: int) -> float:
        """-1..1, smooth: about one rise and fall in two periods (s)."""
        step, rest = divmod(moment.second, period)
        here, there = self.uniform(what, step), self.uniform(what, step + 1)
        part = rest / period
        return 2 * (here + (there - here) * part * part * (3 - 2 * part)) - 1


Model: TypeAlias = Callable[[Moment, Noise], float]


def bump(hour: float, centre: float, width: float) -> float:
    """0..1, a bell around an hour of the day; hours are those of a clock."""
    away = (hour - centre + 12) % 24 - 12
    return math.exp(-((away / width) ** 2))


def traffic(moment: Moment) -> float:
    """0..1, how full the streets are."""
    if moment.weekend:
        return 0.12 + 0.45 * bump(moment.hour, 13, 3.5) + 0.4 * bump(moment.hour, 20, 3)
    return (
        0.1
        + 0.65 * bump(moment.hour, 8.5, 1.6)
        + 0.4 * bump(moment.hour, 13.5, 3.2)
        + 0.65 * bump(moment.hour, 18.7, 2.2)
    )


def activity(moment: Moment) -> float:
    """0..1, how many people are about."""
    return 0.08 + 0.55 * bump(moment.hour, 12.5, 4) + 0.6 * bump(moment.hour, 20, 3.2)


def sun(moment: Moment) -> float:
    """0..1, the sine of the sun's height over Barcelona, roughly; 0 at night."""
    declination = math.radians(23.44) * math.sin(2 * math.pi * (moment.day - 81) / 365)
    latitude = math.radians(41.39)
    # Solar noon is near 13:00 on the clock in winter and 14:00 in summer.
    angle = math.radians(15 * (moment.hour - (13.9 if 86 < moment.day < 301 else 12.9)))
    height = math.sin(latitude) * math.sin(declination) + math.cos(latitude) * math.cos(
        declination
    ) * math.cos(angle)
    return max(0.0, height)


def no2(moment: Moment, noise: Noise) -> float:
    """µg/m³."""
    wind = noise.drift("air", moment, 5400)
    return max(1.0, 10 + 42 * traffic(moment) * (1 - 0.35 * wind) + 5 * noise.drift("no2", moment, 600)
               + 1.5 * noise.white("no2", moment))  # fmt: skip


def o3(moment: Moment, noise: Noise) -> float:
    """µg/m³; eaten by NO where there is traffic, made by the sun."""
    return max(2.0, 62 + 45 * sun(moment) - 35 * traffic(moment) + 6 * noise.drift("o3", moment, 1800)
               + noise.white("o3", moment))  # fmt: skip


def pm25(moment: Moment, noise: Noise) -> float:
    """µg/m³."""
    return max(
        0.5,
        8 + 9 * traffic(moment) + 5 * noise.drift("air", moment, 5400) + 0.8 * noise.white("pm25", moment),
    )


def pm10(moment: Moment, noise: Noise) -> float:
    """µg/m³; never below the finer particles."""
    return pm25(moment, noise) * 1.5 + 6 + 3 * noise.drift("pm10", moment, 1200)


def loudness(moment: Moment, noise: Noise) -> float:
    """DB(A), with a motorcycle now and then."""
    passing = (
        13 * noise.uniform("motorcycle", moment.second // 4)
        if noise.uniform("pass", moment.second // 4) > 0.985
        else 0
    )
    return (
        47
        + 20 * traffic(moment)
        + 4 * noise.drift("street", moment, 45)
        + 1.5 * noise.white("street", moment)
        + passing
    )


def loudest(moment: Moment, noise: Noise) -> float:
    """DB(A), the loudest of the ten seconds before."""
    return max(loudness(moment._replace(second=moment.second - n), noise) for n in range(10)) + 2


def temperature(moment: Moment, noise: Noise) -> float:
    """°C."""
    season = 17.5 + 7.5 * math.cos(2 * math.pi * (moment.day - 210) / 365)
    day = 3.6 * math.cos(2 * math.pi * (moment.hour - 15.5) / 24)
    return (
        season + day + 1.5 * noise.drift("weather", moment, 10_800) + 0.15 * noise.drift("gust", moment, 30)
    )


def humidity(moment: Moment, noise: Noise) -> float:
    """%RH; falls as the day warms."""
    day = 11 * math.cos(2 * math.pi * (moment.hour - 15.5) / 24)
    return min(
        100.0,
        max(15.0, 66 - day - 9 * noise.drift("weather", moment, 10_800) + noise.drift("gust", moment, 60)),
    )


def wind(moment: Moment, noise: Noise) -> float:
    """Wind speed, m/s: a sea breeze by day."""
    breeze = 1.6 + 3.2 * bump(moment.hour, 15.5, 3.5)
    return max(
        0.0, breeze * (1 + 0.35 * noise.drift("wind", moment, 600)) + 0.9 * noise.drift("gust", moment, 8)
    )


def pressure(moment: Moment, noise: Noise) -> float:
    """Air pressure, hPa."""
    return (
        1016 + 9 * noise.drift("pressure", moment, 172_800) + 0.3 * noise.drift("pressure-fine", moment, 1800)
    )


def rain(moment: Moment, noise: Noise) -> float:
    """mm/h; mostly none."""
    return (
        max(0.0, noise.drift("rain", moment, 7200) - 0.7)
        * 18
        * (1 + 0.5 * noise.drift("shower", moment, 120))
    )


def sunshine(moment: Moment, noise: Noise) -> float:
    """W/m², under passing clouds."""
    return max(0.0, 960 * sun(moment) * (0.8 + 0.2 * noise.drift("cloud", moment, 300)))


def bicycles(moment: Moment, noise: Noise) -> float:
    """Bicycles in the minute before."""
    commuting = 22 * traffic(moment) + 6 * activity(moment)
    return round(
        max(
            0.0,
            commuting * (1 + 0.4 * noise.drift("bikes", moment, 900)) + 2.5 * noise.white("bikes", moment),
        )
    )


def bicycles_back(moment: Moment, noise: Noise) -> float:
    """Bicycles the other way in the minute before."""
    return round(
        max(0.0, 18 * traffic(moment) + 8 * activity(moment) + 3 * noise.white("bikes-back", moment))
    )


def vehicles(moment: Moment, noise: Noise) -> float:
    """Vehicles in the half minute before."""
    return round(
        max(
            0.0,
            26 * traffic(moment) * (1 + 0.25 * noise.drift("road", moment, 300))
            + 2 * noise.white("road", moment),
        )
    )


def road_speed(moment: Moment, noise: Noise) -> float:
    """Mean speed on a road, km/h."""
    return max(
        4.0,
        52
        - 26 * traffic(moment) * (1 + 0.25 * noise.drift("road", moment, 300))
        + 4 * noise.drift("flow", moment, 40),
    )


def road_occupancy(moment: Moment, noise: Noise) -> float:
    """Share of time with a vehicle over the loop, %."""
    return min(
        100.0,
        max(
            0.5,
            32 * traffic(moment) * (1 + 0.25 * noise.drift("road", moment, 300))
            + noise.white("loop", moment),
        ),
    )


def cell_rate(moment: Moment, noise: Noise) -> float:
    """What a 5G cell sends, Mbit/s."""
    return max(
        1.0,
        60
        + 520 * activity(moment)
        + 140 * noise.drift("cell", moment, 25)
        + 30 * noise.white("cell", moment),
    )


def cell_level(moment: Moment, noise: Noise) -> float:
    """Mean RSRP of the devices in a 5G cell, dBm."""
    return -88 + 6 * noise.drift("level", moment, 90) + 1.2 * noise.white("level", moment)


def cell_devices(moment: Moment, noise: Noise) -> float:
    """Devices connected to a 5G cell."""
    return round(max(0.0, 25 + 310 * activity(moment) * (1 + 0.15 * noise.drift("devices", moment, 600))))


def parking_share(moment: Moment, noise: Noise) -> float:
    """Share of a car park that is taken, %."""
    return min(
        100.0, max(2.0, 100 * (0.2 + 0.65 * activity(moment) + 0.12 * noise.drift("cars", moment, 1500)))
    )


def free_places(capacity: int) -> Model:
    """Free places of a car park, in step with its share."""
    return lambda moment, noise: round(capacity * (1 - parking_share(moment, noise) / 100))
