"""A Task on its way: from the API over the log and the broker to a gateway, carried out once, and back onto the Task."""

import os
import shlex
import sys

import msgspec
from city_devices import Command, Device, stream, thing

from citylab.adapters.sqlite_log import SqliteLog
from citylab.model import SECOND, Topic
from citylab.times import now
from processing.tasks import send_due

LIGHT = {
    "type": "DataRecord",
    "field": [
        {
            "name": "level",
            "type": "Count",
            "uom": {"code": "%"},
            "constraint": {"type": "AllowedValues", "interval": [[0, 100]]},
        }
    ],
}
# Writes each level that it is told into a file, and says that it is done once the file `go` is there.
PROGRAM = """
import json, os, sys, time
done, go = sys.argv[1:]
parent = os.getppid()
for line in sys.stdin:
    command = json.loads(line)
    level = command["taskingParameters"]["level"]
    with open(done, "a") as file:
        print(level, file=file)
    print(json.dumps({"task": command["task"], "state": "running", "message": "dimming"}), flush=True)
    while not os.path.exists(go) and os.getppid() == parent:
        time.sleep(0.01)
    print(json.dumps({"task": command["task"], "state": "completed", "result": {"level": level}}), flush=True)
"""


def capability(name: str = "Dim", **more) -> dict:
    actuator = {
        "name": f"{name} driver",
        "description": "a dimmer",
        "encodingType": "text/html",
        "metadata": "https://x.example",
    }
    document = {"name": name, "description": "its level", "taskingParameters": LIGHT, "Actuator": actuator}
    return document | more


def lamp(gateway: str, *capabilities: dict) -> dict:
    return thing(gateway, stream(f"{gateway}/no2")) | {
        "TaskingCapabilities": list(capabilities or [capability()])
    }


def capabilities(city, gateway: str) -> list[dict]:
    """What the Thing of a gateway can be told to do, as the API says it."""
    expand = "TaskingCapabilities($orderby=id;$expand=Actuator)"
    found = city.get(f"/v1.1/Things?$filter=properties/key eq '{gateway}'&$expand={expand}")["value"]
    return found[0]["TaskingCapabilities"] if found else []


def order(city, gateway: str, level: int) -> int:
    """Create a Task; return its id."""
    (light,) = city.until(lambda: capabilities(city, gateway), "the capability is registered")
    path = f"/v1.1/TaskingCapabilities({light['@iot.id']})/Tasks"
    answer = city.http.post(path, json={"taskingParameters": {"level": level}})
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "pending"
    return answer.json()["@iot.id"]


def task(city, own: int) -> dict:
    return city.get(f"/v1.1/Tasks({own})")


def ends(city, own: int, status: str) -> dict:
    """The Task, once it has ended so."""
    city.until(lambda: task(city, own)["status"] == status, f"it has {status}")
    return task(city, own)


def test_a_task_is_carried_out_once_whatever_is_killed(own_city, gateway, tmp_path):
    done, go, descriptor = tmp_path / "done", tmp_path / "go", tmp_path / "lamp.json"
    descriptor.write_bytes(msgspec.json.encode(lamp(gateway)))
    program = shlex.join([sys.executable, "-c", PROGRAM, str(done), str(go)])
    arguments = ("edge", "--gateway", gateway, "--descriptor", descriptor, "--program", program)
    with Command(own_city, *arguments) as agent:
        own_city.until(lambda: capabilities(own_city, gateway), "the gateway has said what it can do")

        own_city.kill("ingest")
        first = order(own_city, gateway, 40)
        own_city.start("ingest")
        running = ends(own_city, first, "running")
        assert running["runLog"]["message"] == "dimming"
        own_city.kill("ingest")
        go.touch()
        own_city.start("ingest")
        completed = ends(own_city, first, "completed")
        assert completed["runLog"]["result"] == {"level": 40}

        agent.kill()
        second = order(own_city, gateway, 50)
        agent.start()
        assert ends(own_city, second, "completed")["runLog"]["result"] == {"level": 50}

        go.unlink()
        third = order(own_city, gateway, 60)
        ends(own_city, third, "running")
        agent.kill()
        agent.start()
        assert "stopped while" in ends(own_city, third, "failed")["runLog"]["message"]

        go.touch()
        repeated = msgspec.json.encode(
            {"task": second, "capability": {}, "taskingParameters": {"level": 99}, "creationTime": "x"}
        )
        own_city.publish(f"{gateway}/commands", repeated)
        fourth = order(own_city, gateway, 70)
        ends(own_city, fourth, "completed")
    assert done.read_text().split() == ["40", "50", "60", "70"], "each once, in order"
    assert own_city.fetch("SELECT * FROM commands") == []
    assert own_city.rejections(gateway) == []


