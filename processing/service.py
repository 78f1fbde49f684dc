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
from citylab.writes import CATALOGUE_VERSION, CatalogueChanged, PositionMoved, Saved, Write
from processing import catalogue as catalogues
from processing.announcer import Announcer
from processing.catalogue import EMPTY, Catalogue
from processing.creates import create
from processing.decode import Rules, decode, take_up
from processing.reached import LOOK_EVERY as LOOK_BACK_EVERY
from processing.reached import Reached
from processing.registration import register, status
from processing.rejected import Replay, keep_waiting_no_longer, next_replay, open_rejections, refused
from processing.resend import LOOK_EVERY, ask_again
from processing.tasks import send_due
from processing.workers import ALL, Share, Workers, run_until_one_fails

log = structlog.get_logger()

_SLOW_TOPICS = (Topic.DESCRIPTORS, Topic.STATUS, Topic.CREATES, Topic.REFUSED)


@dataclass(frozen=True)
class Pace:
    """How much a transaction holds: a batch grows while the one before it is written, up to these.

    In seconds, linger: for more packs when there are few; fold_every: between two folds; descriptors_within: how long packs
    of unknown streams wait for descriptors of which none is registered.
    """

    most_events: int = 1_000
    most_bytes: int = 3 << 20
    linger: float = 0.02
    fold_every: float = 1.0
    descriptors_within: float = 10.0


@dataclass
class Figures:
    """What the service says of itself in the store, once a second."""

    stored: int = 0
    duplicates: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)
    newest_at: Micros = 0
    waiting: int = 0
    problems: dict[str, str] = field(default_factory=dict)


