"""Which messages tell of an entity: plain topics, few of a new entity, those of its id only once it changes."""

import pytest

from citylab.entities import (
    DATASTREAM,
    ENTITY_TYPES,
    OBSERVATION,
    TASK,
    TASKING,
    TASKING_CAPABILITY,
    THING,
    without,
)
from citylab.policy import everything
from processing.announcements import Change, coalesced, of_change, reading

JSON = '{"@iot.id":3,"name":"a","unitOfMeasurement":{"symbol":1.50}}'


def topics(change: Change) -> list[str]:
    messages = of_change(change, JSON, ["Things(1)/Datastreams"], ["Observations(9)/Datastream"])
    return [topic for topic, _ in messages]


def test_a_new_entity_is_told_to_its_set_and_the_collections_that_contain_it():
    assert topics(Change(DATASTREAM, 3, None)) == ["v1.1/Datastreams", "v1.1/Things(1)/Datastreams"]


def test_a_change_is_told_to_whoever_knows_the_entity_too():
    change = Change(DATASTREAM, 3, frozenset({"name", "unit_of_measurement", "properties"}))
    assert topics(change) == [
        "v1.1/Datastreams", "v1.1/Things(1)/Datastreams", "v1.1/Datastreams(3)", "v1.1/Observations(9)/Datastream",
        "v1.1/Datastreams(3)/name", "v1.1/Datastreams(3)/unitOfMeasurement", "v1.1/Datastreams(3)/properties",
    ]  # fmt: skip
    payloads = [payload for _, payload in of_change(change, JSON, [], [])]
    assert payloads[:2] == [JSON.encode()] * 2
    assert payloads[2:] == [
        b'{"name":"a"}',
        b'{"unitOfMeasurement":{"symbol":1.50}}',
        b'{"properties":null}',  # unset
    ]


def test_the_collections_of_an_observation_hear_of_it_by_its_update_message():
    assert topics(Change(OBSERVATION, 3, frozenset({"result_number"}))) == [
        "v1.1/Observations(3)", "v1.1/Observations(9)/Datastream", "v1.1/Observations(3)/result",
    ]  # fmt: skip


def test_changes_of_an_entity_become_one():
    rows = [
        ("things", 1, ["name"]), ("datastreams", 1, None), ("things", 1, ["properties", "key"]),
        ("datastreams", 1, ["properties"]), ("unheard_of", 1, None),
    ]  # fmt: skip
    assert coalesced(rows) == [
        Change(THING, 1, frozenset({"name", "properties", "key"})),
        Change(DATASTREAM, 1, None),
    ]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (["gateway"], False),
        (["key", "gateway"], False),
        (["name", "gateway"], True),
        ([], True),
        (None, True),
    ],
)
def test_what_clients_do_not_see_is_not_told(columns, told):
    assert bool(coalesced([("things", 1, columns)])) == told


def test_what_is_not_offered_is_not_told():
    sensing = without(*TASKING)
    rows = [("tasks", 1, ["status"]), ("tasking_capabilities", 1, None), ("things", 1, None)]
    assert coalesced(rows) == [
        Change(TASK, 1, frozenset({"status"})), Change(TASKING_CAPABILITY, 1, None), Change(THING, 1, None),
    ]  # fmt: skip
    (thing,) = coalesced(rows, sensing)
    assert thing.entity_type == THING
    for entity_type in sensing.values():
        assert "Task" not in reading(entity_type, everything, sensing)


def test_another_thing_of_a_datastream_is_told():
    assert coalesced([("datastreams", 1, ["thing_id"])]) == [Change(DATASTREAM, 1, frozenset({"thing_id"}))]


@pytest.mark.parametrize("entity_type", ENTITY_TYPES.values(), ids=list(ENTITY_TYPES))
def test_what_policy_forbids_is_not_read(entity_type):
    assert "AND e.pilot = 2" in reading(entity_type, lambda _, alias: f"{alias}.pilot = 2")
    assert "AND TRUE" in reading(entity_type, everything)
