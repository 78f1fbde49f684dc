"""Topics of a city that was made for a while are deleted with it, and no others."""

import secrets

from aiokafka.admin import AIOKafkaAdminClient
from engines import url_of

from citylab.adapters.kafka_log import KafkaLog, delete_topics
from citylab.model import Topic


async def names(server: str) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


async def test_a_citys_topics_are_deleted_and_those_of_others_stay():
    server, mark = url_of("LOG").removeprefix("kafka://"), f"test-{secrets.token_hex(6)}"
    one, other = f"kafka://{server}/{mark}", f"kafka://{server}/{mark}-too"
    for url in (one, other):
        async with KafkaLog(url, partitions=1):
            pass
    try:
        await delete_topics(one)
        left = {name for name in await names(server) if name.startswith(mark)}
        assert left == {topic.replace("citylab", f"{mark}-too", 1) for topic in Topic}
    finally:
        await delete_topics(other)
    assert not [name for name in await names(server) if name.startswith(mark)]