def test_a_command_says_what_was_committed_and_only_its_gateway_answers(city, gateway):
    city.register(gateway, lamp(gateway, capability(properties={"key": "dim"})))
    device = Device(city.settings.broker_url)
    device.listen(f"citylab/v1/gateways/{gateway}/commands")
    own = order(city, gateway, 30)
    city.until(lambda: device.heard, "the command has come")
    ((_, payload),) = device.heard[:1]
    (light,) = capabilities(city, gateway)
    assert msgspec.json.decode(payload) == {
        "task": own,
        "capability": {"@iot.id": light["@iot.id"], "name": "Dim", "key": "dim"},
        "taskingParameters": {"level": 30},
        "creationTime": task(city, own)["creationTime"],
    }

    def answer(who: str, **result) -> None:
        city.publish(f"{who}/results", msgspec.json.encode({"task": own} | result))

    answer(f"{gateway}-not", state="completed")
    (refused,) = city.until(lambda: city.rejections(f"{gateway}-not"), "another gateway's result is refused")
    assert (refused.reason, refused.payload) == (
        "not-yours",
        msgspec.json.encode({"task": own, "state": "completed"}),
    )
    answer(gateway, state="dimmed")
    answer(gateway, state="accepted", message="\0")
    answer(gateway, state="accepted", at="noon")
    city.publish(f"{gateway}/results", b'{"task": 1, "state": "running", "result": "\\ud800"}')
    city.publish(f"{gateway}/results", b'{"task": %d, "state": "running", "result": 1e999999}' % own)
    city.until(lambda: len(city.rejections(gateway)) == 5, "malformed results are refused")
    assert {rejection.reason for rejection in city.rejections(gateway)} == {"malformed"}
    assert task(city, own)["status"] == "pending"

    answer(gateway, state="running", at=1_767_225_600.5)
    assert ends(city, own, "running")["runLog"] == {"at": "2026-01-01T00:00:00.5Z"}
    answer(gateway, state="accepted")
    answer(gateway, state="failed", message="no power", result={"code": 6.0}, at="2026-01-01T01:00:00+01:00")
    failed = ends(city, own, "failed")
    assert failed["runLog"] == {"at": "2026-01-01T00:00:00Z", "message": "no power", "result": {"code": 6.0}}
    answer(gateway, state="completed")
    answer(gateway, state="failed", message="again")
    answer(gateway, state="x")
    city.until(lambda: len(city.rejections(gateway)) == 6, "what came before it has been read")
    assert task(city, own) == failed
    changed = city.http.patch(f"/v1.1/Tasks({own})", json={"taskingParameters": {"level": 31}})
    assert changed.status_code == 409
    assert gateway in changed.json()["message"]
    assert task(city, own) == failed
    device.close()


def test_a_task_becomes_a_command_however_it_is_created(city, gateway):
    city.register(gateway, lamp(gateway))
    (light,) = city.until(lambda: capabilities(city, gateway), "the capability is registered")
    device = Device(city.settings.broker_url)
    device.listen(f"citylab/v1/gateways/{gateway}/commands")
    link = {"TaskingCapability": {"@iot.id": light["@iot.id"]}}
    city.device.publish("v1.1/Tasks", msgspec.json.encode({"taskingParameters": {"level": 1}} | link))
    batch = [
        {"id": "1", "method": "post", "url": "Tasks", "body": {"taskingParameters": {"level": 2}} | link},
        {"id": "2", "method": "post", "url": "Tasks", "body": {"taskingParameters": {"level": 200}} | link},
    ]
    answers = city.http.post("/v1.1/$batch", json={"requests": batch}).json()["responses"]
    assert [answer["status"] for answer in answers] == [201, 400]
    of_thing = city.get(f"/v1.1/TaskingCapabilities({light['@iot.id']})/Thing")["@iot.id"]
    deep = capability("Deep", Thing={"@iot.id": of_thing}, Tasks=[{"taskingParameters": {"level": 3}}])
    assert city.http.post("/v1.1/TaskingCapabilities", json=deep).status_code == 201
    rolled_back = [batch[0] | {"atomicityGroup": "g"}, batch[1] | {"atomicityGroup": "g"}]
    city.http.post("/v1.1/$batch", json={"requests": rolled_back})

    def levels() -> list[int]:
        return sorted(
            msgspec.json.decode(payload)["taskingParameters"]["level"] for _, payload in device.heard
        )

    city.until(lambda: levels() == [1, 2, 3], "each has become a command, and what was rolled back has not")
    device.close()


