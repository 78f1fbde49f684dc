"""The outbox: every pack on disk from the moment its readings are promised until the platform has it.

One SQLite file, used by one process. What is written is safe when the call returns (`synchronous=FULL`); the calls run
in a thread of the outbox's own, one after the other.
"""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from citylab.errors import ConfigurationError, Unavailable
from citylab.model import LARGEST_NUMBER, Micros
from citylab.times import now
from edge.ranges import Ranges

MOST_BYTES = 512 << 20  # a day at a hundred readings a second takes 290 MiB
_VERSION = 2
_SCHEMA = """
CREATE TABLE outbox (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    epoch INTEGER NOT NULL,
    born INTEGER NOT NULL,
    last INTEGER NOT NULL,           -- number given out
    position TEXT,                   -- of the driver, behind the readings of pack `last`
    running INTEGER NOT NULL,        -- 0 after a clean stop
    unclean_stops INTEGER NOT NULL
);
CREATE TABLE packs (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL);
-- Apart from the payloads, so that acknowledging does not write them anew.
CREATE TABLE numbers (
    seq INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    pending INTEGER NOT NULL
);
CREATE INDEX by_priority ON numbers (priority, seq) WHERE pending;
CREATE TABLE gone (first INTEGER PRIMARY KEY, last INTEGER NOT NULL);
"""
_SINCE_2 = """
CREATE TABLE commands (
    task INTEGER PRIMARY KEY,
    payload BLOB NOT NULL,
    begun INTEGER NOT NULL,          -- handed to the driver
    result BLOB,                     -- the last one
    unsent INTEGER NOT NULL          -- the broker has yet to acknowledge it
)
"""
_Result = TypeVar("_Result")


class Priority(IntEnum):
    """What is given up first when the disk's share is full, and waits for the other in the window."""

    BACKLOG = 0
    LIVE = 1


class Pack(NamedTuple):
    """A numbered pack as it is published."""

    seq: int
    payload: bytes
    priority: Priority = Priority.LIVE


