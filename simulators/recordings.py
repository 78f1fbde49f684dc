"""Writes files in the formats of the recordings, from a seed: for tests and demos that have no recording at hand."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

_ZONE = ZoneInfo("Europe/Madrid")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_USUAL = {"6": 0.3, "999": 0.5, "998": 1.5}  # mean levels of pollutants that are not tens of µg/m³
DRIVE_TITLES = (
    "Time", "rsrp(dBm)", "rsrq(dB)", "rssi(dBm)", "nr_rsrp(dBm)", "nr_rsrq(dB)", "nr_rssi(dBm)", "Sent Bytes",
    "RATE(MBit/s)",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One hour: the value as the file has it (`NA` or empty for none) and its flag."""

    value: str
    flag: str = "V"


@dataclass(frozen=True, slots=True)
class AirQualityRow:
    """One station, pollutant and day, with 24 cells."""

    station: str
    pollutant: str
    day: date
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class DriveRow:
    """One row of a drive test, its cells as text, in the order of `DRIVE_TITLES` after the time."""

    time: datetime
    cells: Sequence[str]


def air_quality_rows(
    seed: int,
    *,
    first: date,
    days: int,
    series: Sequence[tuple[str, str]] = (("43", "8"), ("43", "14"), ("57", "6"), ("57", "999")),
    holes: float = 0.02,
    invalid: float = 0.01,
) -> list[AirQualityRow]:
    """Make rows for (station, pollutant) series. An hour that a day does not have is a hole.

    holes and invalid are the shares of hours without a value, and of values with the flag `N`.
    """
    random_ = random.Random(f"air/{seed}")
    rows = []
    for station, pollutant in series:
        level = _USUAL.get(pollutant, 25.0)
        for day in (first + timedelta(days=n) for n in range(days)):
            cells = []
            for hour in range(1, 25):
                level_now = (
                    level * (1 + 0.5 * (hour in (8, 9, 10, 19, 20, 21))) * random_.lognormvariate(0, 0.3)
                )
                if random_.random() < holes or not _exists(day, hour):
                    cells.append(Cell("NA", "N"))
                else:
                    text = f"{level_now:.1f}" if level < 10 else f"{level_now:.0f}"
                    cells.append(Cell(text, "N" if random_.random() < invalid else "V"))
            rows.append(AirQualityRow(station, pollutant, day, tuple(cells)))
    return rows


def write_air_quality(rows: Sequence[AirQualityRow]) -> str:
    """Write Open Data BCN's format."""
    titles = [
        "CODI_PROVINCIA", "PROVINCIA", "CODI_MUNICIPI", "MUNICIPI", "ESTACIO", "CODI_CONTAMINANT", "ANY", "MES", "DIA",
        *(f"{kind}{hour:02d}" for hour in range(1, 25) for kind in "HV"),
    ]  # fmt: skip
    lines = [",".join(f'"{title}"' for title in titles)]
    for row in rows:
        day = (str(row.day.year), str(row.day.month), str(row.day.day))
        cells = (text for cell in row.cells for text in (cell.value, f'"{cell.flag}"'))
        lines.append(
            ",".join(("8", '"Barcelona"', "19", '"Barcelona"', row.station, row.pollutant, *day, *cells))
        )
    return "\n".join(lines) + "\n"


def drive_rows(seed: int, *, start: datetime, rows: int, without_5g: float = 0.4) -> list[DriveRow]:
    """Make rows of a drive test, about three seconds apart; 5G comes and goes for minutes at a time."""
    random_ = random.Random(f"drive/{seed}")
    made, now, sent, has_5g = [], start.astimezone(UTC), 14_229, random_.random() >= without_5g
    for _ in range(rows):
        if random_.random() < 0.02:
            has_5g = random_.random() >= without_5g
        rsrp = random_.randint(-115, -80)
        levels = [rsrp, random_.randint(-18, -7), rsrp + random_.randint(28, 38)]
        nr_rsrp = random_.randint(-125, -75)
        nr = [nr_rsrp, random_.randint(-18, -10), nr_rsrp + random_.randint(8, 14)] if has_5g else [0, 0, 0]
        step = random_.choice((2, 3, 3, 3, 3, 3, 4))
        grown = random_.randint(0, 20_000_000 if has_5g else 4_000_000)
        sent += grown
        rate = repr(grown * 8 / 2**20 / step)
        made.append(DriveRow(now, (*map(str, levels), *map(str, nr), str(sent), rate)))
        now += timedelta(seconds=step)
    return made


def write_drive_test(rows: Sequence[DriveRow]) -> str:
    """Write the drive tests' format."""
    lines = [",".join(DRIVE_TITLES)]
    lines += [",".join((_written(row.time), *row.cells)) for row in rows]
    return "\n".join(lines) + "\n"


def _written(time: datetime) -> str:
    weekday, month = _WEEKDAYS[time.weekday()], _MONTHS[time.month - 1]
    return f"{weekday} {month} {time.day:02d} {time:%H:%M:%S} UTC {time.year}"


def _exists(day: date, hour: int) -> bool:
    """Whether a local day has the hour that ends at `hour`: its middle survives the way to UTC and back."""
    middle = datetime(day.year, day.month, day.day, hour - 1, 30, tzinfo=_ZONE)
    return middle.astimezone(UTC).astimezone(_ZONE).replace(tzinfo=None) == middle.replace(tzinfo=None)
