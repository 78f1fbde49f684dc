"""`citylab edge` as a hardware team uses it: lines go in, and come out as packs at the broker."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from citylab.adapters.mqtt import MqttConnection
from citylab.adapters.rumqttd import EmbeddedBroker
from citylab.senml import decode, identity

PATIENCE = 30.0
THING = {
    "name": "lamp",
    "Locations": [{"name": "street"}],
    "Datastreams": [{"name": "NO2", "properties": {"streamName": "lamp-7/no2"}}],
}


class Platform:
    """Takes packs and acknowledges them."""

    def __init__(self, url: str) -> None:
        self.connection = MqttConnection(
            url, client_id="bridge", subscriptions=[("citylab/v1/gateways/+/packs/numbered", 1)]
        )
        self.answering = True
        self.payloads: list[bytes] = []

    async def run(self) -> None:
        async with self.connection:
            while True:
                for message in await self.connection.messages():
                    message.ack()
                    self.payloads.append(message.payload)
                    if self.answering:
                        epoch, seq = identity(message.payload)
                        body = {"epoch": epoch, "appended": [[seq, seq]]}
                        topic = message.topic.replace("packs/numbered", "acks")
                        self.connection.publish(topic, msgspec.json.encode(body))

    def values(self) -> list[float | None]:
        return [record.v for payload in self.payloads for record in decode(payload)]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.values()) < count:  # noqa: ASYNC110 -- what comes is another program's
                await asyncio.sleep(0.02)


@pytest.fixture
async def platform(tmp_path) -> AsyncIterator[Platform]:
    async with EmbeddedBroker(tmp_path / "broker") as broker:
        platform = Platform(broker.url)
        task = asyncio.create_task(platform.run())
        await asyncio.wait_for(platform.connection.wait_connected(), PATIENCE)
        yield platform
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def descriptor(tmp_path) -> Path:
    file = tmp_path / "lamp-7.json"
    file.write_bytes(msgspec.json.encode(THING))
    return file


async def start(
    tmp_path: Path, broker: str, *arguments: str | Path, stdin: int | None = asyncio.subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    program = "import sys; from edge.cli import app; app(sys.argv[1:])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CITYLAB_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, "--gateway", "lamp-7", *arguments, "--data", tmp_path / "city",
        stdin=stdin, stderr=asyncio.subprocess.PIPE, cwd=tmp_path, env=clean | {"CITYLAB_BROKER_URL": broker},
    )  # fmt: skip


async def finish(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, said = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, said.decode()


def line(n: int) -> bytes:
    return b'{"n":"lamp-7/no2","v":%d,"t":%d}\n' % (n, 1_767_225_600 + n)


async def test_lines_from_a_pipe_arrive_and_the_command_ends_with_it(platform, tmp_path, descriptor):
    url = str(platform.connection.address)
    process = await start(tmp_path, url, "--descriptor", descriptor, stdin=asyncio.subprocess.PIPE)
    assert process.stdin
    process.stdin.write(line(0) + line(1))
    await platform.until(2)  # while the pipe is open
    process.stdin.write(
        b'nonsense\n{"n":"lamp-7/so2","v":1}\n\n' + line(2).strip()
    )  # no line feed at the end
    process.stdin.close()

    code, said = await finish(process)

    assert code == 0, said
    assert platform.values() == [0.0, 1.0, 2.0]
    assert "no Datastream of the descriptor has the streamName 'lamp-7/so2'" in said
    assert "JSON is malformed" in said
    assert "all readings are acknowledged" in said


async def test_a_file_goes_on_where_it_was_when_the_command_was_killed(platform, tmp_path, descriptor):
    readings = tmp_path / "readings.jsonl"
    readings.write_bytes(b"".join(line(n) for n in range(20_000)))
    url = str(platform.connection.address)
    options = ["--descriptor", descriptor, "--readings", readings, "--form", "cbor"]
    platform.answering = False
    process = await start(tmp_path, url, *options)
    await platform.until(1_000)
    process.kill()
    await finish(process)
    platform.answering = True

    code, said = await finish(await start(tmp_path, url, *options))
    assert code == 0, said
    once = {identity(payload): payload for payload in platform.payloads}
    values = [record.v for payload in once.values() for record in decode(payload)]
    assert sorted(values) == [float(n) for n in range(20_000)]

    with readings.open("ab") as file:
        file.write(line(20_000))
    before = len(platform.payloads)
    code, said = await finish(await start(tmp_path, url, *options))
    assert code == 0, said
    assert [record.v for payload in platform.payloads[before:] for record in decode(payload)] == [20_000.0]


async def test_writers_to_a_fifo_come_and_go_until_the_command_is_stopped(platform, tmp_path, descriptor):
    fifo = tmp_path / "readings"
    os.mkfifo(fifo)
    url = str(platform.connection.address)
    process = await start(tmp_path, url, "--descriptor", descriptor, "--readings", fifo)
    for n in range(3):
        await asyncio.to_thread(fifo.write_bytes, line(n))
        await platform.until(n + 1)

    process.send_signal(signal.SIGTERM)
    code, said = await finish(process)

    assert code == 0, said
    assert platform.values() == [0.0, 1.0, 2.0]


async def test_readings_wait_on_disk_while_there_is_no_broker(tmp_path, descriptor):
    process = await start(
        tmp_path, "mqtt://127.0.0.1:1", "--descriptor", descriptor, stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin
    assert process.stderr
    process.stdin.write(line(0))
    said = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    assert b"no connection to the MQTT broker" in said
    outbox = tmp_path / "city" / "edge" / "lamp-7" / "outbox.db-wal"
    async with asyncio.timeout(PATIENCE):
        while not outbox.exists() or b"lamp-7/no2" not in outbox.read_bytes():  # noqa: ASYNC110 -- another program's
            await asyncio.sleep(0.05)

    process.send_signal(signal.SIGINT)
    assert (await finish(process))[0] == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--descriptor", "missing.json"], "cannot read the descriptor missing.json"),
        (["--descriptor", "lamp-7.json", "--readings", "missing"], "cannot read missing"),
        (["--descriptor", "lamp-7.json", "--gateway", "../lamp"], "is no gateway's name"),
        (["--descriptor", "lamp-7.json", "--form", "xml"], "neither json nor cbor"),
        ([], "--descriptor"),
    ],
)
async def test_wrong_usage_is_said_and_exits_with_2(tmp_path, descriptor, options, why):
    assert descriptor.exists()
    code, said = await finish(await start(tmp_path, "mqtt://127.0.0.1:1", *options))

    assert code == 2
    assert why in said.replace("\n", " ")


async def test_without_a_city_or_a_broker_it_says_what_to_do(tmp_path, descriptor):
    code, said = await finish(await start(tmp_path, "", "--descriptor", descriptor))

    assert code == 2
    assert "citylab up" in said


async def test_what_the_page_about_hardware_shows_works(platform, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "edge.md").read_text()
    blocks = dict(re.findall(r"```(json|python|sh)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "lamp-7.json").write_text(blocks["json"])
    script = tmp_path / "my-sensor.py"
    script.write_text(blocks["python"])
    script.chmod(0o700)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CITYLAB_BROKER_URL": str(platform.connection.address),
        "CITYLAB_DATA": str(tmp_path / "city"),
    }

    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", blocks["sh"], cwd=tmp_path, env=environment, start_new_session=True
    )
    try:
        await platform.until(2)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        await asyncio.wait_for(shell.wait(), PATIENCE)

    assert all(20 < value < 60 for value in platform.values() if value)
