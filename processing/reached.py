"""How far topics were saved, to notice a store that has not got it: a standby that was promoted without the end of it.

Reading says nothing until something new comes, and what is lost would wait for that in the log.
"""

import asyncio
from collections import defaultdict
from typing import NoReturn

import structlog

from citylab.model import Batch, Topic
from citylab.ports import Store
from citylab.writes import PositionMoved

log = structlog.get_logger()
LOOK_EVERY = 1.0  # s


class Reached:
    """Offsets of what was saved, by topic and partition."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._offsets: dict[Topic, dict[int, int]] = {}
        self._behind: defaultdict[Topic, asyncio.Event] = defaultdict(asyncio.Event)

    def begin(self, topic: Topic) -> None:
        """The topic is read anew, from where the store stands."""
        self._offsets[topic] = {}
        self._behind[topic].clear()

    def saved(self, batch: Batch) -> None:
        """A batch, and with it its position, is committed."""
        self._offsets[batch.topic][batch.partition] = batch.after.offset

    async def until_behind(self, topic: Topic) -> NoReturn:
        """Raise `PositionMoved` once the store stands before what was saved."""
        await self._behind[topic].wait()
        raise PositionMoved(f"the store has lost what was saved last of {topic}")

    async def watch(self) -> None:
        """Look once. Raises `Unavailable`."""
        reached = {topic: dict(offsets) for topic, offsets in self._offsets.items() if offsets}
        if not reached:
            return
        async with self._store.transaction(read_only=True) as transaction:
            rows = await transaction.fetch('SELECT topic, partition, "offset" FROM positions')
        stored = {(topic, partition): offset for topic, partition, offset in rows}
        for topic, offsets in reached.items():
            if any(stored.get((topic, partition), 0) < offset for partition, offset in offsets.items()):
                if not self._behind[topic].is_set():
                    log.warning("the store stands before what was saved in it; reading it again", topic=topic)
                self._behind[topic].set()
