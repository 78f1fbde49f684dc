"""Which Datastreams a Thing or a box stands for, as the store knows it."""

import pytest

import api.live_things
from api.live_things import Box, StoredThings
from citylab.entities import GEOJSON_ENCODINGS


def datastream(name: str) -> dict:
    return {
        "name": name, "description": "d", "observationType": "any",
        "unitOfMeasurement": {"name": "n", "symbol": "s", "definition": "d"},
        "Sensor": {"name": "s", "description": "d", "encodingType": "text/plain", "metadata": "m"},
        "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
    }  # fmt: skip


async def thing(store, *geometries: object, streams: int = 1) -> tuple[int, set[int]]:
    """A Thing with Locations; its id and its Datastreams'."""
    locations = [
        {"name": "l", "description": "d", "encodingType": GEOJSON_ENCODINGS[0], "location": geometry}
        for geometry in geometries
    ]
    async with store.transaction() as transaction:
        made = await transaction.create("Things", {"name": "t", "description": "d", "Locations": locations})
        return made, {
            await transaction.create("Datastreams", datastream(f"{i}") | {"Thing": {"@iot.id": made}})
            for i in range(streams)
        }


def point(longitude: float, latitude: float) -> dict:
    return {"type": "Point", "coordinates": [longitude, latitude]}


async def test_a_thing_stands_for_its_datastreams_and_an_unknown_one_for_nothing(store):
    one, streams = await thing(store, point(2, 41), streams=3)
    none, _ = await thing(store, streams=0)
    things = StoredThings(store)

    assert set(await things.datastreams_of(one) or ()) == streams
    assert await things.datastreams_of(none) == []
    assert await things.datastreams_of(none + 1) is None


async def test_a_box_stands_for_the_things_of_which_a_location_is_in_it(store):
    inside = await thing(store, point(2.17, 41.39), streams=2)
    feature = await thing(
        store, {"type": "Feature", "properties": {}, "geometry": point(2.1, 41.3)}
    )  # at its edge
    district = [[[2.15, 41.35], [2.9, 41.35], [2.9, 41.9], [2.15, 41.35]]]
    reaching_in = await thing(store, {"type": "Polygon", "coordinates": district})
    outside = await thing(store, point(2.3, 41.39))
    await thing(store, "a street corner")
    await thing(store)
    fiji = await thing(store, point(179.9, -17)), await thing(store, point(-179.9, -17))
    things = StoredThings(store)

    found = await things.datastreams_in(Box(2.1, 41.3, 2.2, 41.4))
    assert sorted(found) == sorted(inside[1] | feature[1] | reaching_in[1])
    assert set(await things.datastreams_in(Box(2.25, 41.38, 2.35, 41.4))) >= outside[1]
    assert set(await things.datastreams_in(Box(179, -20, -179, 0))) == fiji[0][1] | fiji[1][1]
    assert await things.datastreams_in(Box(0, 0, 1, 1)) == []


async def test_a_thing_that_moves_into_a_box_is_in_it(store, monkeypatch):
    monkeypatch.setattr(api.live_things, "_KEPT_SECONDS", 0.0)
    moving, streams = await thing(store, point(5, 50))
    things, box = StoredThings(store), Box(2, 41, 3, 42)
    assert await things.datastreams_in(box) == []

    async with store.transaction() as transaction:
        body = {
            "name": "l",
            "description": "d",
            "encodingType": GEOJSON_ENCODINGS[0],
            "location": point(2.1, 41.3),
        }
        await transaction.create("Locations", body | {"Things": [{"@iot.id": moving}]})

    assert set(await things.datastreams_in(box)) == streams


@pytest.mark.parametrize(
    ("text", "box"),
    [("2.1,41.3,2.2,41.4", Box(2.1, 41.3, 2.2, 41.4)), ("-180,-90,180,90", Box(-180, -90, 180, 90))],
)
def test_a_box_is_read_as_it_is_written(text, box):
    assert Box.read(text) == box
