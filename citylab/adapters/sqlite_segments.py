"""A topic of the embedded log as files: one SQLite file a segment, of which only the newest is written.

A row is a batch of events of one partition, as columns in MessagePack; its id holds partition and first offset. A
segment also says where each partition stood when it began, so that a position at its first event can be checked
when the segment before is gone. Everything here blocks, and an open segment belongs to one thread at a time.
"""

import os
import secrets
import shutil
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from citylab.adapters.log_places import position_after
from citylab.adapters.log_topics import Retention
from citylab.errors import ConfigurationError
from citylab.model import SECOND, Event, Kept, Micros, NewEvent, Position

FORMAT = 1
ROW_BYTES = 1 << 20  # a batch with more is split, so that reading from its middle stays cheap
PAGE_BYTES = 16 << 10
WAL_PAGES = 1_024  # 16 MiB of log before it is folded into the file
_OFFSET_BITS = 48
_PARTS = 8  # of the topic's bytes that a segment has at most, so that little goes at once
LEAST_SEGMENT_BYTES = 128 << 10
_AGES = 8  # a segment is sealed at this part of the topic's age at the latest, so that what is old can go

_SCHEMA = f"""
PRAGMA page_size = {PAGE_BYTES};
PRAGMA synchronous = FULL;
BEGIN;
CREATE TABLE segment (created_at INTEGER NOT NULL, sealed_at INTEGER);
CREATE TABLE begins (partition INTEGER PRIMARY KEY, offset INTEGER NOT NULL, fingerprint BLOB NOT NULL);
CREATE TABLE batches (id INTEGER PRIMARY KEY, count INTEGER NOT NULL, events BLOB NOT NULL);
PRAGMA user_version = {FORMAT};
"""

_encoder = msgspec.msgpack.Encoder()
_columns = msgspec.msgpack.Decoder(tuple[list[str], list[bytes], list[dict[str, str]], list[int]])


class Rows(NamedTuple):
    """Events of one partition, ready to be appended: how many, and packed."""

    partition: int
    events_in_it: int
    packed: bytes


def encode(partition: int, events: Sequence[NewEvent]) -> Iterator[Rows]:
    """Pack events into rows of about `ROW_BYTES`."""
    start = size = 0
    for index, event in enumerate(events):
        size += len(event.value)
        if size > ROW_BYTES and index > start:
            yield _row(partition, events[start:index])
            start, size = index, len(event.value)
    yield _row(partition, events[start:])


def _row(partition: int, events: Sequence[NewEvent]) -> Rows:
    keys, values, headers, times = zip(*events, strict=True)
    plain = [each if type(each) is dict else dict(each) for each in headers]
    return Rows(partition, len(events), _encoder.encode((keys, values, plain, times)))


def decode(partition: int, first: int, packed: bytes) -> list[Event]:
    """Unpack a row whose first event has the offset `first`."""
    keys, values, headers, times = _columns.decode(packed)
    offsets = range(first, first + len(keys))
    return list(map(Event, repeat(partition), offsets, keys, values, headers, times))


