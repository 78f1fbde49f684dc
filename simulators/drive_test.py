"""5G drive tests (Munster Technological University, repository Measurements5G): a row every three seconds.

Columns vary between files. Times are UTC, as in `Wed Dec 15 16:04:38 UTC 2021`. A 0 in a level of NR (5G) means
that there was no 5G: a hole, not 0 dBm. The files carry no position.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from citylab.errors import ConfigurationError
from citylab.model import SECOND, Micros, Quality, Reading
from simulators.descriptors import (
    BYTE,
    COUNT,
    DECIBEL,
    DECIBEL_MILLIWATT,
    MEASUREMENT,
    MEGABIT_PER_SECOND,
    Instrument,
    Property,
    Station,
    Stream,
    Unit,
)
from simulators.playback import Part, Problem, Recording, Summary, digest_of, read_bytes, steps_of
from simulators.tables import BrokenLine, Line, Table, number, read_table

CORK = (-8.4706, 51.8979)  # the city's centre: longitude, latitude
REPOSITORY = "https://github.com/MTU-Insectt/Measurements5G"
_LTE = "https://www.3gpp.org/dynareport/36214.htm#"
_NR = "https://www.3gpp.org/dynareport/38215.htm#"
_OWN = f"{REPOSITORY}#"
_WHAT = "a 5G drive test"
_REQUIRED = ("Time", "rsrp(dBm)", "rsrq(dB)", "rssi(dBm)", "nr_rsrp(dBm)", "nr_rsrq(dB)", "nr_rssi(dBm)")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TIME = re.compile(
    r"(?:[A-Z][a-z]{2}) +([A-Z][a-z]{2}) +(\d{1,2}) +(\d\d):(\d\d):(\d\d) +(UTC|GMT) +(\d{4})", re.ASCII
)
_UNIT_OF_TITLE = re.compile(r"(.+?)\s*\(([^()]+)\)")
_INTERVAL = "PT3S"


class Quantity(NamedTuple):
    """What a column holds. A level of NR is a hole where it is 0; `least` is what no real value is below."""

    slug: str
    name: str
    unit: Unit | None
    definition: str
    description: str
    is_nr_level: bool = False
    least: float | None = None
    greatest: float | None = None
    kind: str = MEASUREMENT


def _level(slug: str, name: str, unit: Unit, base: str, what: str) -> Quantity:
    is_nr = slug.startswith("nr")
    # No receiver reads 0 dBm or above: a row of zeros is a modem that had nothing to say.
    return Quantity(slug, name, unit, f"{base}{slug}", what, is_nr, greatest=-1.0)


QUANTITIES: Mapping[str, Quantity] = {
    "rsrp": _level(
        "rsrp", "LTE RSRP", DECIBEL_MILLIWATT, _LTE, "Reference signal received power of the 4G cell."
    ),
    "rsrq": _level("rsrq", "LTE RSRQ", DECIBEL, _LTE, "Reference signal received quality of the 4G cell."),
    "rssi": _level(
        "rssi", "LTE RSSI", DECIBEL_MILLIWATT, _LTE, "Received signal strength of the 4G carrier."
    ),
    "nr_rsrp": _level(
        "nr-rsrp", "NR RSRP", DECIBEL_MILLIWATT, _NR, "Reference signal received power of the 5G cell."
    ),
    "nr_rsrq": _level(
        "nr-rsrq", "NR RSRQ", DECIBEL, _NR, "Reference signal received quality of the 5G cell."
    ),
    "nr_rssi": _level(
        "nr-rssi", "NR RSSI", DECIBEL_MILLIWATT, _NR, "Received signal strength of the 5G carrier."
    ),
    "sent bytes": Quantity(
        "sent-bytes",
        "Bytes sent",
        BYTE,
        f"{_OWN}bytes-sent",
        "Bytes that the modem has sent since it started: a counter, which falls to 0 when the modem starts again.",
        least=0,
        kind=COUNT,
    ),
    "rate": Quantity(
        "rate",
        "Uplink rate",
        MEGABIT_PER_SECOND,
        f"{_OWN}uplink-rate",
        "Uplink rate since the row before, computed from the counter by who recorded it: negative where that restarted.",
        least=0,
    ),
    "nr ul bw": Quantity(
        "nr-ul-bw",
        "NR uplink bandwidth",
        None,
        f"{_OWN}nr-uplink-bandwidth",
        "Bandwidth of the 5G uplink as the file gives it, without a unit; 0 where there was none.",
        least=0,
    ),
}


def read(path: Path, *, location: tuple[float, float] | None = None) -> Recording:
    """Read a file. Blocking. Raises `ConfigurationError` when nothing in it can be replayed.

    location: longitude and latitude in degrees of where it was recorded; None for the centre of Cork.
    """
    return parse(read_bytes(path), path.name, location=location)


def parse(content: bytes, name: str, *, location: tuple[float, float] | None = None) -> Recording:
    """Read a file's bytes; see `read`."""
    table = read_table(content, name)
    table.columns(_REQUIRED, _WHAT)
    slug = slug_of(Path(name).stem) or digest_of(content)
    reader = _Reader(_columns(table, slug), table.columns(("Time",), _WHAT)[0])
    if table.note:
        reader.problems.append(Problem(1, table.note))
    for line in table.lines():
        reader.rows += 1
        if isinstance(line, BrokenLine):
            reader.problems.append(Problem(line.number, line.why))
        else:
            reader.take(line)
    if not reader.seen:
        raise ConfigurationError(
            f"{name} has no line that can be replayed: {'; '.join(map(str, reader.problems[:3]))}"
        )
    gateway = f"drive-{slug}"
    part = Part(
        things=[_vehicle(gateway, name, reader.columns, location).json()], steps=steps_of(reader.readings)
    )
    return Recording(digest=digest_of(content), parts={gateway: part}, summary=reader.summary(name))


