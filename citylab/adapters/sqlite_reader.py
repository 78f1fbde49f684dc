"""Reading one topic of the embedded log: its partitions in turn, across segments, from any position."""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from citylab.adapters.log_places import check, position_after
from citylab.adapters.sqlite_segments import Segment, TopicFiles, decode
from citylab.errors import PositionLost
from citylab.model import Batch, Event, Position, Topic
from citylab.ports import START


@dataclass(slots=True)
class _Cursor:
    """Where reading stands in a partition: the last position handed out, and a row of which a part is left."""

    partition: int
    position: Position
    segment: int
    row: list[Event] = field(default_factory=list)
    taken: int = 0
    left_bytes: int = 0  # at most what the values of the row's rest have

    def left(self) -> int:
        return len(self.row) - self.taken


class Reader:
    """Reads batches. Blocks; may be closed by another thread, after the batch that is being read.

    Each batch takes a few reads of one row: no read transaction is open in between, so that nothing holds up a
    writer's checkpoint or the retention. Raises what `TopicFiles` raises, and `PositionLost`.
    """

    def __init__(self, files: TopicFiles, topic: Topic, start: Mapping[int, Position]) -> None:
        self._files = files
        self._topic = topic
        self._start = start
        self._cursors: deque[_Cursor] | None = None
        self._open: dict[int, Segment] = {}
        self._closed = False
        self._lock = threading.Lock()

    def next(self, most: int, most_bytes: int) -> Batch | None:
        """The next batch of the partition whose turn it is, or None when there is nothing to read now."""
        with self._lock:
            if self._closed:
                return None
            if self._cursors is None:
                self._cursors = self._find_starts()
            for _ in range(len(self._cursors)):
                self._cursors.rotate(-1)
                if batch := self._batch(self._cursors[-1], most, most_bytes):
                    return batch
            return None

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._closed = True
            while self._open:
                self._open.popitem()[1].close()

    def _batch(self, cursor: _Cursor, most: int, most_bytes: int) -> Batch | None:
        events: list[Event] = []
        room = most_bytes
        while len(events) < most and (cursor.left() or self._load(cursor)):
            count, size = _fitting(cursor, most - len(events), room)
            if not count and not events:
                count, size = 1, len(cursor.row[cursor.taken].value)  # larger than a batch: alone
            if not count:
                break
            events += cursor.row[cursor.taken : cursor.taken + count]
            cursor.taken += count
            cursor.left_bytes -= size
            room -= size
        if not events:
            return None
        before, cursor.position = cursor.position, position_after(events[-1])
        return Batch(self._topic, cursor.partition, before, events, cursor.position)

    def _load(self, cursor: _Cursor) -> bool:
        """Read the row that follows what the cursor has handed out or holds; False when there is none yet."""
        following = cursor.row[-1].offset + 1 if cursor.row else cursor.position.offset
        while True:
            segment = self._segment(cursor.segment)
            over = (
                segment.sealed_at() is not None or not segment.path.exists()
            )  # asked first: then the row is final
            packed = segment.row(cursor.partition, following)
            if packed is not None:
                cursor.row, cursor.taken = decode(cursor.partition, following, packed), 0
                cursor.left_bytes = len(packed)
                return True
            if not over or not self._move_on(cursor, following):
                return False

    def _move_on(self, cursor: _Cursor, following: int) -> bool:
        """Let the cursor stand in the next segment; False when that is not there yet."""
        later = [number for number in self._files.numbers() if number > cursor.segment]
        if not later:
            return False
        begins = self._segment(later[0]).begins[cursor.partition].offset
        if begins != following:
            why = f"the retention removed the events from {following} to {begins - 1} before they were read"
            raise PositionLost(self._topic, cursor.partition, why)
        cursor.segment = later[0]
        self._close_unused(self._cursors or ())
        return True

    def _segment(self, number: int) -> Segment:
        if number not in self._open:
            self._open[number] = self._files.open(number)
        return self._open[number]

    def _close_unused(self, cursors: Iterable[_Cursor]) -> None:
        used = {cursor.segment for cursor in cursors}
        for number in [number for number in self._open if number not in used]:
            self._open.pop(number).close()

    def _find_starts(self) -> deque[_Cursor]:
        while True:
            numbers = self._files.numbers()
            try:
                cursors = deque(self._find(numbers, partition, at) for partition, at in self._start.items())
            except FileNotFoundError:  # dropped in between
                if numbers == self._files.numbers():
                    raise
                continue
            self._close_unused(cursors)
            return cursors

    def _find(self, numbers: list[int], partition: int, at: Position) -> _Cursor:
        """Find the segment that holds a position, and check its fingerprint."""
        begins = self._segment(numbers[0]).begins
        if partition not in begins:
            raise PositionLost(self._topic, partition, f"the topic has the partitions {sorted(begins)} only")
        oldest = begins[partition]
        if at == START:
            return _Cursor(partition, oldest, numbers[0])
        if at.offset < oldest.offset:
            why = f"the log starts at offset {oldest.offset} now: the retention removed those from {at.offset} on"
            raise PositionLost(self._topic, partition, why)
        place = bisect_right(
            numbers, at.offset, key=lambda number: self._segment(number).begins[partition].offset
        )
        segment = self._segment(numbers[place - 1])
        cursor = _Cursor(partition, at, segment.number)
        here = segment.begins[partition]
        if at.offset > here.offset:
            cursor.row = segment.row_around(partition, at.offset - 1)
            cursor.taken = at.offset - cursor.row[0].offset if cursor.row else 0
            if not cursor.row or cursor.left() < 0:
                end = cursor.row[-1].offset + 1 if cursor.row else here.offset
                raise PositionLost(
                    self._topic, partition, f"the log ends at offset {end}, before {at.offset}"
                )
            cursor.left_bytes = sum(len(event.value) for event in cursor.row[cursor.taken :])
            here = position_after(cursor.row[cursor.taken - 1])
        check(self._topic, partition, at, here)
        return cursor


def _fitting(cursor: _Cursor, most: int, room: int) -> tuple[int, int]:
    """How many of the row's next events fit into a batch, and the bytes of their values (a whole row's: at most)."""
    left = cursor.left()
    if left <= most and cursor.left_bytes <= room:
        return left, cursor.left_bytes
    count = size = 0
    for event in cursor.row[cursor.taken : cursor.taken + most]:
        if size + len(event.value) > room:
            break
        size += len(event.value)
        count += 1
    return count, size
