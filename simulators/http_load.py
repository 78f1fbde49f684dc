"""The load generator of `citylab bench api`: a process that asks as fast as it is answered, over kept connections.

A task comes as JSON on standard input, its outcome goes as JSON to standard output. It writes requests that were encoded
before and reads no more of an answer than its length, so that it takes little from the two cores that all share.
"""

import asyncio
import re
import sys
import time
from typing import cast

import msgspec

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Request(msgspec.Struct):
    """What to ask; `path` is encoded."""

    path: str
    method: str = "GET"
    body: str = ""


class LoadTask(msgspec.Struct):
    """Ask for `requests` in turn, over and over, on so many connections. warm_up: s before what counts."""

    host: str
    port: int
    requests: list[Request]
    connections: int = 1
    seconds: float = 3.0
    warm_up: float = 0.5


class Outcome(msgspec.Struct):
    """Requests a second, delays in ms, bytes an answer, and the first answer that was no success.

    answers: with those of the warm-up; cpu: µs of the generator's own for each.
    """

    rate: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    size: float = 0.0
    failure: str = ""
    answers: int = 0
    cpu: float = 0.0


class _Connection(asyncio.Protocol):
    """One connection, which asks for the next thing when it has the answer to the last."""

    def __init__(self, load: "_Load") -> None:
        self.load = load
        self.received = bytearray()
        self.expected = 0  # bytes of the answer; 0 until its head is read, -1 when it comes in chunks
        self.asked = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.expected:
            end = self.received.find(_HEAD_END)
            if end < 0:
                return
            length = _LENGTH.search(self.received, 0, end + 2)
            self.expected = end + 4 + int(length[1]) if length else -1
            if self.received[9:12] == b"204":
                self.expected = end + 4
        if self.expected < 0:
            whole = self.received.endswith(_LAST_CHUNK)
        else:
            whole = len(self.received) >= self.expected
        if whole:
            self.load.answered(time.perf_counter() - self.asked, self.received)
            self.received.clear()
            self.expected = 0
            if self.load.done.is_set():
                self.transport.close()
            else:
                self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.load.done.is_set():
            self.load.fail(f"the connection was closed: {exc or 'by the server'}")

    def _ask(self) -> None:
        self.asked = time.perf_counter()
        self.transport.write(self.load.next())


class _Load:
    def __init__(self, task: LoadTask) -> None:
        self.task = task
        self.encoded = [_encoded(task, request) for request in task.requests]
        self.turn = 0
        self.delays: list[float] = []
        self.bytes = 0
        self.failure = ""
        self.answers = 0
        self.counting = False
        self.done = asyncio.Event()

    def next(self) -> bytes:
        self.turn += 1
        return self.encoded[self.turn % len(self.encoded)]

    def answered(self, delay: float, answer: bytearray) -> None:
        if answer[9:10] != b"2":
            self.fail(bytes(answer[9:400]).decode("latin-1"))
        self.answers += 1
        if self.counting:
            self.delays.append(delay)
            self.bytes += len(answer)

    def fail(self, why: str) -> None:
        self.failure = self.failure or why
        self.done.set()

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        for _ in range(self.task.connections):
            await loop.create_connection(lambda: _Connection(self), self.task.host, self.task.port)
        await self._wait(self.task.warm_up)
        self.counting = True
        began = time.perf_counter()
        await self._wait(self.task.seconds)
        seconds = time.perf_counter() - began
        self.done.set()
        if self.failure or not self.delays:
            return Outcome(failure=self.failure or "no answer in time")
        delays = sorted(self.delays)
        count = len(delays)
        spent = time.process_time() / self.answers * 1e6
        return Outcome(
            count / seconds,
            delays[count // 2] * 1e3,
            delays[min(count * 99 // 100, count - 1)] * 1e3,
            self.bytes / count,
            answers=self.answers,
            cpu=spent,
        )

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.done.wait()
        except TimeoutError:
            pass


def _encoded(task: LoadTask, request: Request) -> bytes:
    body = request.body.encode()
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: {task.host}:{task.port}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def main() -> None:
    """Run the task on standard input."""
    import uvloop  # noqa: PLC0415

    task = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadTask)
    outcome = uvloop.run(_Load(task).run())
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
