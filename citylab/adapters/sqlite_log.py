"""The embedded event log (`sqlite:PATH`): a folder of SQLite files that several processes use at the same time.

`PATH/TOPIC/` has the topic's segments (`sqlite_segments`) and its readers' sockets (`bell`); `PATH/groups.sqlite` has
the consumer groups' positions. A topic is written by one thread a process, which puts all appends that wait into one
durable transaction; SQLite's lock keeps processes apart.
"""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, ParamSpec, Self, TypeVar

from citylab import times
from citylab.adapters.bell import Bell
from citylab.adapters.log_places import by_partition
from citylab.adapters.log_topics import RETENTION, Retention, partitions_of
from citylab.adapters.sqlite_reader import Reader
from citylab.adapters.sqlite_segments import Rows, Segment, TopicFiles, encode
from citylab.errors import Unavailable
from citylab.model import Batch, Kept, Micros, NewEvent, Position, Topic

SEGMENT_BYTES = 64 << 20
_COMMIT_BYTES = 32 << 20  # appends that wait are put into one transaction up to this size
_POLL_SECONDS = 1.0  # in case a wake-up is lost
_POLL_SECONDS_DEAF = 0.1  # where there are no wake-ups

_GROUPS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS positions (
    consumers TEXT, topic TEXT, partition INTEGER, offset INTEGER NOT NULL, fingerprint BLOB NOT NULL,
    PRIMARY KEY (consumers, topic, partition)
) WITHOUT ROWID;
"""

P = ParamSpec("P")
T = TypeVar("T")


class SqliteLog:
    """`ports.EventLog` in a folder.

    partitions: of a new log's packs; an existing log keeps its own number. only_looks: opening it drops nothing. segment_bytes: what a file holds, and so
    the grain of the retention, which never drops the newest segment. busy_seconds: how long to wait for another
    process's lock before `Unavailable`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        partitions: int = 4,
        retention: Mapping[Topic, Retention] = RETENTION,
        only_looks: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
        busy_seconds: float = 10.0,
        clock: Callable[[], Micros] = times.now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._of_packs = partitions
        self._only_looks = only_looks
        self._files = {
            topic: TopicFiles(
                folder / topic,
                retention=retention[topic],
                segment_bytes=segment_bytes,
                busy_seconds=busy_seconds,
                clock=clock,
                monotonic=monotonic,
            )
            for topic in Topic
        }
        self._groups = _Groups(folder / "groups.sqlite", busy_seconds)
        self._partitions: dict[Topic, Sequence[int]] = {}
        self._writers: dict[Topic, _Writer] = {}

    async def __aenter__(self) -> Self:
        """Make the folder and the topics that are missing, drop what the retention no longer keeps."""
        await _in_thread(self._prepare)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Write what was accepted."""
        writers = list(self._writers.values())
        self._writers.clear()
        await asyncio.gather(*(asyncio.to_thread(writer.close) for writer in writers))
        self._groups.close()

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        """See `ports.EventLog`. Several calls that wait become one transaction."""
        lanes = by_partition(events, len(self._partitions[topic]))
        rows = [row for partition, lane in lanes.items() for row in encode(partition, lane)]
        if not rows:
            return
        if topic not in self._writers:
            self._writers[topic] = _Writer(self._files[topic])
        await self._writers[topic].append(rows)

    async def partitions(self, topic: Topic) -> Sequence[int]:
        """See `ports.EventLog`."""
        return self._partitions[topic]

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """See `ports.EventLog`."""
        return await _in_thread(_of_newest, self._files[topic], Segment.ends)

    async def tail(self, topic: Topic) -> Mapping[int, Position]:
        """See `ports.EventLog`."""
        return await _in_thread(_of_newest, self._files[topic], Segment.tail)

    async def read(
        self, topic: Topic, start: Mapping[int, Position], *, most: int = 1_000, most_bytes: int = 4 << 20
    ) -> AsyncGenerator[Batch]:
        """See `ports.EventLog`. The partitions take turns."""
        files = self._files[topic]
        reader = Reader(files, topic, start)
        rung = asyncio.Event()
        with closing(reader), Bell(files.folder / "readers").listen(rung) as hears:
            while True:
                rung.clear()
                batch = await _in_thread(reader.next, most, most_bytes)
                if batch:
                    yield batch
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS if hears else _POLL_SECONDS_DEAF):
                        await rung.wait()

    async def kept(
        self, readers: Mapping[Topic, Mapping[int, Position]], *, now: Micros
    ) -> Mapping[Topic, Kept]:
        """See `ports.EventLog`. What is unread counts by whole files, as it goes."""
        return {
            topic: await _in_thread(files.kept, readers.get(topic), now)
            for topic, files in self._files.items()
        }

    async def committed(self, group: str, topic: Topic) -> Mapping[int, Position]:
        """See `ports.EventLog`."""
        return await _in_thread(self._groups.positions, group, topic)

    async def commit(self, group: str, topic: Topic, positions: Mapping[int, Position]) -> None:
        """See `ports.EventLog`."""
        await _in_thread(self._groups.keep, group, topic, positions)

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for topic, files in self._files.items():
            files.create(partitions_of(topic, self._of_packs))
            with closing(files.newest()) as segment:
                self._partitions[topic] = sorted(segment.begins)
            if not self._only_looks:
                files.retain()
        self._groups.open()


class _Groups:
    """The consumer groups' positions. What a power cut takes of them is read again."""

    def __init__(self, path: Path, busy_seconds: float) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        self._db = sqlite3.connect(self._path, timeout=self._busy_seconds, check_same_thread=False)
        self._db.executescript(_GROUPS)

    def close(self) -> None:
        with self._lock:
            if self._db:
                self._db.close()
            self._db = None

    def positions(self, group: str, topic: Topic) -> Mapping[int, Position]:
        ask = "SELECT partition, offset, fingerprint FROM positions WHERE consumers = ? AND topic = ?"
        with self._lock:
            assert self._db, "the log is open"
            return {
                partition: Position(offset, mark)
                for partition, offset, mark in self._db.execute(ask, (group, topic))
            }

    def keep(self, group: str, topic: Topic, positions: Mapping[int, Position]) -> None:
        rows = [(group, topic, partition, *position) for partition, position in positions.items()]
        with self._lock:
            assert self._db, "the log is open"
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?)", rows)


