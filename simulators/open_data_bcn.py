"""Open Data BCN's hourly air quality (dataset qualitat-aire-detall-bcn): a row a station, pollutant and day.

A row has 24 values `H01`..`H24` and 24 validity flags `V01`..`V24` (`V` valid, `N` not). `H01` is the mean of the
hour that ends at 01:00 local time: the reading's instant is that end, and the Datastream's `stamp` says so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from citylab.errors import ConfigurationError
from citylab.model import GATEWAY_NAME, SECOND, Micros, Quality, Reading
from simulators.descriptors import (
    MICROGRAM_PER_M3,
    MILLIGRAM_PER_M3,
    Instrument,
    Property,
    Station,
    Stream,
    Unit,
)
from simulators.playback import Part, Problem, Recording, Summary, digest_of, read_bytes, steps_of
from simulators.tables import BrokenLine, Line, Table, number, read_table

ZONE = ZoneInfo("Europe/Madrid")
CITY_CENTRE = (2.1701, 41.3870)  # Plaça de Catalunya: longitude, latitude
DATASET = "https://opendata-ajuntament.barcelona.cat/data/en/dataset/qualitat-aire-detall-bcn"
_EIONET = "http://dd.eionet.europa.eu/vocabulary/aq/pollutant/"
_WHAT = "Open Data BCN's hourly air quality"
_KEY_COLUMNS = ("ESTACIO", "CODI_CONTAMINANT", "ANY", "MES", "DIA")
_HOURS = range(1, 25)
_STREAM_PART = re.compile(r"[A-Za-z0-9\-:._]{1,40}", re.ASCII)
_FLAGS = {"V": Quality.GOOD, "N": Quality.BAD, "": Quality.NONE}


class Pollutant(NamedTuple):
    """What a code of the file means, as far as the public catalogue says."""

    symbol: str
    name: str
    unit: Unit | None
    definition: str

    @property
    def observed(self) -> Property:
        """The ObservedProperty, the same for every source of it: they share one by its definition."""
        return Property(self.name, self.definition, f"Concentration of {self.symbol} in ambient air.")


class Site(NamedTuple):
    """A measuring station's name and place, in degrees of WGS 84."""

    name: str
    longitude: float
    latitude: float


POLLUTANTS: Mapping[str, Pollutant] = {
    "1": Pollutant("SO2", "Sulphur dioxide", MICROGRAM_PER_M3, f"{_EIONET}1"),
    "6": Pollutant("CO", "Carbon monoxide", MILLIGRAM_PER_M3, f"{_EIONET}10"),
    "7": Pollutant("NO", "Nitrogen monoxide", MICROGRAM_PER_M3, f"{_EIONET}38"),
    "8": Pollutant("NO2", "Nitrogen dioxide", MICROGRAM_PER_M3, f"{_EIONET}8"),
    "9": Pollutant("PM2.5", "Particles smaller than 2.5 µm", MICROGRAM_PER_M3, f"{_EIONET}6001"),
    "10": Pollutant("PM10", "Particles smaller than 10 µm", MICROGRAM_PER_M3, f"{_EIONET}5"),
    "12": Pollutant("NOx", "Nitrogen oxides", MICROGRAM_PER_M3, f"{_EIONET}9"),
    "14": Pollutant("O3", "Ozone", MICROGRAM_PER_M3, f"{_EIONET}7"),
    "22": Pollutant("BC", "Black carbon", MICROGRAM_PER_M3, f"{DATASET}#CODI_CONTAMINANT-22"),
}
STATIONS: Mapping[str, Site] = {  # approximate
    "4": Site("Poblenou", 2.2045, 41.4039),
    "42": Site("Sants", 2.1331, 41.3788),
    "43": Site("Eixample", 2.1538, 41.3853),
    "44": Site("Gràcia", 2.1534, 41.3987),
    "50": Site("Ciutadella", 2.1874, 41.3864),
    "54": Site("Vall d'Hebron", 2.1480, 41.4261),
    "57": Site("Palau Reial", 2.1151, 41.3875),
    "58": Site("Observatori Fabra", 2.1239, 41.4183),
}


def read(path: Path, *, stations: Mapping[str, Site] = STATIONS) -> Recording:
    """Read a file. Blocking. Raises `ConfigurationError` when nothing in it can be replayed."""
    return parse(read_bytes(path), path.name, stations=stations)


