"""Round trips of a real client: Fraunhofer's `frost_sta_client`, which is written against another server."""

from types import SimpleNamespace

import frost_sta_client as sta
import geojson
import pytest

DAY = "2024-03-01"

pytestmark = pytest.mark.filterwarnings(
    "ignore:furl.pathstr is deprecated:DeprecationWarning"
)  # in the client


@pytest.fixture(scope="module")
def service(api) -> sta.SensorThingsService:
    return sta.SensorThingsService(api.root)


@pytest.fixture(scope="module")
def station(service) -> SimpleNamespace:
    """A Thing with a Location and a Datastream, created in one go, and 25 Observations created one by one."""
    place = sta.Location(
        name="Poblenou", description="a square", encoding_type="application/geo+json",
        location=geojson.Point((2.2045, 41.4039)),
    )  # fmt: skip
    thing = sta.Thing(
        name="Station",
        description="on a pole",
        properties={"height": 4, "tags": ["a", "b"]},
        locations=[place],
    )
    service.create(thing)
    stream = sta.Datastream(
        name="NO2", description="nitrogen dioxide",
        observation_type="http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
        unit_of_measurement=sta.UnitOfMeasurement(name="microgram", symbol="ug/m3", definition="http://example.org/ug"),
        thing=thing,
        sensor=sta.Sensor(name="MCV", description="a sensor", encoding_type="application/pdf", metadata="http://example.org/mcv.pdf"),
        observed_property=sta.ObservedProperty(name="NO2", definition="http://example.org/no2", description="a gas"),
    )  # fmt: skip
    service.create(stream)
    for n in range(25):
        observation = sta.Observation(
            phenomenon_time=f"{DAY}T{n % 24:02}:{n // 24:02}:00Z", result=n + 0.5, datastream=stream,
            result_time=f"{DAY}T23:59:59Z", parameters={"n": n},
        )  # fmt: skip
        service.create(observation)
    return SimpleNamespace(thing=thing, stream=stream, place=place)


def test_it_reads_what_it_created(service, station):
    thing = service.things().find(station.thing.id)
    assert (thing.name, thing.description) == ("Station", "on a pole")
    assert thing.properties == {"height": 4, "tags": ["a", "b"]}
    (place,) = thing.get_locations().query().list()
    assert place.name == "Poblenou"
    assert place.location["coordinates"] == [2.2045, 41.4039]
    stream = service.datastreams().find(station.stream.id)
    assert stream.unit_of_measurement.symbol == "ug/m3"
    assert stream.phenomenon_time.startswith(f"{DAY}T00:00:00")
    (one,) = service.observations().query().filter(f"Datastream/id eq {stream.id} and result eq 3.5").list()
    assert one.result == 3.5
    assert one.parameters == {"n": 3}


def test_it_queries(service, station):
    observations = station.stream.get_observations().query()
    newest = observations.orderby("phenomenonTime").top(3).list()  # which it writes in capitals: DESC
    assert [o.result for o in newest.entities] == [23.5, 22.5, 21.5]
    found = (
        station.stream.get_observations()
        .query()
        .filter("result gt 10 and result le 12")
        .count()
        .top(1)
        .list()
    )
    assert found.count == 2
    nested = (
        service.things()
        .query()
        .filter("properties/height eq 4")
        .expand("Datastreams($expand=Observations($top=2))")
        .list()
    )
    (thing,) = nested.entities
    assert len(thing.datastreams.entities[0].observations.entities) == 2
    here = "geo.distance(Locations/location, geography'POINT (2.2 41.4)') lt 0.1"
    assert [t.id for t in service.things().query().filter(here).list()] == [station.thing.id]
    selected = service.things().query().select("name", "id").list()
    assert [t.name for t in selected] == ["Station"]


def test_it_walks_pages(station):
    pages = station.stream.get_observations().query().orderby("phenomenonTime", "ASC").top(4).list()
    results = [o.result for o in pages]
    assert sorted(results) == [n + 0.5 for n in range(25)]
    assert len(results) == 25


def test_it_changes_and_deletes(service):
    thing = sta.Thing(name="Bench", description="to sit on", properties={"seats": 3})
    service.create(thing)
    thing.name, thing.properties = "Long bench", {"seats": 5}
    service.update(thing)
    assert service.things().find(thing.id).properties == {"seats": 5}
    service.patch(thing, [{"op": "add", "path": "/properties/wet", "value": True}])
    found = service.things().find(thing.id)
    assert (found.name, found.properties) == ("Long bench", {"seats": 5, "wet": True})
    service.delete(thing)
    with pytest.raises(Exception, match="404"):
        service.things().find(thing.id)


def test_it_moves_a_thing(service, station):
    where = "geo.distance(location, geography'POINT (2.1 41.3)') lt 0.01"
    assert len(service.locations().query().filter(where).list().entities) == 0
    place = service.locations().query().filter("name eq 'Poblenou'").list().get(0)
    place.location = geojson.Point((2.1, 41.3))
    service.update(place)
    assert [p.id for p in service.locations().query().filter(where).list()] == [place.id]
    assert [
        t.id
        for t in service.things().query().filter(where.replace("(location", "(Locations/location")).list()
    ] == [station.thing.id]


def test_it_says_what_is_wrong(service):
    with pytest.raises(Exception, match="400"):
        service.things().query().filter("name eq").list()
    with pytest.raises(Exception, match="404"):
        service.things().find(10**9)


def test_it_tasks(service):
    """req/create-tasks/task-creation, req/task/properties, req/tasking-capability/relations."""
    level = {
        "name": "level",
        "type": "Count",
        "constraint": {"type": "AllowedValues", "interval": [[0, 100]]},
    }
    record = {"type": "DataRecord", "field": [level]}
    lamp = sta.Thing(name="Lamp", description="of the street")
    dimmer = sta.Actuator(
        name="Dimmer", description="0-10 V", encoding_type="text/html", metadata="m",
        properties={"volts": 10},  # without any the client cannot read it back
    )  # fmt: skip
    dim = sta.TaskingCapability(
        name="Dim", description="its level", tasking_parameters=record, thing=lamp, actuator=dimmer
    )
    service.create(dim)
    found = service.tasking_capabilities().query().filter("Thing/name eq 'Lamp'").list().get(0)
    assert (found.id, found.tasking_parameters) == (dim.id, record)
    task = sta.Task(tasking_parameters={"level": 40}, tasking_capability=dim)
    service.create(task)
    again = service.tasks().find(task.id)
    assert again.tasking_parameters == {"level": 40}
    assert again.creation_time is not None
    assert [t.id for t in dim.get_tasks().query().list()] == [task.id]
    with pytest.raises(Exception, match="400"):
        service.create(sta.Task(tasking_parameters={"level": 140}, tasking_capability=dim))
    service.delete(service.actuators().query().filter("name eq 'Dimmer'").list().get(0))
    with pytest.raises(Exception, match="404"):
        service.tasks().find(task.id)
