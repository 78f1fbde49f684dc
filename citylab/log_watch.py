"""Whether the event log's retention comes near what was not read yet: a state of health, before anything is lost."""

from collections.abc import Mapping
from typing import NamedTuple

from citylab.model import Kept, Micros, Position, Topic
from citylab.outbound import GROUP
from citylab.ports import EventLog, Store

WARN, UNWELL = 0.5, 0.8  # of the retention that what is unread takes
STORED = (Topic.PACKS, Topic.DESCRIPTORS, Topic.STATUS, Topic.CREATES, Topic.REFUSED)
LOST = "lost"
"""The name among what services say of themselves under which the store has what went unread, by topic and partition."""

WRITERS = "SELECT name FROM services WHERE name <> 'lost' AND abs(extract(epoch FROM now() - at)) < 10 ORDER BY name"
"""The statement that asks the store which services said lately that they run."""


class Finding(NamedTuple):
    """A topic of the log, or a disk, that needs somebody's care: soon, or now where `unwell`."""

    topic: str
    unwell: bool
    text: str


async def look(log: EventLog, store: Store, *, now: Micros) -> Mapping[Topic, Kept]:
    """What every topic holds, and how far processing and the bridges are behind. Raises `Unavailable`."""
    readers: dict[Topic, Mapping[int, Position]] = {topic: await store.positions(topic) for topic in STORED}
    readers[Topic.OUTBOUND] = await log.committed(GROUP, Topic.OUTBOUND)
    return await log.kept(readers, now=now)


def findings(kept: Mapping[Topic, Kept]) -> list[Finding]:
    """What to tell people of it, with what to do."""
    found = []
    for topic, (_, _, behind, lost) in kept.items():
        reader = "ingest" if topic is Topic.OUTBOUND else "processing"
        if lost:
            why = f"{lost:,} events were removed by the retention before {reader} had read them"
            found.append(Finding(topic, unwell=True, text=f"{why}: see `citylab positions show`"))
        elif behind >= WARN:
            why = f"what {reader} has not read takes {behind:.0%} of the log's retention, and at 100% it goes unread"
            todo = f"see that `citylab {reader}` runs and keeps up, or raise CITYLAB_RETENTION_DAYS and CITYLAB_RETENTION_BYTES"
            found.append(Finding(topic, behind >= UNWELL, f"{why}: {todo}"))
    return found
