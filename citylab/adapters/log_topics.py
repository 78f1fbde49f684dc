"""How many partitions the event log's topics have, and how long they keep what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from citylab.model import DAY, Micros, Topic


@dataclass(frozen=True)
class Retention:
    """What a topic keeps: at most about `most_bytes` on disk (of one copy), and nothing older than `most_age`."""

    most_bytes: int
    most_age: Micros


RETENTION: Mapping[Topic, Retention] = {
    Topic.PACKS: Retention(8 << 30, 7 * DAY),
    Topic.DESCRIPTORS: Retention(256 << 20, 30 * DAY),
    Topic.STATUS: Retention(256 << 20, 7 * DAY),
    Topic.CREATES: Retention(1 << 30, 7 * DAY),
    Topic.REFUSED: Retention(256 << 20, 30 * DAY),
    Topic.UPDATES: Retention(1 << 30, DAY),
    Topic.ALERTS: Retention(64 << 20, 30 * DAY),
    Topic.OUTBOUND: Retention(256 << 20, 7 * DAY),
}


def partitions_of(topic: Topic, of_packs: int) -> int:
    """Packs are split, so that several processors can share them; the other topics are small and keep one order."""
    return of_packs if topic is Topic.PACKS else 1