def read_stations(path: Path) -> dict[str, Site]:
    """Read a CSV of stations (columns station, name, longitude, latitude). Blocking. Raises `ConfigurationError`."""
    table = read_table(read_bytes(path), path.name)
    places = table.columns(("station", "name", "longitude", "latitude"), "a table of stations")
    sites: dict[str, Site] = {}
    for line in table.lines():
        if isinstance(line, BrokenLine):
            raise ConfigurationError(f"{path.name}, line {line.number}: {line.why}")
        code, name, *degrees = (line.cells[place].strip() for place in places)
        try:
            longitude, latitude = (number(cell) for cell in degrees)
        except ValueError as error:
            raise ConfigurationError(f"{path.name}, line {line.number}: {error}") from None
        if longitude is None or latitude is None or abs(longitude) > 180 or abs(latitude) > 90:
            raise ConfigurationError(f"{path.name}, line {line.number}: no longitude and latitude in degrees")
        sites[_code(code)] = Site(name, longitude, latitude)
    return sites


def parse(content: bytes, name: str, *, stations: Mapping[str, Site] = STATIONS) -> Recording:
    """Read a file's bytes. Raises `ConfigurationError` when nothing in them can be replayed."""
    table = read_table(content, name)
    reader = _Reader(_Columns.of(table))
    if table.note:
        reader.problems.append(Problem(1, table.note))
    for line in table.lines():
        reader.rows += 1
        if isinstance(line, BrokenLine):
            reader.problems.append(Problem(line.number, line.why))
        else:
            reader.take(line)
    if not reader.pollutants:
        raise ConfigurationError(
            f"{name} has no line that can be replayed: {'; '.join(map(str, reader.problems[:3]))}"
        )
    parts = {
        f"bcn-air-{code}": Part(
            things=[_station(code, stations.get(code), reader.pollutants[code]).json()],
            steps=steps_of(reader.readings.get(code, [])),
        )
        for code in sorted(reader.pollutants, key=_by_number)
    }
    return Recording(digest=digest_of(content), parts=parts, summary=reader.summary(name))


@lru_cache(maxsize=4096)  # every station and pollutant asks for the same hours
def hour_end(day: date, hour: int) -> Micros | None:
    """The instant at which the hour `H01`..`H24` of a local day ends; None for an hour that the day does not have.

    On the day of 25 hours the hour from 02:00 comes twice; the file has one `H03`, and it is the second: its end,
    03:00, comes once. The end of `H02`, 02:00, is the first of two.
    """

    def local_clock(hour: int) -> datetime:
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZONE)
        # Arithmetic with a zone is on the wall clock; fold=0 takes the first of two, and in the gap the instant
        # at which it begins.
        return (midnight + timedelta(hours=hour)).astimezone(UTC)

    end = local_clock(hour)
    if end == local_clock(hour - 1):
        return None
    return round(end.timestamp()) * SECOND


class _Columns(NamedTuple):
    """Where the columns stand."""

    key: Sequence[int]
    values: Sequence[int]
    flags: Sequence[int]

    @classmethod
    def of(cls, table: Table) -> "_Columns":
        values = [f"H{hour:02d}" for hour in _HOURS]
        flags = [f"V{hour:02d}" for hour in _HOURS]
        found = table.columns((*_KEY_COLUMNS, *values, *flags), _WHAT)
        keys = len(_KEY_COLUMNS)
        return cls(found[:keys], found[keys : keys + 24], found[keys + 24 :])


