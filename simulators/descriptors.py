"""What a driver says about its things, as values; written out as the SensorThings JSON of a descriptor."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MEASUREMENT = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement"
COUNT = "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_CountObservation"
_QUDT = "http://qudt.org/vocab/unit/"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measurement: what people read, its definition, and SenML's name where the registry has one."""

    symbol: str
    name: str
    definition: str
    senml: str | None = None


MICROGRAM_PER_M3 = Unit("µg/m³", "microgram per cubic metre", f"{_QUDT}MicroGM-PER-M3", "ug/m3")
MILLIGRAM_PER_M3 = Unit("mg/m³", "milligram per cubic metre", f"{_QUDT}MilliGM-PER-M3")
DECIBEL = Unit("dB", "decibel", f"{_QUDT}DeciB", "dB")
DECIBEL_MILLIWATT = Unit("dBm", "decibel referred to one milliwatt", f"{_QUDT}DeciB_M", "dBm")
BYTE = Unit("B", "byte", f"{_QUDT}BYTE", "B")
MEGABIT_PER_SECOND = Unit("Mbit/s", "megabit per second", f"{_QUDT}MegaBIT-PER-SEC", "Mbit/s")
CELSIUS = Unit("°C", "degree Celsius", f"{_QUDT}DEG_C", "Cel")
RELATIVE_HUMIDITY = Unit("%RH", "percent relative humidity", f"{_QUDT}PERCENT_RH", "%RH")
PERCENT = Unit("%", "percent", f"{_QUDT}PERCENT", "/100")
METRE_PER_SECOND = Unit("m/s", "metre per second", f"{_QUDT}M-PER-SEC", "m/s")
KILOMETRE_PER_HOUR = Unit("km/h", "kilometre per hour", f"{_QUDT}KiloM-PER-HR", "km/h")
HECTOPASCAL = Unit("hPa", "hectopascal", f"{_QUDT}HectoPA", "hPa")
WATT_PER_M2 = Unit("W/m²", "watt per square metre", f"{_QUDT}W-PER-M2", "W/m2")
MILLIMETRE_PER_HOUR = Unit("mm/h", "millimetre per hour", f"{_QUDT}MilliM-PER-HR", "mm/h")
LONGITUDE = Unit("°", "degree of longitude", f"{_QUDT}DEG", "lon")
LATITUDE = Unit("°", "degree of latitude", f"{_QUDT}DEG", "lat")
NUMBER = Unit("", "count", f"{_QUDT}NUM", "count")


@dataclass(frozen=True, slots=True)
class Property:
    """What is observed (ObservedProperty). The definition is a URI, and its identity."""

    name: str
    definition: str
    description: str


@dataclass(frozen=True, slots=True)
class Instrument:
    """What observes (Sensor) or is told to do something (Actuator). `metadata` is the address of a page about it."""

    name: str
    description: str
    metadata: str

    def json(self) -> dict[str, Any]:
        """The Sensor or Actuator for a deep insert."""
        return {
            "name": self.name,
            "description": self.description,
            "encodingType": "text/html",
            "metadata": self.metadata,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A Datastream. `name` is its SenML stream name, `title` what people read; a unit that nobody knows is None."""

    name: str
    title: str
    description: str
    unit: Unit | None
    observes: Property
    instrument: Instrument
    interval: str
    stamp: str | None = None
    kind: str = MEASUREMENT
    properties: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """The Datastream for a deep insert (OGC 18-088 §10.2.1.1.1)."""
        properties = {"streamName": self.name, "interval": self.interval}
        if self.stamp:
            properties["stamp"] = self.stamp
        if self.unit and self.unit.senml:
            properties["senmlUnit"] = self.unit.senml
        unit = self.unit
        return {
            "name": self.title,
            "description": self.description,
            "observationType": self.kind,
            "unitOfMeasurement": {
                "name": unit.name if unit else None,
                "symbol": unit.symbol if unit else None,
                "definition": unit.definition if unit else None,
            },
            "properties": properties | self.properties,
            "Sensor": self.instrument.json(),
            "ObservedProperty": {
                "name": self.observes.name,
                "definition": self.observes.definition,
                "description": self.observes.description,
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A TaskingCapability. `fields` are those of its DataRecord (SWE Common), `actuator` is what does it."""

    name: str
    description: str
    fields: Sequence[dict[str, Any]]
    actuator: Instrument

    def json(self) -> dict[str, Any]:
        """The TaskingCapability for a deep insert (OGC 17-079)."""
        return {
            "name": self.name,
            "description": self.description,
            "taskingParameters": {"type": "DataRecord", "field": list(self.fields)},
            "Actuator": self.actuator.json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """A Thing at one place, in degrees of WGS 84."""

    key: str
    name: str
    description: str
    longitude: float
    latitude: float
    place: str
    place_description: str
    streams: Sequence[Stream]
    capabilities: Sequence[Capability] = ()
    properties: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """The Thing with its Location, Datastreams and TaskingCapabilities for a deep insert."""
        found: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "properties": {"key": self.key} | self.properties,
            "Locations": [
                {
                    "name": self.place,
                    "description": self.place_description,
                    "encodingType": "application/geo+json",
                    "location": {"type": "Point", "coordinates": [self.longitude, self.latitude]},
                }
            ],
            "Datastreams": [stream.json() for stream in self.streams],
        }
        if self.capabilities:
            found["TaskingCapabilities"] = [capability.json() for capability in self.capabilities]
        return found
