"""One reader of the log's updates for all clients of this process, and what it read lately.

Clients have no queues: each has a place in the ring of what was read lately and takes what is newer when its own
connection accepts it. A client that falls out of the ring is told to fetch anew, so that a slow one neither delays the
others nor grows memory.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property

import msgspec
import numpy as np
import structlog

from api.live_events import newest, observations
from citylab.columns import Int64, Observations, decode_update
from citylab.errors import PositionLost, Unavailable
from citylab.model import Batch, Position, Topic
from citylab.ports import EventLog

_TICK_SECONDS = 0.25  # clients without a filter get an event at most this often
_BYTES_A_ROW = 33
_BYTES_AN_ENTRY = 1_000
_LATEST = 1_000  # update ids that are remembered beyond the ring, to drop what comes twice
_THREAD_ROWS = 5_000  # from here on, choosing and writing rows is handed to a thread


class Entry:
    """What one write stored, and when it was read here (monotonic seconds)."""

    def __init__(self, update: int, arrived: float, rows: Observations) -> None:
        self.update = update
        self.arrived = arrived
        self.rows = rows
        self.size = (
            _BYTES_AN_ENTRY + _BYTES_A_ROW * len(rows) + sum(len(text or "") for text in rows.json or ())
        )

    @cached_property
    def _by_datastream(self) -> tuple[Int64, Int64]:
        order = np.argsort(self.rows.datastream, kind="stable")
        return order, self.rows.datastream[order]

    def of(self, datastreams: Int64) -> Int64:
        """The index of the rows of these datastreams (int64, sorted), in the order in which they were stored."""
        order, sorted_ids = self._by_datastream
        starts = np.searchsorted(sorted_ids, datastreams, "left")
        ends = np.searchsorted(sorted_ids, datastreams, "right")
        found = [order[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
        return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)


class Feed:
    """What was newly stored, in the order in which this process read it.

    keep_seconds, keep_bytes: how much of it a resume can go back. `head` is the place after the newest entry;
    `tick` is a `head` of at most a quarter of a second ago, common to all clients without a filter.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        keep_seconds: float = 600.0,
        keep_bytes: int = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._keep_seconds = keep_seconds
        self._keep_bytes = keep_bytes
        self._clock = clock
        self._entries: dict[int, Entry] = {}
        # Update id -> place, and hash of its message, for as long as it is remembered.
        self._places: dict[int, tuple[int, int]] = {}
        self._size = 0
        self._changed = asyncio.Event()
        self._coalesced: dict[int, list[bytes]] = {}  # place -> the events from there to `tick`
        self.watchers = 0  # clients without a filter
        self.head = 0
        self.tick = 0
        self.trouble: str | None = None
        self.closed = False

    async def run(self) -> None:
        """Read until cancelled. A log that goes away is said once, in `trouble`, until it is back."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._tick())

    def close(self) -> None:
        """End every client's stream now."""
        self.closed = True
        self._tell()

    async def changed(self, seconds: float) -> None:
        """Wait for anything new: entries, a tick, trouble, the end; at most so long. Clients look again afterwards."""
        event = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for loses a cancellation that comes with the event
                await event.wait()

    def update_before(self, place: int) -> int | None:
        """The id of the update just before a place, if it is still in the ring."""
        entry = self._entries.get(place - 1)
        return entry.update if entry else None

    def after(self, update: int) -> int | None:
        """The place after an update; None when it is not in the ring (any more)."""
        place, _ = self._places.get(update, (None, 0))
        return place + 1 if place is not None and self.holds(place + 1) else None

    def holds(self, place: int) -> bool:
        """Whether everything from this place on is still here."""
        return place >= self.head - len(self._entries)

    def entries(self, start: int, end: int) -> list[Entry]:
        """What was read from one place to another; `holds(start)`."""
        return [self._entries[place] for place in range(start, end)]

    async def coalesced(self, start: int) -> list[bytes]:
        """The events with the newest row of each datastream from a place, which `holds`, to `tick`."""
        made = self._coalesced.get(start)
        return await _coalesce(self.entries(start, self.tick)) if made is None else made

    def _tell(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _tick(self) -> None:
        while True:
            while self.tick == self.head:
                await self.changed(60.0)
            start, end = self.tick, self.head
            # Those who keep up stand at the last tick: what they get is made here, once for all.
            made = await _coalesce(self.entries(start, end)) if self.watchers and self.holds(start) else None
            self.tick = end
            self._coalesced = {} if made is None else {start: made}
            self._tell()
            await asyncio.sleep(_TICK_SECONDS)

    async def _read(self) -> None:
        places: dict[int, Position] | None = None
        while True:
            try:
                if places is None:
                    places = dict(await self._log.tail(Topic.UPDATES))
                    self._well()
                async for batch in self._log.read(Topic.UPDATES, places):
                    places[batch.partition] = batch.after
                    self._well()
                    self._take(batch)
            except Unavailable as error:
                self._unwell(str(error))
                await asyncio.sleep(error.retry_after)
                if places is not None:
                    # Reading says nothing until something is written, so ask for a sign of life.
                    places = await self._back(places)
            except PositionLost as error:
                structlog.get_logger().warning(
                    "live: the log is another one; starting at its end", why=str(error)
                )
                self._forget()
                places = None

    async def _back(self, places: dict[int, Position]) -> dict[int, Position]:
        while True:
            try:
                await self._log.ends(Topic.UPDATES)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after)
            else:
                self._well()
                return places

    def _take(self, batch: Batch) -> None:
        for event in batch.events:
            try:
                update = decode_update(event.value)
                rows, _ = update.rows()
            except (msgspec.DecodeError, ValueError) as error:
                structlog.get_logger().warning("live: an update that cannot be read", why=str(error))
                continue
            if not len(rows):
                continue
            _, known = self._places.get(update.id, (0, None))
            message = hash(event.value)
            if message == known:
                continue  # appended again after a restart, as the contracts allow
            if known is not None:
                structlog.get_logger().warning("live: the store lost the end of what it had; starting anew")
                self._forget()
            entry = Entry(update.id, self._clock(), rows)
            self._entries[self.head] = entry
            self._places[update.id] = self.head, message
            self._size += entry.size
            self.head += 1
        self._trim()
        self._tell()

    def _trim(self) -> None:
        oldest_time = self._clock() - self._keep_seconds
        while self._entries:
            place = self.head - len(self._entries)
            entry = self._entries[place]
            if self._size <= self._keep_bytes and entry.arrived >= oldest_time:
                break
            del self._entries[place]
            self._size -= entry.size
        while len(self._places) > len(self._entries) + _LATEST:
            del self._places[next(iter(self._places))]

    def _forget(self) -> None:
        """Leave the ring empty behind a hole, so that every client is told to fetch anew."""
        self._entries.clear()
        self._places.clear()
        self._size = 0
        self.head += 1
        self._tell()

    def _unwell(self, why: str) -> None:
        if self.trouble is None:
            structlog.get_logger().warning("live: waiting for the event log", why=why)
            self.trouble = why
            self._tell()

    def _well(self) -> None:
        if self.trouble is not None:
            structlog.get_logger().info("live: the event log is back")
            self.trouble = None
            self._tell()


async def _coalesce(entries: Sequence[Entry]) -> list[bytes]:
    many = sum(len(entry.rows) for entry in entries) > _THREAD_ROWS
    return await asyncio.to_thread(_newest_of, entries) if many else _newest_of(entries)


def _newest_of(entries: Sequence[Entry]) -> list[bytes]:
    rows = Observations.joined([entry.rows for entry in entries])
    return observations(rows.take(newest(rows)), entries[-1].update)
