"""`citylab torture`: the platform keeps its promise on both sets of engines, and builds that do not are caught.

The seed is CITYLAB_TEST_SEED, else one of the run (for broken builds); a failure prints it, and where the services' logs are kept.
"""

import asyncio
import os
import random
import struct
import sys
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from city import KINDS, clean_environment, run
from engines import url_of

from simulators.torture_lines import Line
from simulators.torture_plan import BROKEN_AT, KILL_POINTS

SECONDS = 20


def tortured(kind: str, *options: object, seconds: int = SECONDS) -> tuple[int, dict[str, Any], str]:
    """Exit code, what was found, and what was said meanwhile."""
    urls = (
        {f"CITYLAB_{name}_URL": url_of(name) for name in ("BROKER", "LOG", "STORE")} if kind == "real" else {}
    )
    seed = int(os.environ.get("CITYLAB_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    sys.stdout.write(f"seed {seed}\n")
    arguments = ("torture", "--json", "--seed", seed, "--seconds", seconds, *options)
    done = run(*arguments, env=clean_environment(**urls), within=200)
    assert done.stdout, done.stderr
    (found,) = msgspec.json.decode(done.stdout)["runs"]
    return done.returncode, found, f"{done.stderr}\n{done.stdout}"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_doubled_or_altered(kind):
    code, found, story = tortured(kind)

    assert (code, found["failures"]) == (0, []), story
    difference = found["difference"]
    assert difference == {"lost": 0, "doubled": 0, "altered": 0, "derived": 0, "ledger": 0, "examples": []}, (
        story
    )
    kinds = {name.partition(" ")[0] for name in found["struck"]}
    assert len(kinds & {"kill", "pause", "cut", "half-close", "stall", "delay", "fill"}) >= 4, story
    assert found["kill_points"].keys() == {point for points in KILL_POINTS.values() for point in points}, (
        story
    )
    assert found["readings"] >= 1_000 * SECONDS
    assert 0 < found["outage"] < SECONDS + 60, story
    if kind == "real" and not any("the log: it is not ours" in one for one in found["left_out"]):
        assert found["struck"]["kill log"] > 0, story


@pytest.mark.parametrize("broken", BROKEN_AT)
def test_a_build_that_breaks_the_promise_is_caught(broken):
    code, found, story = tortured("embedded", "--broken", broken, seconds=10)

    assert code == 1, story
    assert found["kill_points"][BROKEN_AT[broken][1]] > 0, story
    assert found["difference"]["lost"] > 0, story


def test_an_unknown_way_to_be_broken_is_refused():
    done = run("torture", "--broken", "completely", env=clean_environment())
    assert done.returncode == 2
    assert "ack-first" in done.stderr


# -- the lines ----------------------------------------------------------------------------------------------------------


class Echo:
    """A server that says back what it hears, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1_000):
                self.heard += data
                writer.write(data)
        self.ended.set()
        writer.close()


@pytest.fixture
async def echo():
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


async def test_a_line_carries_both_ways_and_both_ends(echo):
    async with Line("127.0.0.1", echo.port).open() as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"hello"
        writer.close()


async def test_a_cut_line_is_reset_and_can_be_used_again(echo):
    async with Line("127.0.0.1", echo.port).open() as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        line.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
        writer.close()


async def test_a_half_closed_line_ends_at_the_server_and_is_silent_at_the_client(echo):
    async with Line("127.0.0.1", echo.port).open() as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        closing = asyncio.create_task(line.half_close(0.5))
        async with asyncio.timeout(5):
            await echo.ended.wait()
        assert not reader.at_eof()
        assert not closing.done()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await closing
        writer.close()


async def test_what_a_stalled_line_holds_comes_through_afterwards(echo):
    async with Line("127.0.0.1", echo.port).open() as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        began = asyncio.get_running_loop().time()
        stalling = asyncio.create_task(line.stall(0.3))
        await asyncio.sleep(0)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert asyncio.get_running_loop().time() - began >= 0.3
        await stalling
        writer.close()


def publish(number: int) -> bytes:
    """An MQTT PUBLISH of a numbered pack."""
    topic, payload = b"citylab/v1/gateways/lamp/packs/numbered", b"x" * 300
    body = struct.pack(">H", len(topic)) + topic + struct.pack(">H", number) + payload
    return bytes([0x32, len(body) % 128 + 128, len(body) // 128]) + body


async def test_a_bad_line_gives_whole_packs_twice_and_in_another_order(echo):
    sent = [publish(number) for number in range(1, 301)]
    async with Line("127.0.0.1", echo.port, draw=random.Random(3)).open() as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"".join(sent))
        wanted = 300
        async with asyncio.timeout(10):
            while len(echo.heard) < (wanted + line.doubled) * len(sent[0]) or not line.doubled:
                await reader.read(100_000)
        writer.close()
        size = len(sent[0])
        heard = [echo.heard[at : at + size] for at in range(0, len(echo.heard), size)]

        assert set(heard) == set(sent)
        assert len(heard) == 300 + line.doubled
        assert line.doubled > 10
        assert line.overtaken > 5
        assert heard != sorted(heard, key=sent.index)
