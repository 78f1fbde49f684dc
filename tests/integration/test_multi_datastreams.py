"""Changes and deletions of MultiDatastreams, of what they consist of, and of their Observations."""

import msgspec
import pytest

from citylab.drafts import read_changes
from citylab.entities import MULTI_DATASTREAM, OBSERVATION, SETS
from citylab.errors import Rejected

NOW = 1_750_000_000_000_000


def entity(**more):
    return {"name": "n", "description": "d"} | more


class City:
    """A Thing with a MultiDatastream of two properties, and a Datastream."""

    def __init__(self, store):
        self.store = store

    async def build(self):
        self.thing = await self.create(
            "Things", entity(Locations=[entity(encodingType="application/geo+json", location={"type": "Point", "coordinates": [2, 41]})])
        )  # fmt: skip
        self.sensor = await self.create("Sensors", entity(encodingType="text/plain", metadata="m"))
        self.properties = [
            await self.create("ObservedProperties", entity(definition="https://example.org"))
            for _ in range(3)
        ]
        parts = entity(Thing={"@iot.id": self.thing}, Sensor={"@iot.id": self.sensor}, observationType="o")
        self.stream = await self.create(
            "Datastreams",
            parts | {"unitOfMeasurement": {}, "ObservedProperty": {"@iot.id": self.properties[0]}},
        )
        self.multi = await self.create(
            "MultiDatastreams",
            parts
            | {
                "unitOfMeasurements": [{}, {}],
                "multiObservationDataTypes": ["a", "b"],
                "ObservedProperties": [{"@iot.id": i} for i in self.properties[:2]],
            },
        )

    async def create(self, set_name, document):
        async with self.store.transaction() as transaction:
            return await transaction.create(set_name, document)

    async def observe(self, minute, result):
        time = f"2025-06-01T00:{minute:02}:00Z"
        document = {"phenomenonTime": time, "result": result, "MultiDatastream": {"@iot.id": self.multi}}
        return await self.create("Observations", document)

    async def change(self, entity_type, own, document):
        changes = read_changes(entity_type, msgspec.json.encode(document))
        async with self.store.transaction() as transaction:
            await transaction.lock_catalogue()
            await transaction.update(entity_type, own, changes, now=NOW)

    async def delete(self, set_name, own):
        entity_type = SETS[set_name]
        keys = ", ".join(entity_type.default_order)
        async with self.store.transaction() as transaction:
            await transaction.lock_catalogue()
            selection = f"SELECT {keys} FROM {entity_type.table} WHERE id = %(own)s"
            return await transaction.delete(entity_type, selection, {"own": own})

    async def rows(self, sql, *parameters):
        async with self.store.transaction(read_only=True) as transaction:
            return await transaction.fetch(sql, parameters)


@pytest.fixture
async def city(store):
    city = City(store)
    await city.build()
    return city


async def latest(city, own):
    rows = await city.rows(
        "SELECT count, result_json::text, phenomenon_first = phenomenon_last FROM latest WHERE datastream_id = %s",
        own,
    )
    return rows[0] if rows else None


@pytest.mark.parametrize("what", ["Things", "Sensors", "ObservedProperties", "MultiDatastreams"])
async def test_it_goes_with_what_it_consists_of(city, what):
    await city.observe(1, [1, 2])
    own = {
        "Things": city.thing,
        "Sensors": city.sensor,
        "ObservedProperties": city.properties[1],
        "MultiDatastreams": city.multi,
    }[what]
    assert await city.delete(what, own) == 1
    for table in ("multi_datastreams", "multi_datastreams_observed_properties", "observations", "latest"):
        assert await city.rows(f"SELECT 1 FROM {table}") == []
    left = len(await city.rows("SELECT 1 FROM datastreams"))
    assert left == (0 if what in {"Things", "Sensors"} else 1)


async def test_a_property_that_is_not_of_it_leaves_it(city):
    await city.delete("ObservedProperties", city.properties[2])
    await city.delete("Datastreams", city.stream)
    assert await city.rows("SELECT id FROM multi_datastreams") == [(city.multi,)]


async def test_an_observation_goes_without_the_others(city):
    first, second = await city.observe(1, [1, 2]), await city.observe(2, [3, 4])
    assert await latest(city, city.multi) == (2, "[3, 4]", False)
    assert await city.delete("Observations", second) == 1
    assert await latest(city, city.multi) == (1, "[1, 2]", True)
    assert await city.delete("Observations", first) == 1
    assert (await latest(city, city.multi))[0] == 0


async def test_a_changed_result_keeps_its_size(city):
    own = await city.observe(1, [1, 2])
    await city.change(OBSERVATION, own, {"result": ["x", None]})
    assert await latest(city, city.multi) == (1, '["x", null]', True)
    for wrong in (5, [1], [1, 2, 3], None, "ab"):
        with pytest.raises(Rejected):
            await city.change(OBSERVATION, own, {"result": wrong})
    assert await city.rows("SELECT result_json::text, multi FROM observations") == [('["x", null]', True)]


async def test_an_observation_moves_between_the_two(city):
    own = await city.observe(1, [1, 2])
    await city.change(OBSERVATION, own, {"Datastream": {"@iot.id": city.stream}})
    assert await city.rows("SELECT datastream_id, multi FROM observations") == [(city.stream, False)]
    await city.change(OBSERVATION, own, {"MultiDatastream": {"@iot.id": city.multi}})
    assert await city.rows("SELECT datastream_id, multi FROM observations") == [(city.multi, True)]
    plain = await city.create("Observations", {"result": 1, "Datastream": {"@iot.id": city.stream}})
    for wrong in ({"MultiDatastream": {"@iot.id": city.multi}}, {"Datastream": {"@iot.id": city.multi}}):
        with pytest.raises(Rejected):
            await city.change(OBSERVATION, plain, wrong)
    both = {"Datastream": {"@iot.id": city.stream}, "MultiDatastream": {"@iot.id": city.multi}}
    with pytest.raises(Rejected):
        await city.change(OBSERVATION, own, both)


async def test_sizes_change_together_or_not_at_all(city):
    with pytest.raises(Rejected):
        await city.change(MULTI_DATASTREAM, city.multi, {"unitOfMeasurements": [{}]})
    with pytest.raises(Rejected):
        await city.change(
            MULTI_DATASTREAM, city.multi, {"ObservedProperties": [{"@iot.id": city.properties[0]}]}
        )
    whole = {
        "unitOfMeasurements": [{}, {}, {}],
        "multiObservationDataTypes": ["a", "b", "c"],
        "ObservedProperties": [{"@iot.id": i} for i in reversed(city.properties)],
    }
    await city.change(MULTI_DATASTREAM, city.multi, whole)
    ranked = await city.rows(
        "SELECT observed_property_id FROM multi_datastreams_observed_properties ORDER BY rank"
    )
    assert [own for (own,) in ranked] == city.properties[::-1]
    await city.observe(1, [1, 2, 3])
    fewer = {name: value[:2] for name, value in whole.items()}
    with pytest.raises(Rejected):
        await city.change(MULTI_DATASTREAM, city.multi, fewer)
    await city.change(MULTI_DATASTREAM, city.multi, {"multiObservationDataTypes": ["x", "y", "z"]})


async def test_a_property_is_not_linked_to_one_that_exists(city):
    with pytest.raises(Rejected):
        await city.change(
            SETS["ObservedProperties"], city.properties[2], {"MultiDatastreams": [{"@iot.id": city.multi}]}
        )
