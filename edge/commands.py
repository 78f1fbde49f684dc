"""Commands of a gateway: each is carried out once, and its last result is kept until the broker has it.

They lie in the outbox's file. A command is safe before it is acknowledged; one that a crash interrupted is not begun again,
since nobody knows how far it came: it has failed.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec
import structlog

from citylab.commands import FINAL, Command, Result
from citylab.errors import Unavailable
from citylab.model import Micros
from citylab.times import format_instant
from edge.drivers import Driver, Tasked
from edge.outbox import Outbox

log = structlog.get_logger(__name__)
T = TypeVar("T")

REMEMBERED = 10_000  # finished commands, so that one that comes again is not carried out again


class Commands:
    """Hands commands to one driver and its results on. The outbox is open while it runs.

    publish: hands a result to the connection, and returns its packet number, or None without one; changed: is called
    whenever less is to be done.
    """

    def __init__(
        self,
        driver: Driver,
        outbox: Outbox,
        publish: Callable[[bytes], int | None],
        changed: Callable[[], None],
        clock: Callable[[], Micros],
    ) -> None:
        self._driver, self._outbox, self._clock = driver, outbox, clock
        self._publish, self._changed = publish, changed
        self._new: asyncio.Queue[Command] = asyncio.Queue()
        self._resumed = asyncio.Event()
        # Tasks that are carried out, or whose last result the broker has yet to acknowledge.
        self._open: set[int] = set()
        self._sent: dict[int, tuple[int, bytes]] = {}  # by packet number: the task, and its result

    @property
    def busy(self) -> bool:
        """Whether something is carried out, or still to be said."""
        return bool(self._open)

    async def run(self) -> None:
        """Carry out what comes, each command beside the others, until cancelled. What the driver raises passes through."""
        async with asyncio.TaskGroup() as tasks:
            await self._resume()
            self._resumed.set()
            while True:
                command = await self._new.get()
                tasks.create_task(self._carry_out(command))

    async def receive(self, payload: bytes) -> None:
        """Return once a command is safe; it is carried out if it has not come before."""
        try:
            command = msgspec.json.decode(payload, type=Command)
        except msgspec.DecodeError as error:
            log.warning("a command that we do not understand", why=str(error))
            return
        await self._resumed.wait()  # or what is new would be resumed too
        known, result = await self._on_disk(lambda db: _remember(db, command.task, payload))
        if not known:
            self._open.add(command.task)
            self._new.put_nowait(command)
        elif result is not None:  # the platform has not heard of it
            self._send([(command.task, result)])

    async def connected(self) -> None:
        """Say again, over a new connection, what the last one may have lost."""
        self._sent.clear()
        self._send(await self._on_disk(_unsent))

    async def pubacks(self, packets: Sequence[int]) -> None:
        """The broker has acknowledged these packets."""
        done = [self._sent.pop(packet) for packet in packets if packet in self._sent]
        if not done:
            return
        await self._on_disk(
            lambda db: db.executemany("UPDATE commands SET unsent = 0 WHERE task = ? AND result = ?", done)
        )
        for task, result in done:
            if msgspec.json.decode(result, type=Result).state in FINAL:
                self._open.discard(task)
        self._changed()

    async def _resume(self) -> None:
        """Begin what was received and not begun; end what was begun and not ended."""
        for task, payload, begun, result in await self._on_disk(_unfinished):
            self._open.add(task)
            if result is not None and msgspec.json.decode(result, type=Result).state in FINAL:
                continue  # only to be said
            if begun:
                await self._keep(
                    Result(task, "failed", message="the gateway stopped while it was carried out")
                )
            else:
                self._new.put_nowait(msgspec.json.decode(payload, type=Command))

    async def _carry_out(self, command: Command) -> None:
        await self._on_disk(
            lambda db: db.execute("UPDATE commands SET begun = 1 WHERE task = ?", (command.task,))
        )
        if not isinstance(self._driver, Tasked):
            message = "no driver of this gateway carries out commands"
            await self._keep(Result(command.task, "rejected", message=message))
            return
        async with aclosing(self._driver.perform(command)) as results:
            async for result in results:
                await self._keep(result)
                if result.state in FINAL:
                    return
        await self._keep(Result(command.task, "failed", message="the driver did not say how it ended"))

    async def _keep(self, result: Result) -> None:
        if result.at is None:
            result = msgspec.structs.replace(result, at=format_instant(self._clock()))
        row = (msgspec.json.encode(result), result.task)
        await self._on_disk(
            lambda db: db.execute("UPDATE commands SET result = ?, unsent = 1 WHERE task = ?", row)
        )
        self._send([(result.task, row[0])])

    async def _on_disk(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do it as soon as the disk takes it."""
        while True:
            try:
                return await self._outbox.run(work)
            except Unavailable as error:
                log.error("commands wait because the outbox cannot be written", why=str(error))
                await asyncio.sleep(error.retry_after)

    def _send(self, results: Sequence[tuple[int, bytes]]) -> None:
        for task, result in results:
            packet = self._publish(result)
            if packet is not None:
                self._sent[packet] = (task, result)


def _remember(db: sqlite3.Connection, task: int, payload: bytes) -> tuple[bool, bytes | None]:
    """Whether the command is known, and its last result; remember it if it is not, and forget old ones."""
    rows = db.execute("SELECT result FROM commands WHERE task = ?", (task,)).fetchall()
    if rows:
        return True, rows[0][0]
    db.execute("INSERT INTO commands VALUES (?, ?, 0, NULL, 0)", (task, payload))
    db.execute(
        "DELETE FROM commands WHERE result IS NOT NULL AND NOT unsent AND task < ("
        "SELECT min(task) FROM (SELECT task FROM commands ORDER BY task DESC LIMIT ?))",
        (REMEMBERED,),
    )
    return False, None


def _unsent(db: sqlite3.Connection) -> list[tuple[int, bytes]]:
    return db.execute("SELECT task, result FROM commands WHERE unsent ORDER BY task").fetchall()


def _unfinished(db: sqlite3.Connection) -> list[tuple[int, bytes, int, bytes | None]]:
    """What has no final result that the broker has acknowledged."""
    rows = db.execute("SELECT task, payload, begun, result, unsent FROM commands ORDER BY task").fetchall()
    return [
        (task, payload, begun, result)
        for task, payload, begun, result, unsent in rows
        if unsent or result is None or msgspec.json.decode(result, type=Result).state not in FINAL
    ]
