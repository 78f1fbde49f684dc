"""Commands at a gateway: carried out once, said until the broker has it, on a real outbox."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable

import msgspec
import pytest

from citylab.commands import Command, Result
from citylab.errors import ConfigurationError
from citylab.model import SECOND
from edge.commands import Commands
from edge.outbox import Outbox
from edge.program import Program

NOW = 1_767_225_600 * SECOND
PATIENCE = 20.0


def command(task: int) -> bytes:
    document = {"task": task, "capability": {"name": "Dim"}, "taskingParameters": {}, "creationTime": "x"}
    return msgspec.json.encode(document)


class Lamp:
    """A driver that says what it is told to say."""

    things = ()

    def __init__(self, *states: str) -> None:
        self.states, self.begun = states, list[int]()
        self.may_end = asyncio.Event()

    def readings(self, position: str | None) -> AsyncGenerator[tuple[list, str | None]]:
        raise NotImplementedError

    async def perform(self, order: Command) -> AsyncGenerator[Result]:
        self.begun.append(order.task)
        for state in self.states:
            yield Result(order.task, state)
        await self.may_end.wait()
        yield Result(order.task, "completed", result=msgspec.Raw(b'{"level": 40}'))


class Line:
    """A connection that takes results while it is there, and gives packet numbers."""

    def __init__(self) -> None:
        self.there, self.said, self.changed = True, list[dict](), asyncio.Event()

    def publish(self, payload: bytes) -> int | None:
        if not self.there:
            return None
        self.said.append(msgspec.json.decode(payload))
        return len(self.said)

    def states(self) -> list[tuple[int, str]]:
        return [(one["task"], one["state"]) for one in self.said]


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 -- what is waited for happens in several objects
            await asyncio.sleep(0.005)


class Gateway:
    """The commands of one run of a gateway."""

    def __init__(self, folder, driver, line: Line) -> None:
        self.outbox, self.line = Outbox(folder), line
        self.commands = Commands(driver, self.outbox, line.publish, line.changed.set, lambda: NOW)

    async def __aenter__(self) -> Commands:
        await self.outbox.__aenter__()
        self._task = asyncio.create_task(self.commands.run())
        return self.commands

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.outbox.__aexit__()


async def test_a_command_is_carried_out_once_and_its_result_said_again(tmp_path):
    lamp, line = Lamp("accepted", "running"), Line()
    lamp.may_end.set()
    async with Gateway(tmp_path, lamp, line) as commands:
        await commands.receive(command(7))
        await soon(lambda: (7, "completed") in line.states())
        assert line.states() == [(7, "accepted"), (7, "running"), (7, "completed")]
        assert line.said[-1] == {
            "task": 7,
            "state": "completed",
            "at": "2026-01-01T00:00:00Z",
            "result": {"level": 40},
        }
        assert commands.busy
        await commands.pubacks([1, 2])
        assert commands.busy, "what it said last is not acknowledged"
        await commands.pubacks([3])
        assert not commands.busy
        await commands.receive(command(7))
        await soon(lambda: len(line.said) == 4)
        assert line.said[3] == line.said[2]
    assert lamp.begun == [7]


async def test_what_the_broker_has_not_acknowledged_is_said_over_the_next_connection_and_run(tmp_path):
    lamp, line = Lamp(), Line()
    lamp.may_end.set()
    line.there = False
    async with Gateway(tmp_path, lamp, line) as commands:
        await commands.receive(command(1))
        await soon(lambda: lamp.begun == [1])
        line.there = True
        await soon(lambda: commands.busy)
    async with Gateway(tmp_path, lamp, line) as commands:
        await commands.connected()
        await soon(lambda: (1, "completed") in line.states() or (1, "failed") in line.states())
        await commands.pubacks(range(1, len(line.said) + 1))
        assert not commands.busy
        count = len(line.said)
        await commands.connected()
        assert len(line.said) == count
    assert lamp.begun == [1]


async def test_what_a_crash_interrupts_has_failed_and_what_it_had_not_begun_begins(tmp_path):
    lamp, line = Lamp("running"), Line()
    async with Gateway(tmp_path, lamp, line) as commands:
        await commands.receive(command(1))
        await soon(lambda: line.states() == [(1, "running")])
    with sqlite3.connect(tmp_path / "outbox.db") as db:  # received in the moment of the crash
        db.execute("INSERT INTO commands VALUES (2, ?, 0, NULL, 0)", (command(2),))
    db.close()
    lamp.may_end.set()
    async with Gateway(tmp_path, lamp, line):
        await soon(lambda: (2, "completed") in line.states())
        failed = next(one for one in line.said if one["state"] == "failed")
        assert failed["task"] == 1
        assert "stopped while" in failed["message"]
    assert lamp.begun == [1, 2]


async def test_several_commands_are_under_way_at_once(tmp_path):
    lamp, line = Lamp("running"), Line()
    async with Gateway(tmp_path, lamp, line) as commands:
        for task in (1, 2, 3):
            await commands.receive(command(task))
        await soon(lambda: sorted(line.states()) == [(1, "running"), (2, "running"), (3, "running")])
        lamp.may_end.set()
        await soon(lambda: len(line.said) == 6)


async def test_a_driver_that_takes_no_commands_rejects_and_nonsense_is_left_out(tmp_path):
    class Sensor:
        things = ()

        def readings(self, position: str | None) -> AsyncGenerator[tuple[list, str | None]]:
            raise NotImplementedError

    line = Line()
    async with Gateway(tmp_path, Sensor(), line) as commands:
        for nonsense in (b"", b"[]", b'{"task": "x"}', b'{"task": 0}'):
            await commands.receive(nonsense)
        await commands.receive(command(5))
        await soon(lambda: line.states() == [(5, "rejected")])


async def test_an_outbox_of_an_earlier_version_goes_on(tmp_path):
    async with Outbox(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("DROP TABLE commands")
        db.execute("PRAGMA user_version = 1")
    db.close()
    async with Outbox(tmp_path) as outbox:
        assert await outbox.run(lambda db: db.execute("SELECT count(*) FROM commands").fetchone()) == (0,)


async def outcomes(program: Program, task: int) -> list[tuple[str, str | None]]:
    order = Command(task, {}, {"level": 1}, "x")
    return [(result.state, result.message) async for result in program.perform(order)]


async def test_a_program_that_ends_fails_what_it_left_unanswered():
    program = Program(["sh", "-c", "read line; exit 3"])
    waiting = asyncio.create_task(outcomes(program, 1))
    with pytest.raises(ConfigurationError, match="exit status 3"):
        async for _ in program.output():
            pass
    expected = [("failed", "the program that carries out commands has ended")]
    assert await waiting == expected
    assert await outcomes(program, 2) == expected


async def test_a_program_that_cannot_be_run_is_said():
    with pytest.raises(ConfigurationError, match=r"cannot run /does/not/exist"):
        async for _ in Program(["/does/not/exist"]).output():
            pass


async def test_only_answers_to_commands_are_answers():
    program = Program(["cat"])
    assert not program.answered(b'{"n": "task", "v": "task"}')
    assert program.answered(b'{"task": 9, "state": "completed"}')
