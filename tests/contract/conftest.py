"""Event logs of a test's own: a folder for the embedded one, topics with a prefix of their own on Kafka."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from engines import url_of

from citylab.adapters.kafka_log import KafkaLog
from citylab.adapters.log_topics import Retention
from citylab.adapters.sqlite_log import SqliteLog
from citylab.model import DAY, NewEvent, Topic
from citylab.ports import EventLog

SMALL = dict.fromkeys(Topic, Retention(1 << 20, DAY))


class SqliteEngine:
    """The embedded log in a folder."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:{folder}"
        self.folder = folder

    def log(self, partitions: int = 4) -> EventLog:
        return SqliteLog(self.folder, partitions=partitions)

    def small_log(self, *, only_looks: bool = False) -> EventLog:
        """A log that keeps about a MiB in small files, in one partition."""
        return SqliteLog(
            self.folder, partitions=1, retention=SMALL, segment_bytes=256 << 10, only_looks=only_looks
        )

    async def outgrow(self, log: EventLog) -> None:
        """Make the retention remove the oldest events of a small log."""
        for number in range(64):
            await log.append(Topic.PACKS, [NewEvent("gw", b"x" * (64 << 10), {}, number)])

    async def close(self) -> None:
        pass


class KafkaEngine:
    """Topics on the Kafka that runs."""

    def __init__(self, server: str) -> None:
        self.prefix = f"test-{secrets.token_hex(6)}"
        self.url = f"{server}/{self.prefix}"
        self.server = server.removeprefix("kafka://")

    def log(self, partitions: int = 4) -> EventLog:
        return KafkaLog(self.url, partitions=partitions)

    def small_log(self, *, only_looks: bool = False) -> EventLog:
        """A log that may have a MiB a topic, in one partition."""
        return KafkaLog(self.url, partitions=1, retention=SMALL, only_looks=only_looks)

    async def settings(self, name: str) -> dict[str, str]:
        """How long a topic keeps what, as Kafka has it."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server)
        await admin.start()
        resource = ConfigResource(ConfigResourceType.TOPIC, f"{self.prefix}.{name}", None)
        (answer,) = await admin.describe_configs([resource])
        await admin.close()
        return {config[0]: config[1] for config in answer.resources[0][4]}

    async def outgrow(self, log: EventLog) -> None:
        """Remove the oldest events: Kafka's own retention looks too rarely for a test's patience."""
        for number in range(64):
            await log.append(Topic.PACKS, [NewEvent("gw", b"x" * (64 << 10), {}, number)])
        (end,) = (await log.ends(Topic.PACKS)).values()
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server)
        await admin.start()
        await admin.delete_records({TopicPartition(f"{self.prefix}.packs", 0): RecordsToDelete(end - 10)})
        await admin.close()

    async def close(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server)
        await admin.start()
        await admin.delete_topics(
            [name for name in await admin.list_topics() if name.startswith(self.prefix)]
        )
        await admin.close()


@pytest.fixture(params=["sqlite", "kafka"])
async def engine(request, tmp_path) -> AsyncIterator[SqliteEngine | KafkaEngine]:
    engine = SqliteEngine(tmp_path / "log") if request.param == "sqlite" else KafkaEngine(url_of("LOG"))
    yield engine
    await engine.close()


@pytest.fixture
async def log(engine) -> AsyncIterator[EventLog]:
    async with engine.log() as log:
        yield log
