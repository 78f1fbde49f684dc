"""A process that appends to an event log until it is killed: one event a call, or as many as it is asked for.

Usage: appender.py URL KEY forever    says each number on a line of its own once it is durable
       appender.py URL KEY asked      appends one more for each line it reads, and says its number
The embedded log's segments have CITYLAB_TEST_SEGMENT_BYTES.
"""

import asyncio
import os
import sys
from pathlib import Path

from citylab.adapters.kafka_log import KafkaLog
from citylab.adapters.sqlite_log import SqliteLog
from citylab.model import NewEvent, Topic
from citylab.ports import EventLog


def log_at(url: str) -> EventLog:
    if url.startswith("kafka:"):
        return KafkaLog(url)
    segment_bytes = int(os.environ.get("CITYLAB_TEST_SEGMENT_BYTES", "67108864"))
    return SqliteLog(Path(url.removeprefix("sqlite:")), segment_bytes=segment_bytes)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main(url: str, key: str, mode: str) -> None:
    async with log_at(url) as log:
        say("ready")
        number = 0
        while mode == "forever" or await asyncio.to_thread(sys.stdin.readline):
            await log.append(Topic.PACKS, [NewEvent(key, b"%d" % number, {}, number)])
            say(str(number))
            number += 1


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
