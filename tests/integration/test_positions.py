"""A gateway that moves: the positions in its packs move its Thing, as people see it through the API."""

from typing import Any

import pytest
from city_devices import T0, Json, place, stream, thing

DEPOT = place(2.10, 41.30, "depot")


def bus(gateway: str, *, at: Json = DEPOT) -> Json:
    """A bus as its gateway describes it."""
    return thing(
        gateway,
        stream(f"{gateway}/longitude", unit="lon"),
        stream(f"{gateway}/latitude", unit="°", senmlUnit="lat"),
        stream(f"{gateway}/altitude", unit="m"),
        stream(f"{gateway}/no2"),
        at=at,
        name=f"Bus {gateway}",
    )


def records(gateway: str, second: float, longitude: float, latitude: float, **more: float) -> list[Json]:
    """What a bus says of a second."""
    values = {"longitude": longitude, "latitude": latitude} | more
    units = {"longitude": "lon", "latitude": "lat", "altitude": "m", "no2": "ug/m3"}
    return [
        {"n": f"{gateway}/{name}", "t": T0 + second, "u": units[name], "v": value}
        for name, value in values.items()
    ]


def track(city: Any, gateway: str) -> list[list[float]]:
    """The places where a Thing was by its positions, in order of time."""
    rows = city.fetch(
        "SELECT l.location -> 'coordinates' FROM historical_locations h JOIN things t ON t.id = h.thing_id"
        " JOIN historical_locations_locations hl ON hl.historical_location_id = h.id"
        " JOIN locations l ON l.id = hl.location_id WHERE t.key = %s AND h.by_position ORDER BY h.time",
        gateway,
    )
    return [point for (point,) in rows]


def features(city: Any, name: str) -> list[list[float]]:
    """Where each Observation of a stream was made, in order of time."""
    found = city.datastream(name)
    expand = "$expand=FeatureOfInterest&$orderby=phenomenonTime"
    observations = city.get(f"/v1.1/Datastreams({found['@iot.id']})/Observations?{expand}")["value"]
    return [one["FeatureOfInterest"]["feature"]["coordinates"] for one in observations]


@pytest.mark.parametrize("described_first", [True, False])
def test_a_pack_with_a_position_moves_the_thing(city, gateway, described_first):
    if described_first:
        city.register(gateway, bus(gateway))
    # Ahead of the clock, so that it is later than the receipt of the descriptor.
    ((now,),) = city.fetch("SELECT extract(epoch FROM now())::bigint")
    ahead = now - T0 + 600
    first = records(gateway, ahead, 2.20, 41.40, no2=40.0, altitude=12.0)
    city.pack(
        gateway, *first, *records(gateway, ahead + 1, 2.21, 41.41, no2=41.0, altitude=13.0), epoch=1, seq=1
    )
    city.pack(gateway, {"n": f"{gateway}/no2", "t": T0 + ahead + 2, "v": 42.0}, epoch=1, seq=2)
    if not described_first:
        city.until(lambda: len(city.rejections(gateway)) == 9, "the records wait for their descriptor")
        city.register(gateway, bus(gateway))

    city.until(lambda: city.results(f"{gateway}/no2") == [40, 41, 42], "the readings are stored")

    assert track(city, gateway) == [[2.20, 41.40], [2.21, 41.41]]
    assert features(city, f"{gateway}/no2") == [[2.20, 41.40], [2.21, 41.41], [2.21, 41.41]]
    assert features(city, f"{gateway}/altitude") == [[2.20, 41.40], [2.21, 41.41]]
    known = city.datastream(f"{gateway}/no2")["Thing"]
    (here,) = city.get(f"/v1.1/Things({known['@iot.id']})/Locations")["value"]
    assert here["name"] == known["name"]
    assert here["encodingType"] == "application/geo+json"
    assert here["location"] == {"type": "Point", "coordinates": [2.21, 41.41]}
    area = city.datastream(f"{gateway}/no2")["observedArea"]
    assert area["coordinates"][0][:3:2] == [[2.20, 41.40], [2.21, 41.41]]
    assert not [r for r in city.rejections(gateway) if r.open]


def test_positions_of_the_past_are_history_and_the_thing_stays(city, gateway):
    city.register(gateway, bus(gateway))

    city.pack(gateway, *records(gateway, 0, 2.20, 41.40, no2=40.0))
    city.until(lambda: city.results(f"{gateway}/no2") == [40], "the reading is stored")

    assert track(city, gateway) == [[2.20, 41.40]]
    assert features(city, f"{gateway}/no2") == [[2.20, 41.40]]
    known = city.datastream(f"{gateway}/no2")["Thing"]
    assert [one["name"] for one in city.get(f"/v1.1/Things({known['@iot.id']})/Locations")["value"]] == [
        "depot"
    ]


def test_a_descriptor_with_another_place_moves_it_and_the_same_descriptor_again_does_not(city, gateway):
    city.register(gateway, bus(gateway))
    known = city.datastream(f"{gateway}/no2")["Thing"]["@iot.id"]

    def here() -> list[str]:
        return [one["name"] for one in city.get(f"/v1.1/Things({known})/Locations")["value"]]

    city.register(gateway, bus(gateway, at=place(2.3, 41.3, "workshop")))
    assert here() == ["workshop"]
    ((now,),) = city.fetch("SELECT extract(epoch FROM now())::bigint")
    city.pack(gateway, *records(gateway, now - T0 + 600, 2.20, 41.40))
    city.until(lambda: track(city, gateway), "the position is there")
    assert here() == [f"Bus {gateway}"]

    city.register(gateway, [bus(gateway, at=place(2.3, 41.3, "workshop"))])  # other bytes, the same meaning
    assert here() == [f"Bus {gateway}"]
    city.register(
        gateway, bus(gateway, at=place(2.4, 41.3, "garage"))
    )  # received before that position's time
    assert here() == [f"Bus {gateway}"]
    names = city.get(f"/v1.1/Things({known})/HistoricalLocations?$expand=Locations&$orderby=time")["value"]
    assert [one["Locations"][0]["name"] for one in names] == ["depot", "workshop", "garage", f"Bus {gateway}"]


def test_a_replay_of_packs_changes_nothing(city, gateway):
    city.register(gateway, bus(gateway))
    packs = [records(gateway, second, 2.2 + second / 1_000, 41.4, no2=float(second)) for second in range(10)]
    for pack in packs:
        city.pack(gateway, *pack)
    city.until(lambda: len(city.results(f"{gateway}/no2")) == 10, "the readings are stored")
    before = city.entities()

    for pack in reversed(packs):
        city.pack(gateway, *pack)
    city.until(lambda: city.ledger(gateway)["duplicates"] == 30, "all of it came again")

    assert city.entities() == before
    assert len(track(city, gateway)) == 10
