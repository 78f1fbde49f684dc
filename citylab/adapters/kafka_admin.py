"""Two requests of Kafka's protocol that aiokafka does not have: altering some of a topic's settings, and sizes on disk."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Int64, Schema, String

_TOPIC = 2  # as a type of resource
_SET = 0  # as an operation
_TEXT = String("utf-8")


class _AlterAnswer(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(
                ("error_code", Int16), ("error_message", _TEXT), ("resource_type", Int8), ("resource_name", _TEXT)
            ),
        ),
    )  # fmt: skip


class _AlterStruct(RequestStruct):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _AlterAnswer
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", _TEXT),
                ("configs", Array(("name", _TEXT), ("config_operation", Int8), ("value", _TEXT))),
            ),
        ),
        ("validate_only", Boolean),
    )


class _Alter(Request[_AlterStruct]):  # type: ignore[misc]  # aiokafka ships no types
    """IncrementalAlterConfigs: what is not named stays as it is."""

    API_KEY = 44

    def __init__(self, topics: Mapping[str, Mapping[str, str]]) -> None:
        self._topics = topics

    def build(self, struct: type[_AlterStruct]) -> _AlterStruct:
        """See aiokafka."""
        resources = [
            (_TOPIC, topic, [(name, _SET, value) for name, value in settings.items()])
            for topic, settings in self._topics.items()
        ]
        return struct(resources, False)


class _SizesAnswer(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("error_code", Int16),
                ("log_dir", _TEXT),
                (
                    "topics",
                    Array(
                        ("name", _TEXT),
                        (
                            "partitions",
                            Array(
                                ("partition_index", Int32),
                                ("partition_size", Int64),
                                ("offset_lag", Int64),
                                ("is_future_key", Boolean),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    )


class _SizesStruct(RequestStruct):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE = _SizesAnswer
    SCHEMA = Schema(("topics", Array(("topic", _TEXT), ("partitions", Array(Int32)))))


class _Sizes(Request[_SizesStruct]):  # type: ignore[misc]  # aiokafka ships no types
    """DescribeLogDirs."""

    API_KEY = 35

    def __init__(self, topics: Mapping[str, Sequence[int]]) -> None:
        self._topics = topics

    def build(self, struct: type[_SizesStruct]) -> _SizesStruct:
        """See aiokafka."""
        return struct([(topic, list(partitions)) for topic, partitions in self._topics.items()])


async def alter_topics(admin: AIOKafkaAdminClient, topics: Mapping[str, Mapping[str, str]]) -> None:
    """Set these settings of topics, and leave their others. Raises KafkaError."""
    answer = await admin._send_request(_Alter(topics))
    for code, message, _, name in answer.responses:
        if code:
            raise for_code(code)(f"topic {name}: {message}")


async def bytes_on_disk(
    admin: AIOKafkaAdminClient, places: Iterable[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """What the largest replica of each partition has on disk; a partition whose brokers do not say is left out."""
    topics: dict[str, list[int]] = defaultdict(list)
    for topic, partition in places:
        topics[topic].append(partition)
    sizes: dict[TopicPartition, int] = {}
    for broker in (await admin.describe_cluster())["brokers"]:
        answer = await admin._send_request(_Sizes(topics), broker["node_id"])
        for _, _, found in answer.results:
            for topic, partitions in found:
                for partition, size, _, _ in partitions:
                    place = TopicPartition(topic, partition)
                    sizes[place] = max(size, sizes.get(place, 0))
    return sizes
