"""The service: event log -> columns -> store, from the positions that the store holds."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
import structlog

from citylab.entities import ENTITY_TYPES, EntityTypes
from citylab.errors import PositionLost, Rejected, Unavailable
from citylab.log_watch import LOST
from citylab.model import SECOND, Batch, Micros, NewEvent, Position, Reason, Topic
from citylab.ports import START, EntityWrites, EventLog, Store
from citylab.times import format_instant, now
from citylab.writes import CatalogueChanged, PositionMoved, Saved, Write
from processing import catalogue as catalogues
from processing.announcer import Announcer
from processing.catalogue import EMPTY, Catalogue
from processing.creates import create
from processing.decode import Rules, decode, take_up
from processing.registration import register, status
from processing.rejected import open_rejections, refused
from processing.tasks import send_due

log = structlog.get_logger()


@dataclass(frozen=True)
class Pace:
    """How much a transaction holds: a batch grows while the one before it is written, up to these.

    In seconds, linger: for more packs when there are few; fold_every: between two folds.
    """

    most_events: int = 1_000
    most_bytes: int = 3 << 20
    linger: float = 0.02
    fold_every: float = 1.0


@dataclass
class Figures:
    """What the service says of itself in the store, once a second."""

    stored: int = 0
    duplicates: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)
    newest_at: Micros = 0
    problems: dict[str, str] = field(default_factory=dict)


class Processing:
    """Reads every partition of the packs, and stores them; owns its tasks; drains nothing, because nothing is lost.

    types: the entities that are offered to clients; command_seconds: how long a Task's command waits for its gateway.
    """

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        writes: EntityWrites,
        announcer: Announcer,
        *,
        rules: Rules | None = None,
        pace: Pace | None = None,
        types: EntityTypes = ENTITY_TYPES,
        command_seconds: int = 3_600,
        clock: Callable[[], Micros] = now,
    ) -> None:
        self.store, self.log, self.writes, self.clock = store, event_log, writes, clock
        self.announcer = announcer
        self.rules, self.pace = rules or Rules(), pace or Pace()
        self.types = types
        self.command_lifetime = command_seconds * SECOND
        self.figures = Figures()
        self._catalogue: Catalogue = EMPTY
        self._catalogue_lock = asyncio.Lock()
        self._updates: asyncio.Queue[Sequence[tuple[int, bytes]]] = asyncio.Queue(maxsize=8)
        self._published: list[int] = []
        self._lost: set[str] = set()  # tasks whose position is in no log that we know

    async def run(self) -> None:
        """Process until cancelled. An engine that goes away is waited for, and said once."""
        async with asyncio.TaskGroup() as tasks:
            for name, work in (
                ("packs", self._packs),
                ("registrations", self._registrations),
                ("updates", self._publish),
                ("writes of others", self._listen),
                ("commands", self._send_commands),
                ("hours and days", self._fold),
                ("announcements", self._announce),
                ("figures", self._report),
            ):
                tasks.create_task(self._patiently(name, work), name=name)

    async def _patiently(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run again after an engine went away, with backoff; say it once, and once when it is back."""
        delay = 0.2
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await work()
                return
            except Unavailable as error:
                if not error.retry_after:  # two transactions met: the other is done, so now it is our turn
                    continue
                if asyncio.get_running_loop().time() - began > 30:
                    delay = 0.2
                if name not in self.figures.problems:
                    log.warning("waiting for an engine", task=name, engine=error.engine, why=str(error))
                self.figures.problems[name] = str(error)
                delay = min(max(delay * 2, error.retry_after), 5.0)
            except PositionLost as error:
                if name not in self._lost:
                    log.error(
                        "stopped: another log, or what was not read yet is gone", task=name, why=str(error)
                    )
                self._lost.add(name)
                self.figures.problems[name] = str(error)
                delay = 60.0
            await asyncio.sleep(delay)

    def _well(self, name: str) -> None:
        self._lost.discard(name)
        if self.figures.problems.pop(name, None):
            log.info("going on", task=name)

    async def _positions(self, topic: Topic, name: str) -> dict[int, Position]:
        """Where to read a topic on. That log and store answer ends a problem, also where nothing is to be read."""
        stored = await self.store.positions(topic)
        await self.log.ends(topic)
        if name not in self._lost:
            self._well(name)
        return {p: stored.get(p, START) for p in await self.log.partitions(topic)}

    # -- packs -------------------------------------------------------------------------------------------------------

    async def _packs(self) -> None:
        """Read, decode and save, each while the others are at work on their batch."""
        while True:
            try:
                await self._pack_pipeline()
            except* PositionMoved as moved:
                log.info("positions moved; reading on from there", why=str(moved.exceptions[0]))
            except* Unavailable as away:
                raise away.exceptions[0] from away
            except* PositionLost as lost:
                raise lost.exceptions[0] from lost

    async def _pack_pipeline(self) -> None:
        start = await self._positions(Topic.PACKS, "packs")
        read: asyncio.Queue[Batch] = asyncio.Queue(maxsize=4 * len(start))
        decoded: asyncio.Queue[tuple[list[Batch], Write]] = asyncio.Queue(maxsize=1)
        await self._load()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(start, read))
            tasks.create_task(self._decode(read, decoded))
            tasks.create_task(self._save(decoded))

    async def _read(self, start: Mapping[int, Position], read: asyncio.Queue[Batch]) -> None:
        most = self.pace.most_events
        batches = self.log.read(Topic.PACKS, start, most=most, most_bytes=self.pace.most_bytes)
        async for batch in self._from_stored(batches, start):
            await read.put(batch)

    async def _decode(
        self, read: asyncio.Queue[Batch], decoded: asyncio.Queue[tuple[list[Batch], Write]]
    ) -> None:
        while True:
            batches = [await read.get()]
            if _events(batches) < self.pace.most_events // 4:
                await asyncio.sleep(self.pace.linger)
            while not read.empty() and _events(batches) < self.pace.most_events:
                batches.append(read.get_nowait())
            write = await asyncio.to_thread(decode, batches, self._catalogue, self.rules)
            if any(rejection.reason == Reason.UNKNOWN_STREAM for rejection in write.rejections):
                await self._await_descriptors()  # saving notices a changed catalogue, and decodes again
            await decoded.put((batches, write))

    async def _await_descriptors(self) -> None:
        """Wait until the descriptors that the log has are registered: the stream may be in there.

        Else a backlog, in which packs are read beside their descriptors, would become rejections beyond their quota. What
        the log holds now is the end of the wait, and only descriptors whose place in the log is lost are not waited for.
        """
        ends = {p: end for p, end in (await self.log.ends(Topic.DESCRIPTORS)).items() if end}
        while Topic.DESCRIPTORS not in self._lost:
            stored = await self.store.positions(Topic.DESCRIPTORS)
            if all(p in stored and stored[p].offset >= end for p, end in ends.items()):
                return
            await asyncio.sleep(0.05)

    async def _save(self, decoded: asyncio.Queue[tuple[list[Batch], Write]]) -> None:
        while True:
            batches, write = await decoded.get()
            try:
                await self._store(write, partial(decode, batches))
            except Rejected as error:
                refused = await self._refused_by_store(batches)
                log.error(
                    "the store refused packs that seemed sound", packs=len(refused), why=str(error.__cause__)
                )
                again = partial(decode, batches, refused=refused)
                await self._store(await asyncio.to_thread(again, self._catalogue, self.rules), again)
            self.figures.newest_at = max((b.events[-1].time for b in batches if b.events), default=0)
            self._well("packs")

    async def _refused_by_store(self, batches: Sequence[Batch]) -> set[tuple[int, int]]:
        """Partition and offset of the packs that the store does not take, each tried by itself and rolled back.

        So that a value which nobody foresaw costs one pack, and never stops the others.
        """
        refused = set()
        for batch in batches:
            for event in batch.events:
                write = decode([batch._replace(events=[event])], self._catalogue, self.rules)
                try:
                    async with self.store.transaction() as transaction:
                        await transaction.save(replace(write, spans=(), catalogue_version=None))
                        raise _Tried
                except _Tried:
                    pass
                except Rejected:
                    refused.add((batch.partition, event.offset))
        return refused

    async def _store(self, write: Write, again: Callable[[Catalogue, Rules], Write]) -> Saved:
        """Save a write, made again from the newest catalogue as often as that changes."""
        while True:
            published, self._published = self._published, []
            try:
                saved = await self.store.save(replace(write, published=published))
            except CatalogueChanged:
                self._published = published + self._published
                await self._load()
                write = await asyncio.to_thread(again, self._catalogue, self.rules)
                continue
            except BaseException:
                self._published = published + self._published
                raise
            self.figures.stored += saved.stored
            self.figures.duplicates += saved.duplicates
            self.figures.rejected += saved.rejected
            if saved.updates:
                await self._updates.put(saved.updates)
            return saved

    async def _load(self) -> None:
        """Load the newest catalogue, and take up what was rejected for want of a stream that it has now."""
        async with self._catalogue_lock:
            self._catalogue = await catalogues.load(self.store)

    async def _take_up(self) -> None:
        while rejections := await open_rejections(self.store):
            try:
                await self._store(
                    take_up(rejections, self._catalogue, self.rules),
                    partial(take_up, rejections),
                )
            except PositionMoved:
                continue  # another worker has taken them up
            log.info("took up rejected records", records=len(rejections))

    async def _from_stored(
        self, batches: AsyncIterator[Batch], start: Mapping[int, Position]
    ) -> AsyncIterator[Batch]:
        """The batches, each partition's first one beginning where the store stands, so that the fence compares like with like.

        Without a stored position the log's start is meant; if that is above 0, what was there before is gone, and is said.
        """
        begun: set[int] = set()
        async for batch in batches:
            if batch.partition in begun:
                yield batch
                continue
            begun.add(batch.partition)
            if start[batch.partition] == START and batch.before.offset:
                log.error(
                    "the event log begins late: what came before was dropped by its retention, unread",
                    topic=batch.topic, partition=batch.partition, first_offset=batch.before.offset,
                )  # fmt: skip
                await self._keep_lost(batch)
            yield batch._replace(before=start[batch.partition])

    async def _keep_lost(self, batch: Batch) -> None:
        """Keep what went unread, for /health, until an operator has taken note."""
        why = f"the log began at offset {batch.before.offset} when processing first read it"
        lost = msgspec.json.encode({f"{batch.topic}/{batch.partition}": why}).decode()
        async with self.store.transaction() as transaction:
            await transaction.execute(
                "INSERT INTO services VALUES (%s, %s::jsonb, %s) ON CONFLICT (name)"
                " DO UPDATE SET state = services.state || excluded.state, at = excluded.at",
                (LOST, lost, format_instant(self.clock())),
            )

    # -- registrations -----------------------------------------------------------------------------------------------

    async def _registrations(self) -> None:
        """Descriptors, statuses, MQTT creates and refused packs: few, one batch after the other."""
        async with asyncio.TaskGroup() as tasks:
            for topic in (Topic.DESCRIPTORS, Topic.STATUS, Topic.CREATES, Topic.REFUSED):
                tasks.create_task(self._patiently(topic, partial(self._slow_topic, topic)))

    async def _slow_topic(self, topic: Topic) -> None:
        start = await self._positions(topic, topic)
        most = 500 if topic == Topic.CREATES else 100
        try:
            async for batch in self._from_stored(self.log.read(topic, start, most=most), start):
                if topic == Topic.DESCRIPTORS:
                    await register(self.store, batch)
                elif topic == Topic.STATUS:
                    await status(self.store, batch)
                elif topic == Topic.CREATES:
                    await create(self.store, self.writes, batch, self.types)
                else:
                    await self._store(
                        _refused(batch, self._catalogue, self.rules),
                        partial(_refused, batch),
                    )
                self._well(topic)
        except PositionMoved as moved:
            log.info("positions moved; reading on from there", topic=topic, why=str(moved))

    # -- what follows from a write -----------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Append update messages to the log once their write is committed; what is left of a former run first."""
        await self._publish_left(every_source=True)
        self._well("updates")
        while True:
            updates = await self._updates.get()
            await self._append_updates(updates)
            self._published += [update_id for update_id, _ in updates]
            self._well("updates")

    async def _append_updates(self, updates: Sequence[tuple[int, bytes]]) -> None:
        moment = self.clock()
        await self.log.append(
            Topic.UPDATES,
            [NewEvent("processing", message, {"update": str(i)}, moment) for i, message in updates],
        )

    async def _publish_left(self, *, every_source: bool) -> None:
        while True:
            async with self.store.transaction() as transaction:
                rows = await transaction.fetch(
                    "SELECT id, message FROM pending_updates WHERE %s OR source = 'api'"
                    " ORDER BY id LIMIT 20 FOR UPDATE SKIP LOCKED",
                    (every_source,),
                )
                if not rows:
                    return
                await self._append_updates([(i, bytes(message)) for i, message in rows])
                await transaction.execute(
                    "DELETE FROM pending_updates WHERE id = ANY(%s)", ([i for i, _ in rows],)
                )

    async def _listen(self) -> None:
        """Other writers' doings: observations that came through the API, and changes of the catalogue."""
        async for _ in self.store.notifications("citylab_updates", "citylab_catalogue"):
            await self._publish_left(every_source=False)
            async with self.store.transaction(read_only=True) as transaction:
                ((version,),) = await transaction.fetch("SELECT version FROM catalogue")
            if version != self._catalogue.version:
                await self._load()
            await self._take_up()
            self._well("writes of others")

    async def _send_commands(self) -> None:
        """Tasks that became commands, once they are committed, and again when their gateway is back."""
        async for _ in self.store.notifications("citylab_commands"):
            await send_due(self.store, self.log, now=self.clock(), lifetime=self.command_lifetime)
            self._well("commands")

    async def _announce(self) -> None:
        await self.announcer.run(partial(self._well, "announcements"))

    async def _fold(self) -> None:
        while True:
            if not await self.store.fold():
                await asyncio.sleep(self.pace.fold_every)
            self._well("hours and days")

    # -- figures -----------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Write what this service does into the store, once a second, for /health and the status line."""
        before, since = 0, asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(1)
            moment = asyncio.get_running_loop().time()
            figures = self.figures
            waiting = await self._waiting()
            state = {
                "observations_per_second": round((figures.stored - before) / (moment - since), 1),
                "stored": figures.stored,
                "duplicates": figures.duplicates,
                "rejected": figures.rejected,
                "announcements": self.announcer.messages,
                "not_announced": self.announcer.left_out,
                "waiting_events": waiting,
                "lag_seconds": round(max(self.clock() - figures.newest_at, 0) / SECOND, 3)
                if waiting
                else 0.0,
                "problems": figures.problems,
            }
            before, since = figures.stored, moment
            async with self.store.transaction() as transaction:
                await transaction.execute(
                    "INSERT INTO services VALUES ('processing', %s::jsonb, %s) ON CONFLICT (name)"
                    " DO UPDATE SET state = excluded.state, at = excluded.at",
                    (msgspec.json.encode(state).decode(), format_instant(self.clock())),
                )
            self._well("figures")

    async def _waiting(self) -> int:
        """How many packs the log holds that are not stored yet."""
        ends = await self.log.ends(Topic.PACKS)
        positions = await self.store.positions(Topic.PACKS)
        return sum(max(end - (positions[p].offset if p in positions else 0), 0) for p, end in ends.items())


class _Tried(Exception):
    """Rolls a trial back."""


def _events(batches: Sequence[Batch]) -> int:
    return sum(len(batch.events) for batch in batches)


def _refused(batch: Batch, _catalogue: Catalogue, _rules: Rules) -> Write:
    return refused(batch)