class Segment:
    """An open segment file. Raises FileNotFoundError when it is gone, sqlite3.Error when it cannot be used now."""

    def __init__(self, path: Path, busy_seconds: float) -> None:
        self.path = path
        self.number = int(path.stem)
        self._db = _connect(path, busy_seconds)
        try:
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version != FORMAT:
                raise ConfigurationError(
                    f"{path} has format {version}, this Citylab reads {FORMAT}: use the version that wrote it"
                )
            self.begins: Mapping[int, Position] = {
                partition: Position(offset, mark)
                for partition, offset, mark in self._db.execute(
                    "SELECT partition, offset, fingerprint FROM begins"
                )
            }
            (self.created_at,) = self._db.execute("SELECT created_at FROM segment").fetchone()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file; the last to do so folds the write-ahead log into it."""
        self._db.close()

    def sealed_at(self) -> Micros | None:
        """When the segment was finished; None while it is written."""
        found: tuple[Micros | None] = self._db.execute("SELECT sealed_at FROM segment").fetchone()
        return found[0]

    def size(self) -> int:
        """Bytes that the file has, or will have when the write-ahead log is folded in."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        return int(pages) * PAGE_BYTES

    def holds_events(self) -> bool:
        """Whether anything was appended."""
        return self._db.execute("SELECT 1 FROM batches LIMIT 1").fetchone() is not None

    def append(self, rows: Sequence[Rows]) -> bool:
        """Add rows in one durable transaction. False when the segment is sealed."""
        with self._transaction():
            if self.sealed_at() is not None:
                return False
            ends = {partition: self._end(partition) for partition in {row.partition for row in rows}}
            numbered = []
            for partition, count, packed in rows:
                numbered.append((_row_id(partition, ends[partition]), count, packed))
                ends[partition] += count
            self._db.executemany("INSERT INTO batches (id, count, events) VALUES (?, ?, ?)", numbered)
        return True

    def seal(self, at: Micros) -> None:
        """Finish the segment: nothing is appended any more."""
        with self._transaction():
            self._db.execute("UPDATE segment SET sealed_at = ? WHERE sealed_at IS NULL", (at,))

    def fold(self) -> None:
        """Fold the write-ahead log into the file as far as its readers allow."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def row(self, partition: int, first: int) -> bytes | None:
        """The row that starts with this offset."""
        found = self._db.execute(
            "SELECT events FROM batches WHERE id = ?", (_row_id(partition, first),)
        ).fetchone()
        return found[0] if found else None

    def row_around(self, partition: int, offset: int) -> list[Event]:
        """The events of the last row that starts at or before an offset; [] when there is none."""
        span = (_row_id(partition, 0), _row_id(partition, offset))
        ask = "SELECT id, events FROM batches WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"
        found = self._db.execute(ask, span).fetchone()
        return decode(partition, found[0] - span[0], found[1]) if found else []

    def ends(self) -> Mapping[int, int]:
        """For each partition the offset that its next event will have."""
        return {partition: self._end(partition) for partition in self.begins}

    def tail(self) -> Mapping[int, Position]:
        """For each partition the position after its newest event."""
        newest = {partition: self.row_around(partition, (1 << _OFFSET_BITS) - 1) for partition in self.begins}
        return {p: position_after(events[-1]) if events else self.begins[p] for p, events in newest.items()}

    def _end(self, partition: int) -> int:
        span = (_row_id(partition, 0), _row_id(partition + 1, 0))
        ask = "SELECT id, count FROM batches WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT 1"
        found = self._db.execute(ask, span).fetchone()
        return found[0] - span[0] + found[1] if found else self.begins[partition].offset

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the segment's only write lock, and commit at the end."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
                self._db.execute("ROLLBACK")
            raise


class TopicFiles:
    """A topic's folder: its segments, how they follow each other, and how the oldest go.

    Segments are sealed, made and dropped under a lock that processes share; appending and reading need none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        retention: Retention,
        segment_bytes: int,
        busy_seconds: float,
        clock: Callable[[], Micros],
        monotonic: Callable[[], float],
    ) -> None:
        self.folder = folder
        self._retention = retention
        self._segment_bytes = min(segment_bytes, max(retention.most_bytes // _PARTS, LEAST_SEGMENT_BYTES))
        self._busy_seconds = busy_seconds
        self._clock, self._monotonic = clock, monotonic
        self._opened, self._opened_at = clock(), monotonic()

    def create(self, partitions: int) -> None:
        """Make the folder with its first segment, unless it is there. Whole or not at all, whoever else tries."""
        if self.folder.exists():
            return
        draft = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}")
        draft.mkdir()
        try:
            self._write_segment(draft / _name(1), dict.fromkeys(range(partitions), Position(0, b"")))
            with suppress(OSError):
                draft.rename(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        if not self.folder.exists():
            raise FileNotFoundError(f"{self.folder} cannot be made")
        _sync_folder(self.folder.parent)

    def numbers(self) -> list[int]:
        """The segments, oldest first. There is always one."""
        found = sorted(
            int(name[:-7])
            for name in os.listdir(self.folder)  # noqa: PTH208  names are all that is wanted
            if name[0].isdigit() and name.endswith(".sqlite")
        )
        if not found:
            raise FileNotFoundError(f"{self.folder} has no segment")
        return found

    def open(self, number: int) -> Segment:
        """Open a segment. Raises FileNotFoundError when the retention dropped it."""
        return Segment(self.folder / _name(number), self._busy_seconds)

    def newest(self) -> Segment:
        """Open the segment that is written."""
        while True:
            try:
                return self.open(self.numbers()[-1])
            except FileNotFoundError:
                if not self.folder.exists():
                    raise

    def full(self, segment: Segment) -> bool:
        """Whether the next batch should go into a new segment."""
        age = self._clock() - segment.created_at
        over = segment.size() >= self._segment_bytes or age * _AGES > self._retention.most_age
        return over and segment.holds_events()

    def roll(self, full: int) -> None:
        """Seal the segment with this number and make the next, unless that is done; drop what is too old or too much."""
        with self._locked():
            newest = self.numbers()[-1]
            with closing(self.open(newest)) as segment:
                if newest == full:
                    segment.seal(self._clock())
                if segment.sealed_at() is not None:  # also after a crash between sealing and making the next
                    self._follow(segment)
                    segment.fold()
            self._drop()

    def retain(self) -> None:
        """Drop the oldest segments that are too old or too much; never the one that is written."""
        with self._locked():
            self._drop()

    def kept(self, reader: Mapping[int, Position] | None, now: Micros) -> Kept:
        """See `ports.EventLog`."""
        while True:
            numbers = self.numbers()
            try:
                return self._kept(numbers, reader, now)
            except FileNotFoundError:  # dropped in between
                if numbers == self.numbers():
                    raise

    def _kept(self, numbers: list[int], reader: Mapping[int, Position] | None, now: Micros) -> Kept:
        sizes = {number: (self.folder / _name(number)).stat().st_size for number in numbers}
        with closing(self.open(numbers[0])) as first, closing(self.open(numbers[-1])) as last:
            begins, ends = first.begins, last.ends()
            sizes[last.number] = last.size()
        filled = [partition for partition, end in ends.items() if end > begins[partition].offset]
        oldest = min((self._event_at(numbers, p, begins[p].offset)[1].time for p in filled), default=None)
        total = sum(map(_size, self.folder.glob("*.sqlite*")))
        if reader is None:
            return Kept(total, oldest)
        behind, lost = 0.0, 0
        for partition, end in ends.items():
            begin = begins[partition].offset
            at = reader[partition].offset if partition in reader else 0
            if partition in reader or begin < end:
                lost += max(begin - at, 0)
            if max(at, begin) < end:
                number, event = self._event_at(numbers, partition, max(at, begin))
                unread = sum(size for one, size in sizes.items() if one >= number)
                behind = max(
                    behind, unread / self._retention.most_bytes, (now - event.time) / self._retention.most_age
                )
        return Kept(total, oldest, behind, lost)

    def _event_at(self, numbers: list[int], partition: int, offset: int) -> tuple[int, Event]:
        """The event with this offset, which is there, and the number of its segment."""

        def begin(number: int) -> int:
            with closing(self.open(number)) as segment:
                return segment.begins[partition].offset

        number = numbers[bisect_right(numbers, offset, key=begin) - 1]
        with closing(self.open(number)) as segment:
            row = segment.row_around(partition, offset)
        return number, row[offset - row[0].offset]

    def _follow(self, sealed: Segment) -> None:
        draft = self.folder / f"draft.{secrets.token_hex(4)}"
        self._write_segment(draft, sealed.tail())
        draft.replace(self.folder / _name(sealed.number + 1))
        _sync_folder(self.folder)

    def _write_segment(self, path: Path, begins: Mapping[int, Position]) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.executescript(_SCHEMA)
            db.execute("INSERT INTO segment (created_at) VALUES (?)", (self._clock(),))
            rows = [(partition, *position) for partition, position in begins.items()]
            db.executemany("INSERT INTO begins (partition, offset, fingerprint) VALUES (?, ?, ?)", rows)
            db.execute("COMMIT")
            db.execute("PRAGMA journal_mode = WAL")

    def _least_now(self) -> Micros:
        """A clock that is put forward makes nothing older: no more time has passed than we have been running."""
        return min(self._clock(), self._opened + round((self._monotonic() - self._opened_at) * SECOND))

    def _drop(self) -> None:
        numbers = self.numbers()
        sizes = {number: (self.folder / _name(number)).stat().st_size for number in numbers}
        oldest_kept = self._least_now() - self._retention.most_age
        for number in numbers[:-1]:
            with closing(self.open(number)) as segment:
                sealed_at = segment.sealed_at()
            too_much = sum(sizes.values()) > self._retention.most_bytes
            too_old = sealed_at is not None and sealed_at < oldest_kept
            if not (too_much or too_old):
                break
            del sizes[number]
            with suppress(PermissionError):  # Windows, while somebody reads it: next time
                (self.folder / _name(number)).unlink()
        self._sweep(min(self.numbers()))

    def _sweep(self, oldest: int) -> None:
        """Remove what dropped segments and crashes left behind."""
        for path in self.folder.iterdir():
            number = path.name.split(".")[0]
            if number == "draft" or (number.isdigit() and int(number) < oldest):
                path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock: SQLite's own, on an empty database, works on every system."""
        with closing(
            sqlite3.connect(self.folder / "lock.sqlite", isolation_level=None, timeout=self._busy_seconds)
        ) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield


def _connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=busy_seconds,
            check_same_thread=False,
        )
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.OperationalError:
        if not path.exists():
            raise FileNotFoundError(f"{path} is gone") from None
        raise
    db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * PAGE_BYTES}")
    return db


def _row_id(partition: int, offset: int) -> int:
    return partition << _OFFSET_BITS | offset


def _name(number: int) -> str:
    return f"{number:012d}.sqlite"


def _size(path: Path) -> int:
    """A file's size; 0 for one that was removed meanwhile, such as a write-ahead log."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut; systems without this need it not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_log(folder: Path, to: Path) -> None:
    """Copy a log's files while they are written, each as it is at one moment; a topic's oldest first.

    What the retention drops meanwhile may be missing at the copy's start, what is appended meanwhile at its end.
    """
    for file in sorted(folder.rglob("*.sqlite")):
        copy = to / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(_connect(file, 10.0)) as there, closing(sqlite3.connect(copy)) as here:
                there.backup(here)
        except FileNotFoundError:  # dropped
            copy.unlink(missing_ok=True)