@dataclass(slots=True)
class _Reader:
    """What was read so far. `pollutants` has the codes of each station, in order of appearance."""

    columns: _Columns
    rows: int = 0
    holes: int = 0
    problems: list[Problem] = field(default_factory=list)
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    pollutants: dict[str, dict[str, None]] = field(default_factory=dict)
    seen: dict[tuple[str, str, date], int] = field(default_factory=dict)

    def take(self, line: Line) -> None:
        """Read one row; what is wrong with it becomes a problem."""
        station, pollutant, *numbers = (line.cells[place].strip() for place in self.columns.key)
        station, pollutant = _code(station), _code(pollutant)
        if not GATEWAY_NAME.fullmatch(f"bcn-air-{station}") or not station:
            return self._problem(line, f"station code {station!r} cannot name a gateway")
        if not _STREAM_PART.fullmatch(pollutant):
            return self._problem(line, f"pollutant code {pollutant!r} cannot name a stream")
        try:
            day = date(*(int(text) for text in numbers))
            if not 2 <= day.year <= 9998:
                raise ValueError("the year is out of range")
        except ValueError as error:
            return self._problem(line, f"{'-'.join(numbers)} is no day ({error})")
        earlier = self.seen.setdefault((station, pollutant, day), line.number)
        if earlier != line.number:
            return self._problem(
                line,
                f"station {station}, pollutant {pollutant}, {day} is already in line {earlier}, which stands",
            )
        self.pollutants.setdefault(station, {})[pollutant] = None
        self.readings.setdefault(station, []).extend(self._hours(line, station, pollutant, day))
        return None

    def _hours(self, line: Line, station: str, code: str, day: date) -> Iterator[Reading]:
        known = POLLUTANTS.get(code)
        name = _stream_name(station, code)
        unit = known.unit.senml if known and known.unit else None
        for hour, value_at, flag_at in zip(_HOURS, self.columns.values, self.columns.flags, strict=True):
            try:
                value = number(line.cells[value_at])
            except ValueError as error:
                self._problem(line, f"H{hour:02d}: {error}")
                continue
            if value is None:
                self.holes += 1
                continue
            instant = hour_end(day, hour)
            if instant is None:
                self._problem(
                    line,
                    f"H{hour:02d} has the value {line.cells[value_at].strip()}, but on {day} the clock sprang"
                    " over that hour: not sent",
                )
                continue
            flag = line.cells[flag_at].strip()
            quality = _FLAGS.get(flag.upper())
            if quality is None:
                self._problem(line, f"V{hour:02d} is {flag!r}, neither V nor N: sent without a quality")
            yield Reading(name, instant, value, unit, quality or Quality.NONE)

    def _problem(self, line: Line, text: str) -> None:
        self.problems.append(Problem(line.number, text))

    def summary(self, name: str) -> Summary:
        """Count what was read."""
        every = [reading for readings in self.readings.values() for reading in readings]
        times = [reading.time for reading in every]
        return Summary(
            file=name,
            rows=self.rows,
            values=len(every),
            holes=self.holes,
            suspect=sum(reading.quality is Quality.SUSPECT for reading in every),
            bad=sum(reading.quality is Quality.BAD for reading in every),
            first=min(times, default=None),
            last=max(times, default=None),
            gateways=len(self.pollutants),
            streams=sum(map(len, self.pollutants.values())),
            problems=self.problems,
        )


def _code(text: str) -> str:
    """A code without the zeros before it; what is no number is kept as it is."""
    return str(int(text)) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _by_number(code: str) -> tuple[int, int, str]:
    return (0, int(code), "") if code.isdecimal() else (1, 0, code)


def _stream_name(station: str, code: str) -> str:
    known = POLLUTANTS.get(code)
    return f"bcn-air/{station}/{known.symbol if known else code}"


_ANALYSER = Instrument(
    "Air-quality analyser of Barcelona's network",
    "A reference analyser of the Catalan air-quality network (XVPCA); the file does not say which.",
    DATASET,
)


def _station(code: str, site: Site | None, pollutants: Mapping[str, None]) -> Station:
    name = site.name if site else code
    longitude, latitude = (site.longitude, site.latitude) if site else CITY_CENTRE
    known = f"Air-quality station {name} (code {code}) of Barcelona, replayed from Open Data BCN."
    unknown = (
        f"Air-quality station {code} of Barcelona, which the catalogue lacks, replayed from Open Data BCN."
    )
    return Station(
        key=f"bcn-air-{code}",
        name=name,
        description=known if site else unknown,
        longitude=longitude,
        latitude=latitude,
        place=name if site else f"Barcelona (station {code})",
        place_description="Approximate position of the station."
        if site
        else "Position unknown: this is the centre of Barcelona, not the station.",
        streams=[_stream(code, name, pollutant) for pollutant in sorted(pollutants, key=_by_number)],
        properties={"station": code, "licence": "CC BY 4.0, Ajuntament de Barcelona"},
    )


def _stream(station: str, place: str, code: str) -> Stream:
    known = POLLUTANTS.get(code)
    if known:
        observes = known.observed
        title, what = f"{known.symbol}, {place}", known.name
    else:
        observes = Property(
            f"pollutant {code}",
            f"{DATASET}#CODI_CONTAMINANT-{code}",
            f"What Open Data BCN's file calls CODI_CONTAMINANT {code}; its public catalogue does not explain it.",
        )
        title, what = f"pollutant {code}, {place}", f"Pollutant {code} (unknown, its unit too)"
    return Stream(
        name=_stream_name(station, code),
        title=title,
        description=f"{what}: mean of the hour that ends at the value's time.",
        unit=known.unit if known else None,
        observes=observes,
        instrument=_ANALYSER,
        interval="PT1H",
        stamp="end",
        properties={"pollutant": code},
    )
