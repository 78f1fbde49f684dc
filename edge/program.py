"""A program that drives hardware, run as a child: its standard output is read, its standard input gets commands."""

import asyncio
import shlex
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress

import msgspec
import structlog

from citylab.commands import FINAL, Command, Result
from citylab.errors import ConfigurationError

log = structlog.get_logger(__name__)

READ_AT_ONCE = 64 << 10  # bytes
ENDS_WITHIN = 5.0  # s after SIGTERM, then it is killed


class Program:
    """One run of a program. Commands wait until it runs; what it has not answered when it ends has failed."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._running = asyncio.Event()
        self._answers: dict[int, asyncio.Queue[Result]] = {}

    async def output(self) -> AsyncIterator[tuple[bytes, None]]:
        """Run the program; yield what it prints, at its end b"".

        Raises ConfigurationError where it cannot be run, or ends with another status than 0.
        """
        shown = shlex.join(self._arguments)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=sys.stderr,
            )
        except OSError as error:
            raise ConfigurationError(f"cannot run {shown}: {error.strerror}") from error
        assert process.stdout is not None
        self._process = process
        self._running.set()
        try:
            while True:
                chunk = await process.stdout.read(READ_AT_ONCE)
                yield chunk, None
                if not chunk:
                    break
            status = await process.wait()
        finally:
            await self._end(process)
        if status:
            raise ConfigurationError(f"{shown} ended with the exit status {status}")

    async def perform(self, command: Command) -> AsyncGenerator[Result]:
        """Give the program a command, and yield what it answers, up to a final state."""
        await self._running.wait()
        assert self._process is not None
        assert self._process.stdin is not None
        answers = self._answers[command.task] = asyncio.Queue()
        try:
            if self._process.returncode is None:
                with suppress(ConnectionError):  # it ends, and `_end` answers
                    self._process.stdin.write(msgspec.json.encode(command) + b"\n")
                    await self._process.stdin.drain()
            else:
                answers.put_nowait(_ended(command.task))
            while True:
                result = await answers.get()
                yield result
                if result.state in FINAL:
                    return
        finally:
            del self._answers[command.task]

    def answered(self, line: bytes) -> bool:
        """Take a line that the program printed, if it is an answer to a command."""
        try:
            result = msgspec.json.decode(line, type=Result)
        except msgspec.DecodeError:
            return False
        answers = self._answers.get(result.task)
        if answers is None:
            log.warning("the program answers a command that waits for no answer", task=result.task)
        else:
            answers.put_nowait(result)
        return True

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), ENDS_WITHIN)
            except TimeoutError:
                process.kill()
                await process.wait()
        for task, answers in self._answers.items():
            answers.put_nowait(_ended(task))


def _ended(task: int) -> Result:
    return Result(task, "failed", message="the program that carries out commands has ended")
