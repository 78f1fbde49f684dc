"""OGC 17-079: what is published on the topics of Tasks is created, by the rules of a POST."""

import pytest

LEVEL = {
    "type": "DataRecord",
    "field": [
        {"name": "level", "type": "Count", "constraint": {"type": "AllowedValues", "interval": [[0, 100]]}}
    ],
}


@pytest.fixture
def dimmer(service, documents) -> int:
    """A TaskingCapability of the test's own."""
    actuator = {"name": "a", "description": "d", "encodingType": "text/html", "metadata": "m"}
    document = {"name": "Dim", "description": "d", "taskingParameters": LEVEL, "Actuator": actuator}
    return service.create("TaskingCapabilities", document | {"Thing": documents.thing()})


def tasks(service, dimmer: int) -> list:
    return service.values(f"TaskingCapabilities({dimmer})/Tasks?$orderby=id")


@pytest.mark.parametrize("at", ["Tasks", "TaskingCapabilities(ID)/Tasks"])
def test_a_task_is_created(service, dimmer, at):
    """req/create-tasks-via-mqtt/task-creation"""
    document = {"taskingParameters": {"level": 40}}
    if at == "Tasks":
        document["TaskingCapability"] = {"@iot.id": dimmer}
    service.publish(at.replace("ID", str(dimmer)), document)
    (found,) = service.until(lambda: tasks(service, dimmer), "the Task is created")
    assert found["taskingParameters"] == {"level": 40}
    assert "status" not in found
    assert found["creationTime"].startswith("20")


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ("{}", "needs its taskingParameters"),
        ('{"taskingParameters": {"level": 101}}', "level: 101 is not allowed: within [0,100]"),
        ('{"taskingParameters": {"level": 1, "colour": "red"}}', "colour: is no field"),
    ],
)
def test_what_a_post_would_refuse_is_a_rejection_and_harms_no_other(service, dimmer, payload, why):
    """req/create-tasks-via-mqtt/task-creation"""
    before = len(service.city.rejections("v1.1/Tasks"))
    service.publish(f"TaskingCapabilities({dimmer})/Tasks", payload)
    service.publish(f"TaskingCapabilities({dimmer})/Tasks", {"taskingParameters": {"level": 7}})
    (found,) = service.until(lambda: tasks(service, dimmer), "the Task after it is created")
    assert found["taskingParameters"] == {"level": 7}
    (refused,) = service.city.rejections("v1.1/Tasks")[before:]
    assert why in refused.detail
    assert refused.payload == payload.encode()


def test_the_landing_page_says_where_to_publish(service):
    """req/create-tasks-via-mqtt/task-creation"""
    settings = service.get("")["serverSettings"]
    uri = "http://www.opengis.net/spec/iot_tasking/1.0/req/create-tasks-via-mqtt/task-creation"
    assert uri in settings["conformance"]
    assert settings[uri]["endpoints"] == [service.city.settings.broker_url]


def test_what_is_created_and_changed_comes(service, dimmer):
    """req/receive-updates-via-mqtt/receive-updated: byte for byte as HTTP answers it, on the plain topics."""
    at = f"TaskingCapabilities({dimmer})/Tasks"
    with service.subscribed("Tasks", at, f"TaskingCapabilities({dimmer})") as heard:
        own = service.create(
            "Tasks", {"taskingParameters": {"level": 1}, "TaskingCapability": {"@iot.id": dimmer}}
        )
        text = service.city.http.get(f"/v1.1/Tasks({own})").text
        for topic in ("Tasks", at):
            service.until(lambda topic=topic: text in heard.text(topic), f"{topic} tells of it")
        service.request("PATCH", f"TaskingCapabilities({dimmer})", {"description": "another"})
        changed = heard.one(f"TaskingCapabilities({dimmer})")
        assert changed["description"] == "another"
        service.publish(
            "Tasks", {"taskingParameters": {"level": 2}, "TaskingCapability": {"@iot.id": dimmer}}
        )
        service.until(lambda: len(tasks(service, dimmer)) == 2, "it is created")
        service.until(lambda: len(heard.on(at)) == 2, "it is told of")
    assert len(tasks(service, dimmer)) == 2, "what is told of creates nothing"


def test_the_landing_page_says_where_to_subscribe(service):
    """req/receive-updates-via-mqtt/receive-updated"""
    settings = service.get("")["serverSettings"]
    uri = "http://www.opengis.net/spec/iot_tasking/1.0/req/receive-updates-via-mqtt/receive-updated"
    assert uri in settings["conformance"]
    assert settings[uri]["endpoints"] == [service.city.settings.broker_url]
