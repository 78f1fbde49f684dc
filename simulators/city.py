"""A small synthetic Barcelona in real time: 25 things behind seven gateways, one a bus, with some trouble to look at.

Every value is a function of seed and time alone (`city_signals`), so a run is reproducible to the byte and a restart
never contradicts what was sent before it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from citylab.commands import Command, Result
from citylab.model import HOUR, MINUTE, SECOND, Micros, Quality, Reading
from citylab.times import now
from simulators import city_bus as bus
from simulators import city_signals as signals
from simulators.city_signals import Model, Moment, Noise
from simulators.descriptors import (
    CELSIUS,
    COUNT,
    DECIBEL,
    DECIBEL_MILLIWATT,
    HECTOPASCAL,
    KILOMETRE_PER_HOUR,
    LATITUDE,
    LONGITUDE,
    MEASUREMENT,
    MEGABIT_PER_SECOND,
    METRE_PER_SECOND,
    MILLIMETRE_PER_HOUR,
    NUMBER,
    PERCENT,
    RELATIVE_HUMIDITY,
    WATT_PER_M2,
    Capability,
    Instrument,
    Property,
    Station,
    Stream,
    Unit,
)
from simulators.open_data_bcn import POLLUTANTS

HISTORY: Micros = HOUR
_STRETCH: Micros = MINUTE  # of city time in one step, while catching up
_ABOUT = "https://citylab.example/synthetic-city"


class Ailment(StrEnum):
    """What is wrong with a sensor now and then."""

    SILENT = "silent"
    SUSPECT = "suspect"
    BAD = "bad"


class Trouble(NamedTuple):
    """Once in every `period` seconds, for `length` seconds. `slug` names one stream, or None the whole thing."""

    place: str
    slug: str | None
    ailment: Ailment
    period: int
    length: int


TROUBLES: Sequence[Trouble] = (
    Trouble("noise-rambla", "laeq", Ailment.SUSPECT, 1800, 900),
    Trouble("weather-montjuic", None, Ailment.SILENT, 2400, 600),
    Trouble("air-glories", "pm25", Ailment.BAD, 1200, 240),
    Trouble("bikes-barceloneta", None, Ailment.SILENT, 3600, 900),
    Trouble("cell-forum", "rsrp", Ailment.SUSPECT, 1500, 300),
)


class Measure(NamedTuple):
    """A kind of datastream: what it observes, how often (s), how many decimals, which model.

    beat: measures of a thing with the same one speak in the same second.
    """

    slug: str
    title: str
    unit: Unit
    observes: Property
    seconds: int
    decimals: int
    model: Model
    stamp: str | None = None
    beat: str = ""

    @property
    def kind(self) -> str:
        """The observationType."""
        return COUNT if self.unit is NUMBER else MEASUREMENT


class Place(NamedTuple):
    """A thing: its key, the name people know, longitude, latitude, what it is and what it measures."""

    key: str
    name: str
    longitude: float
    latitude: float
    what: str
    measures: Sequence[Measure]


def _pollutant(code: str, slug: str, seconds: int, model: Model) -> Measure:
    known = POLLUTANTS[code]
    assert known.unit is not None
    return Measure(slug, known.symbol, known.unit, known.observed, seconds, 1, model)


AIR = (
    _pollutant("8", "no2", 10, signals.no2),
    _pollutant("14", "o3", 30, signals.o3),
    _pollutant("9", "pm25", 30, signals.pm25),
    _pollutant("10", "pm10", 60, signals.pm10),
)


def _own(name: str, what: str) -> Property:
    return Property(name, f"{_ABOUT}#{name.lower().replace(' ', '-')}", what)


def _standard(name: str, cf_name: str, what: str) -> Property:
    """By its name in the CF conventions for climate and forecast."""
    return Property(name, f"http://vocab.nerc.ac.uk/standard_name/{cf_name}/", what)


LAEQ = _own("Equivalent sound level", "A-weighted equivalent continuous sound level, LAeq.")
LAMAX = _own("Maximum sound level", "A-weighted maximum sound level with fast time weighting, LAFmax.")
AIR_TEMPERATURE = _standard("Air temperature", "air_temperature", "Temperature of the air in the shade.")
AIR_HUMIDITY = _standard("Relative humidity", "relative_humidity", "Relative humidity of the air.")
WIND = _standard("Wind speed", "wind_speed", "Horizontal wind speed.")
AIR_PRESSURE = _standard("Air pressure", "air_pressure", "Pressure of the air at the station.")
RAIN = _standard("Rainfall rate", "rainfall_rate", "Rain per time.")
IRRADIANCE = _standard(
    "Solar irradiance", "surface_downwelling_shortwave_flux_in_air", "Short-wave radiation from above."
)
BICYCLE_FLOW = _own("Bicycle flow", "Bicycles that pass, a minute.")
VEHICLE_FLOW = _own("Vehicle flow", "Vehicles that pass, in half a minute.")
VEHICLE_SPEED = _own("Vehicle speed", "Mean speed of the vehicles that pass.")
LOOP_OCCUPANCY = _own("Loop occupancy", "Share of time during which a vehicle stands over the loop.")
CELL_DOWNLINK = _own("Cell downlink rate", "What a 5G cell sends to all its devices.")
CELL_RSRP = _own("Cell RSRP", "NR reference signal received power, mean of the devices of a cell.")
CELL_DEVICES = _own("Connected devices", "Devices connected to a 5G cell.")
BUS_LONGITUDE = _standard("Longitude", "longitude", "Longitude of where it is, WGS 84.")
BUS_LATITUDE = _standard("Latitude", "latitude", "Latitude of where it is, WGS 84.")
FREE_PLACES = _own("Free places", "Free places of a car park.")
PLACES_TAKEN = _own("Places taken", "Share of a car park's places that are taken.")


def _noise(seconds: int) -> tuple[Measure, ...]:
    """A noise meter. LAeq of so many seconds, and the loudest of ten."""
    return (
        Measure("laeq", "Sound level LAeq", DECIBEL, LAEQ, seconds, 1, signals.loudness, "end"),
        Measure("lamax", "Loudest sound LAFmax", DECIBEL, LAMAX, 10, 1, signals.loudest, "end"),
    )


WEATHER = (
    Measure("temperature", "Air temperature", CELSIUS, AIR_TEMPERATURE, 10, 1, signals.temperature),
    Measure("humidity", "Relative humidity", RELATIVE_HUMIDITY, AIR_HUMIDITY, 10, 0, signals.humidity),
    Measure("wind", "Wind speed", METRE_PER_SECOND, WIND, 5, 1, signals.wind),
    Measure("pressure", "Air pressure", HECTOPASCAL, AIR_PRESSURE, 60, 1, signals.pressure),
    Measure("rain", "Rain", MILLIMETRE_PER_HOUR, RAIN, 60, 1, signals.rain),
    Measure("sunshine", "Solar irradiance", WATT_PER_M2, IRRADIANCE, 10, 0, signals.sunshine),
)
BICYCLES = (
    Measure("in", "Bicycles a minute, inbound", NUMBER, BICYCLE_FLOW, 60, 0, signals.bicycles, "end"),
    Measure("out", "Bicycles a minute, outbound", NUMBER, BICYCLE_FLOW, 60, 0, signals.bicycles_back, "end"),
)
TRAFFIC = (
    Measure("vehicles", "Vehicles in 30 s", NUMBER, VEHICLE_FLOW, 30, 0, signals.vehicles, "end"),
    Measure("speed", "Mean speed", KILOMETRE_PER_HOUR, VEHICLE_SPEED, 10, 1, signals.road_speed, "end"),
    Measure("occupancy", "Loop occupancy", PERCENT, LOOP_OCCUPANCY, 30, 1, signals.road_occupancy, "end"),
)
CELL = (
    Measure("rate", "Cell downlink", MEGABIT_PER_SECOND, CELL_DOWNLINK, 5, 1, signals.cell_rate),
    Measure("rsrp", "NR RSRP, mean of the devices", DECIBEL_MILLIWATT, CELL_RSRP, 5, 1, signals.cell_level),
    Measure("devices", "Connected devices", NUMBER, CELL_DEVICES, 10, 0, signals.cell_devices),
)

BUS = (
    Measure("longitude", "Longitude", LONGITUDE, BUS_LONGITUDE, 5, 6, bus.longitude, beat="position"),
    Measure("latitude", "Latitude", LATITUDE, BUS_LATITUDE, 5, 6, bus.latitude, beat="position"),
    *(measure._replace(seconds=10) for measure in AIR if measure.slug in {"no2", "pm25"}),
)


def _car_park(capacity: int) -> tuple[Measure, ...]:
    return (
        Measure("free", "Free places", NUMBER, FREE_PLACES, 20, 0, signals.free_places(capacity)),
        Measure("taken", "Places taken", PERCENT, PLACES_TAKEN, 20, 1, signals.parking_share),
    )


GATEWAYS: Mapping[str, Sequence[Place]] = {
    "city-eixample": (
        Place("air-catalunya", "Plaça de Catalunya", 2.1701, 41.3870, "Air-quality station", AIR),
        Place("noise-gracia", "Passeig de Gràcia", 2.1649, 41.3917, "Noise meter", _noise(1)),
        Place("traffic-arago", "Carrer d'Aragó", 2.1655, 41.3935, "Traffic loop", TRAFFIC),
        Place("cell-sagrada-familia", "Sagrada Família", 2.1744, 41.4036, "5G cell", CELL),
    ),
    "city-ciutat-vella": (
        Place("noise-rambla", "La Rambla", 2.1735, 41.3803, "Noise meter", _noise(1)),
        Place("bikes-barceloneta", "Passeig Marítim de la Barceloneta", 2.1926, 41.3800, "Bicycle counter", BICYCLES),
        Place("weather-ciutadella", "Parc de la Ciutadella", 2.1874, 41.3881, "Weather station", WEATHER),
        Place("parking-boqueria", "Aparcament de la Boqueria", 2.1709, 41.3817, "Car park", _car_park(420)),
    ),
    "city-sant-marti": (
        Place("air-glories", "Plaça de les Glòries", 2.1866, 41.4036, "Air-quality station", AIR),
        Place("bikes-diagonal", "Avinguda Diagonal, Glòries", 2.1893, 41.4049, "Bicycle counter", BICYCLES),
        Place("cell-forum", "Fòrum", 2.2206, 41.4115, "5G cell", CELL),
        Place("noise-poblenou", "Rambla del Poblenou", 2.2010, 41.4000, "Noise meter", _noise(5)),
    ),
    "city-sants-montjuic": (
        Place("air-sants", "Estació de Sants", 2.1405, 41.3791, "Air-quality station", AIR),
        Place("weather-montjuic", "Castell de Montjuïc", 2.1663, 41.3634, "Weather station", WEATHER),
        Place("traffic-gran-via", "Gran Via, Plaça d'Espanya", 2.1490, 41.3750, "Traffic loop", TRAFFIC),
        Place("noise-sants", "Carrer de Sants", 2.1355, 41.3757, "Noise meter", _noise(5)),
    ),
    "city-gracia": (
        Place("air-lesseps", "Plaça de Lesseps", 2.1503, 41.4065, "Air-quality station", AIR),
        Place("noise-sol", "Plaça del Sol", 2.1567, 41.4011, "Noise meter", _noise(5)),
        Place("bikes-verdi", "Gran de Gràcia", 2.1561, 41.4012, "Bicycle counter", BICYCLES),
        Place("cell-guell", "Park Güell", 2.1527, 41.4145, "5G cell", CELL),
    ),
    "city-nord": (
        Place("air-hebron", "Vall d'Hebron", 2.1420, 41.4250, "Air-quality station", AIR),
        Place("weather-tibidabo", "Tibidabo", 2.1187, 41.4225, "Weather station", WEATHER),
        Place("traffic-meridiana", "Avinguda Meridiana", 2.1870, 41.4170, "Traffic loop", TRAFFIC),
        Place("parking-andreu", "Aparcament de Sant Andreu", 2.1905, 41.4366, "Car park", _car_park(260)),
    ),
    "city-bus": (
        Place("bus-v17", "Line V17", 2.1701, 41.3870, "Bus", BUS),
    ),
}  # fmt: skip

TASKED = "noise-gracia"  # the place whose noise meter can be told how often to measure
LONGEST_INTERVAL = 60  # s
INTERVAL = Capability(
    name="Sampling interval",
    description="How often the noise meter measures, until its gateway restarts.",
    fields=[
        {
            "name": "seconds",
            "label": "Seconds between two values",
            "type": "Count",
            "uom": {"code": "s"},
            "constraint": {"type": "AllowedValues", "interval": [[1, LONGEST_INTERVAL]]},
        }
    ],
    actuator=Instrument("Synthetic timer", "Waits between two values of a simulated noise meter.", _ABOUT),
)

_SIMULATED = Instrument(
    "Synthetic sensor", "Measures nothing: its values are computed by Citylab's simulator.", _ABOUT
)


@dataclass(frozen=True, slots=True)
class Source:
    """One datastream of the city, with the seed in it."""

    name: str
    measure: Measure
    noise: Noise
    phase: int
    troubles: Sequence[Trouble]

    def seconds(self, after: int, until: int) -> range:
        """The seconds since the epoch at which it measures, after < s <= until."""
        step = self.measure.seconds
        return range(after + 1 + (self.phase - after - 1) % step, until + 1, step)

    def reading(self, second: int) -> Reading | None:
        """What it says at a second; None when it is silent."""
        moment = Moment.at(second)
        ailments = {trouble.ailment for trouble in self.troubles if _is_on(trouble, self.noise, second)}
        if Ailment.SILENT in ailments:
            return None
        value = self.measure.model(moment, self.noise)
        quality = Quality.NONE
        if ailments:
            quality = Quality.BAD if Ailment.BAD in ailments else Quality.SUSPECT
            value += 0.15 * abs(value)  # out of calibration
        value = round(value, self.measure.decimals)
        return Reading(self.name, second * SECOND, float(value), self.measure.unit.senml, quality)


class CityDriver:
    """A driver of the edge agent (`edge.drivers.Driver`) for one gateway's things. It never ends.

    Its position is the instant up to which it has measured. Without one it begins an hour ago; after a longer pause
    than that the hours before stay empty, as those of a gateway that had no power.
    """

    def __init__(
        self,
        places: Sequence[Place],
        seed: int,
        *,
        clock: Callable[[], Micros],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.things = [_station(place).json() for place in places]
        self.sources = [source for place in places for source in _sources(place, seed)]
        self._tasked = any(place.key == TASKED for place in places)
        self._interval = 1  # s, of the tasked place's streams
        self._clock = clock
        self._sleep = sleep

    async def readings(self, position: str | None) -> AsyncIterator[tuple[list[Reading], str | None]]:
        """Yield what was measured since `position`, in order of time, then what is measured, second by second."""
        at = self._start(position)
        while True:
            present = self._clock() // SECOND * SECOND
            while at < present:
                until = min(at + _STRETCH, present)
                readings = self.between(at, until)
                at = until
                if readings:
                    yield readings, str(at)
            await self._sleep(max(0.0, (at + SECOND - self._clock()) / SECOND))

    async def perform(self, command: Command) -> AsyncGenerator[Result]:
        """Change how often the tasked place measures (`edge.drivers.Tasked`)."""
        seconds = command.taskingParameters.get("seconds")
        if not self._tasked or not isinstance(seconds, int) or not 1 <= seconds <= LONGEST_INTERVAL:
            yield Result(command.task, "rejected", message="nothing here can do that")
            return
        before, self._interval = self._interval, seconds
        yield Result(
            command.task, "completed", message=f"it measures every {seconds} s, before every {before} s"
        )

    def between(self, after: Micros, until: Micros) -> list[Reading]:
        """All readings with after < time <= until, in order of time, then name."""
        first, last = after // SECOND, until // SECOND
        found = (
            source.reading(second)
            for source in self.sources
            for second in source.seconds(first, last)
            if not second % self._interval or f"/{TASKED}/" not in source.name
        )
        return sorted(
            (reading for reading in found if reading is not None),
            key=lambda reading: (reading.time, reading.name),
        )

    def _start(self, position: str | None) -> Micros:
        present = self._clock() // SECOND * SECOND
        begin = present - HISTORY
        if position is None or not position.isdecimal():
            return begin
        return min(max(begin, int(position)), present)


def drivers(
    seed: int = 2026,
    *,
    clock: Callable[[], Micros] = now,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> dict[str, CityDriver]:
    """One driver a gateway of the city."""
    return {
        gateway: CityDriver(places, seed, clock=clock, sleep=sleep) for gateway, places in GATEWAYS.items()
    }


def _sources(place: Place, seed: int) -> list[Source]:
    noise = Noise(seed, place.key)
    return [
        Source(
            name=_stream_name(place, measure),
            measure=measure,
            noise=noise,
            # Spread over the interval, so that not everything speaks in the same second.
            phase=int(noise.uniform(f"phase-{measure.beat or measure.slug}", 0) * measure.seconds),
            troubles=[t for t in TROUBLES if t.place == place.key and t.slug in (None, measure.slug)],
        )
        for measure in place.measures
    ]


def _is_on(trouble: Trouble, noise: Noise, second: int) -> bool:
    turn, inside = divmod(second, trouble.period)
    start = noise.uniform(f"trouble-{trouble.ailment}", turn) * (trouble.period - trouble.length)
    return start <= inside < start + trouble.length


def _stream_name(place: Place, measure: Measure) -> str:
    return f"city/{place.key}/{measure.slug}"


def _station(place: Place) -> Station:
    return Station(
        key=f"city-{place.key}",
        name=f"{place.what}, {place.name}",
        description=f"{place.what} at {place.name}. Simulated: nothing is measured there.",
        longitude=place.longitude,
        latitude=place.latitude,
        place=place.name,
        place_description="Where the simulated thing would stand.",
        streams=[_stream(place, measure) for measure in place.measures],
        capabilities=[INTERVAL] if place.key == TASKED else [],
        properties={"simulated": True},
    )


def _stream(place: Place, measure: Measure) -> Stream:
    return Stream(
        name=_stream_name(place, measure),
        title=f"{measure.title}, {place.name}",
        description=f"{measure.title} at {place.name}, simulated.",
        unit=measure.unit,
        observes=measure.observes,
        instrument=_SIMULATED,
        interval=f"PT{measure.seconds}S" if measure.seconds < 60 else "PT1M",
        stamp=measure.stamp,
        kind=measure.kind,
    )