def test_a_gateway_without_a_driver_for_it_rejects(city, gateway, tmp_path):
    descriptor, readings = tmp_path / "lamp.json", tmp_path / "fifo"
    descriptor.write_bytes(msgspec.json.encode(lamp(gateway)))
    os.mkfifo(readings)
    with Command(city, "edge", "--gateway", gateway, "--descriptor", descriptor, "--readings", readings):
        own = order(city, gateway, 5)
        assert "no program" in ends(city, own, "rejected")["runLog"]["message"]


def test_descriptors_register_capabilities_and_only_differences_are_applied(city, gateway):
    city.register(gateway, lamp(gateway, capability("Dim"), capability("Blink")))
    dim, blink = city.until(lambda: capabilities(city, gateway), "they are registered")
    assert [dim["name"], blink["name"]] == ["Dim", "Blink"]
    assert dim["Actuator"]["name"] == "Dim driver"
    assert dim["taskingParameters"] == LIGHT
    patched = city.http.patch(
        f"/v1.1/TaskingCapabilities({dim['@iot.id']})", json={"description": "edited by a person"}
    )
    assert patched.status_code == 200
    empty = {"type": "DataRecord", "field": []}
    city.register(gateway, lamp(gateway, capability("Dim", taskingParameters=empty), capability("Turn")))
    after = {one["name"]: one for one in capabilities(city, gateway)}
    assert after["Dim"]["@iot.id"] == dim["@iot.id"]
    assert after["Dim"]["description"] == "edited by a person"
    assert after["Dim"]["taskingParameters"] == empty
    assert after["Blink"]["properties"] == {"active": False}
    assert set(after) == {"Dim", "Blink", "Turn"}

    wrong = {"type": "DataRecord", "field": [{"name": "x", "type": "Colour"}]}
    city.register(gateway, lamp(gateway, capability("Dim", taskingParameters=wrong)))
    (refused,) = city.rejections(gateway)
    assert "x: has the type 'Colour'" in refused.detail
    assert {one["name"]: one for one in capabilities(city, gateway)} == after
    city.register(gateway, thing(f"{gateway}-other", stream(f"{gateway}/other")))
    assert all(one["properties"] == {"active": False} for one in capabilities(city, gateway))


async def test_a_command_that_nobody_answers_expires(store, tmp_path):
    async with store.transaction() as transaction:
        own = await transaction.create("Things", {"name": "n", "description": "d"})
        await transaction.execute("UPDATE things SET gateway = 'away' WHERE id = %s", (own,))
        document = capability() | {"Thing": {"@iot.id": own}, "Tasks": [{"taskingParameters": {"level": 1}}]}
        begin = now()
        await transaction.create("TaskingCapabilities", document, now=begin)

    async def found() -> tuple:
        async with store.transaction(read_only=True) as transaction:
            return (
                await transaction.fetch("SELECT status FROM tasks"),
                await transaction.fetch("SELECT due FROM commands"),
            )

    async with SqliteLog(tmp_path / "log") as log:

        async def appended() -> int:
            return sum((await log.ends(Topic.OUTBOUND)).values())

        for _ in range(2):
            await send_due(store, log, now=begin + SECOND, lifetime=60 * SECOND)
            assert await found() == ([("pending",)], [(False,)])
            assert await appended() == 1
        start = {p: (await log.tail(Topic.OUTBOUND))[p]._replace(offset=0, fingerprint=b"") for p in (0,)}
        batch = await anext(log.read(Topic.OUTBOUND, start))
        (event,) = batch.events
        assert event.headers["topic"] == "citylab/v1/gateways/away/commands"
        assert event.headers["expires-at"] == str(begin + 60 * SECOND)
        await send_due(store, log, now=begin + 60 * SECOND, lifetime=60 * SECOND)
        assert await found() == ([("expired",)], [])
        assert await appended() == 1