class Outbox:
    """The packs of one gateway in `folder`. Opened with `async with`; the attributes below are right from then on.

    epoch: drawn when the outbox was made; born: when; last: the greatest number given out; position: the driver's place
    behind it; pending: numbers whose packs the platform has not acknowledged; gone: numbers whose packs were given up;
    stored: bytes on disk; unclean_stops: how often it was not closed.

    most_bytes: payloads kept. An acknowledged pack stays (for `resend`) until its space is needed; when there is none,
    the oldest pending pack of the lowest priority goes, and is recorded in `gone`.
    Raises ConfigurationError for a file that is damaged, in use, or not ours.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], Micros] = now,
        draw: random.Random | None = None,
    ) -> None:
        self.file = folder.absolute() / "outbox.db"
        self.most_bytes = most_bytes
        self._clock = clock
        self._draw = draw or random.SystemRandom()
        self._acknowledged: list[tuple[int, int]] = []  # not yet on disk: lost, they only come again
        self.epoch = self.last = self.unclean_stops = self.stored = 0
        self.born: Micros = 0
        self.position: str | None = None
        self.pending = Ranges()
        self.gone = Ranges()

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        try:
            await self._in_thread(self._open)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        acknowledged, self._acknowledged = self._acknowledged, []
        try:
            await self._in_thread(lambda: self._close(acknowledged))
        finally:
            self._thread.shutdown()

    async def append(self, packs: Sequence[Pack], position: str | None) -> list[tuple[int, int]]:
        """Commit packs, numbered on from `last`, with the driver's place behind them. Returns what had to be given up.

        Raises Unavailable when the disk does not take them; then none is committed and their numbers are free.
        """
        if [pack.seq for pack in packs] != list(range(self.last + 1, self.last + 1 + len(packs))):
            raise ValueError(f"packs are numbered on from {self.last}")
        acknowledged, self._acknowledged = self._acknowledged, []
        try:
            stored, given_up = await self._in_thread(lambda: self._append(packs, position, acknowledged))
        except Unavailable:
            self._acknowledged[:0] = acknowledged
            raise
        self.last += len(packs)
        self.position, self.stored = position, stored
        if packs:
            self.pending.add(packs[0].seq, packs[-1].seq)
        for first, last in given_up:
            self.pending.remove(first, last)
            self.gone.add(first, last)
        return given_up

    def acknowledge(self, first: int, last: int) -> None:
        """The platform has the packs from `first` to `last`. On disk with the next `append` or `flush`."""
        self.pending.remove(first, last)
        self._acknowledged.append((first, last))

    async def flush(self) -> None:
        """Write acknowledgements to disk, so that a crash does not send these packs again."""
        if self._acknowledged:
            await self.append([], self.position)

    async def reclaim(self, first: int, last: int) -> None:
        """The platform has lost the packs from `first` to `last`: those kept are pending again, the others are gone.

        Raises `Unavailable`.
        """
        last = min(last, self.last)
        if first > last:
            return
        acknowledged, self._acknowledged = self._acknowledged, []
        try:
            kept = await self.run(lambda db: self._reclaim(db, first, last, acknowledged))
        except Unavailable:
            self._acknowledged[:0] = acknowledged
            raise
        for one, other in kept.pairs():
            self.pending.add(one, other)
        for one, other in kept.holes(first, last):
            self.gone.add(one, other)

    async def load(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """The packs with these numbers, as far as they are still kept. Raises Unavailable."""
        wanted = list(numbers)
        marks = ",".join("?" * len(wanted))

        def read() -> dict[int, bytes]:
            return dict(self._db.execute(f"SELECT seq, payload FROM packs WHERE seq IN ({marks})", wanted))

        return await self._in_thread(read)

    async def run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Do some work on the file in a transaction; what it wrote is safe on return. Raises Unavailable."""

        def committed() -> _Result:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                return work(self._db)

        return await self._in_thread(committed)

    # -- in the thread ------------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.OperationalError as error:  # no space, say; anything else is a defect or a dying disk
            raise Unavailable("outbox", f"{self.file}: {error}", retry_after=5.0) from error

    def _open(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions begin where we say so.
            self._db = sqlite3.connect(self.file, timeout=1.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"cannot open the outbox {self.file}: {error}") from error
        try:
            # One process for as long as it runs; what is committed is safe from a power cut.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._begin()
            self._db.commit()
        except sqlite3.OperationalError as error:
            self._db.close()
            what = "another agent uses it" if "locked" in str(error) else str(error)
            raise ConfigurationError(f"cannot open the outbox {self.file}: {what}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigurationError(
                f"the outbox {self.file} is damaged ({error}). Move it away to go on with a new one; what it had not"
                " delivered then shows as missing in the ledger"
            ) from error

    def _begin(self) -> None:
        db = self._db
        db.execute("BEGIN EXCLUSIVE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in range(_VERSION + 1):
            raise sqlite3.DatabaseError(f"its version is {version}, this program knows {_VERSION}")
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            new = (self._draw.randint(1, LARGEST_NUMBER), self._clock())
            db.execute("INSERT INTO outbox VALUES (1, ?, ?, 0, NULL, 0, 0)", new)
        if version < _VERSION:
            db.execute(_SINCE_2)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("UPDATE outbox SET unclean_stops = unclean_stops + running, running = 1")
        columns = "epoch, born, last, position, unclean_stops"
        self.epoch, self.born, self.last, self.position, self.unclean_stops = db.execute(
            f"SELECT {columns} FROM outbox"
        ).fetchone()
        self.stored = db.execute("SELECT coalesce(sum(size), 0) FROM numbers").fetchone()[0]
        self.pending, self.gone = Ranges(), Ranges(db.execute("SELECT first, last FROM gone"))
        for (seq,) in db.execute("SELECT seq FROM numbers WHERE pending ORDER BY seq"):
            self.pending.add(seq)

    def _close(self, acknowledged: Sequence[tuple[int, int]]) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._write_acknowledged(acknowledged)
            self._db.execute("UPDATE outbox SET running = 0")
        self._db.close()

    def _append(
        self, packs: Sequence[Pack], position: str | None, acknowledged: Sequence[tuple[int, int]]
    ) -> tuple[int, list[tuple[int, int]]]:
        """Bytes stored now, and the ranges given up."""
        db = self._db
        with db:  # commits, or rolls back when it raises
            db.execute("BEGIN IMMEDIATE")
            self._write_acknowledged(acknowledged)
            stored, given_up = self._make_room(sum(len(pack.payload) for pack in packs))
            db.executemany("INSERT INTO packs VALUES (?, ?)", [(pack.seq, pack.payload) for pack in packs])
            db.executemany(
                "INSERT INTO numbers VALUES (?, ?, ?, 1)",
                [(pack.seq, len(pack.payload), pack.priority) for pack in packs],
            )
            db.execute("UPDATE outbox SET last = last + ?, position = ?", (len(packs), position))
        return stored, given_up

    def _write_acknowledged(self, acknowledged: Sequence[tuple[int, int]]) -> None:
        self._db.executemany(
            "UPDATE numbers SET pending = 0 WHERE seq BETWEEN ? AND ? AND pending", acknowledged
        )

    def _make_room(self, size: int) -> tuple[int, list[tuple[int, int]]]:
        """Give up what is needed for `size` more bytes: acknowledged packs first, then pending ones."""
        stored, given_up = self.stored + size, Ranges()
        oldest = "SELECT seq, size, pending FROM numbers WHERE pending = 0 ORDER BY seq LIMIT 100"
        least = "SELECT seq, size, pending FROM numbers WHERE pending ORDER BY priority, seq LIMIT 100"
        while stored > self.most_bytes:
            rows = self._db.execute(oldest).fetchall() or self._db.execute(least).fetchall()
            if not rows:  # the new packs alone are more than the limit
                break
            for seq, bytes_, pending in rows:
                if stored <= self.most_bytes:
                    break
                stored -= bytes_
                self._db.execute("DELETE FROM packs WHERE seq = ?", (seq,))
                self._db.execute("DELETE FROM numbers WHERE seq = ?", (seq,))
                if pending:
                    given_up.add(seq)
        for first, last in given_up.pairs():
            longer = self._db.execute("UPDATE gone SET last = ? WHERE last = ?", (last, first - 1))
            if longer.rowcount == 0:
                self._db.execute("INSERT INTO gone VALUES (?, ?)", (first, last))
        return stored, given_up.pairs()

    def _reclaim(
        self, db: sqlite3.Connection, first: int, last: int, acknowledged: Sequence[tuple[int, int]]
    ) -> Ranges:
        """Which of the numbers are still kept."""
        self._write_acknowledged(acknowledged)
        within = "WHERE seq BETWEEN ? AND ?"
        db.execute(f"UPDATE numbers SET pending = 1 {within} AND NOT pending", (first, last))
        kept = Ranges()
        for (seq,) in db.execute(f"SELECT seq FROM numbers {within} ORDER BY seq", (first, last)):
            kept.add(seq)
        gone = Ranges(db.execute("SELECT first, last FROM gone"))
        for hole in kept.holes(first, last):
            gone.add(*hole)
        db.execute("DELETE FROM gone")
        db.executemany("INSERT INTO gone VALUES (?, ?)", gone.pairs())
        return kept
