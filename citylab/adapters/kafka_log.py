"""The event log on Apache Kafka (`kafka://host:port[,host:port]/prefix`), through aiokafka.

Partitions are assigned by hand: a reader says where it starts, and consumer groups only keep positions, whose
fingerprints travel in the commit's metadata.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import Self
from urllib.parse import urlsplit

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from citylab.adapters.kafka_admin import alter_topics, bytes_on_disk
from citylab.adapters.kafka_appends import TIME_HEADER, Appends
from citylab.adapters.log_places import LARGEST_VALUE, by_partition, check, position_after
from citylab.adapters.log_topics import RETENTION, Retention, partitions_of
from citylab.errors import ConfigurationError, PositionLost, Unavailable
from citylab.model import Batch, Event, Kept, Micros, NewEvent, Position, Topic
from citylab.ports import START

log = structlog.get_logger()

PATIENCE = 10.0  # s until Kafka counts as unavailable
_BATCH_BYTES = 1 << 20
_FETCH_BYTES = 2 << 20  # of a partition, ahead of the reader
_FETCH_WAIT = 100  # ms; while one fetch waits for news, partitions read meanwhile are not asked


class KafkaLog:
    """`ports.EventLog` on Kafka.

    url: `kafka://host:port[,host:port]/prefix`; the prefix stands for `citylab` in the topics' names, so that
    several cities share a cluster. partitions: of packs, when the topic is made; an existing topic keeps its own. retention: is
    set on existing topics too, where it differs, unless this one only looks.
    compression: of batches: lz4 costs less than the bytes it saves (a pack of 2.5 KB in JSON: 7 us of CPU instead
    of 8 to append, 6 instead of 9 to read); zstd, gzip, snappy or None. patience: seconds without an answer after
    which Kafka counts as unavailable.
    """

    def __init__(
        self,
        url: str,
        *,
        partitions: int = 4,
        retention: Mapping[Topic, Retention] = RETENTION,
        only_looks: bool = False,
        compression: str | None = "lz4",
        patience: float = PATIENCE,
    ) -> None:
        self._servers, self._prefix = _parse(url)
        self._of_packs = partitions
        self._retention = retention
        self._only_looks = only_looks
        self._compression = compression
        self._patience = patience
        self._partitions: dict[Topic, Sequence[int]] = {}
        self._appends = Appends(self._start_producer, patience=patience)
        self._consumers: dict[str | None, AIOKafkaConsumer] = {}  # for questions; by group
        self._opening = asyncio.Lock()
        _hush()

    async def __aenter__(self) -> Self:
        """Connect, make the topics that are missing, and set the retention of all."""
        async with self._administering() as admin:
            await self._make_topics(admin)
            if not self._only_looks:
                await self._set_retention(admin)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Deliver what was accepted, within the patience, and disconnect."""
        await self._appends.close()
        for consumer in list(self._consumers.values()):
            await _stop(consumer)
        self._consumers.clear()

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        """See `ports.EventLog`: in sync with all replicas that Kafka asks for, once each even if Kafka stumbles."""
        if not events:
            return
        lanes = by_partition(events, len(self._partitions[topic]))
        name = self._name(topic)
        try:
            await self._appends.append({TopicPartition(name, at): lane for at, lane in lanes.items()})
        except (KafkaError, OSError) as error:
            raise self._unavailable(error) from error

    async def partitions(self, topic: Topic) -> Sequence[int]:
        """See `ports.EventLog`."""
        return self._partitions[topic]

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """See `ports.EventLog`."""
        async with self._asking() as consumer:
            found = await consumer.end_offsets(self._places(topic))
        return {place.partition: offset for place, offset in found.items()}

    async def tail(self, topic: Topic) -> Mapping[int, Position]:
        """See `ports.EventLog`. The fingerprint is empty where no event is left."""
        begins, ends = await self._span(self._places(topic))
        last = await self._events_at({place: end - 1 for place, end in ends.items() if end > begins[place]})
        return {
            place.partition: position_after(last[place]) if place in last else Position(end, b"")
            for place, end in ends.items()
        }

    async def read(
        self, topic: Topic, start: Mapping[int, Position], *, most: int = 1_000, most_bytes: int = 4 << 20
    ) -> AsyncGenerator[Batch]:
        """See `ports.EventLog`. What Kafka fetches of a partition at once is handed out before the next one's."""
        at = await self._starts(topic, start)
        with self._translating(topic):
            consumer = await self._start_consumer()
        try:
            with self._translating(topic):
                consumer.assign(list(at))
                for place, position in at.items():
                    consumer.seek(place, position.offset)
            while True:
                with self._translating(topic):
                    fetched = await self._fetched(consumer, list(at), most)
                for place, records in fetched.items():
                    for events in _portions([_event(record) for record in records], most_bytes):
                        before, at[place] = at[place], position_after(events[-1])
                        yield Batch(topic, place.partition, before, events, at[place])
        finally:
            await _stop(consumer)

    async def kept(
        self, readers: Mapping[Topic, Mapping[int, Position]], *, now: Micros
    ) -> Mapping[Topic, Kept]:
        """See `ports.EventLog`. What is unread counts by its part of the partition's events."""
        while True:
            with suppress(PositionLost):  # the retention removed it in between
                return await self._kept(readers, now)

    async def _kept(
        self, readers: Mapping[Topic, Mapping[int, Position]], now: Micros
    ) -> Mapping[Topic, Kept]:
        places = {place: topic for topic in Topic for place in self._places(topic)}
        begins, ends = await self._span(list(places))
        async with self._administering() as admin:
            sizes = await bytes_on_disk(admin, places)
        filled = {place: begin for place, begin in begins.items() if begin < ends[place]}
        unread = {
            place: max(readers[topic][place.partition].offset, filled[place])
            if place.partition in readers[topic]
            else filled[place]
            for place, topic in places.items()
            if topic in readers and place in filled
        }
        unread = {place: offset for place, offset in unread.items() if offset < ends[place]}
        first, next_ones = await self._events_at(filled), await self._events_at(unread)
        found = {}
        for topic in Topic:
            own = self._places(topic)
            keep, behind, lost = self._retention[topic], 0.0, 0
            for place in own:
                if place in next_ones:
                    part = (ends[place] - unread[place]) / (ends[place] - begins[place])
                    share = part * sizes.get(place, 0) / (keep.most_bytes / len(own))
                    behind = max(behind, share, (now - next_ones[place].time) / keep.most_age)
                # Kafka forgets a place that was not committed for long: where nothing is left to read, it is none.
                if topic in readers and (place.partition in readers[topic] or place in filled):
                    at = readers[topic].get(place.partition, START)
                    lost += max(begins[place] - at.offset, 0)
            oldest = min((first[place].time for place in own if place in first), default=None)
            found[topic] = Kept(sum(sizes.get(place, 0) for place in own), oldest, behind, lost)
        return found

    async def committed(self, group: str, topic: Topic) -> Mapping[int, Position]:
        """See `ports.EventLog`."""
        async with self._asking(group) as consumer:
            found = await consumer._coordinator.fetch_committed_offsets(
                self._places(topic)
            )  # with its metadata
        return {
            place.partition: Position(kept.offset, bytes.fromhex(kept.metadata))
            for place, kept in found.items()
            if kept.offset >= 0
        }

    async def commit(self, group: str, topic: Topic, positions: Mapping[int, Position]) -> None:
        """See `ports.EventLog`."""
        name = self._name(topic)
        offsets = {
            TopicPartition(name, partition): (offset, mark.hex())
            for partition, (offset, mark) in positions.items()
        }
        async with self._asking(group) as consumer:
            assigned = consumer.assignment()
            if not assigned.issuperset(
                offsets
            ):  # aiokafka commits only what is assigned; nothing is to be fetched
                places = assigned | offsets.keys()
                consumer.assign(places)
                for place in places:
                    consumer.seek(place, 0)
                consumer.pause(*places)
            await consumer.commit(offsets)

    async def _make_topics(self, admin: AIOKafkaAdminClient) -> None:
        """Make the missing topics; return when every partition has a leader, and know them all."""
        brokers = len((await admin.describe_cluster())["brokers"])
        for attempt in count():
            known = {found["topic"]: found["partitions"] for found in await admin.describe_topics()}
            parts = {topic: known.get(self._name(topic), []) for topic in Topic}
            if all(found and all(part["leader"] >= 0 for part in found) for found in parts.values()):
                self._partitions = {
                    topic: sorted(part["partition"] for part in found) for topic, found in parts.items()
                }
                return
            if attempt == 0:
                missing = [topic for topic, found in parts.items() if not found]
                made = await admin.create_topics([self._new_topic(topic, brokers) for topic in missing])
                for name, code, *_ in made.topic_errors:
                    if code not in {0, TopicAlreadyExistsError.errno}:
                        raise for_code(code)(f"topic {name} cannot be made")
            await asyncio.sleep(0.02)

    async def _set_retention(self, admin: AIOKafkaAdminClient) -> None:
        """Set the topics' retention where it is another. An account that may not do so is told, once."""
        wanted = {self._name(topic): self._keeping(topic) for topic in Topic}
        asked = [
            ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(keeping))
            for name, keeping in wanted.items()
        ]
        try:
            (answer,) = await admin.describe_configs(asked)
            known = {name: {c[0]: c[1] for c in configs} for _, _, _, name, configs in answer.resources}
            others = {name: keeping for name, keeping in wanted.items() if known.get(name) != keeping}
            if others:
                await alter_topics(admin, others)
        except TopicAuthorizationFailedError as error:
            log.warning("this account may not set how long Kafka keeps the topics", why=str(error))

    def _keeping(self, topic: Topic) -> dict[str, str]:
        """The settings of a topic that say how long it keeps what."""
        keep, partitions = self._retention[topic], partitions_of(topic, self._of_packs)
        if topic in self._partitions:
            partitions = len(self._partitions[topic])
        return {
            "retention.ms": str(keep.most_age // 1_000),
            "retention.bytes": str(keep.most_bytes // partitions),
            "segment.bytes": str(min(1 << 30, max(16 << 20, keep.most_bytes // partitions // 8))),
        }

    def _new_topic(self, topic: Topic, brokers: int) -> NewTopic:
        partitions = partitions_of(topic, self._of_packs)
        replicas = min(3, brokers)
        settings = {
            **self._keeping(topic),
            "cleanup.policy": "delete",
            "max.message.bytes": str(2 * LARGEST_VALUE),
            "min.insync.replicas": str(min(2, replicas)),
            # By arrival: a gateway's wrong clock must neither be refused nor end an event's life early.
            "message.timestamp.type": "LogAppendTime",
        }
        return NewTopic(self._name(topic), partitions, replicas, topic_configs=settings)

    async def _starts(self, topic: Topic, start: Mapping[int, Position]) -> dict[TopicPartition, Position]:
        """Check that the positions are in this log; put the log's start for START."""
        for partition in start:
            if partition not in self._partitions[topic]:
                why = f"the topic has the partitions {list(self._partitions[topic])} only"
                raise PositionLost(topic, partition, why)
        name = self._name(topic)
        at = {TopicPartition(name, partition): position for partition, position in start.items()}
        begins, ends = await self._span(list(at))
        for place, position in at.items():
            begin, end = begins[place], ends[place]
            if position == START:
                at[place] = Position(begin, b"")
            elif position.offset < begin:
                why = f"the log starts at offset {begin} now: the retention removed those from {position.offset} on"
                raise PositionLost(topic, place.partition, why)
            elif position.offset > end:
                raise PositionLost(
                    topic, place.partition, f"the log ends at offset {end}, before {position.offset}"
                )
        before = await self._events_at(
            {place: position.offset - 1 for place, position in at.items() if position.offset > begins[place]}
        )
        for place, event in before.items():
            check(topic, place.partition, at[place], position_after(event))
        return at

    async def _span(
        self, places: Sequence[TopicPartition]
    ) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        """The offsets of the first event and after the last."""
        async with self._asking() as consumer:
            return await consumer.beginning_offsets(places), await consumer.end_offsets(places)

    async def _events_at(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, Event]:
        """Read single events."""
        found: dict[TopicPartition, Event] = {}
        if not offsets:
            return found
        with self._translating():
            consumer = await self._start_consumer()
            try:
                consumer.assign(list(offsets))
                for place, offset in offsets.items():
                    consumer.seek(place, offset)
                async with asyncio.timeout(self._patience):
                    for place in offsets:
                        found[place] = _event(await consumer.getone(place))
            finally:
                await _stop(consumer)
        return found

    async def _fetched(
        self, consumer: AIOKafkaConsumer, places: Sequence[TopicPartition], most: int
    ) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
        """Wait for events. aiokafka waits for a lost Kafka in silence, so it is asked now and then."""
        while True:
            fetched: Mapping[TopicPartition, Sequence[ConsumerRecord]]
            fetched = await consumer.getmany(timeout_ms=int(self._patience * 400), max_records=most)
            if fetched:
                return fetched
            async with asyncio.timeout(self._patience * 0.6):
                await consumer.end_offsets(places)

    async def _start_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._servers,
            acks="all",
            enable_idempotence=True,
            compression_type=self._compression,
            max_batch_size=_BATCH_BYTES,
            request_timeout_ms=int(self._patience * 1_000),
        )
        try:
            async with asyncio.timeout(self._patience):
                await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _start_consumer(self, group: str | None = None) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            group_id=f"{self._prefix}.{group}" if group else None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            request_timeout_ms=int(self._patience * 1_000),
            fetch_max_wait_ms=_FETCH_WAIT,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        try:
            async with asyncio.timeout(self._patience):
                await consumer.start()
        except BaseException:
            await _stop(consumer)
            raise
        return consumer

    @asynccontextmanager
    async def _administering(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """An admin client for a few requests, within the patience."""
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self._servers, request_timeout_ms=int(self._patience * 1_000)
        )
        try:
            async with asyncio.timeout(self._patience):
                await admin.start()
                yield admin
        except (KafkaError, OSError) as error:
            raise self._unavailable(error) from error
        finally:
            await admin.close()

    @asynccontextmanager
    async def _asking(self, group: str | None = None) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer for questions and commits: kept for the next ones, replaced after an error, never waited for long."""
        consumer = None
        try:
            async with asyncio.timeout(self._patience):
                async with self._opening:
                    if group not in self._consumers:
                        self._consumers[group] = await self._start_consumer(group)
                consumer = self._consumers[group]
                yield consumer
        except (KafkaError, OSError) as error:
            if consumer and self._consumers.get(group) is consumer:
                del self._consumers[group]
                await _stop(consumer)
            raise self._unavailable(error) from error

    @contextmanager
    def _translating(self, topic: Topic | None = None) -> Iterator[None]:
        try:
            yield
        except OffsetOutOfRangeError as error:
            ((place, offset),) = error.args[0].items()
            why = f"offset {offset} is not in the log: the retention removed it before it was read"
            raise PositionLost(topic or place.topic, place.partition, why) from error
        except (KafkaError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> Unavailable:
        if isinstance(error, KafkaError) and not isinstance(error, KafkaConnectionError | KafkaTimeoutError):
            return Unavailable("event log", f"Kafka at {self._servers}: {error}")
        return Unavailable(
            "event log", f"no answer from Kafka at {self._servers}. Is it running? (citylab doctor)"
        )

    def _name(self, topic: Topic) -> str:
        return self._prefix + topic.removeprefix("citylab")

    def _places(self, topic: Topic) -> list[TopicPartition]:
        return [TopicPartition(self._name(topic), partition) for partition in self._partitions[topic]]


async def delete_topics(url: str) -> None:
    """Delete a city's topics, with all that they hold. Raises `Unavailable`."""
    servers, prefix = _parse(url)
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    try:
        await admin.start()
        await admin.delete_topics(
            [name for name in await admin.list_topics() if name.startswith(f"{prefix}.")]
        )
    except (KafkaError, OSError) as error:
        raise Unavailable("event log", f"Kafka at {servers}: {error}") from error
    finally:
        await admin.close()


def _parse(url: str) -> tuple[str, str]:
    """The servers and the topics' prefix."""
    parts = urlsplit(url)
    if parts.scheme != "kafka" or not parts.netloc or "@" in parts.netloc:
        raise ConfigurationError(
            f"{url} is no address of Kafka such as kafka://host:9092 or kafka://a:9092,b:9092/prefix"
        )
    return parts.netloc, parts.path.strip("/") or "citylab"


def _event(record: ConsumerRecord) -> Event:
    headers = {name: value.decode() for name, value in record.headers}
    told = headers.pop(TIME_HEADER, None)
    time = int(told) if told else record.timestamp * 1_000
    key = record.key.decode() if record.key else ""
    return Event(record.partition, record.offset, key, record.value or b"", headers, time)


def _portions(events: list[Event], most_bytes: int) -> Iterator[list[Event]]:
    """Cut events into lists whose values have at most `most_bytes`, or of one event."""
    start = size = 0
    for index, event in enumerate(events):
        size += len(event.value)
        if size > most_bytes and index > start:
            yield events[start:index]
            start, size = index, len(event.value)
    yield events[start:]


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer. aiokafka's `stop` may end with its own tasks' cancellation, before the sockets are closed."""
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait([stopping])
    if stopping.cancelled() or stopping.exception():
        await consumer._client.close()


def _hush() -> None:
    """Keep aiokafka from repeating every second what our errors say once, unless somebody set its level."""
    logger = logging.getLogger("aiokafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