def parse_location(text: str) -> tuple[float, float]:
    """Read `LON,LAT` in degrees. Raises `ConfigurationError`."""
    try:
        longitude, latitude = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(
            f"location {text!r} is not LON,LAT in degrees, such as -8.47,51.90"
        ) from None
    if not (abs(longitude) <= 180 and abs(latitude) <= 90):
        raise ConfigurationError(
            f"location {text!r}: longitude (first) is -180 to 180, latitude (second) -90 to 90"
        )
    return longitude, latitude


def parse_time(text: str) -> Micros:
    """Read `Wed Dec 15 16:04:38 UTC 2021`, whatever the machine's language. Raises ValueError."""
    match = _TIME.fullmatch(text.strip())
    if not match or match[1] not in _MONTHS:
        raise ValueError(f"{text.strip()[:40]!r} is no time such as Wed Dec 15 16:04:38 UTC 2021")
    month, day, hour, minute, second, _, year = match.groups()
    moment = datetime(
        int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), tzinfo=UTC
    )
    return round(moment.timestamp()) * SECOND


def slug_of(text: str) -> str:
    """Lower-case ASCII letters, digits and hyphens, at most 50."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:50].strip("-")


class _Column(NamedTuple):
    place: int
    stream: str
    quantity: Quantity


def _columns(table: Table, slug: str) -> list[_Column]:
    """The columns with measurements. One that the catalogue lacks is kept, with the unit that its title gives."""
    columns: list[_Column] = []
    taken: dict[str, int] = {}
    for place, title in enumerate(table.header):
        if title.casefold() == "time" or not title:
            continue
        match = _UNIT_OF_TITLE.fullmatch(title)
        base, symbol = (match[1], match[2]) if match else (title, None)
        quantity = QUANTITIES.get(base.casefold()) or _unknown(title, base, symbol, place)
        if quantity.slug in taken:
            raise ConfigurationError(
                f"{table.name} has the column {title} twice ({taken[quantity.slug] + 1} and {place + 1})"
            )
        taken[quantity.slug] = place
        columns.append(_Column(place, f"drive/{slug}/{quantity.slug}", quantity))
    return columns


def _unknown(title: str, base: str, symbol: str | None, place: int) -> Quantity:
    slug = slug_of(base) or f"column-{place + 1}"
    unit = Unit(symbol, symbol, f"{_OWN}unit-as-in-the-file") if symbol else None
    return Quantity(slug, title, unit, f"{_OWN}column-{slug}", f"The column {title!r} of a drive test.")


@dataclass(slots=True)
class _Reader:
    """What was read so far. `seen` has the line of each second."""

    columns: Sequence[_Column]
    time_at: int
    rows: int = 0
    holes: int = 0
    problems: list[Problem] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    seen: dict[Micros, int] = field(default_factory=dict)

    def take(self, line: Line) -> None:
        """Read one row; what is wrong with it becomes a problem."""
        try:
            instant = parse_time(line.cells[self.time_at])
        except ValueError as error:
            self.problems.append(Problem(line.number, str(error)))
            return
        earlier = self.seen.setdefault(instant, line.number)
        if earlier != line.number:
            # Times have whole seconds: a second row of one second cannot be told from a repeated one.
            self.problems.append(Problem(line.number, f"line {earlier} has the same time, and stands"))
            return
        self.readings.extend(self._values(line, instant))

    def _values(self, line: Line, instant: Micros) -> Iterator[Reading]:
        for place, stream, quantity in self.columns:
            try:
                value = number(line.cells[place])
            except ValueError as error:
                self.problems.append(Problem(line.number, f"column {place + 1}: {error}"))
                continue
            if value is None or (value == 0 and quantity.is_nr_level):
                self.holes += 1
                continue
            unit = quantity.unit.senml if quantity.unit else None
            yield Reading(stream, instant, value, unit, _quality(value, quantity))

    def summary(self, name: str) -> Summary:
        """Count what was read."""
        times = [reading.time for reading in self.readings]
        return Summary(
            file=name,
            rows=self.rows,
            values=len(self.readings),
            holes=self.holes,
            suspect=sum(reading.quality is Quality.SUSPECT for reading in self.readings),
            bad=0,
            first=min(times, default=None),
            last=max(times, default=None),
            gateways=1,
            streams=len(self.columns),
            problems=self.problems,
        )


def _quality(value: float, quantity: Quantity) -> Quality:
    """A value that cannot be is kept as it was recorded, and marked."""
    below = quantity.least is not None and value < quantity.least
    above = quantity.greatest is not None and value > quantity.greatest
    return Quality.SUSPECT if below or above else Quality.NONE


_MODEM = Instrument(
    "5G modem of the Measurements5G drive tests",
    "A 5G NSA modem with an LTE anchor, read every three seconds.",
    REPOSITORY,
)


def _vehicle(
    gateway: str, file: str, columns: Sequence[_Column], location: tuple[float, float] | None
) -> Station:
    longitude, latitude = location or CORK
    given = "Given when the file was replayed" if location else "Assumed to be the centre of Cork"
    return Station(
        key=gateway,
        name=f"5G measurements, {Path(file).stem}",
        description=f"Measurements of a 5G network, replayed from {file}.",
        longitude=longitude,
        latitude=latitude,
        place=f"Place of {Path(file).stem}",
        place_description=f"{given}: the file carries no position.",
        streams=[_stream(column, file) for column in columns],
        properties={"file": file},
    )


def _stream(column: _Column, file: str) -> Stream:
    quantity = column.quantity
    return Stream(
        name=column.stream,
        title=f"{quantity.name}, {Path(file).stem}",
        description=quantity.description,
        unit=quantity.unit,
        observes=Property(quantity.name, quantity.definition, quantity.description),
        instrument=_MODEM,
        interval=_INTERVAL,
        kind=quantity.kind,
    )