class _Append(NamedTuple):
    rows: list[Rows]
    durable: asyncio.Future[None]


class _Writer:
    """The thread that appends to one topic."""

    def __init__(self, files: TopicFiles) -> None:
        self._files = files
        self._bell = Bell(files.folder / "readers")
        self._segment: Segment | None = None
        self._waiting: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"append to {files.folder.name}", daemon=True)
        self._thread.start()

    async def append(self, rows: list[Rows]) -> None:
        """Return when the rows are durable. Raises `Unavailable`."""
        durable = asyncio.get_running_loop().create_future()
        self._waiting.put(_Append(rows, durable))
        await durable

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            appends, going_on = self._next()
            if not appends:
                continue
            problem: Exception | None = None
            try:
                self._write([row for append in appends for row in append.rows])
            except (sqlite3.Error, OSError) as error:
                problem = Unavailable("event log", f"{self._files.folder}: {error}")
            except Exception as error:  # noqa: BLE001  whoever waits must hear of it
                problem = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                appends[0].durable.get_loop().call_soon_threadsafe(_settle, appends, problem)
            if problem:
                self._leave_segment()
            else:
                self._bell.ring()
        self._leave_segment()

    def _next(self) -> tuple[list[_Append], bool]:
        """Wait for appends; take those that are there, up to `_COMMIT_BYTES`. False after the last."""
        appends: list[_Append] = []
        size = 0
        with suppress(queue.Empty):
            while size < _COMMIT_BYTES:
                append = self._waiting.get(block=not appends)
                if append is None:
                    return appends, False
                appends.append(append)
                size += sum(len(row.packed) for row in append.rows)
        return appends, True

    def _write(self, rows: list[Rows]) -> None:
        while True:
            segment = self._segment = self._segment or self._files.newest()
            if not segment.path.exists():
                raise FileNotFoundError(f"{segment.path} was removed while it is in use")
            if not self._files.full(segment) and segment.append(rows):
                return
            self._files.roll(segment.number)
            self._leave_segment()

    def _leave_segment(self) -> None:
        if self._segment:
            with suppress(sqlite3.Error):
                self._segment.close()
        self._segment = None


def _settle(appends: Sequence[_Append], problem: Exception | None) -> None:
    for append in appends:
        if append.durable.done():  # cancelled
            continue
        if problem:
            append.durable.set_exception(problem)
        else:
            append.durable.set_result(None)


def _of_newest(files: TopicFiles, ask: Callable[[Segment], T]) -> T:
    with closing(files.newest()) as segment:
        return ask(segment)


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The one place where SQLite is handed over, with its errors translated."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except (sqlite3.Error, OSError) as error:
        raise Unavailable("event log", str(error)) from error
