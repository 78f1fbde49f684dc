"""Where an event stands in an event log: the partition of its key, and positions with their fingerprints.

Both logs place and fingerprint alike, so that what was read from one can be compared with the other.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256

from citylab.errors import PositionLost
from citylab.model import Event, Micros, NewEvent, Position, Topic

LARGEST_VALUE = 4 << 20  # bytes; Kafka's limit on a batch is above it

_HEAD = struct.Struct(">qqI")
_MASK = 0xFFFFFFFF
_M = 0x5BD1E995  # murmur2's multiplier


def fingerprint(offset: int, time: Micros, key: str, value: bytes) -> bytes:
    """8 bytes that tell this event from another log's event at the same offset (see `ports.EventLog`)."""
    name = key.encode()
    digest = sha256(_HEAD.pack(offset, time, len(name)))
    digest.update(name)
    digest.update(value)
    return digest.digest()[:8]


def position_after(event: Event) -> Position:
    """The position of the event that follows."""
    return Position(event.offset + 1, fingerprint(event.offset, event.time, event.key, event.value))


def check(topic: Topic, partition: int, position: Position, here: Position) -> None:
    """Raise `PositionLost` unless `position` has the fingerprint that this log has `here`, at the same offset."""
    if position.fingerprint != here.fingerprint:
        why = f"the event before offset {position.offset} is not the one that was read"
        raise PositionLost(topic, partition, f"{why}: this is another log, or was restored from a copy")


@lru_cache(maxsize=1 << 16)
def partition_of(key: str, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives a key: murmur2, positive, modulo."""
    return (_murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def by_partition(events: Sequence[NewEvent], partitions: int) -> Mapping[int, list[NewEvent]]:
    """Sort events into their partitions, in order. Raises ValueError when a value is larger than `LARGEST_VALUE`."""
    lanes: dict[int, list[NewEvent]] = {}
    for event in events:
        if len(event.value) > LARGEST_VALUE:
            raise ValueError(
                f"an event of {event.key} has {len(event.value)} bytes; {LARGEST_VALUE} are the most"
            )
        lane = partition_of(event.key, partitions)
        if lane in lanes:
            lanes[lane].append(event)
        else:
            lanes[lane] = [event]
    return lanes


def _murmur2(data: bytes) -> int:
    """MurmurHash2 with Kafka's seed: unsigned 32-bit."""
    whole = len(data) & ~3
    h = 0x9747B28C ^ len(data)
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        k = word * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15
