"""The three nouns that change hands, Message -> Event -> Observation, and where they are.

Times are whole microseconds since 1970-01-01T00:00:00Z (`Micros`); values here know no engine.
"""

import re
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from typing import NamedTuple, TypeAlias

import msgspec

Micros: TypeAlias = int
SECOND: Micros = 1_000_000
MINUTE: Micros = 60 * SECOND
HOUR: Micros = 60 * MINUTE
DAY: Micros = 24 * HOUR

GATEWAY_NAME = re.compile(r"[A-Za-z0-9\-_.:]{1,64}")
LARGEST_NUMBER = 2**53 - 1  # of an epoch or a seq: what JSON carries without loss


class Topic(StrEnum):
    """The event log's topics."""

    PACKS = "citylab.packs"
    DESCRIPTORS = "citylab.descriptors"
    STATUS = "citylab.status"
    CREATES = "citylab.creates"
    REFUSED = "citylab.refused"
    UPDATES = "citylab.updates"
    ALERTS = "citylab.alerts"
    OUTBOUND = "citylab.outbound"


class Reason(StrEnum):
    """Why a record is rejected (the contracts' table)."""

    MALFORMED = "malformed"
    UNKNOWN_STREAM = "unknown-stream"
    NOT_YOURS = "not-yours"
    TYPE_MISMATCH = "type-mismatch"
    NOT_FINITE = "not-finite"
    UNIT_MISMATCH = "unit-mismatch"
    TIME_IN_FUTURE = "time-in-future"
    TIME_IMPLAUSIBLE = "time-implausible"
    CONFLICT = "conflict"
    OVER_QUOTA = "over-quota"


class Quality(IntEnum):
    """`quality` of a record; stored as resultQuality `{"flag": ...}`, NONE as null."""

    NONE = 0
    GOOD = 1
    SUSPECT = 2
    BAD = 3


class Message(NamedTuple):
    """What MQTT delivered. `ack` sends the PUBACK; it belongs to the connection that delivered the message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    received_at: Micros
    ack: Callable[[], None]


class Will(NamedTuple):
    """What an MQTT broker publishes for a client whose connection ends without DISCONNECT (the last will)."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


class NewEvent(NamedTuple):
    """What is appended to the event log. Events with one key keep their order."""

    key: str
    value: bytes
    headers: Mapping[str, str]
    time: Micros


class Event(NamedTuple):
    """What the event log holds, and where."""

    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    time: Micros


class Position(NamedTuple):
    """The next offset to read, and a fingerprint of the event before it (see `ports.EventLog`)."""

    offset: int
    fingerprint: bytes


class Batch(NamedTuple):
    """Whole events of one partition in order, and the positions before and after them."""

    topic: Topic
    partition: int
    before: Position
    events: list[Event]
    after: Position


class Kept(NamedTuple):
    """What a topic of the log holds, and how near its retention is to what a reader has not read.

    bytes: on disk, of one copy; oldest: time of the oldest event; behind: what is unread, as a share of the retention (the
    larger of age and bytes): at 1 the oldest of it goes; lost: events that went unread.
    """

    bytes: int
    oldest: Micros | None
    behind: float = 0.0
    lost: int = 0


class Reading(msgspec.Struct, frozen=True, omit_defaults=True):
    """One value as a driver measured it, before it becomes a SenML record.

    name: the stream name (RFC 8428 resolved name); time: Micros; unit: a SenML unit, or none.
    """

    name: str
    time: Micros
    value: float | bool | str
    unit: str | None = None
    quality: Quality = Quality.NONE
