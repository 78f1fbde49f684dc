"""How many partitions the event log's topics have, and how long they keep what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from citylab.model import DAY, Micros, Topic

_LEAST_BYTES = 1 << 20


@dataclass(frozen=True)
class Retention:
    """What a topic keeps: at most about `most_bytes` on disk (of one copy), and nothing older than `most_age`."""

    most_bytes: int
    most_age: Micros


def retention(age: Micros = 7 * DAY, most_bytes: int = 8 << 30) -> Mapping[Topic, Retention]:
    """What each topic keeps when packs have these limits, the largest: what waits to be stored has the same age.

    Updates are only for who follows now.
    """
    parts = {Topic.PACKS: 1, Topic.CREATES: 8, Topic.UPDATES: 8, Topic.ALERTS: 128}
    return {
        topic: Retention(
            max(most_bytes // parts.get(topic, 32), _LEAST_BYTES),
            min(age, DAY) if topic is Topic.UPDATES else age,
        )
        for topic in Topic
    }


RETENTION = retention()


def partitions_of(topic: Topic, of_packs: int) -> int:
    """Packs are split, so that several processors can share them; the other topics are small and keep one order."""
    return of_packs if topic is Topic.PACKS else 1
