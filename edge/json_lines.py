"""The driver for scripts: one reading a line, `{"n": "air/no2", "v": 21.4, "u": "ug/m3", "t": 1767225600}`.

A program that we run also gets commands, a line each, and answers with lines such as `{"task": 7, "state": "completed"}`.

n: the stream name; v: a number, true or false, or text; u: a SenML unit; t: seconds since 1970 or ISO 8601 text, the
time of reading the line without it; quality: good, suspect or bad. n and v are needed, other fields are ignored.
"""

import asyncio
import math
import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import structlog

from citylab.commands import Command, Result
from citylab.errors import ConfigurationError
from citylab.model import SECOND, Micros, Quality, Reading
from citylab.times import now, parse_instant
from edge.program import Program

log = structlog.get_logger(__name__)

READ_AT_ONCE = 64 << 10  # bytes
LONGEST_LINE = 1 << 20  # bytes
_QUALITIES = {quality.name.lower(): quality for quality in Quality if quality is not Quality.NONE}


class _Line(msgspec.Struct):
    n: str
    v: float | bool | str
    u: str | None = None
    t: float | str | None = None
    quality: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


def parse_line(line: bytes, read_at: Micros) -> Reading:
    """Read one line. Raises ValueError with what is wrong with it."""
    fields = _decode(line)
    time = read_at
    if isinstance(fields.t, str):
        time = parse_instant(fields.t)
    elif fields.t is not None:
        if not math.isfinite(fields.t) or abs(fields.t) > 1e11:
            raise ValueError(f"t is {fields.t:g}; it counts seconds since 1970")
        time = round(fields.t * SECOND)
    if fields.quality is not None and fields.quality not in _QUALITIES:
        raise ValueError(f"quality is {fields.quality!r}; it may be {', '.join(_QUALITIES)}")
    return Reading(fields.n, time, fields.v, fields.u, _QUALITIES.get(fields.quality or "", Quality.NONE))


def load_things(file: Path) -> list[dict[str, Any]]:
    """Read a descriptor: a Thing or an array of Things. Raises ConfigurationError with what it lacks."""
    try:
        document = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the descriptor {file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"the descriptor {file} is no JSON: {error}") from error
    things = [document] if isinstance(document, dict) else document
    if not isinstance(things, list) or not things or not all(isinstance(thing, dict) for thing in things):
        raise ConfigurationError(f"the descriptor {file} must hold a Thing or an array of Things")
    for thing in things:
        named = f"the Thing {thing.get('name', '(without a name)')!r} in {file}"
        if not thing.get("Locations"):
            raise ConfigurationError(f"{named} needs Locations")
        if not thing.get("Datastreams") and not thing.get("TaskingCapabilities"):
            raise ConfigurationError(f"{named} needs Datastreams, or TaskingCapabilities")
        if None in _stream_names([thing]):
            raise ConfigurationError(
                f"{named} has a Datastream without properties.streamName, its readings' n"
            )
    return things


def _stream_names(things: Sequence[dict[str, Any]]) -> set[str | None]:
    return {
        (stream.get("properties") or {}).get("streamName")
        for thing in things
        for stream in thing.get("Datastreams", ())
    }


class JsonLines:
    """A driver that reads lines from a file, a FIFO or standard input (None).

    A regular file ends, and its place is kept: after a restart it goes on where it was. A FIFO never ends, whoever
    writes to it comes and goes. Standard input ends with the program at its other end. Lines that cannot be read, or
    name no Datastream of `things`, are left out and said once for each reason.

    program: a program and its arguments, whose output is read instead; its standard input gets the commands.
    """

    def __init__(
        self,
        things: Sequence[dict[str, Any]],
        source: Path | None,
        *,
        program: Sequence[str] = (),
        clock: Callable[[], Micros] = now,
    ) -> None:
        self.things = things
        self._source = source
        self._program = Program(program) if program else None
        self._clock = clock
        self._names = _stream_names(things)
        self._said: set[str] = set()
        self._line = 0
        self.finite = False
        if program:
            return
        try:
            mode = (source.stat() if source else os.fstat(sys.stdin.fileno())).st_mode
        except OSError as error:
            raise ConfigurationError(f"cannot read {source}: {error.strerror}") from error
        self.finite = stat.S_ISREG(mode)

    async def readings(self, position: str | None) -> AsyncIterator[tuple[Sequence[Reading], str | None]]:
        """Yield what the lines hold that can be read at once, with the place in the file behind them."""
        chunks = self._chunks(position)
        rest = b""
        async for chunk, place in chunks:  # place: which file, and its bytes up to the end of the chunk
            *lines, rest = (rest + chunk).split(b"\n")
            if not chunk:  # the end: a last line may lack its line feed
                lines, rest = [rest], b""
            elif len(rest) > LONGEST_LINE:
                raise ConfigurationError(
                    f"line {self._line + len(lines) + 1} is longer than {LONGEST_LINE} bytes"
                )
            moment = self._clock()
            found = [reading for line in lines if (reading := self._read(line, moment))]
            if lines:
                yield found, f"{place[0]}@{place[1] - len(rest)}" if place else None

    async def perform(self, command: Command) -> AsyncGenerator[Result]:
        """Hand a command to the program, and yield what it says of it."""
        if self._program is None:
            yield Result(command.task, "rejected", message="this gateway runs no program that takes commands")
            return
        async with aclosing(self._program.perform(command)) as results:
            async for result in results:
                yield result

    def _chunks(self, position: str | None) -> AsyncIterator[tuple[bytes, tuple[str, int] | None]]:
        if self._program is not None:
            return self._program.output()
        return self._of_file(position) if self.finite else self._of_pipe()

    def _read(self, line: bytes, moment: Micros) -> Reading | None:
        self._line += 1
        if not line.strip():
            return None
        if self._program is not None and b'"task"' in line and self._program.answered(line):
            return None
        try:
            reading = parse_line(line, moment)
        except ValueError as error:  # msgspec's errors are some
            self._say(str(error))
            return None
        if reading.name not in self._names:
            self._say(f"no Datastream of the descriptor has the streamName {reading.name!r}")
            return None
        return reading

    def _say(self, why: str) -> None:
        if why not in self._said and len(self._said) < 100:
            self._said.add(why)
            log.warning("a line is left out, and others like it silently", line=self._line, why=why)

    async def _of_file(self, position: str | None) -> AsyncIterator[tuple[bytes, tuple[str, int] | None]]:
        with (
            self._source.open("rb") if self._source else os.fdopen(sys.stdin.fileno(), "rb", closefd=False)
        ) as file:
            about = os.fstat(file.fileno())
            identity = f"{about.st_dev}:{about.st_ino}"
            known, _, offset = (position or "").rpartition("@")
            # Another file, or the same one emptied since, begins at its beginning.
            at = int(offset) if known == identity and int(offset) <= about.st_size else 0
            file.seek(at)
            while True:
                chunk = await asyncio.to_thread(file.read, READ_AT_ONCE)
                at += len(chunk)
                yield chunk, (identity, at)
                if not chunk:
                    return

    async def _of_pipe(self) -> AsyncIterator[tuple[bytes, tuple[str, int] | None]]:
        if self._source:  # opened for writing too, so that it does not end when a writer goes
            pipe = os.fdopen(os.open(self._source, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0)
        else:
            pipe = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
        reader = asyncio.StreamReader(limit=READ_AT_ONCE)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        try:
            while True:
                chunk = await reader.read(READ_AT_ONCE)
                yield chunk, None
                if not chunk:
                    return
        finally:
            transport.close()
