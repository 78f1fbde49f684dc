"""Where the MQTT extension creates entities, and what it leaves alone."""

import pytest

from citylab.entities import (
    DATASTREAM,
    FEATURE_OF_INTEREST,
    MULTI_DATASTREAM,
    OBSERVATION,
    TASK,
    TASKING,
    TASKING_CAPABILITY,
    without,
)
from citylab.errors import Rejected
from citylab.mqtt_topics import CREATION_FILTERS, CreationTarget, creation_target, is_announcement


def test_observations_are_created_in_their_set_and_at_what_they_belong_to():
    assert creation_target("v1.1/Observations") == CreationTarget(OBSERVATION)
    for parent in (DATASTREAM, MULTI_DATASTREAM, FEATURE_OF_INTEREST):
        topic = f"v1.1/{parent.set_name}(12)/Observations"
        assert creation_target(topic) == CreationTarget(OBSERVATION, parent.relations["Observations"], 12)
    assert CREATION_FILTERS == ("v1.1/Observations", "v1.1/+/Observations", "v1.1/Tasks", "v1.1/+/Tasks")


def test_tasks_are_created_where_tasking_is_offered_and_nowhere_else():
    sensing = without(*TASKING)
    for topic, created in (
        ("v1.1/Tasks", CreationTarget(TASK)),
        ("v1.1/TaskingCapabilities(3)/Tasks", CreationTarget(TASK, TASKING_CAPABILITY.relations["Tasks"], 3)),
    ):
        assert creation_target(topic) == created
        with pytest.raises(Rejected, match=r"it is v1.1/Observations, or"):
            creation_target(topic, sensing)
    assert creation_target("v1.1/Observations", sensing) == CreationTarget(OBSERVATION)


@pytest.mark.parametrize(
    "topic",
    ["v1.1/Things", "v1.1/Things(1)/Datastreams", "v1.1/Things(1)/Observations", "v1.1/Nothing(1)/Observations",
     "v1.1/Datastreams(0)/Observations", "v1.1/Datastreams(-1)/Observations", "v1.1/Datastreams/Observations",
     "v1.1/Datastreams(9223372036854775808)/Observations", "v1.1/Observations(1)", "v1.1/"],
)  # fmt: skip
def test_nothing_is_created_elsewhere(topic):
    with pytest.raises(Rejected, match="nothing is created"):
        creation_target(topic)


@pytest.mark.parametrize("base", ["http://127.0.0.1:8000", "https://city.example/some/where"])
def test_an_announcement_is_known_whatever_the_address(base):
    link = f"{base}/v1.1/Observations(7)"
    assert is_announcement(f'{{"@iot.selfLink":"{link}","@iot.id":7,"result":1}}'.encode())


@pytest.mark.parametrize(
    "payload",
    [b'{"result":1}', b"", b'{"@iot.id":7,"result":1}', b'{"@iot.selfLink":"x","@iot.id":7}',
     b'{"@iot.selfLink":"http://c/v1.1/Observations(7)","@iot.id":8,"result":1}',
     b'{"result":"{\\"@iot.selfLink\\":\\"http://c/v1.1/Observations(7)\\",\\"@iot.id\\":7,"}'],
)  # fmt: skip
def test_a_create_is_no_announcement(payload):
    assert not is_announcement(payload)
