"""A small city that every test of the query options reads."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def city(api, documents) -> SimpleNamespace:
    """Four Things; the first two with Datastreams; 12 numeric Observations a Datastream, an hour apart.

    Thing 0 has streams 0 and 1, Thing 1 stream 2 (same ObservedProperty as stream 0); Thing 3 has no properties.
    """
    c = SimpleNamespace(things=[], streams=[], gases=[], sensors=[], observations=[])
    for n in range(4):
        properties = {
            "n": n,
            "string": "abcdefgh"[n:],
            "boolean": n % 2 == 0,
            "array": [n, n + 1],
            "strings": [f"s{n}", f"s{n + 1}"],
            "objects": [{"n": n, "name": f"in {n}"}],
            "mixed": [n, str(n), n % 2 == 0, None][n],
            "half": n / 2,
            "since": f"202{n}-01-01T00:00:00Z",
        }
        document = documents.thing(f"Thing {n}", properties=properties)
        if n == 3:
            del document["properties"]
        if n < 3:
            document["Locations"] = [documents.location(f"Place {n}", properties={"n": n})]
        c.things.append(api.create("/Things", document))
    for n in range(2):
        c.gases.append(api.create("/ObservedProperties", documents.observed_property(f"Gas {n}")))
        c.sensors.append(api.create("/Sensors", documents.sensor(f"Sensor {n}")))
    for n, (thing, gas) in enumerate([(0, 0), (0, 1), (1, 0)]):
        document = documents.datastream(
            f"Stream {n}",
            Thing={"@iot.id": c.things[thing]},
            ObservedProperty={"@iot.id": c.gases[gas]},
            Sensor={"@iot.id": c.sensors[n % 2]},
        )
        document["unitOfMeasurement"]["symbol"] = f"u{n}"
        stream = api.create("/Datastreams", document)
        c.streams.append(stream)
        for hour in range(12):
            observation = {
                "phenomenonTime": f"2024-01-01T{hour:02}:00:00Z",
                "resultTime": f"2024-01-01T{hour:02}:30:00Z" if hour % 2 else None,
                "result": 100 * n + hour,
                "parameters": {"hour": hour},
            }
            c.observations.append(api.create(f"/Datastreams({stream})/Observations", observation))
    return c
