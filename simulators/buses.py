"""Load of another kind: many gateways that move, and say where they are once a second."""

import asyncio
import math
import random
from typing import Any

import msgspec

from citylab.model import SECOND, Micros
from citylab.ports import BrokerConnection
from citylab.times import now

ROOT = "citylab/v1/gateways/"
_STREAMS = {"longitude": "lon", "latitude": "lat", "no2": "ug/m3"}
_SPEED = 12.0  # m/s: every position is a new Location
_DEGREE = 111_195.0  # m


def things(gateway: str) -> list[dict[str, Any]]:
    """A bus's descriptor."""
    return [
        {
            "name": gateway,
            "description": "A load generator's bus.",
            "properties": {"key": gateway},
            "Locations": [
                {
                    "name": "Depot",
                    "description": "Made up.",
                    "encodingType": "application/geo+json",
                    "location": {"type": "Point", "coordinates": [2.17, 41.39]},
                }
            ],
            "Datastreams": [
                {
                    "name": f"{gateway} {name}",
                    "description": "Made up.",
                    "observationType": "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
                    "unitOfMeasurement": {"name": unit, "symbol": unit, "definition": f"urn:citylab:{unit}"},
                    "properties": {"streamName": f"{gateway}/{name}", "interval": "PT1S"},
                    "Sensor": {
                        "name": "bus", "description": "-", "encodingType": "text/plain", "metadata": "-",
                    },
                    "ObservedProperty": {
                        "name": name, "definition": f"urn:citylab:bus-{name}", "description": "-",
                    },
                }
                for name, unit in _STREAMS.items()
            ],
        }
    ]  # fmt: skip


def pack(gateway: str, heading: float, driven: float, at: Micros) -> bytes:
    """What a bus says: where it is after so many metres, and what the air is like there."""
    north, east = (turn(heading) * driven / _DEGREE for turn in (math.cos, math.sin))
    values = {"longitude": 2.17 + east, "latitude": 41.39 + north, "no2": 40.0 + driven % 7}
    records = [{"n": name, "u": _STREAMS[name], "v": round(value, 7)} for name, value in values.items()]
    records[0] = {"bn": f"{gateway}/", "bt": at / SECOND} | records[0]
    return msgspec.json.encode(records)


async def drive(connection: BrokerConnection, *, seed: int, buses: int, seconds: float) -> None:
    """Describe buses and drive them, spread over each second."""
    names = [f"bus-{seed}-{number:05d}" for number in range(buses)]
    draw = random.Random(seed)
    headings = [draw.uniform(0, 2 * math.pi) for _ in names]
    for name in names:
        connection.publish(f"{ROOT}{name}/descriptor", msgspec.json.encode(things(name)))
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for count in range(round(seconds * buses)):
        await asyncio.sleep(max(begin + count / buses - loop.time(), 0))
        turn, bus = divmod(count, buses)
        # A loop around the block: nobody leaves the city.
        driven = abs((turn * _SPEED + 2_000) % 4_000 - 2_000)
        connection.publish(f"{ROOT}{names[bus]}/packs", pack(names[bus], headings[bus], driven, now()))