class Processing:
    """Reads its share of the packs' partitions, and stores them; owns its tasks; drains nothing, because nothing is lost.

    Several share the work (`processing.workers`): the first of them does what one alone does.
    types: the entities that are offered to clients; command_seconds: how long a Task's command waits for its gateway.
    """

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        writes: EntityWrites,
        announcer: Announcer,
        *,
        workers: Workers | None = None,
        rules: Rules | None = None,
        pace: Pace | None = None,
        types: EntityTypes = ENTITY_TYPES,
        command_seconds: int = 3_600,
        clock: Callable[[], Micros] = now,
    ) -> None:
        self.store, self.log, self.writes, self.clock = store, event_log, writes, clock
        self.announcer = announcer
        self.workers = workers or Workers(store)
        self.rules, self.pace = rules or Rules(), pace or Pace()
        self.types = types
        self.command_lifetime = command_seconds * SECOND
        self.figures = Figures(newest_at=clock())  # what waits before something is stored waits since now
        self._catalogue: Catalogue = EMPTY
        self._catalogue_lock = asyncio.Lock()
        self._updates: asyncio.Queue[Sequence[tuple[int, bytes]]] = asyncio.Queue(maxsize=8)
        self._published: list[int] = []
        # Where the registration of descriptors did not get on.
        self._stuck_at: Mapping[int, Position] | None = None
        self._lost: set[str] = set()  # tasks whose position is in no log that we know
        self._saving = asyncio.Lock()
        self._reached = Reached(store)

    async def run(self) -> None:
        """Process until cancelled. An engine that goes away is waited for, and said once."""
        of_each: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "workers": lambda: self.workers.follow(partial(self._well, "workers")),
            "packs": self._packs,
            "updates": self._publish,
            "writes of others": self._listen,
            "figures": self._report,
            "waiting packs": self._count_waiting,
            "positions": self._look_back,
        }
        of_one: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            # Descriptors, statuses, MQTT creates and refused packs: few, one batch after the other.
            **{topic: partial(self._slow_topic, topic) for topic in _SLOW_TOPICS},
            "commands": self._send_commands,
            "missing packs": self._ask_again,
            "hours and days": self._fold,
            "announcements": self._announce,
        }
        of_each |= {name: partial(self._as_first, name, work) for name, work in of_one.items()}
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in of_each.items():
                    tasks.create_task(self._patiently(name, work), name=name)
        finally:
            await self.workers.leave()

    async def _as_first(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do what one worker alone does, whenever that is us."""
        while True:
            if not self.workers.is_first:
                self._well(name)  # its problem is another's now
            await self.workers.until(lambda share: share.is_first)
            await self.workers.while_first(work)

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

    async def _positions(self, topic: Topic, name: str, share: Share = ALL) -> dict[int, Position]:
        """Where to read our share of a topic on. Where nothing is to be read, that log and store answer ends a problem."""
        stored = await self.store.positions(topic)
        ends = await self.log.ends(topic)
        start = {p: stored.get(p, START) for p in share.partitions(await self.log.partitions(topic))}
        if name not in self._lost and all(ends[p] <= position.offset for p, position in start.items()):
            self._well(name)
        return start

    # -- packs -------------------------------------------------------------------------------------------------------

    async def _packs(self) -> None:
        """Read, decode and save our share, each while the others are at work on their batch."""
        while True:
            try:
                await self._pack_pipeline()
            except _ShareChanged:
                continue
            except PositionMoved as moved:
                log.info("positions moved; reading on from there", why=str(moved))

    async def _pack_pipeline(self) -> None:
        share = await self.workers.until(lambda _: True)
        if share.is_first:
            # Of a worker that is gone; and of ours, whose ids may be others' updates in a store that failed over.
            self._published = []
            await self._publish_left(every_source=True)
        self._reached.begin(Topic.PACKS)
        start = await self._positions(Topic.PACKS, "packs", share)
        log.info("sharing the packs", partitions=list(start), workers=share.of)
        read: asyncio.Queue[Batch] = asyncio.Queue(maxsize=4 * max(len(start), 1))
        decoded: asyncio.Queue[tuple[list[Batch], Write]] = asyncio.Queue(maxsize=1)
        await self._load()
        await run_until_one_fails(
            self._until_other_share(share),
            self._reached.until_behind(Topic.PACKS),
            *([self._read(start, read)] if start else []),
            self._decode(read, decoded),
            self._save(decoded),
        )

    async def _until_other_share(self, share: Share) -> None:
        """End the pipeline when our share is another, once what is being saved is saved."""
        await self.workers.until(lambda now: now != share)
        async with self._saving:
            raise _ShareChanged

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

        Else a backlog, in which packs are read beside their descriptors, would become rejections beyond their quota. Nobody
        waits for a descriptor on which registration does not get on, nor twice for the same.
        """
        ends = {p: end for p, end in (await self.log.ends(Topic.DESCRIPTORS)).items() if end}
        loop = asyncio.get_running_loop()
        before, since = None, loop.time()
        while True:
            stored = await self.store.positions(Topic.DESCRIPTORS)
            if stored == self._stuck_at or all(
                p in stored and stored[p].offset >= end for p, end in ends.items()
            ):
                return
            if stored != before:
                before, since = stored, loop.time()
            elif loop.time() - since > self.pace.descriptors_within:
                self._stuck_at = stored
            await asyncio.sleep(0.05)

    async def _save(self, decoded: asyncio.Queue[tuple[list[Batch], Write]]) -> None:
        while True:
            batches, write = await decoded.get()
            async with self._saving:
                await self._save_batches(batches, write)
            for batch in batches:
                self._reached.saved(batch)
            self.figures.newest_at = max((b.events[-1].time for b in batches if b.events), default=0)
            self._well("packs")

    async def _save_batches(self, batches: list[Batch], write: Write) -> None:
        try:
            await self._store(write, partial(decode, batches))
        except Rejected as error:
            refused = await self._refused_by_store(batches)
            log.error(
                "the store refused packs that seemed sound", packs=len(refused), why=str(error.__cause__)
            )
            again = partial(decode, batches, refused=refused)
            await self._store(await asyncio.to_thread(again, self._catalogue, self.rules), again)

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
        while replay := await next_replay(self.store):
            await self._replay(replay)

    async def _replay(self, replay: Replay) -> None:
        """Take up what somebody asked for; what the store refuses, though nothing here is against it, stays rejected."""
        try:
            again = partial(replay.write, now=self.clock())
            saved = await self._store(again(self._catalogue, self.rules), again)
        except PositionMoved:
            return  # another worker has taken them up
        except Rejected as error:
            parts = replay.singly()
            if len(parts) == 1:
                await keep_waiting_no_longer(self.store, replay, error.detail)
                return
            for part in parts:
                await self._replay(part)
            return
        log.info(
            "took up rejections that were asked for", stored=saved.stored, rejected=saved.rejected.total()
        )

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

    async def _slow_topic(self, topic: Topic) -> None:
        self._reached.begin(topic)
        try:
            await run_until_one_fails(self._read_slowly(topic), self._reached.until_behind(topic))
        except PositionMoved as moved:
            log.info("positions moved; reading on from there", topic=topic, why=str(moved))

    async def _read_slowly(self, topic: Topic) -> None:
        start = await self._positions(topic, topic)
        most = 500 if topic == Topic.CREATES else 100
        async for batch in self._from_stored(self.log.read(topic, start, most=most), start):
            if topic == Topic.DESCRIPTORS:
                await register(self.store, batch)
            elif topic == Topic.STATUS:
                await status(self.store, batch, await self.log.ends(Topic.PACKS))
            elif topic == Topic.CREATES:
                await create(self.store, self.writes, batch, self.types)
            else:
                await self._store(
                    _refused(batch, self._catalogue, self.rules),
                    partial(_refused, batch),
                )
            self._reached.saved(batch)
            self._well(topic)

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
        async for _ in self.store.notifications("citylab_updates", "citylab_catalogue", "citylab_replays"):
            if self.workers.is_first:
                await self._publish_left(every_source=False)
            async with self.store.transaction(read_only=True) as transaction:
                ((version,),) = await transaction.fetch(CATALOGUE_VERSION)
            if version != self._catalogue.version:
                await self._load()
            if self.workers.is_first:
                await self._take_up()
            self._well("writes of others")

    async def _send_commands(self) -> None:
        """Tasks that became commands, once they are committed, and again when their gateway is back."""
        async for _ in self.store.notifications("citylab_commands"):
            await send_due(self.store, self.log, now=self.clock(), lifetime=self.command_lifetime)
            self._well("commands")

    async def _ask_again(self) -> None:
        """Ask gateways for what the ledger misses."""
        while True:
            if asked := await ask_again(self.store, self.log, now=self.clock()):
                log.info("asked for missing packs", gateways=asked)
            self._well("missing packs")
            await asyncio.sleep(LOOK_EVERY)

    async def _announce(self) -> None:
        await self.announcer.run(partial(self._well, "announcements"))

    async def _fold(self) -> None:
        while True:
            if not await self.store.fold():
                await asyncio.sleep(self.pace.fold_every)
            self._well("hours and days")

    # -- figures -----------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Write what this worker does into the store, once a second, for /health and the status line."""
        before, since = 0, asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(1)
            moment = asyncio.get_running_loop().time()
            figures = self.figures
            state = {
                "clock": self.clock() / SECOND,
                "observations_per_second": round((figures.stored - before) / (moment - since), 1),
                "stored": figures.stored,
                "duplicates": figures.duplicates,
                "rejected": figures.rejected,
                "announcements": self.announcer.messages,
                "not_announced": self.announcer.left_out,
                "waiting_events": figures.waiting,
                "lag_seconds": round(max(self.clock() - figures.newest_at, 0) / SECOND, 3)
                if figures.waiting
                else 0.0,
                "problems": figures.problems,
            }
            before, since = figures.stored, moment
            async with self.store.transaction() as transaction:
                await transaction.execute(
                    "INSERT INTO services VALUES (%s, %s::jsonb, now()) ON CONFLICT (name)"
                    " DO UPDATE SET state = excluded.state, at = excluded.at",
                    (self.workers.service, msgspec.json.encode(state).decode()),
                )
            self._well("figures")

    async def _look_back(self) -> None:
        while True:
            await self._reached.watch()
            self._well("positions")
            await asyncio.sleep(LOOK_BACK_EVERY)

    async def _count_waiting(self) -> None:
        """How many packs of our share the log holds that are not stored yet; apart, for we report while the log is away."""
        while True:
            share = await self.workers.until(lambda _: True)
            ends = await self.log.ends(Topic.PACKS)
            positions = await self.store.positions(Topic.PACKS)
            offsets = {p: positions[p].offset if p in positions else 0 for p in share.partitions(ends)}
            self.figures.waiting = sum(max(ends[p] - offset, 0) for p, offset in offsets.items())
            self._well("waiting packs")
            await asyncio.sleep(1)


class _ShareChanged(Exception):
    """Other partitions are ours now."""


class _Tried(Exception):
    """Rolls a trial back."""


def _events(batches: Sequence[Batch]) -> int:
    return sum(len(batch.events) for batch in batches)


def _refused(batch: Batch, _catalogue: Catalogue, _rules: Rules) -> Write:
    return refused(batch)
